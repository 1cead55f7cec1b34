"""What a server costs beside requests: packing a model, starting, and memory, of workers and of idle connections."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xgboost as xgb

from benchmarks import load, workload
from benchmarks.cases import V1, Contender, v1_contender
from benchmarks.errors import BenchmarkError
from benchmarks.messages import exchange
from benchmarks.servers import PROJECT, Process, Server, create_ours, running
from benchmarks.workload import create_rows

PACKED_DEPTH = 8
PACKING_ROWS = 4_000
CONNECTIONS_A_WORKER = 16


@dataclass(frozen=True)
class Packing:
    """One model packed, by a process that had the machine code already."""

    trees: int
    nodes: int
    seconds: float
    peak_bytes: int
    file_bytes: int
    packed_bytes: int


@dataclass(frozen=True)
class Start:
    """`cold`: no machine code and no packed model yet. Memory is that after a load; of the workers the largest."""

    workers: int
    warm_seconds: float
    cold_seconds: float
    pss_bytes: int
    master_uss_bytes: int
    worker_uss_bytes: int


@dataclass(frozen=True)
class Idle:
    """Connections that have had an answer and wait, and the memory of the worker that holds them."""

    connections: int
    uss_bytes: int


def measure_packing(sizes: Sequence[int], ours: Path) -> Iterator[Packing]:
    """The same model's first trees, more and more of them; the first time only to have the machine code made."""
    booster = train(max(sizes))
    with tempfile.TemporaryDirectory(prefix="bench-packing-") as folder:
        pack(booster, sizes[0], Path(folder) / "once", ours)
        for trees in sizes:
            packing = pack(booster, trees, Path(folder) / str(trees), ours)
            print(
                f"  {packing.nodes:10,} nodes {packing.seconds:8.2f} s {packing.peak_bytes / 2**20:8,.0f} MiB",
                flush=True,
            )
            yield packing


def train(trees: int) -> xgb.Booster:
    """Full trees; few bins and rows, as it is their number and not their worth that counts here.

    Small steps: with 0.02 nothing was left to learn after 2,000 trees, and the others had three nodes.
    """
    rows = create_rows(PACKING_ROWS)
    labels = np.random.default_rng(workload.SEED).standard_normal(PACKING_ROWS)
    settings = {
        "max_depth": PACKED_DEPTH,
        "eta": 0.0005,
        "tree_method": "hist",
        "max_bin": 32,
        "colsample_bytree": 0.5,
        "seed": workload.SEED,
    }
    return xgb.train(settings, xgb.DMatrix(rows, labels), trees)


def pack(booster: xgb.Booster, trees: int, folder: Path, ours: Path) -> Packing:
    file = folder.with_suffix(".ubj")
    booster[:trees].save_model(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    command = [str(ours.absolute().with_name("python")), "-m", "service.packing", str(file), digest, str(folder), ""]
    began = time.perf_counter()
    peak_bytes = run_and_watch(command)
    seconds = time.perf_counter() - began
    return Packing(
        trees=trees,
        nodes=len(np.load(folder / "ensemble" / "nodes.npy", mmap_mode="r")),
        seconds=seconds,
        peak_bytes=peak_bytes,
        file_bytes=file.stat().st_size,
        packed_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    )


def run_and_watch(command: Sequence[str]) -> int:
    """The most memory the process ever held, in bytes.

    VmHWM only grows, so the last look is the one that counts. getrusage would count what this process held when it forked.
    """
    peak = 0
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log) as process:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
                peak = max(peak, int(found.group(1)) * 1024 if found else 0)
            time.sleep(0.01)
        if process.returncode:
            log.seek(0)
            raise BenchmarkError(f"packing failed: {log.read().decode(errors='replace').strip()}")
    return peak


def measure_starts(sizes: Sequence[int], ours: Path, rounds: int, seconds: int) -> Iterator[Start]:
    """Each number of workers, on all cores. The first start of each is cold."""
    model = workload.read_model()
    for workers in sizes:
        cold, warm = [], []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(prefix="bench-cache-") as cache:
                server = create_ours(model, ours, workers, Path(cache))
                cold.append(time_start(server))
                warm.append(time_start(server))
        with started(create_ours(model, ours, workers)) as process:
            load.send(process.port, one_row().request, CONNECTIONS_A_WORKER * workers, seconds)
            master, *others = process.memories()
            pss = process.memory().pss_bytes
        largest = max(own.uss_bytes for own in others)
        start = Start(workers, statistics.median(warm), statistics.median(cold), pss, master.uss_bytes, largest)
        print(f"  {workers} workers {start.warm_seconds:6.2f} s warm {start.cold_seconds:6.2f} s cold", flush=True)
        yield start


def time_start(server: Server) -> float:
    """Seconds until the first answer."""
    with running(server, *os.sched_getaffinity(0)) as process:
        return wait(process)


@contextlib.contextmanager
def started(server: Server) -> Iterator[Process]:
    with running(server, *os.sched_getaffinity(0)) as process:
        wait(process)
        yield process


def wait(process: Process) -> float:
    request = one_row().request
    return process.wait_until(lambda port: exchange(port, request).status == 200)


def one_row() -> Contender:
    return v1_contender(V1, "ours", create_rows(1))


def measure_idle(sizes: Sequence[int], ours: Path) -> Iterator[Idle]:
    """More and more connections to one worker, each of which has been answered once."""
    request = one_row().request.to_bytes()
    with started(create_ours(workload.read_model(), ours)) as process, contextlib.ExitStack() as stack:
        opened = 0
        for connections in sizes:
            for _ in range(connections - opened):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", process.port)))
                connection.sendall(request)
                connection.recv(65536)
            opened = connections
            yield Idle(connections, max(own.uss_bytes for own in process.memories()[1:]))
