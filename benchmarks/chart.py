"""The chart of the README, drawn from the figures that the last run of the part "peers" left: `python -m benchmarks.chart`.

Text and lines are of a grey that stands out from white and from GitHub's dark ground alike (4.3 : 1 both), and the
ground is left out, so one file does for both themes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from benchmarks.cases import FLASK, UVICORN, V1
from benchmarks.errors import BenchmarkError
from benchmarks.peers import KSERVE_V1, MLSERVER
from benchmarks.results import DATA, read_parts
from benchmarks.tables import three_digits

CHART = DATA.with_suffix(".svg")
CASE = "1 row, 16 connections"
NAMES = {
    V1: "xgboost-server",
    UVICORN: "uvicorn, raw ASGI",
    FLASK: "Flask",
    KSERVE_V1: "KServe",
    MLSERVER: "MLServer, V2",
}
GREY, OURS, OTHERS = "#747982", "#2f81f7", "#8b949e"
STYLE = {
    "svg.fonttype": "none",  # text stays text: small, and found by a search
    "svg.hashsalt": "benchmarks",  # the same figures give the same file
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 11,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
}


@dataclass(frozen=True)
class Panel:
    title: str
    figure: str


PANELS = (
    Panel("CPU a request, µs (shorter is better)", "cpu_us"),
    Panel("requests/s on one core (longer is better)", "requests_per_second"),
)


def draw(data: Path = DATA, chart: Path = CHART) -> None:
    part = read_parts(data).get("peers")
    if part is None:
        raise BenchmarkError(f"{data.name} has no figures of the part peers: make bench-peers writes them")
    with mpl.rc_context(STYLE):
        figure = draw_figure(part["figures"]["cases"][CASE], f"{part['machine']}; {part['date']}")
        figure.savefig(chart, transparent=True, metadata={"Date": None, "Creator": None})


def draw_figure(figures: Mapping[str, Mapping[str, Any]], origin: str) -> Figure:
    figure = Figure(figsize=(9.6, 3.5), layout="constrained")
    figure.suptitle("One row of 30 features, 300 trees of depth 6, JSON, 16 connections", fontsize=12)
    figure.supxlabel(f"{origin}. One worker each; KServe V1 where nothing else is said.", fontsize=9)
    both = figure.subplots(1, 2, sharey=True)
    for panel, axes in zip(PANELS, both, strict=True):
        draw_panel(axes, panel, [figures[label][panel.figure] for label in NAMES])
    both[0].invert_yaxis()  # the first name on top
    return figure


def draw_panel(axes: Axes, panel: Panel, values: Sequence[float]) -> None:
    names = list(NAMES.values())
    colours = [OURS, *[OTHERS] * (len(names) - 1)]
    bars = axes.barh(names, values, color=colours, height=0.62)
    axes.bar_label(bars, [three_digits(value) for value in values], padding=4)
    axes.set_title(panel.title, fontsize=11)
    # From 0 and linear, or the length of a bar says nothing; a seventh more for the figure behind the longest.
    axes.set_xlim(0, max(values) * 7 / 6)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


if __name__ == "__main__":
    draw()
