"""XGBoost's document of a model as one forest of arrays, or the reason why it cannot be packed.

The document is what `Booster.save_raw("ubj")` of XGBoost 3.2 gives. Nothing here imports xgboost: the process that packs
hands it over.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.ensemble import (
    ARGMAX,
    CODE_OF_FIRST,
    CODE_OF_MISSING,
    EXP,
    IDENTITY,
    RECORD,
    SIGMOID,
    SOFTMAX,
    STEP,
    WIDE_EXP,
    WIDTH,
    Floats,
    Ints,
)

# How a margin becomes a score, and how the file's base score becomes a margin (`ObjFunction::PredTransform` and
# `ProbToMargin` of XGBoost 3.2). What is not here is not packed.
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
    "survival:aft": WIDE_EXP,  # the only one for which XGBoost 3.2 calls exp and not expf
    "binary:hinge": STEP,
    "multi:softprob": SOFTMAX,
    "multi:softmax": ARGMAX,
}

# A tree that splits a feature by so many categories that a set of them takes more words than this is walked, also for many rows.
MOST_WORDS = 8
# Categories from here on go left wherever they are met (`common::InvalidCat`).
END_OF_CATEGORIES = 1 << 24
# Words of all sets together: 256 MB.
MOST_WORDS_IN_ALL = 1 << 26


class UnsupportedModelError(Exception):
    """This model cannot be packed, and why; XGBoost can serve it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


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
    if transform in (EXP, WIDE_EXP):
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
