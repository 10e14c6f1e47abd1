"""Asking a model with tiny inputs, without leaving a trace. Knows tensors and modules; what an answer means is for others."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from utils.loading.model_config import ModelConfig

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
        if function in (F.embedding, F.embedding_bag):
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


def probe_ids(
    model: nn.Module, config: ModelConfig, rows: int | None = None, length: int = PROBE_LENGTH
) -> torch.Tensor:
    """Token ids (2, length) for a probe, neither constant nor consecutive, shorter where the length limit asks for it.

    The id of padding is left out, since models treat it apart; the last id is end-of-text where the config names it.

    Args:
        model: gives the device and, where it has a position table, a limit.
        config: gives a limit and special ids.
        rows: bound of the ids; None takes one that is legal for every embedding of the model.
        length: tokens per row.
    """
    limit = min(filter(None, [*position_rows(model), config.max_seq_len]), default=length)
    length, rows = max(1, min(limit, length)), rows or candidate_rows(model, config)[-1]
    ids = torch.randint(max(1, rows), (PROBE_BATCH, length), generator=torch.Generator().manual_seed(rows))
    padding, end = config.raw.get("pad_token_id"), config.raw.get("eos_token_id")
    if rows > 3:
        ids = torch.where(ids == padding, (ids + 1) % rows, ids) if isinstance(padding, int) else ids
    if rows > 2 and length > 2:  # a chance run of consecutive ids would look like positions
        ids[:, 1] = ids[:, 0]
        if isinstance(end, int) and 0 <= end < rows and not isinstance(end, bool):
            ids = torch.where(ids == end, (ids + 2) % rows, ids)
            ids[:, -1] = end
    return ids.to(device_of(model))


def candidate_rows(model: nn.Module, config: ModelConfig) -> list[int]:
    """Bounds for ids, the likeliest first: the config's vocabulary, then the sizes of the embeddings, falling.

    On a GPU only the bound that is legal everywhere: an id beyond the rows there ends the process's use of the device.
    """
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    known = [config.vocab_size] if config.vocab_size is not None else []
    bounds = list(dict.fromkeys([*known, *sorted(tables, reverse=True)])) or [2]
    return bounds if all(p.device.type == "cpu" for p in model.parameters()) else [min(bounds)]


def position_rows(model: nn.Module) -> list[int]:
    """Rows of the tables whose name says that they hold positions."""
    return [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and re.search(r"(^|[._])(w?pos|wpe|position)", name.lower())
    ]


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter; CPU for a model without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def dtype_of(model: nn.Module) -> torch.dtype:
    """Floating dtype of the first such parameter; float32 for a model without any."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


@contextlib.contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Run the block in eval mode without gradients; afterwards modes, buffers, attributes and random states are as before.

    Attributes that hold lists, dicts or sets get their content back too; deeper objects of the user are not followed.
    """
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    attributes = {module: _plain_attributes(module) for module in model.modules()}
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        for module, before in attributes.items():
            _restore_attributes(module, before)
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers and buffer.shape == buffers[name].shape and not torch.equal(buffer, buffers[name]):
                    buffer.copy_(buffers[name])


def _plain_attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Name → (object, copy of its content where it is a container) for what is no parameter, buffer or module."""
    return {
        name: (value, value.copy() if type(value) in (list, dict, set) else None)
        for name, value in vars(module).items()
        if not (name.startswith("_") and isinstance(value, dict)) and name != "training"
    }


def _restore_attributes(module: nn.Module, before: dict[str, tuple[Any, Any]]) -> None:
    now = vars(module)
    for name in [n for n in _plain_attributes(module) if n not in before]:
        del now[name]
    for name, (value, content) in before.items():
        if now.get(name) is not value:
            now[name] = value
        if type(value) is list:
            value[:] = content
        elif type(value) in (dict, set):
            value.clear()
            value.update(content)
