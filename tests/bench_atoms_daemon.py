"""From replayed files to atoms: a series through a running daemon, with and without a background that the daemon has to remove.

    python -m tests.bench_atoms_daemon [--background 4] [--only WORD] [--film changes]
    AET_STREAM_TEST_DATA=... python -m tests.bench_atoms_daemon --series np2_dose8e3 --within 70 [--iterations 30]

The series, a particle of ours or one of `simulated-np`, goes file by file through a running daemon, which makes the volume when it closes
the series, and finds its atoms. Four times: `without` background (a constant pedestal is subtracted); with a background of so many counts
that changes from tilt to tilt, `removed` by the default network; with the Poisson noise that such a background brings along, removed
likewise (`noisy`); and that with the background subtracted exactly, as if it were `known`. So the first two, and again the last two under
more noise, tell what its removal costs. Behind the particle lies a film of the simulator, which turns with it as films do, so that
the films of the series become a second edition; with `--film changes` one that changes from frame to frame, as no film does; with
`--film waves` a slope and a wave.

Maxima and atoms are matched to the true ones one to one. How the atoms' x, y, z follow the volume's axes is
fixed, so that a volume of the wrong hand finds nothing; scale and offset, which the data do not state, are fitted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from aet_stream.atoms.maxima import maxima
from aet_stream.atoms.views import to_angstrom, to_places
from aet_stream.projection import Array
from aet_stream.reconstruct.volume_file import VOLUME
from aet_stream.simulate.backgrounds import film
from aet_stream.simulate.films import Extent, ThicknessMap, clouds, normalised
from aet_stream.simulate.writers import npy
from tests.atom_truth import Truth, judge, published, simulated
from tests.harness import Daemon


def of_film(count: int, size_px: int, mean: float, seed: int = 0) -> Array:
    """(count, y, x): a support film that changes slowly from frame to frame, as `simulate` has it."""
    rng = np.random.default_rng(seed)
    first, last = (film(rng, size_px) for _ in range(2))
    mix = np.linspace(0, 1, count)[:, None, None]
    films = (1 - mix) * first + mix * last
    return mean * films / films.mean()


def of_turning_film(tilts_deg: Array, size_px: int, mean: float, seed: int = 0) -> Array:
    """(count, y, x): a support film that is tilted with the specimen, a quarter of a frame below it."""
    rng, angles, below_px = np.random.default_rng(seed), np.radians(tilts_deg), size_px / 4
    extent = Extent(size_px, float((size_px / 2 + below_px) / np.cos(angles).min()))
    thickness = ThicknessMap(0.5 + normalised(clouds(rng, extent), extent), extent)
    y, x = np.mgrid[:size_px, :size_px] - (size_px - 1) / 2
    films = np.stack([thickness(y, (x + below_px * np.sin(angle)) / np.cos(angle)) / np.cos(angle) for angle in angles])
    scaled: Array = mean * films / np.median(films)
    return scaled


def of_waves(count: int, size_px: int, mean: float, seed: int = 0) -> Array:
    """(count, y, x): a slope and a wave, drifting slowly from frame to frame."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:size_px, :size_px] / size_px - 0.5
    phases = np.cumsum(rng.normal(0, 0.1, (count, 4)), axis=0) + rng.uniform(0, 6, 4)
    shapes = [1 + 0.5 * np.sin(a) * x + 0.5 * np.cos(b) * y + 0.2 * np.cos(5 * x + c) * np.cos(4 * y + d) for a, b, c, d in phases]
    return mean * np.stack(shapes)


def tilted(truth: Truth, most_deg: float) -> Truth:
    """Of a series over half a turn what a film leaves possible: beyond 90 degrees it is seen from the other side."""
    beyond = truth.tilts_deg > 90
    tilts_deg = np.where(beyond, truth.tilts_deg - 180, truth.tilts_deg)
    mirrored = np.roll(truth.images[:, :, ::-1], round(2 * truth.axis_px) - truth.images.shape[2] + 1, axis=2)
    images = np.where(beyond[:, None, None], mirrored, truth.images)
    order = [index for index in np.argsort(tilts_deg) if abs(tilts_deg[index]) <= most_deg]
    return replace(truth, images=images[order], tilts_deg=tilts_deg[order])


def through_the_daemon(folder: Path, truth: Truth, images: Array, model: str, **settings: object) -> Path:
    """Each image as a file; the folder of what came out."""
    wanted: dict[str, object] = {
        "reconstruct__on_close": True,
        "reconstruct__quality": False,
        "atoms__enabled": True,
        "film__enabled": model != "constant",
    }
    wanted |= {"atoms__pixel_angstrom": truth.pixel_angstrom, **settings}  # .npy does not say it
    daemon = Daemon(folder, denoise__model=model, **wanted)
    target = daemon.root / "np"
    target.mkdir(parents=True)
    for index, (image, tilt) in enumerate(zip(images, truth.tilts_deg, strict=True)):
        (target / f"p_{index:03d}_{tilt:+.2f}deg.npy").write_bytes(npy(image, float(tilt), truth.pixel_angstrom / 10))
    assert daemon.run("--until-idle", "2", "--strict", limit_s=7200) == 0, daemon.log.read_text()[-2000:]
    return daemon.out / "np"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", default="", help="one of simulated-np; without: an fcc particle of ours")
    parser.add_argument("--atoms", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=3000)
    parser.add_argument("--tilts", default="70")
    parser.add_argument("--iterations", type=int, default=50, help="0: the stopping rule, which is after the voxels, not the atoms")
    parser.add_argument("--background", type=float, default=4.0, help="mean counts (the particle has about 10)")
    parser.add_argument("--film", default="turns", choices=("turns", "changes", "waves"))
    parser.add_argument(
        "--within", type=float, default=90.0, help="degrees: of a series of simulated-np, which has all tilts, as no film allows"
    )
    parser.add_argument("--only", default="", help="without, removed, noisy or known")
    parser.add_argument("--set", default="{}", help="further settings, as JSON")
    given = parser.parse_args()
    if given.series:
        truth = published(given.series)
        truth = tilted(truth, given.within)
    else:
        truth = simulated("fcc", (79,), given.atoms, given.seed, given.tilts, around_px=60)
        truth = replace(truth, axes=np.eye(3))  # where the alignment puts the particle is its own affair
    images = np.rint(truth.images + 1)
    if given.film == "turns":
        extra = of_turning_film(truth.tilts_deg, images.shape[1], given.background)
    else:
        extra = (of_waves if given.film == "waves" else of_film)(len(images), images.shape[1], given.background)
    noisy = images + np.random.default_rng(1).poisson(extra)
    cases = {
        "without": (images.astype("<u2"), "constant"),
        "removed": ((images + extra).astype("<f4"), "default"),
        "noisy": (noisy.astype("<u2"), "default"),
        "known": ((noisy - extra).astype("<f4"), "constant"),
    }
    settings = {"reconstruct__iterations": given.iterations, **json.loads(given.set)}
    print(f"{truth.name}: {len(truth.places):,} atoms, {len(images)} tilts of {images.shape[2]} px")
    for title, (stack, model) in cases.items():
        if given.only in ("", title):
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as name:
                folder = through_the_daemon(Path(name), truth, stack, model, **settings)
                with h5py.File(folder / "reconstruction.h5") as file:
                    volume, edition = file[VOLUME][()], file["reconstruction"].attrs["edition"]
                places = to_places(maxima(volume, truth.pixel_angstrom)[0], volume.shape)
                print(f"{title}: {time.monotonic() - began:.0f} s, edition {edition}")
                print(f"  maxima  {judge(to_angstrom(places, truth.pixel_angstrom), truth)}")
                if (folder / "atoms.h5").exists():
                    with h5py.File(folder / "atoms.h5") as file:
                        print(f"  atoms   {judge(file['atoms/angstrom'][()], truth)}  {file['atoms'].attrs['doubts']}", flush=True)
                else:
                    print(f"  refused {json.loads((folder / 'atoms.json').read_text())['text']}", flush=True)


if __name__ == "__main__":
    main()
