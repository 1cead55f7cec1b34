"""The servers as processes: started on one core, watched, and stopped with all they started.

The servers share one core and are loaded in turns; wrk and this program have another. One core makes the
figures "per core" and keeps the load out of them. It also is a kindness to XGBoost without `nthread`, which
would otherwise start threads on every core for one row.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks import workload
from benchmarks.errors import BenchmarkError

# Every server starts here: in the root of the project Gunicorn would give the rival our own gunicorn.conf.py.
RIVALS = Path(__file__).resolve().with_name("rivals")
PROJECT = RIVALS.parents[1]
START_SECONDS = 60.0
STOP_SECONDS = 10.0
# Settings of the shell that would change a server unseen.
FOREIGN = ("SCORER_", "GUNICORN_", "UVICORN_", "MLSERVER_", "NUMBA_", "WEB_CONCURRENCY", "OMP_", "PYTHON")

# A control socket is for operators; two servers of one user would fight over its file.
GTHREAD = (
    *("--bind", "127.0.0.1:{port}", "--no-control-socket"),
    *("--worker-class", "gthread", "--workers", "1", "--threads", "4"),
)
# With everything switched off that a careful author can do without.
UVICORN = (
    *("--host", "127.0.0.1", "--port", "{port}", "--workers", "1", "--loop", "uvloop", "--http", "httptools"),
    *("--no-access-log", "--no-proxy-headers", "--no-server-header", "--no-date-header", "--lifespan", "off"),
)
# No gRPC and no log line for each request, which takes 7 % off its CPU (kserve 0.21, one row).
KSERVE = (
    *("--model_name", workload.MODEL_NAME, "--http_port", "{port}", "--workers", "1"),
    *("--enable_grpc", "false", "--enable_latency_logging", "false"),
)


@dataclass(frozen=True)
class Cores:
    server: int
    load: int


@dataclass(frozen=True)
class Server:
    """How to start one; `{port}` in the command and the environment becomes the port."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Usage:
    """What a process tree had used when looked at."""

    pids: frozenset[int]
    cpu_seconds: float


@dataclass(frozen=True)
class Memory:
    """PSS shares out what processes have in common; USS is what each has alone."""

    pss_bytes: int
    uss_bytes: int
    processes: int


def create_servers(model: Path, ours: Path) -> tuple[Server, ...]:
    """Ours, the two rivals and the two floors; every one with one worker."""
    python = (sys.executable, "-m")
    rival = {"MODEL": str(model)}
    return (
        create_ours(model, ours),
        Server("flask", (*python, "gunicorn", *GTHREAD, "flask_app:app"), rival),
        Server("uvicorn", (*python, "uvicorn", *UVICORN, "uvicorn_app:app"), rival),
        Server("bare", (*python, "bare_protocol", "{port}", "asyncio")),
        Server("bare uvloop", (*python, "bare_protocol", "{port}", "uvloop")),
    )


def create_ours(model: Path, ours: Path, workers: int = 1, cache: Path | None = None) -> Server:
    """Without a cache folder it uses its own, as anybody's does."""
    settings = {
        "SCORER_MODEL": str(model),
        "SCORER_MODEL_NAME": workload.MODEL_NAME,
        "SCORER_PORT": "{port}",
        "WEB_CONCURRENCY": str(workers),
    }
    if cache:
        settings["SCORER_CACHE_DIR"] = str(cache)
    return Server("ours", (str(ours.absolute()), "serve"), settings)


def create_peers(model: Path) -> tuple[Server, ...]:
    """Servers that people install, each in an environment of its own."""
    # MLServer scores in its own process: its default pool of one worker costs more, and with uvloop 0.23 its workers
    # stop as they start ("There is no current event loop", mlserver 1.7.1).
    mlserver = {
        "MLSERVER_HOST": "127.0.0.1",
        "MLSERVER_HTTP_PORT": "{port}",
        "MLSERVER_GRPC_PORT": str(free_port()),
        "MLSERVER_METRICS_PORT": str(free_port()),
        "MLSERVER_PARALLEL_WORKERS": "0",
        "MLSERVER_DEBUG": "false",
        "MLSERVER_MODEL_NAME": workload.MODEL_NAME,
        "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_xgboost.XGBoostModel",
        "MLSERVER_MODEL_URI": str(model),
    }
    return (
        Server("kserve", (find_python("kserve"), "kserve_app.py", *KSERVE, "--model_file", str(model))),
        Server("mlserver", (str(Path(find_python("mlserver")).with_name("mlserver")), "start", "."), mlserver),
    )


def find_python(environment: str) -> str:
    """The interpreter of an environment that the Makefile makes."""
    python = PROJECT / f".venv-bench-{environment}" / "bin" / "python"
    if not python.exists():
        raise BenchmarkError(f"{python} is missing: make bench-peers and make bench-kernels install it")
    return str(python)


def choose_cores() -> Cores:
    """The last two cores this process may use; the first one often has the machine's interrupts."""
    if not hasattr(os, "sched_setaffinity") or shutil.which("taskset") is None:
        raise BenchmarkError("the benchmarks pin processes and read /proc: they need Linux and taskset")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchmarkError("two cores are needed: one for the servers and one for the load")
    return Cores(server=cores[-1], load=cores[-2])


class Process:
    """One server while it runs."""

    def __init__(self, server: Server, *cores: int) -> None:
        self.name = server.name
        self.port = free_port()
        self.log = tempfile.TemporaryFile(prefix="bench-log-")  # noqa: SIM115  # closed by stop()
        self.started = time.perf_counter()
        self.popen = subprocess.Popen(
            [
                "taskset",
                "--cpu-list",
                ",".join(map(str, cores)),
                *(part.format(port=self.port) for part in server.command),
            ],
            cwd=RIVALS,
            env=self.environment(server),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def environment(self, server: Server) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        return inherited | {name: value.format(port=self.port) for name, value in server.environment.items()}

    def wait_until(self, is_ready: Callable[[int], bool]) -> float:
        """Seconds from the start of the process until `is_ready(port)`."""
        while (seconds := time.perf_counter() - self.started) < START_SECONDS:
            if self.popen.poll() is not None:
                raise BenchmarkError(f"{self.name} stopped at its start:\n{self.last_lines()}")
            with contextlib.suppress(OSError):
                if is_ready(self.port):
                    return time.perf_counter() - self.started
            time.sleep(0.01)
        raise BenchmarkError(f"{self.name} was not ready after {seconds:.0f} s:\n{self.last_lines()}")

    def last_lines(self, count: int = 20) -> str:
        self.log.seek(0)
        return "\n".join(self.log.read().decode(errors="replace").splitlines()[-count:])

    def tree(self) -> list[psutil.Process]:
        parent = psutil.Process(self.popen.pid)
        return [parent, *parent.children(recursive=True)]

    def usage(self) -> Usage:
        tree = self.tree()
        times = [process.cpu_times() for process in tree]
        return Usage(
            pids=frozenset(process.pid for process in tree),
            cpu_seconds=sum(time.user + time.system for time in times),
        )

    def memories(self) -> list[Memory]:
        """Of each process, the first one first."""
        sizes = [process.memory_full_info() for process in self.tree()]
        return [Memory(size.pss, size.uss, 1) for size in sizes]

    def memory(self) -> Memory:
        sizes = self.memories()
        return Memory(
            pss_bytes=sum(size.pss_bytes for size in sizes),
            uss_bytes=sum(size.uss_bytes for size in sizes),
            processes=len(sizes),
        )

    def stop(self) -> None:
        """TERM to the server, then KILL to whatever of its process group is left."""
        self.popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        self.log.close()


@contextlib.contextmanager
def running(server: Server, *cores: int) -> Iterator[Process]:
    process = Process(server, *cores)
    try:
        yield process
    finally:
        process.stop()


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """This program, and wrk which it starts, on that core only."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
