"""Statements that read past a node: those that contradict the edges, and nodes that are drawn but left out of the chain.

Changes what pending statements read, before any of them is placed; leaves writing values to `graph_nodes`.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.adapters.canvas import Node
from utils.adapters.completion import Completion
from utils.adapters.signature import required_arguments
from utils.adapters.statements import Statement, replaced
from utils.errors import GraphCompletionError

if TYPE_CHECKING:
    from utils.adapters.graph_values import ForwardCompleter


@dataclass(frozen=True)
class Contradiction:
    """A node whose statements read other nodes than the canvas draws.

    Attributes:
        node: the node.
        missing: nodes that are drawn as its inputs and not read.
        extra: variable → node, for what is read and not drawn.
        certain: whether everything that the statements read is known.
    """

    node: Node
    missing: tuple[Node, ...]
    extra: dict[str, Node]
    certain: bool


def rewire(forward: ForwardCompleter) -> None:
    """Let statements follow the edges, and lead the chain through nodes that nobody computes or reads."""
    _join_positions(forward)
    _widen_norms(forward)
    for node in list(forward.canvas.nodes):
        found = contradiction(forward, node)
        if found is not None and (forward.seen is None or found.certain):
            _follow_inputs(forward, found)
    for run in _left_out(forward):
        _lead_through(forward, run)


def _join_positions(forward: ForwardCompleter) -> None:
    """Positions that are read in the place of the embedding, which nobody reads, take it in."""
    for node in forward.canvas.nodes:
        statement = next(iter(_pending_of(forward, node)[-1:]), None) if node.role == "position" else None
        if statement is None or node.inputs or statement.value is None or len(statement.targets) != 1:
            continue
        behind = [one for one in forward.canvas.before(node) if one.role == "embedding"]
        tables = {part for one in behind for part in one.modules}
        own = {name for one in behind for s in forward.producers.get(one.name, []) for name in s.writes}
        own |= {name for s in forward.pending for name in s.reads if forward.canvas.node_of(name) in behind}
        apart = [s for s in forward.pending if forward.owners.owner(s) not in behind]
        lost = behind and not any(s.calls & tables or s.reads & own for s in apart)
        if lost and any(statement.targets[0] in s.reads for s in forward.pending):
            embedding = forward.variable_of(behind[0])
            value = ast.get_source_segment(statement.text, statement.value) or ast.unparse(statement.value)
            text = replaced(statement.text, [(statement.value, f"{embedding} + {value}")])
            changed = Statement.parse(text, frozenset(forward.globals), statement.origin)
            forward.pending[forward.pending.index(statement)] = changed.reading(statement.calls)
            reason = "positions are added to the embedding, which nothing else reads"
            forward.completions.append(Completion(statement.targets[0], f"{embedding} + {value}", 5, reason))


def _widen_norms(forward: ForwardCompleter) -> None:
    """An addition with a norm whose statement normalises the branch alone is written anew, with its addition."""
    for node in forward.canvas.nodes:
        if node.role != "add_norm" or node.inputs or len(node.modules) != 1:
            continue
        if required_arguments(getattr(forward.model, node.modules[0])) != 1 or node.name not in forward.producers:
            continue
        if forward.missing is not None and node.name not in forward.missing:
            continue
        read, nested, _ = _nodes_read(forward, node)
        branches = [one for one in read.values() if one.role not in ("residual", "add_norm")]
        if len(read) == len(branches) == 1 and not nested:
            _write_anew(forward, node)


def contradiction(forward: ForwardCompleter, node: Node) -> Contradiction | None:
    """Where edges or the comment name other inputs than the node's statements read; None where they agree."""
    if not node.inputs or not (node.name in forward.producers or node.name in forward.owners.inside):
        return None
    drawn = [one for one in forward.writer.given_inputs(node) if one.role != "input"]
    read, nested, certain = _nodes_read(forward, node)
    missing = [one for one in drawn if one not in read.values() and one.name not in nested]
    if forward.seen is not None:
        missing = [one for one in missing if not forward.seen.passes_on(one, node)]
    extra = {variable: one for variable, one in read.items() if one not in drawn}
    return Contradiction(node, tuple(missing), extra, certain) if missing else None


def _follow_inputs(forward: ForwardCompleter, found: Contradiction) -> None:
    """The statements of a node give way to what is drawn."""
    node, missing, extra = found.node, found.missing, found.extra
    level = forward.writer.evidence_of(node)
    if len(missing) == 1 and len(extra) == 1:
        (old,) = extra
        new = forward.variable_of(missing[0])
        for statement in _pending_of(forward, node):
            _replace_in(forward, statement, node, old, new)
        reason = f"the canvas draws {missing[0].name} → {node.name}, the statement read {old}"
        forward.completions.append(Completion(f"input of {node.name}", new, level, reason))
        return
    rewritable = node.name in forward.producers and (node.role == "residual" or (len(node.modules) == 1 and not extra))
    if not rewritable:
        names = ", ".join(one.name for one in missing)
        raise GraphCompletionError(
            f"{node.name}: the canvas draws {names} → {node.name}, but its statements read "
            f"{', '.join(extra) or 'none of the nodes'}. Correct the edges in config.json or the statement in forward.",
            node.name,
            tuple(one.name for one in missing),
        )
    _write_anew(forward, node)


def _write_anew(forward: ForwardCompleter, node: Node) -> None:
    """Drop a node's statements: it is written from its inputs and modules, under the name that they gave it."""
    name = forward.variable_of(node)
    for statement in _pending_of(forward, node):
        forward.pending.remove(statement)
    forward.producers.pop(node.name)
    readers = any(name in statement.reads for statement in forward.pending)
    if not readers and forward.canvas.node_of(name) != node:
        raise GraphCompletionError(
            f"{node.name}: its statement contradicts the canvas and binds {name}, which is no name of the node. Write "
            f"{node.name}_output = … in forward.",
            node.name,
        )


def _nodes_read(forward: ForwardCompleter, node: Node) -> tuple[dict[str, Node], set[str], bool]:
    """(variable → node, nodes inside the same statements, whether all is known) of what a node's statements read."""
    found: dict[str, Node] = {}
    nested: set[str] = set()
    certain = True
    statements = _pending_of(forward, node)
    own = {name for statement in statements for name in statement.writes}
    for statement in statements:
        names, inner = forward.owners.reads_of(statement, node)
        nested.update(inner)
        nested |= {one.name for one in forward.canvas.nodes if set(one.modules) & statement.calls and one != node}
        certain = certain and isinstance(statement.node, (ast.Assign, ast.AnnAssign, ast.Return))
        for variable in dict.fromkeys(name.id for name in names if name.id in statement.reads):
            owner = forward.owners.owner_of_variable(variable, statement)
            if owner is not None and owner != node and owner.role != "input":
                found[variable] = owner
            elif owner is None and variable not in own:
                nested |= forward.owners.made_of(variable)
                certain = False
    return found, nested, certain


def _pending_of(forward: ForwardCompleter, node: Node) -> list[Statement]:
    inside = forward.owners.inside.get(node.name)
    origins = {s.origin for s in forward.producers.get(node.name, [inside] if inside is not None else [])}
    return [statement for statement in forward.pending if statement.origin in origins]


def _replace_in(forward: ForwardCompleter, statement: Statement, node: Node | None, old: str, new: str) -> None:
    """Let the part of a statement that computes `node` read `new` where it read `old`; None is the whole statement."""
    if node is None:
        changed = statement.renamed(old, new)
    else:
        names, _ = forward.owners.reads_of(statement, node)
        spots: list[tuple[ast.expr, str]] = [(name, new) for name in names if name.id == old]
        text = replaced(statement.text, spots)
        changed = Statement.parse(text, frozenset(forward.globals), statement.origin)
    if changed.text != statement.text:
        forward.pending[forward.pending.index(statement)] = changed.reading(statement.calls)


def _left_out(forward: ForwardCompleter) -> list[list[Node]]:
    """Runs of neighbouring nodes that no statement computes and none reads, although they would do something."""
    read = {name for statement in forward.pending for name in statement.reads}
    read_nodes = {node.name for name in read if (node := forward.canvas.node_of(name)) is not None}
    fed = _feeding(forward, read_nodes)
    called = forward.called()
    runs: list[list[Node]] = []
    previous_out = False
    for node in forward.canvas.nodes:
        if node.role in ("input", "output"):
            continue
        out = (
            node.name not in forward.producers
            and node.name not in read_nodes
            and node.name not in fed
            and node.name not in forward.owners.inside
            and not set(node.modules) & called
            and bool(node.modules or node.role == "residual")
            and not forward.writer.head.is_candidate(node)
            and (forward.missing is None or node.name in forward.missing)
        )
        if out and previous_out:
            runs[-1].append(node)
        elif out:
            runs.append([node])
        previous_out = out
    return runs


def _feeding(forward: ForwardCompleter, read_nodes: set[str]) -> set[str]:
    """Nodes that will be read by others when these are written from their inputs."""
    alive = {n.name for n in forward.canvas.nodes if n.name in read_nodes or n.role == "output"}
    fed: set[str] = set()
    while True:
        open_nodes = [n for n in forward.canvas.nodes if n.name in alive | fed and n.name not in forward.producers]
        new = {source.name for node in open_nodes for source in forward.writer.given_inputs(node)} - fed
        if not new:
            return fed
        fed |= new


def _lead_through(forward: ForwardCompleter, run: list[Node]) -> None:
    """Let the node behind a left-out run read the run's last output instead of what the run reads."""
    consumer, statements = _consumer_of(forward, run[-1])
    if not statements:
        return  # nothing of the code lies behind: what is written later reads the canvas itself
    bypassed = _bypassed(forward, run)
    hits = {name for s in statements for name in _reads_among(forward, s, consumer, bypassed)}
    if len(hits) == 1:
        new = forward.variable_of(run[-1])
        for statement in statements:
            _replace_in(forward, statement, consumer, next(iter(hits)), new)
        names = ", ".join(node.name for node in run)
        reason = f"{names} stand before it on the canvas and were left out; it read {', '.join(hits)}"
        what = consumer.name if consumer is not None else "the result"
        forward.completions.append(Completion(f"input of {what}", new, 5, reason, assumption=True))
        return
    if all(node.role == "residual" for node in run) or forward.seen is not None:
        return  # the addition stands in the consumer itself, or under a name of its own
    what = consumer.name if consumer is not None else "the result"
    called = f"self.{run[0].modules[0]}(…)" if run[0].modules else "…"
    raise GraphCompletionError(
        f"{run[0].name} is drawn, but forward never computes it, and {what} reads neither it nor what precedes it "
        f"({', '.join(node.name for node in bypassed) or 'nothing'}). Write {run[0].name}_output = {called} "
        "in forward, or delete the node on the canvas.",
        run[0].name,
        tuple(node.name for node in bypassed),
    )


def _reads_among(
    forward: ForwardCompleter, statement: Statement, consumer: Node | None, nodes: list[Node]
) -> list[str]:
    """Variables of these nodes that the part of a statement that computes `consumer` reads."""
    names = [name.id for name in forward.owners.reads_of(statement, consumer)[0]] if consumer is not None else []
    if consumer is None:
        names = list(statement.ordered_reads())
    return [name for name in names if forward.owners.owner_of_variable(name, statement) in nodes]


def _consumer_of(forward: ForwardCompleter, node: Node) -> tuple[Node | None, list[Statement]]:
    """(the node behind, or None for the result; its statements)."""
    drawn = [one for one in forward.canvas.nodes if node.name in one.inputs and one.role != "output"]
    for following in drawn or forward.canvas.after(node):
        statements = _pending_of(forward, following)
        if statements:
            return following, statements
        if following.role == "output":
            break
        if following.modules or following.role == "residual" or _is_read(forward, following):
            return following, []
    returns = [statement for statement in forward.pending if statement.returns][-1:]
    written = {name for statement in forward.pending for name in statement.writes} | {forward.input_name}
    if any(name not in written for statement in returns for name in statement.reads):
        return None, []  # it reads what nobody computes, and that will be written from the canvas
    return None, returns


def _is_read(forward: ForwardCompleter, node: Node) -> bool:
    """Whether a statement reads a node's output, which will then be written from the canvas."""
    return any(forward.canvas.node_of(name) == node for statement in forward.pending for name in statement.reads)


def _bypassed(forward: ForwardCompleter, run: list[Node]) -> list[Node]:
    """Nodes that the first node of a run would read, and that its consumer reads instead."""
    first = run[0]
    nodes = forward.writer.given_inputs(first)
    if not nodes:
        nodes = [n for n in forward.canvas.before(first) if n.role not in ("input", "output")][:1]
        if first.role == "residual":
            nodes += [n for n in forward.writer.residuals.stream_before(first)[-1:] if n not in nodes]
    return nodes
