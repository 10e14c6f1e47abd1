"""Which lengths of text a model takes: a limit, a shortest one, multiples of a number, or exactly one.

Asks by a function that says whether a length runs; the usual probe and its answer are for `inference`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from utils.adapters.contract import CallContract
from utils.adapters.probing import PROBE_LENGTH, position_rows
from utils.loading.model_config import ModelConfig

RunsAt = Callable[[CallContract, int], bool]

_PLACES = re.compile(r"pos|^pe$|mask|bias|causal|tril|rope|rotary|cos|sin|freq")
"""Names of parameters and buffers whose size may be the longest text."""

_STATED = (
    "max_seq_len",
    "max_seq_length",
    "block_size",
    "seq_len",
    "seq_length",
    "context_length",
    "context_size",
    "n_ctx",
    "max_len",
    "max_length",
    "sequence_length",
    "window_size",
    "chunk_size",
)

_USUAL = (8, 16, 12, 32, 64, 128)
"""Lengths tried where the usual one is refused: between them multiples of most patch and chunk sizes."""

_DEAREST = 2e9
"""Most multiplications (tokens × weights) that one question may cost."""


def measured_limit(model: nn.Module, contract: CallContract, runs_at: RunsAt) -> int | None:
    """A limit that lies in a sliced table or mask: a size that one token more breaks. Only cheap ones are tried."""
    weight = sum(parameter.numel() for parameter in model.parameters())
    sizes = sorted(size for size in _sizes_of_places(model) if size > PROBE_LENGTH and size * weight < _DEAREST)
    return next((size for size in sizes if runs_at(contract, size) and not runs_at(contract, size + 1)), None)


def _sizes_of_places(model: nn.Module) -> set[int]:
    """Sizes of those parameters and buffers that are named for positions or masks."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    names = [(name.rsplit(".", 1)[-1].lower(), tensor.shape) for name, tensor in tensors]
    shapes = [shape for name, shape in names if _PLACES.search(name) and "relative" not in name]
    return {size for shape in shapes for size in shape if len(shape) > 1}


def other_lengths(model: nn.Module, config: ModelConfig) -> list[int]:
    """Lengths worth a try where the usual one is refused: stated ones, sizes of places and of layers over time, usual ones."""
    holders = [config, getattr(model, "config", None), *model.modules()]
    stated = [value for holder in holders for name in _STATED if isinstance(value := getattr(holder, name, None), int)]
    square = [m.in_features for m in model.modules() if isinstance(m, nn.Linear) and m.in_features == m.out_features]
    weight = max(1, sum(parameter.numel() for parameter in model.parameters()))
    lengths = dict.fromkeys(
        [*stated, *sorted(position_rows(model)), *sorted(_sizes_of_places(model)), *_USUAL, *square]
    )
    return [n for n in lengths if n > 1 and n != PROBE_LENGTH and n * weight < _DEAREST]


def measured_lengths(contract: CallContract, length: int, runs_at: RunsAt) -> CallContract:
    """Say which lengths a model takes that refused the usual one and took `length`: one, multiples of one, or from one on."""
    if runs_at(contract, length + 1):
        shortest = next((n for n in range(1, length) if runs_at(contract, n) and runs_at(contract, n + 1)), length)
        return _told(contract, "shorter ones fail", min_length=shortest)
    for step in range(2, length + 1):
        if all(runs_at(contract, n * step) for n in (1, 2)) and not runs_at(contract, step + 1):
            return _told(contract, f"{step} and {2 * step} run, {step + 1} does not", min_length=step, multiple_of=step)
    shortest = next((n for n in range(1, length) if runs_at(contract, n)), length)
    return _told(contract, "no other length runs" if shortest == length else "longer ones fail", shortest, length)


def _told(
    contract: CallContract, why: str, min_length: int, max_length: int | None = None, multiple_of: int = 1
) -> CallContract:
    limit = max_length if max_length is not None else contract.max_length
    reasons = {
        **contract.reasons,
        "shortest sequence": why,
        **({"longest sequence": why} if max_length is not None else {}),
    }
    return replace(contract, min_length=min_length, max_length=limit, multiple_of=multiple_of, reasons=reasons)
