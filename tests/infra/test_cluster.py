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

from tests.chart.helm import find, manifests, missing  # noqa: E402, after the skips
from tests.infra.policies import allows  # noqa: E402, after the skips
from tests.infra.templates import ACCOUNT, INFRA, REGION, ROOT, properties  # noqa: E402


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


def by_role(cluster: Any) -> dict[str, Any]:
    found = cluster["iam"]["podIdentityAssociations"]
    return {entry["roleARN"].partition(":role/")[2]: entry for entry in found if "roleARN" in entry}


def environments() -> list[str]:
    return sorted(path.parent.name for path in ROOT.glob("argocd/environments/*/values.yaml"))


@pytest.mark.parametrize("environment", [*environments(), None])
def test_an_association_names_the_role_and_account_that_the_role_names(cluster: Any, environment: str | None) -> None:
    """One that does not match fails only when the pod asks for a model."""
    name = cluster["metadata"]["name"]
    found = (
        models_role(environment, ClusterName=name)
        if environment
        else properties("cloudformation/operator.yaml", "Operator", ClusterName=name)
    )
    [statement] = found["AssumeRolePolicyDocument"]["Statement"]
    tags = statement["Condition"]["StringEquals"]
    association = by_role(cluster)[found["RoleName"]]
    assert association["namespace"] == tags["aws:RequestTag/kubernetes-namespace"]
    assert association["serviceAccountName"] == tags["aws:RequestTag/kubernetes-service-account"]
    assert tags["aws:RequestTag/eks-cluster-arn"].endswith(f":cluster/{name}")


def test_every_environment_has_its_association_and_nobody_else_reads_models(cluster: Any) -> None:
    roles = {name for name in by_role(cluster) if name.startswith("xgboost-server-")}
    assert roles == {f"xgboost-server-models-{environment}" for environment in environments()}


def models_role(environment: str, **parameters: str) -> dict[str, Any]:
    bucket = f"xgboost-server-models-{ACCOUNT}-{REGION}"
    return properties(
        "cloudformation/identities.yaml", "Models", Environment=environment, ModelBucket=bucket, **parameters
    )


@pytest.mark.parametrize("environment", environments())
def test_an_environment_of_argo_cd_may_read_its_model_and_is_in_the_namespace_of_its_role(environment: str) -> None:
    role = models_role(environment)
    values = yaml.safe_load((ROOT / f"argocd/environments/{environment}/values.yaml").read_text(encoding="utf-8"))
    policy = role["Policies"][0]["PolicyDocument"]
    for other in environments():
        reads = values["model"]["uri"].replace(f"/{environment}/", f"/{other}/").replace("s3://", "arn:aws:s3:::")
        assert allows(policy, "s3:GetObject", reads) is (other == environment)
    tags = role["AssumeRolePolicyDocument"]["Statement"][0]["Condition"]["StringEquals"]
    assert tags["aws:RequestTag/kubernetes-namespace"] == namespace_in_argo_cd(environment)
    assert tags["aws:RequestTag/kubernetes-service-account"] == values["serviceAccount"]["name"]


def namespace_in_argo_cd(environment: str) -> str:
    """As the ApplicationSet makes it, checked against the namespaces of its project."""
    files = (ROOT / "argocd/apps").glob("*.yaml")
    objects = {
        found["kind"] + found["metadata"]["name"]: found
        for file in files
        for found in yaml.safe_load_all(file.read_text())
    }
    template = objects["ApplicationSetscoring"]["spec"]["template"]["spec"]["destination"]["namespace"]
    name = "{{ .folder.path.basename }}"
    assert template == f'scoring{{{{ if ne .folder.path.basename "prod" }}}}-{name}{{{{ end }}}}'
    namespace = "scoring" if environment == "prod" else f"scoring-{environment}"
    assert namespace in {entry["namespace"] for entry in objects["AppProjectscoring"]["spec"]["destinations"]}
    return namespace


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_the_nodes_hold_the_environments_and_leave_a_cpu_each_for_the_platform(cluster: Any) -> None:
    """A pod that fits nowhere is Pending, and so is the first sync."""
    asked = 0.0
    for environment in environments():
        objects = manifests(ROOT / f"argocd/environments/{environment}/values.yaml")
        pod = find(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
        fewest = find(objects, "HorizontalPodAutoscaler")["spec"]["minReplicas"]
        asked += fewest * float(pod["resources"]["requests"]["cpu"])
    cpus = {"c7g.xlarge": 4, "c7g.2xlarge": 8, "c7g.4xlarge": 16}
    [group] = cluster["managedNodeGroups"]
    assert asked <= group["desiredCapacity"] * min(cpus[name] - 1 for name in group["instanceTypes"])


def test_a_claim_without_a_class_gets_a_volume(cluster: Any) -> None:
    """Prometheus' is one; EKS makes no class the default since Kubernetes 1.30."""
    [driver] = [addon for addon in cluster["addons"] if addon["name"] == "aws-ebs-csi-driver"]
    assert json.loads(driver["configurationValues"]) == {"defaultStorageClass": {"enabled": True}}


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
