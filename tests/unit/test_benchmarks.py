"""What the benchmarks write down is what they saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.engines.drill import MOST_ROWS, RING, Floats, report
from benchmarks.proxy import CONFIGURATION, escape
from benchmarks.results import Section, read_parts, write_section
from benchmarks.scaling_report import render_slope


def test_a_part_rewrites_its_own_section_and_no_other(tmp_path: Path) -> None:
    write_section("one", Section("## One\n\nold", {"speed": 1}), tmp_path)
    write_section("two", Section("## Two", {"speed": 2}), tmp_path)
    write_section("one", Section("## One\n\nnew", {"speed": 3}), tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "old" not in text
    assert text.index("new") < text.index("## Two")
    parts = read_parts(tmp_path / "results.json")
    assert {name: part["figures"]["speed"] for name, part in parts.items()} == {"one": 3, "two": 2}
    assert all(part["machine"] and part["date"] for part in parts.values())


def test_one_bit_of_one_score_is_seen() -> None:
    rows = np.zeros((MOST_ROWS + RING, 2), np.float32)
    wanted = np.ones(len(rows), np.float32)

    def predict(rows: Floats) -> Floats:
        scores = np.ones(len(rows), np.float32)
        if len(rows) > 1:
            scores[7] = np.nextafter(np.float32(1), np.float32(2))
        return scores

    found = report(predict, rows, wanted, "library", "")
    assert found.equal_alone == 1
    assert found.equal_together == 1 - 1 / MOST_ROWS
    assert 0 < found.largest_difference < 1e-6


def test_several_outputs_a_row_are_compared_one_by_one() -> None:
    rows = np.zeros((MOST_ROWS + RING, 2), np.float32)
    wanted = np.tile(np.array([1, 2, 3], np.float32), (len(rows), 1))
    found = report(lambda rows: np.tile(np.array([1, 2, 4], np.float32), (len(rows), 1)), rows, wanted, "library", "")
    assert found.equal_alone == found.equal_together == 2 / 3


def test_a_linear_cost_has_the_same_slope_everywhere() -> None:
    sizes, costs = (1, 10, 100), (30.0, 48.0, 228.0)
    assert [render_slope(sizes, costs, place) for place in range(3)] == ["", "2.00", "2.00"]


def test_only_the_port_is_filled_in_when_nginx_starts() -> None:
    configuration = CONFIGURATION.format(folder="/folder", user="", upstream=1, port="{port}")
    assert escape(configuration).format(port=2) == configuration.replace("{port}", "2")
