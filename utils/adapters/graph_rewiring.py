"""Statements that read past a node: those that contradict the edges, and nodes that are drawn but left out of the chain.

Changes what pending statements read, before any of them is placed; leaves writing values to `graph_nodes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.adapters.canvas import Node
from utils.adapters.completion import Completion
from utils.adapters.forward_source import Statement
from utils.errors import GraphCompletionError

if TYPE_CHECKING:
    from utils.adapters.graph_values import ForwardCompleter


def rewire(forward: ForwardCompleter) -> None:
    """Let statements follow the edges, and lead the chain through nodes that nobody computes or reads."""
    for node in list(forward.canvas.nodes):
        if node.inputs and node.name in forward.producers:
            _follow_inputs(forward, node)
    for run in _left_out(forward):
        _lead_through(forward, run)


def _follow_inputs(forward: ForwardCompleter, node: Node) -> None:
    """Where edges or the comment name other inputs than the node's statements read, the statements give way."""
    drawn = [one for one in forward.writer.given_inputs(node) if one.role != "input"]
    read = _nodes_read(forward, node)
    missing = [one for one in drawn if one not in read.values()]
    extra = {variable: one for variable, one in read.items() if one not in drawn}
    if not missing:
        return
    level = forward.writer.evidence_of(node)
    if len(missing) == 1 and len(extra) == 1:
        (old,) = extra
        new = forward.variable_of(missing[0])
        for statement in _pending_of(forward, node):
            _replace(forward, statement, old, new)
        reason = f"the canvas draws {missing[0].name} → {node.name}, the statement read {old}"
        forward.completions.append(Completion(f"input of {node.name}", new, level, reason))
        return
    if node.role != "residual" and (len(node.modules) != 1 or extra):
        names = ", ".join(one.name for one in missing)
        raise GraphCompletionError(
            f"{node.name}: the canvas draws {names} → {node.name}, but its statements read "
            f"{', '.join(read) or 'none of the nodes'}. Correct the edges in config.json or the statement in forward.",
            node.name,
            tuple(one.name for one in drawn),
        )
    _write_anew(forward, node)


def _write_anew(forward: ForwardCompleter, node: Node) -> None:
    """Drop a node's statements: it is written from its inputs and modules, under the name that they gave it."""
    name = forward.variable_of(node)
    for statement in _pending_of(forward, node):
        forward.pending.remove(statement)
    del forward.producers[node.name]
    readers = any(name in statement.reads for statement in forward.pending)
    if not readers and forward.canvas.node_of(name) != node:
        raise GraphCompletionError(
            f"{node.name}: its statement contradicts the canvas and binds {name}, which is no name of the node. Write "
            f"{node.name}_output = … in forward.",
            node.name,
        )


def _nodes_read(forward: ForwardCompleter, node: Node) -> dict[str, Node]:
    """Variable → node, for what a node's statements read from other nodes."""
    found: dict[str, Node] = {}
    for statement in _pending_of(forward, node):
        for variable in statement.ordered_reads():
            owner = _owner_of_variable(forward, variable)
            if owner is not None and owner != node and owner.role != "input":
                found[variable] = owner
    return found


def _owner_of_variable(forward: ForwardCompleter, variable: str) -> Node | None:
    named = forward.canvas.node_of(variable)
    if named is not None:
        return named
    for name, statements in forward.producers.items():
        if any(variable in statement.writes for statement in statements):
            return forward.canvas.get(name)
    return None


def _pending_of(forward: ForwardCompleter, node: Node) -> list[Statement]:
    origins = {statement.origin for statement in forward.producers.get(node.name, [])}
    return [statement for statement in forward.pending if statement.origin in origins]


def _replace(forward: ForwardCompleter, statement: Statement, old: str, new: str) -> None:
    if old in statement.reads:
        forward.pending[forward.pending.index(statement)] = statement.renamed(old, new)


def _left_out(forward: ForwardCompleter) -> list[list[Node]]:
    """Runs of neighbouring nodes that no statement computes and none reads, although they would do something."""
    read = {name for statement in forward.pending for name in statement.reads}
    read_nodes = {node.name for name in read if (node := forward.canvas.node_of(name)) is not None}
    fed = {source for node in forward.canvas.nodes for source in node.inputs if _is_alive(forward, node, read_nodes)}
    called = {attribute for statement in forward.original for attribute in statement.calls}
    runs: list[list[Node]] = []
    previous_out = False
    for node in forward.canvas.nodes:
        if node.role in ("input", "output"):
            continue
        out = (
            node.name not in forward.producers
            and node.name not in read_nodes
            and node.name not in fed
            and not set(node.modules) & called
            and bool(node.modules or node.role == "residual")
            and not forward.writer.head.is_candidate(node)
        )
        if out and previous_out:
            runs[-1].append(node)
        elif out:
            runs.append([node])
        previous_out = out
    return runs


def _is_alive(forward: ForwardCompleter, node: Node, read_nodes: set[str]) -> bool:
    """Whether a node will be written from its inputs: somebody reads it, and no statement computes it."""
    return node.name not in forward.producers and (node.name in read_nodes or node.role == "output")


def _lead_through(forward: ForwardCompleter, run: list[Node]) -> None:
    """Let the node behind a left-out run read the run's last output instead of what the run reads."""
    consumer, statements = _consumer_of(forward, run[-1])
    if not statements:
        return  # nothing of the code lies behind: what is written later reads the canvas itself
    bypassed = _bypassed(forward, run)
    hits = [name for name in bypassed if any(name in statement.reads for statement in statements)]
    if len(hits) == 1:
        new = forward.variable_of(run[-1])
        for statement in statements:
            _replace(forward, statement, hits[0], new)
        names = ", ".join(node.name for node in run)
        reason = f"{names} stand before it on the canvas and were left out; it read {hits[0]}"
        forward.completions.append(Completion(f"input of {consumer}", new, 5, reason, assumption=True))
        return
    if all(node.role == "residual" for node in run):
        return  # the addition stands in the consumer itself, or under a name of its own
    raise GraphCompletionError(
        f"{run[0].name} is drawn, but forward never computes it, and {consumer} reads neither it nor what precedes it "
        f"({', '.join(bypassed) or 'nothing'}). Write {run[0].name}_output = self.{run[0].modules[0] if run[0].modules else run[0].name}(…) "
        "in forward, or delete the node on the canvas.",
        run[0].name,
        tuple(bypassed),
    )


def _consumer_of(forward: ForwardCompleter, node: Node) -> tuple[str, list[Statement]]:
    for following in forward.canvas.after(node):
        if following.role == "output":
            break
        statements = _pending_of(forward, following)
        if statements:
            return following.name, statements
        if following.modules or following.role == "residual":
            return following.name, []
    returns = [statement for statement in forward.pending if statement.returns][-1:]
    written = {name for statement in forward.pending for name in statement.writes} | {forward.input_name}
    if any(name not in written for statement in returns for name in statement.reads):
        return "the result", []  # it reads what nobody computes, and that will be written from the canvas
    return "the result", returns


def _bypassed(forward: ForwardCompleter, run: list[Node]) -> list[str]:
    """Variables that the first node of a run would read, and that its consumer reads instead."""
    first = run[0]
    given = forward.writer.given_inputs(first)
    if given:
        nodes = given
    else:
        nodes = [n for n in forward.canvas.before(first) if n.role not in ("input", "output")][:1]
        if first.role == "residual":
            nodes += [n for n in forward.writer.residuals.stream_before(first)[-1:] if n not in nodes]
    return list(dict.fromkeys(forward.variable_of(node) for node in nodes))
