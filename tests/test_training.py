"""Training: a real, tiny run; exact resume; nothing leaks between training and validation."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from aet_stream.denoise.denoiser import Denoiser
from aet_stream.denoise.weights_file import load_card, load_tensors
from aet_stream.errors import ConfigError
from aet_stream.training import evaluate
from aet_stream.training.dataset import Mixer
from aet_stream.training.train import Preset, Training, draw_batch, learning_rate, load_preset, run

TINY = """
name = "tiny"
grid_blocks = {blocks}
in_channels = {channels}
backgrounds = ["film", "gaussian"]
noise = true
particles = 2
views = 2
background_count = 4
batch = 4
steps = 6
learning_rate = 1e-3
schedule = "cosine"
loss = "rms"
bfloat16 = false
patch_px = 40
patches_per_frame = 4
"""


@pytest.mark.parametrize(("blocks", "channels"), [(16, 6), (0, 1)])
def test_a_trained_network_can_be_used_at_once(tmp_path: Path, blocks: int, channels: int) -> None:
    """Weights, card, log and checkpoint; both kinds of network."""
    preset = tmp_path / "tiny.toml"
    preset.write_text(TINY.format(blocks=blocks, channels=channels))
    path = run(str(preset), tmp_path / "out", seed=3, threads=1)
    card = load_card(path)
    assert card.trained["steps"] == 6
    assert card.data_seed == 3
    assert card.figures["validation_mean_db"] > 0
    with (tmp_path / "out" / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["6"]
    clean = Denoiser(model=str(path), device="cpu").subtract(np.random.default_rng(0).poisson(100, (64, 64))).clean
    assert np.isfinite(clean).all()


def tiny(tmp_path: Path) -> tuple[Preset, Mixer]:
    preset = tmp_path / "tiny.toml"
    preset.write_text(TINY.format(blocks=16, channels=6))
    found = load_preset(str(preset))
    return found, Mixer(seed=1, particles=2, views=2, backgrounds=found.backgrounds, background_count=4, noise=True)


def test_a_resumed_run_goes_on_exactly_where_it_was(tmp_path: Path) -> None:
    """Four steps, or two, a checkpoint, and two: the same weights to the bit."""
    preset, mixer = tiny(tmp_path)
    torch.set_num_threads(1)
    straight = Training(preset, 0, torch.device("cpu"))
    for _ in range(4):
        straight.one_step(mixer, 0.5)
    first = Training(preset, 0, torch.device("cpu"))
    for _ in range(2):
        first.one_step(mixer, 0.5)
    first.save(tmp_path / "checkpoint.pt")
    second = Training(preset, 99, torch.device("cpu"))
    second.load(tmp_path / "checkpoint.pt")
    for _ in range(2):
        second.one_step(mixer, 0.5)
    for a, b in zip(straight.average.state_dict().values(), second.average.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert second.step == 4


def test_learning_makes_the_error_smaller(tmp_path: Path) -> None:
    """On one fixed batch, thirty steps help."""
    preset, mixer = tiny(tmp_path)
    training = Training(preset, 0, torch.device("cpu"))
    batch = draw_batch(mixer, np.random.default_rng(0), preset, 4)
    from aet_stream.training.train import mean_square_errors

    def loss() -> torch.Tensor:
        return mean_square_errors(training.model.train(), batch, training.device, coarse=True).sqrt().mean()

    before = float(loss().detach())
    for _ in range(30):
        training.optimizer.zero_grad()
        loss().backward()
        training.optimizer.step()
    assert float(loss().detach()) < 0.8 * before


def test_the_same_seed_gives_the_same_frames_and_another_seed_other_particles() -> None:
    """Sets are fixed by their seeds; training and validation never share a particle."""
    settings = {"particles": 2, "views": 1, "backgrounds": ["gaussian"], "background_count": 2, "noise": True}
    one, same, other = (Mixer(seed=seed, **settings) for seed in (1, 1, 2))  # type: ignore[arg-type]
    frames = [mixer.sample(np.random.default_rng(0)) for mixer in (one, same, other)]
    assert np.array_equal(frames[0].raw, frames[1].raw)
    assert not np.array_equal(frames[0].clean, frames[2].clean)


def test_the_learning_rate_is_a_plain_function() -> None:
    """Warm-up, then a cosine to nearly nothing; or constant."""
    preset = load_preset("default")
    assert learning_rate(0, 0.0, preset) < 0.05 * preset.learning_rate
    assert learning_rate(1000, 0.0, preset) == pytest.approx(preset.learning_rate)
    assert learning_rate(1000, 1.0, preset) == pytest.approx(0.01 * preset.learning_rate)
    published = load_preset("dncnn-2019")
    assert learning_rate(10**6, 0.9, published) == 1e-3
    assert (published.patch_px, published.loss, published.in_channels, published.grid_blocks) == (40, "mse", 1, 0)


def test_a_wrong_preset_is_named() -> None:
    """With the ones there are."""
    with pytest.raises(ConfigError, match="dncnn-2019"):
        load_preset("nonsense")


def test_evaluation_ranks_what_it_should() -> None:
    """Doing nothing is worse than Laplace on films; one row per estimator and set; no NaN."""
    scores = evaluate.evaluate([], frames=6, seed=77)
    found = {(score.set_name, score.estimator): score for score in scores}
    assert found["film", "laplace"].mean_db > found["film", "nothing"].mean_db + 8
    assert found["film", "default"].mean_db > found["film", "nothing"].mean_db + 8
    assert all(np.isfinite([score.mean_db, score.worst_db, score.mean_ssim]).all() for score in scores)
    assert "laplace" in evaluate.table(scores)


def test_weights_are_tensors_and_nothing_else(tmp_path: Path) -> None:
    """A pickle in disguise is refused before anything in it can run."""
    from aet_stream.errors import ModelError

    torch.save({"x": 1}, tmp_path / "evil.safetensors")
    with pytest.raises(ModelError, match="safetensors"):
        load_tensors(tmp_path / "evil.safetensors")
