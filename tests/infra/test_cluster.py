"""The eksctl file: valid, and at one with the templates beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

jsonschema = pytest.importorskip("jsonschema", reason="`make test-infra` installs what these tests need")
pytest.importorskip("cfnlint", reason="`make test-infra` installs what these tests need")
yaml = pytest.importorskip("yaml")

from tests.infra.templates import INFRA, properties  # noqa: E402, after the skips


@pytest.fixture(scope="module")
def cluster() -> Any:
    return yaml.safe_load((INFRA / "eksctl/cluster.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def schema() -> Any:
    """eksctl's own, from the folder that SCHEMAS names; `eksctl utils schema` prints it."""
    path = Path(os.environ.get("SCHEMAS", "schemas")) / "eksctl.io" / "clusterconfig_v1alpha5.json"
    if not path.exists():
        pytest.skip("SCHEMAS names no folder with eksctl.io/clusterconfig_v1alpha5.json")
    return json.loads(path.read_text(encoding="utf-8"))


def faults(schema: Any, document: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(document)]


def test_eksctl_accepts_the_file(schema: Any, cluster: Any) -> None:
    assert faults(schema, cluster) == []


def test_eksctl_accepts_the_file_for_auto_mode(schema: Any, cluster: Any) -> None:
    """As the comment in the file says to write it."""
    auto = {key: value for key, value in cluster.items() if key != "managedNodeGroups"}
    auto |= {"autoModeConfig": {"enabled": True}, "addons": [{"name": "metrics-server"}]}
    assert faults(schema, auto) == []


def test_eksctl_refuses_a_misspelt_field(schema: Any, cluster: Any) -> None:
    """The check above can fail."""
    assert faults(schema, cluster | {"managedNodegroups": []})


@pytest.mark.parametrize("role", ["Models", "Secrets"])
def test_an_association_names_the_role_and_account_that_the_role_names(cluster: Any, role: str) -> None:
    """One that does not match fails only when the pod asks for a model."""
    found = properties("cloudformation/identities.yaml", role, ModelBucket="models.example")
    [condition] = [statement["Condition"] for statement in found["AssumeRolePolicyDocument"]["Statement"]]
    tags = condition["StringEquals"]
    associations = {
        entry.get("roleARN", "").rsplit("/", 1)[-1]: entry for entry in cluster["iam"]["podIdentityAssociations"]
    }
    association = associations[found["RoleName"]]
    assert association["namespace"] == tags["aws:RequestTag/kubernetes-namespace"]
    assert association["serviceAccountName"] == tags["aws:RequestTag/kubernetes-service-account"]
    assert tags["aws:RequestTag/eks-cluster-arn"].endswith(f":cluster/{cluster['metadata']['name']}")


def test_nodes_are_private_and_pods_have_no_role_but_their_own(cluster: Any) -> None:
    for group in cluster["managedNodeGroups"]:
        assert group["privateNetworking"]
        assert group["disablePodIMDS"]
        assert group["volumeEncrypted"]
    assert "0.0.0.0/0" not in cluster["vpc"]["publicAccessCIDRs"]


def test_the_cluster_has_what_the_chart_relies_on(cluster: Any) -> None:
    """Pod Identity for the model, network policies that are enforced, CPU figures for the HPA."""
    addons = {addon["name"]: addon for addon in cluster["addons"]}
    assert {"eks-pod-identity-agent", "metrics-server"} <= set(addons)
    assert json.loads(addons["vpc-cni"]["configurationValues"]) == {"enableNetworkPolicy": "true"}
