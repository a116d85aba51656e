"""The HDF5 libraries of other years, out of old wheels of h5py: `python -m tests.old_hdf5 FOLDER FILE.h5` says what they find in a file.

The wheels lie in `.venv/old-hdf5` (`.ci/run` fetches them); each brings a libhdf5 of its own: 2.6.0 has 1.8, as MATLAB before R2021b does,
2.10.0 has 1.10. A process can hold one only, and h5py has loaded its own: hence a child.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import pytest

WHEELS = Path(sys.prefix) / "old-hdf5"
READ_ONLY = DEFAULT = 0
STRING, DATASET = 3, 5
"""H5T_STRING, H5I_DATASET"""


def unpacked(h5py_version: str, folder: Path) -> Path:
    """A folder with the libraries of one wheel."""
    wheels = list(WHEELS.glob(f"h5py-{h5py_version}-*.whl"))
    if not wheels:
        pytest.skip(f"no wheel of h5py {h5py_version} in {WHEELS} (.ci/run fetches it)")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith("h5py/.libs/")])
    return folder / "h5py" / ".libs"


def found_by(libraries: Path, file: Path) -> dict[str, Any]:
    """What an old library finds: its version, and each dataset with its shape and the SHA-256 of its bytes (of text: the text)."""
    command = [sys.executable, "-m", "tests.old_hdf5", str(libraries), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def found_by_h5py(path: Path) -> dict[str, Any]:
    """The same, by the h5py of today."""
    found: dict[str, Any] = {}

    def add(name: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset):
            value = item[()]
            said = value.decode() if isinstance(value, bytes) else hashlib.sha256(value.tobytes()).hexdigest()
            found[name] = [list(item.shape), said]

    with h5py.File(path) as file:
        file.visititems(add)
    return found


class _Library:
    """As much of the C interface as it takes."""

    def __init__(self, libraries: Path) -> None:
        for name in ("libz-*", "libaec-*", "libsz-*"):
            for path in libraries.glob(name):
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        self._c = ctypes.CDLL(str(next(libraries.glob("libhdf5-*"))))
        numbers = [ctypes.c_uint() for _ in range(3)]
        self._c.H5open()
        self._c.H5get_libversion(*map(ctypes.byref, numbers))
        self.version = tuple(number.value for number in numbers)
        self.identifier = ctypes.c_int64 if self.version >= (1, 10, 0) else ctypes.c_int

    def call(self, name: str, *arguments: Any) -> int:
        """A function that answers with an identifier, a size or a status; negative is a failure."""
        function = getattr(self._c, name)
        function.restype = ctypes.c_int64 if name in ("H5Tget_size", "H5Sget_simple_extent_npoints") else self.identifier
        answer = int(function(*(self.identifier(a) if isinstance(a, int) else a for a in arguments)))
        if answer < 0:
            raise SystemExit(f"{name}{arguments} failed")
        return answer

    def datasets(self, file: int) -> list[str]:
        """Names of all datasets, each once, as h5py visits them."""
        names: list[str] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, self.identifier, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p)

        def visit(_file: int, name: bytes, _info: int, _data: int) -> int:
            names.append(name.decode())
            return 0

        walk = getattr(self._c, "H5Ovisit" if self.version < (1, 10, 3) else "H5Ovisit1")
        walk.argtypes = [self.identifier, ctypes.c_int, ctypes.c_int, kind, ctypes.c_void_p]
        walk(file, 0, 0, kind(visit), None)
        return [name for name in names if self._is_dataset(file, name)]

    def _is_dataset(self, file: int, name: str) -> bool:
        item = self.call("H5Oopen", file, name.encode(), DEFAULT)
        return self.call("H5Iget_type", item) == DATASET

    def read(self, file: int, name: str) -> list[Any]:
        dataset = self.call("H5Dopen2", file, name.encode(), DEFAULT)
        kind, space = self.call("H5Dget_type", dataset), self.call("H5Dget_space", dataset)
        count, rank = self.call("H5Sget_simple_extent_npoints", space), self.call("H5Sget_simple_extent_ndims", space)
        shape = (ctypes.c_uint64 * max(1, rank))()
        self.call("H5Sget_simple_extent_dims", space, shape, None)
        if self.call("H5Tget_class", kind) == STRING and self.call("H5Tis_variable_str", kind):
            text = ctypes.c_char_p()
            self.call("H5Dread", dataset, kind, DEFAULT, DEFAULT, DEFAULT, ctypes.byref(text))
            return [[], (text.value or b"").decode()]
        content = ctypes.create_string_buffer(count * self.call("H5Tget_size", kind))
        self.call("H5Dread", dataset, kind, DEFAULT, DEFAULT, DEFAULT, content)
        return [list(shape[:rank]), hashlib.sha256(content.raw).hexdigest()]


def main(libraries: str, path: str) -> None:
    library = _Library(Path(libraries))
    file = library.call("H5Fopen", path.encode(), READ_ONLY, DEFAULT)
    print(json.dumps({"version": library.version, "datasets": {name: library.read(file, name) for name in library.datasets(file)}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
