"""`aet-stream doctor` finds what was planted, and says what to do; where nothing is wrong it says nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from aet_stream.cli import main
from aet_stream.config_file import load
from aet_stream.denoise import denoiser
from aet_stream.denoise.weights_file import SHIPPED
from aet_stream.doctor import examine, folders, surroundings
from aet_stream.elsewhere.keys import KeyRing
from aet_stream.hub.ledger import Ledger
from aet_stream.projection import Array, Subtracted
from tests.fuse import share
from tests.harness import ENVIRONMENT, put, running, wait_for

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


class Scene:
    """A workstation where all is well, until a fault is planted."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.watch, self.out = folder / "in", folder / "out"
        self.out.mkdir()
        Ledger(self.out / "ledger.sqlite").close()
        for index in range(2):
            put(self.watch / "np", index, 3.0 * index)
        self.set = {"watch.root": str(self.watch), "output.root": str(self.out), "denoise.model": "laplace", "monitor.port": 0}
        self.set["relay.listen"] = "tcp://127.0.0.1:0"
        ring = KeyRing(load(None, [f"output.root={self.out}"]))
        ring.allow("lab2", ring.own().public)
        self.before: tuple[str, ...] = ()
        """Of a command that is put before ours; empty: in this process."""
        self.clean_up = contextlib.ExitStack()

    def words(self, check: str) -> list[str]:
        settings = [word for key, value in self.set.items() for word in ("--set", f"{key}={json.dumps(value)}")]
        return ["doctor", "--json", "--only", check, *settings]

    def examine(self, check: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, str]]]:
        """(exit code, findings) of one check."""
        if self.before:
            command = [*self.before, sys.executable, "-m", "aet_stream", *self.words(check)]
            done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False)
            code, said = done.returncode, done.stdout
            assert said, done.stderr
        else:
            code, said = main(self.words(check)), capsys.readouterr().out
        return code, [finding for result in json.loads(said)["results"] for finding in result["findings"]]

    def mount(self, folder: Path, options: str) -> None:
        folder.mkdir(exist_ok=True)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False).returncode:
            pytest.skip("nothing may be mounted here")
        self.clean_up.callback(subprocess.run, ["umount", "-l", str(folder)], check=False)

    def as_one_who_may_not_do_all(self) -> None:
        """Rights of files count for root too."""
        if os.geteuid() == 0:
            self.before = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")

    def limited(self, *words: str) -> None:
        self.before = ("sh", "-c", f'{" ".join(words)}; exec "$0" "$@"')


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(surroundings, "UNITS", tmp_path / "units")
    found = Scene(tmp_path, monkeypatch)
    with found.clean_up:
        yield found


# -- faults -----------------------------------------------------------------------------------------------------------------------


def unknown_key(scene: Scene) -> None:
    scene.set["watch.settel_s"] = 3


def output_inside_input(scene: Scene) -> None:
    scene.set["output.root"] = str(scene.watch / "out")


def program_missing(scene: Scene) -> None:
    scene.set["command.argv"] = ["/no/such/program"]


def token_for_all(scene: Scene) -> None:
    (scene.out / "run" / "monitor.token").write_text("x" * 43)
    (scene.out / "run" / "monitor.token").chmod(0o644)


def watched_gone(scene: Scene) -> None:
    shutil.rmtree(scene.watch)


def watched_closed_to_us(scene: Scene) -> None:
    (scene.watch / "np").chmod(0)
    scene.clean_up.callback((scene.watch / "np").chmod, 0o755)
    scene.as_one_who_may_not_do_all()


def share_dead(scene: Scene) -> None:
    table = tuple(named._replace(deadline_s=min(named.deadline_s, 1.0)) for named in examine.CHECKS)
    scene.patch.setattr(examine, "CHECKS", table)
    scene.set["watch.root"] = str(scene.clean_up.enter_context(share(scene.folder / "dead", dead=True)))


def clock_ahead(scene: Scene) -> None:
    os.utime(put(scene.watch / "np", 7, 9.0), (time.time() + 300,) * 2)


def no_inotify(scene: Scene) -> None:
    script = 'echo 0 > /proc/sys/user/max_inotify_instances && exec "$0" "$@"'
    scene.before = ("unshare", "--user", "--map-root-user", "sh", "-c", script)
    if subprocess.run([*scene.before, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace with limits of its own here")


def names_without_tilt(scene: Scene) -> None:
    put(scene.watch / "np", 5, None)


def output_on_a_share(scene: Scene) -> None:
    scene.set["output.root"] = str(scene.clean_up.enter_context(share(scene.folder / "share")))


def output_in_memory(scene: Scene) -> None:
    scene.mount(scene.out, "size=64m")


def output_read_only(scene: Scene) -> None:
    scene.mount(scene.folder / "disk", "size=64m,ro")
    scene.patch.setattr(folders, "_MEMORY", ())
    scene.set["output.root"] = str(scene.folder / "disk" / "out")


def output_closed_to_us(scene: Scene) -> None:
    scene.out.chmod(0o555)
    scene.clean_up.callback(scene.out.chmod, 0o755)
    scene.as_one_who_may_not_do_all()


def slow_disk(scene: Scene) -> None:
    ticks = iter(range(0, 1000, 5))
    scene.patch.setattr(folders.time, "perf_counter", lambda: float(next(ticks)))


def disk_nearly_full(scene: Scene) -> None:
    scene.mount(scene.out, "size=64m")


def no_inodes(scene: Scene) -> None:
    scene.set["output.keep_free_mib"] = 0
    scene.mount(scene.out, "size=8g,nr_inodes=100")


def ledger_damaged(scene: Scene) -> None:
    (scene.out / "ledger.sqlite").write_bytes(b"SQLite format 3\0" + os.urandom(8192))


def run_once_as_another(scene: Scene) -> None:
    if os.geteuid():
        pytest.skip("only root may give files away")
    os.chown(scene.out / "run" / "keys" / "relay.key", 12345, 12345)


def few_descriptors(scene: Scene) -> None:
    scene.limited("ulimit -n 300")


def little_memory(scene: Scene) -> None:
    scene.limited("ulimit -v 4000000")


def many_threads(scene: Scene) -> None:
    scene.set |= {"denoise.workers": 16, "denoise.threads": 64, "denoise.device": "cpu"}


def weights_damaged(scene: Scene) -> None:
    for suffix in (".json", ".safetensors"):
        shutil.copy(SHIPPED / f"dncnn-2019{suffix}", scene.folder)
    with (scene.folder / "dncnn-2019.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    scene.set["denoise.model"] = str(scene.folder / "dncnn-2019.safetensors")


def gpu_that_is_not_there(scene: Scene) -> None:
    scene.set |= {"denoise.model": "dncnn-2019", "denoise.device": "cuda:31"}


class _WrongOnCuda(denoiser.Denoiser):
    """A card that miscounts."""

    def __init__(self, settings: Any) -> None:
        super().__init__(settings, device="cpu")
        self._card = settings.device != "cpu"

    def subtract(self, pixels: Array, **more: Any) -> Subtracted:
        found = super().subtract(pixels, **more)
        if not self._card:
            return found
        clean = found.clean.copy()
        clean[3, 5] = np.nan
        return Subtracted(clean, msgspec.structs.replace(found.quality, device="cuda:0"))


def gpu_that_miscounts(scene: Scene) -> None:
    scene.patch.setattr(denoiser, "Denoiser", _WrongOnCuda)


def no_tomopy(scene: Scene) -> None:
    scene.patch.setitem(sys.modules, "tomopy", None)
    scene.set["reconstruct.method"] = "tomopy:sirt"


def port_taken(scene: Scene) -> None:
    other = scene.clean_up.enter_context(socket.socket())
    other.bind(("127.0.0.1", 0))
    other.listen()
    scene.set["monitor.port"] = other.getsockname()[1]


def list_of_keys_damaged(scene: Scene) -> None:
    (scene.out / "run" / "keys" / "allowed").write_text("lab2 nonsense\n")


def relay_key_for_all(scene: Scene) -> None:
    (scene.out / "run" / "keys" / "relay.key").chmod(0o644)


def relay_port_taken(scene: Scene) -> None:
    holder = scene.clean_up.enter_context(socket.create_server(("127.0.0.1", 0)))
    scene.set["relay.listen"] = f"tcp://127.0.0.1:{holder.getsockname()[1]}"


def nobody_let_in(scene: Scene) -> None:
    (scene.out / "run" / "keys" / "allowed").write_text("")


def proxy_for_all(scene: Scene) -> None:
    scene.patch.setenv("http_proxy", "http://proxy.example:3128")
    scene.patch.delenv("no_proxy", raising=False)
    scene.patch.delenv("NO_PROXY", raising=False)


def unit(scene: Scene, text: str) -> None:
    (scene.folder / "units").mkdir()
    (scene.folder / "units" / "aet-stream.service").write_text(f"[Service]\n{text}\n")


def unit_without_program(scene: Scene) -> None:
    unit(scene, "ExecStart=/no/such/bin/aet-stream run")


def unit_without_user(scene: Scene) -> None:
    unit(scene, f"ExecStart={sys.executable} run\nUser=nobody-of-that-name")


def unit_hidden_by_its_sandbox(scene: Scene) -> None:
    home = Path("/root/.cache/aet-stream-test")
    unit(scene, f"ExecStart={home}/python run\nProtectHome=yes")
    try:
        home.mkdir(parents=True)
    except OSError:
        pytest.skip("no home of root to install into")
    scene.clean_up.callback(shutil.rmtree, home)
    (home / "python").symlink_to(sys.executable)


def weights_hidden_from_the_worker(scene: Scene) -> None:
    unit(scene, f"ExecStart={sys.executable} worker --config x\nProtectHome=yes")
    scene.set["denoise.model"] = "/home/me/mine.safetensors"


@pytest.mark.parametrize(
    ("check", "fault", "state", "said", "remedy"),
    [
        ("settings", unknown_key, "fail", "settel_s", "aet-stream config"),
        ("settings", output_inside_input, "fail", "lies inside watch.root", "set both folders"),
        ("settings", program_missing, "fail", "/no/such/program", "correct that setting"),
        ("secrets", token_for_all, "warn", "can be read by others", "chmod 600"),
        ("watched folder", watched_gone, "fail", "No such file", "mount or make it"),
        ("watched folder", watched_closed_to_us, "fail", "cannot be looked into", "setfacl"),
        pytest.param("watched folder", share_dead, "fail", "no answer within 1 s", "a share whose server is gone", marks=root_only),
        ("clock", clock_ahead, "warn", "clock is ahead", "set both clocks"),
        ("events", no_inotify, "warn", "no inotify instance is left", "fs.inotify.max_user_instances"),
        ("layout", names_without_tilt, "warn", "1 would be held", "aet-stream check"),
        pytest.param("output folder", output_on_a_share, "fail", "fuse.sshfs, a network share", "on a local disk", marks=root_only),
        pytest.param("output folder", output_in_memory, "fail", "lies in memory", "on a disk", marks=root_only),
        pytest.param("output folder", output_read_only, "fail", "read-only", "remount", marks=root_only),
        ("output folder", output_closed_to_us, "fail", "cannot be written to", "chown"),
        ("output folder", slow_disk, "warn", "MiB/s", "faster disk"),
        pytest.param("room", disk_nearly_full, "fail", "nothing is accepted", "make room", marks=root_only),
        pytest.param("room", no_inodes, "fail", "inodes left", "remove small files", marks=root_only),
        ("ledger", ledger_damaged, "fail", "ledger.sqlite", "restart the daemon"),
        ("owners", run_once_as_another, "fail", "belongs to uid 12345", "chown -R"),
        ("descriptors", few_descriptors, "fail", "300 files may be open", "LimitNOFILE"),
        ("memory", little_memory, "fail", "3906 MiB of address space", "ulimit -v unlimited"),
        ("cores", many_threads, "warn", "1024 threads", "denoise.workers"),
        ("background", weights_damaged, "fail", "SHA-256", "install the whole package"),
        ("background", gpu_that_is_not_there, "fail", "no such GPU", "denoise.device"),
        ("background", gpu_that_miscounts, "fail", "differs from the CPU's by nan", "denoise.device to cpu"),
        ("volumes", no_tomopy, "fail", "tomopy does not import", "conda env create"),
        ("page", port_taken, "fail", "Address already in use", "monitor.port"),
        ("workers elsewhere", list_of_keys_damaged, "fail", "no `NAME PUBLIC-KEY`", "correct that"),
        ("workers elsewhere", relay_key_for_all, "fail", "chmod 600", "the relay then starts"),
        ("workers elsewhere", relay_port_taken, "fail", "Address already in use", "a free port"),
        ("workers elsewhere", nobody_let_in, "warn", "no computer is let in", "aet-stream keys allow"),
        ("secrets", relay_key_for_all, "warn", "relay.key can be read by others", "chmod 600"),
        ("proxies", proxy_for_all, "warn", "requests for 127.0.0.1 go there", "no_proxy"),
        ("units", unit_without_program, "fail", "/no/such/bin/aet-stream is not there", "ExecStart"),
        ("units", unit_without_user, "fail", "no user nobody-of-that-name", "useradd"),
        ("units", weights_hidden_from_the_worker, "fail", "mine.safetensors lies in a home", "/opt or /srv"),
        pytest.param("units", unit_hidden_by_its_sandbox, "fail", "lies in a home", "/opt/aet-stream", marks=root_only),
    ],
)
def test_it_finds_what_is_wrong(
    scene: Scene, capsys: pytest.CaptureFixture[str], check: str, fault: Callable[[Scene], None], state: str, said: str, remedy: str
) -> None:
    """Nothing before; then the fault by its name, its remedy, and an exit code."""
    if check not in ("output folder", "room"):  # whose disk here may be slow or small
        code, findings = scene.examine(check, capsys)
        assert code == 0, findings
        assert [finding["state"] for finding in findings] == ["ok"]
    fault(scene)
    code, findings = scene.examine(check, capsys)
    found = [finding for finding in findings if finding["state"] == state and said in finding["said"]]
    assert found, findings
    assert remedy in found[0]["remedy"]
    assert code == (state == "fail")


def test_a_daemon_whose_worker_hangs_is_no_healthy_one(tmp_path: Path, scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """Version and roles of one that runs; which of them is silent."""
    with running(tmp_path / "daemon") as daemon:
        worker = daemon.pid("worker-0")
        wait_for(lambda: "worker-0" in daemon.status()["roles"], what="the worker's voice")
        scene.set["output.root"] = str(daemon.out)
        code, (finding,) = scene.examine("daemon", capsys)
        assert (code, finding["state"]) == (0, "ok"), finding
        os.kill(worker, signal.SIGSTOP)
        try:
            wait_for(lambda: daemon.status()["roles"]["worker-0"]["age_s"] > surroundings.STALE_S, what="silence")
            code, (finding,) = scene.examine("daemon", capsys)
            assert (code, finding["state"]) == (1, "fail")
            assert "worker-0 is silent" in finding["said"]
        finally:
            os.kill(worker, signal.SIGCONT)


def test_for_people_it_is_one_line_and_what_to_do(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """Each check by name; a check that is none is refused."""
    watched_gone(scene)
    words = [word for word in scene.words("watched folder") if word != "--json"]
    assert main([*words, "--only", "cores"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("FAIL  watched folder")
    assert lines[1].strip().startswith("-> mount or make it")
    assert lines[2].startswith("ok    cores")
    assert main(["doctor", "--only", "liver"]) == 1
    assert "watched folder" in capsys.readouterr().err


def test_nothing_is_left_behind(scene: Scene) -> None:
    """Both folders are as they were: a file that a look as root has left would keep the daemon out. Nor by `status` and `events`."""
    before = sorted(scene.folder.rglob("*"))
    list(examine.examine(examine.Station(examine_config(scene)), ["output folder", "layout", "room", "ledger", "daemon"]))
    for command in ("status", "events"):
        assert main([command, "--set", f"output.root={scene.out}"]) == 0
    assert sorted(scene.folder.rglob("*")) == before


def examine_config(scene: Scene) -> Any:
    from aet_stream.config_file import load

    return load(None, [f"{key}={json.dumps(value)}" for key, value in scene.set.items()])
