"""HTTP/1.1 on a socket: the fast door. llhttp parses (httptools 0.9), strictly; one `Connection` for each socket.

A request whose path is a scoring path of the served model, or a probe, is answered right here, on the event loop;
long predictions go to the scoring thread. Everything else runs through the Flask application in a small pool. Answers
leave in the order of their requests: while one is under way elsewhere, those behind it wait in `_waiting`.

llhttp cannot be paused by httptools, so one read may hold many requests; reads are at most 256 KiB, and reading
stops while requests wait or the client does not take its answers.

What llhttp leaves to us stands in `head.py`.
"""

from __future__ import annotations

import asyncio
import fcntl
import termios
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from time import perf_counter
from typing import Any, cast

import httptools

from service.batch import Incoming, Observation, Outgoing
from service.door import Door, Line, Request
from service.edge import PROBES, UNMATCHED, Call, server_timing
from service.errors import (
    ExpectationFailedError,
    HeadTooLargeError,
    InternalError,
    MalformedRequestError,
    OverloadedError,
    PayloadTooLargeError,
    ReadTimeoutError,
    ServiceError,
    TargetTooLongError,
)
from service.head import (
    ABSOLUTE_TARGET,
    MAX_HEAD_BYTES,
    MAX_TARGET_BYTES,
    to_lines,
    verify_head,
    verify_head_size,
)
from service.recurring import Accepted, RecurringHead
from service.wire import Route, wire_of
from service.wsgi import Address, Answer, run_wsgi

# A body of 16 MiB in chunks of 4 KiB; one-byte chunks cost six bytes of framing and a callback each.
MAX_CHUNKS = 4096
# What a chunked body may hold beside its data: sizes, extensions, trailers.
MAX_FRAMING_BYTES = 64 * 1024
# Requests that may wait behind one under way before reading stops.
MAX_WAITING = 16
# Calls of the Flask application that may wait for a thread of the pool.
MAX_FLASK_WAITING = 64
# A refused request may have a body under way: closing at once would reset the connection, and the client would never
# read why (RFC 9112 section 9.6).
LINGER_SECONDS = 2.0

# How far the next request has been read. A request that is being answered elsewhere does not count here.
IDLE, HEAD, BODY, LINGER = range(4)


class Connection(asyncio.BufferedProtocol):
    """One client connection."""

    __slots__ = (
        "_began",
        "_body",
        "_body_bytes",
        "_chunks",
        "_door",
        "_edge",
        "_headers",
        "_is_busy",
        "_is_closing",
        "_is_deaf", "_is_ended",
        "_is_paused",
        "_known",
        "_last",
        "_loop",
        "_messages",
        "_out",
        "_overhead",
        "_parser",
        "_parts",
        "_phase",
        "_raw",
        "_read_bytes",
        "_since",
        "_target",
        "_transport",
        "_version",
        "_waiting",
    )  # fmt: skip

    def __init__(self, door: Door, loop: asyncio.AbstractEventLoop) -> None:
        self._door = door
        self._edge = door.edge
        self._loop = loop
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._parser = httptools.HttpRequestParser(self)
        self._phase = IDLE
        self._messages = 0
        self._waiting: deque[Request] = deque()
        self._headers: list[tuple[bytes, bytes]] = []
        self._last: Request | None = None  # the request that was read last, until it is known whether it may come again
        self._is_busy = False  # a thread has the request whose turn it is
        self._is_closing = False  # the connection ends with what is in `_out`
        self._is_ended = False  # the client has closed its side
        self._is_deaf = False  # after a refusal nothing is parsed any more
        self._is_paused = False  # the client does not take its answers
        self._out: list[bytes] = []
        self._began = 0.0
        self._read_bytes = 0
        self._since = perf_counter()  # when it began to wait for what it waits for
        self._clear()

    def _clear(self) -> None:
        self._target = b""
        self._raw: list[tuple[bytes, bytes]] = []
        self._known: dict[str, str] = {}
        self._version = ""
        self._body = b""
        self._parts: list[bytes] = []
        self._body_bytes = 0
        self._chunks = 0
        self._overhead = -1  # bytes of this message beside its body in earlier reads; none yet

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._since = perf_counter()
        self._door.connections.add(self)
        self._door.recorder.open_connection()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closing = True
        self._waiting.clear()
        self._parser = None  # the parser holds this connection's methods: without this, a cycle for the collector
        self._door.connections.discard(self)
        self._door.recorder.close_connection()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._door.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have been read into the door's buffer; nothing keeps them there after this call."""
        if self._is_closing or self._is_deaf:
            return
        known, turn = 0, self._door.turn
        if turn is not None and self._phase == IDLE and not (self._is_busy or self._is_paused):
            self._is_busy = True
            known = turn.take(self, nbytes)
            if known:
                self._since = turn.began
            if known > 0:
                return
            self._is_busy = False
        self._began = perf_counter()
        if known:
            self._score_known(self._door.recurring.heads[-1 - known])
            if self._out:
                self._flush()
        else:
            self._read(self._door.buffer[:nbytes])

    def _read(self, data: memoryview) -> None:
        self._read_bytes = len(data)
        phase, messages, body_bytes = self._phase, self._messages, self._body_bytes
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(MalformedRequestError("this server does not change protocols"))
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, ServiceError):
                self._refuse(cause)
            elif isinstance(error, httptools.HttpParserCallbackError):
                self._edge.log.error("fault", exc_info=cause)
                self._refuse(InternalError())
            else:
                self._refuse(MalformedRequestError(f"not HTTP/1.1: {reason(error)}"))
        if self._phase in (HEAD, BODY):
            self._bound_overhead(len(data) if messages == self._messages else 0, body_bytes)
        if self._last is not None:
            self._learn(data, self._messages == messages + 1 and phase == self._phase == IDLE)
        if phase != self._phase or messages != self._messages:
            self._since = self._began
        if self._out:
            self._flush()

    def _score_known(self, head: RecurringHead) -> None:
        """Answer the request in the buffer, whose head is this one."""
        recurring, edge, accepted = self._door.recurring, self._edge, head.accepted
        request_id = recurring.request_id() if head.has_id else edge.new_id()
        incoming = Incoming(accepted.method, accepted.path, accepted.headers, recurring.body(), request_id)
        call = edge.begin(edge.routes[accepted.path], incoming, self._began)
        if recurring.may_learn and call.batch is not None and call.batch.span is not None:
            frame = edge.frame(call.route, call.batch)
            recurring.learn_form(head, incoming.body, call.batch.span, call.route.label, frame)
        self._finish(call, accepted)

    def _learn(self, data: memoryview, is_whole: bool) -> None:
        """Keep the head of the last request, if these bytes were that and no more, it scores, and it may come again."""
        request, self._last = self._last, None
        recurring = self._door.recurring
        if request is None or self._door.turn is None or not is_whole or not request.keep_alive:
            return
        if not recurring.may_learn:
            return
        path = request.target.partition("?")[0]
        route = self._edge.routes.get(path)
        if route is not None and request.method == route.method:
            accepted = Accepted(request.method, request.target, path, request.version, request.headers)
            recurring.learn(bytes(data[:MAX_HEAD_BYTES]), len(request.raw_headers), accepted)

    def _bound_overhead(self, fed: int, body_bytes: int) -> None:
        """Heads, chunk extensions and trailers that never end; the exact limit of a head is checked at its end.

        A read that ends one message and begins another is not counted for the other.
        """
        body_bytes = 0 if self._overhead < 0 else body_bytes
        self._overhead = max(self._overhead, 0) + max(fed - (self._body_bytes - body_bytes), 0)
        if self._phase == BODY and self._overhead > MAX_HEAD_BYTES + MAX_FRAMING_BYTES:
            self._refuse(PayloadTooLargeError("bytes of chunk framing", MAX_FRAMING_BYTES))
        elif self._phase == HEAD and len(self._target) > MAX_TARGET_BYTES:
            self._refuse(TargetTooLongError(MAX_TARGET_BYTES))
        elif self._phase == HEAD and self._overhead > MAX_HEAD_BYTES:
            self._refuse(HeadTooLargeError("bytes", MAX_HEAD_BYTES))

    def eof_received(self) -> bool:
        """A client may close its side and still read the answers that are under way."""
        self._is_ended = True
        return self._is_busy

    def pause_writing(self) -> None:
        """The client does not take its answers."""
        self._is_paused = True
        self._transport.pause_reading()
        self._since = perf_counter()

    def resume_writing(self) -> None:
        self._is_paused = False
        self._since = perf_counter()
        self._next()
        self._resume_reading()

    def _resume_reading(self) -> None:
        if not self._is_paused and not self._waiting and not self._is_closing:
            self._transport.resume_reading()

    # llhttp's side. An exception in a callback stops the parser; `_read` finds it again.

    def on_message_begin(self) -> None:
        self._phase = HEAD
        self._clear()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._raw.append((name, value))

    def on_headers_complete(self) -> None:
        self._version = self._parser.get_http_version()
        raw = self._raw
        self._known = verify_head(self._parser.get_method(), self._target, self._version, raw)
        self._headers = raw
        self._raw = []  # for trailers, which are none of the headers (RFC 9110 section 6.5.1)
        self._phase = BODY
        # A message that began in this read, and the read is no longer than a head may be: nothing to measure.
        if self._overhead >= 0 or self._read_bytes > MAX_HEAD_BYTES:
            verify_head_size(self._target, raw)
        length = self._known.get("content-length")
        if length is not None and int(length) > self._door.max_body_bytes:
            raise PayloadTooLargeError("bytes", self._door.max_body_bytes)
        if "expect" in self._known and self._version == "1.1":
            self._expect_continue(self._known["expect"])

    def _expect_continue(self, expectation: str) -> None:
        if expectation.lower() != "100-continue":
            raise ExpectationFailedError
        # Behind a request that is not answered yet, the interim answer would come out of turn.
        if not self._is_busy:
            self._out.append(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > MAX_CHUNKS:
            raise PayloadTooLargeError("chunks", MAX_CHUNKS)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._door.max_body_bytes:
            raise PayloadTooLargeError("bytes", self._door.max_body_bytes)
        if self._body_bytes == len(body):
            self._body = body
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        self._messages += 1
        method = self._parser.get_method().decode("latin-1")
        request = Request(self._began, method, self._target.decode("latin-1"), self._version)
        request.headers = self._known
        request.raw_headers = self._headers
        request.body = self._body if not self._parts else b"".join((self._body, *self._parts))
        request.keep_alive = self._parser.should_keep_alive()
        # llhttp lets keep-alive win where an HTTP/1.0 client says both (RFC 9112 section 9.3: close wins).
        if request.keep_alive and "close" in self._known.get("connection", "").lower():
            request.keep_alive = False
        request.given_id = self._known.get("x-request-id")
        self._phase = IDLE
        self._last = request
        self._take(request)

    def _take(self, request: Request) -> None:
        """Answer a request that has been read whole, or have it wait for its turn."""
        if self._is_closing:
            return
        if not self._is_busy and not self._is_paused:
            self._answer(request)
            return
        self._waiting.append(request)
        if len(self._waiting) >= MAX_WAITING:
            self._transport.pause_reading()

    # Answers.

    def _answer(self, request: Request) -> None:
        """Answer now, or become busy and answer when the thread is done."""
        if request.error is not None:
            self._send_error(request, request.error)
            self._phase = LINGER
            return
        target = request.target
        path = target if "?" not in target else target.partition("?")[0]
        route = self._edge.routes.get(path)
        if route is not None and request.method == route.method:
            request_id = self._edge.request_id(request.given_id)
            incoming = Incoming(request.method, path, request.headers, request.body, request_id)
            self._score(route, incoming, request, request.began)
        elif path in PROBES and request.method == "GET":
            self._probe(path, request)
        elif self._edge.scorer is None and request.method == "POST":
            self._is_busy = True
            self._door.parked.append((self, request))
        else:
            self._run_flask(request)

    def unpark(self, request: Request) -> None:
        self._is_busy = False
        if not self._transport.is_closing():
            self._answer(request)
            self._go_on()

    def _score(self, route: Route, incoming: Incoming, line: Line, began: float) -> None:
        self._finish(self._edge.begin(route, incoming, began), line)

    def _finish(self, call: Call, line: Line) -> None:
        """Have a call answered that the edge has begun."""
        edge = self._edge
        if call.batch is None:
            self._send_call(line, call)
            return
        rows = len(call.batch.values)
        if rows <= edge.loop_rows:
            self._score_soon(line, call, rows)
            return
        try:
            future = self._door.scoring_pool.submit(edge.finish, call)
        except RuntimeError:  # no thread can be started: a limit on processes, for one; the loop is slower than none
            self._send_call(line, edge.finish(call))
            return
        self._is_busy = True
        self._door.recorder.add_in_flight(1)
        self._when_done(future, lambda done: self._scored(line, call, done))

    def _score_soon(self, line: Line, call: Call, rows: int) -> None:
        """On the loop: with the others of this turn, if there may be others."""
        door = self._door
        if door.ready_sockets == 1:
            self._send_call(line, self._edge.finish(call))
            return
        if door.batch_rows + rows > self._edge.loop_rows:
            door.score_batch()
        if not door.batch:
            self._loop.call_soon(door.score_batch)
        self._is_busy = True
        door.batch.append((self, line, call))
        door.batch_rows += rows

    def send_scored(self, line: Line, call: Call) -> bool:
        """The answer to a call of the batch, and to what waits behind it; whether anybody is there to read it."""
        self._is_busy = False
        if self._transport.is_closing():
            return False
        self._pack(line, call)
        if self._waiting:
            self._go_on()
        else:
            self._flush()
        return True

    def send_known(self, accepted: Accepted, head: str, body: bytes) -> bool:
        """The answer to what a turn has taken; whether anybody is there to read it."""
        self._is_busy = False
        if self._transport.is_closing():
            return False
        answer = self._write(accepted, head, body)
        if self._waiting or self._is_closing:
            self._out.append(answer)
            self._go_on()
        else:
            self._transport.write(answer)
        return True

    def _scored(self, line: Line, call: Call, done: Future[Call]) -> None:
        self._door.recorder.add_in_flight(-1)
        done.result()
        self._is_busy = False
        self._send_call(line, call)
        self._go_on()

    def _send_call(self, line: Line, call: Call) -> None:
        self._pack(line, call)
        self._door.recorder.observe(self._edge.close(call, perf_counter()))

    def _pack(self, line: Line, call: Call) -> None:
        outgoing = call.outgoing
        if outgoing is None:
            raise RuntimeError("a call without an answer")
        self._send(line, outgoing, call.incoming.request_id, server_timing(call.seen))

    def _probe(self, path: str, request: Request) -> None:
        self._send_and_count(request, self._edge.probe(path), path)

    def _send_error(self, request: Request, error: ServiceError) -> None:
        path = request.target.partition("?")[0]
        request_id = self._edge.request_id(request.given_id)
        outgoing = self._edge.refuse(error, path, request_id)
        self._send_and_count(request, outgoing, UNMATCHED, request_id, error.code)

    def _send_and_count(
        self, request: Request, outgoing: Outgoing, route: str, request_id: str = "", rejected: str = ""
    ) -> None:
        edge = self._edge
        request_id = request_id or edge.request_id(request.given_id)
        seconds = perf_counter() - request.began
        self._send(request, outgoing, request_id, f"total;dur={seconds * 1e3:.3f}")
        wire = wire_of(request.target)
        body = outgoing.body
        seen = Observation((route, wire), outgoing.status, seconds, rejected, response_bytes=len(body))
        self._door.recorder.observe(seen)
        edge.log_request(seen, request_id)

    def _send(self, line: Line, outgoing: Outgoing, request_id: str, timing: str) -> None:
        body = outgoing.body
        head = self._door.write_head(
            outgoing.status, outgoing.content_type, len(body), request_id, timing, outgoing.headers
        )
        self._out.append(self._write(line, head, body))

    def _write(self, line: Line, head: str, body: bytes) -> bytes:
        """An answer, whole."""
        return f"{head}{self._connection_header(line)}\r\n".encode("latin-1") + body

    def _connection_header(self, line: Line) -> str:
        if self._door.is_draining or not line.keep_alive or (self._is_ended and not self._waiting):
            self._is_closing = True
            return "Connection: close\r\n"
        return "Connection: keep-alive\r\n" if line.version == "1.0" else ""

    def _run_flask(self, request: Request) -> None:
        door = self._door
        if door.flask_waiting >= MAX_FLASK_WAITING:
            self._send_error(request, OverloadedError("requests other than scores"))
            return
        target = request.target
        if target[:1] not in "/*":
            path = ABSOLUTE_TARGET.sub(b"", target.encode("latin-1")).decode("latin-1")
            target = path if path.startswith("/") else f"/{path}"
        try:
            future = door.flask_pool.submit(
                run_wsgi,
                door.app,
                request.method,
                target,
                request.version,
                request.raw_headers,
                request.body,
                self._address(),
            )
        except RuntimeError:  # as in `_finish`
            self._send_error(request, OverloadedError("requests other than scores"))
            return
        self._is_busy = True
        door.flask_waiting += 1
        door.recorder.add_in_flight(1)
        self._when_done(future, lambda done: self._flask_answered(request, done))

    def _address(self) -> Address:
        client = self._transport.get_extra_info("peername") or ("", 0)
        server = self._transport.get_extra_info("sockname") or ("", 0)
        scheme = "https" if self._transport.get_extra_info("sslcontext") else "http"
        return Address(str(client[0]), int(client[1]), str(server[0]), int(server[1]), scheme)

    def _flask_answered(self, request: Request, done: Future[Answer]) -> None:
        door = self._door
        door.flask_waiting -= 1
        door.recorder.add_in_flight(-1)
        self._is_busy = False
        try:
            answer = done.result()
        except Exception:  # a thread's fault must not leave the client without an answer
            self._edge.log.exception("fault")
            self._send_error(request, InternalError())
        else:
            for seen in answer.observations:
                door.recorder.observe(seen)
            head = f"{door.plain_head(answer.status)}{to_lines(answer.headers)}"
            self._out.append(self._write(request, head, b"" if request.method == "HEAD" else answer.body))
        self._go_on()

    def _when_done(self, future: Future[Any], then: Callable[[Future[Any]], None]) -> None:
        """Back on the loop, if the loop still runs."""
        future.add_done_callback(lambda done: self._loop.call_soon_threadsafe(then, done))

    def _go_on(self) -> None:
        """After an answer that was made elsewhere: send it, answer what waits."""
        if self._transport.is_closing():
            return
        self._since = perf_counter()
        try:
            if self._waiting:
                self._next()
                self._resume_reading()
            if self._out:
                self._flush()
        except Exception:  # a fault of ours must not leave those without an answer whose turn comes after this one
            self._edge.log.exception("fault")
            self._transport.abort()

    def _next(self) -> None:
        while self._waiting and not (self._is_busy or self._is_closing or self._is_paused):
            self._answer(self._waiting.popleft())

    def _flush(self) -> None:
        out = self._out
        self._out = []
        self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        if not self._is_closing or self._is_busy:
            return
        if self._phase == LINGER and self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _refuse(self, error: ServiceError) -> None:
        """Answer with this error, after the answers that are under way, and close."""
        if self._is_closing:
            return  # whatever follows a request that said `Connection: close` is no request
        request = Request(self._began, "", self._target.decode("latin-1"), "1.1")
        request.given_id = self._known.get("x-request-id")
        request.error = error
        self._is_deaf = True
        self._phase = IDLE
        if self._is_busy or self._is_paused:
            self._waiting.append(request)
        else:
            self._answer(request)

    # Time.

    @property
    def deadline(self) -> float:
        """When it will have waited for too long; computed when somebody asks, and not for each request."""
        if self._is_paused:
            return self._since + self._door.read_timeout_seconds
        if self._is_busy:
            return float("inf")
        if self._phase == IDLE:
            return self._since + self._door.keepalive_seconds
        return self._since + (LINGER_SECONDS if self._phase == LINGER else self._door.read_timeout_seconds)

    def expire(self) -> None:
        """The deadline is over: 408 for a half-sent request, else just the end."""
        if self._phase not in (HEAD, BODY) or self._is_closing or self._is_paused:
            self._transport.abort() if self._phase == LINGER or self._is_paused else self._transport.close()
            return
        part = "head" if self._phase == HEAD else "body"
        self._began = perf_counter()
        self._refuse(ReadTimeoutError(part, self._door.read_timeout_seconds))
        self._since = self._began
        self._flush()

    def close_if_idle(self) -> None:
        """Unless a request has arrived that the loop has not read yet: closing would reset it."""
        if self._phase == IDLE and not self._is_busy and not self._waiting and not self._has_unread():
            self._transport.close()

    def _has_unread(self) -> bool:
        raw = self._transport.get_extra_info("socket")
        return raw is not None and fcntl.ioctl(raw.fileno(), termios.FIONREAD, b"\0" * 4) != b"\0" * 4


def reason(error: Exception) -> str:
    """llhttp's own words, which hold none of the caller's bytes."""
    text = str(error.args[0]) if error.args else ""
    return text[:100] if text.isascii() and text.isprintable() else "cannot be parsed"
