"""One HTTP request as bytes, so that the check before the timing and the load send the very same."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.errors import BenchmarkError

TIMEOUT_SECONDS = 10.0
# What NGINX ingress controllers hand on beside the caller's own headers.
INGRESS_HEADERS = {
    "Host": "cancer.models.example.com",
    "X-Request-ID": "6f1c2b7a9d3e4f508192a3b4c5d6e7f8",
    "X-Real-IP": "10.42.7.19",
    "X-Forwarded-For": "10.42.7.19",
    "X-Forwarded-Host": "cancer.models.example.com",
    "X-Forwarded-Port": "443",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Scheme": "https",
    "X-Scheme": "https",
    "User-Agent": "python-requests/2.32.5",
    "Accept": "*/*",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}


# What a caller's own client sends.
CALLER_HEADERS = {name: INGRESS_HEADERS[name] for name in ("Host", "User-Agent", "Accept")}


@dataclass(frozen=True)
class Request:
    """A request; its body makes it a POST. `hop` are the headers of whoever sends it besides its own."""

    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hop: Mapping[str, str] = field(default_factory=lambda: INGRESS_HEADERS)

    def to_bytes(self) -> bytes:
        headers = {**self.hop, **self.headers}
        if self.body:
            headers["Content-Length"] = str(len(self.body))
        method = "POST" if self.body else "GET"
        head = f"{method} {self.path} HTTP/1.1\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return head.encode("ascii") + b"\r\n" + self.body


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


def exchange(port: int, request: Request, tls: ssl.SSLContext | None = None) -> Answer:
    """The answer to one request on a connection of its own; OSError where nobody listens."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS))
        if tls:
            connection = stack.enter_context(tls.wrap_socket(connection, server_hostname=request.hop["Host"]))
        connection.sendall(request.to_bytes())
        response = http.client.HTTPResponse(connection)
        try:
            response.begin()
            body = response.read()
        except http.client.HTTPException as error:
            raise BenchmarkError(f"{request.path}: the answer is not HTTP ({error!r})") from error
        finally:
            response.close()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(status=response.status, headers=headers, body=body)
