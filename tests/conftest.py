"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


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
