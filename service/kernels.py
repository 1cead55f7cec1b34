"""Scores of an `Ensemble`: machine code made by numba, to the last bit what XGBoost gives a row that comes alone.

XGBoost starts a row at the base margin and adds one tree after the other, in float32 (`PredValueByOneTree` in its
cpu_predictor.cc, 3.2). Both kernels here add in that order, so a row's bits do not depend on its company:

- the *rows* kernel walks a row down eight trees at a time. A step does not branch: a leaf leads to itself, and a missing
  value is stood in for by the smallest or the largest number, whichever goes the way that the split sends it;
- the *blocks* kernel holds `BLOCK` rows against every split of a segment (see `ensemble`), two vector instructions for
  16 rows. numba does not keep the masks in registers from one split to the next, so that loop is written in LLVM's
  language.

Nothing may reorder or fuse the sums: no fastmath, hence no contraction to FMA. exp is the C library's expf, as in
XGBoost, and known to LLVM only by an address, so that no vector library takes its place.

Tables are read flat and with unsigned indices: numba otherwise asks of each index whether it is negative, which makes
the rows kernel five times slower.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from service.ensemble import (
    ARGMAX,
    BASE,
    BEGIN,
    CHILD,
    CODE_OF_FIRST,
    CODE_OF_MISSING,
    CODE_OF_UNKNOWN,
    COLUMN,
    DEPTH,
    END,
    ENTRY,
    EXP,
    FEATURE,
    FIRST,
    GROUP,
    LAST,
    LIMIT,
    MASK,
    OF,
    RECORD,
    RIGHT,
    ROOT,
    SETS,
    SIGMOID,
    SOFTMAX,
    STEP,
    THRESHOLD,
    VALUE,
    WIDTH,
    WORD,
    Ensemble,
    Floats,
    Ints,
)

Words = NDArray[np.uint32]
# A number whose width numba infers; mypy takes numpy's integers for no int.
Number = Any

# Rows that the blocks kernel takes at once, and numbers in a vector: eight vectors of masks stay in registers.
BLOCK = 128
LANES = 16
# From this many rows on a block that is not full is filled up; see `Engine.measure_crossover`.
CROSSOVER = 16

# Of a row of the tables, read flat.
TREE, SEGMENT, TEST, CODE = 5, 6, 3, 3

EXPF = "scorer_expf"
MISSING_LEFT, MISSING_RIGHT = np.float32(-np.inf), np.float32(np.inf)
ONE, ZERO = np.float32(1), np.float32(0)
# `common::Sigmoid`: beyond this exp is infinite.
STEEPEST = np.float32(88.7)


def find_expf() -> int:
    """Address of the C library's expf: the one that XGBoost calls, picked for this CPU by the loader."""
    library = ctypes.CDLL("libm.so.6" if sys.platform == "linux" else None)
    address = ctypes.cast(library.expf, ctypes.c_void_p).value
    assert address is not None
    return address


llvmlite.binding.add_symbol(EXPF, find_expf())
expf: Any = types.ExternalFunction(EXPF, types.float32(types.float32))

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": False, "boundscheck": False}
kernel: Callable[..., Any] = numba.njit(**OPTIONS)
# What only kernels call: without a way in from Python, which would cost as long to compile as the function.
INNER: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
jit: Callable[..., Any] = numba.njit(**OPTIONS, **INNER)
# Small functions inside the hot loops: LLVM would keep some of them apart, and all that they work on out of registers.
inline: Callable[..., Any] = numba.njit(**OPTIONS, **INNER, forceinline=True)
U = np.uint64


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


# Walking. `words` is None where no tree splits by category: numba then leaves out all that deals with it.


@inline
def code_of(value: np.float32, width: int) -> Number:
    """What a value is to the sets of a feature that know `width` categories (`common::Decision`)."""
    if value != value:
        return CODE_OF_MISSING
    if value < ZERO or value >= np.float32(width):
        return CODE_OF_UNKNOWN
    return np.int32(value) + CODE_OF_FIRST


@inline
def walk_size(features: int, words: Words | None) -> int:
    return 2 * features if words is None else 3 * features


@inline
def fill_walk(values: Floats, row: int, codes: Ints, words: Words | None, walk: Floats, offset: int) -> None:
    """A row thrice: missing values as where they go left, then as where they go right, then the codes of categories."""
    count = values.shape[1]
    for i in range(count):
        value = values[U(row), U(i)]
        is_missing = value != value
        walk[U(offset + i)] = MISSING_LEFT if is_missing else value
        walk[U(offset + count + i)] = MISSING_RIGHT if is_missing else value
    if words is not None:
        for k in range(0, len(codes), CODE):
            feature = codes[U(k + OF)]
            code = code_of(values[U(row), U(feature)], codes[U(k + WIDTH)])
            walk[U(offset + 2 * count + feature)] = to_float(np.int32(code))


@inline
def step(nodes: Ints, words: Words | None, walk: Floats, offset: int, node: Number) -> Number:
    """From one record to the next; `offset` is where the row begins in `walk`."""
    feature, threshold = nodes[node + U(FEATURE)], nodes[node + U(THRESHOLD)]
    if words is None:
        goes_right = not walk[U(offset) + U(feature)] < to_float(threshold)
    else:
        # Both kinds of split are worked out for every node: that is cheaper than a branch that nobody can predict.
        is_set = feature < 0
        value = walk[U(offset) + U(-1 - feature if is_set else feature)]
        code = to_bits(value)
        word = words[U(threshold + (code >> 5) if is_set else 0)]
        is_in_set = (word >> np.uint32(code & 31)) & np.uint32(1) != 0
        goes_right = is_in_set if is_set else not value < to_float(threshold)
    return U(nodes[node + U(CHILD)]) + (U(RECORD) if goes_right else U(0))


@inline
def value_of(nodes: Ints, node: Number) -> Number:
    return to_float(nodes[node + U(VALUE)])


@inline
def root_of(trees: Ints, tree: Number) -> Number:
    return U(trees[tree * U(TREE) + U(ROOT)]) * U(RECORD)


@inline
def descend(
    nodes: Ints, words: Words | None, walk: Floats, depth: int, offsets: tuple[Number, ...], roots: tuple[Number, ...]
) -> tuple[Number, ...]:
    """Leaves of eight rows, or of one row in eight trees."""
    n0, n1, n2, n3, n4, n5, n6, n7 = roots
    o0, o1, o2, o3, o4, o5, o6, o7 = offsets
    for start in range(0, depth, 8):
        m0, m1, m2, m3, m4, m5, m6, m7 = n0, n1, n2, n3, n4, n5, n6, n7
        for _ in range(min(8, depth - start)):
            n0 = step(nodes, words, walk, o0, n0)
            n1 = step(nodes, words, walk, o1, n1)
            n2 = step(nodes, words, walk, o2, n2)
            n3 = step(nodes, words, walk, o3, n3)
            n4 = step(nodes, words, walk, o4, n4)
            n5 = step(nodes, words, walk, o5, n5)
            n6 = step(nodes, words, walk, o6, n6)
            n7 = step(nodes, words, walk, o7, n7)
        # Trees grown leaf by leaf can be far deeper than most of their rows go.
        if (m0 ^ n0) | (m1 ^ n1) | (m2 ^ n2) | (m3 ^ n3) | (m4 ^ n4) | (m5 ^ n5) | (m6 ^ n6) | (m7 ^ n7) == U(0):
            break
    return n0, n1, n2, n3, n4, n5, n6, n7


@inline
def walk_eight(
    nodes: Ints, words: Words | None, trees: Ints, walk: Floats, first: int, last: int
) -> tuple[Number, ...]:
    """Leaves of one row in eight trees; past the last one, the last one's again."""
    roots = (
        root_of(trees, U(first)),
        root_of(trees, U(min(first + 1, last))),
        root_of(trees, U(min(first + 2, last))),
        root_of(trees, U(min(first + 3, last))),
        root_of(trees, U(min(first + 4, last))),
        root_of(trees, U(min(first + 5, last))),
        root_of(trees, U(min(first + 6, last))),
        root_of(trees, U(min(first + 7, last))),
    )
    depth = 0
    for t in range(first, min(first + 8, last + 1)):
        depth = max(depth, trees[U(t * TREE + DEPTH)])
    start = U(0)
    same = (start, start, start, start, start, start, start, start)
    leaves: tuple[Number, ...] = descend(nodes, words, walk, depth, same, roots)
    return leaves


@inline
def copy_to(source: Floats, target: Floats) -> None:
    """numba compiles an assignment of arrays for a second, with all that may go wrong in one."""
    for k in range(len(source)):
        target[U(k)] = source[U(k)]


@jit
def add_trees(nodes: Ints, trees: Ints, walk: Floats, begin: int, end: int, total: np.float32) -> np.float32:
    """The margin of one row: `total` and then a value from each tree, in order."""
    for first in range(begin, end, 8):
        n0, n1, n2, n3, n4, n5, n6, n7 = walk_eight(nodes, None, trees, walk, first, end - 1)
        total += value_of(nodes, n0)
        if first + 8 <= end:
            total += value_of(nodes, n1)
            total += value_of(nodes, n2)
            total += value_of(nodes, n3)
            total += value_of(nodes, n4)
            total += value_of(nodes, n5)
            total += value_of(nodes, n6)
            total += value_of(nodes, n7)
        else:
            leaves = (n1, n2, n3, n4, n5, n6, n7)
            for k in range(end - first - 1):
                total += value_of(nodes, leaves[k])
    return total


@jit
def add_trees_of_groups(nodes: Ints, trees: Ints, walk: Floats, begin: int, end: int, sums: Floats) -> None:
    """As `add_trees`, each tree to its output."""
    for first in range(begin, end, 8):
        leaves = walk_eight(nodes, None, trees, walk, first, end - 1)
        for k in range(min(8, end - first)):
            sums[U(trees[U((first + k) * TREE + GROUP)])] += value_of(nodes, leaves[k])


@jit
def add_trees_of_any(
    nodes: Ints, words: Words, trees: Ints, vectors: Floats, walk: Floats, begin: int, end: int, sums: Floats
) -> None:
    """As `add_trees`, where leaves may hold several values and splits be by category."""
    for first in range(begin, end, 8):
        leaves = walk_eight(nodes, words, trees, walk, first, end - 1)
        for k in range(min(8, end - first)):
            if len(vectors) == 0:
                sums[U(trees[U((first + k) * TREE + GROUP)])] += value_of(nodes, leaves[k])
            else:
                row = U(nodes[leaves[k] + U(VALUE)])
                for g in range(vectors.shape[1]):
                    sums[U(g)] += vectors[row, U(g)]


@kernel
def score_rows(
    values: Floats, nodes: Ints, trees: Ints, base: Floats, begin: int, end: int, transform: int, sums: Floats
) -> None:
    """The rows kernel, for trees with one value in a leaf and no splits by category.

    Writes scores of float32 rows (rows, features) by the trees from begin to end into `sums` (rows, groups).
    """
    walk = np.empty(walk_size(values.shape[1], None), np.float32)
    for i in range(len(values)):
        fill_walk(values, i, trees, None, walk, 0)
        if len(base) == 1:
            sums[i, 0] = add_trees(nodes, trees, walk, begin, end, base[0])
        else:
            copy_to(base, sums[i])
            add_trees_of_groups(nodes, trees, walk, begin, end, sums[i])
        transform_row(sums[i], transform)


@kernel
def score_rows_of_any(
    values: Floats,
    nodes: Ints,
    trees: Ints,
    vectors: Floats,
    codes: Ints,
    words: Words,
    base: Floats,
    begin: int,
    end: int,
    transform: int,
    sums: Floats,
) -> None:
    """As `score_rows`, for all trees."""
    walk = np.empty(walk_size(values.shape[1], words), np.float32)
    for i in range(len(values)):
        fill_walk(values, i, codes, words, walk, 0)
        copy_to(base, sums[i])
        add_trees_of_any(nodes, words, trees, vectors, walk, begin, end, sums[i])
        transform_row(sums[i], transform)


@kernel
def find_leaves(values: Floats, nodes: Ints, trees: Ints, codes: Ints, words: Words, end: int, leaves: Ints) -> None:
    """Where each row ends in each tree, counted from the tree's root."""
    walk = np.empty(walk_size(values.shape[1], words), np.float32)
    for i in range(len(values)):
        fill_walk(values, i, codes, words, walk, 0)
        for first in range(0, end, 8):
            found = walk_eight(nodes, words, trees, walk, first, end - 1)
            for k in range(min(8, end - first)):
                root = root_of(trees, U(first + k))
                leaves[U(i), U(first + k)] = (found[k] - root) // U(RECORD)


# Many rows.

INT32, INT64 = ir.IntType(32), ir.IntType(64)
INT_VECTOR, FLOAT_VECTOR = ir.VectorType(INT32, LANES), ir.VectorType(ir.FloatType(), LANES)
VECTORS = BLOCK // LANES
ALIGNMENT = 64


def data_of(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def spread(builder: Any, value: Any, kind: Any) -> Any:
    """A vector of one value."""
    vector = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(INT32, 0))
    lanes = ir.Constant(ir.VectorType(INT32, LANES), [0] * LANES)
    return builder.shuffle_vector(vector, ir.Constant(kind, ir.Undefined), lanes)


def vector_at(builder: Any, data: Any, number: int, kind: Any) -> Any:
    return builder.bitcast(builder.gep(data, [ir.Constant(INT64, number * LANES)]), kind.as_pointer())


@intrinsic
def hold_against(
    context: Any, columns: Any, tests: Any, begin: Any, right: Any, sets: Any, end: Any, exits: Any
) -> Any:
    """Hold a block of columns (columns, BLOCK) against tests, and write the exits that each row still has.

    Tests from begin on send a missing value left, from right on they send it right, from sets on they are for bits in
    common. The masks of all rows travel through the three loops in registers.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, rows, found = (data_of(context, builder, signature.args[k], args[k]) for k in (1, 0, 6))
        masks = [ir.Constant(INT_VECTOR, [-1] * LANES)] * VECTORS
        for k, compare in ((2, is_not_below), (3, is_not_below_or_missing), (4, have_common_bits)):
            masks = generate_loop(builder, rows, table, args[k], args[k + 1], compare, masks)
        for number, mask in enumerate(masks):
            builder.store(mask, vector_at(builder, found, number, INT_VECTOR), align=ALIGNMENT)
        return context.get_dummy_value()

    n = types.intp
    return types.void(columns, tests, n, n, n, n, exits), generate


def is_not_below(builder: Any, values: Any, limits: Any) -> Any:
    return builder.fcmp_ordered(">=", values, limits)


def is_not_below_or_missing(builder: Any, values: Any, limits: Any) -> Any:
    return builder.fcmp_unordered(">=", values, limits)


def have_common_bits(builder: Any, values: Any, limits: Any) -> Any:
    common = builder.and_(builder.bitcast(values, INT_VECTOR), builder.bitcast(limits, INT_VECTOR))
    return builder.icmp_unsigned("!=", common, ir.Constant(INT_VECTOR, [0] * LANES))


def generate_loop(
    builder: Any, columns: Any, tests: Any, first: Any, last: Any, compare: Callable[..., Any], masks: list[Any]
) -> list[Any]:
    """`for test in range(first, last): masks &= test.mask where compare(column, test.limit)`; gives the masks after."""
    before = builder.block
    head, body, done = (builder.append_basic_block(name) for name in ("tests", "test", "tested"))
    builder.branch(head)
    builder.position_at_end(head)
    at = builder.phi(INT64)
    at.add_incoming(first, before)
    held = [builder.phi(INT_VECTOR) for _ in masks]
    for phi, mask in zip(held, masks, strict=True):
        phi.add_incoming(mask, before)
    builder.cbranch(builder.icmp_signed("<", at, last), body, done)
    builder.position_at_end(body)
    record = builder.gep(tests, [builder.mul(at, ir.Constant(INT64, TEST))])
    column, limit, mask = (builder.load(builder.gep(record, [ir.Constant(INT64, k)])) for k in (COLUMN, LIMIT, MASK))
    rows = builder.gep(columns, [builder.mul(builder.zext(column, INT64), ir.Constant(INT64, BLOCK))])
    limits = spread(builder, builder.bitcast(limit, ir.FloatType()), FLOAT_VECTOR)
    closed = spread(builder, mask, INT_VECTOR)
    for number, phi in enumerate(held):
        values = builder.load(vector_at(builder, rows, number, FLOAT_VECTOR), align=ALIGNMENT)
        goes_right = compare(builder, values, limits)
        phi.add_incoming(builder.select(goes_right, builder.and_(phi, closed), phi), builder.block)
    at.add_incoming(builder.add(at, ir.Constant(INT64, 1)), builder.block)
    builder.branch(head)
    builder.position_at_end(done)
    return held


@intrinsic
def leave_segment(context: Any, exits: Any, base: Any, entry: Any, places: Any) -> Any:
    """Move the rows of a block that stand at `entry` to `base` plus their lowest exit."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        open_exits, places = (data_of(context, builder, signature.args[k], args[k]) for k in (0, 3))
        bases, entries = (spread(builder, args[k], INT_VECTOR) for k in (1, 2))
        kind = ir.FunctionType(INT_VECTOR, [INT_VECTOR, ir.IntType(1)])
        cttz = cgutils.get_or_insert_function(builder.module, kind, f"llvm.cttz.v{LANES}i32")
        for number in range(VECTORS):
            mask = builder.load(vector_at(builder, open_exits, number, INT_VECTOR), align=ALIGNMENT)
            target = vector_at(builder, places, number, INT_VECTOR)
            place = builder.load(target, align=ALIGNMENT)
            exit_ = builder.add(builder.call(cttz, [mask, ir.Constant(ir.IntType(1), 1)]), bases)
            is_here = builder.icmp_signed("==", place, entries)
            builder.store(builder.select(is_here, exit_, place), target, align=ALIGNMENT)
        return context.get_dummy_value()

    return types.void(exits, types.int32, types.int32, places), generate


@jit
def find_exits(columns: Floats, segments: Ints, tests: Ints, first: int, last: int, exits: Ints, places: Ints) -> None:
    """The slot that each row of a block leaves a tree by, whose segments are those from first to last."""
    for i in range(BLOCK):
        places[U(i)] = -1
    for s in range(first, last):
        at = U(s * SEGMENT)
        begin, right = segments[at + U(BEGIN)], segments[at + U(RIGHT)]
        hold_against(columns, tests, begin, right, segments[at + U(SETS)], segments[at + U(END)], exits)
        leave_segment(exits, segments[at + U(BASE)], segments[at + U(ENTRY)], places)


@jit
def count_columns(features: int, codes: Ints) -> int:
    """Columns of a block: the features, and behind them the words of codes that tests ask for."""
    count = features
    for k in range(0, len(codes), CODE):
        if codes[U(k + WORD)] >= 0:
            count = codes[U(k + WORD)] + count_words(codes[U(k + WIDTH)])
    return count


@jit
def count_words(width: int) -> int:
    return (width + CODE_OF_FIRST + 31) >> 5


@jit
def fill_columns(values: Floats, row: int, codes: Ints, columns: Floats, place: int) -> None:
    """A row as a column of a block; of a code only the bit in its word."""
    for f in range(values.shape[1]):
        columns[U(f * BLOCK + place)] = values[U(row), U(f)]
    for k in range(0, len(codes), CODE):
        width, column = codes[U(k + WIDTH)], codes[U(k + WORD)]
        if column >= 0:
            code = code_of(values[U(row), U(codes[U(k + OF)])], width)
            for j in range(count_words(width)):
                bit = np.int32(1) << np.int32(code & 31) if code >> 5 == j else np.int32(0)
                columns[U((column + j) * BLOCK + place)] = to_float(np.int32(bit))


@jit
def make_aligned(count: int) -> Floats:
    """Zeros that begin where a cache line does: a vector across two of them is read twice."""
    room = np.zeros(count + ALIGNMENT // 4, np.float32)
    skipped = (-room.ctypes.data & (ALIGNMENT - 1)) >> 2
    return room[skipped : skipped + count]


@kernel
def score_blocks(
    values: Floats,
    nodes: Ints,
    trees: Ints,
    segments: Ints,
    tests: Ints,
    slot_values: Ints,
    vectors: Floats,
    codes: Ints,
    words: Words,
    base: Floats,
    begin: int,
    end: int,
    transform: int,
    sums: Floats,
) -> None:
    """The blocks kernel: the same scores as `score_rows`, of all trees. Trees without segments are walked."""
    features, groups = values.shape[1], len(base)
    columns = make_aligned(count_columns(features, codes) * BLOCK)
    exits = make_aligned(BLOCK).view(np.int32)
    places = make_aligned(BLOCK).view(np.int32)
    totals = np.empty((groups, BLOCK), np.float32)
    width = 3 * features if len(codes) else 2 * features
    walks = np.zeros(width * BLOCK if count_walked(trees, begin, end) else 0, np.float32)
    for start in range(0, len(values), BLOCK):
        count = min(BLOCK, len(values) - start)
        for i in range(count):
            fill_columns(values, start + i, codes, columns, i)
        if len(walks):
            fill_walks(values, start, count, codes, words, walks, width)
        for g in range(groups):
            for i in range(BLOCK):
                totals[U(g), U(i)] = base[U(g)]
        for t in range(begin, end):
            first, last = trees[U(t * TREE + FIRST)], trees[U(t * TREE + LAST)]
            if first < last:
                find_exits(columns, segments, tests, first, last, exits, places)
                for i in range(BLOCK):
                    places[U(i)] = slot_values[U(places[U(i)])]
            elif len(codes):
                walk_block(nodes, words, walks, width, root_of(trees, U(t)), trees[U(t * TREE + DEPTH)], places)
            else:
                walk_block(nodes, None, walks, width, root_of(trees, U(t)), trees[U(t * TREE + DEPTH)], places)
            add_values(places, vectors, totals, U(trees[U(t * TREE + GROUP)]))
        for i in range(count):
            for g in range(groups):
                sums[U(start + i), U(g)] = totals[U(g), U(i)]
            transform_row(sums[start + i], transform)


@jit
def fill_walks(values: Floats, start: int, count: int, codes: Ints, words: Words, walks: Floats, width: int) -> None:
    for i in range(count):
        if len(codes):
            fill_walk(values, start + i, codes, words, walks, width * i)
        else:
            fill_walk(values, start + i, codes, None, walks, width * i)


@jit
def count_walked(trees: Ints, begin: int, end: int) -> int:
    """Trees without segments."""
    count = 0
    for t in range(begin, end):
        count += trees[U(t * TREE + FIRST)] == trees[U(t * TREE + LAST)]
    return count


@jit
def walk_block(
    nodes: Ints, words: Words | None, walks: Floats, width: int, root: int, depth: int, places: Ints
) -> None:
    """What the leaves hold that the rows of a block reach in one tree, into `places`."""
    for i in range(0, BLOCK, 8):
        at, w = U(i * width), U(width)
        offsets = (at, at + w, at + U(2) * w, at + U(3) * w, at + U(4) * w, at + U(5) * w, at + U(6) * w, at + U(7) * w)
        leaves = descend(nodes, words, walks, depth, offsets, (root, root, root, root, root, root, root, root))
        for k in range(8):
            places[U(i + k)] = nodes[leaves[k] + U(VALUE)]


@jit
def add_values(values: Ints, vectors: Floats, totals: Floats, group: int) -> None:
    """Add to each row of a block what its leaf holds."""
    if len(vectors) == 0:
        for i in range(BLOCK):
            totals[group, U(i)] += to_float(values[U(i)])
    else:
        for i in range(BLOCK):
            for g in range(vectors.shape[1]):
                totals[U(g), U(i)] += vectors[U(values[U(i)]), U(g)]


# From margins to scores.


@jit
def transform_row(row: Floats, transform: int) -> None:
    """`ObjFunction::PredTransform` of XGBoost 3.2 in place, all but argmax."""
    if transform == SIGMOID:
        for k in range(len(row)):
            steep = -row[k]
            # XGBoost adds 1e-16 as well, which changes nothing beside the one.
            row[k] = ONE / (expf(STEEPEST if steep > STEEPEST else steep) + ONE)
    elif transform == SOFTMAX:
        apply_softmax(row)
    elif transform == EXP:
        for k in range(len(row)):
            row[k] = expf(row[k])
    elif transform == STEP:
        for k in range(len(row)):
            row[k] = ONE if row[k] > ZERO else ZERO


@jit
def apply_softmax(row: Floats) -> None:
    """`common::Softmax`: the sum is a double, all else float."""
    largest = row[0]
    for k in range(1, len(row)):
        largest = max(largest, row[k])
    total = 0.0
    for k in range(len(row)):
        row[k] = expf(row[k] - largest)
        total += np.float64(row[k])
    divisor = np.float32(total)
    for k in range(len(row)):
        row[k] /= divisor


@kernel
def find_largest(sums: Floats, classes: Floats) -> None:
    """The class with the largest margin, the first of equals."""
    for i in range(len(sums)):
        best = 0
        for k in range(1, sums.shape[1]):
            if sums[i, k] > sums[i, best]:
                best = k
        classes[i] = np.float32(best)


# Compiling.


def make_signatures() -> dict[Any, Any]:
    """What each kernel is called with. Rows may be a view on a request's bytes: read-only, and at any address."""
    rows = types.Array(types.float32, 2, "C", readonly=True, aligned=False)
    table = types.Array(types.int32, 1, "C", readonly=True)
    words = types.Array(types.uint32, 1, "C", readonly=True)
    base = types.Array(types.float32, 1, "C", readonly=True)
    vectors = types.Array(types.float32, 2, "C", readonly=True)
    sums, classes = types.float32[:, ::1], types.float32[::1]
    n = types.intp
    return {
        score_rows: types.void(rows, table, table, base, n, n, n, sums),
        score_rows_of_any: types.void(rows, table, table, vectors, table, words, base, n, n, n, sums),
        score_blocks: types.void(rows, table, table, table, table, table, vectors, table, words, base, n, n, n, sums),
        find_leaves: types.void(rows, table, table, table, words, n, types.int32[:, ::1]),
        find_largest: types.void(sums, classes),
    }


def compile_kernels(cache: Path | None = None) -> None:
    """Compile all kernels for this CPU, once; later calls do nothing. About five seconds, or 0.2 from the cache.

    `cache` is a folder that numba may write to and that outlives the process; its files are keyed by CPU and by this
    file's time of change. After this nothing is compiled any more: an array of another type raises TypeError instead
    of stopping a request for seconds.
    """
    if cache is not None:
        numba.config.CACHE_DIR = str(cache)
    for function, signature in make_signatures().items():
        if function.signatures:
            continue
        if cache is not None:
            function.enable_caching()
        function.compile(signature)
        function.disable_compile()


class Engine:
    """One packed model, ready to score on the calling thread; nothing in it changes, so threads may share it.

    `values` are float32 rows (rows, features), NaN where a value is missing; anything else raises ValueError.
    `rounds` are the first and the last but one boosting round to use, as `iteration_range` of `Booster.predict`:
    (0, 0) is all.
    """

    def __init__(self, ensemble: Ensemble, crossover: int = CROSSOVER) -> None:
        compile_kernels()
        self.ensemble = ensemble
        self.crossover = crossover
        self._features, self._groups = ensemble.meta.features, ensemble.meta.groups
        self._all = (0, ensemble.meta.trees)
        flat = {name: freeze(array) for name, array in ensemble.arrays().items()}
        self._nodes, self._trees, self._words = flat["nodes"], flat["trees"], flat["words"]
        self._codes, self._base = flat["codes"], flat["base"]
        self._segments, self._tests, self._values = flat["segments"], flat["tests"], flat["values"]
        self._vectors = ensemble.vectors.view()
        self._vectors.setflags(write=False)
        self._is_plain = not ensemble.meta.has_sets and not len(ensemble.vectors)

    def predict(self, values: Floats, rounds: tuple[int, int] | None = None) -> Floats:
        """Scores in the shape that `Booster.predict` gives: (rows,), or (rows, outputs) when there are several."""
        transform = self.ensemble.meta.transform
        sums = self._score(values, rounds, transform)
        if transform == ARGMAX:
            classes = np.empty(len(sums), np.float32)
            find_largest(sums, classes)
            return classes
        return sums.reshape(-1) if self._groups == 1 else sums

    def margins(self, values: Floats, rounds: tuple[int, int] | None = None) -> Floats:
        """Sums before the objective's transformation, (rows, groups) also for one group."""
        return self._score(values, rounds, 0)

    def leaves(self, values: Floats, rounds: tuple[int, int] | None = None) -> Ints:
        """Node that each row ends in, (rows, trees), as `pred_leaf` numbers them; rounds must begin at 0."""
        begin, end = self._find_trees(rounds)
        if begin:
            raise ValueError("leaves are found from the first round on")
        values = self._verify(values)
        found = np.empty((len(values), end), np.int32)
        find_leaves(values, self._nodes, self._trees, self._codes, self._words, end, found)
        return found

    def _find_trees(self, rounds: tuple[int, int] | None) -> tuple[int, int]:
        if rounds is None:
            return self._all
        bounds = self.ensemble.rounds
        first, last = rounds
        last = last or len(bounds) - 1
        if not 0 <= first <= last < len(bounds):
            raise ValueError(f"rounds {rounds} of a model with {len(bounds) - 1}")
        return int(bounds[first]), int(bounds[last])

    def _verify(self, values: Floats) -> Floats:
        """The kernels do not look: another width would be read past the end."""
        if values.ndim != 2 or values.shape[1] != self._features or values.dtype != np.float32:
            raise ValueError(f"expected float32 rows of {self._features} values")
        return values if values.flags.c_contiguous else np.ascontiguousarray(values)

    def _score(self, values: Floats, rounds: tuple[int, int] | None, transform: int) -> Floats:
        values = self._verify(values)
        begin, end = self._find_trees(rounds)
        count = len(values)
        sums = np.empty((count, self._groups), np.float32)
        if count < self.crossover:
            self._score_rows(values, begin, end, transform, sums)
            return sums
        rest = count % BLOCK
        blocked = count if rest >= self.crossover else count - rest
        self._score_blocks(values[:blocked], begin, end, transform, sums[:blocked])
        if blocked < count:
            self._score_rows(values[blocked:], begin, end, transform, sums[blocked:])
        return sums

    def _score_rows(self, values: Floats, begin: int, end: int, transform: int, sums: Floats) -> None:
        if self._is_plain:
            score_rows(values, self._nodes, self._trees, self._base, begin, end, transform, sums)
        else:
            score_rows_of_any(
                values,
                self._nodes,
                self._trees,
                self._vectors,
                self._codes,
                self._words,
                self._base,
                begin,
                end,
                transform,
                sums,
            )

    def _score_blocks(self, values: Floats, begin: int, end: int, transform: int, sums: Floats) -> None:
        score_blocks(
            values,
            self._nodes,
            self._trees,
            self._segments,
            self._tests,
            self._values,
            self._vectors,
            self._codes,
            self._words,
            self._base,
            begin,
            end,
            transform,
            sums,
        )

    def measure_crossover(self) -> int:
        """Set the number of rows from which a block is faster than as many single rows, and return it.

        Takes the time of about ten blocks. Scores do not depend on it.
        """
        rows = np.random.default_rng(0).normal(size=(BLOCK, self._features)).astype(np.float32)
        block = self._time(self._score_blocks, rows)
        row = self._time(self._score_rows, rows[:16]) / 16
        self.crossover = max(2, min(BLOCK, round(block / row)))
        return self.crossover

    def _time(self, score: Callable[[Floats, int, int, int, Floats], None], rows: Floats) -> float:
        sums = np.empty((len(rows), self._groups), np.float32)
        best = np.inf
        for _ in range(5):
            began = time.perf_counter()
            score(rows, *self._all, 0, sums)
            best = min(best, time.perf_counter() - began)
        return best


def freeze(array: NDArray[Any]) -> NDArray[Any]:
    """A flat view, read-only as the kernels were compiled for."""
    flat = array.reshape(-1)
    flat.setflags(write=False)
    return flat
