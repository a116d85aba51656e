"""The series estimator: a film that turns with the specimen is found, seen where it was hidden, and believed only where it foretells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from aet_stream.denoise import grid
from aet_stream.denoise.cokriging.drawing import Drawn, Held, draw
from aet_stream.denoise.cokriging.estimator import Estimated, View, drawn_on, estimate
from aet_stream.denoise.cokriging.gate import Taken, Verdict, judge, share_in_vacuum
from aet_stream.denoise.cokriging.likelihood import Likelihood, bands_of, fit_warm, likelier
from aet_stream.denoise.cokriging.model import FILM_LENGTHS, Film, Model, Windows, own_covariance
from aet_stream.denoise.cokriging.posterior import Nodes, Posterior
from aet_stream.denoise.cokriging.registered import astray, brought_back, moved, placed
from aet_stream.denoise.cokriging.scan import scan
from aet_stream.denoise.cokriging.seen import Seen, in_blocks, look, pooled
from aet_stream.denoise.cokriging.supports import found_elsewhere, supported
from aet_stream.denoise.cokriging.totals import Strayed, off, strayed
from aet_stream.denoise.fusion.kriging import SPACING
from aet_stream.projection import Array

EDGE, RADIUS = 64, 14.0
"""Of a frame and of its particle, px; a point is 4 px"""
POINT = 4
HEIGHT, TURN_DEG = -4.4, 3.0
TILTS = np.linspace(-70, 70, 15)
Surface = Callable[[Array, Array], Array]


def surface(seed: int, amplitude: float = 0.02) -> Surface:
    """A film of waves four points long and longer."""
    rng = np.random.default_rng(seed)
    waves = [(*rng.normal(0, 1, 2), rng.uniform(0, 6.3), 0) for _ in range(24)]

    def of(along: Array, u: Array) -> Array:
        return np.asarray(amplitude * sum(np.cos(along * a / 1.6 + u * b / 1.6 + phase) for a, b, phase, _ in waves) + 0.3)

    return of


def background_of(film: Surface, tilt_deg: float, height: float = HEIGHT, edge: int = EDGE) -> Array:
    """(edge, edge): the film at a tilt, seen along the beam."""
    angle = np.radians(tilt_deg + TURN_DEG)
    y, x = np.meshgrid(*((np.arange(edge) - (edge - 1) / 2) / POINT,) * 2, indexing="ij")
    return np.asarray(film(y, (x - height * np.sin(angle)) / np.cos(angle)) / np.cos(angle) + 0.1)


def particle_of() -> Array:
    """(EDGE, EDGE): the same at all tilts."""
    y, x = np.meshgrid(*(np.arange(EDGE) - (EDGE - 1) / 2,) * 2, indexing="ij")
    return np.asarray(np.clip((RADIUS - np.hypot(y, x)) / 4, 0, 1))


def view_of(below: Array, tilt_deg: float, time: float, seed: int, *, bump: float = -0.1, torn: bool = False) -> tuple[View, Array, Array]:
    """(what the estimator is given, the true background as means over points, the first edition's); in counts of 500 to the particle.
    `torn`: a part of the particle passes for vacuum."""
    y, x = np.meshgrid(*(np.arange(EDGE) - (EDGE - 1) / 2,) * 2, indexing="ij")
    distance, particle = np.hypot(y, x), particle_of()
    raw = np.random.default_rng(seed).poisson(500 * (particle + below)).astype(np.float32)
    first = 500 * (below + bump * np.exp(-np.square(distance / RADIUS)))
    logit = np.where(grid.statistics(particle.astype(np.float32), 2)[2] > 0, 5.0, -12.0)
    if torn:
        logit[19:, 16:] = -12.0
    seen = look(raw, logit, tilt_deg, time=time)
    return View(seen, look(first, logit, tilt_deg).blocks.means), look(500 * below, logit, tilt_deg).means, first


def views_of(pictures: list[Array], bump: float = -0.1) -> tuple[list[View], list[Array]]:
    found = [
        view_of(below, tilt, number / (len(TILTS) - 1), number, bump=bump)
        for number, (below, tilt) in enumerate(zip(pictures, TILTS, strict=True))
    ]
    return [view for view, _, _ in found], [truth for _, truth, _ in found]


def errors(found: Estimated, views: list[View], truth: list[Array]) -> tuple[Array, Array]:
    """Under each particle, counts: of the first edition, and with what the series changes."""
    hidden = [view.seen.hidden for view in views]
    before = [np.sqrt(np.mean(np.square(pooled(v.first) - t)[h])) for v, t, h in zip(views, truth, hidden, strict=True)]
    after = [
        np.sqrt(np.mean(np.square(pooled(v.first + d.correction) - t)[h]))
        for v, d, t, h in zip(views, found.drawings, truth, hidden, strict=True)
    ]
    return np.array(before), np.array(after)


@pytest.fixture(scope="module")
def turning() -> tuple[list[View], list[Array]]:
    film = surface(1)
    return views_of([background_of(film, tilt) for tilt in TILTS])


@pytest.fixture(scope="module")
def found(turning: tuple[list[View], list[Array]]) -> Estimated:
    estimated = estimate(turning[0])
    assert estimated is not None
    return estimated


def test_a_film_is_found_where_it_lies(turning: tuple[list[View], list[Array]], found: Estimated) -> None:
    """By the scan roughly, by the likelihood to a fraction of a point."""
    scanned = scan([view.seen for view in turning[0]])
    assert scanned is not None
    assert scanned.often
    assert scanned.best.score < -1
    assert scanned.best.height == pytest.approx(HEIGHT, abs=0.9)
    assert len(found.model.films) == 1
    assert found.model.films[0].height == pytest.approx(HEIGHT, abs=0.25)
    assert found.model.turn_deg == pytest.approx(TURN_DEG, abs=0.5)
    assert found.model.slope == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(("every", "is_found"), [(4, True), (2, False)])
def test_a_film_is_found_where_particles_reach_all_rows(turning: tuple[list[View], list[Array]], every: int, is_found: bool) -> None:
    """Of one projection in so many nothing but a side is vacuum: then no row is in nine of ten."""
    series = [view.seen for view in turning[0]]
    covered = np.zeros(series[0].hidden.shape, bool)
    covered[:, : covered.shape[1] * 3 // 4] = True
    scanned = scan([replace(seen, hidden=covered) if number % every == 0 else seen for number, seen in enumerate(series)])
    assert (scanned is not None) == is_found
    assert scanned is None or (scanned.best.height == pytest.approx(HEIGHT, abs=1.0) and not scanned.often)


def test_what_lies_behind_the_particle_is_seen_at_other_tilts(turning: tuple[list[View], list[Array]], found: Estimated) -> None:
    before, after = errors(found, *turning)
    assert np.mean(20 * np.log10(before / after)) > 10
    assert (after < before).all()
    assert sum(drawing.verdict.taken is Taken.SERIES for drawing in found.drawings) > 11


def test_the_stated_spread_is_what_is_off(turning: tuple[list[View], list[Array]], found: Estimated) -> None:
    off = [(pooled(d.background) - t)[v.seen.hidden] for v, d, t in zip(turning[0], found.drawings, turning[1], strict=True)]
    stated = [d.sd[v.seen.hidden] for v, d in zip(turning[0], found.drawings, strict=True)]
    share = np.sqrt(np.mean(np.square(np.concatenate(off))) / np.mean(np.square(np.concatenate(stated))))
    assert 0.4 < share < 2.5


def test_the_film_as_it_is_seen(turning: tuple[list[View], list[Array]], found: Estimated) -> None:
    """The map is the film itself, but for its mean, near the particle's shadow."""
    drawn = found.map
    along, across = np.abs(drawn.along) < 6, np.abs(drawn.across) < 6
    true = 500 * surface(1)(drawn.along[along][:, None], drawn.across[across])
    seen = drawn.film[0][np.ix_(along, across)]
    assert np.std(seen - true) < 0.2 * np.std(true)
    far = drawn.sd[0][0, 0]
    assert drawn.sd[0][len(drawn.along) // 2, len(drawn.across) // 2] < 0.2 * far


def test_a_torn_support_spoils_its_own_projection_only(turning: tuple[list[View], list[Array]], found: Estimated) -> None:
    """Where the network has lost a part of the particle at two tilts, the others are as well known as before."""
    film, torn = surface(1), (1, 13)
    views = list(turning[0])
    for number in torn:
        tilt = float(TILTS[number])
        views[number] = view_of(background_of(film, tilt), tilt, number / (len(TILTS) - 1), number, torn=True)[0]
    estimated = estimate(views)
    assert estimated is not None
    before, after = errors(found, *turning)[1], errors(estimated, views, turning[1])[1]
    others = [number for number in range(len(TILTS)) if number not in torn]
    assert np.mean(20 * np.log10(after[others] / before[others])) < 2.5


@pytest.mark.parametrize("told", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_a_particle_that_passes_for_background_is_found_again(
    turning: tuple[list[View], list[Array]], found: Estimated, told: bool
) -> None:
    """At one tilt the network has lost most of it, whether its total tells that or not: the other tilts say where it is and what the films
    are, and are as before."""
    film, lost = surface(1), 12
    tilt = float(TILTS[lost])
    total = 500 * particle_of().sum() / POINT**2
    views = [replace(view, total=total + 10 * (-1) ** number) for number, view in enumerate(turning[0])]
    whole = views[lost].seen.particle
    torn = whole & (views[lost].seen.blocks.centres[1] < -1)
    raw = 500 * (background_of(film, tilt) + particle_of())
    seen = look(raw, np.where(torn, 5.0, -12.0), tilt, time=lost / (len(TILTS) - 1))
    truth = look(500 * background_of(film, tilt), np.where(torn, 5.0, -12.0), tilt).means
    left = np.where(torn.reshape(16, 2, 16, 2).any((1, 3)), truth - 50, seen.means)
    total = (seen.means - left).sum() if told else float("nan")
    views[lost] = replace(views[lost], seen=seen, first=in_blocks(left), total=total)
    estimated = estimate(views, begin=found.model)
    assert estimated is not None
    again = estimated.drawings[lost].seen.particle
    assert again[whole].mean() > 0.9
    assert again[~whole].mean() < 0.1
    before, after = errors(found, *turning)[1], errors(estimated, views, turning[1])[1]
    others = [number for number in range(len(TILTS)) if number != lost]
    assert np.mean(20 * np.log10(after[others] / before[others])) < 2
    assert estimated.drawings[lost].verdict.share > 0.9
    under = whole.reshape(16, 2, 16, 2).any((1, 3))
    assert np.sqrt(np.square(left + pooled(estimated.drawings[lost].correction) - truth)[under].mean()) < 3 * before[lost]


@pytest.mark.thorough
def test_who_has_lost_the_particle_misleads_about_no_other() -> None:
    """The particle touches the frame's edge, and at one tilt half of it passes for film: the films that a cold fit makes of that are too
    dark elsewhere, so that theirs would pass for particle at tilts of which nothing is wrong."""
    film, lost, up = surface(1), 12, 5.5
    views = []
    for number, tilt in enumerate(TILTS):
        particle, below = np.roll(particle_of(), -round(up * POINT), axis=0), background_of(film, tilt)
        particle[EDGE // 2 :] = 0
        raw = np.random.default_rng(number).poisson(500 * (particle + below)).astype(np.float32)
        held = grid.statistics(particle.astype(np.float32), 2)[2] > 0
        if number == lost:
            held[:, EDGE // 4 - 2 :] = False
        seen = look(raw, np.where(held, 5.0, -12.0), tilt, time=number / (len(TILTS) - 1))
        first = np.where(held.repeat(2, 0).repeat(2, 1), 500 * (below - 0.1 * particle), raw)
        views.append(View(seen, look(first, np.where(held, 5.0, -12.0), tilt).blocks.means))
    estimated = estimate(views)
    assert estimated is not None
    assert [number for number, drawing in enumerate(estimated.drawings) if drawing.elsewhere] == [lost]


def test_a_film_that_passes_for_particle_is_vacuum_again(turning: tuple[list[View], list[Array]], found: Estimated) -> None:
    """It lies beside the hull of all others."""
    wrong = 2
    views = list(turning[0])
    whole = views[wrong].seen.particle
    blocks = views[wrong].seen.blocks
    taken = whole | ((blocks.centres[1] > 1) & (blocks.centres[0] < 1))
    views[wrong] = replace(views[wrong], seen=views[wrong].seen.hiding(taken))
    estimated = estimate(views, begin=found.model)
    assert estimated is not None
    again = estimated.drawings[wrong].seen.particle
    assert again[whole].all()
    assert np.count_nonzero(again & ~whole) < 0.4 * np.count_nonzero(taken & ~whole)


def test_a_strip_of_film_beside_the_particle_is_vacuum_again(turning: tuple[list[View], list[Array]], found: Estimated) -> None:
    """However narrow: it hides just that of the film which no other tilt shows. The particle is where it was for all that."""
    wrong, series = 14, scaled(turning[0])
    whole, blocks = series[wrong].particle, series[wrong].blocks
    strip = whole | ((np.abs(blocks.centres[1] - 6) < 0.5) & (np.abs(blocks.centres[0]) < 2))
    assert 0.02 < np.count_nonzero(strip & ~whole) / np.count_nonzero(whole) < 0.1
    series[wrong] = series[wrong].hiding(strip)
    again = supported(joined(series, found.model), series)
    assert (again[wrong].particle == whole).all()
    assert not found_elsewhere(series[wrong], again[wrong])
    assert all(one is other for number, (one, other) in enumerate(zip(series, again, strict=True)) if number != wrong)


def test_who_misses_nothing_of_the_particle_has_not_lost_it(turning: tuple[list[View], list[Array]], found: Estimated) -> None:
    """Its total was too small because too much was taken off, not because a part of it passed for vacuum."""
    series = scaled(turning[0])
    series[3] = replace(series[3], lost=True, noise=series[3].noise + 1, measured=series[3].measured + 1)
    again = supported(joined(series, found.model), series)[3]
    assert not again.lost
    assert again.noise.max() < 0.1


def test_the_vacuum_of_a_first_edition_that_bends_it_is_the_films(turning: tuple[list[View], list[Array]], found: Estimated) -> None:
    """The first editions are wrong beyond the particle's rim as well, by what no block of vacuum is off by."""
    left: list[list[float]] = [[], []]
    for view, drawing, truth in zip(turning[0], found.drawings, turning[1], strict=True):
        vacuum = ~view.seen.hidden & binary_dilation(view.seen.hidden)
        for errors_of, background in zip(left, (view.first, view.first + drawing.correction), strict=True):
            errors_of.append(float(np.square(pooled(background) - truth)[vacuum].mean()))
    before, after = (np.sqrt(np.mean(each)) for each in left)
    assert after < 0.7 * before


def test_films_that_the_vacuum_contradicts_are_kept_out_of_it() -> None:
    """They may leave as much of it as the first edition does and noise explains, and nothing counts from twice as much on."""
    first, noise = np.array([1.0, -1.0]), np.array([1.0, 1.0])
    assert share_in_vacuum(0.8, first, np.array([1.4, -1.4]), noise) == 0.8
    assert share_in_vacuum(0.8, first, np.array([1.73, -1.73]), noise) == pytest.approx(0.4, abs=0.01)
    assert share_in_vacuum(0.8, first, np.array([2.0, -2.0]), noise) == 0
    assert share_in_vacuum(0.8, np.zeros(0), np.zeros(0), np.zeros(0)) == 0.8


@pytest.mark.parametrize("kind", ["own", pytest.param("blend", marks=pytest.mark.thorough)])
def test_backgrounds_that_do_not_turn_are_left_alone(kind: str) -> None:
    """Each its own, or one that becomes another: the first edition stays, pixel by pixel."""
    films = [surface(100 + number, 0.03) for number in range(len(TILTS))]
    pictures = [background_of(film, 0.0, 0.0) for film in films]
    if kind == "blend":
        pictures = [(1 - t) * pictures[0] + t * pictures[1] for t in np.linspace(0, 1, len(TILTS))]
    views, truth = views_of(pictures, bump=0.01)
    estimated = estimate(views)
    assert estimated is not None
    before, after = errors(estimated, views, truth)
    loss = 20 * np.log10(after / before)
    assert loss.mean() <= 0.1
    assert loss.max() <= 1


def test_what_no_tilt_shows_is_a_guess(turning: tuple[list[View], list[Array]], found: Estimated) -> None:
    """Of a film below the particle nothing but at the steepest; of one that goes through its middle much, and that is in what is stated."""
    assert np.median([drawing.drawn.guessed for drawing in found.drawings]) < 1e-6
    film = surface(1)
    views, truth = views_of([background_of(film, tilt, 0.0) for tilt in TILTS])
    estimated = estimate(views)
    assert estimated is not None
    assert all(drawing.drawn.guessed > 0.3 * drawing.drawn.series_sd for drawing in estimated.drawings)
    off = [np.square((pooled(d.background) - t)[v.seen.hidden]).mean() for v, d, t in zip(views, estimated.drawings, truth, strict=True)]
    stated = [np.square(d.sd[v.seen.hidden]).mean() for v, d in zip(views, estimated.drawings, strict=True)]
    assert 0.5 < np.sqrt(np.mean(off) / np.mean(stated)) < 2


def test_how_much_no_projection_shows_is_counted(turning: tuple[list[View], list[Array]], found: Estimated) -> None:
    """Against geometry: the places of a film behind the particle that no projection has beside it."""
    across = turning[0][0].seen.centres[1]
    there = turning[0][0].seen.hidden  # the same at all tilts

    def expected(height: float) -> list[float]:
        angles = np.radians(TILTS + TURN_DEG)
        shares = []
        for angle in angles:
            u = (across[there] - height * np.sin(angle)) / np.cos(angle)
            at = [u * np.cos(other) + height * np.sin(other) for other in angles]
            columns = [np.abs(across[0] - x[:, None]).argmin(1) for x in at]
            rows = np.nonzero(there)[0]
            shown = [(np.abs(x) < across.max() + 0.5) & ~there[rows, column] for x, column in zip(at, columns, strict=True)]
            shares.append(float(1 - np.any(shown, axis=0).mean()))
        return shares

    film = surface(1)
    low = estimate(views_of([background_of(film, tilt, -2.0) for tilt in TILTS])[0])
    assert low is not None
    for estimated, height in ((found, HEIGHT), (low, -2.0)):
        assert [drawing.drawn.unseen for drawing in estimated.drawings] == pytest.approx(expected(height), abs=0.15)
    assert np.mean(expected(-2.0)) > 0.3 > 0.05 > np.mean(expected(HEIGHT))


def weighed(
    *, own: float = 0.02, series_sd: float = 0.001, guessed: float = 0.0, doubt: float = 0.0, ring: float = 1.0,
    told: tuple[float, float, float] = (0.0, 0.0, 0.0), elsewhere: bool = False, unseen: float = 0.0,
) -> Verdict:  # fmt: skip
    """Of a projection whose model leaves .02 open by itself; `ring`: error of the vacuum around it over what is stated; `told`: by totals,
    of the first edition and the series, and what that misses."""
    nothing = np.zeros((2, 2))
    drawn = Drawn(nothing, nothing, Held(0.001 * ring, 0.001), Held(0.01, 0.01), series_sd, 0.02, 0.001, guessed, unseen, 0.08)
    totals = Strayed(*(np.array([each]) for each in told))
    return judge([drawn], np.zeros(1), np.array([own]), np.array([doubt]), totals, np.array([elsewhere]))[0]


def least(own: float, films: float, doubt: float = 0.0) -> float:
    """Share of the series for which the variance of the mixture is least, by trying them all; errors half alike but for the doubt."""
    shares = np.linspace(0, 1, 100_001)
    alike = own * films / 2
    variances = np.square((1 - shares) * own) + np.square(shares) * (films**2 + doubt**2) + 2 * shares * (1 - shares) * alike
    return float(shares[variances.argmin()])


def test_each_is_weighed_by_what_it_states() -> None:
    """Twice what the series states, and whatever makes it doubtful."""
    assert weighed(series_sd=0.008).share == pytest.approx(least(0.02, 0.016), abs=1e-4)
    assert weighed(guessed=0.02).share == pytest.approx(least(0.02, np.hypot(0.02, 0.002)), abs=1e-4)
    assert weighed(unseen=0.5).share == pytest.approx(weighed(guessed=0.02).share)
    assert weighed(doubt=0.02).share == pytest.approx(least(0.02, 0.002, 0.02), abs=1e-4)
    assert weighed(series_sd=0.003, ring=3.0).share == pytest.approx(least(0.02, 0.018), abs=1e-4)
    assert weighed(own=0.0005, told=(0.03, 0.0, 0.0)).share == pytest.approx(least(0.03, 0.002), abs=1e-4)
    assert weighed(told=(0.001, 0.02, 0.01)).share == pytest.approx(least(0.02, np.sqrt(0.002**2 + 0.02**2 + 0.01**2)), abs=1e-4)
    assert weighed(own=float("nan")) == weighed()
    assert weighed().share == 1
    assert weighed(own=0.0001, doubt=0.02).taken is Taken.SINGLE
    assert weighed(series_sd=0.018).share == 0
    assert weighed(ring=10.0).share == 0
    assert weighed(ring=10.0, own=0.2, elsewhere=True).share > 0.9


def test_a_total_that_strays_is_an_error() -> None:
    """A tenth of the total at one tilt is so much of a background; its neighbours are as wrong as they seem, and what all have in common is
    taken to be as large as what is usual."""
    tilts, hidden = np.linspace(-60, 60, 13), np.full(13, 50.0)
    usual = 0.3 * np.array([1, -1, 0.5, 0, -0.5, 1, -1, 0.7, -0.7, 0.7, -0.7, 1, -1])
    first, series = 100 + usual, np.full(13, 100.0)
    first[3] = 110.0
    told = strayed(first, series, hidden, tilts)
    assert told.first[3] == pytest.approx(1.25 * np.hypot(10, 1.4826 * 0.3) / 50, rel=0.1)
    assert told.first[8] == pytest.approx(1.25 * 0.3 * np.hypot(1, 1.4826) / 50, rel=0.3)
    assert (told.series == 0).all()
    assert (told.missed == 0).all()


def test_what_only_the_series_leaves_is_missed() -> None:
    """Contamination that no tilt shows stays in all of its totals; what the first edition leaves is not the series' fault."""
    tilts, hidden, steady = np.linspace(-60, 60, 7), np.full(7, 50.0), np.full(7, 100.0)
    assert strayed(steady, steady + 4, hidden, tilts).missed == pytest.approx(1.25 * 4 / 50)
    assert (strayed(steady + 4, steady, hidden, tilts).missed == 0).all()


def test_what_the_beam_does_to_both_totals_is_no_background() -> None:
    """A crystal near a zone axis, or a beam that drifts, changes the totals of both alike."""
    tilts, hidden, rng = np.linspace(-60, 60, 25), np.full(25, 50.0), np.random.default_rng(0)
    beam, noise = rng.normal(0, 5, 25), rng.normal(0, 1, 25)
    alike, alone = strayed(100 + beam, 100 + beam, hidden, tilts), strayed(100 + beam, np.full(25, 100.0), hidden, tilts)
    assert np.median(alike.first) < 0.5 * np.median(alone.first)
    one = strayed(100 + beam + 4 * noise, 100 + beam, hidden, tilts)
    assert np.median(one.first) > 2 * np.median(one.series)


def test_totals_of_few_or_of_something_else_say_nothing() -> None:
    tilts, hidden = np.linspace(-60, 60, 7), np.full(7, 50.0)
    totals = np.array([100.0, 104.0, 98.0, 100.0, 60.0, 103.0, np.nan])
    told = strayed(totals, np.full(7, 100.0), hidden, tilts)
    assert told.first[6] == 0
    assert (told.first[[1, 2, 4, 5]] > 0).all()
    assert told.first[4] == told.first.max()
    assert not strayed(totals[:4], np.full(4, 100.0), hidden[:4], tilts[:4]).first.any()
    assert off(np.array([100.0, 79.0, 101.0, 127.0, np.nan])).tolist() == [False, True, False, True, False]
    assert not off(np.full(3, np.nan)).any()


def test_a_first_edition_whose_totals_stray_is_not_believed(found: Estimated) -> None:
    """It is sure of itself at every tilt, and leaves more at one than at another; of one particle both cannot be."""
    film, rng = surface(1), np.random.default_rng(0)
    views = []
    for number, tilt in enumerate(TILTS):
        below = background_of(film, float(tilt))
        view, truth, _ = view_of(below, float(tilt), number / (len(TILTS) - 1), number, bump=float(rng.uniform(-0.06, 0.06)))
        left = float((truth - pooled(view.first)).sum())
        views.append(replace(view, expected=0.1, total=500 * np.pi * 3.2**2 + left))
    silent, asked = (
        estimate([replace(view, total=total) for view, total in zip(views, totals, strict=True)], begin=found.model)
        for totals in ([float("nan")] * len(views), [view.total for view in views])
    )
    assert silent is not None
    assert asked is not None
    before, after = (np.mean([drawing.verdict.share for drawing in each.drawings]) for each in (silent, asked))
    assert before < 0.5
    assert after > 0.9


@pytest.mark.thorough
def test_films_are_added_as_long_as_the_vacuum_asks_for_them() -> None:
    """One below, one above and one that grows."""
    below, above, grows = surface(1), surface(5, 0.03), surface(7, 0.04)
    pictures = [
        background_of(below, tilt) + background_of(above, tilt, 5.0) - 0.1 + time * (background_of(grows, tilt, -6.0) - 0.1)
        for tilt, time in zip(TILTS, np.linspace(0, 1, len(TILTS)), strict=True)
    ]
    views, truth = views_of(pictures)
    estimated = estimate(views)
    assert estimated is not None
    assert sorted(film.growing for film in estimated.model.films) == [False, False, True]
    before, after = errors(estimated, views, truth)
    assert np.mean(20 * np.log10(before / after)) > 6


def test_projections_out_of_register_are_not_taken_for_another_film() -> None:
    """One film, and a specimen that jitters by a third of a point: before the projections are in register, that looks like a second one."""
    film, rng = surface(1), np.random.default_rng(11)

    def jittered(tilt_deg: float) -> Array:
        across, along = rng.normal(0, 0.3, 2)
        steep = np.cos(np.radians(tilt_deg + TURN_DEG))
        return background_of(lambda y, u: film(y - along, u - across / steep), tilt_deg)

    views, truth = views_of([jittered(tilt) for tilt in TILTS])
    estimated = estimate(views)
    assert estimated is not None
    assert [film.height for film in estimated.model.films] == pytest.approx([HEIGHT], abs=0.4)
    before, after = errors(estimated, views, truth)
    assert np.mean(20 * np.log10(before / after)) > 12


@pytest.mark.parametrize("amplitude", [0.03, 0.005])
def test_a_film_that_grows_is_told_from_one_that_stays(amplitude: float) -> None:
    """Also where it leaves little of their own to the projections."""
    stays, grows = surface(1), surface(7, amplitude)
    pictures = [
        background_of(stays, tilt) + time * (background_of(grows, tilt) - 0.1)
        for tilt, time in zip(TILTS, np.linspace(0, 1, len(TILTS)), strict=True)
    ]
    views, truth = views_of(pictures)
    estimated = estimate(views)
    assert estimated is not None
    assert [film.growing for film in estimated.model.films] == [False, True]
    before, after = errors(estimated, views, truth)
    assert np.mean(20 * np.log10(before / after)) > 8


def test_warm_is_as_good_as_cold(turning: tuple[list[View], list[Array]], found: Estimated) -> None:
    """A shorter series' model is enough to begin with; one more projection may change it."""
    shorter = estimate(turning[0][3:-3])
    assert shorter is not None
    warm = estimate(turning[0], begin=shorter.model)
    assert warm is not None
    cold, now = errors(found, *turning)[1], errors(warm, *turning)[1]
    assert np.mean(20 * np.log10(now / cold)) < 0.5


def test_the_tilt_axis_may_lie_across(turning: tuple[list[View], list[Array]], found: Estimated) -> None:
    """Rows and columns exchanged and said so: the same film."""
    film = surface(1)
    views = []
    for number, tilt in enumerate(TILTS):
        view, _, _ = view_of(background_of(film, tilt), tilt, 0.0, number)
        seen = view.seen
        centres = np.stack([seen.centres[0].T, seen.centres[1].T])
        views.append(View(replace(seen, means=seen.means.T, hidden=seen.hidden.T, centres=centres), view.first.T))
    turned = look(np.arange(EDGE * EDGE, dtype=np.float64).reshape(EDGE, EDGE), np.full((32, 32), -9.0), 0.0, axis_deg=90.0)
    upright = look(np.arange(EDGE * EDGE, dtype=np.float64).reshape(EDGE, EDGE), np.full((32, 32), -9.0), 0.0)
    assert np.allclose(turned.centres[1], upright.centres[0])
    assert np.allclose(turned.centres[0], -upright.centres[1])
    scanned = scan([view.seen for view in views])
    assert scanned is not None
    assert scanned.best.height == pytest.approx(HEIGHT, abs=0.9)


def test_too_little_is_no_series() -> None:
    film = surface(1)
    views = [view_of(background_of(film, tilt), tilt, 0.0, 0)[0] for tilt in (-65.0, 65.0)]
    assert estimate(views) is None


# ---------------------------------------------------------------- the parts, against what they stand for


def small_model() -> Model:
    amplitudes = np.array([0.0, 0.0, 0.05, 0.02])
    return Model((Film(HEIGHT, amplitudes),), 2.0, 0.03, np.array([0.004, 0.004, 0.002]), 0.005, 0.003)


def scaled(views: list[View]) -> list[Seen]:
    found = []
    for seen in (view.seen for view in views):
        blocks = replace(seen.blocks, means=seen.blocks.means / 500 - 0.4, noise=seen.blocks.noise / 500**2, span=seen.blocks.span / 500)
        found.append(replace(seen, blocks=blocks, mean=seen.mean / 500 - 0.4, noise=seen.noise / 500**2, means=seen.means / 500 - 0.4))
    return found


def joined(series: list[Seen], model: Model) -> Posterior:
    posterior = Posterior(model, Nodes.covering(series, model))
    for seen in series:
        posterior.add(seen)
    posterior.solve()
    return posterior


def test_the_likelihood_slopes_as_it_says(turning: tuple[list[View], list[Array]]) -> None:
    """Of every parameter, growing films as well, against finite differences."""
    series = scaled(turning[0])
    model = small_model().with_film(2.0, growing=True)
    target = Likelihood(bands_of(series), [False, True])
    at = target.vector(replace(model, films=(replace(model.films[0], amplitudes=np.full(len(FILM_LENGTHS), 0.03)), model.films[1])))
    said = target.at(at).slope
    step = 3e-3
    seen = [
        (target.at(at + step * e, curved=False).value - target.at(at - step * e, curved=False).value) / (2 * step) for e in np.eye(len(at))
    ]
    assert said == pytest.approx(np.array(seen), rel=0.02, abs=2e-3 * np.abs(seen).max())


def test_joining_is_conditioning(turning: tuple[list[View], list[Array]]) -> None:
    """What the information form says of one frame's hidden points is what a dense Gaussian process over all windows says."""
    series, model = scaled(turning[0])[::5], small_model()
    drawn = draw(joined(series, model), series[2])
    windows = [seen.windows for seen in series]
    under = Windows(*(centre[series[2].hidden] for centre in series[2].centres), np.ones(series[2].hidden.sum()))  # type: ignore[misc]

    def film(one: Windows, tilt: float, other: Windows, other_tilt: float) -> Array:
        ends = []
        for window, deg in ((one, tilt), (other, other_tilt)):
            angle = np.radians(deg + model.turn_deg)
            u = (window.across - (HEIGHT + model.slope * window.along) * np.sin(angle)) / np.cos(angle)
            ends.append((window.along, u, np.square(window.edge) / 12, np.square(window.edge / np.cos(angle)) / 12, 1 / np.cos(angle)))
        (y, u, wy, wu, c), (y2, u2, wy2, wu2, c2) = ends
        total = np.full((len(y), len(y2)), 1.0 + c * c2)
        for length, sd in zip(FILM_LENGTHS, model.films[0].amplitudes, strict=True):
            by, bu = length**2 + wy[:, None] + wy2, length**2 + wu[:, None] + wu2
            total += (
                c
                * c2
                * sd**2
                * length**2
                / np.sqrt(by * bu)
                * np.exp(-np.square(y[:, None] - y2) / 2 / by - np.square(u[:, None] - u2) / 2 / bu)
            )
        return total

    blocks = [
        [film(a, s.tilt_deg, b, t.tilt_deg) + (own_covariance(model, a, b) if s is t else 0) for b, t in zip(windows, series, strict=True)]
        for a, s in zip(windows, series, strict=True)
    ]
    covariance = np.block(blocks)
    covariance[np.diag_indices(len(covariance))] += np.concatenate([seen.noise for seen in series]) + model.nugget**2
    cross = np.concatenate(
        [
            film(under, series[2].tilt_deg, b, t.tilt_deg) + (own_covariance(model, under, b) if t is series[2] else 0)
            for b, t in zip(windows, series, strict=True)
        ],
        axis=1,
    )
    expected = cross @ np.linalg.solve(covariance, np.concatenate([seen.mean for seen in series]))
    apart = pooled(drawn.background)[series[2].hidden] - expected
    assert np.sqrt(np.mean(np.square(apart))) < 0.15 * np.sqrt(np.mean(np.square(drawn.sd[series[2].hidden])))


def test_what_is_held_back_is_really_held_back(turning: tuple[list[View], list[Array]]) -> None:
    """The error of the ring from one solve is that of a second one without the ring."""
    series, model = scaled(turning[0])[::3], small_model()
    held = draw(joined(series, model), series[3])
    ring = series[3].ring_from
    cut = replace(series[3], **{name: getattr(series[3], name)[:ring] for name in ("along", "across", "edge", "mean", "noise")})
    hidden = np.ones_like(series[3].hidden)
    without = draw(joined([*series[:3], cut, *series[4:]], model), replace(cut, hidden=hidden))
    ring_places = {
        (a, b): m for a, b, m, e in zip(*(getattr(series[3], n)[ring:] for n in ("along", "across", "mean", "edge")), strict=True) if e == 1
    }
    foretold = {
        place: pooled(without.background).ravel()[i]
        for i, place in enumerate(zip(*(c.ravel() for c in series[3].centres), strict=True))
        if place in ring_places
    }
    off = np.array([ring_places[place] - value for place, value in foretold.items()])
    assert held.by_series.error == pytest.approx(float(np.sqrt(np.mean(np.square(off)))), rel=0.05)


def test_order_of_projections_does_not_matter(turning: tuple[list[View], list[Array]]) -> None:
    series, model = scaled(turning[0])[::4], small_model()
    one, other = joined(series, model), joined(series[::-1], model)
    assert one.nodes_mean == pytest.approx(other.nodes_mean, abs=1e-3 * np.abs(one.nodes_mean).max())


def test_a_projection_lies_where_the_films_say(turning: tuple[list[View], list[Array]], found: Estimated) -> None:
    """Two lie far from their neighbours: one because its centre of mass is another thing's, the other because it has moved."""
    series, wrong, right = scaled(turning[0]), 3, 11
    tilt = float(TILTS[right])
    wide = background_of(surface(1), tilt, edge=EDGE + 2 * POINT)
    there = view_of(wide[POINT:-POINT, : -2 * POINT], tilt, right / (len(TILTS) - 1), right)[0]
    series[wrong] = moved(series[wrong], 0.1, 1.2)
    series[right] = moved(scaled([there])[0], 0.0, 1.0)
    away = astray(series)
    assert list(np.flatnonzero(away.any(axis=1))) == [wrong, right]
    others = joined([seen for number, seen in enumerate(series) if number not in (wrong, right)], found.model)
    back = brought_back(others, series, away)
    assert back[wrong].shift == pytest.approx((0, 0), abs=1e-9)
    assert back[right].shift == pytest.approx((0, 1))


def test_where_fewer_rows_say_that_it_lies_is_one_place_to_begin(turning: tuple[list[View], list[Array]]) -> None:
    """Three of fifteen have moved along the axis, and only the first rows are vacuum: moved back the film agrees, in rows that those three
    do not show. Both places are tried, and the film decides; with all in place there is nothing to decide."""
    away, rows = 3, 3
    views, lies = list(turning[0]), np.zeros((len(TILTS), 2))
    for number in (3, 7, 11):
        tall = background_of(surface(1), float(TILTS[number]), edge=EDGE + 2 * away * POINT)
        below = tall[2 * away * POINT :, away * POINT : -away * POINT]
        lies[number, 0] = -away
        views[number] = view_of(below, float(TILTS[number]), number / (len(TILTS) - 1), number)[0]
    covered = np.zeros(views[0].seen.hidden.shape, bool)
    covered[rows:, covered.shape[1] // 4 :] = True
    views = [
        replace(view, seen=replace(view.seen, hidden=covered), lies=(float(at[0]), float(at[1])))
        for view, at in zip(views, lies, strict=True)
    ]
    (there, fewer), (here, nearly_all) = placed([view.seen for view in views], lies)
    assert (fewer.often, nearly_all.often) == (False, True)
    assert fewer.best.score < nearly_all.best.score
    assert [seen.shift[0] for seen in there] == lies[:, 0].tolist()
    assert not any(seen.shift[0] for seen in here)
    assert len(placed([view.seen for view in views], np.zeros_like(lies))) == 1
    estimated = estimate(views)
    assert estimated is not None
    shifts = np.array([drawing.seen.shift[0] for drawing in estimated.drawings])
    assert shifts - np.median(shifts) == pytest.approx(lies[:, 0], abs=0.4)


def test_how_much_films_vary_depends_on_when_they_are_seen() -> None:
    model = small_model().with_film(3.0, growing=True)
    before, after = (model.film_sd_at(-model.turn_deg, time) for time in (0.0, 1.0))
    assert before == pytest.approx(small_model().film_sd)
    assert after == pytest.approx(model.film_sd)
    assert model.film_sd_at(60.0 - model.turn_deg, 1.0) == pytest.approx(2 * after)


def test_a_register_is_judged_by_a_model_of_its_own(turning: tuple[list[View], list[Array]]) -> None:
    """In register the films lie half a point higher than they were fitted where they jitter: with its own height that is likelier, with the
    other's it is not. Jitter is never likelier."""
    series, rng = scaled(turning[0]), np.random.default_rng(0)
    jittered = [moved(seen, *map(float, rng.normal(0, 0.2, 2))) for seen in series]
    higher = [moved(seen, 0.0, -0.5 * float(np.sin(np.radians(seen.tilt_deg + TURN_DEG)))) for seen in series]
    model = fit_warm(bands_of(jittered), small_model())
    kept, fitted = likelier(jittered, higher, model)
    assert kept is higher
    assert fitted.films[0].height == pytest.approx(HEIGHT + 0.5, abs=0.2)
    assert likelier(higher, jittered, fitted) == (higher, fitted)


def test_a_correction_is_drawn_where_it_is(turning: tuple[list[View], list[Array]], found: Estimated) -> None:
    """Its means over blocks are what was asked for; it goes on where a frame's last point is not whole."""
    correction, block = found.drawings[10].correction, POINT // SPACING
    full = drawn_on(correction, block, (EDGE, EDGE))
    assert grid.statistics(full, block)[0] == pytest.approx(correction, abs=1e-3)
    odd = drawn_on(correction, block, (EDGE + 2, EDGE + 3))
    assert odd.shape == (EDGE + 2, EDGE + 3)
    assert odd[EDGE] == pytest.approx(odd[EDGE - 1], abs=np.ptp(correction) / 10)
