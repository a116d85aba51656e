"""What all tests share."""

from __future__ import annotations

import compileall
import gc
import os
import sys
from pathlib import Path

import pytest

import aet_stream

LONGEST = (
    "test_page", "test_cokriging", "test_training", "test_offload", "test_denoise", "test_batch", "test_tilt_axis", "test_atoms_step",
    "test_pruning", "test_campaign", "test_failpoints", "test_odd", "test_recovery", "test_atoms", "test_monitor", "test_reconstruct",
    "test_triggers", "test_editions", "test_elsewhere", "test_wrong_things", "test_booted_systemd", "test_report", "test_real_input",
    "test_survives_kills", "test_film", "test_crash_states", "test_relay", "test_align", "test_growing", "test_formats", "test_doctor",
    "test_turns", "test_outbox", "test_readers", "test_euler", "test_files", "test_arrival", "test_queue", "test_monitor_security",
    "test_systemd_unit", "test_mixtures", "test_on_dask", "test_bursts", "test_supervisor", "test_other_tools",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Bytecode is kept, though the environment may forbid it: some hundred processes would compile ours anew, each worker all tests.

    Garbage is not looked for while tests are collected: in vain, that took a third of the time.
    """
    gc.disable()
    sys.dont_write_bytecode = False
    if not hasattr(config, "workerinput"):  # not again in every worker of xdist
        compileall.compile_dir(str(Path(aet_stream.__file__).parent), quiet=2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules first: begun last, one would go on long after all others have ended."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """What has been imported and collected stays: nobody need look through it again."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of third-party data; the test skips where it is absent."""
    name = os.environ.get("AET_STREAM_TEST_DATA", "")
    if not name:
        pytest.skip("AET_STREAM_TEST_DATA is not set: no third-party data here")
    folder = Path(name)
    if not folder.is_dir():
        pytest.skip(f"AET_STREAM_TEST_DATA={name} is no folder")
    return folder
