"""What a live model was built from: its constructor call as a recipe, and what was changed since. Guesses nothing unproven.

The call comes from `load_model` where that built the model, else from attributes that keep arguments, from the config, and
from defaults; the model is then built again and compared. What `recipes` cannot hold is an `ExportError` with its name.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from utils._random import fixed_random
from utils.adapters.attention import CAUSAL_CLASSES
from utils.adapters.model_adapter import AdaptedModel
from utils.errors import ExportError
from utils.export.recipes import CALL, FIELDS, TORCH, TUPLE, apply_changes, build
from utils.loading.constructor import lookup
from utils.loading.model_config import ModelConfig

_CONFIG_NAMES = (
    "config",
    "cfg",
    "conf",
    "args",
    "hparams",
    "params",
    "hyperparameters",
    "model_config",
    "opt",
    "options",
)
_PLAIN = (bool, int, float, str, type(None))
_ABSENT = object()
_SEED = 48611
"""Of the trial construction: another than that of `load_model`, so that tables which are drawn at random show."""


@dataclass
class Blueprint:
    """How a model is built from JSON alone.

    Attributes:
        recipe: the constructor call.
        changes: attributes that were set after construction: module → attribute → recipe.
        twins: names of modules that became causal twins of their class; see `adapters.attention`.
        rules: name of a module → rules by which its attention is causal; see `adapters.causal_mode`.
        classes: name → class, for every class that the recipe names.
    """

    recipe: Any
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    twins: list[str] = field(default_factory=list)
    rules: dict[str, list[list[Any]]] = field(default_factory=dict)
    classes: dict[str, type] = field(default_factory=dict)

    @property
    def made_causal(self) -> bool:
        """Whether modules were exchanged for causal ones."""
        return bool(self.twins or self.rules)


def blueprint_of(adapted: AdaptedModel) -> Blueprint:
    """Find out how `adapted.model` can be built anew, and prove that the same modules come out.

    Raises:
        ExportError: an argument of the constructor is not known, or cannot be written as JSON, or what is built differs.
    """
    model = adapted.model
    if isinstance(model, torch.jit.ScriptModule):
        raise ExportError(
            f"{adapted.name} is compiled by TorchScript and has no source. Export the module that was compiled."
        )
    made = Blueprint(None, twins=_twins(model), rules=_rules(model))
    known = _with_width(adapted)
    arguments = adapted.source.arguments if adapted.source is not None else None
    made.recipe = _Writer(made.classes, known).module(model, arguments)
    try:
        with fixed_random(_SEED):
            built = build(made.recipe, made.classes)
    except Exception as error:
        raise ExportError(
            f"{_name(model)} cannot be built again: called with {_told(made.recipe)} it raised {type(error).__name__}: {error}. "
            "Keep the constructor's arguments as attributes of the same names (self.d_model = d_model), or load the model "
            "with load_model(), which remembers them."
        ) from error
    made.changes = _changes(model, built, _Writer(made.classes, known))
    apply_changes(built, made.changes, made.classes)
    _refuse_difference(model, built)
    return made


def constants_of(adapted: AdaptedModel, classes: dict[str, type]) -> dict[str, Any]:
    """The contract's constant arguments as recipes; their classes are noted in `classes`.

    Raises:
        ExportError: JSON cannot hold one.
    """
    writer = _Writer(classes, adapted.config)
    constants = adapted.contract.constants
    return {name: writer.value(value, f"the constant argument {name}") for name, value in constants.items()}


def original_class(module: nn.Module) -> type:
    """The class that a module was built from: without what making it causal has exchanged."""
    for cls in type(module).__mro__:
        if "causal_rules" not in vars(cls):
            return next((kind for kind, twin in CAUSAL_CLASSES.items() if cls is twin), cls)
    return type(module)


# ---- writing objects ------------------------------------------------------------------------------------------------
@dataclass
class _Writer:
    """Writes objects as recipes and notes their classes."""

    classes: dict[str, type]
    config: ModelConfig

    def module(self, module: nn.Module, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The constructor call of a module; `arguments` are those that are known, None where none are."""
        cls = original_class(module)
        if isinstance(module, (nn.Sequential, nn.ModuleList)) and cls in (nn.Sequential, nn.ModuleList):
            items = [self.value(item, f"{cls.__name__}[{place}]") for place, item in enumerate(module)]
            positional = items if cls is nn.Sequential else [items]
            return {CALL: self._noted(cls), "positional": positional, "arguments": {}}
        if cls is nn.Embedding or cls is nn.Linear:
            return self._of_torch(module)
        return self._call(cls, self._arguments(module, cls, arguments))

    def value(self, value: Any, where: str) -> Any:
        """One value as a recipe.

        Raises:
            ExportError: JSON cannot hold it.
        """
        if isinstance(value, float) and not math.isfinite(value):
            raise ExportError(f"{where} is {value}, which JSON cannot hold.")
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, tuple):
            return {TUPLE: [self.value(item, where) for item in value]}
        if isinstance(value, (list, nn.ModuleList)) and not isinstance(value, nn.Module):
            return [self.value(item, where) for item in value]
        if isinstance(value, dict) and all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: self.value(item, f"{where}[{key!r}]") for key, item in value.items()}
        if isinstance(value, nn.Module):
            return self.module(value)
        named = _name_below_torch(value)
        if named is not None:
            return {TORCH: named}
        if isinstance(value, type) and "<locals>" not in value.__qualname__:
            raise ExportError(f"{where} is the class {value.__qualname__}, which config.json cannot hold.")
        return self._object(value, where)

    def _object(self, value: Any, where: str) -> Any:
        """An object that holds settings."""
        cls = type(value)
        if any(base.__name__ == "PreTrainedConfig" for base in cls.__mro__):
            written = json.loads(value.to_json_string(use_diff=False))
            settings = {k: v for k, v in written.items() if k not in ("transformers_version", "model_type")}
            return {CALL: self._noted(cls), "arguments": self.value(settings, where)}
        holds_settings = dataclasses.is_dataclass(cls) or isinstance(value, SimpleNamespace) or _is_plain_class(cls)
        if not holds_settings or not hasattr(value, "__dict__"):
            raise ExportError(f"{where} is of type {cls.__name__}, which config.json cannot hold.")
        values = {name: self.value(item, f"{where}.{name}") for name, item in vars(value).items()}
        return {FIELDS: self._noted(cls), "values": values}

    def _call(self, cls: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
        written: dict[str, Any] = {CALL: self._noted(cls), "arguments": {}}
        parameters = inspect.signature(cls).parameters
        for name, value in arguments.items():
            kind = parameters[name].kind
            recipe = self.value(value, f"the argument {name} of {cls.__name__}")
            if kind is inspect.Parameter.VAR_KEYWORD:
                written["arguments"].update(recipe)
            elif kind is inspect.Parameter.VAR_POSITIONAL:
                written.setdefault("positional", []).extend(recipe[TUPLE])
            elif kind is inspect.Parameter.POSITIONAL_ONLY:
                written.setdefault("positional", []).append(recipe)
            else:
                written["arguments"][name] = recipe
        return written

    def _of_torch(self, module: nn.Module) -> dict[str, Any]:
        sizes = ("num_embeddings", "embedding_dim", "padding_idx") if isinstance(module, nn.Embedding) else ()
        names = sizes or ("in_features", "out_features")
        arguments = {name: getattr(module, name) for name in names}
        if isinstance(module, nn.Linear):
            arguments["bias"] = module.bias is not None
        return self._call(original_class(module), arguments)

    def _arguments(self, module: nn.Module, cls: type, known: Mapping[str, Any] | None) -> dict[str, Any]:
        """The known arguments, or what attributes and the config tell of them."""
        if known is not None:
            return dict(known)
        found = {}
        for parameter in inspect.signature(cls).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            value = self._told_by(module, parameter)
            if value is not _ABSENT:
                found[parameter.name] = value
            elif parameter.default is parameter.empty:
                raise ExportError(
                    f"The constructor of {cls.__name__} requires {parameter.name!r}, and nothing tells what it was. Keep it as an "
                    f"attribute (self.{parameter.name} = {parameter.name}), name it in the config, or load the model with "
                    "load_model(), which remembers it."
                )
        return found

    def _told_by(self, module: nn.Module, parameter: inspect.Parameter) -> Any:
        """The value of an argument: an attribute of that name, else what the config says of a required one."""
        scalar = isinstance(parameter.default, (bool, int, float, str)) or parameter.annotation in (
            "int",
            "float",
            int,
            float,
        )
        for name in (parameter.name, f"_{parameter.name}"):
            value = getattr(module, name, _ABSENT)
            usable = value is not _ABSENT and not isinstance(value, torch.Tensor) and not inspect.ismethod(value)
            if usable and not (scalar and not isinstance(value, _PLAIN)):
                return value
        if parameter.name in _CONFIG_NAMES:
            kept = [value for name in _CONFIG_NAMES if (value := getattr(module, name, None)) is not None]
            if kept:
                return kept[0]
        if parameter.default is not parameter.empty:
            return _ABSENT
        value = lookup(parameter.name, self.config)
        return value if isinstance(value, _PLAIN) else _ABSENT

    def _noted(self, cls: type) -> str:
        name = cls.__name__
        if "<locals>" in cls.__qualname__:
            raise ExportError(
                f"The class {name} is defined inside a function, where no file can import it. Move it to the top of its file."
            )
        if self.classes.setdefault(name, cls) is not cls:
            raise ExportError(f"Two classes are called {name} ({cls.__module__} and {self.classes[name].__module__}).")
        return name


def _is_plain_class(cls: type) -> bool:
    """Whether a class only holds settings: it is the user's own, without bases and without an `__init__` that could do more."""
    return cls.__bases__ == (object,) and cls.__module__ not in ("builtins", "torch") and cls.__flags__ & (1 << 9) != 0


def _name_below_torch(value: Any) -> str | None:
    """The dotted name of a function, class or dtype that is found below torch under its own name: nn.functional.gelu."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    name = getattr(value, "__name__", None)
    if not (callable(value) and isinstance(name, str)):
        return None
    for place, home in (("nn.functional", nn.functional), ("nn", nn), ("", torch), ("special", torch.special)):
        if getattr(home, name, None) is value:
            return f"{place}.{name}".lstrip(".")
    return None


# ---- comparing ------------------------------------------------------------------------------------------------------
def _changes(model: nn.Module, built: nn.Module, writer: _Writer) -> dict[str, dict[str, Any]]:
    """Plain attributes of `model` that `built` has otherwise."""
    fresh = dict(built.named_modules())
    found: dict[str, dict[str, Any]] = {}
    for path, module in model.named_modules():
        if path not in fresh:
            continue
        other = vars(fresh[path])
        for name, value in vars(module).items():
            if name == "training" or name.startswith("_") or not _is_plain(value):
                continue
            if name not in other or not _equal(other[name], value):
                found.setdefault(path, {})[name] = writer.value(value, f"{path}.{name}".lstrip("."))
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return isinstance(value, _PLAIN) and not (isinstance(value, float) and not math.isfinite(value))


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _refuse_difference(model: nn.Module, built: nn.Module) -> None:
    """Whatever the weights will not bring must be there after construction."""
    for what, of in _ASPECTS.items():
        mine, its = of(model), of(built)
        if mine != its:
            differing = sorted(str(key) for key in mine.keys() | its.keys() if mine.get(key) != its.get(key))
            raise ExportError(
                f"{_name(model)} cannot be built again from config.json: its {what} would differ "
                f"({', '.join(differing[:4])}{', …' if len(differing) > 4 else ''}). Keep the constructor's arguments as "
                "attributes of the same names, or load the model with load_model(), which remembers them."
            )
    for name, tensor in _tensors_beside(model).items():
        twin = _tensors_beside(built).get(name)
        if twin is not None and not _same(tensor, twin):
            raise ExportError(
                f"{name} of {_name(model)} is in no state_dict, and the constructor makes it anew with other numbers. Register it "
                "with register_buffer(…, persistent=True)."
            )


_ASPECTS: dict[str, Callable[[nn.Module], dict[str, Any]]] = {
    "modules": lambda model: {name: original_class(module).__qualname__ for name, module in model.named_modules()},
    "weights": lambda model: {name: _kind(tensor) for name, tensor in model.state_dict().items()},
}
"""What must be equal, name by name."""


def _kind(tensor: Any) -> Any:
    """Shape and type; floating types count as one, since the folder holds float32 whatever the constructor makes."""
    if not isinstance(tensor, torch.Tensor):
        return type(tensor).__name__
    return tuple(tensor.shape), "floating" if tensor.is_floating_point() else tensor.dtype


def _tensors_beside(model: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors that the state dict leaves out: other buffers, and plain attributes."""
    found = {}
    for path, module in model.named_modules():
        beside = {name: module._buffers.get(name) for name in module._non_persistent_buffers_set}
        beside.update({name: value for name, value in vars(module).items() if not name.startswith("_")})
        for name, value in beside.items():
            if isinstance(value, torch.Tensor):
                found[f"{path}.{name}".lstrip(".")] = value
    return found


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return (
        torch.allclose(one.detach().double(), other.detach().double(), equal_nan=True)
        if not one.is_complex()
        else torch.equal(one, other)
    )


# ---- what made it causal --------------------------------------------------------------------------------------------
def _twins(model: nn.Module) -> list[str]:
    twins = tuple(CAUSAL_CLASSES.values())
    return [name for name, module in model.named_modules() if isinstance(module, twins)]


def _rules(model: nn.Module) -> dict[str, list[list[Any]]]:
    modules = {name: getattr(type(module), "causal_rules", ()) for name, module in model.named_modules()}
    return {name: [list(rule) for rule in rules] for name, rules in modules.items() if rules}


# ---- small --------------------------------------------------------------------------------------------------------
def _with_width(adapted: AdaptedModel) -> ModelConfig:
    """The config, with the width of the token embedding where it names none."""
    rows = adapted.contract.vocab_size
    tables = [m for m in adapted.model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == rows]
    if adapted.config.d_model is not None or not tables:
        return adapted.config
    return dataclasses.replace(adapted.config, d_model=tables[0].embedding_dim)


def _name(model: nn.Module) -> str:
    return original_class(model).__name__


def _told(recipe: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r:.40}" for name, value in recipe["arguments"].items()) or "no arguments"
