"""Gunicorn's master: options, checks before the start, and the life of the shared metrics block.

The master never imports xgboost (dmlc/xgboost#8040) and has exactly one thread. What needs xgboost before a fork, packing
the model, runs in a throw-away process: a file that kills XGBoost kills only that. So does numba, which compiles the
kernels: once, before the fork, so that no worker has to.

The life of the workers is in `succession.py`.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from service.edge import ROUTE_LABELS
from service.errors import StartError
from service.generations import Generation, RunFolder, create_run_folder, find_parent
from service.logs import create_log
from service.machine import ControlGroup, default_workers
from service.machine_code import load_code
from service.metrics import Block
from service.models import admit_file, find_file
from service.packing import find_cache, kernel_cache, verify_cache
from service.settings import Settings, Uri, read_settings
from service.sources import ProgressLog
from service.sources import find_faults as find_source_faults
from service.succession import Master
from service.swaps import create_first


def gunicorn_options(settings: Settings) -> dict[str, Any]:
    """Gunicorn's settings, each with its reason."""
    ports = [settings.port] + ([settings.admin_port] if settings.admin_port else [])
    return {
        "bind": [bind_address(settings.host, port) for port in ports],
        "workers": settings.workers or default_workers(ControlGroup()),
        "worker_class": "service.worker.ScoringWorker",
        "wsgi_app": "service.app:create_app()",
        "graceful_timeout": int(settings.drain_seconds),
        # The heartbeat: a loop that has not turned for this long is killed and replaced.
        "timeout": 30,
        # Work waits where it is seen and counted, in the workers; the kernel's queue is for the moment of a restart.
        "backlog": 1024,
        # It starts a thread in the master, which forks; and it fails where there is no HOME.
        "control_socket_disable": True,
        # The heartbeat file must not wait for a disk.
        "worker_tmp_dir": "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir(),
        "logger_class": "service.logs.GunicornLog",
        "on_starting": create_block,
        "when_ready": freeze_memory,
        "pre_fork": claim_slot,
        "child_exit": release_slot,
    }


def bind_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# Before the start.


def find_faults(environ: Mapping[str, str]) -> Iterator[str]:
    """Whatever would stop these settings from being served: the settings, the model, the ports."""
    try:
        settings = read_settings(environ)
    except StartError as error:
        yield from error.faults
        yield from find_model_faults_beside(environ)
        return
    yield from find_model_faults(settings)
    for port in (settings.port, settings.admin_port):
        if port and (reason := try_bind(settings.host, port)):
            yield f"{bind_address(settings.host, port)}: {reason}"


def find_model_faults(settings: Settings) -> Iterator[str]:
    """Finds them by fetching and packing the model, which the workers need anyway."""
    faults = list(find_source_faults(settings))
    if faults:  # a store that must not be asked
        yield from faults
        return
    try:
        _, file = find_file(settings, ProgressLog(create_log()))
        admit_file(file, settings, is_start=True)
    except StartError as error:
        yield from error.faults


def find_model_faults_beside(environ: Mapping[str, str]) -> Iterator[str]:
    """Faults of the model where other settings are wrong, so that they are not news at the next try."""
    try:
        settings = read_settings({"SCORER_MODEL": environ.get("SCORER_MODEL", "")})
    except StartError:
        return
    if not isinstance(settings.model, Uri):  # whose own settings may be the ones that are wrong
        yield from find_model_faults(settings)


def try_bind(host: str, port: int) -> str:
    """Why this address cannot be listened on; empty if it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with closing(socket.socket(family, kind, protocol)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return ""


# The shared metrics block: hooks of Gunicorn.


def create_block(arbiter: Any) -> None:
    """Once, before the first fork; not in the configuration, which a HUP reads again."""
    arbiter.scorer_block = Block(ROUTE_LABELS)
    arbiter.scorer_block.head[Block.EXPECTED] = arbiter.cfg.workers
    arbiter.scorer_group = ControlGroup()
    arbiter.scorer_oom_kills = arbiter.scorer_group.oom_kills()
    compile_kernels(arbiter)


def compile_kernels(arbiter: Any) -> None:
    """So that no worker has to. Where it cannot be done, they find that out themselves and XGBoost serves."""
    settings = read_settings(os.environ)
    try:
        cache = find_cache(settings.cache_dir)
        verify_cache(cache)
        load_code(kernel_cache(cache))
    except Exception as error:  # whatever the compiler says
        arbiter.log.error("XGBoost will serve, for our own kernels cannot: %s", str(error).partition("\n")[0])


def freeze_memory(arbiter: Any) -> None:
    """What the master has imported is shared with the workers, until a collection in one of them writes to it."""
    gc.collect()
    gc.freeze()


def claim_slot(arbiter: Any, worker: Any) -> None:
    """Before the fork: what the worker inherits. Gunicorn's own arbiter knows no generations."""
    worker.scorer_block = arbiter.scorer_block
    generation: Generation | None = getattr(arbiter, "generation", None)
    worker.scorer_run, worker.scorer_generation = getattr(arbiter, "run_folder", None), generation
    worker.scorer_slot = arbiter.scorer_block.claim(worker.age, generation.number if generation is not None else 0)
    if worker.scorer_slot is None:
        arbiter.log.error("no free slot for the metrics of another worker; its counts will be lost")


def release_slot(arbiter: Any, worker: Any) -> None:
    worker.scorer_is_released = True
    if worker.scorer_slot is not None:
        arbiter.scorer_block.release(worker.scorer_slot, exit_cause(arbiter, worker))


def exit_cause(arbiter: Any, worker: Any) -> str:
    """One of `metrics.EXIT_CAUSES`."""
    status = getattr(worker, "scorer_exit", None)
    oom_kills = arbiter.scorer_group.oom_kills()
    was_oom = oom_kills > arbiter.scorer_oom_kills
    arbiter.scorer_oom_kills = oom_kills
    if worker.aborted:
        return "timeout"
    if status is None:  # it went between our look and Gunicorn's; what it wrote last still tells a clean end
        drained = worker.scorer_slot is not None and arbiter.scorer_block.has_drained(worker.scorer_slot)
        return "drained" if drained else "unknown"
    if status.si_code == os.CLD_EXITED:
        return {0: "drained", Arbiter.WORKER_BOOT_ERROR: "boot"}.get(status.si_status, "error")
    if status.si_status == signal.SIGKILL:
        return "oom" if was_oom else "killed"
    return "quit" if status.si_status in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT) else "crashed"


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn 27 has no type hints
    """Gunicorn, configured by our settings instead of its command line."""

    def __init__(self, run: RunFolder, first: Generation) -> None:
        self._run_folder = run
        self._first = first
        super().__init__()

    def load_config(self) -> None:
        for name, value in gunicorn_options(read_settings(os.environ)).items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        from service.app import create_app

        return create_app()

    def run(self) -> None:
        Master(self, self._run_folder, self._first).run()


def run_server() -> None:
    """Serve what the environment says until told to stop; raises `StartError` before anything listens."""
    began = time.time()
    faults = list(find_faults(os.environ))
    if faults:
        raise StartError(faults)
    with create_run_folder(find_parent()) as run:
        Server(run, create_first(read_settings(os.environ), run, began)).run()
