"""How the output of one canvas node is written: by its inputs, its modules, or one of the stated conventions.

Writes expressions; leaves the order of statements and their execution to `graph_values`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from utils.adapters.canvas import Node
from utils.adapters.completion import Completion
from utils.adapters.graph_embeddings import SOURCES, EmbeddingWriter
from utils.adapters.graph_head import HeadWriter
from utils.adapters.graph_residuals import ResidualWriter
from utils.adapters.signature import positional_arguments, required_arguments
from utils.adapters.statements import RETURNED, Statement, assignment
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
_CHANNELS_FIRST = (nn.Conv1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.GroupNorm)
"""Modules that want (B, C, T) where a canvas hands on (B, T, C)."""
_STACKS = (nn.TransformerEncoderLayer, nn.TransformerEncoder)
_SWITCH = re.compile(r"mask|weights|causal|bias|cache|flag|training|return|use_|dropout|eps")
"""Names of arguments that are settings of a call rather than values that flow through a canvas."""


class NodeWriter:
    """Writes what nodes compute into a `ForwardCompleter`."""

    def __init__(self, forward: ForwardCompleter) -> None:
        self.forward = forward
        self.canvas = forward.canvas
        self.embeddings = EmbeddingWriter(self)
        self.residuals = ResidualWriter(self)
        self.head = HeadWriter(self)

    # ---- one node ---------------------------------------------------------------------------------------------------

    def write(self, node: Node, name: str) -> None:
        """Write `name = …` for a node's output.

        Raises:
            GraphCompletionError: what the node computes could be meant in two ways, or nothing says it.
        """
        if node.role == "input":
            return self.finish(node, name, self.forward.input_name, 3, "the model's input", ())
        if node.role == "output":
            return self.head.write(name, node)
        if node.name in self.forward.producers:
            return self._write_from_statements(node, name)
        inside = node.name in self.forward.owners.inside and node.name not in self.forward.output_name
        if inside and self.forward.hoist(node, name):
            self.forward.output_name[node.name] = name
            return None
        if node.name in self.forward.output_name:
            return self.finish(node, name, self.forward.output_name[node.name], 3, "another name of the same node", ())
        writers = {
            "residual": self.residuals.write,
            "add_norm": self.residuals.write,
            "embedding": self.embeddings.write,
            "position": self.embeddings.write_position,
            "concat": self._write_concat,
            "product": self._write_product,
        }
        writer = writers.get(node.role, self.write_applied)
        writer(node, name)

    def finish(
        self,
        node: Node,
        name: str,
        expression: str,
        evidence: int,
        reason: str,
        reads: Sequence[str],
        assumption: bool = False,
    ) -> None:
        self._refuse_unknown_inputs(node)
        self._refuse_unread_parameters(node, expression)
        text = assignment(name, expression, f"completed: {reason.split(';')[0]}")
        self.forward.emit(Statement.parse(text, frozenset(self.forward.globals)))
        self.forward.output_name[node.name] = name
        self.forward.superseded(node)
        self.forward.read_by.setdefault(node.name, tuple(reads))
        self.forward.completions.append(Completion(name, expression, evidence, reason, assumption))

    def _refuse_unknown_inputs(self, node: Node) -> None:
        """A comment that names a node which is not there is a slip; words without an index may be prose."""
        named = [one for one in node.inputs if node.inputs_from == "comment" and re.search(r"_\d+$", one)]
        unknown = [one for one in named if self.canvas.node_of(one) is None]
        if unknown:
            raise self.error(node, f"its comment names {', '.join(unknown)}, and no node is called that", [])

    def _refuse_unread_parameters(self, node: Node, expression: str) -> None:
        """A parameter of the node itself, such as a scale, acts somewhere, and nothing says where."""
        unread = [
            n for n in self.unread_parameters() if self.canvas.node_of(n) == node and f"self.{n}" not in expression
        ]
        if unread:
            raise self.error(
                node,
                f"it owns the parameter {', '.join(unread)}, which nothing reads, and nothing says where it acts",
                [],
            )

    def unread_parameters(self) -> list[str]:
        """Parameters of the model itself that no statement reads; none where a method is called that could read them."""
        model, called = self.forward.model, self.forward.called()
        if any(callable(getattr(type(model), name, None)) for name in called):
            return []
        return [name for name, _ in model.named_parameters(recurse=False) if name not in called]

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
                    expression += f" + {self.embeddings.embedded(part, module)}"
                else:
                    expression = f"self.{part}({expression})"
            return self.finish(node, name, expression, 4, "the parts of the embedding that nobody joined", loose)
        if open_parts and not forward_names:
            raise self.error(
                node, f"its parts {', '.join(open_parts)} are never called, while {variable} is computed", []
            )
        if len(loose) > 1:
            raise self.error(node, "several of its values are computed and never used", loose)
        source = loose[0] if loose and not forward_names else variable
        self.finish(node, name, source, 3, "another name of the same value", ())

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

    def single_input(self, node: Node) -> tuple[str, int, str]:
        """(variable, evidence, reason) of what a node with one input reads."""
        given = self.given_inputs(node)
        if len(given) == 1:
            level = self.evidence_of(node)
            return (
                self.forward.value_of(given[0]),
                level,
                f"{'edge' if level == 1 else 'comment'}: {given[0].name} → {node.name}",
            )
        if len(given) > 1:
            if all(one.role in SOURCES for one in given):
                return self.embeddings.joined(given), self.evidence_of(node), "embeddings are summed"
            names = [one.name for one in given]
            readings = [f"{' + '.join(names)}", f"torch.cat([{', '.join(names)}], dim=-1)"]
            raise self.error(
                node, f"{len(given)} inputs ({', '.join(names)}) meet in it, and nothing says how", readings
            )
        variable = self.preceding(node)
        return variable, 4, f"its module, applied to what precedes it on the canvas ({variable})"

    def preceding(self, node: Node) -> str:
        """Variable with the output of the node before, in canvas order; the ids where there is none."""
        for previous in self.canvas.before(node):
            if previous.role == "input" or (previous.role == "output" and not self.forward.is_placed(previous)):
                continue
            if previous.role in SOURCES:
                return self.embeddings.joined_at(previous)
            return self.forward.value_of(previous)
        return self.forward.input_name

    # ---- modules and functions --------------------------------------------------------------------------------------

    def _write_concat(self, node: Node, name: str) -> None:
        given = self.given_inputs(node)
        if len(given) < 2:
            raise self.error(node, "it joins several values, and no edge or comment names them", [])
        variables = [self.forward.value_of(one) for one in given]
        joined = f"{self._torch()}.cat([{', '.join(variables)}], dim=-1)"
        self.finish(node, name, joined, self.evidence_of(node), "inputs side by side", variables)

    def _write_product(self, node: Node, name: str) -> None:
        given = self.given_inputs(node)
        if node.modules or len(given) < 2:
            return self.write_applied(node, name)
        variables = [self.forward.value_of(one) for one in given]
        reason = "inputs multiplied entry by entry"
        self.finish(node, name, " * ".join(variables), self.evidence_of(node), reason, variables)

    def _torch(self) -> str:
        """The name under which the file knows torch; where it does not, the completed source imports it."""
        known = next((alias for alias, value in self.forward.globals.items() if value is torch), None)
        if known is None:
            self.forward.globals["torch"] = torch
            self.forward.imports.append("import torch")
        return known or "torch"

    def write_applied(self, node: Node, name: str) -> None:
        if not node.modules:
            return self._write_function(node, name)
        given = self.given_inputs(node)
        summed = all(one.role in SOURCES for one in given) and "cross" not in node.kind.lower()
        if node.role == "attention" and len(given) in (2, 3) and not summed:
            variables = [self.forward.value_of(one) for one in given]
            variables = variables if len(variables) == 3 else [variables[0], variables[1], variables[1]]
            expression = self.applied(node, node.modules[0], variables)
            reason = (
                "inputs in their order as query, key and value"
                if len(given) == 3
                else "first input asks, second is attended to"
            )
            return self.finish(node, name, expression, self.evidence_of(node), reason, variables, assumption=True)
        if len(given) > 1 and not summed and len(node.modules) == 1 and self._takes(node.modules[0], len(given)):
            variables = [self.forward.value_of(one) for one in given]
            expression = self.applied(node, node.modules[0], variables)
            reason = "its module, applied to its inputs in their order"
            return self.finish(node, name, expression, self.evidence_of(node), reason, variables, assumption=True)
        variable, evidence, reason = self.single_input(node)
        if node.role == "attention" and "cross" in node.kind.lower():
            problem = f"it attends from one value to another, and only one of them is known ({variable})"
            raise self.error(node, problem, [f"query {variable}, memory <?>", f"query <?>, memory {variable}"])
        chain = self._chain(node)
        expression = variable
        for part in chain:
            expression = self.applied(node, part, [expression])
        self.finish(node, name, expression, evidence, reason, (variable,), assumption=len(chain) > 1)

    def _chain(self, node: Node) -> tuple[str, ...]:
        """The node's modules in the order in which they act; an error where that is open."""
        if len(node.modules) == 1:
            return node.modules
        modules = {part: getattr(self.forward.model, part) for part in node.modules}
        main = [part for part, module in modules.items() if isinstance(module, _MAIN_PARTS)]
        activations = [
            p
            for p, m in modules.items()
            if type(m).__module__ == "torch.nn.modules.activation" and not isinstance(m, nn.MultiheadAttention)
        ]
        simple = all(
            isinstance(m, (*_MAIN_PARTS, nn.Dropout, nn.Identity)) or p in activations for p, m in modules.items()
        )
        if simple and (len(main) == 1 or (len(main) == 2 and activations)):
            order = list(modules)
            if len(main) == 2 and not order.index(main[0]) < order.index(activations[0]) < order.index(main[1]):
                order.remove(activations[0])
                order.insert(order.index(main[0]) + 1, activations[0])
            return tuple(order)
        if node.name in modules and all(isinstance(m, nn.Dropout) for p, m in modules.items() if p != node.name):
            return (node.name, *(part for part in modules if part != node.name))
        raise self.error(
            node,
            f"it owns {', '.join(modules)}, and nothing says in which order and with which activation they act",
            [],
        )

    def applied(self, node: Node, part: str, variables: list[str]) -> str:
        """`self.part(variables)`, with the arguments and the first result that its kind asks for."""
        module = getattr(self.forward.model, part)
        call = f"self.{part}"
        if isinstance(module, nn.MultiheadAttention):
            arguments = variables if len(variables) == 3 else [variables[0]] * 3
            if module.batch_first:
                return f"{call}({', '.join(arguments)})[0]"
            return f"{call}({', '.join(f'{a}.transpose(0, 1)' for a in arguments)})[0].transpose(0, 1)"
        if isinstance(module, _STACKS) and not all(_is_batch_first(module)):
            return f"{call}({', '.join(f'{v}.transpose(0, 1)' for v in variables)}).transpose(0, 1)"
        if isinstance(module, nn.RNNBase):
            turned = variables[0] if module.batch_first else f"{variables[0]}.transpose(0, 1)"
            return f"{call}({turned})[0]" + ("" if module.batch_first else ".transpose(0, 1)")
        if isinstance(module, _CHANNELS_FIRST):
            expression = f"{call}({variables[0]}.transpose(1, 2)).transpose(1, 2)"
            self._refuse_lengthening(node, variables[0], expression)
            return expression
        needed = required_arguments(module)
        if len(variables) == 1 and needed == 3 and node.role == "attention":
            variables = variables * 3
        if needed > len(variables):
            raise self.error(node, f"self.{part} needs {needed} inputs, and {len(variables)} is known", [])
        if needed == 2 and node.role == "attention":
            variables = variables[:2]  # key and value are one memory
        elif not self._takes(part, len(variables)):
            raise self.error(node, f"self.{part} takes {needed} inputs, and {len(variables)} are drawn", variables)
        expression = f"{call}({', '.join(variables)})"
        return expression + self._first_of(node, part, self._evaluate(node, expression))

    def _refuse_lengthening(self, node: Node, variable: str, expression: str) -> None:
        """Padding that adds positions, as causal convolutions have it, is cut off by a statement that is not there."""
        before, after = self.forward.evaluated(variable), self._evaluate(node, expression)
        if isinstance(before, torch.Tensor) and after.shape[1] > before.shape[1]:
            problem = (
                f"it turns {before.shape[1]} positions into {after.shape[1]}, and nothing says which of them are kept"
            )
            cut = f"[:, : {self.forward.input_name}.shape[1]]"
            raise self.error(node, problem, [f"{expression}{cut} (causal)", expression])

    def _takes(self, part: str, count: int) -> bool:
        """Whether a module can be given this many values: as many as it needs, and what it could do without is no mask or switch."""
        module = getattr(self.forward.model, part)
        if isinstance(module, nn.Module) and required_arguments(module) in (0, count):
            return True
        names = positional_arguments(module)[:count]
        return len(names) == count and not any(_SWITCH.search(name) for name in names)

    def _first_of(self, node: Node, part: str, value: Any) -> str:
        """How the tensor is taken out of what a module gives: `[0]` of a tuple, the one entry of a dict that has its shape."""
        if isinstance(value, (tuple, list)):
            return "[0]"
        if not isinstance(value, Mapping):
            return ""
        batch = tuple(self.forward.ids.shape)
        fitting = [
            key
            for key, entry in value.items()
            if isinstance(entry, torch.Tensor) and entry.dim() == 3 and tuple(entry.shape[:2]) == batch
        ]
        if len(fitting) != 1:
            listed = [f"self.{part}(…)[{key!r}]" for key in value]
            raise self.error(node, f"self.{part} gives {len(value)} values, and nothing says which is meant", listed)
        return f"[{fitting[0]!r}]"

    def _evaluate(self, node: Node, expression: str) -> Any:
        scope = {**self.forward.globals, **self.forward.values, "self": self.forward.model}
        try:
            return eval(expression, scope)
        except Exception as error:  # the user's module refuses its input: say which, with shapes
            shapes = {
                n: tuple(v.shape)
                for n, v in self.forward.values.items()
                if n in expression and isinstance(v, torch.Tensor)
            }
            raise self.error(
                node, f"{expression} fails with {type(error).__name__}: {error} (given {shapes})", []
            ) from error

    def _write_function(self, node: Node, name: str) -> None:
        stated = [str(v) for k, v in node.params.items() if k in ("activation", "function", "type", "name", "kind")]
        compact = {"".join(c for c in text.lower() if c.isalnum()) for text in [node.kind, *stated]}
        functions = sorted({_FUNCTIONS[text] for text in compact if text in _FUNCTIONS})
        if node.role == "activation" and len(functions) == 1:
            variable, evidence, _ = self.single_input(node)
            home = f"{self._torch()}.nn.functional"
            return self.finish(
                node, name, f"{home}.{functions[0]}({variable})", evidence, f"{functions[0]} node", (variable,)
            )
        rates = [
            node.params[key]
            for key in ("p", "dropout", "rate", "prob")
            if isinstance(node.params.get(key), (int, float))
        ]
        if node.role == "dropout" and rates:
            variable, evidence, _ = self.single_input(node)
            call = f"{self._torch()}.nn.functional.dropout({variable}, {rates[0]}, self.training)"
            return self.finish(node, name, call, evidence, "dropout node", (variable,))
        raise self.error(
            node, f"a node of kind {node.kind!r} has no module self.{node.name} and no rule", self._nearby_modules()
        )

    def _nearby_modules(self) -> list[str]:
        called = {attribute for statement in self.forward.original for attribute in statement.calls}
        return [f"self.{child}" for child, _ in self.forward.model.named_children() if child not in called]

    # ---- errors -----------------------------------------------------------------------------------------------------

    def error(self, node: Node, problem: str, candidates: Sequence[str]) -> GraphCompletionError:
        known = sorted(n for n, v in self.forward.values.items() if isinstance(v, torch.Tensor) and n != RETURNED)
        readings = f" Readings considered: {'; '.join(candidates)}." if candidates else ""
        return GraphCompletionError(
            f"{node.name} cannot be completed: {problem}. Computed so far: {', '.join(known)}.{readings} To settle it, name its "
            f'inputs in config.json ("edges": [{{"source": "…", "target": "{node.name}"}}]), write them into its comment '
            f"('# {node.kind}: {node.name} <- …'), or write the statement {node.name}_output = … in forward.",
            node.name,
            tuple(candidates),
        )


def _is_batch_first(stack: nn.Module) -> list[bool]:
    """For every attention in a stack of PyTorch's, whether its axis of examples comes first."""
    return [module.batch_first for module in stack.modules() if isinstance(module, nn.MultiheadAttention)]
