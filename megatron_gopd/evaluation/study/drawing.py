"""matplotlib as the report uses it: one style, every figure as SVG and PNG."""

from __future__ import annotations

import io
from dataclasses import dataclass

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#3b82c4", "#e08214", "#2a9d6f", "#d1495b", "#8e6bbf", "#8a8f98"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
INK = "#404346"  # of text and axes; the page replaces it by the reader's own colour
POINTS = {"markersize": 4.5, "linewidth": 1.6, "capsize": 2.5, "elinewidth": 1.0}
FLAT = 1e-3  # of a value, within which its changes are none to look at
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "grid.color": GREY,
    "legend.frameon": False,
    "svg.hashsalt": "megatron-gopd",  # the same runs give the same bytes
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Drawn:
    svg: str  # on no background
    png: bytes  # on white


def panels(rows: int, columns: int, *, height: float = 2.6, width: float = 9.0):
    """(figure, axes[rows][columns]) of one style."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams.update(STYLE)
    return pyplot.subplots(rows, columns, figsize=(width, height * rows + 0.4), squeeze=False, layout="constrained")


def readable(axis) -> None:
    """Whole steps below; and a line that is all but flat is drawn flat, with its value in digits that tell."""
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.ticklabel_format(axis="y", useOffset=False, scilimits=(-3, 5))
    low, high = axis.dataLim.y0, axis.dataLim.y1
    size = max(abs(low), abs(high))
    if high - low < FLAT * size or high == low:
        margin = 0.05 * size or 0.5
        axis.set_ylim(low - margin, high + margin)


def legend(figure, *axes) -> None:
    """One for all axes, above them, each label once."""
    named = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if named:
        figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=min(4, len(named)))


def finish(figure) -> Drawn:
    from matplotlib import pyplot

    vector, pixels = io.StringIO(), io.BytesIO()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it is laid out: once is enough
    figure.savefig(vector, format="svg", transparent=True, metadata={"Date": None})
    figure.savefig(pixels, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    pyplot.close(figure)
    return Drawn(vector.getvalue(), pixels.getvalue())
