"""From logits to text: choosing the next token, repeating that for a batch, and giving the text out as it grows.

Needs numpy only, and knows neither torch nor this package: the same file lies in every exported folder, so that a notebook
and a server draw the same tokens for the same seed. Leaves running a model to the `step` that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for bytes that are no whole character (yet)."""

PENALTIES = (0.01, 100.0)
"""Least and most repetition penalty: within them no score of 32 bits grows beyond what 64 bits hold."""

_CONTEXT = 8
"""Tokens of a prompt that are decoded together with what follows: spaces between words depend on the word before."""


class NoChoiceError(ValueError):
    """A model's scores leave no token to choose."""


class Step(Protocol):
    """A model, asked for what may come next."""

    def __call__(self, views: np.ndarray, rows: tuple[int, ...]) -> np.ndarray:
        """The logits (N, V) that follow the ids (N, T) int64; `rows` are the prompts' numbers, for those who keep a cache."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_new_tokens: most tokens to add; fewer where the model ends the text.
        temperature: 0 always takes the likeliest token; 1 draws from the model's distribution; lower is safer.
        top_k: draw from the k likeliest tokens only; None draws from all.
        top_p: draw from the fewest likeliest tokens whose probabilities add up to p (Holtzman et al. 2019); None from all.
        repetition_penalty: above 1, tokens that stand in the text already become less likely (Keskar et al. 2019); 1 is off.
            0.01 to 100.
        seed: of a private generator for each prompt; the same seed gives the same tokens.
        stop_ids: ids that end a text and are not part of it, such as end-of-text.
    """

    max_new_tokens: int = 50
    temperature: float = 0.8
    top_k: int | None = 50
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_ids: tuple[int, ...] = ()

    def problems(self) -> list[str]:
        """Everything that is wrong, one sentence each."""
        found = []
        if not _whole(self.max_new_tokens, 0):
            found.append(f"max_new_tokens must be a whole number of 0 or more; got {self.max_new_tokens!r}")
        if not _number(self.temperature) or self.temperature < 0:
            found.append(f"temperature must be a number of 0 or more; got {self.temperature!r}")
        if self.top_k is not None and not _whole(self.top_k, 1):
            found.append(f"top_k must be a whole number of 1 or more, or None; got {self.top_k!r}")
        if self.top_p is not None and (not _number(self.top_p) or not 0 < self.top_p <= 1):
            found.append(f"top_p must be above 0 and at most 1, or None; got {self.top_p!r}")
        least, most = PENALTIES
        if not _number(self.repetition_penalty) or not least <= self.repetition_penalty <= most:
            found.append(
                f"repetition_penalty must be a number from {least:g} to {most:g} (1 is off); got "
                f"{self.repetition_penalty!r}"
            )
        if not _whole(self.seed, 0):
            found.append(f"seed must be a whole number of 0 or more; got {self.seed!r}")
        if not all(_whole(index, 0) for index in self.stop_ids):
            found.append(f"stop_ids must be token ids; got {self.stop_ids!r}")
        return found


def next_id(
    logits: np.ndarray, seen: Sequence[int], sampling: Sampling, draw: float = 0.0, allowed: np.ndarray | None = None
) -> int:
    """Choose a token: penalty, then temperature, then top-k, then top-p, each on what the one before left.

    Probabilities are computed in float64. Of equally likely tokens the lowest ids count as the likelier ones.

    Args:
        logits: scores of the next token, (V,).
        seen: ids that the repetition penalty is about.
        sampling: how to choose.
        draw: uniform random number, 0 or more and below 1; of no effect at temperature 0.
        allowed: which ids may be chosen, (V,) bool; None: all.

    Raises:
        NoChoiceError: the scores hold NaN or +inf, or leave nothing to choose.

    Example:
        >>> next_id(np.array([0.0, 2.0, 1.0]), [], Sampling(temperature=0))
        1
    """
    scores = np.array(logits, dtype=np.float64)  # (V,)
    with np.errstate(over="ignore"):  # a score beyond all numbers is one that never wins
        return _chosen(scores, seen, sampling, draw, allowed)


def _chosen(
    scores: np.ndarray, seen: Sequence[int], sampling: Sampling, draw: float, allowed: np.ndarray | None
) -> int:
    """See `next_id`; the scores are changed."""
    if sampling.repetition_penalty != 1 and len(seen):
        repeated = np.unique(np.asarray(seen))
        some = scores[repeated]
        factor = sampling.repetition_penalty
        scores[repeated] = np.where(some > 0, some / factor, some * factor)
    if allowed is not None:
        scores[~allowed] = -np.inf
    best = scores.max()
    if not np.isfinite(best) or np.isnan(scores).any():
        raise NoChoiceError(
            f"The model's scores leave nothing to choose: the largest is {best}, and finite ones are needed."
        )
    if sampling.temperature == 0:
        return int(scores.argmax())
    scores = (scores - best) / sampling.temperature
    if sampling.top_k is not None:
        scores = _top_k(scores, sampling.top_k)
    shares = np.exp(scores)
    if sampling.top_p is not None and sampling.top_p < 1:
        shares = _top_p(shares, sampling.top_p)
    reached = np.cumsum(shares)
    index = int(np.searchsorted(reached, draw * reached[-1], side="right"))
    return min(index, int(np.flatnonzero(shares)[-1]))  # draw · total may round up to the total


def _top_k(scores: np.ndarray, count: int) -> np.ndarray:
    """Scores with all but the `count` largest at -inf."""
    if count >= len(scores):
        return scores
    lowest = np.partition(scores, -count)[-count]
    kept = scores > lowest
    equal = np.flatnonzero(scores == lowest)
    kept[equal[: count - int(kept.sum())]] = True
    return np.where(kept, scores, -np.inf)


def _top_p(shares: np.ndarray, part: float) -> np.ndarray:
    """Shares with all at 0 but the fewest largest ones that make up `part` of the whole."""
    order = np.argsort(-shares, kind="stable")
    before = np.cumsum(shares[order]) - shares[order]  # what the likelier ones make up together
    kept = order[before < part * shares.sum()]
    chosen = np.zeros_like(shares)
    chosen[kept] = shares[kept]
    return chosen


def decode(
    step: Step,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_length: int | None = None,
    allowed: np.ndarray | None = None,
    together: Sequence[Hashable] | None = None,
    ended: Callable[[int], bool] = lambda row: False,
) -> Iterator[list[int | None]]:
    """Continue prompts, one token for each in every step.

    Prompts of one length run as one batch; others run apart, since padding would move the positions of a model's tokens.
    So each gets what it would get alone. Prompt number r draws from a generator of (seed, r).

    Args:
        step: gives the logits that follow.
        prompts: token ids, at least one each.
        sampling: how to choose.
        max_length: the step sees the last `max_length` tokens only; None: all.
        allowed: which ids may be chosen, (V,) bool; those beyond its end may not. None: all.
        together: prompts run in one batch only where these are equal too.
        ended: asked before each step whether a prompt needs no more.

    Yields:
        For each prompt the new id, or None where it has ended.

    Raises:
        ValueError: a setting is wrong (all are named) or a prompt is empty. NoChoiceError: see `next_id`.
    """
    problems = sampling.problems() + [f"prompt {row} is empty" for row, ids in enumerate(prompts) if not len(ids)]
    if problems:
        raise ValueError("; ".join(problems) + ".")
    texts = [list(ids) for ids in prompts]
    random = [np.random.Generator(np.random.PCG64([sampling.seed, row])) for row in range(len(texts))]
    going = set(range(len(texts)))
    for _ in range(sampling.max_new_tokens):
        going -= {row for row in going if ended(row)}
        new: list[int | None] = [None] * len(texts)
        for rows in _batches(texts, sorted(going), together):
            views = np.array([texts[row][-(max_length or 0) :] for row in rows], dtype=np.int64)  # (N, T)
            logits = step(views, rows)
            fitting = _fitted(allowed, logits.shape[-1])
            for row, scores in zip(rows, logits):
                chosen = next_id(scores, texts[row], sampling, random[row].random(), fitting)
                if chosen in sampling.stop_ids:
                    going.discard(row)
                else:
                    texts[row].append(chosen)
                    new[row] = chosen
        if not going:
            return
        yield new


def _batches(
    texts: Sequence[Sequence[int]], going: Sequence[int], together: Sequence[Hashable] | None
) -> list[tuple[int, ...]]:
    """Numbers of the texts that can run as one batch."""
    found: dict[Hashable, list[int]] = {}
    for row in going:
        found.setdefault((len(texts[row]), together[row] if together is not None else None), []).append(row)
    return [tuple(rows) for rows in found.values()]


def _fitted(allowed: np.ndarray | None, width: int) -> np.ndarray | None:
    """The mask, as wide as the logits."""
    if allowed is None or len(allowed) == width:
        return allowed
    fitting = np.zeros(width, dtype=bool)
    fitting[: len(allowed)] = allowed[:width]
    return fitting


class TextStream:
    """Token ids in, pieces of text out: joined they are the text of all ids, and no piece holds half a character.

    Args:
        text_of: decodes ids.
        context: ids of the text that goes on here; their text is not given out.

    Example:
        >>> stream = TextStream(tokenizer.decode, prompt_ids)
        >>> "".join([*(stream.push(index) for index in new_ids), stream.finish()])
    """

    def __init__(self, text_of: Callable[[list[int]], str], context: Sequence[int] = ()) -> None:
        self._text_of = text_of
        self._ids = list(context)[-_CONTEXT:]
        self._begin, self._given = (
            0,
            len(self._ids),
        )  # ids from `begin` on are decoded, those before `given` were given out

    def push(self, index: int) -> str:
        """The text that is settled now; empty while a character is incomplete."""
        self._ids.append(index)
        piece = self._rest()
        if not piece or piece.endswith(BROKEN):
            return ""
        self._begin, self._given = self._given, len(self._ids)
        return piece

    def finish(self) -> str:
        """What was held back."""
        piece = self._rest()
        self._begin = self._given = len(self._ids)
        return piece

    def _rest(self) -> str:
        before = self._text_of(self._ids[self._begin : self._given])
        return self._text_of(self._ids[self._begin :])[len(before) :]


class StopText:
    """Ends a text before the first of some strings; holds back what may become one of them.

    Attributes:
        reached: whether one of them came.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held, self.reached = [stop for stop in stops if stop], "", False

    def push(self, piece: str) -> str:
        """The part of the text that can no longer become a stop; nothing once one came."""
        if self.reached:
            return ""
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.reached, self._held = True, ""
            return text[: min(places)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of the text with which the stop begins."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


@dataclass
class Written:
    """What one prompt was continued with.

    Attributes:
        ids: the new tokens. text: their text, ended before a stop string.
        reason: "stop" where end-of-text or a stop string came, "length" where max_new_tokens did.
    """

    ids: list[int] = field(default_factory=list)
    text: str = ""
    reason: str = "length"


class Writer:
    """Continues prompts as text. Iterating gives (prompt number, piece of text) as they come; `texts` holds the whole.

    Args:
        step, prompts, sampling: as in `decode`; so are the other `options`.
        text_of: decodes ids.
        continues: whether the text goes on from the prompt (a language model), or answers it (an encoder-decoder).
        stop: strings before which a text ends.

    Raises:
        ValueError: as `decode`, while iterating.

    Example:
        >>> writer = Writer(step, [prompt_ids], Sampling(seed=1), tokenizer.decode)
        >>> for row, piece in writer: print(piece, end="")
    """

    def __init__(
        self,
        step: Step,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        text_of: Callable[[list[int]], str],
        *,
        continues: bool = True,
        stop: Sequence[str] = (),
        **options: Any,
    ) -> None:
        self.texts = [Written() for _ in prompts]
        self._streams = [TextStream(text_of, ids if continues else ()) for ids in prompts]
        self._stops = [StopText(stop) for _ in prompts]
        self._sampling = sampling
        self._steps = decode(step, prompts, sampling, ended=lambda row: self._stops[row].reached, **options)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        for new in self._steps:
            for row, index in enumerate(new):
                if index is not None:
                    self.texts[row].ids.append(index)
                    yield from self._given(row, self._stops[row].push(self._streams[row].push(index)))
        for row, (written, stop) in enumerate(zip(self.texts, self._stops)):
            yield from self._given(row, stop.push(self._streams[row].finish()) + stop.finish())
            if stop.reached or len(written.ids) < self._sampling.max_new_tokens:
                written.reason = "stop"

    def _given(self, row: int, piece: str) -> Iterator[tuple[int, str]]:
        if piece:
            self.texts[row].text += piece
            yield row, piece

    def run(self) -> list[Written]:
        """Go on to the end."""
        for _ in self:
            pass
        return self.texts


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
