"""Tilt series of things: films, contamination and particles that turn together in front of an instrument (parts.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d, shift

from aet_stream.projection import Array
from aet_stream.simulate import multislice as theory
from aet_stream.simulate import noise
from aet_stream.simulate.backgrounds import background
from aet_stream.simulate.films import FILMS, PHYSICS, Extent, Film, Physics, ThicknessMap, normalised
from aet_stream.simulate.formation import Beam, fitting_pixel_size_nm, project, volume
from aet_stream.simulate.particle import Particle, make_particle
from aet_stream.simulate.parts import CARBON_Z, STEEPEST_DEG, Blob, Carbon, Growing, Lie, Part, Shell, Slab, View
from aet_stream.simulate.series import LARGEST_VOLUME_PX, SimulatedSeries

LEARNT_HABITS = ("fcc", "hcp", "decahedron", "amorphous", "rod", "twin")
"""Of the particles on films of the physics `clouds`; on `flakes` lie the others, of which no network has learned."""
JUDGING_HABITS = ("icosahedron", "cube", "octahedron", "plate")
_MOST_ATOMS = 1_500_000
"""Of carbon in one view."""


@dataclass(frozen=True, slots=True)
class Blend:
    """Backgrounds that do not turn: what a series must not be taken for. One picture slowly becomes the other, or each view has its own."""

    seeds: tuple[int, ...]
    """Two, or none: each view its own"""
    own: int = 0

    def seen(self, view: View) -> Array:
        if not self.seeds:
            return self._picture(view, self.own + round(1e6 * view.time))
        first, last = (self._picture(view, seed) for seed in self.seeds)
        blend: Array = (1 - view.time) * first + view.time * last
        return blend

    def _picture(self, view: View, seed: int) -> Array:
        return background(np.random.default_rng(seed), "film", view.size_px).astype(np.float64)


# ---------------------------------------------------------------- kinds of series


@dataclass(frozen=True, slots=True)
class Instrument:
    """What the microscope adds."""

    dose: float = 1000.0
    """Counts in the brightest pixel of the particle"""
    jitter_px: float = 1.0
    """Of the specimen from one exposure to the next, for frames of 256 px"""
    drift: float = 0.01
    """Of the beam's current over the series, share"""
    unsteady_px: float = 0.1
    """Of the lines of a scan"""
    stage_deg: float = 0.1
    """Error of its tilt"""
    pedestal: float = 0.1
    """Largest offset of the detector, in units of the particle"""
    read_counts: float = 1.0


@dataclass(slots=True)
class Specimen:
    """What is being put together: a particle, and what lies around it."""

    rng: np.random.Generator
    physics: Physics
    subject: Particle
    size_px: int
    pixel_size_nm: float
    unit: float
    """Intensity of the brightest pixel, as `project` has it"""
    beam: Beam
    steepest_deg: float
    parts: list[Part] = field(default_factory=list)
    lie: Lie = field(default_factory=lambda: Lie(0.0))
    instrument: Instrument = field(default_factory=Instrument)

    @property
    def film(self) -> Film:
        return FILMS[self.physics]

    @property
    def atoms_px(self) -> Array:
        positions: Array = self.subject.positions_nm.astype(np.float64) / self.pixel_size_nm
        return positions

    @property
    def radius_px(self) -> float:
        """Of the sphere around the particle, about its middle."""
        return float(np.linalg.norm(self.atoms_px - self.middle_px, axis=1).max())

    @property
    def middle_px(self) -> Array:
        middle: Array = (self.atoms_px.min(0) + self.atoms_px.max(0)) / 2
        return middle

    def scaled(self, px: float) -> float:
        """A length that is meant for frames of 256 px."""
        return px * self.size_px / 256

    def extent(self, lie: Lie) -> Extent:
        """Of a film as it lies, at all tilts of the series."""
        angle = np.radians(min(self.steepest_deg + abs(lie.offset_deg) + 0.5, STEEPEST_DEG))
        half = self.size_px / 2
        reach = (half + self.scaled(12) + (abs(lie.height_px) + abs(lie.slope) * half) * np.sin(angle)) / np.cos(angle)
        return Extent(self.size_px, float(reach))

    def below(self) -> Lie:
        """A film on which the particle lies."""
        low = -self.atoms_px[:, 2].min()
        gap = self.rng.uniform(0, 0.15) * self.radius_px
        return Lie(-float(low + gap), self.rng.normal(0, 3), self.rng.normal(0, 0.04))

    def slab(
        self,
        peak: float,
        *,
        lie: Lie | None = None,
        edge: tuple[float, float] | None = None,
        hole: tuple[tuple[float, float], float] | None = None,
        halo: tuple[float, float] | None = None,
        even: float = 0.0,
        wedge: float = 0.0,
        surface: float = 1.0,
        layers_px: tuple[float, ...] = (0.0,),
    ) -> Slab:
        """A film whose thickness differs by `peak` over the frame at tilt 0.

        Parameters
        ----------
        edge : (place px, direction radians) of its edge
        hole : ((y, u) px, radius px)
        halo : (height against the film's own, width px), around the particle's shadow
        even : thickness everywhere, against what differs
        wedge : slope across the frame
        surface : how much of the film's own structure there is
        """
        lie = lie or self.lie
        extent = self.extent(lie)
        own = surface * normalised(self.film.surface(self.rng, extent), extent)
        values = own + even + wedge * np.broadcast_to(extent.axes()[1], own.shape) / self.size_px
        if edge is not None:
            values = (0.6 * values + 0.7) * self.film.edge(self.rng, extent, *edge)
        if hole is not None:
            values = (0.6 * values + 0.7) * self.film.hole(self.rng, extent, *hole)
        if halo is not None:
            at = (
                float(self.middle_px[1] + self.rng.normal(0, self.scaled(6))),
                float(self.middle_px[0] + self.rng.normal(0, self.scaled(8))),
            )
            values = 0.6 * values + halo[0] * self.film.halo(self.rng, extent, at, halo[1])
        levelled = normalised(values, extent) + even / max(float(np.ptp(values)), 1e-9) if even else normalised(values, extent)
        return Slab(ThicknessMap(peak * np.maximum(levelled, 0), extent), lie, layers_px)

    def carbon(self, thickness_nm: float, *, lie: Lie | None = None, extent: ThicknessMap | None = None) -> Carbon:
        """Amorphous carbon of the density of this physics."""
        density = float(np.round(self.rng.uniform(*self.film.carbon_density), 1))
        lie = lie or self.lie
        widest = self.size_px * self.pixel_size_nm
        most = 50 * density * widest**2 * thickness_nm / max(np.cos(np.radians(min(self.steepest_deg + 3, STEEPEST_DEG))), 0.17)
        thickness_nm *= min(1.0, _MOST_ATOMS / most)
        atom = (CARBON_Z / 79) ** self.beam.z_power / self.unit
        return Carbon(lie, density, float(np.round(thickness_nm, 1)) or 0.1, atom, int(self.rng.integers(2**31)), extent)

    def shell(self, peak: float, thickness_nm: float) -> Shell:
        """Contamination that covers the particle, `peak` where it is thickest at tilt 0."""
        outward = self.atoms_px - self.middle_px
        distance = np.linalg.norm(outward, axis=1, keepdims=True)
        surface = self.rng.choice(np.flatnonzero(distance[:, 0] > 0.6 * distance.max()), 3000)
        thickness = thickness_nm / self.pixel_size_nm
        off = 1 + thickness * self.rng.exponential(0.7, (len(surface), 1)) / distance[surface]
        side = self.rng.normal(size=3)
        weighted = self.rng.random(len(surface)) < 0.6 + 0.4 * (outward[surface] @ side) / (distance[surface, 0] * np.linalg.norm(side))
        shell = Shell((self.middle_px + outward[surface] * off)[weighted], 1.0, 0.6 * thickness)
        thickest = float(shell.seen(View(0.0, 0.0, self.size_px, self.pixel_size_nm)).max())
        return replace(shell, weight=peak / max(thickest, 1e-9))

    def blob(self, peak: float, width: float, depth: float) -> Blob:
        """Contamination fixed to the particle; `width` and `depth` against its radius."""
        r, (x, y, z) = self.radius_px, self.middle_px
        return Blob(peak, (x + 0.1 * r, y - 0.08 * r, z + depth * r), (width * r, 0.85 * width * r, 0.7 * width * r))


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of series."""

    what: str
    compose: Callable[[Specimen], None]
    particles: tuple[int, int] = (1, 1)
    """Least and most in a frame"""
    off_axis: float = 0.06
    """How far from the tilt axis the middle lies, frame widths"""


def _thin(s: Specimen) -> None:
    s.parts = [s.slab(0.25), s.carbon(1.0)]


def _edge(s: Specimen) -> None:
    s.parts = [s.slab(0.3, edge=(s.scaled(s.rng.uniform(-25, 25)), s.rng.uniform(0, 2 * np.pi)))]


def _hole(s: Specimen) -> None:
    at = (s.scaled(s.rng.uniform(-50, 50)), s.scaled(s.rng.uniform(-60, 60)))
    s.parts = [s.slab(0.3, hole=(at, s.scaled(s.rng.uniform(40, 110))))]


def _halo(s: Specimen) -> None:
    s.parts = [s.slab(0.3, halo=(1.0, s.scaled(s.rng.uniform(26, 38)))), s.carbon(0.6)]


def _hundred_counts(s: Specimen) -> None:
    s.parts = [s.slab(0.25, halo=(0.6, s.scaled(40)))]
    s.instrument = replace(s.instrument, dose=100.0)


def _growing(s: Specimen) -> None:
    s.parts = [s.slab(0.2), Growing(s.slab(0.3, halo=(3.0, s.scaled(s.rng.uniform(42, 52)))))]


def _two_films(s: Specimen) -> None:
    s.lie = replace(s.lie, offset_deg=7.0, slope=0.06)
    above = replace(s.lie, height_px=float(s.atoms_px[:, 2].max()) + s.scaled(4))
    s.parts = [s.slab(0.2), s.slab(0.15, lie=above)]


def _everything(s: Specimen) -> None:
    faint = replace(s.lie, height_px=s.lie.height_px - 0.3 * s.radius_px)
    s.parts = [
        s.slab(0.25, edge=(s.scaled(s.rng.uniform(0, 30)), s.rng.uniform(0, 2 * np.pi)), wedge=0.2),
        s.slab(0.08, lie=faint),
        Growing(s.slab(0.12, halo=(3.0, s.scaled(55)))),
        s.blob(0.06, 0.5, -0.5),
        s.carbon(0.6),
    ]
    s.instrument = replace(s.instrument, jitter_px=2.0, drift=0.02, dose=400.0)


def _blob(s: Specimen) -> None:
    s.parts = [s.slab(0.15), s.blob(0.15, 0.6, -0.5)]


def _shell(s: Specimen) -> None:
    s.parts = [s.slab(0.15), s.shell(0.08, s.rng.uniform(0.4, 1.0))]


def _thick_film(s: Specimen) -> None:
    layers = [replace(s.lie, height_px=s.lie.height_px - layer * s.radius_px / 3) for layer in range(4)]
    s.parts = [s.slab(0.12, lie=lie) for lie in layers]


def _mid_plane(s: Specimen) -> None:
    s.lie = replace(s.lie, height_px=0.0)
    s.parts = [s.slab(0.25, halo=(0.7, s.scaled(40)))]


def _one_side(s: Specimen) -> None:
    side = s.rng.choice([0.0, np.pi])
    beside = s.radius_px * s.rng.uniform(0.2, 1.1) + float(s.middle_px[0]) * np.cos(side)
    lie = replace(s.lie, height_px=s.lie.height_px * s.rng.uniform(0.3, 1))
    s.lie = lie
    s.parts = [s.slab(s.rng.uniform(0.15, 0.45), edge=(beside, side + s.rng.uniform(-0.5, 0.5)), even=s.rng.uniform(0.5, 2))]


def _strong(s: Specimen) -> None:
    s.parts = [s.slab(s.rng.uniform(0.15, 0.45), even=s.rng.uniform(0.3, 1.0)), s.carbon(s.rng.uniform(0.5, 2))]


def _carbon_film(s: Specimen) -> None:
    s.parts = [s.carbon(float(np.exp(s.rng.uniform(0, np.log(15))))), s.slab(0.03)]


def _several(s: Specimen) -> None:
    s.parts = [s.slab(0.2, edge=(s.scaled(s.rng.uniform(-60, 60)), s.rng.uniform(0, 2 * np.pi)) if s.rng.random() < 0.5 else None)]


def _off_axis(s: Specimen) -> None:
    s.parts = [s.slab(0.25, edge=(s.scaled(s.rng.uniform(-50, 50)), s.rng.uniform(0, 2 * np.pi)))]


def _independent(s: Specimen) -> None:
    s.parts = [Blend((), int(s.rng.integers(2**31)))]


def _blend(s: Specimen) -> None:
    s.parts = [Blend(tuple(int(seed) for seed in s.rng.integers(2**31, size=2)))]


SERIES_KINDS: dict[str, Kind] = {
    "thin-film": Kind("a thin uneven film below the particle, differing by 25 % of the particle", _thin),
    "edge": Kind("a film that ends under the particle: its edge sweeps through the series", _edge),
    "halo": Kind("contamination on the film, hidden by the particle at tilt 0", _halo),
    "100-counts": Kind("the same at 100 counts in the brightest pixel", _hundred_counts),
    "growing-halo": Kind("contamination on the film that grows from nothing", _growing),
    "two-films": Kind("a film below and one above, 7 degrees off and sloping", _two_films),
    "everything": Kind("an edge, a second faint film, growth, a blob on the particle, 400 counts, jitter of 2 px", _everything),
    "one-side": Kind("a film beside a free particle, up to 3 times as bright at high tilt", _one_side),
    "strong": Kind("a film of 15 to 45 % that is thick everywhere", _strong),
    "hole": Kind("the rim of a hole in the film", _hole),
    "several": Kind("two to four particles", _several, particles=(2, 4)),
    "off-axis": Kind("a particle far from the tilt axis, over an edge", _off_axis, off_axis=0.16),
    "carbon": Kind("1 to 15 nm of amorphous carbon, atom by atom", _carbon_film),
    "mid-plane": Kind("a film at the height of the axis, where nothing can be known", _mid_plane),
    "blob": Kind("contamination fixed to the particle, where nothing can be known", _blob),
    "shell": Kind("a shell of contamination around the particle", _shell),
    "thick-film": Kind("a film as thick as the particle", _thick_film),
    "independent": Kind("every projection with a background of its own: nothing turns", _independent),
    "blend": Kind("one background becomes another: nothing turns", _blend),
}


# ---------------------------------------------------------------- a series


@dataclass(frozen=True, slots=True)
class Geometry:
    """What was done to make a series, for whoever judges what was found of it. Every lie, shift and gain is the true one."""

    lies: tuple[Lie, ...]
    """Of its films"""
    tilts_deg: Array
    """(tilts,) of the specimen, with the stage's errors"""
    shifts_px: Array
    """(tilts, 2) y, x"""
    gains: Array
    pedestals: Array
    """(tilts,) counts"""
    radius_px: float
    """Of the sphere around the particle"""
    unit_counts: float
    """Counts in the brightest pixel of the particle"""


@dataclass(frozen=True, slots=True)
class PhysicalSeries(SimulatedSeries):
    """A series of a kind, in counts."""

    kind: str
    physics: Physics
    geometry: Geometry


def physical_series(
    kind: str,
    seed: int,
    tilts_deg: Array,
    *,
    size_px: int = 256,
    physics: Physics = "clouds",
    particle: str = "random",
    atoms: int = 0,
    dose: float | None = None,
    instrument: Instrument | None = None,
    height: float | None = None,
    with_volume: bool = False,
    multislice: Path | None = None,
) -> PhysicalSeries:
    """A tilt series of a specimen that turns, with its truth.

    Parameters
    ----------
    kind : one of SERIES_KINDS
    tilts_deg : in the order in which they are acquired: contamination grows in that order
    physics : of the film (films.py); particles are of LEARNT_HABITS on `clouds` and of JUDGING_HABITS on `flakes`
    particle, atoms : as for make_particle
    dose : counts in the brightest pixel, instead of the kind's own
    instrument : all of it, instead of the kind's own
    height : of the film above the axis, in radii of the particle, instead of below the particle
    with_volume : make the volume as well, which takes memory
    multislice : images of the particle by multislice theory instead of the linear model, kept in this folder; the stage then errs
        by nothing, no line is unsteady, and the volume is only proportional

    Raises
    ------
    ValueError : no such kind, physics or particle
    """
    for word, known, name in ((kind, SERIES_KINDS, "kind of series"), (physics, PHYSICS, "physics")):
        if word not in known:
            raise ValueError(f"{name} {word!r}: choose one of {', '.join(known)}")
    rng = np.random.default_rng([list(SERIES_KINDS).index(kind), PHYSICS.index(physics), seed])
    tilts_deg = np.asarray(tilts_deg, dtype=np.float64)
    chosen = SERIES_KINDS[kind]
    specimen = _specimen(rng, chosen, physics, tilts_deg, size_px, particle, atoms)
    specimen.lie = specimen.below()
    if height is not None:
        specimen.lie = replace(specimen.lie, height_px=height * specimen.radius_px)
    chosen.compose(specimen)
    used = instrument or specimen.instrument
    used = replace(used, dose=dose or used.dose)
    images = None
    if multislice is not None:
        used = replace(used, stage_deg=0.0, unsteady_px=0.0)
        images = theory.project_series(
            specimen.subject, tilts_deg, size_px=size_px, pixel_size_nm=specimen.pixel_size_nm, folder=multislice
        )
        specimen.unit = float(images.max())
    return _exposed(rng, kind, specimen, tilts_deg, used, with_volume, images)


def _specimen(
    rng: np.random.Generator, kind: Kind, physics: Physics, tilts_deg: Array, size_px: int, particle: str, atoms: int
) -> Specimen:
    habits = LEARNT_HABITS if physics == "clouds" else JUDGING_HABITS
    count = int(rng.integers(kind.particles[0], kind.particles[1] + 1))
    each = [
        make_particle(rng, kind=particle, kinds=habits, atoms=atoms or int(np.exp(rng.uniform(np.log(2000), np.log(20_000))) / count))
        for _ in range(count)
    ]
    subject = _beside_each_other(rng, each)
    fill = rng.uniform(0.5, 0.65) if count == 1 else rng.uniform(0.7, 0.9)
    pixel_size_nm = fitting_pixel_size_nm(subject, size_px, fill)
    room = kind.off_axis * size_px * pixel_size_nm
    middle = np.array([rng.uniform(-1, 1) * room, rng.uniform(-1, 1) * room, rng.uniform(-0.5, 0.5) * room])
    subject = replace(subject, positions_nm=(subject.positions_nm + middle).astype(np.float32))
    beam = Beam(z_power=rng.uniform(1.5, 1.8), sigma_nm=0.06 * rng.uniform(0.9, 1.3))
    few = tilts_deg[np.unique(np.linspace(0, len(tilts_deg) - 1, 7).round().astype(int))]
    unit = max(float(project(subject, float(tilt), size_px=size_px, pixel_size_nm=pixel_size_nm, beam=beam).max()) for tilt in few)
    return Specimen(rng, physics, subject, size_px, pixel_size_nm, unit, beam, float(np.abs(tilts_deg).max()))


def _beside_each_other(rng: np.random.Generator, particles: Sequence[Particle]) -> Particle:
    """On one film, side by side without touching; around the origin."""
    if len(particles) == 1:
        return particles[0]
    placed: list[Array] = []
    for one in particles:
        positions = one.positions_nm - one.positions_nm.mean(0)
        positions[:, 2] -= positions[:, 2].min()
        radius = float(np.hypot(positions[:, 0], positions[:, 1]).max())
        for _ in range(1000):
            turn, far = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1) ** 0.5 * 4 * radius if placed else 0.0
            moved = positions + np.array([far * np.cos(turn), far * np.sin(turn), 0.0])
            middle = moved[:, :2].mean(0)
            if all(np.linalg.norm(middle - other[:, :2].mean(0)) > radius + _half_width(other) for other in placed):
                break
        placed.append(moved)
    together = np.concatenate(placed)
    together -= (together.min(0) + together.max(0)) / 2
    return Particle(together.astype(np.float32), np.concatenate([one.atomic_number for one in particles]), "several")


def _half_width(positions: Array) -> float:
    flat = positions[:, :2] - positions[:, :2].mean(0)
    return float(np.hypot(*flat.T).max())


def _exposed(
    rng: np.random.Generator, kind: str, s: Specimen, tilts_deg: Array, instrument: Instrument, with_volume: bool, images: Array | None
) -> PhysicalSeries:
    n, size = len(tilts_deg), s.size_px
    real_deg = tilts_deg + rng.normal(0, instrument.stage_deg, n)
    shifts = rng.normal(0, s.scaled(instrument.jitter_px), (n, 2))
    gains = 1 + instrument.drift * 3 * gaussian_filter1d(rng.standard_normal(n), 3, mode="nearest")
    pedestals = rng.uniform(0, instrument.pedestal) + 0.004 * rng.standard_normal(n)
    unit = np.float32(instrument.dose)
    raw, clean, below = np.empty((n, size, size), "<u2"), np.empty((n, size, size), np.float32), np.empty((n, size, size), np.float32)
    floor = 12 * instrument.read_counts
    for i in range(n):
        lines: Array | float = instrument.unsteady_px * rng.standard_normal((size, 1)) if instrument.unsteady_px else 0.0
        time = i / max(n - 1, 1)
        view = View(float(real_deg[i]), time, size, s.pixel_size_nm, (float(shifts[i, 0]), float(shifts[i, 1])), lines)
        if images is None:
            image = project(_moved(s, view), 0.0, size_px=size, pixel_size_nm=s.pixel_size_nm, beam=s.beam)
        else:
            image = shift(images[i], view.shift_px, order=3, mode="nearest")
        image = image / np.float32(s.unit)
        if isinstance(lines, np.ndarray):
            image = noise.moved_lines(image, lines)
        clean[i] = np.float32(gains[i]) * image * unit
        seen: Array = sum((part.seen(view) for part in s.parts), np.zeros((size, size)))
        below[i] = (gains[i] * seen + pedestals[i]) * unit + floor
        expected = np.maximum(clean[i] + below[i] - floor, 0)
        counted = rng.poisson(expected) + rng.normal(0, instrument.read_counts, expected.shape) + floor
        raw[i] = np.clip(np.rint(counted), 0, 65535)
    lies = tuple(dict.fromkeys(lie for part in s.parts if (lie := _lie_of(part)) is not None))
    made = None
    if with_volume and size <= LARGEST_VOLUME_PX:
        made = volume(s.subject, size_px=size, pixel_size_nm=s.pixel_size_nm) * np.float32(unit / s.unit)
    geometry = Geometry(lies, real_deg, shifts, gains, pedestals * float(unit) + floor, s.radius_px, float(unit))
    return PhysicalSeries(raw, clean, below, tilts_deg, s.pixel_size_nm, made, kind, s.physics, geometry)


def _moved(s: Specimen, view: View) -> Particle:
    """The particle as it is seen: turned and shifted."""
    c, sine = np.cos(np.radians(view.tilt_deg)), np.sin(np.radians(view.tilt_deg))
    shift = np.array([view.shift_px[1], view.shift_px[0], 0.0]) * s.pixel_size_nm
    turned = s.subject.positions_nm @ np.array([(c, 0, sine), (0, 1, 0), (-sine, 0, c)]).T + shift
    return replace(s.subject, positions_nm=turned.astype(np.float32))


def _lie_of(part: Part) -> Lie | None:
    if isinstance(part, Growing):
        return _lie_of(part.part)
    return part.lie if isinstance(part, Slab | Carbon) else None
