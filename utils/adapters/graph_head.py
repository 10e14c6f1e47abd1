"""What an export returns: logits that are there, a head that nobody called, or the tied token embedding.

Decides by width and by what is called; leaves writing statements to `graph_nodes`.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import torch
from torch import nn

from utils.adapters.canvas import Node
from utils.adapters.forward_source import RETURNED, Statement
from utils.errors import GraphCompletionError

if TYPE_CHECKING:
    from utils.adapters.graph_nodes import NodeWriter


class HeadWriter:
    """Writes the logits of one `forward`."""

    def __init__(self, writer: NodeWriter) -> None:
        self.writer = writer
        self.forward = writer.forward
        self.canvas = writer.canvas

    def ensure(self) -> None:
        """Where a drawn or completed model returns hidden states, or nothing, apply the head or tie it."""
        forward = self.forward
        output = next((n for n in self.canvas.nodes if n.role == "output"), None)
        if not forward.is_drawn() and not forward.completions:
            return None
        returns = [s for s in forward.placed if s.returns]
        if not returns:
            self.write("logits", output)
            return forward.emit(Statement.parse("return logits"))
        value, vocabulary = forward.values.get(RETURNED), self._vocabulary()
        last = forward.placed[-1]
        if not isinstance(value, torch.Tensor) or value.dim() != 3 or vocabulary is None or not last.returns:
            return None
        if value.shape[-1] == vocabulary or value.shape[:2] != forward.ids.shape:
            return None
        forward.placed.remove(last)
        body = ast.parse(last.text).body[-1]
        returned = body.value if isinstance(body, ast.Return) else None
        if returned is None:
            forward.placed.append(last)
            return None
        hidden = returned.id if isinstance(returned, ast.Name) else "hidden"
        if not isinstance(returned, ast.Name):
            forward.emit(Statement.parse(f"hidden = {ast.unparse(returned)}", frozenset(forward.globals)))
        self._write_head("logits", output, hidden)
        forward.emit(Statement.parse("return logits"))

    def write(self, name: str, node: Node | None) -> None:
        """Write the value that an export returns without ever computing it."""
        given = self.writer.given_inputs(node) if node is not None else []
        if len(given) == 1:
            hidden = self.forward.value_of(given[0])
        else:
            hidden = self._latest(node)
        self._write_head(name, node, hidden)

    def _latest(self, node: Node | None) -> str:
        """Output of the last node before the output node; without a canvas, the last tensor computed."""
        nodes = self.canvas.before(node) if node is not None else self.canvas.nodes[::-1]
        for previous in nodes:
            if previous.role in ("input", "output"):
                continue
            if previous.modules and self._is_head(previous):
                continue
            return (
                self.writer.preceding(node)
                if node is not None and previous.role == "embedding"
                else self.forward.value_of(previous)
            )
        tensors = [n for s in self.forward.placed for n in s.targets if self.forward.width(n) is not None]
        if not tensors:
            raise GraphCompletionError(
                "The forward computes nothing that could be turned into logits.", node.name if node else "output"
            )
        return tensors[-1]

    def _is_head(self, node: Node) -> bool:
        """A module that nobody calls, is vocabulary-wide, and whose node nobody draws a residual around."""
        return (
            all(part in self._uncalled() for part in node.modules)
            and self._out_width(getattr(self.forward.model, node.modules[-1])) == self._vocabulary()
        )

    def is_candidate(self, node: Node) -> bool:
        """A vocabulary-wide module behind everything else on the canvas is a head, not a node that was left out."""
        widths = {self._out_width(getattr(self.forward.model, part)) for part in node.modules}
        vocabulary = self.forward.config.vocab_size or max(
            (m.num_embeddings for m in self.forward.model.modules() if isinstance(m, nn.Embedding)), default=None
        )
        return vocabulary is not None and vocabulary in widths

    def _uncalled(self) -> list[str]:
        called = {attribute for s in [*self.forward.original, *self.forward.placed] for attribute in s.calls}
        return [child for child, _ in self.forward.model.named_children() if child not in called]

    @staticmethod
    def _out_width(module: nn.Module) -> int | None:
        linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
        return linears[-1].out_features if linears else None

    def _vocabulary(self) -> int | None:
        rows = [table.shape[0] for table in self.forward.token_tables]
        return self.forward.config.vocab_size or (rows[0] if rows else None)

    def _write_head(self, name: str, node: Node | None, hidden: str) -> None:
        owner = node if node is not None else Node("output", "output", "output")
        vocabulary, width = self._vocabulary(), self.forward.width(hidden)
        uncalled = self._uncalled()
        own = [part for part in owner.modules if part in uncalled]
        if own:
            expression = hidden
            for part in own:
                expression = self.writer.applied(owner, part, [expression])
            return self.writer.finish(owner, name, expression, 4, "the head that nobody called", (hidden,))
        if vocabulary is None:
            raise self.writer.error(
                owner, "the vocabulary size is unknown: config.json does not say it, and no embedding takes the ids", []
            )
        if width == vocabulary:
            return self.writer.finish(owner, name, hidden, 5, "already as wide as the vocabulary", (hidden,))
        heads = [c for c in uncalled if self._out_width(getattr(self.forward.model, c)) == vocabulary]
        if len(heads) > 1:
            raise self.writer.error(
                owner, "several vocabulary-wide modules are never called", [f"self.{head}({hidden})" for head in heads]
            )
        if heads:
            expression = self.writer.applied(owner, heads[0], [hidden])
            return self.writer.finish(
                owner, name, expression, 4, "the vocabulary-wide module that nobody called", (hidden,)
            )
        expression = f"{hidden} @ {self._tied_weight(owner, hidden, vocabulary, width)}.T"
        self.writer.finish(
            owner, name, expression, 5, "no head exists: tied to the token embedding", (hidden,), assumption=True
        )

    def _tied_weight(self, node: Node, hidden: str, vocabulary: int, width: int | None) -> str:
        tables = [table for table in self.forward.token_tables if table.shape[0] == vocabulary]
        fitting = [table for table in tables if table.shape[1] == width]
        if len(fitting) == 1:
            path = next(name for name, parameter in self.forward.model.named_parameters() if parameter is fitting[0])
            return "self" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path.split("."))
        sizes = [f"{table.shape[0]} × {table.shape[1]}" for table in tables] or ["none"]
        problem = "no head exists, and no token embedding has its width"
        if fitting:
            problem = "several token embeddings could be tied"
        raise self.writer.error(
            node, f"{problem}: {hidden} is {width} wide, token embeddings are {', '.join(sizes)}", []
        )
