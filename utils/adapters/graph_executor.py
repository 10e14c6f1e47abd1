"""Completes a broken export: finds what its `forward` leaves out and writes it, as new source bound to the same modules.

The meaning is settled once, from edges, comments, statements, modules and a few conventions, strongest first. What runs
afterwards is an ordinary module: no hooks, no cache, no interpretation. What stays open is a `GraphCompletionError`.
How values are found lies in `graph_values`; calling any finished model is left to `signature` and `model_adapter`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from utils.adapters.canvas import numbered_node_of, read_canvas
from utils.adapters.completion import Completion, GraphCompletion
from utils.adapters.forward_source import ClassSource, read_class
from utils.adapters.graph_values import RESIDUAL_READINGS, ForwardCompleter, rebound
from utils.adapters.signature import ModelSignatureInspector
from utils.adapters.statements import Statement
from utils.errors import ConfigError, GraphCompletionError
from utils.loading.model_config import ModelConfig
from utils.loading.sources import import_source

if TYPE_CHECKING:
    from utils.loading.model_loader import ModelSource

__all__ = ["Completion", "ComputationalGraphExecutor", "GraphCompletion", "complete"]


def complete(
    model: nn.Module,
    config: object = None,
    source: str | ModelSource | None = None,
    *,
    strict: bool = False,
    residual: str = "stream",
) -> GraphCompletion:
    """Complete a model's `forward` where its source leaves something out.

    Args:
        model: the instance; it is not changed.
        config: whatever `ModelConfig.of` takes; its nodes and edges are the strongest evidence.
        source: text or path of the file that defines the class, or the `ModelSource` of a loaded model, which brings the
            files that it imports; found by itself where Python knows it.
        strict: refuse completions that rest on conventions.
        residual: "stream" or "sublayer_input", see `RESIDUAL_READINGS`.

    Returns:
        The outcome; its `model` shares every parameter and buffer with the one given.

    Raises:
        GraphCompletionError: something stays open; the message names the node, the candidates and the edit that settles it.
        ConfigError: `residual` is unknown.
    """
    if residual not in RESIDUAL_READINGS:
        raise ConfigError(f"residual={residual!r} is unknown. Known: {', '.join(RESIDUAL_READINGS)}.")
    known = _with_metadata(ModelConfig.of(config), model)
    text_or_path = source if source is None or isinstance(source, str) else source.text
    found = read_class(model, text_or_path, getattr(source, "file_name", None))
    if found is None:
        return GraphCompletion.direct(model)
    scope = _globals_of(model)
    statements = found.statements(frozenset(scope))
    canvas = read_canvas(model, known, found.class_node, found.class_text, _flows(statements))
    completer = ForwardCompleter(model, known, canvas, found.forward, statements, scope, residual)
    if not completer.has_faults():
        return GraphCompletion.direct(model, found.text, found.file_name)
    completer.run()
    if not completer.completions:
        return GraphCompletion.direct(model, found.text, found.file_name)
    if strict:
        _refuse_conventions(completer.completions)
    text = found.with_forward(completer.forward_text(found.docstring), completer.imports)
    completed = _bind(model, found, text, scope, getattr(source, "files", {}))
    _prove(completed, completer)
    return GraphCompletion(completed, "completed", tuple(completer.completions), found.text, text, found.file_name)


def _flows(statements: list[Statement]) -> list[tuple[str, str]]:
    """(node, node that reads it), as far as names in statements tell."""
    flows = []
    for statement in statements:
        written = {numbered_node_of(name) for name in statement.writes} - {None}
        read = {numbered_node_of(name) for name in statement.reads} - {None} - written
        flows += [(str(source), str(target)) for source in read for target in written]
    return flows


def _with_metadata(config: ModelConfig, model: nn.Module) -> ModelConfig:
    """The config, with the drawing of the class attribute `__metadata__` where the config shows none."""
    metadata = getattr(type(model), "__metadata__", None)
    if config.nodes or config.edges or not isinstance(metadata, dict):
        return config
    drawn = ModelConfig.of(metadata)
    stated = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if getattr(config, f.name) not in (None, (), {})
    }
    return dataclasses.replace(drawn, **stated)


def _globals_of(model: nn.Module) -> dict[str, Any]:
    """Names that `forward` can see: those of its module and of enclosing functions."""
    function = inspect.unwrap(type(model).forward)
    names = dict(getattr(function, "__globals__", {}))
    if getattr(function, "__closure__", None):
        names.update(inspect.getclosurevars(function).nonlocals)
    return names


def _refuse_conventions(completions: list[Completion]) -> None:
    for completion in completions:
        if completion.evidence == 5:
            raise GraphCompletionError(
                f"strict=True: {completion.name} could only be completed by convention ({completion.name} = "
                f"{completion.expression}: {completion.reason}). Draw the edge in config.json, name the inputs in the "
                f"node's comment, or leave strict off.",
                completion.name,
                (completion.expression,),
            )


def _bind(
    model: nn.Module, source: ClassSource, text: str, scope: dict[str, Any], neighbours: Mapping[str, str]
) -> nn.Module:
    """A new object of the completed class that shares parameters, buffers and submodules with `model`."""
    name = type(model).__name__
    if source.whole_file:
        module = import_source({**neighbours, source.file_name: text}, source.file_name)
    else:  # the class came from a notebook cell: its names are those of the notebook
        module = ModuleType(type(model).__module__)
        module.__dict__.update(scope)
        exec(compile(text, f"<completed {name}>", "exec"), module.__dict__)
    cls = getattr(module, name)
    return rebound(model, cls)


def _prove(completed: nn.Module, completer: ForwardCompleter) -> None:
    """The compiled class must give what the statements gave one by one; anything else is a defect of this package."""
    result = completer.call(completed)
    expected = completer.result
    if completer.forward.decorator_list:  # such as autocast, which the statements one by one do not see
        expected = None
    if isinstance(expected, torch.Tensor) and not (
        isinstance(result, torch.Tensor)
        and result.shape == expected.shape
        and torch.allclose(result, expected, atol=1e-5, equal_nan=True)
    ):
        raise GraphCompletionError(
            "The completed forward does not agree with its own statements. This is a defect of this package: please report "
            "it together with the export.",
            type(completed).__name__,
        )


class ComputationalGraphExecutor:
    """Runs a model whose generated `forward` lists intermediate values as arguments or leaves statements out.

    Attributes:
        completion: what was completed, with diff and `save`.
        module: the completed model, an ordinary `nn.Module`.

    Example:
        >>> executor = ComputationalGraphExecutor(model, ModelSignatureInspector(model))
        >>> logits = executor.forward(input_ids)         # (B, T) int64 → (B, T, V)
    """

    def __init__(
        self,
        model: nn.Module,
        inspector: ModelSignatureInspector | None = None,
        config: object = None,
        source: str | None = None,
        *,
        strict: bool = False,
        residual: str = "stream",
    ) -> None:
        from utils.adapters.model_adapter import AdaptedModel  # the adapter joins this file with `signature`

        self.inspector = inspector if inspector is not None else ModelSignatureInspector(model)
        self.completion = complete(model, config, source, strict=strict, residual=residual)
        self._adapted = AdaptedModel(self.completion.model, config, completion=self.completion)

    @property
    def module(self) -> nn.Module:
        """The completed model."""
        return self.completion.model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, T, V) for token ids (B, T); the mask (B, T) has 1 for real tokens."""
        return self._adapted(input_ids, attention_mask).logits

    __call__ = forward
