"""Asking a model with tiny inputs, without leaving a trace. Knows tensors and modules; what an answer means is for others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

PROBE_BATCH, PROBE_LENGTH = 2, 5
"""Shape of the ids of a probe: distinct and both odd enough to be told from usual widths."""


@dataclass(frozen=True)
class Lookup:
    """One embedding lookup of a probe: which table was asked for which rows."""

    table: torch.Tensor
    ids: torch.Tensor

    def is_of(self, ids: torch.Tensor) -> bool:
        """Whether exactly these ids were looked up, in whatever order of the axes."""
        if self.ids.numel() != ids.numel():
            return False
        given = self.ids.reshape(-1).to(ids.device)
        return torch.equal(given, ids.reshape(-1)) or torch.equal(given, ids.t().reshape(-1))

    def first_position(self, length: int) -> int | None:
        """The first row where consecutive rows were looked up, one for each of `length` positions; else None."""
        if self.ids.numel() == 0 or self.ids.shape[-1] != length:
            return None
        row = self.ids.reshape(-1, length)[0]
        start = int(row[0])
        return start if length > 1 and torch.equal(row.cpu(), torch.arange(start, start + length)) else None


class _Lookups(TorchFunctionMode):
    """Notes every lookup, whether a module, a subclass, `F.embedding` or `torch.embedding` does it."""

    def __init__(self, found: list[Lookup]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if function is F.embedding:
            ids, table = args[:2] if len(args) > 1 else self._named(args, named)
            self.found.append(Lookup(table, ids.detach().clone()))
        elif function is torch.embedding and len(args) > 1:
            self.found.append(Lookup(args[0], args[1].detach().clone()))
        return function(*args, **named)

    @staticmethod
    def _named(args: tuple[Any, ...], named: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        return (args[0] if args else named["input"]), named["weight"]


@contextlib.contextmanager
def embedding_lookups() -> Iterator[list[Lookup]]:
    """Record the embedding lookups that happen while the block runs."""
    found: list[Lookup] = []
    with _Lookups(found):
        yield found


def tables_of(ids: torch.Tensor, lookups: list[Lookup]) -> list[torch.Tensor]:
    """The tables that were asked for exactly these ids: the token embeddings, each once."""
    tables: list[torch.Tensor] = []
    for lookup in lookups:
        if lookup.is_of(ids) and not any(lookup.table is table for table in tables):
            tables.append(lookup.table)
    return tables


def position_limits(length: int, lookups: list[Lookup]) -> list[int]:
    """How many positions each position table holds, as far as the probe shows: rows less the offset at which it begins."""
    starts = ((lookup, lookup.first_position(length)) for lookup in lookups)
    return [lookup.table.shape[0] - start for lookup, start in starts if start is not None]


def ids_below(rows: int, length: int, device: torch.device) -> torch.Tensor:
    """Token ids (2, length) below `rows` that are neither constant nor consecutive."""
    generator = torch.Generator().manual_seed(rows)
    ids = torch.randint(max(1, rows), (PROBE_BATCH, length), generator=generator)
    if rows > 2 and length > 1:  # a chance run of consecutive ids would look like positions
        ids[:, 1] = ids[:, 0]
    return ids.to(device)


@contextlib.contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Run the block in eval mode without gradients; afterwards modes, buffers and random states are as before."""
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers and buffer.shape == buffers[name].shape and not torch.equal(buffer, buffers[name]):
                    buffer.copy_(buffers[name])
