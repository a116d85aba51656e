"""Convolutions of 3 x 3 on a CPU by Winograd's F(2 x 2, 3 x 3): 16 multiplications instead of 36 for 2 x 2 outputs, and as exact.

Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016 (arXiv:1509.09308). A tile of 4 x 4 inputs of every channel is
transformed, multiplied by the transformed weights at each of its 16 places alone, and transformed back; then come the bias, what is there
already, and the SiLU of the sum, while it is in registers. Written for LLVM, which comes with numba, and compiled for this computer when a
network is loaded; the interpreter's lock is free meanwhile. docs/adr/0023-winograd-on-a-cpu.md has the figures.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from aet_stream.projection import Array

LANES = 8
"""Numbers of a vector: channels come in multiples of it."""
_EDGE, _TILE = 2, 4
"""Outputs and inputs of a tile, along either axis."""
_PLACES = _TILE**2
_BLOCK = 16
"""Tiles that are transformed together: what they need stays in the cache."""
_APART = 16
"""Numbers from the end of one place to the next: at powers of two apart they would fall on each other in the cache."""
_ROWS = 4
"""Tiles that share a load of weights."""
_OF_INPUT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_OF_WEIGHTS = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_OF_OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))
_EXPONENTIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1.0, 1.0)
"""Polynomial for exp(x), |x| < ln 2 / 2 (Moshier, Cephes: expf), highest power first."""


class Surface:
    """(rows, columns, channels) float32 with a rim of zeros, which is never written to."""

    def __init__(self, rows: int, columns: int, channels: int) -> None:
        wide, high = (_EDGE * -(-n // _EDGE) + _TILE - _EDGE for n in (columns, rows))
        self.rows, self.columns, self.channels = rows, columns, channels
        self.memory = np.zeros((high * wide + 1) * channels, np.float32)
        """The last place is for outputs of tiles that reach out of the surface"""
        self.inside: Array = self.memory[:-channels].reshape(high, wide, channels)[1 : 1 + rows, 1 : 1 + columns]


class Convolution:
    """A layer, ready to be applied."""

    def __init__(self, weight: Array, bias: Array) -> None:
        """
        Parameters
        ----------
        weight : (outputs, inputs, 3, 3) float32; both are filled up to multiples of LANES
        bias : (outputs,)
        """
        padded = np.pad(weight.astype(np.float64), [(0, -n % LANES) for n in weight.shape[:2]] + [(0, 0), (0, 0)])
        self.outputs, self.inputs = padded.shape[:2]
        wide = next(n for n in (3, 2, 1) if self.outputs % (n * LANES) == 0)
        transform = np.array(_OF_WEIGHTS)
        places = np.einsum("ip,ocpq,jq->ijco", transform, padded, transform).reshape(_PLACES, self.inputs, -1, wide * LANES)
        self._weight = np.ascontiguousarray(places.transpose(2, 0, 1, 3), np.float32)
        self._bias = np.pad(bias.astype(np.float32), (0, self.outputs - len(bias)))
        self._kernel = _kernel(wide)
        self._products = _PLACES * (_BLOCK * self.inputs + _APART)
        self.scratch = self._products + _PLACES * (_BLOCK * wide * LANES + _APART)
        """Numbers of room that it needs"""

    def __call__(self, given: Surface, total: Surface, active: Surface, scratch: Array, *, add: bool = False) -> None:
        """`total` becomes the convolution of what is given, added to what it was if so said, and `active` its SiLU: three surfaces.

        `scratch`: float32, at least as many as said.
        """
        arrays = given.memory, self._weight, self._bias, total.memory, active.memory, scratch, scratch[self._products :]
        addresses = [array.__array_interface__["data"][0] for array in arrays]
        self._kernel(*addresses, given.rows, given.columns, self.inputs, self.outputs, add)


class _Code:
    """Lines of LLVM's language for one function."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._variables: list[str] = []
        self._names = 0

    def text(self) -> str:
        return "\n".join([*self._variables, *self._lines])

    def __call__(self, operation: str) -> str:
        """Name of the result."""
        name = f"%r{self._name()}"
        self.do(f"{name} = {operation}")
        return name

    def do(self, statement: str) -> None:
        self._lines.append(f"  {statement}")

    def variable(self, kind: str, value: str) -> str:
        """One that may change; the compiler keeps it in a register."""
        name = f"%v{self._name()}"
        self._variables.append(f"  {name} = alloca {kind}")
        self.do(f"store {kind} {value}, ptr {name}")
        return name

    @contextmanager
    def loop(self, stop: str | int, step: int = 1) -> Iterator[str]:
        """Over whole numbers from 0."""
        at, name = self.variable("i64", "0"), self._name()
        self.do(f"br label %test{name}")
        self._lines.append(f"test{name}:")
        index = self(f"load i64, ptr {at}")
        self.do(f"br i1 {self(f'icmp slt i64 {index}, {stop}')}, label %body{name}, label %end{name}")
        self._lines.append(f"body{name}:")
        yield index
        self.do(f"store i64 {self.sum(index, step)}, ptr {at}")
        self.do(f"br label %test{name}")
        self._lines.append(f"end{name}:")

    def sum(self, first: str | int, *others: str | int) -> str:
        total = str(first)
        for other in others:
            total = self(f"add i64 {total}, {other}")
        return total

    def product(self, one: str | int, other: str | int) -> str:
        return self(f"mul i64 {one}, {other}")

    def place(self, base: str, *offsets: str | int) -> str:
        """Address of a number."""
        return self(f"getelementptr float, ptr {base}, i64 {self.sum(*offsets)}")

    def load(self, place: str) -> str:
        return self(f"load {_VECTOR}, ptr {place}, align 4")

    def store(self, vector: str, place: str) -> None:
        self.do(f"store {_VECTOR} {vector}, ptr {place}, align 4")

    def vectors(self, operation: str, one: str, other: str) -> str:
        return self(f"{operation} {_VECTOR} {one}, {other}")

    def call(self, name: str, *vectors: str) -> str:
        return self(f"call {_VECTOR} @llvm.{name}.v{LANES}f32({', '.join(f'{_VECTOR} {vector}' for vector in vectors)})")

    def every(self, number: str) -> str:
        """A vector of this number."""
        alone = self(f"insertelement {_VECTOR} poison, float {number}, i32 0")
        return self(f"shufflevector {_VECTOR} {alone}, {_VECTOR} poison, {_INTEGERS} zeroinitializer")

    def transformed(self, matrix: Sequence[Sequence[float]], tile: list[list[str]]) -> list[list[str]]:
        """matrix tile matrix^T; the matrix holds 0, 1 and -1."""
        half = [[self._signed(row, [line[j] for line in tile]) for j in range(_TILE)] for row in matrix]
        return [[self._signed(row, line) for row in matrix] for line in half]

    def _signed(self, signs: Sequence[float], vectors: Sequence[str]) -> str:
        chosen = sorted(((sign, vector) for sign, vector in zip(signs, vectors, strict=True) if sign), reverse=True)
        total = chosen[0][1]  # no row begins with -1
        for sign, vector in chosen[1:]:
            total = self.vectors("fadd" if sign > 0 else "fsub", total, vector)
        return total

    def silu(self, x: str) -> str:
        """x / (1 + exp(-x))"""
        bounded = self.call("maxnum", self.call("minnum", self.vectors("fsub", _every(0.0), x), _every(87.0)), _every(-87.0))
        power = self.call("rint", self.vectors("fmul", bounded, _every(1 / np.log(2))))
        rest = self.call("fmuladd", power, _every(2.12194440e-4), self.call("fmuladd", power, _every(-0.693359375), bounded))
        value = _every(_EXPONENTIAL[0])
        for coefficient in _EXPONENTIAL[1:]:
            value = self.call("fmuladd", value, rest, _every(coefficient))
        exponent = self(f"add {_INTEGERS} {self(f'fptosi {_VECTOR} {power} to {_INTEGERS}')}, {_every(127)}")
        scale = self(f"bitcast {_INTEGERS} {self(f'shl {_INTEGERS} {exponent}, {_every(23)}')} to {_VECTOR}")
        return self.vectors("fdiv", x, self.call("fmuladd", value, scale, _every(1.0)))

    def _name(self) -> int:
        self._names += 1
        return self._names


_VECTOR, _INTEGERS = f"<{LANES} x float>", f"<{LANES} x i32>"
_INTRINSICS = "".join(
    f"declare {_VECTOR} @llvm.{name}.v{LANES}f32({', '.join([_VECTOR] * count)})\n"
    for name, count in (("fmuladd", 3), ("minnum", 2), ("maxnum", 2), ("rint", 1))
)
_POINTERS = ("given", "weight", "bias", "total", "active", "transformed", "products")
_NUMBERS = ("rows", "columns", "inputs", "outputs", "add")


def _every(value: float) -> str:
    """A constant vector."""
    one = f"i32 {value}" if isinstance(value, int) else f"float 0x{np.float64(np.float32(value)).view(np.uint64):016X}"
    return f"<{', '.join([one] * LANES)}>"


class _Kernel(_Code):
    """Lines of the function that makes `wide` vectors of outputs at once, a block of tiles after the other."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self._wide, self._at_once = wide, wide * LANES
        self._apart = _BLOCK * self._at_once + _APART
        """From one place of the products to the next"""
        down, self._across = (self(f"lshr i64 {self.sum(n, _EDGE - 1)}, {_EDGE // 2}") for n in ("%rows", "%columns"))
        high, broad = (self.sum(self.product(n, _EDGE), _TILE - _EDGE) for n in (down, self._across))
        self._in_row, self._out_row = (self.product(broad, n) for n in ("%inputs", "%outputs"))
        self._nowhere = self.product(high, self._out_row)
        self._by_place = self.sum(self.product(_BLOCK, "%inputs"), _APART)
        tiles = self.product(down, self._across)
        with self.loop(tiles, _BLOCK) as first:
            left = self(f"sub i64 {tiles}, {first}")
            count = self(f"select i1 {self(f'icmp slt i64 {left}, {_BLOCK}')}, i64 {left}, i64 {_BLOCK}")
            self._transform(first, count)
            with self.loop("%outputs", self._at_once) as output:
                self._multiply(count, output)
                self._finish(first, count, output)

    def text(self) -> str:
        arguments = ", ".join([f"ptr noalias %{name}" for name in _POINTERS] + [f"i64 %{name}" for name in _NUMBERS])
        return f"{_INTRINSICS}define void @convolution({arguments}) {{\n{super().text()}\n  ret void\n}}\n"

    def _corner(self, first: str, number: str) -> tuple[str, str]:
        """(row, column) of a tile of the block."""
        tile = self.sum(first, number)
        down, right = self(f"udiv i64 {tile}, {self._across}"), self(f"urem i64 {tile}, {self._across}")
        return self.product(down, _EDGE), self.product(right, _EDGE)

    def _transform(self, first: str, count: str) -> None:
        """The block's inputs: (places, tiles, inputs)."""
        with self.loop(count) as number:
            row, column = self._corner(first, number)
            begin = self.sum(self.product(row, self._in_row), self.product(column, "%inputs"))
            with self.loop("%inputs", LANES) as channel:
                lines = [self.place("%given", begin, channel, self.product(self._in_row, i)) for i in range(_TILE)]
                tile = [[self.load(self.place(line, self.product("%inputs", j))) for j in range(_TILE)] for line in lines]
                to = self.place("%transformed", self.product(number, "%inputs"), channel)
                for place, vector in enumerate(chain.from_iterable(self.transformed(_OF_INPUT, tile))):
                    self.store(vector, self.place(to, self.product(self._by_place, place)))

    def _multiply(self, count: str, output: str) -> None:
        """Products with the weights of these outputs: (places, tiles, at once)."""
        of_output = self.place("%weight", self.product(self.product(output, _PLACES), "%inputs"))
        with self.loop(_PLACES) as place:
            weight = self.place(of_output, self.product(self.product(place, "%inputs"), self._at_once))
            with self.loop(count, _ROWS) as number:
                base = self.place("%transformed", self.product(place, self._by_place), self.product(number, "%inputs"))
                lines = [self.place(base, self.product("%inputs", i)) for i in range(_ROWS)]
                sums = [[self.variable(_VECTOR, "zeroinitializer") for _ in range(self._wide)] for _ in lines]
                with self.loop("%inputs") as channel:
                    at = self.product(channel, self._at_once)
                    weights = [self.load(self.place(weight, at, LANES * i)) for i in range(self._wide)]
                    for line, of_line in zip(lines, sums, strict=True):
                        value = self.every(self(f"load float, ptr {self.place(line, channel)}"))
                        for total, vector in zip(of_line, weights, strict=True):
                            self.do(f"store {_VECTOR} {self.call('fmuladd', value, vector, self.load(total))}, ptr {total}")
                to = self.place("%products", self.product(place, self._apart), self.product(number, self._at_once))
                for i, total in enumerate(chain.from_iterable(sums)):
                    self.store(self.load(total), self.place(to, LANES * i))

    def _finish(self, first: str, count: str, output: str) -> None:
        """These outputs of the block."""
        with self.loop(count) as number:
            row, column = self._corner(first, number)
            with self.loop(self._at_once, LANES) as part:
                base, channel = self.place("%products", self.product(number, self._at_once), part), self.sum(output, part)
                places = [self.load(self.place(base, self._apart * place)) for place in range(_PLACES)]
                bias = self.load(self.place("%bias", channel))
                for i, line in enumerate(self.transformed(_OF_OUTPUT, [places[n : n + _TILE] for n in range(0, _PLACES, _TILE)])):
                    for j, vector in enumerate(line):
                        at = self.sum(self._at(self.sum(row, i), self.sum(column, j)), channel)
                        to, add = self.place("%total", at), self("icmp ne i64 %add, 0")
                        before = self(f"select i1 {add}, {_VECTOR} {self.load(to)}, {_VECTOR} zeroinitializer")
                        value = self.vectors("fadd", self.vectors("fadd", vector, bias), before)
                        self.store(value, to)
                        self.store(self.silu(value), self.place("%active", at))

    def _at(self, y: str, x: str) -> str:
        """Where the outputs of a pixel stand; of one that is not on the surface, behind it."""
        inside = self(f"and i1 {self(f'icmp slt i64 {y}, %rows')}, {self(f'icmp slt i64 {x}, %columns')}")
        there = self.sum(self.product(self.sum(y, 1), self._out_row), self.product(self.sum(x, 1), "%outputs"))
        return self(f"select i1 {inside}, i64 {there}, i64 {self._nowhere}")


@lru_cache(maxsize=3)
def _kernel(wide: int) -> Any:
    """That kernel, compiled: takes a tenth of a second."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(_Kernel(wide).text())
    features = llvm.get_host_cpu_features().flatten()
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3)
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(_POINTERS), *[ctypes.c_int64] * len(_NUMBERS))
    function: Any = kind(engine.get_function_address("convolution"))
    function.engine = engine  # which owns the code
    return function
