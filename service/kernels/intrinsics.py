"""What numba has no words for, and how it compiles everything in this room."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from service.ensemble import PLAN

# A number whose width numba infers; mypy takes numpy's integers for no int.
Number = Any
U = np.uint64

# What the processor can do that numba compiles for: this one, unless numba is told otherwise.
FEATURES: str = get_host_cpu_features() if numba.config.CPU_FEATURES is None else numba.config.CPU_FEATURES
# CPython's objects begin with a head; in numpy's arrays the address of the numbers follows it.
ARRAY_HEAD = object.__basicsize__

# Without numba's runtime nothing is counted or allocated, and without ways in from Python only the function itself is
# compiled; `compiler` adds the way in for C.
OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": False,
    "boundscheck": False,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "_nrt": False,
}


@cache
def jit(function: Callable[..., Any]) -> Any:
    """For numba to compile; the same again for the same function, so that it is compiled once, whoever calls it."""
    return numba.njit(**OPTIONS)(function)


# Small functions inside the hot loops: LLVM would keep some of them apart, and all that they work on out of registers.
inline: Callable[..., Any] = numba.njit(**OPTIONS, forceinline=True)


# What lies at an address.


def make_reader(kind: Any, aligned: bool = True) -> Any:
    """A function from an address and a length to the array of these numbers that is there."""
    array = types.Array(kind, 1, "C", aligned=aligned)

    @intrinsic
    def read_array(context: Any, address: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            found = context.make_array(array)(context, builder)
            size = context.get_constant(types.intp, kind.bitwidth // 8)
            data = builder.inttoptr(args[0], context.get_data_type(kind).as_pointer())
            populate_array(found, data=data, shape=[args[1]], strides=[size], itemsize=size, meminfo=None)
            return found._getvalue()

        return array(types.int64, types.int64), generate

    return read_array


floats_at = make_reader(types.float32)
ints_at = make_reader(types.int32)
words_at = make_reader(types.uint32)
# Rows may be a view on a request's bytes, at any address.
row_at = make_reader(types.float32, aligned=False)
addresses_at = make_reader(types.int64)


@intrinsic
def plan_at(context: Any, address: Any) -> Any:
    """The `PLAN` that is there."""
    plan = numba.from_dtype(PLAN)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(plan))

    return plan(types.int64), generate


def make_call(number: Any, kind: Any) -> Any:
    """A function from an address and a number to what the C function there gives for it."""
    function = ir.FunctionType(kind, [kind])

    @intrinsic
    def call(context: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.call(builder.inttoptr(args[0], function.as_pointer()), [args[1]])

        return number(types.int64, number), generate

    return call


call_expf, call_exp = make_call(types.float32, ir.FloatType()), make_call(types.float64, ir.DoubleType())


@inline
def data_of_array(array: int) -> Number:
    """Where the numbers of a numpy array are, whose object is at this address (see `engine.verify_arrays`)."""
    return addresses_at(array + ARRAY_HEAD, 1)[U(0)]


@intrinsic
def to_float(context: Any, word: Any) -> Any:
    """The float32 of these bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def to_bits(context: Any, value: Any) -> Any:
    """The bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), generate


# Bytes and words.


def load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


@intrinsic
def word_at(context: Any, address: Any) -> Any:
    """Eight bytes; the first is the lowest."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return load(builder, args[0], ir.IntType(64))

    return types.uint64(types.uint64), generate


@intrinsic
def byte_at(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(load(builder, args[0], ir.IntType(8)), ir.IntType(64))

    return types.uint64(types.uint64), generate


@intrinsic
def trailing_zeros(context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@intrinsic
def leading_zeros(context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@intrinsic
def high_product(context: Any, one: Any, other: Any) -> Any:
    """The upper 64 of the 128 bits of a product."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


@intrinsic
def bits_of(context: Any, value: Any) -> Any:
    """The bits of a float64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.uint64(types.float64), generate


@intrinsic
def double_of(context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.uint64), generate
