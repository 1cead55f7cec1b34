"""Values that cannot work are refused before anything is changed: one file in refused/ for each rule, its sentence on top."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.chart.helm import CHART, HELMS, HERE, KUBE_VERSION, REFUSED, missing, run_helm, sentence_of, template

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

BASE = HERE / "base-values.yaml"
CONTRADICTIONS = sorted(REFUSED.glob("*.yaml"))
TYPES = sorted((REFUSED / "schema").glob("*.yaml"))


def refusal(helm: str, *values: Path, kube_version: str = KUBE_VERSION) -> str:
    options = [option for file in (BASE, *values) for option in ("--values", file)]
    result = run_helm(helm, "template", "churn", CHART, "--kube-version", kube_version, *options)
    assert result.returncode != 0
    assert result.stdout == ""
    return result.stderr


def faults(text: str) -> list[str]:
    return [line.removeprefix("  - ") for line in text.splitlines() if line.startswith("  - ")]


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("values", CONTRADICTIONS, ids=lambda path: path.stem)
def test_a_contradiction_is_refused_with_its_sentence_and_no_other(values: Path, helm: str) -> None:
    assert faults(refusal(helm, values)) == [sentence_of(values)]


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("values", TYPES, ids=lambda path: path.stem)
def test_a_wrong_type_or_unknown_key_is_refused_with_its_place(values: Path, helm: str) -> None:
    assert sentence_of(values) in refusal(helm, values)


def test_the_base_of_these_tests_works() -> None:
    """Otherwise nothing of the above would mean anything."""
    assert template(BASE).returncode == 0


def test_all_contradictions_are_told_at_once() -> None:
    names = ("tag-without-digest", "budget-of-none", "hpa-without-metric", "grace-period-shorter-than-drain")
    values = [REFUSED / f"{name}.yaml" for name in names]
    assert set(faults(refusal("helm4", *values))) == {sentence_of(value) for value in values}


def test_a_chart_without_values_tells_all_that_it_needs() -> None:
    found = faults(template(None).stderr)
    assert [fault.partition(":")[0] for fault in found] == [
        "image.repository",
        "model.name",
        "image.digest",
        "model.sha256",
        "model.uri",
        "edge.host",
    ]


def test_a_model_image_is_refused_where_kubernetes_would_drop_it(tmp_path: Path) -> None:
    """Before 1.35 the API server drops the volume's source without a word, and the pod would wait for ever."""
    values = tmp_path / "values.yaml"
    values.write_text("model: {uri: 'oci://registry.example.com/churn@sha256:9f86'}\n")
    assert faults(refusal("helm4", values, kube_version="1.34.2")) == [
        "model.uri: oci:// needs Kubernetes 1.35, this is v1.34.2; older ones drop the volume without a word"
    ]


def test_kubernetes_that_is_too_old_is_refused() -> None:
    assert "kubeVersion: >=1.33.0-0" in refusal("helm4", kube_version="1.32.5")


def test_every_sentence_of_the_chart_has_a_file_that_provokes_it() -> None:
    """A rule without one has never been seen to work."""
    source = (CHART / "templates" / "_faults.tpl").read_text(encoding="utf-8")
    source = re.sub(r"\{\{/\*.*?\*/\}\}", "", source, flags=re.DOTALL)
    rules = [line for line in source.splitlines() if re.match(r"(?:[a-z]|\{\{ \$field)", line)]
    assert len(rules) > 30
    sentences = [sentence_of(path) for path in CONTRADICTIONS]
    for rule in rules:
        if "Kubernetes 1.35" in rule:  # has a test of its own, for it depends on the version
            continue
        regex = "".join(".*" if part.startswith("{{") else re.escape(part) for part in re.split(r"(\{\{.*?\}\})", rule))
        assert any(re.fullmatch(regex, sentence) for sentence in sentences), rule
