"""The dashboard is whole, and every panel shows something of a real server that a real Prometheus scrapes."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.dashboard import ROWS, SELECT, Panel, Query, dashboard, to_text
from service.metrics import FAMILIES
from tests.chart.helm import CASES, CHART, find, manifests, missing
from tests.chart.prometheus import MISSING, PROMETHEUS, Prometheus, Series, running_prometheus
from tests.serving import IRIS, RunningServer, free_port, running_server, wait_until

PANELS = [panel for row in ROWS for panel in row.panels]
BODY = b'{"instances": [[6.8, 2.8, 4.8, 1.4]]}'

needs_helm = pytest.mark.skipif(bool(missing()), reason=missing())


def exported_names() -> set[str]:
    names = {family.name for family in FAMILIES}
    for family in FAMILIES:
        if family.kind == "histogram":
            names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
    return names


def is_of_limits(expression: str) -> bool:
    """Where nobody grants a quota or sets a limit, there is no such metric."""
    return bool(re.search(r'scorer_cpu_(?:throttled_)?periods_total|scorer_cpu_limit|kind="limit"', expression))


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


def ask(server: RunningServer, stop: threading.Event) -> None:
    while not stop.is_set():
        server.request("/v1/models/iris:predict", BODY, port=server.port)
        server.request("/v1/models/iris:predict", b'{"instances": [["a"]]}', port=server.port)
        time.sleep(0.02)


@contextmanager
def load(server: RunningServer) -> Iterator[None]:
    """Scores and mistakes, as long as it lasts."""
    stop = threading.Event()
    caller = threading.Thread(target=ask, args=(server, stop))
    caller.start()
    try:
        yield
    finally:
        stop.set()
        caller.join()


@dataclass(frozen=True)
class Watched:
    """What Prometheus saw of a server: what the tiles at the top show while nobody asks, and then all that happened."""

    prometheus: Prometheus
    idle: dict[str, list[Series]]


STATS = [panel for panel in PANELS if panel.kind == "stat"]
SCORED = f'rate(scorer_requests_total{{{SELECT},wire="kserve_v1"}}[$__rate_interval]) > 0'
QUIET = f'sum(rate(scorer_requests_total{{{SELECT},wire="kserve_v1"}}[$__rate_interval])) == 0'
SWAPPED = f"increase(scorer_model_swaps_total{{{SELECT}}}[$__rate_interval]) > 0"
DRAINED = f'increase(scorer_worker_exits_total{{{SELECT},cause="drained"}}[$__rate_interval]) > 0'


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Callers come and go; nobody asks; then they come again, and a second version of the model."""
    folder = tmp_path_factory.mktemp("prometheus")
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(IRIS.parent, models / "1")
    with (
        running_server(
            SCORER_ADMIN_PORT=str(free_port()),
            SCORER_MODEL=str(models),
            SCORER_MODEL_NAME="iris",
            SCORER_MODEL_POLL_SECONDS="1",
        ) as server,
        running_prometheus(folder, f"{server.host}:{server.admin_port}") as prometheus,
    ):
        # A rate takes two scrapes.
        wait_until(lambda: prometheus.has_had(f"rate(scorer_cpu_seconds_total{{{SELECT}}}[$__rate_interval]) > 0"), 60)
        with load(server):
            wait_until(lambda: prometheus.has_had(SCORED), 60)
        # Before the first request there is no series yet, and nothing to divide by nothing.
        wait_until(lambda: prometheus.query(QUIET), 60)
        idle = {panel.title: prometheus.query(panel.queries[0].expression) for panel in STATS}
        with load(server):
            shutil.copytree(IRIS.parent, models / "2")
            wait_until(lambda: prometheus.has_had(SWAPPED) and prometheus.has_had(DRAINED), 60)
            yield Watched(prometheus, idle)


needs_prometheus = pytest.mark.skipif(not PROMETHEUS, reason=MISSING)


def has_data(prometheus: Prometheus, query: Query) -> bool:
    """Something of the server's, with every label that the legend names; a zero that the query itself adds is nothing."""
    wanted = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
    return any(wanted <= set(series["metric"]) for series in prometheus.query_since_start(query.expression))


@needs_prometheus
@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_every_query_has_data_of_a_server_that_works(watched: Watched, panel: Panel) -> None:
    """But for limits that this machine does not set; the cluster's pods have them, and tests/cluster looks there."""
    empty = [query.expression for query in panel.queries if not has_data(watched.prometheus, query)]
    assert [expression for expression in empty if not is_of_limits(expression)] == []


@needs_prometheus
@pytest.mark.parametrize("panel", STATS, ids=lambda panel: panel.title)
def test_a_tile_of_a_server_that_nobody_asks_shows_a_number_or_nothing(watched: Watched, panel: Panel) -> None:
    """NaN would be red."""
    assert [series for series in watched.idle[panel.title] if series["value"][1] == "NaN"] == []


@needs_prometheus
@needs_helm
def test_no_alert_fires_on_a_server_that_works(watched: Watched) -> None:
    """But for those of limits, which are this machine's: of the tests as a whole, and of what else runs."""
    groups = find(manifests(CASES["nginx"]), "PrometheusRule")["spec"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    recorded = {rule["record"]: rule["expr"] for rule in rules if "record" in rule}  # nobody records them here
    for rule in rules:
        if "alert" in rule and not is_of_limits(rule["expr"]):
            expression = re.sub(r"(scorer:[\w:]+)\{.*?\}", lambda found: f"({recorded[found[1]]})", rule["expr"])
            assert watched.prometheus.query(expression) == [], rule["alert"]


def test_folder_holds_the_dashboard_alone() -> None:
    assert [path.name for path in Path(CHART / "dashboards").iterdir()] == ["xgboost-server.json"]
