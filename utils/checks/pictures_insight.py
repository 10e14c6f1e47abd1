"""Pictures of the analyses of tier 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from utils.checks.figures import COLOURS, blank, short
from utils.checks.inspection import role
from utils.checks.report import TABLE, CheckResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LAYERS, MOST_HEADS = 8, 12
"""Maps that are drawn: more could not be seen."""
MOST_NAMES = 40
"""Names that can be read beside each other."""


def attention_grid(result: CheckResult) -> Figure | None:
    """The maps of the first text, one row per layer and one column per head, each with its kind."""
    if not result.arrays:
        return None
    names = _spread(list(result.arrays), MOST_LAYERS)
    heads = min(MOST_HEADS, max(len(result.arrays[name]) for name in names))
    kinds = {(row["layer"], row["head"]): row["kind"] for row in result.measured[TABLE]}
    figure = blank(max(3.0, 1.15 * heads + 0.5), 1.35 * len(names) + 0.3)
    grid = figure.subplots(len(names), heads, squeeze=False)
    for line, name in zip(grid, names, strict=True):
        for head, axes in enumerate(line):
            axes.set_xticks([])
            axes.set_yticks([])
            if head >= len(result.arrays[name]):
                axes.set_axis_off()
                continue
            axes.imshow(
                _visible(result.arrays[name][head]), cmap="viridis", vmin=0, aspect="auto", interpolation="nearest"
            )
            axes.set_title(f"{head} {kinds.get((name, head), '')}", fontsize=6.5, pad=2)
        line[0].set_ylabel(short(name, 20), fontsize=6.5)
    figure.supxlabel("key: left to right\nquery: top to bottom", fontsize=7)
    return figure


def _visible(weights: np.ndarray) -> np.ndarray:
    """Square roots, so that small weights are seen beside large ones."""
    return np.sqrt(weights)


def attribution_bars(result: CheckResult) -> Figure | None:
    """One bar per token, or the picture of the pixels."""
    if "pixels" in result.arrays:
        return _pixels(result.arrays["pixels"])
    rows = result.measured.get(TABLE)
    if not rows:
        return None
    figure = blank(max(5.0, 0.45 * len(rows) + 1), 3)
    axes = figure.subplots()
    values = [row["attribution"] for row in rows]
    axes.bar(range(len(rows)), values, color=[COLOURS[0] if value >= 0 else COLOURS[1] for value in values])
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(range(len(rows)), [f"{row['position']}\n{row['token id']}" for row in rows], fontsize=7)
    axes.set_xlabel("position, and the id of the token there")
    axes.set_ylabel("attribution (logit)")
    axes.set_title(result.measured["explained"], fontsize=9)
    return figure


def _pixels(values: np.ndarray) -> Figure:
    figure = blank(4.2, 3.6)
    axes = figure.subplots()
    largest = float(np.abs(values).max()) or 1.0
    shown = axes.imshow(values, cmap="RdBu", vmin=-largest, vmax=largest, interpolation="nearest")
    figure.colorbar(shown, ax=axes, label="attribution (logit)")
    return figure


def robustness_curves(result: CheckResult) -> Figure | None:
    """Divergence and agreement over the amount of change, one line per kind of change."""
    rows = result.measured.get(TABLE)
    if not rows:
        return None
    figure = blank(9, 3.2)
    left, right = figure.subplots(1, 2)
    for number, change in enumerate(dict.fromkeys(row["change"] for row in rows)):
        part = [row for row in rows if row["change"] == change]
        amounts = [row["amount"] for row in part]
        settings: dict[str, Any] = {"marker": "o", "markersize": 4, "color": COLOURS[number], "label": change}
        left.plot(amounts, [max(row["KL"], 1e-12) for row in part], **settings)
        right.plot(amounts, [row["agreement"] for row in part], **settings)
    left.set_yscale("log")
    left.set_ylabel("KL divergence (nats)")
    right.set_ylabel("same highest score")
    right.set_ylim(-0.03, 1.03)
    right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("relative noise, or share of tokens")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter("")
    right.legend(fontsize=7, loc="lower left")
    return figure


def rank_points(result: CheckResult) -> Figure | None:
    """Effective rank as a share of the full one: matrices in the model's order, and what the layers give."""
    rows = [row for row in result.measured.get(TABLE, []) if row["effective rank"] > 0]
    if not rows:
        return None
    figure = blank(9, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    _by_role(left, [row for row in rows if row["kind"] == "weight"])
    layers = [row for row in rows if row["kind"] == "activation"]
    right.plot(range(len(layers)), [row["share"] for row in layers], marker="o", color=COLOURS[0])
    _named(right, [row["name"] for row in layers])
    right.set_title("what each layer gives", fontsize=9)
    for axes in (left, right):
        axes.set_ylim(0, 1.03)
        axes.set_ylabel("effective rank / full rank")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return figure


def _by_role(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """One line per group of siblings; the smallest groups share a colour."""
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(role(row["name"]), []).append(place)
    ranked = sorted(groups, key=lambda name: -len(groups[name]))
    for number, name in enumerate(ranked):
        places, shares = groups[name], [rows[place]["share"] for place in groups[name]]
        named = number < len(COLOURS) - 1
        label = short(name) if named else ("others" if number == len(COLOURS) - 1 else None)
        axes.plot(
            places,
            shares,
            "o-" if named else "o",
            markersize=4,
            linewidth=0.8,
            color=COLOURS[min(number, len(COLOURS) - 1)],
            label=label,
        )
    axes.set_xlabel("weight matrices in the model's order")
    axes.set_xticks([])
    axes.set_title("weights", fontsize=9)
    axes.legend(fontsize=6.5, loc="lower left")


def similarity_map(result: CheckResult) -> Figure | None:
    """Linear CKA of every pair of layers."""
    if "cka" not in result.arrays:
        return None
    matrix, names = result.arrays["cka"], [row["layer"] for row in result.measured[TABLE]]
    side = min(8.0, max(3.2, 1.8 + 0.28 * len(names)))
    figure = blank(side + 1, side)
    axes = figure.subplots()
    shown = axes.imshow(matrix, cmap="viridis", vmin=min(0.0, float(np.nanmin(matrix, initial=0.0))), vmax=1)
    _named(axes, names)
    step = -(-len(names) // MOST_NAMES)
    axes.set_yticks(range(0, len(names), step), [short(name, 20) for name in names[::step]], fontsize=7)
    figure.colorbar(shown, ax=axes, label="linear CKA")
    return figure


def dead_bars(result: CheckResult) -> Figure | None:
    """Shares of dead and of saturated units, and of values above 0, per activation."""
    rows = result.measured.get(TABLE)
    if not rows:
        return None
    rows = _spread(rows, MOST_NAMES)
    figure = blank(8, 1.1 + 0.24 * len(rows))
    axes = figure.subplots()
    places = np.arange(len(rows))
    axes.barh(places, [row["above 0"] for row in rows], height=0.75, color="#d5dde6", label="values above 0")
    axes.barh(places - 0.15, [row["dead share"] for row in rows], height=0.3, color=COLOURS[1], label="units: dead")
    axes.barh(
        places + 0.15, [row["saturated share"] for row in rows], height=0.3, color=COLOURS[4], label="units: saturated"
    )
    axes.set_yticks(places, [short(row["layer"]) for row in rows], fontsize=7)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.invert_yaxis()
    axes.legend(fontsize=7, loc="lower right")
    return figure


def _named(axes: Axes, names: list[str]) -> None:
    """Names of layers along the horizontal axis, as many as can be read."""
    step = max(1, -(-len(names) // MOST_NAMES))
    axes.set_xticks(range(0, len(names), step), [short(name, 20) for name in names[::step]], rotation=90, fontsize=7)


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most so many, at equal distances, first and last among them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
