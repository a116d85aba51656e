"""Cholesky factors and triangular solves without the interpreter's lock, in place: a second thread goes on meanwhile.

scipy's own wrappers of the same routines hold the lock while they work. Their addresses are public for Cython (scipy.linalg.cython_lapack,
cython_blas), and ctypes lets go of the lock for every call.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from scipy.linalg import cython_blas, cython_lapack

from aet_stream.projection import Array

_ONE = ctypes.byref(ctypes.c_double(1.0))


def _routine(module: Any, name: str) -> Any:
    """A Fortran subroutine: everything by reference, nothing returned."""
    capsule = module.__pyx_capi__[name]
    name_of = ctypes.pythonapi.PyCapsule_GetName
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    address_of = ctypes.pythonapi.PyCapsule_GetPointer
    address_of.restype, address_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return ctypes.CFUNCTYPE(None)(address_of(capsule, name_of(capsule)))


_potrf = _routine(cython_lapack, "dpotrf")
_trsv, _trsm, _syrk = (_routine(cython_blas, name) for name in ("dtrsv", "dtrsm", "dsyrk"))


def factor(matrix: Array) -> bool:
    """The lower triangle of a symmetric matrix, (n, n) float64 column by column, becomes its Cholesky factor; False: it is not positive."""
    failed_at = ctypes.c_int(0)
    _potrf(b"L", _int(len(matrix)), _at(matrix), _stride(matrix), ctypes.byref(failed_at))
    return failed_at.value == 0


def solve(lower: Array, columns: Array, *, transposed: bool = False) -> None:
    """L^-1 columns (L^-T, if transposed) in the place of the columns.

    Parameters
    ----------
    lower : (n, n) float64 column by column, L in its lower triangle
    columns : (n,), or (n, m) row by row, which may be part of longer ones, float64
    """
    if columns.ndim == 1:
        _trsv(b"L", b"T" if transposed else b"N", b"N", _int(len(columns)), _at(lower), _stride(lower), _at(columns), _int(1))
    elif columns.size:  # row by row: Fortran sees what is transposed
        rows, count = columns.shape
        _trsm(b"R", b"L", b"N" if transposed else b"T", b"N", _int(count), _int(rows), _ONE, _at(lower), _stride(lower), _at(columns),
              _stride(columns.T))  # fmt: skip


def subtract_square(matrix: Array, columns: Array) -> None:
    """The lower triangle of a matrix, (m, m) float64 column by column, less columns^T columns; `columns`: (n, m) row by row, which may be
    part of longer ones."""
    rows, count = columns.shape
    _syrk(b"L", b"N", _int(count), _int(rows), ctypes.byref(ctypes.c_double(-1.0)), _at(columns), _stride(columns.T), _ONE,
          _at(matrix), _stride(matrix))  # fmt: skip


def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


def _at(array: Array) -> Any:
    return ctypes.c_void_p(array.__array_interface__["data"][0])  # `ctypes.data` takes three times as long


def _stride(matrix: Array) -> Any:
    """From one column to the next, in numbers."""
    assert matrix.dtype == np.float64
    assert matrix.strides[0] == matrix.itemsize
    return _int(matrix.strides[1] // matrix.itemsize)
