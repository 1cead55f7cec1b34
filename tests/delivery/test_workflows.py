"""What holds for every workflow, one that is added later too."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.serving import ROOT

FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
Workflow = dict[Any, Any]

# The only way to the cloud is a token that GitHub signs for one environment of this repository.
ENVIRONMENT_OF_ROLE = {("release.yml", "publish"): "release", ("scheduled.yml", "scan"): "scan"}
WRITERS = {("release.yml", "deploy"), ("promote.yml", "promote"), ("values-review.yml", "review")}

MAKE = re.compile(r'(?:sudo --preserve-env env "PATH=\$PATH" )?make ([a-z-]+)')


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture
def workflow(path: Path) -> Workflow:
    return read(path)


def read(path: Path) -> Workflow:
    found: Workflow = yaml.safe_load(path.read_text())
    # YAML 1.1 reads the key "on" as true.
    found["on"] = found.pop(True)
    return found


def steps(workflow: Workflow) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", [])]


def targets() -> set[str]:
    """The verbs that make itself knows, included files too."""
    # 1: there is something to be made; 0 would be as good.
    known = subprocess.run(
        ["make", "--print-data-base", "--question", "--no-builtin-rules", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert known.returncode in (0, 1), known.stderr
    phony = re.search(r"^\.PHONY: (.*)$", known.stdout, re.MULTILINE)
    assert phony
    return set(phony[1].split())


def verbs() -> set[str]:
    runs = [step["run"] for file in FILES for step in steps(read(file)) if "run" in step]
    return {found[1] for run in runs if (found := MAKE.fullmatch(run))}


def test_there_are_the_workflows_that_the_documents_name() -> None:
    assert {path.stem for path in FILES} == {"test", "e2e", "release", "promote", "values-review", "scheduled"}


def test_every_step_runs_an_action_or_one_verb_of_make(workflow: Workflow) -> None:
    for step in steps(workflow):
        assert "uses" in step or MAKE.fullmatch(step["run"]), step


def test_every_verb_exists() -> None:
    assert verbs() <= targets()


def test_every_action_is_pinned_by_commit_with_its_version_beside(path: Path) -> None:
    for line in path.read_text().splitlines():
        if "uses:" in line and "uses: ./" not in line:
            assert re.fullmatch(r" +(- )?uses: [\w-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_an_action_has_one_version_in_all_workflows() -> None:
    used = {tuple(step["uses"].split("@")) for path in FILES for step in steps(read(path)) if "uses" in step}
    assert len({name for name, _ in used}) == len(used)


def test_the_workflow_itself_may_only_read(workflow: Workflow) -> None:
    assert workflow["permissions"] == {"contents": "read"}


def test_only_what_opens_or_comments_on_pull_requests_may_write(path: Path, workflow: Workflow) -> None:
    for name, job in workflow["jobs"].items():
        granted = {scope for scope, access in job.get("permissions", {}).items() if access == "write"} - {"id-token"}
        assert bool(granted) == ((path.name, name) in WRITERS), name


def test_a_role_is_assumed_only_within_the_environment_that_it_trusts(path: Path, workflow: Workflow) -> None:
    for name, job in workflow["jobs"].items():
        environment = ENVIRONMENT_OF_ROLE.get((path.name, name))
        assert job.get("environment") == environment
        assert ("id-token" in job.get("permissions", {})) == (environment is not None)
        roles = [step["with"] for step in job.get("steps", []) if "configure-aws-credentials" in step.get("uses", "")]
        expected = {"role-to-assume": "${{ vars.AWS_ROLE_ARN }}", "aws-region": "${{ vars.AWS_REGION }}"}
        assert roles == ([expected] if environment else [])


def test_nothing_is_secret(path: Path) -> None:
    assert "secrets." not in path.read_text()


def test_what_a_fork_sends_never_runs_with_rights(workflow: Workflow) -> None:
    assert not {"pull_request_target", "workflow_run", "issue_comment"} & set(workflow["on"])


def test_what_a_pull_request_brings_never_shares_a_cache_with_a_release(workflow: Workflow) -> None:
    for step in steps(workflow):
        assert "actions/cache" not in step.get("uses", "")
        if "setup-go" in step.get("uses", ""):
            assert step["with"]["cache"] is False


def test_a_checkout_leaves_no_token_behind(workflow: Workflow) -> None:
    for step in steps(workflow):
        if "actions/checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False


def test_runs_of_one_kind_do_not_pile_up_and_none_lasts_for_ever(workflow: Workflow) -> None:
    assert "cancel-in-progress" in workflow["concurrency"]
    # A called workflow sees the caller's name: the two would wait for each other.
    assert "github.workflow" not in workflow["concurrency"]["group"]
    for job in workflow["jobs"].values():
        assert "timeout-minutes" in job or "uses" in job


def test_a_release_waits_for_all_tests_and_signs_only_what_was_scanned() -> None:
    jobs = read(FOLDER / "release.yml")["jobs"]
    assert {jobs[name]["uses"] for name in jobs["publish"]["needs"]} == {
        "./.github/workflows/test.yml",
        "./.github/workflows/e2e.yml",
    }
    assert jobs["deploy"]["needs"] == "publish"
    order = [step["run"] for step in jobs["publish"]["steps"] if "run" in step]
    assert order == [
        "make registry-login",
        "make image-push",
        "make image-scan",
        "make sbom",
        "make image-sign",
        "make chart-push",
    ]


def test_the_sbom_and_the_audit_use_the_python_of_the_image() -> None:
    base = re.search(r"^ARG BASE_IMAGE=python:([\d.]+)-slim$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert base
    for file, job in (("release.yml", "publish"), ("scheduled.yml", "audit")):
        versions = [
            step["with"]["python-version"]
            for step in read(FOLDER / file)["jobs"][job]["steps"]
            if "setup-python" in step.get("uses", "")
        ]
        assert versions == [base[1]]
