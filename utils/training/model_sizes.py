"""Whether a model has the sizes that the settings say it must have. Reads both, changes neither."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from utils.adapters.model_adapter import AdaptedModel
    from utils.training.training_config import TrainingConfig


def model_mismatches(config: TrainingConfig, adapted: AdaptedModel) -> list[str]:
    """Sizes that the settings name and the model does not have, each with both numbers; none where they agree.

    Args:
        config: `vocab_size`, `d_model` and `num_layers` are read; None asks nothing.
        adapted: the model. What neither its contract, nor its config, nor its embedding tells cannot differ.

    Example:
        >>> model_mismatches(TrainingConfig(vocab_size=50257), adapted)
        ['vocab_size=50257, and TinyGPT has 300 embedding rows: put 300, or None, or load the model that was meant.']
    """
    found = {
        "vocab_size": (_vocabulary(adapted), "embedding rows"),
        "d_model": (_width(adapted), "as its width"),
        "num_layers": (adapted.config.num_layers, "as its number of blocks"),
    }
    return [
        f"{name}={asked}, and {adapted.name} has {has} {what}: put {has}, or None, or load the model that was meant."
        for name, (has, what) in found.items()
        if (asked := getattr(config, name)) is not None and has is not None and has != asked
    ]


def _vocabulary(adapted: AdaptedModel) -> int | None:
    rows = adapted.contract.vocab_size
    return rows if rows is not None else adapted.config.vocab_size


def _width(adapted: AdaptedModel) -> int | None:
    """The config's width; where it is silent, that of the token embedding, unless the model projects it to another one."""
    if adapted.config.d_model is not None:
        return adapted.config.d_model
    rows = adapted.contract.vocab_size
    widths = {
        module.embedding_dim
        for module in adapted.modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings == rows
    }
    norms = {
        module.normalized_shape[-1]
        for module in adapted.modules()
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape)
    }
    (width,) = widths if len(widths) == 1 else (None,)
    return width if not norms or width in norms else None
