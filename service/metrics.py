"""Metrics in one block of shared memory: right across workers, never falling, and cheap.

The master makes the block before the first fork. Every worker has a slot in it: a row of float64 that its loop
thread alone writes, without a lock. A scrape, in whichever worker, adds the rows up. When the master reaps a worker
it adds the worker's counters to a row for the dead, clears the slot and hands it to the next worker; a version word
that is odd meanwhile makes readers read again. So no counter falls or counts twice, nothing grows with restarts, and
an increment costs 0.1 µs (prometheus_client 0.26 in multi-process mode: 1.3 to 2.8 µs, and files for every dead
worker).

One worker serves one model version, so a slot has one text, the model's identity, and counts by model are kept by
that text; the master keeps the texts of the dead in a table of bounded length.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.batch import ModelIdentity, Observation, Progress, Stages
from service.errors import ERRORS

# Seconds. The first bound is below one scored row, the last above any time limit.
BUCKETS = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
HISTOGRAM_CELLS = len(BUCKETS) + 2  # one more for +Inf, one for the sum
STATUSES = (
    "200", "400", "403", "404", "405", "408", "409", "413", "414", "415", "417", "422", "431", "500", "503", "other",
)  # fmt: skip
STAGES = ("decode", "predict", "encode")
REASONS = tuple(sorted({error.code for error in ERRORS}))
EXIT_CAUSES = ("drained", "quit", "boot", "timeout", "oom", "killed", "crashed", "error", "unknown")
SWAP_RESULTS = ("done", "refused", "reverted")
WORKER_STATES = ("booting", "ready", "draining")
BOOTING, READY, DRAINING = range(1, 4)

# Slots outlast their worker's drain: 20 overlapping HUPs of 16 workers need 336. Pages are touched on use only.
SLOTS = 1024
TEXT_BYTES = 512
DEAD_MODELS = 64


@dataclass(frozen=True)
class Family:
    """One metric: what Prometheus sees, and the cells it takes in a row."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


# The list of all metrics. `*_total` are counters; a histogram of seconds starts at 50 µs.
FAMILIES = (
    Family("scorer_requests_total", "counter", "Requests answered.", ("wire", "route", "status")),
    Family("scorer_request_seconds", "histogram", "Time from the whole request read to its answer written.", ("route",)),
    Family("scorer_stage_seconds", "histogram", "Time of a scoring request by stage.", ("stage",)),
    Family("scorer_rows_total", "counter", "Rows scored."),
    Family("scorer_rejected_total", "counter", "Requests refused, by the error's code.", ("reason",)),
    Family("scorer_request_body_bytes_total", "counter", "Bytes of request bodies, as they came."),
    Family("scorer_response_body_bytes_total", "counter", "Bytes of response bodies."),
    Family("scorer_connections_total", "counter", "Connections accepted."),
    Family("scorer_loop_busy_seconds_total", "counter", "Time event loops spent working rather than waiting."),
    Family("scorer_loop_turn_seconds", "histogram", "Length of one turn of an event loop."),
    Family("scorer_model_requests_total", "counter", "Scoring requests answered, by model.", ("model", "version")),
    Family("scorer_in_flight", "gauge", "Requests read and not yet answered."),
    Family("scorer_open_connections", "gauge", "Connections open."),
    Family("scorer_loop_busy_ratio", "gauge", "Share of the last second the event loops were busy: mean of workers."),
    Family("scorer_workers", "gauge", "Workers alive, by state.", ("state",)),
    Family("scorer_model_info", "gauge", "Workers serving this model.", ("model", "version", "digest", "engine")),
    Family("scorer_model_load_seconds", "gauge", "Time the newest worker took to load the model."),
    Family("scorer_model_swaps_total", "counter", "Changes of the model, by what came of them.", ("result",)),
    Family("scorer_model_swap_seconds", "gauge", "Time of the last swap, from its admission to its announcement."),
    Family("scorer_model_refused", "gauge", "1 while the newest model that was found is refused."),
    Family("scorer_worker_starts_total", "counter", "Workers started."),
    Family("scorer_worker_exits_total", "counter", "Workers gone, by cause.", ("cause",)),
    Family("scorer_start_time_seconds", "gauge", "Unix time at which the server started."),
    Family("scorer_cpu_seconds_total", "counter", "CPU time of master and workers, dead ones included.", ("mode",)),
    Family(
        "scorer_memory_bytes",
        "gauge",
        "Memory: rss, pss, uss of all processes; working_set and limit of the control group.",
        ("kind",),
    ),
    Family("scorer_open_files", "gauge", "File descriptors open in all processes."),
    Family("scorer_processes", "gauge", "Processes of this server, the master included."),
    Family("scorer_network_receive_bytes_total", "counter", "Bytes received by the pod, without loopback.", ("device",)),
    Family("scorer_network_transmit_bytes_total", "counter", "Bytes sent by the pod, without loopback.", ("device",)),
    Family("scorer_cpu_periods_total", "counter", "Scheduling periods of the control group."),
    Family("scorer_cpu_throttled_periods_total", "counter", "Periods in which the control group was throttled."),
    Family("scorer_cpu_throttled_seconds_total", "counter", "Time the control group was throttled."),
    Family("scorer_cpu_limit", "gauge", "CPUs granted by the control group."),
    Family("scorer_scrape_seconds", "gauge", "Time this scrape took to gather."),
)  # fmt: skip


class Layout:
    """Where each cell of a row is; the same in every process that knows the same routes."""

    # Cells of a worker's state: gauges, cleared when it dies.
    STATE, PID, AGE, IN_FLIGHT, CONNECTIONS, BUSY_RATIO, LOAD_SECONDS, DRAINED, GENERATION = range(9)
    GAUGES = 9

    def __init__(self, routes: Sequence[tuple[str, str]]) -> None:
        self.routes = tuple(routes)
        cells = self.GAUGES

        def take(count: int) -> int:
            nonlocal cells
            cells += count
            return cells - count

        self.requests = take(len(routes) * len(STATUSES))
        self.request_seconds = take(len(routes) * HISTOGRAM_CELLS)
        self.stage_seconds = take(len(STAGES) * HISTOGRAM_CELLS)
        self.turn_seconds = take(HISTOGRAM_CELLS)
        self.rejected = take(len(REASONS))
        self.rows = take(1)
        self.model_requests = take(1)
        self.request_bytes = take(1)
        self.response_bytes = take(1)
        self.connections = take(1)
        self.busy_seconds = take(1)
        self.swaps = take(len(SWAP_RESULTS))
        # Written by the master alone, in the row of the dead.
        self.starts = take(1)
        self.exits = take(len(EXIT_CAUSES))
        self.cells = cells


class Block:
    """The shared memory: a row of the dead, rows of the slots, texts of the slots, a table of dead models.

    Made once, before the first fork; every process that inherits it sees the same numbers.
    """

    # Cells of the head.
    VERSION, STARTED_AT, MASTER_PID, CPU_USER, CPU_SYSTEM, DEAD_MODEL_COUNT, WAS_READY, EXPECTED = range(8)
    ANNOUNCED, REVERTED, REFUSED, SWAP_SECONDS = range(8, 12)
    HEAD = 12

    def __init__(self, routes: Sequence[tuple[str, str]], slots: int = SLOTS) -> None:
        self.layout = Layout(routes)
        self.slots = slots
        width = self.layout.cells
        texts_at = (self.HEAD + (slots + 1) * width + DEAD_MODELS) * 8
        self._memory = mmap.mmap(-1, texts_at + (slots + DEAD_MODELS) * TEXT_BYTES)
        numbers = np.frombuffer(self._memory, np.float64, count=texts_at // 8)
        self._cells = memoryview(self._memory)[:texts_at].cast("d")
        self.head: NDArray[np.float64] = numbers[: self.HEAD]
        self._table = numbers[self.HEAD : self.HEAD + (slots + 1) * width].reshape(slots + 1, width)
        self._dead_counts = numbers[self.HEAD + (slots + 1) * width :]
        self._texts = memoryview(self._memory)[texts_at:]
        self.head[self.STARTED_AT] = time.time()
        self.head[self.MASTER_PID] = os.getpid()

    # Slots: the master's part.

    def claim(self, age: int = 0, generation: int = 0) -> int | None:
        """A free slot, now in use, for the age-th worker; None when all are taken."""
        free = np.flatnonzero(self._table[1:, Layout.STATE] == 0)
        if not len(free):
            return None
        slot = int(free[0])
        self._table[slot + 1, Layout.STATE] = BOOTING
        self._table[slot + 1, Layout.AGE] = age
        self._table[slot + 1, Layout.GENERATION] = generation
        self._table[0, self.layout.starts] += 1
        return slot

    def has_drained(self, slot: int) -> bool:
        """Whether the worker of this slot came to the end of its drain."""
        return bool(self._table[slot + 1, Layout.DRAINED])

    def is_ready(self, slot: int) -> bool:
        """Whether the worker of this slot scores."""
        return bool(self._table[slot + 1, Layout.STATE] == READY)

    def release(self, slot: int, cause: str) -> None:
        """Take over the counters of a worker that is gone."""
        row = self._table[slot + 1]
        dead = self._table[0]
        self.head[self.VERSION] += 1
        dead[Layout.GAUGES :] += row[Layout.GAUGES :]
        dead[self.layout.exits + EXIT_CAUSES.index(cause)] += 1
        if row[self.layout.model_requests] and self.text(slot):
            self._dead_counts[self._dead_model(self.text(slot))] += row[self.layout.model_requests]
        row[:] = 0
        self.write_text(slot, "")
        self.head[self.VERSION] += 1

    # Swaps: the master's part as well, but for `is_refused`, which belongs to whoever holds the lock.

    def count_swap(self, result: str) -> None:
        self._table[0, self.layout.swaps + SWAP_RESULTS.index(result)] += 1

    def announce(self, generation: int) -> None:
        """This generation serves, and no other."""
        self.head[self.ANNOUNCED] = generation

    def revert(self, generation: int) -> None:
        """This generation was given up."""
        self.head[self.REVERTED] = generation

    @property
    def progress(self) -> Progress:
        return Progress(int(self.head[self.ANNOUNCED]), int(self.head[self.REVERTED]))

    def _dead_model(self, text: str) -> int:
        """Index of this model among the dead; the last entry is for all that find no place."""
        count = int(self.head[self.DEAD_MODEL_COUNT])
        for index in range(count):
            if self.text(self.slots + index) == text:
                return index
        if count == DEAD_MODELS - 1:
            text = "other\nother\nother\nother"
        if count < DEAD_MODELS:
            self.write_text(self.slots + count, text)
            self.head[self.DEAD_MODEL_COUNT] = count + 1
            return count
        return DEAD_MODELS - 1

    # A worker's part.

    def row(self, slot: int) -> memoryview[float]:
        """The cells of a slot, to be written by one thread only."""
        start = self.HEAD + (slot + 1) * self.layout.cells
        return self._cells[start : start + self.layout.cells]

    def write_text(self, slot: int, text: str) -> None:
        data = text.encode()[: TEXT_BYTES - 1]
        at = slot * TEXT_BYTES
        self._texts[at : at + TEXT_BYTES] = data.ljust(TEXT_BYTES, b"\0")

    def text(self, slot: int) -> str:
        at = slot * TEXT_BYTES
        return bytes(self._texts[at : at + TEXT_BYTES]).rstrip(b"\0").decode(errors="replace")

    # A reader's part.

    @property
    def was_ready(self) -> bool:
        """Whether any worker has been ready since the start."""
        return bool(self.head[self.WAS_READY])

    def see_ready(self) -> bool:
        """The same, after a look at whether as many workers are ready now as the master means to have."""
        if not self.was_ready and len(self.rows_in(READY)) >= self.head[self.EXPECTED]:
            self.head[self.WAS_READY] = True
        return self.was_ready

    @property
    def is_refused(self) -> bool:
        """Whether the newest model that was found is refused."""
        return bool(self.head[self.REFUSED])

    @is_refused.setter
    def is_refused(self, value: bool) -> None:
        self.head[self.REFUSED] = value

    def has_others(self, generation: int, age: float) -> bool:
        """Whether workers of earlier generations are left, but for the age-th worker."""
        table = self._table[1:]
        is_old = (table[:, Layout.STATE] > 0) & (table[:, Layout.GENERATION] < generation)
        return bool((is_old & (table[:, Layout.AGE] != age)).any())

    def rows_in(self, state: int) -> NDArray[np.float64]:
        """Rows of the workers in that state."""
        table = self._table[1:]
        rows: NDArray[np.float64] = table[table[:, Layout.STATE] == state]
        return rows

    def snapshot(self) -> Snapshot:
        """All rows at one moment: read again while the master is moving counters."""
        for _ in range(1000):
            before = self.head[self.VERSION]
            if before % 2 == 0:
                used = np.flatnonzero(self._table[1:, Layout.STATE])
                rows = self._table[used + 1].copy()
                total = self._table[0] + rows.sum(axis=0)
                models = self._models(used, rows)
                if self.head[self.VERSION] == before:
                    return Snapshot(total, rows, models, [self.text(int(slot)) for slot in used])
            time.sleep(0.0005)
        raise RuntimeError("the metrics block did not come to rest")

    def _models(self, used: Iterable[int], rows: NDArray[np.float64]) -> dict[str, float]:
        models: dict[str, float] = {}
        for index in range(int(self.head[self.DEAD_MODEL_COUNT])):
            text = self.text(self.slots + index)
            models[text] = models.get(text, 0.0) + float(self._dead_counts[index])
        for slot, row in zip(used, rows, strict=True):
            text = self.text(int(slot))
            if text:
                models[text] = models.get(text, 0.0) + float(row[self.layout.model_requests])
        return models


@dataclass(frozen=True)
class Snapshot:
    """`total` sums dead and living; `rows` and `texts` are the living; `models` counts requests by identity."""

    total: NDArray[np.float64]
    rows: NDArray[np.float64]
    models: dict[str, float]
    texts: list[str]


class Recorder:
    """One worker's pen: writes its own row. Not thread-safe; threads take `lock`."""

    def __init__(self, block: Block, slot: int | None) -> None:
        # A worker beyond all slots counts into a block of its own: its numbers are lost, its answers are not.
        self.block = block if slot is not None else Block(block.layout.routes, slots=1)
        self.slot = slot if slot is not None else 0
        self.lock = threading.Lock()
        self._row = row = self.block.row(self.slot)
        layout = self.block.layout
        self._layout = layout
        self._status = {int(status): i for i, status in enumerate(STATUSES[:-1])}
        self._routes = {
            route: (layout.requests + i * len(STATUSES), layout.request_seconds + i * HISTOGRAM_CELLS)
            for i, route in enumerate(layout.routes)
        }
        self._reasons = {reason: layout.rejected + i for i, reason in enumerate(REASONS)}
        row[Layout.PID] = os.getpid()
        row[Layout.STATE] = BOOTING

    def observe(self, *answered: Observation) -> None:
        """Count answered requests.

        Sums are added up before they are written: where eight come together, that takes 0.7 of 1.7 µs a request off.
        """
        row, routes, statuses = self._row, self._routes, self._status
        decode_at = self._layout.stage_seconds
        predict_at, encode_at = decode_at + HISTOGRAM_CELLS, decode_at + 2 * HISTOGRAM_CELLS
        scoring = rows = request_bytes = response_bytes = 0
        decode = predict = encode = 0.0
        for seen in answered:
            requests, seconds_at = routes[seen.label]
            row[requests + statuses.get(seen.status, len(STATUSES) - 1)] += 1.0
            row[seconds_at + bisect_left(BUCKETS, seen.seconds)] += 1.0
            row[seconds_at + HISTOGRAM_CELLS - 1] += seen.seconds
            request_bytes += seen.request_bytes
            response_bytes += seen.response_bytes
            if seen.rejected:
                row[self._reasons[seen.rejected]] += 1.0
            scoring += seen.is_scoring
            if not seen.rows:
                continue  # nothing was predicted, and zeros would pull the percentiles down
            rows += seen.rows
            decode += seen.decode_seconds
            predict += seen.predict_seconds
            encode += seen.encode_seconds
            row[decode_at + bisect_left(BUCKETS, seen.decode_seconds)] += 1.0
            row[predict_at + bisect_left(BUCKETS, seen.predict_seconds)] += 1.0
            row[encode_at + bisect_left(BUCKETS, seen.encode_seconds)] += 1.0
        self._add_bytes(request_bytes, response_bytes)
        self._add_scored(scoring, rows, (decode, predict, encode))

    def observe_scored(
        self,
        seconds: Mapping[tuple[str, str], Sequence[float]],
        rows: int,
        request_bytes: int,
        response_bytes: int,
        stages: Stages,
    ) -> None:
        """Count requests that were scored together and answered 200: what each took, by label, and the rest of all."""
        row, count = self._row, 0
        for label, each in seconds.items():
            requests, seconds_at = self._routes[label]
            row[requests + self._status[200]] += len(each)
            for own in each:
                row[seconds_at + bisect_left(BUCKETS, own)] += 1.0
            row[seconds_at + HISTOGRAM_CELLS - 1] += sum(each)
            count += len(each)
        at = self._layout.stage_seconds
        for took in stages:
            row[at + bisect_left(BUCKETS, took)] += count
            at += HISTOGRAM_CELLS
        self._add_bytes(request_bytes, response_bytes)
        self._add_scored(count, rows, [took * count for took in stages])

    def _add_bytes(self, request_bytes: int, response_bytes: int) -> None:
        self._row[self._layout.request_bytes] += request_bytes
        self._row[self._layout.response_bytes] += response_bytes

    def _add_scored(self, requests: int, rows: int, stages: Sequence[float]) -> None:
        """Requests for a loaded model, rows that were scored, and how long each stage took for all of them."""
        row, layout = self._row, self._layout
        if requests:
            row[layout.model_requests] += requests
        if rows:
            row[layout.rows] += rows
            at = layout.stage_seconds + HISTOGRAM_CELLS - 1
            for took in stages:
                row[at] += took
                at += HISTOGRAM_CELLS

    def observe_turn(self, seconds: float) -> None:
        row = self._row
        at = self._layout.turn_seconds
        row[at + bisect_left(BUCKETS, seconds)] += 1.0
        row[at + HISTOGRAM_CELLS - 1] += seconds
        row[self._layout.busy_seconds] += seconds

    def add_in_flight(self, change: int) -> None:
        self._row[Layout.IN_FLIGHT] += change

    def open_connection(self) -> None:
        self._row[Layout.CONNECTIONS] += 1.0
        self._row[self._layout.connections] += 1.0

    def close_connection(self) -> None:
        self._row[Layout.CONNECTIONS] -= 1.0

    def write_busy_ratio(self, ratio: float) -> None:
        self._row[Layout.BUSY_RATIO] = ratio

    def write_state(self, state: int) -> None:
        self._row[Layout.STATE] = state

    def write_drained(self) -> None:
        self._row[Layout.DRAINED] = 1.0

    def write_model(self, model: ModelIdentity, load_seconds: float, engine: str = "packed") -> None:
        self.block.write_text(self.slot, f"{model.name}\n{model.version}\n{model.digest}\n{engine}")
        self._row[Layout.LOAD_SECONDS] = load_seconds

    def count_swap(self, result: str) -> None:
        self._row[self._layout.swaps + SWAP_RESULTS.index(result)] += 1.0

    def is_last_before(self, generation: int) -> bool:
        """Whether all workers of earlier generations are gone but this one, and one of that generation scores."""
        ready = self.block.rows_in(READY)[:, Layout.GENERATION] >= generation
        return bool(ready.any()) and not self.block.has_others(generation, self._row[Layout.AGE])

    def younger(self, state: int) -> int:
        """How many workers in that state were started after this one."""
        return int((self.block.rows_in(state)[:, Layout.AGE] > self._row[Layout.AGE]).sum())

    def sibling_connections(self) -> list[float]:
        """Connections of each other worker that is ready."""
        rows = self.block.rows_in(READY)
        return [float(row[Layout.CONNECTIONS]) for row in rows if row[Layout.PID] != self._row[Layout.PID]]

    @property
    def in_flight(self) -> float:
        return self._row[Layout.IN_FLIGHT]

    @property
    def connections(self) -> float:
        return float(self._row[Layout.CONNECTIONS])

    @property
    def busy_seconds(self) -> float:
        return float(self._row[self._layout.busy_seconds])
