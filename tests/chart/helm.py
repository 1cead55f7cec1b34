"""Runs Helm on the chart, and knows the supported ways of running it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "xgboost-server"
HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
REFUSED = HERE / "refused"
TOOLS = Path(os.environ.get("TOOLS", ROOT / ".tools"))
CASES = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}
HELMS = ("helm4", "helm3")
# Helm takes the oldest version that a bare build knows unless it is told; Argo CD tells the cluster's.
KUBE_VERSION = "1.35.0"

Manifest = dict[str, Any]


def missing() -> str:
    """Why Helm cannot run here, or nothing."""
    absent = [name for name in HELMS if not (TOOLS / name).exists()]
    return f"{' and '.join(absent)} not in {TOOLS}; `make test-chart` builds them" if absent else ""


def find_tool(name: str) -> str:
    """Path of a program in the tools folder or on the PATH; empty if it is not there."""
    own = TOOLS / name
    return str(own) if own.exists() else shutil.which(name) or ""


def run_helm(helm: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "HELM_CACHE_HOME": "/nonexistent"}
    return subprocess.run([TOOLS / helm, *arguments], capture_output=True, text=True, env=environment, timeout=60)


def template(
    values: Path | None, *, helm: str = "helm4", kube_version: str = KUBE_VERSION, sets: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """`helm template` as release churn in namespace scoring."""
    options = ["--namespace", "scoring", "--kube-version", kube_version]
    options += [option for assignment in sets for option in ("--set-json", assignment)]
    files: list[str | Path] = ["--values", values] if values else []
    return run_helm(helm, "template", "churn", CHART, *options, *files)


@cache
def render(values: Path | None, sets: tuple[str, ...] = ()) -> str:
    result = template(values, sets=sets)
    assert result.returncode == 0, result.stderr
    return tidy(result.stdout)


def tidy(text: str) -> str:
    """Helm 4 ends a document with one more line end than Helm 3 does; nothing else differs."""
    return re.sub(r"\n+---\n", "\n---\n", text).rstrip() + "\n"


def abridged(text: str) -> str:
    """A render for people to look at: without the text of the dashboard, 55 KB in each case; test_dashboard.py looks at it."""
    return re.sub(r'(?<=\.json: )".{1000,}"', '"(dashboards/xgboost-server.json)"', text)


def manifests(values: Path | None, *sets: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(render(values, sets)) if document]


def find(documents: list[Manifest], kind: str, name: str = "") -> Manifest:
    """The one manifest of this kind, or the one whose name ends so."""
    found = [
        document
        for document in documents
        if document["kind"] == kind and (not name or document["metadata"]["name"].endswith(name))
    ]
    assert len(found) == 1, f"{len(found)} of kind {kind}"
    return found[0]


def sentence_of(path: Path) -> str:
    """What a refused values file must be told: its first line, a comment."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def closed(schema: Any) -> Any:
    """The schema, with unknown fields refused as the API server's strict validation does."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if "(?i)" in str(inner.get("pattern", "")):  # Go's regular expressions may set a flag in the middle
        inner["pattern"] = "(?i)" + inner["pattern"].replace("(?i)", "")
    if (
        "properties" in inner
        and "additionalProperties" not in inner
        and not inner.get("x-kubernetes-preserve-unknown-fields")
    ):
        inner["additionalProperties"] = False
    return inner
