"""Random canvases, the broken code that a generator would write for them, and their direct evaluation.

A canvas is drawn node by node. Each node knows how it is defined, how it would be written correctly, and, independently of
both, what it computes: `evaluate` walks the nodes with torch and never looks at the code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

V, D, T = 23, 4, 9
"""Vocabulary rows, width and length limit."""

HELPERS = """import torch
import torch.nn as nn
import torch.nn.functional as F


def scale(x):
    return x * 0.5


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class FeedForward(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x):
        return scale(self.down(F.silu(self.up(x))))


class Positions(nn.Module):
    def __init__(self, dim, length):
        super().__init__()
        self.register_buffer("table", torch.linspace(-1, 1, length * dim).reshape(1, length, dim))

    def forward(self, x):
        return x + self.table[:, : x.size(1)]


class Experts(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.router = nn.Linear(dim, 2)
        self.first, self.second = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x):
        share = torch.softmax(self.router(x), dim=-1)
        mixed = share[..., :1] * self.first(x) + share[..., 1:] * self.second(x)
        return mixed, share.mean()


class Gate(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.share = nn.Parameter(torch.full((dim,), 0.7))

    def forward(self, skip, branch):
        return skip + self.share * branch


"""

ADDITIONS = ("residual", "add", "add_norm")

Values = dict[str, torch.Tensor]
Operation = Callable[[Any, list[torch.Tensor]], torch.Tensor]


@dataclass
class Drawn:
    """A node of the canvas.

    Attributes:
        name: `<kind>_<index>`.
        inputs: names of the nodes that feed it.
        modules: attribute → constructor, as source.
        write: the variables of its inputs → the statements that a sound generator would write.
        operation: what it computes, from the instance and its input values.
        variable: the name that its statements bind.
        params: its settings in config.json.
    """

    name: str
    kind: str
    inputs: list[str]
    modules: dict[str, str]
    write: Callable[[list[str]], list[str]]
    operation: Operation
    variable: str
    params: dict[str, Any] = field(default_factory=dict)


@dataclass
class Export:
    """One export: source, config, what it computes, and the words of an error where that was taken away."""

    source: str
    config: dict[str, Any] | None
    nodes: list[Drawn]
    head: Operation
    open: str | None = None

    def evaluate(self, model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, V) of the canvas, node by node."""
        values: Values = {"input_0": ids}
        for node in self.nodes:
            values[node.name] = node.operation(model, [values[name] for name in node.inputs])
        return self.head(model, [values[self.nodes[-1].name]])


def attended(attention: nn.MultiheadAttention, x: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
    """Attention of x to itself or to a memory, from its parameters, written out."""
    heads, size = attention.num_heads, x.shape[-1] // attention.num_heads
    q = (x @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=-1)[0]
    _, k, v = ((x if memory is None else memory) @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=-1)
    q, k, v = (y.unflatten(-1, (heads, size)).transpose(1, 2) for y in (q, k, v))
    mixed = torch.softmax(q @ k.transpose(-1, -2) / size**0.5, dim=-1) @ v
    return F.linear(mixed.transpose(1, 2).flatten(-2), attention.out_proj.weight, attention.out_proj.bias)


def batch_first(module: nn.RNNBase, x: torch.Tensor) -> torch.Tensor:
    """A recurrent module over time, whichever axis it wants first."""
    return module(x)[0] if module.batch_first else module(x.transpose(0, 1))[0].transpose(0, 1)


class Painter:
    """Draws one canvas. `pick(options)` chooses one of them, `chance(percent)` says yes or no."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.pick = lambda options: draw(st.sampled_from(options))
        self.chance = lambda percent: draw(st.integers(0, 99)) < percent
        self.nodes: list[Drawn] = []
        self.stream: list[str] = []  # what carries the residual stream
        self.last: list[str] = ["input_0"]
        self.add_norms = self.chance(12)
        long = self.chance(30)
        self.kinds = {
            "attention": "multi_head_attention" if long else self.pick(["mhsa", "attention", "self_attention"]),
            "ffn": "feed_forward" if long else self.pick(["ffn", "mlp"]),
            "norm": self.pick(["layer_norm", "rms_norm"] if long else ["layernorm", "rmsnorm"]),
            "residual": self.pick(["residual", "add"]),
        }

    # ---- nodes ------------------------------------------------------------------------------------------------------

    def add(
        self, kind: str, modules: dict[str, str], write: Any, operation: Operation, inputs: Sequence[str] | None = None,
        variable: str = "{}_output", params: dict[str, Any] | None = None,
    ) -> str:  # fmt: skip
        """Append a node; `{}` stands for its name."""
        name = f"{kind}_{sum(node.kind == kind for node in self.nodes)}"
        named = {part.format(name): constructor for part, constructor in modules.items()}
        variable = variable.format(name)

        def written(values: list[str]) -> list[str]:
            lines = write(values) if callable(write) else [write]
            return [line.replace("{0}", name).replace("{v}", variable) for line in lines]

        def computed(model: Any, values: list[torch.Tensor], name: str = name) -> torch.Tensor:
            return operation(_Parts(model, name), values)

        given = list(self.last if inputs is None else inputs)
        self.nodes.append(Drawn(name, kind, given, named, written, computed, variable, params or {}))
        self.last = [name]
        return name

    def applied(
        self, kind: str, constructor: str, call: str = "self.{0}({x})", operation: Operation | None = None
    ) -> str:
        """A node with one module, applied to what precedes it."""
        compute = operation or (lambda m, v: m.only(v[0]))
        several = len(self.last) > 1

        def write(values: list[str]) -> list[str]:
            x = " + ".join(values)
            lines = ["embedded = " + x] if several else []
            return [*lines, "{v} = " + call.replace("{x}", "embedded" if several else x)]

        return self.add(kind, {"{}": constructor}, write, lambda m, v: compute(m, [sum(v[1:], v[0])]))

    def embeddings(self) -> None:
        """One or several token embeddings; positions inside, apart, in a helper class, or absent; a projection behind."""
        several, style = self.chance(15), self.pick(["inside", "apart", "helper", "absent", "bare"])
        narrow = style == "absent" and not several and self.chance(25)
        for _ in range(2 if several else 1):
            self.last = ["input_0"]
            if style == "inside" and not several:
                self.embedding_with_positions()
            else:
                self.plain_embedding(3 if narrow else D)
        names = [node.name for node in self.nodes]
        self.last = names
        if style == "apart":
            self.add(
                "position", {"{}": f"nn.Embedding({T}, {D})"},
                lambda v: [f"{{v}} = {' + '.join(v)} + self.{{0}}(torch.arange({self.ids}.shape[1], device={self.ids}.device))"],
                lambda m, v: sum(v[1:], v[0]) + m.only.weight[: v[0].shape[1]],
            )  # fmt: skip
        elif style == "bare":
            self.add(
                "position", {"{}": f"nn.Embedding({T}, {D})"},
                lambda v: [f"{{v}} = self.{{0}}(torch.arange({self.ids}.shape[1], device={self.ids}.device))"],
                lambda m, v: m.only.weight[: v[0].shape[1]].expand(v[0].shape[0], -1, -1), ["input_0"],
            )  # fmt: skip
            self.last = [*names, *self.last]
        elif style == "helper":
            self.applied("positional_encoding", f"Positions({D}, {T})")
        elif narrow:
            self.applied("linear", f"nn.Linear(3, {D})")
        self.stream = list(self.last)

    ids = "input_0_tokens"

    def plain_embedding(self, width: int) -> None:
        params = {"vocab_size": V, "max_seq_len": T, "d_model": width}
        self.add("embedding", {"{}": f"nn.Embedding({V}, {width})"}, f"{{v}} = self.{{0}}({self.ids})",
                 lambda m, v: m.only.weight[v[0]], params=params)  # fmt: skip

    def embedding_with_positions(self) -> None:
        lines = [
            f"B, T = {self.ids}.shape",
            f"positions = torch.arange(0, T, device={self.ids}.device)",
            f"tok = self.{{0}}_token({self.ids})",
            "pos = self.{0}_pos(positions)",
            "{v} = self.{0}_dropout(tok + pos)",
        ]
        parts = {
            "{}_token": f"nn.Embedding({V}, {D})",
            "{}_pos": f"nn.Embedding({T}, {D})",
            "{}_dropout": "nn.Dropout(0.0)",
        }
        self.add(
            "embedding", parts, lambda v: lines,
            lambda m, v: m.part("_token").weight[v[0]] + m.part("_pos").weight[: v[0].shape[1]],
            variable="{}_x", params={"vocab_size": V, "max_seq_len": T, "d_model": D},
        )  # fmt: skip

    def norm(self) -> None:
        kind = self.kinds["norm"]
        if "rms" in kind:

            def rms(m: Any, v: list[torch.Tensor]) -> torch.Tensor:
                scale = v[0].square().mean(-1, keepdim=True).add(m.only.eps).sqrt()
                return v[0] / scale * m.only.weight

            self.applied(kind, f"RMSNorm({D})", operation=rms)
        else:
            self.applied(kind, f"nn.LayerNorm({D})")

    def attention(self) -> None:
        name = self.kinds["attention"]
        if self.chance(80):
            self.applied(name, f"nn.MultiheadAttention({D}, 2, batch_first=True)", "self.{0}({x}, {x}, {x})[0]",
                         lambda m, v: attended(m.only, v[0]))  # fmt: skip
        else:
            self.applied(
                name, f"nn.MultiheadAttention({D}, 2)",
                "self.{0}(*[{x}.transpose(0, 1)] * 3)[0].transpose(0, 1)", lambda m, v: attended(m.only, v[0]),
            )  # fmt: skip

    def feed_forward(self) -> None:
        kind, style = self.kinds["ffn"], self.pick(["sequential", "helper", "parts", "experts"])
        if style == "sequential":
            self.applied(kind, f"nn.Sequential(nn.Linear({D}, 6), nn.GELU(), nn.Linear(6, {D}))")
        elif style == "experts":
            self.applied(
                "moe", f"Experts({D})", "self.{0}({x})[0]",
                lambda m, v: (
                    m.only.router(v[0]).softmax(-1).unsqueeze(-2)
                    @ torch.stack([m.only.first(v[0]), m.only.second(v[0])], -2)
                ).squeeze(-2),
            )  # fmt: skip
        elif style == "helper":
            self.applied(
                kind, f"FeedForward({D}, 6)",
                operation=lambda m, v: 0.5 * m.only.down(F.silu(m.only.up(v[0]))),
            )  # fmt: skip
        else:
            parts = {"{}_linear1": f"nn.Linear({D}, 6)", "{}_act": "nn.ReLU()", "{}_linear2": f"nn.Linear(6, {D})"}
            self.add(
                kind, parts,
                lambda v: [
                    *([f"embedded = {' + '.join(v)}"] if len(v) > 1 else []),
                    f"{{0}}_h = self.{{0}}_act(self.{{0}}_linear1({v[0] if len(v) == 1 else 'embedded'}))",
                    "{v} = self.{0}_linear2({0}_h)",
                ],
                lambda m, v: m.part("_linear2")(F.relu(m.part("_linear1")(sum(v[1:], v[0])))),
            )  # fmt: skip

    def other_mixer(self) -> None:
        style = self.pick(["conv1d", "lstm", "gru", "linear"])
        if style == "conv1d":
            self.applied("conv1d", f"nn.Conv1d({D}, {D}, 3, padding=1)", "self.{0}({x}.transpose(1, 2)).transpose(1, 2)",
                         lambda m, v: m.only(v[0].transpose(1, 2)).transpose(1, 2))  # fmt: skip
        elif style == "linear":
            self.applied("linear", f"nn.Linear({D}, {D})")
        else:
            first = self.chance(70)
            call = "self.{0}({x})[0]" if first else "self.{0}({x}.transpose(0, 1))[0].transpose(0, 1)"
            self.applied(style, f"nn.{style.upper()}({D}, {D}{', batch_first=True' if first else ''})", call,
                         lambda m, v: batch_first(m.only, v[0]))  # fmt: skip

    def activation(self) -> None:
        kind = self.pick(["gelu", "relu", "tanh", "activation"])
        if kind == "activation":
            self.applied(kind, "nn.SiLU()")
        elif self.chance(50):
            self.applied(kind, {"gelu": "nn.GELU()", "relu": "nn.ReLU()", "tanh": "nn.Tanh()"}[kind])
        else:
            function = getattr(F, kind) if kind != "tanh" else torch.tanh
            self.add(kind, {}, lambda v: [f"{{v}} = torch.{'tanh' if kind == 'tanh' else f'nn.functional.{kind}'}({v[0]})"],
                     lambda m, v: function(v[0]))  # fmt: skip

    def dropout(self) -> None:
        if self.chance(70):
            self.applied("dropout", "nn.Dropout(0.0)")
        else:
            self.add("dropout", {}, lambda v: [f"{{v}} = F.dropout({v[0]}, 0.0, self.training)"], lambda m, v: v[0],
                     params={"p": 0.0})  # fmt: skip

    def residual(self, terms: list[str]) -> None:
        """An addition of the stream and these branches; sometimes a module of two arguments does it."""
        inputs = [*self.stream, *terms]
        if len(inputs) == 2 and not self.add_norms and self.chance(12):
            self.add(
                self.kinds["residual"], {"{}": f"Gate({D})"}, lambda v: [f"{{v}} = self.{{0}}({v[0]}, {v[1]})"],
                lambda m, v: v[0] + m.only.share * v[1], inputs,
            )  # fmt: skip
        elif self.add_norms:
            self.add("add_norm", {"{}": f"nn.LayerNorm({D})"}, lambda v: ["{v} = self.{0}(" + " + ".join(v) + ")"],
                     lambda m, v: m.only(torch.stack(list(v)).sum(0)), inputs)  # fmt: skip
        else:
            self.add(self.kinds["residual"], {}, lambda v: ["{v} = " + " + ".join(v)],
                     lambda m, v: torch.stack(list(v)).sum(0), inputs)  # fmt: skip
        self.stream = list(self.last)

    # ---- blocks -----------------------------------------------------------------------------------------------------

    def canvas(self, may_branch: bool) -> None:
        """Embeddings, one to four blocks, and what stands behind them."""
        self.embeddings()
        before = self.chance(50) and not self.add_norms
        for _ in range(self.pick([1, 1, 2, 2, 3, 4])):
            if may_branch and self.chance(20):
                self.pick([self.parallel_block, self.merging_block, self.crossing_block, self.long_skip])()
            else:
                self.block(before, may_branch)
        if before and self.chance(60):
            self.norm()
        if self.chance(10):
            self.activation()

    def block(self, before: bool, may_branch: bool) -> None:
        """Attention (or another mixer) and feed-forward, each with its addition."""
        classic = may_branch and not before and self.chance(25)
        for sublayer in (self.pick([self.attention, self.attention, self.other_mixer]), self.feed_forward):
            if before:
                self.norm()
            sublayer()
            if self.chance(10):
                self.activation()
            if self.chance(20):
                self.dropout()
            self.residual(self.last)
            if not before and not self.add_norms:
                self.norm()
            if classic:  # the next skip is the normed value, which only edges or a comment can say
                self.stream = list(self.last)

    def parallel_block(self) -> None:
        """Attention and feed-forward side by side on one norm."""
        self.norm()
        normed = list(self.last)
        self.attention()
        attended_to = list(self.last)
        self.last = normed
        self.feed_forward()
        self.residual([*attended_to, *self.last])

    def merging_block(self) -> None:
        """Two branches that meet in a product, side by side, or in a module that takes both."""
        start = list(self.last)
        self.feed_forward()
        left = list(self.last)
        self.last = start
        self.applied("linear", f"nn.Linear({D}, {D})")
        pair, style = [*left, *self.last], self.pick(["multiply", "concat", "gate"])
        if style == "multiply":
            self.add("multiply", {}, lambda v: [f"{{v}} = {v[0]} * {v[1]}"], lambda m, v: v[0] * v[1], pair)
        elif style == "gate":
            self.add("gate", {"{}": f"Gate({D})"}, lambda v: [f"{{v}} = self.{{0}}({v[0]}, {v[1]})"],
                     lambda m, v: v[0] + m.only.share * v[1], pair)  # fmt: skip
        else:
            self.add("concat", {}, lambda v: [f"{{v}} = torch.cat([{v[0]}, {v[1]}], dim=-1)"],
                     lambda m, v: torch.cat(list(v), dim=-1), pair)  # fmt: skip
            self.applied("linear", f"nn.Linear({2 * D}, {D})")
        self.residual(self.last)

    def crossing_block(self) -> None:
        """Attention from what precedes to an earlier value."""
        memory = self.pick([node for node in self.nodes if node.kind not in ("embedding", "position")] or [None])
        if memory is None or memory.name in self.last or len(self.last) > 1 or memory.kind == "concat":
            return self.block(True, True)
        self.add(
            "cross_attention", {"{}": f"nn.MultiheadAttention({D}, 2, batch_first=True)"},
            lambda v: [f"{{v}}, _ = self.{{0}}({v[0]}, {v[1]}, {v[1]})"],
            lambda m, v: attended(m.only, v[0], v[1]), [*self.last, memory.name],
        )  # fmt: skip
        self.residual(self.last)

    def long_skip(self) -> None:
        """An addition of what precedes and an early value."""
        early = [node for node in self.nodes[:-1] if node.kind in ("residual", "add", "ffn", "mlp", "linear")]
        if not early or len(self.last) > 1 or "(3," in str(early[0].modules):
            return self.block(True, True)
        if early[0].name in self.last:
            return self.block(True, True)
        self.feed_forward()
        self.stream = [early[0].name]
        self.residual(self.last)

    def unexplained(self) -> str:
        """A node of which neither module nor name says what it computes."""
        style = self.pick(["activation", "wavelet", "mlp"])
        parts = {"{}_a": f"nn.Linear({D}, 3)", "{}_b": f"nn.Linear(3, {D})"} if style == "mlp" else {}
        return self.add(style, parts, lambda v: [f"{{v}} = {v[0]}"], lambda m, v: v[0])


def is_conventional(nodes: list[Drawn], node: Drawn) -> bool:
    """Whether the conventions alone say what feeds a node: what precedes it, and for additions the residual stream."""
    before = nodes[: nodes.index(node)]
    if node.kind == "embedding":
        return True
    additions = [one for one in before if one.kind in ADDITIONS]
    bare = {one.name for one in nodes if one.kind == "position" and one.inputs == ["input_0"]}
    if node.name in bare:
        return True
    start = [one.name for one in before if one.kind == "embedding" or one.name in bare]
    only_embeddings = all(one.name in start for one in before)
    previous = start if only_embeddings else [before[-1].name]
    if node.kind not in ADDITIONS:
        return node.inputs == previous
    prepared = [one for one in before[len(start) :][:1] if one.kind in ("position", "positional_encoding")]
    prepared += [one for one in before[len(start) :][:1] if one.kind == "linear" and "(3," in str(one.modules)]
    stream = [additions[-1].name] if additions else [prepared[0].name] if prepared else start
    behind = before[len(start) + len(prepared) :]
    projected = (
        not additions and bool(behind) and behind[0].kind in ("linear", "dropout")
    )  # may be meant as preparation
    return node.inputs == [*stream, *previous] and not projected


class _Parts:
    """The modules of one node of an instance."""

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.name = model, name

    @property
    def only(self) -> Any:
        return getattr(self.model, self.name)

    def part(self, suffix: str) -> Any:
        return getattr(self.model, self.name + suffix)


# ---- breaking it -----------------------------------------------------------------------------------------------------


@dataclass
class Evidence:
    """What the export says about inputs besides its statements.

    Attributes:
        comments: "none", "plain" (`# kind: name`) or "inputs" (with `<- a, b`).
        config: "none", "flat", "nodes", "edges", "connections", "inputs" or "metadata".
        dropped: nodes whose incoming edges are left out.
    """

    comments: str
    config: str
    dropped: set[str] = field(default_factory=set)

    @property
    def has_edges(self) -> bool:
        return self.config in ("edges", "connections", "inputs", "metadata")

    @property
    def lists_nodes(self) -> bool:
        return self.comments != "none" or self.config not in ("none", "flat")

    def says_inputs_of(self, node: Drawn) -> bool:
        return self.comments == "inputs" or (self.has_edges and node.name not in self.dropped)


@st.composite
def exports(draw: Any, may_be_open: bool = True) -> Export:
    """A canvas with a broken export of it."""
    painter = Painter(draw)
    evidence = Evidence(
        painter.pick(["plain", "plain", "inputs", "none"]),
        painter.pick(["none", "flat", "nodes", "edges", "edges", "connections", "inputs", "metadata"]),
    )
    painter.canvas(may_branch=evidence.has_edges or evidence.comments == "inputs")
    nodes, chance, pick = painter.nodes, painter.chance, painter.pick
    conventional = {node.name for node in nodes if is_conventional(nodes, node)}
    if evidence.has_edges and chance(40):  # complete edges otherwise
        evidence.dropped = {name for name in conventional if chance(40)}
    unexplained = painter.unexplained() if may_be_open and evidence.lists_nodes and chance(6) else None
    known = {n.name for n in nodes if n.name in conventional or evidence.says_inputs_of(n)}
    dropped = {name for name in _droppable(nodes, evidence) if name in known and chance(85)}
    if chance(35) and evidence.lists_nodes:
        params = evidence.config not in ("none", "flat")
        candidates = [n for n in nodes if n.name in known and (n.modules or not n.params or params)]
        dropped |= {node.name for node in candidates if chance(25)}
    if unexplained:
        dropped.add(unexplained)
    tables = [node for node in nodes if node.kind == "embedding"]
    untied = len(tables) > 1 or tables[0].params["d_model"] != D
    head = pick([*(["none"] if untied else ["none"] * 6), *["output_0", "lm_head", "output_0_proj"] * 2])
    returned = pick(["undefined", "undefined", "hidden", "called", "nothing", "tuple"])
    if not evidence.lists_nodes:
        returned = pick(["hidden", "called", "tuple"])
    source = _source(painter, evidence, dropped, head, returned)
    open_node = unexplained or ("output_0" if head == "none" and untied else None)
    return Export(source, _config(painter, evidence), nodes, _head(head, tables[0]), open_node)


def _droppable(nodes: list[Drawn], evidence: Evidence) -> list[str]:
    """Additions without module: the generator leaves them out first."""
    names = [node.name for node in nodes if node.kind in ADDITIONS and (not node.modules or node.kind == "add_norm")]
    readers = {name for node in nodes for name in node.inputs}
    return [name for name in names if evidence.lists_nodes or name in readers]


def _head(head: str, table: Drawn) -> Operation:
    if head != "none":
        return lambda model, values: F.linear(values[0], getattr(model, head).weight, getattr(model, head).bias)
    path = next(iter(table.modules))
    return lambda model, values: values[0] @ getattr(model, path).weight.T


def _source(painter: Painter, evidence: Evidence, dropped: set[str], head: str, returned: str) -> str:
    """The file: helpers, the class with its comments and modules, and a broken forward."""
    nodes, chance = painter.nodes, painter.chance
    lines = []
    entries = [("input_0", "input", [], {}), *((n.name, n.kind, n.inputs, n.modules) for n in nodes)]
    output = {} if head in ("none", "lm_head") else {head: f"nn.Linear({D}, {V})"}
    entries.append(("output_0", "output", [nodes[-1].name], output))
    for name, kind, inputs, modules in entries:
        if evidence.comments != "none":
            listed = f" <- {', '.join(inputs)}" if evidence.comments == "inputs" and inputs else ""
            lines.append(f"# {kind}: {name}{listed}")
        lines += [f"self.{part} = {constructor}" for part, constructor in modules.items()]
    if head == "lm_head":
        lines.append(f"self.lm_head = nn.Linear({D}, {V}, bias=False)")
    init = "\n".join(f"        {line}" for line in lines)
    metadata = f"    __metadata__ = {_graph(painter, evidence, 'edges')!r}\n\n" if evidence.config == "metadata" else ""
    body = "\n".join(f"        {line}" for line in _body(painter, dropped, head, returned))
    arguments = ", ".join(["self", painter.ids + painter.pick(["", ": torch.Tensor"]), *_arguments(painter, dropped)])
    docstring = '        """Run the canvas.\n\n        As drawn.\n        """\n' if chance(15) else ""
    return (
        f"{HELPERS}class Net(nn.Module):\n{metadata}    def __init__(self):\n        super().__init__()\n{init}\n\n"
        f"    def forward({arguments}):\n{docstring}{body}\n"
    )


def _arguments(painter: Painter, dropped: set[str]) -> list[str]:
    """Intermediate values as arguments, with or without default."""
    style = painter.pick(["all", "all", "default", "none", "some"])
    if style == "none":
        return []
    names = [n.variable for n in painter.nodes if n.name in dropped or painter.chance(15)]
    names = [name for name in names if style != "some" or painter.chance(50)]
    return [f"{name}=None" for name in names] if style == "default" else [f"{name}: torch.Tensor" for name in names]


def _body(painter: Painter, dropped: set[str], head: str, returned: str) -> list[str]:
    variables = {node.name: node.variable for node in painter.nodes} | {"input_0": painter.ids}
    kept = [node for node in painter.nodes if node.name not in dropped]
    groups = [node.write([variables[name] for name in node.inputs]) for node in kept]
    if painter.chance(25):
        order = painter.pick(["reversed", "halves", "odd"])
        half = len(groups) // 2
        shuffled = {
            "reversed": groups[::-1],
            "halves": groups[half:] + groups[:half],
            "odd": groups[1::2] + groups[::2],
        }
        groups = shuffled[order]
    last = variables[painter.nodes[-1].name]
    ends = {
        "undefined": ["return output_0_logits"],
        "hidden": [f"return {last}"],
        "called": [f"return self.{head}({last})"] if head != "none" else [f"return {last}"],
        "nothing": [],
        "tuple": [f"return output_0_logits, {last}"],
    }
    return [line for group in groups for line in group] + ends[returned] or ["pass"]


def _graph(painter: Painter, evidence: Evidence, style: str) -> dict[str, Any]:
    """A node list in the style of config.json, with its edges."""
    nodes = painter.nodes
    listed: list[dict[str, Any]] = [{"id": "input_0", "type": "input", "params": {}}]
    listed += [{"id": node.name, "type": node.kind, "params": node.params} for node in nodes]
    listed.append({"id": "output_0", "type": "output", "params": {}})
    edges = [(source, node.name) for node in nodes if node.name not in evidence.dropped for source in node.inputs]
    edges += [(nodes[-1].name, "output_0")] if not evidence.dropped else []
    if style != "nodes" and not evidence.dropped and evidence.comments != "none" and painter.chance(20):
        listed.reverse()  # complete edges say the order
    port = painter.pick(["", "", ".out", ":0"])
    config: dict[str, Any] = {"version": "1.0", "model_name": "Net", "nodes": listed}
    if style == "edges":
        config["edges"] = [{"source": source + port, "target": target} for source, target in edges]
    elif style == "connections":
        config["connections"] = [{"from": source + port, "to": target} for source, target in edges]
    elif style == "inputs":
        for entry in listed:
            entry["inputs"] = [source for source, target in edges if target == entry["id"]]
    return config


def _config(painter: Painter, evidence: Evidence) -> dict[str, Any] | None:
    if evidence.config in ("none", "metadata"):
        return None
    if evidence.config == "flat":
        return {"vocab_size": V, "d_model": D, "max_seq_len": T}
    return _graph(painter, evidence, evidence.config)
