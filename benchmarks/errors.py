"""The one error of the benchmarks."""

from __future__ import annotations


class BenchmarkError(Exception):
    """The run cannot give honest figures; says what is wrong and what would mend it."""
