"""What goes wrong in practice: each ends in one clear line or a quarantine record, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from aet_stream.cli import main
from aet_stream.errors import AetError
from aet_stream.hub.ledger import summary
from aet_stream.readers.child import ReaderChild
from aet_stream.simulate.writers import mdoc, mrc, npy, tiff
from tests.harness import Daemon, known_image, plain_rows, put, running, wait_for
from tests.rehearsal import Rehearsal


@pytest.fixture(scope="module")
def reader() -> Iterator[ReaderChild]:
    child = ReaderChild(timeout_s=60, memory_mib=4096, max_file_mib=64)
    yield child
    child.close()


def totals(daemon: Rehearsal) -> tuple[int, int, int, int]:
    """Stored, held, quarantined, duplicates, when nothing moves any more."""
    found = daemon.run().core.ledger.totals()
    return found.stored, found.held, found.quarantined, found.duplicates


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("watch.settel_s=3", "unknown key `watch.settel_s`"),
        ("wach.root=x", "unknown key `wach`"),
        ("watch.scan_s=fast", "watch.scan_s"),
        ("denoise.workers=0", "denoise.workers"),
        ("angle.filename_regex=(", "angle.filename_regex"),
        ("watch.root=", "watch.root is not set"),
        ("output.root={root}/out", "inside watch.root"),
    ],
)
def test_a_wrong_setting_refuses_to_start_and_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, words: str
) -> None:
    """Unknown keys, wrong types, impossible values, results that would be taken for input: exit code 2 and one line."""
    daemon = Daemon(tmp_path)
    assert main(["run", *daemon.set, "--set", setting.format(root=daemon.root)]) == 2
    line = capsys.readouterr().err.strip()
    assert words in line
    assert "\n" not in line


@pytest.mark.parametrize("command", ["editions", "film"])
def test_a_file_that_is_no_series_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Not only the setting that a name would need."""
    assert main([command, str(tmp_path / "trial.h5")]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith(f"aet-stream {command}: {tmp_path / 'trial.h5'}: no series.h5")
    assert "output.root" in line


def test_a_wrong_option_shows_those_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The usage of the command, not of all of them; exit code 2."""
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "--model", "mine.safetensors"])
    said = capsys.readouterr().err
    assert said.startswith("usage: aet-stream evaluate ")
    assert said.strip().endswith("aet-stream evaluate: error: unrecognized arguments: --model")


def test_a_folder_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    """The microscope's share comes up later: the daemon says so, waits, and takes what is in it."""
    later = tmp_path / "later"
    daemon = Daemon(tmp_path)
    daemon.root.rmdir()
    daemon.start()
    try:
        wait_for(lambda: "is not there: waiting for it" in daemon.log.read_text(), what="a word about the folder")
        wait_for(lambda: "NOT WORKING  the watched folder is not there" in daemon.ask("status").stdout, what="the same from status")
        put(later / "np", 0, 1.0)
        later.rename(daemon.root)
        daemon.wait_for_totals(stored=1)
        assert f"watch.root {daemon.root} is there again" in daemon.log.read_text()
        wait_for(lambda: "NOT WORKING" not in daemon.ask("status").stdout, what="nothing wrong any more")
    finally:
        assert daemon.stop() == 0


def test_a_folder_that_never_comes_is_no_success(tmp_path: Path) -> None:
    """A nightly `--until-idle --strict` over a share that is not mounted: it ends, and not as if all were well."""
    daemon = Daemon(tmp_path)
    daemon.root.rmdir()
    assert daemon.run("--until-idle", "1", "--strict") == 3
    assert f"watch.root {daemon.root} is not there: nothing was looked at" in daemon.log.read_text()


def test_a_taken_port_degrades_the_monitor_and_nothing_else(tmp_path: Path) -> None:
    """Port taken: intake runs, the monitor is reported as degraded."""
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        with running(tmp_path, monitor__enabled=True, monitor__port=port) as daemon:
            put(daemon.root / "np", 0, 5.0)
            daemon.wait_for_totals(stored=1)

            def degraded() -> str:
                return str(
                    daemon.status()["roles"].get("supervisor", {}).get("status", {}).get("roles", {}).get("monitor", {}).get("degraded")
                )

            wait_for(lambda: "exit code" in degraded(), what="a degraded monitor")
            assert "PLEASE LOOK  monitor ended with exit code 1" in daemon.ask("status").stdout
        assert f"port {port} on 127.0.0.1 cannot be used" in daemon.log.read_text()


def test_a_second_instance_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    """Two daemons on one output would corrupt it."""
    with running(tmp_path) as daemon:
        put(daemon.root / "np", 0, 5.0)
        daemon.wait_for_totals(stored=1)
        second = subprocess.run(daemon.command("run", *daemon.set), capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 4
        assert "runs already" in second.stderr
        assert "\n" not in second.stderr.strip()
        put(daemon.root / "np", 1, 6.0)
        daemon.wait_for_totals(stored=2)


def test_bad_files_are_quarantined_with_a_reason_and_good_ones_go_on(tmp_path: Path) -> None:
    """Truncated, garbage, empty, NaN: one record each that a person understands; the source stays as it is."""
    daemon = Daemon(tmp_path)
    folder = daemon.root / "np"
    for index in range(3):
        put(folder, index, float(index))
    whole = tiff(known_image(9), 0.0, 0.1)
    spoiled = known_image(8).astype("<f4")
    spoiled[3, 4] = np.nan
    bad = {
        "cut_+10.00deg.tif": (whole[: len(whole) // 2], "bytes"),
        "noise_+11.00deg.tif": (os.urandom(500), "not a TIFF"),
        "empty_+12.00deg.tif": (b"", "empty"),
        "nan_+13.00deg.npy": (npy(spoiled, 0.0, 0.1), "1 of 4096 pixels are not finite"),
    }
    for name, (content, _) in bad.items():
        (folder / name).write_bytes(content)
    assert daemon.run("--until-idle", "2", "--strict") == 3
    records = {entry["path"]: entry for entry in (json.loads(path.read_text()) for path in (daemon.out / "quarantine").glob("*.json"))}
    assert set(records) == {f"np/{name}" for name in bad}
    for name, (content, words) in bad.items():
        assert words in records[f"np/{name}"]["reason"]
        assert (folder / name).read_bytes() == content
    assert len(plain_rows(daemon.out / "np" / "series.h5")) == 3
    text = daemon.ask("status").stdout
    assert all(name in text for name in bad)


def test_names_that_are_no_text_stop_nobody(tmp_path: Path, reader: ReaderChild, capsys: pytest.CaptureFixture[str]) -> None:
    """Names in Latin-1, as old acquisition computers write them: images are quarantined with the remedy, others do not matter."""
    with Rehearsal(tmp_path, reader) as daemon:
        folder = os.fsencode(put(daemon.root / "s", 0, 1.0).parent)
        (daemon.root / "t").mkdir()
        image = put(daemon.root / "t", 1, 2.0).read_bytes()
        Path(os.fsdecode(folder + b"/D\xe9")).mkdir()
        for name, content in {
            b"Pt\xe9.jpg": b"x",
            b"Pt\xe9.csv": b"x",
            b"Pt\xe9_+3.00deg.tif": image,
            b"D\xe9/x_+4.00deg.tif": image,
        }.items():
            Path(os.fsdecode(folder + b"/" + name)).write_bytes(content)
        assert totals(daemon) == (2, 0, 2, 0)
        put_aside = summary(daemon.core.ledger).quarantined
        assert {row.path for row in put_aside} == {"s/Pt\ufffd_+3.00deg.tif", "s/D\ufffd/x_+4.00deg.tif"}
        assert all("is not UTF-8" in row.reason and row.remedy == "rename it" for row in put_aside)
        put(daemon.root / "s", 5, 5.0)
        assert totals(daemon) == (3, 0, 2, 0)
    main(["check", str(daemon.root / "s")])
    said = capsys.readouterr().out
    assert said.count("is not UTF-8; rename it") == 2
    assert "2 would be stored, 2 would be quarantined" in said


def test_a_mended_file_leaves_quarantine_by_itself(tmp_path: Path, reader: ReaderChild) -> None:
    """The microscope finishes a file late: it is read again, and the record is gone."""
    whole = tiff(known_image(0), 0.0, 0.1)
    path = tmp_path / "in" / "np" / "late_+3.00deg.tif"
    path.parent.mkdir(parents=True)
    path.write_bytes(whole[:3000])
    with Rehearsal(tmp_path, reader) as daemon:
        assert totals(daemon) == (0, 0, 1, 0)
        path.write_bytes(whole)
        assert totals(daemon) == (1, 0, 0, 0)
        assert not list((daemon.out / "quarantine").glob("*.json"))


def test_an_angle_in_doubt_holds_the_projection_until_a_person_speaks(
    tmp_path: Path, reader: ReaderChild, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing, impossible or contradicted: never guessed, visible in status, released by command."""
    doubts = {"probe.tif": "no tilt angle", "probe_1000000000deg.tif": "outside", "probe_+10deg.mrc": "disagree"}
    with Rehearsal(tmp_path, reader) as daemon:
        folder = daemon.root / "np"
        folder.mkdir()
        (folder / "probe_+10deg.mrc.mdoc").write_bytes(mdoc("probe_+10deg.mrc", [25.0], 0.1))
        for number, name in enumerate(doubts):
            (folder / name).write_bytes((mrc if name.endswith(".mrc") else tiff)(known_image(number), 0.0, 0.1))
        assert totals(daemon) == (0, 3, 0, 0)
        held = {Path(row.path).name: row for row in summary(daemon.core.ledger).held}
        assert main(["status", "--set", f"output.root={daemon.out}"]) == 0
        shown = capsys.readouterr().out
        for name, words in doubts.items():
            assert words in held[name].reason
            assert name in shown
        ids = [held[name].id for name in doubts]
        with pytest.raises(AetError, match="between"):
            daemon.ask("release", ids=ids[:1], tilt_deg=1e9)
        daemon.ask("release", ids=ids, tilt_deg=12.5)
        assert totals(daemon) == (3, 0, 0, 0)
        assert [tilt for tilt, _, _ in plain_rows(daemon.out / "np" / "series.h5").values()] == [12.5] * 3


def test_a_late_sidecar_releases_a_held_projection(tmp_path: Path, reader: ReaderChild) -> None:
    """SerialEM writes the mdoc after the image: held for a moment, then stored at its tilt."""
    path = tmp_path / "in" / "np" / "image.mrc"
    path.parent.mkdir(parents=True)
    path.write_bytes(mrc(known_image(0), 0.0, 0.1))
    with Rehearsal(tmp_path, reader) as daemon:
        assert totals(daemon) == (0, 1, 0, 0)
        path.with_name("image.mrc.mdoc").write_bytes(mdoc("image.mrc", [-33.0], 0.1))
        assert totals(daemon) == (1, 0, 0, 0)
        ((tilt, _, _),) = plain_rows(daemon.out / "np" / "series.h5").values()
        assert tilt == -33.0


def test_the_same_image_under_another_name_is_recorded_once(tmp_path: Path, reader: ReaderChild) -> None:
    """A copy at the same tilt is a duplicate; the same pixels at another tilt are not."""
    folder = tmp_path / "in" / "np"
    put(folder, 0, 5.0)
    with Rehearsal(tmp_path, reader) as daemon:
        assert totals(daemon) == (1, 0, 0, 0)
        shutil.copy(folder / "image_000_+5.00deg.tif", folder / "copy_+5.00deg.tif")
        put(folder, 1, 6.0, pixels=known_image(0))
        assert totals(daemon) == (2, 0, 0, 1)


def test_a_retake_under_the_same_name_supersedes_the_first(tmp_path: Path, reader: ReaderChild) -> None:
    """New pixels under the same path are a new projection; the older stays, marked."""
    path = put(tmp_path / "in" / "np", 0, 5.0)
    with Rehearsal(tmp_path, reader) as daemon:
        assert totals(daemon) == (1, 0, 0, 0)
        path.write_bytes(tiff(known_image(1), 0.0, 0.1))
        assert totals(daemon) == (2, 0, 0, 0)
        with h5py.File(daemon.out / "np" / "series.h5") as file:
            assert file["/aet/projection/superseded"][()].tolist() == [1, 0]


def test_a_late_file_reopens_a_closed_series(tmp_path: Path, reader: ReaderChild) -> None:
    """Closed means one contiguous file; one more projection opens it again and it can be closed again."""
    with Rehearsal(tmp_path, reader) as daemon:
        series = daemon.out / "np" / "series.h5"
        for index in range(3):
            put(daemon.root / "np", index, float(index))
        assert totals(daemon) == (3, 0, 0, 0)
        daemon.until_done("close", series="np")
        with h5py.File(series) as file:
            assert not file["/exchange/data"].is_virtual
        put(daemon.root / "np", 3, 3.0)
        assert totals(daemon) == (4, 0, 0, 0)
        assert len(plain_rows(series)) == 4
        daemon.until_done("close", series="np")
        assert main(["verify", str(series)]) == 0
        with pytest.raises(AetError):
            daemon.ask("close", series="nothing")


def test_an_unreadable_file_waits_for_permission(tmp_path: Path) -> None:
    """Not ours to read: said once, quarantined after a while, taken when allowed."""
    if os.geteuid() == 0:
        pytest.skip("root may read any file")
    with running(tmp_path) as daemon:
        path = put(daemon.root / "np", 0, 5.0)
        path.chmod(0)
        daemon.wait_for_totals(quarantined=1)
        path.chmod(0o644)
        path.touch()
        daemon.wait_for_totals(stored=1, quarantined=0)


def test_status_works_with_the_daemon_down(tmp_path: Path) -> None:
    """What was stored is known without a daemon; commands that need one say so."""
    daemon = Daemon(tmp_path)
    put(daemon.root / "np", 0, 5.0)
    assert daemon.run("--until-idle", "1", "--strict") == 0
    text = daemon.ask("status")
    assert text.returncode == 0
    assert "not running" in text.stdout
    assert "1 stored" in text.stdout
    refused = daemon.ask("close", "np")
    assert refused.returncode == 1
    assert "no daemon" in refused.stderr


def test_verify_finds_a_flipped_bit_and_a_missing_source(
    tmp_path: Path, reader: ReaderChild, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain readers would see wrong pixels or NaN without an error; verify does not."""
    with Rehearsal(tmp_path, reader) as daemon:
        for index in range(3):
            put(daemon.root / "np", index, float(index))
        assert totals(daemon) == (3, 0, 0, 0)
        series, projections = daemon.out / "np" / "series.h5", daemon.out / "np" / "projections"
        assert main(["verify", str(series)]) == 0
        copy = tmp_path / "copy.h5"
        shutil.copy(series, copy)
        monkeypatch.chdir(series.parent)
        assert main(["verify", str(copy)]) == 1  # though HDF5 finds the projections in the current folder
        assert "are not beside it" in capsys.readouterr().out
        content = bytearray((projections / "000001.h5").read_bytes())
        content[len(content) // 2] ^= 1
        (projections / "000001.h5").write_bytes(content)
        (projections / "000002.h5").unlink()
        assert main(["verify", str(series)]) == 1
        said = capsys.readouterr().out
        assert "row 1" in said
        assert "row 2" in said
