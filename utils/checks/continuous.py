"""A model as a function of numbers that can be moved a little: the embeddings of its tokens, or its pixels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.masking import padding_id
from utils.checks.sampling import run_model

Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class ContinuousInput:
    """One input of a model and the place where it becomes numbers.

    Attributes:
        adapted: the model.
        inputs: (B, T) ids or (B, C, H, W) pixels.
        values: what the token embedding gives for the ids, (B, T, D); or the pixels themselves.
        name: of the module that looks the tokens up; "" for pixels.
        time_first: whether that module gives (T, B, D).
    """

    adapted: AdaptedModel
    inputs: torch.Tensor
    values: torch.Tensor
    name: str = ""
    time_first: bool = False

    @classmethod
    def of(cls, adapted: AdaptedModel, inputs: torch.Tensor) -> ContinuousInput | None:
        """Find the place; None where no module looks the tokens up (e.g. a bare matrix that is indexed).

        Raises:
            CheckError: the model raised.
        """
        if not adapted.contract.takes_tokens:
            return cls(adapted, inputs, inputs)
        found: list[ContinuousInput] = []

        def hook_for(name: str) -> Any:
            def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
                for ids in (*given, *named.values()):
                    turned = _turned(ids, inputs)
                    if turned is None or not isinstance(output, torch.Tensor) or not output.is_floating_point():
                        continue
                    if output.dim() == 3 and output.shape[:2] == ids.shape:
                        values = output.detach().transpose(0, 1) if turned else output.detach()
                        found.append(cls(adapted, inputs, values.clone(), name, turned))

            return hook

        hooks = [m.register_forward_hook(hook_for(n), with_kwargs=True) for n, m in adapted.model.named_modules() if n]
        try:
            with torch.no_grad():
                run_model(adapted, inputs)
        finally:
            for handle in hooks:
                handle.remove()
        return found[0] if found else None  # inner modules are done before those around them

    def neutral(self) -> torch.Tensor:
        """Values of an input that says nothing: the embedding of the padding id (0 where none is known), or grey; as `values`."""
        if not self.name:
            return torch.full_like(self.values, 0.5)
        ids = torch.full_like(self.inputs, padding_id(self.adapted) or 0)
        found: list[torch.Tensor] = []

        def keep(values: torch.Tensor) -> torch.Tensor:
            found.append(values.detach().clone())
            return values

        with torch.no_grad(), self._changed(ids, keep):
            run_model(self.adapted, ids)
        return found[0]

    def run(self, change: Change, rows: int | None = None, **extras: torch.Tensor) -> torch.Tensor:
        """Logits after `change(values)` has taken the place of the values, (B, …); gradients flow where they are on.

        Args:
            change: gets the values as the model makes them, and gives as many.
            rows: repeat an input of one row so often, so that `change` may give each row another value.
            extras: as for the call of `adapted`.
        """
        inputs = self.inputs if rows is None else self.inputs.expand(rows, *self.inputs.shape[1:]).contiguous()
        if not self.name:
            return run_model(self.adapted, change(inputs), **extras).logits
        with self._changed(inputs, change):
            return run_model(self.adapted, inputs, **extras).logits

    @contextlib.contextmanager
    def _changed(self, inputs: torch.Tensor, change: Change) -> Iterator[None]:
        def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
            if all(_turned(ids, inputs) is None for ids in (*given, *named.values())):
                return output  # the same table looks up the decoder's ids too
            return change(output.transpose(0, 1)).transpose(0, 1) if self.time_first else change(output)

        handle = self.adapted.model.get_submodule(self.name).register_forward_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def _turned(ids: Any, inputs: torch.Tensor) -> bool | None:
    """Whether these are the ids of the inputs with time first; None where they are other ids or none at all."""
    if not isinstance(ids, torch.Tensor) or ids.is_floating_point():
        return None
    if ids.shape == inputs.shape and torch.equal(ids, inputs):
        return False
    return True if ids.shape == inputs.t().shape and torch.equal(ids, inputs.t()) else None
