"""Requests that are known but for their numbers get the answers that they would get from the edge, to the byte."""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import io
import json
from collections.abc import Callable
from itertools import accumulate, chain
from typing import Any, cast

import numpy as np
import pytest

from service.batch import Floats
from service.door import READ_BYTES, Door
from service.edge import COMPRESS_BYTES
from service.http1 import Connection
from service.metrics import HISTOGRAM_CELLS, Layout
from service.models import LoadedModel
from service.recurring import MAX_HEADS
from service.turn import MOST_SCORES
from service.wire import ROUTES
from tests.apps import Example, World
from tests.wire.cases import Case, read_cases

V2 = "/v2/models/iris/infer"


# As often as it takes: the head is learned at the first, what stands around the numbers at the second.
LEARNED = 2
SCORING = [route.template for route in ROUTES]
# Those that the loop answers, and that one read can hold: the others never come to a turn.
CASES = [
    case
    for case in read_cases()
    if case.method == "POST"
    and case.path in [template.format(model=case.model, version="1") for template in SCORING]
    and len(case.body) < READ_BYTES - 1024
]
ROW = b'{"instances": [[5.1, 3.5, 1.4, 0.2]]}'
IRIS = "/v1/models/iris:predict"


class Wire(asyncio.Transport):
    """What a connection writes to, and whether it has closed."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.sent += bytes(data)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def can_write_eof(self) -> bool:
        return False


class Loop:
    """Calls later what it is asked to, and not by itself."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def call_soon(self, call: Callable[[], None]) -> None:
        self.due.append(call)

    def run(self) -> None:
        due, self.due = self.due, []
        for call in due:
            call()


@dataclasses.dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Worker:
    """A worker but for its processes and sockets: a door, a loop that is turned by hand, and connections."""

    def __init__(self, model: LoadedModel, **environ: str) -> None:
        self.world = World(model, **environ)
        self.loop = Loop()
        self.door = Door(self.world.edge, self.world.app)
        self.door.serve(model, self.loop.call_soon)
        self.door.write_date("Sun, 29 Nov 2026 10:00:00 GMT")
        assert self.door.turn is not None
        self.turn = self.door.turn
        self.taken = 0
        take = self.turn.take

        def counted(*args: Any) -> int:
            known = take(*args)
            self.taken += known > 0
            return known

        self.turn.take = counted  # type: ignore[method-assign, assignment]  # a method in the place of one, which counts what that takes

    def connect(self) -> tuple[Connection, Wire]:
        connection, wire = Connection(self.door, cast("asyncio.AbstractEventLoop", self.loop)), Wire()
        connection.connection_made(wire)
        return connection, wire

    def read(self, connection: Connection, data: bytes) -> None:
        self.door.buffer[: len(data)] = data
        connection.buffer_updated(len(data))

    def ask(self, *requests: bytes) -> list[Answer]:
        """Answers to requests that come in one turn, each over a connection of its own."""
        lines = [self.connect() for _ in requests]
        self.door.ready_sockets = len(requests)
        for (connection, _), data in zip(lines, requests, strict=True):
            self.read(connection, data)
        self.loop.run()
        return [read_answer(wire.sent) for _, wire in lines]

    def ask_known(self, *requests: bytes) -> list[Answer]:
        """The same, once they have come before."""
        for data in requests:
            for _ in range(LEARNED):
                self.ask(data)
        before = self.taken
        answers = self.ask(*requests)
        assert self.taken - before == len(requests)
        return answers

    def cell(self, at: int) -> float:
        return float(self.world.counts.total[at])

    @property
    def layout(self) -> Layout:
        return self.world.recorder.block.layout


def write_request(path: str, body: bytes, request_id: str = "the-same", **headers: str) -> bytes:
    fields = {"Host": "a", "Content-Type": "application/json", "X-Request-Id": request_id, **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def write_tensor(rows: int, width: int, is_answer_binary: bool, values: Floats) -> bytes:
    """A request as tritonclient writes it, with the scores as binary or not."""
    tensor = {
        "name": "x",
        "shape": [rows, width],
        "datatype": "FP32",
        "parameters": {"binary_data_size": 4 * rows * width},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": is_answer_binary}}).encode()
    fields = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return write_request(V2, head + values.astype("<f4").tobytes(), **fields)


class Text(io.BytesIO):
    """What http.client reads an answer from."""

    def makefile(self, *args: Any, **options: Any) -> Text:
        return self


def read_answer(data: bytes) -> Answer:
    response = http.client.HTTPResponse(cast("Any", Text(data)))
    response.begin()
    return Answer(response.status, dict(response.getheaders()), response.read())


def without_times(answer: Answer) -> Answer:
    return dataclasses.replace(answer, headers={k: v for k, v in answer.headers.items() if k != "Server-Timing"})


@pytest.fixture
def worker(iris: Example) -> Worker:
    return Worker(iris.model)


@pytest.fixture(scope="module")
def workers(iris: Example, cancer: Example) -> dict[str, Worker]:
    limits = {"SCORER_MAX_BODY_BYTES": "300000", "SCORER_MAX_ROWS_PER_REQUEST": "1000"}
    return {example.name: Worker(example.model, **limits) for example in (iris, cancer)}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_what_comes_again_is_answered_as_it_was(case: Case, workers: dict[str, Worker]) -> None:
    """Every golden request, refused ones included, four times: the first is read by llhttp and the wire."""
    worker = workers[case.model]
    worker.door.recurring.refill()
    fields = {name: value for name, value in case.headers.items() if name != "Content-Length"}
    data = write_request(case.path, case.body, **fields)
    first, *others = (without_times(worker.ask(data)[0]) for _ in range(4))
    for other in others:
        assert other == first


def test_most_golden_requests_of_plain_numbers_are_taken(workers: dict[str, Worker]) -> None:
    """Or the test above would show nothing."""
    taken = {}
    for case in CASES:
        worker = workers[case.model]
        if case.answer["status"] != 200:
            continue
        worker.door.recurring.refill()
        before = worker.taken
        for _ in range(LEARNED + 1):
            worker.ask(write_request(case.path, case.body, **case.headers))
        taken[case.name] = worker.taken > before
    assert sum(taken.values()) > len(taken) / 3, taken
    wires = {name.partition("/")[0] for name, is_taken in taken.items() if is_taken}
    assert wires >= {"simple", "kserve_v1", "open_inference"}


ROWS = np.array([[5.1, 3.5, 1.4, 0.2], [6.0, 3.4, np.nan, 1.6]], np.float32)


@pytest.mark.parametrize(
    "data",
    [
        write_request(IRIS, ROW),
        write_request("/predict", b"[5.1, 3.5, 1.4, 0.2]"),
        write_request("/predict", b"[[5.1, 3.5, 1.4, 0.2], [6.0, 3.4, null, 1.6]]"),
        write_request("/score", b'{"X": [5.1, 3.5, 1.4, 0.2]}'),
        write_request(
            V2, b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [5.1, 3.5, 1.4, 0.2]}]}'
        ),
        write_tensor(1, 4, False, ROWS[:1]),
        write_tensor(2, 4, False, ROWS),
        write_tensor(1, 4, True, ROWS[:1]),
        write_tensor(2, 4, True, ROWS),
    ],
)
def test_the_answer_is_that_of_the_edge(iris: Example, data: bytes) -> None:
    """To the byte, times aside, and counted alike."""
    usual, known = Worker(iris.model), Worker(iris.model)
    usual.door.turn = None
    expected = [usual.ask(data)[0] for _ in range(LEARNED + 1)][-1]
    answers = known.ask_known(data)
    assert without_times(answers[0]) == without_times(expected)
    layout = usual.layout
    seconds = {
        at + k for at in range(layout.request_seconds, layout.rejected, HISTOGRAM_CELLS) for k in range(HISTOGRAM_CELLS)
    }
    same = [at for at in range(Layout.GAUGES, layout.cells) if at not in seconds]
    assert [known.cell(at) for at in same] == [usual.cell(at) for at in same]
    for at in range(layout.request_seconds, layout.turn_seconds, HISTOGRAM_CELLS):
        counts = range(at, at + HISTOGRAM_CELLS - 1)
        assert sum(map(known.cell, counts)) == sum(map(usual.cell, counts))


@pytest.mark.parametrize("sizes", [(1, 1, 3, 1, 1), (1, 1, 1, 1, 1, 1, 1)])
def test_requests_of_one_turn_are_scored_in_one_call(cancer: Example, sizes: tuple[int, ...]) -> None:
    """Each with its own rows, in whatever company: scores, ids and lengths are its own."""
    worker = Worker(cancer.model)
    calls: list[Floats] = []
    predict = worker.turn._predict

    def watched(values: Floats) -> Floats:
        calls.append(values.copy())
        return predict(values)

    worker.turn._predict = watched
    rows = cancer.rows[:7].tolist()
    ends = list(accumulate(sizes))
    parts = [rows[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    path = f"/v1/models/{cancer.name}:predict"
    bodies = [json.dumps({"instances": part}).encode() for part in parts]
    ids = [f"id-{k}" * (k + 1) for k in range(len(parts))]
    requests = [write_request(path, body, request_id) for body, request_id in zip(bodies, ids, strict=True)]
    requests[3] = write_request("/predict", json.dumps(parts[3]).encode(), ids[3])
    worker.ask_known(*requests)
    calls.clear()
    answers = worker.ask(*requests)
    assert [len(call) for call in calls] == [7]
    assert [answer.headers["X-Request-Id"] for answer in answers] == ids
    scores = [next(iter(json.loads(answer.body).values())) for answer in answers]
    assert np.array(list(chain.from_iterable(scores)), np.float32).tobytes() == cancer.scores[:7].tobytes()
    timings = {answer.headers["Server-Timing"] for answer in answers}
    assert len(timings) == 1


def test_binary_and_other_answers_in_one_turn(worker: Worker) -> None:
    """Whatever comes together, each gets its scores in the form that it asked for."""
    requests = [write_request(IRIS, ROW), write_tensor(2, 4, True, ROWS), write_tensor(1, 4, False, ROWS[:1])]
    expected = [without_times(worker.ask(request)[0]) for request in requests]
    answers = [without_times(answer) for answer in worker.ask_known(*requests)]
    assert answers == expected
    size = int(answers[1].headers["Inference-Header-Content-Length"])
    assert len(answers[1].body) == size + 2 * 4
    assert json.loads(answers[1].body[:size])["id"] == "the-same"


def test_what_was_taken_is_answered_in_its_form_though_that_is_forgotten_meanwhile(worker: Worker) -> None:
    """Another request of the same turn may put a new form in the place of its own."""
    request = write_tensor(1, 4, True, ROWS[:1])
    expected = without_times(worker.ask_known(request)[0])
    connection, wire = worker.connect()
    worker.door.ready_sockets = 2
    worker.read(connection, request)
    for number in range(MAX_HEADS + 1):
        worker.door.recurring.refill()
        worker.read(worker.connect()[0], write_request(IRIS, ROW, **{"X-Caller": "a", f"X-{number}": "a"}))
    worker.loop.run()
    assert without_times(read_answer(wire.sent)) == expected


def test_one_that_is_alone_is_answered_at_once(worker: Worker) -> None:
    """Nobody else can come in this turn."""
    worker.ask_known(write_request(IRIS, ROW))
    connection, wire = worker.connect()
    worker.door.ready_sockets = 1
    worker.read(connection, write_request(IRIS, ROW))
    assert read_answer(wire.sent).body == b'{"predictions":[0.0]}'
    assert worker.loop.due == []


def test_more_rows_than_the_loop_may_score_are_scored_before_the_turn_ends(worker: Worker) -> None:
    worker.turn._most_rows = 2
    request = write_request(IRIS, ROW)
    worker.ask_known(request, request, request)
    lines = [worker.connect() for _ in range(3)]
    worker.door.ready_sockets = 3
    for connection, _ in lines:
        worker.read(connection, request)
    assert [bool(wire.sent) for _, wire in lines] == [True, True, False]
    worker.loop.run()
    assert len({read_answer(wire.sent).body for _, wire in lines}) == 1


def test_who_has_gone_is_neither_answered_nor_counted(worker: Worker) -> None:
    request = write_request(IRIS, ROW)
    worker.ask_known(request, request)
    before = worker.cell(worker.layout.rows)
    lines = [worker.connect() for _ in range(2)]
    worker.door.ready_sockets = 2
    for connection, _ in lines:
        worker.read(connection, request)
    lines[0][1].close()
    worker.loop.run()
    assert lines[0][1].sent == b""
    assert read_answer(lines[1][1].sent).status == 200
    assert worker.cell(worker.layout.rows) == before + 1


def test_a_request_that_follows_before_the_answer_waits_for_its_turn(worker: Worker) -> None:
    """A client that does not wait for answers gets them in the order of its requests."""
    worker.ask_known(write_request(IRIS, ROW))
    connection, wire = worker.connect()
    worker.door.ready_sockets = 2
    worker.read(connection, write_request(IRIS, ROW, "first"))
    worker.read(connection, write_request(IRIS, ROW, "second"))
    assert wire.sent == b""
    while worker.loop.due:
        worker.loop.run()
    assert wire.sent.index(b"first") < wire.sent.index(b"second")


def test_while_the_worker_drains_the_connection_ends_with_the_answer(worker: Worker) -> None:
    worker.ask_known(write_request(IRIS, ROW))
    worker.door.is_draining = True
    connection, wire = worker.connect()
    worker.door.ready_sockets = 1
    worker.read(connection, write_request(IRIS, ROW))
    assert read_answer(wire.sent).headers["Connection"] == "close"
    assert wire.is_closed


def test_a_client_that_has_closed_its_side_gets_its_answer_and_the_end(worker: Worker) -> None:
    worker.ask_known(write_request(IRIS, ROW))
    connection, wire = worker.connect()
    worker.door.ready_sockets = 2
    worker.read(connection, write_request(IRIS, ROW))
    assert connection.eof_received()
    worker.loop.run()
    assert read_answer(wire.sent).headers["Connection"] == "close"
    assert wire.is_closed


def test_overload_is_told_as_ever(iris: Example) -> None:
    worker = Worker(iris.model, SCORER_MAX_IN_FLIGHT="3")
    request = write_request(IRIS, ROW)
    worker.ask_known(request)
    worker.world.recorder.add_in_flight(4)
    answer = worker.ask(request)[0]
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    worker.world.recorder.add_in_flight(-4)
    assert worker.ask_known(request)[0].status == 200


NO_THREADS = "can't start new thread"
METADATA = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"


def refuse_threads(*_: object) -> None:
    raise RuntimeError(NO_THREADS)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_fault_behind_one_answer_leaves_no_other_without_one(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    """Three in one turn, and behind the first a request whose answer ends in a fault."""
    data = write_request(IRIS, ROW)
    worker.ask_known(data)
    if not is_known:
        worker.door.turn = None
    monkeypatch.setattr(Connection, "_run_flask", refuse_threads)
    lines = [worker.connect() for _ in range(3)]
    worker.door.ready_sockets = 4
    for connection, _ in lines:
        worker.read(connection, data)
    worker.read(lines[0][0], METADATA)
    worker.loop.run()
    assert [wire.sent[:12] for _, wire in lines[1:]] == [b"HTTP/1.1 200"] * 2
    assert [wire.is_closed for _, wire in lines] == [True, False, False]
    assert any(NO_THREADS in line.get("exc_info", "") for line in worker.world.log_lines)


def test_a_thread_that_cannot_be_started_is_overload(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at a limit on processes; the next request is answered again."""
    with monkeypatch.context() as patch:
        patch.setattr(worker.door.flask_pool, "submit", refuse_threads)
        assert worker.ask(METADATA)[0].status == 503
    assert (worker.door.flask_waiting, worker.door.recorder.in_flight) == (0, 0)
    with monkeypatch.context() as patch:
        patch.setattr(worker.door.scoring_pool, "submit", refuse_threads)
        patch.setattr(worker.door.edge, "loop_rows", 3)
        answer = worker.ask(write_request(IRIS, json.dumps({"instances": [[5.1, 3.5, 1.4, 0.2]] * 4}).encode()))[0]
    assert (answer.status, len(json.loads(answer.body)["predictions"])) == (200, 4)


def test_a_fault_in_scoring_is_a_500_for_each_and_one_traceback(worker: Worker) -> None:
    requests = [write_request(IRIS, ROW, f"id-{k}") for k in range(3)]
    worker.ask_known(*requests)
    before = [worker.cell(worker.layout.rows), worker.cell(worker.layout.request_bytes)]

    def fail(values: Floats) -> Floats:
        raise RuntimeError("s3cr3t-canary")

    worker.turn._predict = fail
    answers = worker.ask(*requests)
    assert [answer.status for answer in answers] == [500] * 3
    assert [json.loads(answer.body)["code"] for answer in answers] == ["prediction-failed"] * 3
    assert not any(b"canary" in answer.body for answer in answers)
    faults = [line for line in worker.world.log_lines if line["level"] == "ERROR"]
    assert ["RuntimeError" in line["exc_info"] for line in faults] == [True]
    assert worker.cell(worker.layout.rows) == before[0]
    assert worker.cell(worker.layout.request_bytes) > before[1]


def test_rows_beyond_the_limit_are_refused_as_ever(iris: Example) -> None:
    worker = Worker(iris.model, SCORER_MAX_ROWS_PER_REQUEST="2")
    rows = [write_request(IRIS, json.dumps({"instances": [[1, 2, 3, 4]] * count}).encode()) for count in (1, 2, 3)]
    worker.ask_known(rows[0])
    answers = [worker.ask(request)[0].status for request in rows]
    assert answers == [200, 200, 413]


def test_answers_that_would_be_compressed_are_the_edge_s(cancer: Example) -> None:
    """The longest that a turn gives is below the size from which answers are compressed for those who accept it."""
    worker = Worker(cancer.model)
    path = f"/v1/models/{cancer.name}:predict"
    accept = {"Accept-Encoding": "gzip"}

    def request(rows: int) -> bytes:
        return write_request(path, json.dumps({"instances": [[0] * 30] * rows}).encode(), **accept)

    longest = worker.ask_known(request(MOST_SCORES))[0]
    assert len(longest.body) < COMPRESS_BYTES
    before = worker.taken
    assert worker.ask(request(MOST_SCORES + 1))[0].status == 200
    assert worker.taken == before
    assert len(b"-1.2345678e-38,") * MOST_SCORES < COMPRESS_BYTES


def test_log_lines_are_those_of_the_edge(iris: Example) -> None:
    worker = Worker(iris.model, SCORER_ACCESS_LOG_RATIO="1")
    worker.ask_known(write_request(IRIS, ROW, "find-me"))
    *_, edge_line, line = worker.world.log_lines
    times = {"time", "timestamp", "seconds", "decode_seconds", "predict_seconds", "encode_seconds"}
    assert {k: v for k, v in line.items() if k not in times} == {k: v for k, v in edge_line.items() if k not in times}
    assert line["request_id"] == "find-me"


def test_a_slow_turn_is_logged(iris: Example) -> None:
    worker = Worker(iris.model, SCORER_SLOW_REQUEST_SECONDS="0.000001")
    worker.ask_known(write_request(IRIS, ROW))
    assert worker.world.log_lines[-1]["event"] == "slow request"


def test_a_request_without_an_id_gets_one(worker: Worker) -> None:
    request = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n[5.1, 3.5, 1.4, 0.2]"
    ids = {answer.headers["X-Request-Id"] for answer in worker.ask_known(request, request, request)}
    assert len(ids) == 3


def test_http_1_0_is_told_that_the_connection_stays(worker: Worker) -> None:
    request = write_request(IRIS, ROW, Connection="keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert worker.ask_known(request)[0].headers["Connection"] == "keep-alive"
