"""What every way of tracing a model needs: its maths in the open, its chatter in the log, and its failures in words."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import transformer

from utils.errors import ExportError
from utils.export.runner import first_lines
from utils.export.selective_scan import doublings_for, selective_scan
from utils.export.subject import ExportSubject, undisturbed

logger = logging.getLogger(__name__)

_TALKATIVE = ("torch", "onnxscript", "onnx_ir")

_SCAN = "mamba_selective_scan"

_ADVICE = (
    (
        r"static shape|specializ|Dim\.DYNAMIC|[Cc]onstraints violated|ConstraintViolation",
        "forward fixes its batch or length. Take sizes from the tensor (x.shape[1]) and not from numbers, and avoid Python "
        "loops over the length. A recurrent layer (nn.LSTM, nn.GRU) needs torch 2.13 for a dynamic length.",
    ),
    (
        r"data-dependent|DataDependent|\.item\(\)|vmap",
        "forward decides by the values of a tensor. Replace `if`, `.item()` and indexing by values with torch.where or a mask.",
    ),
    (
        r"No ONNX function|DispatchError|ConversionError|decompos",
        "An operator has no ONNX counterpart. Write it with basic operations (matmul, softmax, where, …).",
    ),
)
_ADVICE_OTHERWISE = (
    "Reduce forward to tensor operations until torch.export.export(model, (input_ids,)) runs; set the log level of "
    "'utils.export' to DEBUG to see everything that the exporter said."
)


@contextlib.contextmanager
def tracing(subject: ExportSubject, format_name: str) -> Iterator[None]:
    """Let an exporter loose on a model: left as it was, without fused fast paths, quiet.

    Raises:
        ExportError: whatever the exporter or the model raised, with its reason and what to do.
    """
    with (
        undisturbed(subject.adapted),
        without_fast_path(),
        experts_as_products(subject.adapted),
        selective_scans_in_doublings(subject.adapted, subject.signature.max_length),
        chatter_in_the_log(),
    ):
        _forget_recurrent_dispatch()
        try:
            yield
        except ExportError:
            raise
        except Exception as error:  # exporters let through whatever the model's code raises
            raise ExportError(_explain(subject.name, format_name, error)) from error


@contextlib.contextmanager
def without_fast_path() -> Iterator[None]:
    """Trace `nn.MultiheadAttention` and `nn.Transformer` as the maths that they are.

    The fused kernel for inference has no counterpart in other formats; and `nn.TransformerEncoder` and its decoder compare
    the values of a mask with those of a causal one, to pass a hint beside the mask that changes no number.
    """
    before, hint = torch.backends.mha.get_fastpath_enabled(), transformer._detect_is_causal_mask
    torch.backends.mha.set_fastpath_enabled(False)
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        transformer._detect_is_causal_mask = hint


@contextlib.contextmanager
def experts_as_products(model: nn.Module) -> Iterator[None]:
    """Let mixtures of experts of transformers multiply each token by its experts' weights, instead of sorting tokens.

    Sorted, they go through an operator of transformers' own that no other runtime has. The sums are the same.
    """
    mixtures: list[Any] = [module for module in model.modules() if hasattr(module, "get_experts_implementation")]
    before = [module.get_experts_implementation() for module in mixtures]
    for module in mixtures:
        module.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        for module, implementation in zip(mixtures, before):
            module.set_experts_implementation(implementation)


@contextlib.contextmanager
def selective_scans_in_doublings(model: nn.Module, max_length: int | None) -> Iterator[None]:
    """Let state spaces of transformers (Mamba, Falcon-Mamba, Jamba, Zamba) keep a free length: see `selective_scan`.

    Their own scan, in Python, loops over the length of the example and so fixes it. Replaced is the name in every source
    file that the model's classes come from; a model or a transformers without that function is left alone.

    Args:
        model: any model.
        max_length: the longest sequence that it takes, in tokens; None where it has no limit.
    """
    replacement = partial(selective_scan, doublings=doublings_for(max_length))
    before = [(source, getattr(source, _SCAN)) for source in _sources_of(model) if _is_transformers_scan(source)]
    for source, _ in before:
        setattr(source, _SCAN, replacement)
    try:
        yield
    finally:
        for source, scan in before:
            setattr(source, _SCAN, scan)


def _sources_of(model: nn.Module) -> list[ModuleType]:
    """The Python modules that the classes of a model, and those they inherit from, were written in."""
    classes = {base for module in model.modules() for base in type(module).__mro__}
    return [sys.modules[name] for name in {base.__module__ for base in classes} if name in sys.modules]


def _is_transformers_scan(source: ModuleType) -> bool:
    """Whether the scan that a file calls is transformers' own: another of that name may mean other arguments."""
    return str(getattr(getattr(source, _SCAN, None), "__module__", "")).startswith("transformers.models.")


@contextlib.contextmanager
def recurrent_layers_as_loops() -> Iterator[None]:
    """Let `nn.LSTM` and `nn.GRU` keep a free length, as loops: torch can since 2.13; before, they fix it and are refused."""
    try:
        from torch.export import _patches as patches
    except ImportError:
        yield
        return
    with patches.register_lstm_while_loop_decomposition(), patches.register_gru_while_loop_decomposition():
        yield


def _forget_recurrent_dispatch() -> None:
    """Let torch look up anew what stands for a recurrent layer: what one export found there leads the next past the loops."""
    for operator in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
        operator._dispatch_cache.clear()


class _Forwarder(logging.Handler):
    """Hands records of other packages on to our log, as debug information."""

    def emit(self, record: logging.LogRecord) -> None:
        logger.debug("%s: %s", record.name, record.getMessage())


def _to_our_log(record: logging.LogRecord) -> bool:
    """Filter of the root logger, into which ONNX Runtime's quantizer writes advice for those who call it."""
    logger.debug("%s", record.getMessage())
    return False


def _talkers() -> list[logging.Logger]:
    """The exporter's loggers, and those below them that show their records themselves."""
    below = [
        name for name in logging.root.manager.loggerDict if name.startswith(tuple(f"{top}." for top in _TALKATIVE))
    ]
    return [logging.getLogger(top) for top in _TALKATIVE] + [t for t in map(logging.getLogger, below) if t.handlers]


@contextlib.contextmanager
def chatter_in_the_log() -> Iterator[None]:
    """Send what the exporter prints, logs and warns to our log instead of the screen.

    Where it fails it prints whole graphs. The redirection holds for the process, as long as the tracing runs.
    """
    printed = io.StringIO()
    talkers = _talkers()
    before = [(talker.handlers, talker.propagate) for talker in talkers]
    logging.root.addFilter(_to_our_log)
    for talker in talkers:
        talker.handlers, talker.propagate = [_Forwarder()], False
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
        ):
            warnings.simplefilter("always")
            yield
    finally:
        logging.root.removeFilter(_to_our_log)
        for talker, (handlers, propagate) in zip(talkers, before):
            talker.handlers, talker.propagate = handlers, propagate
        if printed.getvalue().strip():
            logger.debug("printed: %s", printed.getvalue())
        for warning in caught:
            logger.debug("%s: %s", warning.category.__name__, warning.message)


def _explain(name: str, format_name: str, error: BaseException) -> str:
    """The exporter's reason, without its essay, and what to do about it."""
    deepest = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__
    everything = f"{error}\n{type(deepest).__name__}: {deepest}"
    advice = next((text for pattern, text in _ADVICE if re.search(pattern, everything)), _ADVICE_OTHERWISE)
    return f"{name!r} cannot be exported to {format_name}. Reason: {type(deepest).__name__}: {first_lines(str(deepest))}\nWhat to do: {advice}"
