"""What there is to know of a model before it is deployed: its contract, its size, and its speed on this machine.

The model is loaded as a worker loads it, so that what is said of memory and speed is measured and not computed.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from service.artifact import ModelFile
from service.batch import Floats
from service.documents import read_ubjson
from service.models import create_predictor, find_file
from service.packing import Packed, find_cache, prepare
from service.predictor import BoosterPredictor, Predictor, measure
from service.settings import Settings

SPEED_ROWS = (1, 100, 1000)
# Long enough for a minimum that does not change from run to run, short enough to wait for.
SPEED_SECONDS = 0.2
MISSING_RATIO = 0.05
SHOWN_NAMES = 8
VERSION = re.compile(rb'"version"\s*:\s*\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]')


@dataclass(frozen=True)
class Inspection:
    """Sizes in bytes, times in seconds. What a model without trees does not have is None.

    `shared_bytes` are mapped once for all workers, `worker_bytes` is what each of them takes besides.
    """

    path: str
    version: str
    file_bytes: int
    digest: str
    written_by: str | None
    objective: str
    booster: str
    features: int
    feature_names: tuple[str, ...]
    feature_types: tuple[str, ...]
    outputs: int
    classes: int | None
    rounds: int
    best_iteration: int | None
    trees: int | None
    depth: int | None
    leaves: int | None
    engine: str
    reason: str
    packed_bytes: int
    shared_bytes: int
    worker_bytes: int
    call_seconds: Mapping[int, float]


@dataclass(frozen=True)
class Trees:
    """The trees of a model: how many, how deep, their leaves, and the thresholds of each feature."""

    count: int
    depth: int
    leaves: int
    features: Any
    thresholds: Floats


def inspect_model(settings: Settings) -> Inspection:
    """All that can be said of the model that the settings name, or `ModelFileError`."""
    version, file = find_file(settings)
    packed = prepare(file, find_cache(settings.cache_dir), is_start=True)
    predictor, worker_bytes = measure_load(file, packed)
    document = read_ubjson(BoosterPredictor.from_model_file(file).to_ubjson())
    learner = document["learner"]
    trees = read_trees(learner["gradient_booster"])
    contract = predictor.contract
    best = learner.get("attributes", {}).get("best_iteration")
    packed_bytes = count_bytes(packed) if predictor.engine == "packed" else 0
    return Inspection(
        path=str(file.path),
        version=version,
        file_bytes=len(file.data),
        digest=file.digest,
        written_by=find_version(file),
        objective=contract.objective,
        booster=str(learner["gradient_booster"]["name"]),
        features=contract.features,
        feature_names=contract.feature_names,
        feature_types=contract.feature_types,
        outputs=contract.outputs,
        classes=count_classes(contract.objective, learner["learner_model_param"]),
        rounds=contract.rounds,
        best_iteration=None if best is None else int(best),
        trees=trees.count if trees else None,
        depth=trees.depth if trees else None,
        leaves=trees.leaves if trees else None,
        engine=predictor.engine,
        reason=predictor.reason,
        packed_bytes=packed_bytes,
        shared_bytes=packed_bytes,
        worker_bytes=worker_bytes,
        call_seconds=dict(measure_speed(predictor, make_rows(contract.features, trees))),
    )


def measure_load(file: ModelFile, packed: Packed) -> tuple[Predictor, int]:
    """The predictor, and the memory of this process's own that it took."""
    before = own_bytes()
    predictor = create_predictor(file, packed)
    predictor.predict(np.zeros((SPEED_ROWS[-1], predictor.contract.features), np.float32))
    return predictor, max(own_bytes() - before, 0)


def own_bytes() -> int:
    """Resident memory that is not a file's: what workers cannot share."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def count_bytes(packed: Packed) -> int:
    return sum(path.stat().st_size for path in (packed.folder / "ensemble").iterdir())


def find_version(file: ModelFile) -> str | None:
    """The XGBoost that wrote the file: a booster that is loaded and saved says another."""
    if file.data[1:2] == b"L":
        return ".".join(str(part) for part in read_ubjson(file.data)["version"])
    found = VERSION.findall(file.data)  # in JSON it stands at the end, and the rest need not be parsed for it
    return b".".join(found[-1]).decode() if found else None


def count_classes(objective: str, parameters: Mapping[str, Any]) -> int | None:
    if objective.startswith("binary:"):
        return 2
    return int(parameters["num_class"]) or None


def read_trees(booster: Mapping[str, Any]) -> Trees | None:
    """None for a linear model."""
    model = booster.get("gbtree", booster).get("model", {})
    documents = model.get("trees")
    if not documents:
        return None
    left = [np.asarray(tree["left_children"]) for tree in documents]
    is_split = np.concatenate(left) >= 0
    features, thresholds = (
        np.concatenate([np.asarray(tree[name]) for tree in documents])[is_split]
        for name in ("split_indices", "split_conditions")
    )
    return Trees(
        count=len(documents),
        depth=max(map(measure_depth, left)),
        leaves=int(is_split.size - is_split.sum()),
        features=features,
        thresholds=thresholds.astype(np.float32),
    )


def measure_depth(left: Any) -> int:
    """Steps from the root to the deepest leaf; the right child is the left one's neighbour."""
    depth, level = 0, np.zeros(1, np.int64)
    while len(inner := left[level][left[level] >= 0]):
        level = np.concatenate([inner, inner + 1])
        depth += 1
    return depth


def make_rows(features: int, trees: Trees | None) -> Floats:
    """Rows that take all ways through the trees: each value is one of its feature's thresholds, some are missing."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((SPEED_ROWS[-1], features), np.float32)
    if trees and len(trees.thresholds):
        order = np.argsort(trees.features, kind="stable")
        used, begins = np.unique(trees.features[order], return_index=True)
        for feature, own in zip(used, np.split(trees.thresholds[order], begins[1:]), strict=True):
            rows[:, feature] = np.nan_to_num(random.choice(own, len(rows)))
    rows[random.random(rows.shape) < MISSING_RATIO] = np.nan
    return rows


def measure_speed(predictor: Predictor, rows: Floats) -> Iterator[tuple[int, float]]:
    """Rows a call, and the shortest time that it took."""
    for count in SPEED_ROWS:
        until = time.perf_counter() + SPEED_SECONDS
        shortest = measure(predictor, rows[:count])
        while time.perf_counter() < until:
            shortest = min(shortest, measure(predictor, rows[:count]))
        yield count, round(shortest, 8)


# For people.

Lines = list[tuple[str, str]]


def describe(found: Inspection) -> Iterator[tuple[str, Lines]]:
    """Sections: a title, and lines of a name and a text."""
    yield "Model", describe_model(found)
    yield "Serving, measured here and now on one thread", describe_serving(found)


def describe_model(found: Inspection) -> Lines:
    best = found.best_iteration
    lines = [
        ("file", f"{found.path}, {format_bytes(found.file_bytes)}"),
        ("sha256", found.digest),
        ("written by", f"XGBoost {found.written_by}" if found.written_by else "an unknown version of XGBoost"),
        ("objective", found.objective),
        ("booster", found.booster),
        ("features", describe_features(found)),
        ("outputs", str(found.outputs) + (f" ({found.classes} classes)" if found.classes else "")),
        ("rounds", f"{found.rounds:,}" + ("" if best is None else f"; best_iteration is {best:,}, scores use all")),
    ]
    if found.trees is not None:
        lines.append(("trees", f"{found.trees:,}, with {found.leaves:,} leaves, at most {found.depth:,} deep"))
    return lines


def describe_features(found: Inspection) -> str:
    types = Counter(found.feature_types)
    counted = ", ".join(f"{count:,} of type {kind}" for kind, count in types.items())
    count = f"{found.features:,}" + (f" ({counted})" if counted else "")
    if not found.feature_names:
        return f"{count}, without names: rows are in the model's order"
    more = len(found.feature_names) - SHOWN_NAMES
    return f"{count}: {', '.join(found.feature_names[:SHOWN_NAMES])}" + (f" and {more:,} more" if more > 0 else "")


def describe_serving(found: Inspection) -> Lines:
    lines = [("engine", f"packed trees, {format_bytes(found.packed_bytes)} on disk")]
    shared = f"{format_bytes(found.shared_bytes)} once for all workers, and "
    if found.engine != "packed":
        lines, shared = [("engine", f"XGBoost, as there is no packed form: {found.reason}")], ""
    lines.append(("memory", f"{shared}{format_bytes(found.worker_bytes)} in each"))
    for rows, seconds in found.call_seconds.items():
        each = f", {format_seconds(seconds / rows)} a row" if rows > 1 else ""
        lines.append((f"{rows:,} row{'s' if rows > 1 else ''}", format_seconds(seconds) + each))
    return lines


def format_bytes(count: int) -> str:
    """In the largest unit that leaves a whole number before the point."""
    size, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB"):
        if size >= 999.5:
            size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"


def format_seconds(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} µs" if seconds < 999.5e-6 else f"{seconds * 1e3:,.4g} ms"
