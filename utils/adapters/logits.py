"""Where a foreign output keeps its logits, and in which order their axes stand. Finding that out is for `model_outputs`.

Imports torch alone: exported folders of transformers hold a copy of this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

_LAYOUTS = {"BTV": (0, 1, 2), "TBV": (1, 0, 2), "BVT": (0, 2, 1), "VBT": (1, 2, 0), "TVB": (2, 0, 1), "VTB": (2, 1, 0)}


@dataclass(frozen=True)
class LogitsSelector:
    """Where a model's output keeps its logits, and in which order their axes stand.

    Attributes:
        path: keys, indices or attribute names that lead from the output to the tensor; empty where the output is it.
        layout: order of the axes batch, time and vocabulary as the model gives them, e.g. "BTV" or "TBV"; "BV" for a
            model that gives one row of scores per sequence (classification); "(BT)V" and "(TB)V" where two axes are one;
            "LBTV" for the scores of several layers, of which the last counts; "BTNV" and "BNTV" for scores of several
            tokens ahead, of which the next counts.
    """

    path: tuple[str | int, ...] = ()
    layout: str = "BTV"

    def __call__(self, output: Any, batch: int | None = None) -> torch.Tensor:
        """Return the logits as (B, T, V), or (B, V) for classification. `batch` is needed where two axes are one."""
        value: torch.Tensor = follow(output, self.path)
        if self.layout in ("BTV", "BV"):
            return value
        if self.layout == "LBTV":
            return value[-1]
        if self.layout in ("BTNV", "BNTV"):
            return value.select(self.layout.index("N"), 0)
        if self.layout == "(BT)V":
            return value.unflatten(0, (batch or 1, -1))
        if self.layout == "(TB)V":
            return value.unflatten(0, (-1, batch or 1)).transpose(0, 1)
        return value.permute(_LAYOUTS[self.layout])

    def width(self, shape: tuple[int, ...]) -> int:
        """Number of scores in a tensor of this layout and shape."""
        return shape[self.layout.index("V")] if self.layout in _LAYOUTS else shape[-1]


def follow(output: Any, path: tuple[str | int, ...]) -> Any:
    """What lies at the end of a path of keys, indices and attribute names."""
    value = output
    for step in path:
        value = getattr(value, step) if isinstance(step, str) and not isinstance(value, Mapping) else value[step]
    return value
