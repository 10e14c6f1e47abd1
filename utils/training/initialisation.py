"""Whether a fresh model's embeddings would spoil the start of training, and their mending. Trains nothing.

PyTorch draws `nn.Embedding` from N(0, 1). Where that matrix is also the output head, logits have a standard deviation of
about sqrt(d_model), the first loss lies far above ln(V) and short trainings fail (measured on the bundled export: 2.58
bits per byte after 40 s, against 1.82 with a standard deviation of 0.02).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import nn

from utils.adapters.model_adapter import AdaptedModel
from utils.errors import ConfigError

logger = logging.getLogger(__name__)

EMBEDDING_STD = 0.02
"""Standard deviation of re-drawn embeddings; the custom since GPT-2 (Radford et al., 2019)."""

TOLERATED_EXCESS = 1.5
"""A first loss up to this many times ln(V) is left alone; a good start lies near 1."""


@dataclass(frozen=True)
class Initialisation:
    """What was done to a model's weights before training, and why.

    Attributes:
        redrawn: names of the parameters that were drawn anew; empty where nothing was touched.
        reason: one sentence with figures.
    """

    redrawn: tuple[str, ...]
    reason: str


def initialise(adapted: AdaptedModel, mode: str, sample: torch.Tensor, seed: int = 0) -> Initialisation:
    """Re-draw default embeddings where they spoil the start.

    Args:
        adapted: the model, changed in place.
        mode: "auto" re-draws embeddings from N(0, 0.02) only where they still look like PyTorch's N(0, 1) and the first
            loss exceeds 1.5 ln(V); "keep" never touches a weight.
        sample: (B, T) int64 token ids of training text.
        seed: of a private generator.
    """
    if mode not in ("auto", "keep"):
        raise ConfigError(f"initialisation={mode!r} is unknown. Known: auto, keep.")
    if mode == "keep":
        return Initialisation((), "kept: initialisation='keep'")
    outputs = first_outputs(adapted, sample)
    expected = math.log(outputs.classes)
    found = f"first loss {outputs.loss:.2f} nats, {outputs.loss / expected:.1f} × ln(V) = {expected:.2f}"
    if outputs.loss <= TOLERATED_EXCESS * expected:  # False for NaN: a start that overflows is spoilt too
        return Initialisation((), f"kept: {found}, within {TOLERATED_EXCESS} ×")
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
    reason = f"re-drew {', '.join(names)} from N(0, {EMBEDDING_STD}): {found} under PyTorch's default N(0, 1), {after:.2f} now"
    logger.info("initialisation: %s", reason)
    return Initialisation(names, reason)


@dataclass(frozen=True)
class FirstOutputs:
    """Loss in nats before training, and the number of classes it is over."""

    loss: float
    classes: int


def first_outputs(adapted: AdaptedModel, sample: torch.Tensor) -> FirstOutputs:
    """Loss on (B, T) ids without dropout and without a trace in the model."""
    modes = {module: module.training for module in adapted.modules()}
    adapted.eval()
    try:
        with torch.no_grad():
            ids = sample.to(adapted.device)
            out = adapted(ids, labels=ids)
    finally:
        for module, training in modes.items():
            module.training = training
    assert out.loss is not None  # labels were given
    return FirstOutputs(float(out.loss), int(out.logits.shape[-1]))


def default_embeddings(adapted: AdaptedModel) -> dict[str, nn.Embedding]:
    """Embeddings whose weights look like draws from N(0, 1), by parameter name; a shared matrix is listed once."""
    found: dict[str, nn.Embedding] = {}
    seen: set[int] = set()
    for name, module in adapted.model.named_modules():
        if isinstance(module, nn.Embedding) and id(module.weight) not in seen and _looks_default(module):
            seen.add(id(module.weight))
            found[f"{name}.weight"] = module
    return found


def _looks_default(module: nn.Embedding) -> bool:
    weight = module.weight.detach().float()
    if module.padding_idx is not None:  # PyTorch sets this row to zero
        weight = torch.cat([weight[: module.padding_idx], weight[module.padding_idx + 1 :]])
    count = weight.numel()
    if count < 2:
        return False
    margin = 4 / math.sqrt(count)  # four standard errors of the mean; those of the deviation are smaller
    return abs(weight.mean().item()) < margin and abs(weight.std().item() - 1) < margin


def _redraw(module: nn.Embedding, generator: torch.Generator) -> None:
    with torch.no_grad():
        fresh = torch.normal(0.0, EMBEDDING_STD, module.weight.shape, generator=generator)
        if module.padding_idx is not None:
            fresh[module.padding_idx] = 0
        module.weight.copy_(fresh)
