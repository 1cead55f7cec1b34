"""Tampered models offered to a whole server: it refuses to start or to reload, says why, and nothing dies of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import IRIS, ROOT, running_server, wait_until
from tests.tampering.cases import make_cases

# One of each kind that ends XGBoost 3.2.0: at loading, at the first prediction, by waiting for ever; and one of another format.
KILLERS = (
    "deep-lists.json",
    "left-child-out-of-range.ubj",
    "circle-apart-from-the-root.json",
    "feature-out-of-range.ubj",
    "id-twice.ubj",
    "vector-leaf-weights-missing.ubj",
    "pickle-4.pkl",
)


@pytest.fixture(scope="module")
def tampered() -> dict[str, bytes]:
    return {name: data for name, data, _ in make_cases() if name in KILLERS}


@pytest.mark.parametrize("name", KILLERS)
def test_a_server_refuses_to_start_with_one_line_of_reason(
    tmp_path: Path, tampered: dict[str, bytes], name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(tampered[name])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SCORER_")}
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "serve"],
        cwd=ROOT,
        env=environment | {"SCORER_MODEL": str(path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"xgboost-server: {path}: ")
    assert "kills" not in line


def test_a_server_that_is_told_to_reload_one_goes_on(tmp_path: Path, tampered: dict[str, bytes]) -> None:
    """Every candidate is refused before the master lets go of a worker."""
    path = tmp_path / "iris" / "1" / "model.ubj"
    path.parent.mkdir(parents=True)
    shutil.copy(IRIS, path)
    with running_server(None, SCORER_MODEL=str(path.parents[1]), SCORER_MODEL_POLL_SECONDS="0") as server:
        workers = server.workers()
        for version, name in enumerate(KILLERS[:-1], start=2):
            form = "json" if name.endswith(".json") else "ubj"
            candidate = path.parents[1] / str(version) / f"model.{form}"
            candidate.parent.mkdir()
            candidate.write_bytes(tampered[name])
            server.signal(signal.SIGHUP)
            wait_until(lambda: server.log.read_text().count("model refused") == version - 1)  # noqa: B023 - waited for
        assert server.workers() == workers
        answer = server.request("/v1/models/iris:predict", b'{"instances": [[6.8, 2.8, 4.8, 1.4]]}')
        assert (answer.status, answer.headers["X-Model-Version"]) == (200, "1")
