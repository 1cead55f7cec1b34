"""The shell of the delivery, as far as it goes without GitHub, AWS and a container engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serving import ROOT, running_server

SCRIPTS = ROOT / "delivery"
REQUEST = ROOT / "examples" / "iris" / "request.json"


def run(
    script: str, *arguments: str, folder: Path = ROOT, seconds: float = 100, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPTS / script), *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "environments" / "dev").mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "0.3.0"\n')
    (folder / "environments" / "dev" / "values.yaml").write_text("image: old\n")
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


def test_a_commit_without_a_tag_has_a_version_that_names_it(repository: Path) -> None:
    commit = git(repository, "rev-parse", "--short=12", "HEAD")
    assert run("version.sh", folder=repository).stdout == f"0.3.0-g{commit}\n"


def test_a_tagged_commit_has_the_version_of_the_tag(repository: Path) -> None:
    git(repository, "tag", "v0.3.0")
    assert run("version.sh", folder=repository).stdout == "0.3.0\n"


def test_a_tag_that_is_not_the_version_stops_the_release(repository: Path) -> None:
    git(repository, "tag", "v0.4.0")
    refused = run("version.sh", folder=repository)
    assert refused.returncode == 1
    assert refused.stderr == "the tag is not the version in pyproject.toml, v0.3.0: v0.4.0\n"


def test_what_is_not_committed_is_not_published(repository: Path) -> None:
    (repository / "new").touch()
    refused = run("version.sh", folder=repository)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "must be committed" in refused.stderr


def test_a_registry_that_is_none_is_refused_before_anything_logs_in() -> None:
    refused = run("registry-login.sh", "docker.io/me")
    assert refused.returncode == 1
    assert "public.ecr.aws/ALIAS" in refused.stderr


def test_an_unknown_tool_is_not_built(tmp_path: Path) -> None:
    refused = run("tools.sh", str(tmp_path), "make-me")
    assert refused.returncode == 1
    assert "no such tool: make-me" in refused.stderr


def test_programs_are_built_in_one_place_so_that_each_has_one_version() -> None:
    files = git(ROOT, "ls-files", "*.sh", "*.mk", "*.yml", "*.yaml", "Makefile", "Dockerfile").splitlines()
    assert [name for name in files if re.search(r'\bgo"? install ', code_of(name))] == ["delivery/tools.sh"]


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def code_of(name: str) -> str:
    return "\n".join(line for line in text_of(name).splitlines() if not line.lstrip().startswith("#"))


def test_a_tool_that_is_there_is_not_built_again_and_needs_no_go(tmp_path: Path) -> None:
    version = re.search(r"\[hey\]=\S+@(\S+)", text_of("delivery/tools.sh"))
    assert version
    built = tmp_path / f"hey-{version[1]}"
    built.write_text("#!/bin/sh\n")
    built.chmod(0o755)
    done = run("tools.sh", str(tmp_path), "hey", PATH="/usr/bin:/bin")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "hey").resolve() == built


def test_a_pull_request_pushes_one_branch_named_after_the_change(repository: Path, tmp_path: Path) -> None:
    """The git half against a real remote; gh, which would need GitHub, only notes what it is told."""
    remote, programs = tmp_path / "remote.git", tmp_path / "bin"
    git(tmp_path, "init", "--quiet", "--bare", str(remote))
    git(repository, "remote", "add", "origin", str(remote))
    programs.mkdir()
    (programs / "gh").write_text(f'#!/bin/sh\necho "$1 $2 $3" >>{tmp_path}/said\n')
    (programs / "gh").chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"

    nothing = run("pull-request.sh", "environments", "a title", folder=repository, PATH=path)
    assert (nothing.returncode, nothing.stdout) == (0, "nothing changed in environments: no pull request\n")

    (repository / "environments" / "dev" / "values.yaml").write_text("image: new\n")
    (repository / "unrelated").touch()
    done = run("pull-request.sh", "environments", "dev: 0.3.0", folder=repository, PATH=path)
    assert done.returncode == 0, done.stderr
    branch = git(repository, "branch", "--show-current")
    assert git(remote, "branch", "--list").split() == [branch]
    assert git(remote, "show", "--format=%s", "--name-only", branch).split("\n\n") == [
        "dev: 0.3.0",
        "environments/dev/values.yaml",
    ]
    assert (tmp_path / "said").read_text().splitlines() == [
        "pr list --head",
        "auth setup-git ",
        "pr create --base",
        "workflow run test.yml",
        "workflow run values-review.yml",
    ]


def test_a_review_is_shown_in_the_summary_where_there_is_no_pull_request_to_comment_on(tmp_path: Path) -> None:
    (tmp_path / "review.md").write_text("maxReplicas 10 → 20\n")
    done = run(
        "comment.sh",
        str(tmp_path / "review.md"),
        "",
        GITHUB_STEP_SUMMARY=str(tmp_path / "summary"),
        PATH="/usr/bin:/bin",
    )
    assert done.returncode == 0
    assert (tmp_path / "summary").read_text() == "maxReplicas 10 → 20\n"


@pytest.fixture(scope="module")
def hey() -> str:
    if not shutil.which("go"):
        pytest.skip("hey is built by Go, which is not here")
    built = run("tools.sh", str(ROOT / ".tools"), "hey", seconds=500)  # fetched and compiled, where it is not there yet
    assert built.returncode == 0, built.stderr
    return str(ROOT / ".tools" / "hey")


@pytest.mark.timeout(600)
def test_load_on_a_real_server_succeeds_and_says_how_fast(hey: str) -> None:
    with running_server(WEB_CONCURRENCY="1") as server:
        url = f"http://127.0.0.1:{server.port}"
        done = run("load.sh", hey, f"{url}/v1/models/iris:predict", str(REQUEST), DURATION="1", CONNECTIONS="4")
        assert done.returncode == 0, done.stderr
        assert "Requests/sec:" in done.stdout

        refused = run("load.sh", hey, f"{url}/v1/models/other:predict", str(REQUEST), DURATION="1", CONNECTIONS="2")
        assert refused.returncode == 1
        assert "no request was answered 200" in refused.stderr


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("DURATION", "0", "DURATION must be a whole number from 1 to 600, not '0'"),
        ("DURATION", "601", "DURATION must be a whole number from 1 to 600, not '601'"),
        ("DURATION", "1h", "DURATION must be a whole number from 1 to 600, not '1h'"),
        ("CONNECTIONS", "1001", "CONNECTIONS must be a whole number from 1 to 1000, not '1001'"),
        ("RATE", "-1", "RATE must be a whole number from 0 to 1000000, not '-1'"),
    ],
)
def test_load_has_bounds(setting: str, value: str, expected: str) -> None:
    command = ["env", f"{setting}={value}", str(SCRIPTS / "load.sh"), "true", "http://127.0.0.1:1", str(REQUEST)]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert (refused.returncode, refused.stderr) == (2, f"{expected}\n")
