"""What the layers of a model give on some inputs, as rows that can be compared. Judges nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from utils.adapters.model_adapter import AdaptedModel
from utils.adapters.model_outputs import tensors_in
from utils.checks.sampling import run_model


@dataclass
class LayerOutput:
    """One call of one layer.

    Attributes:
        name: of the module; with "(call 2)" and so on where one module is called several times.
        rows: (N, C) float32, one row per token, patch or example; row n belongs to the same token in every layer that
            keeps the order of its tokens.
        change: norm of output − input, relative to that of the input; None where their shapes differ.
    """

    name: str
    rows: torch.Tensor
    change: float | None


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a model by name: the outermost numbered blocks, or else its parts that hold parameters.

    Blocks are members of a list ("h.0") that are made of several modules; a model without two of those, such as a canvas
    export, is taken apart at its first level that has several parts.
    """
    blocks: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        numbered = name.rpartition(".")[2].isdecimal() and any(True for _ in module.children())
        if numbered and not any(name.startswith(f"{outer}.") for outer in blocks):
            blocks[name] = module
    if len(blocks) >= 2:
        return blocks
    prefix, root = "", model
    while len(parts := [(n, m) for n, m in root.named_children() if any(True for _ in m.parameters())]) == 1:
        prefix, root = f"{prefix}{parts[0][0]}.", parts[0][1]
    return {f"{prefix}{name}": module for name, module in parts}


def layer_outputs(adapted: AdaptedModel, inputs: torch.Tensor) -> list[LayerOutput]:
    """Run the model without gradients in its present mode and keep what each layer gave, in the order of the calls.

    Args:
        adapted: the model.
        inputs: (B, T) ids with B ≠ T, so that (T, B, C) is told from (B, T, C); or (B, C, H, W) pixels.

    Raises:
        CheckError: the model raised.
    """
    found: list[LayerOutput] = []
    batch = inputs.shape[0]
    with torch.no_grad(), _kept(layers_of(adapted.model), batch, found):
        run_model(adapted, inputs)
    counts: dict[str, int] = {}
    for layer in found:
        counts[layer.name] = counts.get(layer.name, 0) + 1
        layer.name += f" (call {counts[layer.name]})" if counts[layer.name] > 1 else ""
    return found


@contextlib.contextmanager
def _kept(layers: dict[str, nn.Module], batch: int, found: list[LayerOutput]) -> Iterator[None]:
    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            results = [tensor for _, tensor in tensors_in(output) if tensor.dim() >= 2]
            if not results:
                return
            result = results[0].detach()
            before = next((t for _, t in tensors_in((*given, *named.values())) if t.shape == result.shape), None)
            found.append(LayerOutput(name, as_rows(result, batch), _change(before, result)))

        return hook

    handles = [module.register_forward_hook(hook_for(name), with_kwargs=True) for name, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def as_rows(values: torch.Tensor, batch: int) -> torch.Tensor:
    """(B, T, C), (T, B, C), (B, C, H, W) or (B, C) as (N, C) float32, the first example first."""
    if values.dim() == 3 and values.shape[0] != batch and values.shape[1] == batch:
        values = values.transpose(0, 1)
    if values.dim() == 4:
        values = values.permute(0, 2, 3, 1)
    return values.float().reshape(-1, values.shape[-1])


def _change(before: torch.Tensor | None, after: torch.Tensor) -> float | None:
    if before is None:
        return None
    size = before.float().norm().clamp(min=1e-30)
    return float((after.float() - before.float()).norm() / size)
