"""Nodes that only names tell of: numbered values that are read, written or listed as arguments, and drawn nowhere."""

from __future__ import annotations

from collections.abc import Collection

from utils.adapters.canvas import Canvas, Node, make_node, numbered_node_of
from utils.adapters.signature import is_intermediate_name
from utils.adapters.statements import Statement
from utils.errors import GraphCompletionError


def add_unlisted_nodes(
    canvas: Canvas, statements: list[Statement], intermediates: Collection[str], missing: Collection[str]
) -> None:
    """Put such nodes where the statements place them: behind what they are made of, before what reads them.

    Args:
        canvas: is extended.
        statements: those of the forward.
        intermediates: arguments that are outputs of nodes.
        missing: names that are read and computed nowhere.

    Raises:
        GraphCompletionError: an addition is an argument that nobody reads, and its place cannot be told.
    """
    places = _Places(canvas, statements)
    written = [n for s in statements for n in s.targets if is_intermediate_name(n)]
    read = [n for s in statements for n in s.ordered_reads() if n in missing or n in intermediates]
    open_names = [n for n in dict.fromkeys([*read, *written]) if _unlisted(canvas, n)]
    while open_names:
        name = next((n for n in open_names if places.is_settled(n, open_names)), open_names[0])
        places.insert(name)
        open_names = [n for n in open_names if _unlisted(canvas, n)]
    for name in intermediates:
        if _unlisted(canvas, name):
            _add_unread(canvas, statements, name)


def _unlisted(canvas: Canvas, name: str) -> bool:
    return numbered_node_of(name) is not None and canvas.node_of(name) is None


class _Places:
    """Where a value that is drawn nowhere stands among the nodes."""

    def __init__(self, canvas: Canvas, statements: list[Statement]) -> None:
        self.canvas, self.statements = canvas, statements

    def is_settled(self, name: str, open_names: Collection[str]) -> bool:
        """Whether all that decides the place of a value has its own place already."""
        writers = [s for s in self.statements if name in s.writes]
        deciding = {n for s in writers for n in s.reads}
        if not writers:
            readers = self._readers(name)
            return any(self._node_of(s) is not None for s in readers)
        return not (deciding - {name}) & set(open_names)

    def insert(self, name: str) -> None:
        """Give a value its node."""
        node = make_node(numbered_node_of(name) or name)
        sources = [n for s in self.statements if name in s.writes for n in self._nodes_read(s)]
        if sources:
            at = max(self.canvas.nodes.index(source) for source in sources) + 1
            self.canvas.nodes.insert(at, node)
            return
        readers = [n for s in self._readers(name) if (n := self._node_of(s)) is not None]
        first = min(readers, key=self.canvas.nodes.index, default=None)
        if first is None:
            first = next((n for s in self._readers(name) if (n := self._behind_its_reads(s)) is not None), None)
        self.canvas.insert_before(first or _first_head(self.canvas), node)

    def _readers(self, name: str) -> list[Statement]:
        return [s for s in self.statements if name in s.reads]

    def _node_of(self, statement: Statement) -> Node | None:
        """The first node that a statement computes."""
        called = [node for node in self.canvas.nodes if set(node.modules) & statement.applies]
        named = [node for name in statement.writes if (node := self.canvas.node_of(name)) is not None]
        return min(called or named, key=self.canvas.nodes.index, default=None)

    def _nodes_read(self, statement: Statement) -> list[Node]:
        read = [node for name in statement.reads if (node := self.canvas.node_of(name)) is not None]
        return read + [node for node in self.canvas.nodes if set(node.modules) & statement.applies]

    def _behind_its_reads(self, statement: Statement) -> Node | None:
        """The node behind the last one that a statement reads, for a value that no node consumes."""
        positions = [self.canvas.nodes.index(node) for node in self._nodes_read(statement)]
        following = self.canvas.nodes[max(positions) + 1 :] if positions else []
        return following[0] if following else None


def _first_head(canvas: Canvas) -> Node | None:
    return next((node for node in canvas.nodes if node.role == "output"), None)


def _add_unread(canvas: Canvas, statements: list[Statement], name: str) -> None:
    """An addition that is an argument and read nowhere is the last one, where its number and the code before it say so."""
    node = make_node(numbered_node_of(name) or name)
    if node.role != "residual":
        return
    number = int(node.name.rsplit("_", 1)[1])
    others = [int(n.name.rsplit("_", 1)[1]) for n in canvas.nodes if n.role == "residual" and n.name[-1].isdigit()]
    head = _first_head(canvas)
    before = canvas.before(head) if head is not None else canvas.nodes[::-1]
    last = next((n for n in before if n.role != "input"), None)
    called = {attribute for statement in statements for attribute in statement.calls}
    written = {n for statement in statements for n in statement.writes}
    known = last is not None and (set(last.modules) & called or any(canvas.node_of(n) == last for n in written))
    if not known or any(other > number for other in others):
        raise GraphCompletionError(
            f"{node.name} is an argument of forward, and no statement reads {name}: where it stands cannot be told. List the "
            f"nodes in config.json, write a comment '# {node.kind}: {node.name}' above each node, or read it in forward.",
            node.name,
        )
    canvas.insert_before(head, node)
