"""Scores of an `Ensemble`, written for numba's compiler: to the last bit what XGBoost gives a row that comes alone.

XGBoost starts a row at the base margin and adds one tree after the other, in float32 (`PredValueByOneTree` in its
cpu_predictor.cc, 3.2). Both kernels here add in that order, so a row's bits do not depend on its company:

- the *rows* kernel walks a row down eight trees at a time. A step does not branch: a leaf leads to itself, and a missing
  value is stood in for by the smallest or the largest number, whichever goes the way that the split sends it;
- the *blocks* kernel holds `BLOCK` rows, or the `FEW` that came together, against every split of a segment (see `ensemble`),
  two vector instructions for 16 rows. numba does not keep the masks in registers from one split to the next, so that loop is
  written in LLVM's language.

Nothing may reorder or fuse the sums: no fastmath, hence no contraction to FMA. exp is the C library's expf, as in
XGBoost, and known only by an address, so that no vector library takes its place.

Only the process that compiles imports this room (see `compiler`). What it exports takes int64s, most of them addresses,
gives an int64 back, and needs nothing around it: no Python, no numba, no allocation, no error. Whoever calls it sees
to it that the addresses are right.

Tables are read flat and with unsigned indices: numba otherwise asks of each index whether it is negative, which makes
the rows kernel five times slower.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array
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
    PLAN,
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
    Floats,
    Ints,
)

Words = NDArray[np.uint32]
# A number whose width numba infers; mypy takes numpy's integers for no int.
Number = Any

# What the processor can do that numba compiles for: this one, unless numba is told otherwise.
FEATURES: str = get_host_cpu_features() if numba.config.CPU_FEATURES is None else numba.config.CPU_FEATURES
# Rows that the blocks kernel takes at once: their masks stay in registers, and AVX-512 has twice as large ones as others.
# Numbers in a vector, which LLVM cuts up where registers are smaller.
BLOCK = 128 if "+avx512f" in FEATURES else 64
LANES = 16
# Rows of a block that is mostly empty otherwise.
FEW = LANES
# Of a row of the tables, read flat.
TREE, SEGMENT, TEST, CODE = 5, 6, 3, 3
# CPython's objects begin with a head; in numpy's arrays the address of the numbers follows it.
ARRAY_HEAD = object.__basicsize__

MISSING_LEFT, MISSING_RIGHT = np.float32(-np.inf), np.float32(np.inf)
ONE, ZERO = np.float32(1), np.float32(0)
# `common::Sigmoid`: beyond this exp is infinite.
STEEPEST = np.float32(88.7)


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
U = np.uint64


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


@intrinsic
def call_expf(context: Any, address: Any, value: Any) -> Any:
    """What the function at this address gives for a float32."""
    kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()])

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1]])

    return types.float32(types.int64, types.float32), generate


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
def fill_walk(row: Floats, codes: Ints, words: Words | None, walk: Floats, offset: int) -> None:
    """A row thrice: missing values as where they go left, then as where they go right, then the codes of categories."""
    count = len(row)
    for i in range(count):
        value = row[U(i)]
        is_missing = value != value
        walk[U(offset + i)] = MISSING_LEFT if is_missing else value
        walk[U(offset + count + i)] = MISSING_RIGHT if is_missing else value
    if words is not None:
        for k in range(0, len(codes), CODE):
            feature = codes[U(k + OF)]
            code = code_of(row[U(feature)], codes[U(k + WIDTH)])
            walk[U(offset + 2 * count + feature)] = to_float(np.int32(code))


@inline
def step(nodes: Ints, words: Words | None, walk: Floats, offset: int, node: Number) -> Number:
    """From one record to the next; `offset` is where the row begins in `walk`."""
    feature, threshold = nodes[node + U(FEATURE)], nodes[node + U(THRESHOLD)]
    if words is None:
        goes_right = not walk[U(offset) + U(feature)] < to_float(threshold)
    else:
        # Both kinds of split are worked out for every node, and one masked away: nobody can predict a branch, and of a
        # choice (`a if is_set else b`) LLVM makes one. -1 - feature is feature ^ -1.
        is_set = feature >> np.int32(31)
        value = walk[U(offset) + U(feature ^ is_set)]
        code = to_bits(value)
        word = words[U((threshold + (code >> np.int32(5))) & is_set)]
        is_in_set = (word >> np.uint32(code & 31)) & np.uint32(is_set & 1)
        goes_right = (is_in_set | (np.uint32(not value < to_float(threshold)) & np.uint32(~is_set))) != 0
    return U(nodes[node + U(CHILD)]) + (U(RECORD) if goes_right else U(0))


@inline
def value_of(nodes: Ints, node: Number) -> Number:
    return to_float(nodes[node + U(VALUE)])


@inline
def root_of(trees: Ints, tree: Number) -> Number:
    return U(trees[tree * U(TREE) + U(ROOT)]) * U(RECORD)


@inline
def depth_of(trees: Ints, tree: Number) -> Number:
    return trees[tree * U(TREE) + U(DEPTH)]


@inline
def take_steps(
    nodes: Ints, words: Words | None, walk: Floats, count: int, offsets: tuple[Number, ...], places: tuple[Number, ...]
) -> tuple[Number, ...]:
    """Where eight rows, or one row in eight trees, come to from these places."""
    n0, n1, n2, n3, n4, n5, n6, n7 = places
    o0, o1, o2, o3, o4, o5, o6, o7 = offsets
    for _ in range(count):
        n0 = step(nodes, words, walk, o0, n0)
        n1 = step(nodes, words, walk, o1, n1)
        n2 = step(nodes, words, walk, o2, n2)
        n3 = step(nodes, words, walk, o3, n3)
        n4 = step(nodes, words, walk, o4, n4)
        n5 = step(nodes, words, walk, o5, n5)
        n6 = step(nodes, words, walk, o6, n6)
        n7 = step(nodes, words, walk, o7, n7)
    return n0, n1, n2, n3, n4, n5, n6, n7


@inline
def descend(
    nodes: Ints, words: Words | None, walk: Floats, depth: int, offsets: tuple[Number, ...], roots: tuple[Number, ...]
) -> tuple[Number, ...]:
    """Leaves of eight rows, or of one row in eight trees."""
    places = take_steps(nodes, words, walk, min(8, depth), offsets, roots)
    for start in range(8, depth, 8):
        before = places
        places = take_steps(nodes, words, walk, min(8, depth - start), offsets, before)
        # Trees grown leaf by leaf can be far deeper than most of their rows go.
        if places == before:
            break
    return places


@inline
def walk_eight(
    nodes: Ints, words: Words | None, trees: Ints, walk: Floats, first: int, last: int
) -> tuple[Number, ...]:
    """Leaves of one row in eight trees; past the last one, the last one's again."""
    t0, t1, t2, t3 = first, min(first + 1, last), min(first + 2, last), min(first + 3, last)
    t4, t5, t6, t7 = min(first + 4, last), min(first + 5, last), min(first + 6, last), min(first + 7, last)
    roots = (
        root_of(trees, U(t0)),
        root_of(trees, U(t1)),
        root_of(trees, U(t2)),
        root_of(trees, U(t3)),
        root_of(trees, U(t4)),
        root_of(trees, U(t5)),
        root_of(trees, U(t6)),
        root_of(trees, U(t7)),
    )
    depth = max(
        depth_of(trees, U(t0)),
        depth_of(trees, U(t1)),
        depth_of(trees, U(t2)),
        depth_of(trees, U(t3)),
        depth_of(trees, U(t4)),
        depth_of(trees, U(t5)),
        depth_of(trees, U(t6)),
        depth_of(trees, U(t7)),
    )
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
        leaves = walk_eight(nodes, None, trees, walk, first, end - 1)
        tree = first
        for leaf in leaves:
            if tree < end:
                total += value_of(nodes, leaf)
            tree += 1
    return total


@jit
def add_trees_of_groups(nodes: Ints, trees: Ints, walk: Floats, begin: int, end: int, sums: Floats) -> None:
    """As `add_trees`, each tree to its output."""
    for first in range(begin, end, 8):
        tree = first
        for leaf in walk_eight(nodes, None, trees, walk, first, end - 1):
            if tree < end:
                sums[U(trees[U(tree * TREE + GROUP)])] += value_of(nodes, leaf)
            tree += 1


@jit
def add_trees_of_any(
    nodes: Ints, words: Words, trees: Ints, vectors: Floats, walk: Floats, begin: int, end: int, sums: Floats
) -> None:
    """As `add_trees`, where leaves may hold several values and splits be by category."""
    for first in range(begin, end, 8):
        tree = first
        for leaf in walk_eight(nodes, words, trees, walk, first, end - 1):
            if tree < end:
                add_leaf(nodes, vectors, leaf, trees[U(tree * TREE + GROUP)], sums)
            tree += 1


@inline
def add_leaf(nodes: Ints, vectors: Floats, leaf: Number, group: int, sums: Floats) -> None:
    if len(vectors) == 0:
        sums[U(group)] += value_of(nodes, leaf)
    else:
        first = nodes[leaf + U(VALUE)] * len(sums)
        for g in range(len(sums)):
            sums[U(g)] += vectors[U(first + g)]


def score_rows(plan: int, rows: int, count: int, sums: int, scratch: int) -> int:
    """The rows kernel, for trees with one value in a leaf and no splits by category.

    Writes scores of float32 rows (count, features) into `sums` (count, groups); `scratch` are floats for one walk. Rows,
    sums and scratch are numpy arrays.
    """
    p = plan_at(plan)
    nodes, trees = ints_at(p.nodes, p.nodes_size), ints_at(p.trees, p.trees_size)
    base, walk = floats_at(p.base, p.groups), floats_at(data_of_array(scratch), 2 * p.features)
    row, result = data_of_array(rows), data_of_array(sums)
    for _ in range(count):
        out = floats_at(result, p.groups)
        fill_walk(row_at(row, p.features), trees, None, walk, 0)
        if p.groups == 1:
            out[0] = add_trees(nodes, trees, walk, p.begin, p.end, base[0])
        else:
            copy_to(base, out)
            add_trees_of_groups(nodes, trees, walk, p.begin, p.end, out)
        transform_row(out, p.transform, p.expf)
        row, result = row + 4 * p.features, result + 4 * p.groups
    return 0


def score_rows_of_any(plan: int, rows: int, count: int, sums: int, scratch: int) -> int:
    """As `score_rows`, for all trees."""
    p = plan_at(plan)
    nodes, trees = ints_at(p.nodes, p.nodes_size), ints_at(p.trees, p.trees_size)
    codes, words = ints_at(p.codes, p.codes_size), words_at(p.words, p.words_size)
    vectors, base = floats_at(p.vectors, p.vectors_size), floats_at(p.base, p.groups)
    walk = floats_at(data_of_array(scratch), 3 * p.features)
    row, result = data_of_array(rows), data_of_array(sums)
    for _ in range(count):
        out = floats_at(result, p.groups)
        fill_walk(row_at(row, p.features), codes, words, walk, 0)
        copy_to(base, out)
        add_trees_of_any(nodes, words, trees, vectors, walk, p.begin, p.end, out)
        transform_row(out, p.transform, p.expf)
        row, result = row + 4 * p.features, result + 4 * p.groups
    return 0


def find_leaves(plan: int, rows: int, count: int, leaves: int, scratch: int) -> int:
    """Where each row ends in each tree up to the plan's end, counted from the tree's root: int32 (count, trees)."""
    p = plan_at(plan)
    nodes, trees = ints_at(p.nodes, p.nodes_size), ints_at(p.trees, p.trees_size)
    codes, words = ints_at(p.codes, p.codes_size), words_at(p.words, p.words_size)
    walk = floats_at(data_of_array(scratch), 3 * p.features)
    row, found = data_of_array(rows), ints_at(data_of_array(leaves), count * p.end)
    at = 0
    for _ in range(count):
        fill_walk(row_at(row, p.features), codes, words, walk, 0)
        for first in range(0, p.end, 8):
            tree = first
            for leaf in walk_eight(nodes, words, trees, walk, first, p.end - 1):
                if tree < p.end:
                    found[U(at)] = (leaf - root_of(trees, U(tree))) // U(RECORD)
                    at += 1
                tree += 1
        row += 4 * p.features
    return 0


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


def make_hold_against(vectors: int) -> Any:
    """To hold so many vectors of rows against tests."""

    @intrinsic
    def hold_against(
        context: Any, columns: Any, tests: Any, begin: Any, right: Any, sets: Any, end: Any, exits: Any
    ) -> Any:
        """Hold the first rows of columns (columns, BLOCK) against tests, and write the exits that each row still has.

        Tests from begin on send a missing value left, from right on they send it right, from sets on they are for bits in
        common. The masks of all rows travel through the three loops in registers.
        """

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            table, rows, found = (data_of(context, builder, signature.args[k], args[k]) for k in (1, 0, 6))
            masks = [ir.Constant(INT_VECTOR, [-1] * LANES)] * vectors
            for k, compare in ((2, is_not_below), (3, is_not_below_or_missing), (4, have_common_bits)):
                masks = generate_loop(builder, rows, table, args[k], args[k + 1], compare, masks)
            for number, mask in enumerate(masks):
                builder.store(mask, vector_at(builder, found, number, INT_VECTOR), align=ALIGNMENT)
            return context.get_dummy_value()

        n = types.intp
        return types.void(columns, tests, n, n, n, n, exits), generate

    return hold_against


hold_block_against, hold_few_against = make_hold_against(VECTORS), make_hold_against(FEW // LANES)


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


def make_leave_segment(vectors: int) -> Any:
    """To move so many vectors of rows."""

    @intrinsic
    def leave_segment(context: Any, exits: Any, base: Any, entry: Any, places: Any) -> Any:
        """Move the rows of a block that stand at `entry` to `base` plus their lowest exit."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            open_exits, places = (data_of(context, builder, signature.args[k], args[k]) for k in (0, 3))
            bases, entries = (spread(builder, args[k], INT_VECTOR) for k in (1, 2))
            kind = ir.FunctionType(INT_VECTOR, [INT_VECTOR, ir.IntType(1)])
            cttz = cgutils.get_or_insert_function(builder.module, kind, f"llvm.cttz.v{LANES}i32")
            for number in range(vectors):
                mask = builder.load(vector_at(builder, open_exits, number, INT_VECTOR), align=ALIGNMENT)
                target = vector_at(builder, places, number, INT_VECTOR)
                place = builder.load(target, align=ALIGNMENT)
                exit_ = builder.add(builder.call(cttz, [mask, ir.Constant(ir.IntType(1), 1)]), bases)
                is_here = builder.icmp_signed("==", place, entries)
                builder.store(builder.select(is_here, exit_, place), target, align=ALIGNMENT)
            return context.get_dummy_value()

        return types.void(exits, types.int32, types.int32, places), generate

    return leave_segment


leave_segment_block, leave_segment_few = make_leave_segment(VECTORS), make_leave_segment(FEW // LANES)


@jit
def find_exits(
    columns: Floats, segments: Ints, tests: Ints, first: int, last: int, exits: Ints, places: Ints, width: int
) -> None:
    """The slot that each row of a block leaves a tree by, whose segments are those from first to last."""
    # Of a number that the compiler does not know it would make a call of memset, and there is no C library here.
    if width == FEW:
        for i in range(FEW):
            places[U(i)] = -1
    else:
        for i in range(BLOCK):
            places[U(i)] = -1
    for s in range(first, last):
        at = U(s * SEGMENT)
        begin, right, sets, end = (
            segments[at + U(BEGIN)],
            segments[at + U(RIGHT)],
            segments[at + U(SETS)],
            segments[at + U(END)],
        )
        base, entry = segments[at + U(BASE)], segments[at + U(ENTRY)]
        if width == FEW:
            hold_few_against(columns, tests, begin, right, sets, end, exits)
            leave_segment_few(exits, base, entry, places)
        else:
            hold_block_against(columns, tests, begin, right, sets, end, exits)
            leave_segment_block(exits, base, entry, places)


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
def fill_columns(row: Floats, codes: Ints, columns: Floats, place: int) -> None:
    """A row as a column of a block; of a code only the bit in its word."""
    for f in range(len(row)):
        columns[U(f * BLOCK + place)] = row[U(f)]
    for k in range(0, len(codes), CODE):
        width, column = codes[U(k + WIDTH)], codes[U(k + WORD)]
        if column >= 0:
            code = code_of(row[U(codes[U(k + OF)])], width)
            for j in range(count_words(width)):
                bit = np.int32(1) << np.int32(code & 31) if code >> 5 == j else np.int32(0)
                columns[U((column + j) * BLOCK + place)] = to_float(np.int32(bit))


@inline
def width_of_walk(features: int, codes: Ints) -> int:
    return 3 * features if len(codes) else 2 * features


def measure_block(plan: int) -> int:
    """How many floats of scratch `score_blocks` needs."""
    p = plan_at(plan)
    trees, codes = ints_at(p.trees, p.trees_size), ints_at(p.codes, p.codes_size)
    walk = width_of_walk(p.features, codes) if count_walked(trees, p.begin, p.end) else 0
    return (count_columns(p.features, codes) + 2 + p.groups + walk) * BLOCK + ALIGNMENT // 4


def count_block() -> int:
    """How many rows a block has."""
    return BLOCK


def count_few() -> int:
    """How many rows a small block has."""
    return FEW


def score_blocks(plan: int, rows: int, count: int, sums: int, scratch: int, width: int) -> int:
    """The blocks kernel: the same scores as `score_rows`, of all trees, for `width` rows at a time, `FEW` or `BLOCK`. Trees
    without segments are walked.

    `scratch` has as many floats as `measure_block` says, all zero: where the last block is not full, they are rows too.
    """
    p = plan_at(plan)
    nodes, trees = ints_at(p.nodes, p.nodes_size), ints_at(p.trees, p.trees_size)
    codes, words = ints_at(p.codes, p.codes_size), words_at(p.words, p.words_size)
    segments, tests = ints_at(p.segments, p.segments_size), ints_at(p.tests, p.tests_size)
    slots, vectors = ints_at(p.values, p.values_size), floats_at(p.vectors, p.vectors_size)
    base, result = floats_at(p.base, p.groups), data_of_array(sums)
    row, row_bytes, end = data_of_array(rows), 4 * p.features, data_of_array(rows) + 4 * p.features * count
    # A vector across two cache lines is read twice: all parts of the scratch begin where a line does.
    at = (data_of_array(scratch) + ALIGNMENT - 1) & -ALIGNMENT
    exits, places = ints_at(at, BLOCK), ints_at(at + 4 * BLOCK, BLOCK)
    totals = floats_at(at + 8 * BLOCK, p.groups * BLOCK)
    columns = floats_at(at + (8 + 4 * p.groups) * BLOCK, count_columns(p.features, codes) * BLOCK)
    walk = width_of_walk(p.features, codes)
    walks = floats_at(at + (8 + 4 * p.groups) * BLOCK + 4 * len(columns), walk * BLOCK)
    is_walked = count_walked(trees, p.begin, p.end) > 0
    while row < end:
        count = min(width, (end - row) // row_bytes)
        for i in range(count):
            one = row_at(row + row_bytes * i, p.features)
            fill_columns(one, codes, columns, i)
            if is_walked:
                fill_any_walk(one, codes, words, walks, walk * i)
        for g in range(p.groups):
            for i in range(width):
                totals[U(g * BLOCK + i)] = base[U(g)]
        for t in range(p.begin, p.end):
            first, last = trees[U(t * TREE + FIRST)], trees[U(t * TREE + LAST)]
            if first < last:
                find_exits(columns, segments, tests, first, last, exits, places, width)
                for i in range(width):
                    places[U(i)] = slots[U(places[U(i)])]
            elif len(codes):
                walk_block(nodes, words, walks, walk, root_of(trees, U(t)), trees[U(t * TREE + DEPTH)], places, width)
            else:
                walk_block(nodes, None, walks, walk, root_of(trees, U(t)), trees[U(t * TREE + DEPTH)], places, width)
            add_values(places, vectors, totals, trees[U(t * TREE + GROUP)], p.groups, width)
        for i in range(count):
            out = floats_at(result, p.groups)
            for g in range(p.groups):
                out[U(g)] = totals[U(g * BLOCK + i)]
            transform_row(out, p.transform, p.expf)
            result += 4 * p.groups
        row += row_bytes * count
    return 0


@jit
def fill_any_walk(row: Floats, codes: Ints, words: Words, walks: Floats, offset: int) -> None:
    if len(codes):
        fill_walk(row, codes, words, walks, offset)
    else:
        fill_walk(row, codes, None, walks, offset)


@jit
def count_walked(trees: Ints, begin: int, end: int) -> int:
    """Trees without segments."""
    count = 0
    for t in range(begin, end):
        count += trees[U(t * TREE + FIRST)] == trees[U(t * TREE + LAST)]
    return count


@jit
def walk_block(
    nodes: Ints, words: Words | None, walks: Floats, walk: int, root: int, depth: int, places: Ints, width: int
) -> None:
    """What the leaves hold that the rows of a block reach in one tree, into `places`."""
    for i in range(0, width, 8):
        at, w = U(i * walk), U(walk)
        offsets = (at, at + w, at + U(2) * w, at + U(3) * w, at + U(4) * w, at + U(5) * w, at + U(6) * w, at + U(7) * w)
        leaves = descend(nodes, words, walks, depth, offsets, (root, root, root, root, root, root, root, root))
        for leaf in leaves:
            places[U(i)] = nodes[leaf + U(VALUE)]
            i += 1


@jit
def add_values(values: Ints, vectors: Floats, totals: Floats, group: int, groups: int, width: int) -> None:
    """Add to each row of a block what its leaf holds."""
    if len(vectors) == 0:
        for i in range(width):
            totals[U(group * BLOCK + i)] += to_float(values[U(i)])
    else:
        # The rows inside: they are a multiple of 16, and the outputs are not.
        for g in range(groups):
            for i in range(width):
                totals[U(g * BLOCK + i)] += vectors[U(values[U(i)] * groups + g)]


# From margins to scores.


@jit
def transform_row(row: Floats, transform: int, expf: int) -> None:
    """`ObjFunction::PredTransform` of XGBoost 3.2 in place; of argmax the class, at the first place."""
    if transform == SIGMOID:
        for k in range(len(row)):
            steep = -row[U(k)]
            # XGBoost adds 1e-16 as well, which changes nothing beside the one.
            row[U(k)] = ONE / (call_expf(expf, STEEPEST if steep > STEEPEST else steep) + ONE)
    elif transform == SOFTMAX:
        apply_softmax(row, expf)
    elif transform == EXP:
        for k in range(len(row)):
            row[U(k)] = call_expf(expf, row[U(k)])
    elif transform == STEP:
        for k in range(len(row)):
            row[U(k)] = ONE if row[U(k)] > ZERO else ZERO
    elif transform == ARGMAX:
        row[0] = np.float32(find_largest(row))


@jit
def apply_softmax(row: Floats, expf: int) -> None:
    """`common::Softmax`: the sum is a double, all else float."""
    largest = row[0]
    for k in range(1, len(row)):
        largest = max(largest, row[U(k)])
    total = 0.0
    for k in range(len(row)):
        row[U(k)] = call_expf(expf, row[U(k)] - largest)
        total += np.float64(row[U(k)])
    divisor = np.float32(total)
    for k in range(len(row)):
        row[U(k)] /= divisor


@jit
def find_largest(row: Floats) -> int:
    """The first of the largest."""
    best = 0
    for k in range(1, len(row)):
        if row[U(k)] > row[U(best)]:
            best = k
    return best


# What C may call: int64s in, an int64 out. A new function only has to be named here.
EXPORTED: tuple[Callable[..., int], ...] = (
    score_rows,
    score_rows_of_any,
    score_blocks,
    find_leaves,
    measure_block,
    count_block,
    count_few,
)
