"""What the embeddings and positions of a canvas amount to: how each is written, and what they give together.

A position node comes in two kinds. One takes in what precedes it (`x + table[:T]`) and hands the sum on; the other is bare:
it gives the rows of its table alone, and whoever reads "what precedes me" means its sum with the embedding.
Leaves every other node to `graph_nodes`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from utils.adapters.canvas import Node
from utils.adapters.completion import Completion
from utils.adapters.graph_owners import summands
from utils.adapters.statements import Statement, assignment

if TYPE_CHECKING:
    from utils.adapters.graph_nodes import NodeWriter

SOURCES = ("embedding", "position")
"""Roles of the nodes from which the first value of a model is made."""


class EmbeddingWriter:
    """Writes the embeddings and positions of one `forward`."""

    def __init__(self, writer: NodeWriter) -> None:
        self.writer = writer
        self.forward = writer.forward
        self.canvas = writer.canvas

    # ---- together ---------------------------------------------------------------------------------------------------

    def joined_at(self, node: Node) -> str:
        """Variable of what the run of embeddings and positions that ends with `node` amounts to."""
        run = [node]
        for previous in self.canvas.before(node):
            if previous.role not in (*SOURCES, "input"):
                break
            run.insert(0, previous)
        return self.joined([one for one in run if one.role in SOURCES])

    def joined(self, nodes: list[Node]) -> str:
        """Variable of the sum of these embeddings and positions; one that takes in others stands for them too."""
        terms: list[str] = []
        covered: set[str] = set()
        for node in nodes[::-1]:
            if node.name in covered:
                continue
            variable = self.forward.value_of(node)
            covered |= self.made_of(variable)
            if variable not in terms:
                terms.insert(0, variable)
        if all(node.role == "position" for node in nodes) and self.is_bare(nodes[0]):
            terms.insert(0, self.writer.preceding(nodes[0]))
        return terms[0] if len(terms) == 1 else self._sum_of(terms, [node.role for node in nodes])

    def _sum_of(self, terms: list[str], roles: list[str]) -> str:
        for statement in self.forward.placed:
            if set(_added(statement)) == set(terms):
                return statement.targets[0]
        expression = " + ".join(terms)
        name = "embeddings"
        while name in self.forward.values:
            name += "_"
        reason = "several token embeddings with no other instruction are summed"
        if "position" in roles:
            reason = "positions are added to the embedding"
        self.forward.emit(Statement.parse(assignment(name, expression, f"completed: {reason}")))
        self.forward.completions.append(Completion(name, expression, 5, reason))
        return name

    def is_bare(self, node: Node) -> bool:
        """Whether the value of a position node is that of positions alone: no embedding went into it."""
        variable = self.forward.value_of(node)
        value = self.forward.values.get(variable)
        if isinstance(value, torch.Tensor) and (value.dim() < 3 or value.shape[0] < self.forward.ids.shape[0]):
            return True  # no axis for the examples: no token went into it
        made_of = self.made_of(variable)
        return not any(one.name in made_of for one in self.canvas.nodes if one.role == "embedding")

    def made_of(self, variable: str) -> set[str]:
        """Embeddings and positions whose modules went into a variable, as the placed statements tell."""
        sources = [node for node in self.canvas.nodes if node.role in SOURCES]
        calls = {call for statement in self._ancestry(variable).values() for call in statement.calls}
        return {node.name for node in sources if calls & {node.name, *node.modules}}

    def origins(self, variable: str) -> set[str]:
        """Variables that went into a variable, as the placed statements tell."""
        return {name for statement in self._ancestry(variable).values() for name in statement.reads}

    def _ancestry(self, variable: str) -> dict[int, Statement]:
        """Place → statement, for every placed statement that went into a variable."""
        placed = self.forward.placed
        found: dict[int, Statement] = {}
        open_names = [(variable, len(placed))]
        while open_names:
            name, end = open_names.pop()
            index = next((i for i in range(end - 1, -1, -1) if name in placed[i].writes), None)
            if index is not None and index not in found:
                found[index] = placed[index]
                open_names += [(read, index) for read in placed[index].reads]
        return found

    # ---- one by one -------------------------------------------------------------------------------------------------

    def write(self, node: Node, name: str) -> None:
        """An embedding: its token tables are given the ids, position tables give their first rows."""
        parts = [(part, getattr(self.forward.model, part)) for part in node.modules]
        if not parts:
            raise self.writer.error(node, "it owns no module", [])
        self._refuse_small_tables(node)
        terms = [self.embedded(part, module) for part, module in parts if isinstance(module, nn.Embedding)]
        rest = [part for part, module in parts if not isinstance(module, nn.Embedding)]
        if not terms:  # a helper class that embeds
            terms, rest = [f"self.{rest[0]}({self.forward.input_name})"], rest[1:]
        expression = " + ".join(terms)
        for part in rest:
            expression = f"self.{part}({expression})"
        self.writer.finish(node, name, expression, 4, "its modules, applied to the ids", (self.forward.input_name,))

    def _refuse_small_tables(self, node: Node) -> None:
        """A table with fewer rows than the vocabulary embeds something else than the ids, and nothing says what."""
        tables = [module for module in self.forward.model.modules() if isinstance(module, nn.Embedding)]
        vocabulary = self.forward.config.vocab_size or max((table.num_embeddings for table in tables), default=0)
        for part in node.modules:
            module = getattr(self.forward.model, part)
            if not isinstance(module, nn.Embedding) or self._is_position_table(part, module):
                continue
            if module.num_embeddings < vocabulary:
                problem = f"self.{part} has {module.num_embeddings} rows while the vocabulary has {vocabulary}, and nothing says what it embeds"
                readings = [f"self.{part}({self.forward.input_name})", f"self.{part}(<segments>)"]
                raise self.writer.error(node, problem, readings)

    def embedded(self, part: str, module: nn.Embedding) -> str:
        """A token embedding is given the ids; a position table gives its first rows."""
        ids = self.forward.input_name
        if self._is_position_table(part, module):
            return f"self.{part}.weight[: {ids}.shape[1]]"
        return f"self.{part}({ids})"

    def _is_position_table(self, part: str, module: nn.Embedding) -> bool:
        lowered = part.lower()
        if "pos" in lowered or lowered.endswith("wpe"):
            return True
        config = self.forward.config
        named_token = "tok" in lowered or "word" in lowered or lowered.endswith("wte")
        return (
            not named_token
            and module.num_embeddings == config.max_seq_len
            and module.num_embeddings != config.vocab_size
        )

    def write_position(self, node: Node, name: str) -> None:
        """A position node: the first rows of its table, added to what precedes it where nobody else adds them."""
        table = self._rows_of(node)
        if table is None:
            return self.writer.write_applied(node, name)
        if self._is_added_elsewhere(node):
            evidence = self.writer.evidence_of(node)
            return self.writer.finish(node, name, table, evidence, "positions of the input", (self.forward.input_name,))
        variable, evidence, _ = self.writer.single_input(node)
        expression = f"{variable} + {table}"
        for part in node.modules:
            if not isinstance(getattr(self.forward.model, part), nn.Embedding):
                expression = f"self.{part}({expression})"
        self.writer.finish(node, name, expression, evidence, "positions are added to what precedes them", (variable,))

    def _rows_of(self, node: Node) -> str | None:
        """The first rows of the node's one table, a module or a parameter (1, T, D) or (T, D); None where it has none."""
        length = f"{self.forward.input_name}.shape[1]"
        tables = [p for p in node.modules if isinstance(getattr(self.forward.model, p), nn.Embedding)]
        if len(tables) == 1:
            return f"self.{tables[0]}.weight[: {length}]"
        own = getattr(self.forward.model, node.name, None)
        if not node.modules and isinstance(own, torch.Tensor) and own.dim() in (2, 3):
            return f"self.{node.name}[{', '.join([':'] * (own.dim() - 2) + [f': {length}'])}]"
        return None

    def _is_added_elsewhere(self, node: Node) -> bool:
        """Whether another node adds the positions, or nothing precedes them to which they could be added."""
        given = self.writer.given_inputs(node)
        if given:
            return all(one.role == "input" for one in given)
        for reader in self.canvas.nodes:
            others = [one for one in self.writer.given_inputs(reader) if one is not node]
            if node.name in reader.inputs and any(one.role in SOURCES for one in others):
                return True
        for statement in self.forward.original:
            owners = [self.canvas.node_of(name) for name in statement.reads]
            if node in owners and any(one is not None and one.role == "embedding" for one in owners):
                return True
        before = [one for one in self.canvas.before(node) if one.role != "input"]
        behind = [one for one in self.canvas.after(node) if one.role != "input"]
        additions = ("residual", "add_norm")
        return not before or bool(behind and behind[0].role in additions and not behind[0].inputs)


def _added(statement: Statement) -> Iterable[str]:
    """Names that a statement `x = a + b` adds, where it does nothing else."""
    tree = statement.node
    if not isinstance(tree, ast.Assign) or len(statement.targets) != 1 or not isinstance(tree.targets[0], ast.Name):
        return ()
    terms = summands(tree.value)
    names = [term.id for term in terms if isinstance(term, ast.Name)]
    return names if len(names) == len(terms) == len(set(names)) > 1 else ()
