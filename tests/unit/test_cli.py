"""The command line: what operators type before anything listens. Faults are one line and exit code 1."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service import __version__
from service.cli import main
from service.settings import SETTINGS
from tests.apps import Example


def run(*arguments: str, **environ: str) -> Result:
    """The command in an environment that has these settings and no others of ours."""
    unset = {setting.variable: None for setting in SETTINGS}
    return CliRunner().invoke(main, list(arguments), env={**unset, "COLUMNS": "120", **environ})


def fault_of(result: Result) -> str:
    """The one line on standard error."""
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "Traceback" not in result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("xgboost-server: ")
    return line.removeprefix("xgboost-server: ")


def words(text: str) -> str:
    """Without the line breaks of the layout."""
    return " ".join(text.split())


@pytest.fixture
def taken_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


def test_check_says_what_a_good_model_expects(iris: Example) -> None:
    """Everything a caller of the model needs to know."""
    result = run("check", str(iris.path))
    assert result.exit_code == 0
    assert result.stderr == ""
    assert f"sha256:{iris.model.identity.digest}\n" in result.stdout, "in one piece, to be copied"
    said = words(result.stdout)
    for expected in (
        f"{iris.path} can be served",
        f"sha256:{iris.model.identity.digest}",
        "multi:softmax",
        "features 4",
        "rounds 20",
        "outputs 1",
        ", ".join(iris.names),
    ):
        assert expected in said


def test_check_takes_a_folder_of_versions(iris: Example) -> None:
    assert run("check", str(iris.path.parent)).exit_code == 0


def test_check_says_why_a_bad_model_cannot_be_served(tmp_path: Path) -> None:
    path = tmp_path / "model.ubj"
    path.write_bytes(b"\x80\x04K\x01.")
    fault = fault_of(run("check", str(path)))
    assert fault == f"{path}: this is a pickle; save the model with Booster.save_model('model.ubj')"


def test_check_says_that_there_is_no_model(tmp_path: Path) -> None:
    assert fault_of(run("check", str(tmp_path / "gone.ubj"))) == f"{tmp_path / 'gone.ubj'}: no such file or folder"


def test_check_does_not_depend_on_the_environment(iris: Example) -> None:
    """A model is checked before a merge, where the server's settings are not."""
    assert run("check", str(iris.path), SCORER_PORT="nonsense", SCORER_MODEL="elsewhere.ubj").exit_code == 0


def test_serve_lists_all_faults_of_the_settings_in_one_line() -> None:
    """What is wrong is told at once and before anything listens."""
    fault = fault_of(run("serve", SCORER_PORT="x", SCORER_MODLE="m.ubj", SCORER_ACCESS_LOG_RATIO="7"))
    assert fault.split("; ") == [
        "SCORER_MODLE: no such setting",
        "did you mean SCORER_MODEL?",
        "SCORER_MODEL: not set",
        "expected a model file (.ubj or .json) or a folder of <version>/model.ubj",
        "SCORER_PORT: expected a whole number from 1 to 65535",
        "SCORER_ACCESS_LOG_RATIO: expected a number from 0 to 1",
    ]


def test_serve_takes_what_kserve_gives_its_runtimes(tmp_path: Path, taken_port: str) -> None:
    """With and without the word `serve`: KServe's runtime replaces the image and keeps its own arguments."""
    arguments = ("--model_name=churn", f"--model_dir={tmp_path}", f"--http_port={taken_port}", "--nthread=1")
    for command in (arguments, ("serve", *arguments)):
        fault = fault_of(run(*command))
        assert f"{tmp_path}: expected <version>/model.ubj" in fault
        assert f"127.0.0.1:{taken_port}: " in fault


def test_serve_looks_where_kserve_puts_a_model() -> None:
    assert "/mnt/models: no such file or folder" in fault_of(run("serve", STORAGE_URI="s3://models/churn"))


def test_serve_lists_faults_of_the_model_and_the_ports_together(tmp_path: Path, taken_port: str) -> None:
    """A model that is not there and a port that is taken are two faults of one start."""
    model = tmp_path / "gone.ubj"
    fault = fault_of(run("serve", SCORER_MODEL=str(model), SCORER_PORT=taken_port))
    assert fault == f"{model}: no such file or folder; 127.0.0.1:{taken_port}: Address already in use"


def test_serve_refuses_a_host_that_is_not_here(tmp_path: Path) -> None:
    """An address of another machine (from a range for documentation) cannot be listened on."""
    environ = {"SCORER_MODEL": str(tmp_path / "gone.ubj"), "SCORER_HOST": "203.0.113.1", "SCORER_PORT": "8000"}
    assert "; 203.0.113.1:8000: " in fault_of(run("serve", **environ))


def test_serve_refuses_a_model_with_another_digest(iris: Example, taken_port: str) -> None:
    """The pinned digest is checked before the start, not by each worker after it."""
    environ = {"SCORER_MODEL": str(iris.path), "SCORER_MODEL_SHA256": "0" * 64, "SCORER_PORT": taken_port}
    assert f"{iris.path}: the sha256 is {iris.model.identity.digest}" in fault_of(run("serve", **environ))


def test_settings_lists_every_setting_with_its_default() -> None:
    """No environment is needed to read the reference."""
    result = run("settings")
    assert result.exit_code == 0
    said = words(result.stdout)
    for setting in SETTINGS:
        assert f"{setting.variable}={setting.default}" in said
        assert f"{setting.meaning} (default: {setting.default or 'none'})" in said


def test_settings_shows_the_values_in_force() -> None:
    said = words(run("settings", SCORER_PORT="8123", SCORER_KEEPALIVE_SECONDS="80").stdout)
    assert "SCORER_PORT=8123" in said
    assert "(default: 8000)" in said
    assert "SCORER_KEEPALIVE_SECONDS=80.0" in said


def test_settings_says_what_is_wrong() -> None:
    assert fault_of(run("settings", SCORER_PORT="x")) == "SCORER_PORT: expected a whole number from 1 to 65535"


def test_version_and_help() -> None:
    """`-h` lists every command."""
    assert __version__ in run("--version").stdout
    said = run("-h").stdout
    for command in main.commands:
        assert command in said


def test_an_unknown_command_is_the_shells_exit_code_2() -> None:
    result = run("sevre")
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_check_lists_all_faults_of_a_model(tmp_path: Path) -> None:
    """One line says that there are several, each has a line with its place."""
    path = tmp_path / "model.json"
    path.write_bytes(b'{"learner": {"attributes": {}}}')
    result = run("check", str(path))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"xgboost-server: {path} cannot be served, 3 faults:",
        "  the document: no version",
        "  learner: no learner_model_param",
        "  learner: no objective",
    ]


def test_check_tells_machines_in_json(tmp_path: Path, iris: Example) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(b"{}")
    refused, admitted = run("check", "--json", str(path)), run("check", "--json", str(iris.path))
    assert (refused.exit_code, admitted.exit_code) == (1, 0)
    assert json.loads(refused.stdout) == {"servable": False, "faults": [f"{path}: the document: no learner"]}
    said = json.loads(admitted.stdout)
    assert (said["servable"], said["faults"], said["engine"]) == (True, [], "packed")
    assert said["record"]["digest"] == f"sha256:{iris.model.identity.digest}"


def test_check_writes_the_admission_record(tmp_path: Path, iris: Example) -> None:
    """The same bytes each time, so that a record can be committed and compared."""
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    for path in (first, second):
        assert run("check", str(iris.path), "--record", str(path)).exit_code == 0
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.json", "second.json"]
    assert json.loads(first.read_bytes()) == {
        "schema": 1,
        "tool": f"xgboost-server {__version__}",
        "digest": f"sha256:{iris.model.identity.digest}",
        "bytes": iris.path.stat().st_size,
        "xgboost": "3.2.0",
        "booster": "gbtree",
        "objective": "multi:softmax",
        "trees": 60,
        "golden_rows": 12,
        "contract": {
            "features": 4,
            "feature_names": list(iris.names),
            "feature_types": [],
            "outputs": 1,
            "rounds": 20,
        },
    }


def test_a_refused_model_leaves_no_record(tmp_path: Path) -> None:
    """An older one stays as it is."""
    path, record = tmp_path / "model.json", tmp_path / "record.json"
    path.write_bytes(b"{}")
    record.write_text("older")
    fault_of(run("check", str(path), "--record", str(record)))
    assert record.read_text() == "older"


def test_check_pins_a_digest(iris: Example) -> None:
    """With or without the prefix that registries write before it."""
    digest = iris.model.identity.digest
    assert run("check", str(iris.path), "--sha256", f"sha256:{digest}").exit_code == 0
    assert f"the sha256 is {digest}" in fault_of(run("check", str(iris.path), "--sha256", "0" * 64))


def test_check_says_where_a_record_cannot_be_written(tmp_path: Path, iris: Example) -> None:
    place = tmp_path / "gone" / "record.json"
    assert fault_of(run("check", str(iris.path), "--record", str(place))) == f"{place}: No such file or directory"
