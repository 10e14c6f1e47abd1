"""The demo's report: one HTML page that needs nothing else. Arranges what the stages gave; computes nothing."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from utils._pages import render
from utils._tables import html_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from utils.training.result import TrainingResult
    from utils.ui.demo import Walk

ASSETS = Path(__file__).parent / "assets"


def render_page(walk: Walk) -> str:
    """The walk as a self-contained page: no script, no outside resource, readable in dark and light."""
    return render(
        ASSETS / "report.html",
        walk=walk,
        style=Markup((ASSETS / "report.css").read_text("utf-8")),
        review=Markup(walk.loaded.review._repr_html_()),
        completion=Markup(walk.adapted.completion._repr_html_()),
        tier1=Markup(walk.report._repr_html_()),
        training=Markup(walk.result._repr_html_()),
        bits=Markup(html_table(("predictor", "validation, bits per byte"), walk.bits_table())),
        curve=Markup(loss_curve_svg(walk.result, walk.bits_per_byte)),
        export=Markup(walk.bundle._repr_html_()),
        contract=Markup(f"<pre>{html.escape(walk.adapted.contract.summary())}</pre>"),
    )


def loss_curve_svg(result: TrainingResult, bits_per_byte: dict[str, float]) -> str:
    """Training loss per step and validation bits per byte with both baselines, as an inline SVG picture."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    figure.patch.set_alpha(0)
    left, right = figure.subplots(1, 2)
    losses = result["step_loss_history"]
    left.plot(range(1, len(losses) + 1), losses, color="#4c72b0", linewidth=0.8)
    left.set(title="training loss", xlabel="optimizer step", ylabel="nats per token")
    steps = [0, *result["val_steps"]]
    right.plot(
        steps,
        [bits_per_byte["untrained"], *result["val_bits_per_byte_history"]],
        color="#4c72b0",
        marker="o",
        markersize=3,
    )
    right.axhline(bits_per_byte["byte trigram"], color="#c44e52", linestyle="--", linewidth=1)
    right.annotate("byte trigram", (steps[-1], bits_per_byte["byte trigram"]), ha="right", va="bottom", color="#c44e52")
    right.set(title="validation", xlabel="optimizer step", ylabel="bits per byte")
    for axes in (left, right):
        _plain(axes)
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    picture = buffer.getvalue()
    return picture[picture.index("<svg") :]


def _plain(axes: Axes) -> None:
    """Grey lines and text that can be read on a dark and on a light page."""
    grey = "#808080"
    axes.patch.set_alpha(0)
    axes.grid(alpha=0.25)
    axes.tick_params(colors=grey)
    axes.title.set_color(grey)
    axes.xaxis.label.set_color(grey)
    axes.yaxis.label.set_color(grey)
    for spine in axes.spines.values():
        spine.set_color(grey)
