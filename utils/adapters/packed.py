"""Which keys a model reads from the one mapping that it takes: `forward(batch)` with `batch["input_ids"]`.

Asks the model with a mapping that makes up whatever is read; how these keys are filled is for `guesses`.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from utils.adapters.probing import PROBE_BATCH, device_of, dtype_of, probe_ids
from utils.adapters.refusals import unless_refused
from utils.adapters.roles import Argument
from utils.loading.model_config import ModelConfig


def keys_asked(model: nn.Module, config: ModelConfig, signature: inspect.Signature) -> list[Argument]:
    """The keys that `forward` reads from its only required argument; none where it does not take a mapping.

    Runs inside `left_as_it_was`. Keys that are read with `get` or asked for with `in` may be left out of a call.
    """
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p for p in signature.parameters.values() if p.default is p.empty and p.kind not in variadic]
    if len(required) != 1:
        return []
    asked = _Asked(model, config)
    unless_refused(
        lambda: model(asked), None
    )  # what matters is which keys were read, before it failed too; none means "no mapping"
    return list(asked.keys_read.values())


class _Asked(dict[str, Any]):
    """A mapping that holds whatever is asked of it, and notes what that was."""

    def __init__(self, model: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self._model, self._ids = model, probe_ids(model, config)
        self.keys_read: dict[str, Argument] = {}

    def __missing__(self, key: object) -> Any:
        self._note(key, required=True)
        return self._made_up(str(key))

    def __contains__(self, key: object) -> bool:
        self._note(key, required=False)
        return False

    def get(self, key: str, default: Any = None) -> Any:
        self._note(key, required=False)
        return default

    def _note(self, key: object, required: bool) -> None:
        if isinstance(key, str) and not (key in self.keys_read and self.keys_read[key].required):
            self.keys_read[key] = Argument(key, required)

    def _made_up(self, key: str) -> torch.Tensor:
        part = Argument(key).part
        if part == "pixels":
            return torch.zeros(PROBE_BATCH, 3, 32, 32, dtype=dtype_of(self._model), device=device_of(self._model))
        if part in ("mask", "decoder mask", "memory mask"):
            return torch.ones_like(self._ids)
        return self._ids
