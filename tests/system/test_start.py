"""A server that cannot serve says why in one line, all of it, and does not start."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import IRIS, ROOT


def start(**settings: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SCORER_")}
    command = [sys.executable, "-m", "service.cli", "serve"]
    return subprocess.run(
        command, cwd=ROOT, env=environment | settings, capture_output=True, text=True, timeout=60, check=False
    )


def refusal(**settings: str) -> str:
    """The one line of a start that is refused."""
    done = start(**settings)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("xgboost-server: ")
    return lines[0]


def test_every_fault_is_listed_at_once() -> None:
    line = refusal(SCORER_MODEL="/no/such/model.ubj", SCORER_PORT="eighty", SCORER_MAX_BODYBYTES="1")
    assert "/no/such/model.ubj: no such file or folder" in line
    assert "SCORER_PORT: expected a whole number from 1 to 65535" in line
    assert "SCORER_MAX_BODYBYTES: no such setting; did you mean SCORER_MAX_BODY_BYTES?" in line


def test_a_taken_port_is_a_fault_like_any_other() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal(SCORER_MODEL="/no/such/model.ubj", SCORER_PORT=str(port))
    assert f"127.0.0.1:{port}: Address already in use" in line
    assert "no such file or folder" in line


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (pickle.dumps({"model": 1}), "a pickle"),
        (b"<html>", "a web page"),
        (b'{"learner": {}}', "no learner_model_param"),
        (IRIS.read_bytes()[:20_000], "not a document of UBJSON"),
    ],
)
def test_a_broken_model_is_refused_with_its_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.ubj"
    path.write_bytes(content)
    line = refusal(SCORER_MODEL=str(path))
    assert str(path) in line
    assert reason in line


def test_a_file_that_would_kill_xgboost_is_refused(tmp_path: Path) -> None:
    """XGBoost 3.2 dies of a JSON file nested 200,000 deep."""
    path = tmp_path / "model.json"
    path.write_bytes(b'{"learner":' + b"[" * 200_000 + b"]" * 200_000 + b"}")
    assert "nested deeper than 32" in refusal(SCORER_MODEL=str(path))


def test_another_file_than_the_pinned_one_is_refused() -> None:
    assert "SCORER_MODEL_SHA256 asks for" in refusal(SCORER_MODEL=str(IRIS), SCORER_MODEL_SHA256="0" * 64)


def test_gunicorn_started_by_hand_refuses_bad_settings_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py"],
        cwd=ROOT,
        env=os.environ | {"SCORER_MODEL": str(IRIS), "SCORER_PRT": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "did you mean SCORER_PORT?" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_lies_in_the_current_folder_is_not_run(tmp_path: Path) -> None:
    """Whoever checks a file among downloads must not run what lies beside it under the name of a module."""
    for name in ("service", "random", "json", "struct"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('code of the current folder runs')")
    done = subprocess.run(
        [Path(sys.executable).with_name("xgboost-server"), "check", IRIS],
        cwd=tmp_path,
        env=os.environ | {"SCORER_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "packed: kernels of our own" in done.stdout
