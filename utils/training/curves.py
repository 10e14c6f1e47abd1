"""Panels of curves and bars, as PNG and as SVG that can be read on a light and on a dark page. The one home of our pictures.

Knows numbers and labels; leaves what they mean to `dashboard`, `drift_metrics` and the interface.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from utils._extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#64b5cd")
GREY = "#808080"
MOST_POINTS = 1000
"""Points of a curve that are drawn; more are averaged in runs of equal length."""
_WIDTH, _HEIGHT = 4.75, 3.0
"""Inches of one panel."""


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        label: shown in the legend; empty shows none.
        x, y: numbers of equal count; a y that is not finite leaves a gap.
        dots: whether the points are marked. stepped: whether it is drawn as a histogram.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False
    stepped: bool = False

    def thinned(self) -> Series:
        """The same curve with at most `MOST_POINTS` points; each is the mean of a run of points."""
        size = -(-len(self.y) // MOST_POINTS)
        if size <= 1:
            return self
        xs, ys = [], []
        for begin in range(0, len(self.y), size):
            run = [value for value in self.y[begin : begin + size] if math.isfinite(value)]
            xs.append(self.x[min(begin + size, len(self.x)) - 1])
            ys.append(sum(run) / len(run) if run else math.nan)
        return Series(self.label, xs, ys, self.dots, self.stepped)


@dataclass(frozen=True)
class Panel:
    """One picture: curves over an axis, or bars with names.

    Attributes:
        title, xlabel, ylabel: words.
        series: curves. right: curves with an axis of their own at the right, called `right_label`.
        bars: (name, value), drawn from the top down instead of curves.
        marks: (name, value) of lines across.
        logarithmic: whether the y axis may be, where values span decades. wide: whether the x axis is.
        missing: said in the middle where there is nothing to draw.
    """

    title: str
    xlabel: str = ""
    ylabel: str = ""
    series: Sequence[Series] = ()
    right: Sequence[Series] = ()
    right_label: str = ""
    bars: Sequence[tuple[str, float]] = ()
    marks: Sequence[tuple[str, float]] = field(default=())
    logarithmic: bool = False
    wide: bool = False
    missing: str = ""


def picture_png(panels: Sequence[Panel], columns: int = 2, scale: float = 110.0) -> bytes:
    """The panels on white, as PNG."""
    figure = _draw(panels, columns)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    figure.set_facecolor("white")
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=scale, metadata={"Software": None})
    return buffer.getvalue()


def picture_svg(panels: Sequence[Panel], columns: int = 2) -> str:
    """The panels without background, as an `<svg>` element for a page; labels are escaped by the writer."""
    figure = _draw(panels, columns)
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    picture = buffer.getvalue()
    picture = picture[picture.index("<svg") :]
    return re.sub(r"<!--.*?-->\s*", "", picture, flags=re.DOTALL)  # comments repeat the text of labels


def _draw(panels: Sequence[Panel], columns: int) -> Figure:
    require("matplotlib", extra="training", feature="A picture")
    from matplotlib.figure import Figure

    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows), layout="constrained")
    figure.patch.set_alpha(0)
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, panel in zip(places, panels):
        _fill(axes, panel)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    return figure


def _fill(axes: Axes, panel: Panel) -> None:
    axes.set(title=_plain_text(panel.title), xlabel=_plain_text(panel.xlabel), ylabel=_plain_text(panel.ylabel))
    if panel.missing:
        axes.text(0.5, 0.5, _plain_text(panel.missing), ha="center", va="center", transform=axes.transAxes, color=GREY)
        axes.set(xticks=[], yticks=[])
    elif panel.bars:
        _bars(axes, panel)
    else:
        _curves(axes, panel)
    _in_grey(axes)


def _bars(axes: Axes, panel: Panel) -> None:
    names = [_plain_text(name) for name, _ in panel.bars]
    places = range(len(names))
    axes.barh(list(places), [value for _, value in panel.bars], color=COLOURS[0])
    axes.set_yticks(list(places), names, fontsize=7)
    axes.invert_yaxis()
    for _, value in panel.marks:
        axes.axvline(value, color=COLOURS[3], linestyle="--", linewidth=0.8)
    marked = ", ".join(f"{name} from {value:g}" for name, value in panel.marks)
    axes.set(xlabel=_plain_text(f"{panel.ylabel} ({marked})" if marked else panel.ylabel), ylabel="")


def _curves(axes: Axes, panel: Panel) -> None:
    handles = [_line(axes, series, COLOURS[place % len(COLOURS)]) for place, series in enumerate(panel.series)]
    if panel.right:
        other = axes.twinx()
        other.set_ylabel(_plain_text(panel.right_label))
        first = len(panel.series)
        handles += [
            _line(other, series, COLOURS[(first + place) % len(COLOURS)]) for place, series in enumerate(panel.right)
        ]
        _in_grey(other)
        other.grid(visible=False)
    for name, value in panel.marks:
        axes.axhline(value, color=COLOURS[3], linestyle="--", linewidth=1)
        axes.annotate(
            _plain_text(name), (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=COLOURS[3]
        )
    if panel.logarithmic and _spans_decades(panel.series):
        axes.set_yscale("log")
    if panel.wide:
        axes.set_xscale("symlog", linthresh=1.0)
    labelled = [handle for handle in handles if not str(handle.get_label()).startswith("_")]
    if len(labelled) > 1:
        axes.legend(handles=labelled, fontsize=7, labelcolor=GREY, framealpha=0)


def _spans_decades(curves: Sequence[Series]) -> bool:
    """Whether the values are positive and the largest is ten times the smallest: else a logarithmic axis tells nothing."""
    values = [value for series in curves for value in series.y if math.isfinite(value)]
    return bool(values) and min(values) > 0 and max(values) >= 10 * min(values)


def _line(axes: Axes, series: Series, colour: str) -> Line2D:
    thin = series.thinned()
    return axes.plot(
        list(thin.x),
        list(thin.y),
        color=colour,
        linewidth=1.0,
        label=_plain_text(thin.label) or "_",
        drawstyle="steps-post" if thin.stepped else "default",
        marker="o" if thin.dots or len(thin.y) == 1 else "",
        markersize=3,
    )[0]


def _in_grey(axes: Axes) -> None:
    """Grey lines and text that can be read on a dark and on a light page."""
    axes.patch.set_alpha(0)
    axes.grid(alpha=0.25)
    axes.tick_params(colors=GREY, which="both")
    axes.title.set_color(GREY)
    axes.xaxis.label.set_color(GREY)
    axes.yaxis.label.set_color(GREY)
    for spine in axes.spines.values():
        spine.set_color(GREY)


def _plain_text(text: str) -> str:
    """Text that matplotlib takes as it is: no mathematics between dollar signs."""
    return str(text).replace("$", r"\$")
