"""What RosettaSciIO reads from files, as JSON: `python -m tests.rosetta FILE...`. It is GPL: a process of its own.

Of each file either {"refused": reason} or {"signals": [...]}, one per signal: shape and dtype of its data, SHA-256 of each plane (its last
two axes, little-endian, C order) and of its transpose, steps and units of these axes, and the stage's alpha in degrees where it has one.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

#: Suffix -> its module; chosen here, because its own choice would try forty readers.
READERS = {
    ".dm3": "digitalmicrograph", ".dm4": "digitalmicrograph", ".ser": "tia", ".emd": "emd", ".mrc": "mrc", ".st": "mrc", ".map": "mrc",
    ".rec": "mrc", ".ali": "mrc", ".tif": "tiff", ".tiff": "tiff",
}  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """What it says of one file."""
    module = importlib.import_module(f"rsciio.{READERS[path.suffix.lower()]}")
    try:
        return {"signals": [_signal(signal) for signal in module.file_reader(str(path)) if np.ndim(signal["data"]) >= 2]}
    except Exception as error:  # noqa: BLE001 - whatever it raises is its refusal
        return {"refused": f"{type(error).__name__}: {str(error)[:200]}"}


def _signal(signal: dict[str, Any]) -> dict[str, Any]:
    data = np.asarray(signal["data"])
    planes = data.reshape(-1, *data.shape[-2:])
    axes = [axis for axis in signal["axes"] if axis.get("navigate") is not None][-2:]
    return {
        "shape": data.shape,
        "dtype": data.dtype.newbyteorder("<").str if data.dtype.names is None else "compound",
        "planes": [_sha256(plane) for plane in planes],
        "transposed": [_sha256(plane.T) for plane in planes],
        "steps": [[float(axis.get("scale", 0)), str(axis.get("units") or "")] for axis in axes],
        "tilt_deg": _tilt(signal),
    }


def _sha256(plane: np.ndarray) -> str:
    if plane.dtype.names is not None:
        return ""
    return hashlib.sha256(np.ascontiguousarray(plane, plane.dtype.newbyteorder("<")).tobytes()).hexdigest()


def _tilt(signal: dict[str, Any]) -> float | None:
    """Where its mapping from the file's own names leads to the stage's tilt, or where it has put it itself."""
    for source, target in (signal.get("mapping") or {}).items():
        place, convert = target if isinstance(target, tuple) else (target, None)
        if str(place).endswith("tilt_alpha"):
            value = _at(signal.get("original_metadata"), source)
            if value is not None:
                return float(convert(value) if convert else value)
    value = _at(signal.get("metadata"), "Acquisition_instrument.TEM.Stage.tilt_alpha")
    return None if value is None else float(value)


def _at(tree: Any, place: str) -> Any:
    for name in place.split("."):
        tree = tree.get(name, tree.get(name.replace("_", " "))) if isinstance(tree, dict) else None
    return tree


def main() -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    print(json.dumps({name: read(Path(name)) for name in sys.argv[1:]}))


if __name__ == "__main__":
    main()
