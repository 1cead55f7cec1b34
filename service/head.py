"""What the head of a request must be, beyond what llhttp checks: RFC 9112 (HTTP/1.1) and RFC 9110 (HTTP).

llhttp 9 in strict mode (httptools 0.9) refuses bad framing, obs-fold, control characters and repeated lengths by itself.
It does not look at Host, at foreign methods, at fragments, at HTTP/0.9, at codings before `chunked`, or at any size.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from functools import lru_cache

from service.errors import HeadTooLargeError, MalformedRequestError, TargetTooLongError

MAX_TARGET_BYTES = 8190
MAX_HEADERS = 100
MAX_HEAD_BYTES = 32 * 1024
# The headers that anything here reads. The rest reaches Flask only.
READ_HEADERS = (
    "Host",
    "Content-Length",
    "Transfer-Encoding",
    "Connection",
    "Content-Type",
    "Content-Encoding",
    "Accept-Encoding",
    "Expect",
    "Upgrade",
    "X-Request-Id",
    "Inference-Header-Content-Length",
)
# What clients and proxies send and nothing here reads: known as such, a header costs one look-up and not three.
PASSED_OVER = (
    b"Accept", b"User-Agent", b"X-Real-IP", b"X-Forwarded-For", b"X-Forwarded-Host", b"X-Forwarded-Port",
    b"X-Forwarded-Proto", b"X-Forwarded-Scheme", b"X-Scheme", b"traceparent", b"tracestate",
)  # fmt: skip
# Name in lower case by usual spelling; empty for what is passed over.
HEADER_NAMES = dict.fromkeys(PASSED_OVER, "") | {
    spelling.encode(): name.lower()
    for name in READ_HEADERS
    for spelling in (name, name.lower(), name.replace("Id", "ID"))
}
UNREPEATABLE = ("host", "content-length", "transfer-encoding", "content-type", "expect")
# llhttp also knows the methods of RTSP and Icecast, and the preface of HTTP/2.
FOREIGN_METHODS = frozenset(
    b"CONNECT SOURCE PRI DESCRIBE ANNOUNCE SETUP PLAY PAUSE TEARDOWN GET_PARAMETER SET_PARAMETER REDIRECT RECORD FLUSH".split()
)
# What can be repeated in a header and a log. Longer or stranger ids are replaced.
REQUEST_ID_CHARS, REQUEST_ID_LENGTH = f"{string.ascii_letters}{string.digits}._:/+=@-", 128
REQUEST_ID = re.compile(f"[{REQUEST_ID_CHARS}]{{1,{REQUEST_ID_LENGTH}}}")
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]*)(:\d*)?")
TARGET = re.compile(rb"[\x21-\x22\x24-\x7e]+")
# http://host:port and then a path, a query or nothing; no user (RFC 9110 section 4.2.4).
ABSOLUTE_TARGET = re.compile(rb"(?i:https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]+)(:\d*)?(?=[/?]|$)")


def verify_head(method: bytes, target: bytes, version: str, raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """The known headers by lower-case name; raises for what llhttp lets pass and we do not."""
    if version not in ("1.1", "1.0"):
        raise MalformedRequestError("expected HTTP/1.1 or HTTP/1.0")
    if len(target) > MAX_TARGET_BYTES:
        raise TargetTooLongError(MAX_TARGET_BYTES)
    if len(raw) > MAX_HEADERS:
        raise HeadTooLargeError("fields", MAX_HEADERS)
    headers: dict[str, str] = {}
    for name, value in raw:
        known = HEADER_NAMES.get(name)
        if known is None:
            known = HEADER_NAMES.get(name.lower())
        if not known:
            continue
        text = value.decode("latin-1").strip(" \t")
        if known not in headers:
            headers[known] = text
        elif known in UNREPEATABLE:
            raise MalformedRequestError(f"{known}: expected once")
        else:
            headers[known] += f", {text}"
    verify_target(method, target)
    verify_host(headers.get("host"), version)
    if "upgrade" in headers:
        raise MalformedRequestError("this server does not change protocols")
    coding = headers.get("transfer-encoding")
    if coding is not None and (coding.lower() != "chunked" or version == "1.0" or "content-length" in headers):
        raise MalformedRequestError("Transfer-Encoding: expected chunked alone, in HTTP/1.1, without Content-Length")
    return headers


def verify_head_size(target: bytes, raw: list[tuple[bytes, bytes]]) -> None:
    size = len(target) + sum(len(name) + len(value) + len(": \r\n") for name, value in raw)
    if size > MAX_HEAD_BYTES:
        raise HeadTooLargeError("bytes", MAX_HEAD_BYTES)


# Callers ask for few targets and name few hosts, and nearly all of a request's time is Python's: 0.35 µs each.
@lru_cache(64)
def verify_target(method: bytes, target: bytes) -> None:
    """RFC 9112 section 3.2: a path, an http(s) URL, or * for OPTIONS; no fragment, nothing but visible ASCII."""
    if method in FOREIGN_METHODS:
        raise MalformedRequestError("the method is of another protocol; this server is no tunnel")
    if not TARGET.fullmatch(target):
        raise MalformedRequestError("the request target has characters that no URL has")
    if target[:1] != b"/" and not ABSOLUTE_TARGET.match(target) and (target, method) != (b"*", b"OPTIONS"):
        raise MalformedRequestError("the request target is neither a path nor an http URL")


@lru_cache(64)
def verify_host(host: str | None, version: str) -> None:
    """RFC 9112 section 3.2: exactly one Host in HTTP/1.1, with nothing in it but a host and a port."""
    if host is None:
        if version == "1.1":
            raise MalformedRequestError("Host: missing")
    elif not HOST.fullmatch(host):
        raise MalformedRequestError("Host: expected a host name and perhaps a port")


def to_lines(headers: Iterable[tuple[str, str]]) -> str:
    """Header fields as they stand in the head of an answer."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers)
