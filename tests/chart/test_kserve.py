"""KServe's resources for the image: whole, and the image does what they ask of it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.chart.helm import closed
from tests.serving import IRIS, ROOT, running_server

FOLDER = ROOT / "examples" / "kserve"
SCHEMAS = Path(os.environ.get("SCHEMAS", "/nonexistent"))
FILES = sorted(FOLDER.glob("*.yaml"))


def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def container() -> Any:
    (found,) = load("serving-runtime.yaml")["spec"]["containers"]
    return found


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason="SCHEMAS names no folder of {group}/{kind}_{version}.json")
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_kserve_accepts_every_field(file: Path) -> None:
    manifest = load(file.name)
    group, version = manifest["apiVersion"].split("/")
    schema = json.loads((SCHEMAS / group / f"{manifest['kind'].lower()}_{version}.json").read_text(encoding="utf-8"))
    jsonschema.validate(manifest, closed(schema))


@pytest.mark.parametrize("name", ["inference-service.yaml", "inference-service-knative.yaml"])
def test_each_service_asks_for_a_format_and_protocol_that_the_runtime_has(name: str) -> None:
    model = load(name)["spec"]["predictor"]["model"]
    runtime = load("serving-runtime.yaml")
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    formats = [(one["name"], one["version"]) for one in runtime["spec"]["supportedModelFormats"]]
    assert (model["modelFormat"]["name"], model["modelFormat"]["version"]) in formats


def test_the_server_starts_as_the_runtime_starts_it_and_answers_its_probes_and_protocols(tmp_path: Path) -> None:
    """With a folder of ours in place of /mnt/models, and another port."""
    models = tmp_path / "models"
    models.mkdir()
    shutil.copy(IRIS, models)
    environment = {entry["name"]: entry["value"].replace("{{.Name}}", "iris") for entry in container()["env"]}
    assert environment.pop("SCORER_MODEL") == "/mnt/models"
    assert environment.pop("SCORER_PORT") == str(container()["ports"][0]["containerPort"])
    environment["SCORER_CACHE_DIR"] = str(tmp_path / "cache")
    with running_server(SCORER_MODEL=str(models), **environment) as server:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert server.request(container()[probe]["httpGet"]["path"]).status == 200
        body = b'{"instances": [[6.8, 2.8, 4.8, 1.4]]}'
        assert server.request("/v1/models/iris:predict", body).json() == {"predictions": [1.0]}
        assert server.request("/v2/models/iris/ready").json()["ready"] is True
        assert server.request("/metrics").status == 200
