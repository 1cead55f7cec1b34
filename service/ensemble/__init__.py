"""A model of trees as flat arrays: packed once, written to disk, mapped by every worker.

`forest` reads XGBoost's UBJSON, `layouts` packs what it read, and here is what comes of it.

Two layouts of the same trees. *Nodes* are XGBoost's own, in its order, one record each, for walking from root to leaf.
*Segments* are for many rows at once: a piece of a tree with at most 32 exits, numbered from left to right, becomes a
list of tests, each with a mask. A row that goes right at a test cannot leave by any exit left of it, so the test's mask
clears those bits; when all tests are done the lowest bit still set is the exit (QuickScorer, Lucchese and others, 2015).
An exit is a leaf, or the way into a deeper segment of the same tree. No row is ever walked.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

# Written into the manifest. Raise it when an array's meaning changes: older folders are then packed again.
FORMAT = 3
# In a set, the bit of a missing value; the next one is for all that no set knows, and the categories follow.
CODE_OF_MISSING, CODE_OF_UNKNOWN, CODE_OF_FIRST = range(3)

# How a margin becomes a score; the last of them is `EXP` worked out in double.
IDENTITY, SIGMOID, EXP, STEP, SOFTMAX, ARGMAX, WIDE_EXP = range(7)

# Columns of the tables, and their widths: kernels read them flat.
RECORD, TREE, SEGMENT, TEST, CODE = 4, 5, 6, 3, 3
THRESHOLD, FEATURE, CHILD, VALUE = range(4)  # of nodes
ROOT, DEPTH, GROUP, FIRST, LAST = range(5)  # of trees
BEGIN, RIGHT, SETS, END, BASE, ENTRY = range(6)  # of segments
COLUMN, LIMIT, MASK = range(3)  # of tests
OF, WIDTH, WORD = range(3)  # of codes


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
# expf is (or exp, where that is wanted in double), and of each array where it is and how many numbers it holds.
PLAN = np.dtype(
    [(name, np.int64) for name in ("features", "groups", "begin", "end", "transform", "exp")]
    + [(name + suffix, np.int64) for name in ARRAYS for suffix in ("", "_size")]
)


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
