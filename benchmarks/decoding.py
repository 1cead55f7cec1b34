"""Decoding alone: rows of 30 numbers from JSON to float32, the short way and the usual one (`python -m benchmarks decoding`).

Both are the server's own code. The short way reads text with machine code; the usual way, which serves whatever is not a
plain matrix, goes through orjson and struct. They take turns, and a figure is the least of all rounds: what is
measured takes microseconds, and all that can happen to it on a busy machine makes it longer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.tables import create_table, three_digits
from service.batch import Batch, Incoming
from service.machine_code import load_code
from service.packing import find_cache, kernel_cache
from service.wire import kserve_v1, open_inference
from service.wire.plain import MatrixReader

FEATURES = 30
ROUND_SECONDS = 0.02
SPELLINGS: dict[str, Callable[[float], float]] = {
    "float32, 6 to 9 digits": lambda value: float(str(np.float32(value))),
    "float64, 15 to 17 digits": lambda value: value,
    "two decimals": lambda value: round(value, 2),
}


@dataclass(frozen=True)
class Figure:
    """Microseconds a request."""

    wire: str
    numbers: str
    rows: int
    kilobytes: float
    short: float
    usual: float


def make_rows(rows: int, spell: Callable[[float], float]) -> list[list[float]]:
    values = np.random.default_rng(1).normal(size=(rows, FEATURES))
    return [[spell(value) for value in row] for row in values.tolist()]


def to_v1(rows: list[list[float]]) -> bytes:
    return json.dumps({"instances": rows}).encode()


def to_v2(rows: list[list[float]]) -> bytes:
    tensor = {
        "name": "input-0",
        "shape": [len(rows), FEATURES],
        "datatype": "FP32",
        "data": list(chain.from_iterable(rows)),
    }
    return json.dumps({"id": "1", "inputs": [tensor]}).encode()


WIRES: dict[str, tuple[Callable[[list[list[float]]], bytes], Callable[[Incoming], Batch]]] = {
    "V1": (to_v1, kserve_v1.decode),
    "V2, flat": (to_v2, open_inference.decode),
}


def measure(reader: MatrixReader, wire: str, numbers: str, rows: int, rounds: int) -> Figure:
    write, decode = WIRES[wire]
    body = write(make_rows(rows, SPELLINGS[numbers]))
    usual = Incoming("POST", "/", {"content-type": "application/json"}, body, "id")
    short = replace(usual, read_matrix=reader)
    if decode(usual).values.tobytes() != decode(short).values.tobytes():
        raise BenchmarkError(f"{wire}, {rows} rows: the two ways differ")
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for side, incoming in enumerate((short, usual)):
            seconds[side].append(time_round(decode, incoming))
    return Figure(wire, numbers, rows, len(body) / 1000, *(min(times) * 1e6 for times in seconds))


def time_round(decode: Callable[[Incoming], Any], incoming: Incoming) -> float:
    """The least mean of a few calls in a round."""
    calls = max(1, 200 // (len(incoming.body) // 1000 + 1))
    best = float("inf")
    until = time.perf_counter() + ROUND_SECONDS
    while (began := time.perf_counter()) < until:
        for _ in range(calls):
            decode(incoming)
        best = min(best, (time.perf_counter() - began) / calls)
    return best


def render(figures: list[Figure]) -> str:
    lines = [
        [
            f"{figure.wire}, {figure.numbers}",
            f"{figure.rows:,}",
            three_digits(figure.kilobytes),
            three_digits(figure.short),
            three_digits(figure.usual),
            f"{three_digits(figure.usual / figure.short)} \u00d7",
        ]
        for figure in figures
    ]
    table = create_table(["30 numbers a row", "rows", "kB", "µs", "through orjson, µs", "ratio"], lines)
    return f"## Decoding\n\n{describe_machine()}\n{describe_versions(['orjson', 'numba', 'numpy'])}\n\n{table}"


def run(rounds: int = 5) -> list[Figure]:
    code = load_code(kernel_cache(find_cache("")))
    reader = MatrixReader(code.function("read_matrix", keeps_lock=True))
    cases = [("V1", numbers, rows) for numbers in SPELLINGS for rows in (1, 10, 100, 1000)]
    cases += [("V2, flat", "float64, 15 to 17 digits", rows) for rows in (1, 10, 100, 1000)]
    return [measure(reader, *case, rounds=rounds) for case in cases]
