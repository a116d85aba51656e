"""A share without a network: a file system served by this process over /dev/fuse, empty, that may stop answering."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

LOOKUP, GETATTR, STATFS, INIT, OPENDIR, READDIR, RELEASEDIR, ACCESS = 1, 3, 17, 26, 27, 28, 29, 34
"""linux/fuse.h"""
ENOENT, ENOSYS = 2, 38
_ATTRIBUTES = struct.pack("<QQQQQQIIIIIIIIII", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)


def _answer(opcode: int, body: bytes) -> bytes | int:
    """What is sent back, or an errno."""
    match opcode:
        case 26:  # INIT
            return struct.pack("<IIII", 7, 31, 0, 0) + struct.pack("<HHIIHHI", 1, 1, 4096, 1, 1, 0, 0) + bytes(28)
        case 3:  # GETATTR
            return struct.pack("<QII", 1, 0, 0) + _ATTRIBUTES
        case 17:  # STATFS
            return struct.pack("<QQQQQIIII", 1 << 30, 1 << 30, 1 << 30, 1 << 20, 1 << 20, 4096, 255, 4096, 0) + bytes(24)
        case 27:  # OPENDIR
            return struct.pack("<QII", 1, 0, 0)
        case 28 | 29 | 34:
            return b""
        case 1:
            return ENOENT
    return ENOSYS


def _serve(descriptor: int) -> None:
    while True:
        try:
            request = os.read(descriptor, 1 << 17)
        except OSError:
            return  # unmounted
        _, opcode, unique = struct.unpack_from("<IIQ", request)
        answer = _answer(opcode, request[40:])
        if opcode in (2, 36):  # FORGET and INTERRUPT want no answer
            continue
        content, error = (answer, 0) if isinstance(answer, bytes) else (b"", -answer)
        with contextlib.suppress(OSError):
            os.write(descriptor, struct.pack("<IiQ", 16 + len(content), error, unique) + content)


@contextlib.contextmanager
def share(folder: Path, *, dead: bool = False) -> Iterator[Path]:
    """Mounted at `folder` as `fuse.sshfs`; `dead`: its server does not answer."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"no FUSE here: {error}")
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={descriptor},rootmode=40755,user_id={os.getuid()},group_id={os.getgid()},allow_other".encode()
    if libc.mount(b"server:/data", os.fsencode(folder), b"fuse.sshfs", 0, options):
        os.close(descriptor)
        pytest.skip(f"no file system may be mounted here: {os.strerror(ctypes.get_errno())}")
    thread = threading.Thread(target=_serve, args=(descriptor,), daemon=True)
    if not dead:
        thread.start()
    try:
        yield folder
    finally:
        if dead:
            os.close(descriptor)  # who waits for it gets an error
        libc.umount2(os.fsencode(folder), 2)
        if not dead:
            thread.join(5)
            os.close(descriptor)
