"""Small models of every kind that the engine packs, and rows that try their splits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray

from service.engine import Engine
from service.ensemble.layouts import pack
from service.machine_code import MachineCode, load_code
from service.packing import find_cache, kernel_cache

Floats = NDArray[np.float32]
Labels = Callable[[np.random.Generator, NDArray[np.float64]], Any]


def real(rng: np.random.Generator, signal: NDArray[np.float64]) -> Any:
    return signal + rng.normal(scale=0.1, size=len(signal))


def binary(rng: np.random.Generator, signal: NDArray[np.float64]) -> Any:
    return (real(rng, signal) > 0).astype(int)


def positive(rng: np.random.Generator, signal: NDArray[np.float64]) -> Any:
    return np.exp(np.clip(real(rng, signal), -3, 3))


def counts(rng: np.random.Generator, signal: NDArray[np.float64]) -> Any:
    return rng.poisson(positive(rng, signal))


def classes(rng: np.random.Generator, signal: NDArray[np.float64]) -> Any:
    return np.clip(np.floor(real(rng, signal) + 2), 0, 3).astype(int)


def targets(rng: np.random.Generator, signal: NDArray[np.float64]) -> Any:
    return np.stack([real(rng, signal), -signal, signal**2], axis=1)


def bits_of_targets(rng: np.random.Generator, signal: NDArray[np.float64]) -> Any:
    return (targets(rng, signal) > 0).astype(int)


@dataclass(frozen=True)
class Kind:
    """What to train: parameters, labels, and whether some features are categories."""

    params: dict[str, Any]
    label: Labels = real
    categories: int = 0
    rounds: tuple[int, int] = (1, 24)


VECTOR = {"multi_strategy": "multi_output_tree", "tree_method": "hist"}
FOREST = {"num_parallel_tree": 3, "subsample": 0.7, "colsample_bynode": 0.7}
DART = {"booster": "dart", "rate_drop": 0.4, "skip_drop": 0.2}
BY_LEAF = {"tree_method": "hist", "grow_policy": "lossguide", "max_leaves": 90, "max_depth": 0}

KINDS = {
    "squared": Kind({}),
    "squared-log": Kind({"objective": "reg:squaredlogerror"}, positive),
    "pseudo-huber": Kind({"objective": "reg:pseudohubererror"}),
    "absolute": Kind({"objective": "reg:absoluteerror"}),
    "quantile": Kind({"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.5, 0.9]}),
    "one-quantile": Kind({"objective": "reg:quantileerror", "quantile_alpha": 0.3}),
    "logistic": Kind({"objective": "binary:logistic"}, binary),
    "reg-logistic": Kind({"objective": "reg:logistic", "base_score": 0.2}, binary),
    "logit-raw": Kind({"objective": "binary:logitraw"}, binary),
    "hinge": Kind({"objective": "binary:hinge"}, binary),
    "poisson": Kind({"objective": "count:poisson"}, counts),
    "gamma": Kind({"objective": "reg:gamma"}, positive),
    "tweedie": Kind({"objective": "reg:tweedie", "tweedie_variance_power": 1.3}, positive),
    "cox": Kind({"objective": "survival:cox"}, positive),
    "aft": Kind({"objective": "survival:aft"}, positive),
    "pairwise": Kind({"objective": "rank:pairwise"}, binary),
    "ndcg": Kind({"objective": "rank:ndcg"}, binary),
    "map": Kind({"objective": "rank:map"}, binary),
    "softprob": Kind({"objective": "multi:softprob", "num_class": 4}, classes),
    "softmax": Kind({"objective": "multi:softmax", "num_class": 4}, classes),
    "targets": Kind({}, targets),
    "targets-logistic": Kind({"objective": "binary:logistic"}, bits_of_targets),
    "vector": Kind(VECTOR, targets),
    "vector-logistic": Kind({"objective": "binary:logistic", **VECTOR}, bits_of_targets),
    "vector-softprob": Kind({"objective": "multi:softprob", "num_class": 4, **VECTOR}, classes),
    "forest": Kind(FOREST),
    "forest-softprob": Kind({"objective": "multi:softprob", "num_class": 4, **FOREST}, classes),
    "dart": Kind(DART),
    "dart-logistic": Kind({"objective": "binary:logistic", **DART}, binary),
    "dart-softprob": Kind({"objective": "multi:softprob", "num_class": 4, **DART}, classes),
    "dart-forest": Kind({**DART, **FOREST}),
    "exact": Kind({"tree_method": "exact", "gamma": 0.5}),
    "approx": Kind({"tree_method": "approx"}),
    "by-leaf": Kind(BY_LEAF),
    "by-leaf-categories": Kind(BY_LEAF, categories=40),
    "one-hot": Kind({"tree_method": "hist", "max_cat_to_onehot": 100}, categories=7),
    "partition": Kind({"tree_method": "hist", "max_cat_to_onehot": 1}, categories=70),
    "partition-softprob": Kind(
        {"objective": "multi:softprob", "num_class": 4, "tree_method": "hist", "max_cat_to_onehot": 2},
        classes,
        categories=12,
    ),
    "many-categories": Kind({"tree_method": "hist", "max_cat_to_onehot": 1}, categories=250),
    "most-categories": Kind({"tree_method": "hist", "max_cat_to_onehot": 1}, categories=900),
    "most-categories-one-hot": Kind({"tree_method": "hist", "max_cat_to_onehot": 2000}, categories=900),
    "partition-dart": Kind({"tree_method": "hist", "max_cat_to_onehot": 1, **DART}, categories=20),
    "one-leaf": Kind({"gamma": 1e9}),
    "one-tree": Kind({}, rounds=(1, 1)),
    "own-base": Kind({"base_score": -1.5}),
}


@dataclass(frozen=True)
class Sample:
    """A trained booster, what its columns are, and its engine."""

    booster: Any
    types: list[str]
    categories: int
    engine: Engine = field(repr=False)

    @property
    def features(self) -> int:
        return len(self.types)


def make_columns(rng: np.random.Generator, rows: int, types: list[str], categories: int, missing: float) -> Floats:
    values = rng.normal(size=(rows, len(types))).astype(np.float32)
    for column, kind in enumerate(types):
        if kind == "c":
            values[:, column] = rng.integers(0, categories, rows)
    values[rng.random(values.shape) < missing] = np.nan
    return values


def train(kind: Kind, seed: int, **overrides: Any) -> Sample:
    """A model of this kind: its size, its data and what is missing follow from the seed."""
    rng = np.random.default_rng(seed)
    features, rows = int(rng.integers(1, 12)), int(rng.integers(30, 500))
    types = ["q"] * features
    if kind.categories:
        types = ["c" if column % 2 == 0 else "q" for column in range(features)]
    values = make_columns(rng, rows, types, max(kind.categories, 1), float(rng.choice([0.0, 0.1, 0.5])))
    signal = (np.nan_to_num(values) * rng.normal(size=features)).sum(axis=1)
    signal = signal / (signal.std() + 1e-9)
    label = kind.label(rng, signal)
    matrix = xgboost.DMatrix(values, feature_types=types, enable_categorical=True, nthread=1)
    set_label(matrix, kind.params.get("objective", ""), label)
    params = {"max_depth": int(rng.integers(1, 9)), "eta": float(rng.choice([0.1, 0.3, 1.0])), "seed": seed}
    params |= {"nthread": 1, "verbosity": 0, **kind.params, **overrides}
    low, high = kind.rounds
    booster = xgboost.train(params, matrix, int(rng.integers(low, high + 1)))
    return make_sample(booster, types, kind.categories)


def set_label(matrix: Any, objective: str, label: Any) -> None:
    if objective == "survival:aft":
        matrix.set_float_info("label_lower_bound", label)
        matrix.set_float_info("label_upper_bound", label * 1.5)
        return
    matrix.set_label(label)
    if objective.startswith("rank:"):
        matrix.set_group([len(label)])


def make_sample(booster: Any, types: list[str], categories: int = 0) -> Sample:
    booster.set_param({"nthread": 1})
    return Sample(booster, types, categories, Engine(pack(booster.save_raw("ubj")), compiled_code()))


@functools.cache
def compiled_code() -> MachineCode:
    """The kernels as they will serve, from the cache that the server would use."""
    return load_code(kernel_cache(find_cache("")))


def predict_alone(sample: Sample, rows: Floats, **options: Any) -> Floats:
    """The truth: one matrix and one prediction for each row."""
    return np.concatenate([sample.booster.predict(make_matrix(sample, row[np.newaxis]), **options) for row in rows])


def make_matrix(sample: Sample, rows: Floats) -> Any:
    return xgboost.DMatrix(rows, feature_types=sample.types, enable_categorical=True, nthread=1)


def bits(scores: Floats) -> NDArray[np.uint32]:
    assert scores.dtype == np.float32
    return np.ascontiguousarray(scores).view(np.uint32)


EXTREMES = np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max, 0.0, -0.0, 1e-45, -1e-45], np.float32)


# Categories that no training can have seen, and numbers between two.
STRANGE = np.array([-1, -0.0, -0.5, 0.5, 6.75, 39.99, 2**24 - 1, 2**24, 2**24 + 2, 1e30, -1e30], np.float32)


def make_rows(sample: Sample, count: int, seed: int) -> Floats:
    """Rows on and beside the thresholds of all features at once, missing, extreme, of every category and of others."""
    rng = np.random.default_rng(seed)
    rows = make_columns(rng, count, sample.types, max(sample.categories, 1), 0.0)
    splits = find_thresholds(sample)
    for column in range(sample.features):
        if len(splits[column]):
            near = rng.choice(splits[column], count)
            side = rng.integers(0, 3, count)
            near = np.where(side == 1, np.nextafter(near, np.float32(np.inf)), near)
            near = np.where(side == 2, np.nextafter(near, np.float32(-np.inf)), near)
            rows[:, column] = np.where(rng.random(count) < 0.7, near, rows[:, column])
        if sample.types[column] == "c":
            rows[:, column] = rng.integers(0, sample.categories * 2, count)
            strange = rng.random(count) < 0.2
            rows[strange, column] = rng.choice(STRANGE, int(strange.sum()))
    extreme = (rng.random(rows.shape) < 0.05) & (np.array(sample.types) == "q")
    rows[extreme] = rng.choice(EXTREMES, int(extreme.sum()))
    rows[rng.random(rows.shape) < rng.choice([0.0, 0.15])] = np.nan
    rows[0] = np.nan
    return rows


def find_thresholds(sample: Sample) -> list[Floats]:
    """Thresholds of each feature, from the model itself."""
    feature, threshold = sample.engine.ensemble.thresholds()
    return [threshold[feature == column] for column in range(sample.features)]
