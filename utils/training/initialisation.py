"""Whether a fresh model's embeddings would spoil the start of training, and their mending. Trains nothing.

PyTorch draws `nn.Embedding` from N(0, 1). Where that matrix is also the output head, logits have a standard deviation of
about sqrt(d_model), the first loss lies far above ln(V) and short trainings fail (measured on the bundled export: 2.58
bits per byte after 40 s, against 1.82 with a standard deviation of 0.02).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.initialisation import EXCESS, USUAL_STD, default_embeddings
from utils.checks.preserved import preserved
from utils.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Initialisation:
    """What was done to a model's weights before training, and why.

    Attributes:
        redrawn: names of the parameters that were drawn anew; empty where nothing was touched.
        reason: one sentence with figures.
    """

    redrawn: tuple[str, ...]
    reason: str


def initialise(adapted: AdaptedModel, mode: str, sample: Mapping[str, torch.Tensor], seed: int = 0) -> Initialisation:
    """Re-draw default embeddings where they spoil the start.

    Args:
        adapted: the model, changed in place.
        mode: "auto" re-draws embeddings from N(0, `USUAL_STD`) only where they still look like PyTorch's N(0, 1) and the
            first loss lies more than `EXCESS` nats above ln(V), as the check of initialisation sees it; "keep" never
            touches a weight.
        sample: a batch of training data, as `AdaptedModel.on_batch` takes it.
        seed: of a private generator.
    """
    if mode not in ("auto", "keep"):
        raise ConfigError(f"initialisation={mode!r} is unknown. Known: auto, keep.")
    if mode == "keep":
        return Initialisation((), "kept: initialisation='keep'")
    outputs = first_outputs(adapted, sample)
    expected = math.log(outputs.classes)
    found = f"first loss {outputs.loss:.2f} nats, ln(V) = {expected:.2f}"
    if outputs.loss <= expected + EXCESS:  # False for NaN: a start that overflows is spoilt too
        return Initialisation((), f"kept: {found}, within {EXCESS:g} nat")
    defaults = default_embeddings(adapted)
    if not defaults:
        return Initialisation(
            (), f"kept: {found}, but no embedding looks like PyTorch's default; the weights are someone's choice"
        )
    generator = torch.Generator().manual_seed(seed)
    for module in defaults.values():
        _redraw(module, generator)
    after = first_outputs(adapted, sample).loss
    names = tuple(defaults)
    reason = (
        f"re-drew {', '.join(names)} from N(0, {USUAL_STD}): {found} under PyTorch's default N(0, 1), {after:.2f} now"
    )
    logger.info("initialisation: %s", reason)
    return Initialisation(names, reason)


@dataclass(frozen=True)
class FirstOutputs:
    """Loss in nats before training, and the number of classes it is over."""

    loss: float
    classes: int


def first_outputs(adapted: AdaptedModel, sample: Mapping[str, torch.Tensor]) -> FirstOutputs:
    """Loss on a batch without dropout and without a trace in the model."""
    with preserved(adapted), torch.no_grad():
        adapted.eval()
        out = adapted.on_batch({name: value.to(adapted.device) for name, value in sample.items()})
    assert out.loss is not None  # labels were given
    return FirstOutputs(float(out.loss), int(out.logits.shape[-1]))


def _redraw(module: nn.Embedding, generator: torch.Generator) -> None:
    with torch.no_grad():
        fresh = torch.normal(0.0, USUAL_STD, module.weight.shape, generator=generator)
        if module.padding_idx is not None:
            fresh[module.padding_idx] = 0
        module.weight.copy_(fresh)
