"""Every raw request in the corpus gets the answers that stand beside it.

`corpus/valid` holds what has to be served, `corpus/invalid` what the HTTP door refuses; NAME.http is sent
byte for byte, NAME.json says what comes back:

    why         the rule, with its place in the specification where it has one
    responses   the answers in order, each with `status` (or `status_any`), and where it matters
                `body_contains` (blanks left out), `headers` (comma-separated members that must be there) and
                `head` (answers a HEAD: no body follows)
    closed      whether the server closes after the last answer; if not, it answers one more request

A bug report about the protocol arrives here as two small files.
"""

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import pytest

CORPUS = Path(__file__).parent / "corpus"
CASES = sorted(CORPUS.glob("*/*.http"))

READ_TIMEOUT_SECONDS = 30.0
ONE_MORE = b"GET /livez HTTP/1.1\r\nHost: scorer.example\r\nConnection: close\r\n\r\n"

STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [\t\x20-\x7e]*\r\n")
FIELD_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+): ?([\t\x20-\x7e]*)\r\n")
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]+)\r\n")


class Server(Protocol):
    """What the fixture `corpus_server` gives: where a server listens."""

    host: str
    port: int


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class ExpectedResponse:
    status: int = 0
    status_any: list[int] = field(default_factory=list)
    body_contains: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    head: bool = False


@dataclass(frozen=True)
class Expectation:
    why: str
    responses: list[ExpectedResponse]
    closed: bool

    @classmethod
    def from_file(cls, path: Path) -> "Expectation":
        written = json.loads(path.read_text(encoding="utf-8"))
        responses = [ExpectedResponse(**response) for response in written.pop("responses")]
        return cls(responses=responses, **written)


# The second time the server may know the head from the first.
@pytest.mark.parametrize("way", ["whole", "again", "split"])
@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_raw_request_gets_its_answers(corpus_server: Server, case: Path, way: str) -> None:
    expected = Expectation.from_file(case.with_suffix(".json"))

    with connect(corpus_server) as connection, connection.makefile("rb") as stream:
        responses = []
        with sending(connection, pieces(case.read_bytes(), way == "split")):
            for wanted in expected.responses:
                responses.append(read_response(stream, wanted.head))
                assert_as_expected(responses[-1], wanted)
        if not expected.closed:
            connection.sendall(ONE_MORE)
            responses.append(read_response(stream))
            assert responses[-1].status == 200, "the connection was to stay usable"
        assert is_at_end(stream), "more answers than expected"

    # Who closes says so, and only then (RFC 9112 section 9.6).
    for response in responses[:-1]:
        assert "close" not in members(response, "connection")
    assert "close" in members(responses[-1], "connection")
    if expected.closed and responses[-1].status >= 400:
        assert_error_envelope(responses[-1], expected.responses[-1])

    if case.parent.name == "invalid":
        with connect(corpus_server) as connection, connection.makefile("rb") as stream:
            connection.sendall(ONE_MORE)
            assert read_response(stream).status == 200, "the worker did not survive"


def test_every_request_has_its_expectation() -> None:
    """Files come in pairs, and nothing else lies about."""
    requests = {path.with_suffix("") for path in CASES}
    expectations = {path.with_suffix("") for path in CORPUS.glob("*/*.json")}
    assert requests == expectations
    assert {path.parent.name for path in CASES} == {"valid", "invalid"}
    assert {path.suffix for path in CORPUS.glob("*/*")} == {".http", ".json"}


def assert_as_expected(response: Response, wanted: ExpectedResponse) -> None:
    assert response.status in (wanted.status_any or [wanted.status]), response
    assert re.sub(r"\s", "", wanted.body_contains).encode() in re.sub(rb"\s", b"", response.body)
    for name, value in wanted.headers.items():
        assert set(value.lower().split(", ")) <= members(response, name), response.headers
    if response.status != 100:
        assert response.headers.get("x-request-id"), "every answer has an id"


def assert_error_envelope(response: Response, wanted: ExpectedResponse) -> None:
    """What the HTTP door refuses is told in one of two envelopes, by the path if it came that far."""
    if "content-type" not in wanted.headers:
        assert response.headers["content-type"] == "application/problem+json"
    assert isinstance(json.loads(response.body), dict)


def members(response: Response, name: str) -> set[str]:
    """The members of a comma-separated header, in lower case."""
    return {member.strip() for member in response.headers.get(name, "").lower().split(",")}


def connect(server: Server) -> socket.socket:
    connection = socket.create_connection((server.host, server.port), timeout=READ_TIMEOUT_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def pieces(raw: bytes, split: bool) -> list[bytes]:
    """The request as it is, or byte by byte; a long one in some thousand pieces."""
    size = 1 + len(raw) // 1000 if split else len(raw)
    return [raw[start : start + size] for start in range(0, len(raw), size)]


@contextlib.contextmanager
def sending(connection: socket.socket, parts: list[bytes]) -> Iterator[None]:
    """Send in a thread of its own: a server may answer and close before the last piece is out."""

    def send() -> None:
        with contextlib.suppress(OSError):  # closed or not read any more: the missing answer will tell
            for part in parts:
                connection.sendall(part)
                if len(parts) > 1:
                    time.sleep(0.00005)  # or the kernel hands many pieces to the server at once

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        yield
    finally:
        sender.join(2 * READ_TIMEOUT_SECONDS)


def read_response(stream: BinaryIO, is_head: bool = False) -> Response:
    """The next answer, read to the letter: what a lenient client would overlook fails here."""
    status_line = stream.readline()
    match = STATUS_LINE.fullmatch(status_line)
    assert match, f"expected a status line, got {status_line!r}"
    status = int(match[1])
    headers = read_fields(stream)
    if status < 200 or status in (204, 304):
        assert "content-length" not in headers
        assert "transfer-encoding" not in headers
        return Response(status, headers, b"")
    if "transfer-encoding" in headers:
        assert headers["transfer-encoding"] == "chunked"
        assert "content-length" not in headers
        return Response(status, headers, b"" if is_head else read_chunks(stream))
    length = 0 if is_head else int(headers["content-length"])
    return Response(status, headers, read_exactly(stream, length))


def read_fields(stream: BinaryIO) -> dict[str, str]:
    fields: dict[str, str] = {}
    while (line := stream.readline()) != b"\r\n":
        match = FIELD_LINE.fullmatch(line)
        assert match, f"expected a header field, got {line!r}"
        name = match[1].decode().lower()
        assert name not in fields or name == "set-cookie", f"{name} comes twice"
        fields[name] = match[2].decode().strip()
    return fields


def read_chunks(stream: BinaryIO) -> bytes:
    body = b""
    while True:
        match = CHUNK_LINE.fullmatch(stream.readline())
        assert match, "expected a chunk size"
        size = int(match[1], 16)
        body += read_exactly(stream, size)
        assert stream.readline() == b"\r\n"
        if size == 0:
            return body


def read_exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    assert len(data) == length, f"the answer ended after {len(data)} of {length} bytes"
    return data


def is_at_end(stream: BinaryIO) -> bool:
    """Whether the server has closed; a reset is a close that came while we were still sending."""
    try:
        return stream.read(1) == b""
    except ConnectionResetError:
        return True
