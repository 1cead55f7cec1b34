"""Part "peers": this server beside those that people install instead of it, KServe's and MLServer, and beside the rivals.

Each peer runs in an environment of its own, with the same build of XGBoost. It answers in its own protocol, and is held
against our answer to the very same request; the rivals, which have a protocol of their own, against our V1. MLServer has
no binary tensors over HTTP (1.7.1 answers 500), so there it sends and gets JSON.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import serving, workload
from benchmarks.cases import (
    BINARY,
    V1,
    V2,
    Case,
    Contender,
    binary_contender,
    rival_contenders,
    v1_contender,
    v2_contender,
)
from benchmarks.machine import describe_versions
from benchmarks.results import Section
from benchmarks.servers import create_ours, create_peers, create_servers, find_python
from benchmarks.serving import Figures, Options, Results
from benchmarks.serving_report import collect, render_caveat, render_figures, render_setting, render_upkeep
from benchmarks.tables import create_table, three_digits
from benchmarks.workload import Floats, create_rows

KSERVE_V1, KSERVE_V2, KSERVE_BINARY = "KServe, V1", "KServe, V2", "KServe, V2 binary"
MLSERVER = "MLServer, V2"
RIVALS = ("flask", "uvicorn")
READING = """\
KServe: `kserve.ModelServer` around the calls of its xgbserver, which is not on PyPI (rivals/kserve_app.py says how near
that is). MLServer: `mlserver start` with mlserver-xgboost. "ours" compares with our answer to the same request, the
rivals with our V1: how many times as many requests/s (with one connection: how many times as short a p50), and how many
times less CPU a request. With binary tensors MLServer's line is JSON, and its ratio that of our binary answer."""


def measure(options: Options) -> Section:
    model = workload.read_model()
    rivals = [server for server in create_servers(model, options.ours) if server.name in RIVALS]
    results = serving.run(create_cases(), [create_ours(model, options.ours), *rivals, *create_peers(model)], options)
    return Section(render(results, options), collect(results))


def create_cases() -> tuple[Case, ...]:
    one, hundred, thousand = create_rows(1), create_rows(100), create_rows(1000)
    return (
        Case("1 row, 16 connections", one, 16, json_contenders(one), ()),
        Case("1 row, 1 connection", one, 1, json_contenders(one), (), by_latency=True),
        Case("100 rows, 16 connections", hundred, 16, json_contenders(hundred), ()),
        Case("1,000 rows, 4 connections", thousand, 4, json_contenders(thousand), ()),
        Case("1,000 rows, binary tensors, 4 connections", thousand, 4, binary_contenders(thousand), ()),
    )


def json_contenders(rows: Floats) -> tuple[Contender, ...]:
    return (
        v1_contender(V1, "ours", rows),
        v2_contender(V2, "ours", rows),
        *rival_contenders(rows),
        v1_contender(KSERVE_V1, "kserve", rows),
        v2_contender(KSERVE_V2, "kserve", rows),
        v2_contender(MLSERVER, "mlserver", rows),
    )


def binary_contenders(rows: Floats) -> tuple[Contender, ...]:
    json = v2_contender(MLSERVER, "mlserver", rows)
    return (
        binary_contender(rows),
        binary_contender(rows, KSERVE_BINARY, "kserve"),
        Contender(f"{MLSERVER} JSON", json.server, json.request, json.read, BINARY),
    )


def render(results: Results, options: Options) -> str:
    setting = f"{render_setting(results, options, 'peers')}\n{render_peer_versions()}\n\n{READING}"
    cases = [render_case(case, figures) for case, figures in zip(results.cases, results.figures, strict=True)]
    return "\n\n".join(["## Beside peers", setting, *cases, render_upkeep(results)])


def render_peer_versions() -> str:
    kserve = describe_versions(["kserve", "fastapi", "uvicorn", "uvloop", "xgboost-cpu"], find_python("kserve"))
    mlserver = describe_versions(["mlserver", "mlserver-xgboost", "fastapi", "xgboost-cpu"], find_python("mlserver"))
    return f"- KServe's environment: {kserve}\n- MLServer's environment: {mlserver}"


def render_case(case: Case, figures: Mapping[str, Figures]) -> str:
    speed = "ours, p50" if case.by_latency else "ours, requests/s"
    head = ["server", "requests/s", "CPU µs", "busy", "p50 ms", "p99 ms", speed, "ours, CPU"]
    rows = [
        [contender.label, *render_figures(own), *render_ratios(case, own, figures[contender.counterpart])]
        for contender in case.contenders
        for own in [figures[contender.label]]
    ]
    return "\n\n".join([f"### {case.title}", create_table(head, rows), *render_caveat(case, figures)])


def render_ratios(case: Case, own: Figures, ours: Figures) -> list[str]:
    """How many times better ours is."""
    speed = own.p50_us / ours.p50_us if case.by_latency else ours.requests_per_second / own.requests_per_second
    return [f"{three_digits(ratio)} ×" for ratio in (speed, own.cpu_us / ours.cpu_us)]
