"""The demo's report: one HTML page that needs nothing else. Arranges what the stages gave; computes nothing."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from utils._pages import render
from utils._tables import html_table
from utils.training.curves import Panel, Series, picture_svg

if TYPE_CHECKING:
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
    losses = result["step_loss_history"]
    steps = [0, *result["val_steps"]]
    validated = [bits_per_byte["untrained"], *result["val_bits_per_byte_history"]]
    trigram = [("byte trigram", bits_per_byte["byte trigram"])]
    train = Series("", range(1, len(losses) + 1), losses)
    return picture_svg(
        [
            Panel("training loss", "optimizer step", "nats per token", [train]),
            Panel(
                "validation",
                "optimizer step",
                "bits per byte",
                [Series("", steps, validated, dots=True)],
                marks=trigram,
            ),
        ]
    )
