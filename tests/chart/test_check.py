"""The script of `helm test`, against a real server: it is content with a right one and not with a wrong one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.chart.helm import CHART
from tests.serving import RunningServer, free_port, running_server

CHECK = CHART / "files" / "check.py"
ROWS = [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(SCORER_ADMIN_PORT=str(free_port()), SCORER_MODEL_NAME="iris") as running:
        yield running


def check(what: str, server: RunningServer, **changes: str) -> subprocess.CompletedProcess[str]:
    callers, operators = (f"http://{server.host}:{port}" for port in (server.port, server.admin_port))
    environment = {
        "SERVICE_URL": callers,
        "ADMIN_URL": operators,
        "EDGE_URL": callers,
        "EDGE_HOST": "iris.example.com",
        "MODEL": "iris",
        "ROWS": json.dumps(ROWS),
        "PREDICTIONS": "[1.0, 1.0]",
        **changes,
    }
    return subprocess.run([sys.executable, CHECK, what], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("what", ["service", "admin"])
def test_a_right_server_passes(server: RunningServer, what: str) -> None:
    result = check(what, server)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "BROKEN" not in result.stdout
    assert result.stdout.startswith("ok: ")


def test_a_wrong_prediction_fails(server: RunningServer) -> None:
    result = check("service", server, PREDICTIONS="[1.0, 2.0]")
    assert result.returncode == 1
    assert "BROKEN: POST /v1/models/iris:predict gives the golden predictions; found [1.0, 1.0]" in result.stdout


def test_another_models_name_fails(server: RunningServer) -> None:
    assert check("service", server, MODEL="churn").returncode == 1


def test_without_golden_rows_the_model_must_answer_all_the_same(server: RunningServer) -> None:
    assert check("service", server, ROWS="[]", PREDICTIONS="[]").returncode == 0
    assert check("service", server, ROWS="[]", PREDICTIONS="[]", MODEL="churn").returncode == 1


def test_metrics_on_the_callers_port_fail(server: RunningServer) -> None:
    result = check("service", server, SERVICE_URL=f"http://{server.host}:{server.admin_port}")
    assert result.returncode == 1
    assert "BROKEN: GET /metrics is not there; found 200" in result.stdout


def test_no_metrics_on_the_admin_port_fail(server: RunningServer) -> None:
    assert check("admin", server, ADMIN_URL=f"http://{server.host}:{server.port}").returncode == 1


def test_a_proxy_that_lets_everything_through_fails(server: RunningServer) -> None:
    """Straight to the server, which is what such a proxy comes to."""
    result = check("edge", server)
    assert result.returncode == 1
    assert "BROKEN: GET /readyz is not there; found 200" in result.stdout
