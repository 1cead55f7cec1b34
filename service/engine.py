"""Scores of an `Ensemble` by the compiled kernels: to the last bit what XGBoost gives a row that comes alone.

Which kernel takes which rows is decided here; what they do, and why a row's bits do not depend on its company, is in
`kernels`. Arrays go to them as addresses: of the plan, and of numpy's own objects, which costs nothing where
`array.ctypes.data` takes 0.7 µs, a fifth of a one-row call.
"""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.ensemble import ARGMAX, ARRAYS, IDENTITY, PLAN, WIDE_EXP, Ensemble, Floats, Ints
from service.machine_code import MachineCode, MachineCodeError

FLOAT32 = np.dtype(np.float32)
# A call that takes no longer keeps the interpreter's lock.
LOCKED_SECONDS = 100e-6


@dataclass(frozen=True)
class Plan:
    """What is wanted of an ensemble, as the kernels read it: a `PLAN`, where it is, and what a block needs of scratch."""

    record: NDArray[Any]
    address: int
    scratch: int


class Engine:
    """One packed model, ready to score on the calling thread; nothing in it changes, so threads may share it.

    `values` are float32 rows (rows, features), NaN where a value is missing; anything else raises ValueError.
    `rounds` are the first and the last but one boosting round to use, as `iteration_range` of `Booster.predict`:
    (0, 0) is all.
    """

    def __init__(self, ensemble: Ensemble, code: MachineCode) -> None:
        verify_arrays()
        self.ensemble = ensemble
        meta = ensemble.meta
        is_plain = not meta.has_sets and not len(ensemble.vectors)
        rows_kernel = "score_rows" if is_plain else "score_rows_of_any"
        self._walk_rows, self._walk_rows_locked = code.function(rows_kernel), code.function(rows_kernel, True)
        self._hold_blocks, self._find_leaves = code.function("score_blocks"), code.function("find_leaves")
        self._measure_block = code.function("measure_block")
        self.block, self.few = code.function("count_block")(), code.function("count_few")()
        self.use_blocks((self.block, self.block // 2), (self.few, self.few // 2))
        self._features, self._groups = meta.features, meta.groups
        self._walk = 3 * meta.features
        self._locked_rows = 1
        self._scores, self._margins = self._make_plan(meta.transform, None), self._make_plan(IDENTITY, None)

    def predict(self, values: Floats, rounds: tuple[int, int] | None = None) -> Floats:
        """Scores in the shape that `Booster.predict` gives: (rows,), or (rows, outputs) when there are several."""
        transform = self.ensemble.meta.transform
        sums = self._score(values, self._scores if rounds is None else self._make_plan(transform, rounds))
        return sums[:, 0].copy() if transform == ARGMAX and self._groups > 1 else sums

    def margins(self, values: Floats, rounds: tuple[int, int] | None = None) -> Floats:
        """Sums before the objective's transformation, (rows, groups) also for one group."""
        sums = self._score(values, self._margins if rounds is None else self._make_plan(IDENTITY, rounds))
        return sums.reshape(-1, self._groups)

    def leaves(self, values: Floats, rounds: tuple[int, int] | None = None) -> Ints:
        """Node that each row ends in, (rows, trees), as `pred_leaf` numbers them; rounds must begin at 0."""
        plan = self._make_plan(IDENTITY, rounds)
        if plan.record["begin"]:
            raise ValueError("leaves are found from the first round on")
        values = self._verify(values)
        found = np.empty((len(values), int(plan.record["end"])), np.int32)
        walk = np.empty(self._walk, FLOAT32)
        self._find_leaves(plan.address, id(values), len(values), id(found), id(walk))
        return found

    def _make_plan(self, transform: int, rounds: tuple[int, int] | None) -> Plan:
        begin, end = self._find_trees(rounds)
        record = make_record(self.ensemble, begin, end, transform)
        address = record.ctypes.data
        return Plan(record, address, self._measure_block(address))

    def _find_trees(self, rounds: tuple[int, int] | None) -> tuple[int, int]:
        bounds = self.ensemble.rounds
        first, last = rounds or (0, 0)
        last = last or len(bounds) - 1
        if not 0 <= first <= last < len(bounds):
            raise ValueError(f"rounds {rounds} of a model with {len(bounds) - 1}")
        return int(bounds[first]), int(bounds[last])

    def _verify(self, values: Floats) -> Floats:
        """The kernels do not look: another width would be read past the end."""
        if values.ndim != 2 or values.shape[1] != self._features or values.dtype != FLOAT32:
            raise ValueError(f"expected float32 rows of {self._features} values")
        return values if values.flags.c_contiguous else np.ascontiguousarray(values)

    def _score(self, values: Floats, plan: Plan) -> Floats:
        values = self._verify(values)
        count, groups = len(values), self._groups
        sums: Floats = np.empty(count if groups == 1 else (count, groups), FLOAT32)
        if count < self._fewest:
            self._score_rows(plan, values, sums)
            return sums
        begin = 0
        for width, least in self._blocks:
            rest = (count - begin) % width
            end = count if rest >= least else count - rest
            if end > begin:
                self._score_blocks(plan, values[begin:end], sums[begin:end], width)
                begin = end
        if begin < count:
            self._score_rows(plan, values[begin:], sums[begin:])
        return sums

    def _score_rows(self, plan: Plan, values: Floats, sums: Floats) -> None:
        count = len(values)
        score = self._walk_rows_locked if count <= self._locked_rows else self._walk_rows
        walk = np.empty(self._walk, FLOAT32)
        score(plan.address, id(values), count, id(sums), id(walk))

    def _score_blocks(self, plan: Plan, values: Floats, sums: Floats, width: int) -> None:
        scratch = np.zeros(plan.scratch, FLOAT32)
        self._hold_blocks(plan.address, id(values), len(values), id(sums), id(scratch), width)

    def measure(self) -> None:
        """Find out which blocks are faster than as many single rows, and from how many rows on.

        Takes the time of about ten blocks. Scores do not depend on it.
        """
        # Any numbers do: no kernel branches on them. Importing numpy.random would cost each worker 2 MB.
        rows = np.sin(np.arange(self.block * self._features, dtype=FLOAT32)).reshape(self.block, self._features)
        row = each = self._time(self._score_rows, rows[: self.few]) / self.few
        self._locked_rows = max(1, int(LOCKED_SECONDS / row))
        blocks: list[tuple[int, int]] = []
        for width in (self.few, self.block):
            block = self._time(self._score_blocks, rows[:width], width)
            if block < width * each:
                blocks.insert(0, (width, math.ceil(block / each)))
                each = block / width
        self.use_blocks(*blocks)

    def use_blocks(self, *blocks: tuple[int, int]) -> None:
        """Score by blocks of these sizes, largest first, and from how many rows on one that is not full."""
        self._blocks = blocks
        self._fewest = min((least for _, least in blocks), default=sys.maxsize)

    def _time(self, score: Callable[..., None], rows: Floats, *options: int) -> float:
        sums = np.empty((len(rows), self._groups), np.float32)
        best = np.inf
        for _ in range(5):
            began = time.perf_counter()
            score(self._margins, rows, sums, *options)
            best = min(best, time.perf_counter() - began)
        return best


def make_record(ensemble: Ensemble, begin: int, end: int, transform: int) -> NDArray[Any]:
    """The `PLAN` of these trees; the ensemble's arrays must outlive it."""
    record = np.zeros((), PLAN)
    for name in ARRAYS:
        array = getattr(ensemble, name)
        assert array.flags.c_contiguous
        record[name], record[f"{name}_size"] = array.ctypes.data, array.size
    record["features"], record["groups"] = ensemble.meta.features, ensemble.meta.groups
    record["begin"], record["end"] = begin, end
    record["transform"], record["exp"] = transform, find_function("exp" if transform == WIDE_EXP else "expf")
    return record


def find_function(name: str) -> int:
    """Address of a function of the C library: the one that XGBoost calls, picked for this CPU by the loader."""
    library = ctypes.CDLL("libm.so.6" if sys.platform == "linux" else None)
    address = ctypes.cast(library[name], ctypes.c_void_p).value
    assert address is not None
    return address


def verify_arrays() -> None:
    """See that an array's object has the address of its numbers behind its head.

    It has since numpy 1.0, and every extension that was compiled against numpy reads it there (`PyArray_DATA`).
    """
    array = np.zeros(1, np.float32)
    if ctypes.c_ssize_t.from_address(id(array) + object.__basicsize__).value != array.ctypes.data:
        raise MachineCodeError("arrays of this numpy have another form than the kernels know")
