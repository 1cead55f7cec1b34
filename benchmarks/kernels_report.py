"""The parts "kernels" and "kernel-peers" as text."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby

from benchmarks.kernels import XGBOOST, Figures
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.results import Section
from benchmarks.tables import create_table, three_digits

AVX2 = """\
"AVX2" is the same code compiled for Haswell (NUMBA_CPU_NAME), on the same CPU."""


def render_own(figures: Sequence[Figures], rounds: int) -> Section:
    """A row for each model and number of rows; engines are columns."""
    ours = list(dict.fromkeys(own.engine for own in figures if own.engine != XGBOOST))
    head = ["model", "rows a call", *(f"{name}, µs a row" for name in ours), f"{XGBOOST}, µs a row"]
    head += [f"{XGBOOST} ÷ {name}" for name in ours] + ["same bits"]
    rows = [row for _, own in groupby(figures, lambda own: own.case) for row in render_model(list(own), ours)]
    text = f"""\
## The kernels alone

{render_setting(rounds, "kernels")}

"Same bits": the share of 1,000 scores in one call that equal XGBoost's score of each row alone. {AVX2}

{create_table(head, rows)}"""
    return Section(text, {"figures": [asdict(own) for own in figures]})


def render_model(figures: Sequence[Figures], ours: Sequence[str]) -> list[list[str]]:
    of = {own.engine: own for own in figures}
    return [
        [
            figures[0].case,
            f"{count:,}",
            *(three_digits(of[name].microseconds[count]) for name in ours),
            three_digits(of[XGBOOST].microseconds[count]),
            *(times(of[XGBOOST].microseconds[count] / of[name].microseconds[count]) for name in ours),
            f"{min(of[name].report.equal_together for name in ours):.1%}",
        ]
        for count in figures[0].microseconds
    ]


def render_peers(figures: Sequence[Figures], rounds: int) -> Section:
    """A table for each model; engines are rows."""
    tables = "\n\n".join(render_table(case, list(own)) for case, own in groupby(figures, lambda own: own.case))
    text = f"""\
## The kernels beside other libraries

{render_setting(rounds, "kernel-peers")}

300 trees, 30 features; where nothing else is said one value in ten is missing. "× ours" is how many times as long as the
first line. "Same bits": the share of scores that equal XGBoost's of each row alone, for rows one by one and for 1,000 in
a call. {AVX2}

{tables}"""
    return Section(text, {"figures": [asdict(own) for own in figures]})


def render_table(case: str, figures: Sequence[Figures]) -> str:
    counts = list(figures[0].microseconds)
    head = [
        "engine",
        *(f"µs a row, {name_rows(count)}" for count in counts),
        *(f"× ours, {count:,}" for count in counts),
    ]
    head += ["same bits, 1 by 1", "1,000", "library"]
    rows = [render_engine(own, figures[0], counts) for own in figures]
    return f"### {case[0].upper()}{case[1:]}\n\n{create_table(head, rows)}"


def render_engine(own: Figures, ours: Figures, counts: Sequence[int]) -> list[str]:
    library = f"{own.report.library}, {own.report.note}".removesuffix(", ")
    if not own.is_right:
        return [own.engine, *["other scores"] * (2 * len(counts)), "", "", library]
    return [
        own.engine,
        *(three_digits(own.microseconds[count]) for count in counts),
        *(times(own.microseconds[count] / ours.microseconds[count]) for count in counts),
        f"{own.report.equal_alone:.0%}",
        f"{own.report.equal_together:.1%}",
        library,
    ]


def render_setting(rounds: int, part: str) -> str:
    return f"""\
- {datetime.date.today().isoformat()}, {describe_machine()}
- {describe_versions(["xgboost-cpu", "xgboost", "numba", "numpy"])}
- one thread on one core; medians of {rounds} rounds, engines in turns
- command: `python -m benchmarks {part} --rounds {rounds}`"""


def name_rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def times(ratio: float) -> str:
    return f"{three_digits(ratio)} ×"
