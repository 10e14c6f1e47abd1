"""What an export returns: logits that are there, a head that nobody called, or the tied token embedding.

Decides by width and by what is called; leaves writing statements to `graph_nodes`.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import torch
from torch import nn

from utils.adapters.canvas import Node
from utils.adapters.completion import Completion
from utils.adapters.graph_embeddings import SOURCES
from utils.adapters.statements import Statement, replaced
from utils.errors import GraphCompletionError

if TYPE_CHECKING:
    from utils.adapters.graph_nodes import NodeWriter

_OUTPUT = Node("output", "output", "output")
_LOGIT_KEYS = ("logits", "output", "outputs", "scores", "predictions")


class HeadWriter:
    """Writes the logits of one `forward`."""

    def __init__(self, writer: NodeWriter) -> None:
        self.writer = writer
        self.forward = writer.forward
        self.canvas = writer.canvas

    def ensure(self) -> None:
        """Where a drawn or completed model returns hidden states, or nothing, apply the head or tie it."""
        forward = self.forward
        output = self._output()
        if not forward.is_drawn() and not forward.completions:
            return None
        if not any(s.returns for s in forward.placed):
            self.write("logits", output)
            return forward.emit(Statement.parse("return logits"))
        if output is not None and output.modules and not set(output.modules) & set(self._uncalled()):
            return None  # the head was applied, so what is returned is meant
        for statement in [s for s in forward.placed if s.returns]:
            self._ensure_returned(statement, output)

    def _ensure_returned(self, statement: Statement, output: Node | None) -> None:
        """Let the returns of a statement give logits, where they give hidden states and nothing else."""
        spots = []
        for returned in statement.returned():
            hidden = self._hidden_in(returned) if returned is not None else None
            if returned is None or hidden is None:
                continue
            text = ast.unparse(hidden)
            if statement.is_plain_return:
                return self._before_return(statement, returned, hidden, output)
            found = self._head_expression(output or _OUTPUT, text, self._width_of(hidden))
            spots.append((hidden, found[0]))
            self.forward.completions.append(Completion("logits", *found))
        if spots:
            position = self.forward.placed.index(statement)
            known = frozenset(self.forward.globals)
            mended = Statement.parse(replaced(statement.text, spots), known, statement.origin)
            self.forward.placed.remove(statement)
            after, self.forward.placed[position:] = self.forward.placed[position:], []
            for one in [mended, *after]:
                self.forward.forget_return(one)
                self.forward.emit(one)

    def _before_return(self, statement: Statement, returned: ast.expr, hidden: ast.expr, output: Node | None) -> None:
        forward = self.forward
        forward.placed.remove(statement)
        name = hidden.id if isinstance(hidden, ast.Name) else "hidden"
        if not isinstance(hidden, ast.Name):
            forward.emit(Statement.parse(f"hidden = {ast.unparse(hidden)}", frozenset(forward.globals)))
        self._write_head("logits", output, name)
        answer = replaced(statement.text, [(hidden, "logits")])
        if isinstance(returned, ast.Dict) and not any(hidden is value for value in _logit_values(returned)):
            rest = (ast.get_source_segment(statement.text, returned) or "{}")[1:]
            answer = replaced(statement.text, [(returned, f'{{"logits": logits, {rest}')])
        forward.forget_return(statement)
        forward.emit(Statement.parse(answer, frozenset(forward.globals), statement.origin))

    def _hidden_in(self, returned: ast.expr) -> ast.expr | None:
        """The part of what is returned that is hidden states, where no part is logits; None where nothing is amiss."""
        parts: list[ast.expr] = [returned]
        if isinstance(returned, ast.Tuple):
            parts = list(returned.elts)
        elif isinstance(returned, ast.Dict):
            parts = _logit_values(returned) or list(returned.values)
        values = [(part, self.forward.evaluated(ast.unparse(part))) for part in parts]
        vocabulary, shape = self._vocabulary(), self.forward.ids.shape
        tensors = [(p, v) for p, v in values if isinstance(v, torch.Tensor) and v.dim() == 3 and v.shape[:2] == shape]
        if vocabulary is None or not tensors or any(value.shape[-1] == vocabulary for _, value in tensors):
            return None
        return tensors[0][0]

    def _width_of(self, expression: ast.expr) -> int | None:
        value = self.forward.evaluated(ast.unparse(expression))
        return value.shape[-1] if isinstance(value, torch.Tensor) else None

    def write(self, name: str, node: Node | None) -> None:
        """Write the value that an export returns without ever computing it."""
        given = self.writer.given_inputs(node) if node is not None else []
        if len(given) == 1:
            hidden = self.forward.value_of(given[0])
        else:
            hidden = self._unread_behind(self._latest(node), node)
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
                if node is not None and previous.role in SOURCES
                else self.forward.value_of(previous)
            )
        tensors = [n for s in self.forward.placed for n in s.targets if self.forward.width(n) is not None]
        if not tensors:
            raise GraphCompletionError(
                "The forward computes nothing that could be turned into logits.", node.name if node else "output"
            )
        return tensors[-1]

    def _unread_behind(self, hidden: str, node: Node | None) -> str:
        """What a statement such as pooling makes of the last value, where nothing else reads it; else the last value."""
        placed = self.forward.placed
        read = {name for statement in [*placed, *self.forward.pending] for name in statement.reads}
        batch, width = self.forward.ids.shape[0], self.forward.width(hidden)
        found = []
        for name in dict.fromkeys(n for s in placed if s.origin is not None and not s.returns for n in s.targets):
            value = self.forward.values.get(name)
            fits = (
                isinstance(value, torch.Tensor)
                and value.dim() > 1
                and (value.shape[0], value.shape[-1]) == (batch, width)
            )
            if fits and name not in read and hidden in self.writer.embeddings.origins(name):
                found.append(name)
        if len(found) > 1:
            raise self.writer.error(
                node or _OUTPUT, "several values are made of the last node, and nothing reads them", found
            )
        return found[0] if found else hidden

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

    def is_unused(self, node: Node) -> bool:
        """A head that nobody calls."""
        return self.is_candidate(node) and not set(node.modules) & self.forward.called()

    def is_missing(self, result: object) -> bool:
        """Whether a forward that runs gives hidden states, or nothing, although there is a head for them."""
        if result is None:
            return True
        vocabulary, output = self._vocabulary(), self._output()
        if not isinstance(result, torch.Tensor) or result.dim() != 3 or vocabulary is None:
            return False
        if result.shape[-1] == vocabulary or result.shape[:2] != self.forward.ids.shape:
            return False
        if output is not None and output.modules and not set(output.modules) & set(self._uncalled()):
            return False
        if any(self._out_width(getattr(self.forward.model, child)) == vocabulary for child in self._uncalled()):
            return True
        return output is not None and any(t.shape[1] == result.shape[-1] for t in self.forward.token_tables)

    def _output(self) -> Node | None:
        """The node of the result: one with drawn inputs before others, and a drawn one before one that is only a module."""
        outputs = [node for node in self.canvas.nodes if node.role == "output"]
        return max(outputs, key=lambda node: (bool(node.inputs), node.drawn), default=None)

    def _uncalled(self) -> list[str]:
        called = self.forward.called()
        return [child for child, _ in self.forward.model.named_children() if child not in called]

    @staticmethod
    def _out_width(module: nn.Module) -> int | None:
        linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
        return linears[-1].out_features if linears else None

    def _vocabulary(self) -> int | None:
        """How wide logits are: what the config says where a table or a head has that size, else the rows of the table."""
        rows = [table.shape[0] for table in self.forward.token_tables]
        stated = self.forward.config.vocab_size
        if stated is None or not rows or stated in rows:
            return stated or (rows[0] if rows else None)
        heads = {self._out_width(module) for _, module in self.forward.model.named_children()}
        widths = {table.shape[1] for table in self.forward.token_tables}
        return stated if stated in heads - widths else rows[0]

    def _write_head(self, name: str, node: Node | None, hidden: str) -> None:
        owner = node if node is not None else _OUTPUT
        expression, evidence, reason, assumption = self._head_expression(owner, hidden, self.forward.width(hidden))
        self.writer.finish(owner, name, expression, evidence, reason, (hidden,), assumption)

    def _head_expression(self, owner: Node, hidden: str, width: int | None) -> tuple[str, int, str, bool]:
        """(logits made of hidden states, evidence, reason, whether it is an assumption)."""
        vocabulary, uncalled = self._vocabulary(), self._uncalled()
        own = [part for part in owner.modules if part in uncalled]
        if own:
            expression = hidden
            for part in own:
                expression = self.writer.applied(owner, part, [expression])
            return expression, 4, "the head that nobody called", False
        if vocabulary is None:
            raise self.writer.error(
                owner, "the vocabulary size is unknown: config.json does not say it, and no embedding takes the ids", []
            )
        if width == vocabulary:
            return hidden, 5, "already as wide as the vocabulary", False
        heads = [c for c in uncalled if self._out_width(getattr(self.forward.model, c)) == vocabulary]
        if len(heads) > 1:
            raise self.writer.error(
                owner, "several vocabulary-wide modules are never called", [f"self.{head}({hidden})" for head in heads]
            )
        if heads:
            expression = self.writer.applied(owner, heads[0], [hidden])
            return expression, 4, "the vocabulary-wide module that nobody called", False
        self._refuse_loose_matrices(owner, vocabulary, width)
        expression = f"{hidden} @ {self._tied_weight(owner, hidden, vocabulary, width)}.T"
        return expression, 5, "no head exists: tied to the token embedding", True

    def _refuse_loose_matrices(self, node: Node, vocabulary: int, width: int | None) -> None:
        """A matrix of the model itself that turns hidden states into logits is a head, and no module says how it is used."""
        parameters = dict(self.forward.model.named_parameters(recurse=False))
        shapes = {name: tuple(parameters[name].shape) for name in self.writer.unread_parameters()}
        fitting = [name for name, shape in shapes.items() if shape in ((vocabulary, width), (width, vocabulary))]
        fitting = [
            name for name in fitting if not any(parameters[name] is table for table in self.forward.token_tables)
        ]
        if fitting:
            problem = f"no module is a head, and the matrix {', '.join(fitting)}, which nothing reads, could be one"
            raise self.writer.error(node, problem, [f"<hidden> @ self.{name}" for name in fitting])

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


def _logit_values(returned: ast.Dict) -> list[ast.expr]:
    """Values of a dict whose keys say that they are logits."""
    keyed = zip(returned.keys, returned.values)
    return [value for key, value in keyed if isinstance(key, ast.Constant) and key.value in _LOGIT_KEYS]
