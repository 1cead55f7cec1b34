"""What all tests share: the two examples, loaded once, and a watch over what a test leaves behind."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.apps import Example, World, load_example


@pytest.fixture(scope="session")
def iris() -> Example:
    """multi:softmax, four named features, one class a row."""
    return load_example("iris")


@pytest.fixture(scope="session")
def cancer() -> Example:
    """binary:logistic, thirty named features, trained with missing values."""
    return load_example("breast-cancer")


@pytest.fixture
def world(iris: Example) -> World:
    """The application around iris, with the default settings."""
    return World(iris.model)


@pytest.fixture(autouse=True)
def _environment_is_left_alone() -> Iterator[None]:
    """A test that changes the environment and does not restore it fails here and not somewhere else."""
    before = without_pytest(os.environ.copy())
    yield
    assert without_pytest(os.environ.copy()) == before


def without_pytest(environ: dict[str, str]) -> dict[str, str]:
    """pytest itself notes the running phase in PYTEST_CURRENT_TEST."""
    environ.pop("PYTEST_CURRENT_TEST", None)
    return environ
