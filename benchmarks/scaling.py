"""Part "scaling": what happens to the costs when something grows, one thing at a time; they should grow no faster.

The sizes of an axis take turns, round by round, all servers on one core and the load on another, as in "serving". What
costs something beside requests (packing, starts, workers, idle connections) is in upkeep.py and has all cores.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from benchmarks import load, upkeep, workload
from benchmarks.cases import V1, Contender, binary_contender, v1_contender
from benchmarks.messages import CALLER_HEADERS, exchange
from benchmarks.proxy import create_proxy, create_trust, verify_nginx
from benchmarks.servers import Cores, Process, choose_cores, create_ours, on_core, running
from benchmarks.serving import Figures, Load, Options, measure_in_turns, verify_answer
from benchmarks.workload import Shape, create_rows

Value = TypeVar("Value")

CONNECTIONS = 16
# As many trees and as deep as the others, but full ones; see `Shape`.
FULL = Shape(objective="reg:squarederror")
ONE, THOUSAND = "1 row, V1 JSON", "1,000 rows, V2 binary"
JSON, BINARY = "V1 JSON", "V2 binary"
DIRECT, TLS = "direct, HTTP", "through NGINX, TLS"


@dataclass(frozen=True)
class Sizes:
    rows: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)
    trees: tuple[int, ...] = (100, 300, 1_000)
    depth: tuple[int, ...] = (4, 6, 8, 10)
    features: tuple[int, ...] = (10, 30, 100, 300)
    connections: tuple[int, ...] = (1, 16, 64, 256)
    idle: tuple[int, ...] = (1, 100, 300, 900)
    workers: tuple[int, ...] = (1, 2, 4)
    packed_trees: tuple[int, ...] = (500, 2_000, 5_000)


# For trying the program out.
QUICK = Sizes((1, 10, 100), (30, 100, 300), (2, 4, 6), (10, 30, 60), (1, 4, 16), (1, 20, 40), (1, 2, 4), (20, 50, 100))


@dataclass(frozen=True)
class Setting:
    """`cores` as they were chosen before this program was held to one of them."""

    options: Options
    cores: Cores


@dataclass(frozen=True)
class Axis:
    """What grew, and the figures of each kind of request at each size."""

    name: str
    sizes: tuple[int, ...]
    series: Mapping[str, tuple[Figures, ...]]


@dataclass(frozen=True)
class Results:
    axes: tuple[Axis, ...]
    hops: Mapping[str, Figures]
    starts: tuple[upkeep.Start, ...]
    idle: tuple[upkeep.Idle, ...]
    packing: tuple[upkeep.Packing, ...]


def run(options: Options, sizes: Sizes) -> Results:
    load.verify_wrk()
    verify_nginx()
    grown: dict[str, tuple[tuple[int, ...], Callable[[int], Shape]]] = {
        "trees": (sizes.trees, lambda trees: replace(FULL, trees=trees)),
        "depth": (sizes.depth, lambda depth: replace(FULL, depth=depth)),
        "features": (sizes.features, lambda features: replace(FULL, features=features)),
    }
    setting = Setting(options, choose_cores())
    with on_core(setting.cores.load):
        axes = [measure_rows(sizes.rows, setting), measure_connections(sizes.connections, setting)]
    for name, (own, shape) in grown.items():
        shapes = [shape(size) for size in own]
        for one in shapes:
            workload.read_model(one)
        with on_core(setting.cores.load):
            axes.append(measure_shapes(name, own, shapes, setting))
    with on_core(setting.cores.load):
        hops = measure_hops(setting)
    return Results(
        tuple(axes),
        hops,
        tuple(announce("workers", upkeep.measure_starts(sizes.workers, options.ours, options.rounds, options.seconds))),
        tuple(announce("idle connections", upkeep.measure_idle(sizes.idle, options.ours))),
        tuple(announce("packing", upkeep.measure_packing(sizes.packed_trees, options.ours))),
    )


def announce(title: str, values: Iterator[Value]) -> Iterator[Value]:
    print(f"\n{title}", flush=True)
    yield from values


def measure_rows(sizes: Sequence[int], setting: Setting) -> Axis:
    """One server; the same model scores more and more rows a request."""
    loads: list[tuple[str, Load]] = []
    with serving_model(workload.USUAL, setting) as process:
        for size in sizes:
            rows = create_rows(size)
            for series, contender in ((JSON, v1_contender(V1, "ours", rows)), (BINARY, binary_contender(rows))):
                loads.append(
                    (series, create_load(f"{size:,} rows, {series}", process, contender, rows, workload.USUAL))
                )
        return create_axis("rows", sizes, loads, setting)


def measure_connections(sizes: Sequence[int], setting: Setting) -> Axis:
    rows = create_rows(1)
    with serving_model(workload.USUAL, setting) as process:
        usual = create_load("", process, v1_contender(V1, "ours", rows), rows, workload.USUAL)
        loads = [(ONE, replace(usual, label=f"{size} connections", connections=size)) for size in sizes]
        return create_axis("connections", sizes, loads, setting)


def measure_shapes(name: str, sizes: Sequence[int], shapes: Sequence[Shape], setting: Setting) -> Axis:
    """A server for each model."""
    with contextlib.ExitStack() as stack:
        loads: list[tuple[str, Load]] = []
        for size, shape in zip(sizes, shapes, strict=True):
            process = stack.enter_context(serving_model(shape, setting))
            one, thousand = (create_rows(count, features=shape.features) for count in (1, 1_000))
            asked = ((ONE, v1_contender(V1, "ours", one), one), (THOUSAND, binary_contender(thousand), thousand))
            for series, contender, rows in asked:
                loads.append((series, create_load(f"{name} {size}, {series}", process, contender, rows, shape)))
        return create_axis(name, sizes, loads, setting)


def create_axis(name: str, sizes: Sequence[int], loads: Sequence[tuple[str, Load]], setting: Setting) -> Axis:
    print(f"\n{name}", flush=True)
    figures = measure_in_turns([own for _, own in loads], setting.options)
    series: dict[str, list[Figures]] = {}
    for (kind, _), own in zip(loads, figures, strict=True):
        series.setdefault(kind, []).append(own)
    return Axis(name, tuple(sizes), {kind: tuple(own) for kind, own in series.items()})


@contextlib.contextmanager
def serving_model(shape: Shape, setting: Setting) -> Iterator[Process]:
    model = workload.read_model(shape)
    request = v1_contender(V1, "ours", create_rows(1, features=shape.features)).request
    with running(create_ours(model, setting.options.ours), setting.cores.server) as process:
        process.wait_until(lambda port: exchange(port, request).status == 200)
        yield process


def create_load(label: str, process: Process, contender: Contender, rows: workload.Floats, shape: Shape) -> Load:
    """Only when the answer is right."""
    verify_answer(contender, process.port, workload.predict(workload.read_model(shape), rows), label)
    connections = CONNECTIONS if len(rows) < 1_000 else 4
    return Load(label, process, contender.request, connections)


def measure_hops(setting: Setting) -> Mapping[str, Figures]:
    """One row without and with NGINX, which shares the server's core."""
    print("\nNGINX", flush=True)
    rows = create_rows(1)
    contender = v1_contender(V1, "ours", rows)
    request = replace(contender.request, hop=CALLER_HEADERS)
    with tempfile.TemporaryDirectory(prefix="bench-nginx-") as folder, serving_model(workload.USUAL, setting) as ours:
        direct = create_load(DIRECT, ours, contender, rows, workload.USUAL)
        with running(create_proxy(Path(folder), ours.port), setting.cores.server) as nginx:
            trust = create_trust(Path(folder))
            nginx.wait_until(lambda port: exchange(port, request, trust).status == 200)
            through = Load(TLS, nginx, request, CONNECTIONS, "https", ours)
            figures = measure_in_turns([direct, through], setting.options)
    return dict(zip((DIRECT, TLS), figures, strict=True))
