"""The drawing behind an export: its nodes in canvas order, their modules, and what is known of their inputs.

Gathers config, comments and modules; leaves deciding what a missing value means to `graph_executor`.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from utils.loading.model_config import ModelConfig

_COMMENT = re.compile(r"^#+\s*(?P<kind>[A-Za-z][\w \-/]*?)\s*:\s*(?P<name>[A-Za-z_]\w*)\b(?P<rest>.*)$")
_INPUT_LIST = re.compile(r"^\W*(?:<-|<=|←|=|\bfrom\b|\binputs?\b\s*[:=]?)\s*(?P<names>.+)$")
_NUMBERED = re.compile(r"^(?P<node>[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z][A-Za-z0-9]*)*?_\d+)(?:_\w+)?$")

Flow = tuple[str, str]
"""(node, node that reads it)."""

ROLES: tuple[tuple[str, str], ...] = (
    ("input", r"^(input|inputs|tokens|tokeninput|inputids)$"),
    (
        "output",
        r"^(output|outputs|outputprojection|outputhead|outputlayer|lmhead|head|logits|unembedding|classifier|decoderhead)$",
    ),
    ("position", r"pos(ition)?(al|s)?(emb|enc|$)|^pos|^w?pe$|positional"),
    ("embedding", r"embed|^emb$|^wte$"),
    ("add_norm", r"^(add|residual|skip)(and)?(layer|rms)?norm$"),
    ("attention", r"attn|attention|mhsa|^mha$|^gqa$|^mqa$"),
    ("residual", r"^(residual|residualadd|residualconnection|add|addition|sum|skip|skipconnection)$"),
    ("norm", r"norm|^ln$"),
    ("ffn", r"^ffn|^mlp|feedforward"),
    ("moe", r"^moe|mixture|experts"),
    ("activation", r"^(activation|act|gelu|relu|silu|swish|tanh|sigmoid|elu|leakyrelu|mish|softplus|relu6|selu)$"),
    ("dropout", r"dropout"),
    ("conv", r"conv"),
    ("recurrent", r"^(lstm|gru|rnn|recurrent)"),
    ("concat", r"^(concat|concatenate|cat|merge)$"),
    ("product", r"^(multiply|mul|product|hadamard|elementwisemultiply)$"),
    ("linear", r"linear|proj|dense|^fc$"),
)
"""Role of a node by its kind, first match first; kinds are compared in lower case without separators."""


@dataclass(frozen=True)
class Node:
    """A node of the canvas.

    Attributes:
        name: `<kind>_<index>` as in code and config.
        kind: what the canvas calls it, such as "mhsa".
        role: what it does, one of `ROLES` or "other".
        modules: attributes of the model that belong to it, in the order of their definition.
        params: its parameters in config.json.
        inputs: names of the nodes that feed it, where edges or its comment say so.
        inputs_from: "edges", "comment", or "" where nothing says so.
        drawn: whether config or a comment shows it; other nodes are known by their module or value alone.
    """

    name: str
    kind: str
    role: str
    modules: tuple[str, ...] = ()
    params: dict[str, object] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    inputs_from: str = ""
    drawn: bool = False


@dataclass
class Canvas:
    """All nodes in canvas order.

    Attributes:
        nodes: the nodes.
        drawn: whether config or comments show a canvas; without one a source is a person's, and only what it leaves
            undefined is completed.
    """

    nodes: list[Node]
    drawn: bool

    def node_of(self, name: str) -> Node | None:
        """The node that a value or module belongs to: its name, or the longest node name that begins it."""
        owners = [node for node in self.nodes if name == node.name or name.startswith(node.name + "_")]
        return max(owners, key=lambda node: len(node.name), default=None)

    def get(self, name: str) -> Node | None:
        """The node of exactly this name."""
        return next((node for node in self.nodes if node.name == name), None)

    def before(self, node: Node) -> list[Node]:
        """Nodes that precede `node`, nearest first."""
        return self.nodes[: self.nodes.index(node)][::-1]

    def after(self, node: Node) -> list[Node]:
        """Nodes that follow `node`, nearest first."""
        return self.nodes[self.nodes.index(node) + 1 :]

    def insert_before(self, reader: Node | None, node: Node) -> None:
        """Put a node that only its readers mention before the first of them, or at the end."""
        self.nodes.insert(self.nodes.index(reader) if reader is not None else len(self.nodes), node)


def role_of(kind: str) -> str:
    """What a node of this kind does; "other" where the kind is unknown."""
    compact = re.sub(r"[^a-z0-9]", "", kind.lower())
    return next((role for role, pattern in ROLES if re.search(pattern, compact)), "other")


def numbered_node_of(name: str) -> str | None:
    """`residual_0` for `residual_0_output`; None for a name without an index."""
    match = _NUMBERED.match(name)
    return match["node"] if match else None


def make_node(name: str) -> Node:
    """A node of which only the name is known."""
    kind = re.sub(r"_\d+$", "", name)
    return Node(name, kind, role_of(kind))


def read_canvas(
    model: nn.Module, config: ModelConfig, class_node: ast.ClassDef, class_text: str, flows: Collection[Flow] = ()
) -> Canvas:
    """Gather the canvas from the config, the comments of the class, and the modules of the model.

    Args:
        model: owns the modules.
        config: lists nodes and edges, where it does.
        class_node: the class.
        class_text: its text, for the comments.
        flows: (node, node that reads it), as the statements show.

    Order: that of the config where it lists nodes, else of comments and module definitions as they stand in the source;
    where both exist, the one that edges and statements contradict less, sorted so that no edge runs backwards.
    """
    comments = _comments(class_text, class_node.lineno)
    placed = list(_places_in_source(model, class_node, comments).values())
    names = _names_in_code(config, class_text)
    config_nodes = {names[node.id]: node for node in config.nodes}
    edges = _edges(config, names, comments)
    order = _best_order(list(config_nodes), placed, [*edges, *flows])
    nodes: list[Node] = []
    for name in _sorted_by_edges(order, edges):
        drawn = config_nodes.get(name)
        kind = (drawn.type if drawn else comments[name][1] if name in comments else "") or make_node(name).kind
        params = dict(drawn.params) if drawn else {}
        nodes.append(Node(name, kind, role_of(kind), params=params, drawn=bool(drawn) or name in comments))
    joined = {name for edge in edges for name in edge}
    canvas = Canvas(_positions_behind(nodes, joined), drawn=bool(config_nodes or comments))
    _attach_modules(canvas, model)
    _attach_inputs(canvas, edges[: len(config.edges)], {name: entry[2] for name, entry in comments.items()})
    return canvas


def _names_in_code(config: ModelConfig, class_text: str) -> dict[str, str]:
    """Node id → name in the code: the id itself, or `<kind>_<k>` for the k-th node of a kind whose ids the code never uses."""
    words = set(re.findall(r"[A-Za-z_]\w*", class_text))
    known = {re.sub(r"\W", "_", node.id) for node in config.nodes}

    def used(name: str) -> bool:
        return any(word == name or word.startswith(name + "_") for word in words)

    names: dict[str, str] = {}
    count: dict[str, int] = {}
    for node in config.nodes:
        plain, kind = re.sub(r"\W", "_", node.id), re.sub(r"\W", "_", node.type)
        numbered = f"{kind}_{count.get(kind, 0)}"
        count[kind] = count.get(kind, 0) + 1
        names[node.id] = numbered if not used(plain) and numbered not in known and used(numbered) else plain
    return names


def _edges(
    config: ModelConfig, names: Mapping[str, str], comments: Mapping[str, tuple[int, str, tuple[str, ...]]]
) -> list[Flow]:
    """Edges of the config, in its order, and behind them those that comments name."""
    drawn = [(names.get(source, source), names.get(target, target)) for source, target in config.edges]
    return drawn + [(source, name) for name, (_, _, inputs) in comments.items() for source in inputs]


def _best_order(in_config: list[str], in_source: list[str], flows: Collection[Flow]) -> list[str]:
    """The order of config or source that fewer flows contradict; nodes that only the other shows are put in."""
    merged = _merge_orders(in_config, in_source)
    inner = {name for name in in_config if role_of(make_node(name).kind) not in ("input", "output")}
    if not in_config or inner - set(in_source):
        return merged
    return min(merged, _merge_orders(in_source, in_config), key=lambda order: _contradictions(order, flows))


def _contradictions(order: Sequence[str], flows: Collection[Flow]) -> int:
    place = {name: index for index, name in enumerate(order)}
    return sum(place.get(source, -1) > place.get(target, len(order)) for source, target in flows)


def _sorted_by_edges(order: list[str], edges: Collection[Flow]) -> list[str]:
    """`order`, with every node behind those that feed it; nodes of a circle keep their place."""
    feeding: dict[str, set[str]] = {name: set() for name in order}
    for source, target in edges:
        if source in feeding and target in feeding and source != target:
            feeding[target].add(source)
    done: list[str] = []
    rest = list(order)
    while rest:
        name = next((one for one in rest if not feeding[one] & set(rest)), rest[0])
        done.append(name)
        rest.remove(name)
    return done


def _positions_behind(nodes: list[Node], joined: Collection[str]) -> list[Node]:
    """The nodes, with positions that stand before the first embedding, and that no edge joins, behind the embeddings."""
    first = next((i for i, node in enumerate(nodes) if node.role == "embedding"), None)
    early = [node for node in nodes[: first or 0] if node.role == "position" and node.name not in joined]
    if first is None or not early:
        return nodes
    rest = [node for node in nodes if node not in early]
    end = next(i for i, node in enumerate(rest) if node.role == "embedding")
    while end < len(rest) and rest[end].role == "embedding":
        end += 1
    return [*rest[:end], *early, *rest[end:]]


def _comments(class_text: str, first_line: int) -> dict[str, tuple[int, str, tuple[str, ...]]]:
    """Node comments of a class: name → (line, kind, names after an arrow)."""
    found: dict[str, tuple[int, str, tuple[str, ...]]] = {}
    for token in tokenize.generate_tokens(io.StringIO(class_text).readline):
        match = _COMMENT.match(token.string) if token.type == tokenize.COMMENT else None
        if match is None or not _names_its_kind(match["kind"], match["name"]):
            continue
        listed = _INPUT_LIST.match(match["rest"])
        names = tuple(re.findall(r"[A-Za-z_]\w*", listed["names"])) if listed else ()
        line, kind, known = found.get(match["name"], (token.start[0] + first_line - 1, match["kind"], ()))
        found[match["name"]] = (line, kind, known or names)
    return found


def _names_its_kind(kind: str, name: str) -> bool:
    compact = re.sub(r"[^a-z0-9]", "", kind.lower())
    return re.sub(r"[^a-z0-9]", "", re.sub(r"_\d+$", "", name.lower())) == compact and bool(re.search(r"_\d+$", name))


def _places_in_source(
    model: nn.Module, class_node: ast.ClassDef, comments: dict[str, tuple[int, str, tuple[str, ...]]]
) -> dict[tuple[int, int], str]:
    """Where each node first shows: (line, running number) → node name, from comments and `self.<name> = …` lines."""
    places: dict[tuple[int, int], str] = {}
    seen: set[str] = set()
    entries = [(line, name) for name, (line, _, _) in comments.items()]
    children = [name for name, _ in model.named_children()]
    lines = _definition_lines(class_node)
    last = 0
    for child in children:
        last = lines.get(child, last)
        owner = _owner(child, comments)
        entries.append((last, owner))
    for number, (line, name) in sorted(enumerate(entries), key=lambda entry: (entry[1][0], entry[0])):
        if name not in seen:
            seen.add(name)
            places[(line, number)] = name
    return places


def _owner(module: str, known: Iterable[str]) -> str:
    owners = [name for name in known if module == name or module.startswith(name + "_")]
    return max(owners, key=len, default=None) or numbered_node_of(module) or module


def _definition_lines(class_node: ast.ClassDef) -> dict[str, int]:
    lines: dict[str, int] = {}
    for node in ast.walk(class_node):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
                lines.setdefault(target.attr, target.lineno)
    return lines


def _merge_orders(drawn: list[str], in_source: list[str]) -> list[str]:
    """The drawn order, with nodes that only the source shows put behind the one that precedes them there.

    They go behind drawn nodes without module too, such as the last residual; a head goes to the end.
    """
    order = list(drawn)
    previous: str | None = None
    for name in in_source:
        owner = next((known for known in order if name == known or name.startswith(known + "_")), None)
        if owner is None:
            at = order.index(previous) + 1 if previous in order else (len(order) if not drawn else 0)
            while drawn and previous in order and at < len(order) and order[at] not in in_source:
                at += 1
            order.insert(len(order) if role_of(make_node(name).kind) == "output" else at, name)
            owner = name
        previous = owner
    return order


def _attach_modules(canvas: Canvas, model: nn.Module) -> None:
    owned: dict[str, list[str]] = {}
    for child, _ in model.named_children():
        node = canvas.node_of(child)
        if node is not None:
            owned.setdefault(node.name, []).append(child)
    for index, node in enumerate(canvas.nodes):
        modules = tuple(owned.get(node.name, ()))
        role = node.role if node.role != "other" or not modules else _role_of_module(getattr(model, modules[0]))
        canvas.nodes[index] = replace(node, modules=modules, role=role)


def _role_of_module(module: nn.Module) -> str:
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (nn.Embedding, "embedding"),
        (nn.MultiheadAttention, "attention"),
        (nn.LayerNorm, "norm"),
        (nn.Linear, "linear"),
        (nn.RNNBase, "recurrent"),
        ((nn.Conv1d, nn.Conv2d), "conv"),
        (nn.Dropout, "dropout"),
    )
    return next((role for kind, role in kinds if isinstance(module, kind)), "other")


def _attach_inputs(canvas: Canvas, config_edges: Collection[Flow], comment_inputs: dict[str, tuple[str, ...]]) -> None:
    edges: dict[str, list[str]] = {}
    for source, target in config_edges:
        if source not in edges.setdefault(target, []):
            edges[target].append(source)
    for index, node in enumerate(canvas.nodes):
        owners = [(canvas.node_of(name), name) for name in comment_inputs.get(node.name, ())]
        # a name with an index may be that of a node which only a value shows; other words are prose
        named = tuple(owner.name if owner else name for owner, name in owners if owner or numbered_node_of(name))
        if node.name in edges:
            canvas.nodes[index] = replace(node, inputs=tuple(edges[node.name]), inputs_from="edges")
        elif named:
            canvas.nodes[index] = replace(node, inputs=named, inputs_from="comment")
