"""AWS over HTTP on this machine: moto's server, and clients of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

ACCOUNT = "111122223333"
REGION = "eu-central-1"
INFRA = Path(__file__).parents[2] / "infra"
Clients = Callable[[str], Any]


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a moto server that is this session's own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=output,
            stderr=output,
            env=os.environ | {"MOTO_ACCOUNT_ID": ACCOUNT, "MOTO_EC2_LOAD_DEFAULT_AMIS": "true"},
        )
    try:
        _wait(server, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"moto did not start: {log.read_text(encoding='utf-8')[-2000:]}")


@pytest.fixture(scope="session")
def aws(endpoint: str) -> Clients:
    """A client of the named service, with the rights of the account's root."""
    import boto3

    session = boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name=REGION)
    return lambda service: session.client(service, endpoint_url=endpoint)


# moto 5.2.5 knows no Fn::GetAtt of an endpoint's DnsEntries, which this record points at.
UNRESOLVED = {"caller/endpoint.yaml": "Address"}


def _body(template: str) -> str:
    """A template as it is, or as JSON without the resource that moto stumbles over."""
    if template not in UNRESOLVED:
        return (INFRA / template).read_text(encoding="utf-8")
    from tests.infra.templates import read

    document = read(template)
    del document["Resources"][UNRESOLVED[template]]
    return json.dumps(document)


class Stack:
    """One stack in moto, called as its template is unless it has a name of its own."""

    def __init__(self, aws: Clients, template: str, parameters: dict[str, str], name: str | None = None) -> None:
        self.cloudformation = aws("cloudformation")
        self.template = template
        self.name = name or Path(template).stem
        self._apply(self.cloudformation.create_stack, parameters)

    def _apply(self, call: Any, parameters: dict[str, str]) -> None:
        call(
            StackName=self.name,
            TemplateBody=_body(self.template),
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )

    def update(self, parameters: dict[str, str]) -> None:
        self._apply(self.cloudformation.update_stack, parameters)

    def delete(self) -> None:
        self.cloudformation.delete_stack(StackName=self.name)

    @property
    def status(self) -> str:
        found: str = self.cloudformation.describe_stacks(StackName=self.name)["Stacks"][0]["StackStatus"]
        return found

    @property
    def resources(self) -> dict[str, str]:
        """Physical by logical name."""
        found = self.cloudformation.describe_stack_resources(StackName=self.name)["StackResources"]
        # moto lists what it lacks too, as an entry without a name; a rule of a security group has a name and no id.
        made = [resource for resource in found if "LogicalResourceId" in resource]
        return {resource["LogicalResourceId"]: resource.get("PhysicalResourceId", "") for resource in made}

    @property
    def outputs(self) -> dict[str, str]:
        found = self.cloudformation.describe_stacks(StackName=self.name)["Stacks"][0].get("Outputs", [])
        return {output["OutputKey"]: output["OutputValue"] for output in found}


Deploy = Callable[..., Stack]


@pytest.fixture
def deploy(aws: Clients, endpoint: str) -> Iterator[Deploy]:
    """Makes stacks; afterwards this AWS is empty again, also of what outlives its stack."""
    yield lambda template, name=None, **parameters: Stack(aws, template, parameters, name)
    urlopen(Request(f"{endpoint}/moto-api/reset", method="POST")).close()
