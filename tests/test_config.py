"""Settings: every key in one place, and mistakes named."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from aet_stream import newer_than
from aet_stream.cli import main
from aet_stream.config import Config
from aet_stream.config_file import load, require_folders
from aet_stream.config_text import as_toml
from aet_stream.doctor.settings import troubles
from aet_stream.errors import ConfigError
from tests.harness import put

EXAMPLE = Path(__file__).parent.parent / "config.toml"


def test_the_example_is_what_config_writes(capsys: pytest.CaptureFixture[str]) -> None:
    """config.toml has every key with its default and its meaning; none without words. Written by `aet-stream config > config.toml`."""
    assert main(["config"]) == 0
    written = capsys.readouterr().out
    assert EXAMPLE.read_text(encoding="utf-8") == written
    assert load(EXAMPLE, []) == Config()
    shown = re.findall(r"^# .+\n(?:\w+ = |\w+ = \[\n)", written, re.MULTILINE)
    assert len(shown) == sum(len(table) for table in msgspec.to_builtins(Config()).values())


NEWS = {
    "watch": {"root": "/a b/ü", "exclude": ["*.x"] * 40, "events": False},
    "series": {"pattern": r"""'"\d+(?P<series>\w+)\n\x7f""", "detector": "line\nbreak\ttab", "expected": 7},
    "angle": {"signs": {"−": "-", "a b": "+"}, "scale": -1.0, "tolerance_deg": 1e-17},
    "orientation": {"tilt_axis_deg": 12.5},
    "command": {"argv": ["/bin/sh", "-c", """echo "$0" '\\' """]},
}


def test_what_config_writes_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the values: read back they are the same; --changed writes those alone."""
    given = msgspec.convert(NEWS, Config)
    (tmp_path / "a.toml").write_text(as_toml(given), encoding="utf-8")
    for words in ([], ["--changed"]):
        assert main(["config", "--config", str(tmp_path / "a.toml"), *words]) == 0
        (tmp_path / "b.toml").write_text(capsys.readouterr().out, encoding="utf-8")
        assert load(tmp_path / "b.toml", []) == given
    assert tomllib.loads((tmp_path / "b.toml").read_text(encoding="utf-8")) == NEWS


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("watch.settle_s", ["watch.settle_s = 2.0; default 1.0", "A number from 0", "stand still"]),
        ("frames.keep", ['frames.keep = "moments"', "One of `frames`, `moments`, `none`"]),
        ("supervise", ["[supervise]", "supervise.stop_s", "supervise.stall_s"]),
    ],
)
def test_a_setting_is_explained(capsys: pytest.CaptureFixture[str], key: str, words: list[str]) -> None:
    """Its value, what it may be, what it means."""
    assert main(["config", key, "--set", "watch.settle_s=2.0"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in words)


def test_a_setting_that_is_none_is_told_its_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    """The section forgotten, or a slip of the pen."""
    for wrong in ("settle_s", "watch.setle_s"):
        assert main(["config", wrong]) == 2
        assert "near it: watch.settle_s" in capsys.readouterr().err


def test_one_setting_for_one_run_wins_over_the_file(tmp_path: Path) -> None:
    """--set takes TOML values and bare words."""
    path = tmp_path / "c.toml"
    path.write_text("[denoise]\nmodel = 'laplace'\nworkers = 2\n")
    config = load(path, ["denoise.model=constant", "watch.root=/a b/c", "series.expected=60", 'watch.exclude=["x"]'])
    assert (config.denoise.model, config.denoise.workers) == ("constant", 2)
    assert (config.watch.root, config.series.expected, config.watch.exclude) == ("/a b/c", 60, ("x",))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["watch.settel_s=3"], "settle_s"),
        (["nothing.x=3"], "known here: watch"),
        (["watch.scan_s=0"], "watch.scan_s = 0: expected a number > 0.0"),
        (["series.idle_close_s=inf"], "series.idle_close_s = inf: a finite number is needed"),
        (["angle.min_deg=nan"], "angle.min_deg = nan: a finite number is needed"),
        (["monitor.host=0.0.0.0"], "monitor.host"),
        (["angle.filename_regex=(\\d+)"], "group named `angle`"),
        (["webhook.url=http://h:99999/x"], "webhook.url"),
        (["zeromq.endpoint=127.0.0.1:5"], "tcp://127.0.0.1:5599"),
        (["webhook.url=http://h:abc/x"], "webhook.url"),
        (["webhook.url=http://h/ü"], "webhook.url"),
        (["trigger.again_s=0"], "again_s"),
        (["angle.scale=0.5"], "angle.scale"),
        (["angle.min_deg=10", "angle.max_deg=5"], "below"),
        (["denoise.precision=half"], "denoise.precision = 'half': choose one of auto, float32, bfloat16"),
        (['angle.order=["metadata", "guess"]'], "angle.order[1] = 'guess': choose one of metadata, sidecar, filename"),
        (["denoise.threads=many"], "--set denoise.threads=many: denoise.threads = 'many': expected a whole number"),
        (["angle.signs={n=1}"], "angle.signs[...] = {'n': 1}: expected text"),
        (["watch.exclude=*.tmp"], "watch.exclude = '*.tmp': expected a list [...]"),
        (["nonsense"], "section.key=value"),
    ],
)
def test_a_mistake_is_named_with_what_would_be_right(words: list[str], said: str) -> None:
    """One line with the key, the value and the remedy."""
    with pytest.raises(ConfigError) as caught:
        load(None, words)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    """No file, no TOML, no UTF-8."""
    path = tmp_path / "c.toml"
    for content in (None, b"[watch", b"\xff\xfe"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"c\.toml"):
            load(path, [])


def test_a_settings_file_that_is_not_there_is_easily_made(tmp_path: Path) -> None:
    """The file is named once, with what writes one."""
    path = tmp_path / "c.toml"
    with pytest.raises(ConfigError) as caught:
        load(path, [])
    assert str(caught.value) == f"{path}: there is no such file; `aet-stream config > {path}` writes one with all settings"


def test_a_file_from_any_editor_is_read(tmp_path: Path) -> None:
    """A byte order mark and line ends as Windows writes them change nothing."""
    path = tmp_path / "c.toml"
    path.write_bytes("[denoise]\r\nmodel = 'laplace'\r\n".encode("utf-8-sig"))
    assert load(path, []).denoise.model == "laplace"


@pytest.mark.parametrize(
    "override",
    [
        "output.root=/dev/null/out",
        "denoise.model=defaultt",
        "denoise.device=gpu",
        'readers.enabled=["rsc"]',
        "angle.plan=/no/such/file",
        "monitor.tls_cert=x",
    ],
)
def test_check_refuses_what_run_would(tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str) -> None:
    """What a role would refuse at its start is no valid setting: said by name, not ending with 0."""
    words = [f"watch.root={tmp_path / 'in'}", f"output.root={tmp_path / 'out'}", "monitor.tls_key=x", "monitor.tls_cert=x", override]
    if "tls" not in override:
        words = [word for word in words if "tls" not in word]
    assert main(["check", *(part for word in words for part in ("--set", word))])
    said = capsys.readouterr()
    assert override.split("=")[0] in said.err
    assert "valid" not in said.out


def test_a_wrong_word_of_the_command_line_is_named_as_it_was_said() -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, ["watch.settle_s=abc"])
    assert str(refused.value) == "--set watch.settle_s=abc: watch.settle_s = 'abc': expected a number, got text"


def test_an_output_folder_that_cannot_be_made_names_its_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what it has to be, not the folder alone."""
    (tmp_path / "file").touch()
    assert main(["run", "--set", f"watch.root={tmp_path / 'in'}", "--set", f"output.root={tmp_path / 'file' / 'out'}"]) == 1
    assert "out/run: Not a directory; output.root has to be a folder that this user may make" in capsys.readouterr().err


def test_check_says_once_and_last_what_run_needs_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files can be asked about without any settings; that two are missing for `run` is a hint, not a fault."""
    for index in range(2):
        put(tmp_path, index, 3.0 * index)
    assert main(["check", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "not set, and needed by `run`: watch.root, output.root"
    assert sum("not set" in line for line in lines) == 1
    assert main(["check", str(tmp_path), "--set", f"watch.root={tmp_path}", "--set", f"output.root={tmp_path.parent / 'out'}"]) == 0
    assert "not set" not in capsys.readouterr().out


def test_the_watched_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`..` is none: a series may be called after the folder."""
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    assert load(None, ["watch.root=.."]).watch_root == tmp_path.resolve()
    assert load(None, ["watch.root=."]).watch_root.name == "a"


@pytest.mark.parametrize(("watch", "output"), [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("", "b"), ("a", "")])
def test_input_and_output_must_be_two_folders(tmp_path: Path, watch: str, output: str) -> None:
    """Neither inside the other, links followed."""
    (tmp_path / "a").mkdir()
    words = [f"{key}.root={tmp_path / value if value else ''}" for key, value in (("watch", watch), ("output", output))]
    with pytest.raises(ConfigError):
        require_folders(load(None, words))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(ConfigError):
        require_folders(load(None, [f"watch.root={tmp_path / 'a'}", f"output.root={tmp_path / 'link' / 'out'}"]))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("reconstruct.method=tomopy:mlem", "mlem is refused"),
        ("reconstruct.method=fbp", "choose auto"),
        ('command.argv=["/no/such/program"]', "/no/such/program"),
        ("webhook.secret_file=/no/such/file", "/no/such/file"),
    ],
)
def test_what_would_fail_at_the_end_is_said_at_the_start(override: str, named: str) -> None:
    """One line that names the setting; nothing for settings that will do."""
    (line,) = troubles(load(None, [override]))
    assert override.split("=")[0] in line
    assert named in line
    assert not list(troubles(load(None, [])))


@pytest.mark.parametrize(
    ("text", "limit_s"),
    [
        ("", 0.0),
        ("start", 1e9),
        ("30 d", 1e9 - 30 * 86_400),
        ("1.5h", 1e9 - 5400),
        ("2 weeks", 1e9 - 14 * 86_400),
        ("90 min", 1e9 - 5400),
        ("1970-01-02T00:00:00+00:00", 86_400.0),
        ("100000 d", 0.0),
    ],
)
def test_from_when_on_files_are_wanted(text: str, limit_s: float) -> None:
    """Everything, from the first start, or so long before it; or from a date."""
    assert newer_than.limit_s(text, 1e9) == limit_s


def test_a_date_needs_no_quotes(tmp_path: Path) -> None:
    """TOML has dates of its own; what is none is refused with what would be right."""
    path = tmp_path / "config.toml"
    path.write_text("[watch]\nnewer_than = 2026-03-01\n")
    assert load(path, []).watch.newer_than == load(None, ["watch.newer_than=2026-03-01"]).watch.newer_than == "2026-03-01"
    for wrong in ("yesterday", "30", "5 parsecs", "2026-13-01"):
        with pytest.raises(ConfigError, match=f"watch.newer_than '{wrong}': write"):
            load(None, [f"watch.newer_than='{wrong}'"])
