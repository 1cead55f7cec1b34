"""A model of trees as flat arrays: read from XGBoost's UBJSON, packed once, written to disk, mapped by every worker.

Two layouts of the same trees. *Nodes* are XGBoost's own, in its order, one record each, for walking from root to leaf.
*Segments* are for many rows at once: a piece of a tree with at most 32 exits, numbered from left to right, becomes a
list of tests, each with a mask. A row that goes right at a test cannot leave by any exit left of it, so the test's mask
clears those bits; when all tests are done the lowest bit still set is the exit (QuickScorer, Lucchese and others, 2015).
An exit is a leaf, or the way into a deeper segment of the same tree. No row is ever walked.

Nothing here imports xgboost: the process that packs hands over `Booster.save_raw("ubj")`.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.documents import read_ubjson

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

# Written into the manifest. Raise it when an array's meaning changes: older folders are then packed again.
FORMAT = 2
# A mask is one 32-bit word.
EXITS = 32
# A tree of more tests than this is walked instead, also for many rows: every row would pay for all of them.
MOST_TESTS = 640
# So is one that splits a feature by so many categories that a set of them takes more words than this.
MOST_WORDS = 8
# Categories from here on go left wherever they are met (`common::InvalidCat`).
END_OF_CATEGORIES = 1 << 24
# Words of all sets together: 256 MB.
MOST_WORDS_IN_ALL = 1 << 26
# In a set, the bit of a missing value; the next one is for all that no set knows, and the categories follow.
CODE_OF_MISSING, CODE_OF_UNKNOWN, CODE_OF_FIRST = range(3)

# How a margin becomes a score, and how the file's base score becomes a margin (`ObjFunction::PredTransform` and
# `ProbToMargin` of XGBoost 3.2). What is not here is not packed.
IDENTITY, SIGMOID, EXP, STEP, SOFTMAX, ARGMAX = range(6)
TRANSFORMS = {
    "reg:squarederror": IDENTITY,
    "reg:linear": IDENTITY,
    "reg:squaredlogerror": IDENTITY,
    "reg:pseudohubererror": IDENTITY,
    "reg:absoluteerror": IDENTITY,
    "reg:quantileerror": IDENTITY,
    "binary:logitraw": IDENTITY,
    "rank:pairwise": IDENTITY,
    "rank:ndcg": IDENTITY,
    "rank:map": IDENTITY,
    "reg:logistic": SIGMOID,
    "binary:logistic": SIGMOID,
    "count:poisson": EXP,
    "reg:gamma": EXP,
    "reg:tweedie": EXP,
    "survival:cox": EXP,
    "survival:aft": EXP,
    "binary:hinge": STEP,
    "multi:softprob": SOFTMAX,
    "multi:softmax": ARGMAX,
}

# Columns of the tables, and the width of the one that is walked.
RECORD = 4
THRESHOLD, FEATURE, CHILD, VALUE = range(4)  # of nodes
ROOT, DEPTH, GROUP, FIRST, LAST = range(5)  # of trees
BEGIN, RIGHT, SETS, END, BASE, ENTRY = range(6)  # of segments
COLUMN, LIMIT, MASK = range(3)  # of tests
OF, WIDTH, WORD = range(3)  # of codes


class UnsupportedModelError(Exception):
    """This model cannot be packed, and why; XGBoost can serve it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PackedModelError(Exception):
    """A folder that does not hold a whole packed model of this format; pack it again."""


@dataclass(frozen=True)
class Meta:
    """What there is to know of an ensemble besides its arrays. `width` is the number of values in a leaf."""

    objective: str
    transform: int
    booster: str
    features: int
    groups: int
    width: int
    trees: int
    rounds: int
    has_sets: bool
    best_iteration: int | None
    xgboost_version: str


@dataclass(frozen=True)
class Ensemble:
    """Packed trees. All arrays are C-contiguous and little-endian; none is written to again.

    - `base` float32 (groups,): margin of a row before the first tree.
    - `nodes` int32 (nodes, 4), `THRESHOLD, FEATURE, CHILD, VALUE`: bits of the float32 threshold; the feature, plus
      `features` where a missing value goes right; where the left child's record begins, in int32s, the right one follows;
      bits of a leaf's float32 value, or its row in `vectors`. A leaf's threshold is NaN and its left child the record
      before its own, so that a step stays where it is.
      A split by category has `-1 - 2 * features - feature` for a feature and its set's first word for a threshold.
    - `trees` int32 (trees, 5), `ROOT, DEPTH, GROUP, FIRST, LAST`: root node, steps to the deepest leaf, output that it
      adds to, segments from first to last; none when the tree is to be walked.
    - `segments` int32 (segments, 6), `BEGIN, RIGHT, SETS, END, BASE, ENTRY`: tests from begin on, where missing goes
      left; from right on, where it goes right; from sets on, by category; up to end. Slot of the first exit. Slot in
      the segment above that leads here, -1 at the root.
    - `tests` int32 (tests, 3), `COLUMN, LIMIT, MASK`: feature, bits of the threshold, exits left to a row that goes
      right. A split by category is one test for each word of its set that is not 0: the column of that word, the word.
    - `slots` int32 (exits,): a leaf's node. What `nodes` says of its value is in `values` again, int32 (exits,).
    - `vectors` float32 (leaves, width): values of leaves that hold several.
    - `codes` int32 (features of categories, 3), `OF, WIDTH, WORD`: the feature, how many categories its sets know, the
      column that tests find its first word in; columns follow those of the features, -1 where trees are walked. A
      value's code is `CODE_OF_MISSING`, `CODE_OF_UNKNOWN`, or the category plus `CODE_OF_FIRST`.
    - `words` uint32: in a set, bit `c % 32` of word `c // 32` tells whether the code c goes right. All sets of a feature
      are equally long. There is always one word.
    - `rounds` int32 (rounds + 1,): first tree of each boosting round.
    """

    meta: Meta
    base: Floats
    nodes: Ints
    trees: Ints
    segments: Ints
    tests: Ints
    slots: Ints
    values: Ints
    vectors: Floats
    codes: Ints
    words: NDArray[np.uint32]
    rounds: Ints

    @classmethod
    def from_ubjson(cls, data: bytes | bytearray) -> Ensemble:
        """Packed trees of what `Booster.save_raw("ubj")` of XGBoost 3.2 gives, or `UnsupportedModelError`."""
        try:
            return pack(read_ubjson(data))
        except (KeyError, IndexError, ValueError, TypeError, struct.error, OverflowError) as error:
            raise UnsupportedModelError(f"not the form of model that XGBoost 3.2 writes: {error!r}") from error

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays().values())

    def thresholds(self) -> tuple[Ints, Floats]:
        """Feature and threshold of every numeric split, to make rows that lie on them."""
        threshold = self.nodes[:, THRESHOLD].copy().view(np.float32)
        is_split = (self.nodes[:, FEATURE] >= 0) & ~np.isnan(threshold)
        return self.nodes[is_split, FEATURE] % self.meta.features, threshold[is_split]

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in ARRAYS}


ARRAYS = tuple(field.name for field in fields(Ensemble) if field.name != "meta")

# What the kernels get to know of an ensemble and of what is wanted of it: trees from begin to end, a transformation, where
# expf is, and of each array where it is and how many numbers it holds.
PLAN = np.dtype(
    [(name, np.int64) for name in ("features", "groups", "begin", "end", "transform", "expf")]
    + [(name + suffix, np.int64) for name in ARRAYS for suffix in ("", "_size")]
)


# From XGBoost's document to one forest of arrays, all trees in a row.


@dataclass
class Forest:
    """All trees one after another; children are numbered through the forest, a leaf's is -1."""

    roots: NDArray[np.int64]
    left: Ints
    feature: Ints
    threshold: Floats
    default_right: NDArray[np.bool_]
    # First word of the set, -1 where a split is numeric.
    word: Ints
    # Bits of a float32, or row of `vectors`; 0 inside.
    value: Ints
    vectors: Floats
    codes: Ints
    words: NDArray[np.uint32]
    group: Ints


def pack(document: Mapping[str, Any]) -> Ensemble:
    """Packed trees of a parsed model document, or `UnsupportedModelError` with the reason."""
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


def find_trees(booster: Mapping[str, Any]) -> tuple[Any, Floats | None, str]:
    """The tree model, the weight of each tree if it has one, and the booster's name."""
    name = str(booster["name"])
    if name == "gbtree":
        return booster["model"], None, name
    if name == "dart":
        return booster["gbtree"]["model"], np.asarray(booster["weight_drop"], np.float32), name
    raise UnsupportedModelError(f"the booster {name} is not one of trees")


def read_rounds(bounds: Sequence[int], trees: int) -> Ints:
    rounds = np.asarray(bounds, np.int32)
    if rounds[0] != 0 or rounds[-1] != trees or (np.diff(rounds) < 0).any():
        raise UnsupportedModelError("its boosting rounds do not cover its trees")
    return rounds


def read_base(text: str, objective: str, groups: int) -> Floats:
    """The margin that rows start from: XGBoost stores the base score as the objective's output."""
    scores = np.atleast_1d(np.asarray(json.loads(text), np.float64)).astype(np.float32)
    if scores.shape not in ((1,), (groups,)) or not np.isfinite(scores).all():
        raise UnsupportedModelError(f"a base score of {text} for {groups} outputs")
    margins = np.array([to_margin(score, TRANSFORMS[objective]) for score in scores], np.float32)
    if not np.isfinite(margins).all():
        raise UnsupportedModelError(f"a base score of {text} has no margin under {objective}")
    return np.ascontiguousarray(np.broadcast_to(margins, (groups,)))


def to_margin(score: np.float32, transform: int) -> np.float32:
    """`ObjFunction::ProbToMargin`: in float32, with the C library's logf."""
    one, least = np.float32(1), np.float32(1e-6)
    if transform == SIGMOID:
        score = min(max(score, least), one - least)
        return -call_logf(one / score - one)
    if transform == EXP:
        return call_logf(score)
    return score


def call_logf(value: np.float32) -> np.float32:
    """numpy's own logarithm of a float32 differs in the last bit."""
    logf = ctypes.CDLL("libm.so.6" if sys.platform == "linux" else None).logf
    logf.argtypes, logf.restype = [ctypes.c_float], ctypes.c_float
    return np.float32(logf(float(value)))


def join(trees: Sequence[Mapping[str, Any]], name: str, dtype: Any) -> NDArray[Any]:
    """One field of all trees in a row."""
    return np.concatenate([np.asarray(tree[name]) for tree in trees]).astype(dtype)


def read_forest(
    documents: Sequence[Mapping[str, Any]], info: Sequence[int], weights: Floats | None, features: int, groups: int
) -> Forest:
    if not documents:
        raise UnsupportedModelError("it has no trees")
    order = np.argsort([int(tree["id"]) for tree in documents], kind="stable")
    trees = [documents[at] for at in order]
    sizes = np.array([len(tree["left_children"]) for tree in trees], np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    if starts[-1] >= 2**31 // RECORD or features >= 2**29:
        raise UnsupportedModelError(f"{starts[-1]} nodes and {features} features are too many")
    offsets = np.repeat(starts[:-1], sizes)
    left = join(trees, "left_children", np.int64)
    right = join(trees, "right_children", np.int64)
    is_leaf = left < 0
    if (right[~is_leaf] != left[~is_leaf] + 1).any():
        # XGBoost finds the right child by adding one, whatever the file says.
        raise UnsupportedModelError("the two children of a node are not neighbours")
    if (left >= np.repeat(sizes, sizes) - 1).any():
        raise UnsupportedModelError("a child lies outside of its tree")
    threshold = join(trees, "split_conditions", np.float32)
    feature = join(trees, "split_indices", np.int64).clip(-1, 2**31 - 1).astype(np.int32)
    default_right = ~join(trees, "default_left", bool)
    word, codes, words = read_sets(trees, starts, feature, default_right, features)
    if int(trees[0]["tree_param"]["size_leaf_vector"]) > 1:
        if weights is not None:
            raise UnsupportedModelError("dart with several values in a leaf")
        value, vectors = read_vectors(trees, is_leaf, right, groups)
    else:
        value, vectors = read_values(threshold, is_leaf, None if weights is None else np.repeat(weights, sizes))
    group = np.asarray(info, np.int32)
    if len(group) != len(trees) or group.min() < 0 or group.max() >= groups:
        raise UnsupportedModelError("a tree belongs to an output that the model does not have")
    return Forest(
        roots=starts[:-1],
        left=np.where(is_leaf, -1, left + offsets).astype(np.int32),
        feature=feature,
        threshold=threshold,
        default_right=default_right,
        word=word,
        value=value,
        vectors=vectors,
        codes=codes,
        words=words,
        group=group,
    )


def read_values(threshold: Floats, is_leaf: NDArray[np.bool_], weights: Floats | None) -> tuple[Ints, Floats]:
    """Leaf values as bits. A tree of dart adds `(0 + leaf) * weight`, rounded once before it is added."""
    leaves = np.where(is_leaf, threshold, np.float32(0))
    if weights is not None:
        leaves = (leaves + np.float32(0)) * weights
    return np.ascontiguousarray(leaves, np.float32).view(np.int32), np.zeros((0, 1), np.float32)


def read_vectors(
    trees: Sequence[Mapping[str, Any]], is_leaf: NDArray[np.bool_], right: NDArray[np.int64], groups: int
) -> tuple[Ints, Floats]:
    """Where a tree has a value for every output, a leaf's right child is its row among the tree's leaf weights."""
    weights = [np.asarray(tree["leaf_weights"], np.float32).reshape(-1, groups) for tree in trees]
    counts = [len(rows) for rows in weights]
    sizes = [len(tree["left_children"]) for tree in trees]
    starts = np.repeat(np.concatenate([[0], np.cumsum(counts)[:-1]]), sizes)
    rows = np.where(is_leaf, right, 0)
    if (rows < 0).any() or (rows >= np.repeat(counts, sizes)).any():
        raise UnsupportedModelError("a leaf without values")
    return np.where(is_leaf, rows + starts, 0).astype(np.int32), np.ascontiguousarray(np.concatenate(weights))


def read_sets(
    trees: Sequence[Mapping[str, Any]],
    starts: NDArray[np.int64],
    feature: Ints,
    default_right: NDArray[np.bool_],
    features: int,
) -> tuple[Ints, Ints, NDArray[np.uint32]]:
    """For every node the first word of its set (-1: numeric), and the tables `codes` and `words`."""
    word = np.full(starts[-1], -1, np.int32)
    nodes = np.concatenate([np.asarray(tree["categories_nodes"]) + at for tree, at in zip(trees, starts, strict=False)])
    sizes, begins = join(trees, "categories_sizes", np.int64), join(trees, "categories_segments", np.int64)
    categories = join(trees, "categories", np.int64)
    if not len(nodes):
        return word, np.zeros((0, 3), np.int32), np.zeros(1, np.uint32)
    totals = np.cumsum([len(tree["categories"]) for tree in trees])
    above = np.repeat(np.concatenate([[0], totals[:-1]]), [len(tree["categories_nodes"]) for tree in trees])
    if (
        not np.array_equal(np.flatnonzero(join(trees, "split_type", np.int64)), nodes)
        or not np.array_equal(begins + above, np.cumsum(sizes) - sizes)
        or sizes.min() < 1
        or sizes.sum() != len(categories)
    ):
        raise UnsupportedModelError("its table of splits by category does not fit its nodes")
    if categories.min() < 0 or categories.max() >= END_OF_CATEGORIES:
        raise UnsupportedModelError("a split by a category below 0 or beyond 16,777,215")
    if feature[nodes].min() < 0 or feature[nodes].max() >= features:
        raise UnsupportedModelError("a split by a feature that the model does not have")
    codes, which = make_codes(feature[nodes], np.repeat(feature[nodes], sizes), categories, features)
    lengths = count_words(codes[which, WIDTH]).astype(np.int64)
    first = np.cumsum(lengths) - lengths
    if lengths.sum() > MOST_WORDS_IN_ALL:
        raise UnsupportedModelError("its sets of categories take more than 256 MB")
    words = np.zeros(lengths.sum(), np.uint32)
    bits = np.repeat(first, sizes) * 32 + categories + CODE_OF_FIRST
    np.bitwise_or.at(words, bits // 32, np.uint32(1) << (bits % 32).astype(np.uint32))
    words[first] |= default_right[nodes].astype(np.uint32) << np.uint32(CODE_OF_MISSING)
    word[nodes] = first
    return word, codes, words


def make_codes(
    of_sets: Ints, of_categories: Ints, categories: NDArray[np.int64], features: int
) -> tuple[Ints, NDArray[np.int64]]:
    """The table `codes`, and its row for each set."""
    used, which = np.unique(of_sets, return_inverse=True)
    width = np.zeros(len(used), np.int64)
    np.maximum.at(width, np.searchsorted(used, of_categories), categories + 1)
    lengths = np.where(count_words(width) <= MOST_WORDS, count_words(width), 0)
    columns = np.where(lengths > 0, features + np.cumsum(lengths) - lengths, -1)
    return np.ascontiguousarray(np.column_stack([used, width, columns]), np.int32), which.reshape(-1)


def count_words(width: NDArray[Any]) -> NDArray[Any]:
    """Of a set over so many categories."""
    return (width + CODE_OF_FIRST + 31) // 32


def find_levels(forest: Forest) -> list[NDArray[np.int64]]:
    """Nodes of each level of all trees that can be reached, roots first."""
    seen = np.zeros(len(forest.left), bool)
    seen[forest.roots] = True
    levels = [forest.roots]
    while True:
        inner = levels[-1][forest.left[levels[-1]] >= 0]
        if not len(inner):
            return levels
        left = forest.left[inner].astype(np.int64)
        children = np.stack([left, left + 1], axis=1).ravel()
        if seen[children].any() or len(np.unique(left)) < len(left):
            raise UnsupportedModelError("a node with two parents")
        seen[children] = True
        levels.append(children)


def verify_splits(forest: Forest, levels: list[NDArray[np.int64]], features: int) -> None:
    reached = np.concatenate(levels)
    inner = reached[forest.left[reached] >= 0]
    if len(inner) and (forest.feature[inner].min() < 0 or forest.feature[inner].max() >= features):
        raise UnsupportedModelError("a split by a feature that the model does not have")
    numeric = inner[forest.word[inner] < 0]
    # Missing values are walked as the smallest or the largest number, which needs a threshold between.
    if not np.isfinite(forest.threshold[numeric]).all():
        raise UnsupportedModelError("a threshold that is not a finite number")


def measure_depths(forest: Forest, levels: list[NDArray[np.int64]]) -> Ints:
    """Steps from each root to its deepest leaf."""
    depths = np.zeros(len(forest.roots), np.int32)
    for depth, nodes in enumerate(levels):
        depths[np.searchsorted(forest.roots, nodes, "right") - 1] = depth
    return depths


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


# On disk.

MANIFEST = "manifest.json"


def write_ensemble(ensemble: Ensemble, folder: Path) -> None:
    """Write the folder whole or not at all: beside it, synced, renamed.

    An older folder of that name is put aside first and deleted after; a worker that has it mapped keeps its pages.
    Raises `OSError` (a full disk) and leaves nothing behind.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        files = {name: write_array(array, beside / f"{name}.npy") for name, array in ensemble.arrays().items()}
        manifest = {"format": FORMAT, "meta": asdict(ensemble.meta), "files": files}
        write_synced(beside / MANIFEST, json.dumps(manifest, indent=1).encode())
        sync(beside)
        replace_folder(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def replace_folder(beside: Path, folder: Path) -> None:
    if folder.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        os.rename(folder, aside / "old")
        os.rename(beside, folder)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.rename(beside, folder)
    sync(folder.parent)


def write_array(array: NDArray[Any], path: Path) -> str:
    """Its sha256 in hexadecimal, once the bytes are on the disk."""
    with path.open("xb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    return hash_file(path)


def write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Make the names in a folder last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_ensemble(folder: Path, verify: bool = True) -> Ensemble:
    """Arrays mapped from the folder, so that all processes share one copy, or `PackedModelError`.

    `verify` reads every byte once and compares checksums; who has just written the folder may leave it out.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise PackedModelError(f"{folder}: packed in format {manifest['format']}, this is {FORMAT}")
        meta = Meta(**manifest["meta"])
        arrays = {name: read_array(folder / f"{name}.npy", manifest["files"][name], verify) for name in ARRAYS}
        return Ensemble(meta=meta, **arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise PackedModelError(f"{folder}: {error}") from error


def read_array(path: Path, digest: str, verify: bool) -> NDArray[Any]:
    if verify and hash_file(path) != digest:
        raise PackedModelError(f"{path}: the checksum is not the manifest's")
    if math.prod(read_shape(path)) == 0:
        empty: NDArray[Any] = np.load(path, allow_pickle=False)  # there is nothing to map
        return empty
    mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    # The same pages without numpy.memmap's cost on every slice.
    return mapped.view(np.ndarray)


def read_shape(path: Path) -> tuple[int, ...]:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        return np.lib.format.read_array_header_1_0(file)[0]
