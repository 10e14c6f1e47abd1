"""Arguments that a call builds by itself: positions, segments, masks, sizes, first states. Each kind has a name.

Which argument wants which kind is for `guesses` to suggest and for `inference` to find out.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from utils.adapters.masks import BY_WORDS
from utils.errors import CallContractError

OF_DECODER = " of the decoder"
"""Ending of a kind that is built over the decoder's ids."""

TOKENWISE = ("positions (B, T)", "zeros (B, T)")
"""Kinds that have a value for each token, and so the axes of the ids."""

FIRST_STATES = re.compile(
    r"(get_)?(init|initial|begin|zero|empty|new)_?(rnn_|hidden_)?(hiddens?|states?|hidden_states?|mems?|cache)"
)
"""Names of methods that make the state with which a text begins, given the size of the batch."""


def build(
    kind: str,
    inputs: torch.Tensor,
    decoder_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    model: nn.Module | None,
    dtype: torch.dtype,
) -> Any:
    """Build one argument.

    Args:
        kind: "positions (T,)", "positions (B, T)", "zeros (B, T)", "zeros (B,)", "bag offsets (B,)", "length", "batch size",
            "device", "training mode", "labels", "state <method>", "mask <convention>" (lengths included); with the ending
            " of the decoder" over the decoder's ids.
        inputs: (B, T) ids, or (B, C, H, W) pixels.
        decoder_ids: (B, T_dec); the inputs where there is no decoder.
        attention_mask: (B, T), 1 = real token; None where all are real.
        model: for kinds that ask it.
        dtype: floating dtype of an additive mask.
    """
    if kind.startswith("mask "):
        return _mask(kind.removeprefix("mask "), inputs, decoder_ids, attention_mask, dtype)
    if kind.startswith("state "):
        return getattr(model, kind.removeprefix("state "))(inputs.shape[0])
    return _plain(
        kind.removesuffix(OF_DECODER), decoder_ids if kind.endswith(OF_DECODER) else inputs, attention_mask, model
    )


def _plain(kind: str, ids: torch.Tensor, attention_mask: torch.Tensor | None, model: nn.Module | None) -> Any:
    batch, length = ids.shape[0], ids.shape[1]
    if kind.startswith("positions"):
        positions = torch.arange(length, device=ids.device)
        return positions if kind == "positions (T,)" else positions.expand(batch, -1)
    if kind == "zeros (B, T)":
        return torch.zeros_like(ids)
    if kind == "zeros (B,)":
        return torch.zeros(batch, dtype=torch.long, device=ids.device)
    if kind == "bag offsets (B,)":
        return _bag_offsets(ids, attention_mask)
    facts: dict[str, Any] = {
        "length": length,
        "batch size": batch,
        "device": ids.device,
        "training mode": model is not None and model.training,
    }
    if kind not in facts:
        raise CallContractError(
            f"The contract asks for {kind!r}, which no call can build. Known: {', '.join(facts)}, …"
        )
    return facts[kind]


def _bag_offsets(ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Where each row begins among all tokens in one row."""
    if attention_mask is None:
        return torch.arange(ids.shape[0], device=ids.device) * ids.shape[1]
    lengths = attention_mask.bool().sum(1)
    return lengths.cumsum(0) - lengths


def _mask(
    words: str,
    inputs: torch.Tensor,
    decoder_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """A mask beside the main one; over the decoder's ids all tokens count as real, since their labels carry the padding."""
    convention = BY_WORDS[words.removesuffix(OF_DECODER)]
    if words.endswith(OF_DECODER) or attention_mask is None:
        over = decoder_ids if words.endswith(OF_DECODER) else inputs
        return convention.build(torch.ones(over.shape[:2], dtype=torch.long, device=over.device), dtype)
    return convention.build(attention_mask, dtype)


def embedding_of(model: nn.Module | None) -> nn.Module:
    """The model's token embedding, for models that take embedded tokens.

    Raises:
        CallContractError: the model has none, or several and no `get_input_embeddings`.
    """
    ask: Any = getattr(model, "get_input_embeddings", None)
    if callable(ask) and isinstance(found := ask(), nn.Module):
        return found
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)] if model is not None else []
    named = [t for t in tables if not re.search("pos|type|segment", _name_of(model, t))]
    if len(named) != 1:
        raise CallContractError(
            f"{type(model).__name__} takes embedded tokens and has {len(named)} embeddings to make them with. Give it a "
            "method get_input_embeddings() that returns the one for tokens."
        )
    return named[0]


def _name_of(model: nn.Module | None, module: nn.Module) -> str:
    return next((name for name, one in model.named_modules() if one is module), "") if model is not None else ""
