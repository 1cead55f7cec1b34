"""Each alert fires when it should and not when it should not, by promtool; and these tests notice a wrong threshold."""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.helm import CASES, find, find_tool, manifests, missing

PROMTOOL = find_tool("promtool")
pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(
        not PROMTOOL, reason="promtool is missing: Debian's package prometheus has it, `make test-chart` fetches it"
    ),
]

Groups = list[dict[str, Any]]

WHERE = 'namespace="scoring",job="churn"'


def metric(name: str, pod: str = "a", **labels: str) -> str:
    rest = "".join(f',{label}="{value}"' for label, value in labels.items())
    return f'{name}{{{WHERE},pod="{pod}"{rest}}}'


def requests(status: str, growth: str) -> tuple[str, str]:
    return metric("scorer_requests_total", wire="simple", route="/predict", status=status), growth


def probes(growth: str) -> tuple[str, str]:
    return metric("scorer_requests_total", wire="none", route="/readyz", status="200"), growth


def latency(below: str, all_of_them: str, route: str = "/predict") -> tuple[tuple[str, str], ...]:
    return (
        (metric("scorer_request_seconds_bucket", route=route, le="0.25"), below),
        (metric("scorer_request_seconds_count", route=route), all_of_them),
    )


def ready(pod: str, count: str) -> tuple[str, str]:
    return metric("scorer_workers", pod, state="ready"), count


def memory(kind: str, value: str) -> tuple[str, str]:
    return metric("scorer_memory_bytes", kind=kind), value


def exits(cause: str, growth: str) -> tuple[str, str]:
    return metric("scorer_worker_exits_total", cause=cause), growth


def serves(pod: str, digest: str, growth: str = "2x60") -> tuple[str, str]:
    return metric("scorer_model_info", pod, model="churn", version="7", digest=digest, engine="packed"), growth


def throttling(throttled: str) -> tuple[tuple[str, str], ...]:
    return (
        (metric("scorer_cpu_throttled_periods_total"), throttled),
        (metric("scorer_cpu_periods_total"), "0+1000x60"),
    )


@dataclass(frozen=True)
class Scenario:
    """Series by steps (`0+5x60`: from 0 by 5 a step, 60 times), and the windows or pods for which the alert fires."""

    name: str
    alert: str
    series: tuple[tuple[str, str], ...]
    at: str
    fires: tuple[str, ...] = ()
    step: str = "1m"


SCENARIOS = (
    # A budget of 0.1 %: 14.4 times that is 1.44 %, 6 times 0.6 %, 3 times 0.3 %. Windows that reach back further than the
    # series look at what there is.
    Scenario("1.6 % faults for an hour", "ScorerErrorBudgetBurn", (requests("200", "0+984x70"), requests("500", "0+16x70")), "45m", ("1h", "6h")),
    Scenario("1.3 % faults for an hour", "ScorerErrorBudgetBurn", (requests("200", "0+987x70"), requests("503", "0+13x70")), "45m", ("6h",)),
    Scenario("0.7 % faults", "ScorerErrorBudgetBurn", (requests("200", "0+993x160"), requests("500", "0+7x160")), "150m", ("1d", "6h")),
    Scenario("0.5 % faults", "ScorerErrorBudgetBurn", (requests("200", "0+995x160"), requests("500", "0+5x160")), "150m", ("1d",)),
    Scenario("0.35 % faults for a day", "ScorerErrorBudgetBurn", (requests("200", "0+9965x160"), requests("500", "0+35x160")), "1500m", ("1d", "3d"), "10m"),
    Scenario("0.25 % faults for a day", "ScorerErrorBudgetBurn", (requests("200", "0+9975x160"), requests("500", "0+25x160")), "1500m", ("3d",), "10m"),
    Scenario("0.12 % faults for four days", "ScorerErrorBudgetBurn", (requests("200", "0+9988x600"), requests("500", "0+12x600")), "5700m", ("3d",), "10m"),
    Scenario("0.08 % faults for four days", "ScorerErrorBudgetBurn", (requests("200", "0+9992x600"), requests("500", "0+8x600")), "5700m", (), "10m"),
    Scenario("faults that ended ten minutes ago", "ScorerErrorBudgetBurn", (requests("200", "0+984x30 30504+1000x30"), requests("500", "0+16x30 480+0x30")), "40m", ("6h",)),
    Scenario("eight faults and hardly anybody asks", "ScorerErrorBudgetBurn", (requests("200", "0+1x70"), requests("500", "0 0 0 1 2 3 4 5 6 7 8x60")), "12m"),
    Scenario("twelve faults and hardly anybody asks", "ScorerErrorBudgetBurn", (requests("200", "0+1x70"), requests("500", "0+0.4x30 12x40")), "32m", ("1h",)),
    Scenario("mistakes of callers", "ScorerErrorBudgetBurn", (requests("200", "0+500x70"), requests("400", "0+500x70")), "65m"),
    Scenario("faults among many probes", "ScorerErrorBudgetBurn", (probes("0+100000x70"), requests("200", "0+984x70"), requests("500", "0+16x70")), "45m", ("1h", "6h")),
    Scenario("1.2 % slow", "ScorerLatencyHigh", latency("0+988x60", "0+1000x60"), "30m", ("",)),
    Scenario("0.8 % slow", "ScorerLatencyHigh", latency("0+992x60", "0+1000x60"), "30m"),
    Scenario("slow for nine minutes", "ScorerLatencyHigh", latency("0+1000x20 20000+900x9", "0+1000x29"), "29m"),
    Scenario("slow among quick probes", "ScorerLatencyHigh", (*latency("0+9x60", "0+10x60"), *latency("0+1000x60", "0+1000x60", "/readyz")), "30m", ("",)),
    Scenario("no pod is ready", "ScorerNoReadyPod", (ready("a", "2x10 0x10"), ready("b", "2x10 0x10")), "15m", ("",)),
    Scenario("no pod is there", "ScorerNoReadyPod", (("up", "1x60"),), "15m", ("",)),
    Scenario("one of two pods is ready", "ScorerNoReadyPod", (ready("a", "2x60"), ready("b", "2x10 0x50")), "15m"),
    Scenario("the only ready pod is another release's", "ScorerNoReadyPod", (('scorer_workers{namespace="scoring",job="fraud",pod="a",state="ready"}', "2x60"),), "15m", ("",)),
    Scenario("four workers crash in ten minutes", "ScorerWorkersCrash", (exits("crashed", "0x5 1 2 3 4x50"),), "12m", ("a",)),
    Scenario("three workers crash in ten minutes", "ScorerWorkersCrash", (exits("crashed", "0x5 1 2 3x50"),), "12m", ("a",)),
    Scenario("two workers out of memory, two killed", "ScorerWorkersCrash", (exits("oom", "0x5 1 2x50"), exits("killed", "0x5 1 2x50")), "12m", ("a",)),
    Scenario("two workers crash", "ScorerWorkersCrash", (exits("crashed", "0x5 1 2x50"),), "12m"),
    Scenario("twenty workers end in order", "ScorerWorkersCrash", (exits("drained", "0x5 0+10x2 20x50"),), "12m"),
    Scenario("a worker cannot load the model", "ScorerModelRefused", (exits("boot", "0x5 1x50"),), "8m", ("a",)),
    Scenario("a candidate is refused", "ScorerModelRefused", ((metric("scorer_model_refused"), "0x5 1x50"),), "8m", ("a",)),
    Scenario("the candidate is mended", "ScorerModelRefused", ((metric("scorer_model_refused"), "0x5 1x5 0x50"),), "15m"),
    Scenario("no worker fails to load", "ScorerModelRefused", (exits("boot", "0x60"), exits("drained", "0+1x60")), "8m"),
    Scenario("two models for forty minutes", "ScorerModelsDiffer", (serves("a", "one"), serves("b", "two")), "40m", ("",)),
    Scenario("two models for twenty minutes", "ScorerModelsDiffer", (serves("a", "one"), serves("b", "two")), "20m"),
    Scenario("one model in two pods", "ScorerModelsDiffer", (serves("a", "one"), serves("b", "one")), "40m"),
    Scenario("loops are 85 % busy", "ScorerSaturated", ((metric("scorer_loop_busy_ratio"), "0.85x60"),), "20m", ("",)),
    Scenario("loops are 75 % busy", "ScorerSaturated", ((metric("scorer_loop_busy_ratio"), "0.75x60"),), "20m"),
    Scenario("one pod is full, the other idle", "ScorerSaturated", ((metric("scorer_loop_busy_ratio"), "1x60"), (metric("scorer_loop_busy_ratio", "b"), "0.1x60")), "20m"),
    Scenario("30 % throttled", "ScorerThrottled", throttling("0+300x60"), "30m", ("a",)),
    Scenario("20 % throttled", "ScorerThrottled", throttling("0+200x60"), "30m"),
    Scenario("95 % of the memory", "ScorerMemoryNearLimit", (memory("working_set", "950x60"), memory("limit", "1000x60")), "10m", ("a",)),
    Scenario("85 % of the memory", "ScorerMemoryNearLimit", (memory("working_set", "850x60"), memory("limit", "1000x60"), memory("rss", "2000x60")), "10m"),
)  # fmt: skip


def rule_groups() -> Groups:
    groups: Groups = copy.deepcopy(find(manifests(CASES["nginx"]), "PrometheusRule")["spec"]["groups"])
    return groups


def alerts() -> list[dict[str, Any]]:
    return [rule for group in rule_groups() for rule in group["rules"] if "alert" in rule]


def failures(groups: Groups, scenarios: Sequence[Scenario], folder: Path) -> str:
    """What promtool finds wrong; empty if the rules do what the scenarios say."""
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    found = ""
    for step in sorted({scenario.step for scenario in scenarios}):
        tests = [to_test(scenario) for scenario in scenarios if scenario.step == step]
        suite = {"rule_files": ["rules.yaml"], "evaluation_interval": step, "tests": tests}
        (folder / "tests.yaml").write_text(yaml.safe_dump(suite))
        command = [PROMTOOL, "test", "rules", "tests.yaml"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        found += "" if result.returncode == 0 else result.stdout + result.stderr
    return found


def to_test(scenario: Scenario) -> dict[str, Any]:
    label = "window" if scenario.alert == "ScorerErrorBudgetBurn" else "pod"
    firing = f'count by ({label}) (ALERTS{{alertname="{scenario.alert}",alertstate="firing"}})'
    expected = [{"labels": f'{{{label}="{value}"}}' if value else "{}", "value": 1} for value in scenario.fires]
    return {
        "name": scenario.name,
        "interval": scenario.step,
        "input_series": [{"series": series, "values": values} for series, values in scenario.series],
        "promql_expr_test": [{"expr": firing, "eval_time": scenario.at, "exp_samples": expected}],
    }


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: f"{scenario.alert}: {scenario.name}")
def test_an_alert_fires_when_it_should(scenario: Scenario, tmp_path: Path) -> None:
    assert not failures(rule_groups(), [scenario], tmp_path)


def test_every_alert_is_seen_firing_and_not_firing() -> None:
    names = {alert["alert"] for alert in alerts()}
    assert {scenario.alert for scenario in SCENARIOS if scenario.fires} == names
    assert {scenario.alert for scenario in SCENARIOS if not scenario.fires} == names


THRESHOLD = r"(?<=> )[0-9.]+|(?<=>= )[0-9.]+"


def mutants() -> Iterator[tuple[str, str, Groups]]:
    """The rules, each time with one threshold of an alert a third lower or higher (counts by one), wherever the alert has it."""
    found = {(alert["alert"], number) for alert in alerts() for number in re.findall(THRESHOLD, alert["expr"])}
    for name, number in sorted(found):
        value = float(number)
        whole = (value - 1, value + 1)
        for changed in whole if value in (0, 1, 3) else (value * 0.67, value * 1.4):
            groups = [group for group in rule_groups() if name in str(group)]
            for rule in (rule for group in groups for rule in group["rules"] if rule.get("alert") == name):
                rule["expr"] = re.sub(
                    rf"(?<=> ){re.escape(number)}(?![0-9.])|(?<=>= ){re.escape(number)}(?![0-9.])",
                    f"{changed:g}",
                    rule["expr"],
                )
            yield name, f"{changed:g} for {number}", groups


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_wrong_threshold_is_noticed(tmp_path: Path) -> None:
    unnoticed = []
    for name, change, groups in mutants():
        own = [scenario for scenario in SCENARIOS if scenario.alert == name]
        if not any(failures(groups, [scenario], tmp_path) for scenario in own):
            unnoticed.append(f"{name}: {change}")
    assert unnoticed == []


def test_every_alert_tells_what_and_how_bad() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert alert["labels"]["team"] == "scoring", "labels of one's own"
        assert alert["annotations"]["summary"].count("churn in scoring") == 1
        assert len(alert["annotations"]["description"]) > 80


@pytest.mark.parametrize(("seconds", "bound"), [("0.25", "0.25"), ("1", "1.0"), ("2.5", "2.5"), ("0.00005", "5e-05")])
def test_the_latency_objective_names_a_bound_as_the_server_writes_it(seconds: str, bound: str) -> None:
    documents = manifests(CASES["nginx"], f"monitoring.rules.latencySeconds={seconds}")
    assert f'le="{bound}"' in str(find(documents, "PrometheusRule"))
