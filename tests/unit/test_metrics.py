"""Counters are right across workers, never fall and never count twice; what is rendered can be read."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from service.batch import ModelIdentity, Observation, Stages
from service.edge import ROUTE_LABELS
from service.machine import ControlGroup
from service.metrics import (
    BUCKETS,
    DEAD_MODELS,
    EXIT_CAUSES,
    FAMILIES,
    READY,
    STATUSES,
    Block,
    Recorder,
)
from service.scrape import render

CGROUP = Path(__file__).parent / "cgroup"
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
PREDICT = "/v1/models/{model}:predict"
IRIS = ModelIdentity("iris", "1", "d" * 64)
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def group() -> ControlGroup:
    return ControlGroup(CGROUP / "v2" / "sys", CGROUP / "v2" / "proc")


def scored(status: int = 200, seconds: float = 0.0004, rows: int = 3) -> Observation:
    return Observation(
        (PREDICT, "kserve_v1"),
        status,
        seconds,
        rejected="" if status == 200 else "invalid-input",
        request_bytes=100,
        response_bytes=20,
        is_scoring=True,
        rows=rows,
        decode_seconds=0.0001,
        predict_seconds=0.0002,
        encode_seconds=0.00005,
    )


def scrape(block: Block) -> Samples:
    """The samples of one scrape in the text format."""
    text, _ = render(block, group(), "")
    return samples_of(parse_text(text.decode()))


def parse_openmetrics(text: str) -> Iterable[Metric]:
    """Every family of a scrape in OpenMetrics; the parser raises at whatever the standard forbids."""
    families: Iterable[Metric] = openmetrics_parser.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    return families


def samples_of(families: Iterable[Metric]) -> Samples:
    found: Samples = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} stands twice in one scrape"
            found[key] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


def start_worker(block: Block, model: ModelIdentity = IRIS) -> tuple[int, Recorder]:
    slot = block.claim()
    assert slot is not None
    recorder = Recorder(block, slot)
    recorder.write_model(model, 0.25)
    recorder.write_state(READY)
    return slot, recorder


# One worker.


def test_a_request_is_counted_where_it_belongs() -> None:
    """One observation moves every family that speaks of it, by what it says."""
    block = Block(ROUTE_LABELS, slots=1)
    _, recorder = start_worker(block)
    recorder.observe(scored())
    seen = scrape(block)
    assert value(seen, "scorer_requests_total", wire="kserve_v1", route=PREDICT, status="200") == 1
    assert value(seen, "scorer_model_requests_total", model="iris", version="1") == 1
    assert value(seen, "scorer_rows_total") == 3
    assert value(seen, "scorer_request_body_bytes_total") == 100
    assert value(seen, "scorer_response_body_bytes_total") == 20
    assert value(seen, "scorer_request_seconds_count", route=PREDICT) == 1
    assert value(seen, "scorer_request_seconds_sum", route=PREDICT) == pytest.approx(0.0004)
    assert value(seen, "scorer_stage_seconds_sum", stage="decode") == pytest.approx(0.0001)
    assert value(seen, "scorer_stage_seconds_sum", stage="predict") == pytest.approx(0.0002)
    assert value(seen, "scorer_stage_seconds_sum", stage="encode") == pytest.approx(0.00005)
    assert value(seen, "scorer_model_info", model="iris", version="1", digest="d" * 64, engine="packed") == 1
    assert value(seen, "scorer_workers", state="ready") == 1
    assert value(seen, "scorer_model_load_seconds") == 0.25


@pytest.mark.parametrize("seconds", [0.0, 0.00005, 0.000051, 0.0003, 1.0, 29.9, 30.0, 31.0, 4000.0])
def test_a_duration_falls_into_the_buckets_that_hold_it(seconds: float) -> None:
    """Buckets are cumulative and a bound belongs to its bucket (`le`), as Prometheus has it."""
    block = Block(ROUTE_LABELS, slots=1)
    _, recorder = start_worker(block)
    recorder.observe(scored(seconds=seconds))
    seen = scrape(block)
    for bound in BUCKETS:
        found = value(seen, "scorer_request_seconds_bucket", route=PREDICT, le=repr(bound))
        assert found == (1 if seconds <= bound else 0), bound
    assert value(seen, "scorer_request_seconds_bucket", route=PREDICT, le="+Inf") == 1


@pytest.mark.parametrize("status", [200, 400, 404, 405, 408, 413, 414, 415, 417, 431, 500, 503])
def test_every_status_we_answer_has_its_label(status: int) -> None:
    assert str(status) in STATUSES
    block = Block(ROUTE_LABELS, slots=1)
    _, recorder = start_worker(block)
    recorder.observe(scored(status))
    assert value(scrape(block), "scorer_requests_total", wire="kserve_v1", route=PREDICT, status=str(status)) == 1


def test_a_status_nobody_thought_of_is_counted_as_other() -> None:
    """Labels are a closed set, and nothing is lost."""
    block = Block(ROUTE_LABELS, slots=1)
    _, recorder = start_worker(block)
    recorder.observe(scored(308))
    assert value(scrape(block), "scorer_requests_total", wire="kserve_v1", route=PREDICT, status="other") == 1


def test_gauges_follow_what_is_open() -> None:
    block = Block(ROUTE_LABELS, slots=2)
    (_, one), (_, other) = start_worker(block), start_worker(block)
    one.open_connection()
    one.open_connection()
    one.close_connection()
    other.open_connection()
    other.add_in_flight(3)
    other.add_in_flight(-1)
    one.write_busy_ratio(0.5)
    other.write_busy_ratio(1.0)
    seen = scrape(block)
    assert value(seen, "scorer_open_connections") == 2
    assert value(seen, "scorer_connections_total") == 3
    assert value(seen, "scorer_in_flight") == 2
    assert value(seen, "scorer_loop_busy_ratio") == 0.75


# Workers come and go.


def test_what_a_worker_counted_outlives_it() -> None:
    """Release takes over the counters, forgets the gauges, and counts the exit by its cause."""
    block = Block(ROUTE_LABELS, slots=2)
    slot, recorder = start_worker(block)
    for _ in range(5):
        recorder.observe(scored())
    recorder.open_connection()
    recorder.add_in_flight(1)
    before = scrape(block)
    block.release(slot, "timeout")
    after = scrape(block)
    for name, labels in before:
        if name.startswith(
            ("scorer_requests_total", "scorer_rows", "scorer_request_seconds", "scorer_stage", "scorer_model_req")
        ):
            assert after[name, labels] == before[name, labels]
    assert value(after, "scorer_worker_exits_total", cause="timeout") == 1
    assert value(after, "scorer_worker_starts_total") == 1
    assert value(after, "scorer_connections_total") == 1
    assert value(after, "scorer_open_connections") == 0
    assert value(after, "scorer_in_flight") == 0
    assert value(after, "scorer_workers", state="ready") == 0
    assert value(after, "scorer_model_info", model="iris", version="1", digest="d" * 64, engine="packed") == 0


def test_a_slot_is_used_again_and_starts_at_zero() -> None:
    """Nothing grows with restarts, and a new worker inherits nothing."""
    block = Block(ROUTE_LABELS, slots=1)
    for _ in range(50):
        slot, recorder = start_worker(block)
        assert slot == 0
        assert (recorder.in_flight, recorder.connections, recorder.busy_seconds) == (0, 0, 0)
        recorder.observe(scored())
        recorder.observe_turn(0.001)
        recorder.open_connection()
        recorder.add_in_flight(1)
        block.release(slot, "drained")
    assert value(scrape(block), "scorer_rows_total") == 150


def test_a_worker_beyond_all_slots_answers_uncounted() -> None:
    """Better a worker that counts for itself than one that cannot start."""
    block = Block(ROUTE_LABELS, slots=1)
    start_worker(block)
    assert block.claim() is None
    stray = Recorder(block, None)
    stray.write_model(IRIS, 0.1)
    stray.observe(scored())
    assert value(scrape(block), "scorer_rows_total") == 0


def test_a_worker_that_died_before_it_had_a_model_leaves_the_scrape_whole() -> None:
    """It may have answered 503 to those who came early; it has no name to count them under."""
    block = Block(ROUTE_LABELS, slots=1)
    slot = block.claim()
    assert slot is not None
    Recorder(block, slot).observe(scored(503))
    scrape(block)
    block.release(slot, "boot")
    seen = scrape(block)
    assert value(seen, "scorer_requests_total", wire="kserve_v1", route=PREDICT, status="503") == 1
    assert value(seen, "scorer_worker_exits_total", cause="boot") == 1


def test_counts_by_model_are_kept_per_version() -> None:
    """Two generations of one model are two lines, the dead and the living of one version are one."""
    block = Block(ROUTE_LABELS, slots=3)
    second = ModelIdentity("iris", "2", "e" * 64)
    slot, old = start_worker(block)
    _, young = start_worker(block)
    _, new = start_worker(block, second)
    for recorder, times in ((old, 2), (young, 3), (new, 4)):
        for _ in range(times):
            recorder.observe(scored())
    block.release(slot, "drained")
    seen = scrape(block)
    assert value(seen, "scorer_model_requests_total", model="iris", version="1") == 5
    assert value(seen, "scorer_model_requests_total", model="iris", version="2") == 4
    assert value(seen, "scorer_model_info", model="iris", version="1", digest="d" * 64, engine="packed") == 1


def test_a_version_that_was_served_from_two_files_is_one_line() -> None:
    """The same name and version with another digest, a file that was replaced in place, must not stand twice."""
    block = Block(ROUTE_LABELS, slots=2)
    _, old = start_worker(block)
    _, new = start_worker(block, ModelIdentity("iris", "1", "e" * 64))
    old.observe(scored())
    new.observe(scored())
    assert value(scrape(block), "scorer_model_requests_total", model="iris", version="1") == 2


def test_the_table_of_dead_models_is_bounded() -> None:
    """However many models come and go, the lines are bounded, and those without a line are counted as other."""
    block = Block(ROUTE_LABELS, slots=1)
    models = 3 * DEAD_MODELS
    for number in range(models):
        slot, recorder = start_worker(block, ModelIdentity("iris", str(number), f"{number:064x}"))
        recorder.observe(scored())
        block.release(slot, "drained")
    lines = {labels: found for (name, labels), found in scrape(block).items() if name == "scorer_model_requests_total"}
    assert len(lines) == DEAD_MODELS
    assert sum(lines.values()) == models
    assert lines[("model", "other"), ("version", "other")] == models - DEAD_MODELS + 1
    assert lines[("model", "iris"), ("version", "0")] == 1


def test_long_names_do_not_run_into_each_other() -> None:
    """A name of 255 letters is a name; the cell beside it stays as it is."""
    block = Block(ROUTE_LABELS, slots=2)
    long = ModelIdentity("a" * 255, "v" * 64, "d" * 64)
    _, one = start_worker(block, long)
    _, other = start_worker(block)
    one.observe(scored())
    other.observe(scored())
    seen = scrape(block)
    assert value(seen, "scorer_model_requests_total", model="a" * 255, version="v" * 64) == 1
    assert value(seen, "scorer_model_requests_total", model="iris", version="1") == 1


class Plain:
    """The same bookkeeping without slots: the truth that the block must tell."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.models: Counter[tuple[str, str]] = Counter()
        self.exits: Counter[str] = Counter()
        self.rows = self.starts = self.turns = 0

    def matches(self, seen: Samples) -> None:
        for status, count in self.requests.items():
            assert value(seen, "scorer_requests_total", wire="kserve_v1", route=PREDICT, status=status) == count
        for (model, version), count in self.models.items():
            assert value(seen, "scorer_model_requests_total", model=model, version=version) == count
        for cause, count in self.exits.items():
            assert value(seen, "scorer_worker_exits_total", cause=cause) == count
        assert value(seen, "scorer_rows_total") == self.rows
        assert value(seen, "scorer_worker_starts_total") == self.starts
        assert value(seen, "scorer_loop_turn_seconds_count") == self.turns
        assert value(seen, "scorer_request_seconds_count", route=PREDICT) == self.requests.total()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_thousand_random_events_are_told_as_they_were(seed: int) -> None:
    """After any sequence of claims, observations and releases the totals are those of a plain model; none ever fell."""
    chance = random.Random(seed)
    block, plain = Block(ROUTE_LABELS, slots=6), Plain()
    living: dict[int, tuple[Recorder, ModelIdentity]] = {}
    models = [ModelIdentity("iris", str(version), f"{version:064x}") for version in range(4)]
    before: Samples = {}
    for step in range(1000):
        event = chance.random()
        if event < 0.1 and len(living) < 6:
            model = chance.choice(models)
            slot, recorder = start_worker(block, model)
            living[slot] = recorder, model
            plain.starts += 1
        elif event < 0.18 and living:
            slot = chance.choice(list(living))
            cause = chance.choice(EXIT_CAUSES)
            block.release(slot, cause)
            del living[slot]
            plain.exits[cause] += 1
        elif living:
            recorder, model = chance.choice(list(living.values()))
            status, rows = chance.choice((200, 400, 503)), chance.randrange(100)
            recorder.observe(scored(status, rows=rows))
            recorder.observe_turn(chance.random())
            plain.requests[str(status)] += 1
            plain.models[model.name, model.version] += 1
            plain.rows += rows
            plain.turns += 1
        if step % 20 == 0:
            seen = scrape(block)
            plain.matches(seen)
            assert [key for key in before if is_counter(key[0]) and seen[key] < before[key] - 1e-9] == []
            before = seen
    plain.matches(scrape(block))


def is_counter(name: str) -> bool:
    return name.endswith(("_total", "_count", "_bucket", "_sum"))


RACE = """
import os, sys
from service.batch import ModelIdentity, Observation
from service.metrics import READY, Block, Recorder

ROUTE, REQUESTS = ("/predict", "simple"), 300
block = Block([ROUTE], slots=4)
stop = os.pipe()


def work(slot):
    recorder = Recorder(block, slot)
    recorder.write_model(ModelIdentity("iris", str(slot % 2), "d" * 64), 0.1)
    recorder.write_state(READY)
    for _ in range(REQUESTS):
        recorder.observe(Observation(ROUTE, 200, 0.001, rows=2, is_scoring=True))
    os._exit(0)


def read():
    # Every figure of one snapshot is of one moment: none is above what can have been counted, none ever falls.
    layout, highest, most, snapshots = block.layout, 0.0, 0.0, 0
    os.set_blocking(stop[0], False)
    while True:
        try:
            os.read(stop[0], 1)
            last = True
        except BlockingIOError:
            last = False
        seen = block.snapshot()
        rows, models = float(seen.total[layout.rows]), sum(seen.models.values())
        if rows < highest or models < most:
            os._exit(3)
        if rows > 2 * REQUESTS * WORKERS or models > REQUESTS * WORKERS:
            os._exit(4)
        highest, most, snapshots = rows, models, snapshots + 1
        if last:
            os._exit(0 if rows == 2 * REQUESTS * WORKERS and models == REQUESTS * WORKERS and snapshots > 20 else 5)


WORKERS = 40
reader = os.fork()
if reader == 0:
    read()
for turn in range(WORKERS // 2):
    pair = []
    for _ in range(2):
        slot = block.claim()
        pid = os.fork()
        if pid == 0:
            work(slot)
        pair.append((pid, slot))
    for pid, slot in pair:
        os.waitpid(pid, 0)
        block.release(slot, "drained")
os.write(stop[1], b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1]))
"""


def test_a_reader_sees_no_double_count_while_workers_come_and_go() -> None:
    """Forty real processes count and are released while another reads: 3 is a fall, 4 a double count, 5 a loss."""
    # OpenBLAS, under numpy, would start a thread, and a process with threads should not fork.
    environ = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RACE]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# What Prometheus gets.


def busy_block() -> Block:
    block = Block(ROUTE_LABELS, slots=2)
    _, recorder = start_worker(block)
    recorder.observe(scored())
    recorder.observe(scored(400))
    recorder.observe_turn(0.002)
    return block


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain;version=0.0.4", "text/html, image/gif, *; q=.2"])
def test_text_format_can_be_read(accept: str) -> None:
    """Whoever does not ask for more gets text 0.0.4, which Prometheus' own parser reads."""
    text, content_type = render(busy_block(), group(), accept)
    assert content_type.startswith("text/plain; version=0.0.4")
    assert samples_of(parse_text(text.decode()))


def test_openmetrics_can_be_read() -> None:
    """Who asks for OpenMetrics gets it, and its stricter parser reads it."""
    text, content_type = render(busy_block(), group(), OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")
    seen = samples_of(parse_openmetrics(text.decode()))
    assert value(seen, "scorer_requests_total", wire="kserve_v1", route=PREDICT, status="200") == 1


def test_both_formats_say_the_same() -> None:
    """Names and values do not depend on the format, but for what each scrape measures anew."""
    block = busy_block()
    plain = samples_of(parse_text(render(block, group(), "")[0].decode()))
    strict = samples_of(parse_openmetrics(render(block, group(), OPENMETRICS)[0].decode()))
    moving = (
        "scorer_scrape",
        "scorer_cpu_seconds",
        "scorer_memory",
        "scorer_network",
        "scorer_open_files",
        "scorer_processes",
    )
    assert {key: found for key, found in plain.items() if not key[0].startswith(moving)} == {
        key: found for key, found in strict.items() if not key[0].startswith(moving)
    }


def test_only_declared_metrics_are_rendered_and_all_of_them() -> None:
    """FAMILIES is the list: each has type and help there, and appears once all it speaks of has happened."""
    families = {family.name: family for family in parse_text(render(busy_block(), group(), "")[0].decode())}
    declared = {
        family.name.removesuffix("_total") if family.kind == "counter" else family.name: family for family in FAMILIES
    }
    assert families.keys() == declared.keys()
    for name, family in declared.items():
        assert families[name].type == family.kind
        assert families[name].documentation == family.help
        for sample in families[name].samples:
            assert sample.labels.keys() - {"le"} == set(family.labels)


def test_metric_names_follow_the_conventions() -> None:
    """One prefix, base units, `_total` for counters and for nothing else."""
    units = (
        "seconds",
        "bytes",
        "ratio",
        "info",
        "total",
        "files",
        "processes",
        "flight",
        "connections",
        "workers",
        "limit",
        "refused",
    )
    for family in FAMILIES:
        assert family.name.startswith("scorer_")
        assert family.name.endswith("_total") == (family.kind == "counter")
        assert family.name.rpartition("_")[2] in units
        assert family.help.endswith(".")


def test_labels_are_closed_sets() -> None:
    """No label of a request holds what a caller can make up; model and version are bounded elsewhere."""
    open_labels = {label for family in FAMILIES for label in family.labels}
    assert open_labels <= {
        "wire", "route", "status", "stage", "reason", "model", "version", "digest", "engine", "state", "cause", "mode", "kind", "device", "result",
    }  # fmt: skip


def test_a_machine_that_says_nothing_does_not_take_the_scrape_with_it(tmp_path: Path) -> None:
    """Without a control group its metrics are absent and all others are there."""
    text, _ = render(busy_block(), ControlGroup(tmp_path / "no", tmp_path / "nothing"), "")
    names = {name for name, _ in samples_of(parse_text(text.decode()))}
    assert "scorer_requests_total" in names
    assert not [name for name in names if name.startswith(("scorer_cpu_limit", "scorer_cpu_throttled"))]


def test_the_scrape_holds_what_the_control_group_says() -> None:
    seen = scrape(busy_block())
    assert value(seen, "scorer_cpu_limit") == 1.5
    assert value(seen, "scorer_cpu_throttled_seconds_total") == 2.5
    assert value(seen, "scorer_cpu_throttled_periods_total") == 40
    assert value(seen, "scorer_cpu_periods_total") == 1000
    assert value(seen, "scorer_memory_bytes", kind="working_set") == 380_000_000
    assert value(seen, "scorer_memory_bytes", kind="limit") == 1_073_741_824


def test_requests_that_were_scored_together_count_as_if_each_had_been_counted_alone() -> None:
    """Both ways of counting write the same cells."""
    together, alone = Block(ROUTE_LABELS, slots=1), Block(ROUTE_LABELS, slots=1)
    stages = Stages(0.0001, 0.0002, 0.00005)
    first, second = ("/predict", "simple"), (PREDICT, "kserve_v1")
    seconds = {first: [0.0004, 0.004], second: [0.0005]}
    Recorder(together, 0).observe_scored(seconds, rows=6, request_bytes=300, response_bytes=60, stages=stages)
    recorder = Recorder(alone, 0)
    for label, each in seconds.items():
        for own in each:
            recorder.observe(Observation(label, 200, own, "", 100, 20, True, 2, *stages))
    np.testing.assert_allclose(together.snapshot().total, alone.snapshot().total, rtol=1e-12)
    assert together.snapshot().total.sum() > 0
