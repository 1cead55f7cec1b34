"""The rows kernel walks a row down eight trees at a time.

A step does not branch: a leaf leads to itself, and a missing value is stood in for by the smallest or the largest number,
whichever goes the way that the split sends it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from service.ensemble import (
    CHILD,
    CODE,
    CODE_OF_FIRST,
    CODE_OF_MISSING,
    CODE_OF_UNKNOWN,
    DEPTH,
    FEATURE,
    GROUP,
    OF,
    RECORD,
    ROOT,
    THRESHOLD,
    TREE,
    VALUE,
    WIDTH,
    Floats,
    Ints,
)
from service.kernels.intrinsics import (
    Number,
    U,
    data_of_array,
    floats_at,
    inline,
    ints_at,
    jit,
    plan_at,
    row_at,
    to_bits,
    to_float,
    words_at,
)
from service.kernels.transforms import ZERO, transform_row

Words = NDArray[np.uint32]
MISSING_LEFT, MISSING_RIGHT = np.float32(-np.inf), np.float32(np.inf)

# `words` is None where no tree splits by category: numba then leaves out all that deals with it.


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
        transform_row(out, p.transform, p.exp)
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
        transform_row(out, p.transform, p.exp)
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


EXPORTED: tuple[Callable[..., int], ...] = (score_rows, score_rows_of_any, find_leaves)
