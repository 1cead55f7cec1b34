"""docs/install-eks.md: its commands fit the files that they name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cfnlint", reason="`make test-infra` installs what these tests need")
yaml = pytest.importorskip("yaml")

from tests.infra.templates import ROOT, TEMPLATES, read  # noqa: E402, after the skips

GUIDE = (ROOT / "docs/install-eks.md").read_text(encoding="utf-8")
COMMANDS = "\n".join(re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)).replace("\\\n", " ").splitlines()
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
    [template] = [template_of(command) for command in DEPLOYMENTS if f"--stack-name {stack} " in command]
    assert output in read(template)["Outputs"]


def test_every_stack_is_removed() -> None:
    removal = GUIDE[GUIDE.index("## Remove it") :]
    for command in DEPLOYMENTS:
        found = re.search(r"--stack-name (\S+)", command)
        assert found
        assert found[1] in removal


def test_the_values_fit_the_chart() -> None:
    """Each is one that the chart has."""
    path = ROOT / "charts/xgboost-server/values.yaml"
    if not path.exists():
        pytest.skip("the chart is not in this checkout")
    chart = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = re.search(r"helm install xgboost-server .*? <<EOF\n(.*?)EOF", GUIDE, re.DOTALL)
    assert found
    assert_within(yaml.safe_load(re.sub(r"\$\(.*\)|\$\w+", "x", found[1])), chart)


def assert_within(values: dict[str, Any], chart: dict[str, Any]) -> None:
    for key, value in values.items():
        assert key in chart
        if isinstance(value, dict) and chart[key]:
            assert_within(value, chart[key])


def test_every_file_that_is_named_is_there() -> None:
    for name in re.findall(r"(?<![\w/])(?:infra|examples)/[\w./-]+\.\w+", GUIDE):
        assert Path(ROOT, name).is_file(), name
