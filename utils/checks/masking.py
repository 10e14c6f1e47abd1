"""What a model knows of padding: whether a call can say which tokens are padding, and with which id. Runs nothing."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from utils.adapters.contract import CallContract
from utils.adapters.masks import BY_WORDS, MaskConvention
from utils.adapters.model_adapter import AdaptedModel

FIRST_ORDINARY = 5
"""Tokenizers give their special tokens the first ids."""


def takes_padding(contract: CallContract) -> bool:
    """Whether a call can tell the model which tokens are padding."""
    return bool(_masks(contract)) or contract.encoding == "flat"


def takes_padding_before(contract: CallContract) -> bool:
    """Whether it can tell of padding before the text too, which the number of real tokens cannot."""
    return bool(_masks(contract)) and all(one.shape != "B" for one in _masks(contract))


def names_mask(adapted: AdaptedModel) -> bool:
    """Whether the author of the model wrote the mask into `forward`.

    False where `**kwargs` swallows it, and for a completed export, to which the completion gave the argument.
    """
    contract = adapted.contract
    if adapted.completion.status == "completed":
        return False
    if contract.mask_name is None or contract.packed:
        return takes_padding(contract)
    return contract.mask_name in inspect.signature(adapted.model.forward).parameters


def mixes_beside_attention(model: nn.Module) -> bool:
    """Whether convolutions or recurrences carry information between tokens, past any attention mask."""
    return any(isinstance(module, (nn.Conv1d, nn.Conv2d, nn.RNNBase)) for module in model.modules())


def padding_id(adapted: AdaptedModel) -> int | None:
    """The id that the model itself holds for padding: in its config, or as `padding_idx` of its token embedding."""
    rows = adapted.contract.vocab_size
    found = [adapted.config.raw.get("pad_token_id")] + [
        module.padding_idx
        for module in adapted.model.modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings == rows
    ]
    return next((one for one in found if isinstance(one, int) and 0 <= one < (rows or one + 1)), None)


def ordinary_ids(adapted: AdaptedModel, vocabulary: int, device: torch.device) -> torch.Tensor:
    """(N,) ids in random order that mean no padding, beginning or end to the model; N ≥ 1 where there are two ids."""
    raw = adapted.config.raw
    special = {padding_id(adapted), *(raw.get(key) for key in raw if str(key).endswith(("_token_id", "_index")))}
    first = FIRST_ORDINARY if vocabulary >= 4 * FIRST_ORDINARY else 0
    kept = [one for one in range(first, vocabulary) if one not in special] or list(range(1, vocabulary))
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))
    return torch.tensor(kept)[order].to(device)


def _masks(contract: CallContract) -> list[MaskConvention]:
    """The conventions of all masks with padding that a call writes."""
    built = [BY_WORDS.get(kind.removeprefix("mask ")) for kind in contract.built.values() if kind.startswith("mask ")]
    return [one for one in (contract.mask, *built) if one is not None and one.carries_padding]
