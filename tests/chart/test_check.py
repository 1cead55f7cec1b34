"""The script of `helm test`, against a real server: it is content with a right one and not with a wrong one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.chart.helm import CHART
from tests.serving import IRIS, RunningServer, free_port, running_server, wait_until

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
        "EXTRA_PATHS": "[]",
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


def test_paths_that_are_let_through_on_purpose_are_no_fault(server: RunningServer) -> None:
    result = check("edge", server, EXTRA_PATHS='["/readyz"]')
    assert "/readyz" not in result.stdout
    assert "BROKEN: GET /livez is not there; found 200" in result.stdout


def test_nobody_at_the_address_is_told_in_a_sentence(server: RunningServer) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    result = check("service", server, SERVICE_URL=nowhere)
    assert result.returncode == 1
    assert f"gives the golden predictions; found {nowhere}: [Errno 111] Connection refused" in result.stdout
    assert result.stderr == ""


@dataclass(frozen=True)
class TlsServer:
    """A server with the certificate of iris.example.com, which the authorities in the file sign, at an address of another name."""

    url: str
    authorities: Path


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("iris.example.com").private_key_and_cert_chain_pem.write_to_path(folder / "iris.pem")
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "--bind", f"127.0.0.1:{port}"]
    options = {"GUNICORN_CMD_ARGS": f"--certfile {folder / 'iris.pem'} --keyfile {folder / 'iris.pem'}"}
    settings = {
        "SCORER_MODEL": str(IRIS),
        "SCORER_PORT": str(port),
        "WEB_CONCURRENCY": "1",
        "SCORER_MODEL_NAME": "iris",
    }
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=os.environ | settings | options, stdout=log, stderr=log) as process,
    ):
        try:
            wait_until(lambda: listens(port), 60)
            yield TlsServer(f"https://127.0.0.1:{port}", folder / "ca.pem")
        finally:
            process.terminate()


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def test_a_certificate_is_checked_for_the_host_and_not_for_the_address(server: RunningServer, tls: TlsServer) -> None:
    """A pod reaches the proxy by the name of its Service, of which it has no certificate."""
    result = check("edge", server, EDGE_URL=tls.url, SSL_CERT_FILE=str(tls.authorities))
    assert result.stdout.startswith("ok: POST /v1/models/iris:predict gives the golden predictions\n")


def test_a_certificate_of_another_host_or_an_unknown_authority_fails(server: RunningServer, tls: TlsServer) -> None:
    trusted = {"EDGE_URL": tls.url, "SSL_CERT_FILE": str(tls.authorities)}
    for changes in (trusted | {"EDGE_HOST": "churn.example.com"}, {"EDGE_URL": tls.url}):
        result = check("edge", server, **changes)
        assert result.returncode == 1
        assert "certificate verify failed" in result.stdout.splitlines()[0]
