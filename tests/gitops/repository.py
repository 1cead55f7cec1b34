"""A repository made from this one, served to the cluster by git itself, and the Argo CD that follows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from tests.chart.helm import TOOLS
from tests.cluster.cluster import wait_for
from tests.serving import ROOT

NAMESPACE = "scoring-dev"
APPLICATION = "scoring-dev"
PROD = "scoring-prod"
PLACEHOLDER = "https://github.com/OWNER/REPOSITORY.git"
VALUES = """\
image:
  repository: {name}
  tag: "{version}"
  digest: {digest}
  pullPolicy: Never
model:
  name: iris
  uri: file:///models/iris
  sha256: 84e960638a9bea3b94f6f6b0671b3dc6b362316e0f9d527b9ae255442e4af672
resources:
  requests: {{cpu: 150m, memory: 400Mi}}
  limits: {{cpu: 1, memory: 512Mi}}
autoscaling:
  minReplicas: 2
  maxReplicas: 4
drainSeconds: 15
edge:
  kind: nginx
  host: iris.example.com
  nginx:
    annotations: {{argocd.argoproj.io/sync-options: "Prune=confirm,Delete=confirm"}}
"""
Document = dict[str, Any]


def run(*command: str | Path, folder: Path | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=120, **more)


def kubectl(*arguments: str, namespace: str = NAMESPACE) -> str:
    return run("kubectl", "--namespace", namespace, *arguments).stdout


def get(kind: str, name: str, namespace: str = NAMESPACE) -> Document:
    found = subprocess.run(
        ["kubectl", "--namespace", namespace, "get", kind, name, "--output", "json"], capture_output=True, text=True
    )
    document: Document = json.loads(found.stdout) if found.returncode == 0 else {}
    return document


@dataclass(frozen=True)
class Repository:
    folder: Path
    url: str

    def values(self, environment: str = "dev") -> Path:
        return self.folder / "argocd" / "environments" / environment / "values.yaml"

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false")
        return run("git", *identity, *arguments, folder=self.folder).stdout.strip()

    def prepare(self, image: str, digest: str, slack: str) -> None:
        """As its owner would: the address, what this cluster has, and what dev runs. What differs: how long a Deployment waits
        until it calls itself failed, ten minutes otherwise; the hours of prod's windows; and where Slack is."""
        for path in self.folder.glob("argocd/**/*.yaml"):
            path.write_text(path.read_text().replace(PLACEHOLDER, self.url))
        self.write_windows(are_open=False)
        notifications = self.folder / "argocd" / "apps" / "notifications.yaml"
        token = "    token: $slack-token\n"
        assert token in notifications.read_text()
        notifications.write_text(notifications.read_text().replace(token, f"{token}    apiURL: {slack}\n"))
        for name in ("platform", "environments/staging", "environments/prod"):
            shutil.rmtree(self.folder / "argocd" / name)
        template = self.folder / "charts" / "xgboost-server" / "templates" / "deployment.yaml"
        template.write_text(re.sub(r"(progressDeadlineSeconds:).*", r"\1 45", template.read_text()))
        version = self.commit("the chart of the first release")
        self.values().write_text(VALUES.format(name=image, version=version, digest=digest))
        self.publish("the first release in dev")

    def write_windows(self, *, are_open: bool) -> str:
        """Windows of 8 and 4 hours that began within this hour, or begin in half a day."""
        hour = (datetime.now(ZoneInfo("Europe/Berlin")).hour + (0 if are_open else 12)) % 24
        path = self.folder / "argocd" / "apps" / "projects.yaml"
        schedule = f"0 {hour} * * *"
        text, count = re.subn(r'schedule: ".*"', f'schedule: "{schedule}"', path.read_text())
        assert count == 2
        path.write_text(text)
        return schedule

    def open_windows(self, *, are_open: bool) -> None:
        schedule = self.write_windows(are_open=are_open)
        self.publish(f"prod's windows are {'open' if are_open else 'closed'}")
        look("application", "bootstrap", "refresh=normal")
        wait_until("Argo CD has the windows", lambda: {found["schedule"] for found in windows()} == {schedule})
        look("application", PROD, "refresh=normal")

    def commit(self, message: str) -> str:
        """The version that a release of this commit would have."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
        return f"0.1.0-g{self.git('rev-parse', '--short=12', 'HEAD')}"

    def publish(self, message: str) -> None:
        self.commit(message)
        self.push()

    def push(self) -> None:
        self.git("push", "--quiet", "--force", "origin", "HEAD:main")
        look("applicationset", "scoring", "application-set-refresh=true")
        for name in (APPLICATION, PROD):
            look("application", name, "refresh=normal")

    def edit(self, old: str, new: str, environment: str = "dev") -> None:
        path = self.values(environment)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        self.publish(f"{environment}: {old.strip()} → {new.strip()}")

    def revert(self) -> None:
        self.git("revert", "--no-edit", "HEAD")
        self.push()

    def deploy(self, digest: str, version: str) -> None:
        run(
            sys.executable,
            ROOT / "delivery" / "environments.py",
            "deploy",
            "argocd/environments",
            digest,
            version,
            folder=self.folder,
        )

    def review(self) -> str:
        environment = {"HELM": str(TOOLS / "helm3"), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
        return run(sys.executable, "-m", "delivery.review", "HEAD", folder=self.folder, env=environment).stdout


def look(kind: str, name: str, what: str) -> None:
    """Have Argo CD look now, instead of within three minutes. Nothing where it is not there yet."""
    command = ["kubectl", "--namespace", "argocd", "annotate", "--overwrite", kind, name, f"argocd.argoproj.io/{what}"]
    subprocess.run(command, capture_output=True)


def windows() -> list[Document]:
    found: list[Document] = get("appproject", "scoring", "argocd")["spec"]["syncWindows"]
    return found


def status(application: str = APPLICATION) -> tuple[str, str]:
    found = get("application", application, "argocd").get("status", {})
    return found.get("sync", {}).get("status", ""), found.get("health", {}).get("status", "")


def wait_until(what: str, condition: Callable[[], Any], seconds: float = 240) -> Any:
    try:
        return wait_for(what, condition, seconds)
    except AssertionError:
        for name in (APPLICATION, PROD):
            found = get("application", name, "argocd").get("status", {})
            told = {key: found.get(key) for key in ("sync", "health", "conditions", "operationState")}
            print(f"{name}: {json.dumps(told)[:6000]}")
        raise


def wait_until_settled(application: str = APPLICATION) -> None:
    wait_until("Synced and Healthy", lambda: status(application) == ("Synced", "Healthy"))


def settle_after(seconds: float, application: str = APPLICATION) -> None:
    """Time in which Argo CD, told to look, could do what it must not do."""
    look("application", application, "refresh=normal")
    time.sleep(seconds)


def argocd(*arguments: str) -> None:
    """Its program, as docs/gitops.md calls it where none is at hand."""
    cli = ("exec", "statefulset/argocd-application-controller", "--", "argocd", *arguments, "--core")
    kubectl(*cli, namespace="argocd")
