"""Convolutions of 3 x 3 on a CPU by Winograd's F(2 x 2, 3 x 3): 16 multiplications instead of 36 for 2 x 2 outputs, and as exact.

Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016 (arXiv:1509.09308). With a tile d of 4 x 4 inputs, weights g of
3 x 3 and 2 x 2 outputs, the sum over the inputs' channels is

    A^T [ sum (G g G^T) . (B^T d B) ] A       . : each of the 16 places by itself

so for a block of tiles, whose numbers stay in the cache, the road is

    tiles of a surface --transform--> 16 x (tiles, inputs) --multiply--> 16 x (tiles, outputs) --transform back--> 2 x 2 outputs of each
         (4, 4, inputs)    B^T d B                     by 16 x (inputs, outputs)                A^T m A             tile, with bias, SiLU

G g G^T is made once. The rest is one function, written here instruction by instruction for LLVM, which comes with numba: it is compiled
for this computer when a network is loaded, and the interpreter's lock is free while it works. docs/adr/0023-winograd-on-a-cpu.md has the
figures.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, reduce
from itertools import chain
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

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
"""B^T"""
_OF_WEIGHTS = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
"""G"""
_OF_OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))
"""A^T"""
_EXPONENTIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1.0, 1.0)
"""Polynomial for exp(x), |x| < ln 2 / 2 (Moshier, Cephes: expf), highest power first."""
_LN_2 = 0.693359375, -2.12194440e-4
"""In two parts, of which the first has few digits."""
_TO_WHOLE = 1.5 * 2**23
"""Added to a float32 and taken away again, it leaves a whole number."""


class Surface:
    """(rows, columns, channels) float32 with a rim of zeros, which is never written to."""

    def __init__(self, rows: int, columns: int, channels: int) -> None:
        wide, high = (_EDGE * -(-n // _EDGE) + _TILE - _EDGE for n in (columns, rows))
        self.rows, self.columns, self.channels = rows, columns, channels
        self.memory = np.zeros((high * wide + 1) * channels, np.float32)
        """The last place is for outputs of tiles that reach out of the surface"""
        self.inside: Array = self.memory[:-channels].reshape(high, wide, channels)[1 : 1 + rows, 1 : 1 + columns]
        self.address = _address(self.memory)


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
        self._parameters = _address(self._weight), _address(self._bias)
        self._products = _PLACES * (_BLOCK * self.inputs + _APART)
        self.scratch = self._products + _PLACES * (_BLOCK * wide * LANES + _APART)
        """Numbers of room that it needs"""

    def __call__(self, given: Surface, total: Surface, active: Surface, scratch: Array, *, add: bool = False) -> None:
        """`total` becomes the convolution of what is given, added to what it was if so said, and `active` its SiLU: three surfaces.

        `scratch`: float32, at least as many as said.
        """
        room = _address(scratch)
        addresses = given.address, *self._parameters, total.address, active.address, room, room + scratch.itemsize * self._products
        self._kernel(*addresses, given.rows, given.columns, self.inputs, self.outputs, add)


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


@lru_cache(maxsize=3)
def _kernel(wide: int) -> Any:
    """The function that makes `wide` vectors of outputs at once, compiled: takes a tenth of a second."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(str(_Writer(wide).module))
    features = llvm.get_host_cpu_features().flatten()
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3)
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * _POINTERS, *[ctypes.c_int64] * _NUMBERS)
    function: Any = kind(engine.get_function_address("convolution"))
    function.engine = engine  # which owns the code
    return function


_POINTERS, _NUMBERS = 7, 5
"""That it takes."""
_INTEGER, _INTEGERS = ir.IntType(64), ir.VectorType(ir.IntType(32), LANES)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)


class _Value:
    """A number, vector or address of the function that is written: arithmetic with it writes an instruction, products fused with sums."""

    def __init__(self, builder: ir.IRBuilder, value: Any) -> None:
        self._builder, self.value = builder, value

    def __add__(self, other: _Value | float) -> _Value:
        if isinstance(self.value.type, ir.PointerType):
            return self._new(self._builder.gep(self.value, [self._like(other, _INTEGER)]))
        return self._instruction("add", other)

    def __sub__(self, other: _Value | float) -> _Value:
        return self._instruction("sub", other)

    def __mul__(self, other: _Value | float) -> _Value:
        return self._instruction("mul", other)

    def __truediv__(self, other: _Value | float) -> _Value:
        return self._instruction("div", other)

    def __floordiv__(self, other: _Value | float) -> _Value:
        return self._new(self._builder.udiv(self.value, self._like(other, self.value.type)))

    def __mod__(self, other: _Value | float) -> _Value:
        return self._new(self._builder.urem(self.value, self._like(other, self.value.type)))

    def __lt__(self, other: _Value | float) -> _Value:
        compare = self._builder.icmp_signed if self.value.type == _INTEGER else self._builder.fcmp_ordered
        return self._new(compare("<", self.value, self._like(other, self.value.type)))

    def __and__(self, other: _Value) -> _Value:
        return self._new(self._builder.and_(self.value, other.value))

    def chosen(self, one: _Value, other: _Value | float) -> _Value:
        """`one` where this is true."""
        return self._new(self._builder.select(self.value, one.value, self._like(other, one.value.type)))

    def at_most(self, other: float) -> _Value:
        return (self < other).chosen(self, other)

    def load(self) -> _Value:
        """The vector at this address."""
        return self._new(self._builder.load(self._of_vector(), align=4))

    def load_everywhere(self) -> _Value:
        """A vector of the number at this address."""
        alone = self._builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), self._builder.load(self.value), ir.IntType(32)(0))
        return self._new(self._builder.shuffle_vector(alone, alone, ir.Constant(_INTEGERS, None)))

    def store(self, vector: _Value) -> None:
        """At this address."""
        self._builder.store(vector.value, self._of_vector(), align=4)

    def silu(self) -> _Value:
        """x / (1 + exp(-x)), exp(y) = 2^n exp(y - n ln 2)"""
        builder, minus_x = self._builder, self * -1.0
        y = (minus_x.at_most(87.0) * -1.0).at_most(87.0) * -1.0
        n = y * (1 / float(np.log(2))) + _TO_WHOLE - _TO_WHOLE
        rest = y - n * _LN_2[0] - n * _LN_2[1]
        power = reduce(lambda value, coefficient: value * rest + coefficient, _EXPONENTIAL[1:], rest * 0.0 + _EXPONENTIAL[0])
        exponent = self._new(builder.fptosi(n.value, _INTEGERS)) + 127
        two_to_n = self._new(builder.bitcast((exponent * (1 << 23)).value, _FLOATS))
        return self / (power * two_to_n + 1.0)

    def _instruction(self, name: str, other: _Value | float) -> _Value:
        kind = self.value.type
        if kind == _FLOATS:
            return self._new(getattr(self._builder, f"f{name}")(self.value, self._like(other, kind), flags=("contract",)))
        return self._new(getattr(self._builder, name)(self.value, self._like(other, kind)))

    def _new(self, value: Any) -> _Value:
        return _Value(self._builder, value)

    def _of_vector(self) -> Any:
        return self._builder.bitcast(self.value, _FLOATS.as_pointer())

    @staticmethod
    def _like(other: _Value | float, kind: Any) -> Any:
        if isinstance(other, _Value):
            return other.value
        return ir.Constant(kind, [other] * LANES if isinstance(kind, ir.VectorType) else other)


class _Writer:
    """Writes the function: `module` has it."""

    def __init__(self, wide: int) -> None:
        self.module = ir.Module()
        pointer = ir.FloatType().as_pointer()
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [pointer] * _POINTERS + [_INTEGER] * _NUMBERS), "convolution")
        for argument in function.args[:_POINTERS]:
            argument.add_attribute("noalias")
        self._builder = ir.IRBuilder(function.append_basic_block())
        arguments = [_Value(self._builder, argument) for argument in function.args]
        self._given, self._weight, self._bias, self._total, self._active, self._transformed, self._products = arguments[:_POINTERS]
        self._rows, self._columns, self._inputs, self._outputs, self._add = arguments[_POINTERS:]
        self._wide, self._at_once = wide, wide * LANES
        down, self._across = ((n + (_EDGE - 1)) // _EDGE for n in (self._rows, self._columns))
        broad = self._across * _EDGE + (_TILE - _EDGE)
        self._in_row, self._out_row = broad * self._inputs, broad * self._outputs
        self._nowhere = (down * _EDGE + (_TILE - _EDGE)) * self._out_row
        self._by_input_place = self._inputs * _BLOCK + _APART
        self._by_output_place = _BLOCK * self._at_once + _APART
        tiles = down * self._across
        with self._loop(tiles, _BLOCK) as first:
            left = tiles - first
            count = (left < _BLOCK).chosen(left, _BLOCK)
            self._transform(first, count)
            with self._loop(self._outputs, self._at_once) as output:
                self._multiply(count, output)
                self._transform_back(first, count, output)
        self._builder.ret_void()

    def _transform(self, first: _Value, count: _Value) -> None:
        """The block's inputs: (places, tiles, inputs)."""
        with self._loop(count) as number:
            row, column = self._corner(first + number)
            corner = self._given + (row * self._in_row + column * self._inputs)
            with self._loop(self._inputs, LANES) as channel:
                tile = [[(corner + (self._in_row * i + self._inputs * j + channel)).load() for j in range(_TILE)] for i in range(_TILE)]
                to = self._transformed + (number * self._inputs + channel)
                for place, vector in enumerate(chain(*_product(_OF_INPUT, tile))):
                    (to + self._by_input_place * place).store(vector)

    def _multiply(self, count: _Value, output: _Value) -> None:
        """Products with the weights of these outputs: (places, tiles, at once)."""
        with self._loop(_PLACES) as place:
            weight = self._weight + (output * _PLACES + place * self._at_once) * self._inputs
            with self._loop(count, _ROWS) as number:
                lines = [self._transformed + (place * self._by_input_place + (number + i) * self._inputs) for i in range(_ROWS)]
                sums = [[self._variable(ir.Constant(_FLOATS, None)) for _ in range(self._wide)] for _ in lines]
                with self._loop(self._inputs) as channel:
                    weights = [(weight + (channel * self._at_once + LANES * i)).load() for i in range(self._wide)]
                    for line, of_line in zip(lines, sums, strict=True):
                        value = (line + channel).load_everywhere()
                        for total, factor in zip(of_line, weights, strict=True):
                            total.store(total.load() + value * factor)
                to = self._products + (place * self._by_output_place + number * self._at_once)
                for i, total in enumerate(chain(*sums)):
                    (to + LANES * i).store(total.load())

    def _transform_back(self, first: _Value, count: _Value, output: _Value) -> None:
        """These outputs of the block."""
        with self._loop(count) as number:
            row, column = self._corner(first + number)
            with self._loop(self._at_once, LANES) as part:
                products, channel = self._products + (number * self._at_once + part), output + part
                places = [(products + self._by_output_place * place).load() for place in range(_PLACES)]
                bias = (self._bias + channel).load()
                for i, line in enumerate(_product(_OF_OUTPUT, [places[n : n + _TILE] for n in range(0, _PLACES, _TILE)])):
                    for j, vector in enumerate(line):
                        at = self._at(row + i, column + j) + channel
                        alone = vector + bias
                        value = (self._add < 1).chosen(alone, alone + (self._total + at).load())
                        (self._total + at).store(value)
                        (self._active + at).store(value.silu())

    def _corner(self, tile: _Value) -> tuple[_Value, _Value]:
        """(row, column)"""
        return tile // self._across * _EDGE, tile % self._across * _EDGE

    def _at(self, y: _Value, x: _Value) -> _Value:
        """Where the outputs of a pixel stand; of one that is not on the surface, behind it."""
        inside = (y < self._rows) & (x < self._columns)
        return inside.chosen((y + 1) * self._out_row + (x + 1) * self._outputs, self._nowhere)

    @contextmanager
    def _loop(self, stop: _Value | int, step: int = 1) -> Iterator[_Value]:
        """Over whole numbers from 0."""
        builder, at = self._builder, self._variable(ir.Constant(_INTEGER, 0)).value
        test, body, end = (builder.append_basic_block() for _ in range(3))
        builder.branch(test)
        builder.position_at_end(test)
        index = _Value(builder, builder.load(at))
        builder.cbranch((index < stop).value, body, end)
        builder.position_at_end(body)
        yield index
        builder.store((index + step).value, at)
        builder.branch(test)
        builder.position_at_end(end)

    def _variable(self, value: Any) -> _Value:
        """The address of one that may change; the compiler keeps it in a register."""
        with self._builder.goto_entry_block():
            room = self._builder.alloca(value.type)
        self._builder.store(value, room)
        return _Value(self._builder, room)


def _product(matrix: Sequence[Sequence[float]], tile: list[list[_Value]]) -> list[list[_Value]]:
    """matrix tile matrix^T; the matrix holds 0, 1 and -1."""
    half = [[_signed(row, column) for column in zip(*tile, strict=True)] for row in matrix]
    return [[_signed(row, line) for row in matrix] for line in half]


def _signed(signs: Sequence[float], vectors: Sequence[_Value]) -> _Value:
    """Their sum, each with its sign."""
    plus = [vector for sign, vector in zip(signs, vectors, strict=True) if sign > 0]
    minus = [vector for sign, vector in zip(signs, vectors, strict=True) if sign < 0]
    return reduce(_Value.__sub__, minus, reduce(_Value.__add__, plus))
