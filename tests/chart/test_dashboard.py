"""The dashboard is whole, and every panel shows something of a real server that a real Prometheus scrapes."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.dashboard import ROWS, dashboard, to_text
from service.metrics import FAMILIES
from tests.chart.helm import CASES, CHART, find, find_tool, manifests, missing
from tests.serving import RunningServer, free_port, running_server, wait_until

PROMETHEUS = find_tool("prometheus")
PANELS = [panel for row in ROWS for panel in row.panels]
BODY = b'{"instances": [[6.8, 2.8, 4.8, 1.4]]}'
# Where the machine grants no quota and no limit, and there is no such metric.
ONLY_WITH_LIMITS = {"Memory nearest to its limit", "CPU throttled", "Memory"}

needs_helm = pytest.mark.skipif(bool(missing()), reason=missing())


def exported_names() -> set[str]:
    names = {family.name for family in FAMILIES}
    for family in FAMILIES:
        if family.kind == "histogram":
            names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
    return names


def expressions() -> list[str]:
    return [query.expression for panel in PANELS for query in panel.queries]


def test_file_is_the_one_that_the_code_makes() -> None:
    assert (CHART / "dashboards" / "xgboost-server.json").read_text(encoding="utf-8") == to_text(), "make chart-golden"


@pytest.mark.parametrize(
    "panel", [panel for panel in dashboard()["panels"] if panel["type"] != "row"], ids=lambda panel: panel["title"]
)
def test_a_panel_says_what_it_shows_in_which_unit_and_where_from(panel: dict[str, Any]) -> None:
    assert len(panel["description"]) > 20
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    for part in (panel, *panel["targets"]):
        assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not taken & cells, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))


def test_every_query_is_about_the_chosen_release_and_pods() -> None:
    for expression in expressions():
        for selector in re.findall(r"\{(.*?)\}", expression):
            assert 'namespace="$namespace",job="$job",pod=~"$pod"' in selector, expression


def test_every_rate_follows_the_scrape_interval() -> None:
    """A fixed window is empty where Prometheus scrapes seldom, and blurs where it scrapes often."""
    for expression in expressions():
        assert set(re.findall(r"\[(.*?)\]", expression)) <= {"$__rate_interval"}, expression


@needs_helm
def test_dashboard_and_rules_name_metrics_that_are_there() -> None:
    rules = json.dumps(find(manifests(CASES["nginx"]), "PrometheusRule")["spec"])
    named = set(re.findall(r"\bscorer_[a-z_]+", rules)) | {
        name for text in expressions() for name in re.findall(r"\bscorer_[a-z_]+", text)
    }
    assert named <= exported_names()


@needs_helm
def test_each_release_has_a_dashboard_of_its_own_for_the_sidecar() -> None:
    document = find(manifests(CASES["nginx"]), "ConfigMap", "-dashboard")
    assert document["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert document["metadata"]["annotations"] == {"grafana_folder": "Scoring"}
    (text,) = document["data"].values()
    board = json.loads(text)
    assert board["title"] == "Scoring / scoring / churn"
    assert board["uid"] != dashboard()["uid"]
    assert len(board["uid"]) <= 40, "Grafana takes no longer one"
    current = {variable["name"]: variable.get("current", {}).get("value") for variable in board["templating"]["list"]}
    assert current == {"datasource": None, "namespace": "scoring", "job": "churn", "pod": "$__all"}
    assert board["panels"] == dashboard()["panels"]


@needs_helm
def test_a_dashboard_fits_into_the_annotation_of_kubectl_apply() -> None:
    """Longer ones need server-side apply (grafana/helm-charts#209)."""
    assert len(yaml.safe_dump(find(manifests(CASES["nginx"]), "ConfigMap", "-dashboard"))) < 262_144


class Prometheus:
    """A real one, which scrapes a real server each second and answers queries."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def query(self, expression: str) -> list[dict[str, Any]]:
        text = expression
        for name, value in (("$namespace", "scoring"), ("$job", "churn"), ("$pod", ".*"), ("$__rate_interval", "5s")):
            text = text.replace(name, value)
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': text})}") as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return result

    def has_seen_load(self) -> bool:
        try:
            return bool(self.query(f"rate(scorer_requests_total{{{SELECT}}}[$__rate_interval]) > 0"))
        except OSError:
            return False


SELECT = 'namespace="$namespace",job="$job",wire="kserve_v1"'


def ask(server: RunningServer, stop: threading.Event) -> None:
    while not stop.is_set():
        server.request("/v1/models/iris:predict", BODY)
        server.request("/v1/models/iris:predict", b'{"instances": [["a"]]}')
        time.sleep(0.02)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    port = free_port()
    stop = threading.Event()
    with running_server() as server:
        target = {
            "targets": [f"{server.host}:{server.admin_port}"],
            "labels": {"namespace": "scoring", "pod": "churn-1"},
        }
        job = {"job_name": "churn", "scrape_interval": "1s", "scrape_timeout": "1s", "static_configs": [target]}
        (folder / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [job]}))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    PROMETHEUS,
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )
        load = threading.Thread(target=ask, args=(server, stop))
        load.start()
        try:
            found = Prometheus(port)
            wait_until(found.has_seen_load, 60)
            yield found
        finally:
            stop.set()
            load.join()
            process.terminate()
            process.wait(30)


@pytest.mark.skipif(not PROMETHEUS, reason="prometheus is missing: Debian's package, which `make test-chart` fetches")
@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_no_panel_is_empty_when_a_server_works(prometheus: Prometheus, panel: Any) -> None:
    results = [prometheus.query(query.expression) for query in panel.queries]
    if panel.title not in ONLY_WITH_LIMITS:
        assert any(results)
    for query, series in zip(panel.queries, results, strict=True):
        for one in series:
            for label in re.findall(r"\{\{(\w+)\}\}", query.legend):
                assert label in one["metric"] or query.expression.endswith("vector(0)"), f"the legend names {label}"


@pytest.mark.skipif(not PROMETHEUS or bool(missing()), reason="prometheus or helm is missing")
def test_no_alert_fires_on_a_server_that_works(prometheus: Prometheus) -> None:
    for group in find(manifests(CASES["nginx"]), "PrometheusRule")["spec"]["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                assert prometheus.query(rule["expr"]) == [], rule["alert"]


def test_folder_holds_the_dashboard_alone() -> None:
    assert [path.name for path in Path(CHART / "dashboards").iterdir()] == ["xgboost-server.json"]
