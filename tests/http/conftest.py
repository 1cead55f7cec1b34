"""A server with small limits for the corpus."""

from collections.abc import Iterator

import pytest

from tests.serving import RunningServer, running_server


@pytest.fixture(scope="session")
def corpus_server() -> Iterator[RunningServer]:
    limits = {"SCORER_MAX_BODY_BYTES": "65536", "SCORER_READ_TIMEOUT_SECONDS": "60"}
    with running_server(None, WEB_CONCURRENCY="1", **limits) as server:
        yield server
