"""Where each value of a `forward` comes from: orders the statements and writes the ones that are missing.

Every statement is executed once on a tiny probe as it is placed, so that widths and kinds of results are known rather than
guessed. Reads the canvas and the statements; leaves parsing to `forward_source` and binding to `graph_executor`.
"""

from __future__ import annotations

import ast
import contextlib
import fnmatch
from typing import Any

import torch
from torch import nn

from utils.adapters.canvas import Canvas, Node, make_node
from utils.adapters.completion import Completion
from utils.adapters.forward_arguments import (
    MASK,
    STANDARD_INPUT,
    argument_names,
    defaults_of,
    required_names,
    signature_text,
    variadic_names,
)
from utils.adapters.graph_nodes import NodeWriter
from utils.adapters.graph_observation import Observation, missing_nodes, observe
from utils.adapters.graph_owners import StatementOwners, module_called
from utils.adapters.graph_placeholders import without_placeholders
from utils.adapters.graph_rewiring import contradiction, rewire
from utils.adapters.graph_unlisted import add_unlisted_nodes
from utils.adapters.probing import embedding_lookups, left_as_it_was, probe_ids, tables_of
from utils.adapters.signature import is_intermediate_name, is_output_of
from utils.adapters.statements import RETURNED, Statement, indented, replaced
from utils.errors import GraphCompletionError
from utils.loading.model_config import ModelConfig

RESIDUAL_READINGS = {
    "stream": "skip = the running residual stream (the latest residual, before the first one the embedding)",
    "sublayer_input": "skip = what the sublayer read (classic post-norm)",
}
"""Readings of a residual whose inputs nothing names."""


class ForwardCompleter:
    """Completes one `forward`.

    Attributes:
        completions: what was completed, in the order of execution.
        placed: the statements in the order in which they run.
        imports: lines that the file needs above its classes.
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
        self.arguments = argument_names(forward)
        children = [name for name, _ in model.named_children()]
        statements = [s.with_patterns(children) for s in statements]
        self.original = statements
        self.intermediates = [name for name in self.arguments if self._is_intermediate(name)]
        self.original, self.dropped = without_placeholders(statements, canvas, self.intermediates)
        self.pending = list(self.original)
        self.placed: list[Statement] = []
        self.completions: list[Completion] = []
        self.imports: list[str] = []
        self.result: Any = None
        self.values: dict[str, Any] = {}  # variable → what the probe gave it
        self.output_name: dict[str, str] = {}  # node → variable that holds its output now
        self.read_by: dict[str, tuple[str, ...]] = {}  # node → variables that it was applied to
        self.token_tables: list[torch.Tensor] = []
        self._produced: dict[str, tuple[Statement, str, Any]] = {}  # node → its last statement, variable, value
        self._before: dict[int | None, dict[str, Any]] = {}  # origin → values before that statement ran
        self._returned_by: int | None = None  # origin of the statement whose return a call reaches
        self._open: list[tuple[object, str]] = []  # values and statements that are being settled, for cycles
        self.input_name = self._find_input()
        self.seen: Observation | None = None  # what the forward does, where it runs
        self.missing: set[str] | None = None  # what that run shows to be missing
        add_unlisted_nodes(canvas, self.original, self.intermediates, self._undefined())
        self.owners = StatementOwners(canvas, self.original)
        self.producers = self.owners.producers
        self.writer = NodeWriter(self)

    # ---- what is wrong ----------------------------------------------------------------------------------------------

    def has_faults(self) -> bool:
        """Whether something is missing, wrong or late.

        A source without required intermediates is tried first: where it runs, only what the canvas draws and the run shows
        to be missing counts.
        """
        suspicious = bool(self.intermediates or self._undefined() or self._out_of_order())
        required = set(self.intermediates) & set(required_names(self.forward))
        if required or not (suspicious or self.is_drawn()):
            return suspicious
        self.ids = probe_ids(self.model, self.config)
        twin = rebound(self.model, type(self.model))
        with embedding_lookups() as lookups:
            self.seen = observe(twin, self.ids, dict.fromkeys(self.extra_inputs(), self.ids))
        if self.seen is None or any(" is None" in completion.reason for completion in self.dropped):
            self.seen = None
            return suspicious
        self.token_tables = tables_of(self.ids, lookups)
        self.missing = missing_nodes(self, self.seen) if self.is_drawn() else set()
        contradictions = [contradiction(self, node) for node in self.canvas.nodes]
        certain = any(found is not None and found.certain for found in contradictions)
        return bool(self.missing) or certain or (self.is_drawn() and self.writer.head.is_missing(self.seen.result))

    def called(self) -> set[str]:
        """Children of the model that some statement uses, or that ran."""
        used = {attribute for s in [*self.original, *self.placed] for attribute in s.calls}
        children = [name for name, _ in self.model.named_children()]
        used |= {name for pattern in used if "*" in pattern for name in fnmatch.filter(children, pattern)}
        return used | set(self.seen.gave if self.seen is not None else ())

    def is_drawn(self) -> bool:
        """A canvas is there, and the code is about it: at least one node shows in a module, a value or an argument."""
        return self.canvas.drawn and any(node.modules for node in self.canvas.nodes)

    def _is_intermediate(self, name: str) -> bool:
        """Whether an argument is the output of a node, which no caller has; not one that forward computes where it is None."""
        tests = [s for s in self.original if _asks_for_none(s, name)]
        if name not in required_names(self.forward) and any(s.calls for s in tests):
            return False
        node = self.canvas.node_of(name)
        if node is not None:
            return node.role != "input" and is_output_of(name, node.name)
        read = any(name in statement.reads for statement in self.original)
        required = name in required_names(self.forward)
        return is_intermediate_name(name) and (required or self._written_before_read(name) or (read and not tests))

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
        known = (
            written | (set(self.arguments) - set(self.intermediates)) | {STANDARD_INPUT} | variadic_names(self.forward)
        )
        return [
            name for s in self.original for name in sorted(s.reads) if name not in known and name not in self.globals
        ]

    def _out_of_order(self) -> bool:
        written = set(self.arguments) | variadic_names(self.forward)
        for statement in self.original:
            if statement.reads & {n for s in self.original for n in s.writes} - written:
                return True
            written |= statement.writes
        return False

    # ---- the canvas and the code ------------------------------------------------------------------------------------

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
            simple = isinstance(statements[-1].node, (ast.Assign, ast.AnnAssign, ast.AugAssign))
            return statements[-1].targets[0 if simple else -1]
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
                statement = self.pending[0]
                self._place(statement)
                if statement.is_plain_return:
                    self.pending.clear()  # what still stands behind it is never reached
            self.writer.head.ensure()
        self.result = self.values.get(RETURNED)
        if self.completions:
            self.completions[:0] = self.dropped

    @contextlib.contextmanager
    def _probe(self) -> Any:
        self.ids = probe_ids(self.model, self.config)
        self.instance = rebound(self.model, type(self.model))  # takes what statements assign to self
        with left_as_it_was(self.model), embedding_lookups() as lookups:
            self.instance.training = False  # what `_prove` compares with runs in eval mode too
            self._lookups = lookups
            self.values[STANDARD_INPUT] = self.values[self.input_name] = self.ids
            self.values[MASK] = None
            for name, default in defaults_of(self.forward).items():
                if name not in self.intermediates and name not in self.values:
                    self.values[name] = default
            yield

    def call(self, module: nn.Module) -> Any:
        """What a module of the completed class gives for the probe."""
        with left_as_it_was(module):
            return module(self.ids, **dict.fromkeys(self.extra_inputs(), self.ids))

    def extra_inputs(self) -> list[str]:
        """Further arguments without default that are inputs of the model."""
        return [
            n for n in required_names(self.forward) if n not in self.intermediates and n not in (self.input_name, MASK)
        ]

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
        with self._settling(statement, statement.label):
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
        self._refuse_stale(node, name, reader)

    def _refuse_stale(self, node: Node, name: str, reader: Statement | None) -> None:
        """A value that a loop reads, made of one that the loop changes, could be meant anew in every round."""
        changed = reader.writes & self.writer.embeddings.origins(name) if reader is not None else set()
        if reader is not None and changed and isinstance(reader.node, (ast.For, ast.While)):
            problem = f"a loop reads {name} and changes {', '.join(sorted(changed))}, of which it is made"
            raise self.writer.error(node, problem, ["once, before the loop", "anew in every round"])

    def is_placed(self, node: Node) -> bool:
        """Whether all statements of a node have run."""
        return node.name in self._produced

    @contextlib.contextmanager
    def _settling(self, key: object, label: str) -> Any:
        keys = [open_key for open_key, _ in self._open]
        if key in keys:
            labels = [open_label for _, open_label in self._open[keys.index(key) :]]
            chain = " → ".join([*labels, labels[0]])
            node = self.owners.owner(key) if isinstance(key, Statement) else self.canvas.node_of(str(key))
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
        where = f" It is read in: {reader.label}." if reader else ""
        return GraphCompletionError(
            f"{name} is never computed, and no node of the canvas, module or comment explains it.{where} Values computed so "
            f"far: {', '.join(known)}. Write the missing statement in forward, or rename the value to that of its node.",
            name,
            tuple(known),
        )

    # ---- executing --------------------------------------------------------------------------------------------------

    def emit(self, statement: Statement) -> None:
        """Execute a statement on the probe and place it."""
        statement = self._unpacked(statement)
        self._before[statement.origin] = {name: _copied(value) for name, value in self.values.items()}
        scope = self.scope()
        returned = scope.pop(RETURNED, None)
        try:
            exec(statement.program(), scope)  # type: ignore[arg-type]
        except (
            Exception,
            SystemExit,
        ) as error:  # the model's own statement fails: the message names it and the shapes that it met
            raise self._failing(statement, error) from error
        for name in statement.writes:
            if name in scope:
                self.values[name] = scope[name]
        if RETURNED in scope or returned is not None:  # the first return is the one that a call reaches
            self.values[RETURNED] = returned if returned is not None else scope[RETURNED]
            self._returned_by = self._returned_by if returned is not None else statement.origin
        self.placed.append(statement)
        self.token_tables = tables_of(self.ids, self._lookups)
        owner = self.owners.owner(statement) if statement.origin is not None and not statement.returns else None
        if owner is not None and self._is_last_of(statement, owner):
            variable = self.variable_of(owner)
            self._produced[owner.name] = (statement, variable, self.values.get(variable))
            origins = {s.origin for s in self.producers[owner.name]}
            ran = [s for s in self.placed if s.origin in origins]
            own = {name for s in ran for name in s.writes}
            self.read_by[owner.name] = tuple(n for s in ran for n in s.ordered_reads() if n not in own or len(ran) == 1)

    def _unpacked(self, statement: Statement) -> Statement:
        """`v = self.attention(…)[0]` where the call gives a tuple that the statements behind read as a tensor."""
        name, value = next(iter(statement.targets), ""), statement.value
        targets = getattr(statement.node, "targets", [getattr(statement.node, "target", None)])
        plain = isinstance(statement.node, (ast.Assign, ast.AnnAssign)) and isinstance(targets[0], ast.Name)
        if not plain or statement.origin is None or not isinstance(value, ast.Call) or module_called(value) is None:
            return statement
        readers = [s for s in self.original if name in s.reads and s.origin != statement.origin]
        if not readers or any(s.takes_apart(name) for s in readers):
            return statement
        given = self.evaluated(ast.unparse(value))
        if not isinstance(given, tuple) or not given or not isinstance(given[0], torch.Tensor):
            return statement
        text = replaced(statement.text, [(value, f"{ast.get_source_segment(statement.text, value)}[0]")])
        self.completions.append(Completion(name, f"{ast.unparse(value)}[0]", 4, "the first of its results"))
        return Statement.parse(text, frozenset(self.globals), statement.origin).reading(statement.calls)

    def scope(self) -> dict[str, Any]:
        """Names that a statement sees at this point."""
        return {**self.globals, **self.values, "self": self.instance}

    def evaluated(self, expression: str) -> Any:
        """What an expression gives for the probe; None where it cannot be evaluated, as in a branch that was not taken."""
        try:
            return eval(expression, self.scope())
        except (ArithmeticError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError):
            return None

    def forget_return(self, statement: Statement) -> None:
        """A statement runs anew: what it returned before does not count."""
        if self._returned_by == statement.origin:
            self.values.pop(RETURNED, None)

    def _is_last_of(self, statement: Statement, owner: Node) -> bool:
        origins = {producer.origin for producer in self.producers.get(owner.name, ())}
        open_origins = {s.origin for s in self.pending if s is not statement}
        return statement.origin in origins and not origins & open_origins

    def _failing(self, statement: Statement, error: BaseException) -> GraphCompletionError:
        node = self.owners.owner(statement)
        shapes = ", ".join(
            f"{n}: {tuple(self.values[n].shape)}"
            for n in statement.ordered_reads()
            if isinstance(self.values.get(n), torch.Tensor)
        )
        line = statement.label
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
            return self._as_tensor(node, self._kept(node))
        if node.name not in self.output_name:
            variable = self.variable_of(node)
            with self._settling(variable, variable):
                self.writer.write(node, variable)
        return self.output_name[node.name]

    def _as_tensor(self, node: Node, variable: str) -> str:
        """The variable, or one for the tensor in it, where it holds what a module gave as a tuple, or a collection."""
        value = self.values.get(variable)
        if isinstance(value, torch.Tensor):
            return variable
        name = f"{node.name}_output" if variable != f"{node.name}_output" else f"{node.name}_first"
        if isinstance(value, tuple) and value and isinstance(value[0], torch.Tensor):
            self.emit(Statement.parse(f"{name} = {variable}[0]"))
            self.completions.append(Completion(name, f"{variable}[0]", 4, "the first of its results"))
        elif not self.hoist(node, name):
            return variable
        self._produced.pop(node.name, None)
        self.output_name[node.name] = name
        return name

    def hoist(self, node: Node, name: str) -> bool:
        """Give a name to a node's output that a statement computes on the way to something else.

        Returns:
            False where no statement does.
        """
        original = self.owners.inside.get(node.name) or next(iter(self.producers.get(node.name, [])[-1:]), None)
        if original is None:
            return False
        pending = next((s for s in self.pending if s.origin == original.origin), None)
        if pending is not None:
            self._place(pending)
        index = next((i for i, s in enumerate(self.placed) if s.origin == original.origin), None)
        place = self.owners.place(self.placed[index], node) if index is not None else None
        if index is None or place is None or name in self.values:
            return False
        outer = self.placed[index]
        expression = ast.get_source_segment(outer.text, place.expression) or ast.unparse(place.expression)
        self._give_name(name, expression, index)
        value, read = self.values[name], name
        if isinstance(value, tuple) and value:  # `h["a"], _ = self.mhsa_0(…)`
            read = f"{node.name}_result"
            self.placed[index] = Statement.parse(f"{read} = {expression}")
            self.placed.insert(index + 1, Statement.parse(f"{name} = {read}[0]"))
            self.values[read], self.values[name] = value, value[0]
        position = self.placed.index(outer)
        text = replaced(outer.text, [(place.expression, read)])
        again = Statement.parse(text, frozenset(self.globals), outer.origin)
        self.placed[position] = again.reading(again.calls | (outer.calls - set(node.modules)))
        self._produced = {
            owner: (self.placed[position] if one is outer else one, *rest)
            for owner, (one, *rest) in self._produced.items()
        }
        self.read_by.setdefault(node.name, tuple(one.id for one in place.names))
        self.completions.append(Completion(name, expression, 3, "named, because another statement needs it too"))
        return True

    def _give_name(self, name: str, expression: str, index: int) -> None:
        """Bind a part of a placed statement to a name, before that statement."""
        statement = Statement.parse(f"{name} = {expression}", frozenset(self.globals))
        scope = {**self.globals, **self._before[self.placed[index].origin], "self": self.instance}
        exec(statement.program(), scope)  # type: ignore[arg-type]
        self.values[name] = scope[name]
        self.placed.insert(index, statement)

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
            changing = next(other for other in later if variable in other.writes)
            in_place = changing.changes_in_place(variable)
            alias = Statement.parse(f"{kept} = {variable}{'.clone()' if in_place else ''}")
            self.placed.insert(self.placed.index(statement) + 1, alias)
            self.values[kept] = self._before[changing.origin][variable] if in_place else value
            self.completions.append(Completion(kept, variable, 3, "kept, because the variable is used again later"))
        return kept

    def width(self, variable: str) -> int | None:
        """Size of the last axis of a variable; None where it is no tensor."""
        value = self.values.get(variable)
        return value.shape[-1] if isinstance(value, torch.Tensor) and value.dim() else None

    def shape(self, variable: str) -> tuple[int, ...] | str:
        """Shape of a variable; the name of its type where it is no tensor."""
        value = self.values.get(variable)
        return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__

    # ---- writing ----------------------------------------------------------------------------------------------------

    def forward_text(self, docstring: str | None = None) -> str:
        """Source of the completed `forward`, dedented; `docstring` is its text in quotes, as it stood."""
        lines = signature_text(self.forward, self.input_name, self.intermediates)
        if docstring is not None:
            lines += f"    {docstring}".split("\n")
        if self.input_name != STANDARD_INPUT:
            lines.append(f"    {self.input_name} = {STANDARD_INPUT}")
        previous: int | None = -1
        for statement in self.placed:
            if statement.origin is not None and previous is not None and statement.origin == previous + 1:
                lines += [""] * statement.gap
            lines += indented(statement.text, "    ").split("\n")
            previous = statement.origin
        return "\n".join(lines)


def rebound(model: nn.Module, cls: type) -> nn.Module:
    """A new object of a class that shares parameters, buffers and submodules with `model`."""
    twin: nn.Module = object.__new__(cls)
    twin.__dict__ = {
        key: value.copy() if key.startswith("_") and isinstance(value, dict) else value
        for key, value in model.__dict__.items()
    }
    return twin


def _copied(value: Any) -> Any:
    """A value that later statements cannot change in place."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    return value.copy() if type(value) in (list, dict, set) else value


def _asks_for_none(statement: Statement, name: str) -> bool:
    """Whether a statement tests `name is None` or `name is not None`."""
    tests = [node for node in ast.walk(ast.parse(statement.text)) if isinstance(node, ast.Compare)]
    return any(
        isinstance(test.left, ast.Name) and test.left.id == name and isinstance(test.ops[0], (ast.Is, ast.IsNot))
        for test in tests
    )


def _right_side(statement: Statement) -> str:
    body = ast.parse(statement.text).body
    value = getattr(body[-1], "value", None) if body else None
    return ast.unparse(value) if isinstance(value, ast.AST) else statement.text.strip()
