"""The add-ons' values are ones that their charts know: Helm ignores a misspelt one without a word.

`make test-platform` fetches the charts, which takes the internet; CHARTS names the folder that they are in. What was checked when,
also without the internet: docs/gitops.md.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.helm import TOOLS, missing
from tests.serving import ROOT

CHARTS = os.environ.get("CHARTS", "")
FILES = sorted(path for folder in ("platform", "optional") for path in (ROOT / "argocd" / folder).glob("*.yaml"))
Values = dict[str, Any]


def unknown(given: Values, chart: Path) -> list[str]:
    """The keys that neither the chart's values nor its schema have, dotted; a map that is empty there takes any key."""
    schema = chart / "values.schema.json"
    properties = json.loads(schema.read_text()).get("properties", {}) if schema.exists() else {}
    return list(_unknown(given, defaults(chart), properties, ""))


def defaults(chart: Path) -> Values:
    own: Values = yaml.safe_load((chart / "values.yaml").read_text()) or {}
    for part in (chart / "charts").glob("*/"):
        own[part.name] = merged(defaults(part), own.get(part.name) or {})
    return own


def merged(below: Values, above: Values) -> Values:
    found = {
        key: merged(below[key], value) if isinstance(below.get(key), dict) and isinstance(value, dict) else value
        for key, value in above.items()
    }
    return below | found


def _unknown(given: Values, known: Any, properties: Values, place: str) -> Iterator[str]:
    for key, value in given.items():
        described = properties.get(key, {})
        if key not in known and key not in properties:
            yield f"{place}{key}"
        elif isinstance(value, dict) and isinstance(known.get(key), dict) and known[key]:
            yield from _unknown(value, known[key], described.get("properties", {}), f"{place}{key}.")


@pytest.mark.skipif(not CHARTS, reason="CHARTS names no folder of charts; `make test-platform` fetches them")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_value_that_an_add_on_is_given_is_one_of_its_chart(path: Path) -> None:
    source = yaml.safe_load(path.read_text())["spec"]["source"]
    chart = Path(CHARTS) / f"{source['chart']}-{source['targetRevision']}" / source["chart"]
    assert unknown(source["helm"]["valuesObject"], chart) == []


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    """With a part that has values of its own, as kube-prometheus-stack has Grafana."""
    folder = tmp_path / "add-on"
    part = folder / "charts" / "part"
    part.mkdir(parents=True)
    for name, at in (("add-on", folder), ("part", part)):
        (at / "Chart.yaml").write_text(f"apiVersion: v2\nname: {name}\nversion: 1.2.3\n")
    (folder / "values.yaml").write_text("controller: {replicas: 1, annotations: {}}\npart: {enabled: true}\n")
    (part / "values.yaml").write_text("sidecar: {label: x}\n")
    schema = {"properties": {"controller": {"properties": {"class": {"type": "string"}}}}}
    (folder / "values.schema.json").write_text(json.dumps(schema))
    return folder


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"controller": {"replicas": 2, "annotations": {"a": "b"}, "class": "c"}}, []),
        ({"part": {"enabled": False, "sidecar": {"label": "y"}}}, []),
        ({"controler": {"replicas": 2}}, ["controler"]),
        (
            {"controller": {"replica": 2}, "part": {"sidecar": {"lable": "y"}}},
            ["controller.replica", "part.sidecar.lable"],
        ),
    ],
)
def test_a_misspelt_value_is_found_wherever_it_is(chart: Path, given: Values, expected: list[str]) -> None:
    assert unknown(given, chart) == expected


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_the_charts_come_from_where_argo_cd_gets_them_and_at_its_versions(chart: Path, tmp_path: Path) -> None:
    """The script and a real Helm, with a repository of this machine."""
    helm, shelf = str(TOOLS / "helm4"), tmp_path / "shelf"
    for command in (["package", str(chart), "--destination", str(shelf)], ["repo", "index", str(shelf)]):
        subprocess.run([helm, *command], check=True, capture_output=True)
    handler = functools.partial(Quiet, directory=str(shelf))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        file = tmp_path / "application.yaml"
        source = f"repoURL: http://127.0.0.1:{server.server_port}\n    chart: add-on\n    targetRevision: 1.2.3"
        file.write_text(f"spec:\n  source:\n    {source}\n")
        command = [str(ROOT / "delivery/charts.sh"), helm, str(tmp_path / "charts"), str(file)]
        environment = os.environ | {"HELM_CACHE_HOME": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1"}
        done = [subprocess.run(command, capture_output=True, text=True, env=environment) for _ in range(2)]
        server.shutdown()
    assert [(run.returncode, run.stderr) for run in done] == [(0, "")] * 2
    assert unknown({"part": {"sidecar": {"label": "y"}}}, tmp_path / "charts/add-on-1.2.3/add-on") == []


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *_: Any) -> None:
        pass
