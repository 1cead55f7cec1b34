"""Keep-alive clients that send POSTs one after the other and never retry: what they lose, a caller loses."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.serving import RunningServer

ROW = json.dumps({"instances": [[6.8, 2.8, 4.8, 1.4]]}).encode()
PATH = "/v1/models/iris:predict"


Verify = Callable[[float, int, http.client.HTTPMessage, bytes], str]


def verify_iris(sent: float, status: int, headers: http.client.HTTPMessage, body: bytes) -> str:
    """What is wrong with an answer to `ROW`; empty if nothing is."""
    return "" if status == 200 and body == b'{"predictions":[1.0]}' else f"{status} {body!r}"


@dataclass
class Tally:
    """`times`: when each answered request was sent, and the seconds it took."""

    times: list[tuple[float, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def answered(self) -> int:
        return len(self.times)


class Load:
    """Clients in threads; stops when told, or after `requests` each. They rest for `pause` seconds between two."""

    def __init__(
        self,
        server: RunningServer,
        clients: int,
        requests: int = 10**9,
        *,
        path: str = PATH,
        body: bytes = ROW,
        verify: Verify = verify_iris,
        pause: float = 0.0,
    ) -> None:
        self._server = server
        self._requests = requests
        self._path, self._body, self._verify, self._pause = path, body, verify, pause
        self._stop = threading.Event()
        self.tallies = [Tally() for _ in range(clients)]
        self._threads = [threading.Thread(target=self._run, args=(tally,)) for tally in self.tallies]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    @property
    def answered(self) -> int:
        return sum(tally.answered for tally in self.tallies)

    @property
    def times(self) -> list[tuple[float, float]]:
        return [pair for tally in self.tallies for pair in tally.times]

    @property
    def failures(self) -> list[str]:
        return [failure for tally in self.tallies for failure in tally.failures]

    def _run(self, tally: Tally) -> None:
        connection = http.client.HTTPConnection(self._server.host, self._server.port, timeout=30)
        while not self._stop.is_set() and tally.answered + len(tally.failures) < self._requests:
            sent = time.monotonic()
            try:
                connection.request("POST", self._path, self._body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                tally.failures.append(repr(error))
                connection.close()
                continue
            if wrong := self._verify(sent, answer.status, answer.headers, body):
                tally.failures.append(wrong)
            else:
                tally.times.append((sent, time.monotonic() - sent))
            if self._pause:
                time.sleep(self._pause)
        connection.close()
