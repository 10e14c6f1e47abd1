"""What a model knows of padding: whether a call can say which tokens are padding, and with which id. Runs nothing."""

from __future__ import annotations

from torch import nn

from utils.adapters.contract import CallContract
from utils.adapters.masks import BY_WORDS, MaskConvention
from utils.adapters.model_adapter import AdaptedModel


def takes_padding(contract: CallContract) -> bool:
    """Whether a call can tell the model which tokens are padding."""
    return bool(_masks(contract)) or contract.encoding == "flat"


def takes_padding_before(contract: CallContract) -> bool:
    """Whether it can tell of padding before the text too, which the number of real tokens cannot."""
    return bool(_masks(contract)) and all(one.shape != "B" for one in _masks(contract))


def padding_id(adapted: AdaptedModel) -> int | None:
    """The id that the model itself holds for padding: in its config, or as `padding_idx` of its token embedding."""
    rows = adapted.contract.vocab_size
    found = [adapted.config.raw.get("pad_token_id")] + [
        module.padding_idx
        for module in adapted.model.modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings == rows
    ]
    return next((one for one in found if isinstance(one, int) and 0 <= one < (rows or one + 1)), None)


def _masks(contract: CallContract) -> list[MaskConvention]:
    """The conventions of all masks with padding that a call writes."""
    built = [BY_WORDS.get(kind.removeprefix("mask ")) for kind in contract.built.values() if kind.startswith("mask ")]
    return [one for one in (contract.mask, *built) if one is not None and one.carries_padding]
