"""Settings, metrics, error codes and routes stand in the documents, and nothing stands there that is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.edge import OTHER_ROUTES
from service.errors import ERRORS, ServiceError
from service.metrics import FAMILIES, Family
from service.settings import SETTINGS, Setting
from service.wire import ROUTES

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
METRICS = ROOT / "docs" / "metrics.md"
API = ROOT / "docs" / "api.md"
ALERTS = ROOT / "docs" / "alerts.md"
ALL_ROUTES = (*(route.template for route in ROUTES), *OTHER_ROUTES)


def rows(document: Path) -> list[str]:
    """The lines of all tables."""
    return [line for line in document.read_text(encoding="utf-8").splitlines() if line.startswith("|")]


def row_of(document: Path, name: str) -> str:
    """The one table row that begins with this name."""
    found = [row for row in rows(document) if row.split("|")[1].strip() == f"`{name}`"]
    assert len(found) == 1, f"{document.name} has {len(found)} rows that begin with `{name}`"
    return found[0]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.variable)
def test_every_setting_is_in_the_readme_with_its_default(setting: Setting) -> None:
    """Who deploys reads one table."""
    row = row_of(README, setting.variable)
    if setting.default:
        assert f"`{setting.default}`" in row


def test_the_readme_names_no_setting_that_is_not_there() -> None:
    named = set(re.findall(r"`(SCORER_[A-Z0-9_]+)(?:=[^`]*)?`", README.read_text(encoding="utf-8")))
    assert named <= {setting.variable for setting in SETTINGS}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_metric_is_documented_with_type_and_labels(family: Family) -> None:
    """Who reads a dashboard at three in the morning finds what the name means."""
    row = row_of(METRICS, family.name)
    assert family.kind in row
    for label in family.labels:
        assert f"`{label}`" in row


def test_every_alert_has_a_row_that_says_what_to_do() -> None:
    """Whoever is woken by one finds where to look."""
    rules = (ROOT / "charts/xgboost-server/templates/prometheusrule.yaml").read_text(encoding="utf-8")
    alerts = re.findall(r"alert: (\w+)", rules)
    assert len(alerts) >= 9
    assert sorted(alerts) == sorted(re.findall(r"^\| `(Scorer\w+)`", ALERTS.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize(
    "line", re.findall(r"^\| (`.+`) \| (?:INFO|WARNING|ERROR)", ALERTS.read_text("utf-8"), re.MULTILINE)
)
def test_log_lines_that_are_documented_are_written(line: str) -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "service").rglob("*.py"))
    for message in re.findall(r"`([^`]+)`", line):
        assert f'"{message}"' in source


def test_no_metric_is_documented_that_is_not_there() -> None:
    named = set(re.findall(r"`(scorer_[a-z_]+)", METRICS.read_text(encoding="utf-8")))
    known = {family.name for family in FAMILIES}
    known |= {
        f"{family.name}_{part}"
        for family in FAMILIES
        if family.kind == "histogram"
        for part in ("bucket", "sum", "count")
    }
    assert named <= known


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_every_error_code_is_documented_with_its_status(error: type[ServiceError]) -> None:
    """Codes are stable: clients may act on them."""
    assert str(error.status) in row_of(API, error.code)


@pytest.mark.parametrize("route", ALL_ROUTES)
def test_every_route_is_documented(route: str) -> None:
    """A path that answers is a path that somebody will depend on."""
    row_of(API, route)


def test_no_route_is_documented_that_is_not_there() -> None:
    named = {row.split("|")[1].strip().strip("`") for row in rows(API)}
    assert {name for name in named if name.startswith("/")} <= set(ALL_ROUTES)


def test_error_codes_are_unique_and_in_the_tree_of_the_docstring() -> None:
    """The tree at the head of errors.py is what people read."""
    from service import errors

    codes = [error.code for error in ERRORS]
    assert len(set(codes)) == len(codes)
    assert errors.__doc__ is not None
    for error in ERRORS:
        line = next(line for line in errors.__doc__.splitlines() if f" {error.__name__} " in f"{line} ")
        assert re.search(rf"\b{error.status}\s+{error.code}\b", line)


def test_every_error_is_in_the_list() -> None:
    """An error that is not in ERRORS has no label to be counted under."""

    def descendants(error: type[ServiceError]) -> set[type[ServiceError]]:
        return {error}.union(*(descendants(child) for child in error.__subclasses__()))

    assert descendants(ServiceError) - {ServiceError} == set(ERRORS)
