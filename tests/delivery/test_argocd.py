"""The manifests in argocd/: whole, valid, and as strict as docs/gitops.md says."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.chart.helm import missing, template
from tests.serving import ROOT

FOLDER = ROOT / "argocd"
SCHEMAS = os.environ.get("SCHEMAS", "")
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if path.name != "values.yaml")
VALUES = sorted(FOLDER.glob("environments/*/values.yaml"))
Manifest = dict[str, Any]


def read(path: Path) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def every(kind: str) -> list[Manifest]:
    return [document for path in FILES for document in read(path) if document["kind"] == kind]


def one(kind: str, name: str) -> Manifest:
    (found,) = (document for document in every(kind) if document["metadata"]["name"] == name)
    return found


def refuse_unknown(schema: Any) -> Any:
    """The API server drops a field that it does not know without a word; here it is an error."""
    if isinstance(schema, list):
        return [refuse_unknown(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: refuse_unknown(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        found["additionalProperties"] = "x-kubernetes-preserve-unknown-fields" in schema
    return found


@pytest.mark.skipif(not SCHEMAS, reason="SCHEMAS names no folder of schemas")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_object_of_argo_cd_fits_its_definition(path: Path) -> None:
    for document in read(path):
        group, _, version = document["apiVersion"].rpartition("/")
        if group:
            schema = json.loads((Path(SCHEMAS) / group / f"{document['kind'].lower()}_{version}.json").read_text())
            jsonschema.validate(document, refuse_unknown(schema))


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.parent.name)
def test_every_environment_renders_with_the_chart_beside_it(path: Path) -> None:
    result = template(path)
    assert result.returncode == 0, result.stderr


def test_the_environments_are_those_of_the_promotion() -> None:
    assert {path.parent.name for path in VALUES} == {"dev", "staging", "prod"}


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.parent.name)
def test_every_model_has_its_admission_record(path: Path) -> None:
    model = yaml.safe_load(path.read_text())["model"]
    records = [json.loads(found.read_text()) for found in FOLDER.glob(f"models/{model['name']}/*.json")]
    assert f"sha256:{model['sha256']}" in {record["digest"] for record in records}


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.parent.name)
def test_pods_have_the_account_that_infra_gives_its_role_to(path: Path) -> None:
    account = yaml.safe_load(path.read_text())["serviceAccount"]
    assert account == {"name": "xgboost-server", "awsPodIdentity": True}


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.parent.name)
def test_the_way_in_of_callers_is_never_taken_away_unasked(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    for found in (values["service"]["annotations"], values["edge"]["nginx"]["annotations"]):
        assert found == {"argocd.argoproj.io/sync-options": "Prune=confirm,Delete=confirm"}


def test_a_scoring_endpoint_may_make_no_object_of_the_whole_cluster() -> None:
    spec = one("AppProject", "scoring")["spec"]
    assert spec["clusterResourceWhitelist"] == [{"group": "", "kind": "Namespace"}]
    assert "*" not in {entry["kind"] for entry in spec["namespaceResourceWhitelist"]}
    assert "Secret" not in {entry["kind"] for entry in spec["namespaceResourceWhitelist"]}
    assert "*" not in {entry["namespace"] for entry in spec["destinations"]}


@pytest.mark.parametrize("project", every("AppProject"), ids=lambda project: project["metadata"]["name"])
def test_no_project_takes_from_everywhere(project: Manifest) -> None:
    assert not [source for source in project["spec"]["sourceRepos"] if "*" in source]


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.parent.name)
def test_the_project_allows_all_that_the_chart_makes(path: Path) -> None:
    allowed = {
        (entry["group"], entry["kind"]) for entry in one("AppProject", "scoring")["spec"]["namespaceResourceWhitelist"]
    }
    made = [found for found in yaml.safe_load_all(template(path).stdout) if found]
    for document in made:
        assert (document["apiVersion"].rpartition("/")[0], document["kind"]) in allowed


def test_production_alone_has_windows_and_the_way_back_is_open_outside_of_them() -> None:
    windows = one("AppProject", "scoring")["spec"]["syncWindows"]
    assert {name for window in windows for name in window["applications"]} == {"scoring-prod"}
    assert all(window["manualSync"] for window in windows)


def test_the_scaler_owns_the_number_of_pods() -> None:
    spec = one("ApplicationSet", "scoring")["spec"]["template"]["spec"]
    assert spec["ignoreDifferences"] == [{"group": "apps", "kind": "Deployment", "jsonPointers": ["/spec/replicas"]}]
    assert "RespectIgnoreDifferences=true" in spec["syncPolicy"]["syncOptions"]


def test_whatever_holds_other_objects_is_removed_only_when_a_person_agrees() -> None:
    for kind in ("Application", "ApplicationSet", "AppProject"):
        for document in every(kind):
            if document["metadata"]["name"] != "bootstrap":
                options = document["metadata"]["annotations"]["argocd.argoproj.io/sync-options"]
                assert "Prune=confirm" in options.split(","), document["metadata"]["name"]
    policy = one("ApplicationSet", "scoring")["spec"]["syncPolicy"]
    assert policy == {"applicationsSync": "create-update", "preserveResourcesOnDeletion": True}


@pytest.mark.parametrize("application", every("Application"), ids=lambda found: found["metadata"]["name"])
def test_an_add_on_has_a_fixed_version_from_a_source_and_into_a_namespace_of_its_project(application: Manifest) -> None:
    spec = application["spec"]
    project = one("AppProject", spec["project"])["spec"]
    assert spec["source"]["repoURL"] in project["sourceRepos"]
    assert spec["destination"]["namespace"] in {entry["namespace"] for entry in project["destinations"]}
    if "chart" in spec["source"]:
        assert re.fullmatch(r"v?\d+\.\d+\.\d+", spec["source"]["targetRevision"])


def test_add_ons_have_the_versions_that_the_tests_cluster_and_the_guide_install() -> None:
    version = one("Application", "nginx-ingress")["spec"]["source"]["targetRevision"]
    assert f"nginx-ingress {version}" in (ROOT / "delivery" / "kind.sh").read_text()
    guide = (ROOT / "docs" / "install-eks.md").read_text()
    assert f"nginx-ingress --version {version}" in guide
    controller = one("Application", "aws-load-balancer-controller")["spec"]["source"]
    assert f"{controller['repoURL']} --version {controller['targetRevision']}" in guide


def test_nothing_is_installed_twice() -> None:
    eks = yaml.safe_load((ROOT / "infra" / "eksctl" / "cluster.yaml").read_text())
    names = {document["metadata"]["name"] for document in every("Application")}
    assert not names & {addon["name"] for addon in eks["addons"]}
    assert "metrics-server" in {addon["name"] for addon in eks["addons"]}


def test_the_bootstrap_reads_what_is_there() -> None:
    include = one("Application", "bootstrap")["spec"]["source"]["directory"]["include"]
    assert include == "{apps,platform}/*.yaml"
    assert {path.parent.name for path in FILES} == {"argocd", "apps", "platform", "optional"}


def test_each_subscription_has_its_trigger_and_each_trigger_its_text() -> None:
    data = one("ConfigMap", "argocd-notifications-cm")["data"]
    texts = "".join(path.read_text() for path in FILES)
    subscribed = set(re.findall(r"notifications\.argoproj\.io/subscribe\.([\w-]+)\.slack", texts))
    assert {f"trigger.{name}" for name in subscribed} == {key for key in data if key.startswith("trigger.")}
    for name in subscribed:
        (condition,) = yaml.safe_load(data[f"trigger.{name}"])
        assert all(f"template.{text}" in data for text in condition["send"])
        # By the revision, which is the chart's, the second of two faulty merges of values would not be told.
        assert "oncePer" not in condition
