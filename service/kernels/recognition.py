"""Recognizes requests that came before, but for their numbers: machine code made by numba.

`recurring` keeps what came before and lays it out in tables; what may differ, and why, is said there. Here bytes are held
against it: a head is steps, each a text that must be there to the byte and then perhaps a gap; a body is a text, a matrix
of numbers (`decimals.read_matrix`) and another text. Nothing beyond the bytes that were read is looked at but as filling
of a word or a window, which never counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from service.batch import BINARY, FLAT
from service.kernels.decimals import generate_search, is_digit, read_matrix
from service.kernels.intrinsics import (
    Number,
    U,
    addresses_at,
    byte_at,
    floats_at,
    inline,
    jit,
    row_at,
    to_bits,
    trailing_zeros,
    word_at,
)
from service.recurring import (
    AFTER,
    BEFORE,
    BODY,
    BUFFER,
    BYTES,
    CELLS,
    FEATURES,
    FIXED_ROWS,
    FORM_CELLS,
    FORM_COUNT,
    FORM_HITS,
    FORMS,
    GAP,
    HEAD_CELLS,
    HEAD_COUNT,
    HEAD_HITS,
    HEADS,
    ID,
    ID_CHARS,
    ID_END,
    KIND,
    LENGTH_DIGITS,
    LENGTH_GAP,
    MAX_BODY,
    MAX_HEAD,
    MAX_ID,
    MAX_ROWS,
    REQUEST_ID_GAP,
    ROOM,
    ROWS,
    SHAPE,
    SIZE,
    STEP_CELLS,
    STEP_COUNT,
    STEPS,
    TAKEN,
    VALUE_GAP,
    VALUES,
)

UNKNOWN = 0
WINDOW = U(32)
# Of int64s, as whoever calls it from outside has them: compiled once for both.
read_rows = jit(read_matrix)
Int = np.int64


@intrinsic
def find_unprintable(context: Any, address: Any) -> Any:
    """A bit for each of 32 bytes that is neither visible ASCII nor a blank, and one behind them."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        found = generate_search(builder, args[0], ">", ord(" "), ord("~") - ord(" "))
        return builder.or_(found, ir.Constant(ir.IntType(64), 1 << 32))

    return types.uint64(types.uint64), generate


@inline
def are_same(one: Number, other: Number, count: Number) -> bool:
    """Whether as many bytes at two addresses are the same."""
    while count >= U(8):
        if word_at(one) != word_at(other):
            return False
        one += U(8)
        other += U(8)
        count -= U(8)
    return (word_at(one) ^ word_at(other)) & ((U(1) << U(8) * count) - U(1)) == U(0)


@inline
def skip_value(at: Number, end: Number) -> Number:
    """Where the visible ASCII and the blanks end that begin here."""
    while True:
        count = trailing_zeros(find_unprintable(at))
        at += count
        if count < WINDOW or at >= end:
            return min(at, end)


@inline
def skip_id(chars: Number, at: Number, end: Number) -> Number:
    """Where the characters end that an id may have."""
    while at < end and byte_at(chars + byte_at(at)) != U(0):
        at += U(1)
    return at


@jit
def match_head(cells: Any, steps: Any, begin: Number, end: Number) -> Number:
    """Where the body begins behind this head, if it is there and the body ends where the bytes do; else nowhere (0)."""
    at, length, limit = begin, U(0), begin + U(cells[U(MAX_HEAD)])
    cells[U(ID)] = cells[U(ID_END)] = 0
    for k in range(0, len(steps), STEP_CELLS):
        size = U(steps[U(k + SIZE)])
        # Behind the end are bytes of an earlier read, and behind them memory that is not ours.
        if end - at < size or not are_same(U(steps[U(k)]), at, size):
            return U(0)
        at += size
        if at > limit:
            return U(0)
        first, gap = at, steps[U(k + GAP)]
        # No gap is looked through further than it may be long: bytes that are refused must cost no more than others.
        if gap == VALUE_GAP:
            at = skip_value(at, min(end, limit))
        elif gap == REQUEST_ID_GAP:
            at = skip_id(U(cells[U(ID_CHARS)]), at, min(end, at + U(MAX_ID + 1)))
            if at == first or at - first > U(MAX_ID):
                return U(0)
            cells[U(ID)], cells[U(ID_END)] = first - begin, at - begin
        elif gap == LENGTH_GAP:
            last = min(end, at + U(LENGTH_DIGITS + 1))
            while at < last and is_digit(byte_at(at)):
                length = length * U(10) + (byte_at(at) - U(ord("0")))
                at += U(1)
            if at == first or at - first > U(LENGTH_DIGITS):
                return U(0)
    if end - at != length or length > U(cells[U(MAX_BODY)]):
        return U(0)
    return at


@inline
def copy_floats(source: int, target: int, count: int) -> bool:
    """Copy float32 from any address; whether none of them is infinite."""
    values, copies = row_at(source, count), floats_at(target, count)
    infinite = 0
    for k in range(count):
        value = values[U(k)]
        copies[U(k)] = value
        infinite |= (to_bits(value) & np.int32(0x7FFFFFFF)) == np.int32(0x7F800000)
    return infinite == 0


@jit
def is_of_form(cells: Any, form: Any, begin: Number, end: Number, shape: int) -> bool:
    """Whether these bytes are a body of this form; then its rows are where they will be scored."""
    before, after = U(form[U(BEFORE + SIZE)]), U(form[U(AFTER + SIZE)])
    size = end - begin
    if size < before + after or not are_same(U(form[U(AFTER)]), end - after, after):
        return False
    if not are_same(U(form[U(BEFORE)]), begin, before):
        return False
    features, fixed, kind = cells[U(FEATURES)], form[U(FIXED_ROWS)], form[U(KIND)]
    taken = features * cells[U(TAKEN)]
    target = cells[U(VALUES)] + 4 * taken
    room = min(cells[U(ROOM)] - taken, features * cells[U(MAX_ROWS)])
    if kind == BINARY:
        rows, numbers = fixed, fixed * features
        is_right = (
            numbers <= room and Int(size - before) == 4 * numbers and copy_floats(Int(begin + before), target, numbers)
        )
    else:
        position = read_rows(Int(begin), Int(before), Int(size), target, room, shape)
        if position == 0 or U(position) != size - after:
            return False
        rows, width = cells[U(SHAPE)], cells[U(SHAPE + 1)]
        if kind == FLAT:
            # One list of numbers is as many rows as the form says.
            is_right = rows == 0 and width == fixed * features
            rows = fixed
        else:
            is_right = width == features and (fixed == 0 or fixed == rows)
    cells[U(ROWS)] = rows
    return is_right and 0 < rows <= cells[U(MAX_ROWS)]


def recognize(state: int) -> int:
    """What the bytes in the buffer are: the number of a form, counted from 1; 0 if not even the head is known; if only
    that, its number, counted down from -1. The cells of `recurring` at this address are read and written.
    """
    cells = addresses_at(state, CELLS)
    begin = U(cells[U(BUFFER)])
    end = begin + U(cells[U(BYTES)])
    forms = 0
    for k in range(cells[U(HEAD_COUNT)]):
        head = addresses_at(cells[U(HEADS)] + 8 * HEAD_CELLS * k, HEAD_CELLS)
        steps = addresses_at(head[U(STEPS)], head[U(STEP_COUNT)] * STEP_CELLS)
        at = match_head(cells, steps, begin, end)
        if at != U(0):
            cells[U(BODY)] = at - begin
            head[U(HEAD_HITS)] += 1
            for f in range(head[U(FORM_COUNT)]):
                form = addresses_at(head[U(FORMS)] + 8 * FORM_CELLS * f, FORM_CELLS)
                if is_of_form(cells, form, at, end, state + 8 * SHAPE):
                    cells[U(TAKEN)] += cells[U(ROWS)]
                    form[U(FORM_HITS)] += 1
                    return forms + f + 1
            return -1 - k
        forms += head[U(FORM_COUNT)]
    return UNKNOWN


EXPORTED: tuple[Callable[..., int], ...] = (recognize,)
