"""Parts "kernels" and "kernel-peers": trees scored without a server around them, one thread, one core.

Ours and XGBoost's `inplace_predict`, and in the second part the libraries that people compile or convert their models for.
Each is a process in the environment it is installed in (engines/), and they take turns, round by round, so that a slow
moment of the machine falls on all; a figure is the median of the rounds, each the mean of as many calls as fit. Before
anything is timed, scores are compared with XGBoost's, bit by bit.

On a CPU with AVX-512 our kernels are also compiled for one that has only AVX2 (Haswell), with a cache of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray

from benchmarks.engines.drill import MOST_ROWS, RING, SAYS, Report
from benchmarks.errors import BenchmarkError
from benchmarks.machine import widest_vectors
from benchmarks.servers import FOREIGN, PROJECT, choose_cores, find_python, on_core

Floats = NDArray[np.float32]

FEATURES = 30
TRAINING_ROWS = 20_000
MISSING = 0.1
ROWS_A_CALL = (1, 10, 100, 1000)
# Beyond this a library scores something else than XGBoost, and its speed says nothing; scores are of the order of 10.
TOLERANCE = 1e-4
# "" leaves the features to LLVM: those of the named CPU. Unset they would be those of this one (numba 0.68).
NARROWED = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""}


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
# Those that every library can read.
PEER_CASES = CASES[:3]


@dataclass(frozen=True)
class Engine:
    """How to start one: a module of engines/, an interpreter, what is special in its environment and arguments."""

    name: str
    module: str
    python: str
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figures:
    """One engine with one model: microseconds a row, by rows a call."""

    case: str
    engine: str
    report: Report
    microseconds: Mapping[int, float]

    @property
    def is_right(self) -> bool:
        return self.report.largest_difference <= TOLERANCE


XGBOOST = "XGBoost"


def create_own(caches: Path) -> tuple[Engine, ...]:
    """Ours, for each CPU, and XGBoost; machine code goes below `caches`."""
    vectors = widest_vectors()
    engines = [create_ours(vectors, caches)]
    if vectors == "AVX-512":
        engines.append(create_ours("AVX2", caches, NARROWED))
    return (*engines, Engine(XGBOOST, "xgboost_own", sys.executable))


def create_ours(vectors: str, caches: Path, environment: Mapping[str, str] | None = None) -> Engine:
    cache = caches / vectors
    cache.mkdir()
    return Engine(f"ours, {vectors}", "ours", sys.executable, environment or {}, (str(cache),))


def create_peers() -> tuple[Engine, ...]:
    treelite = find_python("treelite")
    peers = [
        Engine("oneDAL", "onedal", find_python("onedal")),
        Engine("ONNX Runtime", "onnx_runtime", find_python("onnx")),
        Engine("Treelite, GTIL", "treelite_gtil", treelite),
    ]
    if shutil.which("gcc"):
        peers.append(Engine("Treelite, as C", "treelite_c", treelite))
    return tuple(peers)


class Drill:
    """One engine while it runs, on one core, as engines/drill.py describes it."""

    def __init__(self, engine: Engine, folder: Path, core: int) -> None:
        self.engine = engine
        self.log = tempfile.TemporaryFile(prefix="bench-log-")  # noqa: SIM115  # closed by stop()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        module = ("-m", f"benchmarks.engines.{engine.module}")
        self.popen = subprocess.Popen(
            ["taskset", "--cpu-list", str(core), engine.python, *module, str(folder), *engine.arguments],
            cwd=PROJECT,
            env=inherited | {"OMP_NUM_THREADS": "1", **engine.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def read_report(self) -> Report:
        return Report(**json.loads(self.read_line()))

    def time(self, rows: int) -> float:
        """Mean seconds of a call with so many rows."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(f"{rows}\n")
        self.popen.stdin.flush()
        return float(self.read_line())

    def read_line(self) -> str:
        """What it says next."""
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            if line.startswith(SAYS):
                return str(line.removeprefix(SAYS))
        self.log.seek(0)
        last = "\n".join(self.log.read().decode(errors="replace").splitlines()[-20:])
        raise BenchmarkError(f"{self.engine.name} stopped:\n{last}")

    def stop(self) -> None:
        self.popen.kill()
        self.popen.communicate()
        self.log.close()


@contextlib.contextmanager
def drilling(engine: Engine, folder: Path, core: int) -> Iterator[Drill]:
    drill = Drill(engine, folder, core)
    try:
        yield drill
    finally:
        drill.stop()


def run_own(rounds: int) -> list[Figures]:
    with tempfile.TemporaryDirectory(prefix="bench-kernels-") as folder:
        return run(CASES, create_own(Path(folder)), rounds, ROWS_A_CALL)


def run_peers(rounds: int) -> list[Figures]:
    with tempfile.TemporaryDirectory(prefix="bench-kernels-") as folder:
        return run(PEER_CASES, (*create_own(Path(folder)), *create_peers()), rounds, (1, 100, 1000))


def run(cases: Sequence[Case], engines: Sequence[Engine], rounds: int, counts: Sequence[int]) -> list[Figures]:
    figures: list[Figures] = []
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="bench-model-") as folder:
            prepare(case, Path(folder))
            figures += measure(case, engines, Path(folder), rounds, counts)
    return figures


def measure(
    case: Case, engines: Sequence[Engine], folder: Path, rounds: int, counts: Sequence[int]
) -> Iterator[Figures]:
    cores = choose_cores()
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_core(cores.load))
        drills = [stack.enter_context(drilling(engine, folder, cores.server)) for engine in engines]
        reports = [drill.read_report() for drill in drills]
        verify_ours(case, engines, reports)
        seconds = {count: race(drills, rounds, count) for count in counts}
        for place, engine in enumerate(engines):
            microseconds = {count: seconds[count][place] / count * 1e6 for count in counts}
            shown = ", ".join(f"{count}: {value:.3g}" for count, value in microseconds.items())
            print(f"{case.name:32} {engine.name:16} µs a row, by rows a call: {shown}", flush=True)
            yield Figures(case.name, engine.name, reports[place], microseconds)


def verify_ours(case: Case, engines: Sequence[Engine], reports: Sequence[Report]) -> None:
    """Of another library's wrong scores the table tells; ours must not be."""
    for engine, report in zip(engines, reports, strict=True):
        if engine.module == "ours" and report.largest_difference > TOLERANCE:
            raise BenchmarkError(f"{case.name}: the scores of {engine.name} are not XGBoost's")


def race(drills: Sequence[Drill], rounds: int, count: int) -> list[float]:
    """Median seconds of a call, of each engine."""
    seconds = [[drill.time(count) for drill in drills] for _ in range(rounds)]
    return [statistics.median(own) for own in zip(*seconds, strict=True)]


def prepare(case: Case, folder: Path) -> None:
    """What engines read: the model, rows, and XGBoost's score of each row alone."""
    booster = train(case)
    booster.save_model(folder / "model.ubj")
    rows = make_values(case, MOST_ROWS + RING, seed=3)
    np.save(folder / "rows.npy", rows)
    alone = [booster.inplace_predict(rows[at : at + 1], validate_features=False) for at in range(len(rows))]
    np.save(folder / "wanted.npy", np.concatenate(alone))


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
