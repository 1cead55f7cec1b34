"""What all connections of a worker share: the edge, the Flask application, threads, limits, the drain, and the batch of
requests that this turn of the loop scores together."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from time import perf_counter
from typing import Any, Protocol

from service.batch import Headers
from service.edge import Call, Edge
from service.errors import ServiceError
from service.head import to_lines
from service.models import LoadedModel
from service.recurring import PADDING, Accepted, Recurring
from service.turn import Client, Turn

READ_BYTES = 256 * 1024


class Request:
    """A request that has been read whole, or the error to answer in its place."""

    __slots__ = (
        "began",
        "body",
        "error",
        "given_id",
        "headers",
        "keep_alive",
        "method",
        "raw_headers",
        "target",
        "version",
    )

    def __init__(self, began: float, method: str, target: str, version: str) -> None:
        self.began = began
        self.method = method
        self.target = target
        self.version = version
        self.headers: dict[str, str] = {}
        self.given_id: str | None = None  # X-Request-Id
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.keep_alive = False
        self.error: ServiceError | None = None


# What an answer needs to know of its request.
Line = Request | Accepted


class Member(Client, Protocol):
    """A connection as the door sees it: `http1.Connection`."""

    @property
    def deadline(self) -> float: ...

    def expire(self) -> None: ...

    def close_if_idle(self) -> None: ...

    def unpark(self, request: Request) -> None: ...

    def send_scored(self, line: Line, call: Call) -> bool: ...


class Door:
    """What all connections of a worker share: the edge, the Flask application, threads, limits, the drain."""

    def __init__(self, edge: Edge, app: Any) -> None:
        self.edge = edge
        self.app = app
        self.recorder = edge.recorder
        self.connections: set[Member] = set()
        self.is_draining = False
        self.max_body_bytes = edge.settings.max_body_bytes
        self.read_timeout_seconds = edge.settings.read_timeout_seconds
        self.keepalive_seconds = edge.settings.keepalive_seconds
        # All connections read into one buffer, each in its turn: asyncio would otherwise allocate 256 KiB for every read.
        room = bytearray(READ_BYTES + PADDING)
        self.buffer = memoryview(room)[:READ_BYTES]
        self.recurring = Recurring(room, self.max_body_bytes)
        # Takes what is known but for its numbers, once the model is there and machine code for it.
        self.turn: Turn | None = None
        # One thread scores: rows in a row are faster than rows side by side on the core of this worker.
        self.scoring_pool = ThreadPoolExecutor(1, "scoring")
        self.flask_pool = ThreadPoolExecutor(4, "flask")
        self.flask_waiting = 0
        # Scoring requests that came while the model was loading: they wait for it.
        self.parked: list[tuple[Member, Request]] = []
        # Calls of this turn of the loop, and how many rows they have: they are scored together when it ends.
        self.batch: list[tuple[Member, Line, Call]] = []
        self.batch_rows = 0
        # How many sockets became ready in this turn; set by the loop's selector.
        self.ready_sockets = 0
        self._identity = ""
        # By status: its line and the headers that every answer has.
        self.heads: dict[int, str] = {}

    @property
    def has_date(self) -> bool:
        return bool(self.heads)

    def write_date(self, date: str) -> None:
        """Start of every head from now on; called once a second."""
        self._identity = to_lines(self.edge.identity_headers)
        start = f"Server: xgboost-server\r\nDate: {date}\r\n{self._identity}"
        self.heads = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n{start}" for status in HTTPStatus}

    def serve(self, model: LoadedModel, schedule: Callable[[Callable[[], None]], object]) -> None:
        """The edge has this model from now on."""
        if model.code is not None:
            self.turn = Turn(self, self.edge.verify_loaded(), model.code, schedule)

    def write_head(
        self, status: int, content_type: str, length: int, request_id: str, timing: str, headers: Headers = ()
    ) -> str:
        """Head of the answer to a request for a score or a probe, but for what the connection says of itself, and the end."""
        return (
            f"{self.heads[status]}Content-Type: {content_type}\r\nContent-Length: {length}\r\n"
            f"X-Request-Id: {request_id}\r\nServer-Timing: {timing}\r\n{to_lines(headers) if headers else ''}"
        )

    def plain_head(self, status: int) -> str:
        """The same without the model's identity, which the Flask application adds itself."""
        return self.heads[status].removesuffix(self._identity)

    def expire(self, now: float) -> None:
        """Close what has waited for too long. Called four times a second."""
        self.recurring.refill()
        for connection in [one for one in self.connections if one.deadline < now]:
            connection.expire()

    def score_batch(self) -> None:
        """Score what was decoded in this turn in one call: nobody waited for it but those who came at the same time."""
        batch, self.batch, self.batch_rows = self.batch, [], 0
        if not batch:
            return
        self.edge.finish_together([call for _, _, call in batch])
        sent = [call for connection, line, call in batch if connection.send_scored(line, call)]
        ended = perf_counter()
        self.recorder.observe(*[self.edge.close(call, ended) for call in sent])

    def unpark(self) -> None:
        """The model is there: answer those who waited for it."""
        parked, self.parked = self.parked, []
        for connection, request in parked:
            connection.unpark(request)

    def close_idle(self) -> None:
        for connection in list(self.connections):
            connection.close_if_idle()
