"""A copy of a model that runs patched source: same weights, same arguments, nothing of the user's touched.

Where only what runs in a call was changed, the copy's modules take the patched classes. Where a constructor was changed,
the model is built again, which needs the arguments it was built with. Only definitions are run, never the other statements
of the file, and they land in no module of Python's.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from utils._random import fixed_random
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.checks.cures.code import Code
from utils.errors import CheckError
from utils.loading.constructor import call_arguments
from utils.loading.model_loader import DEFAULT_SEED, ModelSource

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class UserSource:
    """The user's text of a model's class.

    Attributes:
        text: as it came, before anything was completed.
        file_name: of the file.
        home: the class that defines `forward`.
        class_names: classes of that text which the model is made of.
    """

    text: str
    file_name: str
    home: type
    class_names: frozenset[str]

    @classmethod
    def of(cls, adapted: AdaptedModel) -> UserSource | None:
        """The source of a model; None where none is known, as for models of installed packages."""
        text = adapted.completion.source_before
        home = next((kind for kind in type(adapted.model).__mro__ if "forward" in vars(kind)), None)
        if not text or home is None or home is nn.Module:
            return None
        kinds = {kind for module in adapted.model.modules() for kind in type(module).__mro__}
        names = frozenset(kind.__name__ for kind in kinds if kind.__module__ == home.__module__)
        return cls(_as_on_disk(text, home), adapted.completion.file_name, home, names)

    def code(self, text: str | None = None) -> Code:
        """The text, or a changed one, as cures see it."""
        return Code(self.text if text is None else text, self.class_names)


def _as_on_disk(text: str, home: type) -> str:
    """The text with the line ends of its file, which Python's own reading drops."""
    file = getattr(sys.modules.get(home.__module__), "__file__", None)
    if not file or not Path(file).is_file():
        return text
    data = Path(file).read_bytes()
    try:
        written = data.decode("utf-8")
    except UnicodeDecodeError:  # another encoding, which the text was decoded from
        return text
    return written if written.replace("\r\n", "\n").replace("\r", "\n") == text else text


def patched_model(adapted: AdaptedModel, source: UserSource, text: str, fresh: bool, share: bool) -> AdaptedModel:
    """The model with `text` as its source.

    Args:
        adapted: the model; it stays as it is.
        source: its source as it came.
        text: its source as it should be.
        fresh: weights as the patched constructor makes them, because the patch is about how they begin.
        share: whether the copy may hold the very parameters and buffers of the model; for a copy that is only looked at.

    Raises:
        CheckError: the patched source does not run, or the model's constructor cannot be called again.
    """
    code, before = source.code(text), source.code()
    try:
        namespace = _defined(code, adapted.model, source)
        if code.construction() == before.construction():
            model = _with_classes(adapted.model, namespace, source, share)
        else:
            model = _rebuilt(adapted, namespace, fresh)
        model.train(adapted.model.training)
        patched = adapt(model, adapted.config, _source_for(adapted, text))
    except CheckError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckError(f"{adapted.name} does not run with the patch: {type(error).__name__}: {reason}") from error
    patched.completion.file_name = source.file_name
    return patched


def _source_for(adapted: AdaptedModel, text: str) -> ModelSource | str:
    if adapted.source is None:
        return text
    files = {**adapted.source.files, adapted.source.file_name: text}
    return dataclasses.replace(adapted.source, text=text, files=files)


# ---- classes --------------------------------------------------------------------------------------------------------
def _defined(code: Code, model: nn.Module, source: UserSource) -> dict[str, Any]:
    """The names that the model's classes see, with their definitions run anew."""
    namespace: dict[str, Any] = {}
    for kind in reversed(source.home.__mro__):
        for function in vars(kind).values():
            if inspect.isfunction(function) and function.__module__ == source.home.__module__:
                namespace.update(function.__globals__)
                namespace.update(inspect.getclosurevars(function).nonlocals)
    body = ast.Module(body=list(code.definitions), type_ignores=[])
    exec(compile(body, f"<patched {source.file_name}>", "exec"), namespace)
    return namespace


def _with_classes(model: nn.Module, namespace: Mapping[str, Any], source: UserSource, share: bool) -> nn.Module:
    """A copy whose modules are of the patched classes."""
    kept = _tensors(model).values()
    shared = {id(tensor): tensor for tensor in kept if share or not tensor.is_leaf}
    twin = copy.deepcopy(model, shared)
    for module in twin.modules():
        if type(module).__module__ == source.home.__module__ and type(module).__name__ in source.class_names:
            module.__class__ = namespace[type(module).__name__]
    return twin


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, buffers and tensors kept as plain attributes, by path."""
    found = {}
    for path, module in model.named_modules():
        held = {**vars(module), **module._buffers, **module._parameters}
        found.update({f"{path}.{name}".lstrip("."): t for name, t in held.items() if isinstance(t, torch.Tensor)})
    return found


# ---- construction ---------------------------------------------------------------------------------------------------
def _rebuilt(adapted: AdaptedModel, namespace: dict[str, Any], fresh: bool) -> nn.Module:
    """The model built again by the patched constructor, with what was changed since the construction put back."""
    model = adapted.model
    cls = namespace.get(type(model).__name__)
    if not isinstance(cls, type):
        raise CheckError(f"The class {type(model).__name__} is not in the patched source.")
    arguments, reference = _arguments(adapted)
    with fixed_random(DEFAULT_SEED):
        built = _built(cls, arguments)
    _put_back(model, reference, built, fresh)
    return built.to(adapted.device)


def _arguments(adapted: AdaptedModel) -> tuple[dict[str, Any], nn.Module]:
    """The arguments of the constructor, and what it makes of them: proven to be the same modules.

    Raises:
        CheckError: they are not known.
    """
    model = adapted.model
    cls = type(model)
    known = adapted.source.arguments if adapted.source is not None else None
    if known is None:
        told = {n: v for n in inspect.signature(cls).parameters if isinstance(v := getattr(model, n, _PLAIN), _PLAIN)}
        module = ModuleType(cls.__module__)
        vars(module).update(vars(sys.modules.get(cls.__module__, module)))
        positional, named = call_arguments(cls, adapted.config, told, module)
        known = dict(inspect.signature(cls).bind(*positional, **named).arguments)
    with fixed_random(DEFAULT_SEED):
        reference = _built(cls, known)
    if _structure(reference) != _structure(model):
        raise CheckError(
            f"What the constructor of {cls.__name__} was called with is not known, so a patched copy cannot be built. Load the "
            "model with load_model(), or keep the arguments as attributes of the same names."
        )
    return known, reference


def _built(cls: type, arguments: Mapping[str, Any]) -> nn.Module:
    bound = inspect.signature(cls).bind_partial()
    bound.arguments.update(arguments)
    model: nn.Module = cls(*bound.args, **bound.kwargs)
    return model


def _structure(model: nn.Module) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    return kinds, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _put_back(model: nn.Module, reference: nn.Module, built: nn.Module, fresh: bool) -> None:
    """Give `built` the tensors of `model` that are not simply what the constructor made.

    What the constructor settles (a mask, a table, the fresh weights of a known seed) is for the patched constructor to say.
    """
    old, settled = _tensors(model), _tensors(reference)
    with torch.no_grad():
        for name, tensor in _tensors(built).items():
            mine = old.get(name)
            if mine is None or mine.shape != tensor.shape or (fresh and isinstance(mine, nn.Parameter)):
                continue
            made = settled.get(name)
            if made is None or not torch.equal(made.to(mine.device), mine):
                tensor.data.copy_(mine)
