"""The chart renders the same wherever and however often, into what Kubernetes and its extensions accept."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from service import __version__
from service.settings import SETTINGS
from tests.chart.helm import (
    CASES,
    CHART,
    GOLDEN,
    HELMS,
    KUBE_VERSION,
    TOOLS,
    Manifest,
    abridged,
    closed,
    manifests,
    missing,
    render,
    run_helm,
    template,
    tidy,
)
from tests.chart.rewrite import free_settings

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

KUBERNETES = ("1.33", "1.34", "1.35", "1.36")
SCHEMAS = Path(os.environ.get("SCHEMAS", "/nonexistent"))

every_case = pytest.mark.parametrize("case", CASES)


@every_case
@pytest.mark.parametrize("helm", HELMS)
def test_helm_finds_nothing_to_complain_about(helm: str, case: str) -> None:
    result = run_helm(helm, "lint", "--strict", "--kube-version", KUBE_VERSION, "--values", CASES[case], CHART)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "[WARNING]" not in result.stdout


@every_case
def test_both_helms_render_the_same_and_twice_the_same(case: str) -> None:
    """Argo CD from 3.5 on embeds Helm 4, older ones Helm 3; what differs would be a change at each of its looks."""
    rendered = {helm: [template(CASES[case], helm=helm) for _ in range(2)] for helm in HELMS}
    for first, second in rendered.values():
        assert first.returncode == 0, first.stderr
        assert first.stdout == second.stdout
    (four, _), (three, _) = rendered.values()
    assert tidy(four.stdout) == tidy(three.stdout)


def test_nothing_in_the_templates_is_random_or_asks_the_cluster() -> None:
    for path in (CHART / "templates").iterdir():
        words = set(re.findall(r"\{\{.*?\}\}", path.read_text(encoding="utf-8"), flags=re.DOTALL))
        found = re.findall(
            r"\b(rand[A-Z]\w+|uuidv4|now|genCA|gen\w+Cert|genPrivateKey|lookup|htpasswd)\b", " ".join(words)
        )
        assert not found, path.name


@every_case
def test_render_is_the_one_that_was_looked_at(case: str) -> None:
    assert abridged(render(CASES[case])) == (GOLDEN / f"{case}.yaml").read_text(encoding="utf-8"), (
        "if it is right: make chart-golden"
    )


def test_no_golden_render_is_left_of_a_case_that_is_gone() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(CASES)


def is_custom(manifest: Manifest) -> bool:
    group = manifest["apiVersion"].partition("/")[0]
    return ("." in group and not group.endswith(".k8s.io")) or group.startswith("gateway.")


@every_case
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_accepts_every_field(version: str, case: str) -> None:
    for manifest in manifests(CASES[case]):
        if not is_custom(manifest):
            kubernetes_validate.validate(manifest, version, strict=True)


def test_every_field_means_also_a_wrong_one() -> None:
    """The check above refuses what it should."""
    deployment = next(document for document in manifests(CASES["nginx"]) if document["kind"] == "Deployment")
    deployment["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.35", strict=True)


@every_case
@pytest.mark.skipif(not SCHEMAS.is_dir(), reason="SCHEMAS names no folder of {group}/{kind}_{version}.json")
def test_extensions_of_kubernetes_accept_every_field(case: str) -> None:
    for manifest in filter(is_custom, manifests(CASES[case])):
        group, version = manifest["apiVersion"].split("/")
        schema = json.loads(
            (SCHEMAS / group / f"{manifest['kind'].lower()}_{version}.json").read_text(encoding="utf-8")
        )
        jsonschema.validate(manifest, closed(schema))


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason="SCHEMAS names no folder of {group}/{kind}_{version}.json")
def test_every_field_of_an_extension_means_also_a_wrong_one() -> None:
    """The check above refuses what it should."""
    schema = json.loads((SCHEMAS / "keda.sh" / "scaledobject_v1alpha1.json").read_text(encoding="utf-8"))
    (scaled,) = (document for document in manifests(CASES["keda"]) if document["kind"] == "ScaledObject")
    scaled["spec"]["fallback"]["replica"] = 6
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(scaled, closed(schema))


def test_every_kind_of_extension_is_in_a_case() -> None:
    """Otherwise its template is never rendered."""
    kinds = {manifest["kind"] for case in CASES for manifest in manifests(CASES[case])}
    templates = {
        match
        for path in (CHART / "templates").glob("*.yaml")
        for match in re.findall(r"^kind: (\w+)", path.read_text(), re.M)
    }
    assert kinds == templates


def leaves(values: Any, schema: Any, path: str = "") -> Iterator[str]:
    """Places where values.yaml and values.schema.json differ."""
    if schema.get("additionalProperties") is not False or path == "settings":
        return
    known = set(schema.get("properties", ())) - {"global"}
    if set(values) != known:
        yield f"{path}: {sorted(set(values) ^ known)}"
    for name in set(values) & known:
        yield from leaves(values[name], schema["properties"][name], f"{path}.{name}".strip("."))


def test_every_value_has_a_type_and_every_type_a_value() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values["autoscaling"].pop("behavior")  # as in an HPA, whose fields may all be left out
    schema["properties"]["autoscaling"]["properties"].pop("behavior")
    assert list(leaves(values, schema)) == []


def test_every_value_has_a_sentence() -> None:
    lines = (CHART / "values.yaml").read_text(encoding="utf-8").splitlines()
    behavior = next(index for index, line in enumerate(lines) if line.startswith("  behavior:"))
    keda = next(index for index, line in enumerate(lines) if line.startswith("  keda:"))
    for index, line in enumerate(lines):
        is_leaf = re.match(r" *[A-Za-z]+: +\S|^ *[A-Za-z]+:$", line)
        opens_group = line.endswith(":") and not line.startswith(("scheduling", " " * 99))
        if is_leaf and not opens_group and not behavior < index < keda:
            assert lines[index - 1].lstrip().startswith("# "), line


def test_readme_of_the_chart_is_up_to_date(tmp_path: Path) -> None:
    copy = tmp_path / "xgboost-server"
    shutil.copytree(CHART, copy)
    command: list[str | Path] = [TOOLS / "helm-docs", "--chart-search-root", copy, "--sort-values-order", "file"]
    subprocess.run(command, check=True, capture_output=True)
    assert (copy / "README.md").read_text() == (CHART / "README.md").read_text(), "make chart-golden"


def environment_names(manifest: Manifest) -> list[str]:
    pod = manifest["spec"]["template"]["spec"]
    containers = pod["containers"] + pod.get("initContainers", [])
    return [entry["name"] for container in containers for entry in container.get("env", [])]


@every_case
def test_the_chart_sets_no_setting_that_the_server_does_not_know(case: str) -> None:
    """It would not start."""
    deployment = next(document for document in manifests(CASES[case]) if document["kind"] == "Deployment")
    known = {setting.variable for setting in SETTINGS}
    assert {name for name in environment_names(deployment) if name.startswith("SCORER_")} <= known


def test_settings_that_no_value_sets_may_be_set_by_name() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert list(schema["properties"]["settings"]["properties"]) == free_settings(), "make chart-golden"


def test_chart_and_server_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == __version__
