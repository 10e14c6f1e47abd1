"""Asking a model with tiny inputs, without leaving a trace. Knows tensors and modules; what an answer means is for others."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from utils.adapters.snapshot import left_as_it_was as left_as_it_was  # its home; others know it under this path
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


@dataclass
class Seen:
    """What a probe did inside: embedding lookups, and what linear layers gave.

    Attributes:
        lookups: rows that were asked for, by `F.embedding`, by indexing, or by a one-hot vector of stated width.
        linear: (result, width of what went in) of each linear layer; kept so that storage is not used again meanwhile.
    """

    lookups: list[Lookup] = field(default_factory=list)
    linear: list[tuple[torch.Tensor, int]] = field(default_factory=list)

    def is_head(self, tensor: torch.Tensor) -> bool:
        """Whether a linear layer gave exactly this tensor (or a view of all of it) and changed the width by it."""
        return any(
            given.numel() == tensor.numel() and given.data_ptr() == tensor.data_ptr() and given.shape[-1] != width
            for given, width in self.linear
        )


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
        return self._result(function, args, named)

    def _result(self, function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return function(*args, **named)

    @staticmethod
    def _named(args: tuple[Any, ...], named: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        return (args[0] if args else named["input"]), named["weight"]


_SHARES = (F.log_softmax, F.softmax, torch.log_softmax, torch.softmax, torch.Tensor.log_softmax, torch.Tensor.softmax)
"""Functions that turn scores into probabilities."""


class _Watch(_Lookups):
    """Notes what linear layers give too, and lookups by indexing a matrix and by one-hot vectors."""

    def __init__(self, seen: Seen) -> None:
        super().__init__(seen.lookups)
        self.seen = seen

    def _result(self, function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if function is torch.Tensor.__getitem__ and _is_lookup(args[0], args[1]):
            self.found.append(Lookup(args[0], args[1].detach().clone()))
        elif function in (torch.index_select, torch.Tensor.index_select) and args[1:2] == (0,) and len(args) > 2:
            self.found.append(Lookup(args[0], args[2].detach().clone()))
        elif function is F.one_hot and (rows := named.get("num_classes", args[1] if len(args) > 1 else -1)) > 0:
            self.found.append(Lookup(torch.empty((rows, 0)), args[0].detach().clone()))
        result = function(*args, **named)
        if function is F.linear:
            self.seen.linear.append((result, args[0].shape[-1]))
        elif function in _SHARES and self.seen.is_head(args[0]):
            self.seen.linear.append((result, -1))
        return result


def _is_lookup(table: Any, index: Any) -> bool:
    """Whether `table[index]` takes rows of a matrix by ids."""
    whole = isinstance(index, torch.Tensor) and index.dtype in (torch.int64, torch.int32) and index.dim() > 0
    return whole and isinstance(table, torch.Tensor) and table.is_floating_point() and table.dim() == 2


@contextlib.contextmanager
def embedding_lookups() -> Iterator[list[Lookup]]:
    """Record the embedding lookups that happen while the block runs."""
    found: list[Lookup] = []
    with _Lookups(found):
        yield found


@contextlib.contextmanager
def watched() -> Iterator[Seen]:
    """Record lookups of every kind and what linear layers give while the block runs."""
    seen = Seen()
    with _Watch(seen):
        yield seen


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
    tables = [rows for module in model.modules() if (rows := _embedding_rows(module)) is not None]
    known = [config.vocab_size] if config.vocab_size is not None else []
    bounds = list(dict.fromkeys([*known, *sorted(tables, reverse=True)])) or [2]
    return bounds if all(p.device.type == "cpu" for p in model.parameters()) else [min(bounds)]


def _embedding_rows(module: nn.Module) -> int | None:
    """Rows of an embedding, also of a scripted or traced one; None for another module."""
    if isinstance(module, nn.Embedding):
        return module.num_embeddings
    scripted = getattr(module, "original_name", "") in ("Embedding", "EmbeddingBag")
    return module.weight.shape[0] if scripted and isinstance(module.weight, torch.Tensor) else None


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
