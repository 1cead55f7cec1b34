"""Starts the server as an operator does, in a process of its own, and stops what it started."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[1]
IRIS = ROOT / "examples" / "iris" / "model.ubj"
CANCER = ROOT / "examples" / "breast-cancer" / "model.ubj"
START_SECONDS = 180


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class RunningServer:
    """A server process with its own port; `pid` is Gunicorn's master."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, admin_port: int, log: Path) -> None:
        self.process = process
        self.pid = process.pid
        self.host = "127.0.0.1"
        self.port = port
        self.admin_port = admin_port or port
        self.log = log

    def request(
        self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None, port: int = 0
    ) -> Answer:
        """One request on a connection of its own."""
        request = urllib.request.Request(f"http://{self.host}:{port or self.admin_port}{path}", body, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return Answer(answer.status, dict(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read())

    def workers(self) -> list[int]:
        """Workers alive; packing before a reload is a child of the master as well, and a dead one stays a zombie."""
        children = psutil.Process(self.pid).children()
        return [child.pid for child in children if is_worker(child)]

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """One scrape: value by name and sorted labels."""
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.request("/metrics").body.decode())
            for sample in family.samples
        }

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples of that name that have these labels."""
        wanted = set(labels.items())
        return sum(value for (found, its), value in self.samples().items() if found == name and wanted <= set(its))

    def wait_for_total(self, wanted: float, name: str, **labels: str) -> None:
        """Until that many are counted: a worker counts an answer when it has sent it, and a sibling may be asked before."""
        wait_until(lambda: self.total(name, **labels) >= wanted)
        assert self.total(name, **labels) == wanted

    def wait_for_starts(self, starts: int, ready: int, seconds: float = 30) -> None:
        """Until so many workers were started since the server was, and so many of them score.

        The number that score says nothing by itself: a worker that was killed is one of them until the master reaps it.
        """

        def has_come() -> bool:
            with suppress(OSError):  # the worker that was asked is the one that was killed
                return self.total("scorer_worker_starts_total") == starts and (
                    self.total("scorer_workers", state="ready") == ready
                )
            return False

        wait_until(has_come, seconds)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def stop(self) -> int:
        """Exit code after TERM."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(60)


def is_worker(child: psutil.Process) -> bool:
    try:
        if child.status() == psutil.STATUS_ZOMBIE:
            return False
        return not {"service.packing", "service.sources"} & set(child.cmdline())
    except psutil.NoSuchProcess:
        return False


def has_gone(process: psutil.Process) -> bool:
    """Whether it runs no more; it may be gone between two looks at it."""
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def free_port() -> int:
    """One that nobody has, and that the kernel gives nobody (it begins at 32768, macOS at 49152): a port of those may be the
    own end of another program's connection by the time a server wants it."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)  # from 30000 on they are NodePorts
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait_until(condition: Any, seconds: float = 30, every: float = 0.05) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what the test waits for did not happen")
        time.sleep(every)


@contextmanager
def running_server(command: list[str] | None = None, **settings: str) -> Iterator[RunningServer]:
    """A server with two workers and the iris model, unless the settings say otherwise."""
    port = int(settings.pop("SCORER_PORT", 0)) or free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SCORER_")}
    environment |= {"SCORER_MODEL": str(IRIS), "SCORER_PORT": str(port), "WEB_CONCURRENCY": "2", **settings}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command or [sys.executable, "-m", "service.cli", "serve"],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        server = RunningServer(process, port, int(settings.get("SCORER_ADMIN_PORT", 0)), log)
        try:
            wait_until(lambda: is_ready(server), START_SECONDS)
            yield server
        finally:
            server.stop()


def is_ready(server: RunningServer) -> bool:
    if server.process.poll() is not None:
        raise RuntimeError(f"the server stopped: {server.log.read_text()}")
    try:
        if server.request("/readyz").status != 200:
            return False
    except OSError:
        return False
    return True
