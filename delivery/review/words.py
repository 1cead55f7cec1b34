"""What changes between two renders of one environment, in words."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator

from delivery.review.environment import Document, Environment

# What has a sentence of its own; the second kind only where there is a render to read it from.
TOLD = re.compile(r"(image\.(tag|digest|repository)|model\.(name|uri|sha256))$")
TOLD_BY_RENDER = re.compile(
    r"(resources|replicas|disruptionBudget|networkPolicy\.enabled|autoscaling\.(scaler|minReplicas|maxReplicas))(\.|$)"
)


def describe(before: Environment, after: Environment) -> list[str]:
    if before.values == after.values and before.chart == after.chart and before.text == after.text:
        return []
    if not after.values:
        return ["values.yaml cannot be read"]
    rendered = not before.fault and not after.fault
    return [
        *describe_image(before, after),
        *describe_model(before, after),
        *describe_contract(before, after),
        *(describe_pods(before, after) if rendered else ()),
        *describe_rest(before, after, rendered),
        *(describe_objects(before, after) if rendered else ()),
    ]


def describe_image(before: Environment, after: Environment) -> Iterator[str]:
    tag, digest = (arrow(before, after, f"image.{key}") for key in ("tag", "digest"))
    if tag or digest:
        yield ", ".join([f"image {tag or after.value('image.tag')}", *([f"digest {digest}"] if digest else [])])
    if repository := arrow(before, after, "image.repository"):
        yield f"image.repository {repository}"
    if before.chart != after.chart:
        yield f"chart {before.chart} → {after.chart}"


def describe_model(before: Environment, after: Environment) -> Iterator[str]:
    names = arrow(before, after, "model.name")
    versions = change(before.version, after.version)
    digests = arrow(before, after, "model.sha256")
    uris = arrow(before, after, "model.uri")
    if names or versions or digests:
        parts = [names or str(after.value("model.name")), versions or after.version]
        yield f"model {' '.join(filter(None, parts))}" + (f", digest {digests}" if digests else ", digest unchanged")
    moved = before.value("model.uri").replace(f"/{before.version}/", f"/{after.version}/")
    if uris and moved != after.value("model.uri"):
        yield f"model.uri {uris}"
    if names:
        yield f"callers must ask for /v1/models/{after.value('model.name')}"


def describe_contract(before: Environment, after: Environment) -> Iterator[str]:
    if before.record is None or after.record is None or before.record == after.record:
        return
    old, new = before.record["contract"], after.record["contract"]
    told = list(contract_changes(old, new))
    if objective := change(before.record["objective"], after.record["objective"]):
        told.append(f"objective {objective}")
    yield f"contract: {', '.join(told)}; callers must change with it" if told else "contract unchanged"


def contract_changes(old: Document, new: Document) -> Iterator[str]:
    names, others = old["feature_names"], new["feature_names"]
    if added := [name for name in others if name not in names]:
        yield f"new feature {', '.join(added)}"
    if gone := [name for name in names if name not in others]:
        yield f"feature {', '.join(gone)} gone"
    if not added and not gone and names != others:
        yield "features in another order"
    if old["feature_types"] != new["feature_types"]:
        yield "other types of features"
    for key in ("features", "outputs"):
        if counts := change(old[key], new[key]):
            yield f"{key} {counts}"


def describe_pods(before: Environment, after: Environment) -> Iterator[str]:
    told = [
        ("scaler", before.scaler, after.scaler),
        ("minReplicas", before.pods[0], after.pods[0]),
        ("maxReplicas", before.pods[1], after.pods[1]),
        *(
            (f"{resource} {place[:-1]}", size(before, place, resource), size(after, place, resource))
            for resource in ("cpu", "memory")
            for place in ("requests", "limits")
        ),
    ]
    changed = [f"{name} {words}" for name, old, new in told if (words := change(old, new))]
    yield from changed
    if changed and size(before, "limits", "memory") == size(after, "limits", "memory"):
        yield "memory limit unchanged"
    if more := [words for words in capacity(before, after) if words]:
        yield f"at most {', '.join(more)}"
    for name, old, new in [
        ("disruption budget", before.budget, after.budget),
        ("network policy", *("on" if side.one("NetworkPolicy") else "off" for side in (before, after))),
    ]:
        if words := change(old or "none", new or "none"):
            yield f"{name} {words}"


def size(environment: Environment, place: str, resource: str) -> str:
    return str(environment.server.get("resources", {}).get(place, {}).get(resource, "none"))


def capacity(before: Environment, after: Environment) -> Iterator[str]:
    """What the nodes must hold more, or less, when every pod is there."""
    cpu, memory = (
        after.pods[1] * after.amount("requests", resource) - before.pods[1] * before.amount("requests", resource)
        for resource in ("cpu", "memory")
    )
    pods = after.pods[1] - before.pods[1]
    for amount, unit in ((pods, "pods"), (cpu, "vCPU"), (memory / 2**30, "GiB")):
        if amount:
            yield f"{amount:+.4g} {unit}".replace("-", "\N{MINUS SIGN}")


def describe_rest(before: Environment, after: Environment, rendered: bool) -> Iterator[str]:
    old, new = dict(leaves(before.values)), dict(leaves(after.values))
    for path in sorted({*old, *new}):
        if TOLD.match(path) or (rendered and TOLD_BY_RENDER.match(path)):
            continue
        if words := change(old.get(path, "default"), new.get(path, "default")):
            yield f"{path} {words}" + ("; callers must change with it" if path == "edge.host" else "")


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and all(isinstance(entry, dict) and "name" in entry for entry in value):
        # As Kubernetes keeps variables and the like: by their names.
        for entry in value:
            rest = {key: inner for key, inner in entry.items() if key != "name"}
            yield from leaves(rest.get("value", rest), f"{path}.{entry['name']}")
    else:
        yield path, value


def describe_objects(before: Environment, after: Environment) -> Iterator[str]:
    for words, names in (
        ("new", after.objects.keys() - before.objects.keys()),
        ("gone", before.objects.keys() - after.objects.keys()),
    ):
        if names:
            yield f"{words}: {', '.join(sorted(names))}"
    if before.chart != after.chart and before.is_chart_here and after.is_chart_here:
        kept = [key for key in after.objects.keys() & before.objects.keys() if differ(before, after, key)]
        yield f"other content: {', '.join(sorted(kept)) or 'nothing'}"


def differ(before: Environment, after: Environment, key: str) -> bool:
    """In more than a digest, which has its sentence."""
    old, new = (re.sub(r"[0-9a-f]{64}", "", json.dumps(side.objects[key])) for side in (before, after))
    return old != new


def arrow(before: Environment, after: Environment, path: str) -> str:
    return change(before.value(path), after.value(path))


def change(old: object, new: object) -> str:
    return "" if old == new else f"{short(old)} → {short(new)}"


def short(value: object) -> str:
    """Digests by their first twelve digits, as everywhere."""
    if value in ("", None):
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1…", text)


def difference(before: Environment, after: Environment) -> str:
    """Of the renders, for whoever looks closer; without the dashboard's 55 KB on one line. Nothing where there is only one."""
    if before.fault or after.fault:
        return ""
    old, new = (re.sub(r'(?<=\.json: )".{1000,}"', '"…"', side.text).splitlines() for side in (before, after))
    return "\n".join(difflib.unified_diff(old, new, "before", "after", n=2, lineterm=""))
