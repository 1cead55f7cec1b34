"""Reads a matrix of JSON numbers straight into float32: machine code made by numba.

`read_matrix` takes addresses and gives a position, allocates nothing and raises nothing: whatever is not a plain matrix
(a string, `true`, ragged rows, bad grammar, too many digits) is *not plain*, and the caller reads the text again in the
usual way, which finds the value or the message.

The bits are those of the usual way: text to float64 by orjson, float64 to float32 by `struct`, each rounded to nearest
even. A number of d digits and a power of ten is worked out like this:

1. 32 bytes are looked at in one step: where is the first byte that is no digit (the point), where the next (the end).
2. The digits on both sides of the point are brought together and added up in pairs, fours and eights, sixteen at a time,
   without a branch on their number, as that is what a processor cannot foretell.
3. digits times 10^e in float64 is at most 3 units in the last place from the number (digits, power and product are each
   rounded once), so the float64 that is nearest to the number is at most 4 away. A float32 has 29 bits less. Unless a
   point halfway between two float32 is as near as that, both round to the same float32, and that is the answer.
4. Else, and where float32 has fewer bits (below 2^-126), the nearest float64 is found by the algorithm of Eisel and Lemire
   (D. Lemire, Number Parsing at a Gigabyte per Second, Software: Practice and Experience 51(8), 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from service.kernels.intrinsics import (
    Number,
    U,
    bits_of,
    byte_at,
    double_of,
    high_product,
    inline,
    jit,
    leading_zeros,
    load,
    trailing_zeros,
    word_at,
)

NOT_PLAIN = 0

# Bytes that may be read from where a number begins: 32 are looked at in one step, and a sign, 23 digits, a point and an
# exponent are as many.
WINDOW = U(48)
# Two words of eight and seven more. JavaScript writes the longest of float64, 0.000001 and 16 digits.
MOST_DIGITS = U(23)
# Numbers with fewer digits leave the third word out: float32 are written with up to nine, float64 with 15 to 17.
FEW_DIGITS = U(12)

MINUS, PLUS, POINT, COMMA, ZERO, OPEN, CLOSE, E = (U(ord(char)) for char in "-+.,0[]e")
LOWER = SPACE = U(0x20)
BLANKS = tuple(U(ord(char)) for char in " \n\r\t")
NULL, NAN = (U(int.from_bytes(word, "little")) for word in (b"null", b"NaN"))
NULL_BYTES, NAN_BYTES = U(2**32 - 1), U(2**24 - 1)

# The largest exponent that may be written: beyond it float32 has nothing but zero and infinity. Digits are read as a whole
# number of 16 to 23, which lowers the exponent by as many.
MOST_EXPONENT = 60
LOWEST, HIGHEST = -MOST_EXPONENT - 23, MOST_EXPONENT

# Bits of the float64 2^-126.
SMALLEST_NORMAL = U((1023 - 126) << 52)
# Halfway between the largest float32 and 2^128: from here on struct refuses, and says so.
TOO_LARGE = float(2**128 - 2**103)
# In the 29 bits that float32 has not: a window around the half, twice as wide as it must be.
HALF, AROUND, LOST_BITS = U(2**28), U(8), U(2**29 - 1)


def most_before(digits: int) -> int:
    """The largest number that leaves room in 64 bits for so many digits behind it."""
    return int((2**64 - 10**digits) // 10**digits)


def power_of_five(exponent: int) -> tuple[int, int]:
    """The first 128 bits of 5^exponent: cut, but rounded up from -27 to -1, as the algorithm's proof wants it."""
    power = 5 ** abs(exponent)
    if exponent >= 0:
        bits = power << 128 >> power.bit_length()
    else:
        bits = (1 << (127 + power.bit_length())) // power + (1 if exponent >= -27 else 0)
    return bits >> 64, bits & (2**64 - 1)


EXPONENTS = range(LOWEST, HIGHEST + 1)
# A mask of the first n of 16 bytes stands at MASKS[MASK_BEGIN - n], one of those from the seventeenth on at n - 16.
MASK_BEGIN = 32
MASKS: NDArray[np.uint8] = np.array([255] * MASK_BEGIN + [0] * MASK_BEGIN, np.uint8)
ROOM: NDArray[np.uint64] = np.array([most_before(n) for n in range(8)], np.uint64)
TENS: NDArray[np.uint64] = np.array([10**n for n in range(8)], np.uint64)
POWERS: NDArray[np.float64] = np.array([float(f"1e{e}") for e in EXPONENTS])
FIVES: NDArray[np.uint64] = np.array([power_of_five(e) for e in EXPONENTS], np.uint64).reshape(-1)


@intrinsic
def put(context: Any, address: Any, value: Any) -> Any:
    """Write a float32 or a word."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], args[1].type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.uint64, value), generate


def generate_search(builder: Any, address: Any, comparison: str, first: int, limit: int) -> Any:
    """A bit for each of 32 bytes whose distance from `first` compares with the limit; the bits above are set."""
    kind = ir.VectorType(ir.IntType(8), 32)
    distances = builder.sub(load(builder, address, kind), ir.Constant(kind, [first] * 32))
    found = builder.icmp_unsigned(comparison, distances, ir.Constant(kind, [limit] * 32))
    return builder.zext(builder.bitcast(found, ir.IntType(32)), ir.IntType(64))


@intrinsic
def find_others(context: Any, address: Any) -> Any:
    """A bit for each of 32 bytes that is no digit, and one behind them."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        found = generate_search(builder, args[0], ">", ord("0"), 9)
        return builder.or_(found, ir.Constant(ir.IntType(64), 1 << 32))

    return types.uint64(types.uint64), generate


@intrinsic
def find_points(context: Any, address: Any) -> Any:
    """A bit for each of 32 bytes that is a point."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return generate_search(builder, args[0], "==", ord("."), 0)

    return types.uint64(types.uint64), generate


@intrinsic
def make_room(context: Any) -> Any:
    """Address of two windows of zeros on the stack."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        room = cgutils.alloca_once(builder, ir.ArrayType(ir.IntType(64), 12), zfill=True)
        return builder.ptrtoint(room, ir.IntType(64))

    return types.uint64(), generate


# One number.


@intrinsic
def read_sixteen(context: Any, at: Any, point: Any, whole_mask: Any, count_mask: Any) -> Any:
    """The number that 16 bytes are as digits, without the point behind the whole ones, zeros where the count ends.

    Digits are added up in pairs, fours and eights, all lanes at once.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at, point, whole_mask, count_mask = args
        kind = ir.VectorType(ir.IntType(8), 16)
        before, behind = load(builder, at, kind), load(builder, builder.add(at, point), kind)
        is_whole, is_counted = load(builder, whole_mask, kind), load(builder, count_mask, kind)
        lanes = builder.or_(builder.and_(before, is_whole), builder.and_(behind, builder.not_(is_whole)))
        lanes = builder.and_(builder.and_(lanes, is_counted), ir.Constant(kind, [0x0F] * 16))
        for bits, factor in ((8, 10), (16, 100), (32, 10_000)):
            kind = ir.VectorType(ir.IntType(2 * bits), 64 // bits)
            lanes = builder.bitcast(lanes, kind)
            first = builder.and_(lanes, ir.Constant(kind, [2**bits - 1] * (64 // bits)))
            second = builder.lshr(lanes, ir.Constant(kind, [bits] * (64 // bits)))
            lanes = builder.add(builder.mul(first, ir.Constant(kind, [factor] * (64 // bits))), second)
        upper, lower = (builder.extract_element(lanes, ir.Constant(ir.IntType(32), k)) for k in range(2))
        return builder.add(builder.mul(upper, ir.Constant(ir.IntType(64), 10**8)), lower)

    return types.uint64(types.uint64, types.uint64, types.uint64, types.uint64), generate


@inline
def read_rest(at: Number, point: Number, whole_mask: Number, count: Number) -> Number:
    """The number that `count` digits behind the first sixteen are, at most seven."""
    mask, behind = word_at(whole_mask + U(16)), word_at(at + U(16) + point)
    word = behind ^ ((behind ^ word_at(at + U(16))) & mask)
    word = word << (U(56) - U(8) * count) << U(8)
    word = (word & U(0x0F0F0F0F0F0F0F0F)) * U(10 * 2**8 + 1) >> U(8)
    word = (word & U(0x00FF00FF00FF00FF)) * U(100 * 2**16 + 1) >> U(16)
    return (word & U(0x0000FFFF0000FFFF)) * U(10_000 * 2**32 + 1) >> U(32)


@jit
def round_exactly(digits: Number, exponent: int) -> float:
    """The float64 nearest to digits times 10^exponent, or -1 where the algorithm cannot tell."""
    shift = leading_zeros(digits)
    digits <<= shift
    at = U(2 * (exponent - LOWEST))
    high, low = high_product(digits, FIVES[at]), digits * FIVES[at]
    if high & U(0x1FF) == U(0x1FF):
        more = high_product(digits, FIVES[at + U(1)])
        low += more
        high += U(1) if low < more else U(0)
        # 5^exponent is all in the table from 0 to 55, and its inverse is exact enough from -27 on.
        if low == U(2**64 - 1) and (exponent < -27 or exponent > 55):
            return -1.0
    top = high >> U(63)
    mantissa = high >> (top + U(9))
    # Halfway between two: the even one. It can only be where 5^-exponent divides 64 bits of digits.
    is_half = low <= U(1) and -4 <= exponent <= 23 and mantissa & U(3) == U(1) and mantissa << (top + U(9)) == high
    if is_half:
        mantissa -= U(1)
    mantissa = (mantissa + (mantissa & U(1))) >> U(1)
    # 217706 / 2^16 is the binary logarithm of ten, near enough to cut right.
    power = U(((217706 * exponent) >> 16) + 63 + 1023) + top - shift
    # A mantissa that rounding has made one bit longer is all zeros, and adds one to the power.
    return double_of((power << U(52)) + (mantissa - U(2**52)))


@inline
def round_to_float(digits: Number, exponent: int) -> float:
    """digits times 10^exponent as a float64 that rounds to the right float32; negative where that is not known."""
    value = np.float64(digits) * POWERS[U(exponent - LOWEST)]
    bits = bits_of(value)
    is_near_half = (bits - (HALF - AROUND)) & LOST_BITS <= U(2) * AROUND
    # One comparison for both ends: zero, which is exact, becomes the largest.
    if is_near_half or bits - U(1) < SMALLEST_NORMAL:
        value = round_exactly(digits, exponent)
    return value


@inline
def is_digit(char: Number) -> bool:
    return char - ZERO <= U(9)


@jit
def read_exponent(at: Number) -> tuple[int, Number]:
    """The exponent behind an e, and where it ends; nowhere (0) where it is none, or too large."""
    sign = byte_at(at)
    at += U(1) if sign in (MINUS, PLUS) else U(0)
    first = at
    exponent: Number = 0
    while is_digit(byte_at(at)):
        exponent = exponent * 10 + np.int64(byte_at(at) - ZERO)
        at += U(1)
        if exponent > MOST_EXPONENT or at - first > U(3):
            return 0, U(0)
    if at == first:
        return 0, U(0)
    return (-exponent if sign == MINUS else exponent), at


@inline
def read_number(at: Number) -> tuple[np.float32, Number]:
    """The number at an address, and where it ends; nowhere (0) where there is none that is plain."""
    nothing = np.float32(0), U(0)
    negative = U(1) if byte_at(at) == MINUS else U(0)
    # All that the next number's address hangs on is found without reading memory twice: it is the longest chain.
    others = find_others(at) & ~negative
    first_other = others & (U(0) - others)
    point = first_other & find_points(at)
    length = trailing_zeros(others ^ point)
    following = at + length
    at += negative
    whole = trailing_zeros(first_other) - negative
    point = U(1) if point != U(0) else U(0)
    count = length - negative - point
    if count > MOST_DIGITS or whole == U(0):
        return nothing
    # `1.` and `01` are not JSON.
    most = U(1) if byte_at(at) == ZERO else MOST_DIGITS
    if (point != U(0) and count == whole) or whole > most:
        return nothing
    masks = U(MASKS.ctypes.data) + U(MASK_BEGIN)
    # As if sixteen digits had been written, zeros at the end if need be.
    digits = read_sixteen(at, point, masks - whole, masks - count)
    exponent = np.int64(whole) - 16
    if count > FEW_DIGITS:
        rest = count - U(16) if count > U(16) else U(0)
        if digits > ROOM[rest]:
            return nothing
        digits = digits * TENS[rest] + read_rest(at, point, masks - whole, rest)
        exponent -= np.int64(rest)
    is_fraction = point
    if byte_at(following) | LOWER == E:
        written, following = read_exponent(following + U(1))
        if following == U(0):
            return nothing
        exponent += written
        is_fraction = U(1)
    # -0 is the integer 0, which has no sign.
    if digits | is_fraction | (U(1) - negative) == U(0):
        return nothing
    value = round_to_float(digits, exponent)
    if value < 0.0 or value >= TOO_LARGE:
        return nothing
    return np.float32(double_of(bits_of(value) | negative << U(63))), following


@inline
def read_value(at: Number) -> tuple[np.float32, Number]:
    """As `read_number`, with null and NaN for a missing value."""
    value, end = read_number(at)
    if end == U(0):
        word = word_at(at)
        if word & NULL_BYTES == NULL:
            return np.float32(np.nan), at + U(4)
        if word & NAN_BYTES == NAN:
            return np.float32(np.nan), at + U(3)
    return value, end


# The matrix.


@inline
def is_blank(char: Number) -> bool:
    return char == BLANKS[0] or char == BLANKS[1] or char == BLANKS[2] or char == BLANKS[3]


@jit
def copy_tail(begin: Number, end: Number, room: Number) -> None:
    """The last window of a text, or as much as there is of it."""
    for offset in range(0, 48, 8):
        source = end - WINDOW + U(offset)
        if source >= begin:
            put(room + U(offset), word_at(source))
        else:
            for k in range(8):
                if source + U(k) >= begin:
                    put(room + U(offset + k), np.uint8(byte_at(source + U(k))))


# What comes next.
INSIDE, VALUE, BEHIND_VALUE, BEHIND_ROW, ROW = range(5)


def read_matrix(text: int, start: int, length: int, out: int, capacity: int, shape: int) -> int:
    """Read rows of JSON numbers, or one bare row, from the `[` at `start` of a text of `length` bytes.

    Writes at most `capacity` float32 to `out`, NaN for null, and the numbers of rows (0 for a bare row) and of values in
    each to `shape` (two int64). Gives the position behind the closing bracket, or 0 where the text is not plain.
    """
    begin, end, at = U(text), U(text) + U(length), U(text) + U(start)
    # From here on no window can be read any more: we go on in a copy of the text's end, with zeros behind it.
    last = end - WINDOW if U(length) >= WINDOW else U(0)
    room = make_room()
    target, full = U(out), U(out) + U(4) * U(capacity)
    row, width, rows = target, U(0), U(0)
    if at >= end or byte_at(at) != OPEN:
        return NOT_PLAIN
    at += U(1)
    state, is_bare = INSIDE, False
    while True:
        while at < end and is_blank(byte_at(at)):
            at += U(1)
        if at > last:
            copy_tail(begin, end, room)
            at = room + WINDOW - (end - at)
            end = last = room + WINDOW
        char = byte_at(at)
        if state == VALUE:
            while True:
                value, at = read_value(at)
                if at == U(0) or target >= full:
                    return NOT_PLAIN
                put(target, value)
                target += U(4)
                if byte_at(at) != COMMA:
                    state = BEHIND_VALUE
                    break
                at += U(1)
                if at > last or byte_at(at) <= SPACE:
                    break
        elif state == BEHIND_VALUE:
            at += U(1)
            if char == COMMA:
                state = VALUE
            elif char == CLOSE:
                if rows == U(0):
                    width = target - row
                elif target - row != width:
                    return NOT_PLAIN
                if is_bare:
                    break
                rows += U(1)
                row = target
                state = BEHIND_ROW
            else:
                return NOT_PLAIN
        elif state == BEHIND_ROW:
            at += U(1)
            if char == CLOSE:
                break
            if char != COMMA:
                return NOT_PLAIN
            state = ROW
        else:
            if char == OPEN:
                at += U(1)
            elif state == INSIDE:
                is_bare = True
            else:
                return NOT_PLAIN
            state = VALUE
    put(U(shape), rows)
    put(U(shape) + U(8), width >> U(2))
    return length - np.int64(end - at)


EXPORTED: tuple[Callable[..., int], ...] = (read_matrix,)
