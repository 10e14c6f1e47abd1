"""Looking at modules and parameters: names, calls in their order, tied weights, lines of source. Judges nothing."""

from __future__ import annotations

import contextlib
import re
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.adapters.model_adapter import AdaptedModel
from utils.adapters.model_outputs import tensors_in

Look = Callable[[str, torch.Tensor], None]


@contextlib.contextmanager
def watched(model: nn.Module, look: Look) -> Iterator[None]:
    """Within the block, hand every floating-point tensor that a submodule returns to `look(name, tensor)`.

    Inner modules come before the modules that call them. The model itself (name "") is left out, and so are compiled
    modules (TorchScript takes no hooks) and the nested tensors inside of a fused `nn.TransformerEncoder`.
    """

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            for _, tensor in tensors_in(output):
                if not tensor.is_nested:
                    look(name, tensor.detach())

        return hook

    handles = [module.register_forward_hook(hook_for(name)) for name, module in _hookable(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def calls(model: nn.Module) -> Iterator[set[str]]:
    """Within the block, collect the names of the submodules whose `forward` is called."""
    called: set[str] = set()

    def hook_for(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, given: called.add(name)

    handles = [module.register_forward_pre_hook(hook_for(name)) for name, module in _hookable(model)]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


def _hookable(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Submodules that take hooks, with their names."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if name and not isinstance(module, torch.jit.ScriptModule)
    ]


def owners(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Modules that hold parameters themselves: module name → {full parameter name: parameter}. Shared ones come once."""
    found: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        found.setdefault(name.rpartition(".")[0], {})[name] = parameter
    return found


def left_unused_by_library(model: nn.Module, unused: Collection[str]) -> dict[str, str]:
    """Of parameters that are not used, those that an installed package leaves so by design: name → class that could use it.

    A pooler that a head does not read, or cross-attention in a decoder without encoder, is written in the package's class and is
    for nobody else to mend. Who could use a parameter is the owner of the topmost module that lies idle with it.
    """
    found = {}
    for name in unused:
        user = type(_user_of(model, name, unused))
        if _is_installed(user):
            found[name] = user.__name__
    return found


def _user_of(model: nn.Module, parameter: str, unused: Collection[str]) -> nn.Module:
    path = parameter.rpartition(".")[0]
    while path and all(f"{path}.{name}" in unused for name, _ in model.get_submodule(path).named_parameters()):
        path = path.rpartition(".")[0]
    while path and type(model.get_submodule(path)).__module__.startswith("torch."):  # a container, or a plain layer
        path = path.rpartition(".")[0]
    return model.get_submodule(path)


def _is_installed(kind: type) -> bool:
    """Whether a class comes from a package beside torch, not from a file, a notebook or an export."""
    source = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    return any(Path(place) in Path(source).parents for place in places)


def role(name: str) -> str:
    """A name with its numbers blanked: siblings of a stack ("layers.0.fc", "layers.7.fc") have one role."""
    return re.sub(r"\d+", "#", name)


def token_embedding(adapted: AdaptedModel) -> tuple[str, nn.Embedding] | None:
    """The embedding with as many rows as the vocabulary; the first, where there are several."""
    for name, module in adapted.model.named_modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings == adapted.contract.vocab_size:
            return name, module
    return None


def output_head(adapted: AdaptedModel) -> tuple[str, nn.Parameter] | None:
    """The vocabulary-wide matrix that makes the logits: (name, weight). For a tied model that is the token embedding."""
    wide = [
        (name, parameter)
        for name, parameter in adapted.model.named_parameters()
        if parameter.dim() == 2 and parameter.shape[0] == adapted.contract.output_size
    ]
    embedding = token_embedding(adapted)
    heads = [(name, parameter) for name, parameter in wide if embedding is None or parameter is not embedding[1].weight]
    return heads[-1] if heads else (wide[0] if wide else None)


def is_tied(adapted: AdaptedModel) -> bool:
    """Whether the token embedding also makes the logits."""
    head, embedding = output_head(adapted), token_embedding(adapted)
    return head is not None and embedding is not None and head[1] is embedding[1].weight


def wake_zero_matrices(model: nn.Module) -> list[str]:
    """Fill trainable matrices that are all zero with small noise and return their names.

    A head or a branch that starts at zero is a known choice (zero-initialised output projections); what lies below it
    shows neither output nor gradient until the first step. Call within `preserved`.
    """
    zeros = [name for name, p in model.named_parameters() if p.dim() >= 2 and p.numel() > 0 and not p.any()]
    wake(model, zeros)
    return zeros


def wake(model: nn.Module, names: list[str]) -> None:
    """Fill the named parameters with small noise. Call within `preserved`."""
    with torch.no_grad():
        for name in names:
            parameter = model.get_parameter(name)
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
            parameter.copy_(noise * 0.02)


def where(adapted: AdaptedModel, module_name: str) -> str:
    """`name (model.py line 12)` where the source is known, else `name`; for the messages of checks."""
    source = getattr(adapted.completion, "source_before", "") or ""
    attribute = re.split(r"\.", module_name)[0]
    for number, line in enumerate(source.splitlines(), start=1):
        if re.match(rf"\s*self\.{re.escape(attribute)}\s*(:[^=]+)?=", line):
            return f"{module_name} (line {number} of the model's source)"
    return module_name or "the model itself"


def listed(names: list[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
