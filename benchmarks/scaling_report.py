"""The part "scaling" as text: a table for each thing that grew, with what each further one of it costs."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from benchmarks import load, workload
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.proxy import nginx_version
from benchmarks.results import Section
from benchmarks.scaling import DIRECT, TLS, Axis, Results
from benchmarks.serving import Figures, Options
from benchmarks.tables import create_table, three_digits
from benchmarks.upkeep import PACKED_DEPTH, Idle, Packing, Start

MEBI = 2**20
PACKAGES = ("xgboost-cpu", "xgboost", "numpy", "numba", "gunicorn", "httptools", "orjson")
UNITS = {"rows": "row", "connections": "connection", "trees": "tree", "depth": "level", "features": "feature"}
# What a reader must know to judge a table.
NOTES = {
    "rows": "16 connections, 4 from 1,000 rows on.",
    "connections": "A round trip at full load waits for all other connections: p50 grows with them.",
    "trees": "Depth 6, 30 features, full trees.",
    "depth": "300 full trees, 30 features; a level more has twice the nodes.",
    "features": "300 full trees of depth 6. A request has as many more values.",
}


def render(results: Results, options: Options) -> Section:
    axes = [render_axis(axis) for axis in results.axes]
    parts = [
        render_setting(options),
        *axes,
        render_hops(results),
        render_starts(results.starts),
        render_idle(results.idle),
        render_packing(results.packing),
    ]
    return Section("\n\n".join(["## Scaling", *parts]), asdict(results))


def render_setting(options: Options) -> str:
    return f"""\
- {datetime.date.today().isoformat()}, {describe_machine()}
- {describe_versions(PACKAGES)}, wrk {load.wrk_version()}, {nginx_version()}
- model where nothing else is said: {workload.USUAL}; every request's scores were compared with those of XGBoost
- one worker on one core, the load on another; medians of {options.rounds} rounds of {options.seconds} s, sizes in turns
- command: `python -m benchmarks scaling --rounds {options.rounds} --seconds {options.seconds}`

"Each further" is the CPU that one more costs, from the size above to this one: where costs are linear it does not grow."""


def render_axis(axis: Axis) -> str:
    """CPU of each kind of request; with connections also what a caller waits."""
    unit = UNITS[axis.name]
    head = [axis.name]
    for kind in axis.series:
        head += [f"{kind}: CPU µs", f"each further {unit}, µs"]
    waits = axis.name == "connections"
    if waits:
        head += ["requests/s", "p50 ms", "p99 ms"]
    rows = [
        [f"{size:,}", *render_series(axis, place), *(render_wait(axis, place) if waits else ())]
        for place, size in enumerate(axis.sizes)
    ]
    return f"### {axis.name.capitalize()}\n\n{NOTES[axis.name]}\n\n{create_table(head, rows)}"


def render_series(axis: Axis, place: int) -> Iterator[str]:
    for figures in axis.series.values():
        yield three_digits(figures[place].cpu_us)
        yield render_slope(axis.sizes, [own.cpu_us for own in figures], place)


def render_slope(sizes: Sequence[int], costs: Sequence[float], place: int) -> str:
    """What one more costs, from the size before to this one."""
    if place == 0:
        return ""
    return three_digits((costs[place] - costs[place - 1]) / (sizes[place] - sizes[place - 1]))


def render_wait(axis: Axis, place: int) -> Iterator[str]:
    (figures,) = axis.series.values()
    own = figures[place]
    return (three_digits(value) for value in (own.requests_per_second, own.p50_us / 1e3, own.p99_us / 1e3))


def render_hops(results: Results) -> str:
    direct, through = results.hops[DIRECT], results.hops[TLS]
    head = ["way", "requests/s", "NGINX, CPU µs", "xgboost-server, CPU µs", "p50 ms", "p99 ms"]
    rows = [
        [DIRECT, *render_hop(direct, None, direct.cpu_us)],
        [TLS, *render_hop(through, through.cpu_us, through.upstream_cpu_us)],
    ]
    return f"""\
### Through NGINX

One row, 16 connections that are kept. NGINX, one worker process without an access log, shares the server's core.

{create_table(head, rows)}"""


def render_hop(figures: Figures, nginx_us: float | None, ours_us: float) -> list[str]:
    return [
        three_digits(figures.requests_per_second),
        "" if nginx_us is None else three_digits(nginx_us),
        three_digits(ours_us),
        three_digits(figures.p50_us / 1e3),
        three_digits(figures.p99_us / 1e3),
    ]


def render_starts(starts: Sequence[Start]) -> str:
    head = ["workers", "ready s, warm", "ready s, cold", "PSS MiB, all", "USS MiB, master", "USS MiB, largest worker"]
    rows = [
        [
            str(start.workers),
            f"{start.warm_seconds:.2f}",
            f"{start.cold_seconds:.2f}",
            *(f"{size / MEBI:.0f}" for size in (start.pss_bytes, start.master_uss_bytes, start.worker_uss_bytes)),
        ]
        for start in starts
    ]
    return f"""\
### Workers

Ready: from the start of the process to the first answer, on all cores. Cold: no compiled kernels, model not packed.
Memory after a load. More workers than cores say nothing about speed; they show what is shared.

{create_table(head, rows)}"""


def render_idle(idle: Sequence[Idle]) -> str:
    sizes, costs = [own.connections for own in idle], [own.uss_bytes / 1024 for own in idle]
    rows = [
        [f"{own.connections:,}", f"{own.uss_bytes / MEBI:.1f}", render_slope(sizes, costs, place)]
        for place, own in enumerate(idle)
    ]
    head = ["idle connections", "USS MiB of the worker", "each further one, KiB"]
    return f"### Memory of connections\n\n{create_table(head, rows)}"


def render_packing(packing: Sequence[Packing]) -> str:
    head = [
        "trees",
        "nodes",
        "seconds",
        "each further node, µs",
        "MiB at most",
        "model file, MiB",
        "packed, MiB",
        "bytes a node",
    ]
    rows = [
        [
            f"{own.trees:,}",
            f"{own.nodes:,}",
            f"{own.seconds:.2f}",
            render_slope([size.nodes for size in packing], [size.seconds * 1e6 for size in packing], place),
            f"{own.peak_bytes / MEBI:,.0f}",
            f"{own.file_bytes / MEBI:.1f}",
            f"{own.packed_bytes / MEBI:.1f}",
            three_digits(own.packed_bytes / own.nodes),
        ]
        for place, own in enumerate(packing)
    ]
    return f"""\
### Packing

Trees of depth {PACKED_DEPTH}; loading, packing, comparing with XGBoost and writing, in a process that finds the kernels compiled.

{create_table(head, rows)}"""
