"""From dev to prod by commits: what is written, what is refused, and in which words."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.serving import ROOT

OLD, NEW, OTHER = (f"sha256:{digit * 64}" for digit in "123")
VALUES = """\
# What {name} has of its own.
environment: {name}
image:
  repository: registry.example.com/xgboost-server

  tag: 0.1.0 # as released
  # The tag is for people; this decides.
  digest: "{digest}"
model:
  sha256: aaaa
  digest: sha256:not-an-image
"""


@dataclass(frozen=True)
class Environments:
    folder: Path

    def run(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "delivery" / "environments.py"), verb, str(self.folder), *arguments]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True)

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments]
        return subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self) -> str:
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", "a change")
        return self.git("rev-parse", "HEAD")

    def path(self, name: str) -> Path:
        return self.folder / name / "values.yaml"

    def image(self, name: str) -> tuple[str, str]:
        image = yaml.safe_load(self.path(name).read_text())["image"]
        return image["digest"], image["tag"]


@pytest.fixture
def environments(tmp_path: Path) -> Environments:
    found = Environments(tmp_path)
    for name in ("dev", "staging", "prod"):
        found.path(name).parent.mkdir()
        found.path(name).write_text(VALUES.format(name=name, digest=OLD))
    found.git("init", "--quiet", "--initial-branch", "main")
    found.commit()
    return found


def test_a_release_goes_to_dev_and_nowhere_else(environments: Environments) -> None:
    before = environments.path("staging").read_text()
    done = environments.run("deploy", NEW, "0.2.0-gabc")
    assert (done.returncode, done.stdout) == (0, f"dev: 0.2.0-gabc, {NEW}\n")
    assert environments.image("dev") == (NEW, "0.2.0-gabc")
    assert environments.path("staging").read_text() == before


def test_all_but_digest_and_tag_stays_as_it_was_written(environments: Environments) -> None:
    environments.run("deploy", NEW, "0.2.0")
    expected = VALUES.format(name="dev", digest=NEW).replace("tag: 0.1.0", 'tag: "0.2.0"')
    assert environments.path("dev").read_text() == expected


def test_a_promotion_copies_digest_and_tag_one_environment_on(environments: Environments) -> None:
    environments.run("deploy", NEW, "0.2.0")
    environments.commit()
    assert environments.run("promote", "dev").stdout == f"dev → staging: 0.2.0, {NEW}\n"
    assert environments.image("staging") == (NEW, "0.2.0")
    assert environments.image("prod") == (OLD, "0.1.0")
    environments.commit()
    environments.run("promote", "staging")
    assert environments.image("prod") == (NEW, "0.2.0")


def test_the_same_again_changes_nothing(environments: Environments) -> None:
    environments.run("deploy", NEW, "0.2.0")
    environments.commit()
    environments.run("deploy", NEW, "0.2.0")
    assert environments.git("status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("deploy", "sha256:12", "0.2.0"), "image.digest must be sha256: and 64 digits, not 'sha256:12'"),
        (("deploy", "", "0.2.0"), "image.digest must be sha256: and 64 digits, not ''"),
        (("deploy", NEW, ""), "image.tag must be a version, not ''"),
        (("deploy", NEW, 'a"\nprune: true'), "image.tag must be a version"),
        (("promote", "prod"), "prod is the last environment"),
        (("promote", "test"), "there is no environment 'test': dev, staging, prod"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(
    environments: Environments, arguments: tuple[str, ...], expected: str
) -> None:
    refused = environments.run(*arguments)
    assert refused.returncode == 1
    assert expected in refused.stderr
    assert environments.git("status", "--porcelain") == ""


def test_what_is_not_committed_is_not_promoted(environments: Environments) -> None:
    environments.run("deploy", NEW, "0.2.0")
    refused = environments.run("promote", "dev")
    assert refused.returncode == 1
    assert "dev/values.yaml is not committed: nothing runs it yet" in refused.stderr


@pytest.mark.parametrize(
    "text",
    [
        "environment: dev\n",
        'image: {tag: 0.1.0, digest: "sha256:11"}\n',
        "image:\n  tag: 0.1.0\n",
        "image:\n  tag: 0.1.0\n  digest: a\n  digest: b\n",
        "sidecar:\n  image:\n    tag: 1\n    digest: a\n",
    ],
)
def test_a_file_of_another_shape_is_refused_with_what_would_be_right(environments: Environments, text: str) -> None:
    environments.path("dev").write_text(text)
    refused = environments.run("deploy", NEW, "0.2.0")
    assert refused.returncode == 1
    assert "dev/values.yaml: needs a block 'image:' with one line '  digest: …'" in refused.stderr
    assert environments.path("dev").read_text() == text


def test_a_missing_file_is_named(environments: Environments) -> None:
    environments.path("dev").unlink()
    refused = environments.run("deploy", NEW, "0.2.0")
    assert (refused.returncode, refused.stderr) == (1, f"there is no file {environments.path('dev')}\n")


def test_prod_may_run_only_what_staging_ran(environments: Environments) -> None:
    base = environments.git("rev-parse", "HEAD")
    environments.path("prod").write_text(VALUES.format(name="prod", digest=OTHER))
    environments.commit()
    refused = environments.run("check", base)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"prod: {OTHER} did not run in staging before; `make promote FROM=staging` copies what does\n"
    )


def test_a_change_may_not_take_two_steps_at_once(environments: Environments) -> None:
    environments.run("deploy", NEW, "0.2.0")
    base = environments.commit()
    environments.run("promote", "dev")
    environments.commit()
    assert environments.run("check", base).returncode == 0
    environments.run("promote", "staging")
    environments.commit()
    assert "prod" in environments.run("check", base).stderr


def test_the_way_back_is_open(environments: Environments) -> None:
    environments.run("deploy", NEW, "0.2.0")
    environments.commit()
    environments.run("promote", "dev")
    promoted = environments.commit()
    environments.git("revert", "--no-edit", promoted)
    assert environments.image("staging") == (OLD, "0.1.0")
    assert environments.run("check", promoted).returncode == 0


def test_a_scan_gets_each_digest_once(environments: Environments) -> None:
    environments.run("deploy", NEW, "0.2.0")
    assert environments.run("digests").stdout.split() == [OLD, NEW]
