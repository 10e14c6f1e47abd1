"""The canvas inside a config: nodes and edges in the styles that exports use. What a node computes is for adapters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from utils.errors import ConfigError

_ID_KEYS = ("id", "node_id", "nodeId", "name")
_TYPE_KEYS = ("type", "kind", "node_type", "op")
_PARAM_KEYS = ("params", "parameters", "config", "data", "attributes", "settings")
_INPUT_KEYS = ("inputs", "input", "inbound_nodes", "parents")
_SOURCE_KEYS = ("source", "from", "src", "source_id", "sourceId", "from_node", "id", "node", "node_id")
_TARGET_KEYS = ("target", "to", "dst", "dest", "target_id", "targetId", "to_node", "id", "node", "node_id")
_GRAPH_KEYS = ("graph", "canvas", "model", "architecture", "model_config")
_TERMINALS = frozenset({"input", "inputs", "input_ids", "tokens", "start", "output", "outputs", "logits", "end"})
"""Ends that some canvases draw without listing them as nodes: the model's own input and output."""
_MAX_NODES = 10_000


@dataclass(frozen=True)
class CanvasNode:
    """One node of the canvas.

    Attributes:
        id: the node's name, "mhsa_0".
        type: its kind as the canvas calls it, "attention".
        params: its settings, in JSON types.
        inputs: ids of the nodes that its own entry names as inputs, in order; edges given elsewhere are in
            `ModelConfig.edges`.
    """

    id: str
    type: str
    params: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The node in JSON types."""
        return {"id": self.id, "type": self.type, "params": dict(self.params), "inputs": list(self.inputs)}


def find_graph(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that holds "nodes": the config itself or one named part of it; empty where there is none."""
    for part in (raw, *(raw.get(key) for key in _GRAPH_KEYS)):
        if isinstance(part, Mapping) and isinstance(part.get("nodes"), list | tuple | Mapping):
            return part
    return {}


def read_nodes(graph: Mapping[str, Any], name: str) -> tuple[CanvasNode, ...]:
    """The nodes of a graph in canvas order.

    Raises:
        ConfigError: an entry is no object, has no id, or two nodes share one.
    """
    entries = _entries(graph.get("nodes", ()))
    if len(entries) > _MAX_NODES:
        raise ConfigError(f"{name} lists {len(entries):,} nodes; at most {_MAX_NODES:,} are read.")
    ids: list[str] = []
    for index, entry in enumerate(entries):
        identity = _first(entry, _ID_KEYS) if isinstance(entry, Mapping) else None
        if not isinstance(identity, str | int) or isinstance(identity, bool) or identity == "":
            raise ConfigError(f'{name}: nodes[{index}] must be an object with an "id", but is {str(entry)[:80]!r}.')
        ids.append(str(identity))
    twins = {identity for identity in ids if ids.count(identity) > 1} if len(set(ids)) != len(ids) else set()
    if twins:
        raise ConfigError(f"{name}: several nodes are called {', '.join(sorted(twins))}; each id may stand once.")
    known = frozenset(ids)
    return tuple(_node(entry, identity, known, name) for entry, identity in zip(entries, ids, strict=True))


def read_edges(graph: Mapping[str, Any], nodes: Sequence[CanvasNode], name: str) -> tuple[tuple[str, str], ...]:
    """(source, target) pairs from "edges", "connections" and per-node "inputs", each pair once, in that order.

    Raises:
        ConfigError: the edges are no list, one does not say where it begins or ends, or it names a node that is not
            listed (where nodes are).
    """
    known = frozenset(node.id for node in nodes)
    pairs: dict[tuple[str, str], None] = {}
    for key in ("edges", "connections", "links"):
        value = graph.get(key)
        if value is not None and not isinstance(value, list | tuple | Mapping):
            raise ConfigError(f'{name}: "{key}" must be a list of edges, but is {str(value)[:80]!r}.')
        for index, entry in enumerate(_entries(value)):
            where = f"{name}: {key}[{index}]"
            pair = _edge(entry, where, known)
            _refuse_unknown(pair, where, known)
            pairs[pair] = None
    for node in nodes:
        pairs.update({(source, node.id): None for source in node.inputs})
    return tuple(pairs)


def node_of_port(port: str, known: Iterable[str]) -> str:
    """The node that a port such as "embedding_0.out" belongs to; a port of no known node stays as it is."""
    known = frozenset(known)
    name = port
    while name not in known:
        cut = max(name.rfind(mark) for mark in ".:/#")
        if cut <= 0:
            return port
        name = name[:cut]
    return name


def _entries(value: Any) -> list[Any]:
    """A list of entries, also where it came as a mapping of id → entry."""
    if isinstance(value, Mapping):
        return [{"id": key, **entry} if isinstance(entry, Mapping) else entry for key, entry in value.items()]
    return list(value) if isinstance(value, list | tuple) else []


def _node(entry: Mapping[str, Any], identity: str, known: frozenset[str], name: str) -> CanvasNode:
    kind = _first(entry, _TYPE_KEYS)
    params: dict[str, Any] = {}
    for key in _PARAM_KEYS:
        if isinstance(entry.get(key), Mapping):
            inner = entry[key].get("params")  # some canvases wrap once more: {"data": {"params": {…}}}
            params.update(inner if isinstance(inner, Mapping) else entry[key])
    inputs = _ends(_first(entry, _INPUT_KEYS), _SOURCE_KEYS, f'{name}: the inputs of node "{identity}"', known)
    return CanvasNode(identity, kind if isinstance(kind, str) else "", params, inputs)


def _edge(entry: Any, where: str, known: frozenset[str]) -> tuple[str, str]:
    if isinstance(entry, list | tuple) and len(entry) == 2:
        source, target = entry
    elif isinstance(entry, Mapping):
        source, target = _first(entry, _SOURCE_KEYS[:7]), _first(entry, _TARGET_KEYS[:7])
    else:
        source = target = None
    if source is None or target is None:
        raise ConfigError(f'{where} must name its "source" and its "target", but is {str(entry)[:80]!r}.')
    return _end(source, _SOURCE_KEYS, where, known), _end(target, _TARGET_KEYS, where, known)


def _refuse_unknown(pair: tuple[str, str], where: str, known: frozenset[str]) -> None:
    """An end that no node answers to is a slip of the export; left alone it would silently drop the connection."""
    for end in pair if known else ():
        if end not in known and end.casefold() not in _TERMINALS:
            near = get_close_matches(end, sorted(known), n=1, cutoff=0.0)
            raise ConfigError(
                f'{where} ("{pair[0][:80]}" → "{pair[1][:80]}") names {end[:80]!r}, and no node is called that. '
                f"The nearest is {near[0]!r}."
            )


def _ends(value: Any, keys: tuple[str, ...], where: str, known: frozenset[str]) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, Mapping) and not any(key in value for key in keys):  # port → source
        value = list(value.values())
    entries = value if isinstance(value, list | tuple) else [value]
    return tuple(_end(entry, keys, where, known) for entry in entries)


def _end(value: Any, keys: tuple[str, ...], where: str, known: frozenset[str]) -> str:
    if isinstance(value, Mapping):
        value = _first(value, keys)
    if isinstance(value, list | tuple) and value:  # ["embedding_0", 0]: node and port number
        value = value[0]
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise ConfigError(f"{where} must name nodes, but holds {str(value)[:80]!r}.")
    return node_of_port(str(value), known)


def _first(entry: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((entry[key] for key in keys if entry.get(key) is not None), None)
