"""The kernels alone against `Booster.inplace_predict`, one thread each, in one process: `python -m benchmarks.kernels`.

Both sides take turns, round by round, so that a slow moment of the machine falls on both; a figure is the median of the
rounds, each the mean of as many calls as fit. Calls go through a ring of inputs: a branch predictor that has seen a row
before would flatter whoever branches. Before anything is timed, margins are compared with XGBoost's.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.tables import create_table, three_digits
from service.engine import Engine
from service.ensemble import Ensemble
from service.machine_code import MachineCode, load_code
from service.packing import find_cache, kernel_cache

Floats = NDArray[np.float32]

FEATURES = 30
TRAINING_ROWS = 20_000
MISSING = 0.1
# Inputs that calls go through in turn.
RING = 64
ROUND_SECONDS = 0.1


@dataclass(frozen=True)
class Case:
    """A model to train: boosting rounds and parameters; one column in three holds categories if there are any."""

    name: str
    rounds: int
    params: dict[str, Any]
    missing: float = MISSING
    categories: int = 0
    classes: int = 0


CASES = (
    Case("depth 6, nothing missing", 300, {"max_depth": 6}, missing=0),
    Case("depth 6", 300, {"max_depth": 6}),
    Case("depth 8", 300, {"max_depth": 8}),
    Case("depth 10", 300, {"max_depth": 10}),
    Case("depth 14", 100, {"max_depth": 14}),
    Case("63 leaves, by leaf", 300, {"max_depth": 0, "max_leaves": 63, "grow_policy": "lossguide"}),
    Case("1,000 trees, depth 4", 1000, {"max_depth": 4}),
    Case("3 classes, 100 rounds, depth 6", 100, {"max_depth": 6, "objective": "multi:softprob"}, classes=3),
    Case("one-hot categories, depth 6", 300, {"max_depth": 6, "max_cat_to_onehot": 99}, categories=12),
    Case("partitioned categories, depth 6", 300, {"max_depth": 6, "max_cat_to_onehot": 1}, categories=40),
)


@dataclass(frozen=True)
class Figure:
    """Microseconds a row, ours and XGBoost's."""

    case: str
    rows: int
    ours: float
    theirs: float


def make_values(case: Case, rows: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    if case.categories:
        values[:, ::3] = rng.integers(0, case.categories, (rows, len(range(0, FEATURES, 3))))
    values[rng.random(values.shape) < case.missing] = np.nan
    return values


def train(case: Case) -> Any:
    """A booster of noise and signal in equal parts: its trees are as full as the parameters allow."""
    values = make_values(case, TRAINING_ROWS, seed=1)
    rng = np.random.default_rng(2)
    label = np.nan_to_num(values) @ rng.normal(size=FEATURES) + rng.normal(scale=5, size=TRAINING_ROWS)
    params = {"nthread": 2, "tree_method": "hist", "seed": 1, **case.params}
    if case.classes:
        label = np.clip(np.floor(label / label.std() + case.classes / 2), 0, case.classes - 1)
        params["num_class"] = case.classes
    types = ["c" if case.categories and column % 3 == 0 else "q" for column in range(FEATURES)]
    matrix = xgboost.DMatrix(values, label, feature_types=types, enable_categorical=True)
    booster = xgboost.train(params, matrix, case.rounds)
    booster.set_param({"nthread": 1})
    return booster


def measure(case: Case, rounds: int, code: MachineCode) -> list[Figure]:
    booster = train(case)
    engine = Engine(Ensemble.from_ubjson(booster.save_raw("ubj")), code)
    engine.measure()
    values = make_values(case, 1000 + RING, seed=3)
    verify(case, engine, booster, values)

    def theirs(rows: Floats) -> Floats:
        scores: Floats = booster.inplace_predict(rows, validate_features=False)
        return scores

    figures = []
    for count in (1, 10, 100, 1000):
        ring = [values[at : at + count].copy() for at in range(RING)]
        ours_seconds, their_seconds = race(engine.predict, theirs, ring, rounds)
        figures.append(Figure(case.name, count, ours_seconds / count * 1e6, their_seconds / count * 1e6))
    return figures


def verify(case: Case, engine: Engine, booster: Any, values: Floats) -> None:
    wanted = booster.inplace_predict(values, predict_type="margin", validate_features=False)
    if not np.allclose(engine.margins(values).reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-5):
        raise BenchmarkError(f"{case.name}: the engine's margins are not XGBoost's")


def race(
    ours: Callable[[Floats], Floats], theirs: Callable[[Floats], Floats], ring: list[Floats], rounds: int
) -> tuple[float, float]:
    """Median seconds of a call, ours and theirs."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for side, call in enumerate((ours, theirs)):
            seconds[side].append(time_round(call, ring))
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def time_round(call: Callable[[Floats], Floats], ring: list[Floats]) -> float:
    """Mean seconds of a call."""
    calls = 0
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < ROUND_SECONDS:
        for rows in ring:
            call(rows)
        calls += len(ring)
    return spent / calls


def render(figures: list[Figure]) -> str:
    lines = [
        [
            figure.case,
            f"{figure.rows:,}",
            three_digits(figure.ours),
            three_digits(figure.theirs),
            f"{three_digits(figure.theirs / figure.ours)} \u00d7",
        ]
        for figure in figures
    ]
    table = create_table(["model", "rows a call", "µs a row", "XGBoost, µs a row", "ratio"], lines)
    machine = f"{describe_machine()}; kernels for {os.environ.get('NUMBA_CPU_NAME', 'this CPU')}"
    versions = describe_versions(["xgboost-cpu", "xgboost", "numba", "numpy"])
    return f"## The kernels alone\n\n{machine}\n{versions}\n\n{table}"


def run(rounds: int = 5) -> list[Figure]:
    code = load_code(kernel_cache(find_cache("")))
    return [figure for case in CASES for figure in measure(case, rounds, code)]


if __name__ == "__main__":
    print(render(run()))
