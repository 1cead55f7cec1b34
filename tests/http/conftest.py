"""A server with small limits for the corpus."""

from collections.abc import Iterator

import pytest

from tests.serving import RunningServer, running_server


@pytest.fixture(scope="session")
def corpus_server() -> Iterator[RunningServer]:
    with running_server(WEB_CONCURRENCY="1", SCORER_MAX_BODY_BYTES="65536") as server:
        yield server
