"""Figures as text: tables that read well on a terminal and in markdown alike, and results.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).with_name("results.md")
INTRODUCTION = """\
# Benchmark results

Written by `make bench`; each part rewrites its own section. How to read them: [README.md](README.md).
"""


def create_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table padded to even columns: the first to the left, figures to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(create_line(cells, widths) for cells in [head, rule, *rows])


def create_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return "| " + " | ".join(padded) + " |"


def three_digits(value: float) -> str:
    """Three significant digits and no exponent: 41.2, 7,850, 0.684. More would be noise."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:#.3g}"


def write_section(part: str, text: str, path: Path = RESULTS) -> None:
    """Put this part's section in the place of its last one, or at the end."""
    section = f"<!-- {part} -->\n{text.strip()}\n<!-- end of {part} -->\n"
    written = path.read_text() if path.exists() else INTRODUCTION
    former = re.compile(rf"<!-- {part} -->\n.*?<!-- end of {part} -->\n", re.DOTALL)
    written, replaced = former.subn(lambda _: section, written)
    path.write_text(written if replaced else f"{written}\n{section}")
