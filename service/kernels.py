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
the rows kernel eight times slower.
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
    RECORD,
    RIGHT,
    ROOT,
    SETS,
    SIGMOID,
    SOFTMAX,
    STEP,
    THRESHOLD,
    VALUE,
    Ensemble,
    Floats,
    Ints,
)

Words = NDArray[np.uint32]

# Rows that the blocks kernel takes at once, and numbers in a vector: eight vectors of masks stay in registers.
BLOCK = 128
LANES = 16
# From this many rows on a block that is not full is filled up; see `Engine.measure_crossover`.
CROSSOVER = 16

# Of a row of the tables, read flat.
TREE, SEGMENT, TEST = 5, 6, 3

EXPF = "scorer_expf"
MISSING_LEFT, MISSING_RIGHT = np.float32(-np.inf), np.float32(np.inf)
ONE, ZERO = np.float32(1), np.float32(0)
# `common::Sigmoid`: beyond this exp is infinite.
STEEPEST = np.float32(88.7)
FULL = np.uint32(0xFFFFFFFF)
CATEGORIES = np.float32((1 << 24) - 1)


def find_expf() -> int:
    """Address of the C library's expf: the one that XGBoost calls, picked for this CPU by the loader."""
    library = ctypes.CDLL("libm.so.6" if sys.platform == "linux" else None)
    address = ctypes.cast(library.expf, ctypes.c_void_p).value
    assert address is not None
    return address


llvmlite.binding.add_symbol(EXPF, find_expf())
expf = types.ExternalFunction(EXPF, types.float32(types.float32))

jit: Callable[..., Any] = numba.njit(nogil=True, error_model="numpy", fastmath=False, boundscheck=False)
# Small functions inside the hot loops: LLVM would keep some of them apart, and all that they work on out of registers.
inline: Callable[..., Any] = numba.njit(
    nogil=True, error_model="numpy", fastmath=False, boundscheck=False, forceinline=True
)
U = np.uint64


@intrinsic  # type: ignore[misc]  # numba carries no type hints
def to_float(context: Any, word: Any) -> Any:
    """The float32 of these bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


# Walking.


@inline
def fill_walk(values: Floats, row: int, walk: Floats, offset: int) -> None:
    """A row twice: with what missing values stand for where they go left, then where they go right."""
    count = values.shape[1]
    for i in range(count):
        value = values[U(row), U(i)]
        is_missing = value != value
        walk[U(offset + i)] = MISSING_LEFT if is_missing else value
        walk[U(offset + count + i)] = MISSING_RIGHT if is_missing else value


@inline
def step(nodes: Ints, walk: Floats, offset: int, node: int) -> int:
    """From one record to the next; `offset` is where the row begins in `walk`."""
    goes_left = walk[U(offset) + U(nodes[node + U(FEATURE)])] < to_float(nodes[node + U(THRESHOLD)])
    return U(nodes[node + U(CHILD)]) + (U(0) if goes_left else U(RECORD))


@inline
def value_of(nodes: Ints, node: int) -> np.float32:
    return to_float(nodes[node + U(VALUE)])


@inline
def descend(nodes: Ints, walk: Floats, depth: int, offsets: tuple[int, ...], roots: tuple[int, ...]) -> tuple[int, ...]:
    """Leaves of eight rows, or of one row in eight trees."""
    n0, n1, n2, n3, n4, n5, n6, n7 = roots
    o0, o1, o2, o3, o4, o5, o6, o7 = offsets
    for start in range(0, depth, 8):
        m0, m1, m2, m3, m4, m5, m6, m7 = n0, n1, n2, n3, n4, n5, n6, n7
        for _ in range(min(8, depth - start)):
            n0 = step(nodes, walk, o0, n0)
            n1 = step(nodes, walk, o1, n1)
            n2 = step(nodes, walk, o2, n2)
            n3 = step(nodes, walk, o3, n3)
            n4 = step(nodes, walk, o4, n4)
            n5 = step(nodes, walk, o5, n5)
            n6 = step(nodes, walk, o6, n6)
            n7 = step(nodes, walk, o7, n7)
        # Trees grown leaf by leaf can be far deeper than most of their rows go.
        if (m0 ^ n0) | (m1 ^ n1) | (m2 ^ n2) | (m3 ^ n3) | (m4 ^ n4) | (m5 ^ n5) | (m6 ^ n6) | (m7 ^ n7) == U(0):
            break
    return n0, n1, n2, n3, n4, n5, n6, n7


@inline
def walk_eight(nodes: Ints, trees: Ints, walk: Floats, first: int, last: int) -> tuple[int, ...]:
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
    return descend(nodes, walk, depth, (start, start, start, start, start, start, start, start), roots)


@inline
def root_of(trees: Ints, tree: int) -> int:
    return U(trees[tree * U(TREE) + U(ROOT)]) * U(RECORD)


@jit
def add_trees(nodes: Ints, trees: Ints, walk: Floats, begin: int, end: int, total: np.float32) -> np.float32:
    """The margin of one row: `total` and then a value from each tree, in order."""
    for first in range(begin, end, 8):
        n0, n1, n2, n3, n4, n5, n6, n7 = walk_eight(nodes, trees, walk, first, end - 1)
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


@inline
def copy_to(source: Floats, target: Floats) -> None:
    """numba compiles an assignment of arrays for a second, with all that may go wrong in one."""
    for k in range(len(source)):
        target[U(k)] = source[U(k)]


@jit
def add_trees_of_groups(nodes: Ints, trees: Ints, walk: Floats, begin: int, end: int, sums: Floats) -> None:
    """As `add_trees`, each tree to its output."""
    for first in range(begin, end, 8):
        leaves = walk_eight(nodes, trees, walk, first, end - 1)
        for k in range(min(8, end - first)):
            sums[U(trees[U((first + k) * TREE + GROUP)])] += value_of(nodes, leaves[k])


@jit
def score_rows(
    values: Floats, nodes: Ints, trees: Ints, base: Floats, begin: int, end: int, transform: int, sums: Floats
) -> None:
    """The rows kernel, for trees with one value in a leaf and no splits by category.

    Writes scores of float32 rows (rows, features) by the trees from begin to end into `sums` (rows, groups).
    """
    walk = np.empty(2 * values.shape[1], np.float32)
    for i in range(len(values)):
        fill_walk(values, i, walk, 0)
        if len(base) == 1:
            sums[i, 0] = add_trees(nodes, trees, walk, begin, end, base[0])
        else:
            copy_to(base, sums[i])
            add_trees_of_groups(nodes, trees, walk, begin, end, sums[i])
        transform_row(sums[i], transform)


@jit
def is_in_set(value: np.float32, row: int, sets: Ints, words: Words) -> bool:
    """Whether a split by category sends a value right (`common::Decision`)."""
    if value != value:
        return sets[U(row * 3 + 2)] != 0
    if value < ZERO or value >= CATEGORIES:
        return False
    category = np.int32(value)
    at = sets[U(row * 3)] + (category >> 5)
    return at < sets[U(row * 3 + 1)] and (words[U(at)] >> np.uint32(category & 31)) & np.uint32(1) != 0


@jit
def find_leaf(
    nodes: Ints, values: Floats, row: int, walk: Floats, offset: int, sets: Ints, words: Words, node: int
) -> int:
    """The leaf below a node, whatever kinds of splits there are."""
    while True:
        feature = nodes[node + U(FEATURE)]
        if feature >= 0:
            following = step(nodes, walk, offset, node)
        else:
            value = values[U(row), U(-1 - feature)]
            goes_right = is_in_set(value, nodes[node + U(THRESHOLD)], sets, words)
            following = U(nodes[node + U(CHILD)]) + (U(RECORD) if goes_right else U(0))
        if following == node:
            return node
        node = following


@jit
def add_leaf(nodes: Ints, vectors: Floats, group: int, leaf: int, sums: Floats) -> None:
    if len(vectors) == 0:
        sums[U(group)] += value_of(nodes, leaf)
    else:
        row = U(nodes[leaf + U(VALUE)])
        for k in range(vectors.shape[1]):
            sums[k] += vectors[row, U(k)]


@jit
def score_rows_of_any(
    values: Floats,
    nodes: Ints,
    trees: Ints,
    vectors: Floats,
    sets: Ints,
    words: Words,
    base: Floats,
    begin: int,
    end: int,
    transform: int,
    sums: Floats,
) -> None:
    """As `score_rows`, for all trees."""
    walk = np.empty(2 * values.shape[1], np.float32)
    for i in range(len(values)):
        fill_walk(values, i, walk, 0)
        copy_to(base, sums[i])
        if len(sets) == 0:
            for first in range(begin, end, 8):
                leaves = walk_eight(nodes, trees, walk, first, end - 1)
                for k in range(min(8, end - first)):
                    add_leaf(nodes, vectors, 0, leaves[k], sums[i])
        else:
            for t in range(begin, end):
                leaf = find_leaf(nodes, values, i, walk, 0, sets, words, root_of(trees, U(t)))
                add_leaf(nodes, vectors, trees[U(t * TREE + GROUP)], leaf, sums[i])
        transform_row(sums[i], transform)


@jit
def find_leaves(values: Floats, nodes: Ints, trees: Ints, sets: Ints, words: Words, end: int, leaves: Ints) -> None:
    """Where each row ends in each tree, counted from the tree's root."""
    walk = np.empty(2 * values.shape[1], np.float32)
    for i in range(len(values)):
        fill_walk(values, i, walk, 0)
        for t in range(end):
            root = root_of(trees, U(t))
            leaf = find_leaf(nodes, values, i, walk, 0, sets, words, root)
            leaves[i, t] = (leaf - root) // U(RECORD)


# Many rows.

WORD, LONG = ir.IntType(32), ir.IntType(64)
WORD_VECTOR, FLOAT_VECTOR = ir.VectorType(WORD, LANES), ir.VectorType(ir.FloatType(), LANES)
VECTORS = BLOCK // LANES
ALIGNMENT = 64


def data_of(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def spread(builder: Any, value: Any, kind: Any) -> Any:
    """A vector of one value."""
    vector = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(WORD, 0))
    lanes = ir.Constant(ir.VectorType(WORD, LANES), [0] * LANES)
    return builder.shuffle_vector(vector, ir.Constant(kind, ir.Undefined), lanes)


def vector_at(builder: Any, data: Any, number: int, kind: Any) -> Any:
    return builder.bitcast(builder.gep(data, [ir.Constant(LONG, number * LANES)]), kind.as_pointer())


@intrinsic  # type: ignore[misc]
def hold_against(context: Any, columns: Any, tests: Any, begin: Any, right: Any, end: Any, exits: Any) -> Any:
    """Hold a block of columns (features, BLOCK) against tests, and write the exits that each row still has.

    Tests from begin on send a missing value left, from right on they send it right. The masks of all rows travel
    through both loops in registers.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = [
            data_of(context, builder, kind, array)
            for kind, array in zip(signature.args, args, strict=True)
            if isinstance(kind, types.Array)
        ]
        masks = [ir.Constant(WORD_VECTOR, [-1] * LANES)] * VECTORS
        for first, last, is_ordered in ((args[2], args[3], True), (args[3], args[4], False)):
            masks = generate_loop(builder, data[0], data[1], first, last, is_ordered, masks)
        for number, mask in enumerate(masks):
            builder.store(mask, vector_at(builder, data[2], number, WORD_VECTOR), align=ALIGNMENT)
        return context.get_dummy_value()

    return types.void(columns, tests, types.intp, types.intp, types.intp, exits), generate


def generate_loop(
    builder: Any, columns: Any, tests: Any, first: Any, last: Any, is_ordered: bool, masks: list[Any]
) -> list[Any]:
    """`for test in range(first, last): masks &= test.mask where column >= test.limit`.

    A comparison that is ordered is false for NaN, one that is not is true.
    """
    before = builder.block
    head, body, done = (builder.append_basic_block(name) for name in ("tests", "test", "tested"))
    builder.branch(head)
    builder.position_at_end(head)
    at = builder.phi(LONG)
    at.add_incoming(first, before)
    held = [builder.phi(WORD_VECTOR) for _ in masks]
    for phi, mask in zip(held, masks, strict=True):
        phi.add_incoming(mask, before)
    builder.cbranch(builder.icmp_signed("<", at, last), body, done)
    builder.position_at_end(body)
    record = builder.gep(tests, [builder.mul(at, ir.Constant(LONG, TEST))])
    column, limit, mask = (builder.load(builder.gep(record, [ir.Constant(LONG, k)])) for k in (COLUMN, LIMIT, MASK))
    rows = builder.gep(columns, [builder.mul(builder.zext(column, LONG), ir.Constant(LONG, BLOCK))])
    limits = spread(builder, builder.bitcast(limit, ir.FloatType()), FLOAT_VECTOR)
    closed = spread(builder, mask, WORD_VECTOR)
    compare = builder.fcmp_ordered if is_ordered else builder.fcmp_unordered
    for number, phi in enumerate(held):
        values = builder.load(vector_at(builder, rows, number, FLOAT_VECTOR), align=ALIGNMENT)
        goes_right = compare(">=", values, limits)
        phi.add_incoming(builder.select(goes_right, builder.and_(phi, closed), phi), builder.block)
    at.add_incoming(builder.add(at, ir.Constant(LONG, 1)), builder.block)
    builder.branch(head)
    builder.position_at_end(done)
    return held


@intrinsic  # type: ignore[misc]
def leave_segment(context: Any, exits: Any, base: Any, entry: Any, places: Any) -> Any:
    """Move the rows of a block that stand at `entry` to `base` plus their lowest exit."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        open_exits, places = (data_of(context, builder, signature.args[k], args[k]) for k in (0, 3))
        bases, entries = (spread(builder, args[k], WORD_VECTOR) for k in (1, 2))
        kind = ir.FunctionType(WORD_VECTOR, [WORD_VECTOR, ir.IntType(1)])
        cttz = cgutils.get_or_insert_function(builder.module, kind, f"llvm.cttz.v{LANES}i32")
        for number in range(VECTORS):
            mask = builder.load(vector_at(builder, open_exits, number, WORD_VECTOR), align=ALIGNMENT)
            target = vector_at(builder, places, number, WORD_VECTOR)
            place = builder.load(target, align=ALIGNMENT)
            exit_ = builder.add(builder.call(cttz, [mask, ir.Constant(ir.IntType(1), 1)]), bases)
            is_here = builder.icmp_signed("==", place, entries)
            builder.store(builder.select(is_here, exit_, place), target, align=ALIGNMENT)
        return context.get_dummy_value()

    return types.void(exits, types.int32, types.int32, places), generate


@jit
def find_exits(
    columns: Floats,
    segments: Ints,
    tests: Ints,
    sets: Ints,
    words: Words,
    first: int,
    last: int,
    exits: Ints,
    places: Ints,
) -> None:
    """The slot that each row of a block leaves a tree by, whose segments are those from first to last."""
    for i in range(BLOCK):
        places[U(i)] = -1
    for s in range(first, last):
        at = U(s * SEGMENT)
        middle, end = segments[at + U(SETS)], segments[at + U(END)]
        hold_against(columns, tests, segments[at + U(BEGIN)], segments[at + U(RIGHT)], middle, exits)
        for k in range(middle, end):
            column, row, mask = (tests[U(k * TEST + COLUMN)], tests[U(k * TEST + LIMIT)], tests[U(k * TEST + MASK)])
            for i in range(BLOCK):
                if is_in_set(columns[U(column * BLOCK + i)], row, sets, words):
                    exits[i] &= mask
        leave_segment(exits, segments[at + U(BASE)], segments[at + U(ENTRY)], places)


@jit
def make_aligned(count: int) -> Floats:
    """Zeros that begin where a cache line does: a vector across two of them is read twice."""
    room = np.zeros(count + ALIGNMENT // 4, np.float32)
    skipped = (-room.ctypes.data & (ALIGNMENT - 1)) >> 2
    return room[skipped : skipped + count]


@jit
def score_blocks(
    values: Floats,
    nodes: Ints,
    trees: Ints,
    segments: Ints,
    tests: Ints,
    slot_values: Ints,
    vectors: Floats,
    sets: Ints,
    words: Words,
    base: Floats,
    begin: int,
    end: int,
    transform: int,
    sums: Floats,
) -> None:
    """The blocks kernel: the same scores as `score_rows`, of all trees. Trees without segments are walked."""
    features, groups = values.shape[1], len(base)
    columns = make_aligned(features * BLOCK)
    exits = make_aligned(BLOCK).view(np.int32)
    places = make_aligned(BLOCK).view(np.int32)
    totals = np.empty((groups, BLOCK), np.float32)
    walks = np.zeros(2 * features * BLOCK if count_walked(trees, begin, end) else 0, np.float32)
    for start in range(0, len(values), BLOCK):
        count = min(BLOCK, len(values) - start)
        for i in range(count):
            for f in range(features):
                columns[U(f * BLOCK + i)] = values[U(start + i), U(f)]
            if len(walks):
                fill_walk(values, start + i, walks, 2 * features * i)
        for g in range(groups):
            for i in range(BLOCK):
                totals[U(g), U(i)] = base[U(g)]
        for t in range(begin, end):
            first, last = trees[U(t * TREE + FIRST)], trees[U(t * TREE + LAST)]
            group = U(trees[U(t * TREE + GROUP)])
            if first < last:
                find_exits(columns, segments, tests, sets, words, first, last, exits, places)
                for i in range(BLOCK):
                    places[U(i)] = slot_values[U(places[U(i)])]
                add_values(places, vectors, totals, group)
            else:
                root, depth = root_of(trees, U(t)), trees[U(t * TREE + DEPTH)]
                walk_block(values, start, nodes, walks, root, depth, sets, words, places)
                add_values(places, vectors, totals, group)
        for i in range(count):
            for g in range(groups):
                sums[U(start + i), U(g)] = totals[U(g), U(i)]
            transform_row(sums[start + i], transform)


@jit
def count_walked(trees: Ints, begin: int, end: int) -> int:
    """Trees without segments."""
    count = 0
    for t in range(begin, end):
        count += trees[U(t * TREE + FIRST)] == trees[U(t * TREE + LAST)]
    return count


@jit
def walk_block(
    values: Floats,
    start: int,
    nodes: Ints,
    walks: Floats,
    root: int,
    depth: int,
    sets: Ints,
    words: Words,
    places: Ints,
) -> None:
    """What the leaves hold that the rows of a block reach in one tree, into `places`."""
    width = 2 * values.shape[1]
    if len(sets):
        for i in range(min(BLOCK, len(values) - start)):
            leaf = find_leaf(nodes, values, start + i, walks, width * i, sets, words, root)
            places[U(i)] = nodes[leaf + U(VALUE)]
        return
    for i in range(0, BLOCK, 8):
        at, w = U(i * width), U(width)
        offsets = (at, at + w, at + U(2) * w, at + U(3) * w, at + U(4) * w, at + U(5) * w, at + U(6) * w, at + U(7) * w)
        leaves = descend(nodes, walks, depth, offsets, (root, root, root, root, root, root, root, root))
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


@jit
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
    """Compile all kernels for this CPU, once; later calls do nothing. About six seconds, or 50 ms from the cache.

    `cache` is a folder that numba may write to and that outlives the process; its files are keyed by CPU and by this
    file's time of change. After this nothing is compiled any more: an array of another type raises TypeError instead
    of stopping a request for seconds.
    """
    if cache is not None:
        numba.config.CACHE_DIR = str(cache)
    for kernel, signature in make_signatures().items():
        if kernel.signatures:
            continue
        if cache is not None:
            kernel.enable_caching()
        kernel.compile(signature)
        kernel.disable_compile()


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
        self._sets, self._base = flat["sets"], flat["base"]
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
        find_leaves(values, self._nodes, self._trees, self._sets, self._words, end, found)
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
                self._sets,
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
            self._sets,
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
