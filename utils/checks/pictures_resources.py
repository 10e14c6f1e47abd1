"""Pictures of what a model costs: memory of a training step, and speed of the forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.checks.figures import COLOURS, blank
from utils.checks.report import TABLE, CheckResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T4_GB = 15.0
"""Memory of the GPU of Colab's free tier, drawn as a line."""
HARDLY_SEEN = 0.01
"""Parts below this share of the whole are left out of the bar."""


def memory_parts(result: CheckResult) -> Figure | None:
    """The parts of a training step as one stacked bar, and the total over the batch size."""
    rows, curve = result.measured.get(TABLE), result.measured.get("by_batch")
    if not rows or not curve:
        return None
    figure = blank(9, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    whole = sum(row["GB"] for row in rows)
    base = 0.0
    for number, row in enumerate(row for row in rows if row["GB"] >= HARDLY_SEEN * whole):
        label = f"{row['part']}: {row['GB']:.2g} GB"
        left.bar([0], [row["GB"]], bottom=base, width=0.5, color=COLOURS[number % len(COLOURS)], label=label)
        base += row["GB"]
    left.set_xlim(-0.4, 2.4)
    left.set_xticks([])
    left.set_ylabel("GB")
    left.set_title("one training step", fontsize=9)
    handles, labels = left.get_legend_handles_labels()
    left.legend(handles[::-1], labels[::-1], fontsize=7, loc="upper right", frameon=False)
    right.plot([row["batch"] for row in curve], [row["GB"] for row in curve], marker="o", color=COLOURS[0])
    right.axhline(T4_GB, color=COLOURS[1], linestyle="--", linewidth=1, label="a T4 (15 GB)")
    right.set_xscale("log", base=2)
    right.set_xticks([row["batch"] for row in curve], [str(row["batch"]) for row in curve])
    right.set_xlabel("batch")
    right.set_ylabel("GB")
    right.set_ylim(bottom=0)
    right.set_title("total over the batch", fontsize=9)
    right.legend(fontsize=8, frameon=False)
    return figure


def speed_bars(result: CheckResult) -> Figure | None:
    """Tokens per second of each shape, with the latency written beside it."""
    rows = result.measured.get(TABLE)
    if not rows:
        return None
    figure = blank(8, 0.9 + 0.4 * len(rows))
    axes = figure.subplots()
    names = [f"{row['batch']} × {row['length']}" for row in rows]
    bars = axes.barh(names, [row["tokens/s"] for row in rows], color=COLOURS[0])
    axes.bar_label(bars, [f" {row['median ms']:.3g} ms (IQR {row['IQR ms']:.2g})" for row in rows], fontsize=8)
    axes.set_xlim(0, 1.3 * max(row["tokens/s"] for row in rows))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.invert_yaxis()
    axes.set_xlabel("tokens per second")
    axes.set_ylabel("batch × length")
    return figure
