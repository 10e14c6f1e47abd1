"""Which tokens to change where, so that a leak is found that few texts show. Knows ids and positions; asking is for `causality`.

A question is one text twice, the same up to a cut. A leak may need a certain place (the edge of a window), a certain id
(end of text, padding) or an extreme future (a rounded mean), and one random text has none of these.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from utils.adapters.model_adapter import AdaptedModel

MOST_QUESTIONS = 512
"""Questions that are put at one length at most."""

SAMPLES = 24
"""Random futures, and futures of one id only, that are tried."""

_SPECIAL_NAME = re.compile(
    r"(?:^|_)(?:pad|bos|eos|sep|cls|mask|unk|eot|eod|start|end|image|newline)(?:_token)?_?(?:id|ids|idx|index)$"
)
_USUAL = (0, 1, 2, 3)


class Question(NamedTuple):
    """One text, and the same with another future.

    Attributes:
        before: (T,) ids.
        after: (T,) ids, equal up to `cut`.
        cut: position of the first token that may differ.
    """

    before: torch.Tensor
    after: torch.Tensor
    cut: int


def special_ids(adapted: AdaptedModel, rows: int) -> tuple[int, ...]:
    """Ids that a model may treat apart: those that config and modules name, the first four and the last two."""
    owners: list[dict[str, Any]] = [adapted.config.raw]
    for module in adapted.model.modules():
        owners.append({name: value for name, value in vars(module).items() if not name.startswith("_")})
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            owners.append({"pad_id": module.padding_idx})
    named = [value for owner in owners for name, value in owner.items() if _SPECIAL_NAME.search(name.lower())]
    listed = [one for value in named for one in (value if isinstance(value, list | tuple) else [value])]
    ids = [one for one in listed if isinstance(one, int) and not isinstance(one, bool)]
    return tuple(dict.fromkeys(one for one in (*ids, *_USUAL, rows - 1, rows - 2) if 0 <= one < rows))


def cuts_by_window(length: int) -> list[int]:
    """All cuts 1 … T − 1, edges of large windows first: 128, 64, 192, 32, … Windows and pieces have such lengths."""
    return sorted(range(1, length), key=lambda cut: (-(cut & -cut), cut))


def questions(
    length: int, rows: int, special: tuple[int, ...], *, every_cut: bool, every_id: bool, seed: int
) -> Iterator[Question]:
    """Questions for texts of one length, those that find most first.

    Args:
        length: T, at least 2.
        rows: number of ids, at least 2.
        special: ids to try in any case, all together and, in short texts, one after the other.
        every_cut: ask from every position on, too: for long texts, in which places matter more.
        every_id: put every id into some future.
        seed: of the random texts.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = _Draws(length, rows, special, generator)
    yield from draws.of_special_ids(each=not every_cut)
    kinds = [draws.of_every_cut()] if every_cut else []
    kinds += [draws.of_all_ids()] if every_id else []
    kinds += [draws.at_random(), draws.of_one_id()]
    for row in itertools.zip_longest(*kinds):
        yield from (question for question in row if question is not None)


class _Draws:
    """Questions of each kind, all on the CPU."""

    def __init__(self, length: int, rows: int, special: tuple[int, ...], generator: torch.Generator) -> None:
        self.length, self.rows, self.special, self.generator = length, rows, special, generator
        plain = [one for one in range(min(rows, 4096)) if one not in special]
        self.plain = torch.tensor(plain if len(plain) > 1 else range(rows))

    def text(self, length: int | None = None) -> torch.Tensor:
        """(T,) ids, none of them special where that is possible."""
        size = (self.length if length is None else length,)
        return self.plain[torch.randint(len(self.plain), size, generator=self.generator)]

    def question(self, cut: int, future: torch.Tensor, before: torch.Tensor | None = None) -> Question:
        """Another future (T − cut,), cut short or repeated where it has another length, for a random text."""
        before = self.text() if before is None else before
        room = self.length - cut
        future = future.repeat(-(-room // len(future)))[:room]
        return Question(before, torch.cat([before[:cut], future]), cut)

    def of_special_ids(self, each: bool) -> Iterator[Question]:
        ids = torch.tensor(self.special)
        cut = max(1, self.length - max(len(ids), self.length // 2))
        if self.length > 2:
            yield self.question(cut, ids)
        for one in ids if each else ():
            yield self.question(max(1, self.length // 2), one.view(1))

    def of_every_cut(self) -> Iterator[Question]:
        before = self.text()
        others = (before + 1 + torch.randint(self.rows - 1, (self.length,), generator=self.generator)) % self.rows
        return (self.question(cut, others[cut:], before) for cut in cuts_by_window(self.length))

    def of_all_ids(self) -> Iterator[Question]:
        """Every id in the future of a text that holds hardly any other."""
        cut = max(1, self.length // 4)
        few = self.plain[:2]
        for chunk in torch.arange(self.rows).split(self.length - cut):
            yield self.question(cut, chunk, few.repeat(self.length)[: self.length])

    def at_random(self) -> Iterator[Question]:
        for _ in range(SAMPLES):
            cut = int(torch.randint(1, self.length, (1,), generator=self.generator))
            yield self.question(cut, torch.randint(self.rows, (self.length - cut,), generator=self.generator))

    def of_one_id(self) -> Iterator[Question]:
        """Futures of one id only, after texts of one id only: their means are as far apart as means can be."""
        for _ in range(SAMPLES):
            past, future = torch.randint(self.rows, (2, 1), generator=self.generator)
            yield self.question(1, future, past.repeat(self.length))
