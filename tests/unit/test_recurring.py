"""Heads that come again: what is recognized is what llhttp would have accepted, and means the same."""

from __future__ import annotations

import tracemalloc
from typing import Any

import httptools
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.errors import ServiceError
from service.head import verify_head
from service.recurring import ALLOWANCE, MAX_HEADS, Accepted, RecurringHeads

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


def learn(heads: RecurringHeads, data: bytes) -> None:
    """As the door does: what llhttp has accepted."""
    judge = Judge(data)
    assert judge.whole == 1
    heads.learn(data, len(judge.raw), judge.accepted)


def knowing(*requests: bytes) -> RecurringHeads:
    heads = RecurringHeads()
    for data in requests:
        learn(heads, data)
    return heads


def replaced(lines: tuple[bytes, ...], name: bytes, line: bytes) -> tuple[bytes, ...]:
    assert any(one.lower().startswith(name) for one in lines)
    return tuple(line if one.lower().startswith(name) else one for one in lines)


def found(heads: RecurringHeads, data: bytes) -> bool:
    return heads.find(memoryview(data)) is not None


# What is recognized.


def test_the_next_request_has_its_own_length_id_trace_and_token() -> None:
    """Of the like nothing is taken but what they have in common."""
    heads = knowing(request(*PROXY))
    lines = replaced(PROXY, b"x-request-id", b"X-Request-ID: another-id")
    lines = replaced(lines, b"traceparent", b"traceparent: 00-1-2-00")
    data = request(*replaced(lines, b"authorization", b"Authorization: Basic other"), body=b"[1, 2]")
    match, accepted = heads.find(memoryview(data)) or pytest.fail("not recognized")
    assert (int(match["length"]), match["id"], data[match.end() :]) == (6, b"another-id", b"[1, 2]")
    assert accepted == Accepted(
        "POST", "/predict", "/predict", "1.1", {"host": "scorer.example", "content-type": "application/json"}
    )


def test_a_value_that_nothing_reads_may_differ_once_it_has() -> None:
    """Proxies bring the addresses of many clients over one connection."""
    heads = knowing(request(*PROXY))
    second, third = (
        request(*replaced(PROXY, b"x-forwarded-for", b"X-Forwarded-For: " + ip)) for ip in (b"10.9.9.9", b"::1")
    )
    assert not found(heads, second)
    learn(heads, second)
    assert found(heads, third)
    assert found(heads, request(*PROXY))


def test_heads_of_several_callers_are_known_at_a_time() -> None:
    heads = knowing(request(*PROXY), request(*CLIENT))
    assert found(heads, request(*PROXY))
    assert found(heads, request(*CLIENT))


def test_a_request_without_an_id_is_recognized_as_one() -> None:
    heads = knowing(request(*CLIENT))
    match, _ = heads.find(memoryview(request(*CLIENT))) or pytest.fail("not recognized")
    assert "id" not in match.groupdict()


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
        request(*CLIENT, b"X-Long: " + b"a" * 2048),
        request(*CLIENT, b"X-Latin: \xe9"),
        b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_an_unusual_head_is_not_kept(data: bytes) -> None:
    assert not found(knowing(data), data)


def test_what_is_known_is_not_learned_again() -> None:
    """A pattern takes a third of a millisecond, and a caller may send an id that cannot be repeated with every request."""
    heads = knowing(request(*PROXY))
    before = heads.find(memoryview(request(*PROXY)))
    for _ in range(3):
        learn(heads, request(*replaced(PROXY, b"x-request-id", b"X-Request-ID: a b")))
    after = heads.find(memoryview(request(*PROXY)))
    assert before is not None
    assert after is not None
    assert after[0].re is before[0].re


def test_few_heads_are_kept_and_few_are_learned_at_a_time() -> None:
    """Whoever sends another head each time costs no more than a few patterns a second."""
    requests = [request(*CLIENT, b"X-Caller-%d: a" % number) for number in range(ALLOWANCE + MAX_HEADS)]
    heads = knowing(*requests)
    assert [found(heads, data) for data in requests] == [number < ALLOWANCE for number in range(len(requests))]
    heads.refill()
    for data in requests[ALLOWANCE:]:
        learn(heads, data)
    assert sum(found(heads, data) for data in requests) == MAX_HEADS


def test_a_token_of_any_length_is_a_gap() -> None:
    data = request(*CLIENT, b"Authorization: Bearer " + b"a" * 6000)
    assert found(knowing(data), data)


def test_heads_that_never_come_again_leave_no_memory_behind() -> None:
    heads = RecurringHeads()
    requests = [request(*CLIENT, b"X-Caller-%d: %s" % (number, b"a" * 1900)) for number in range(200)]
    tracemalloc.start()
    try:
        for data in requests:
            learn(heads, data)
            heads.refill()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 1_000_000


# Whatever comes.

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
    """A request like those that are known, with up to three places where something was put in, taken out or changed."""
    data = bytearray(request(*draw(st.sampled_from((PROXY, CLIENT))), body=draw(st.sampled_from((BODY, b"[]", b"")))))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 4))] = draw(pieces)
    return bytes(data)


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
def test_what_is_recognized_would_be_accepted_and_means_the_same(data: bytes) -> None:
    heads = knowing(
        request(*PROXY), request(*replaced(PROXY, b"user-agent", b"User-Agent: curl")), request(*CLIENT, body=b"[]")
    )
    recognized = heads.find(memoryview(data))
    if recognized is None:
        return
    match, accepted = recognized
    length = int(match["length"])
    if match.end() + length != len(data):
        return  # not one whole request: the door lets llhttp read it
    judge = Judge(data)
    assert judge.whole == 1
    assert judge.parser.should_keep_alive()
    assert judge.body == data[match.end() :]
    known = judge.known
    assert int(known.pop("content-length")) == length
    assert known.pop("x-request-id", None) == (match["id"].decode() if match.re.groups > 1 else None)
    assert judge.accepted == accepted


def test_the_judge_refuses_what_a_server_refuses() -> None:
    """Or the test above could not fail."""
    assert Judge(request(*CLIENT, b"X: a\0b")).whole == -1
    with pytest.raises(ServiceError):
        verify_head(b"POST", b"/predict", "1.1", [])
