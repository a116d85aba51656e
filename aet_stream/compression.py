"""Lossless compression for slow links: bytes of numbers sorted by significance (as HDF5's shuffle filter does), then zlib at its fastest.

Noise does not compress, but the high bytes of what a detector counts do.
"""

from __future__ import annotations

import zlib

from aet_stream.errors import WireError

LEVEL = 1


def compress(data: bytes | memoryview, itemsize: int) -> bytes:
    """
    Parameters
    ----------
    itemsize : bytes of one number; where they do not divide the data, it is compressed as it is
    """
    return zlib.compress(_shuffled(data, itemsize, back=False), LEVEL)


def decompress(compressed: bytes | memoryview, nbytes: int, itemsize: int) -> bytes:
    """What was compressed; never more than `nbytes`, whatever it claims to be.

    Raises
    ------
    WireError : it is not that many bytes, or was never compressed
    """
    opened = zlib.decompressobj()
    try:
        data = opened.decompress(compressed, nbytes + 1)
    except zlib.error as error:
        raise WireError(f"cannot be decompressed: {error}") from error
    if len(data) != nbytes or not opened.eof:
        raise WireError(f"decompresses to another size than {nbytes} bytes")
    return _shuffled(data, itemsize, back=True)


def _shuffled(data: bytes | memoryview, itemsize: int, *, back: bool) -> bytes:
    import numpy as np  # only where something is compressed

    if itemsize == 1 or len(data) % itemsize:
        return bytes(data)
    shape = (itemsize, -1) if back else (-1, itemsize)
    return np.frombuffer(data, np.uint8).reshape(shape).T.tobytes()
