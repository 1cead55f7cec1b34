"""Part "serving": requests over HTTP to this server and to its rivals, one worker on one core each.

All servers run at once but only one is loaded at a time. Rounds go round (A, B, C, A, B, C …), so that a
minute in which the machine is busy with something else costs everyone; figures are medians of the rounds.
CPU is what the server's process tree used between the first and the last request, divided by the requests:
where another program, or wrk, was what limited requests/s, it says more, though a busy machine raises it too.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from benchmarks import load, workload
from benchmarks.cases import Case, Contender, create_cases, narrow
from benchmarks.errors import BenchmarkError
from benchmarks.messages import Request, exchange
from benchmarks.servers import Cores, Memory, Process, Server, choose_cores, create_servers, on_core, running
from benchmarks.workload import Floats

# Of the largest score. Wires write a float32 with different digits; DMatrix may differ from inplace_predict by an ulp.
TOLERANCE = 1e-6
WARM_UP_SECONDS = 1


@dataclass(frozen=True)
class Options:
    ours: Path
    rounds: int
    seconds: int


@dataclass(frozen=True)
class Figures:
    """One round of one load, or the medians of several; `busy` is the share of the servers' core."""

    requests: float
    requests_per_second: float
    cpu_us: float
    busy: float
    p50_us: float
    p99_us: float
    upstream_cpu_us: float = 0.0


@dataclass(frozen=True)
class Load:
    """A request for one server, over and over; `upstream` is whom that server asks in turn."""

    label: str
    process: Process
    request: Request
    connections: int
    scheme: str = "http"
    upstream: Process | None = None


@dataclass(frozen=True)
class Upkeep:
    """What a server costs beside requests."""

    ready_seconds: float
    memory: Memory


@dataclass(frozen=True)
class Results:
    """`figures` has one mapping, label to medians, for each case; `other_load` is that before the run."""

    cases: tuple[Case, ...]
    figures: tuple[Mapping[str, Figures], ...]
    upkeep: Mapping[str, Upkeep]
    other_load: float


def run_all(options: Options, names: Sequence[str]) -> Results:
    """The part "serving", with these servers alone."""
    servers = [server for server in create_servers(workload.read_model(), options.ours) if server.name in names]
    return run(narrow(create_cases(), names), servers, options)


def run(cases: Sequence[Case], servers: Sequence[Server], options: Options) -> Results:
    load.verify_wrk()
    other_load = os.getloadavg()[0]
    cores = choose_cores()
    model = workload.read_model()
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_core(cores.load))
        read_ahead(servers, cases, cores)
        processes: dict[str, Process] = {}
        ready_seconds: dict[str, float] = {}
        for server in servers:
            processes[server.name] = stack.enter_context(running(server, cores.server))
            ready_seconds[server.name] = wait_until_ready(processes[server.name], cases)
        verify_answers(cases, processes, model)
        figures = tuple(measure_case(case, processes, options) for case in cases)
        verify_answers(cases, processes, model)
        upkeep = {name: Upkeep(ready_seconds[name], process.memory()) for name, process in processes.items()}
    return Results(tuple(cases), figures, upkeep, other_load)


def read_ahead(servers: Sequence[Server], cases: Sequence[Case], cores: Cores) -> None:
    """Start each server once for nothing: the first would pay for reading the libraries from disk."""
    for server in servers:
        print(f"first start of {server.name}", flush=True)
        with running(server, cores.server) as process:
            wait_until_ready(process, cases)


def wait_until_ready(process: Process, cases: Sequence[Case]) -> float:
    """Seconds from the start until the first request of its first case is answered with 200."""
    contenders = (contender for case in cases for contender in case.contenders)
    first = next(contender for contender in contenders if contender.server == process.name)
    return process.wait_until(lambda port: exchange(port, first.request).status == 200)


def verify_answers(cases: Sequence[Case], processes: Mapping[str, Process], model: Path) -> None:
    """Every contender answers 200 and scores as XGBoost does; a fast wrong answer is worth nothing."""
    for case in cases:
        truth = workload.predict(model, case.rows)
        for contender in case.contenders:
            verify_answer(contender, processes[contender.server].port, truth, f"{contender.label}, {case.title}")


def verify_answer(contender: Contender, port: int, truth: Floats, place: str) -> None:
    answer = exchange(port, contender.request)
    if answer.status != 200:
        raise BenchmarkError(f"{place}: status {answer.status}, {answer.body[:500].decode(errors='replace')}")
    if contender.read is None:
        return
    scores = contender.read(answer)
    tolerance = TOLERANCE * max(1.0, float(np.abs(truth).max()))
    if scores.shape != truth.shape or not np.allclose(scores, truth, rtol=0, atol=tolerance):
        raise BenchmarkError(f"{place}: the scores are not those of XGBoost")


def measure_case(case: Case, processes: Mapping[str, Process], options: Options) -> Mapping[str, Figures]:
    print(f"\n{case.title}", flush=True)
    loads = [
        Load(contender.label, processes[contender.server], contender.request, case.connections)
        for contender in case.contenders
    ]
    figures = measure_in_turns(loads, options)
    return {contender.label: own for contender, own in zip(case.contenders, figures, strict=True)}


def measure_in_turns(loads: Sequence[Load], options: Options) -> list[Figures]:
    """The medians of each one's rounds."""
    for load_ in loads:
        measure_round(load_, WARM_UP_SECONDS)
    rounds = []
    for number in range(1, options.rounds + 1):
        rounds.append([measure_round(load_, options.seconds) for load_ in loads])
        for load_, figures in zip(loads, rounds[-1], strict=True):
            print(
                f"  round {number}  {load_.label:36}"
                f"{figures.requests_per_second:10,.0f} requests/s {figures.cpu_us:10,.1f} µs CPU",
                flush=True,
            )
    return [median(own) for own in zip(*rounds, strict=True)]


def measure_round(load_: Load, seconds: int) -> Figures:
    before, started = load_.process.usage(), time.perf_counter()
    upstream = load_.upstream.usage() if load_.upstream else None
    burst = load.send(load_.process.port, load_.request, load_.connections, seconds, load_.scheme)
    elapsed, after = time.perf_counter() - started, load_.process.usage()
    if burst.refused or burst.broken or not burst.requests:
        raise BenchmarkError(
            f"{load_.label}: of {burst.requests} requests {burst.refused} were refused"
            f" and {burst.broken} had no answer; figures of such a run mean nothing\n{load_.process.last_lines()}"
        )
    if before.pids != after.pids:
        raise BenchmarkError(f"{load_.label}: a process of the server came or went\n{load_.process.last_lines()}")
    cpu_seconds = after.cpu_seconds - before.cpu_seconds
    upstream_seconds = load_.upstream.usage().cpu_seconds - upstream.cpu_seconds if load_.upstream and upstream else 0.0
    return Figures(
        requests=burst.requests,
        requests_per_second=burst.requests / burst.microseconds * 1e6,
        cpu_us=cpu_seconds / burst.requests * 1e6,
        busy=(cpu_seconds + upstream_seconds) / elapsed,
        p50_us=burst.p50_us,
        p99_us=burst.p99_us,
        upstream_cpu_us=upstream_seconds / burst.requests * 1e6,
    )


def median(rounds: Sequence[Figures]) -> Figures:
    columns = zip(*(astuple(figures) for figures in rounds), strict=True)
    return Figures(*(statistics.median(column) for column in columns))
