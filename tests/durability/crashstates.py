"""What the disk may hold after a crash: every file operation of a short life is recorded, and every state that could be left is recovered.

A kill leaves all operations up to some moment, the last write perhaps half done. A power cut leaves, besides everything that was synced, any
part of what was not: writes that are empty, cut, or torn into blocks; names that are there or not (POSIX promises a name only after fsync of
its folder, and promises content only after fsync of the file).
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np

from aet_stream.config import Reconstruct
from aet_stream.errors import AetError
from aet_stream.hub.archive import Archive, open_ledger
from aet_stream.hub.crash_guard import CrashGuard
from aet_stream.hub.ledger import Ledger
from aet_stream.hub.outbox import Outbox
from aet_stream.hub.store import Draft
from aet_stream.projection import VisitKey
from tests.durability.oracle import rows_of
from tests.harness import known_image

PROJECTIONS, SIZE_PX, BLOCK = 5, 16, 512
LEDGER = ("ledger.sqlite", "ledger.sqlite-wal")
_open, _write, _fsync, _replace, _unlink, _mkdir = os.open, os.write, os.fsync, os.replace, os.unlink, os.mkdir


@dataclass
class Op:
    """One operation on a path relative to the output folder."""

    kind: str
    """create, write, sync, rename, unlink, mkdir, told."""
    path: str
    content: bytes = b""
    target: str = ""
    number: int = -1


@dataclass
class Recording:
    """What was done, and the ledger's files after each operation."""

    root: Path
    ops: list[Op] = field(default_factory=list)
    ledgers: list[dict[str, bytes]] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)
    _fds: dict[int, str] = field(default_factory=dict)
    _written: set[str] = field(default_factory=set)

    def add(self, op: Op) -> None:
        self.ops.append(op)
        self.ledgers.append({name: (self.root / name).read_bytes() for name in LEDGER if (self.root / name).exists()})

    def told(self, number: int) -> None:
        """The world has heard of this projection: from here on it must be there."""
        self.add(Op("told", "", number=number))

    def _inside(self, path: Any) -> str | None:
        path = Path(os.path.abspath(path))  # noqa: PTH100 - links must stay links
        name = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else None
        return None if name is None or name.startswith("ledger") else name

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Between Python and the system: what libraries write themselves is taken whole when it is synced."""

        def open_(path: Any, flags: int, *more: Any, **words: Any) -> int:
            descriptor = _open(path, flags, *more, **words)
            if (name := self._inside(path)) is not None:
                self._fds[descriptor] = name
                if flags & os.O_CREAT and not flags & os.O_RDWR:  # else HDF5 writes it, here and there, through hdf5.writing
                    self._known.add(name)
                    self._written.add(name)
                    self.add(Op("create", name))
            return descriptor

        def write(descriptor: int, content: Any) -> int:
            if descriptor in self._fds:
                self.add(Op("write", self._fds[descriptor], bytes(content)))
            return _write(descriptor, content)

        def fsync(descriptor: int) -> None:
            _fsync(descriptor)
            if descriptor in self._fds:
                name = self._fds[descriptor]
                path = self.root / name
                if path.is_file() and name not in self._written:
                    self.add(Op("create", name))
                    self.add(Op("write", name, path.read_bytes()))
                self.add(Op("sync", name))

        def replace(source: Any, target: Any, **words: Any) -> None:
            _replace(source, target, **words)
            if (name := self._inside(source)) is not None:
                self._written.discard(name)
                self.add(Op("rename", name, target=self._inside(target) or ""))

        def unlink(path: Any, **words: Any) -> None:
            _unlink(path, **words)
            if (name := self._inside(path)) is not None:
                self._written.discard(name)
                self.add(Op("unlink", name))

        def mkdir(path: Any, *more: Any, **words: Any) -> None:
            _mkdir(path, *more, **words)
            if (name := self._inside(path)) is not None:
                self.add(Op("mkdir", name))

        with mock.patch.multiple(os, open=open_, write=write, fsync=fsync, replace=replace, unlink=unlink, mkdir=mkdir):
            yield


def unit(index: int, number: int) -> Draft:
    """Projection `index` of the short life."""
    from tests.test_store import made

    return made(index, number, size_px=SIZE_PX)


def opened(root: Path) -> tuple[Archive, Ledger]:
    ledger, _ = open_ledger(root)
    return Archive(
        root, ledger, Outbox(ledger.db, {"reconstruct": Reconstruct()}), CrashGuard(root), fold_rows=2, expected=0, config="{}"
    ), ledger


def store(archive: Archive, ledger: Ledger, indices: list[int]) -> None:
    """Commit and publish as the hub does."""
    from tests.test_store import arrival

    batch = [arrival(ledger, unit(index, archive.store("s").next_number + place)) for place, index in enumerate(indices)]
    if archive.commit("s", batch) != len(batch):
        raise AetError("the disk did not take it")
    archive.publish("s")


def close(archive: Archive) -> None:
    archive.begin_close("s")
    while archive.working_on():
        archive.work(1.0)


def prune(archive: Archive) -> None:
    archive.begin_prune("s")
    while archive.working_on():
        archive.work(1.0)
    if why := archive.why_unpruned("s"):
        raise AetError(why)


def record(folder: Path, batches: list[list[int]], late: list[int], pruned: bool = False) -> Recording:
    """A life: batches of projections, folding, closing, late ones, closing again; `pruned`: each time it was closed."""
    recording = Recording(folder)
    folder.mkdir()
    archive, ledger = opened(folder)
    with recording.listening():
        for batch in batches:
            store(archive, ledger, batch)
            for index in batch:
                recording.told(index)
            archive.work(1.0)  # folding
            while archive.working_on():
                archive.work(1.0)
        close(archive)
        if pruned:
            prune(archive)
        for index in late:
            store(archive, ledger, [index])
            recording.told(index)
        close(archive)
        if pruned:
            prune(archive)
    ledger.close()
    return recording


# -- states ---------------------------------------------------------------------------------------------------------------------------


@dataclass
class Inode:
    content: bytes = b""
    synced: bytes = b""


class Disk:
    """Names and contents, as they are in memory and as they are on the platter."""

    def __init__(self) -> None:
        self.now: dict[str, Inode | None] = {}
        """Path -> file, or None for a folder."""
        self.platter: dict[str, Inode | None] = {}
        self.pending: list[Op] = []
        """Changes of names that no fsync of their folder has brought to the platter."""
        self._inodes: list[Inode] = []
        self._of: dict[int, Inode] = {}

    def apply(self, op: Op) -> None:
        match op.kind:
            case "create":
                self._of[id(op)] = self.now[op.path] = Inode()
                self.pending.append(op)
            case "write":
                inode = self.now[op.path]
                assert inode is not None
                inode.content += op.content
            case "sync":
                inode = self.now.get(op.path)
                if inode is not None:
                    inode.synced = inode.content
                else:
                    self._sync_folder("" if op.path == "." else op.path)
            case "rename":
                self._of[id(op)] = inode = self.now.pop(op.path)  # type: ignore[assignment]
                self.now[op.target] = inode
                self.pending.append(op)
            case "unlink":
                self.now.pop(op.path, None)
                self.pending.append(op)
            case "mkdir":
                self.now[op.path] = None
                self.pending.append(op)

    def _sync_folder(self, folder: str) -> None:
        def within(op: Op) -> bool:
            return (op.path.rpartition("/")[0]) == folder

        for op in [op for op in self.pending if within(op)]:
            self._land(self.platter, op)
        self.pending = [op for op in self.pending if not within(op)]

    def _land(self, names: dict[str, Inode | None], op: Op) -> None:
        match op.kind:
            case "create":
                names[op.path] = self._of[id(op)]
            case "rename":
                names.pop(op.path, None)
                names[op.target] = self._of[id(op)]
            case "unlink":
                names.pop(op.path, None)
            case "mkdir":
                names[op.path] = None

    def killed(self) -> dict[str, bytes | None]:
        return {path: None if inode is None else inode.content for path, inode in self.now.items()}

    def powerless(self, rng: random.Random) -> dict[str, bytes | None]:
        """One of the states that a power cut may leave."""
        names = dict(self.platter)
        for op in self.pending:
            if rng.random() < 0.5:
                self._land(names, op)
        contents: dict[int, bytes] = {}
        found: dict[str, bytes | None] = {}
        for path, inode in names.items():
            parents = Path(path).parents
            if any(str(parent) != "." and names.get(str(parent), b"") is not None for parent in parents):
                continue  # its folder is not there
            if inode is None:
                found[path] = None
            else:
                found[path] = contents.setdefault(id(inode), _left_of(inode, rng))
        return found


def _left_of(inode: Inode, rng: random.Random) -> bytes:
    """What may be left of a file whose last writes were not synced."""
    if inode.synced == inode.content:
        return inode.content
    match rng.randrange(4):
        case 0:
            return inode.synced
        case 1:
            return inode.content[: rng.randrange(len(inode.content) + 1)]
        case 2:
            blocks = bytearray(inode.content)
            for start in range(0, len(blocks), BLOCK):
                if rng.random() < 0.5:
                    blocks[start : start + BLOCK] = bytes(len(blocks[start : start + BLOCK]))
            return bytes(blocks)
    return inode.content


@dataclass(frozen=True)
class State:
    """A disk after a crash."""

    words: str
    files: dict[str, bytes | None]
    ledger: dict[str, bytes]
    told: frozenset[int]
    after_power_cut: bool


def kill_states(recording: Recording) -> Iterator[State]:
    """Between any two operations, and in the middle of every write; with the ledger of that moment, and with the one before."""
    disk, told = Disk(), set[int]()
    for moment, op in enumerate(recording.ops):
        if op.kind == "write":
            for quarters in (1, 2, 3):
                part = disk.killed()
                part[op.path] = (part[op.path] or b"") + op.content[: len(op.content) * quarters // 4]
                yield State(f"{quarters}/4 of op {moment} {op.kind} {op.path}", part, recording.ledgers[moment], frozenset(told), False)
        disk.apply(op)
        if op.kind == "told":
            told.add(op.number)
        yield State(f"after op {moment} {op.kind} {op.path}", disk.killed(), recording.ledgers[moment], frozenset(told), False)
        if moment and recording.ledgers[moment - 1] != recording.ledgers[moment]:
            yield State(f"after op {moment}, ledger before", disk.killed(), recording.ledgers[moment - 1], frozenset(told), False)


def power_states(recording: Recording, per_moment: int, seed: int) -> Iterator[State]:
    """After any operation, `per_moment` of the states that a power cut may leave; now and then without the ledger."""
    rng = random.Random(seed)
    disk, told = Disk(), set[int]()
    for moment, op in enumerate(recording.ops):
        disk.apply(op)
        if op.kind == "told":
            told.add(op.number)
        for draw in range(per_moment):
            ledger = recording.ledgers[moment] if rng.random() < 0.8 else {}
            yield State(f"power cut {draw} after op {moment} {op.kind} {op.path}", disk.powerless(rng), ledger, frozenset(told), True)


def outcome_of(state: State, folder: Path) -> str:
    """Bring a state to disk, recover it, read the rest again, close: `recovered`, `refused: ...`, or what is wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path, content in sorted(state.files.items(), key=lambda item: item[0].count("/")):
        if content is None:
            (folder / path).mkdir(parents=True)
    for path, content in state.files.items():
        if content is not None:
            (folder / path).write_bytes(content)
    for name, content in state.ledger.items():
        (folder / name).write_bytes(content)
    if not state.after_power_cut and (wrong := _rows_wrong(folder, state.told, whole=False)):
        return f"before recovery: {wrong}"
    try:
        archive, ledger = opened(folder)
    except AetError as error:
        return f"refused: {error}"
    try:
        archive.recover()
        if wrong := _rows_wrong(folder, state.told, whole=False):
            return f"after recovery: {wrong}"
        if left := [path.name for path in folder.rglob(".*.tmp")]:
            return f"after recovery: {left} left over"
        missing = [i for i in range(PROJECTIONS) if not archive.store("s").holds(VisitKey(f"s/{i}.tif", 0, "1"))]
        if missing:
            store(archive, ledger, missing)
        if not state.after_power_cut:
            close(archive)
        return _rows_wrong(folder, frozenset(range(PROJECTIONS)), whole=not state.after_power_cut) or "recovered"
    except AetError as error:
        return f"refused: {error}"
    finally:
        ledger.close()


def _rows_wrong(folder: Path, must: frozenset[int], *, whole: bool) -> str:
    """What plain HDF5 finds wrong with the series."""
    series = folder / "s" / "series.h5"
    if not series.exists():
        return f"no series.h5, but {sorted(must)} were told" if must else ""
    try:
        rows = rows_of(series)
    except (OSError, KeyError, RuntimeError) as error:
        return f"{error}"
    found = [int(row.path[2:-4]) for row in rows]
    for index, row in zip(found, rows, strict=True):
        raw = known_image(index, SIZE_PX)
        if not np.array_equal(row.raw, raw) or not np.array_equal(row.clean, raw.astype("<f4") - 7) or row.tilt_deg != 3.0 * index:
            return f"row of {index} is wrong"
    if len(set(found)) != len(found):
        return f"doubled: {found}"
    if must - set(found):
        return f"lost: {sorted(must - set(found))}"
    with h5py.File(series) as file:
        if whole and file["/exchange/data"].is_virtual:
            return "not closed"
    return ""


LIVES: tuple[tuple[Any, ...], ...] = (
    ([[0], [1], [2], [3]], [4]),
    ([[0, 1], [2, 3]], [4]),
    ([[0, 1, 2]], [3, 4]),
    ([[0], [1, 2], [3, 4]], []),
    ([[0, 1, 2, 3]], [4], True),
)
