"""The blocks kernel holds `BLOCK` rows, or the `FEW` that came together, against every split of a segment (see `ensemble`), two
vector instructions for 16 rows.

numba does not keep the masks in registers from one split to the next, so that loop is written in LLVM's language.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from service.ensemble import (
    BASE,
    BEGIN,
    CODE,
    CODE_OF_FIRST,
    COLUMN,
    DEPTH,
    END,
    ENTRY,
    FIRST,
    GROUP,
    LAST,
    LIMIT,
    MASK,
    OF,
    RIGHT,
    SEGMENT,
    SETS,
    TEST,
    TREE,
    VALUE,
    WIDTH,
    WORD,
    Floats,
    Ints,
)
from service.kernels.intrinsics import (
    FEATURES,
    U,
    data_of_array,
    floats_at,
    inline,
    ints_at,
    jit,
    plan_at,
    row_at,
    to_float,
    words_at,
)
from service.kernels.rows import Words, code_of, descend, fill_walk, root_of
from service.kernels.transforms import transform_row

# Rows that the blocks kernel takes at once: their masks stay in registers, and AVX-512 has twice as large ones as others.
# Numbers in a vector, which LLVM cuts up where registers are smaller.
BLOCK = 128 if "+avx512f" in FEATURES else 64
LANES = 16
# Rows of a block that is mostly empty otherwise.
FEW = LANES

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
            transform_row(out, p.transform, p.exp)
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


EXPORTED: tuple[Callable[..., int], ...] = (score_blocks, measure_block, count_block, count_few)
