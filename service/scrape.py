"""A scrape: the shared block, and what the machine says, as Prometheus text.

Any worker can answer it, in a thread: it only reads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from service.machine import ControlGroup, network_bytes, read_family
from service.metrics import (
    BUCKETS,
    EXIT_CAUSES,
    FAMILIES,
    HISTOGRAM_CELLS,
    READY,
    REASONS,
    STAGES,
    STATUSES,
    SWAP_RESULTS,
    WORKER_STATES,
    Block,
    Family,
    Layout,
    Snapshot,
)


class BlockCollector:
    """Renders a block, and what the machine says, as Prometheus metrics."""

    def __init__(self, block: Block, group: ControlGroup) -> None:
        self._block = block
        self._group = group

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry would otherwise read the block once for names only."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        began = time.perf_counter()
        found: dict[str, list[tuple[tuple[str, ...], object]]] = {family.name: [] for family in FAMILIES}
        for name, labels, value in (*self._from_block(self._block.snapshot()), *self._from_machine()):
            found[name].append((labels, value))
        found["scorer_scrape_seconds"].append(((), time.perf_counter() - began))
        for family in FAMILIES:
            if found[family.name]:
                yield to_metric(family, found[family.name])

    def _from_block(self, seen: Snapshot) -> Iterator[tuple[str, tuple[str, ...], object]]:
        layout, total = self._block.layout, seen.total
        for i, (route, wire) in enumerate(layout.routes):
            counts = total[layout.requests + i * len(STATUSES) :][: len(STATUSES)]
            for status, count in zip(STATUSES, counts, strict=True):
                if count:
                    yield "scorer_requests_total", (wire, route, status), count
        yield from self._request_seconds(total)
        for i, stage in enumerate(STAGES):
            yield (
                "scorer_stage_seconds",
                (stage,),
                total[layout.stage_seconds + i * HISTOGRAM_CELLS :][:HISTOGRAM_CELLS],
            )
        yield "scorer_loop_turn_seconds", (), total[layout.turn_seconds :][:HISTOGRAM_CELLS]
        for i, reason in enumerate(REASONS):
            yield "scorer_rejected_total", (reason,), total[layout.rejected + i]
        for i, cause in enumerate(EXIT_CAUSES):
            yield "scorer_worker_exits_total", (cause,), total[layout.exits + i]
        for i, result in enumerate(SWAP_RESULTS):
            yield "scorer_model_swaps_total", (result,), total[layout.swaps + i]
        for name, cell in (
            ("scorer_rows_total", layout.rows),
            ("scorer_request_body_bytes_total", layout.request_bytes),
            ("scorer_response_body_bytes_total", layout.response_bytes),
            ("scorer_connections_total", layout.connections),
            ("scorer_loop_busy_seconds_total", layout.busy_seconds),
            ("scorer_worker_starts_total", layout.starts),
        ):
            yield name, (), total[cell]
        yield from self._gauges(seen)

    def _request_seconds(self, total: NDArray[np.float64]) -> Iterator[tuple[str, tuple[str, ...], object]]:
        """One histogram a route: the unmatched paths of several wires are one."""
        layout = self._block.layout
        merged: dict[str, NDArray[np.float64]] = {}
        for i, (route, _) in enumerate(layout.routes):
            cells = total[layout.request_seconds + i * HISTOGRAM_CELLS :][:HISTOGRAM_CELLS]
            merged[route] = merged[route] + cells if route in merged else cells
        for route, cells in merged.items():
            if cells[:-1].any():
                yield "scorer_request_seconds", (route,), cells

    def _gauges(self, seen: Snapshot) -> Iterator[tuple[str, tuple[str, ...], object]]:
        rows = seen.rows
        yield "scorer_in_flight", (), rows[:, Layout.IN_FLIGHT].sum()
        yield "scorer_open_connections", (), rows[:, Layout.CONNECTIONS].sum()
        ready = rows[rows[:, Layout.STATE] == READY]
        yield "scorer_loop_busy_ratio", (), ready[:, Layout.BUSY_RATIO].mean() if len(ready) else 0.0
        for i, state in enumerate(WORKER_STATES):
            yield "scorer_workers", (state,), (rows[:, Layout.STATE] == i + 1).sum()
        if len(rows):
            newest = rows[rows[:, Layout.PID].argmax()]
            yield "scorer_model_load_seconds", (), newest[Layout.LOAD_SECONDS]
        yield "scorer_model_refused", (), self._block.head[Block.REFUSED]
        yield "scorer_model_swap_seconds", (), self._block.head[Block.SWAP_SECONDS]
        requests: dict[tuple[str, ...], float] = {}
        for text, count in seen.models.items():
            name, version, *_ = text.split("\n")
            requests[name, version] = requests.get((name, version), 0.0) + count
        for labels, count in requests.items():
            yield "scorer_model_requests_total", labels, count
        for text in sorted(set(seen.texts) - {""}):
            yield "scorer_model_info", tuple(text.split("\n")), seen.texts.count(text)
        yield "scorer_start_time_seconds", (), self._block.head[Block.STARTED_AT]

    def _from_machine(self) -> Iterator[tuple[str, tuple[str, ...], object]]:
        head = self._block.head
        family = read_family(int(head[Block.MASTER_PID]))
        # A worker may have died between two reads: the figure waits rather than falls.
        head[Block.CPU_USER] = max(head[Block.CPU_USER], family.cpu_user_seconds)
        head[Block.CPU_SYSTEM] = max(head[Block.CPU_SYSTEM], family.cpu_system_seconds)
        yield "scorer_cpu_seconds_total", ("user",), head[Block.CPU_USER]
        yield "scorer_cpu_seconds_total", ("system",), head[Block.CPU_SYSTEM]
        yield "scorer_memory_bytes", ("rss",), family.rss_bytes
        yield "scorer_memory_bytes", ("pss",), family.pss_bytes
        yield "scorer_memory_bytes", ("uss",), family.uss_bytes
        yield "scorer_open_files", (), family.open_files
        yield "scorer_processes", (), family.processes
        memory = self._group.memory()
        if memory is not None:
            yield "scorer_memory_bytes", ("working_set",), memory.working_set_bytes
            if memory.limit_bytes is not None:
                yield "scorer_memory_bytes", ("limit",), memory.limit_bytes
        throttling = self._group.throttling()
        if throttling is not None:
            yield "scorer_cpu_periods_total", (), throttling.periods
            yield "scorer_cpu_throttled_periods_total", (), throttling.throttled_periods
            yield "scorer_cpu_throttled_seconds_total", (), throttling.throttled_seconds
        quota = self._group.cpu_quota()
        if quota is not None:
            yield "scorer_cpu_limit", (), quota
        for device, (received, sent) in network_bytes().items():
            yield "scorer_network_receive_bytes_total", (device,), received
            yield "scorer_network_transmit_bytes_total", (device,), sent


def to_metric(family: Family, samples: Sequence[tuple[tuple[str, ...], object]]) -> Metric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, cells in samples:
            values = np.asarray(cells, np.float64)
            bounds = [*(repr(bound) for bound in BUCKETS), "+Inf"]
            buckets = list(zip(bounds, values[:-1].cumsum().tolist(), strict=True))
            histogram.add_metric(labels, buckets=buckets, sum_value=float(values[-1]))
        return histogram
    create = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = create(family.name, family.help, labels=family.labels)
    for labels, value in samples:
        metric.add_metric(labels, float(np.asarray(value)))
    return metric


def render(block: Block, group: ControlGroup, accept: str) -> tuple[bytes, str]:
    """Text of a scrape and its content type: OpenMetrics if the scraper accepts it, else text 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(BlockCollector(block, group))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
