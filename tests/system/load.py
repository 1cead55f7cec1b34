"""Keep-alive clients that send POSTs one after the other and never retry: what they lose, a caller loses."""

from __future__ import annotations

import http.client
import json
import threading
from dataclasses import dataclass, field

from tests.serving import RunningServer

ROW = json.dumps({"instances": [[6.8, 2.8, 4.8, 1.4]]}).encode()
PATH = "/v1/models/iris:predict"


@dataclass
class Tally:
    answered: int = 0
    failures: list[str] = field(default_factory=list)


class Load:
    """Clients in threads; stops when told, or after `requests` each."""

    def __init__(self, server: RunningServer, clients: int, requests: int = 10**9) -> None:
        self._server = server
        self._requests = requests
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
    def failures(self) -> list[str]:
        return [failure for tally in self.tallies for failure in tally.failures]

    def _run(self, tally: Tally) -> None:
        connection = http.client.HTTPConnection(self._server.host, self._server.port, timeout=30)
        while not self._stop.is_set() and tally.answered + len(tally.failures) < self._requests:
            try:
                connection.request("POST", PATH, ROW, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                tally.failures.append(repr(error))
                connection.close()
                continue
            if answer.status == 200 and body == b'{"predictions":[1.0]}':
                tally.answered += 1
            else:
                tally.failures.append(f"{answer.status} {body!r}")
        connection.close()
