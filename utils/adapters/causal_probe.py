"""One model at one length: change later tokens and see how far earlier logits move.

Knows how to ask and how to make every answer comparable; at which lengths, and what follows, is for `causality`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from utils._random import fixed_random
from utils.adapters.causal_questions import MOST_QUESTIONS, Question, questions, special_ids
from utils.adapters.model_adapter import AdaptedModel
from utils.adapters.snapshot import Remembered

PROBE_SEED = 0
SHORT_LENGTHS = (2, 3, 12)
"""Lengths at which every position is asked."""

MOST_WORK = 1e11
"""Multiplications that one length may cost, by `work_per_token`; larger models are asked at fewer places."""

LOGIT_WORK = 20
"""Multiplications that comparing one logit is worth: a few passes over memory."""

SEARCH_WORK = 2e10
"""Multiplications that the further questions of one length may cost."""

MOST_NUMBERS = 4_000_000
"""Logits or scores of one layer that a batch of questions may make."""

LARGE = 1e8
"""Multiplications per token from which on a model is asked at a few positions of two lengths only."""

DOUBTFUL = 1e-3
"""Share of the largest logit below which a movement may be rounding, so that the model is asked again in float64."""

ROUNDING = {torch.float64: 1e-10, torch.float32: 2e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Share of the largest logit up to which a movement counts as rounding: kernels and Fourier transforms sum in an order
that depends on their input. Measured for float32 at up to 4e-7."""


@dataclass(frozen=True)
class Leak:
    """A movement of an earlier logit.

    Attributes:
        length: tokens of the text.
        changed_at: first position that was changed.
        moved_at: position of the logits that moved most.
        size: by how much, as a difference of scores.
        scale: the largest logit.
        single: whether one token was changed only.
        to: the id to which it was changed, where that may matter.
    """

    length: int
    changed_at: int
    moved_at: int
    size: float
    scale: float
    single: bool
    to: int | None = None

    def words(self) -> str:
        """What was done and seen."""
        what = f"token at position {self.changed_at}" if self.single else f"tokens from position {self.changed_at} on"
        what += f" (to id {self.to})" if self.to is not None else ""
        return (
            f"changing the {what} of {self.length} moved an earlier logit by {self.size:.3g} "
            f"(at position {self.moved_at}; largest logit {self.scale:.3g})"
        )


def work_per_token(adapted: AdaptedModel) -> float:
    """Multiplications that one token costs."""
    return 2.0 * adapted.num_parameters() + LOGIT_WORK * (adapted.contract.output_size or 0)


def _cuts(adapted: AdaptedModel, length: int) -> list[int]:
    """Positions from which on tokens are changed: all in a short sequence, a spread in a long one."""
    spread = {1, 2, length // 4, length // 3, length // 2, 2 * length // 3, 3 * length // 4, length - 1}
    if work_per_token(adapted) * length * 12 > MOST_WORK:
        spread = {1, length // 2, length - 1}
    chosen = range(1, length) if length <= SHORT_LENGTHS[-1] and work_per_token(adapted) < LARGE else spread
    return sorted(position for position in chosen if 1 <= position < length)


class _Narrow(TorchFunctionMode):
    """Notes the narrowest floating type that took part."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype = torch.float64

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            if isinstance(value, torch.Tensor):
                dtype = torch.float32 if value.dtype == torch.complex64 else value.dtype
                if dtype in ROUNDING and ROUNDING[dtype] > ROUNDING[self.dtype]:
                    self.dtype = dtype
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def _same_draws(model: nn.Module) -> Iterator[None]:
    """Every source of random numbers, the model's own included, begins at the same place and is put back afterwards."""
    own = [value for module in model.modules() for value in vars(module).values() if type(value) is torch.Generator]
    states = [generator.get_state() for generator in own]
    with fixed_random(PROBE_SEED):
        try:
            yield
        finally:
            for generator, state in zip(own, states):
                generator.set_state(state)


class Probe:
    """One model at one length.

    Attributes:
        dtype: narrowest floating type that took part.
        share: largest movement that was found, as a share of the largest logit.
        noise: share by which the answers to the same question differ; 0 for nearly every model.
        tolerance: share up to which a movement is rounding.
        places: positions from which on tokens were changed.
        doubts: the further question that moved most, if any did.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        length: int,
        rows: int,
        *,
        training: bool = False,
        attention_mask: torch.Tensor | None = None,
    ) -> None:
        self.adapted, self.length, self.rows, self.training = adapted, length, rows, training
        self.attention_mask, self.as_it_was = attention_mask, Remembered(adapted)
        generator = torch.Generator().manual_seed(PROBE_SEED + length)
        self.ids = torch.randint(rows, (1 if adapted.num_parameters() > 1e7 else 2, length), generator=generator)
        self.ids = self.ids.to(adapted.device)
        with _Narrow() as narrow:  # a run of its own: torch.nn takes other ways while a mode watches
            self.logits(self.ids)
        self.dtype = narrow.dtype
        self.before = self.logits(self.ids)
        self.scale = max(1e-30, float(self.before.nan_to_num(0.0, 0.0, 0.0).abs().max()))
        self.share = 0.0
        self.places: set[int] = set()
        self.doubts: list[Question] = []
        repeated = self.moved(self.ids, length)[0] / self.scale
        self.noise = repeated if math.isfinite(repeated) else 0.0  # a NaN is no noise
        self.tolerance = max(ROUNDING[self.dtype], 4 * self.noise)

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, T, V), with the same buffers and the same draws of random numbers each time.

        Without dropout: behind a router each expert draws for as many tokens as it gets, so a later token shifts the draws of
        earlier ones, and tells them nothing.
        """
        with self.as_it_was.visit(), _same_draws(self.adapted):
            self.adapted.train(self.training)
            for module in self.adapted.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.eval()
            if self.adapted.contract.task != "seq2seq":
                mask = None if self.attention_mask is None else self.attention_mask.expand(len(ids), -1)
                return self.adapted(ids, mask).logits.detach()
            source = self.ids[:, : max(2, self.length // 2)]
            source = source if len(source) == len(ids) else source[:1].expand(len(ids), -1)
            return self.adapted(source, decoder_input_ids=ids).logits.detach()

    def moved(self, changed: torch.Tensor, cut: int) -> tuple[float, int]:
        """(size, position) of the largest movement of logits before the cut, in any row."""
        return _largest(self.before, self.logits(changed), cut)

    def look(self, further: Iterable[Question] | None = None) -> Leak | None:
        """Change everything from each cut on; the largest movement before a cut, told by the smallest change.

        Args:
            further: questions to put where this shows nothing that is beyond doubt; by default all that are affordable.
        """
        worst: tuple[float, int, int] | None = None
        last = self.length - 1
        changes = [(cut, self._others()) for cut in _cuts(self.adapted, self.length)]
        for cut, others in [*changes, (last, torch.zeros_like(self.ids))]:
            changed = torch.cat([self.ids[:, :cut], others[:, cut:]], 1)
            moved, place = self.moved(changed, cut)
            self.places.add(cut)
            if worst is None or moved > worst[0]:
                worst = moved, cut, place
        size = worst[0] if worst is not None else 0.0
        self.share = size / self.scale
        if self.share <= max(DOUBTFUL, self.tolerance):
            leak = self._search(self._affordable() if further is None else further)
            if leak is not None and leak.size > size:
                self.share = leak.size / self.scale
                return leak
        return self._smallest(*worst) if worst is not None and size > 0 else None

    def _others(self) -> torch.Tensor:
        """Another id at every position."""
        return (self.ids + 1 + (self.rows - 1) // 2) % self.rows if self.rows > 2 else 1 - self.ids

    def _smallest(self, size: float, cut: int, place: int) -> Leak:
        """The same leak by changing one token only, where that is enough."""
        best = Leak(self.length, cut, place, size, self.scale, cut == self.length - 1)
        if best.single:
            return best
        positions = range(1, self.length) if self.length <= SHORT_LENGTHS[-1] else _cuts(self.adapted, self.length)
        others, single = self._others(), None
        for position in positions:
            changed = self.ids.clone()
            changed[:, position] = others[:, position]
            moved, at = self.moved(changed, position)
            if moved > max(size / 100, single.size if single else 0.0):
                single = Leak(self.length, position, at, moved, self.scale, True)
        return single or best

    def _affordable(self) -> Iterator[Question]:
        most = int(SEARCH_WORK / (2 * max(1.0, work_per_token(self.adapted)) * self.length))
        special, long = special_ids(self.adapted, self.rows), self.length > SHORT_LENGTHS[-1]
        longest = self.adapted.contract.max_length or math.inf
        every_id = self.length >= min(SHORT_LENGTHS[-1], longest)  # elsewhere they would take most of the time
        seed = PROBE_SEED + self.length
        asked = questions(self.length, self.rows, special, every_cut=long, every_id=every_id, seed=seed)
        return itertools.islice(asked, min(most, MOST_QUESTIONS))

    def _search(self, asked: Iterable[Question]) -> Leak | None:
        """The largest movement that these questions show, several of them in one batch; it is noted in `doubts`."""
        worst: tuple[float, Question] | None = None
        for batch in _batches(asked, self._rows_at_once()):
            sizes = self._sizes(batch)
            self.places |= {question.cut for question in batch}
            size, question = max(zip(sizes, batch), key=lambda pair: pair[0])
            if size > ROUNDING[torch.float64] * self.scale and (worst is None or size > worst[0]):
                # rows of a batch may depend on each other, which is no future: the question is put alone
                alone = self._alone(question.before, question.after, question.cut)[0]
                worst = (alone, question) if alone > (worst[0] if worst else 0.0) else worst
        if worst is None:
            return None
        self.doubts = [worst[1]]
        return self._narrowed(*worst)

    def _rows_at_once(self) -> int:
        width = max(self.before.shape[-1], 8 * self.length)  # logits, or scores of 8 heads
        return max(1, min(64, MOST_NUMBERS // (self.length * width)))

    def _sizes(self, batch: list[Question]) -> list[float]:
        """How far anything before the cut moved, for each question."""
        before, after = (torch.stack(texts).to(self.ids.device) for texts in list(zip(*batch))[:2])
        answers = zip(self.logits(before), self.logits(after), batch)
        return [_largest(one[None], other[None], question.cut)[0] for one, other, question in answers]

    def _alone(self, before: torch.Tensor, after: torch.Tensor, cut: int) -> tuple[float, int]:
        """(size, position) of the movement before the cut where every row of the batch is this question."""
        one, other = (ids.to(self.ids.device).expand(len(self.ids), -1) for ids in (before, after))
        return _largest(self.logits(one), self.logits(other), cut)

    def _narrowed(self, size: float, question: Question) -> Leak:
        """The same leak by ever fewer changes, each time half of them, as long as a hundredth of it remains."""
        before, places = question.before, (question.before != question.after).nonzero().flatten()
        best = size, self._alone(*question)[1], places
        while len(places) > 1:
            for half in places.tensor_split(2):
                after = before.index_copy(0, half, question.after[half])
                moved, at = self._alone(before, after, int(half[0]))
                if moved > size / 100:
                    best, places = (moved, at, half), half
                    break
            else:
                break
        moved, at, places = best
        first = int(places[0])
        to = int(question.after[first]) if len(places) == 1 else None
        return Leak(self.length, first, at, moved, self.scale, len(places) == 1, to)


def _largest(before: torch.Tensor, after: torch.Tensor, cut: int) -> tuple[float, int]:
    """(size, position) of the largest difference of logits (B, T, V) before a cut.

    A NaN, before or after, has moved endlessly far.
    """
    one, other = before[:, :cut], after[:, :cut]
    if torch.equal(one, other):  # nearly always: one pass over memory instead of ten
        return 0.0, 0
    one, other = one.double(), other.double()
    apart = torch.where(one == other, 0.0, (one - other).abs())  # equal are also infinities of masked ids
    size, place = apart.nan_to_num(nan=float("inf")).amax((0, 2)).max(0)
    return float(size), int(place)


def _batches(asked: Iterable[Question], size: int) -> Iterator[list[Question]]:
    """Lists of `size` questions, the last one shorter."""
    asked = iter(asked)
    while batch := list(itertools.islice(asked, size)):
        yield batch
