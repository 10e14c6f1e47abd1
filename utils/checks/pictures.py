"""Pictures of check results, as matplotlib figures. Draws what a result holds; measures nothing.

One function per check that has a picture, listed in `PICTURES` under the check's name; most lie in `pictures_resources` and
`pictures_insight`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from utils.checks.figures import blank
from utils.checks.pictures_insight import (
    attention_grid,
    attribution_bars,
    dead_bars,
    rank_points,
    robustness_curves,
    similarity_map,
)
from utils.checks.pictures_resources import memory_parts, speed_bars
from utils.checks.report import TABLE, CheckResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BARS = 60
"""More parameters than this are drawn as the largest and smallest ones only: no label could be read."""


def picture_of(result: CheckResult) -> Figure | None:
    """The picture of a result; None where its check has none, or measured nothing to draw."""
    draw = PICTURES.get(result.name)
    return draw(result) if draw is not None else None


def embedded(result: CheckResult) -> str:
    """The picture of a result as a `data:` address for an `<img>`; empty where there is none."""
    figure = picture_of(result)
    if figure is None:
        return ""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def _gradient_bars(result: CheckResult) -> Figure | None:
    """Root mean square of the gradient, one bar per parameter in the model's order."""
    rows = [row for row in result.measured.get(TABLE, []) if row.get("gradient rms")]
    if not rows:
        return None
    if len(rows) > MOST_BARS:
        ranked = sorted(rows, key=lambda row: row["gradient rms"])
        kept = {id(row) for row in (*ranked[: MOST_BARS // 2], *ranked[-MOST_BARS // 2 :])}
        rows = [row for row in rows if id(row) in kept]
    figure = blank(9, 0.8 + 0.2 * len(rows))
    axes = figure.subplots()
    axes.barh([row["parameter"] for row in rows], [row["gradient rms"] for row in rows], color="#2f6fb2")
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("root mean square of the gradient")
    return figure


PICTURES: dict[str, Callable[[CheckResult], Figure | None]] = {
    "gradient flow": _gradient_bars,
    "memory": memory_parts,
    "inference speed": speed_bars,
    "attention patterns": attention_grid,
    "attribution": attribution_bars,
    "robustness": robustness_curves,
    "effective rank": rank_points,
    "layer similarity": similarity_map,
    "dead neurons": dead_bars,
}
"""Name of a check → what draws its result."""
