"""Would the model run on another device? Asked without one: fake tensors know their device and hold no memory.

Judges nothing; what follows is for `round_trip` to say.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from utils.adapters.model_adapter import AdaptedModel
from utils.adapters.probing import dtype_of

OTHER_DEVICES = ("cuda", "meta")
"""Tried in turn: builds without CUDA cannot make every tensor there, and "meta" lets ids of another device through."""
CLASH = ("at least two devices", "two different devices")
"""What PyTorch says of an operation whose operands lie on different devices."""


def device_clash(adapted: AdaptedModel, inputs: torch.Tensor) -> str | None:
    """The statement at which tensors of two devices would meet if the model were moved; None where none do.

    Constants that forward makes without `device=` stay on the CPU, and so do plain attributes. Whatever else stops a model
    that has no values (a branch on data, a kernel without a fake) tells nothing and is no clash.

    Args:
        adapted: the model, in eval mode. Call within `preserved`.
        inputs: as `Sampler.inputs` gives them.

    Example:
        >>> device_clash(adapted, sampler.inputs(1, 8))   # x + self.positions(torch.arange(8))
        "model.py, line 12: `x = x + self.positions(torch.arange(8))`"
    """
    positional, keywords = adapted.contract.arguments(inputs, model=adapted.model, dtype=dtype_of(adapted.model))
    for device in OTHER_DEVICES:
        try:
            with _unheard():
                _run_moved(adapted, positional, keywords, device)
        except Exception as error:  # noqa: BLE001 - a stranger's model without values may raise anything
            if any(words in str(error) for words in CLASH):
                return _place(error)
    return None


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Without what PyTorch says about a device that is not there, and about kernels that have no fake."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def _run_moved(adapted: AdaptedModel, positional: Any, keywords: Any, device: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode  # no public name; torch.export rests on it

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    moved: dict[int, torch.Tensor] = {}

    def move(tensor: torch.Tensor) -> torch.Tensor:
        with mode:
            fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        return moved.setdefault(id(tensor), fake)

    model = adapted.model
    state = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    given = tree_map_only(torch.Tensor, move, (positional, keywords))
    held = {name: move(tensor) for name, tensor in state.items()}
    with mode, torch.no_grad():
        functional_call(model, held, *given)


def _place(error: Exception) -> str:
    """File, line and statement of the model's code at which an error began."""
    torch_folder = str(Path(torch.__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((torch_folder, "<"))]
    frame = frames[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}: `{frame.line}`"
