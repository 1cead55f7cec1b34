"""The Gunicorn worker: one event loop on one core, the fast door in front, Flask behind.

Life of a worker: it loads the model in a thread while the loop beats the heart; it accepts once it is ready, or, while
no worker has ever been ready, before (so that probes learn why; whoever wants a score waits for the model); on TERM it waits for a younger worker if one is
booting, then drains: accepts what is in the kernel's queue, answers late requests on idle connections with
`Connection: close` for `LATE_SECONDS`, finishes what is under way, and goes.

Accepting spreads connections: a worker that has more of them than its least busy sibling steps back for
`STEP_BACK_SECONDS`, once, then accepts; so a sibling that has stopped costs a connection 1.5 ms and starves nobody.
"""

from __future__ import annotations

import asyncio
import logging
import os
import selectors
import signal
import socket
import ssl
import sys
import threading
from contextlib import suppress
from email.utils import formatdate
from functools import partial
from time import perf_counter
from typing import Any

from gunicorn import sock as gunicorn_sock
from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

from service.app import create_app_around
from service.door import Door
from service.edge import ROUTE_LABELS, SIBLINGS, Edge
from service.errors import FetchError, StartError
from service.generations import Generation, RunFolder
from service.http1 import Connection
from service.logs import create_log
from service.metrics import BOOTING, DRAINING, READY, Block, Recorder
from service.models import LoadedModel, load_generation, load_model
from service.settings import read_settings
from service.sources import Progress, ProgressLog
from service.stream import Stream
from service.swaps import Announcement, Repository, Swaps

STEP_BACK_SECONDS = 0.0015
# A client whose idle connection we close may be sending at that moment; Gunicorn 27's own workers wait as long.
LATE_SECONDS = 2.0
# Time for those who were accepted last to be read from: their requests are on their way or in the kernel.
SETTLE_SECONDS = 0.1
TICK_SECONDS = 0.25
# Requests that are read in one turn of the loop are scored together at its end: the first waits for the last.
TURN_SECONDS = 0.02

# Out of file descriptors or memory: waiting costs less than failing in a loop.
ACCEPT_PAUSE_SECONDS = 0.1


class StreamSelector(selectors.DefaultSelector):
    """Measures the loop's turns, the time between two waits; tells the door how many sockets are ready; hands streams
    their events itself and leaves the rest to asyncio.

    A turn hands out events for `turn_seconds` and leaves what remains to the next, which begins with it: however many
    long requests have come, timers, finished threads and other sockets get their turn, and nobody starves.
    """

    def __init__(self, recorder: Recorder, door: Door, turn_seconds: float = TURN_SECONDS) -> None:
        super().__init__()
        self._recorder = recorder
        self._door = door
        self._turn_seconds = turn_seconds
        self._woke = perf_counter()
        self._left: list[tuple[selectors.SelectorKey, int]] = []

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._recorder.observe_turn(perf_counter() - self._woke)
        left = self._left
        events = left + super().select(0) if left else super().select(timeout)
        self._left = []
        self._woke = perf_counter()
        self._door.ready_sockets = len(events)
        deadline = self._woke + self._turn_seconds
        others = []
        for position, event in enumerate(events, 1):
            stream = event[0].data
            if type(stream) is not Stream:
                others.append(event)
                continue
            stream.on_ready(event[1])
            if perf_counter() > deadline:
                self._left = [event for event in events[position:] if type(event[0].data) is Stream]
                others += [event for event in events[position:] if type(event[0].data) is not Stream]
                break
        return others


class ScoringWorker(Worker):  # type: ignore[misc]  # gunicorn 27 has no type hints
    """`worker_class = "service.worker.ScoringWorker"`."""

    scorer_block: Block | None = None
    scorer_slot: int | None = None
    # The master's choice for all workers of a generation; none under Gunicorn's own master.
    scorer_run: RunFolder | None = None
    scorer_generation: Generation | None = None

    def load_wsgi(self) -> None:
        """Everything but the model, which the loop loads."""
        self.settings = read_settings(os.environ)
        self.server_log: logging.Logger = create_log()
        block, slot = self.scorer_block, self.scorer_slot
        if block is None:
            # Gunicorn without our configuration: numbers of this worker alone.
            block, slot = Block(ROUTE_LABELS, slots=1), 0
        self.recorder = Recorder(block, slot)
        self.edge = Edge(self.settings, self.recorder, self.server_log)
        self.announcement = Announcement(self.recorder)
        self.swaps = self._create_swaps()
        repository = Repository(self.swaps, self.announcement) if self.swaps is not None else None
        self.wsgi = create_app_around(self.edge, repository)

    def _create_swaps(self) -> Swaps | None:
        if self.scorer_run is None:
            return None
        return Swaps(self.settings, self.scorer_run, self.recorder.block, self.server_log, self._count_swap)

    def _count_swap(self, result: str) -> None:
        """From any thread: the loop counts, unless it is over."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.recorder.count_swap, result)

    def run(self) -> None:
        self.door = Door(self.edge, self.wsgi)
        self.selector = StreamSelector(self.recorder, self.door)
        self.loop = asyncio.SelectorEventLoop(self.selector)
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._serve())
        finally:
            self.loop.close()

    # The life of the worker.

    async def _serve(self) -> None:
        self.acceptor = Acceptor(self.sockets, self.door, self.loop, self.selector, self.cfg, self._is_crowded)
        self.stopping = asyncio.Event()
        self.has_left = threading.Event()  # the same for the thread that looks for new versions
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self.loop.add_signal_handler(number, self._stop, number)
        if not self.alive:
            self.stopping.set()  # TERM came while Gunicorn's own handlers were in place
        self._busy_seconds_seen, self._ticked = 0.0, perf_counter()
        self._tick()
        if not self.recorder.block.was_ready:
            self.acceptor.start()
        await self._load()
        self.acceptor.start()
        if self.swaps is not None and self.settings.model_poll_seconds:
            threading.Thread(target=self._watch, args=(self.swaps,), name="watch", daemon=True).start()
        await self.stopping.wait()
        await self._drain()

    def _watch(self, swaps: Swaps) -> None:
        """In a thread of its own: look for new versions, if this worker is elected to."""
        while not self.has_left.wait(self.settings.model_poll_seconds):
            try:
                swaps.look()
            except Exception:  # the next look may do better, and nobody else would look
                self.server_log.exception("cannot look for new versions")
        swaps.resign()

    def _load_model(self) -> LoadedModel:
        generation = self.scorer_generation
        if generation is not None:
            return load_generation(self.settings, generation)
        # Without our master. What this server has fetched already is not asked for again: its workers serve one version.
        since = float(self.recorder.block.head[Block.STARTED_AT])
        self.fetch_log = ProgressLog(self.server_log)
        return load_model(self.settings, self._follow_fetch, since)

    def _follow_fetch(self, progress: Progress) -> None:
        """In the loading thread: tell the probes and the log; end the fetch when the worker is told to stop."""
        self.edge.unready = str(progress)
        self.fetch_log(progress)
        if self.stopping.is_set():
            raise FetchError("told to stop")

    async def _load(self) -> None:
        try:
            model = await self.loop.run_in_executor(None, self._load_model)
        except StartError as error:
            if self.stopping.is_set():
                sys.exit(0)
            self.server_log.error("cannot serve", extra={"faults": error.faults})
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        self.edge.serve(model)
        self.door.serve(model, self.loop.call_soon)
        self._write_date()
        self.recorder.write_state(READY)
        self.door.unpark()
        await self._wait_for_siblings()
        identity = model.identity
        self.server_log.info(
            "serving",
            extra={
                "model": identity.name,
                "version": identity.version,
                "digest": identity.digest,
                "engine": model.predictor.engine,
                "reason": model.predictor.reason,
                "load_seconds": round(model.load_seconds, 3),
            },
        )

    async def _wait_for_siblings(self) -> None:
        """At the first start all workers become ready together."""
        self.edge.unready = SIBLINGS
        while self.edge.unready == SIBLINGS:
            await asyncio.sleep(0.02)

    def _stop(self, number: int) -> None:
        if number != signal.SIGTERM:
            sys.exit(0)
        self.alive = False
        self.stopping.set()

    async def _drain(self) -> None:
        """Stop without losing a request; bounded by Gunicorn's graceful timeout."""
        self.has_left.set()
        deadline = perf_counter() + self.cfg.graceful_timeout - 1
        self.announcement.leave_at = deadline - SETTLE_SECONDS
        while self._is_successor_booting() and perf_counter() < deadline - LATE_SECONDS:
            await asyncio.sleep(0.02)
        self.edge.unready = "draining"
        self.door.is_draining = True
        self.recorder.write_state(DRAINING)
        late = min(perf_counter() + LATE_SECONDS, deadline)
        if self._has_successor():
            await self.acceptor.finish()
        while self._has_clients() and perf_counter() < late:
            await asyncio.sleep(0.02)
        await self.acceptor.finish()
        await asyncio.sleep(SETTLE_SECONDS)
        self.door.close_idle()
        while (self.door.connections or self.announcement.waiting) and perf_counter() < deadline:
            self.announcement.is_quiet = not self._has_clients()
            await asyncio.sleep(0.02)
            self.door.close_idle()
        self.recorder.write_drained()
        if self.door.connections:
            self.server_log.warning("drain cut short", extra={"connections": len(self.door.connections)})

    def _has_clients(self) -> bool:
        """Whether there are connections beside those of calls that wait for this worker to be the last."""
        return len(self.door.connections) > self.announcement.waiting

    def _is_successor_booting(self) -> bool:
        return bool(self.recorder.younger(BOOTING)) and not self.recorder.younger(READY)

    def _has_successor(self) -> bool:
        return bool(self.recorder.younger(READY))

    def _is_crowded(self) -> bool:
        """Whether a sibling has fewer connections."""
        others = self.recorder.sibling_connections()
        return bool(others) and self.recorder.connections > min(others)

    # Four times a second.

    def _tick(self) -> None:
        self.notify()
        now = perf_counter()
        if now - self._ticked >= 1 or not self.door.has_date:
            busy = self.recorder.busy_seconds
            self.recorder.write_busy_ratio(min(1.0, (busy - self._busy_seconds_seen) / max(now - self._ticked, 1e-9)))
            self._busy_seconds_seen, self._ticked = busy, now
            self._write_date()
        self.door.expire(now)
        if os.getppid() != self.ppid:
            self.server_log.warning("the master is gone")
            self.stopping.set()
        self.loop.call_later(TICK_SECONDS, self._tick)

    def _write_date(self) -> None:
        self.door.write_date(formatdate(usegmt=True))


class Acceptor:
    """Accepts on the listeners that all workers share."""

    def __init__(
        self,
        listeners: list[Any],
        door: Door,
        loop: asyncio.AbstractEventLoop,
        selector: selectors.BaseSelector,
        cfg: Any,
        is_crowded: Any,
    ) -> None:
        self._listeners: list[socket.socket] = [listener.sock for listener in listeners]
        self._door = door
        self._loop = loop
        self._selector = selector
        self._max_connections = int(cfg.worker_connections)
        self._is_crowded = is_crowded
        self._tls: ssl.SSLContext | None = gunicorn_sock.ssl_context(cfg) if cfg.is_ssl else None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_accepting = False

    def start(self) -> None:
        if self._is_accepting:
            return
        self._is_accepting = True
        for listener in self._listeners:
            listener.setblocking(False)
            self._loop.add_reader(listener, self._on_readable, listener)

    async def finish(self) -> None:
        """Take all that is in the kernel's queue, and no more after that; returns when they are connections."""
        if self._is_accepting:
            self._is_accepting = False
            for listener in self._listeners:
                self._loop.remove_reader(listener)
                while self._accept(listener):
                    pass
        # A socket that is accepted and not yet a connection is in nobody's list: leaving now would reset it.
        await asyncio.gather(*self._tasks)

    def _on_readable(self, listener: socket.socket) -> None:
        if len(self._door.connections) >= self._max_connections:
            self._pause(listener, ACCEPT_PAUSE_SECONDS)
            return
        if self._is_crowded():
            self._pause(listener, STEP_BACK_SECONDS)
            return
        self._accept(listener)

    def _pause(self, listener: socket.socket, seconds: float) -> None:
        self._loop.remove_reader(listener)
        self._loop.call_later(seconds, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        """After stepping back: one connection without asking again, then as before."""
        if not self._is_accepting:
            return
        if len(self._door.connections) < self._max_connections:
            self._accept(listener)
        self._loop.add_reader(listener, self._on_readable, listener)

    def _accept(self, listener: socket.socket) -> bool:
        """Whether there was a connection to accept."""
        try:
            client, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            self._door.edge.log.warning("cannot accept", extra={"reason": error.strerror})
            if self._is_accepting:
                self._pause(listener, ACCEPT_PAUSE_SECONDS)
            return False
        client.setblocking(False)
        # Answers are written whole: waiting for more to send would only add the client's delayed ACK (40 ms).
        with suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is None:
            Stream(client, Connection(self._door, self._loop), self._loop, self._selector, self._door.buffer)
            return True
        task = self._loop.create_task(self._shake_hands(client, self._tls))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _shake_hands(self, client: socket.socket, tls: ssl.SSLContext) -> None:
        create = partial(Connection, self._door, self._loop)
        timeout = self._door.read_timeout_seconds
        try:
            await self._loop.connect_accepted_socket(create, client, ssl=tls, ssl_handshake_timeout=timeout)
        except (TimeoutError, OSError):
            # A handshake that failed: nothing was asked yet, so there is nobody to answer.
            client.close()
