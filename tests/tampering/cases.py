"""Model files with one fault each, named by it, with what the refusal must say.

`python -m tests.tampering.cases FOLDER` writes them all.
"""

from __future__ import annotations

import bz2
import copy
import gzip
import io
import json
import lzma
import pickle
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import xgboost

from tests.tampering import ubjson
from tests.unit.engine_models import DART, KINDS, Kind, train

Document = Any
Change = Callable[[Document], None]

BASES = {
    "trees": Kind({"num_parallel_tree": 2, "subsample": 0.7}),
    "classes": KINDS["softprob"],
    "sets": KINDS["partition"],
    "dart": Kind(DART),
    "vector": KINDS["vector"],
}


@cache
def make_base(name: str) -> bytes:
    return bytes(train(BASES[name], seed=4).booster.save_raw("json"))


@cache
def make_linear() -> bytes:
    matrix = xgboost.DMatrix([[0.0, 1.0], [1.0, 0.0]], [0.0, 1.0], nthread=1)
    return bytes(xgboost.train({"booster": "gblinear", "nthread": 1}, matrix, 2).save_raw("json"))


def document_of(base: str) -> Document:
    return json.loads(make_linear() if base == "linear" else make_base(base))


def learner(document: Document) -> Any:
    return document["learner"]


def booster(document: Document) -> Any:
    return learner(document)["gradient_booster"]


def model(document: Document) -> Any:
    return booster(document).get("gbtree", booster(document))["model"]


def tree(document: Document, number: int = 0) -> Any:
    return model(document)["trees"][number]


def parameters(document: Document) -> Any:
    return learner(document)["learner_model_param"]


def find(values: list[Any], wanted: Callable[[Any], bool], last: bool = False) -> int:
    places = [place for place, value in enumerate(values) if wanted(value)]
    return places[-1 if last else 0]


def put(*path: Any, value: Any) -> Change:
    """Of a tree's, a model's or the learner's: the first one that has the name."""

    def change(document: Document) -> None:
        for holder in (
            tree(document) if "trees" in model(document) else {},
            model(document),
            booster(document),
            learner(document),
            document,
        ):
            if path[0] in holder:
                break
        for step in path[:-1]:
            holder = holder[step]
        holder[path[-1]] = value

    return change


def drop(name: str) -> Change:
    def change(document: Document) -> None:
        for holder in (
            tree(document),
            model(document),
            booster(document),
            learner(document),
            parameters(document),
            document,
        ):
            if name in holder:
                del holder[name]
                return
        raise KeyError(name)

    return change


def shorten(name: str) -> Change:
    def change(document: Document) -> None:
        (tree(document) if name in tree(document) else model(document))[name].pop()

    return change


# Shapes of trees.


def circle(document: Document) -> None:
    """An inner node whose children are the root's own: an endless way down."""
    found = tree(document)
    inner = find(found["left_children"], lambda child: child > 2, last=True)
    found["left_children"][inner], found["right_children"][inner] = 1, 2


def island(document: Document) -> None:
    """Two nodes that have each other as parent and child, apart from the root; nothing but a circle is wrong."""
    found = tree(document)
    size = len(found["left_children"])
    for name, values in {
        "left_children": [size + 2, -1, size, -1],
        "right_children": [size + 3, -1, size + 1, -1],
        "parents": [size + 2, size + 2, size, size],
    }.items():
        found[name] += values
    for name in ("split_indices", "default_left", "split_type"):
        found[name] += [0] * 4
    for name in ("split_conditions", "base_weights", "loss_changes", "sum_hessian"):
        found[name] += [0.5] * 4
    found["tree_param"]["num_nodes"] = str(size + 4)


def shared_child(document: Document) -> None:
    found = tree(document)
    first, second = [place for place, child in enumerate(found["left_children"]) if child > 0][1:3]
    found["left_children"][second] = found["left_children"][first]
    found["right_children"][second] = found["right_children"][first]


def orphans(document: Document) -> None:
    """A node that becomes a leaf and leaves its children behind."""
    found = tree(document)
    found["left_children"][1] = found["right_children"][1] = -1


def own_child(document: Document) -> None:
    found = tree(document)
    found["left_children"][1], found["right_children"][1] = 1, 2


def deep_chain(document: Document) -> None:
    """A tree of 5,000 levels, in which all else is as it should be."""
    found, levels = tree(document), 5000
    size = 2 * levels + 1
    found["left_children"] = [at + 1 if at % 2 == 0 and at < size - 1 else -1 for at in range(size)]
    found["right_children"] = [at + 2 if at % 2 == 0 and at < size - 1 else -1 for at in range(size)]
    found["parents"] = [2147483647] + [at // 2 * 2 - (0 if at % 2 else 2) for at in range(1, size)]
    for name in ("split_indices", "default_left", "split_type"):
        found[name] = [0] * size
    for name in ("split_conditions", "base_weights", "loss_changes", "sum_hessian"):
        found[name] = [0.5] * size
    found["tree_param"]["num_nodes"] = str(size)


def half_leaf(document: Document) -> None:
    found = tree(document)
    found["right_children"][find(found["left_children"], lambda child: child == -1)] = 1


def half_inner(document: Document) -> None:
    tree(document)["right_children"][0] = -1


def deleted_child(document: Document) -> None:
    """A leaf that is marked as pruned, and still somebody's child."""
    found = tree(document)
    leaf = find(found["left_children"], lambda child: child == -1)
    found["split_indices"][leaf], found["default_left"][leaf] = 2147483647, 1
    found["tree_param"]["num_deleted"] = "1"


def at_leaf(name: str, value: Any) -> Change:
    def change(document: Document) -> None:
        found = tree(document)
        found[name][find(found["left_children"], lambda child: child == -1)] = value

    return change


def same_id(document: Document) -> None:
    tree(document, 1)["id"] = 0


def mixed_leaves(document: Document) -> None:
    tree(document, 1)["tree_param"]["size_leaf_vector"] = "3"


def more_outputs(document: Document) -> None:
    """Ten classes in the header, in the objective too, and trees for four of them."""
    parameters(document)["num_class"] = learner(document)["objective"]["softmax_multiclass_param"]["num_class"] = "10"
    parameters(document)["base_score"] = "5E-1"


def segments_astray(document: Document) -> None:
    tree(document)["categories_segments"][0] = 10**6


def many_sets(document: Document) -> None:
    tree(document)["categories_sizes"][0] = 10**12


# What is changed, in which model, and what the refusal says.
CHANGES: dict[str, tuple[str, Change, str]] = {
    "circle": ("trees", circle, "node 1: not a child of its parent 0|a child whose parent is another node"),
    "circle-apart-from-the-root": ("trees", island, "not reached from the root: a circle"),
    "own-child": ("trees", own_child, "a child whose parent is another node|not a child of its parent"),
    "shared-child": ("trees", shared_child, "a child whose parent is another node"),
    "orphans": ("trees", orphans, "not a child of its parent 1"),
    "chain-of-5000": ("trees", deep_chain, "deeper than 4096"),
    "left-child-out-of-range": ("trees", put("left_children", 0, value=99999), "node 0: left child 99999 of"),
    "left-child-negative": ("trees", put("left_children", 0, value=-7), "node 0: left child -7 of"),
    "left-child-is-the-root": ("trees", put("left_children", 0, value=0), "node 0: left child 0 of"),
    "right-child-out-of-range": ("trees", put("right_children", 0, value=99999), "node 0: right child 99999 of"),
    "right-child-not-after-the-left": ("trees", put("right_children", 0, value=3), "right child 3, expected 2"),
    "child-beyond-32-bits": ("trees", put("left_children", 0, value=2**32 + 1), "left child 4294967297 of|whole numbers"),
    "child-beyond-64-bits": ("trees", put("left_children", 0, value=2**64 + 1), "beyond 64 bits|no type of UBJSON"),
    "leaf-with-a-right-child": ("trees", half_leaf, "a right child, 1, and no left one"),
    "node-without-a-right-child": ("trees", half_inner, "node 0: right child -1 of"),
    "parent-out-of-range": ("trees", put("parents", 1, value=12345), "node 1: parent 12345 of"),
    "parent-negative": ("trees", put("parents", 2, value=-3), "node 2: parent -3 of"),
    "parent-is-another": ("trees", put("parents", 3, value=2), "node 3: not a child of its parent 2"),
    "root-with-a-parent": ("trees", put("parents", 0, value=1), "the root has the parent 1"),
    "child-that-is-deleted": ("trees", deleted_child, "or that is deleted"),
    "more-deleted-than-there-are": ("trees", put("tree_param", "num_deleted", value="5"), "num_deleted is 5, 0 nodes"),
    "feature-out-of-range": ("trees", put("split_indices", 0, value=5000), "node 0: feature 5000 of"),
    "feature-negative": ("trees", put("split_indices", 0, value=-1), "node 0: feature -1 of"),
    "threshold-nan": ("trees", put("split_conditions", 0, value=float("nan")), "node 0: a threshold that is not a finite"),
    "threshold-infinite": ("trees", put("split_conditions", 0, value=float("-inf")), "node 0: a threshold that is not"),
    "threshold-beyond-float32": ("trees", put("split_conditions", 0, value=1e39), "node 0: a threshold that is not|real numbers"),
    "leaf-nan": ("trees", at_leaf("split_conditions", float("nan")), "a leaf value that is not a finite number"),
    "leaf-infinite": ("trees", at_leaf("split_conditions", float("inf")), "a leaf value that is not a finite number"),
    "default-left-is-2": ("trees", put("default_left", 0, value=2), "default_left: expected 0 or 1"),
    "split-type-is-2": ("trees", put("split_type", 0, value=2), "split_type: expected 0 or 1"),
    "thresholds-are-strings": ("trees", put("split_conditions", value=["half"] * 3), "expected a list of real numbers"),
    "children-are-an-object": ("trees", put("left_children", value={"a": 1}), "left_children: expected a list of whole"),
    "children-are-real": ("trees", put("left_children", value=[0.5, 1.5]), "left_children: expected|left_children: 2 entries"),
    "children-are-null": ("trees", put("left_children", value=None), "left_children: expected a list of whole"),
    "children-are-lists": ("trees", put("left_children", value=[[1], [2, 3]]), "left_children: expected a list of whole"),
    "no-left-children": ("trees", drop("left_children"), "tree 0: no left_children"),
    "no-split-conditions": ("trees", drop("split_conditions"), "tree 0: no split_conditions"),
    "no-default-left": ("trees", drop("default_left"), "tree 0: no default_left"),
    "no-parents": ("trees", drop("parents"), "tree 0: no parents"),
    "no-tree-param": ("trees", drop("tree_param"), "tree 0: no tree_param"),
    "no-id": ("trees", drop("id"), "tree 0: no id"),
    "short-right-children": ("trees", shorten("right_children"), "tree 0: right_children: "),
    "short-sum-hessian": ("trees", shorten("sum_hessian"), "tree 0: sum_hessian: "),
    "short-split-type": ("sets", shorten("split_type"), "tree 0: split_type: "),
    "num-nodes-negative": ("trees", put("tree_param", "num_nodes", value="-1"), "num_nodes: expected a whole number"),
    "num-nodes-zero": ("trees", put("tree_param", "num_nodes", value="0"), "entries for 0 nodes"),
    "num-nodes-is-a-number": ("trees", put("tree_param", "num_nodes", value=5), "num_nodes: expected a string"),
    "num-nodes-huge": ("trees", put("tree_param", "num_nodes", value="2147483647"), "entries for 2147483647 nodes"),
    "id-out-of-range": ("trees", put("id", value=4096), "tree 0: id 4096 of"),
    "id-twice": ("trees", same_id, "tree 1: the same id as tree 0"),
    "tree-of-more-features": ("trees", put("tree_param", "num_feature", value="4000000"), "num_feature is more than"),
    "trees-missing": ("trees", drop("trees"), "model: no trees"),
    "tree-is-a-number": ("trees", put("trees", 0, value=7), "tree 0: expected an object"),
    "one-tree-less": ("trees", shorten("trees"), "num_trees is "),
    "num-trees-negative": ("trees", put("gbtree_model_param", "num_trees", value="-4"), "num_trees: expected a whole"),
    "num-trees-huge": ("trees", put("gbtree_model_param", "num_trees", value="2147483647"), "num_trees is 2147483647"),
    "no-parallel-trees": ("trees", put("gbtree_model_param", "num_parallel_tree", value="0"), "num_parallel_tree is 0"),
    "group-out-of-range": ("classes", put("tree_info", 0, value=4), "tree 0: output 4 of 4"),
    "group-negative": ("classes", put("tree_info", 1, value=-1), "tree 1: output -1 of 4"),
    "short-tree-info": ("classes", shorten("tree_info"), "tree_info: "),
    "groups-without-trees": ("classes", more_outputs, "trees for 4 of 10 outputs"),
    "num-class-of-the-header": ("classes", put("learner_model_param", "num_class", value="3"), "num_class is 4, learner_model"),
    "classes-and-targets": ("classes", put("learner_model_param", "num_target", value="2"), "4 classes and 2 targets"),
    "rounds-fall": ("trees", put("iteration_indptr", 1, value=500), "iteration_indptr: expected numbers that rise"),
    "rounds-end-early": ("trees", shorten("iteration_indptr"), "iteration_indptr: expected numbers that rise"),
    "rounds-empty": ("trees", put("iteration_indptr", value=[]), "iteration_indptr: expected numbers that rise"),
    "num-feature-zero": ("trees", put("learner_model_param", "num_feature", value="0"), "num_feature is 0, expected 1"),
    "num-feature-a-billion": ("trees", put("learner_model_param", "num_feature", value="1000000000"), "num_feature is 1000000000"),
    "num-feature-a-million": ("trees", put("learner_model_param", "num_feature", value="1000000"), "the trees know"),
    "num-feature-in-words": ("trees", put("learner_model_param", "num_feature", value="many"), "expected a whole number"),
    "no-parameters": ("trees", drop("learner_model_param"), "learner: no learner_model_param"),
    "base-score-in-words": ("trees", put("learner_model_param", "base_score", value="half"), "base_score: expected one finite"),
    "base-score-nan": ("trees", put("learner_model_param", "base_score", value="[NaN]"), "base_score: expected one finite"),
    "base-score-infinite": ("trees", put("learner_model_param", "base_score", value="1e999"), "base_score: expected one finite"),
    "base-scores-too-many": ("trees", put("learner_model_param", "base_score", value="[1,2,3]"), "base_score: expected one finite"),
    "objective-unknown": ("trees", put("objective", "name", value="reg:surprise"), "objective: name: not one that XGBoost"),
    "objective-missing": ("trees", drop("objective"), "learner: no objective"),
    "booster-unknown": ("trees", put("name", value="gbforest"), "name: expected gbtree, dart or gblinear"),
    "version-of-tomorrow": ("trees", put("version", value=[9, 0, 0]), "written by XGBoost 9.0.0; expected 3.2 or older"),
    "version-of-two": ("trees", put("version", value=[3, 2]), "version: expected three numbers"),
    "attributes-are-numbers": ("trees", put("attributes", "a", value=1), "attributes: expected strings"),
    "names-too-few": ("trees", put("feature_names", value=["a"]), "feature_names: 1 of"),
    "names-are-numbers": ("trees", put("feature_names", value=[1, 2]), "feature_names: expected a list of strings"),
    "names-twice": ("trees", put("feature_names", value=["a"] * 8), "feature_names: a name is given twice"),
    "name-with-nul": ("trees", put("feature_names", value=["a\0", *"bcdefgh"]), "feature_names: a name with a NUL"),
    "types-unknown": ("trees", put("feature_types", value=["x"] * 8), "feature_types: expected c, float, i, int, q"),
    "category-out-of-range": ("sets", put("categories", 0, value=1 << 24), "categories: expected numbers from 0"),
    "category-negative": ("sets", put("categories", 0, value=-1), "categories: expected numbers from 0"),
    "categories-cut": ("sets", shorten("categories"), "not stretches of"),
    "categories-astray": ("sets", segments_astray, "not stretches of"),
    "categories-without-end": ("sets", many_sets, "not stretches of"),
    "category-node-out-of-range": ("sets", put("categories_nodes", 0, value=100000), "categories_nodes: not the nodes"),
    "category-nodes-cut": ("sets", shorten("categories_nodes"), "expected equally many entries"),
    "category-size-zero": ("sets", put("categories_sizes", 0, value=0), "not stretches of"),
    "dictionary-astray": ("trees", put("cats", "feature_segments", value=[0, 1 << 30]), "feature_segments: not where"),
    "dictionaries-too-many": ("trees", put("cats", "enc", value=[{"type": 4, "values": [1]}]), "dictionaries for"),
    "weight-drop-short": ("dart", lambda document: booster(document)["weight_drop"].pop(), "weights for"),
    "weight-drop-nan": ("dart", put("weight_drop", 0, value=float("nan")), "weight that is not a finite number"),
    "linear-weights-short": ("linear", lambda document: model(document)["weights"].pop(), "weights: 2, expected 3"),
    "linear-weights-missing": ("linear", lambda document: model(document).pop("weights"), "model: no weights"),
    "linear-weight-nan": ("linear", put("weights", 0, value=float("nan")), "weight that is not a finite number"),
    "vector-leaf-out-of-range": ("vector", at_leaf("right_children", 777), "leaf 777 of"),
    "vector-leaf-weights-short": ("vector", shorten("leaf_weights"), "leaf_weights, base_weights: expected 3"),
    "vector-leaf-weights-missing": ("vector", drop("leaf_weights"), "no leaf_weights: leaves of several values from before"),
    "vector-leaf-infinite": ("vector", put("leaf_weights", 0, value=float("inf")), "leaf value that is not a finite"),
    "vector-leaves-of-five": ("vector", put("tree_param", "size_leaf_vector", value="5"), "size_leaf_vector is 5, expected"),
    "vectors-among-scalars": ("classes", mixed_leaves, "size_leaf_vector is "),
}  # fmt: skip


# Bytes.


class Malice:
    """Unpickling this makes a folder."""

    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.mkdir, (self.trace,)


def archive_zip(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.ubj", data)
    return buffer.getvalue()


def archive_tar(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("model.ubj")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def int64(value: int) -> bytes:
    return struct.pack(">q", value)


def replace_once(data: bytes, old: bytes, new: bytes) -> bytes:
    if old not in data:
        raise AssertionError(f"{old!r} is not in the model")
    return data.replace(old, new, 1)


def make_raw() -> Iterator[tuple[str, bytes, str]]:
    """Files that are no documents, or not quite."""
    document = document_of("trees")
    text, binary = json.dumps(document).encode(), ubjson.write(document)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield f"pickle-{protocol}.pkl", pickle.dumps(Malice("/nowhere"), protocol), "a pickle"
    yield "pickle-of-bytes.pkl", pickle.dumps(text), "a pickle"
    yield "joblib.pkl", zlib.compress(pickle.dumps(text)), "a zlib or joblib file"
    yield "model.zip", archive_zip(binary), "a zip or joblib archive"
    yield "model.tar", archive_tar(binary), "a tar archive"
    yield "model.gz", gzip.compress(binary), "a gzip file"
    yield "model.bz2", bz2.compress(binary), "a bzip2 file"
    yield "model.xz", lzma.compress(binary), "an xz file"
    yield "model.lzma", lzma.compress(binary, lzma.FORMAT_ALONE), "an lzma file"
    yield "model.zst", b"\x28\xb5\x2f\xfd" + binary, "a zstd file"
    yield "page.html", b"\n\n<!DOCTYPE html><html>Sign in</html>", "a web page"
    yield "lfs.ubj", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer"
    yield "old.bin", b"binf" + bytes(200), "XGBoost's old binary format"
    yield "older.bin", struct.pack("<fI", 0.5, 30) + bytes(200), "XGBoost's old binary format"
    yield "empty.ubj", b"", "the file is empty"
    yield "zeros.ubj", bytes(1000), "neither JSON nor UBJSON"
    yield "junk.ubj", bytes((7 * at * at + 3) % 251 for at in range(1000)), "neither JSON nor UBJSON"
    yield "bracket.json", b"{", "not a document of UBJSON: cut off"
    yield "brackets.json", b"{" * 100_000, "not a document of UBJSON: "
    yield "deep-lists.json", b'{"learner": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper than 32"
    yield "deep-objects.json", b'{"learner": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "nested deeper than 32"
    yield (
        "deep-behind-a-string.json",
        b'{"a": "\\\\\\"]}", "learner": ' + b"[" * 100 + b"]" * 100 + b"}",
        "nested deeper",
    )
    yield (
        "deep-lists.ubj",
        b"{" + ubjson.text("learner") + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "nested deeper than 32",
    )
    deep = (b"{" + ubjson.text("a")) * 100_000
    yield "deep-objects.ubj", deep + b"Z" + b"}" * 100_000, "nested deeper than 32"
    yield "deep-counted.ubj", b"{" + ubjson.text("a") + (b"[#" + ubjson.length(1)) * 100_000, "nested deeper than 32"
    for share in (1, 5, 50, 95):
        yield f"cut-at-{share}.json", text[: len(text) * share // 100], "not a document of JSON"
        yield f"cut-at-{share}.ubj", binary[: len(binary) * share // 100], "not a document of UBJSON"
    yield "cut-by-one.json", text[:-1], "not a document of JSON"
    yield "cut-by-one.ubj", binary[:-1], "not a document of UBJSON"
    yield "garbage-behind.json", text + b"garbage", "Extra data"
    yield "garbage-behind.ubj", binary + b"garbage", "7 bytes follow the end"
    yield "two-documents.ubj", binary + binary, "bytes follow the end"
    yield "key-twice.json", replace_once(text, b'"learner":', b'"version": [3, 2, 0], "learner":'), "a key twice"
    yield "key-twice.ubj", b"{" + ubjson.text("version") + b"Z" + binary[1:], "a key twice"
    yield "not-utf-8.json", replace_once(text, b'"version"', b'"vers\xffion"'), "expected UTF-8"
    yield "number-of-5000-digits.json", replace_once(text, b'"id": 0', b'"id": ' + b"1" * 5000), "thousands of digits"
    yield "comments.json", replace_once(text, b'"learner"', b'/* */ "learner"'), "not a document of"
    typed = b"[$l#L"
    at = binary.index(typed) + len(typed)
    for name, count in {"2-60": 2**60, "2-62": 2**62, "negative": -1, "one-more": 2**20}.items():
        yield f"array-of-{name}.ubj", binary[:at] + int64(count) + binary[at + 8 :], "a length of"
    key = binary.index(ubjson.text("learner")) + 1
    for name, count in {"2-60": 2**60, "negative": -5}.items():
        yield f"text-of-{name}.ubj", binary[:key] + int64(count) + binary[key + 8 :], "a length of"
    yield "counted-list-of-2-60.ubj", b"{" + ubjson.text("a") + b"[#" + ubjson.length(2**60) + b"Z}", "a length of"
    yield "typed-array-of-objects.ubj", replace_once(binary, b"[$l#", b"[${#"), "no type of numbers"
    yield "typed-array-without-length.ubj", replace_once(binary, b"[$l#L", b"[$l!L"), "expected the length"
    yield "length-of-another-type.ubj", replace_once(binary, b"[$l#L", b"[$l#l"), "expected a length"
    yield "high-precision-number.ubj", b"{" + ubjson.text("a") + b"H" + ubjson.length(1) + b"1}", "no type of UBJSON"
    yield "no-operation.ubj", b"{N" + binary[1:], "expected a length"
    yield (
        "real-children.ubj",
        replace_once(binary, b"left_children[$l#", b"left_children[$d#"),
        "expected whole numbers",
    )
    yield (
        "whole-thresholds.ubj",
        replace_once(binary, b"split_conditions[$d#", b"split_conditions[$l#"),
        "expected real",
    )
    yield "list.json", b"[1, 2, 3]", "neither JSON nor UBJSON"
    yield "string.json", b'"model"', "neither JSON nor UBJSON"
    yield "object.json", b'{"a": 1}', "the document: no learner"
    yield "bom.json", b"\xef\xbb\xbf" + text, "neither JSON nor UBJSON"
    yield "utf-16.json", text.decode().encode("utf-16"), "neither JSON nor UBJSON"


def make_cases() -> Iterator[tuple[str, bytes, str]]:
    """Name, bytes, and a pattern for the reason of the refusal."""
    for name, (base, change, reason) in CHANGES.items():
        document = document_of(base)
        before = copy.deepcopy(document)
        change(document)
        if json.dumps(document) == json.dumps(before):
            raise AssertionError(f"{name} changes nothing")
        yield f"{name}.json", json.dumps(document).encode(), reason
        yield f"{name}.ubj", ubjson.write(document), reason
    yield from make_raw()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for case, content, _ in make_cases():
        (folder / case).write_bytes(content)
