"""What a run leaves behind: results.md to read, results.json to draw the chart from. A part rewrites its own section."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine

RESULTS = Path(__file__).with_name("results.md")
DATA = RESULTS.with_suffix(".json")
INTRODUCTION = """\
# Benchmark results

Written by `make bench` and its companions; each part rewrites its own section, and its entry in `results.json`.
How to read them: [README.md](README.md).
"""


@dataclass(frozen=True)
class Section:
    """What a part found: markdown, and the figures themselves where something else is made of them."""

    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)


def write_section(part: str, section: Section, folder: Path = RESULTS.parent) -> None:
    write_text(part, section.text, folder / RESULTS.name)
    if section.figures:
        write_figures(part, section.figures, folder / DATA.name)


def write_text(part: str, text: str, path: Path) -> None:
    """Put this part's section in the place of its last one, or at the end."""
    section = f"<!-- {part} -->\n{text.strip()}\n<!-- end of {part} -->\n"
    written = path.read_text() if path.exists() else INTRODUCTION
    former = re.compile(rf"<!-- {part} -->\n.*?<!-- end of {part} -->\n", re.DOTALL)
    written, replaced = former.subn(lambda _: section, written)
    path.write_text(written if replaced else f"{written}\n{section}")


def write_figures(part: str, figures: Mapping[str, Any], path: Path) -> None:
    """With the day and the machine, without which they mean nothing."""
    origin = {"date": datetime.date.today().isoformat(), "machine": describe_machine()}
    parts = read_parts(path) | {part: origin | {"figures": figures}}
    path.write_text(json.dumps(parts, indent=1, sort_keys=True) + "\n")


def read_parts(path: Path = DATA) -> dict[str, Any]:
    """Every part's date, machine and figures; empty before the first run."""
    return dict(json.loads(path.read_text())) if path.exists() else {}
