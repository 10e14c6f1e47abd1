"""Empty figures and the few colours that all pictures share. Knows no check."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#2f6fb2", "#c8553d", "#3a8a5f", "#8a5fb0", "#b8860b", "#4f9fa8", "#a04b78", "#6b6b6b")
"""Told apart by most colour-blind readers, and dark enough on white."""


def blank(width: float, height: float) -> Figure:
    """A figure of so many inches that belongs to no window and no global state of matplotlib."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def short(name: str, most: int = 34) -> str:
    """A long module name by its end, where names differ."""
    return name if len(name) <= most else "…" + name[1 - most :]
