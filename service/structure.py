"""What must hold in a model document so that nothing which reads it, XGBoost or our kernels, leaves an array or turns in a
circle.

XGBoost 3.2 checks next to none of it: a child, a feature or an output out of range is read from memory that is not the
model's (dmlc/xgboost#7903), a tree with a circle is walked for ever. The rules are those that its own code relies on when
it loads and predicts. All trees are checked together: 5,000 deep ones take a second, whatever is wrong with them.

A fault is one line with its place: `tree 17, node 4: left child 99 of 31 nodes`. Numbers are the only part of the file
that it repeats.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[Any]
Mask = NDArray[np.bool_]

# Faults named; a file with more of them is no better known by a longer list.
MOST_FAULTS = 20
# Files of newer versions may mean something else by the same names.
NEWEST_VERSION = (3, 2)
# Rows travel as text or as float32: more features do not fit into the largest body that can be allowed.
MOST_FEATURES = 1 << 23
# XGBoost walks trees by recursion when it explains a prediction.
MOST_DEPTH = 4096
# A node that pruning took out has this feature and goes left by default; a root has one of these parents.
DELETED = 2**31 - 1
NO_PARENTS = (-1, 2**31 - 1)
# Categories from here on go left wherever they are met (`common::InvalidCat`).
END_OF_CATEGORIES = 1 << 24
# XGBoost keeps a bit for every category up to the largest one of each set; in a file a set is one number.
MOST_SET_BYTES = 256 << 20
FEATURE_TYPES = {"q", "int", "i", "float", "c"}
OBJECTIVES = {
    "binary:hinge", "binary:logistic", "binary:logitraw", "count:poisson", "multi:softmax", "multi:softprob",
    "rank:map", "rank:ndcg", "rank:pairwise", "reg:absoluteerror", "reg:gamma", "reg:linear", "reg:logistic",
    "reg:pseudohubererror", "reg:quantileerror", "reg:squarederror", "reg:squaredlogerror", "reg:tweedie",
    "survival:aft", "survival:cox",
}  # fmt: skip


class FaultError(Exception):
    """A fault that leaves nothing more to check in its part of the document."""


@dataclass(frozen=True)
class Parameters:
    """What the whole model agrees on."""

    features: int
    groups: int


def find_faults(document: Any) -> list[str]:
    """The first faults, up to `MOST_FAULTS`; none if the document is a model."""
    with np.errstate(over="ignore", invalid="ignore"):
        return list(dict.fromkeys(islice(check_model(document), MOST_FAULTS)))


def check_model(document: Any) -> Iterator[str]:
    try:
        learner = member(document, "learner", dict, "the document")
    except FaultError as fault:
        yield str(fault)
        return
    yield from attempt(check_version(document))
    parameters = None
    try:
        parameters = read_parameters(learner)
    except FaultError as fault:
        yield str(fault)
    yield from attempt(check_objective(learner))
    yield from attempt(check_names(learner, parameters))
    if parameters is not None:
        yield from attempt(check_booster(learner, parameters))


def attempt(faults: Iterator[str]) -> Iterator[str]:
    """These faults, the one that ends them included."""
    try:
        yield from faults
    except FaultError as fault:
        yield str(fault)


# Reading.

KINDS = {dict: "an object", list: "a list", str: "a string", int: "a whole number"}


def member(document: Any, name: str, kind: Any, place: str) -> Any:
    """The value under this name, or `FaultError` if it is not there or of another kind."""
    if not isinstance(document, Mapping):
        raise FaultError(f"{place}: expected an object")
    if name not in document:
        raise FaultError(f"{place}: no {name}")
    value = document[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise FaultError(f"{place}: {name}: expected {KINDS[kind]}")
    return value


def count(document: Any, name: str, place: str, default: str | None = None) -> int:
    """A number that XGBoost writes as a string of digits."""
    if default is not None and isinstance(document, Mapping) and name not in document:
        return int(default)
    text = member(document, name, str, place)
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) >= 2**31:
        raise FaultError(f"{place}: {name}: expected a whole number from 0 to {2**31 - 1}, as a string")
    return int(text)


def numbers(document: Any, name: str, kind: str, place: str) -> Column:
    """A list of numbers as an array: int64 (`kind` "whole"), or float32 ("real")."""
    if not isinstance(document, Mapping) or name not in document:
        raise FaultError(f"{place}: no {name}")
    values = document[name]
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in ("f" if kind == "real" else "iu"):
            raise FaultError(f"{place}: {name}: expected {kind} numbers")
        return values
    allowed = {int, bool} if kind == "whole" else {int, float}
    if not isinstance(values, list) or not set(map(type, values)) <= allowed:
        raise FaultError(f"{place}: {name}: expected a list of {kind} numbers")
    try:
        return np.array(values, np.int64 if kind == "whole" else np.float64)
    except OverflowError:
        raise FaultError(f"{place}: {name}: a number beyond 64 bits") from None


# The learner.


def check_version(document: Any) -> Iterator[str]:
    version = numbers(document, "version", "whole", "the document").tolist()
    if len(version) != 3 or min(version) < 0:
        yield "version: expected three numbers"
    elif tuple(version[:2]) > NEWEST_VERSION:
        written = ".".join(map(str, version))
        yield f"version: written by XGBoost {written}; expected {NEWEST_VERSION[0]}.{NEWEST_VERSION[1]} or older"


def read_parameters(learner: Any) -> Parameters:
    place = "learner_model_param"
    found = member(learner, place, dict, "learner")
    features = count(found, "num_feature", place)
    classes, targets = count(found, "num_class", place), count(found, "num_target", place, "1")
    if not 1 <= features <= MOST_FEATURES:
        raise FaultError(f"{place}: num_feature is {features}, expected 1 to {MOST_FEATURES}")
    if classes > 1 and targets > 1:
        raise FaultError(f"{place}: {classes} classes and {targets} targets; expected one of the two")
    groups = max(classes, targets, 1)
    check_base_score(member(found, "base_score", str, place), groups)
    return Parameters(features, groups)


def check_base_score(text: str, groups: int) -> None:
    """XGBoost before 3.1 wrote a number, since then it is a list."""
    problem = f"learner_model_param: base_score: expected one finite number or {groups}, as a string"
    try:
        scores = json.loads(text)
    except (ValueError, RecursionError):
        raise FaultError(problem) from None
    scores = scores if isinstance(scores, list) else [scores]
    if len(scores) not in (1, groups) or not {type(score) for score in scores} <= {int, float}:
        raise FaultError(problem)
    if not all(abs(score) <= float(np.finfo(np.float32).max) for score in scores):
        raise FaultError(problem)


def check_objective(learner: Any) -> Iterator[str]:
    objective = member(learner, "objective", dict, "learner")
    name = member(objective, "name", str, "objective")
    if name not in OBJECTIVES:
        yield "objective: name: not one that XGBoost 3.2 knows"
    classes = count(learner.get("learner_model_param"), "num_class", "learner_model_param")
    if name.startswith("multi:"):
        own = count(member(objective, "softmax_multiclass_param", dict, "objective"), "num_class", "objective")
        if own != classes or own < 1:  # it divides by its own
            yield f"objective: num_class is {own}, learner_model_param says {classes}"


def check_names(learner: Any, parameters: Parameters | None) -> Iterator[str]:
    """Attributes, and what the features are called."""
    attributes = member(learner, "attributes", dict, "learner")
    if not {type(value) for value in attributes.values()} <= {str}:
        yield "learner: attributes: expected strings"
    for name in ("feature_names", "feature_types"):
        found = learner.get(name, [])
        if not isinstance(found, list) or not {type(value) for value in found} <= {str}:
            yield f"learner: {name}: expected a list of strings"
            continue
        if parameters is not None and len(found) not in (0, parameters.features):
            yield f"learner: {name}: {len(found)} of {parameters.features} features"
        if name == "feature_names" and len(set(found)) < len(found):
            yield "learner: feature_names: a name is given twice"
        if name == "feature_names" and any("\0" in text for text in found):
            yield "learner: feature_names: a name with a NUL, where XGBoost would end it"
        if name == "feature_types" and not set(found) <= FEATURE_TYPES:
            yield f"learner: feature_types: expected {', '.join(sorted(FEATURE_TYPES))}"


# The booster.


def check_booster(learner: Any, parameters: Parameters) -> Iterator[str]:
    booster = member(learner, "gradient_booster", dict, "learner")
    name = member(booster, "name", str, "gradient_booster")
    if name == "gbtree":
        yield from check_trees(member(booster, "model", dict, "gradient_booster"), parameters)
    elif name == "dart":
        inner = member(booster, "gbtree", dict, "gradient_booster")
        model = member(inner, "model", dict, "gradient_booster: gbtree")
        if inner.get("name") != "gbtree":
            yield "gradient_booster: gbtree: name: expected gbtree"
        yield from check_weights(numbers(booster, "weight_drop", "real", "gradient_booster"), model)
        yield from check_trees(model, parameters)
    elif name == "gblinear":
        yield from check_linear(member(booster, "model", dict, "gradient_booster"), parameters)
    else:
        yield "gradient_booster: name: expected gbtree, dart or gblinear"


def check_weights(weights: Column, model: Any) -> Iterator[str]:
    trees = len(member(model, "trees", list, "model"))
    if len(weights) != trees:
        yield f"gradient_booster: weight_drop: {len(weights)} weights for {trees} trees"
    if not is_finite(weights).all():
        yield "gradient_booster: weight_drop: a weight that is not a finite number"


def check_linear(model: Any, parameters: Parameters) -> Iterator[str]:
    weights = numbers(model, "weights", "real", "model")
    expected = (parameters.features + 1) * parameters.groups
    if len(weights) != expected:
        yield f"model: weights: {len(weights)}, expected {expected}"
    if not is_finite(weights).all():
        yield "model: weights: a weight that is not a finite number"


def is_finite(values: Column) -> Mask:
    """As float32, which is what XGBoost keeps."""
    found: Mask = np.isfinite(values.astype(np.float32))
    return found


def check_trees(model: Any, parameters: Parameters) -> Iterator[str]:
    """All that a model of trees consists of."""
    found = member(model, "gbtree_model_param", dict, "model")
    trees = member(model, "trees", list, "model")
    named = count(found, "num_trees", "gbtree_model_param")
    if named != len(trees):
        yield f"gbtree_model_param: num_trees is {named}, there are {len(trees)} trees"
    parallel = count(found, "num_parallel_tree", "gbtree_model_param", "1")
    if parallel < 1:  # it divides by it
        yield "gbtree_model_param: num_parallel_tree is 0"
    yield from attempt(check_rounds(model, len(trees), parallel))
    yield from attempt(check_categories(model, parameters))
    yield from check_identities(trees)
    size = yield from read_leaf_size(trees, parameters)
    yield from attempt(check_groups(model, len(trees), 1 if size > 1 else parameters.groups))
    readable = []
    for place, tree in enumerate(trees):
        try:
            readable.append(Tree.from_document(tree, f"tree {place}", parameters, size))
        except FaultError as fault:
            yield str(fault)
            readable.append(Tree())
    yield from check_features(trees, parameters)
    if any(len(tree.columns) for tree in readable):
        yield from check_nodes(Nodes.from_trees(readable, size > 1), parameters)


def check_rounds(model: Any, trees: int, parallel: int) -> Iterator[str]:
    if "iteration_indptr" not in model:  # before XGBoost 2.0
        groups = int(numbers(model, "tree_info", "whole", "model").max(initial=-1)) + 1
        if trees == 0 or groups < 1 or trees % (groups * max(parallel, 1)):
            yield f"model: {trees} trees are no whole rounds, and there is no iteration_indptr"
        return
    bounds = numbers(model, "iteration_indptr", "whole", "model")
    if len(bounds) < 1 or bounds[0] != 0 or bounds[-1] != trees or (np.diff(bounds) < 0).any():
        yield f"model: iteration_indptr: expected numbers that rise from 0 to {trees}"


def check_groups(model: Any, trees: int, groups: int) -> Iterator[str]:
    """Each tree adds to one output, and each output has a tree."""
    info = numbers(model, "tree_info", "whole", "model")
    if len(info) != trees:
        yield f"model: tree_info: {len(info)} entries for {trees} trees"
    for tree in np.flatnonzero((info < 0) | (info >= groups)):
        yield f"tree {tree}: output {info[tree]} of {groups}"
    if len(info) and len(np.unique(info)) < groups:
        yield f"model: tree_info: trees for {len(np.unique(info))} of {groups} outputs"


def check_identities(trees: Sequence[Any]) -> Iterator[str]:
    """XGBoost puts a tree where its id says, and predicts with whatever is in the places that are left."""
    seen: dict[int, int] = {}
    for place, tree in enumerate(trees):
        try:
            number = member(tree, "id", int, f"tree {place}")
        except FaultError as fault:
            yield str(fault)
            continue
        if not 0 <= number < len(trees):
            yield f"tree {place}: id {number} of {len(trees)} trees"
        elif number in seen:
            yield f"tree {place}: the same id as tree {seen[number]}"
        seen.setdefault(number, place)


def read_leaf_size(trees: Sequence[Any], parameters: Parameters) -> Generator[str, None, int]:
    """The number of values in a leaf, which is that of all trees: 1, or one for each output."""
    sizes = {}
    for place, tree in enumerate(trees):
        try:
            where = f"tree {place}: tree_param"
            sizes[place] = count(member(tree, "tree_param", dict, f"tree {place}"), "size_leaf_vector", where)
        except FaultError as fault:
            yield str(fault)
    most = max(sizes.values(), default=1)
    size = most if most > 1 else 1
    for place, found in sizes.items():
        if max(found, 1) != size or size not in (1, parameters.groups):
            yield f"tree {place}: size_leaf_vector is {found}, expected {size if size == parameters.groups else 1}"
    return size


def check_features(trees: Sequence[Any], parameters: Parameters) -> Iterator[str]:
    """Training may go on with more features than it began with: the latest trees know as many as the model."""
    known = []
    for place, tree in enumerate(trees):
        try:
            known.append(count(tree["tree_param"], "num_feature", f"tree {place}: tree_param"))
        except (FaultError, KeyError, TypeError):
            return  # the tree itself says so
    if known and max(known) != parameters.features:
        yield f"learner_model_param: num_feature is {parameters.features}, the trees know {max(known)}"


# The dictionaries of categories.


def check_categories(model: Any, parameters: Parameters) -> Iterator[str]:
    """Since XGBoost 3.1: for each feature its categories, all of them in a row, and their order."""
    if "cats" not in model:
        return
    place = "model: cats"
    cats = member(model, "cats", dict, "model")
    encoded = member(cats, "enc", list, place)
    segments = numbers(cats, "feature_segments", "whole", place)
    order = numbers(cats, "sorted_idx", "whole", place)
    if len(encoded) not in (0, parameters.features):
        raise FaultError(f"{place}: enc: {len(encoded)} dictionaries for {parameters.features} features")
    sizes = np.array([count_categories(column, f"{place}: enc {at}") for at, column in enumerate(encoded)], np.int64)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    if (len(segments) and not np.array_equal(segments, bounds)) or (not len(segments) and sizes.sum()):
        raise FaultError(f"{place}: feature_segments: not where the {len(encoded)} dictionaries begin and end")
    if len(order) not in (0, bounds[-1]):
        raise FaultError(f"{place}: sorted_idx: {len(order)} entries for {bounds[-1]} categories")
    if len(order):
        rank = order + np.repeat(bounds[:-1], sizes)
        if not np.array_equal(np.sort(rank), np.arange(len(rank))):
            yield f"{place}: sorted_idx: not an order of the categories"


def count_categories(column: Any, place: str) -> int:
    """Strings have offsets into their bytes; numbers have the type that XGBoost is to read them as."""
    if isinstance(column, Mapping) and "offsets" not in column:
        kind = member(column, "type", int, place)
        values = column.get("values")
        real = isinstance(values, np.ndarray) and values.dtype.kind == "f"
        if isinstance(values, list):
            real = any(isinstance(value, float) for value in values)
        if not 0 <= kind < 32:
            raise FaultError(f"{place}: type {kind}")
        return len(numbers(column, "values", "real" if real else "whole", place))
    offsets = numbers(column, "offsets", "whole", place)
    size = len(numbers(column, "values", "whole", place))
    if len(offsets) and (offsets[0] != 0 or offsets[-1] != size or (np.diff(offsets) < 0).any()):
        raise FaultError(f"{place}: offsets: expected numbers that rise from 0 to {size}")
    return max(len(offsets) - 1, 0)


# Trees.

WHOLE = ("left_children", "right_children", "parents", "split_indices", "default_left")
REAL = ("split_conditions", "base_weights", "loss_changes", "sum_hessian")
SETS = ("categories_nodes", "categories_segments", "categories_sizes", "categories")


@dataclass(frozen=True)
class Tree:
    """The columns of one tree, each of the right kind and length; no columns where that is not so."""

    columns: Mapping[str, Column] = field(default_factory=dict)
    deleted: int = 0

    @classmethod
    def from_document(cls, tree: Any, place: str, parameters: Parameters, size: int) -> Tree:
        found = member(tree, "tree_param", dict, place)
        nodes = count(found, "num_nodes", f"{place}: tree_param")
        if count(found, "num_feature", f"{place}: tree_param") > parameters.features:
            raise FaultError(f"{place}: tree_param: num_feature is more than the model's {parameters.features}")
        if (
            size > 1 and "leaf_weights" not in tree
        ):  # XGBoost 3.2.0 ends with a segmentation fault on its own older files
            raise FaultError(
                f"{place}: no leaf_weights: leaves of several values from before XGBoost 3.2 cannot be read"
            )
        columns = {name: numbers(tree, name, "whole", place) for name in WHOLE}
        columns |= {name: numbers(tree, name, "real", place) for name in REAL}
        columns |= cls._read_sets(tree, nodes, place)
        for name in (*WHOLE, *REAL, "split_type"):
            if size > 1 and name == "base_weights":
                continue  # as many for each node as the training had targets
            if len(columns[name]) != nodes or nodes < 1:
                raise FaultError(f"{place}: {name}: {len(columns[name])} entries for {nodes} nodes")
        if size > 1:
            columns["leaf_weights"] = numbers(tree, "leaf_weights", "real", place)
            if (
                len(columns["leaf_weights"]) % size
                or not len(columns["base_weights"])
                or len(columns["base_weights"]) % nodes
            ):
                raise FaultError(
                    f"{place}: leaf_weights, base_weights: expected {size} for each leaf, some for each node"
                )
        return cls(columns, count(found, "num_deleted", f"{place}: tree_param", "0"))

    @staticmethod
    def _read_sets(tree: Any, nodes: int, place: str) -> dict[str, Column]:
        if "split_type" not in tree:  # before XGBoost 1.3
            return {name: np.zeros(0, np.int64) for name in SETS} | {"split_type": np.zeros(nodes, np.int64)}
        found = {name: numbers(tree, name, "whole", place) for name in (*SETS, "split_type")}
        if not len(found["categories_nodes"]) == len(found["categories_segments"]) == len(found["categories_sizes"]):
            raise FaultError(f"{place}: {', '.join(SETS[:3])}: expected equally many entries")
        return found


@dataclass(frozen=True)
class Nodes:
    """All nodes of all trees, one after another; children and parents are numbered within their tree, as in the file."""

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    left: Column
    right: Column
    parent: Column
    feature: Column
    default_left: Column
    split_type: Column
    value: Column
    deleted: Column
    is_vector: bool
    trees: Sequence[Tree]

    @classmethod
    def from_trees(cls, trees: Sequence[Tree], is_vector: bool) -> Nodes:
        sizes = np.array([len(tree.columns.get("left_children", ())) for tree in trees], np.int64)

        def join(name: str, dtype: Any) -> Column:
            return np.concatenate([tree.columns[name] for tree in trees if tree.columns]).astype(dtype)

        return cls(
            starts=np.cumsum(sizes) - sizes,
            sizes=sizes,
            left=join("left_children", np.int64),
            right=join("right_children", np.int64),
            parent=join("parents", np.int64),
            feature=join("split_indices", np.int64),
            default_left=join("default_left", np.int64),
            split_type=join("split_type", np.int64),
            value=join("split_conditions", np.float32),
            deleted=np.array([tree.deleted for tree in trees], np.int64),
            is_vector=is_vector,
            trees=trees,
        )

    def place(self, node: int) -> str:
        tree = int(np.searchsorted(self.starts, node, "right")) - 1
        return f"tree {tree}, node {node - self.starts[tree]}"

    def faults(self, wrong: Mask, describe: Callable[[int], str]) -> Iterator[str]:
        for node in np.flatnonzero(wrong)[:MOST_FAULTS]:
            yield f"{self.place(int(node))}: {describe(int(node))}"


def check_nodes(nodes: Nodes, parameters: Parameters) -> Iterator[str]:
    """Ranges first: what follows from them is checked only where they hold."""
    offset = np.repeat(nodes.starts, nodes.sizes)
    size = np.repeat(nodes.sizes, nodes.sizes)
    is_leaf = nodes.left == -1
    is_root = np.arange(len(offset)) == offset
    is_deleted = (nodes.feature == DELETED) & (nodes.default_left == 1) & (not nodes.is_vector)
    ranges = list(islice(check_ranges(nodes, size, is_leaf, is_root, is_deleted), MOST_FAULTS))
    yield from ranges
    yield from check_splits(nodes, is_leaf, is_deleted, parameters)
    yield from check_sets(nodes)
    if nodes.is_vector:
        yield from check_vectors(nodes, is_leaf, parameters)
    if not ranges:
        yield from check_shape(nodes, offset, is_leaf, is_root, is_deleted)


def check_ranges(nodes: Nodes, size: Column, is_leaf: Mask, is_root: Mask, is_deleted: Mask) -> Iterator[str]:
    left, right, parent = nodes.left, nodes.right, nodes.parent
    inner = ~is_leaf & ~is_deleted
    outside = inner & ((left < 1) | (left >= size))
    yield from nodes.faults(outside, lambda node: f"left child {left[node]} of {size[node]} nodes")
    outside_right = inner & ((right < 1) | (right >= size))
    yield from nodes.faults(outside_right, lambda node: f"right child {right[node]} of {size[node]} nodes")
    # XGBoost finds the right child by adding one, whatever the file says.
    stranger = inner & ~outside & ~outside_right & (right != left + 1)
    yield from nodes.faults(
        stranger, lambda node: f"right child {right[node]}, expected {left[node] + 1}: after the left one"
    )
    if not nodes.is_vector:
        half = is_leaf & ~is_deleted & (right != -1)
        yield from nodes.faults(half, lambda node: f"a right child, {right[node]}, and no left one")
    lost = ~is_root & ((parent < 0) | (parent >= size))
    yield from nodes.faults(lost, lambda node: f"parent {parent[node]} of {size[node]} nodes")
    child = is_root & ~np.isin(parent, NO_PARENTS)
    yield from nodes.faults(child, lambda node: f"the root has the parent {parent[node]}")
    yield from nodes.faults(is_root & is_deleted, lambda _: "the root is deleted")
    yield from nodes.faults((nodes.default_left >> 1) != 0, lambda _: "default_left: expected 0 or 1")
    yield from nodes.faults((nodes.split_type >> 1) != 0, lambda _: "split_type: expected 0 or 1")
    found = np.array([is_deleted[at : at + n].sum() for at, n in zip(nodes.starts, nodes.sizes, strict=True)])
    for tree in np.flatnonzero((found != nodes.deleted) & (nodes.sizes > 0)):
        yield f"tree {tree}: tree_param: num_deleted is {nodes.deleted[tree]}, {found[tree]} nodes are deleted"


def check_splits(nodes: Nodes, is_leaf: Mask, is_deleted: Mask, parameters: Parameters) -> Iterator[str]:
    inner = ~is_leaf & ~is_deleted
    # Of leaves as well: XGBoost takes 2^32 - 1 for the mark of a deleted node.
    wrong = ~is_deleted & ((nodes.feature < 0) | (nodes.feature >= parameters.features))
    yield from nodes.faults(wrong, lambda node: f"feature {nodes.feature[node]} of {parameters.features}")
    endless = ~is_deleted & ~np.isfinite(nodes.value)
    yield from nodes.faults(
        endless & inner & (nodes.split_type == 0), lambda _: "a threshold that is not a finite number"
    )
    if not nodes.is_vector:
        yield from nodes.faults(endless & is_leaf, lambda _: "a leaf value that is not a finite number")


def check_vectors(nodes: Nodes, is_leaf: Mask, parameters: Parameters) -> Iterator[str]:
    """Where a leaf has a value for every output, its right child is its row among the leaf weights."""
    rows = np.array([len(tree.columns.get("leaf_weights", ())) // parameters.groups for tree in nodes.trees], np.int64)
    own = np.repeat(rows, nodes.sizes)
    wrong = is_leaf & ((nodes.right < 0) | (nodes.right >= own))
    yield from nodes.faults(wrong, lambda node: f"leaf {nodes.right[node]} of {own[node]}")
    for number, tree in enumerate(nodes.trees):
        if tree.columns and not is_finite(tree.columns["leaf_weights"]).all():
            yield f"tree {number}: leaf_weights: a leaf value that is not a finite number"


def check_sets(nodes: Nodes) -> Iterator[str]:
    """Splits by category: the nodes that have one, in order, and a stretch of the tree's categories for each."""
    set_bytes = 0
    for number, tree in enumerate(nodes.trees):
        if not tree.columns or not (len(tree.columns["categories_nodes"]) or tree.columns["split_type"].any()):
            continue
        own, begins, sizes, categories = (tree.columns[name].astype(np.int64) for name in SETS)
        place = f"tree {number}"
        if not np.array_equal(own, np.flatnonzero(tree.columns["split_type"] == 1)):
            yield f"{place}: categories_nodes: not the nodes whose split_type is 1"
        if (sizes < 1).any() or not np.array_equal(begins, np.cumsum(sizes) - sizes) or sizes.sum() != len(categories):
            yield f"{place}: categories_segments, categories_sizes: not stretches of {len(categories)} categories"
        elif len(begins):
            set_bytes += int((np.maximum.reduceat(categories, begins) // 8 + 1).sum())
        if len(categories) and not (categories.min() >= 0 and categories.max() < END_OF_CATEGORIES):
            yield f"{place}: categories: expected numbers from 0 to {END_OF_CATEGORIES - 1}"
    if set_bytes > MOST_SET_BYTES:
        yield f"categories: {set_bytes:,} bytes of sets; expected at most {MOST_SET_BYTES:,}"


def check_shape(nodes: Nodes, offset: Column, is_leaf: Mask, is_root: Mask, is_deleted: Mask) -> Iterator[str]:
    """Every node that is not deleted is reached exactly once from its root."""
    every = np.arange(len(offset))
    above = np.where(is_root, every, nodes.parent + offset)
    is_child = (nodes.left[above] + offset == every) | (nodes.right[above] + offset == every)
    live = ~is_deleted
    orphan = live & ~is_root & (is_leaf[above] | is_deleted[above] | ~is_child)
    yield from nodes.faults(orphan, lambda node: f"not a child of its parent {nodes.parent[node]}")
    inner = np.flatnonzero(live & ~is_leaf)
    shared = np.zeros(len(offset), bool)
    for child in (nodes.left[inner] + offset[inner], nodes.right[inner] + offset[inner]):
        shared[inner] |= (above[child] != inner) | is_deleted[child]
    yield from nodes.faults(shared, lambda _: "a child whose parent is another node, or that is deleted")
    if orphan.any() or shared.any():
        return
    # Each node now has one parent: whatever does not end in its root by going up turns in a circle.
    depth, top = measure_depths(above, is_root | is_deleted)
    yield from nodes.faults(live & ~is_root[top], lambda _: "not reached from the root: a circle")
    yield from nodes.faults(live & is_root[top] & (depth > MOST_DEPTH), lambda _: f"deeper than {MOST_DEPTH}")


def measure_depths(above: Column, is_end: Mask) -> tuple[Column, Column]:
    """Steps up from each node to its end, and the end; nodes in circles have neither. Each turn doubles the steps."""
    top = np.where(is_end, np.arange(len(above)), above)
    depth = (~is_end).astype(np.int64)
    for _ in range(max(len(above), 2).bit_length()):
        if is_end[top].all():
            break
        depth += depth[top]
        top = top[top]
    return depth, top
