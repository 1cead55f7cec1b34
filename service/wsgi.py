"""Runs the Flask application for a request that is already whole, on the calling thread (PEP 3333)."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from service.batch import Observation
from service.web import OBSERVATIONS


@dataclass(frozen=True)
class Address:
    """Where a request came from and where it arrived."""

    client: str
    client_port: int
    server: str
    server_port: int
    scheme: str


@dataclass
class Answer:
    """What the application answered, and what there is to count about it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    observations: list[Observation]


def run_wsgi(
    app: Any, method: str, target: str, version: str, headers: Iterable[tuple[bytes, bytes]], body: bytes, at: Address
) -> Answer:
    observations: list[Observation] = []
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, head: list[tuple[str, str]], exc_info: object = None) -> Any:
        started.append((status, head))
        return lambda data: None

    environ = create_environ(method, target, version, headers, body, at)
    environ[OBSERVATIONS] = observations
    chunks = app(environ, start_response)
    try:
        data = b"".join(chunks)
    finally:
        if hasattr(chunks, "close"):
            chunks.close()
    status, head = started[-1]
    return Answer(int(status.split(" ", 1)[0]), head, data, observations)


def create_environ(
    method: str, target: str, version: str, headers: Iterable[tuple[bytes, bytes]], body: bytes, at: Address
) -> dict[str, Any]:
    path, _, query = target.partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "RAW_URI": target,
        "REQUEST_URI": target,
        "SERVER_PROTOCOL": f"HTTP/{version}",
        "SERVER_NAME": at.server,
        "SERVER_PORT": str(at.server_port),
        "REMOTE_ADDR": at.client,
        "REMOTE_PORT": str(at.client_port),
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": at.scheme,
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for raw_name, raw_value in headers:
        name = raw_name.decode("latin-1").upper().replace("-", "_")
        # An underscore would let `X_Forwarded_For` pass for `X-Forwarded-For` (as in NGINX, which drops it too).
        if b"_" in raw_name or name in ("CONTENT_LENGTH", "TRANSFER_ENCODING"):
            continue
        key = name if name == "CONTENT_TYPE" else f"HTTP_{name}"
        value = raw_value.decode("latin-1").strip(" \t")
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ
