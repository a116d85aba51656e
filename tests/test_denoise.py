"""Backgrounds: classical and by network; exact, reversible, whatever the frame."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from aet_stream.denoise import classical, grid
from aet_stream.denoise.denoiser import Denoiser, Network
from aet_stream.denoise.dncnn import DnCNN
from aet_stream.denoise.weights_file import SHIPPED, Card, load_card, save_weights
from aet_stream.errors import ModelError
from aet_stream.training.dataset import Mixer
from aet_stream.training.evaluate import psnr_db, ssim

SHAPES = [(256, 256), (64, 64), (63, 97), (200, 31), (16, 16), (5, 3), (1024, 640)]


def frame(shape: tuple[int, int] = (256, 256), seed: int = 0) -> np.ndarray:
    """A particle on a slope, uint16."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]] / max(shape) - 0.4
    return (300 + 80 * x + 900 * np.exp(-(x * x + y * y) / 0.02) + rng.poisson(30, shape)).astype("<u2")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full-resolution network with weights of no meaning, batch norms in use."""
    torch.manual_seed(0)
    model = DnCNN()
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.rand(2, 1, 40, 40))
    return save_weights(tmp_path_factory.mktemp("weights") / "full.safetensors", model, Card(name="full", bfloat16=True))


@pytest.mark.parametrize("model", ["default", "laplace", "constant"])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_frame_comes_back_in_its_shape_and_reversibly(model: str, shape: tuple[int, int]) -> None:
    """clean is float32, and raw - clean is a smooth background; nothing is clipped or masked."""
    raw = frame(shape)
    found = Denoiser(model=model, device="cpu", threads=1).subtract(raw)
    assert found.clean.shape == shape
    assert found.clean.dtype == np.float32
    assert np.isfinite(found.clean).all()
    if min(shape) >= 64:
        background = raw.astype(np.float32) - found.clean
        assert np.abs(np.diff(background, axis=0)).max() < 20
        assert found.clean.min() < 0


def test_the_default_network_is_far_better_than_nothing() -> None:
    """On particles, films and noise that no training has seen: 10 dB at the least."""
    mixer = Mixer(seed=4321, particles=6, views=2, backgrounds=["film"], background_count=8, noise=True)
    rng, denoiser = np.random.default_rng(1), Denoiser(model="default", device="cpu", threads=1)
    gains = []
    for _ in range(10):
        sample = mixer.sample(rng)
        background = sample.raw - denoiser.subtract(sample.raw).clean
        gains.append(psnr_db(sample.background, background) - psnr_db(sample.background, np.zeros_like(background)))
    assert np.mean(gains) > 10


def test_scale_and_offset_of_the_counts_do_not_matter() -> None:
    """Ten times the counts on a pedestal: ten times the clean image."""
    raw = frame().astype(np.float32)
    denoiser = Denoiser(model="default", device="cpu", threads=1)
    once, again = denoiser.subtract(raw).clean, denoiser.subtract(raw * 10 + 5000).clean
    assert np.abs(again / 10 - once).max() < 0.5


def test_a_blank_frame_is_flagged_and_left_alone() -> None:
    """Every pixel the same: nothing to say, no trust."""
    found = Denoiser(model="default", device="cpu").subtract(np.zeros((32, 32), "<u2"))
    assert found.quality.blank
    assert np.isnan(found.quality.trust)
    assert not found.clean.any()


def test_figures_go_with_every_frame() -> None:
    """Model, hash, and the disagreement with the Laplace estimate."""
    quality = Denoiser(model="default", device="cpu", threads=1).subtract(frame()).quality
    assert quality.model_sha256 == load_card(SHIPPED / "default.safetensors").sha256
    assert 0 <= quality.trust <= 1
    assert quality.laplace_rms >= 0
    assert abs(quality.vacuum_residual) < 20
    assert 0 < quality.vacuum_fraction < 1


def test_laplace_restores_what_is_linear_under_a_particle() -> None:
    """A slope solves Laplace's equation: it comes back exactly, mask given."""
    y, x = np.mgrid[:96, :96].astype(np.float32)
    slope = 100 + x - 0.5 * y
    hidden = slope.copy()
    hidden[30:60, 30:60] += 500
    vacuum = classical.find_vacuum(hidden)
    assert vacuum.mask[12:18, 12:18].all()
    found = classical.laplace(hidden, vacuum)
    assert np.abs(found - slope)[8:88, 8:88].max() < 3


def test_splines_draw_a_smooth_background_from_its_blocks() -> None:
    """Values at block centres, drawn back: a thousandth off at the most, edges included."""
    y, x = np.mgrid[:200, :256] / 256
    smooth = (np.sin(4 * x) + np.cos(3 * y)).astype(np.float32)
    coarse = grid.at_centres(smooth, 8)
    assert np.abs(grid.draw(coarse, 8, (200, 256)) - smooth).max() < 5e-3


def test_tiles_equal_the_whole_frame(full: Path) -> None:
    """The halo is as wide as the network sees: no seams, to rounding."""
    raw = frame((150, 131)).astype(np.float32)
    vacuum = classical.find_vacuum(raw)
    whole = Network(full, device="cpu", precision="float32", tile_px=1024).background(raw, vacuum, lambda: None)
    beats: list[int] = []
    tiled = Network(full, device="cpu", precision="float32", tile_px=64).background(raw, vacuum, lambda: beats.append(1))
    assert np.abs(whole - tiled).max() < 1e-3 * np.ptp(raw)
    assert len(beats) == 9


def test_folding_and_bfloat16_change_next_to_nothing(full: Path) -> None:
    """Batch norms folded: equal to rounding. bfloat16: 1 % of the range at most."""
    from aet_stream.denoise.weights_file import load_tensors

    raw = frame((64, 64)).astype(np.float32)
    vacuum = classical.find_vacuum(raw)
    plain = DnCNN().eval()
    plain.load_state_dict(load_tensors(full))
    from aet_stream.denoise.features import normalisation

    low, span = normalisation(raw)
    with torch.inference_mode():
        expected = plain(torch.from_numpy((raw - low) / span)[None, None])[0, 0].numpy() * span + low
    exact = Network(full, device="cpu", precision="float32").background(raw, vacuum, lambda: None)
    rough = Network(full, device="cpu", precision="bfloat16").background(raw, vacuum, lambda: None)
    assert np.abs(exact - expected).max() < 1e-4 * span
    assert np.abs(rough - expected).max() < 0.03 * span


def test_out_of_memory_leads_to_smaller_tiles_and_then_to_a_clear_end(full: Path) -> None:
    """A fake shortage: tiles are halved until they fit; when none fits, the error says so."""
    network = Network(full, device="cpu", precision="float32", tile_px=512)
    real, refused = network._layers, []

    class Short(torch.nn.Module):
        def __init__(self, limit_px: int) -> None:
            super().__init__()
            self.limit_px = limit_px

        def forward(self, tile: torch.Tensor) -> torch.Tensor:
            if tile.shape[-1] > self.limit_px:
                refused.append(tile.shape[-1])
                raise torch.OutOfMemoryError("pretended")
            return real(tile)

    raw = frame((300, 300)).astype(np.float32)
    vacuum = classical.find_vacuum(raw)
    expected = network.background(raw, vacuum, lambda: None)
    network._layers = Short(200)
    found = network.background(raw, vacuum, lambda: None)
    assert refused
    assert np.abs(found - expected).max() < 1e-3 * np.ptp(raw)
    network._layers = Short(10)
    with pytest.raises(ModelError, match="not enough memory"):
        network.background(raw, vacuum, lambda: None)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "m.json").unlink(), "card"),
        (lambda folder: (folder / "m.safetensors").write_bytes(b"x" * 100), "SHA-256"),
        (lambda folder: (folder / "m.json").write_text('{"name": "m", "colour": 1}'), "colour"),
        (lambda folder: (folder / "m.safetensors").unlink(), "no such network"),
    ],
)
def test_weights_that_are_not_what_their_card_says_are_refused(tmp_path: Path, spoil: object, words: str) -> None:
    """File, value and remedy are named."""
    for suffix in (".safetensors", ".json"):
        shutil.copy(SHIPPED / f"default{suffix}", tmp_path / f"m{suffix}")
    Denoiser(model=str(tmp_path / "m.safetensors"), device="cpu")
    spoil(tmp_path)  # type: ignore[operator]
    with pytest.raises(ModelError, match=words):
        Denoiser(model=str(tmp_path / "m.safetensors"), device="cpu")


@pytest.mark.parametrize(("setting", "words"), [("cuda:7", "no such GPU"), ("tpu", "say auto"), ("mps", "say auto")])
def test_a_device_that_is_not_there_is_refused(setting: str, words: str) -> None:
    """Never a silent fall-back from what was asked for by name."""
    if setting == "cuda:7" and torch.cuda.device_count() > 7:
        pytest.skip("there are that many GPUs here")
    with pytest.raises(ModelError, match=words):
        Denoiser(model="default", device=setting)


def test_ssim_and_psnr_are_what_they_should_be() -> None:
    """1 and infinity for equal images; 20 dB for an offset of a tenth."""
    image = np.random.default_rng(0).random((64, 64))
    assert ssim(image, image) == pytest.approx(1)
    assert psnr_db(image, image + 0.1) == pytest.approx(20)
    assert ssim(image, 1 - image) < 0
