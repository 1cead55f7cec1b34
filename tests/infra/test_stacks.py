"""The stacks, made, changed and removed in an AWS of this machine, and what they are there.

moto 5.2.5 makes most of what the templates hold. What it lacks is listed in `LACKING`, and a test holds the list: the types
there are read and judged (test_policies.py), but never made. No test here speaks with AWS itself.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("boto3", reason="`make test-infra` installs what these tests need")
pytest.importorskip("cfnlint", reason="`make test-infra` installs what these tests need")
yaml = pytest.importorskip("yaml")

from tests.infra.conftest import UNRESOLVED, Clients, Deploy  # noqa: E402, after the skips
from tests.infra.templates import ACCOUNT, GITHUB, IDENTITIES, INFRA, REGION, TEMPLATES, properties, read  # noqa: E402

CFN_LINT = str(Path(sys.executable).with_name("cfn-lint"))
LACKING = {  # by moto 5.2.5
    "AWS::EC2::VPCEndpointService",
    "AWS::EC2::VPCEndpointServicePermissions",
    "AWS::EKS::AccessEntry",
    "AWS::IAM::OIDCProvider",
    "AWS::S3::BucketPolicy",
}
LOAD_BALANCER = f"arn:aws:elasticloadbalancing:{REGION}:{ACCOUNT}:loadbalancer/net/scoring/50dc6c495c0c9188"
PRIVATELINK = {"LoadBalancerArn": LOAD_BALANCER, "AllowedPrincipals": "arn:aws:iam::444455556666:root"}
SERVICE = f"com.amazonaws.vpce.{REGION}.vpce-svc-0a1b2c3d4e5f60718"


class Network:
    """A VPC with a subnet and a security group, as the cluster has one."""

    def __init__(self, aws: Clients) -> None:
        ec2 = aws("ec2")
        self.vpc = ec2.create_vpc(CidrBlock="10.20.0.0/16")["Vpc"]["VpcId"]
        self.subnet = ec2.create_subnet(VpcId=self.vpc, CidrBlock="10.20.1.0/24")["Subnet"]["SubnetId"]
        self.group = ec2.create_security_group(GroupName="cluster", Description="cluster", VpcId=self.vpc)["GroupId"]

    def of_bastion(self) -> dict[str, str]:
        return {"VpcId": self.vpc, "SubnetId": self.subnet, "ClusterSecurityGroup": self.group}

    def of_caller(self) -> dict[str, str]:
        return {
            "ServiceName": SERVICE,
            "HostName": "churn.scoring.example.com",
            "VpcId": self.vpc,
            "SubnetIds": self.subnet,
            "ClientSecurityGroup": self.group,
        }


@pytest.fixture
def network(aws: Clients) -> Network:
    return Network(aws)


def test_cfn_lint_has_nothing_to_say() -> None:
    """Not even by way of information."""
    linted = subprocess.run(
        [CFN_LINT, "-c", "I", "--", *(str(INFRA / name) for name in TEMPLATES)],
        capture_output=True,
        text=True,
    )
    assert (linted.returncode, linted.stdout + linted.stderr) == (0, "")


def test_cfn_lint_would_have(tmp_path: Path) -> None:
    """The check above can fail."""
    broken = tmp_path / "broken.yaml"
    broken.write_text(
        (INFRA / "cloudformation/models.yaml").read_text(encoding="utf-8").replace("SSEAlgorithm", "Algorithm")
    )
    linted = subprocess.run([CFN_LINT, "--", str(broken)], capture_output=True, text=True)
    assert linted.returncode != 0


@pytest.mark.parametrize(
    ("template", "first", "second"),
    [
        ("cloudformation/registry.yaml", {}, {"PullAccounts": "444455556666"}),
        ("cloudformation/github.yaml", GITHUB, {**GITHUB, "PublicRepository": "acme/scoring"}),
        ("cloudformation/models.yaml", {}, {}),
        ("cloudformation/identities.yaml", IDENTITIES, {**IDENTITIES, "ModelPrefix": "churn/"}),
        ("cloudformation/operator.yaml", {}, {"ClusterName": "scoring-2"}),
        ("cloudformation/bastion.yaml", "of_bastion", {"AccessPolicy": "AmazonEKSViewPolicy"}),
        ("cloudformation/privatelink.yaml", PRIVATELINK, {**PRIVATELINK, "AcceptanceRequired": "false"}),
        ("caller/endpoint.yaml", "of_caller", {"Audience": "other"}),
    ],
)
def test_a_stack_is_made_changed_and_removed_but_for_the_types_moto_lacks(
    deploy: Deploy, network: Network, template: str, first: Any, second: dict[str, str]
) -> None:
    if isinstance(first, str):
        first = getattr(network, first)()
        second = first | second
    stack = deploy(template, **first)
    assert stack.status == "CREATE_COMPLETE"
    described = read(template)["Resources"]
    wanted = {name for name, resource in described.items() if "Condition" not in resource or name == "Provider"}
    made = set(stack.resources)
    assert {described[name]["Type"] for name in wanted - made - {UNRESOLVED.get(template)}} <= LACKING
    assert not {described[name]["Type"] for name in made} & LACKING, "moto has learnt it: take it off the list"
    stack.update(second)
    assert stack.status == "UPDATE_COMPLETE"
    stack.delete()
    assert stack.name not in {found["StackName"] for found in stack.cloudformation.describe_stacks()["Stacks"]}


def test_every_template_is_tried() -> None:
    assert TEMPLATES == [
        "caller/endpoint.yaml",
        "cloudformation/bastion.yaml",
        "cloudformation/github.yaml",
        "cloudformation/identities.yaml",
        "cloudformation/models.yaml",
        "cloudformation/operator.yaml",
        "cloudformation/privatelink.yaml",
        "cloudformation/registry.yaml",
    ]


def test_the_stacks_of_three_environments_live_side_by_side(aws: Clients, deploy: Deploy) -> None:
    """The roles' names carry the environment: IAM has one of each name in an account."""
    stacks = {
        environment: deploy(
            "cloudformation/identities.yaml",
            name=f"identities-{environment}",
            **IDENTITIES | {"Environment": environment},
        )
        for environment in ("dev", "staging", "prod")
    }
    for environment, stack in stacks.items():
        assert stack.status == "CREATE_COMPLETE"
        assert stack.outputs["ModelsUri"] == f"s3://models.example/models/{environment}/"
    stacks["dev"].delete()
    found = {role["RoleName"] for role in aws("iam").list_roles()["Roles"]}
    assert found >= {f"xgboost-server-{what}-{of}" for what in ("models", "secrets") for of in ("staging", "prod")}
    assert not [name for name in found if name.endswith("-dev")]


def test_a_tag_is_written_once_but_for_signatures(aws: Clients, deploy: Deploy) -> None:
    deploy("cloudformation/registry.yaml")
    found = aws("ecr").describe_repositories(repositoryNames=["xgboost-server", "charts/xgboost-server"])[
        "repositories"
    ]
    assert len(found) == 2
    for repository in found:
        assert repository["imageTagMutability"] == "IMMUTABLE_WITH_EXCLUSION"
        assert repository["imageTagMutabilityExclusionFilters"] == [{"filterType": "WILDCARD", "filter": "sha256-*"}]


def test_images_are_scanned_when_pushed() -> None:
    """Read from the template: moto 5.2.5 drops the property."""
    assert properties("cloudformation/registry.yaml", "Image")["ImageScanningConfiguration"] == {"ScanOnPush": True}


def test_only_tags_of_tests_expire(aws: Clients, deploy: Deploy) -> None:
    """No rule reaches what has no tag: the platforms of an index, attestations, signatures."""
    deploy("cloudformation/registry.yaml")
    text = properties("cloudformation/registry.yaml", "Image")["LifecyclePolicy"]["LifecyclePolicyText"]
    aws("ecr").put_lifecycle_policy(repositoryName="xgboost-server", lifecyclePolicyText=text)  # moto checks its form
    selections = [rule["selection"] for rule in json.loads(text)["rules"]]
    assert [(selection["tagStatus"], selection["tagPatternList"]) for selection in selections] == [
        ("tagged", ["test-*"])
    ]


def test_models_are_versioned_encrypted_and_private(aws: Clients, deploy: Deploy) -> None:
    bucket = deploy("cloudformation/models.yaml").outputs["BucketName"]
    encryption = aws("s3").get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert encryption[0]["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    described = properties("cloudformation/models.yaml", "Bucket")  # the rest moto 5.2.5 drops
    assert described["VersioningConfiguration"] == {"Status": "Enabled"}
    assert described["OwnershipControls"] == {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    access = described["PublicAccessBlockConfiguration"]
    assert len(access) == 4
    assert all(access.values())


def test_models_and_images_outlive_their_stacks(aws: Clients, deploy: Deploy) -> None:
    stacks = deploy("cloudformation/models.yaml"), deploy("cloudformation/registry.yaml")
    bucket = stacks[0].outputs["BucketName"]
    for stack in stacks:
        stack.delete()
    assert bucket in {found["Name"] for found in aws("s3").list_buckets()["Buckets"]}
    assert len(aws("ecr").describe_repositories()["repositories"]) == 2


def test_current_models_never_expire() -> None:
    rules = properties("cloudformation/models.yaml", "Bucket")["LifecycleConfiguration"]["Rules"]
    assert not any(key.startswith(("Expiration", "Transition")) for rule in rules for key in rule)


def test_nothing_comes_in_to_the_bastion_and_only_tls_goes_out(aws: Clients, deploy: Deploy, network: Network) -> None:
    stack = deploy("cloudformation/bastion.yaml", **network.of_bastion())
    wall, cluster = aws("ec2").describe_security_groups(GroupIds=[stack.resources["Wall"], network.group])[
        "SecurityGroups"
    ]
    if wall["GroupId"] == network.group:
        wall, cluster = cluster, wall
    assert wall["IpPermissions"] == []
    assert {rule["FromPort"] for rule in properties("cloudformation/bastion.yaml", "Wall")["SecurityGroupEgress"]} == {
        443
    }
    [rule] = cluster["IpPermissions"]
    assert (rule["FromPort"], rule["UserIdGroupPairs"][0]["GroupId"]) == (443, wall["GroupId"])


def test_the_bastion_takes_only_tokens_for_metadata_and_has_an_encrypted_disk() -> None:
    host = properties("cloudformation/bastion.yaml", "Host")
    assert host["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
    assert host["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True


@pytest.mark.parametrize("public", ["true", "false"])
def test_the_bastion_has_a_public_address_only_where_asked(public: str) -> None:
    host = properties("cloudformation/bastion.yaml", "Host", PublicAddress=public)
    assert host["NetworkInterfaces"][0]["AssociatePublicIpAddress"] == public


def test_the_bastion_checks_what_it_downloads_and_fits_the_cluster(
    aws: Clients, deploy: Deploy, network: Network, tmp_path: Path
) -> None:
    """Every download has its checksum, both are one version, and kubectl is of the cluster's."""
    host = deploy("cloudformation/bastion.yaml", **network.of_bastion()).resources["Host"]
    attribute = aws("ec2").describe_instance_attribute(InstanceId=host, Attribute="userData")
    script = base64.b64decode(attribute["UserData"]["Value"]).decode()
    downloads = {url.rsplit("/", 1)[1] for url in re.findall(r"https://\S+", script)}
    assert downloads == set(re.findall(r"^[0-9a-f]{64}  (\S+)$", script, re.MULTILINE))
    version = yaml.safe_load((INFRA / "eksctl/cluster.yaml").read_text(encoding="utf-8"))["metadata"]["version"]
    assert f"/release/v{version}." in script
    path = tmp_path / "user-data"
    path.write_text(script)
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).stderr == b""


def test_the_bastion_installs_nothing_whose_checksum_differs(
    aws: Clients, deploy: Deploy, network: Network, tmp_path: Path
) -> None:
    """The script itself, run by bash; its downloads come from a curl that brings something else."""
    host = deploy("cloudformation/bastion.yaml", **network.of_bastion()).resources["Host"]
    attribute = aws("ec2").describe_instance_attribute(InstanceId=host, Attribute="userData")
    path = tmp_path / "user-data"
    path.write_bytes(base64.b64decode(attribute["UserData"]["Value"]))
    for name, body in {
        "curl": 'echo else > "${@: -1:1}" ; touch "$(basename "${@: -1}")"',
        "install": f"touch {tmp_path}/installed",
    }.items():
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/bash\n{body}\n")
        tool.chmod(0o755)
    ran = subprocess.run(
        ["bash", str(path)],
        env=os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode != 0
    assert "kubectl: FAILED" in ran.stdout
    assert not (tmp_path / "installed").exists()


def test_the_caller_gets_a_private_address_under_the_public_name(
    aws: Clients, deploy: Deploy, network: Network
) -> None:
    stack = deploy("caller/endpoint.yaml", **network.of_caller())
    [endpoint] = aws("ec2").describe_vpc_endpoints(VpcEndpointIds=[stack.resources["Endpoint"]])["VpcEndpoints"]
    assert (endpoint["VpcEndpointType"], endpoint["ServiceName"]) == ("Interface", SERVICE)
    assert [group["GroupId"] for group in endpoint["Groups"]] == [stack.resources["Wall"]]
    zone = aws("route53").get_hosted_zone(Id=stack.resources["Zone"])["HostedZone"]
    assert zone["Name"] == "churn.scoring.example.com"
    described = properties("caller/endpoint.yaml", "Zone", VpcId=network.vpc)  # moto 5.2.5 drops the zone's VPC
    assert described["VPCs"] == [{"VPCId": network.vpc, "VPCRegion": REGION}]
    [wall] = aws("ec2").describe_security_groups(GroupIds=[stack.resources["Wall"]])["SecurityGroups"]
    [rule] = wall["IpPermissions"]
    assert (rule["FromPort"], rule["UserIdGroupPairs"][0]["GroupId"]) == (443, network.group)
