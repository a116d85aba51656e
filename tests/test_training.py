"""Training: a real, tiny run; exact resume; nothing leaks between training and validation."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import msgspec
import numpy as np
import pytest
import torch

from aet_stream import layout
from aet_stream.cli import main
from aet_stream.denoise import coarse
from aet_stream.denoise.architectures import save_weights
from aet_stream.denoise.denoiser import Denoiser
from aet_stream.denoise.dncnn import DnCNN
from aet_stream.denoise.estimate import Estimate, Image
from aet_stream.denoise.weights_file import SHIPPED, Card, load_card, load_tensors, parts, write_card
from aet_stream.errors import ConfigError, ModelError, OutputFull
from aet_stream.projection import Array
from aet_stream.simulate.physical import JUDGING_HABITS, LEARNT_HABITS
from aet_stream.training import calibrate, evaluate, finetune, sets, train
from aet_stream.training.batches import CoarseBatch, CoarseBatches, PatchBatches
from aet_stream.training.dataset import LEARNT, Mixer, Recipe
from aet_stream.training.gate import SAMPLES_FILE, Samples, cached, keep_only_own, origin
from aet_stream.training.learning import Training
from aet_stream.training.losses import coarse_loss
from aet_stream.training.preset import learning_rate, load_preset
from aet_stream.training.recorded import Recorded
from aet_stream.training.scores import psnr_db
from aet_stream.training.train import run
from tests.harness import ENVIRONMENT
from tests.rehearsal import taken_in
from tests.sharing import learn_a_share, small_network

TINY = """
name = "tiny"
network = "{network}"
seed = 3
particles = 2
views = {views}
held_out = {held_out}
atoms = 1000
backgrounds = ["film", "gaussian"]
amplify = 4.0
noise = 0.5
plain = true
batch = 2
steps = {steps}
learning_rate = 1e-3
warm_up = 2
decay = 0.5
weight_decay = 0.0
average = 0.9
bfloat16 = false
judging_frames = {judging}
calibration_frames = 2
patch_px = 40
patches_per_frame = 4
"""
GATE = """
[gate]
particles = 2
views = 2
frames = 4
plain = 0.5
batch = 4
steps = 5
learning_rate = 1e-3
weight_decay = 0.0
average = 0.9
"""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Whatever a network of another test has taken: several threads wait for each other by spinning, and tests run side by side."""
    torch.set_num_threads(1)


@pytest.mark.parametrize(("there", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_is_used_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch, there: bool, expected: torch.dtype) -> None:
    """While training only; elsewhere it would take twenty times as long as float32."""
    monkeypatch.setattr(coarse, "has_bfloat16", lambda kind: there)
    model, seen = coarse.Coarse(), []
    for stage in model.stages:
        stage.unet.register_forward_hook(lambda module, given, said: seen.append(said[0].dtype))
    inputs = torch.rand(1, 5, 16, 16), torch.ones(1, 16, 16)
    model.train()(*inputs)
    model.eval()(*inputs)
    assert seen == [expected] * 2 + [torch.float32] * 2


def preset_file(tmp_path: Path, network: str = "coarse", steps: int = 6, views: int = 2, held_out: int = 0, *, gate: bool = False) -> Path:
    path, judging = tmp_path / "tiny.toml", 4 if network == "coarse" else 1
    text = TINY.format(network=network, steps=steps, views=views, held_out=held_out, judging=judging)
    path.write_text(text + (GATE if gate else ""))
    return path


def small(batch: CoarseBatch) -> CoarseBatch:
    """A corner of its frames, a quarter of the arithmetic."""
    return CoarseBatch(*(part[..., :32, :32] if part.ndim > 1 else part for part in batch))


@pytest.mark.parametrize(("network", "held_out"), [("coarse", 1), pytest.param("dncnn", 0, marks=pytest.mark.thorough)])
def test_a_trained_network_can_be_used_at_once(tmp_path: Path, network: str, held_out: int) -> None:
    """Weights, calibrated card, log, picture and checkpoint; both kinds of network."""
    path = run(str(preset_file(tmp_path, network, views=3, held_out=held_out)), tmp_path / "out", threads=1)
    card = load_card(path)
    assert card.trained["steps"] == 6
    assert card.data_seed == 3
    assert card.figures["published_mean_db"] > 0
    assert ("own_mean_db" in card.figures) == bool(held_out)
    assert "intercept" in card.trust
    with (tmp_path / "out" / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["6"]
    assert (tmp_path / "out" / "loss.png").stat().st_size > 1000
    found = Denoiser(model=str(path), device="cpu").subtract(np.random.default_rng(0).poisson(100, (64, 64)))
    assert np.isfinite(found.clean).all()
    assert found.quality.expected_error > 0


@pytest.mark.thorough
def test_a_gate_is_trained_after_its_network_and_travels_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file holds both; its samples are thrown away, its own log stays; a finished run makes none again."""
    path = run(str(preset_file(tmp_path, views=3, gate=True)), tmp_path / "out", threads=1)
    network, gate = parts(load_tensors(path))
    assert network
    assert gate
    assert load_card(path).figures["hard_mean_db"] > 0
    assert "moved" in load_card(path).trust
    assert "intercept" in load_card(path).trust_alone
    assert "moved" not in load_card(path).trust_alone
    assert not (tmp_path / "out" / "gate" / SAMPLES_FILE).exists()
    with (tmp_path / "out" / "gate" / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["5"]
    monkeypatch.setattr(train, "cached", None)
    assert (tmp_path / "out" / "gate" / "origin.txt").exists()
    again = run(str(preset_file(tmp_path, views=3, gate=True)), tmp_path / "out", threads=1, resume=True)
    same, too = parts(load_tensors(again))
    assert all(torch.equal(network[name], same[name]) for name in network)
    assert all(torch.equal(gate[name], too[name]) for name in gate)


def test_a_gate_goes_on_only_with_its_own_network_and_samples(tmp_path: Path) -> None:
    """What another network, other frames, or an early run that does not say have left is thrown away; how it learns makes no difference."""
    preset, out = load_preset(str(preset_file(tmp_path, gate=True))), tmp_path / "gate"
    assert preset.gate
    own = origin("aa", preset, preset.gate)
    slower, fewer = (msgspec.structs.replace(preset.gate, **words) for words in ({"learning_rate": 1e-4}, {"frames": 2}))
    others = [origin("bb", preset, preset.gate), origin("aa", preset, fewer)]
    others.append(origin("aa", msgspec.structs.replace(preset, noise=0.1), preset.gate))
    assert origin("aa", preset, slower) == own
    assert own not in others
    out.mkdir()
    for before, now, resume, kept in (
        (None, own, True, False),
        (own, own, True, True),
        (own, own, False, False),
        (own, others[0], True, False),
    ):
        for name in ("checkpoint.pt", SAMPLES_FILE):
            (out / name).write_bytes(b"left")
        (out / "origin.txt").unlink(missing_ok=True)
        if before:
            (out / "origin.txt").write_text(before)
        keep_only_own(out, now, resume=resume)
        assert [(out / name).exists() for name in ("checkpoint.pt", SAMPLES_FILE)] == [kept] * 2
        assert (out / "origin.txt").read_text() == now


def test_a_sample_is_made_once(tmp_path: Path) -> None:
    """A stopped run goes on with the frames that are missing; the file is as if it had never stopped."""
    preset = load_preset(str(preset_file(tmp_path, gate=True)))
    assert preset.gate
    samples = Samples(SHIPPED / "default.safetensors", preset, preset.gate)
    straight = cached(samples, 3, tmp_path / "straight.npy", makers=0)
    stopped = cached(samples, 3, tmp_path / "stopped.npy", makers=0)
    stopped[2:] = 0
    kept = stopped[:2].copy()
    kept[0, 0, 0, 0] = stopped[0, 0, 0, 0] = 7.0
    again = cached(samples, 3, tmp_path / "stopped.npy", makers=0)
    assert np.array_equal(again[:2], kept)
    assert np.array_equal(again[2:], straight[2:])


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EOPNOTSUPP])
def test_samples_have_their_room_before_the_first_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int) -> None:
    """A full disk is one line and leaves nothing; a file system that cannot set room aside does without."""

    def fallocate(descriptor: int, offset: int, size: int) -> None:
        raise OSError(reason, os.strerror(reason))

    path = tmp_path / SAMPLES_FILE
    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    if reason == errno.ENOSPC:
        with pytest.raises(OutputFull, match=r"samples\.npy: No space left"):
            cached([], 0, path, makers=0)
        assert not path.exists()
    else:
        assert len(cached([], 0, path, makers=0)) == 0


def test_a_resumed_run_goes_on_exactly_where_it_was(tmp_path: Path) -> None:
    """Four steps, or two, a checkpoint, and two: the same weights to the bit."""
    preset = load_preset(str(preset_file(tmp_path)))
    made = CoarseBatches(Mixer(preset.recipe, seed=1, particles=1, views=2), seed=1, batch=2)
    batches = [small(made[step]) for step in range(4)]
    straight = Training(preset, torch.device("cpu"), small_network)
    for step in range(4):
        straight.one_step(batches[step])
    first = Training(preset, torch.device("cpu"), small_network)
    for step in range(2):
        first.one_step(batches[step])
    first.save(tmp_path / "checkpoint.pt")
    second = Training(preset, torch.device("cpu"), small_network)
    second.load(tmp_path / "checkpoint.pt")
    for step in range(second.step, 4):
        second.one_step(batches[step])
    for a, b in zip(straight.average.state_dict().values(), second.average.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_run_goes_on_only_from_its_own_checkpoint(tmp_path: Path) -> None:
    """Any other key than `steps`, fewer steps than were made, or a file that is none: one line with what differs. Early ones say less."""
    preset, path = load_preset(str(preset_file(tmp_path, gate=True))), tmp_path / "checkpoint.pt"
    assert preset.gate
    first = Training(preset, torch.device("cpu"))
    first.step = 2
    first.save(path)
    slower = msgspec.structs.replace(preset.gate, learning_rate=1e-4)
    for changed, said in (
        ({"seed": 4}, "seed was 3, now 4"),
        ({"learning_rate": 0.1}, "learning_rate was 0.001, now 0.1"),
        ({"backgrounds": ["film"]}, r"backgrounds was \['film', 'gaussian'\], now \['film'\]"),
        ({"network": "dncnn", "gate": None}, "network was 'coarse', now 'dncnn'"),
        ({"gate": slower}, r"gate\.learning_rate was 0\.001, now 0\.0001"),
        ({"gate": None}, "gate was True, now False"),
        ({"steps": 1}, "step 2, beyond steps 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            Training(msgspec.structs.replace(preset, **changed), torch.device("cpu")).load(path)
    longer = Training(msgspec.structs.replace(preset, steps=9), torch.device("cpu"))
    longer.load(path)
    assert longer.step == 2
    torch.save({**torch.load(path, weights_only=True), "preset": "tiny", "seed": 3}, tmp_path / "early.pt")
    longer.load(tmp_path / "early.pt")
    with pytest.raises(ConfigError, match="seed was 3, now 4"):
        Training(msgspec.structs.replace(preset, seed=4), torch.device("cpu")).load(tmp_path / "early.pt")
    whole = path.read_bytes()
    for content in (whole[:1000], b"text", b""):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"checkpoint\.pt: no whole checkpoint"):
            longer.load(path)
    for foreign in (torch.zeros(3), [1, 2], {"model": {}}):
        torch.save(foreign, path)
        with pytest.raises(ConfigError, match=r"checkpoint\.pt: no whole checkpoint"):
            longer.load(path)


def test_a_used_folder_is_refused_without_resume_and_an_abandoned_log_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one run only; whatever happens to log and picture, the checkpoint was saved before."""
    training = Training(load_preset(str(preset_file(tmp_path, steps=1))), torch.device("cpu"))
    batch = CoarseBatches(Mixer(training.preset.recipe, seed=1, particles=2, views=2), seed=1, batch=2)[0]
    (tmp_path / "log.csv").write_text("step,other\n7,1\n")
    train.loop(training, iter([batch]), lambda model, device: {"hard_mean_db": 1.0}, tmp_path)
    with (tmp_path / "log.csv").open() as file:
        assert [(row["step"], row["hard_mean_db"]) for row in csv.DictReader(file)] == [("1", "1.0")]
    (tmp_path / "checkpoint.pt").unlink()
    training.step = 0
    monkeypatch.setattr(train, "_log_row", None)
    with pytest.raises(TypeError):
        train.loop(training, iter([batch]), lambda model, device: {"hard_mean_db": 1.0}, tmp_path)
    assert (tmp_path / "checkpoint.pt").exists()
    with pytest.raises(ConfigError, match="--resume"):
        run(str(tmp_path / "tiny.toml"), tmp_path, threads=1)


@pytest.mark.thorough
def test_several_processes_train_one_network(tmp_path: Path) -> None:
    """torchrun with two processes on the CPU: one network comes out, its log has every step once."""
    preset, out = preset_file(tmp_path, steps=3), tmp_path / "out"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "torch.distributed.run", "--nnodes", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    words += ["--nproc-per-node", "2", "-m", "aet_stream"]
    words += ["train", "--preset", str(preset), "--out", str(out), "--threads", "1"]
    environment = {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert load_card(out / "tiny.safetensors").trained["steps"] == 3


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """The frames of each step shared out between this process and another: the same losses and the same weights, but for rounding."""
    preset = load_preset(str(preset_file(tmp_path)))
    batches = CoarseBatches(Mixer(preset.recipe, seed=1, particles=1, views=2), seed=1, batch=2)
    frames = [small(batches[step]) for step in range(3)]
    one = Training(preset, torch.device("cpu"), small_network)
    losses = [float(one.one_step(batch)) for batch in frames]
    other = torch.multiprocessing.spawn(learn_a_share, (1, preset, frames, tmp_path), nprocs=1, join=False)
    learn_a_share(0, 0, preset, frames, tmp_path)
    assert other.join(60)
    shares, weights = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    assert np.mean(shares, axis=0) == pytest.approx(losses, rel=1e-4)
    assert len(set(losses)) == 3
    for name, value in one.model.state_dict().items():
        assert torch.equal(weights[0][name], weights[1][name])
        assert float((weights[0][name] - value).abs().mean()) < 1e-5, name


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """More processes than GPUs are refused, with how many there may be."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for rank in range(2):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert train.device_of(rank) == torch.device("cuda", rank)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="say at most 2"):
        train.device_of(2)


def test_learning_makes_the_error_smaller(tmp_path: Path) -> None:
    """On one fixed batch, twenty steps help."""
    preset = load_preset(str(preset_file(tmp_path, steps=1000)))
    training = Training(preset, torch.device("cpu"))
    batch = small(CoarseBatches(Mixer(preset.recipe, seed=1, particles=1, views=2), seed=1, batch=2)[0])
    with torch.no_grad():
        before = float(coarse_loss(training.model.train(), batch))
    for _ in range(20):
        training.one_step(batch)
    with torch.no_grad():
        assert float(coarse_loss(training.model.train(), batch)) < before - 1


def test_a_gradient_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    """One poisoned batch costs one step, not the network."""
    preset = load_preset(str(preset_file(tmp_path)))
    training = Training(preset, torch.device("cpu"))
    batch = CoarseBatches(Mixer(preset.recipe, seed=1, particles=2, views=2), seed=1, batch=2)[0]
    before = [part.clone() for part in training.model.state_dict().values()]
    assert training.one_step(batch._replace(statistics=batch.statistics * float("nan"))).isnan()
    assert all(torch.equal(a, b) for a, b in zip(before, training.model.state_dict().values(), strict=True))
    assert training.one_step(batch).isfinite()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_recorded_step_is_the_step(tmp_path: Path) -> None:
    """On a GPU the steps of a DnCNN are played from a recording: the losses are those without one, learning rate and running mean those of
    the step, and a poisoned batch changes no weight."""
    preset = load_preset(str(preset_file(tmp_path, network="dncnn", steps=32)))
    mixer = Mixer(preset.recipe, seed=1, particles=1, views=3)
    batches = PatchBatches(mixer, seed=1, batch=8, patch_px=40, per_frame=4)
    played, plain = (Training(preset, torch.device("cuda")) for _ in range(2))
    plain.learn = plain.learn_once
    losses = [[float(training.one_step(batches[step])) for step in range(30)] for training in (played, plain)]
    assert isinstance(played.learn, Recorded)
    assert played.learn.recorded
    assert np.allclose(*losses, rtol=0.1), losses

    def weights(model: torch.nn.Module) -> list[torch.Tensor]:
        return [part.detach().clone() for part in model.parameters()]

    before = weights(played.model)
    poisoned = batches[0]._replace(background=batches[0].background * float("nan"))
    assert played.one_step(poisoned).isnan()
    assert all(torch.equal(a, b) for a, b in zip(before, played.model.parameters(), strict=True))
    mean = weights(played.average)
    assert played.one_step(batches[1]).isfinite()
    for was, now, learned in zip(mean, played.average.parameters(), played.model.parameters(), strict=True):
        assert torch.allclose(now, was + (learned - was) * (1 - min(preset.average, 32 / 42)), atol=1e-6)
    before = weights(played.model)
    assert learning_rate(played.step, preset) == 0
    assert played.one_step(batches[2]).isfinite()
    assert all(torch.equal(a, b) for a, b in zip(before, played.model.parameters(), strict=True))
    played.step = preset.steps
    played.save(tmp_path / "checkpoint.pt")
    elsewhere = Training(preset, torch.device("cpu"))
    elsewhere.load(tmp_path / "checkpoint.pt")
    assert elsewhere.one_step(batches[2]).isfinite()


def test_a_run_that_diverged_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures, weights or a rule that are no numbers: one line with the learning rate; no checkpoint, no weights, the card as it was."""
    training = Training(load_preset(str(preset_file(tmp_path, steps=1))), torch.device("cpu"))
    batch = CoarseBatches(Mixer(training.preset.recipe, seed=1, particles=2, views=2), seed=1, batch=2)[0]
    with pytest.raises(ModelError, match=r"step 1; start anew with a learning_rate below 0\.001"):
        train.loop(training, iter([batch]), lambda model, device: {"hard_mean_db": float("nan")}, tmp_path)
    training.step = 0
    next(training.model.parameters()).data.fill_(float("inf"))
    with pytest.raises(ModelError, match="learning_rate"):
        train.loop(training, iter([batch]), lambda model, device: {"hard_mean_db": 1.0}, tmp_path)
    with pytest.raises(ModelError, match=r"n\.safetensors: huge is not finite"):
        save_weights(tmp_path / "n.safetensors", {"huge": torch.tensor([1e6])}, Card(name="n", architecture="Coarse"))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]
    weights = save_weights(tmp_path / "n.safetensors", coarse.Coarse().state_dict(), Card(name="n", architecture="Coarse"))
    monkeypatch.setattr(calibrate, "fit", lambda denoiser, frames: {"intercept": float("nan")})
    with pytest.raises(ModelError, match=r"n\.safetensors: the rule"):
        calibrate.calibrate(weights, frames=4)
    assert load_card(weights).trust == {}


def test_the_same_seed_gives_the_same_frames_and_another_seed_other_particles() -> None:
    """Sets are fixed by their seeds; training and judging never share a particle, nor a family of backgrounds."""
    recipe = Recipe(backgrounds=("gaussian",), plain=True, sizes_px=(256,))
    one, same, other = (Mixer(recipe, seed=seed, particles=2, views=1) for seed in (1, 1, 2))
    frames = [mixer.sample(np.random.default_rng(0)) for mixer in (one, same, other)]
    assert np.array_equal(frames[0].raw, frames[1].raw)
    assert not np.array_equal(frames[0].clean, frames[2].clean)
    for preset in (load_preset("default"), load_preset("still")):
        assert preset.seed + 1_000_003 < sets.SEED
        assert "unseen" not in preset.backgrounds
    assert "icosahedron" not in LEARNT
    assert sets.SETS["unseen"].recipe.kinds == ("icosahedron",)


def test_the_learning_rate_is_a_plain_function() -> None:
    """Warm-up, plateau, and a line to nothing; or constant, as published."""
    preset = load_preset("still")
    assert learning_rate(0, preset) < 0.05 * preset.learning_rate
    assert learning_rate(preset.steps // 2, preset) == pytest.approx(preset.learning_rate)
    assert learning_rate(preset.steps - 1, preset) < 0.01 * preset.learning_rate
    published = load_preset("dncnn-2019")
    assert learning_rate(300_000, published) == 1e-3
    assert (published.patch_px, published.noise, published.views, published.held_out) == (40, 0.0, 180, 18)
    assert published.steps * published.batch == pytest.approx(51 * 215_460, rel=1e-4)


def test_a_run_begins_with_the_weights_that_its_preset_names(tmp_path: Path) -> None:
    """So small a step changes nothing: out comes what was put in."""
    torch.manual_seed(99)
    first = coarse.Coarse().state_dict()
    start = save_weights(tmp_path / "first.safetensors", first, Card(name="first", architecture="coarse"))
    path = preset_file(tmp_path, steps=1)
    text = path.read_text().replace("learning_rate = 1e-3", "learning_rate = 1e-12")
    path.write_text(f'start = "{start}"\n' + text)
    learned, _ = parts(load_tensors(run(str(path), tmp_path / "out", threads=1)))
    assert all(torch.allclose(learned[name].float(), first[name], rtol=1e-3, atol=1e-6) for name in first)


@pytest.mark.parametrize(("start", "said"), [("nonsense", "start 'nonsense'"), ("dncnn-2019", "start is another kind of network")])
def test_a_run_does_not_begin_with_what_is_no_such_network(tmp_path: Path, start: str, said: str) -> None:
    """No file of that name, or of another architecture."""
    path = preset_file(tmp_path)
    path.write_text(f'start = "{start}"\n' + path.read_text())
    with pytest.raises(ModelError, match=said):
        run(str(path), tmp_path / "out", threads=1)


def test_habits_that_judge_are_not_learned_from() -> None:
    """The preset for films that turn names its particles; the others follow from none being named."""
    default, still = load_preset("default"), load_preset("still")
    assert tuple(default.recipe.kinds) == LEARNT_HABITS
    assert not set(default.recipe.kinds) & set(JUDGING_HABITS)
    assert tuple(still.recipe.kinds) == LEARNT
    mixer = Mixer(msgspec.structs.replace(default, habits=["rod"]).recipe, seed=0, particles=2, views=1)
    assert mixer.recipe.kinds == ["rod"]


def test_a_wrong_preset_is_named() -> None:
    """With the ones there are."""
    with pytest.raises(ConfigError, match="dncnn-2019"):
        load_preset("nonsense")


@pytest.mark.parametrize(
    ("network", "was", "becomes", "said"),
    [
        ("coarse", 'backgrounds = ["film", "gaussian"]', "backgrounds = []", "backgrounds"),
        ("coarse", 'backgrounds = ["film", "gaussian"]', 'backgrounds = ["cloud"]', "backgrounds: choose from"),
        ("dncnn", "patch_px = 40", "", "patch_px"),
        ("dncnn", "patch_px = 40", "patch_px = 2", "patch_px"),
        ("dncnn", "patch_px = 40", "patch_px = 257", "patch_px: 3 to 256"),
        ("dncnn", "calibration_frames = 2", "calibration_frames = 2" + GATE, "gate"),
        ("coarse", "held_out = 0", "held_out = 4", "held_out"),
        ("coarse", "atoms = 1000", "atoms = 1", "atoms"),
        ("coarse", "learning_rate = 1e-3", "learning_rate = inf", "learning_rate: a finite"),
        ("coarse", "weight_decay = 0.0", "weight_decay = nan", "weight_decay"),
        ("coarse", 'network = "coarse"', 'network = "transformer"', "network: choose from coarse, dncnn"),
        ("coarse", 'name = "tiny"', 'name = "a/b"', "name"),
        ("coarse", 'name = "tiny"', 'name = ""', "name"),
        ("coarse", "seed = 3", 'seed = 3\nhabits = ["snowflake"]', "habits: choose from"),
    ],
)
def test_a_preset_that_cannot_work_is_refused(tmp_path: Path, network: str, was: str, becomes: str, said: str) -> None:
    """While it is read, with its file and key."""
    path = preset_file(tmp_path, network)
    text = path.read_text()
    if "[gate]" in becomes:
        text = text.replace(was, "") + was  # a table stands last
    assert was in text
    path.write_text(text.replace(was, becomes))
    with pytest.raises(ConfigError, match=rf"tiny\.toml: .*{said}"):
        load_preset(str(path))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"architecture": "Transformer"}, "Transformer"),
        ({"architecture": "Coarse", "shape": {"depth": 3}}, "shape .*depth"),
        ({"architecture": "DnCNN", "shape": {"colour": 3}}, "shape .*colour"),
        ({"architecture": "Coarse", "trust": {"stages": 0.1}}, "intercept"),
    ],
)
def test_a_card_that_says_what_cannot_be_is_refused(tmp_path: Path, words: dict[str, object], said: str) -> None:
    """One line with the card's name."""
    path = save_weights(tmp_path / "n.safetensors", coarse.Coarse().state_dict(), Card(name="n", architecture="coarse"))
    write_card(path, msgspec.structs.replace(load_card(path), **words))
    with pytest.raises(ModelError, match=rf"n\.json: .*{said}"):
        Denoiser(model=str(path), device="cpu")
    with pytest.raises(ModelError, match=r"n: its card has no usable trained\.preset"):
        finetune.preset_of(Card(name="n"))


def test_a_path_that_cannot_be_read_or_written_is_one_line_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders that are files, files that are folders, pictures of no kind, texts that are none."""
    (tmp_path / "afile").write_text("")
    (tmp_path / "folder.toml").mkdir()
    for words in (
        ["evaluate", "--json", str(tmp_path / "no" / "e.json")],
        ["evaluate", "--figure", str(tmp_path / "no" / "e.png")],
        ["evaluate", "--figure", str(tmp_path / "e.foo")],
        ["train", "--out", str(tmp_path / "afile")],
        ["train", "--out", str(tmp_path / "afile" / "deeper")],
        ["simulate", "--out", str(tmp_path / "afile")],
        ["train", "--out", str(tmp_path / "x.safetensors")],
        ["denoise", "--out", str(tmp_path / "x.h5"), "image.npy"],
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert f"argument {words[1]}: {words[2]}" in capsys.readouterr().err
    (tmp_path / "latin.toml").write_bytes("name = 'schön'".encode("latin-1"))
    for name in ("folder.toml", "latin.toml"):
        with pytest.raises(ConfigError, match=name):
            load_preset(str(tmp_path / name))
    (tmp_path / "n.json").mkdir()
    with pytest.raises(ModelError, match=r"n\.json"):
        load_card(tmp_path / "n.safetensors")
    (tmp_path / "m.json").write_bytes(b'{"name": "sch\xf6n"}')
    with pytest.raises(ModelError, match=r"m\.json"):
        load_card(tmp_path / "m.safetensors")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "particle").write_text("")
    assert main(["simulate", "--out", str(tmp_path / "in"), "--size", "16", "--tilts", "1", "--atoms", "10"]) == 1
    assert f"{tmp_path / 'in' / 'particle'}: File exists" in capsys.readouterr().err


@pytest.mark.thorough
def test_evaluation_ranks_what_it_should(tmp_path: Path) -> None:
    """Doing nothing is worse than Laplace on films, Laplace worse than the network; one row per estimator and set, no NaN, and a picture.

    An estimator that is named twice, or is there anyway, is judged once.
    """
    report = evaluate.evaluate(["default", "laplace", "default"], frames=4, only=["hard", "clean"], trust_frames=8)
    found = {(score.set_name, score.estimator): score for score in report.scores}
    assert found["hard", "laplace"].mean_db > found["hard", "nothing"].mean_db + 8
    assert found["hard", "default"].mean_db > found["hard", "laplace"].mean_db
    assert found["clean", "nothing"].error_percent < 1e-3
    assert all(np.isfinite([score.mean_db, score.worst_db, score.mean_ssim, score.fine_outside]).all() for score in report.scores)
    assert [(each.estimator, each.frames) for each in report.trusted] == [("default", 8), ("laplace", 8)]
    real = [(each.estimator, each.tilt_deg) for each in report.real]
    assert len(set(real)) == len(real)
    assert "gaussian-process" in evaluate.table(report)
    evaluate.draw("default", tmp_path / "frames.png", frames=4)
    assert (tmp_path / "frames.png").stat().st_size > 10_000


def test_what_is_scored_is_what_would_be_stored() -> None:
    """The offset goes first, as in the daemon: it would eat the digits of float32."""
    (score,) = (s for s in evaluate.evaluate(["laplace"], frames=4, only=["offset 1e4"], trust_frames=0).scores if s.estimator == "laplace")
    denoiser, frames = Denoiser(model="laplace"), sets.frames("offset 1e4", 4)
    stored = [frame.raw.astype(np.float64) - denoiser.subtract(frame.raw).clean - frame.offset for frame in frames]
    decibels = [psnr_db(frame.background, found) for frame, found in zip(frames, stored, strict=True)]
    assert score.mean_db == pytest.approx(np.mean(decibels), abs=1e-3)


@pytest.mark.parametrize("name", sorted(sets.SETS))
def test_every_set_is_what_it_says(name: str) -> None:
    """raw is what unit, offset, clean and background make of it; but for noise."""
    for frame in sets.frames(name, 4):
        expected = (frame.clean + frame.background) * frame.unit + frame.offset
        assert frame.raw.shape == expected.shape
        assert abs(np.median(frame.raw - expected)) < 0.1 * frame.unit


@pytest.fixture(scope="module")
def stored_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series of films with a speckle that the shipped network has not seen."""
    folder = tmp_path_factory.mktemp("stored")
    words = ["simulate", "--out", str(folder / "in"), "--name", "own", "--tilts", "8", "--size", "128", "--cadence", "0", "--seed", "5"]
    assert main(words) == 0
    return taken_in(folder, "laplace") / "own" / "series.h5"


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fine-tuning of few frames and particles: what it decides by, not how well it learns."""
    preset = msgspec.structs.replace(load_preset("default"), judging_frames=2, calibration_frames=4)
    monkeypatch.setattr(finetune, "preset_of", lambda card: preset)
    for name in ("BATCH", "LAID_OVER", "SIMULATED"):
        monkeypatch.setattr(finetune, name, 2)


class SeesVacuum:
    """An estimator that finds no particle, and no background."""

    def estimate(self, raw: Array) -> tuple[Estimate, Image]:
        image = Image(raw)
        return Estimate(np.zeros_like(raw), support=np.zeros(image.blocks.statistics.shape[1:], bool)), image


@pytest.mark.usefixtures("little")
def test_a_network_that_was_tuned_on_stored_series_can_be_used(
    stored_series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "_refuse_if_worse", lambda before, after: None)
    path = finetune.finetune("default", [stored_series], tmp_path / "tuned", steps=2)
    card = load_card(path)
    assert card.name == "default-tuned"
    assert card.trained["from"] == load_card(SHIPPED / "default.safetensors").sha256
    assert np.isfinite(Denoiser(model=str(path), device="cpu").subtract(np.arange(4096.0).reshape(64, 64)).clean).all()


@pytest.mark.usefixtures("little")
def test_a_network_that_was_tuned_is_promoted_only_if_better(stored_series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Better on held-out vacuum and no worse elsewhere, or refused with the figures."""
    monkeypatch.setattr(finetune, "LEARNING_RATE", 1.0)  # a training that can only do harm
    with pytest.raises(ModelError, match=r"not promoted.*real_vacuum_db"):
        finetune.finetune("default", [stored_series], tmp_path / "spoilt", steps=4)
    assert not (tmp_path / "spoilt").exists()


def test_a_network_is_not_tuned_on_too_little(stored_series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts, counts once, by whatever path it is named."""
    series = Path(shutil.copytree(stored_series.parent, tmp_path / "own")) / stored_series.name
    with h5py.File(series, "r+") as file:
        file[f"{layout.PER_PROJECTION}/superseded"][:3] = 1
    monkeypatch.setattr(finetune, "Denoiser", lambda model: SeesVacuum())
    with pytest.raises(ModelError, match="5 projections with vacuum in 1 series: too few, at least 6"):
        finetune.finetune("default", [series, series.parent / ".." / series.parent.name / series.name], tmp_path / "few")


def test_tuning_says_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another kind of network, or words that do not go together: one line."""
    path = save_weights(tmp_path / "n.safetensors", DnCNN().state_dict(), Card(name="n", architecture="dncnn"))
    with pytest.raises(ModelError, match="this one is a dncnn"):
        finetune.finetune(str(path), [], tmp_path / "x")
    words = ["train", "--out", str(tmp_path / "x"), "--from"]
    for more, said in (
        (["default"], "--series"),
        (["default", "--series", "x.h5", "--resume"], "--resume does not go with --from"),
        (["default", "--series", "x.h5", "--threads", "2"], "--threads does not go with --from"),
        (["default", "--series", "x.h5", "--preset", "default"], "--preset does not go with --from"),
        (["laplace", "--series", "x.h5"], "--from 'laplace': no such network; choose default, dncnn-2019, still, or a path"),
    ):
        assert main([*words, *more]) == 1
        assert said in capsys.readouterr().err


def test_the_exam_of_a_tuned_network_lies_where_the_network_does() -> None:
    """On a GPU as on the CPU; the device "meta", which every machine has, stands for it."""

    class Asked(torch.nn.Module):
        def forward(self, statistics: torch.Tensor, valid: torch.Tensor) -> None:
            raise RuntimeError(f"{statistics.device} {valid.device}")

    exam = CoarseBatch(*torch.zeros(6, 1, 5, 8, 8))
    training = SimpleNamespace(average=Asked(), device=torch.device("meta"))
    with pytest.raises(RuntimeError, match="meta meta"):
        finetune.marks(training, lambda model, device: {}, exam)


def test_weights_are_tensors_and_nothing_else(tmp_path: Path) -> None:
    """A pickle in disguise is refused before anything in it can run."""
    torch.save({"x": 1}, tmp_path / "evil.safetensors")
    with pytest.raises(ModelError, match="safetensors"):
        load_tensors(tmp_path / "evil.safetensors")
