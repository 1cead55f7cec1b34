"""A forest in both layouts: nodes to be walked, and segments to be held against many rows at once (see `ensemble`)."""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.documents import read_ubjson
from service.ensemble import (
    CHILD,
    COLUMN,
    FEATURE,
    LIMIT,
    MASK,
    OF,
    RECORD,
    THRESHOLD,
    VALUE,
    WIDTH,
    WORD,
    Ensemble,
    Ints,
    Meta,
)
from service.ensemble.forest import (
    TRANSFORMS,
    Forest,
    UnsupportedModelError,
    count_words,
    find_levels,
    find_trees,
    measure_depths,
    read_base,
    read_forest,
    read_rounds,
    verify_splits,
)

# A mask is one 32-bit word.
EXITS = 32
# A tree of more tests than this is walked instead, also for many rows: every row would pay for all of them.
MOST_TESTS = 640


def pack(data: bytes | bytearray) -> Ensemble:
    """Packed trees of what `Booster.save_raw("ubj")` of XGBoost 3.2 gives, or `UnsupportedModelError` with the reason."""
    try:
        return pack_document(read_ubjson(data))
    except (KeyError, IndexError, ValueError, TypeError, struct.error, OverflowError) as error:
        raise UnsupportedModelError(f"not the form of model that XGBoost 3.2 writes: {error!r}") from error


def pack_document(document: Mapping[str, Any]) -> Ensemble:
    if sys.byteorder != "little":
        raise UnsupportedModelError("packed models are little-endian, this machine is not")
    learner = document["learner"]
    model, weights, booster = find_trees(learner["gradient_booster"])
    parameters = learner["learner_model_param"]
    features = int(parameters["num_feature"])
    groups = max(int(parameters.get("num_target", 1)), int(parameters["num_class"]), 1)
    objective = str(learner["objective"]["name"])
    if objective not in TRANSFORMS:
        raise UnsupportedModelError(f"the objective {objective} is not known here")
    forest = read_forest(model["trees"], model["tree_info"], weights, features, groups)
    levels = find_levels(forest)
    verify_splits(forest, levels, features)
    depths = measure_depths(forest, levels)
    blocks = pack_segments(forest, levels)
    trees = np.column_stack([forest.roots, depths, forest.group, blocks.first, blocks.last]).astype(np.int32)
    best = learner.get("attributes", {}).get("best_iteration")
    meta = Meta(
        objective=objective,
        transform=TRANSFORMS[objective],
        booster=booster,
        features=features,
        groups=groups,
        width=forest.vectors.shape[1] if len(forest.vectors) else 1,
        trees=len(trees),
        rounds=len(model["iteration_indptr"]) - 1,
        has_sets=len(forest.codes) > 0,
        best_iteration=None if best is None else int(best),
        xgboost_version=".".join(str(part) for part in document["version"]),
    )
    return Ensemble(
        meta=meta,
        base=read_base(str(parameters["base_score"]), objective, groups),
        nodes=pack_nodes(forest, levels, features),
        trees=np.ascontiguousarray(trees),
        segments=blocks.segments,
        tests=blocks.tests,
        slots=blocks.slots,
        values=blocks.values,
        vectors=forest.vectors,
        codes=forest.codes,
        words=forest.words,
        rounds=read_rounds(model["iteration_indptr"], len(trees)),
    )


def pack_nodes(forest: Forest, levels: list[NDArray[np.int64]], features: int) -> Ints:
    """The table `nodes`. What cannot be reached becomes a leaf, so that nothing in the table points astray."""
    count = len(forest.left)
    inner = np.concatenate(levels)
    inner = inner[forest.left[inner] >= 0]
    nodes = np.empty((count, 4), np.int32)
    nodes[:, THRESHOLD] = np.float32(np.nan).view(np.int32)
    nodes[:, FEATURE] = 0
    nodes[:, CHILD] = np.arange(-1, count - 1) * RECORD
    nodes[:, VALUE] = forest.value
    nodes[inner, THRESHOLD] = forest.threshold[inner].view(np.int32)
    nodes[inner, FEATURE] = forest.feature[inner] + features * forest.default_right[inner]
    nodes[inner, CHILD] = forest.left[inner] * RECORD
    split = inner[forest.word[inner] >= 0]
    nodes[split, THRESHOLD] = forest.word[split]
    nodes[split, FEATURE] = -1 - 2 * features - forest.feature[split]
    return nodes


# Segments.


@dataclass
class Blocks:
    """Tables of segments; `first` and `last` are those of each tree."""

    first: Ints
    last: Ints
    segments: Ints
    tests: Ints
    slots: Ints
    values: Ints


def pack_segments(forest: Forest, levels: list[NDArray[np.int64]]) -> Blocks:
    """Cut every tree into segments of at most 32 exits, as few as can be had from the leaves up."""
    levels = leave_out_large(forest, levels)
    exits, is_cut = count_exits(forest, levels)
    root, offset = place_exits(forest, levels, exits, is_cut)
    nodes = np.concatenate(levels) if levels else np.zeros(0, np.int64)
    tree = np.searchsorted(forest.roots, nodes, "right") - 1
    depth = np.repeat(np.arange(len(levels)), [len(level) for level in levels])
    heads = nodes[root[nodes] == nodes]
    # By tree, and from the top down: a row passes them in this order.
    heads = heads[np.lexsort((heads, depth[root[nodes] == nodes], tree[root[nodes] == nodes]))]
    base = np.concatenate([[0], np.cumsum(exits[heads])])
    if base[-1] >= 2**31 - EXITS:
        raise UnsupportedModelError("it has too many leaves")
    number = np.zeros(len(forest.left), np.int32)
    number[heads] = np.arange(len(heads))
    segment = number[root]
    tests, bounds = pack_tests(forest, nodes[forest.left[nodes] >= 0], exits, is_cut, segment, offset, len(heads))
    slots, values = pack_exits(forest, nodes, segment, offset, base)
    entry = np.full(len(heads), -1, np.int64)
    cut = is_cut[heads]
    parents = find_parents(forest, nodes)
    above = parents[heads[cut]]
    step_right = heads[cut] != forest.left[above]
    siblings = np.where(is_cut[forest.left[above]], 1, exits[forest.left[above]])
    entry[cut] = base[segment[above]] + offset[above] + np.where(step_right, siblings, 0)
    segments = np.column_stack([bounds, base[:-1], entry]).astype(np.int32)
    owner = np.searchsorted(forest.roots, heads, "right") - 1
    count = np.arange(len(forest.roots))
    return Blocks(
        first=np.searchsorted(owner, count, "left").astype(np.int32),
        last=np.searchsorted(owner, count, "right").astype(np.int32),
        segments=np.ascontiguousarray(segments),
        tests=tests,
        slots=slots,
        values=values,
    )


def leave_out_large(forest: Forest, levels: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Levels without the trees that are to be walked."""
    tests = np.zeros(len(forest.roots), np.int64)
    trees = [np.searchsorted(forest.roots, nodes, "right") - 1 for nodes in levels]
    wide = forest.codes[forest.codes[:, WORD] < 0, OF]
    for nodes, tree in zip(levels, trees, strict=True):
        np.add.at(tests, tree[forest.left[nodes] >= 0], 1)
        is_wide = (forest.word[nodes] >= 0) & np.isin(forest.feature[nodes], wide)
        tests[tree[is_wide]] += MOST_TESTS
    kept = [nodes[tests[tree] <= MOST_TESTS] for nodes, tree in zip(levels, trees, strict=True)]
    return [nodes for nodes in kept if len(nodes)]


def count_exits(forest: Forest, levels: list[NDArray[np.int64]]) -> tuple[Ints, NDArray[np.bool_]]:
    """Exits of the segment below each node, and whether a segment begins there; roots are not marked."""
    exits = np.ones(len(forest.left), np.int32)
    is_cut = np.zeros(len(forest.left), bool)
    for nodes in reversed(levels):
        inner = nodes[forest.left[nodes] >= 0]
        left = forest.left[inner]
        right = left + 1
        larger = np.where(exits[left] >= exits[right], left, right)
        smaller = left + right - larger
        over = exits[left] + exits[right] > EXITS
        is_cut[larger[over]] = True
        # 32 exits and the way into the larger one are still too many.
        is_cut[smaller[over & (exits[smaller] == EXITS)]] = True
        exits[inner] = np.where(is_cut[left], 1, exits[left]) + np.where(is_cut[right], 1, exits[right])
    return exits, is_cut


def place_exits(
    forest: Forest, levels: list[NDArray[np.int64]], exits: Ints, is_cut: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], Ints]:
    """For each node: the node that its segment begins at, and its leftmost exit in that segment."""
    root = np.zeros(len(forest.left), np.int64)
    offset = np.zeros(len(forest.left), np.int32)
    root[forest.roots] = forest.roots
    for nodes in levels:
        inner = nodes[forest.left[nodes] >= 0]
        left = forest.left[inner]
        passed = offset[inner]
        for child in (left, left + 1):
            root[child] = np.where(is_cut[child], child, root[inner])
            offset[child] = np.where(is_cut[child], 0, passed)
            passed = passed + np.where(is_cut[child], 1, exits[child])
    return root, offset


def pack_tests(
    forest: Forest,
    inner: NDArray[np.int64],
    exits: Ints,
    is_cut: NDArray[np.bool_],
    segment: Ints,
    offset: Ints,
    segments: int,
) -> tuple[Ints, NDArray[np.int64]]:
    """The table `tests`, ordered by segment and kind, and for each segment `BEGIN, RIGHT, SETS, END`."""
    is_set = forest.word[inner] >= 0
    nodes, columns, words = find_set_tests(forest, inner[is_set])
    kind = np.concatenate([forest.default_right[inner[~is_set]], np.full(len(nodes), 2)])
    column = np.concatenate([forest.feature[inner[~is_set]], columns])
    limit = np.concatenate([forest.threshold[inner[~is_set]].view(np.int32), words.view(np.int32)])
    inner = np.concatenate([inner[~is_set], nodes])
    order = np.lexsort((column, kind, segment[inner]))
    inner, kind = inner[order], kind[order]
    left = forest.left[inner]
    closed = np.where(is_cut[left], 1, exits[left]).astype(np.uint64)
    mask = ~(((np.uint64(1) << closed) - np.uint64(1)) << offset[inner].astype(np.uint64))
    tests = np.empty((len(inner), 3), np.int32)
    tests[:, COLUMN], tests[:, LIMIT] = column[order], limit[order]
    tests[:, MASK] = mask.astype(np.uint32).view(np.int32)
    place = segment[inner].astype(np.int64) * 3 + kind
    edges = np.searchsorted(place, np.arange(segments * 3 + 1))
    bounds = np.column_stack([edges[0:-1:3], edges[1:-1:3], edges[2:-1:3], edges[3::3]])
    return tests, bounds


def find_set_tests(
    forest: Forest, nodes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint32]]:
    """Node, column and word of every word that is not 0 in the sets of these nodes."""
    row = np.searchsorted(forest.codes[:, OF], forest.feature[nodes])
    lengths = count_words(forest.codes[row, WIDTH])
    number = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    words = forest.words[np.repeat(forest.word[nodes], lengths) + number]
    columns = np.repeat(forest.codes[row, WORD], lengths) + number
    kept = words != 0
    return np.repeat(nodes, lengths)[kept], columns[kept], words[kept]


def pack_exits(
    forest: Forest, nodes: NDArray[np.int64], segment: Ints, offset: Ints, base: NDArray[np.int64]
) -> tuple[Ints, Ints]:
    """`slots` and `values`; ways into other segments stay -1 and 0."""
    leaves = nodes[forest.left[nodes] < 0]
    slots = np.full(base[-1], -1, np.int32)
    values = np.zeros(base[-1], np.int32)
    at = base[segment[leaves]] + offset[leaves]
    slots[at] = leaves
    values[at] = forest.value[leaves]
    return slots, values


def find_parents(forest: Forest, nodes: NDArray[np.int64]) -> NDArray[np.int64]:
    parents = np.zeros(len(forest.left), np.int64)
    inner = nodes[forest.left[nodes] >= 0]
    for step in (0, 1):
        parents[forest.left[inner] + step] = inner
    return parents
