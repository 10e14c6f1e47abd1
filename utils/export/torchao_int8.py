"""int8 for torch: the weights of linear layers in 8 bits by torchao, in a `.pt2` file that opens without torchao.

Only weights are rounded, one scale for each output, so there is nothing to calibrate. Leaves what to keep in float to
`rounding` and capturing to `torch_export`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from utils._extras import require
from utils.errors import ExportError
from utils.export.artifact import Artifact
from utils.export.child import ChildRuntime
from utils.export.exporter import described, traced_shape_for
from utils.export.parity import Tolerance
from utils.export.rounding import RoundedExporter
from utils.export.sensitivity import ROWS, product_noise
from utils.export.subject import ExportSubject, LogitsOnly, copied, undisturbed
from utils.export.torch_export import capture, save_program
from utils.export.tracing import chatter_in_the_log, without_fast_path
from utils.progress import ProgressCallback


@dataclass(frozen=True)
class _Layers:
    """What is rounded.

    Attributes:
        subject: the model, all its linear layers as `nn.Linear`.
        noise: layers that can be rounded, by name → the noise that rounding brings into their output.
    """

    subject: ExportSubject
    noise: Mapping[str, float]


class TorchaoInt8Exporter(RoundedExporter):
    """Writes `.pt2` with int8 weights.

    Example:
        >>> artifact = TorchaoInt8Exporter.export(model, tokenizer, "model_int8.pt2", config)
        >>> torch.export.load(artifact).module()(input_ids=ids)     # elsewhere, with torch alone
    """

    format: ClassVar[str] = "int8_pt2"
    file_name: ClassVar[str] = "model_int8.pt2"
    tolerance: ClassVar[Tolerance] = replace(
        RoundedExporter.tolerance,
        reason="weights of linear layers are rounded to 256 steps, so the file is judged by the bits that this costs",
    )

    def __init__(self) -> None:
        """Check that torchao is installed; raises `MissingPackageError` otherwise."""
        require("torchao", extra="export", feature="int8 export for torch")

    def write(self, subject: ExportSubject, path: Path) -> Artifact:
        """Round every linear layer. See `Exporter.write`."""
        return self._rounded(subject, self._found(subject), path, ())

    def _source(self, subject: ExportSubject, folder: Path, child: ChildRuntime, progress: ProgressCallback) -> _Layers:
        return self._found(subject)

    def _found(self, subject: ExportSubject) -> _Layers:
        as_linears = _with_linear_layers(subject)
        return _Layers(as_linears, _noise_of(as_linears, self._samples(subject)[0]))

    def _noise(self, subject: ExportSubject, source: _Layers) -> Mapping[str, float]:
        return source.noise

    def _rounded(self, subject: ExportSubject, source: _Layers, path: Path, kept: Sequence[str]) -> Artifact:
        rounded = replace(source.subject, adapted=copied(source.subject.adapted))
        chosen = [name for name in source.noise if name not in kept]
        if not chosen:
            raise ExportError(
                f"{subject.name!r} calls no nn.Linear with weights of its own, and int8_pt2 rounds no others. Export int8, which "
                "rounds every product of the ONNX file."
            )
        with chatter_in_the_log():
            _round(rounded.adapted, {id(rounded.adapted.get_submodule(name)) for name in chosen})
        traced = traced_shape_for(subject.signature)
        program = capture(rounded, traced)
        facts = described(subject, traced, "torchao")
        facts |= {"int8": f"weights, {len(chosen)} layers rounded", "kept in float": ", ".join(kept) or "none"}
        save_program(program, path, rounded, facts)
        return Artifact(self.format, path, (path,), traced, facts)


def _round(model: nn.Module, chosen: set[int]) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # type: ignore[import-untyped]
    from torchao.utils import unwrap_tensor_subclass  # type: ignore[import-untyped]

    quantize_(model, Int8WeightOnlyConfig(), filter_fn=lambda module, name: id(module) in chosen)
    unwrap_tensor_subclass(model)  # as plain tensors and operators of torch: the file then needs no torchao


def _with_linear_layers(subject: ExportSubject) -> ExportSubject:
    """The model with every transformers `Conv1D`, a linear layer whose weights lie the other way, as a linear layer."""
    library = sys.modules.get("transformers.pytorch_utils")  # whoever holds such a layer has imported it
    if library is None or not any(isinstance(module, library.Conv1D) for module in subject.adapted.modules()):
        return subject
    adapted = copied(subject.adapted)
    for parent in list(adapted.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, library.Conv1D):
                setattr(parent, name, _as_linear(module))
    return replace(subject, adapted=adapted)


def _as_linear(layer: Any) -> nn.Linear:
    inputs, outputs = layer.weight.shape
    linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=layer.bias is not None)
    linear.weight = nn.Parameter(layer.weight.detach().T.contiguous())
    if layer.bias is not None:
        linear.bias = layer.bias
    return linear.train(layer.training)


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Plain linear layers by name whose weights no other layer holds: a tied head, rounded, would be there twice."""
    uses = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    own = {  # not `module.weight`: asking a parametrized layer for it may change its state, and it owns none
        name: (module, module._parameters.get("weight"))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    }
    return {
        name: module
        for name, (module, weight) in own.items()
        if weight is not None
        and uses[id(weight)] == 1
        and weight.is_floating_point()
        and min(weight.shape) > 1  # torchao rounds no empty matrix and no single row or column
    }


def _noise_of(subject: ExportSubject, feeds: Mapping[str, Any]) -> dict[str, float]:
    """Noise of each linear layer's output for one batch.

    A layer that the model never calls is not among them, nor one whose weights other code reads: where that does more than
    multiply, as `nn.MultiheadAttention` does, they go to operators that take no rounded ones.
    """
    linears = _linears(subject.adapted)
    given: dict[str, list[np.ndarray]] = {}

    def watch(name: str, layer: nn.Linear) -> Any:
        def hook(module: nn.Module, places: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
            rows = (*places, *named.values())[0]
            given.setdefault(name, []).append(rows.reshape(-1, rows.shape[-1])[:ROWS].float().numpy())

        return layer.register_forward_pre_hook(hook, with_kwargs=True)

    hooks = [watch(name, layer) for name, layer in linears.items()]
    try:
        with undisturbed(subject.adapted), without_fast_path(), _Readers() as readers:
            LogitsOnly(subject.adapted)(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: max(product_noise(rows, layer.weight.detach().T.numpy(), rounded_rows=False) for rows in given[name])
        for name, layer in linears.items()
        if name in given and id(layer.weight) not in readers.read
    }


class _Readers(TorchFunctionMode):
    """Notes parameters from which tensors are computed by anything but `F.linear`, which alone takes rounded weights.

    Attributes:
        read: their ids.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        made = function(*args, **named)
        computes = any(
            isinstance(leaf, torch.Tensor) for leaf in tree_leaves(made)
        )  # and asks not for a shape or a type
        if computes and function is not F.linear:
            self.read |= {id(leaf) for leaf in tree_leaves((args, named)) if isinstance(leaf, nn.Parameter)}
        return made
