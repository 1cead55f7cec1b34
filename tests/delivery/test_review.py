"""The review before the merge: a folder for each change, with the files it changes and what must be said of it.

`gone` names a file that the change takes away. Everything else of a repository comes from review/base and the chart.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chart.helm import CHART, TOOLS, missing
from tests.serving import ROOT

FOLDER = Path(__file__).parent / "review"
CASES = sorted(path.parent for path in FOLDER.glob("*/*/expected.txt"))

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


def git(folder: Path, *arguments: str) -> None:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the releases 0.1.0, which runs everywhere, and 0.2.0, whose chart differs in one number."""
    folder = tmp_path_factory.mktemp("base")
    shutil.copytree(FOLDER / "base", folder, dirs_exist_ok=True)
    shutil.copytree(CHART, folder / "charts" / CHART.name)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "first")
    git(folder, "tag", "v0.1.0")
    template = folder / "charts" / CHART.name / "templates" / "deployment.yaml"
    template.write_text(re.sub("minReadySeconds: .*", "minReadySeconds: 10", template.read_text()))
    git(folder, "commit", "--quiet", "--all", "--message", "second")
    git(folder, "tag", "v0.2.0")
    return folder


@pytest.fixture
def repository(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "repository"))


def review(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HELM": str(TOOLS / "helm3"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "delivery.review", *arguments],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
    )


def apply(change: Path, repository: Path) -> None:
    for path in change.rglob("*"):
        if path.is_file() and path.name not in ("expected.txt", "gone"):
            target = repository / path.relative_to(change)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    if (change / "gone").exists():
        (repository / (change / "gone").read_text().strip()).unlink()


@pytest.mark.parametrize("change", CASES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_change_is_told_in_these_words(change: Path, repository: Path) -> None:
    apply(change, repository)
    done = review(repository, "HEAD")
    assert done.stdout == (change / "expected.txt").read_text(), done.stderr
    assert done.returncode == (1 if change.parent.name == "refused" else 0)


def test_there_are_changes_of_both_kinds() -> None:
    assert {path.parent.name for path in CASES} == {"allowed", "refused"}
    assert len(CASES) >= 20


def test_markdown_and_json_say_the_same_and_are_written_when_it_refuses(repository: Path) -> None:
    apply(FOLDER / "refused" / "two-faults-at-once", repository)
    done = review(repository, "HEAD", "--markdown", "build/review.md", "--json", "build/review.json")
    assert done.returncode == 1
    markdown = (repository / "build" / "review.md").read_text()
    assert re.findall(r"\w{3,}", markdown.partition("<details>")[0]) == re.findall(r"\w{3,}", done.stdout)
    document = json.loads((repository / "build" / "review.json").read_text())
    assert document["refused"] is True
    (prod,) = (found for found in document["environments"] if found["environment"] == "prod")
    assert all(reason in done.stdout for reason in prod["refused"])


def test_the_markdown_has_the_rendered_difference_folded_away(repository: Path) -> None:
    apply(FOLDER / "allowed" / "more-pods", repository)
    review(repository, "HEAD", "--markdown", "review.md")
    text = (repository / "review.md").read_text()
    assert "<summary>prod, as rendered</summary>" in text
    assert "-  maxReplicas: 10\n+  maxReplicas: 20\n" in text


def test_a_base_that_is_not_there_is_said_and_is_no_approval(repository: Path) -> None:
    done = review(repository, "0123456", "--markdown", "review.md")
    assert done.returncode == 2
    assert "BASE names no commit here: 0123456" in (repository / "review.md").read_text()


def test_variables_in_another_order_are_a_change_for_one_may_refer_to_another(repository: Path) -> None:
    values = repository / "argocd" / "environments" / "prod" / "values.yaml"
    text, (first, second) = values.read_text(), ("  - {name: A, value: a}\n", "  - {name: B, value: $(A)}\n")
    values.write_text(f"{text}env:\n{first}{second}")
    git(repository, "commit", "--quiet", "--all", "--message", "variables")
    values.write_text(f"{text}env:\n{second}{first}")
    done = review(repository, "HEAD")
    assert done.stdout.endswith("\nprod\n  the same values in another order, which Kubernetes may take differently\n")
    assert done.returncode == 0
