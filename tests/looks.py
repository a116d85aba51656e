"""One look at a file as the reading process takes it, in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from aet_stream.readers import open_source
from aet_stream.readers.looking import Look, Sources, look
from tests.harness import known_image

IMAGE = known_image(1, 48)[:, :40]


def looked(path: Path) -> Look:
    """What the reading process would say of it."""
    return look(Sources(1 << 30), path, (), lenient=False)


def pixels_of(path: Path) -> list[np.ndarray]:
    """Every image of a file."""
    source = open_source(path)
    return [source.frames(image)[0] for image in range(source.probe.images)]


def is_read(path: Path, tilt_deg: float | None = -34.5) -> str:
    """The one image of a file is IMAGE, at this tilt; returns what is remarked upon."""
    (unit,) = looked(path).units
    assert unit.acquisition.tilt_deg == tilt_deg
    assert np.array_equal(pixels_of(path), [IMAGE])
    return unit.remark
