"""What a policy allows: as much of IAM's evaluation as the policies of `infra/` use; what they do not use is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

Context = Mapping[str, str]


def allows(document: Mapping[str, Any], action: str, resource: str = "*", *, context: Context | None = None) -> bool:
    """Whether a statement allows the action on the resource and none denies it."""
    met = [
        statement["Effect"]
        for statement in document["Statement"]
        if _matches(statement["Action"], action)
        and _matches(statement.get("Resource", "*"), resource)
        and holds(statement.get("Condition", {}), context or {})
    ]
    return "Allow" in met and "Deny" not in met


def holds(condition: Mapping[str, Mapping[str, Any]], context: Context) -> bool:
    """Whether every operator holds; a key that the request lacks fails, as in IAM, but for Null and ForAllValues."""
    return all(
        _compares(operator, context.get(key), expected)
        for operator, keys in condition.items()
        for key, expected in keys.items()
    )


def _compares(operator: str, actual: str | None, expected: Any) -> bool:
    wanted = [str(value) for value in _listed(expected)]
    if operator == "Null":
        return (actual is None) == (wanted == ["true"])
    if operator == "ForAllValues:StringEquals":
        return actual is None or set(actual.split(",")) <= set(wanted)
    if actual is None:
        return False
    if operator in ("StringEquals", "Bool"):
        return actual in wanted
    if operator == "StringLike":
        return any(fnmatchcase(actual, pattern) for pattern in wanted)
    if operator == "NumericLessThanEquals":
        return float(actual) <= float(wanted[0])
    raise NotImplementedError(operator)


def _matches(patterns: Any, value: str) -> bool:
    return any(fnmatchcase(value, pattern) for pattern in _listed(patterns))


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else [value]
