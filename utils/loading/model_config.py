"""What is known about a model besides its code: config.json in each of its forms, as one object.

Reads flat configs, canvas node lists, Hugging Face configs and plain namespaces. What only the modules can tell is left
to `utils.adapters`, which fills it in with `dataclasses.replace`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import ConfigError
from utils.loading.canvas import CanvasNode, find_graph, read_edges, read_nodes
from utils.loading.strict_json import MAX_BYTES, parse_json
from utils.loading.synonyms import SYNONYMS

__all__ = ["CanvasNode", "ModelConfig"]

LARGEST_SIZE = 10**9
"""Largest vocabulary, width or length that a config may state; a mistake, or an attack on memory, beyond."""

_SIZES = ("vocab_size", "max_seq_len", "d_model", "num_layers", "num_heads")
_NO_CONFIGS = (bool, int, float, complex, bytes, bytearray, list, tuple, set, frozenset, range)
_NESTED = ("text_config", "model", "model_config", "config", "params", "hyperparameters", "architecture")


@dataclass(frozen=True)
class ModelConfig:
    """What is known about a model besides its code. Unknown sizes are None.

    Keys of the original config that are no field are attributes too: `config.dropout`.
    """

    vocab_size: int | None = None
    """Number of token ids."""
    max_seq_len: int | None = None
    """Longest sequence, in tokens."""
    d_model: int | None = None
    """Width of the residual stream."""
    num_layers: int | None = None
    num_heads: int | None = None
    model_name: str | None = None
    nodes: tuple[CanvasNode, ...] = ()
    """Canvas nodes in canvas order; empty where the config is flat."""
    edges: tuple[tuple[str, str], ...] = ()
    """(source, target) node ids, from "edges", "connections" and per-node "inputs"."""
    raw: dict[str, Any] = field(default_factory=dict)
    """The config as it came, in JSON types."""

    @classmethod
    def of(cls, config: Any) -> ModelConfig:
        """Make a ModelConfig of whatever describes a model.

        Args:
            config: None, a ModelConfig, a mapping (flat or node list), the path of a config.json, or any object whose
                attributes are the settings (SimpleNamespace, dataclass, Hugging Face PretrainedConfig).

        Raises:
            ConfigError: it is none of these (a number, a list, bytes), a size is no positive whole number, or the file
                cannot be read.
        """
        if config is None:
            return cls()
        if isinstance(config, ModelConfig):
            return config
        empty = isinstance(config, str) and not config.strip()  # as a path it would mean the working directory
        if empty or (isinstance(config, _NO_CONFIGS) and not hasattr(config, "_fields")):
            raise ConfigError(
                "A config must be a mapping, an object whose attributes are the settings, or the path of a config.json, "
                f"but is {'an empty text' if empty else _kind(config)}."
            )
        if isinstance(config, str | Path):
            return cls._from_path(Path(config))
        return cls._from_mapping(_settings_of(config), type(config).__name__)

    @classmethod
    def from_json(cls, text: str, name: str = "config.json") -> ModelConfig:
        """Read the text of a config.json.

        Raises:
            ConfigError: no JSON (with line and column), no object, duplicate keys, NaN or Infinity, nested more than 64
                levels, larger than 5 MB, or a size that is no positive whole number.
        """
        raw = parse_json(text, name)
        if not isinstance(raw, dict):
            raise ConfigError(f"{name} must hold a JSON object {{...}}, but holds {_kind(raw)}.")
        return cls._from_mapping(raw, name)

    @classmethod
    def _from_path(cls, path: Path) -> ModelConfig:
        path = path / "config.json" if path.is_dir() else path
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ConfigError(f"{path} holds {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are read.")
            return cls.from_json(path.read_text(encoding="utf-8-sig"), path.name)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The config {path} cannot be read: {error}") from error

    @classmethod
    def _from_mapping(cls, raw: Mapping[str, Any], name: str) -> ModelConfig:
        raw = {str(key): value for key, value in raw.items()}
        graph = find_graph(raw)
        nodes = read_nodes(graph, name)
        sizes = {size: _find_size(size, raw, nodes, name) for size in _SIZES}
        model_name = next((raw[key] for key in ("model_name", "name") if isinstance(raw.get(key), str)), None)
        return cls(
            **sizes, model_name=model_name or None, nodes=nodes, edges=read_edges(graph, nodes, name), raw=raw
        )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        raw = self.__dict__.get("raw", {})
        if name.startswith("__") or name not in raw:
            raise AttributeError(f"This config has no {name!r}; it knows {', '.join(self.known_keys()) or 'nothing'}.")
        return raw[name]

    def known_keys(self) -> tuple[str, ...]:
        """Names that can be asked for: fields that have a value, and the keys of the original config."""
        fields = [size for size in (*_SIZES, "model_name") if self.__dict__.get(size) is not None]
        return tuple(dict.fromkeys([*fields, *self.__dict__.get("raw", {})]))

    def updated(self, changes: Mapping[str, Any]) -> ModelConfig:
        """A new config in which `changes` (flat keys, any spelling) win over what was there."""
        replaced = {spelling for key in changes for spelling in SYNONYMS.get(_field_of(key), (key,))}
        kept = {key: value for key, value in self.to_dict().items() if key not in replaced}
        return ModelConfig._from_mapping({**kept, **changes}, "config")

    def to_dict(self) -> dict[str, Any]:
        """The config in JSON types: the original keys, and every field that has a value."""
        result = copy.deepcopy(self.raw)
        result.update(
            {name: getattr(self, name) for name in (*_SIZES, "model_name") if getattr(self, name) is not None}
        )
        if self.nodes and not find_graph(self.raw):
            result["nodes"] = [node.to_dict() for node in self.nodes]
            result["edges"] = [{"source": source, "target": target} for source, target in self.edges]
        return result

    def summary(self) -> str:
        """One line: the sizes that are known, and the canvas."""
        sizes = [f"{name}={getattr(self, name)}" for name in _SIZES if getattr(self, name) is not None]
        canvas = [f"{len(self.nodes)} nodes, {len(self.edges)} edges"] if self.nodes else []
        return ", ".join([*sizes, *canvas]) or "nothing known"


def _field_of(key: str) -> str:
    return next((name for name, spellings in SYNONYMS.items() if key in spellings), key)


def _find_size(size: str, raw: Mapping[str, Any], nodes: tuple[CanvasNode, ...], name: str) -> int | None:
    """The first value of any spelling: top level first, then known sub-configs, then node params in canvas order."""
    for place, settings in _places(raw, nodes):
        for spelling in SYNONYMS[size]:
            value = settings.get(spelling)
            if isinstance(value, list | tuple) and size in ("num_heads", "num_layers"):
                continue  # one number per stage, as in Swin: there is no single one
            if value is not None:
                return _positive_int(settings[spelling], f"{place}{spelling}", name)
    return None


def _places(raw: Mapping[str, Any], nodes: tuple[CanvasNode, ...]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "", raw
    for key in _NESTED:
        if isinstance(raw.get(key), Mapping) and "nodes" not in raw[key]:
            yield f"{key}.", raw[key]
    for node in nodes:
        yield f"{node.id}.", node.params


def _positive_int(value: Any, key: str, name: str) -> int:
    whole = (
        isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
    )  # infinity and NaN are not
    if not whole or not 0 < value <= LARGEST_SIZE:
        shown = repr(value) if len(repr(value)) < 80 else type(value).__name__
        most = f" of at most {LARGEST_SIZE:,}" if whole and value > 0 else ""
        raise ConfigError(f"{name}: {key} must be a positive whole number{most}, but is {shown}.")
    return int(value)


def _settings_of(config: Any) -> dict[str, Any]:
    """The settings that an object carries, in JSON types where that is possible."""
    if isinstance(config, Mapping):
        return {str(key): _plain(value) for key, value in config.items()}
    if callable(getattr(config, "to_dict", None)) and not isinstance(config, type):
        return {str(key): _plain(value) for key, value in config.to_dict().items()}
    names = [name for name in dir(config) if not name.startswith("_")]
    values = {name: getattr(config, name, None) for name in names}
    return {name: _plain(value) for name, value in values.items() if not callable(value)}


def _plain(value: Any, depth: int = 0) -> Any:
    """`value` in JSON types; what has no JSON form becomes its text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth > 32:
        raise ConfigError("The config is nested more than 32 levels deep.")
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth + 1) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value), depth + 1)
    if type(value).__name__ == "SimpleNamespace":
        return _plain(vars(value), depth + 1)
    try:
        return _plain(value.item(), depth + 1)  # numpy and torch scalars
    except (AttributeError, ValueError, TypeError, RuntimeError):
        return str(value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value}" if isinstance(value, int | float) else type(value).__name__)


def dumps(config: ModelConfig) -> str:
    """The config as JSON text, keys in order."""
    return json.dumps(config.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
