"""A cluster by its KUBECONFIG, a release of the chart in it, and the proxy in front of its pods."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.chart.helm import CHART, Manifest, find_tool
from tests.chart.nginx import Nginx

RELEASE = "iris"
HOST = "iris.example.com"
PATH = "/v1/models/iris:predict"
ROW = b'{"instances": [[6.8, 2.8, 4.8, 1.4]]}'
SCORE = b'{"predictions":[1.0]}'
VALUES = Path(__file__).parent / "values.yaml"


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 300) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.5)
    return found


@dataclass(frozen=True)
class Release:
    """The chart, installed in a namespace of its own."""

    namespace: str
    image: str
    edge_url: str = ""
    use_cluster_ip: bool = False

    def kubectl(self, *arguments: str, check: bool = True, body: str = "") -> subprocess.CompletedProcess[str]:
        command = ["kubectl", "--namespace", self.namespace, *arguments]
        return subprocess.run(command, check=check, input=body, capture_output=True, text=True, timeout=600)

    def get(self, kind: str, selector: str = f"app.kubernetes.io/instance={RELEASE}") -> list[Manifest]:
        found = self.kubectl("get", kind, "--selector", selector, "--output", "json")
        items: list[Manifest] = json.loads(found.stdout)["items"]
        return items

    def helm(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [find_tool("helm4"), "--namespace", self.namespace, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert result.returncode == 0 or not check, result.stdout + result.stderr
        return result

    def upgrade(self, *sets: str, wait: bool = True) -> None:
        repository, _, tag = self.image.rpartition(":")
        settings = [f'image.repository="{repository}"', f'image.tag="{tag}"', f'test.edgeUrl="{self.edge_url}"']
        settings += [f"edge.nginx.useClusterIp={str(self.use_cluster_ip).lower()}", *sets]
        options = [option for assignment in settings for option in ("--set-json", assignment)]
        self.helm("upgrade", "--install", RELEASE, str(CHART), "--values", str(VALUES), *options)
        if wait:
            self.wait_until_rolled_out()

    def wait_until_rolled_out(self) -> None:
        self.kubectl("rollout", "status", f"deployment/{self.name}", "--timeout=300s")
        wait_for("the fewest pods of the scaler are ready", lambda: len(self.ready_pods()) >= 2)

    @property
    def name(self) -> str:
        return f"{RELEASE}-xgboost-server"

    def service_address(self) -> str:
        spec = json.loads(self.kubectl("get", "service", self.name, "--output", "json").stdout)["spec"]
        return f"{spec['clusterIP']}:{spec['ports'][0]['port']}"

    def pods(self) -> list[Manifest]:
        """Those that serve, and are not on their way out."""
        found = self.get("pods", f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=server")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def ready_pods(self) -> list[Manifest]:
        return [pod for pod in self.pods() if is_ready(pod)]

    def evict(self, pod: str) -> subprocess.CompletedProcess[str]:
        """As a node drain does it."""
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": self.namespace},
        }
        place = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        return self.kubectl("create", "--raw", place, "--filename", "-", check=False, body=json.dumps(eviction))


def is_ready(pod: Manifest) -> bool:
    conditions = {condition["type"]: condition["status"] for condition in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True"


def own_address(release: Release) -> str:
    """The address by which pods reach this machine: the one from which it would speak to the node."""
    (node, *_) = json.loads(release.kubectl("get", "nodes", "--output", "json").stdout)["items"]
    address = next(entry["address"] for entry in node["status"]["addresses"] if entry["type"] == "InternalIP")
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        probe.connect((address, 9))
        own: str = probe.getsockname()[0]
        return own


class Controller:
    """In place of the ingress controller: follows the ready endpoints of the Service and reloads NGINX at each change."""

    def __init__(self, release: Release, nginx: Nginx, port: int) -> None:
        self._nginx = nginx
        self._port = port
        selector = f"kubernetes.io/service-name={release.name}"
        command = [
            "kubectl",
            "--namespace",
            release.namespace,
            "get",
            "endpointslices",
            "--selector",
            selector,
            "--watch",
            "--output",
            "json",
        ]
        self._watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        assert self._watch.stdout is not None
        decoder, text, known = json.JSONDecoder(), "", list[str]()
        for line in self._watch.stdout:
            text += line
            try:
                found, end = decoder.raw_decode(text)
            except ValueError:
                continue
            text = text[end:].lstrip()
            servers = sorted(self._ready(found))
            if servers != known:
                known = servers
                self._nginx.reload(servers)

    def _ready(self, endpoints: Manifest) -> Iterator[str]:
        for endpoint in endpoints.get("endpoints") or []:
            if endpoint["conditions"].get("ready"):
                yield f"{endpoint['addresses'][0]}:{self._port}"

    def stop(self) -> None:
        self._watch.terminate()
        self._thread.join(30)
        self._watch.communicate()


@dataclass
class Load:
    """Keep-alive clients in threads that POST one row after the other and never retry; each failure is a caller's."""

    url: str
    clients: int = 4
    pause: float = 0.01
    answered: int = 0
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self) -> None:
        target = urlsplit(self.url)
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=30)
        while not self._stop.is_set():
            fault = self._ask(connection)
            with self._lock:
                if fault:
                    self.failures.append(f"{time.strftime('%X')} {fault}")
                else:
                    self.answered += 1
            time.sleep(self.pause)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> str:
        try:
            connection.request("POST", PATH, ROW, {"Host": HOST, "Content-Type": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return repr(error)
        return "" if (answer.status, body) == (200, SCORE) else f"{answer.status} {body!r}"


def has(program: str) -> bool:
    return any(os.access(os.path.join(folder, program), os.X_OK) for folder in os.environ["PATH"].split(os.pathsep))
