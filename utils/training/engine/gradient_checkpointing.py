"""Activations that are computed anew in the backward pass, block by block: less memory, more time, the same gradients."""

from __future__ import annotations

import contextlib
import functools
import logging
import types
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from utils.adapters.model_adapter import AdaptedModel

logger = logging.getLogger(__name__)

LEAST_BLOCKS = 2
"""Blocks of one kind from which computing them anew saves memory."""


@contextlib.contextmanager
def checkpointed(adapted: AdaptedModel) -> Iterator[str]:
    """Let the repeated blocks of a model keep their inputs only; afterwards the model is as it was.

    Blocks are modules of one class that stand beside each other (in a list, or under numbered names) and hold the most
    parameters. Dropout draws the same numbers in both passes.

    Yields:
        What was done, in words; a model without repeated blocks, or with batch statistics in them, stays as it is, and the
        words say so.
    """
    blocks = repeated_blocks(adapted.model)
    if not blocks:
        logger.warning("gradient_checkpointing has no effect: %s has no repeated blocks", adapted.name)
        yield "off: the model has no repeated blocks"
        return
    counting = next((m for block in blocks for m in block.modules() if isinstance(m, _BatchNorm)), None)
    if counting is not None:
        why = f"{type(counting).__name__} in the blocks would count each batch twice"
        logger.warning("gradient_checkpointing has no effect: %s", why)
        yield f"off: {why}"
        return
    before = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        vars(block)["forward"] = _anew(block)
    try:
        yield f"on: {len(blocks)} blocks ({type(blocks[0]).__name__}) are computed anew in the backward pass"
    finally:
        for block, own in zip(blocks, before):
            if own is None:
                del vars(block)["forward"]
            else:
                vars(block)["forward"] = own


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model: brothers of one class, `LEAST_BLOCKS` or more, with the most parameters; the outermost ones."""
    best: list[nn.Module] = []
    most = 0
    for parent in model.modules():
        kinds: dict[type[nn.Module], list[nn.Module]] = defaultdict(list)
        for child in parent.children():
            kinds[type(child)].append(child)
        for brothers in kinds.values():
            held = sum(p.numel() for brother in brothers for p in brother.parameters())
            callable_ = type(brothers[0]).forward is not nn.Module.forward  # a ModuleList is never called
            if (
                len(brothers) >= LEAST_BLOCKS
                and callable_
                and held > most
                and any(True for _ in brothers[0].children())
            ):
                best, most = brothers, held
    return best


def _anew(block: nn.Module) -> Any:
    """The block's forward, as a method that a copy of the block has of its own."""
    forward = block.forward
    function = getattr(forward, "__func__", None) if getattr(forward, "__self__", None) is block else None

    @functools.wraps(forward)
    def run(self: nn.Module, *positional: Any, **keywords: Any) -> Any:
        now = forward if function is None else functools.partial(function, self)
        if not self.training or not torch.is_grad_enabled():
            return now(*positional, **keywords)
        return checkpoint(now, *positional, use_reentrant=False, **keywords)

    return types.MethodType(run, block)
