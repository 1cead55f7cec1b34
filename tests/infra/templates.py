"""The CloudFormation templates of `infra/`, and what their functions come to.

moto resolves functions too, for the types that it makes. What it does not make is resolved here, so that those policies are
judged as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cfnlint.decode import cfn_yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
ACCOUNT = "111122223333"
REGION = "eu-central-1"
TEMPLATES = sorted(str(path.relative_to(INFRA)) for path in INFRA.rglob("*.yaml") if path.parent.name != "eksctl")
# The parameters without a default.
GITHUB = {"Owner": "acme", "OwnerId": "4711", "Repository": "scoring", "RepositoryId": "815"}
IDENTITIES = {"Environment": "dev", "ModelBucket": "models.example"}
PSEUDO = {"AWS::AccountId": ACCOUNT, "AWS::Region": REGION, "AWS::Partition": "aws"}
NOTHING = object()


def read(name: str) -> dict[str, Any]:
    """A template with its functions in the long form."""
    template: dict[str, Any] = cfn_yaml.load(str(INFRA / name))
    return template


def properties(name: str, resource: str, **parameters: Any) -> dict[str, Any]:
    """The properties of one resource as they would be deployed with these parameters."""
    template = read(name)
    values = {key: parameter.get("Default") for key, parameter in template.get("Parameters", {}).items()} | parameters
    found: dict[str, Any] = Template(template, values | PSEUDO).resolve(template["Resources"][resource]["Properties"])
    return found


class Template:
    """Resolves functions; another resource is represented by its name."""

    def __init__(self, template: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        self.conditions = template.get("Conditions", {})
        self.values = values

    def resolve(self, node: Any) -> Any:
        if isinstance(node, list):
            return [value for value in map(self.resolve, node) if value is not NOTHING]
        if not isinstance(node, dict):
            return node
        if len(node) == 1 and (name := str(next(iter(node)))) in FUNCTIONS:
            return FUNCTIONS[name](self, node[name])
        resolved = {str(key): self.resolve(value) for key, value in node.items()}
        return {key: value for key, value in resolved.items() if value is not NOTHING}

    def value(self, name: str) -> Any:
        if name == "AWS::NoValue":
            return NOTHING
        value = self.values.get(name, name)
        if name in self.values and isinstance(self.values[name], str) and "," in value:
            return value.split(",")
        return value

    def substitute(self, given: Any) -> str:
        """Of a text, or of a text with names of its own."""
        text, own = (given[0], self.resolve(given[1])) if isinstance(given, list) else (given, {})
        return re.sub(r"\$\{([^}]+)\}", lambda found: str(own.get(found[1], self.value(found[1]))), text)

    def choose(self, arguments: list[Any]) -> Any:
        name, yes, no = arguments
        return self.resolve(yes if self.resolve(self.conditions[name]) else no)


FUNCTIONS = {
    "Ref": lambda template, name: template.value(name),
    "Fn::GetAtt": lambda template, path: ".".join(path) if isinstance(path, list) else path,
    "Fn::Sub": lambda template, given: template.substitute(given),
    "Fn::If": lambda template, arguments: template.choose(arguments),
    "Fn::Equals": lambda template, pair: template.resolve(pair[0]) == template.resolve(pair[1]),
    "Fn::Not": lambda template, one: not template.resolve(one[0]),
    "Fn::Join": lambda template, arguments: arguments[0].join(_listed(template.resolve(arguments[1]))),
    "Fn::Base64": lambda template, text: template.resolve(text),
    "Fn::Select": lambda template, arguments: f"{arguments[0]} of {arguments[1]}",
}


def _listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def statements(node: Any) -> Iterator[dict[str, Any]]:
    """Every statement of every policy, however deep it lies."""
    if isinstance(node, dict):
        if "Effect" in node:
            yield node
        else:
            for value in node.values():
                yield from statements(value)
    elif isinstance(node, list):
        for value in node:
            yield from statements(value)
