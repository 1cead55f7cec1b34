"""Figures as text that reads well on a terminal and in markdown alike."""

from __future__ import annotations

from collections.abc import Sequence


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
