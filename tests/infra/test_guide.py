"""docs/install-eks.md: its commands fit the files that they name."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cfnlint", reason="`make test-infra` installs what these tests need")
yaml = pytest.importorskip("yaml")

from tests.chart.helm import missing, template  # noqa: E402, after the skips
from tests.infra.templates import ROOT, TEMPLATES, properties, read  # noqa: E402

GUIDE = (ROOT / "docs/install-eks.md").read_text(encoding="utf-8")
REMOVAL = GUIDE[GUIDE.index("## Remove it") :]
ENVIRONMENTS = ("dev", "staging", "prod")
Script = list[str]


def blocks(text: str) -> Script:
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


COMMANDS = "\n".join(blocks(GUIDE)).replace("\\\n", " ").splitlines()
DEPLOYMENTS = [command for command in COMMANDS if "cloudformation deploy" in command]


def template_of(command: str) -> str:
    found = re.search(r"--template-file infra/(\S+)", command)
    assert found
    return found[1]


def test_every_template_is_deployed_once() -> None:
    assert sorted(map(template_of, DEPLOYMENTS)) == TEMPLATES


@pytest.mark.parametrize("command", DEPLOYMENTS, ids=template_of)
def test_a_deployment_gives_the_parameters_that_its_template_takes(command: str) -> None:
    """Those without a default all, and none that is not there."""
    parameters = read(template_of(command)).get("Parameters", {})
    given = set(re.findall(r"(?<=\s)([A-Z][A-Za-z]+)=", command.partition("--parameter-overrides")[2]))
    given -= {"Name"}  # of a filter within a command
    assert given <= set(parameters)
    assert {name for name, parameter in parameters.items() if "Default" not in parameter} <= given


@pytest.mark.parametrize("command", DEPLOYMENTS, ids=template_of)
def test_a_deployment_acknowledges_the_roles_that_its_template_makes(command: str) -> None:
    resources = read(template_of(command))["Resources"].values()
    identities = [resource for resource in resources if resource["Type"].startswith("AWS::IAM::")]
    named = any("RoleName" in resource["Properties"] for resource in identities)
    wanted = "CAPABILITY_NAMED_IAM" if named else "CAPABILITY_IAM" if identities else None
    assert re.findall(r"--capabilities (\S+)", command) == ([wanted] if wanted else [])


@pytest.mark.parametrize("stack_and_output", sorted(set(re.findall(r"output (scoring-\S+ \w+)", GUIDE))))
def test_an_output_that_is_read_is_there(stack_and_output: str) -> None:
    stack, output = stack_and_output.split()
    [found] = [template_of(command) for command in DEPLOYMENTS if stack in stacks_of(command)]
    assert output in read(found)["Outputs"]


def stacks_of(command: str) -> set[str]:
    """One, or those of the loop over the environments."""
    found = re.search(r"--stack-name (\S+)", command)
    assert found
    return {found[1].replace("$environment", environment) for environment in ENVIRONMENTS}


def test_the_environments_are_those_of_argo_cd() -> None:
    assert {path.parent.name for path in ROOT.glob("argocd/environments/*/values.yaml")} == set(ENVIRONMENTS)
    assert set(re.findall(r"^ *for environment in (.*?);", "\n".join(COMMANDS), re.MULTILINE)) == {
        " ".join(ENVIRONMENTS)
    }


def test_every_stack_is_removed() -> None:
    for command in DEPLOYMENTS:
        found = re.search(r"--stack-name (\S+)", command)
        assert found
        assert found[1] in REMOVAL


@pytest.mark.parametrize("block", blocks(GUIDE), ids=lambda block: block[:30].strip())
def test_bash_can_read_every_block(block: str) -> None:
    assert subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize(
    "parts",
    [blocks(GUIDE), blocks(GUIDE)[:1] + blocks(REMOVAL)],
    ids=["from the start", "the removal, in a new shell that has seen section 1"],
)
def test_every_variable_is_set_before_it_is_used(parts: Script) -> None:
    known: set[str] = set()
    for line in "\n".join(parts).replace("\\\n", " ").splitlines():
        bare = line.partition(" # ")[0]
        for word in re.finditer(r"(?P<set>(?<![\w$])\w+(?==[^=])|(?<=for )\w+)|\$\{?(?P<used>[A-Za-z_]\w*)", bare):
            assert not word["used"] or word["used"] in known, f"{word['used']}: {line}"
            if re.match(r" *(export|for) ", bare) and word["set"]:
                known.add(word["set"])
    assert {"AWS_REGION", "CLUSTER"} <= known


def run(command: str, stubs: str, **variables: str) -> str:
    """What a command of the guide prints, with stubs in place of what needs AWS."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{stubs}\n{command}"],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_cluster_that_is_made_has_the_names_that_were_chosen() -> None:
    """The sed of the guide, run; what eksctl would have read fits the roles of the templates."""
    [command] = re.findall(r"^sed .*?eksctl create cluster -f -$", GUIDE, re.MULTILINE | re.DOTALL)
    stubs = "eksctl() { cat; }; curl() { echo 198.51.100.7; }"
    made = yaml.safe_load(run(command, stubs, ACCOUNT="999900001111", AWS_REGION="eu-west-1", CLUSTER="other"))
    assert made["metadata"] | {"version": ""} == {"name": "other", "region": "eu-west-1", "version": ""}
    assert made["vpc"]["publicAccessCIDRs"] == ["198.51.100.7/32"]
    assert made["availabilityZones"] == ["eu-west-1a", "eu-west-1b", "eu-west-1c"]
    given = {"ModelBucket": "models.example", "ClusterName": "other"}
    names = [
        properties("cloudformation/identities.yaml", "Models", Environment=environment, **given)["RoleName"]
        for environment in ENVIRONMENTS
    ]
    names.append(properties("cloudformation/operator.yaml", "Operator", ClusterName="other")["RoleName"])
    roles = [entry.get("roleARN") for entry in made["iam"]["podIdentityAssociations"] if "roleARN" in entry]
    assert roles == [f"arn:aws:iam::999900001111:role/{name}" for name in names]


def values_of(release: str) -> dict[str, Any]:
    """What the guide gives a release, its variables filled in."""
    [text] = re.findall(rf"^helm install {release} .*? <<EOF\n(.*?)^EOF$", GUIDE, re.MULTILINE | re.DOTALL)
    stubs = "output() { echo s3://models.example/models/prod/; }"
    variables = {
        "REGISTRY": "999900001111.dkr.ecr.eu-west-1.amazonaws.com",
        "DIGEST": f"sha256:{'0' * 64}",
        "AWS_REGION": "eu-west-1",
        "HOST": "iris.example.com",
        "CERTIFICATE": "CERTIFICATE",
    }
    values: dict[str, Any] = yaml.safe_load(run(f"cat <<EOF\n{text}EOF", stubs, **variables))
    return values


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_the_chart_takes_the_values_of_the_server(tmp_path: Path) -> None:
    """Its schema knows each, and its templates refuse none."""
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values_of("xgboost-server")))
    done = template(path)
    assert done.returncode == 0, done.stderr


def test_what_is_installed_by_hand_is_what_argo_cd_takes_over() -> None:
    application = yaml.safe_load((ROOT / "argocd/platform/nginx-ingress.yaml").read_text(encoding="utf-8"))
    wanted = application["spec"]["source"]["helm"]["valuesObject"]
    annotations = wanted["controller"]["service"]["annotations"]
    del annotations["argocd.argoproj.io/sync-options"]
    annotations["service.beta.kubernetes.io/aws-load-balancer-ssl-cert"] = "CERTIFICATE"
    assert values_of("nginx-ingress") == wanted


def test_every_file_that_is_named_is_there() -> None:
    for name in re.findall(r"(?<![\w/])(?:infra|examples|argocd|charts|delivery)/[\w./-]+\.\w+", GUIDE):
        assert Path(ROOT, name).is_file(), name
