"""Requests that come again: what is recognized is what llhttp would have accepted, and means the same."""

from __future__ import annotations

import tracemalloc
from typing import Any

import httptools
import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.batch import BINARY, Frame, Incoming, ModelIdentity, Span
from service.errors import ServiceError
from service.head import MAX_HEAD_BYTES, verify_head
from service.recurring import (
    ALLOWANCE,
    BYTES,
    LONG_VALUE,
    MAX_FORMS,
    MAX_GAPS,
    MAX_HEADS,
    MAX_KEPT_BYTES,
    NEW_TABLES,
    PADDING,
    ROWS,
    TAKEN,
    Accepted,
    Recurring,
    RecurringHead,
)
from service.wire import ROUTES
from service.wire.plain import MatrixReader
from tests.unit.engine_models import compiled_code

BODY = b'{"instances": [[1.5, 2.5]]}'
PROXY = (
    b"Host: scorer.example",
    b"X-Real-IP: 10.1.2.3",
    b"X-Forwarded-For: 10.1.2.3",
    b"X-Request-ID: 6f1c2b7a9d3e4f50",
    b"User-Agent: python-requests/2.32",
    b"Content-Type: application/json",
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"Authorization: Bearer s3cret",
)
CLIENT = (
    b"host: scorer.example",
    b"content-type:application/json",
    b"connection: keep-alive",
    b"accept-encoding: gzip",
)


def request(*lines: bytes, body: bytes = BODY, first: bytes = b"POST /predict HTTP/1.1") -> bytes:
    return b"\r\n".join((first, *lines, b"Content-Length: %d" % len(body), b"", body))


class Judge:
    """llhttp and `head.py`: what they make of bytes that are one whole request, as a server does that knows no other."""

    def __init__(self, data: bytes) -> None:
        self.raw: list[tuple[bytes, bytes]] = []
        self.target = self.body = b""
        self.known: dict[str, str] = {}
        self.whole = 0
        self.parser = httptools.HttpRequestParser(self)
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.whole = -1

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.raw.append((name, value))

    def on_headers_complete(self) -> None:
        self.known = verify_head(self.method, self.target, self.parser.get_http_version(), self.raw)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.whole += 1

    @property
    def method(self) -> bytes:
        method: bytes = self.parser.get_method()
        return method

    @property
    def accepted(self) -> Accepted:
        target = self.target.decode()
        return Accepted(self.method.decode(), target, target, self.parser.get_http_version(), self.known)


BUFFER_BYTES = 64 * 1024
MAX_BODY_BYTES = 16 * 1024
FEATURES = 2


class Known(Recurring):
    """What is known, and the buffer and the rows that a worker would have for it."""

    def __init__(self, features: int = FEATURES, max_rows: int = 64) -> None:
        self.room = bytearray(BUFFER_BYTES + PADDING)
        super().__init__(self.room, MAX_BODY_BYTES)
        self.rows = np.zeros((128, features), np.float32)
        self.recognize = self.serve(compiled_code(), self.rows, max_rows)

    def look_at(self, data: bytes) -> int:
        """As it does when these bytes have been read; behind them are those of the read before, which do not count."""
        self.room[: len(data)] = data
        self.cells[BYTES] = len(data)
        return self.recognize()

    def find(self, data: bytes) -> RecurringHead | None:
        """The head that they begin with."""
        known = self.look_at(data)
        return None if known == 0 else self.heads[-1 - known]

    def learn_request(self, data: bytes) -> None:
        """As the door does: what llhttp has accepted."""
        judge = Judge(data)
        assert judge.whole == 1
        self.learn(data, len(judge.raw), judge.accepted)


def knowing(*requests: bytes) -> Known:
    known = Known()
    for data in requests:
        known.learn_request(data)
    return known


def replaced(lines: tuple[bytes, ...], name: bytes, line: bytes) -> tuple[bytes, ...]:
    assert any(one.lower().startswith(name) for one in lines)
    return tuple(line if one.lower().startswith(name) else one for one in lines)


def found(known: Known, data: bytes) -> bool:
    return known.look_at(data) != 0


# What is recognized.


def test_the_next_request_has_its_own_length_id_trace_and_token() -> None:
    """Of the like nothing is taken but what they have in common."""
    known = knowing(request(*PROXY))
    lines = replaced(PROXY, b"x-request-id", b"X-Request-ID: another-id")
    lines = replaced(lines, b"traceparent", b"traceparent: 00-1-2-00")
    data = request(*replaced(lines, b"authorization", b"Authorization: Basic other"), body=b"[1, 2]")
    head = known.find(data) or pytest.fail("not recognized")
    assert (head.has_id, known.request_id(), known.body()) == (True, "another-id", b"[1, 2]")
    assert head.accepted == Accepted(
        "POST", "/predict", "/predict", "1.1", {"host": "scorer.example", "content-type": "application/json"}
    )


def test_a_value_that_nothing_reads_may_differ_once_it_has() -> None:
    """Proxies bring the addresses of many clients over one connection."""
    heads = knowing(request(*PROXY))
    second, third = (
        request(*replaced(PROXY, b"x-forwarded-for", b"X-Forwarded-For: " + ip)) for ip in (b"10.9.9.9", b"::1")
    )
    assert not found(heads, second)
    heads.learn_request(second)
    assert found(heads, third)
    assert found(heads, request(*PROXY))


def test_heads_of_several_callers_are_known_at_a_time() -> None:
    heads = knowing(request(*PROXY), request(*CLIENT))
    assert found(heads, request(*PROXY))
    assert found(heads, request(*CLIENT))


def test_a_request_without_an_id_is_recognized_as_one() -> None:
    known = knowing(request(*PROXY), request(*CLIENT))
    assert known.look_at(request(*PROXY)) == -1
    assert known.request_id() == "6f1c2b7a9d3e4f50"
    head = known.find(request(*CLIENT)) or pytest.fail("not recognized")
    assert (head.has_id, known.request_id()) == (False, "")


# What is not.


@pytest.mark.parametrize(
    "line",
    [
        b"Host: other.example",
        b"Content-Type: text/csv",
        b"Content-Encoding: gzip",
        b"Accept-Encoding: gzip",
        b"Inference-Header-Content-Length: 7",
        b"Connection: close",
        b"Proxy-Connection: close",
        b"X-Request-ID : a",
        b"x-request-id: in another case",
        b"X-Request-ID: ",
        b"X-Request-ID: a b",
        b"X-Request-ID: a ",
        b"X-Request-ID: " + b"a" * 129,
        b"X-Request-ID: a\rb",
        b"X-Request-ID: a\nb",
        b"X-Request-ID: a\0b",
        b"X-Request-ID: \xc3\xa9",
        b"X-Request-ID: a\r\n folded",
        b"X-Request-ID: a\r\nX-Request-ID: b",
        b"X-Request-ID: a\r\nTransfer-Encoding: chunked",
    ],
)
def test_another_head_is_another_head(line: bytes) -> None:
    """Names to the letter, values that mean something to the byte, and nothing in a gap but visible ASCII."""
    extra = tuple(
        one + b": same"
        for one in (b"Content-Encoding", b"Accept-Encoding", b"Inference-Header-Content-Length", b"Proxy-Connection")
    )
    lines = (*PROXY, *extra, b"Connection: keep-alive")
    heads = knowing(request(*lines))
    assert found(heads, request(*lines))
    changed = request(*replaced(lines, line.partition(b":")[0].strip().lower(), line))
    assert not found(heads, changed)


@pytest.mark.parametrize(
    "name", [b"Host", b"Content-Type", b"Content-Encoding", b"Accept-Encoding", b"Connection", b"Proxy-Connection"]
)
def test_a_header_that_something_reads_never_becomes_a_gap(name: bytes) -> None:
    """However often it has differed."""
    first, second, third = (request(b"Host: x", name + b": " + value) for value in (b"a", b"b", b"c"))
    if name == b"Host":
        first, second, third = (request(b"Host: " + value) for value in (b"a", b"b", b"c"))
    heads = knowing(first, second)
    assert [found(heads, data) for data in (first, second, third)] == [True, True, False]


@pytest.mark.parametrize("length", [b"", b"+27", b"0x1b", b"27,27", b"2 7", b"1" * 10, b"\xb2"])
def test_a_length_is_digits(length: bytes) -> None:
    heads = knowing(request(*CLIENT))
    assert not found(heads, request(*CLIENT).replace(b"Content-Length: 27", b"Content-Length: " + length))


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n" + request(*CLIENT),
        request(*CLIENT, b"X-Request-ID: a", b"X-Request-ID: b"),
        request(*CLIENT, b"Expect: 100-continue"),
        request(*CLIENT, *(b"X-Long-%d: %s" % (number, b"a" * 240) for number in range(9))),
        request(*CLIENT, *(b"X-%d: %s" % (number, b"a" * LONG_VALUE) for number in range(MAX_GAPS))),
        request(*CLIENT, b"X-Latin: \xe9"),
        b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_an_unusual_head_is_not_kept(data: bytes) -> None:
    assert not found(knowing(data), data)


def test_what_is_known_is_not_learned_again() -> None:
    """A caller may send an id that cannot be repeated with every request."""
    known = knowing(request(*PROXY))
    before = known.find(request(*PROXY))
    for _ in range(3):
        known.learn_request(request(*replaced(PROXY, b"x-request-id", b"X-Request-ID: a b")))
    assert before is not None
    assert known.find(request(*PROXY)) is before


def test_few_heads_are_kept_and_few_are_learned_at_a_time() -> None:
    """Whoever sends another head each time costs no more than a few tables a second."""
    at_once = ALLOWANCE // (1 + NEW_TABLES)
    requests = [request(*CLIENT, b"X-Caller-%d: a" % number) for number in range(at_once + MAX_HEADS)]
    heads = knowing(*requests)
    assert [found(heads, data) for data in requests] == [number < at_once for number in range(len(requests))]
    for data in requests[at_once:]:
        heads.refill()
        heads.learn_request(data)
    assert sum(found(heads, data) for data in requests) == MAX_HEADS


def test_heads_that_cannot_be_kept_leave_others_most_of_the_allowance() -> None:
    """Whoever sends such with every request must not keep the heads of other callers from being learned."""
    known = knowing(request(*PROXY))
    for _ in range(ALLOWANCE // 4):
        known.learn_request(request(*CLIENT, b"X-Latin: \xe9"))
        known.learn_request(request(*replaced(PROXY, b"x-request-id", b"X-Request-ID: a b")))
    known.learn_request(request(*CLIENT))
    assert found(known, request(*CLIENT))


def test_a_head_that_is_met_often_stays() -> None:
    """However many come that never come again."""
    known = knowing(request(*PROXY))
    for number in range(100):
        for _ in range(2):
            assert found(known, request(*PROXY))
        known.refill()
        known.learn_request(request(*CLIENT, b"X-Caller-%d: a" % number))
    for number in range(100, 100 + MAX_HEADS):  # and goes when it is met no more
        data = request(*CLIENT, b"X-Caller-%d: a" % number)
        for _ in range(2):
            known.refill()
            known.learn_request(data)
            assert found(known, data)
    assert not found(known, request(*PROXY))


def test_a_head_that_gets_another_gap_keeps_its_forms() -> None:
    known = knowing(request(*PROXY))
    learn_body(known, BODY)
    other = replaced(PROXY, b"x-forwarded-for", b"X-Forwarded-For: ::1")
    known.learn_request(request(*other))
    assert read(known, BODY, other) == [[1.5, 2.5]]
    assert read(known, BODY) == [[1.5, 2.5]]


@pytest.mark.parametrize("name", [b"Authorization", b"X-Forwarded-Client-Cert"])
def test_a_long_value_that_nothing_reads_is_a_gap(name: bytes) -> None:
    """A token, a certificate: neither compared nor kept."""
    known = knowing(request(*CLIENT, name + b": " + b"a" * 6000))
    assert found(known, request(*CLIENT, name + b": " + b"b" * 5000))


def test_heads_that_never_come_again_leave_no_memory_behind() -> None:
    heads = Known()
    requests = [request(*CLIENT, b"X-Caller-%d: %s" % (number, b"a" * 1900)) for number in range(200)]
    tracemalloc.start()
    try:
        for data in requests:
            heads.learn_request(data)
            heads.refill()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 1_000_000


def test_bytes_of_an_earlier_read_are_no_part_of_this_one() -> None:
    """They are still there in the buffer, and would make the request whole."""
    known = knowing(request(*PROXY))
    data = request(*PROXY)
    for length in range(len(data)):
        known.look_at(data)
        assert not found(known, data[:length])


@pytest.mark.parametrize("change", [-1, 1])
def test_a_request_ends_where_its_length_says(change: int) -> None:
    known = knowing(request(*CLIENT))
    data = request(*CLIENT, body=BODY)
    assert found(known, data)
    assert not found(known, data + b" " if change > 0 else data[:-1])


def test_what_is_too_large_is_left_to_llhttp() -> None:
    """Which says so: 413 for a body, 431 for a head."""
    known = knowing(request(*PROXY))
    assert found(known, request(*PROXY, body=b" " * MAX_BODY_BYTES))
    assert not found(known, request(*PROXY, body=b" " * (MAX_BODY_BYTES + 1)))
    token = b"Authorization: Bearer "
    short = len(request(*replaced(PROXY, b"authorization", token), body=b""))
    largest = token + b"a" * (MAX_HEAD_BYTES - short - 1)
    assert found(known, request(*replaced(PROXY, b"authorization", largest)))
    assert not found(known, request(*replaced(PROXY, b"authorization", largest + b"aaa")))


# Bodies.

READER = MatrixReader(compiled_code().function("read_matrix", keeps_lock=True))
FRAME, IDENTITY = Frame(b"", b""), ModelIdentity("m", "1", "digest")
V1, V2 = ROUTES[2], ROUTES[3]
TENSOR = b'{"inputs": [{"name": "x", "shape": [%d, 2], "datatype": "FP32", "data": %s}]}'


def learn_body(known: Known, body: bytes, route: Any = V1, head: tuple[bytes, ...] = PROXY) -> Span | None:
    """As a connection does with a body that came with a head that is known; where its matrix is."""
    found = known.find(request(*head, body=body))
    assert found is not None
    incoming = Incoming("POST", "/", found.accepted.headers, body, "id", read_matrix=READER)
    span: Span | None = route.decode(incoming).span
    if span is not None:
        known.learn_form(found, body, span, route.label, FRAME)
    return span


def read(known: Known, body: bytes, head: tuple[bytes, ...] = PROXY) -> list[list[float]] | None:
    """The rows of a body that is recognized, from behind those that are taken already."""
    taken = known.cells[TAKEN]
    if known.look_at(request(*head, body=body)) <= 0:
        assert known.cells[TAKEN] == taken
        return None
    rows = known.rows[taken : known.cells[TAKEN]]
    assert len(rows) == known.cells[ROWS]
    assert known.body() == body
    values: list[list[float]] = rows.tolist()
    return values


def test_a_body_that_is_the_same_but_for_its_numbers_is_read() -> None:
    known = knowing(request(*PROXY))
    assert read(known, BODY) is None
    learn_body(known, BODY)
    assert read(known, BODY) == [[1.5, 2.5]]
    assert read(known, b'{"instances": [[-1e3,7], [0, 0.25]]}') == [[-1000, 7], [0, 0.25]]
    assert np.isnan(np.array(read(known, b'{"instances": [[null, NaN]]}'))).all()
    assert known.cells[TAKEN] == 4


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances":[[1, 2]]}',
        b'{"instances": [[1, 2]] }',
        b'{"instances": [[1, 2]]',
        b'{"instances": [[1, 2]]}}',
        b'{"instances": [[1, 2]], "x": 1}',
        b'{"instancez": [[1, 2]]}',
        b'{"instances": [[1, 2, 3]]}',
        b'{"instances": [[1]]}',
        b'{"instances": [[1, 2], [3]]}',
        b'{"instances": [1, 2]}',
        b'{"instances": [[1, "2"]]}',
        b'{"instances": [[1, 1e39]]}',
        b'{"instances": []}',
        b'{"instances": [[]]}',
        b'{"instances": }',
        b'{"instances": ',
        b"}",
        b"",
        b'{"instances": [' + b",".join([b"[1, 2]"] * 65) + b"]}",
    ],
)
def test_another_body_is_read_in_the_usual_way(body: bytes) -> None:
    """Other blanks, keys, widths, mistakes, and more rows than one may have: all that is somebody else's to judge."""
    known = knowing(request(*PROXY))
    learn_body(known, BODY)
    assert read(known, body) is None
    assert read(known, BODY) == [[1.5, 2.5]]


def test_a_bare_row_is_one_row() -> None:
    known = knowing(request(*PROXY))
    learn_body(known, b"[1, 2]", ROUTES[0])
    assert read(known, b"[3, 4]") == [[3, 4]]
    assert [read(known, body) for body in (b"[3, 4, 5, 6]", b"[[3, 4]]", b"[3]", b"[]")] == [None] * 4


def test_a_tensor_has_the_shape_that_its_document_says() -> None:
    """The shape is a part of what stands around the numbers."""
    known = knowing(request(*PROXY))
    learn_body(known, TENSOR % (2, b"[1, 2, 3, 4]"), V2)
    assert read(known, TENSOR % (2, b"[5, 6, 7, 8]")) == [[5, 6], [7, 8]]
    for shape, data in ((2, b"[5, 6]"), (2, b"[[5, 6], [7, 8]]"), (1, b"[5, 6]"), (1, b"[5, 6, 7, 8]")):
        assert read(known, TENSOR % (shape, data)) is None
    learn_body(known, TENSOR % (2, b"[[1, 2], [3, 4]]"), V2)
    assert read(known, TENSOR % (2, b"[[5, 6], [7, 8]]")) == [[5, 6], [7, 8]]
    assert read(known, TENSOR % (2, b"[[5, 6, 7, 8]]")) is None
    assert read(known, TENSOR % (2, b"[[5, 6]]")) is None


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (V2, TENSOR.replace(b'{"inputs"', b'{"id": "mine", "inputs"') % (1, b"[1, 2]")),
        (V1, b'{"instances": [{"a": 1, "b": 2}]}'),
        (V1, b'{"instances": [[1, 2]], "more": 1}'),
    ],
)
def test_a_body_whose_answer_needs_more_than_scores_is_not_kept(route: Any, body: bytes) -> None:
    """An id of its own; and rows by name, which are more than one matrix with something around it."""
    if b"FP32" in body:
        assert orjson.loads(body)["inputs"][0]["shape"] == [1, 2]
    known = knowing(request(*PROXY))
    assert learn_body(known, body, route) is None


def binary(rows: int, values: list[float], datatype: bytes = b"FP32", identifier: bytes = b"") -> tuple[Any, bytes]:
    """The head and the body of a request with a binary tensor of two features."""
    document = b'{%b"inputs":[{"name":"x","shape":[%d,2],"datatype":"%b","parameters":{"binary_data_size":%d}}]}'
    document %= (identifier, rows, datatype, 8 * rows)
    lines = (*PROXY, b"Inference-Header-Content-Length: %d" % len(document))
    return lines, document + np.array(values, np.float32).tobytes()


def test_a_binary_tensor_is_taken_as_it_is() -> None:
    """To the bit, a missing value's own bits included."""
    head, body = binary(2, [1.5, -2, 3, 4])
    known = knowing(request(*head))
    assert read(known, body, head) is None
    span = learn_body(known, body, V2, head)
    assert span is not None
    assert (span.kind, span.end - span.begin) == (BINARY, 16)
    odd = np.array([0x7FC00001, 0xFF800001, 0x80000000, 0x7F7FFFFF], np.uint32).view(np.float32)
    _, other = binary(2, odd.tolist())
    other = other[:-16] + odd.tobytes()
    assert read(known, other, head) is not None
    assert known.rows[:2].tobytes() == odd.tobytes()


@pytest.mark.parametrize("infinite", [np.inf, -np.inf])
@pytest.mark.parametrize("place", range(4))
def test_an_infinite_number_in_a_binary_tensor_is_refused_in_the_usual_way(infinite: float, place: int) -> None:
    head, body = binary(2, [1, 2, 3, 4])
    known = knowing(request(*head))
    learn_body(known, body, V2, head)
    values = [1.0, 2.0, 3.0, 4.0]
    values[place] = infinite
    assert read(known, binary(2, values)[1], head) is None
    assert read(known, body, head) == [[1, 2], [3, 4]]


@pytest.mark.parametrize("size", range(-5, 6))
def test_a_binary_tensor_has_the_size_that_its_head_says(size: int) -> None:
    head, body = binary(2, [1, 2, 3, 4])
    known = knowing(request(*head))
    learn_body(known, body, V2, head)
    changed = body + b"\0" * size if size > 0 else body[: len(body) + size]
    assert (read(known, changed, head) is None) == (size != 0)


@pytest.mark.parametrize(("datatype", "identifier"), [(b"INT32", b""), (b"UINT32", b""), (b"FP32", b'"id": "mine", ')])
def test_a_binary_tensor_of_another_type_or_with_an_id_is_not_kept(datatype: bytes, identifier: bytes) -> None:
    head, body = binary(1, [0, 0], datatype, identifier)
    known = knowing(request(*head))
    assert learn_body(known, body, V2, head) is None


def test_no_binary_tensor_goes_beyond_the_memory_for_rows() -> None:
    head, body = binary(4, [1.0] * 8)
    known = knowing(request(*head))
    learn_body(known, body, V2, head)
    known.cells[TAKEN] = len(known.rows) - 3
    assert read(known, body, head) is None
    known.cells[TAKEN] = len(known.rows) - 4
    assert read(known, body, head) == [[1, 1]] * 4


def test_a_compressed_body_is_not_kept() -> None:
    """Where its numbers are was found in what it inflates to."""
    head = (*PROXY, b"Content-Encoding: gzip")
    known = knowing(request(*head))
    known.learn_form(known.heads[0], BODY, Span(14, 26), V1.label, FRAME)
    assert read(known, BODY, head) is None


def test_callers_behind_one_proxy_write_their_json_in_several_ways() -> None:
    known = knowing(request(*PROXY))
    bodies = [b'{"instances":' + b" " * blanks + b"[[1, 2]]}" for blanks in range(MAX_FORMS + 1)]
    for body in bodies:
        known.refill()
        learn_body(known, body)
    assert sum(read(known, body) is not None for body in bodies) == MAX_FORMS


def test_a_form_belongs_to_its_head() -> None:
    """Whose path says which protocol it is, and so how the answer looks."""
    known = knowing(request(*PROXY), request(*CLIENT))
    learn_body(known, BODY, head=PROXY)
    assert read(known, BODY, CLIENT) is None
    learn_body(known, b"[[1, 2]]", ROUTES[0], head=CLIENT)
    for head, body, label in ((PROXY, BODY, V1.label), (CLIENT, b"[[1, 2]]", ROUTES[0].label)):
        assert known.forms[known.look_at(request(*head, body=body)) - 1].label == label


def test_what_stands_around_a_matrix_is_kept_up_to_a_size() -> None:
    known = knowing(request(*PROXY))
    for blanks, is_kept in ((MAX_KEPT_BYTES, False), (MAX_KEPT_BYTES - 20, True)):
        body = b'{"instances":' + b" " * blanks + b"[[1, 2]]}"
        learn_body(known, body)
        assert (read(known, body) is not None) == is_kept


def test_rows_never_go_beyond_the_memory_for_them() -> None:
    """However many are taken already; a request that finds no room is read in the usual way."""
    known = knowing(request(*PROXY))
    learn_body(known, BODY)
    body = b'{"instances": [' + b",".join([b"[1, 2]"] * 10) + b"]}"
    beyond = np.frombuffer(known.rows.data, np.float32)[-FEATURES:]
    known.cells[TAKEN] = len(known.rows) - 9
    assert read(known, body) is None
    known.cells[TAKEN] = len(known.rows) - 10
    assert read(known, body) == [[1, 2]] * 10
    assert beyond.tolist() == [1, 2]


def test_a_form_is_learned_once() -> None:
    """Also by requests that are not taken, as they have too many rows: they must not push out the forms of others."""
    known = knowing(request(*PROXY))
    learn_body(known, BODY)
    before = known.forms[:]
    for _ in range(3):
        learn_body(known, b'{"instances": [' + b", ".join([b"[1, 2]"] * 65) + b"]}")
    assert known.forms == before


def test_a_form_that_could_never_be_taken_is_not_learned() -> None:
    known = knowing(request(*PROXY))
    learn_body(known, TENSOR % (65, b"[" + b", ".join([b"1, 2"] * 65) + b"]"), V2)
    assert known.forms == []


def test_forms_are_learned_within_the_same_allowance_as_heads() -> None:
    at_once = ALLOWANCE // NEW_TABLES
    known = knowing(request(*PROXY), request(*CLIENT))
    bodies = [b'{"instances":' + b" " * blanks + b"[[1, 2]]}" for blanks in range(at_once)]
    for body in bodies:
        learn_body(known, body)
    assert not known.may_learn
    assert read(known, bodies[0]) is not None
    assert read(known, bodies[-1]) is None
    known.refill()
    learn_body(known, bodies[-1])
    assert read(known, bodies[-1]) is not None


# Whatever comes.

harmless = st.text("abcXYZ019._:/+=@-", max_size=8).map(str.encode)
pieces = st.sampled_from(
    (
        *(b"\r\n", b"\r", b"\n", b"\0", b" ", b"\t", b":", b"\x7f", b"\x80", b"a", b"27", b"\r\n\r\n", b"\r\n "),
        *(b"\r\n" + line for line in (*PROXY, *CLIENT)),
        *(
            b"\r\nContent-Length: 3",
            b"\r\nTransfer-Encoding: chunked",
            b"\r\nExpect: 100-continue",
            b"\r\nUpgrade: h2c",
        ),
    )
) | st.binary(max_size=6)


@st.composite
def likenesses(draw: Any) -> bytes:
    """A request like those that are known, with up to six places where something was put in, taken out or changed: half of
    them in a value that may differ."""
    lines = list(draw(st.sampled_from((PROXY, CLIENT))))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        name, _, value = lines[at].partition(b": ")
        if name.lower() in (b"x-request-id", b"traceparent", b"authorization", b"user-agent"):
            place = draw(st.integers(0, len(value)))
            lines[at] = b"%b: %b%b%b" % (name, value[:place], draw(harmless | harmless | pieces), value[place:])
    data = bytearray(request(*lines, body=draw(st.sampled_from((BODY, b"[]", b"")))))
    for _ in range(draw(st.sampled_from((0, 0, 1, 3)))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 4))] = draw(pieces)
    return bytes(data)


def test_what_is_recognized_would_be_accepted_and_means_the_same() -> None:
    recognized = set()

    @settings(
        max_examples=3000,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(likenesses())
    @example(request(*PROXY))
    @example(request(*CLIENT))
    def verify(data: bytes) -> None:
        heads = knowing(
            request(*PROXY), request(*replaced(PROXY, b"user-agent", b"User-Agent: curl")), request(*CLIENT, body=b"[]")
        )
        head = heads.find(data)
        if head is None:
            return
        recognized.add(data)
        judge = Judge(data)
        assert judge.whole == 1
        assert judge.parser.should_keep_alive()
        assert judge.body == heads.body()
        known = judge.known
        assert int(known.pop("content-length")) == len(judge.body)
        assert known.pop("x-request-id", None) == (heads.request_id() if head.has_id else None)
        assert judge.accepted == head.accepted

    verify()
    assert len(recognized) > 50


def test_the_judge_refuses_what_a_server_refuses() -> None:
    """Or the test above could not fail."""
    assert Judge(request(*CLIENT, b"X: a\0b")).whole == -1
    with pytest.raises(ServiceError):
        verify_head(b"POST", b"/predict", "1.1", [])


plain_numbers = st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr).map(str.encode)
numbers = st.one_of(
    *[plain_numbers] * 4,
    st.sampled_from((b"1", b"-2.5e3", b"null", b"NaN", b"0.1", b"-0", b" 7 ")),
    st.sampled_from((b"1e39", b"01", b"1.", b'"1"', b"true")),
)
marks = st.sampled_from((b"[", b"]", b",", b"}", b"{", b" ", b'"', b"\n", b"\0", b":", b"\\"))


@st.composite
def bodies(draw: Any) -> tuple[Any, bytes]:
    """A body like those that are known, with other numbers, and up to two places that were changed."""
    route, text = draw(
        st.sampled_from(
            (
                (V1, b'{"instances": %s}'),
                (V1, b'{"inputs":%s }'),
                (ROUTES[0], b"%s"),
                (V2, TENSOR.replace(b"%d", b"2")),
                (V2, TENSOR.replace(b"%d", b"1")),
            )
        )
    )
    width = draw(st.sampled_from((1, 2, 2, 2, 3)))
    rows = draw(
        st.lists(st.lists(numbers, min_size=width, max_size=draw(st.sampled_from((width, 3)))), min_size=1, max_size=3)
    )
    row_texts = [b",".join(row) for row in rows]
    is_flat = draw(st.booleans())
    matrix = b",".join(row_texts) if is_flat else b",".join(b"[%b]" % row for row in row_texts)
    data = bytearray(text % (b"[%b]" % matrix))
    for _ in range(draw(st.sampled_from((0, 0, 1, 2)))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 2))] = draw(numbers | marks)
    return route, bytes(data)


def test_what_is_recognized_with_its_numbers_is_what_the_wire_would_read() -> None:
    """The same rows to the last bit, and a body that the wire itself would keep as the same form."""
    recognized = set()

    @settings(max_examples=3000, derandomize=True, database=None, deadline=None)
    @given(bodies())
    @example((V1, b'{"instances": [[1,null]]}'))
    def verify(drawn: tuple[Any, bytes]) -> None:
        route, body = drawn
        known = knowing(request(*PROXY))
        for own, like in (
            (V1, b'{"instances": [[1, 2]]}'),
            (V1, b'{"inputs":[[1, 2]] }'),
            (ROUTES[0], b"[1, 2]"),
            (ROUTES[0], b"[[1, 2]]"),
            (V2, TENSOR % (2, b"[1, 2, 3, 4]")),
            (V2, TENSOR % (1, b"[[1, 2]]")),
        ):
            if own is route:
                assert learn_body(known, like, own) is not None
        if read(known, body) is None:
            return
        recognized.add(body)
        form = known.forms[known.look_at(request(*PROXY, body=body)) - 1]
        taken = known.cells[TAKEN]
        rows = known.rows[taken - known.cells[ROWS] : taken]
        batch = route.decode(Incoming("POST", "/", {}, body, "id"))
        assert batch.values.tobytes() == rows.tobytes()
        again = route.decode(Incoming("POST", "/", {}, body, "id", read_matrix=READER))
        span = again.span
        assert (span.kind, span.rows) == (form.span.kind, form.span.rows)
        assert (body[: span.begin], body[span.end :]) == (form.before, form.after)
        assert route.frame(again, IDENTITY, 1) == route.frame(batch, IDENTITY, 1)

    verify()
    assert len(recognized) > 100
