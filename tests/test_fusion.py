"""Experts under the particle: what vacuum and lattice fringes say, and the gate that weighs them."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, gaussian_filter

from aet_stream.denoise import grid, trust
from aet_stream.denoise.architectures import save_weights
from aet_stream.denoise.denoiser import Denoiser
from aet_stream.denoise.features import Blocks, describe
from aet_stream.denoise.fusion import fringes
from aet_stream.denoise.fusion.experts import Experts, NetworkOutput, Posterior, consult
from aet_stream.denoise.fusion.gate import CHANNELS, Gate
from aet_stream.denoise.fusion.kriging import EDGE, pooled
from aet_stream.denoise.weights_file import SHIPPED, load_card, load_tensors, parts
from aet_stream.simulate.backgrounds import gaussian
from aet_stream.training import preset, sets
from aet_stream.training.calibrate import judged
from aet_stream.training.scores import psnr_db, rank_correlation

SIZE_PX = 256
SEEDS = (0, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in (1, 2)))


def crystal(*, contrast: float = 0.8, period_px: float = 7.0, bent: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """((256, 256) a ball with fringes, 1 at most; where it is). `bent`: by how much its fringes fall behind its thickness, in radians."""
    y, x = np.mgrid[:SIZE_PX, :SIZE_PX] - (SIZE_PX - 1) / 2
    thickness = np.sqrt(np.clip(1 - (x * x + y * y) / 70**2, 0, None))
    amplitude = np.sin(bent * thickness) / bent if bent else thickness
    clean = 0.5 * thickness + 0.5 * contrast * amplitude * np.cos(2 * np.pi * (0.6 * x + 0.8 * y) / period_px)
    return clean.astype(np.float32), thickness > 0


SURE = 9.0
"""Logit of a support that is known"""


def network(logit: np.ndarray) -> NetworkOutput:
    """A network that knows where the particle is, and nothing of the background."""
    nothing = np.zeros(logit.shape)
    return NetworkOutput(nothing, logit, nothing, nothing, nothing)


def asked(clean: np.ndarray, inside: np.ndarray, background: np.ndarray, *, rim: tuple[int, float] = (0, SURE)) -> tuple[Experts, Blocks]:
    """Experts on a frame whose background is known to be nothing so far, by somebody who knows where the particle is, but for a rim of so
    many blocks: there, with this logit."""
    frame = (clean + background).astype(np.float32)
    blocks = describe(frame)
    support = grid.in_blocks(inside, blocks.block_px).any((1, 3))
    logit = np.where(support, SURE, -SURE)
    wide, unsure = rim
    if wide:
        logit[binary_dilation(support, iterations=wide) & ~support] = unsure
    return consult(frame, blocks, network(logit), np.zeros_like(frame)), blocks


def error(posterior: Posterior, blocks: Blocks, background: np.ndarray, inside: np.ndarray) -> float:
    """Root mean square error under the particle, in units of the signal."""
    truth = pooled(grid.in_blocks(background, blocks.block_px).mean((1, 3)))
    under = pooled(grid.in_blocks(inside, blocks.block_px).mean((1, 3))) == 1
    return float(np.sqrt(np.mean((posterior.mean * blocks.span + blocks.low - truth)[under] ** 2)))


def test_fringes_are_found_with_their_period_and_their_amplitude() -> None:
    """One plane wave on a ball: its frequency to a point of the spectrum, its amplitude as the ball's thickness."""
    clean, _ = crystal()
    found = fringes.find(clean, 4)
    assert found is not None
    wave = np.array(found.waves[0]) * np.sign(found.waves[0][0])
    assert np.abs(wave - np.array([0.8, 0.6]) / 7).max() < 1 / SIZE_PX
    amplitude = fringes.amplitudes(clean, found, 8)[0]
    thickness = fringes.levels(crystal(contrast=0.0)[0], found.window_px, 8)
    assert np.corrcoef(amplitude.ravel(), thickness.ravel())[0, 1] > 0.999


def test_a_ball_without_a_lattice_has_no_fringes() -> None:
    """Nor has a smooth background, nor noise."""
    clean, _ = crystal(contrast=0.0)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.05, clean.shape).astype(np.float32)
    for frame in (noise, clean + noise, gaussian(rng, SIZE_PX) + noise):
        assert fringes.find(frame, 4) is None


@pytest.mark.parametrize("sigma_seed", SEEDS)
def test_the_vacuum_knows_how_smooth_the_background_is(sigma_seed: int) -> None:
    """Published backgrounds around and under a ball: kriging leaves a fraction of what there was, and says how much."""
    clean, inside = crystal(contrast=0.0)
    background = gaussian(np.random.default_rng(sigma_seed), SIZE_PX)
    found, blocks = asked(clean, inside, background)
    assert found.kriging is not None
    left = error(found.kriging, blocks, background, inside)
    assert left < 0.8 * background[inside].std()
    said = float(np.sqrt(np.mean(found.kriging.sd[found.kriging.sd > 0] ** 2))) * blocks.span
    assert 1 / 3 < said / left < 3


@pytest.mark.parametrize("sigma_seed", SEEDS)
def test_the_vacuum_is_heard_up_to_the_rim_of_the_particle(sigma_seed: int) -> None:
    """The nearer a smooth field is seen, the better it is known under the particle: blocks beside it that are vacuum for sure help more
    than those that are as likely particle as not."""
    clean, inside = crystal(contrast=0.0)
    background = gaussian(np.random.default_rng(sigma_seed), SIZE_PX)
    left = {}
    for logit in (-0.01, -SURE):
        found, blocks = asked(clean, inside, background, rim=(1, logit))
        assert found.kriging is not None
        left[logit] = error(found.kriging, blocks, background, inside)
    assert left[-SURE] < 0.95 * left[-0.01]


def test_a_rim_in_doubt_does_little_harm() -> None:
    """A blurred rim whose blocks are as likely particle as not: what it spills is hardly taken for the shape of the background. Taken for
    vacuum, it contradicts what is seen elsewhere: the background is then taken for rough, and not led far astray."""
    clean, inside = crystal(contrast=0.0)
    background = gaussian(np.random.default_rng(0), SIZE_PX)
    rim = np.kron(binary_dilation(grid.in_blocks(inside, 4).any((1, 3)), iterations=2), np.ones((4, 4), bool)) & ~inside
    doubted, blocks = asked(clean + 0.01 * rim.astype(np.float32), inside, background, rim=(2, 0.0))
    believed, _ = asked(clean + 0.01 * rim.astype(np.float32), inside, background, rim=(2, -SURE))
    assert doubted.kriging is not None
    assert believed.kriging is not None
    assert error(doubted.kriging, blocks, background, inside) < 0.005
    assert 0.02 < error(believed.kriging, blocks, background, inside) < 0.1


def test_a_rim_that_contradicts_the_vacuum_is_not_asked() -> None:
    """Single blocks beside the particle that are taken for vacuum and hold a hundredth of it: as if they were in doubt."""
    clean, inside = crystal(contrast=0.0)
    background = gaussian(np.random.default_rng(0), SIZE_PX)
    support = grid.in_blocks(inside, 4).any((1, 3))
    rim = np.kron(binary_dilation(support) & ~support, np.ones((4, 4), np.float32))
    believed, blocks = asked(clean + 0.01 * rim, inside, background, rim=(1, -SURE))
    assert believed.kriging is not None
    assert error(believed.kriging, blocks, background, inside) < 0.002


@pytest.mark.parametrize("seed", SEEDS)
def test_a_foreshortened_background_has_two_lengths(seed: int) -> None:
    """A film at 75 degrees: the vacuum says across which axis it is narrow; with one length for both more is left. Rows and columns
    are alike, and what is not foreshortened has one length."""
    clean, inside = crystal(contrast=0.0)
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=(SIZE_PX, SIZE_PX)), (24, 7), mode="wrap")
    background = (0.3 * (field - field.min()) / np.ptp(field)).astype(np.float32)
    found, blocks = asked(clean, inside, background)
    turned, blocks_turned = asked(clean.T, inside.T, background.T)
    even, _ = asked(clean, inside, gaussian(rng, SIZE_PX))
    assert found.kriging is not None
    assert found.turned is not None
    assert turned.turned is not None
    assert even.turned is None
    with_one = error(found.kriging, blocks, background, inside)
    assert error(found.turned, blocks, background, inside) < 0.8 * with_one
    assert error(turned.turned, blocks_turned, background.T, inside.T) < 0.8 * with_one


def test_a_step_in_the_vacuum_is_a_surprise() -> None:
    """The end of a film is foretold by no covariance; the points beside it say so."""
    clean, inside = crystal(contrast=0.0)
    smooth = gaussian(np.random.default_rng(0), SIZE_PX)
    stepped = smooth + 0.3 * (np.arange(SIZE_PX) > 30).astype(np.float32)
    even, uneven = (asked(clean, inside, background)[0].vacuum for background in (smooth, stepped))
    assert even is not None
    assert uneven is not None
    assert np.abs(even.left_out).max() < 3.5
    assert np.abs(uneven.left_out).max() > 4
    assert abs(uneven.left_out_at[np.argmax(np.abs(uneven.left_out)), 1] - 30 / 8) < 1.5


@pytest.mark.parametrize("bent", [0.0, 1.2])
@pytest.mark.parametrize("seed", [11, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in (23, 27))])
def test_the_lattice_shows_what_the_vacuum_cannot(seed: int, bent: float) -> None:
    """Backgrounds too rough to be guessed from around a crystal (filters of 12, 10 and 10 px): its fringes tell, grow they in proportion to
    the thickness or not."""
    clean, inside = crystal(bent=bent)
    background = gaussian(np.random.default_rng(seed), SIZE_PX)
    found, blocks = asked(clean, inside, background)
    assert found.kriging is not None
    assert found.fringes is not None
    assert error(found.fringes, blocks, background, inside) < 0.6 * error(found.kriging, blocks, background, inside)


@pytest.mark.parametrize("shape", [(5, 3), (16, 16), (64, 64), (63, 97), (200, 31)])
def test_little_vacuum_or_little_particle_is_no_word_and_no_error(shape: tuple[int, int]) -> None:
    """Frames of a few blocks, all particle or none: nothing is said, or something finite."""
    frame = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    blocks = describe(frame)
    rows, columns = blocks.statistics.shape[1:]
    for support in (np.zeros((rows, columns), bool), np.ones((rows, columns), bool), np.indices((rows, columns)).sum(0) < rows):
        logit = np.where(support, SURE, -SURE)
        found = consult(frame, blocks, network(logit), np.zeros(shape, np.float32))
        for posterior in (found.kriging, found.fringes):
            assert posterior is None or np.isfinite(posterior.mean).all()


def test_the_gate_only_chooses() -> None:
    """Without experts nothing is corrected; with them the answer lies between them, whatever its weights."""
    torch.manual_seed(0)
    gate = Gate().eval()
    with torch.no_grad():
        for weight in gate.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    inputs = torch.randn(2, len(CHANNELS), EDGE, EDGE).abs()
    names = {name: CHANNELS.index(name) for name in ("network", "kriging", "fringes", "has kriging", "has fringes", "valid")}
    inputs[:, names["valid"]] = 1
    inputs[:, names["network"]], inputs[:, names["kriging"]], inputs[:, names["fringes"]] = 0.0, 1.0, -2.0
    inputs[:, names["has kriging"]], inputs[:, names["has fringes"]] = 0, 0
    assert gate(inputs).correction.abs().max() < 1e-6
    inputs[:, names["has kriging"]] = 1
    both = gate(inputs).correction
    assert both.min() >= 0
    assert both.max() <= 1
    inputs[:, names["has fringes"]] = 1
    assert gate(inputs).correction.min() >= -2
    assert gate(inputs).correction.max() <= 1


@pytest.fixture(scope="module")
def alone() -> Denoiser:
    """The shipped network without the fusion of experts."""
    return Denoiser(model="default", fusion=False, device="cpu", threads=1)


@pytest.mark.thorough
@pytest.mark.parametrize(("set_name", "gain_db", "mean_db"), [("published", 3.0, 54.5), ("hard", 0.5, 42.5)])
def test_the_fusion_makes_the_network_better(alone: Denoiser, set_name: str, gain_db: float, mean_db: float) -> None:
    """On frames of particles and films that neither has seen; what a frame may lose is less than what others win. The better the network
    is alone, the less there is to win: what comes out of it is asked for, too."""
    frames = sets.frames(set_name, 48)
    fused = Denoiser(model="default", device="cpu", threads=1)
    after, before = (
        np.array([psnr_db(frame.background, denoiser.estimate(frame.raw)[0].background) for frame in frames]) for denoiser in (fused, alone)
    )
    assert after.mean() > before.mean() + gain_db
    assert after.mean() > mean_db
    assert (after - before).max() > 10
    assert (before - after).max() < 7


def test_a_file_without_a_gate_is_a_network_all_the_same(alone: Denoiser, tmp_path: Path) -> None:
    """Weights of before there was one: the network's own background, bit by bit what `denoise.fusion = false` gives; its name says so."""
    frame = sets.frames("hard", 4)[0].raw
    weights, _ = parts(load_tensors(SHIPPED / "default.safetensors"))
    path = save_weights(
        tmp_path / "own.safetensors", weights, msgspec.structs.replace(load_card(SHIPPED / "default.safetensors"), name="own")
    )
    own, without = Denoiser(model=str(path), device="cpu", threads=1).subtract(frame), alone.subtract(frame)
    assert own.clean.tobytes() == without.clean.tobytes()
    assert (own.quality.model, without.quality.model) == ("own", "default without fusion")
    assert "gate" not in alone.estimate(frame)[0].doubts


def test_files_with_the_words_of_before_are_read_as_ever(tmp_path: Path) -> None:
    """A card, a preset and a checkpoint's preset in which the gate is called referee: the same rule, the same pixels, the same run."""
    for suffix in (".safetensors", ".json"):
        shutil.copy(SHIPPED / f"default{suffix}", tmp_path)
    card = tmp_path / "default.json"
    card.write_text(card.read_text().replace('"gate', '"referee'))
    assert card.read_text().count("referee") == 4
    raw = sets.frames("hard", 4)[0].raw
    old, new = (Denoiser(model=model, device="cpu", threads=1) for model in (str(tmp_path / "default.safetensors"), "default"))
    assert old.rule == new.rule
    assert old.subtract(raw).clean.tobytes() == new.subtract(raw).clean.tobytes()
    shipped = (Path(preset.__file__).parent / "presets" / "default.toml").read_text()
    (tmp_path / "old.toml").write_text(shipped.replace("[gate]", "[referee]"))
    assert preset.load_preset(str(tmp_path / "old.toml")) == preset.load_preset("default")
    was = {"name": "default", "seed": 0, "referee": {"steps": 3}}
    assert preset.by_names_of_today(was) == {"name": "default", "seed": 0, "gate": {"steps": 3}}


def test_the_expected_error_without_fusion_has_a_rule_of_its_own(alone: Denoiser) -> None:
    """The gate's doubts are not there: an error is still expected of the size it has."""
    expected, true = [], []
    for sample in sets.frames("hard", 24, seed=sets.SEED + 78):
        evidence, error = judged(alone, sample)
        expected.append(trust.expected_share(evidence, alone.rule) * evidence.range)
        true.append(error)
    assert rank_correlation(np.array(expected), np.array(true)) > 0.75
    assert 0.5 < np.median(np.array(expected) / np.array(true)) < 2
