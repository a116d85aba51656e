"""aet_stream: background-free tilt series while the microscope is still writing them.

For scripts and notebooks (api.py has the details):

- `subtract(image)`: one image without its background
- `read(path)`: the images of any file that the daemon reads
- `denoise_file(path, target)`: raw, clean, background and quality of a file's images in one HDF5 file
- `open_series(path)`: a tilt series of the daemon
- `reconstruct(series)`: a volume
- `Projection`, `Acquisition`, `Subtracted`, `Quality`, `Series`, `AetError`: what these take, return and raise
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aet_stream.api import (
        Acquisition,
        AetError,
        Projection,
        Quality,
        Series,
        Subtracted,
        denoise_file,
        open_series,
        read,
        reconstruct,
        subtract,
    )  # fmt: skip

__version__ = "0.1.0"
__all__ = [
    "Acquisition", "AetError", "Projection", "Quality", "Series", "Subtracted",
    "denoise_file", "open_series", "read", "reconstruct", "subtract",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Loaded when first asked for: the daemon's roles import this package too, and most must not load torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
