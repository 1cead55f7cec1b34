"""The README's curl lines, as a reader would paste them, give the answers that stand below them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.serving import ROOT, RunningServer, running_server

# A block of shell with one curl line, and the block of JSON right below it where there is one.
BLOCK = re.compile(r"```sh\n(curl [^\n]*)\n```\n(?:\n```json\n([^\n]*)\n```)?")
LINES = BLOCK.findall((ROOT / "README.md").read_text())


@pytest.fixture(scope="module")
def served() -> Iterator[RunningServer]:
    with running_server() as server:
        yield server


def test_the_readme_has_lines_to_try() -> None:
    assert len(LINES) >= 7
    assert sum(1 for _, answer in LINES if answer) >= 6


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl: apt-get install curl")
@pytest.mark.parametrize(("line", "answer"), LINES)
def test_a_line_of_the_readme_works(served: RunningServer, line: str, answer: str) -> None:
    command = line.replace("127.0.0.1:8000", f"127.0.0.1:{served.port}")
    done = subprocess.run(["bash", "-c", f"{command} --silent"], capture_output=True, text=True, check=True, timeout=30)
    if answer:
        assert json.loads(done.stdout) == json.loads(answer)
    else:
        assert "scorer_requests_total" in done.stdout
