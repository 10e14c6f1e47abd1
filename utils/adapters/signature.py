"""What the signature of a `forward` says: names, and which of them only the model itself could compute.

Reads signatures, calls nothing; how a model answers is asked in `inference`.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from torch import nn

_RESULTS = "output|out|x|logits|hidden|hidden_states|weights|attn|result|value|values|state|states|add|sum"
_INTERMEDIATE = re.compile(rf"^(?P<node>[A-Za-z][A-Za-z0-9_]*_\d+)_({_RESULTS})$")
_INPUT_NODE = re.compile(r"^(input|tokens?|input_ids|src|source|tgt|target|pixel_values|image)(_\d+)?(_|$)")


class ModelSignatureInspector:
    """Reads the signature of a model's `forward`.

    Example:
        >>> inspector = ModelSignatureInspector(model)
        >>> inspector.get_required_params()
        ['input_ids']
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.signature = _signature_of(model)

    def get_parameters(self) -> list[str]:
        """Names of all parameters of `forward`, without `self`."""
        return list(self.signature.parameters)

    def get_required_params(self) -> list[str]:
        """Names of the parameters that have no default; `*args` and `**kwargs` are never required."""
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return [p.name for p in self.signature.parameters.values() if p.default is p.empty and p.kind not in variadic]

    def get_intermediate_params(self) -> list[str]:
        """Parameters that name the output of a canvas node (`mhsa_0_output`), which no caller can supply."""
        return [name for name in self.signature.parameters if is_intermediate_name(name)]

    def requires_intermediate_outputs(self) -> bool:
        """Whether `forward` lists values as arguments that it must compute itself.

        The whole name counts, `<kind>_<index>_output`: an `attention_mask` or `layer_idx` is no intermediate.
        """
        return bool(self.get_intermediate_params())


def _signature_of(model: nn.Module) -> inspect.Signature:
    """The signature of `forward`; a traced model has only a schema."""
    if not isinstance(model, torch.jit.ScriptModule):
        return inspect.signature(model.forward)
    method: Any = model.forward
    arguments = method.schema.arguments[1:]  # the first is the module
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature(
        [
            inspect.Parameter(
                a.name, kind, default=a.default_value if a.has_default_value() else inspect.Parameter.empty
            )
            for a in arguments
        ]
    )


def is_intermediate_name(name: str) -> bool:
    """Whether a name is that of a canvas node's result, such as `mhsa_0_output`, and not of an input node."""
    return bool(_INTERMEDIATE.match(name)) and not _INPUT_NODE.match(name)


def is_input_name(name: str) -> bool:
    """Whether a name is that of an input node: `input_0_tokens`, `tokens_0`, `src`."""
    return bool(_INPUT_NODE.match(name))


def is_output_of(name: str, node: str) -> bool:
    """Whether a name is that of a node's result: the node itself, or `<node>_output` and the like.

    The end counts too: `attention_bias` and `layer_idx` belong to no result of nodes `attention` and `layer`.
    """
    return name == node or bool(re.fullmatch(rf"{re.escape(node)}_({_RESULTS})", name))


def required_arguments(module: nn.Module) -> int:
    """How many arguments a module's `forward` cannot do without."""
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.default is p.empty and p.kind in kinds for p in parameters)


def positional_arguments(module: nn.Module) -> list[str]:
    """Names of the arguments that a module's `forward` takes by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds]
