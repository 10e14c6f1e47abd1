"""Calls a class the way its constructor wants, from what the config knows. Chooses no class and reads no files."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from types import ModuleType, SimpleNamespace
from typing import Any

from utils.errors import ModelLoadError
from utils.loading.config_namespace import ConfigNamespace
from utils.loading.model_config import ModelConfig
from utils.loading.synonyms import SYNONYMS, canonical_name, spellings

_LOG = logging.getLogger(__name__)
_CONFIG_NAMES = frozenset(
    [
        "config",
        "cfg",
        "conf",
        "args",
        "hparams",
        "params",
        "hyperparameters",
        "model_config",
        "model_args",
        "model_params",
        "opt",
        "opts",
        "options",
    ]
)
_COEXISTING = frozenset({"num_encoder_layers", "num_decoder_layers"})
_MISSING = object()


def lookup(name: str, config: ModelConfig) -> Any:
    """The config's value for a parameter called `name`, or the module's `_MISSING` mark.

    A field or top-level key under any spelling wins; then node parameters, where every node that has one agrees.
    """
    canonical = canonical_name(name)
    raw = config.raw
    if raw.get(name) is not None:
        return raw[name]
    if canonical in ModelConfig.__dataclass_fields__ and canonical not in ("nodes", "edges", "raw", "model_name"):
        value = getattr(config, canonical)
        if value is not None:
            return value
    for spelling in spellings(name):
        if raw.get(spelling) is not None:
            return raw[spelling]
    for spelling in spellings(name):
        values = [node.params[spelling] for node in config.nodes if node.params.get(spelling) is not None]
        if values and all(value == values[0] for value in values):
            return values[0]
    return _MISSING


def flat_settings(config: ModelConfig) -> dict[str, Any]:
    """Every setting by name: raw keys, and each known quantity under all of its spellings."""
    settings: dict[str, Any] = {}
    for name in SYNONYMS:
        value = lookup(name, config)
        if value is not _MISSING:
            settings.update(dict.fromkeys(SYNONYMS[name], value))
    settings.update({key: value for key, value in config.raw.items() if key not in ("nodes", "edges", "connections")})
    return settings


def call_arguments(
    cls: type, config: ModelConfig, given: Mapping[str, Any], module: ModuleType
) -> tuple[list[Any], dict[str, Any]]:
    """Positional and named arguments for `cls(...)`.

    Args:
        cls: the class.
        config: what is known about the model.
        given: arguments of the caller; they win over the config.
        module: where annotations and config classes of the file are found.

    Raises:
        ModelLoadError: a required argument that nothing supplies, or a given one that the constructor does not take.
    """
    parameters = _parameters(cls)
    _refuse_unknown(cls, parameters, given)
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for parameter in parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            named.update({key: value for key, value in given.items() if key not in parameters})
            if parameter.name in _CONFIG_NAMES and len(parameters) == 1:
                named = {**flat_settings(config), **named}
            continue
        value = given.get(parameter.name, _MISSING)
        if value is _MISSING:
            value = _value_for(parameter, parameters, cls, config, module)
        if value is _MISSING:
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            positional.append(value)
        else:
            named[parameter.name] = value
    return positional, named


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    try:
        signature = inspect.signature(cls)
    except (TypeError, ValueError):
        return {}
    parameters = dict(signature.parameters)
    if {p.kind for p in parameters.values()} == {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        return {} if getattr(cls.__init__, "__module__", "").startswith("torch.") else parameters  # type: ignore[misc]
    return parameters


def _refuse_unknown(cls: type, parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> None:
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in given:
        if name not in parameters:
            near = get_close_matches(name, parameters, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ModelLoadError(
                f"{cls.__name__} takes no argument {name!r}.{hint} It takes: {', '.join(parameters) or 'none'}."
            )


def _value_for(
    parameter: inspect.Parameter,
    parameters: Mapping[str, inspect.Parameter],
    cls: type,
    config: ModelConfig,
    module: ModuleType,
) -> Any:
    """A value for one parameter, or `_MISSING` where its default stands."""
    annotation = _annotation(cls, parameter, module)
    if parameter.name in _CONFIG_NAMES or _is_config_class(annotation):
        return _config_object(parameter, annotation, config, module)
    value = (
        lookup(parameter.name, config) if _owns_synonyms(parameter.name, parameters) else _exact(parameter.name, config)
    )
    if value is _MISSING and parameter.default is parameter.empty:
        raise ModelLoadError(
            f"The constructor of {cls.__name__} requires {parameter.name!r}, and nothing supplies it. Known from the "
            f"config: {', '.join(config.known_keys()) or 'nothing'}. Pass it: load_model(..., {parameter.name}=...), or "
            f"add it to config.json."
        )
    return value


def _owns_synonyms(name: str, parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether `name` is the clearest spelling of its quantity among the parameters (the others mean something else)."""
    if name in _COEXISTING:
        return True
    rivals = [spelling for spelling in SYNONYMS.get(canonical_name(name), (name,)) if spelling in parameters]
    return not rivals or rivals[0] == name


def _exact(name: str, config: ModelConfig) -> Any:
    value = config.raw.get(name)
    return _MISSING if value is None else value


def _annotation(cls: type, parameter: inspect.Parameter, module: ModuleType) -> Any:
    """The parameter's annotation as an object, where it can be resolved; `Optional[X]` gives X."""
    annotation: Any = parameter.annotation
    if isinstance(annotation, str):
        try:
            annotation = typing.get_type_hints(cls.__init__, vars(module)).get(parameter.name, annotation)  # type: ignore[misc]
        except (NameError, TypeError, AttributeError, SyntaxError):
            annotation = vars(module).get(annotation.strip("\"' ").split(" ")[0], annotation)
    inner = [choice for choice in typing.get_args(annotation) if isinstance(choice, type) and choice is not type(None)]
    return inner[0] if len(inner) == 1 and typing.get_origin(annotation) not in (list, dict, tuple) else annotation


def _is_config_class(annotation: Any) -> bool:
    return isinstance(annotation, type) and (
        dataclasses.is_dataclass(annotation) or annotation.__name__.lower().endswith(("config", "args", "hparams"))
    )


def _config_object(parameter: inspect.Parameter, annotation: Any, config: ModelConfig, module: ModuleType) -> Any:
    """What a `config` argument is given."""
    settings = flat_settings(config)
    default = parameter.default
    if not settings and default is not parameter.empty:
        return _MISSING
    if annotation is dict or typing.get_origin(annotation) in (dict, Mapping):
        return settings
    kind = annotation if _is_config_class(annotation) else None
    if kind is None and default is not parameter.empty and default is not None:
        kind = type(default)
    kind = kind or _only_config_class(module)
    if kind in (dict, None) or kind in (SimpleNamespace, ConfigNamespace):
        return settings if kind is dict else ConfigNamespace(**settings)
    return _fill(kind, config, module)


def _only_config_class(module: ModuleType) -> type | None:
    """The one class of the file that is made to hold settings."""
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__.startswith(module.__package__ or module.__name__)
        and _is_config_class(value)
    ]  # fmt: skip
    named = [kind for kind in found if kind.__name__.lower().endswith(("config", "args", "hparams"))]
    choices = list(dict.fromkeys(named or found))
    return choices[0] if len(choices) == 1 else None


def _fill(kind: type, config: ModelConfig, module: ModuleType) -> Any:
    """An instance of a config class with the values that the config knows."""
    if any(base.__name__ in ("PretrainedConfig", "PreTrainedConfig") for base in kind.__mro__):
        return kind(**{key: value for key, value in config.to_dict().items() if key not in ("nodes", "edges")})
    positional, named = call_arguments(kind, config, {}, module)
    instance = kind(*positional, **named)
    if named or positional:
        return instance
    for name in [name for name in dir(instance) if not name.startswith("_")]:
        value = lookup(name, config)
        if value is not _MISSING and not callable(getattr(instance, name)):
            setattr(instance, name, value)
    return instance
