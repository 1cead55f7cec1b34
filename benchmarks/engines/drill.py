"""What every engine's process says and does, once it has made the model its own.

First it says a `Report`, one line of JSON. Then it reads how many rows a call there should be, a line each, and answers
with the mean seconds of a call. So the engines can take turns, though each has a process of its own. What it says begins
with `SAYS`: Treelite writes its log to the standard output too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Inputs that calls go through in turn: a branch predictor that has seen a row before would flatter whoever branches.
# Of the largest, a thousand rows that each meet every tree, eight are enough.
RING, LEAST_RING = 64, 8
SAYS = "> "
MOST_ROWS = 1000
ROUND_SECONDS = 0.1


@dataclass(frozen=True)
class Report:
    """How near the scores are to XGBoost's: the share of rows with the same bits, and the largest difference.

    `note` is what a reader should know of how the library was used.
    """

    library: str
    equal_alone: float
    equal_together: float
    largest_difference: float
    note: str


def drill(predict: Callable[[Floats], Any], folder: Path, library: str, note: str = "") -> None:
    """`predict` takes float32 rows, NaN where a value is missing, and gives something with a score for each."""
    rows, wanted = np.load(folder / "rows.npy"), np.load(folder / "wanted.npy")
    say(json.dumps(asdict(report(predict, rows, wanted, library, note))))
    for line in sys.stdin:
        count = int(line)
        inputs = max(LEAST_RING, min(RING, RING * 100 // count))
        say(str(time_round(predict, [rows[at * RING // inputs :][:count].copy() for at in range(inputs)])))


def say(line: str) -> None:
    print(SAYS + line, flush=True)


def report(predict: Callable[[Floats], Any], rows: Floats, wanted: Floats, library: str, note: str) -> Report:
    together = to_scores(predict(rows[:MOST_ROWS]))
    alone = np.concatenate([to_scores(predict(rows[at : at + 1])) for at in range(RING)])
    wanted_together, wanted_alone = to_scores(wanted[:MOST_ROWS]), to_scores(wanted[:RING])
    return Report(
        library,
        float(np.mean(alone == wanted_alone)),
        float(np.mean(together == wanted_together)),
        float(np.max(np.abs(together.astype(np.float64) - wanted_together))),
        note,
    )


def to_scores(answer: Any) -> Floats:
    return np.asarray(answer, dtype=np.float32).reshape(-1)


def time_round(predict: Callable[[Floats], Any], ring: list[Floats]) -> float:
    """Mean seconds of a call."""
    calls = 0
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < ROUND_SECONDS:
        for rows in ring:
            predict(rows)
        calls += len(ring)
    return spent / calls
