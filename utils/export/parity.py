"""The proof that an exported file gives what the model gives: which shapes are compared, how, and within what tolerance.

Every format is held against the model at several batch sizes and lengths, none of which the exporter saw; with padding
where the file takes a mask; along a greedy continuation; and on text. Knows runners and arrays, no file format. Which text
or inputs stand for the model's use is in `samples`, how the result reads in `parity_report`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from utils.errors import ExportError, TransformerBuilderError
from utils.export.parity_report import CostResult, GreedyResult, ParityReport, ParityRow, TextResult
from utils.export.runner import Runner
from utils.export.samples import Samples, bits_per_byte, samples_of
from utils.export.signature import DECODER_IDS, IDS, MASK, Shape, Signature
from utils.export.subject import ExportSubject, undisturbed

if TYPE_CHECKING:
    from utils.export.artifact import Artifact

__all__ = ["ParityReport", "ParityRow", "Tolerance", "lengths_for", "prove", "shapes_for"]

logger = logging.getLogger(__name__)

BATCHES = (1, 3)
GREEDY_TOKENS = 20
PROMPT_TOKENS = 8
WITHOUT_LIMIT = 256
"""Longest length that is compared where the model has no limit, in tokens."""
LONGEST = 4096
"""Longest length that is compared at all, in tokens: attention that is written out fills a gigabyte there for four heads, and
four at twice the length; measured, 4,096 tokens take seconds and 16,384 more than two minutes, for one layer of width 16."""
LARGEST_LOGITS = 1 << 30
"""Bytes of the logits of one comparison at most: longer inputs than that are compared in smaller batches, or cut."""

BEYOND = 500
"""Multiple of what nine in ten logits exceed (of 1 at least) beyond which one is no score but a mask, such as −1e9 for rows
without a token. The widest scores that were measured, of a tied head of width 768 before training, reach 240 times that."""

_SAMPLED = 1 << 20
"""Logits of a comparison that tell the size of all."""

GRID = 2
"""Multiple of a format's cost that it may have on random inputs, which are further from what it was made for."""

Feeds = dict[str, np.ndarray]
Run = Callable[[Feeds], np.ndarray]
Doubt = tuple[float, np.ndarray]


@dataclass(frozen=True)
class Tolerance:
    """How far a format may be from the model.

    Attributes:
        max_abs_diff: largest difference of any logit, for logits whose root mean square is at most 1; infinity where the
            format is judged by what it costs instead. Rounding grows with the size of the numbers, so larger logits are
            allowed proportionally more: a head tied to a freshly initialised embedding of width 768 gives logits near 45
            on average and 900 at most, where neighbouring float32 numbers are 6e-5 apart and correct files were measured
            4e-4 from the model.
        bits_per_byte: largest difference of bits per byte on text.
        reason: why that much, in words.
        cost: share of the model's own bits that the file may cost on top: bits per byte on text, and the Kullback–Leibler
            divergence from the model's distribution on samples of its use. None where logits are compared instead.
    """

    max_abs_diff: float
    bits_per_byte: float
    reason: str
    cost: float | None = None

    def allowed(self, logits: np.ndarray) -> float:
        """What the largest difference from these logits may be; those that are masks make it no larger."""
        sizes = _sizes(logits)
        scores = sizes[sizes <= largest_score(logits)]
        scale = float(np.sqrt(np.mean(np.square(scores, dtype=np.float64)))) if scores.size else 0.0
        return self.max_abs_diff * max(1.0, scale)

    def allowed_bits(self, model: float) -> float:
        """What the file's bits per byte may be away from the model's."""
        return self.bits_per_byte if self.cost is None else self.cost * model


def largest_score(logits: np.ndarray) -> float:
    """The size up to which a logit counts as a score; what lies beyond is a mask (see `BEYOND`)."""
    sizes = _sizes(logits)
    return BEYOND * max(1.0, float(np.quantile(sizes, 0.1)) if sizes.size else 1.0)


def _sizes(logits: np.ndarray) -> np.ndarray:
    """Sizes of finite logits, evenly taken from all."""
    some = logits.reshape(-1)[:: max(1, logits.size // _SAMPLED)]
    return np.abs(some[np.isfinite(some)])


def lengths_for(signature: Signature) -> tuple[int, ...]:
    """Lengths to compare: 1, 7, an odd one in between, and the limit, as far as the model takes them."""
    limit = signature.max_length if signature.max_length is not None else WITHOUT_LIMIT
    width = 4 * (signature.output_size or 1) if signature.scores_tokens else 4
    limit = min(limit, LONGEST, max(16, LARGEST_LOGITS // width))
    middle = min(limit // 2 | 1, 129)  # beyond 129 tokens a longer odd length shows nothing that the limit does not
    odd = next((length for length in (middle, 9, 5, 3) if length not in (1, 7) and length < limit), 1)
    return tuple(sorted({signature.allowed_length(length) for length in (1, 7, odd, limit) if length <= limit}))


def shapes_for(signature: Signature, traced_shape: Shape | None) -> list[Shape]:
    """All sizes to compare.

    Raises:
        ExportError: the exporter saw one of them, so that it would prove nothing.
    """
    if not signature.takes_tokens:
        shapes = [Shape(batch) for batch in BATCHES]
    else:
        lengths = lengths_for(signature)
        answers = lengths[1:] + lengths[:1] if signature.has_decoder else (None,) * len(lengths)
        shapes = [
            Shape(batch, length, answer)
            for batch in BATCHES
            for length, answer in zip(lengths, answers)
            if batch == 1 or _bytes_of(signature, Shape(batch, length, answer)) <= LARGEST_LOGITS
        ]
    if traced_shape in shapes:
        raise ExportError(f"The traced shape ({traced_shape}) is among the shapes to compare; trace with another one.")
    return shapes


def _left_out(signature: Signature) -> list[str]:
    """What the grid does not visit for want of memory, in words."""
    if not signature.takes_tokens:
        return []
    longest = lengths_for(signature)[-1]
    found = []
    if signature.max_length is not None and longest < signature.allowed_length(signature.max_length):
        found.append(
            f"lengths from {longest + 1} to {signature.max_length} were not compared: they fill memory, or take minutes"
        )
    if signature.max_length is None:
        found.append(f"the model has no length limit; lengths up to {longest} were compared")
    lengths = [shape.length for shape in shapes_for(signature, None) if shape.batch == max(BATCHES)]
    if longest not in lengths:
        found.append(
            f"length {longest} was compared at batch 1 only: the logits of {max(BATCHES)} sequences fill memory"
        )
    return found


def _bytes_of(signature: Signature, shape: Shape) -> int:
    return 4 * math.prod(size or 1 for size in signature.output_shape(shape))


def prove(
    artifact: Artifact,
    subject: ExportSubject,
    tolerance: Tolerance,
    *,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> ParityReport:
    """Compare an artifact with its model.

    Args:
        artifact: the written file; it is read back from disk.
        subject: the model; left as it was. Bits per byte are compared on the text of its samples, where they have one.
        tolerance: what the format may cost.
        progress: called once for each comparison.

    Returns:
        The report; a difference is a row that did not pass, never an exception.
    """
    cases = _cases(subject.signature, artifact.traced_shape)
    artifact.runner  # noqa: B018  opened here, so that no row's time holds the opening
    report = ParityReport(
        traced_shape=artifact.traced_shape,
        tolerance=tolerance.max_abs_diff,
        reason=tolerance.reason,
        sizes={artifact.format: artifact.size_bytes},
        weights=subject.weight_bytes(),
    )
    report.notes.extend(_signature_differences(artifact, subject))
    report.remarks.extend(_left_out(subject.signature))
    with undisturbed(subject.adapted):
        report.notes.extend(_unsteady(subject, cases))
        for index, (shape, padding) in enumerate(cases):
            report.rows.append(_compare(artifact, subject, shape, padding, tolerance))
            if progress is not None:
                progress(index + 1, len(cases), f"{artifact.format}: {shape}")
        if report.passed:  # a file that differs already needs no more proof
            _compare_use(report, artifact, subject, tolerance)
    return report


def _compare_use(
    report: ParityReport,
    artifact: Artifact,
    subject: ExportSubject,
    tolerance: Tolerance,
) -> None:
    """Continue a prompt, read a text, and weigh the distributions, as far as the model has a use for each."""
    samples = subject.samples
    if subject.signature.task in ("lm", "seq2seq") and tolerance.cost is None:
        report.greedy.append(_compare_greedy(artifact, subject, tolerance))
    if samples is not None and samples.text is not None:
        report.text.append(_compare_text(artifact, subject, samples, tolerance))
    if tolerance.cost is not None:
        report.cost.append(cost_of(artifact, subject, tolerance.cost))
        report.cost.extend(_grid_costs(artifact, subject, GRID * tolerance.cost))


def _unsteady(subject: ExportSubject, cases: list[tuple[Shape, str]]) -> list[str]:
    """That the model answers the same input differently, so that nothing can be held against it; empty where it does not."""
    shapes = [shape for shape, _ in cases]
    several = [
        shape for shape in shapes if shape.batch > 1 and shape.length != 1
    ]  # what is random shows itself there first
    feeds = subject.signature.feeds(min(several or shapes))
    try:
        first, again = subject.logits(feeds), subject.logits(feeds)
    except Exception as error:  # noqa: BLE001  each row finds the same and tells it
        logger.debug("%s cannot be asked twice: %s", subject.name, error)
        return []
    if np.allclose(first, again, rtol=1e-4, atol=1e-4, equal_nan=True):
        return []
    return [
        "the model gives other logits for the same input when it is asked again: forward keeps a state, or draws at random"
    ]


def _signature_differences(artifact: Artifact, subject: ExportSubject) -> list[str]:
    """What the file says of itself that does not hold for the model."""
    said, true = artifact.signature.to_dict(), subject.signature.to_dict()
    return [
        f"the file says {name} = {said[name]!r}, the model {true[name]!r}" for name in true if said[name] != true[name]
    ]


def _cases(signature: Signature, traced: Shape | None) -> list[tuple[Shape, str]]:
    """Every shape without padding, and every shape that can be padded once for each side where padding matters."""
    shapes = shapes_for(signature, traced)
    padded = [(shape, side) for shape in shapes for side in signature.masked_sides if (shape.length or 0) > 1]
    return [*((shape, "none") for shape in shapes), *padded]


def _compare(artifact: Artifact, subject: ExportSubject, shape: Shape, padding: str, tolerance: Tolerance) -> ParityRow:
    feeds = subject.signature.feeds(shape, padding, subject.marks)
    row = ParityRow(
        artifact.format, shape.batch, shape.length, shape.decoder_length, padding, tolerance=tolerance.max_abs_diff
    )
    try:
        expected, row.model_ms = _Eager(subject).timed(feeds)
    except Exception as error:  # noqa: BLE001  whatever a foreign model raises is the finding of this row
        row.error = f"the model itself fails here: {type(error).__name__}: {error}"
        return row
    try:
        got, row.file_ms = artifact.runner.timed(artifact.signature.checked(feeds, artifact.path.name))
    except TransformerBuilderError as error:
        row.error = str(error)
        return row
    row.tolerance = tolerance.allowed(expected)
    _measure(row, expected, got, real_rows(feeds, expected))
    return row


def real_rows(feeds: Feeds, logits: np.ndarray) -> np.ndarray:
    """Which rows of the logits count: those of real tokens; all where rows belong to the decoder or to whole examples."""
    mask = feeds.get(MASK)
    if mask is not None and DECODER_IDS not in feeds and logits.shape[:-1] == mask.shape:
        return mask.astype(bool)
    return np.ones(logits.shape[:-1], dtype=bool)


class _Eager(Runner):
    """The model itself."""

    def __init__(self, subject: ExportSubject) -> None:
        self.signature, self.facts, self._subject = subject.signature, subject.facts, subject

    def run(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._subject.logits(dict(feeds))


def _measure(row: ParityRow, expected: np.ndarray, got: np.ndarray, kept: np.ndarray) -> None:
    """Fill in the differences at real tokens; one sequence at a time, because logits are large."""
    if got.shape != expected.shape:
        row.error = f"the file gives shape {got.shape}, the model {expected.shape}"
        return
    largest, total, count, agreeing, positions = 0.0, 0.0, 0, 0, 0
    bound = largest_score(expected)
    for wanted, given, real in zip(expected, got, kept):
        wanted, given = wanted[real], given[real]
        if not _rankable(wanted):
            row.error = "the model itself gives NaN or infinity here, so there is nothing to compare with"
            return
        difference = _difference(wanted, given, bound)
        largest = max(largest, float(difference.max(initial=0.0)))  # NaN in the file stays NaN: numpy's max keeps it
        if not math.isfinite(float(difference.sum())):
            row.error = "the file gives NaN or infinity where the model does not, or a score where the model has none"
            return
        total, count = total + float(difference.sum(dtype=np.float64)), count + difference.size
        agreeing += int((wanted.argmax(-1) == given.argmax(-1)).sum())
        positions += int(np.prod(wanted.shape[:-1]))
    row.max_abs_diff, row.mean_abs_diff = largest, total / max(1, count)
    row.top1_agreement = agreeing / max(1, positions)


def _rankable(logits: np.ndarray) -> bool:
    """Whether rows (…, V) hold a score each, and beside scores nothing but −infinity, which masks."""
    return bool((np.isfinite(logits) | np.isneginf(logits)).all() and np.isfinite(logits.max(axis=-1)).all())


def _difference(wanted: np.ndarray, given: np.ndarray, bound: float) -> np.ndarray:
    """How far each logit is away. What masks counts in proportion to its size, and not at all where both are −infinity."""
    with np.errstate(invalid="ignore"):  # of two infinities
        difference = np.abs(given - wanted)
    masks = ~(np.abs(wanted) <= bound)
    if masks.any():
        part = difference[masks] * bound / np.abs(np.where(np.isinf(wanted), bound, wanted)[masks])
        difference[masks] = np.where(wanted[masks] == given[masks], 0.0, part)
    return difference


def _compare_greedy(artifact: Artifact, subject: ExportSubject, tolerance: Tolerance) -> GreedyResult:
    """Continue one prompt with each, always taking the likeliest token, within the length limit."""
    signature = subject.signature
    limit = signature.max_length or WITHOUT_LIMIT
    prompt = signature.allowed_length(min(PROMPT_TOKENS, max(1, limit // 2)))
    start = signature.feeds(Shape(1, prompt, 1 if signature.has_decoder else None))
    if signature.has_decoder:
        start[DECODER_IDS] = signature.first_decoder_ids(start[IDS])
    growing = DECODER_IDS if signature.has_decoder else IDS
    steps = min(GREEDY_TOKENS, limit - start[growing].shape[1] + 1) if signature.multiple_of == 1 else 1
    expected, doubts = _greedy(subject.logits, start, growing, steps, signature)
    got, _ = _greedy(lambda given: artifact.run(**given), start, growing, steps, signature)
    same = next((i for i, (a, b) in enumerate(zip(expected, got)) if a != b), steps)
    # Two tokens nearer to each other than twice the tolerance may change places; after that the texts differ rightly.
    tie = same < steps and doubts[same][0] <= 2 * tolerance.allowed(doubts[same][1])
    return GreedyResult(artifact.format, steps, same, tie)


def _greedy(run: Run, start: Feeds, growing: str, steps: int, signature: Signature) -> tuple[list[int], list[Doubt]]:
    """The chosen tokens, and for each how far its logit is above the second, with all logits of that step."""
    ids, chosen, doubts = start[growing], [], []
    for _ in range(steps):
        feeds = {**start, growing: ids}
        if signature.takes_mask and growing == IDS:
            feeds[MASK] = np.ones_like(ids)
        last = run(feeds)[0, -1][
            : signature.vocab_size
        ]  # columns beyond the rows only pad the head; they are no tokens
        best = int(last.argmax())
        others = np.delete(last, best)
        chosen.append(best)
        doubts.append((float(last[best] - others.max()) if others.size else math.inf, last))
        ids = np.concatenate([ids, [[chosen[-1]]]], axis=1)
    return chosen, doubts


def _compare_text(artifact: Artifact, subject: ExportSubject, samples: Samples, tolerance: Tolerance) -> TextResult:
    text = samples.text
    assert text is not None
    model = bits_per_byte(subject.logits, subject.signature, text)
    file = bits_per_byte(lambda given: artifact.run(**given), subject.signature, text)
    return TextResult(artifact.format, len(text.ids), text.size, model, file, tolerance.allowed_bits(model))


def cost_of(artifact: Artifact, subject: ExportSubject, share: float) -> CostResult:
    """What the file's distribution costs where the model's is true, over all real rows of the subject's samples.

    Args:
        artifact: the written file.
        subject: the model; left as it was.
        share: part of the model's bits that it may cost.
    """
    samples = subject.samples if subject.samples is not None else samples_of(subject)
    with undisturbed(subject.adapted):
        return _cost(artifact, subject, samples, share)


def _grid_costs(artifact: Artifact, subject: ExportSubject, share: float) -> list[CostResult]:
    """The same over the shapes of the grid, for each side that padding can stand on: a mask that is not heeded costs bits."""
    cases = _cases(subject.signature, None)
    found = []
    for side in dict.fromkeys(padding for _, padding in cases):
        words = "random inputs" if side == "none" else f"random inputs padded on the {side}"
        batches = tuple(
            subject.signature.feeds(shape, side, subject.marks) for shape, padding in cases if padding == side
        )
        with undisturbed(subject.adapted):
            found.append(_cost(artifact, subject, Samples(batches, words), share))
    return found


def _cost(artifact: Artifact, subject: ExportSubject, samples: Samples, share: float) -> CostResult:
    lost, own, agreeing, rows = 0.0, 0.0, 0, 0
    for feeds in samples.batches:
        expected, got = subject.logits(feeds), artifact.run(**feeds)
        kept = real_rows(feeds, expected)
        wanted, given = _log_softmax(expected[kept]), _log_softmax(got[kept])
        probability = np.exp(wanted)
        possible = probability > 0  # what the model masks costs nothing
        own -= float((probability[possible] * wanted[possible]).sum())
        lost += float((probability[possible] * (wanted[possible] - given[possible])).sum())
        agreeing += int((wanted.argmax(-1) == given.argmax(-1)).sum())
        rows += len(wanted)
    per_row = 1 / (math.log(2) * rows)
    return CostResult(artifact.format, rows, own * per_row, lost * per_row, share, agreeing / rows, samples.origin)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities (rows, V) in float64."""
    with np.errstate(invalid="ignore"):  # of two infinities
        shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
