"""Models from https servers on the list of allowed hosts.

obstore's HTTP store (0.12) follows redirects wherever they lead and resolves names by itself, so urllib3 is used here: each
hop is checked, and the connection is made to the very address that was checked. No proxy is asked, as it would resolve the name
again. HEAD is never sent: a signed URL holds for GET alone.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, SSLError

from service.artifact import ONLY_VERSION
from service.errors import FetchError
from service.settings import Uri
from service.sources.hosts import AllowList, split_host
from service.sources.remote import ChangedError, Opened, Remote, golden_names, listed

MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
READ_BYTES = 1 << 18
CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class HttpsStore:
    """One file on an https server; `open` begins at the first URL again, as signed redirects expire."""

    uri: Uri
    allowed: AllowList
    stall_seconds: float

    def find_newest(self) -> Remote:
        with closing(self._get(self.uri.text, {})) as answer:
            _, size = range_of(answer)
            mark = mark_of(answer, size)
        return Remote(ONLY_VERSION, "", self.uri.text, size, mark, *self._find_golden())

    def _find_golden(self) -> tuple[str, str]:
        """URL and mark; empty if there are none. A signature holds for the model alone, so that none are looked for."""
        folder, _, name = self.uri.text.rpartition("/")
        if "?" in self.uri.text:
            return "", ""
        for url in (f"{folder}/{golden}" for golden in golden_names(name)):
            try:
                with closing(self._get(url, {})) as answer:
                    if not answer.headers.get("Content-Type", "").startswith("text/html"):
                        return url, mark_of(answer, range_of(answer)[1])
            except FetchError as error:
                if error.is_temporary:
                    raise
        return "", ""

    def open(self, key: str, start: int, mark: str) -> Opened:
        answer = self._get(key, {"Range": f"bytes={start}-", "If-Match": mark} if start else {})
        start, size = range_of(answer)
        chunks = read_chunks(answer, without_query(key))
        return Opened(start, size, mark_of(answer, size), bool(strong_etag(answer)), chunks, answer.close)

    def _get(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        answer = self._follow(url, {"Accept-Encoding": "identity", "User-Agent": "xgboost-server", **headers})
        self._verify_status(answer, url)
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            answer.close()
            raise FetchError(f"{without_query(url)}: sent with a Content-Encoding; expected the model file itself")
        return answer

    def _verify_status(self, answer: urllib3.BaseHTTPResponse, url: str) -> None:
        status = answer.status
        if status in (200, 206):
            return
        answer.close()
        if status in (412, 416):
            raise ChangedError(without_query(url))
        if status in (401, 403):
            raise FetchError(
                f"{without_query(url)}: access denied ({status}); expected a URL that may be read as it stands"
            )
        if status in (404, 410):
            raise FetchError(f"{without_query(url)}: no such file ({status})")
        raise FetchError(
            f"{without_query(url)}: the server answers {status}",
            is_temporary=status in (408, 425, 429) or status >= 500,
        )

    def _follow(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        for _ in range(MAX_REDIRECTS + 1):
            try:
                answer = self._request(url, headers)
            except FetchError as error:
                raise FetchError(f"{self.uri}: {error.reason}", is_temporary=error.is_temporary) from None
            target = answer.headers.get("Location")
            if answer.status not in REDIRECTS or target is None:
                return answer
            answer.close()
            url = urljoin(url, target)
            if urlsplit(url).scheme != "https":
                raise FetchError(f"{self.uri}: redirected away from https")
        raise FetchError(f"{self.uri}: redirected more than {MAX_REDIRECTS} times")

    def _request(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        parts = urlsplit(url)
        host, port = split_host(parts.netloc.lower())
        self.allowed.verify_host(host, port)
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        problem: Exception = OSError("no address")
        for address in resolve(self.allowed, host, port):
            pool = urllib3.HTTPSConnectionPool(
                address,
                port,
                server_hostname=host,
                assert_hostname=host,
                ssl_context=ssl.create_default_context(),
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=self.stall_seconds),
                retries=False,
            )
            try:
                return pool.urlopen(
                    "GET",
                    target,
                    headers={"Host": parts.netloc, "Connection": "close", **headers},
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                )
            except SSLError as error:
                verify_certificate(error, f"{host}:{port}")
                problem = error
            except (HTTPError, OSError) as error:
                problem = error
        raise FetchError(f"{host}:{port}: {plain_reason(problem)}", is_temporary=True)


def resolve(allowed: AllowList, host: str, port: int) -> list[str]:
    """The addresses of this host that may be connected to."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise FetchError(f"{host}: cannot be resolved ({error.strerror or error})", is_temporary=True) from None
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    fit = [address for address in addresses if allowed.has_address(address)]
    if not fit:
        raise FetchError(
            f"{host}: its address {listed(addresses)} is not public; if that is meant, "
            "SCORER_MODEL_HTTPS_HOSTS has to have the address or its network too (link-local ones are never allowed)"
        )
    return fit


def range_of(answer: urllib3.BaseHTTPResponse) -> tuple[int, int | None]:
    """First byte and whole size of what is sent."""
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if found is None:
            raise FetchError("a partial answer without a Content-Range that can be read", is_temporary=True)
        return int(found[1]), int(found[2]) if found[2] != "*" else None
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if re.fullmatch(r"\d{1,18}", length) else None


def strong_etag(answer: urllib3.BaseHTTPResponse) -> str:
    """Empty for a weak one: RFC 9110, section 13.1.1, lets only strong ones hold for If-Match."""
    etag = answer.headers.get("ETag", "")
    return "" if etag.startswith("W/") else etag


def mark_of(answer: urllib3.BaseHTTPResponse, size: int | None) -> str:
    """What would change with the file: the ETag, or else date and size."""
    date = answer.headers.get("Last-Modified", "")
    return strong_etag(answer) or (f"{date} {size}" if date else "")


def read_chunks(answer: urllib3.BaseHTTPResponse, what: str) -> Iterator[bytes]:
    """As they come: `read` would wait for the whole of a chunk, and a slow server would not be noticed."""
    try:
        while chunk := answer.read1(READ_BYTES, decode_content=False):
            yield chunk
    except (HTTPError, OSError) as error:
        raise FetchError(f"{what}: {plain_reason(error)}", is_temporary=True) from None


def without_query(url: str) -> str:
    """The query may be a signature."""
    return re.sub(r"[?#].*", "?…", url, flags=re.DOTALL)


def verify_certificate(error: Exception, host: str) -> None:
    """A certificate that is not trusted now will not be at the next attempt."""
    found = re.search(r"certificate verify failed: ([^(\"']*)|(hostname|IP address) .* doesn't match", str(error))
    if found:
        reason = (found[1] or "issued for another host").strip()
        raise FetchError(
            f"{host}: its certificate is not trusted: {reason}; SSL_CERT_FILE may name more authorities"
        ) from None


def plain_reason(error: Exception) -> str:
    """The kind of fault; urllib3's own texts hold the URL."""
    name = type(error).__name__
    return {
        "NewConnectionError": "no connection",
        "ConnectTimeoutError": f"no connection within {CONNECT_SECONDS:g} seconds",
        "ReadTimeoutError": "silent for too long",
        "ProtocolError": "the connection broke",
        "IncompleteRead": "the connection broke",
        "SSLError": "the TLS connection broke",
    }.get(name, name)
