"""Where each value of a `forward` comes from: orders the statements and writes the ones that are missing.

Every statement is executed once on a tiny probe as it is placed, so that widths and kinds of results are known rather than
guessed. Reads the canvas and the statements; leaves parsing to `forward_source` and binding to `graph_executor`.
"""

from __future__ import annotations

import ast
import contextlib
from typing import Any

import torch
from torch import nn

from utils.adapters.canvas import Canvas, Node, make_node, numbered_node_of
from utils.adapters.completion import Completion
from utils.adapters.forward_source import RETURNED, Statement
from utils.adapters.graph_nodes import NodeWriter
from utils.adapters.graph_rewiring import rewire
from utils.adapters.probing import embedding_lookups, left_as_it_was, tables_of
from utils.adapters.signature import is_intermediate_name, is_output_of, probe_ids
from utils.errors import GraphCompletionError
from utils.loading.model_config import ModelConfig

RESIDUAL_READINGS = {
    "stream": "skip = the running residual stream (the latest residual, before the first one the embedding)",
    "sublayer_input": "skip = what the sublayer read (classic post-norm)",
}
"""Readings of a residual whose inputs nothing names."""

STANDARD_INPUT = "input_ids"
MASK = "attention_mask"


class ForwardCompleter:
    """Completes one `forward`.

    Attributes:
        completions: what was completed, in the order of execution.
        placed: the statements in the order in which they run.
        result: what the completed forward returns for the probe.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ModelConfig,
        canvas: Canvas,
        forward: ast.FunctionDef,
        statements: list[Statement],
        scope: dict[str, Any],
        residual: str,
    ) -> None:
        self.model, self.config, self.canvas, self.forward = model, config, canvas, forward
        self.residual = residual
        self.globals = scope
        self.original = statements
        self.pending = list(statements)
        self.placed: list[Statement] = []
        self.completions: list[Completion] = []
        self.result: Any = None
        self.values: dict[str, Any] = {}  # variable → what the probe gave it
        self.output_name: dict[str, str] = {}  # node → variable that holds its output now
        self.read_by: dict[str, tuple[str, ...]] = {}  # node → variables that it was applied to
        self.token_tables: list[torch.Tensor] = []
        self._produced: dict[str, tuple[Statement, str, Any]] = {}  # node → its last statement, variable, value
        self._open: list[tuple[object, str]] = []  # values and statements that are being settled, for cycles
        self.arguments = _arguments(forward)
        self.intermediates = [name for name in self.arguments if self._is_intermediate(name)]
        self.input_name = self._find_input()
        self._add_unlisted_nodes()
        self.producers = self._find_producers()
        self.writer = NodeWriter(self)

    # ---- what is wrong ----------------------------------------------------------------------------------------------

    def has_faults(self) -> bool:
        """Whether anything has to be looked at: a drawn canvas, an intermediate argument, an undefined or late value."""
        return bool(self.intermediates or self._undefined() or self._out_of_order() or self.is_drawn())

    def is_drawn(self) -> bool:
        """A canvas is there, and the code is about it: at least one node shows in a module, a value or an argument."""
        return self.canvas.drawn and any(node.modules for node in self.canvas.nodes)

    def _is_intermediate(self, name: str) -> bool:
        node = self.canvas.node_of(name)
        if node is not None:
            return node.role != "input" and is_output_of(name, node.name)
        written_first = self._written_before_read(name)
        required = name in _required(self.forward)
        return is_intermediate_name(name) and (required or written_first)

    def _written_before_read(self, name: str) -> bool:
        for statement in self.original:
            if name in statement.reads:
                return False
            if name in statement.writes:
                return True
        return False

    def _find_input(self) -> str:
        names = [name for name in self.arguments if name not in self.intermediates and name != MASK]
        return names[0] if names else STANDARD_INPUT

    def _undefined(self) -> list[str]:
        written = {name for statement in self.original for name in statement.writes}
        known = written | (set(self.arguments) - set(self.intermediates)) | {STANDARD_INPUT} | _variadic(self.forward)
        return [
            name for s in self.original for name in sorted(s.reads) if name not in known and name not in self.globals
        ]

    def _out_of_order(self) -> bool:
        written = set(self.arguments) | _variadic(self.forward)
        for statement in self.original:
            if statement.reads & {n for s in self.original for n in s.writes} - written:
                return True
            written |= statement.writes
        return False

    # ---- the canvas and the code ------------------------------------------------------------------------------------

    def _add_unlisted_nodes(self) -> None:
        """A numbered value that is read, never computed and drawn nowhere (residual_0) becomes a node before its reader."""
        for statement in self.original:
            for name in sorted(statement.reads):
                missing = name in self.intermediates or name in self._undefined()
                node_name = numbered_node_of(name)
                if not missing or node_name is None or self.canvas.node_of(name) is not None:
                    continue
                readers = [n for n in self.canvas.nodes if set(n.modules) & statement.calls]
                reader = readers[0] if readers else self._after_last_read(statement)
                self.canvas.insert_before(reader, make_node(node_name))

    def _after_last_read(self, statement: Statement) -> Node | None:
        """The node behind the last one that the statement reads, for a value that no node consumes."""
        read = [node for name in statement.reads if (node := self.canvas.node_of(name)) is not None]
        positions = [self.canvas.nodes.index(node) for node in read]
        following = self.canvas.nodes[max(positions) + 1 :] if positions else []
        if following:
            return following[0]
        return next((node for node in self.canvas.nodes if node.role == "output"), None)

    def _find_producers(self) -> dict[str, list[Statement]]:
        """Node → the statements that compute it: they write a value of its name, or call its modules."""
        producers: dict[str, list[Statement]] = {}
        for statement in self.original:
            if statement.returns:
                continue
            owner = self._owner(statement)
            if owner is not None:
                producers.setdefault(owner.name, []).append(statement)
        return producers

    def _owner(self, statement: Statement) -> Node | None:
        named = [node for name in statement.writes if (node := self.canvas.node_of(name)) is not None]
        called = [node for node in self.canvas.nodes if set(node.modules) & statement.calls]
        candidates = named or called
        return max(candidates, key=self.canvas.nodes.index, default=None)

    def variable_of(self, node: Node) -> str:
        """The variable that holds, or will hold, a node's output."""
        if node.role == "input":
            return self.input_name
        if node.name in self.output_name:
            return self.output_name[node.name]
        statements = self.producers.get(node.name, [])
        names = [name for s in statements for name in s.targets if self.canvas.node_of(name) == node]
        for preferred in (f"{node.name}_output", node.name):
            if preferred in names:
                return preferred
        if names:
            return names[-1]
        if statements and statements[-1].targets:
            return statements[-1].targets[0]
        wanted = [n for s in self.pending for n in sorted(s.reads) if self.canvas.node_of(n) == node]
        return wanted[0] if wanted else f"{node.name}_output"

    # ---- settling ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Place every statement, and write the missing ones.

        Raises:
            GraphCompletionError: a value stays open, or a statement fails on the probe.
        """
        with self._probe():
            self._note_arguments()
            if self.is_drawn():
                rewire(self)
            while self.pending:
                self._place(self.pending[0])
            self.writer.head.ensure()
        self.result = self.values.get(RETURNED)

    @contextlib.contextmanager
    def _probe(self) -> Any:
        self.ids = probe_ids(self.model, self.config)
        with left_as_it_was(self.model), embedding_lookups() as lookups:
            self._lookups = lookups
            self.values[STANDARD_INPUT] = self.values[self.input_name] = self.ids
            self.values[MASK] = None
            for name, default in _defaults(self.forward).items():
                if name not in self.intermediates and name not in self.values:
                    self.values[name] = default
            yield

    def call(self, module: nn.Module) -> Any:
        """What a module of the completed class gives for the probe."""
        with left_as_it_was(module):
            return module(self.ids, **dict.fromkeys(self.extra_inputs(), self.ids))

    def extra_inputs(self) -> list[str]:
        """Further arguments without default that are inputs of the model."""
        return [n for n in _required(self.forward) if n not in self.intermediates and n not in (self.input_name, MASK)]

    def _note_arguments(self) -> None:
        for name in self.extra_inputs():
            self.values[name] = self.ids
        for name in self.intermediates:
            node = self.canvas.node_of(name) or make_node(name)
            overwritten = any(name in statement.writes for statement in self.original)
            why = "written before it is read" if overwritten else "the output of a node, which no caller has"
            self.completions.append(
                Completion(name, "no argument", 3, f"{why}: {node.name} is computed in forward", assumption=False)
            )

    def _place(self, statement: Statement) -> None:
        """Place a statement after everything that it needs."""
        with self._settling(statement, statement.text):
            for earlier in self._must_come_before(statement):
                if earlier in self.pending:
                    self._place(earlier)
            for name in statement.ordered_reads():
                self.demand(name, statement)
        if statement not in self.pending:
            return
        moved = statement is not self.pending[0]
        self.pending.remove(statement)
        self.emit(statement)
        if moved and statement.targets:
            self.completions.append(
                Completion(
                    statement.targets[0], _right_side(statement), 3, "moved: it is read before the line where it stood"
                )
            )

    def _must_come_before(self, statement: Statement) -> list[Statement]:
        """Earlier statements that share a name which several statements write: their order is their meaning."""
        writers: dict[str, int] = {}
        for other in self.original:
            for name in other.writes:
                writers[name] = writers.get(name, 0) + 1
        several = {name for name, count in writers.items() if count > 1 and name != "_"}
        touched = (statement.reads | statement.writes) & several
        return [
            other
            for other in self.pending[: self.pending.index(statement)]
            if touched & (other.reads | other.writes) or statement.returns
        ]

    def demand(self, name: str, reader: Statement | None) -> None:
        """Make a variable available: by placing the statement that writes it, or by writing one.

        Raises:
            GraphCompletionError: nothing says what the variable is.
        """
        if name in self.values or name in self.globals:
            return None
        for statement in self.pending:
            if name in statement.writes:
                return self._place(statement)
        node = self.canvas.node_of(name)
        if node is None and reader is not None and reader.returns:
            node = next((n for n in self.canvas.nodes if n.role == "output"), None)
            return self.writer.head.write(name, node)
        if node is None:
            raise self.unknown(name, reader)
        with self._settling(name, name):
            self.writer.write(node, name)

    @contextlib.contextmanager
    def _settling(self, key: object, label: str) -> Any:
        keys = [open_key for open_key, _ in self._open]
        if key in keys:
            labels = [open_label.strip().splitlines()[-1].strip() for _, open_label in self._open[keys.index(key) :]]
            chain = " → ".join([*labels, labels[0]])
            node = self._owner(key) if isinstance(key, Statement) else self.canvas.node_of(str(key))
            name = node.name if node else labels[0]
            raise GraphCompletionError(
                f"{name} needs itself: {chain}. Name its inputs: draw the edges in config.json, or write the comment "
                f"'# {node.kind if node else 'kind'}: {name} <- <input>'.",
                name,
            )
        self._open.append((key, label))
        try:
            yield
        finally:
            self._open.pop()

    def unknown(self, name: str, reader: Statement | None) -> GraphCompletionError:
        """The error for a value that belongs to no node."""
        known = sorted(
            value for value, given in self.values.items() if isinstance(given, torch.Tensor) and value != RETURNED
        )
        where = f" It is read in: {reader.text.strip().splitlines()[-1].strip()}." if reader else ""
        return GraphCompletionError(
            f"{name} is never computed, and no node of the canvas, module or comment explains it.{where} Values computed so "
            f"far: {', '.join(known)}. Write the missing statement in forward, or rename the value to that of its node.",
            name,
            tuple(known),
        )

    # ---- executing --------------------------------------------------------------------------------------------------

    def emit(self, statement: Statement) -> None:
        """Execute a statement on the probe and place it."""
        scope = {**self.globals, **self.values, "self": self.model}
        try:
            exec(statement.program(), scope)  # type: ignore[arg-type]
        except Exception as error:  # the model's own statement fails: the message names it and the shapes that it met
            raise self._failing(statement, error) from error
        for name in [*statement.writes, RETURNED]:
            if name in scope:
                self.values[name] = scope[name]
        self.placed.append(statement)
        self.token_tables = tables_of(self.ids, self._lookups)
        owner = self._owner(statement) if statement.origin is not None and not statement.returns else None
        if owner is not None and self._is_last_of(statement, owner):
            variable = self.variable_of(owner)
            self._produced[owner.name] = (statement, variable, self.values.get(variable))
            origins = {s.origin for s in self.producers[owner.name]}
            ran = [s for s in self.placed if s.origin in origins]
            own = {name for s in ran for name in s.writes}
            self.read_by[owner.name] = tuple(n for s in ran for n in s.ordered_reads() if n not in own or len(ran) == 1)

    def _is_last_of(self, statement: Statement, owner: Node) -> bool:
        return not any(
            s.origin in {p.origin for p in self.producers[owner.name]} for s in self.pending if s is not statement
        )

    def _failing(self, statement: Statement, error: Exception) -> GraphCompletionError:
        node = self._owner(statement)
        shapes = ", ".join(
            f"{n}: {tuple(self.values[n].shape)}"
            for n in statement.ordered_reads()
            if isinstance(self.values.get(n), torch.Tensor)
        )
        line = statement.text.strip().splitlines()[-1].strip()
        return GraphCompletionError(
            f"{node.name if node else type(self.model).__name__}: the statement `{line}` fails with {type(error).__name__}: "
            f"{error}. It was given {shapes or 'no tensors'}. Check the widths of the modules that it uses.",
            node.name if node else type(self.model).__name__,
            (line,),
        )

    def value_of(self, node: Node) -> str:
        """Variable that holds a node's output at this point; computes the node first where nobody has.

        A value that was overwritten since is kept under the node's own name.
        """
        if node.role == "input":
            return self.input_name
        for statement in list(self.producers.get(node.name, [])):
            pending = next((s for s in self.pending if s.origin == statement.origin), None)
            if pending is not None:
                self._place(pending)
        if node.name in self._produced:
            return self._kept(node)
        if node.name not in self.output_name:
            variable = self.variable_of(node)
            with self._settling(variable, variable):
                self.writer.write(node, variable)
        return self.output_name[node.name]

    def superseded(self, node: Node) -> None:
        """From here on the node's output is what `output_name` says, not what its last statement bound."""
        self._produced.pop(node.name, None)

    def _kept(self, node: Node) -> str:
        statement, variable, value = self._produced[node.name]
        if variable not in statement.writes:
            return variable
        later = self.placed[self.placed.index(statement) + 1 :]
        if not any(variable in other.writes for other in later):
            return variable
        kept = f"{node.name}_output"
        if kept not in self.values:
            alias = Statement.parse(f"{kept} = {variable}")
            self.placed.insert(self.placed.index(statement) + 1, alias)
            self.values[kept] = value
            self.completions.append(Completion(kept, variable, 3, "kept, because the variable is used again later"))
        return kept

    def width(self, variable: str) -> int | None:
        """Size of the last axis of a variable; None where it is no tensor."""
        value = self.values.get(variable)
        return value.shape[-1] if isinstance(value, torch.Tensor) and value.dim() else None

    # ---- writing ----------------------------------------------------------------------------------------------------

    def forward_text(self) -> str:
        """Source of the completed `forward`, dedented."""
        arguments = self.forward.args
        returns = f" -> {ast.unparse(self.forward.returns)}" if self.forward.returns else ""
        annotation = next((a.annotation for a in arguments.args if a.arg == self.input_name and a.annotation), None)
        first = STANDARD_INPUT + (f": {ast.unparse(annotation)}" if annotation else "")
        others = [
            text
            for name, text in _argument_texts(self.forward)
            if name not in (*self.intermediates, self.input_name, MASK)
        ]
        required = [name for name in others if "=" not in name and not name.startswith("*")]
        optional = [name for name in others if name not in required]
        keyword_only = ["*", *required] if required and not any(name.startswith("*") for name in optional) else required
        parts = ["self", first, f"{MASK}=None", *(o for o in optional if not o.startswith("**")), *keyword_only]
        parts += [o for o in optional if o.startswith("**")]
        lines = [f"def forward({', '.join(parts)}){returns}:"]
        docstring = ast.get_docstring(self.forward)
        if docstring:
            lines += ['    """' + docstring.replace("\n", "\n    ").rstrip() + '"""']
        if self.input_name != STANDARD_INPUT:
            lines.append(f"    {self.input_name} = {STANDARD_INPUT}")
        for statement in self.placed:
            lines += [f"    {line}" if line.strip() else "" for line in statement.text.splitlines()]
        return "\n".join(lines)


def _arguments(forward: ast.FunctionDef) -> list[str]:
    arguments = forward.args
    return [a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]][1:]


def _variadic(forward: ast.FunctionDef) -> set[str]:
    return {argument.arg for argument in (forward.args.vararg, forward.args.kwarg) if argument is not None}


def _required(forward: ast.FunctionDef) -> list[str]:
    arguments = forward.args
    positional = [a.arg for a in [*arguments.posonlyargs, *arguments.args]]
    without = positional[1 : len(positional) - len(arguments.defaults)] if arguments.defaults else positional[1:]
    return without + [a.arg for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults) if default is None]


def _argument_texts(forward: ast.FunctionDef) -> list[tuple[str, str]]:
    """(name, text with annotation and default) of each argument but `self`, in order; `*args` and `**kwargs` included."""
    arguments = forward.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = list(zip(positional, defaults))[1:] + list(zip(arguments.kwonlyargs, arguments.kw_defaults))
    texts = []
    for argument, default in pairs:
        annotation = f": {ast.unparse(argument.annotation)}" if argument.annotation else ""
        value = f"={ast.unparse(default)}" if default is not None else ""
        texts.append((argument.arg, argument.arg + annotation + value))
    if arguments.vararg:
        texts.append((arguments.vararg.arg, f"*{arguments.vararg.arg}"))
    if arguments.kwarg:
        texts.append((arguments.kwarg.arg, f"**{arguments.kwarg.arg}"))
    return texts


def _defaults(forward: ast.FunctionDef) -> dict[str, Any]:
    """Defaults of the arguments that are plain constants; others count as None, which is what the probe passes."""
    found: dict[str, Any] = {}
    for name, text in _argument_texts(forward):
        if "=" in text:
            try:
                found[name] = ast.literal_eval(text.split("=", 1)[1])
            except (ValueError, SyntaxError):
                found[name] = None
        elif text.startswith("*"):
            found[name] = {} if text.startswith("**") else ()
    return found


def _right_side(statement: Statement) -> str:
    body = ast.parse(statement.text).body
    value = getattr(body[-1], "value", None) if body else None
    return ast.unparse(value) if isinstance(value, ast.AST) else statement.text.strip()
