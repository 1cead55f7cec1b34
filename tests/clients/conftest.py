"""Servers of the two examples, and the scores that every client library must get from them.

`make test-clients` gives each library a virtual environment of its own, because their pins contradict each other and
the server's. The server runs from `.venv`; nothing is imported from it, and xgboost is not needed: `golden.json` holds
what `Booster.predict` said of each row alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
WORKERS = 2
START_SECONDS = 60
STOP_SECONDS = 30

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Served:
    """A served model: where it listens, what it expects, rows (NaN where a value is missing) and their scores."""

    name: str
    address: str
    feature_names: tuple[str, ...]
    # The decimals of golden.json as float64; `rows` are the same in float32, which is what the model sees.
    doubles: NDArray[np.float64]
    rows: Floats
    scores: Floats

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def single_rows(self) -> Iterator[tuple[Floats, Floats]]:
        """Each row as a batch of one, and its score."""
        for i in range(len(self.rows)):
            yield self.rows[i : i + 1], self.scores[i : i + 1]

    def many(self, repeats: int = 1000) -> tuple[Floats, Floats]:
        """The rows again and again: enough for an answer of more than 32 KiB, which the server may compress."""
        return np.tile(self.rows, (repeats, 1)), np.tile(self.scores, repeats)


@pytest.fixture(scope="session")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve("iris", tmp_path_factory.mktemp("iris")) as example:
        yield example


@pytest.fixture(scope="session")
def breast_cancer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve("breast-cancer", tmp_path_factory.mktemp("breast-cancer")) as example:
        yield example


@pytest.fixture(params=["iris", "breast_cancer"])
def example(request: pytest.FixtureRequest) -> Served:
    """Both in turn: classes are exact whatever happens, probabilities show the last bit."""
    served: Served = request.getfixturevalue(request.param)
    return served


@contextmanager
def serve(name: str, folder: Path) -> Iterator[Served]:
    model = ROOT / "examples" / name / "model.ubj"
    golden = json.loads(model.with_name("golden.json").read_text(encoding="utf-8"))
    assert golden["model_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {
        **{variable: value for variable, value in os.environ.items() if not variable.startswith("SCORER_")},
        "SCORER_MODEL": str(model.relative_to(ROOT)),
        "SCORER_MODEL_NAME": name,
        "SCORER_PORT": str(port),
        "WEB_CONCURRENCY": str(WORKERS),
    }
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [ROOT / ".venv/bin/xgboost-server", "serve"],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        address = f"127.0.0.1:{port}"
        wait_until_ready(server, address, log)
        doubles = np.array(golden["rows"], np.float64)
        yield Served(
            name=name,
            address=address,
            feature_names=tuple(golden["feature_names"]),
            doubles=doubles,
            rows=doubles.astype(np.float32),
            scores=np.array(golden["scores"], np.float32),
        )
    finally:
        stop(server)


def wait_until_ready(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        # A worker speaks for itself at /readyz: the other one may be loading still.
        if get(address, "/readyz") and f'scorer_workers{{state="ready"}} {WORKERS}' in get(address, "/metrics"):
            return
        time.sleep(0.1)
    pytest.fail(f"the server is not ready; it wrote:\n{log.read_text(errors='replace')}")


def get(address: str, path: str) -> str:
    """The body of a 200, else nothing."""
    try:
        with urlopen(f"http://{address}{path}", timeout=5) as answer:
            body: bytes = answer.read()
            return body.decode()
    except HTTPError as error:
        error.close()
        return ""
    except OSError:
        return ""


def stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def assert_same(scores: Floats, expected: Floats) -> None:
    """Equal to the last bit, in type and in shape: what a row alone must get."""
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, expected, strict=True)


def assert_close(scores: Floats, expected: Floats) -> None:
    """Equal but for the last bits: what rows that travel together may get.

    `golden.json` scored each row alone. XGBoost 3.2 adds the trees' leaves in another order, so its margin differs in
    the last bit, when it predicts more rows at once.
    """
    assert scores.shape == expected.shape
    assert scores.dtype == np.float32
    np.testing.assert_array_max_ulp(scores, expected, maxulp=2)
