"""Who may do what, and who may not."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("boto3", reason="`make test-infra` installs what these tests need")
pytest.importorskip("cfnlint", reason="`make test-infra` installs what these tests need")

import boto3

from tests.infra.conftest import Clients, Deploy
from tests.infra.policies import allows, holds
from tests.infra.templates import (
    ACCOUNT,
    GITHUB,
    IDENTITIES,
    REGION,
    TEMPLATES,
    properties,
    read,
    statements,
)

SUBJECT = "repo:acme@4711/scoring@815:environment:release"
GITHUB_KEYS = "token.actions.githubusercontent.com"
IMAGE = f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/xgboost-server"
CHART = f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/charts/xgboost-server"
CLUSTER = f"arn:aws:eks:{REGION}:{ACCOUNT}:cluster/scoring"
MODELS = "arn:aws:s3:::models.example"
SECRETS = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret"
# Actions that take no resource; each says so beside it in its template.
WITHOUT_RESOURCE = {
    "ecr:GetAuthorizationToken",
    "ecr-public:GetAuthorizationToken",
    "sts:GetServiceBearerToken",
    "sts:GetWebIdentityToken",
    "ssm:UpdateInstanceInformation",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
}


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("template", TEMPLATES)
def test_no_permission_is_wider_than_it_must_be(template: str) -> None:
    """No wildcard in an action, none for all resources but where the action knows none, nothing allowed to everybody."""
    for statement in statements(read(template)["Resources"]):
        assert not {"NotAction", "NotResource", "NotPrincipal"} & set(statement)
        if statement["Effect"] == "Deny":
            continue
        assert not [action for action in listed(statement["Action"]) if "*" in action]
        assert statement.get("Principal") not in ("*", {"AWS": "*"})
        if "*" in listed(statement.get("Resource", [])):
            assert set(listed(statement["Action"])) <= WITHOUT_RESOURCE


def test_there_are_permissions_to_check() -> None:
    assert sum(len(list(statements(read(template)["Resources"]))) for template in TEMPLATES) >= 15


def role(aws: Clients, name: str) -> tuple[Any, Any]:
    """The trust of a role, and its policies as one document."""
    iam = aws("iam")
    trust = iam.get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"]
    names = iam.list_role_policies(RoleName=name)["PolicyNames"]
    found = [read_document(iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]) for policy in names]
    return read_document(trust), {"Statement": [statement for document in found for statement in document["Statement"]]}


def read_document(document: Any) -> Any:
    """moto 5.2.5 gives a role's inline policies as Python writes them."""
    return ast.literal_eval(document) if isinstance(document, str) else document


@pytest.mark.parametrize(
    ("subject", "audience", "trusted"),
    [
        (SUBJECT, "sts.amazonaws.com", True),
        (SUBJECT, "other", False),
        ("repo:acme/scoring:environment:release", "sts.amazonaws.com", False),  # the old form: names can be taken over
        ("repo:acme@4711/scoring@815:environment:dev", "sts.amazonaws.com", False),
        ("repo:acme@4711/scoring@815:environment:release-2", "sts.amazonaws.com", False),
        ("repo:acme@4711/scoring@815:ref:refs/heads/main", "sts.amazonaws.com", False),
        ("repo:acme@4711/scoring@815:pull_request", "sts.amazonaws.com", False),
        ("repo:acme@4712/scoring@815:environment:release", "sts.amazonaws.com", False),
        ("repo:acme@4711/scoring@816:environment:release", "sts.amazonaws.com", False),
    ],
)
def test_only_the_release_environment_of_this_very_repository_becomes_the_push_role(
    aws: Clients, deploy: Deploy, subject: str, audience: str, trusted: bool
) -> None:
    deploy("cloudformation/github.yaml", **GITHUB)
    [statement] = role(aws, "xgboost-server-push")[0]["Statement"]
    assert statement["Action"] == "sts:AssumeRoleWithWebIdentity"
    assert holds(statement["Condition"], {f"{GITHUB_KEYS}:sub": subject, f"{GITHUB_KEYS}:aud": audience}) is trusted


@pytest.mark.parametrize(
    ("action", "resource", "allowed"),
    [
        ("ecr:GetAuthorizationToken", "*", True),
        ("ecr:PutImage", IMAGE, True),
        ("ecr:PutImage", CHART, True),
        ("ecr:UploadLayerPart", IMAGE, True),
        ("ecr:BatchGetImage", IMAGE, True),
        ("ecr:PutImage", f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/other", False),
        ("ecr:PutImage", f"{IMAGE}-2", False),
        ("ecr:BatchDeleteImage", IMAGE, False),
        ("ecr:SetRepositoryPolicy", IMAGE, False),
        ("ecr:PutImageTagMutability", IMAGE, False),
        ("ecr:PutLifecyclePolicy", IMAGE, False),
        ("s3:GetObject", f"{MODELS}/models/churn/7/model.ubj", False),
        ("iam:PassRole", "*", False),
        ("ecr-public:PutImage", f"arn:aws:ecr-public::{ACCOUNT}:repository/acme/scoring", False),
    ],
)
def test_the_push_role_pushes_to_two_repositories_and_nothing_else(
    aws: Clients, deploy: Deploy, action: str, resource: str, allowed: bool
) -> None:
    deploy("cloudformation/github.yaml", **GITHUB)
    assert allows(role(aws, "xgboost-server-push")[1], action, resource) is allowed


def test_the_push_role_pushes_to_ecr_public_only_where_asked(aws: Clients, deploy: Deploy) -> None:
    deploy("cloudformation/github.yaml", **GITHUB, PublicRepository="acme/scoring")
    policy = role(aws, "xgboost-server-push")[1]
    assert allows(policy, "ecr-public:PutImage", f"arn:aws:ecr-public::{ACCOUNT}:repository/acme/scoring")
    assert not allows(policy, "ecr-public:PutImage", f"arn:aws:ecr-public::{ACCOUNT}:repository/other")


def test_the_pull_role_is_for_the_scan_environment_and_reads_the_image_alone(aws: Clients, deploy: Deploy) -> None:
    deploy("cloudformation/github.yaml", **GITHUB)
    trust, policy = role(aws, "xgboost-server-pull")
    [statement] = trust["Statement"]
    scan = SUBJECT.replace("environment:release", "environment:scan")
    for subject in (SUBJECT, scan, f"{scan}-2", scan.replace("4711", "4712")):
        context = {f"{GITHUB_KEYS}:sub": subject, f"{GITHUB_KEYS}:aud": "sts.amazonaws.com"}
        assert holds(statement["Condition"], context) is (subject == scan)
    assert allows(policy, "ecr:GetAuthorizationToken")
    assert allows(policy, "ecr:BatchGetImage", IMAGE)
    assert allows(policy, "ecr:GetDownloadUrlForLayer", IMAGE)
    assert not allows(policy, "ecr:BatchGetImage", CHART)
    for action in ("ecr:PutImage", "ecr:UploadLayerPart", "ecr:BatchDeleteImage"):
        assert not allows(policy, action, IMAGE)


@pytest.mark.parametrize("repository", ["Image", "Chart"])
def test_listed_accounts_pull_and_do_not_push(aws: Clients, deploy: Deploy, repository: str) -> None:
    deploy("cloudformation/registry.yaml")
    found = properties("cloudformation/registry.yaml", repository, PullAccounts="444455556666,777788889999")
    policy = found["RepositoryPolicyText"]
    aws("ecr").set_repository_policy(repositoryName=found["RepositoryName"], policyText=json.dumps(policy))
    [statement] = policy["Statement"]
    assert statement["Principal"] == {"AWS": ["444455556666", "777788889999"]}
    assert allows(policy, "ecr:BatchGetImage")
    assert allows(policy, "ecr:GetDownloadUrlForLayer")
    assert not allows(policy, "ecr:PutImage")
    assert not allows(policy, "ecr:BatchDeleteImage")


@pytest.mark.parametrize("repository", ["Image", "Chart"])
def test_without_accounts_nobody_else_pulls(repository: str) -> None:
    assert "RepositoryPolicyText" not in properties("cloudformation/registry.yaml", repository)


def pod(namespace: str, account: str, cluster: str = CLUSTER) -> dict[str, str]:
    """What EKS says of a pod when it asks for its role."""
    return {
        "aws:RequestTag/eks-cluster-arn": cluster,
        "aws:RequestTag/kubernetes-namespace": namespace,
        "aws:RequestTag/kubernetes-service-account": account,
    }


ENVIRONMENTS = {"dev": "scoring-dev", "staging": "scoring-staging", "prod": "scoring"}


def identities(deploy: Deploy) -> None:
    """The stacks of all environments."""
    for environment in ENVIRONMENTS:
        given = IDENTITIES | {"Environment": environment}
        deploy("cloudformation/identities.yaml", name=f"identities-{environment}", **given)


@pytest.mark.parametrize(
    ("environment", "context", "trusted"),
    [
        *[(of, pod(ENVIRONMENTS[at], "xgboost-server"), of == at) for of in ENVIRONMENTS for at in ENVIRONMENTS],
        ("prod", pod("scoring", "default"), False),
        ("prod", pod("default", "xgboost-server"), False),
        ("prod", pod("scoring-prod", "xgboost-server"), False),
        ("prod", pod("scoring", "xgboost-server", f"{CLUSTER}-2"), False),
        ("dev", pod("scoring-dev-2", "xgboost-server"), False),
        ("dev", pod("external-secrets", "external-secrets"), False),
        ("dev", {}, False),
    ],
)
def test_a_role_for_models_is_for_one_service_account_of_its_environments_namespace(
    aws: Clients, deploy: Deploy, environment: str, context: dict[str, str], trusted: bool
) -> None:
    identities(deploy)
    [statement] = role(aws, f"xgboost-server-models-{environment}")[0]["Statement"]
    assert statement["Principal"] == {"Service": "pods.eks.amazonaws.com"}
    assert statement["Action"] == ["sts:AssumeRole", "sts:TagSession"]
    assert holds(statement["Condition"], context) is trusted


def test_an_environment_may_be_in_a_namespace_and_a_cluster_of_its_own(aws: Clients, deploy: Deploy) -> None:
    deploy("cloudformation/identities.yaml", **IDENTITIES, Namespace="team-a", ClusterName="scoring-2")
    [statement] = role(aws, "xgboost-server-models-dev")[0]["Statement"]
    assert holds(statement["Condition"], pod("team-a", "xgboost-server", f"{CLUSTER}-2"))
    assert not holds(statement["Condition"], pod("scoring-dev", "xgboost-server", f"{CLUSTER}-2"))
    [statement] = role(aws, "xgboost-server-secrets-dev")[0]["Statement"]
    assert statement["Principal"] == {"AWS": f"arn:aws:iam::{ACCOUNT}:role/scoring-2-external-secrets"}
    assert holds(statement["Condition"], {"aws:RequestTag/esoNamespace": "team-a"})


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize(
    ("action", "resource", "context", "allowed"),
    [
        ("s3:GetObject", f"{MODELS}/models/OWN/churn/7/model.ubj", {}, True),
        ("s3:ListBucket", MODELS, {"s3:prefix": "models/OWN/churn/"}, True),
        ("s3:ListBucket", MODELS, {"s3:prefix": "models/"}, False),
        ("s3:ListBucket", MODELS, {"s3:prefix": "models/OTHER/churn/"}, False),
        ("s3:ListBucket", MODELS, {}, False),
        ("s3:GetObject", f"{MODELS}/models/OTHER/churn/7/model.ubj", {}, False),
        ("s3:GetObject", f"{MODELS}/models/OWN-2/churn/7/model.ubj", {}, False),
        ("s3:GetObject", f"{MODELS}/payroll/7/model.ubj", {}, False),
        ("s3:GetObject", f"{MODELS}-2/models/OWN/churn/7/model.ubj", {}, False),
        ("s3:PutObject", f"{MODELS}/models/OWN/churn/7/model.ubj", {}, False),
        ("s3:DeleteObject", f"{MODELS}/models/OWN/churn/7/model.ubj", {}, False),
        ("secretsmanager:GetSecretValue", f"{SECRETS}:xgboost-server/OWN/a-1", {}, False),
    ],
)
def test_a_scoring_pod_reads_models_of_its_environment_and_nothing_else(
    aws: Clients, deploy: Deploy, environment: str, action: str, resource: str, context: dict[str, str], allowed: bool
) -> None:
    identities(deploy)
    policy = role(aws, f"xgboost-server-models-{environment}")[1]
    for other in ENVIRONMENTS.keys() - {environment}:
        names = {"OWN": environment, "OTHER": other}
        asked = {key: replaced(value, names) for key, value in context.items()}
        assert allows(policy, action, replaced(resource, names), context=asked) is allowed


def replaced(text: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        text = text.replace(name, value)
    return text


@pytest.mark.parametrize(
    ("prefix", "others"), [("", False), ("models/dev/", False), ("models/", True), ("models/staging/", False)]
)
def test_dev_reads_models_of_prod_only_where_somebody_asked_for_it(
    aws: Clients, deploy: Deploy, prefix: str, others: bool
) -> None:
    deploy("cloudformation/identities.yaml", **IDENTITIES, ModelPrefix=prefix)
    policy = role(aws, "xgboost-server-models-dev")[1]
    assert allows(policy, "s3:GetObject", f"{MODELS}/models/prod/churn/7/model.ubj") is others
    assert allows(policy, "s3:ListBucket", MODELS, context={"s3:prefix": "models/prod/churn/"}) is others


@pytest.mark.parametrize(
    ("context", "trusted"),
    [
        (pod("external-secrets", "external-secrets"), True),
        (pod("scoring", "xgboost-server"), False),
        (pod("external-secrets", "default"), False),
        (pod("external-secrets", "external-secrets", f"{CLUSTER}-2"), False),
        ({}, False),
    ],
)
def test_the_secrets_operator_has_a_role_that_may_do_nothing(
    aws: Clients, deploy: Deploy, context: dict[str, str], trusted: bool
) -> None:
    deploy("cloudformation/operator.yaml")
    trust, policy = role(aws, "scoring-external-secrets")
    assert holds(trust["Statement"][0]["Condition"], context) is trusted
    assert policy["Statement"] == []
    assert aws("iam").list_attached_role_policies(RoleName="scoring-external-secrets")["AttachedPolicies"] == []


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_secrets_of_an_environment_are_for_the_operator_and_for_its_namespace(
    aws: Clients, deploy: Deploy, environment: str
) -> None:
    identities(deploy)
    deploy("cloudformation/operator.yaml")
    trust, policy = role(aws, f"xgboost-server-secrets-{environment}")
    [statement] = trust["Statement"]
    assert statement["Principal"] == {"AWS": aws("iam").get_role(RoleName="scoring-external-secrets")["Role"]["Arn"]}
    assert statement["Action"] == ["sts:AssumeRole", "sts:TagSession"]
    for other, namespace in ENVIRONMENTS.items():
        assert holds(statement["Condition"], {"aws:RequestTag/esoNamespace": namespace}) is (other == environment)
        secret = f"{SECRETS}:xgboost-server/{other}/callers-AbCdEf"
        assert allows(policy, "secretsmanager:GetSecretValue", secret) is (other == environment)
        assert not allows(policy, "secretsmanager:PutSecretValue", secret)
    assert not holds(statement["Condition"], {})
    assert not allows(policy, "secretsmanager:GetSecretValue", f"{SECRETS}:payroll-AbCdEf")
    assert not allows(policy, "s3:GetObject", f"{MODELS}/models/{environment}/churn/7/model.ubj")


def test_the_bucket_refuses_whoever_comes_without_tls(aws: Clients, deploy: Deploy) -> None:
    bucket = deploy("cloudformation/models.yaml").outputs["BucketName"]
    policy = properties("cloudformation/models.yaml", "TransportPolicy")["PolicyDocument"]
    aws("s3").put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    [statement] = policy["Statement"]
    assert (statement["Effect"], statement["Principal"], statement["Action"]) == ("Deny", "*", "s3:*")
    assert holds(statement["Condition"], {"aws:SecureTransport": "false"})
    assert not holds(statement["Condition"], {"aws:SecureTransport": "true"})


def test_the_bastion_holds_sessions_and_finds_its_cluster() -> None:
    policy = properties("cloudformation/bastion.yaml", "Role")["Policies"][0]["PolicyDocument"]
    assert allows(policy, "eks:DescribeCluster", CLUSTER)
    assert not allows(policy, "eks:DescribeCluster", f"{CLUSTER}-2")
    assert not allows(policy, "ssm:GetParameter", f"arn:aws:ssm:{REGION}:{ACCOUNT}:parameter/secret")


@pytest.mark.parametrize(
    ("context", "allowed"),
    [
        ({"sts:IdentityTokenAudience": "xgboost-server", "sts:DurationSeconds": "300"}, True),
        ({"sts:IdentityTokenAudience": "xgboost-server", "sts:DurationSeconds": "3600"}, False),
        ({"sts:IdentityTokenAudience": "other", "sts:DurationSeconds": "300"}, False),
        ({"sts:IdentityTokenAudience": "xgboost-server,other", "sts:DurationSeconds": "300"}, False),
        ({"sts:DurationSeconds": "300"}, False),
    ],
)
def test_a_caller_gets_short_tokens_for_the_scoring_endpoint_alone(context: dict[str, str], allowed: bool) -> None:
    policy = properties("caller/endpoint.yaml", "Tokens")["PolicyDocument"]
    assert allows(policy, "sts:GetWebIdentityToken", context=context) is allowed
    assert not allows(policy, "sts:AssumeRole", context=context)


@pytest.mark.parametrize(
    ("template", "parameter", "value", "accepted"),
    [
        ("cloudformation/privatelink.yaml", "AllowedPrincipals", "arn:aws:iam::444455556666:root", True),
        ("cloudformation/privatelink.yaml", "AllowedPrincipals", "arn:aws:iam::444455556666:role/caller", True),
        ("cloudformation/privatelink.yaml", "AllowedPrincipals", "*", False),
        ("cloudformation/privatelink.yaml", "AllowedPrincipals", "arn:aws:iam::*:root", False),
        ("cloudformation/registry.yaml", "PullAccounts", "444455556666", True),
        ("cloudformation/registry.yaml", "PullAccounts", "", True),
        ("cloudformation/registry.yaml", "PullAccounts", "*", False),
        ("cloudformation/github.yaml", "Repository", "scoring", True),
        ("cloudformation/github.yaml", "Repository", "*", False),
        ("cloudformation/github.yaml", "OwnerId", "", False),
        ("cloudformation/github.yaml", "Environment", "*", False),
        ("cloudformation/github.yaml", "ScanEnvironment", "*", False),
        ("cloudformation/identities.yaml", "ModelPrefix", "models/", True),
        ("cloudformation/identities.yaml", "ModelPrefix", "", True),  # the environment's own, see above
        ("cloudformation/identities.yaml", "ModelPrefix", "/", False),
        ("cloudformation/identities.yaml", "ModelPrefix", "models", False),
        ("cloudformation/identities.yaml", "ModelPrefix", "*/", False),
        ("cloudformation/identities.yaml", "SecretPrefix", "*", False),
        ("cloudformation/identities.yaml", "ModelBucket", "*", False),
        ("cloudformation/identities.yaml", "Environment", "dev", True),
        ("cloudformation/identities.yaml", "Environment", "", False),
        ("cloudformation/identities.yaml", "Environment", "*", False),
        ("cloudformation/identities.yaml", "Environment", "dev/..", False),
        ("cloudformation/identities.yaml", "Namespace", "*", False),
        ("cloudformation/identities.yaml", "ClusterName", "*", False),
        ("cloudformation/operator.yaml", "ClusterName", "*", False),
        ("caller/endpoint.yaml", "Audience", "*", False),
    ],
)
def test_a_parameter_cannot_open_what_a_policy_closes(
    template: str, parameter: str, value: str, accepted: bool
) -> None:
    """The patterns, matched as CloudFormation does, as a whole; moto does not look at them."""
    pattern = read(template)["Parameters"][parameter]["AllowedPattern"]
    assert bool(re.fullmatch(pattern, value)) is accepted


def test_the_endpoint_service_is_for_listed_principals_after_acceptance() -> None:
    """Read from the template: moto 5.2.5 makes neither resource."""
    callers = "arn:aws:iam::444455556666:root,arn:aws:iam::777788889999:role/caller"
    permissions = properties("cloudformation/privatelink.yaml", "Permissions", AllowedPrincipals=callers)
    assert permissions["AllowedPrincipals"] == callers.split(",")
    service = properties("cloudformation/privatelink.yaml", "Service", LoadBalancerArn="arn")
    assert service == {"AcceptanceRequired": "true", "NetworkLoadBalancerArns": ["arn"]}


def test_s3_itself_lets_the_models_role_read_its_environment_and_not_write(
    aws: Clients, endpoint: str, deploy: Deploy
) -> None:
    """moto's own evaluation, for once. It knows no keys of a request, so that ListBucket with its prefix is not tried here."""
    bucket = deploy("cloudformation/models.yaml").outputs["BucketName"]
    deploy("cloudformation/identities.yaml", **IDENTITIES | {"ModelBucket": bucket})
    for key in ("models/dev/churn/7/model.ubj", "models/prod/churn/7/model.ubj"):
        aws("s3").put_object(Bucket=bucket, Key=key, Body=b"trees")
    # The same policy once more, as JSON: moto cannot read its own form of it (see read_document).
    document = json.dumps(role(aws, "xgboost-server-models-dev")[1] | {"Version": "2012-10-17"})
    aws("iam").put_role_policy(RoleName="xgboost-server-models-dev", PolicyName="read-models", PolicyDocument=document)
    arn = f"arn:aws:iam::{ACCOUNT}:role/xgboost-server-models-dev"
    session = aws("sts").assume_role(RoleArn=arn, RoleSessionName="pod")["Credentials"]
    s3 = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=session["AccessKeyId"],
        aws_secret_access_key=session["SecretAccessKey"],
        aws_session_token=session["SessionToken"],
    )
    with enforced(endpoint):
        assert s3.get_object(Bucket=bucket, Key="models/dev/churn/7/model.ubj")["Body"].read() == b"trees"
        for call in (
            lambda: s3.get_object(Bucket=bucket, Key="models/prod/churn/7/model.ubj"),
            lambda: s3.put_object(Bucket=bucket, Key="models/dev/churn/7/model.ubj", Body=b"others"),
            lambda: s3.delete_object(Bucket=bucket, Key="models/dev/churn/7/model.ubj"),
            lambda: s3.list_buckets(),
        ):
            with pytest.raises(s3.exceptions.ClientError, match="AccessDenied"):
                call()


@contextmanager
def enforced(endpoint: str) -> Iterator[None]:
    """From here on moto asks the policies."""
    ask = partial(Request, f"{endpoint}/moto-api/reset-auth", method="POST", headers={"Content-Type": "text/plain"})
    urlopen(ask(data=b"0")).close()  # requests that are let through unasked
    try:
        yield
    finally:
        urlopen(ask(data=b"inf")).close()
