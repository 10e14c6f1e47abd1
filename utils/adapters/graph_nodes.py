"""How the output of one canvas node is written: by its inputs, its modules, or one of the stated conventions.

Writes expressions; leaves the order of statements and their execution to `graph_values`.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from utils.adapters.canvas import Node
from utils.adapters.completion import Completion
from utils.adapters.forward_source import RETURNED, Statement
from utils.errors import GraphCompletionError

if TYPE_CHECKING:
    from utils.adapters.graph_values import ForwardCompleter

_FUNCTIONS = {
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "elu": "elu",
    "mish": "mish",
    "softplus": "softplus",
    "leakyrelu": "leaky_relu",
    "relu6": "relu6",
    "selu": "selu",
}
_MAIN_PARTS = (nn.Linear, nn.Conv1d)
_PREFIX_ROLES = ("embedding", "position", "dropout", "linear")
_WRAPPERS = ("dropout", "norm", "activation")


class NodeWriter:
    """Writes what nodes compute into a `ForwardCompleter`."""

    def __init__(self, forward: ForwardCompleter) -> None:
        self.forward = forward
        self.canvas = forward.canvas

    # ---- one node ---------------------------------------------------------------------------------------------------

    def write(self, node: Node, name: str) -> None:
        """Write `name = …` for a node's output.

        Raises:
            GraphCompletionError: what the node computes could be meant in two ways, or nothing says it.
        """
        if node.role == "input":
            return self._finish(node, name, self.forward.input_name, 3, "the model's input", ())
        if node.role == "output":
            return self.write_logits(name, node)
        if node.name in self.forward.producers:
            return self._write_from_statements(node, name)
        if node.name in self.forward.output_name:
            return self._finish(node, name, self.forward.output_name[node.name], 3, "another name of the same node", ())
        writers = {
            "residual": self._write_residual,
            "embedding": self._write_embedding,
            "position": self._write_position,
            "concat": self._write_concat,
        }
        writer = writers.get(node.role, self._write_applied)
        writer(node, name)

    def _finish(
        self, node: Node, name: str, expression: str, evidence: int, reason: str, reads: Sequence[str], assumption: bool = False
    ) -> None:
        note = f"  # completed: {reason.split(';')[0]}"
        self.forward.emit(Statement.parse(f"{name} = {expression}{note}", frozenset(self.forward.globals)))
        self.forward.output_name[node.name] = name
        self.forward.superseded(node)
        self.forward.read_by.setdefault(node.name, tuple(reads))
        self.forward.completions.append(Completion(name, expression, evidence, reason, assumption))

    def _write_from_statements(self, node: Node, name: str) -> None:
        """The node's statements are there, but bind another name, or stop before its last part."""
        forward = self.forward
        forward_names = {n for s in forward.producers[node.name] for n in s.targets if self.canvas.node_of(n) == node}
        variable = forward.value_of(node)
        called = {attribute for s in forward.producers[node.name] for attribute in s.calls}
        open_parts = [part for part in node.modules if part not in called]
        loose = self._loose_values(node)
        if node.role == "embedding" and (open_parts or len(loose) > 1):
            expression = " + ".join(loose or [variable])
            for part in open_parts:
                module = getattr(forward.model, part)
                if isinstance(module, nn.Embedding):
                    expression += f" + {self._embedded(part, module)}"
                else:
                    expression = f"self.{part}({expression})"
            return self._finish(node, name, expression, 4, "the parts of the embedding that nobody joined", loose)
        if open_parts and not forward_names:
            raise self._error(node, f"its parts {', '.join(open_parts)} are never called, while {variable} is computed", [])
        if len(loose) > 1:
            raise self._error(node, "several of its values are computed and never used", loose)
        source = loose[0] if loose and not forward_names else variable
        self._finish(node, name, source, 3, "another name of the same value", ())

    def _loose_values(self, node: Node) -> list[str]:
        """Values that the node's statements compute and that no statement reads."""
        read = {name for statement in self.forward.original for name in statement.reads}
        targets = [name for s in self.forward.producers[node.name] for name in s.targets]
        tensors = [n for n in targets if isinstance(self.forward.values.get(n), torch.Tensor)]
        return [n for n in tensors if n not in read and self.forward.values[n].is_floating_point()]

    # ---- inputs -----------------------------------------------------------------------------------------------------

    def given_inputs(self, node: Node) -> list[Node]:
        """Nodes that edges or the comment name as inputs, as far as the canvas knows them."""
        found = [self.canvas.get(name) or self.canvas.node_of(name) for name in node.inputs]
        return [given for given in found if given is not None and given is not node]

    def evidence_of(self, node: Node) -> int:
        """Level of the evidence that names the node's inputs."""
        return {"edges": 1, "comment": 2}.get(node.inputs_from, 4)

    def _single_input(self, node: Node) -> tuple[str, int, str]:
        """(variable, evidence, reason) of what a node with one input reads."""
        given = self.given_inputs(node)
        if len(given) == 1:
            level = self.evidence_of(node)
            return self.forward.value_of(given[0]), level, f"{'edge' if level == 1 else 'comment'}: {given[0].name} → {node.name}"
        if len(given) > 1:
            if all(one.role in ("embedding", "position") for one in given):
                return self._sum_of_embeddings(given), self.evidence_of(node), "embeddings are summed"
            names = [one.name for one in given]
            readings = [f"{' + '.join(names)}", f"torch.cat([{', '.join(names)}], dim=-1)"]
            raise self._error(node, f"{len(given)} inputs ({', '.join(names)}) meet in it, and nothing says how", readings)
        variable = self.preceding(node)
        return variable, 4, f"its module, applied to what precedes it on the canvas ({variable})"

    def preceding(self, node: Node) -> str:
        """Variable with the output of the node before, in canvas order; the ids where there is none."""
        for previous in self.canvas.before(node):
            if previous.role in ("input", "output"):
                continue
            if previous.role == "embedding":
                return self._sum_of_embeddings(self._embeddings_ending_at(previous))
            return self.forward.value_of(previous)
        return self.forward.input_name

    def _embeddings_ending_at(self, node: Node) -> list[Node]:
        run = [node]
        for previous in self.canvas.before(node):
            if previous.role != "embedding":
                break
            run.insert(0, previous)
        return run

    def _sum_of_embeddings(self, nodes: list[Node]) -> str:
        variables = list(dict.fromkeys(self.forward.value_of(node) for node in nodes))
        if len(variables) == 1:
            return variables[0]
        name = "embeddings"
        if name not in self.forward.values:
            expression = " + ".join(variables)
            reason = "several token embeddings with no other instruction are summed"
            self.forward.emit(Statement.parse(f"{name} = {expression}  # completed: {reason}"))
            self.forward.completions.append(Completion(name, expression, 5, reason))
        return name

    # ---- embeddings and positions -----------------------------------------------------------------------------------

    def _embedded(self, part: str, module: nn.Embedding) -> str:
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
        return not named_token and module.num_embeddings == config.max_seq_len and module.num_embeddings != config.vocab_size

    def _write_embedding(self, node: Node, name: str) -> None:
        parts = [(part, getattr(self.forward.model, part)) for part in node.modules]
        if not parts:
            raise self._error(node, "it owns no module", [])
        terms = [self._embedded(part, module) for part, module in parts if isinstance(module, nn.Embedding)]
        rest = [part for part, module in parts if not isinstance(module, nn.Embedding)]
        if not terms:  # a helper class that embeds
            terms, rest = [f"self.{rest[0]}({self.forward.input_name})"], rest[1:]
        expression = " + ".join(terms)
        for part in rest:
            expression = f"self.{part}({expression})"
        self._finish(node, name, expression, 4, "its modules, applied to the ids", (self.forward.input_name,))

    def _write_position(self, node: Node, name: str) -> None:
        tables = [p for p in node.modules if isinstance(getattr(self.forward.model, p), nn.Embedding)]
        if len(tables) != 1:
            return self._write_applied(node, name)
        table = f"self.{tables[0]}.weight[: {self.forward.input_name}.shape[1]]"
        given = self.given_inputs(node)
        if given and all(one.role == "input" for one in given):
            return self._finish(node, name, table, self.evidence_of(node), "positions of the input", (self.forward.input_name,))
        variable, evidence, _ = self._single_input(node)
        expression = f"{variable} + {table}"
        for part in node.modules:
            if part not in tables:
                expression = f"self.{part}({expression})"
        self._finish(node, name, expression, evidence, "positions are added to what precedes them", (variable,))

    # ---- residuals --------------------------------------------------------------------------------------------------

    def _write_residual(self, node: Node, name: str) -> None:
        given = self.given_inputs(node)
        if len(given) >= 2:
            terms = [self.forward.value_of(one) for one in given]
            level = self.evidence_of(node)
            where = "edges" if level == 1 else "comment"
            return self._add(node, name, terms, level, f"{where}: {', '.join(one.name for one in given)} → {node.name}")
        skip, branch, assumption, reason = self._residual_convention(node, given)
        self._add(node, name, [skip, branch], 5, reason, assumption)

    def _add(self, node: Node, name: str, terms: list[str], evidence: int, reason: str, assumption: bool = False) -> None:
        shapes = {term: tuple(self.forward.values[term].shape) for term in terms}
        if len(set(shapes.values())) > 1:
            listed = ", ".join(f"{term} {shape}" for term, shape in shapes.items())
            raise self._error(node, f"what it adds has different shapes: {listed}", list(terms))
        if len(node.modules) == 1:
            from utils.adapters.graph_values import required_arguments

            if required_arguments(getattr(self.forward.model, node.modules[0])) != len(terms):
                raise self._error(node, f"self.{node.modules[0]} does not take {len(terms)} inputs", [" + ".join(terms)])
            return self._finish(
                node, name, f"self.{node.modules[0]}({', '.join(terms)})", evidence, reason, terms, assumption
            )
        if node.modules:
            readings = [" + ".join(terms), f"{terms[0]} + self.{node.modules[0]}({terms[-1]})"]
            raise self._error(node, f"it owns {', '.join(node.modules)}, and nothing says where they act", readings)
        self._finish(node, name, " + ".join(terms), evidence, reason, terms, assumption)

    def _residual_convention(self, node: Node, given: list[Node]) -> tuple[str, str, bool, str]:
        """(skip, branch, whether another reading differs, reason) where at most one input is named."""
        stream = self._stream_before(node)
        branch_node = self._branch_before(node, stream)
        if given and given[0] not in stream:
            branch_node = given[0]
        if not stream or branch_node is None:
            raise self._error(node, "a residual adds a branch to a stream, and only one of them precedes it", [])
        branch = self.forward.value_of(branch_node)
        skip = self._skip_of_width(node, stream, branch)
        read = self._read_by_sublayer(branch_node)
        differs = read is not None and read != skip
        if self.forward.residual == "sublayer_input":
            if read is None:
                raise self._error(node, f"what {branch_node.name} read cannot be told", [f"{skip} + {branch}"])
            return read, branch, differs, "skip (what the sublayer read) + branch"
        reason = "skip (residual stream) + branch"
        return skip, branch, differs, reason + (f"; classic post-norm would add {read}" if differs else "")

    def _stream_before(self, node: Node) -> list[Node]:
        """Nodes that carry the residual stream: the latest residual, else the embedding with what directly prepares it."""
        for previous in self.canvas.before(node):
            if previous.role == "residual":
                return [previous]
        prefix: list[Node] = []
        for candidate in self.canvas.nodes[: self.canvas.nodes.index(node)]:
            if candidate.role == "input":
                continue
            if candidate.role not in _PREFIX_ROLES or (not prefix and candidate.role not in ("embedding", "position")):
                break
            prefix.append(candidate)
        return prefix

    def _branch_before(self, node: Node, stream: list[Node]) -> Node | None:
        latest = next((n for n in self.canvas.before(node) if n.role not in ("input", "output")), None)
        if latest is None or latest not in stream:
            return latest
        # "embedding, linear, residual": the projection is then the branch, and the stream what it was made from
        if len(stream) > 1 and latest.role == "linear":
            stream.remove(latest)
            return latest
        return None

    def _skip_of_width(self, node: Node, stream: list[Node], branch: str) -> str:
        last = stream[-1]
        if last.role == "embedding":
            skip = self._sum_of_embeddings([one for one in stream if one.role == "embedding"])
        else:
            skip = self.forward.value_of(last)
        if self.forward.width(skip) == self.forward.width(branch):
            return skip
        projections = [one for one in self.canvas.before(node) if one.role == "linear" and one not in stream]
        fitting = [
            one
            for one in projections
            if skip in self.forward.read_by.get(one.name, ()) and self.forward.width(self.forward.value_of(one)) == self.forward.width(branch)
        ]
        if len(fitting) == 1:
            return self.forward.value_of(fitting[0])
        raise self._error(
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

    # ---- modules and functions --------------------------------------------------------------------------------------

    def _write_concat(self, node: Node, name: str) -> None:
        given = self.given_inputs(node)
        if len(given) < 2:
            raise self._error(node, "it joins several values, and no edge or comment names them", [])
        variables = [self.forward.value_of(one) for one in given]
        joined = f"{self._torch(node)}.cat([{', '.join(variables)}], dim=-1)"
        self._finish(node, name, joined, self.evidence_of(node), "inputs side by side", variables)

    def _torch(self, node: Node) -> str:
        for alias, value in self.forward.globals.items():
            if value is torch:
                return alias
        raise self._error(node, "the file does not import torch", [])

    def _write_applied(self, node: Node, name: str) -> None:
        if not node.modules:
            return self._write_function(node, name)
        given = self.given_inputs(node)
        if node.role == "attention" and len(given) in (2, 3):
            variables = [self.forward.value_of(one) for one in given]
            variables = variables if len(variables) == 3 else [variables[0], variables[1], variables[1]]
            expression = self._applied(node, node.modules[0], variables)
            reason = "inputs in their order as query, key and value" if len(given) == 3 else "first input asks, second is attended to"
            return self._finish(node, name, expression, self.evidence_of(node), reason, variables, assumption=True)
        variable, evidence, reason = self._single_input(node)
        chain = self._chain(node)
        expression = variable
        for part in chain:
            expression = self._applied(node, part, [expression])
        self._finish(node, name, expression, evidence, reason, (variable,), assumption=len(chain) > 1)

    def _chain(self, node: Node) -> tuple[str, ...]:
        """The node's modules in the order in which they act; an error where that is open."""
        if len(node.modules) == 1:
            return node.modules
        modules = {part: getattr(self.forward.model, part) for part in node.modules}
        main = [part for part, module in modules.items() if isinstance(module, _MAIN_PARTS)]
        activations = [p for p, m in modules.items() if type(m).__module__ == "torch.nn.modules.activation" and not isinstance(m, nn.MultiheadAttention)]
        simple = all(isinstance(m, (*_MAIN_PARTS, nn.Dropout, nn.Identity)) or p in activations for p, m in modules.items())
        if simple and (len(main) == 1 or (len(main) == 2 and activations)):
            order = list(modules)
            if len(main) == 2 and not order.index(main[0]) < order.index(activations[0]) < order.index(main[1]):
                order.remove(activations[0])
                order.insert(order.index(main[0]) + 1, activations[0])
            return tuple(order)
        if node.name in modules and all(isinstance(m, nn.Dropout) for p, m in modules.items() if p != node.name):
            return (node.name, *(part for part in modules if part != node.name))
        raise self._error(node, f"it owns {', '.join(modules)}, and nothing says in which order and with which activation they act", [])

    def _applied(self, node: Node, part: str, variables: list[str]) -> str:
        """`self.part(variables)`, with the arguments and the first result that its kind asks for."""
        from utils.adapters.graph_values import required_arguments

        module = getattr(self.forward.model, part)
        call = f"self.{part}"
        if isinstance(module, nn.MultiheadAttention):
            arguments = variables if len(variables) == 3 else [variables[0]] * 3
            if module.batch_first:
                return f"{call}({', '.join(arguments)})[0]"
            return f"{call}({', '.join(f'{a}.transpose(0, 1)' for a in arguments)})[0].transpose(0, 1)"
        if isinstance(module, nn.RNNBase):
            turned = variables[0] if module.batch_first else f"{variables[0]}.transpose(0, 1)"
            return f"{call}({turned})[0]" + ("" if module.batch_first else ".transpose(0, 1)")
        if isinstance(module, nn.Conv1d):
            return f"{call}({variables[0]}.transpose(1, 2)).transpose(1, 2)"
        needed = required_arguments(module)
        if len(variables) == 1 and needed == 3 and node.role == "attention":
            variables = variables * 3
        if needed > len(variables):
            raise self._error(node, f"self.{part} needs {needed} inputs, and {len(variables)} is known", [])
        expression = f"{call}({', '.join(variables[: max(needed, 1)])})"
        return expression + ("[0]" if isinstance(self._evaluate(node, expression), (tuple, list)) else "")

    def _evaluate(self, node: Node, expression: str) -> Any:
        scope = {**self.forward.globals, **self.forward.values, "self": self.forward.model}
        try:
            return eval(expression, scope)
        except Exception as error:  # the user's module refuses its input: say which, with shapes
            shapes = {n: tuple(v.shape) for n, v in self.forward.values.items() if n in expression and isinstance(v, torch.Tensor)}
            raise self._error(node, f"{expression} fails with {type(error).__name__}: {error} (given {shapes})", []) from error

    def _write_function(self, node: Node, name: str) -> None:
        stated = [str(v) for k, v in node.params.items() if k in ("activation", "function", "type", "name", "kind")]
        compact = {"".join(c for c in text.lower() if c.isalnum()) for text in [node.kind, *stated]}
        functions = sorted({_FUNCTIONS[text] for text in compact if text in _FUNCTIONS})
        if node.role == "activation" and len(functions) == 1:
            variable, evidence, _ = self._single_input(node)
            home = f"{self._torch(node)}.nn.functional"
            return self._finish(node, name, f"{home}.{functions[0]}({variable})", evidence, f"{functions[0]} node", (variable,))
        rates = [node.params[key] for key in ("p", "dropout", "rate", "prob") if isinstance(node.params.get(key), (int, float))]
        if node.role == "dropout" and rates:
            variable, evidence, _ = self._single_input(node)
            call = f"{self._torch(node)}.nn.functional.dropout({variable}, {rates[0]}, self.training)"
            return self._finish(node, name, call, evidence, "dropout node", (variable,))
        raise self._error(node, f"a node of kind {node.kind!r} has no module self.{node.name} and no rule", self._nearby_modules())

    def _nearby_modules(self) -> list[str]:
        called = {attribute for statement in self.forward.original for attribute in statement.calls}
        return [f"self.{child}" for child, _ in self.forward.model.named_children() if child not in called]

    # ---- logits -----------------------------------------------------------------------------------------------------

    def ensure_logits(self) -> None:
        """Where a drawn or completed model returns hidden states, or nothing, apply the head or tie it."""
        forward = self.forward
        output = next((n for n in self.canvas.nodes if n.role == "output"), None)
        if not forward._is_drawn() and not forward.completions:
            return
        returns = [s for s in forward.placed if s.returns]
        if not returns:
            self.write_logits("logits", output)
            return forward.emit(Statement.parse("return logits"))
        value, vocabulary = forward.values.get(RETURNED), self._vocabulary()
        last = forward.placed[-1]
        if not isinstance(value, torch.Tensor) or value.dim() != 3 or vocabulary is None or not last.returns:
            return
        if value.shape[-1] == vocabulary or value.shape[:2] != forward.ids.shape:
            return
        forward.placed.remove(last)
        body = ast.parse(last.text).body[-1]
        returned = body.value if isinstance(body, ast.Return) else None
        if returned is None:
            forward.placed.append(last)
            return
        hidden = returned.id if isinstance(returned, ast.Name) else "hidden"
        if not isinstance(returned, ast.Name):
            forward.emit(Statement.parse(f"hidden = {ast.unparse(returned)}", frozenset(forward.globals)))
        self._write_head("logits", output, hidden)
        forward.emit(Statement.parse("return logits"))

    def write_logits(self, name: str, node: Node | None) -> None:
        """Write the value that an export returns without ever computing it."""
        given = self.given_inputs(node) if node is not None else []
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
            return self.preceding(node) if node is not None and previous.role == "embedding" else self.forward.value_of(previous)
        tensors = [n for s in self.forward.placed for n in s.targets if self.forward.width(n) is not None]
        if not tensors:
            raise GraphCompletionError("The forward computes nothing that could be turned into logits.", node.name if node else "output")
        return tensors[-1]

    def _is_head(self, node: Node) -> bool:
        """A module that nobody calls, is vocabulary-wide, and whose node nobody draws a residual around."""
        return all(part in self._uncalled() for part in node.modules) and self._out_width(getattr(self.forward.model, node.modules[-1])) == self._vocabulary()

    def _is_head_candidate(self, node: Node) -> bool:
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
        rows = [module.num_embeddings for module in self.forward.token_weights]
        return self.forward.config.vocab_size or (rows[0] if rows else None)

    def _write_head(self, name: str, node: Node | None, hidden: str) -> None:
        owner = node if node is not None else Node("output", "output", "output")
        vocabulary, width = self._vocabulary(), self.forward.width(hidden)
        uncalled = self._uncalled()
        own = [part for part in owner.modules if part in uncalled]
        if own:
            expression = hidden
            for part in own:
                expression = self._applied(owner, part, [expression])
            return self._finish(owner, name, expression, 4, "the head that nobody called", (hidden,))
        if vocabulary is None:
            raise self._error(owner, "the vocabulary size is unknown: config.json does not say it, and no embedding takes the ids", [])
        if width == vocabulary:
            return self._finish(owner, name, hidden, 5, "already as wide as the vocabulary", (hidden,))
        heads = [c for c in uncalled if self._out_width(getattr(self.forward.model, c)) == vocabulary]
        if len(heads) > 1:
            raise self._error(owner, "several vocabulary-wide modules are never called", [f"self.{head}({hidden})" for head in heads])
        if heads:
            expression = self._applied(owner, heads[0], [hidden])
            return self._finish(owner, name, expression, 4, "the vocabulary-wide module that nobody called", (hidden,))
        expression = f"{hidden} @ {self._tied_weight(owner, hidden, vocabulary, width)}.T"
        self._finish(owner, name, expression, 5, "no head exists: tied to the token embedding", (hidden,), assumption=True)

    def _tied_weight(self, node: Node, hidden: str, vocabulary: int, width: int | None) -> str:
        tables = {id(m.weight): m for m in self.forward.token_weights if m.num_embeddings == vocabulary}
        fitting = [m for m in tables.values() if m.embedding_dim == width]
        if len(fitting) == 1:
            path = next(name for name, module in self.forward.model.named_modules() if module is fitting[0])
            return "self" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path.split(".")) + ".weight"
        sizes = [f"{m.num_embeddings} × {m.embedding_dim}" for m in tables.values()] or ["none"]
        problem = "several token embeddings could be tied" if fitting else "no head exists, and no token embedding has its width"
        raise self._error(node, f"{problem}: {hidden} is {width} wide, token embeddings are {', '.join(sizes)}", [])

    # ---- errors -----------------------------------------------------------------------------------------------------

    def _error(self, node: Node, problem: str, candidates: Sequence[str]) -> GraphCompletionError:
        known = sorted(n for n, v in self.forward.values.items() if isinstance(v, torch.Tensor) and n != RETURNED)
        readings = f" Readings considered: {'; '.join(candidates)}." if candidates else ""
        return GraphCompletionError(
            f"{node.name} cannot be completed: {problem}. Computed so far: {', '.join(known)}.{readings} To settle it, name its "
            f'inputs in config.json ("edges": [{{"source": "…", "target": "{node.name}"}}]), write them into its comment '
            f"('# {node.kind}: {node.name} <- …'), or write the statement {node.name}_output = … in forward.",
            node.name,
            tuple(candidates),
        )
