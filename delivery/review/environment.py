"""One environment as it would run: its values, its chart, what Helm makes of both, and what matters in that."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml

FOLDER = "argocd/environments"
RECORDS = "argocd/models"
CHART = "charts/xgboost-server"
KUBE_VERSION = "1.35.0"  # that of infra/eksctl/cluster.yaml; Helm alone would assume the oldest that it knows
UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

Document = dict[str, Any]


class CannotTell(Exception):
    pass


@dataclass(frozen=True)
class Tree:
    """The files of a commit; of the folder as it lies there, where `revision` is empty."""

    root: Path
    revision: str = ""

    def git(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["git", "-C", str(self.root), *arguments], capture_output=True)

    def read(self, path: str) -> str:
        if not self.revision:
            return (self.root / path).read_text(encoding="utf-8")
        return self.git("show", f"{self.revision}:{path}").stdout.decode()

    def paths(self, folder: str, suffix: str) -> list[str]:
        if not self.revision:
            return sorted(str(found.relative_to(self.root)) for found in (self.root / folder).rglob(f"*{suffix}"))
        listed = self.git("ls-tree", "-r", "--name-only", "-z", self.revision, "--", folder)
        if listed.returncode:
            raise CannotTell(f"BASE names no commit here: {self.revision}")
        return sorted(path for path in listed.stdout.decode().split("\0") if path.endswith(suffix))


@dataclass(frozen=True)
class Charts:
    """Each environment's own chart, unpacked once."""

    helm: str
    folder: Path

    def find(self, tree: Tree, tag: str) -> tuple[str, Path | None]:
        """The revision that Argo CD takes for this tag, and the chart; no chart where no such commit is here."""
        named = re.search(r"-g([0-9a-f]{12})$", tag)
        revision = named[1] if named else f"v{tag}"
        target = self.folder / re.sub(r"[^\w.-]", "_", revision)
        if not target.is_dir():
            archive = tree.git("archive", "--format=tar", f"{revision}^{{commit}}:{CHART}")
            if archive.returncode:
                return revision, None
            target.mkdir()
            subprocess.run(["tar", "-x", "-C", str(target)], input=archive.stdout, check=True)
        return revision, target


@cache  # most environments are the same before and after
def render(helm: str, chart: Path, values: str) -> subprocess.CompletedProcess[str]:
    options = ["--kube-version", KUBE_VERSION, "--namespace", "scoring", "--values", "-"]
    return subprocess.run(
        [helm, "template", "xgboost-server", str(chart), *options], input=values, capture_output=True, text=True
    )


@dataclass(frozen=True)
class Environment:
    name: str
    values: Document = field(default_factory=dict)
    chart: str = ""
    is_chart_here: bool = True
    fault: str = ""
    text: str = ""
    record: Document | None = None
    version: str = ""
    objects: dict[str, Document] = field(default_factory=dict)

    def value(self, path: str) -> Any:
        found: Any = self.values
        for key in path.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        return "" if found is None else found

    def one(self, kind: str) -> Document:
        return next((found for key, found in self.objects.items() if key.startswith(f"{kind} ")), {})

    @property
    def server(self) -> Document:
        deployment = self.one("Deployment")
        found: Document = deployment["spec"]["template"]["spec"]["containers"][0] if deployment else {}
        return found

    def amount(self, place: str, resource: str) -> float:
        """Of one pod; CPUs, or bytes."""
        return quantity(str(self.server.get("resources", {}).get(place, {}).get(resource, 0)))

    @property
    def pods(self) -> tuple[int, int]:
        """Fewest and most."""
        if scaler := self.one("HorizontalPodAutoscaler"):
            return scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]
        if scaler := self.one("ScaledObject"):
            return scaler["spec"]["minReplicaCount"], scaler["spec"]["maxReplicaCount"]
        fixed = self.one("Deployment").get("spec", {}).get("replicas", 0)
        return fixed, fixed

    @property
    def scaler(self) -> str:
        kinds = {"HorizontalPodAutoscaler": "hpa", "ScaledObject": "keda"}
        return next((word for kind, word in kinds.items() if self.one(kind)), "none")

    @property
    def budget(self) -> str:
        spec = self.one("PodDisruptionBudget").get("spec", {})
        return " ".join(f"{key} {spec[key]}" for key in ("minAvailable", "maxUnavailable") if key in spec)


def quantity(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", text).groups()  # type: ignore[union-attr] # Kubernetes' own form
    return float(number) / 1000 if unit == "m" else float(number) * UNITS[unit]


def read_environments(tree: Tree, charts: Charts) -> dict[str, Environment]:
    records = {path: json.loads(tree.read(path)) for path in tree.paths(RECORDS, ".json")}
    paths = [path for path in tree.paths(FOLDER, "/values.yaml") if path.count("/") == 3]
    found = (read_environment(path.split("/")[2], tree.read(path), records, tree, charts) for path in paths)
    return {environment.name: environment for environment in found}


def read_environment(name: str, text: str, records: dict[str, Document], tree: Tree, charts: Charts) -> Environment:
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        return Environment(name, fault=f"values.yaml is no YAML: {str(error).splitlines()[0]}")
    bare = Environment(name, values)
    chart, folder = charts.find(tree, str(bare.value("image.tag")))
    path, record = find_record(records, bare)
    known = partial(
        Environment,
        name,
        values,
        chart=chart,
        is_chart_here=folder is not None,
        record=record,
        version=version_of(path, bare),
    )
    done = render(charts.helm, folder or tree.root / CHART, text)
    if done.returncode:
        return known(fault=readable(done.stderr))
    documents = [found for found in yaml.safe_load_all(done.stdout) if found and not is_for_helm_test(found)]
    objects = {f"{found['kind']} {found['metadata']['name']}": found for found in documents}
    return known(text=done.stdout, objects=objects)


def is_for_helm_test(document: Document) -> bool:
    """Argo CD leaves these out."""
    return bool(document["metadata"].get("annotations", {}).get("helm.sh/hook") == "test")


def find_record(records: dict[str, Document], environment: Environment) -> tuple[str, Document | None]:
    name, digest = environment.value("model.name"), f"sha256:{environment.value('model.sha256')}"
    for path, record in records.items():
        if path.split("/")[2] == name and record.get("digest") == digest:
            return path, record
    return "", None


def version_of(record: str, environment: Environment) -> str:
    """By the record's name; else by the folder that the model's file lies in."""
    if record:
        return Path(record).stem
    parts = [part for part in str(environment.value("model.uri")).split("/") if not part.startswith("model.")]
    return parts[-1] if parts and parts[-1].isdecimal() else ""


def readable(text: str) -> str:
    """Helm's message without the way through its templates: the chart's own sentences, or the schema's, one on a line."""
    lines = re.sub(r"execution error at \(.*?\): ", "", text.strip().removeprefix("Error: ")).splitlines()
    told = [line.strip(" -") for line in lines if re.search(r"\w+ ", line) and not line.startswith("Use --debug")]
    return "\n".join(told[1:] if len(told) > 1 else told)
