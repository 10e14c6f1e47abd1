"""The proof that an exported file gives what the model gives: which shapes are compared, how, and within what tolerance.

Every format is held against the model at several batch sizes and lengths, none of which the exporter saw; with padding
where the file takes a mask; along a greedy continuation; and on text. Knows runners and arrays, no file format. How the
result reads is in `parity_report`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from utils.adapters.model_outputs import next_token_loss
from utils.errors import ConfigError, ExportError, TransformerBuilderError
from utils.export.parity_report import GreedyResult, ParityReport, ParityRow, TextResult
from utils.export.subject import ExportSubject, padding_mask, undisturbed

if TYPE_CHECKING:
    from utils.export.artifact import Artifact

__all__ = ["ParityReport", "ParityRow", "Tolerance", "lengths_for", "prove", "shapes_for"]

BATCHES = (1, 3)
GREEDY_TOKENS = 20
PROMPT_TOKENS = 8
TEXT_CHARACTERS = 20_000
"""Validation text beyond this is left out: a few thousand tokens settle bits per byte to the third digit."""

_SEED = 2
_TIMING_SECONDS = 0.05  # a row is run again, at most twice, while its runs took less than this

Feeds = dict[str, np.ndarray]
Run = Callable[[Feeds], np.ndarray]
Doubt = tuple[float, np.ndarray]


@dataclass(frozen=True)
class Tolerance:
    """How far a format may be from the model.

    Attributes:
        max_abs_diff: largest difference of any logit, for logits whose root mean square is at most 1. Rounding grows with
            the size of the numbers, so larger logits are allowed proportionally more: a head tied to a freshly
            initialised embedding of width 768 gives logits near 45 on average and 900 at most, where neighbouring
            float32 numbers are 6e-5 apart and correct files were measured 4e-4 from the model.
        bits_per_byte: largest difference of bits per byte on text.
        reason: why that much, in words.
    """

    max_abs_diff: float
    bits_per_byte: float
    reason: str

    def allowed(self, logits: np.ndarray) -> float:
        """What the largest difference from these logits may be."""
        scale = float(np.sqrt(np.mean(np.square(logits, dtype=np.float64)))) if logits.size else 0.0
        return self.max_abs_diff * max(1.0, scale) if math.isfinite(scale) else self.max_abs_diff


def lengths_for(max_length: int) -> tuple[int, ...]:
    """Lengths to compare: 1, 7, an odd one in between, and the limit, as far as the limit allows."""
    middle = min(
        max_length // 2 | 1, 129
    )  # beyond 129 tokens a longer odd length shows nothing that the limit does not
    odd = next((length for length in (middle, 9, 5, 3) if length not in (1, 7) and length < max_length), 1)
    return tuple(sorted({length for length in (1, 7, odd, max_length) if length <= max_length}))


def shapes_for(max_length: int, traced_shape: tuple[int, int] | None) -> list[tuple[int, int]]:
    """All (batch, length) to compare.

    Raises:
        ExportError: the exporter saw one of them, so that it would prove nothing.
    """
    shapes = [(batch, length) for batch in BATCHES for length in lengths_for(max_length)]
    if traced_shape in shapes:
        raise ExportError(
            f"The traced shape {traced_shape} is among the shapes to compare {shapes}; trace with another one."
        )
    return shapes


def prove(
    artifact: Artifact,
    subject: ExportSubject,
    tolerance: Tolerance,
    *,
    validation_text: str | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> ParityReport:
    """Compare an artifact with its model.

    Args:
        artifact: the written file; it is read back from disk.
        subject: the model; left as it was.
        tolerance: what the format may cost.
        validation_text: for bits per byte; needs `subject.tokenizer`. The first `TEXT_CHARACTERS` characters count.
        progress: called once for each comparison.

    Returns:
        The report; a difference is a row that did not pass, never an exception.
    """
    cases = _cases(subject, artifact.traced_shape)
    artifact.runner  # noqa: B018  opened here, so that no row's time holds the opening
    report = ParityReport(traced_shape=artifact.traced_shape, tolerance=tolerance.max_abs_diff, reason=tolerance.reason)
    with undisturbed(subject.adapted):
        for index, (shape, padding) in enumerate(cases):
            report.rows.append(_compare(artifact, subject, shape, padding, tolerance))
            if progress is not None:
                progress(index + 1, len(cases), f"{artifact.format}: batch {shape[0]} × length {shape[1]}")
        if report.passed and subject.adapted.contract.task == "lm":  # a file that differs already needs no more proof
            report.greedy.append(_compare_greedy(artifact, subject, tolerance))
            report.text.extend(_compare_text(artifact, subject, validation_text, tolerance.bits_per_byte))
    return report


def _cases(subject: ExportSubject, traced: tuple[int, int] | None) -> list[tuple[tuple[int, int], str]]:
    """Every shape without padding, and every shape that can be padded once for each side where padding matters."""
    shapes = shapes_for(subject.max_length, traced)
    padded = [(shape, side) for shape in shapes for side in subject.masked_sides if shape[1] > 1]
    return [*((shape, "") for shape in shapes), *padded]


def _compare(
    artifact: Artifact, subject: ExportSubject, shape: tuple[int, int], padding: str, tolerance: Tolerance
) -> ParityRow:
    feeds = _feeds(subject, shape, padding)
    row = ParityRow(artifact.format, *shape, padding=padding or "none", tolerance=tolerance.max_abs_diff)
    try:
        expected, row.model_ms = _timed(subject.logits, feeds)
    except Exception as error:  # noqa: BLE001  whatever a foreign model raises is the finding of this row
        row.error = f"the model itself fails here: {type(error).__name__}: {error}"
        return row
    try:
        got, row.file_ms = _timed(lambda given: artifact.run(**given), feeds)
    except TransformerBuilderError as error:
        row.error = str(error)
        return row
    row.tolerance = tolerance.allowed(expected)
    kept = feeds["attention_mask"].astype(bool) if subject.takes_mask else np.ones(shape, dtype=bool)
    _measure(row, expected, got, kept)
    return row


def _feeds(subject: ExportSubject, shape: tuple[int, int], padding: str) -> Feeds:
    """Random ids, the highest one among them, and a mask where the file takes one."""
    generator = np.random.default_rng((_SEED, *shape))
    ids = generator.integers(0, subject.vocab_size, size=shape, dtype=np.int64)
    ids[-1, -1] = subject.vocab_size - 1
    return (
        {"input_ids": ids, "attention_mask": padding_mask(shape, padding)} if subject.takes_mask else {"input_ids": ids}
    )


def _timed(run: Run, feeds: Feeds) -> tuple[np.ndarray, float]:
    """The result, and the shortest of up to three runs in milliseconds; one run where that takes long."""
    times: list[float] = []
    while not times or (len(times) < 3 and sum(times) < _TIMING_SECONDS):
        start = time.perf_counter()
        result = run(feeds)
        times.append(time.perf_counter() - start)
    return result, 1000 * min(times)


def _measure(row: ParityRow, expected: np.ndarray, got: np.ndarray, kept: np.ndarray) -> None:
    """Fill in the differences at real tokens; one sequence at a time, because logits are large."""
    if got.shape != expected.shape:
        row.error = f"the file gives shape {got.shape}, the model {expected.shape}"
        return
    if expected.ndim != 3:  # one row of scores per sequence: every row counts
        kept = np.ones(expected.shape[:-1], dtype=bool)
    largest, total, count, agreeing, positions = 0.0, 0.0, 0, 0, 0
    for wanted, given, real in zip(expected, got, kept):
        wanted, given = wanted[real], given[real]
        if not np.isfinite(wanted).all():
            row.error = "the model itself gives NaN or infinity here, so there is nothing to compare with"
            return
        difference = np.abs(given - wanted)
        largest = max(largest, float(difference.max(initial=0.0)))  # NaN in the file stays NaN: numpy's max keeps it
        if not math.isfinite(float(difference.sum())):
            row.error = "the file gives NaN or infinity where the model does not"
            return
        total, count = total + float(difference.sum(dtype=np.float64)), count + difference.size
        agreeing += int((wanted.argmax(-1) == given.argmax(-1)).sum())
        positions += int(np.prod(wanted.shape[:-1]))
    row.max_abs_diff, row.mean_abs_diff = largest, total / max(1, count)
    row.top1_agreement = agreeing / max(1, positions)


def _compare_greedy(artifact: Artifact, subject: ExportSubject, tolerance: Tolerance) -> GreedyResult:
    """Continue one prompt with each, always taking the likeliest token, within the length limit."""
    prompt = _feeds(subject, (1, min(PROMPT_TOKENS, max(1, subject.max_length // 2))), "")["input_ids"]
    steps = min(GREEDY_TOKENS, subject.max_length - prompt.shape[1] + 1)
    expected, doubts = _greedy(subject.logits, subject, prompt, steps)
    got, _ = _greedy(lambda given: artifact.run(**given), subject, prompt, steps)
    same = next((i for i, (a, b) in enumerate(zip(expected, got)) if a != b), steps)
    # Two tokens nearer to each other than twice the tolerance may change places; after that the texts differ rightly.
    tie = same < steps and doubts[same][0] <= 2 * tolerance.allowed(doubts[same][1])
    return GreedyResult(artifact.format, steps, same, tie)


def _greedy(run: Run, subject: ExportSubject, prompt: np.ndarray, steps: int) -> tuple[list[int], list[Doubt]]:
    """The chosen tokens, and for each how far its logit is above the second, with all logits of that step."""
    ids, chosen, doubts = prompt, [], []
    for _ in range(steps):
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)} if subject.takes_mask else {"input_ids": ids}
        last = run(feeds)[0, -1][: subject.vocab_size]  # columns beyond the rows only pad the head; they are no tokens
        best = int(last.argmax())
        others = np.delete(last, best)
        chosen.append(best)
        doubts.append((float(last[best] - others.max()) if others.size else math.inf, last))
        ids = np.concatenate([ids, [[chosen[-1]]]], axis=1)
    return chosen, doubts


def _compare_text(artifact: Artifact, subject: ExportSubject, text: str | None, tolerance: float) -> list[TextResult]:
    if text is None:
        return []
    if subject.tokenizer is None:
        raise ConfigError("validation_text needs a tokenizer: export(model, tokenizer=…, validation_text=…).")
    excerpt = text[:TEXT_CHARACTERS]
    ids = token_ids(subject.tokenizer, excerpt)
    if len(ids) < 2:
        raise ConfigError(f"validation_text gives {len(ids)} tokens; bits per byte need at least two.")
    subject.adapted.check_inputs(torch.tensor([ids[: subject.max_length]]))
    size = len(excerpt.encode("utf-8", "replace"))
    model_bits = _bits_per_byte(subject.logits, subject, ids, size)
    file_bits = _bits_per_byte(lambda given: artifact.run(**given), subject, ids, size)
    return [TextResult(artifact.format, len(ids), size, model_bits, file_bits, tolerance)]


def _bits_per_byte(run: Run, subject: ExportSubject, ids: list[int], size: int) -> float:
    """Bits that the model needs for the text, per byte of it; in blocks of the length limit, the first token for free.

    Blocks overlap by one token, so that every token but the first is predicted once.
    """
    nats, step = 0.0, max(1, subject.max_length - 1)
    for start in range(0, len(ids) - 1, step):
        block = np.array([ids[start : start + step + 1]], dtype=np.int64)
        feeds = (
            {"input_ids": block, "attention_mask": np.ones_like(block)} if subject.takes_mask else {"input_ids": block}
        )
        nats += float(next_token_loss(torch.from_numpy(run(feeds)), torch.from_numpy(block), reduction="sum"))
    return nats / math.log(2) / size


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text without added marks, from a transformers tokenizer, a `tokenizers.Tokenizer`, or anything that encodes."""
    try:
        encoded = tokenizer.encode(text, add_special_tokens=False)
    except TypeError:  # a plain encoder knows no such argument
        encoded = tokenizer.encode(text)
    return [int(token) for token in getattr(encoded, "ids", encoded)]
