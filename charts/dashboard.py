"""The Grafana dashboard as data; `make chart-golden` writes it to xgboost-server/dashboards/, where the chart picks it up.

Classic JSON, which Grafana 10 to 13 read and the sidecar of kube-prometheus-stack hands on. Data source, namespace, job and
pods are variables; the chart fills in those of its release. Top to bottom: is it well, who asks, how long do they wait, where does
the time go, what is full, what do the pods use, what happened to them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

SELECT = 'namespace="$namespace",job="$job",pod=~"$pod"'
# Probes and metadata would thin out every share and every percentile.
CALLS = f'{SELECT},wire!="none"'
CALL_ROUTES = f'{SELECT},route!~"/|/livez|/readyz|/healthz|/metrics|unmatched"'
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
TABLE_COLUMNS = {"excludeByName": {"Time": True}, "renameByName": {"Value": "workers"}}


@dataclass(frozen=True)
class Query:
    expression: str
    legend: str = ""
    form: str = "time_series"


@dataclass(frozen=True)
class Panel:
    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    # Value from which on a colour holds.
    thresholds: tuple[tuple[float | None, str], ...] = ((None, "green"),)
    maximum: float | None = None
    decimals: int | None = None
    stacked: bool = False


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


def rate(name: str, select: str = SELECT) -> str:
    return f"rate({name}{{{select}}}[$__rate_interval])"


def quantile(share: float, name: str, select: str, by: str = "le") -> str:
    """Nothing while nobody asks: Grafana would show NaN, and colour it as the worst there is."""
    return f"histogram_quantile({share}, sum by ({by}) ({rate(name + '_bucket', select)})) >= 0"


def ratio(above: str, below: str) -> str:
    """Nothing while there is nothing below, for the same reason."""
    return f"{above} / ({below} > 0)"


def share_of_faults() -> str:
    faults = rate("scorer_requests_total", f'{CALLS},status=~"5.."')
    return ratio(f"(sum({faults}) or vector(0))", f"sum({rate('scorer_requests_total', CALLS)})")


WELL = Row(
    "Is it well?",
    (
        Panel(
            "Answers without a fault of ours",
            "Share of scoring requests that were not answered 5xx. The objective is in the alert rules.",
            "percentunit",
            (Query(f"1 - {share_of_faults()}"),),
            kind="stat",
            width=4,
            height=5,
            thresholds=((None, "red"), (0.99, "orange"), (0.999, "green")),
            decimals=3,  # by itself Grafana rounds 99.95 % to 100 %
        ),
        Panel(
            "Latency, p99",
            "99 of 100 scoring requests took less, from the whole request read to its answer written.",
            "s",
            (Query(quantile(0.99, "scorer_request_seconds", CALL_ROUTES)),),
            kind="stat",
            width=4,
            height=5,
            thresholds=((None, "green"), (0.1, "orange"), (0.5, "red")),
        ),
        Panel(
            "Requests",
            "Scoring requests a second, all pods together.",
            "reqps",
            (Query(f"sum({rate('scorer_requests_total', CALLS)})"),),
            kind="stat",
            width=4,
            height=5,
        ),
        Panel(
            "Pods that can score",
            "Pods with at least one worker that is ready, of those that Prometheus reaches.",
            "none",
            (Query(f'count(sum by (pod) (scorer_workers{{{SELECT},state="ready"}}) > 0) or vector(0)'),),
            kind="stat",
            width=4,
            height=5,
            thresholds=((None, "red"), (1, "orange"), (2, "green")),
        ),
        Panel(
            "Busiest pod",
            "Share of time that the event loops of the busiest pod worked. Above 0.8 requests wait; more pods help.",
            "percentunit",
            (Query(f"max(scorer_loop_busy_ratio{{{SELECT}}})"),),
            kind="stat",
            width=4,
            height=5,
            thresholds=((None, "green"), (0.6, "orange"), (0.8, "red")),
            maximum=1,
        ),
        Panel(
            "Memory nearest to its limit",
            "Working set against the limit, in the pod where it is highest. The kernel kills at 100 %.",
            "percentunit",
            (
                Query(
                    f'max(scorer_memory_bytes{{{SELECT},kind="working_set"}} / ignoring (kind) '
                    f'scorer_memory_bytes{{{SELECT},kind="limit"}})'
                ),
            ),
            kind="stat",
            width=4,
            height=5,
            thresholds=((None, "green"), (0.8, "orange"), (0.9, "red")),
            maximum=1,
        ),
        Panel(
            "Model and version in service",
            "Workers by what they serve. Two rows for long mean an update that does not end. Engine xgboost means that our kernels "
            "do not serve this model; the log says why.",
            "none",
            (
                Query(
                    f"sum by (model, version, digest, engine) (scorer_model_info{{{SELECT}}})",
                    "{{version}}",
                    form="table",
                ),
            ),
            kind="table",
            width=24,
            height=5,
        ),
    ),
)

TRAFFIC = Row(
    "Who asks",
    (
        Panel(
            "Requests by status",
            "Scoring requests a second. 4xx are mistakes of callers, 5xx are ours; 503 is overload, which tells callers to come back.",
            "reqps",
            (Query(f"sum by (status) ({rate('scorer_requests_total', CALLS)})", "{{status}}"),),
            stacked=True,
        ),
        Panel(
            "Requests by route",
            "Scoring requests a second, by protocol and path.",
            "reqps",
            (Query(f"sum by (wire, route) ({rate('scorer_requests_total', CALLS)})", "{{wire}} {{route}}"),),
            stacked=True,
        ),
        Panel(
            "Refusals by reason",
            "Requests refused a second, by the code of the error (docs/api.md says what each means for the caller).",
            "reqps",
            (Query(f"sum by (reason) ({rate('scorer_rejected_total')}) > 0 or vector(0)", "{{reason}}"),),
        ),
        Panel(
            "Share of faults",
            "Share of scoring requests answered 5xx.",
            "percentunit",
            (Query(share_of_faults(), "5xx"),),
        ),
        Panel(
            "Rows scored",
            "Rows a second, and rows in a request.",
            "short",
            (
                Query(f"sum({rate('scorer_rows_total')})", "rows a second"),
                Query(
                    ratio(f"sum({rate('scorer_rows_total')})", f"sum({rate('scorer_model_requests_total')})"),
                    "rows a request",
                ),
            ),
        ),
        Panel(
            "Requests by model version",
            "Scoring requests a second by what answered them: an update shows as one line taking over from another.",
            "reqps",
            (Query(f"sum by (model, version) ({rate('scorer_model_requests_total')})", "{{model}} {{version}}"),),
            stacked=True,
        ),
    ),
)

LATENCY = Row(
    "How long they wait, and where the time goes",
    (
        Panel(
            "Latency",
            "From the whole request read to its answer written, all scoring routes. What the proxy and the network add is not in it.",
            "s",
            tuple(
                Query(quantile(share, "scorer_request_seconds", CALL_ROUTES), name)
                for share, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"))
            ),
        ),
        Panel(
            "Latency, all of it",
            "How many requests took how long.",
            "s",
            (Query(f"sum by (le) ({rate('scorer_request_seconds_bucket', CALL_ROUTES)})", "{{le}}", form="heatmap"),),
            kind="heatmap",
        ),
        Panel(
            "Latency by route, p99",
            "99 of 100 requests of the route took less.",
            "s",
            (Query(quantile(0.99, "scorer_request_seconds", CALL_ROUTES, "le, route"), "{{route}}"),),
        ),
        Panel(
            "Stages of a request",
            "Mean time of a scoring request in each stage: decode the body, predict, encode the answer.",
            "s",
            (
                Query(
                    ratio(
                        f"sum by (stage) ({rate('scorer_stage_seconds_sum')})",
                        f"sum by (stage) ({rate('scorer_stage_seconds_count')})",
                    ),
                    "{{stage}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Stages, p99",
            "99 of 100 scoring requests spent less in the stage.",
            "s",
            (Query(quantile(0.99, "scorer_stage_seconds", SELECT, "le, stage"), "{{stage}}"),),
        ),
        Panel(
            "Turn of an event loop",
            "Whoever comes while a turn goes on waits for its end. Long turns come from large requests.",
            "s",
            tuple(
                Query(quantile(share, "scorer_loop_turn_seconds", SELECT), name)
                for share, name in ((0.5, "p50"), (0.99, "p99"), (0.999, "p99.9"))
            ),
        ),
    ),
)

FULL = Row(
    "What is full",
    (
        Panel(
            "Event loops busy",
            "Share of time that the event loops of a pod worked: the measure of saturation.",
            "percentunit",
            (Query(f"scorer_loop_busy_ratio{{{SELECT}}}", "{{pod}}"),),
            thresholds=((None, "green"), (0.8, "red")),
            maximum=1,
        ),
        Panel(
            "In flight and connections",
            "Requests read and not yet answered, and connections open, all pods together.",
            "short",
            (
                Query(f"sum(scorer_in_flight{{{SELECT}}})", "in flight"),
                Query(f"sum(scorer_open_connections{{{SELECT}}})", "connections"),
                Query(f"sum({rate('scorer_connections_total')})", "new connections a second"),
            ),
        ),
        Panel(
            "CPU throttled",
            "Share of scheduling periods in which the control group of a pod was out of CPU. Above a quarter, raise the limit.",
            "percentunit",
            (
                Query(
                    ratio(rate("scorer_cpu_throttled_periods_total"), rate("scorer_cpu_periods_total")),
                    "{{pod}}",
                ),
            ),
            thresholds=((None, "green"), (0.25, "red")),
            maximum=1,
        ),
    ),
)

USE = Row(
    "What the pods use",
    (
        Panel(
            "CPU",
            "CPUs in use by a pod, and what it is granted.",
            "short",
            (
                Query(f"sum by (pod) ({rate('scorer_cpu_seconds_total')})", "{{pod}}"),
                Query(f"max(scorer_cpu_limit{{{SELECT}}})", "limit"),
            ),
        ),
        Panel(
            "Memory",
            "Working set of a pod, which the kubelet evicts on, and its limit.",
            "bytes",
            (
                Query(f'scorer_memory_bytes{{{SELECT},kind="working_set"}}', "{{pod}}"),
                Query(f'max(scorer_memory_bytes{{{SELECT},kind="limit"}})', "limit"),
            ),
        ),
        Panel(
            "Memory of the processes",
            "PSS counts a shared page once, USS only what a process has alone: USS that grows for days is a leak.",
            "bytes",
            (Query(f'sum by (kind) (scorer_memory_bytes{{{SELECT},kind=~"pss|uss"}})', "{{kind}}"),),
        ),
        Panel(
            "Network",
            "Bytes that a pod receives (above) and sends (below), all devices but loopback.",
            "Bps",
            (
                Query(f"sum by (pod) ({rate('scorer_network_receive_bytes_total')})", "{{pod}} receives"),
                Query(f"-sum by (pod) ({rate('scorer_network_transmit_bytes_total')})", "{{pod}} sends"),
            ),
        ),
        Panel(
            "Bodies",
            "Bytes of request bodies as they came, and of answers, a second.",
            "Bps",
            (
                Query(f"sum({rate('scorer_request_body_bytes_total')})", "requests"),
                Query(f"sum({rate('scorer_response_body_bytes_total')})", "answers"),
            ),
        ),
        Panel(
            "Files and processes",
            "File descriptors open and processes alive in a pod.",
            "short",
            (
                Query(f"scorer_open_files{{{SELECT}}}", "{{pod}} files"),
                Query(f"scorer_processes{{{SELECT}}}", "{{pod}} processes"),
            ),
        ),
    ),
)

LIFE = Row(
    "What happened to them",
    (
        Panel(
            "Pods",
            "Pods that Prometheus reaches, and those that can score.",
            "none",
            (
                Query(f"count(scorer_start_time_seconds{{{SELECT}}})", "reached"),
                Query(f'count(sum by (pod) (scorer_workers{{{SELECT},state="ready"}}) > 0)', "can score"),
            ),
        ),
        Panel(
            "Workers by state",
            "Workers alive: booting, ready, draining. Ready and draining at once is an update or a reload.",
            "none",
            (Query(f"sum by (state) (scorer_workers{{{SELECT}}})", "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "Workers gone, by cause",
            "Drained is an orderly end; docs/metrics.md explains the others. Out of memory, crashed, timeout: look at the log.",
            "none",
            (
                Query(
                    f"sum by (cause) (increase(scorer_worker_exits_total{{{SELECT}}}[$__rate_interval])) > 0 or vector(0)",
                    "{{cause}}",
                ),
                Query(f"sum(increase(scorer_worker_starts_total{{{SELECT}}}[$__rate_interval]))", "started"),
            ),
        ),
        Panel(
            "Age of the servers",
            "Time since the server of a pod started; a line that falls to zero is a container that restarted.",
            "s",
            (Query(f"time() - scorer_start_time_seconds{{{SELECT}}}", "{{pod}}"),),
        ),
        Panel(
            "Changes of the model",
            "Models that were found while the server ran, by what came of them; and pods that refuse the newest one (docs/swap.md).",
            "none",
            (
                Query(
                    f"sum by (result) (increase(scorer_model_swaps_total{{{SELECT}}}[$__rate_interval])) > 0 or vector(0)",
                    "{{result}}",
                ),
                Query(f"sum(scorer_model_refused{{{SELECT}}})", "pods that refuse"),
            ),
        ),
        Panel(
            "Loading the model",
            "Time that the newest worker of a pod took to load the model.",
            "s",
            (Query(f"scorer_model_load_seconds{{{SELECT}}}", "{{pod}}"),),
        ),
        Panel(
            "Scrape",
            "Time that a pod took to gather these metrics.",
            "s",
            (Query(f"scorer_scrape_seconds{{{SELECT}}}", "{{pod}}"),),
        ),
    ),
)

ROWS = (WELL, TRAFFIC, LATENCY, FULL, USE, LIFE)


def dashboard() -> Json:
    return {
        "uid": "xgboost-server",
        "title": "xgboost-server",
        "description": "A scoring endpoint: traffic, errors, latency, saturation, CPU, memory, network, workers, model.",
        "tags": ["xgboost-server"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables()},
        "annotations": {"list": [model_changes()]},
        "panels": panels(),
    }


def variables() -> list[Json]:
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1},
        variable("namespace", "Namespace", "label_values(scorer_start_time_seconds, namespace)"),
        variable("job", "Release", 'label_values(scorer_start_time_seconds{namespace="$namespace"}, job)'),
        variable("pod", "Pods", 'label_values(scorer_start_time_seconds{namespace="$namespace",job="$job"}, pod)')
        | {"multi": True, "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}},
    ]


def variable(name: str, label: str, query: str) -> Json:
    """One that Prometheus fills; refreshed with the time range, for pods come and go."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
    }


def model_changes() -> Json:
    """A mark on every panel where a pod began to serve another model."""
    return {
        "name": "Model changes",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "purple",
        "expr": f"sum by (model, version) (scorer_model_info{{{SELECT}}}) unless sum by (model, version) (scorer_model_info{{{SELECT}}} offset 1m)",
        "titleFormat": "{{model}} {{version}}",
        "step": "60s",
    }


def panels() -> list[Json]:
    """Left to right, top to bottom."""
    laid: list[Json] = []
    y = 0
    for row in ROWS:
        laid.append(
            {
                "id": len(laid) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
            }
        )
        y += 1
        x = height = 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y, height = 0, y + height, 0
            laid.append(panel_json(panel, len(laid) + 1, {"x": x, "y": y, "w": panel.width, "h": panel.height}))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return laid


def panel_json(panel: Panel, number: int, place: Json) -> Json:
    steps = [{"value": value, "color": colour} for value, colour in panel.thresholds]
    limits = {} if panel.maximum is None else {"max": panel.maximum, "min": 0}
    digits = {} if panel.decimals is None else {"decimals": panel.decimals}
    custom = look(panel)
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "noValue": "none",
                "thresholds": {"mode": "absolute", "steps": steps},
                "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
                **limits,
                **digits,
                **custom,
            },
            "overrides": [],
        },
        "options": options(panel.kind),
        "targets": [target(query, index) for index, query in enumerate(panel.queries)],
        **({"transformations": [{"id": "organize", "options": TABLE_COLUMNS}]} if panel.kind == "table" else {}),
    }


def look(panel: Panel) -> Json:
    if panel.kind != "timeseries":
        return {}
    stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
    # Without a style a threshold is not drawn.
    style = {"thresholdsStyle": {"mode": "dashed"}} if len(panel.thresholds) > 1 else {}
    line = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "showPoints": "never", "stacking": stacking}
    return {"custom": line | style}


def options(kind: str) -> Json:
    if kind == "stat":
        return {
            "reduceOptions": {"calcs": ["lastNotNull"]},
            "colorMode": "value",
            "graphMode": "area",
            "textMode": "value",
        }
    if kind == "table":
        return {"showHeader": True}
    if kind == "heatmap":
        return {
            "calculate": False,
            "color": {"scheme": "Oranges", "steps": 64},
            "yAxis": {"unit": "s"},
            "cellGap": 1,
            "tooltip": {"mode": "single"},
        }
    return {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def target(query: Query, index: int) -> Json:
    return {
        "refId": chr(ord("A") + index),
        "datasource": SOURCE,
        "expr": query.expression,
        "legendFormat": query.legend or "__auto",
        "format": query.form,
        "instant": query.form == "table",
        "range": query.form != "table",
    }


def to_text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"
