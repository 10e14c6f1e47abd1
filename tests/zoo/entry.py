"""What an entry of the zoo is, and the batches that entries are tried with. Knows no model and no adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

V, D, LIMIT, CLASSES = 61, 16, 24, 4
"""Vocabulary rows, width, length limit and number of classes of the models that are written here."""

Batch = dict[str, torch.Tensor]
"""Arguments of `AdaptedModel.forward` by name."""

TASKS = ("lm", "masked", "seq2seq", "classification", "vision")
"""What a model can be for, in the order of the table."""

UNKNOWN = -1
"""A fact that the entry does not claim."""


@dataclass(frozen=True)
class Entry:
    """One model, and how it is called properly.

    Attributes:
        name: row of the table.
        task: one of `TASKS`.
        build: makes the model with fixed weights.
        reference: (model, batch) → logits, calling the model as its author would.
        batch: makes arguments for the adapted model, labels included.
        shows: which part of the contract this entry stands for.
        config: what is handed to `adapt` besides the model.
        source: text of the model's file where Python does not know it (exports).
        arguments: further arguments of `adapt`.
        contract_task: what the contract must call the task, where it differs from `task`: an encoder for masked tokens
            without a loss of its own is "lm" (scores for every position) until causality decides the objective.
        shift: 1 where the loss is that of the next token, 0 where labels are aligned; None follows the contract's task.
        loss: (model, batch) → expected loss where it is more than the cross-entropy of the logits.
        rows: embedding rows that the contract must find.
        limit: longest sequence that the contract must find; None where there is none.
        learning_rate: of the one optimizer step.
        slow: whether it is left out of the default run.
    """

    name: str
    task: str
    build: Callable[[], nn.Module]
    reference: Callable[[Any, Batch], torch.Tensor]
    batch: Callable[[], Batch]
    shows: str = ""
    config: Any = None
    source: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    contract_task: str | None = None
    shift: int | None = None
    loss: Callable[[Any, Batch], torch.Tensor] | None = None
    rows: int | None = UNKNOWN
    limit: int | None = UNKNOWN
    learning_rate: float = 1e-3
    slow: bool = False


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def ids_of(batch: int = 3, length: int = 6, rows: int = V) -> torch.Tensor:
    """Token ids (batch, length) from 3 upwards, so that pad, begin and end are not among them."""
    return torch.randint(3, rows, (batch, length), generator=_generator())


def padding(batch: int = 3, length: int = 6, removed: int = 2) -> torch.Tensor:
    """Mask (batch, length): the last `removed` positions of the second row are padding."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[1, length - removed :] = 0
    return mask


def text(rows: int = V, length: int = 6) -> Callable[[], Batch]:
    """Ids and labels for one score per position, without a mask."""

    def make() -> Batch:
        ids = ids_of(length=length, rows=rows)
        return {"input_ids": ids, "labels": ids.clone()}

    return make


def padded_text(rows: int = V, length: int = 6, removed: int = 2) -> Callable[[], Batch]:
    """The same with padding in one row, whose labels carry no loss."""

    def make() -> Batch:
        mask = padding(length=length, removed=removed)
        ids = ids_of(length=length, rows=rows).masked_fill(mask == 0, 0)
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    return make


def masked_text(rows: int = V, length: int = 6, mask_id: int = 4, pad: int = 0) -> Callable[[], Batch]:
    """A third of the tokens is hidden; labels stand where they are and nowhere else."""

    def make() -> Batch:
        mask = padding(length=length)
        original = ids_of(length=length, rows=rows).masked_fill(mask == 0, pad)
        hidden = (torch.arange(length) % 3 == 1).expand_as(original) & (mask == 1)
        return {
            "input_ids": original.masked_fill(hidden, mask_id),
            "attention_mask": mask,
            "labels": original.masked_fill(~hidden, -100),
        }

    return make


def pairs(rows: int = V, padded: bool = True) -> Callable[[], Batch]:
    """A source of 6 tokens and a target of 4; the decoder's inputs are given."""

    def make() -> Batch:
        mask = padding()
        ids = ids_of(rows=rows)
        target = torch.randint(3, rows, (3, 4), generator=_generator())
        decoder = torch.cat([torch.full((3, 1), 2), target[:, :-1]], 1)
        batch = {"input_ids": ids, "decoder_input_ids": decoder, "labels": target}
        return {**batch, "input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask} if padded else batch

    return make


def classed_text(rows: int = V, classes: int = CLASSES, padded: bool = True) -> Callable[[], Batch]:
    """Ids with one class per sequence."""

    def make() -> Batch:
        ids, labels = ids_of(rows=rows), torch.tensor([0, classes - 1, 1])
        if not padded:
            return {"input_ids": ids, "labels": labels}
        mask = padding()
        return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask, "labels": labels}

    return make


def images(channels: int = 1, size: int = 8, classes: int = CLASSES, flat: bool = False) -> Callable[[], Batch]:
    """Pictures (3, channels, size, size), or flat ones (3, channels · size²), with one class each."""

    def make() -> Batch:
        shape = (3, channels * size * size) if flat else (3, channels, size, size)
        pixels = torch.randn(shape, generator=_generator())
        return {"pixel_values": pixels, "labels": torch.tensor([0, classes - 1, 1])}

    return make


def seeded(build: Callable[..., nn.Module], *arguments: Any, **named: Any) -> Callable[[], nn.Module]:
    """Build with the same weights each time."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        return build(*arguments, **named)

    return make
