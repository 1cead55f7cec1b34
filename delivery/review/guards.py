"""What is not merged, and why. A guard looks at one environment before and after, and yields its reasons."""

from __future__ import annotations

import re
from collections.abc import Iterator

from delivery.review.environment import Environment

PROTECTED = ("staging", "prod")
MOST_GROWTH = 2  # a typing error of one digit asks for ten times as much
LEAST_LIMIT = 0.5


def check_render(before: Environment | None, after: Environment) -> Iterator[str]:
    yield from (f"Helm refuses it: {fault}" for fault in after.fault.splitlines())


def check_environment(before: Environment | None, after: Environment) -> Iterator[str]:
    if after.name in PROTECTED and after.value("environment") not in ("production", ""):
        yield f"environment: {after.value('environment')}; {after.name} is production, or the chart's own checks are off"


def check_image(before: Environment | None, after: Environment) -> Iterator[str]:
    digest = str(after.value("image.digest"))
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest) and "image.digest" not in after.fault:
        yield "image.digest: missing; a tag can be moved to another image, a digest cannot"
    if not after.is_chart_here and (before is None or before.chart != after.chart):
        yield f"image.tag: there is no commit {after.chart} in this repository, so Argo CD would find no chart"


def check_model(before: Environment | None, after: Environment) -> Iterator[str]:
    name, digest = after.value("model.name"), after.value("model.sha256")
    if not digest and "model.sha256" not in after.fault:
        yield "model.sha256: missing; the server could not tell a changed file"
    if digest and after.record is None:
        yield (
            f"model {name}: no admission record with this digest in argocd/models/{name}; "
            f"`xgboost-server check MODEL --record argocd/models/{name}/VERSION.json` writes it"
        )


def check_budget(before: Environment | None, after: Environment) -> Iterator[str]:
    if not after.budget and (after.name in PROTECTED or (before and before.budget)):
        yield "disruptionBudget: gone; a drain of nodes could take all pods at once"


def check_pods(before: Environment | None, after: Environment) -> Iterator[str]:
    if after.name == "prod" and after.pods[0] < 2:
        yield f"fewest pods: {after.pods[0]}; in prod at least 2, or each crash is an outage"
    if before is None or not before.objects:
        return
    for resource in ("cpu", "memory"):
        old, new = (side.pods[1] * side.amount("requests", resource) for side in (before, after))
        if old and new > MOST_GROWTH * old:
            yield f"{resource} of all pods: {new / old:.3g} times as much; at most {MOST_GROWTH} times in one merge"


def check_limits(before: Environment | None, after: Environment) -> Iterator[str]:
    for resource in ("cpu", "memory") if before else ():
        old, new = (side.amount("limits", resource) for side in (before, after) if side)
        if old and new and new < LEAST_LIMIT * old:
            yield f"{resource} limit: cut to {new / old:.0%}; by at most half in one merge, and a look at the load between"


def check_policy(before: Environment | None, after: Environment) -> Iterator[str]:
    if after.name in PROTECTED and not after.one("NetworkPolicy"):
        yield f"networkPolicy.enabled: false; in {after.name} only those who are listed may call"


def check_way_in(before: Environment | None, after: Environment) -> Iterator[str]:
    if after.name == "prod" and before and before.one("Ingress") and not after.one("Ingress"):
        yield "edge.kind: the Ingress would be gone, and with it every caller"


RENDERED = (check_budget, check_pods, check_limits, check_policy, check_way_in)
GUARDS = (check_render, check_environment, check_image, check_model)


def refusals(before: Environment | None, after: Environment | None) -> list[str]:
    if after is None:
        return ["the environment is gone; Argo CD keeps its pods, and nobody would look after them (docs/gitops.md)"]
    if not after.values:
        return list(check_render(before, after))
    guards = GUARDS if after.fault else (*GUARDS, *RENDERED)
    return [reason for guard in guards for reason in guard(before, after)]
