"""Bar charts as SVG files: the same bytes for the same results, readable on a light and on a dark page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

GREY = "#767676"
"""Has a contrast of 4.5 to 1 to white and to black: one colour of text for light and dark pages."""

BAR_COLOURS = ("#3b82c4", "#d9822b")
TARGET_COLOUR = "#d62f4b"
SIDE_INCHES = 0.15
"""Beside the labels: a viewer without the font that matplotlib measured may draw them wider."""

WIDTH_INCHES = 8.0
BAR_INCHES = 0.3
MARGIN_INCHES = 0.9
GROUP_SHARE = 0.75
"""How much of the distance between two labels their bars take."""

VALUE_ROOM = 1.12
"""The axis ends so far beyond the longest bar, which leaves room for its value."""

SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "peon",  # otherwise the ids in the file are random
    "svg.fonttype": "none",  # text stays text: smaller files, and the page's reader can select it
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": GREY,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
}


@dataclass(frozen=True)
class Series:
    """One bar for each label of the chart."""

    name: str
    values: Sequence[float]


def write_bar_chart(
    path: Path,
    labels: Sequence[str],
    series: Sequence[Series],
    axis: str,
    *,
    targets: Sequence[float | None] = (),
    value_format: str = "{:.2f}",
) -> None:
    """Writes a chart of horizontal bars, the first label at the top.

    Args:
        targets: For each label a mark across its bars; `None` for no mark.
    """
    labels = [label.replace("`", "") for label in labels]
    with mpl.rc_context(SETTINGS):
        height = MARGIN_INCHES + BAR_INCHES * len(labels) * (len(series) + 0.5)
        figure = Figure(figsize=(WIDTH_INCHES, height), layout=ConstrainedLayoutEngine(w_pad=SIDE_INCHES))
        axes = figure.subplots()
        thickness = GROUP_SHARE / len(series)
        for number, (one, colour) in enumerate(zip(series, BAR_COLOURS, strict=False)):
            offset = (number - (len(series) - 1) / 2) * thickness
            places = [place + offset for place in range(len(labels))]
            bars = axes.barh(places, one.values, thickness, color=colour, label=one.name)
            axes.bar_label(bars, [value_format.format(value) for value in one.values], color=GREY, padding=4)
        marked = [(place, target) for place, target in enumerate(targets) if target is not None]
        if marked:
            low, high = ([place + side * GROUP_SHARE / 2 for place, _ in marked] for side in (-1, 1))
            axes.vlines([target for _, target in marked], low, high, color=TARGET_COLOUR, linewidth=2, label="target")
        if marked or len(series) > 1:
            handles = sorted(axes.get_legend_handles_labels()[0], key=lambda handle: handle.get_label() == "target")
            axes.legend(
                handles=handles, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(series) + 1
            )
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.set_xlabel(axis)
        axes.set_xlim(0, VALUE_ROOM * max([axes.get_xlim()[1], *(target for _, target in marked)]))
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    # matplotlib ends lines with spaces, which the pre-commit hooks remove.
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")
