"""What a residual adds: the inputs that edges or its comment name, else the stated convention of stream and branch.

Knows the order of the canvas and who read what; leaves writing statements to `graph_nodes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from utils.adapters.canvas import Node
from utils.adapters.graph_embeddings import SOURCES
from utils.adapters.signature import required_arguments

if TYPE_CHECKING:
    from utils.adapters.graph_nodes import NodeWriter

ADDITIONS = ("residual", "add_norm")
"""Roles of the nodes that add a branch to the stream; an `add_norm` normalises the sum."""
_PREFIX_ROLES = (*SOURCES, "dropout", "linear")
_WRAPPERS = ("dropout", "norm", "activation")


class ResidualWriter:
    """Writes the residuals of one `forward`."""

    def __init__(self, writer: NodeWriter) -> None:
        self.writer = writer
        self.forward = writer.forward
        self.canvas = writer.canvas

    def write(self, node: Node, name: str) -> None:
        given = self.writer.given_inputs(node)
        if len(given) >= 2:
            terms = [self.forward.value_of(one) for one in given]
            level = self.writer.evidence_of(node)
            where = "edges" if level == 1 else "comment"
            return self._add(node, name, terms, level, f"{where}: {', '.join(one.name for one in given)} → {node.name}")
        skip, branch, assumption, reason = self._residual_convention(node, given)
        self._add(node, name, [skip, branch], 5, reason, assumption)

    def _add(
        self, node: Node, name: str, terms: list[str], evidence: int, reason: str, assumption: bool = False
    ) -> None:
        shapes = {term: self.forward.shape(term) for term in terms}
        if not _may_be_added(list(shapes.values())):
            listed = ", ".join(f"{term} {shape}" for term, shape in shapes.items())
            raise self.writer.error(node, f"what it adds has different shapes: {listed}", list(terms))
        if len(node.modules) == 1:
            module = getattr(self.forward.model, node.modules[0])
            needed = required_arguments(module)
            if needed == 1 and (node.role == "add_norm" or isinstance(module, nn.Identity)):
                expression = f"self.{node.modules[0]}({' + '.join(terms)})"
                return self.writer.finish(node, name, expression, evidence, f"of the sum: {reason}", terms, assumption)
            if needed != len(terms):
                raise self.writer.error(
                    node, f"self.{node.modules[0]} does not take {len(terms)} inputs", [" + ".join(terms)]
                )
            return self.writer.finish(
                node, name, f"self.{node.modules[0]}({', '.join(terms)})", evidence, reason, terms, assumption
            )
        if node.modules:
            readings = [" + ".join(terms), f"{terms[0]} + self.{node.modules[0]}({terms[-1]})"]
            raise self.writer.error(
                node, f"it owns {', '.join(node.modules)}, and nothing says where they act", readings
            )
        self.writer.finish(node, name, " + ".join(terms), evidence, reason, terms, assumption)

    def _residual_convention(self, node: Node, given: list[Node]) -> tuple[str, str, bool, str]:
        """(skip, branch, whether another reading differs, reason) where at most one input is named."""
        stream = self.stream_before(node)
        branch_node = self._branch_before(node, stream)
        if given and given[0] not in stream and given[0] is not branch_node:
            stream, branch_node = self._beside_given(node, given[0], stream, branch_node)
        if not stream or branch_node is None:
            raise self.writer.error(node, "a residual adds a branch to a stream, and only one of them precedes it", [])
        branch = self.forward.value_of(branch_node)
        self._refuse_lost_values(node, branch_node, [*stream, *given])
        skip = self._skip_of_width(node, self._stream_of_branch(node, stream, branch_node), branch)
        read = self._read_by_sublayer(branch_node)
        differs = read is not None and read != skip
        if self.forward.residual == "sublayer_input":
            if read is None:
                raise self.writer.error(node, f"what {branch_node.name} read cannot be told", [f"{skip} + {branch}"])
            return read, branch, differs, "skip (what the sublayer read) + branch"
        reason = "skip (residual stream) + branch"
        return skip, branch, differs, reason + (f"; classic post-norm would add {read}" if differs else "")

    def stream_before(self, node: Node) -> list[Node]:
        """Nodes that carry the residual stream: the latest residual, else the embedding with what directly prepares it."""
        for previous in self.canvas.before(node):
            if previous.role in ADDITIONS:
                return [previous]
        return self._prefix(self.canvas.nodes[: self.canvas.nodes.index(node)], node)

    def _prefix(self, nodes: Sequence[Node], node: Node) -> list[Node]:
        """The embeddings that begin a stretch of the canvas before `node`, with what directly prepares them."""
        prefix: list[Node] = []
        for candidate in nodes:
            if candidate.role == "input":
                continue
            if candidate.role not in _PREFIX_ROLES or (not prefix and candidate.role not in SOURCES):
                break
            prefix.append(candidate)
        following = next(iter(self.canvas.after(prefix[-1])), node) if prefix else node
        if prefix and prefix[-1].role == "linear" and following.role == "activation":
            prefix.pop()  # the first layer of a branch, not a projection of the stream
        return prefix

    def _stream_of_branch(self, node: Node, stream: list[Node], branch: Node) -> list[Node]:
        """The stream, or that of the branch where it comes from other embeddings: a decoder behind an encoder has its own."""
        asked = self._read_by_sublayer(branch)
        wanted = self._embedded_in(asked) if asked is not None else set()
        if not wanted or wanted & self._embedded_in(self.forward.value_of(stream[-1])):
            return stream
        before = self.canvas.before(node)
        for index, previous in enumerate(before):
            if previous.role in ADDITIONS and wanted & self._embedded_in(self.forward.value_of(previous)):
                return [previous]
            if previous.name in wanted:
                return self._prefix(before[index::-1], node)
        return stream

    def _embedded_in(self, variable: str) -> set[str]:
        """Names of the embeddings that went into a variable."""
        made_of = self.writer.embeddings.made_of(variable)
        return {one.name for one in self.canvas.nodes if one.role == "embedding" and one.name in made_of}

    def _beside_given(
        self, node: Node, given: Node, stream: list[Node], latest: Node | None
    ) -> tuple[list[Node], Node | None]:
        """(stream, branch) where one input is named that is neither of them.

        It is the skip where the latest value, which nothing else reads, was made of it; else it is the branch.
        """
        if latest is None or not self._is_lost(latest):
            return stream, given
        source, variable = self.forward.value_of(given), self.forward.value_of(latest)
        return ([given], latest) if source in self.writer.embeddings.origins(variable) else (stream, given)

    def _refuse_lost_values(self, node: Node, branch: Node, used: Sequence[Node]) -> None:
        """A value since the last addition that nothing reads could be meant to be added too."""
        for lost in self.canvas.before(node):
            if lost.role in ADDITIONS or lost in used:
                return
            if lost is not branch and self._is_lost(lost):
                terms = [self.forward.value_of(one) for one in (branch, lost)]
                problem = f"{terms[1]} is computed and nothing reads it, so it could be a branch of this addition too"
                raise self.writer.error(node, problem, [f"<skip> + {terms[0]}", f"<skip> + {terms[1]} + {terms[0]}"])

    def _is_lost(self, node: Node) -> bool:
        """Whether a node computes something that neither a statement nor the drawing nor the next node has a use for."""
        producers = self.forward.producers.get(node.name, [])
        aside = node.role in (*SOURCES, "input", "output") or node.name in self.forward.owners.inside
        if aside or not (producers or node.modules):
            return False
        following = next(iter(self.canvas.after(node)), None)
        if following is not None and following.role not in ADDITIONS and following.name not in self.forward.producers:
            return False
        origins = {statement.origin for statement in producers}
        written = {name for statement in producers for name in statement.writes}
        others = [s for s in [*self.forward.placed, *self.forward.pending] if s.origin not in origins or s.returns]
        read = {name for statement in others for name in statement.reads}
        by_name = any(self.canvas.node_of(name) == node for name in read)
        return not (read & written or by_name or any(node.name in one.inputs for one in self.canvas.nodes))

    def _branch_before(self, node: Node, stream: list[Node]) -> Node | None:
        latest = next((n for n in self.canvas.before(node) if n.role not in ("input", "output")), None)
        if latest is None or latest not in stream:
            return latest
        # "embedding, linear, residual": the projection is then the branch, and the stream what it was made from
        if len(stream) > 1 and (latest.role == "linear" or (latest.role == "position" and self._adds_bare(latest))):
            stream.remove(latest)
            return latest
        return None

    def _adds_bare(self, position: Node) -> bool:
        """Whether a position node directly before an addition gives its table alone."""
        self.forward.value_of(position)
        return self.writer.embeddings.is_bare(position)

    def _skip_of_width(self, node: Node, stream: list[Node], branch: str) -> str:
        for last in stream[::-1]:  # what is too wide or too narrow belongs to a branch
            skip = self.writer.embeddings.joined_at(last) if last.role in SOURCES else self.forward.value_of(last)
            if self.forward.width(skip) == self.forward.width(branch):
                return skip
        projections = [one for one in self.canvas.before(node) if one.role == "linear" and one not in stream]
        fitting = [
            one
            for one in projections
            if skip in self.forward.read_by.get(one.name, ())
            and self.forward.width(self.forward.value_of(one)) == self.forward.width(branch)
        ]
        if len(fitting) == 1:
            return self.forward.value_of(fitting[0])
        raise self.writer.error(
            node,
            f"the stream {skip} is {self.forward.width(skip)} wide and the branch {branch} is {self.forward.width(branch)} wide",
            [f"{skip} + {branch}"],
        )

    def _read_by_sublayer(self, branch: Node) -> str | None:
        """What the sublayer that made the branch was applied to: dropout, norm and activation nodes behind it count to it."""
        node: Node | None = branch
        while node is not None and node.role in _WRAPPERS:
            node = next((n for n in self.canvas.before(node) if n.role not in ("input", "output")), None)
        if node is None:
            return None
        tensors = [n for n in self.forward.read_by.get(node.name, ()) if self.forward.width(n) is not None]
        return tensors[0] if tensors else None


def _may_be_added(shapes: Sequence[tuple[int, ...] | str]) -> bool:
    """Whether shapes are equal, but for the axis of the examples, which positions alone lack."""
    if len(set(shapes)) == 1:
        return True
    if not all(isinstance(shape, tuple) for shape in shapes):
        return False
    widest = max((shape for shape in shapes if isinstance(shape, tuple)), key=lambda shape: (len(shape), shape))
    return all(shape in (widest, (1, *widest[1:]), widest[1:]) for shape in shapes) and len(widest) == 3
