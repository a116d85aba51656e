"""Mutated files of every format through the real reading process: `python -m tests.fuzz 20000` prints the counts."""

from __future__ import annotations

import struct
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from aet_stream.errors import AetError, ReaderDied
from aet_stream.readers.child import Member, ReaderChild, Rules
from aet_stream.readers.looking import Sources
from tests.format_table import fixtures

KINDS = ("cut", "zero tail", "zero hole", "bits", "numbers", "swap", "grown", "noise")


def mutated(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """(what was done, a damaged copy)."""
    kind = str(rng.choice(KINDS))
    data = bytearray(content)
    size = len(data)
    at = int(rng.integers(0, size))
    match kind:
        case "cut":
            data = data[: max(1, at)]
        case "zero tail":  # as a file system leaves it: from a sector's start, or a few pixels before the end
            at = at // 512 * 512 if rng.random() < 0.7 else min(at, size - 16)
            data[at:] = bytes(size - at)
        case "zero hole":
            data[at : at + 512] = bytes(len(data[at : at + 512]))
        case "bits":
            for _ in range(int(rng.integers(1, 12))):
                data[int(rng.integers(0, min(size, 4096) if rng.random() < 0.8 else size))] ^= 1 << int(rng.integers(0, 8))
        case "numbers":
            where = int(rng.integers(0, max(1, min(size - 8, 2048))))
            value = int(rng.choice([0, 1, -1, 2**31 - 1, 2**31, 2**16, 200_000, 2**62]))
            struct.pack_into("<q" if rng.random() < 0.3 else "<I", data, where, value if -1 < value < 2**32 else value % 2**32)
        case "swap":
            other = int(rng.integers(0, size))
            data[at : at + 64], data[other : other + 64] = data[other : other + 64], data[at : at + 64]
        case "grown":
            data += rng.bytes(int(rng.integers(1, 4096)))
        case "noise":
            data[at : at + 256] = rng.bytes(len(data[at : at + 256]))
    return kind, bytes(data)


def bombs(folder: Path) -> Iterator[Path]:
    """Small files that unpack to much, or announce much."""
    import h5py
    import tifffile
    from scipy.io import savemat

    tifffile.imwrite(folder / "bomb.tif", np.zeros((4000, 4000), "<f4"), compression="zlib")
    savemat(folder / "bomb.mat", {"p": np.zeros((3000, 3000, 2), "<f4")}, do_compression=True)
    with h5py.File(folder / "bomb.emd", "w") as file:
        group = file.create_group("data/single")
        group.attrs["emd_group_type"] = 1
        group.create_dataset("data", data=np.zeros((4000, 4000)), chunks=(4000, 4000), compression="gzip")
    header = b"{'descr': '<u2', 'fortran_order': False, 'shape': (8192, 8192), }".ljust(117) + b"\n"
    (folder / "bomb.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header + zlib.compress(bytes(1 << 20)))
    yield from sorted(folder.glob("bomb.*"))


def run(
    count: int,
    folder: Path,
    *,
    seed: int = 0,
    memory_mib: int = 1024,
    timeout_s: float = 10.0,
    told: Callable[[Counter[str]], None] | None = None,
) -> Counter[str]:
    """Counts of what became of `count` damaged files. `WRONG` must stay 0: pixels other than the instrument's, taken without a flag."""
    made = [(what, path) for what, path in fixtures(folder)]
    truth = {path: _images(path) for _, path in made}
    contents = {path: path.read_bytes() for _, path in made}
    counts: Counter[str] = Counter()
    rules = Rules(max_bytes=0, keep="frames")
    reader = ReaderChild(timeout_s=timeout_s, memory_mib=memory_mib, max_file_mib=64, rules=rules)
    rng = np.random.default_rng(seed)
    try:
        for index in range(count):
            _, path = made[index % len(made)]
            kind, content = mutated(contents[path], rng)
            path.write_bytes(content)
            counts["files"] += 1
            counts[_outcome(reader, path, kind, truth[path])] += 1
            path.write_bytes(contents[path])
            if told and index % 500 == 499:
                told(counts)
        for path in bombs(folder):
            counts["files"] += 1
            counts[_outcome(reader, path, "bomb", {})] += 1
        for _, path in made:  # whatever happened before: whole files are read as ever
            assert _outcome(reader, path, "whole", truth[path]) == "taken, right", path
    finally:
        reader.close()
    return counts


def _images(path: Path) -> dict[int, np.ndarray]:
    source = Sources(1 << 30).open(path).source  # with its sidecars: an mdoc may call its images frames
    return {image: source.frames(image) for image in range(source.probe.images)}


def _outcome(reader: ReaderChild, path: Path, kind: str, truth: dict[int, np.ndarray]) -> str:
    """What the watch would have made of it: a refusal, or the pixels of each image that a look finds ready."""
    lost = kind in ("cut", "zero tail", "whole")
    result = "taken, right"
    try:
        look = reader.look(path)
        for unit in look.units[:4]:
            read = reader.read_visit([Member(str(path), unit.image)])[0]
            found = read.pixels[None] if read.extras is None else read.extras
            if not np.array_equal(found, truth.get(unit.image, found)):
                result = f"WRONG after {kind}: {path.name}" if lost else "taken, other values"
    except ReaderDied as error:
        how = "out of time" if "longer than" in str(error) else "out of memory" if "memory" in str(error) else "killed"
        return f"reading process {how}, contained ({kind} {path.suffix})"
    except AetError as error:
        return f"refused: {type(error).__name__}"
    return result


def show(counts: Counter[str]) -> None:
    print("\n".join(f"{number:7d}  {what}" for what, number in sorted(counts.items())), end="\n\n", flush=True)


def main() -> None:
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as name:
        show(run(int(sys.argv[1]), Path(name), seed=seed, told=show))


if __name__ == "__main__":
    main()
