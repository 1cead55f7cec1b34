"""Servers that the tests fetch from: a real S3 API (moto), a proxy before it that misbehaves, and an https server."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import obstore
import trustme
from obstore.store import S3Store

from tests.serving import free_port, wait_until

BUCKET = "models"


@dataclass
class Moto:
    """moto's server, in a process of its own."""

    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def put(self, key: str, data: bytes) -> None:
        obstore.put(self._store(), key, data)

    def delete(self, key: str) -> None:
        obstore.delete(self._store(), key)

    def empty(self) -> None:
        for method, path in (("POST", "moto-api/reset"), ("PUT", BUCKET)):
            request = urllib.request.Request(f"{self.url}/{path}", b"", method=method)
            urllib.request.urlopen(request, timeout=30).close()

    def _store(self) -> S3Store:
        return S3Store(
            BUCKET,
            endpoint=self.url,
            access_key_id="AKIAOFTHISTEST",
            secret_access_key="secret-of-this-test",
            client_options={"allow_http": True},
        )

    def environ(self, endpoint: str = "") -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": endpoint or self.url,
            "AWS_ACCESS_KEY_ID": "AKIAOFTHISTEST",
            "AWS_SECRET_ACCESS_KEY": "secret-of-this-test",
            "AWS_REGION": "us-east-1",
        }

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def running_moto() -> Iterator[Moto]:
    moto = Moto(free_port())
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(moto.port)]
    moto.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: is_listening(moto.port))
        moto.empty()
        yield moto
    finally:
        moto.stop()


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@dataclass
class Proxy:
    """TCP between a client and moto. It counts requests, and can break, hold back and slow down what comes back."""

    target: int
    # Break the connection after so many bytes of an answer, as often as `breaks` says.
    break_after: int = 0
    breaks: int = 0
    # Let no more than so many bytes of an answer through until `release` is set.
    hold_after: int = 0
    release: threading.Event = field(default_factory=threading.Event)
    holding: threading.Event = field(default_factory=threading.Event)
    # Answers that are given instead of moto's, first come first served.
    instead: list[bytes] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self, method: str, key: str) -> int:
        return sum(request.startswith(f"{method} /{BUCKET}/{key} ") for request in self.requests)

    def heads(self, method: str, key: str) -> list[str]:
        return [request for request in self.requests if request.startswith(f"{method} /{BUCKET}/{key} ")]

    def close(self) -> None:
        """May be called twice: a test closes it to take the store away."""
        self.release.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, client)

    def _start(self, what: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=what, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _serve(self, client: socket.socket) -> None:
        """One request a connection: its answer says `Connection: close` soon enough, as the proxy closes."""
        self._sockets.append(client)
        with suppress(OSError):
            head = read_head(client)
            if not head:
                return
            self.requests.append(head.decode("latin-1"))
            if self.instead:
                client.sendall(self.instead.pop(0))
            else:
                self._forward(client, head)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _forward(self, client: socket.socket, head: bytes) -> None:
        with socket.create_connection(("127.0.0.1", self.target)) as server:
            server.sendall(re.sub(rb"\r\n\r\n\Z", b"\r\nConnection: close\r\n\r\n", head))
            sent = 0
            while piece := server.recv(65536):
                if self.breaks and sent + len(piece) > self.break_after:
                    self.breaks -= 1
                    client.sendall(piece[: max(0, self.break_after - sent)])
                    return
                if self.hold_after and sent + len(piece) > self.hold_after and not self.release.is_set():
                    self.holding.set()
                    self.release.wait()
                client.sendall(piece)
                sent += len(piece)


def read_head(client: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        piece = client.recv(65536)
        if not piece:
            return b""
        data += piece
    return data


@contextmanager
def running_proxy(target: int, **faults: int) -> Iterator[Proxy]:
    proxy = Proxy(target, **faults)  # type: ignore[arg-type]  # the faults are numbers
    try:
        yield proxy
    finally:
        proxy.close()


class Authority:
    """A certificate authority, and certificates for hosts."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self.path = folder / "authority.pem"
        self._authority.cert_pem.write_to_path(self.path)
        self._folder = folder

    def issue(self, *hosts: str) -> Path:
        """A file with the certificate and its key."""
        path = self._folder / f"{hosts[0]}.pem"
        self._authority.issue_cert(*hosts).private_key_and_cert_chain_pem.write_to_path(path)
        return path


Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers with what the test put under the path."""

    server: HttpsServer
    timeout = 30

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.path} {self.headers.get('Range', '')}".strip())
        answer = self.server.answers.get(unquote(self.path.partition("?")[0]))
        self.close_connection = True
        with suppress(OSError):  # a client that has seen enough
            if answer is None:
                self.send_error(404)
            else:
                answer(self)

    do_HEAD = do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def start(self, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


class HttpsServer(ThreadingHTTPServer):
    """https on loopback; `answers` is what it has under each path."""

    daemon_threads = False

    def __init__(self, certificate: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.requests: list[str] = []
        self.port = self.server_address[1]
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        self._context = context

    def finish_request(self, request: Any, client_address: Any) -> None:
        """The handshake in the connection's own thread, where a client that does not trust us harms nobody."""
        with suppress(OSError), self._context.wrap_socket(request, server_side=True) as tls:
            Handler(tls, client_address, self)

    def url(self, path: str, host: str = "localhost") -> str:
        return f"https://{host}:{self.port}{path}"


@contextmanager
def running_https(certificate: Path) -> Iterator[HttpsServer]:
    with ExitStack() as stack:
        server = stack.enter_context(HttpsServer(certificate))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        yield server


# What an https server may have under a path.


def file_of(data: bytes, *, breaks: int = 0, ranges: bool = True, etag: str = "") -> Answer:
    """A file with ETag and ranges; the first answers break off in the middle."""
    left = [breaks]
    mark = etag or f'"{hashlib.md5(data).hexdigest()}"'

    def answer(handler: Handler) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", "")) if ranges else None
        if wanted and handler.headers.get("If-Match") not in (None, mark):
            handler.start(412, Content_Length=0)
            return
        start = int(wanted[1]) if wanted else 0
        body = data[start:]
        headers: dict[str, object] = {
            "Content_Length": len(body),
            "ETag": mark,
            "Last_Modified": formatdate(usegmt=True),
        }
        if wanted:
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        handler.start(206 if wanted else 200, **headers)
        if handler.command == "HEAD":
            return
        if left[0]:
            left[0] -= 1
            body = body[: len(body) // 2]
        handler.wfile.write(body)

    return answer


def in_turn(*answers: Answer) -> Answer:
    """Each once, the last for ever."""
    left = list(answers)

    def answer(handler: Handler) -> None:
        (left.pop(0) if len(left) > 1 else left[0])(handler)

    return answer


def status(code: int, **headers: object) -> Answer:
    return lambda handler: handler.start(code, **{"Content_Length": 0, **headers})


def drip(data: bytes, seconds: float, *, declared: int) -> Answer:
    """A byte now and then."""

    def answer(handler: Handler) -> None:
        handler.start(Content_Length=declared)
        for i in range(len(data)):
            handler.wfile.write(data[i : i + 1])
            time.sleep(seconds)  # the fault that is tested

    return answer
