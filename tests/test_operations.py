"""The commands that docs/operations.md prints do what it says."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from aet_stream.cli import main
from aet_stream.config_file import load

PAGE = (Path(__file__).parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]
IN_TEXT = re.findall(r"`aet-stream (install-service [^`]*)`", PAGE)
NOT_OURS = ("python3 -m venv", "python3 -m pip", "/opt/aet-stream/bin/pip", "systemctl")


def test_the_commands_work_in_the_order_in_which_they_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With folders of the test's in the place of /microscope, /data/aet and /; those of pip and systemctl are not ours to run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aet_stream.cli.set_up_logging", lambda *words, **more: None)
    (tmp_path / "microscope").mkdir()
    root = tmp_path / "root"
    ours = [line for line in LINES if line.startswith("aet-stream ")]
    assert [line for line in LINES if line not in ours and not line.startswith(NOT_OURS)] == []
    program = tmp_path / "bin" / "aet-stream"
    program.parent.mkdir()
    program.touch(0o755)
    for line in [*ours, *(f"aet-stream {words}" for words in IN_TEXT)]:
        command, _, file = line.replace("=/", f"={tmp_path}/").partition(" > ")
        words = shlex.split(command)[1:]
        with monkeypatch.context() as patch:
            if words[0].endswith("-service"):
                words += ["--root", str(root)]
                patch.setattr(sys, "executable", str(program.with_name("python")))
            assert main(words) == 0, line
        said = capsys.readouterr().out
        if file:
            Path(file).write_text(said)
    assert load(root / "etc/aet-stream/config.toml", []).watch.root == str(tmp_path / "microscope")
    assert load(root / "etc/aet-stream/tem1.toml", []).output.root == str(tmp_path / "data/aet")
    assert (root / "etc/systemd/system/aet-stream-relay.service").exists()
    assert (root / "etc/aet-stream/worker.key").stat().st_mode & 0o777 == 0o600
