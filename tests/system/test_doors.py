"""One implementation behind every door: the worker's loop, Flask under gthread, Flask's test client."""

from __future__ import annotations

import http.client
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack

import pytest

from tests.apps import Example, World
from tests.serving import RunningServer, free_port, running_server
from tests.wire.cases import Case, read_cases

# Sent along, so that the answers can be compared to the byte; without it each door makes an id of its own.
REQUEST_ID = "the-same-at-every-door"
LIMITS = {"SCORER_MAX_BODY_BYTES": "300000", "SCORER_MAX_ROWS_PER_REQUEST": "1000"}
GTHREAD = [sys.executable, "-m", "gunicorn", "-k", "gthread", "--threads", "4", "--no-control-socket"]
# What HTTP servers add on their own, and the time.
ASIDE = {"server", "date", "connection", "server-timing", "keep-alive"}

CASES = list(read_cases())


class Doors:
    """The same model behind three doors."""

    def __init__(self, example: Example, stack: ExitStack) -> None:
        settings = {"SCORER_MODEL": str(example.path), **LIMITS}
        self.world = World(example.model, **LIMITS)
        self.fast = stack.enter_context(running_server(None, WEB_CONCURRENCY="1", **settings))
        self.gthread = stack.enter_context(running_gthread(settings))

    def answers(self, case: Case) -> list[tuple[int, dict[str, str], bytes]]:
        headers = {**case.headers, "X-Request-Id": REQUEST_ID}
        response = self.world.client.open(case.path, method=case.method, headers=headers, data=case.body)
        tested = (response.status_code, comparable(response.headers.items()), response.data)
        return [tested, ask(self.gthread, case, headers), ask(self.fast, case, headers)]


def running_gthread(settings: dict[str, str]) -> AbstractContextManager[RunningServer]:
    port = free_port()
    command = [*GTHREAD, "--bind", f"127.0.0.1:{port}", "service.app:create_app()"]
    return running_server(command, SCORER_PORT=str(port), WEB_CONCURRENCY="1", **settings)


def ask(server: RunningServer, case: Case, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    try:
        connection.request(case.method, case.path, case.body, headers)
        answer = connection.getresponse()
        return answer.status, comparable(answer.getheaders()), answer.read()
    finally:
        connection.close()


def comparable(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers if name.lower() not in ASIDE}


@pytest.fixture(scope="module")
def doors(iris: Example, cancer: Example) -> Iterator[dict[str, Doors]]:
    with ExitStack() as stack:
        yield {example.name: Doors(example, stack) for example in (iris, cancer)}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_door_gives_the_same_bytes(case: Case, doors: dict[str, Doors]) -> None:
    """Status, body and headers of each golden request are equal at every door."""
    tested, gthread, fast = doors[case.model].answers(case)
    assert gthread == tested
    assert fast == tested
