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
from benchmarks.messages import exchange
from benchmarks.servers import Cores, Memory, Process, Server, choose_cores, create_servers, on_core, running

# The wires write a float32 with different digits, and DMatrix may differ from inplace_predict by an ulp.
TOLERANCE = 1e-6
WARM_UP_SECONDS = 1


@dataclass(frozen=True)
class Options:
    ours: Path
    servers: tuple[str, ...]
    rounds: int
    seconds: int


@dataclass(frozen=True)
class Figures:
    """One round of one contender, or the medians of several; `busy` is the share of its core."""

    requests: float
    requests_per_second: float
    cpu_us: float
    busy: float
    p50_us: float
    p99_us: float


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


def run(options: Options) -> Results:
    load.verify_wrk()
    other_load = os.getloadavg()[0]
    cores = choose_cores()
    model = workload.read_model()
    cases = narrow(create_cases(), options.servers)
    servers = [server for server in create_servers(model, options.ours) if server.name in options.servers]
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
    return Results(cases, figures, upkeep, other_load)


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
            answer = exchange(processes[contender.server].port, contender.request)
            if answer.status != 200:
                body = answer.body[:500].decode(errors="replace")
                raise BenchmarkError(f"{contender.label}, {case.title}: status {answer.status}, {body}")
            if contender.read is None:
                continue
            scores = contender.read(answer)
            if scores.shape != truth.shape or not np.allclose(scores, truth, rtol=TOLERANCE, atol=TOLERANCE):
                raise BenchmarkError(f"{contender.label}, {case.title}: the scores are not those of XGBoost")


def measure_case(case: Case, processes: Mapping[str, Process], options: Options) -> Mapping[str, Figures]:
    print(f"\n{case.title}", flush=True)
    for contender in case.contenders:
        measure_round(case, contender, processes[contender.server], WARM_UP_SECONDS)
    rounds: dict[str, list[Figures]] = {contender.label: [] for contender in case.contenders}
    for number in range(1, options.rounds + 1):
        for contender in case.contenders:
            figures = measure_round(case, contender, processes[contender.server], options.seconds)
            rounds[contender.label].append(figures)
            print(
                f"  round {number}  {contender.label:28}"
                f"{figures.requests_per_second:10,.0f} requests/s {figures.cpu_us:10,.1f} µs CPU",
                flush=True,
            )
    return {label: median(measured) for label, measured in rounds.items()}


def measure_round(case: Case, contender: Contender, process: Process, seconds: int) -> Figures:
    before, started = process.usage(), time.perf_counter()
    burst = load.send(process.port, contender.request, connections=case.connections, seconds=seconds)
    elapsed, after = time.perf_counter() - started, process.usage()
    place = f"{contender.label}, {case.title}"
    if burst.refused or burst.broken or not burst.requests:
        raise BenchmarkError(
            f"{place}: of {burst.requests} requests {burst.refused} were refused"
            f" and {burst.broken} had no answer; figures of such a run mean nothing\n{process.last_lines()}"
        )
    if before.pids != after.pids:
        raise BenchmarkError(f"{place}: a process of the server came or went\n{process.last_lines()}")
    cpu_seconds = after.cpu_seconds - before.cpu_seconds
    return Figures(
        requests=burst.requests,
        requests_per_second=burst.requests / burst.microseconds * 1e6,
        cpu_us=cpu_seconds / burst.requests * 1e6,
        busy=cpu_seconds / elapsed,
        p50_us=burst.p50_us,
        p99_us=burst.p99_us,
    )


def median(rounds: Sequence[Figures]) -> Figures:
    columns = zip(*(astuple(figures) for figures in rounds), strict=True)
    return Figures(*(statistics.median(column) for column in columns))
