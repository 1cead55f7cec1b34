"""The part "serving" as text: how it was measured, a table for each case, and one for memory and start."""

# the multiplication sign is meant

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from benchmarks import load, workload
from benchmarks.cases import Case
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.results import Section
from benchmarks.serving import Figures, Options, Results
from benchmarks.tables import create_table, three_digits

PACKAGES = (
    "xgboost-cpu",
    "xgboost",
    "numpy",
    "flask",
    "gunicorn",
    "uvicorn",
    "uvloop",
    "httptools",
    "orjson",
)
READING = """\
"× Flask" is how many times as many requests/s as plain Flask (with one connection: how many times as short a
p50), "CPU × Flask" how many times less CPU a request."""
# Below this share of its core a loaded server was waiting for the load.
SATURATED = 0.95


def render(results: Results, options: Options) -> Section:
    cases = [render_case(case, figures) for case, figures in zip(results.cases, results.figures, strict=True)]
    setting = f"{render_setting(results, options, 'serving')}\n\n{READING}"
    text = "\n\n".join(["## Serving", setting, *cases, render_upkeep(results)])
    return Section(text, collect(results))


def collect(results: Results) -> dict[str, Any]:
    """The figures by the title of the case and the label of the contender, and what each server costs to keep."""
    cases = zip(results.cases, results.figures, strict=True)
    return {
        "cases": {case.title: {label: asdict(own) for label, own in figures.items()} for case, figures in cases},
        "upkeep": {name: asdict(upkeep) for name, upkeep in results.upkeep.items()},
    }


def render_setting(results: Results, options: Options, part: str) -> str:
    return f"""\
- {datetime.date.today().isoformat()}, {describe_machine()}; load average before the run {results.other_load:.1f}
- {describe_versions(PACKAGES)}, wrk {load.wrk_version()}
- model: {workload.USUAL}; every server's scores were compared with those of XGBoost, before and after
- one worker on one core, the load on another; medians of {options.rounds} rounds of {options.seconds} s,
  servers in turns; no answer other than 2xx
- command: `python -m benchmarks {part} --rounds {options.rounds} --seconds {options.seconds}`"""


def render_case(case: Case, figures: Mapping[str, Figures]) -> str:
    names = [name for name, _ in case.baselines]
    head = ["server", "requests/s", "CPU µs", "busy", "p50 ms", "p99 ms", *(f"× {name}" for name in names)]
    if not case.by_latency:
        head += [f"CPU × {name}" for name in names]
    rows = [[label, *render_figures(own), *render_ratios(case, own, figures)] for label, own in figures.items()]
    title = case.title[0].upper() + case.title[1:]
    return "\n\n".join([f"### {title}", create_table(head, rows), *render_caveat(case, figures)])


def render_figures(figures: Figures) -> list[str]:
    return [
        three_digits(figures.requests_per_second),
        three_digits(figures.cpu_us),
        f"{figures.busy:.0%}",
        three_digits(figures.p50_us / 1e3),
        three_digits(figures.p99_us / 1e3),
    ]


def render_ratios(case: Case, own: Figures, figures: Mapping[str, Figures]) -> list[str]:
    baselines = [figures[label] for _, label in case.baselines]
    if case.by_latency:
        ratios = [baseline.p50_us / own.p50_us for baseline in baselines]
    else:
        ratios = [own.requests_per_second / baseline.requests_per_second for baseline in baselines]
        ratios += [baseline.cpu_us / own.cpu_us for baseline in baselines]
    return [three_digits(ratio) for ratio in ratios]


def render_caveat(case: Case, figures: Mapping[str, Figures]) -> Iterator[str]:
    idle = [label for label, own in figures.items() if own.busy < SATURATED]
    if idle and not case.by_latency:
        yield (
            "Waited for the load or for another program, so that requests/s and their ratios are not those of a whole"
            f" core; CPU says more: {'; '.join(idle)}."
        )


def render_upkeep(results: Results) -> str:
    head = ["server", "ready s", "PSS MiB", "USS MiB", "processes"]
    rows = [
        [
            name,
            f"{upkeep.ready_seconds:.2f}",
            f"{upkeep.memory.pss_bytes / 2**20:.0f}",
            f"{upkeep.memory.uss_bytes / 2**20:.0f}",
            str(upkeep.memory.processes),
        ]
        for name, upkeep in results.upkeep.items()
    ]
    return f"""\
### Start and memory

Ready: from the start of the process to its first answer, the files already in the page cache. Memory: the
whole process tree, after the load.

{create_table(head, rows)}"""
