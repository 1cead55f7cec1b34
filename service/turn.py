"""Requests of one turn of the event loop that are known but for their numbers: read, scored and answered together.

Machine code recognizes a request (`recurring`) and reads its numbers behind those of the ones before it; when the turn
ends, one call scores them all. Nothing here can refuse a request: whatever is not to be answered with scores is not
recognized, and goes through the edge like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Protocol

import numpy as np

from service.batch import Floats, Headers, Observation, Stages
from service.edge import COMPRESS_BYTES, Edge, server_timing
from service.errors import PredictionError
from service.machine_code import MachineCode
from service.recurring import BODY, BYTES, ROWS, TAKEN, Accepted, Form, Recurring
from service.scoring import Scorer
from service.wire.matrix import to_numbers, write_scores

# More would be compressed for those who accept it, which is the edge's to do. A float32 has at most 15 characters and a comma.
MOST_SCORES = COMPRESS_BYTES // 2 // 16


class Client(Protocol):
    """A connection as a turn sees it: `http1.Connection`."""

    def send_known(self, accepted: Accepted, head: str, body: bytes) -> bool: ...


class Host(Protocol):
    """What a turn shares with all connections: `door.Door`."""

    edge: Edge
    recurring: Recurring
    buffer: memoryview
    ready_sockets: int

    def write_head(
        self, status: int, content_type: str, length: int, request_id: str, timing: str, headers: Headers = ()
    ) -> str: ...


# Who asks, what for, the id, rows, bytes of the body, when it began.
Job = tuple[Client, Form, str, int, int, float]


class Turn:
    """The rows of the requests of this turn, in the memory where they are scored.

    `schedule` has the event loop call something before the next turn.
    """

    def __init__(
        self, host: Host, scorer: Scorer, code: MachineCode, schedule: Callable[[Callable[[], None]], object]
    ) -> None:
        edge, contract, settings = host.edge, scorer.contract, host.edge.settings
        self._host, self._edge, self._recorder = host, edge, edge.recorder
        self._schedule = schedule
        self._recurring = recurring = host.recurring
        self._max_in_flight = settings.max_in_flight
        self._slow_seconds, self._is_logged = settings.slow_request_seconds, settings.access_log_ratio > 0
        self._predict: Callable[[Floats], Floats] = scorer.predict_rows
        # A read has half as many numbers as bytes at most: there is room for one more when half is taken.
        self._rows: Floats = np.empty((len(host.buffer) // contract.features, contract.features), np.float32)
        self._most_rows = min(len(self._rows) // 2, edge.loop_rows)
        self._cells = recurring.cells
        max_rows = min(self._most_rows, settings.max_rows_per_request, MOST_SCORES // contract.outputs)
        self._recognize = recurring.serve(code, self._rows, max_rows)
        self._jobs: list[Job] = []
        self.began = self._decode_seconds = 0.0

    def take(self, client: Client, count: int) -> int:
        """Take so many bytes in the buffer for a request to be answered when this turn ends, if they are one that is known
        but for its numbers, and give 1; else what `recognition.recognize` makes of them: 0, or less if the head is known.
        """
        self.began = began = perf_counter()
        jobs = self._jobs
        # Asked once a turn: what a turn has taken is answered when it ends, whatever comes meanwhile.
        if not jobs and self._recorder.in_flight > self._max_in_flight:
            return 0  # the edge refuses it
        cells = self._cells
        cells[BYTES] = count
        known = self._recognize()
        if known <= 0:
            return known
        form = self._recurring.forms[known - 1]
        request_id = self._recurring.request_id() or self._edge.new_id()
        jobs.append((client, form, request_id, cells[ROWS], count - cells[BODY], began))
        self._decode_seconds += perf_counter() - began
        if self._host.ready_sockets == 1 or cells[TAKEN] >= self._most_rows:
            self.score()
        elif len(jobs) == 1:
            self._schedule(self.score)
        return 1

    def score(self) -> None:
        """Score and answer what was taken; nobody waited for it but those who came at the same time."""
        jobs, self._jobs = self._jobs, []
        if not jobs:
            return
        cells, count = self._cells, len(jobs)
        rows = cells[TAKEN]
        cells[TAKEN] = 0
        start = perf_counter()
        try:
            scores = self._predict(self._rows[:rows])
            predicted = perf_counter()
            texts = write_all(scores, jobs)
        except Exception:  # a fault of ours must end in an answer to each, whatever it is
            self._fail(jobs)
            return
        encode = (perf_counter() - predicted) / count
        decode, self._decode_seconds = self._decode_seconds / count, 0.0
        stages = Stages(decode, predicted - start, encode)
        timing = server_timing(stages)
        write_head, answered = self._host.write_head, []
        for job, numbers in zip(jobs, texts, strict=True):
            client, form, request_id, _, _, _ = job  # a starred name would cost a list for each
            frame = form.frame
            identifier = b'"%b"' % request_id.encode() if frame.start else b""
            body = frame.fill(numbers, identifier)
            headers = frame.headers(identifier) if frame.size_header else ()
            head = write_head(200, frame.content_type, len(body), request_id, timing, headers)
            if client.send_known(form.accepted, head, body):
                answered.append((job, len(body)))
        self._count(answered, stages)

    def _count(self, answered: list[tuple[Job, int]], stages: Stages) -> None:
        ended = perf_counter()
        seconds: dict[tuple[str, str], list[float]] = {}
        request_bytes = response_bytes = rows = 0
        for (_, form, request_id, own_rows, own_bytes, began), size in answered:
            own_seconds = ended - began
            seconds.setdefault(form.label, []).append(own_seconds)
            rows += own_rows
            request_bytes += own_bytes
            response_bytes += size
            if own_seconds >= self._slow_seconds or self._is_logged:
                seen = Observation(form.label, 200, own_seconds, "", own_bytes, size, True, own_rows, *stages)
                self._edge.log_request(seen, request_id)
        self._recorder.observe_scored(seconds, rows, request_bytes, response_bytes, stages)

    def _fail(self, jobs: list[Job]) -> None:
        """A fault of ours: one traceback, and an answer to each."""
        self._decode_seconds, error, timing = 0.0, PredictionError(), server_timing(Stages())
        accepted = jobs[0][1].accepted
        self._edge.log.exception("fault", extra={"request_id": jobs[0][2], "path": accepted.path})
        for client, form, request_id, _, count, began in jobs:
            outgoing = self._edge.refuse(error, form.accepted.path, request_id)
            body = outgoing.body
            head = self._host.write_head(outgoing.status, outgoing.content_type, len(body), request_id, timing)
            if client.send_known(form.accepted, head, body):
                seen = Observation(
                    form.label, outgoing.status, perf_counter() - began, error.code, count, len(body), True
                )
                self._recorder.observe(seen)
                self._edge.log_request(seen, request_id)


def write_all(scores: Floats, jobs: list[Job]) -> list[bytes]:
    """The scores of each request, as they go into its frame."""
    if len(jobs) == len(scores) and scores.ndim == 1 and not any(job[1].frame.size_header for job in jobs):
        return to_numbers(scores).split(b",")  # a number each
    texts, begin = [], 0
    for _, form, _, rows, _, _ in jobs:
        texts.append(write_scores(scores[begin : begin + rows], form.frame))
        begin += rows
    return texts
