"""The proof itself: its shapes, its figures against plain numpy, and planted faults that it must not let through."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from export import zoo
from utils.errors import ExportError
from utils.export.artifact import Artifact
from utils.export.exporter import traced_shape_for
from utils.export.parity import GRID, LONGEST, WITHOUT_LIMIT, Tolerance, lengths_for, prove, shapes_for
from utils.export.parity_report import CostResult, GreedyResult, ParityReport, ParityRow, TextResult
from utils.export.runner import Runner
from utils.export.samples import samples_of
from utils.export.signature import DECODER_IDS, IDS, MASK, PIXELS, Shape, Signature
from utils.export.subject import ExportSubject, subject_of, undisturbed

TOLERANCE = Tolerance(1e-4, 1e-3, "a test")
Feeds = Mapping[str, np.ndarray]


class Faulty(Runner):
    """A runner that answers as the model does, changed by `fault(logits, feeds)`."""

    def __init__(self, subject: ExportSubject, fault: Callable[[np.ndarray, Feeds], np.ndarray]) -> None:
        self.signature, self.facts = subject.signature, {}
        self.subject, self.fault = subject, fault

    def run(self, feeds: Feeds) -> np.ndarray:
        with undisturbed(self.subject.adapted):
            return self.fault(self.subject.logits(dict(feeds)), feeds)


def proven(
    subject: ExportSubject,
    fault: Callable[[np.ndarray, Feeds], np.ndarray],
    tolerance: Tolerance = TOLERANCE,
    **options: object,
) -> ParityReport:
    artifact = Artifact("fake", Path(__file__), traced_shape=traced_shape_for(subject.signature))
    artifact.open_with(Faulty(subject, fault))
    return prove(artifact, subject, tolerance, **options)


@pytest.fixture(scope="module")
def bigram() -> ExportSubject:
    torch.manual_seed(0)
    return subject_of(zoo.Bigram(), config=zoo.CONFIG)


@pytest.fixture(scope="module")
def masked() -> ExportSubject:
    torch.manual_seed(0)
    return subject_of(zoo.PostNorm(causal=True), config=zoo.CONFIG)


def signature(limit: int | None, **more: object) -> Signature:
    return Signature(**{"task": "lm", "inputs": (IDS,), "output_size": 9, "vocab_size": 9, "max_length": limit, **more})


def test_no_compared_shape_is_ever_the_traced_one() -> None:
    for limit in range(1, 2050):
        known = signature(limit)
        traced = traced_shape_for(known)
        shapes = shapes_for(known, traced)  # raises where one is the traced one
        assert {1, limit} <= {shape.length for shape in shapes}
        assert {shape.batch for shape in shapes} == {1, 3}
        assert 1 <= traced.length <= limit
        assert traced.batch != traced.length
        if limit >= 5:
            assert traced.length not in lengths_for(known), limit
            assert traced.length > 1
        if limit >= 8:
            assert {1, 7, limit} <= set(lengths_for(known))
            assert any(length % 2 and length not in (1, 7, limit) for length in lengths_for(known)), limit


def test_decoders_get_lengths_of_their_own() -> None:
    for limit in range(1, 600):
        known = signature(limit, task="seq2seq", inputs=(IDS, DECODER_IDS))
        traced = traced_shape_for(known)
        shapes = shapes_for(known, traced)
        assert {shape.decoder_length for shape in shapes} == {shape.length for shape in shapes}
        if limit >= 6:  # three sizes that differ: none can stand for another
            assert len({*traced}) == 3
            assert all(shape.length != shape.decoder_length for shape in shapes)
            assert not {traced.length, traced.decoder_length} & set(lengths_for(known)), limit


@pytest.mark.parametrize("step", [2, 4, 8])
def test_lengths_are_those_that_the_model_takes(step: int) -> None:
    for limit in range(step, 20 * step):
        known = signature(limit, multiple_of=step)
        assert all(length % step == 0 and length <= limit for length in lengths_for(known))
        assert traced_shape_for(known).length % step == 0
        shapes_for(known, traced_shape_for(known))
    assert min(lengths_for(signature(64, min_length=7))) == 7


def test_without_a_limit_the_proof_goes_as_far_as_it_says() -> None:
    assert max(lengths_for(signature(None))) == WITHOUT_LIMIT
    assert traced_shape_for(signature(None)) == Shape(2, 11)


def test_lengths_whose_attention_would_fill_memory_are_left_out_and_said() -> None:
    class Far(zoo.Bigram):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            assert input_ids.shape[1] <= LONGEST
            return self.table(input_ids)

    report = proven(subject_of(Far(8), config={"vocab_size": 8, "max_seq_len": 131_072}), lambda logits, feeds: logits)
    assert report.passed and max(row.length for row in report.rows) == LONGEST
    assert "lengths from 4097 to 131072 were not compared" in " ".join(report.remarks)


def test_no_comparison_needs_more_memory_than_a_gigabyte() -> None:
    wide = signature(8192, output_size=128_000)
    shapes = shapes_for(wide, traced_shape_for(wide))
    assert max(4 * s.batch * s.length * 128_000 for s in shapes) <= 1 << 30
    assert {s.length for s in shapes if s.batch == 3} >= {1, 7}  # only the longest one goes alone


def test_images_differ_in_their_number_only() -> None:
    pictures = Signature("vision", (PIXELS,), 4, image_shape=(1, 8, 8))
    assert traced_shape_for(pictures) == Shape(2)
    assert shapes_for(pictures, Shape(2)) == [Shape(1), Shape(3)]


def test_a_traced_shape_among_the_compared_ones_is_an_error() -> None:
    with pytest.raises(ExportError, match="trace with another one"):
        shapes_for(signature(32), Shape(3, 7))


def test_equal_files_pass(masked: ExportSubject) -> None:
    seen: list[tuple[int, int | None]] = []
    report = proven(masked, lambda logits, feeds: logits, progress=lambda done, total, note: seen.append((done, total)))
    assert report.passed
    assert seen[-1] == (len(report.rows), len(report.rows))
    assert report.max_abs_diff == 0
    assert all(row.top1_agreement == 1 and row.model_ms > 0 and row.file_ms > 0 for row in report.rows)


def _bake_length(logits: np.ndarray, feeds: Feeds) -> np.ndarray:
    return logits[:, :11]


def _bake_batch(logits: np.ndarray, feeds: Feeds) -> np.ndarray:
    return logits[:1] if len(logits) > 2 else logits


def _fail_at_three(logits: np.ndarray, feeds: Feeds) -> np.ndarray:
    if len(logits) == 3:
        raise ExportError("batch is 2")
    return logits


def _shift_one(logits: np.ndarray, feeds: Feeds) -> np.ndarray:
    logits[0, -1, -1] += 0.01
    return logits


def _nan(logits: np.ndarray, feeds: Feeds) -> np.ndarray:
    logits[0, 0, 0] = np.nan
    return logits


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (_bake_length, "4 of 8 shapes differ.*length 17: the file gives shape"),
        (_bake_batch, "4 of 8 shapes differ.*batch 3"),
        (_fail_at_three, "batch 3 × length 1: batch is 2"),
        (_shift_one, "8 of 8 shapes differ.*largest difference 1.00e-02"),
        (_nan, "NaN or infinity where the model does not"),
        (lambda logits, feeds: logits[..., ::-1], "8 of 8"),
        (lambda logits, feeds: np.zeros_like(logits), "8 of 8"),
    ],
)
def test_planted_faults_are_caught(bigram: ExportSubject, fault: Callable, words: str) -> None:
    report = proven(bigram, fault)
    assert not report.passed
    assert re.search(words, report.verdict), report.verdict
    assert "DIFFERS" in report.summary()
    assert not report.greedy  # nothing more to prove


def test_a_dropped_mask_is_caught(masked: ExportSubject) -> None:
    def without_mask(logits: np.ndarray, feeds: Feeds) -> np.ndarray:
        return masked.logits({**feeds, MASK: np.ones_like(feeds[MASK])})

    report = proven(masked, without_mask)
    assert {row.padding for row in report.rows if not row.passed} == {"left"}
    assert all(row.passed for row in report.rows if row.padding == "none")


def test_padding_itself_is_not_compared(masked: ExportSubject) -> None:
    def other_at_padding(logits: np.ndarray, feeds: Feeds) -> np.ndarray:
        logits[feeds[MASK] == 0] = np.nan
        return logits

    assert proven(masked, other_at_padding).passed


def test_figures_against_plain_numpy(bigram: ExportSubject) -> None:
    noise = np.random.default_rng(0).normal(size=(3, 32, zoo.V)).astype(np.float32)
    row = next(
        r for r in proven(bigram, lambda logits, feeds: logits + noise[: len(logits), : logits.shape[1]]).rows[::-1]
    )
    assert (row.batch, row.length) == (3, 32)
    ids = bigram.signature.feeds(Shape(3, 32))[IDS]
    table = bigram.adapted.model.table.weight.detach().numpy()
    assert math.isclose(row.max_abs_diff, np.abs(noise).max(), rel_tol=1e-4)
    assert math.isclose(row.mean_abs_diff, np.abs(noise).mean(), rel_tol=1e-4)
    assert math.isclose(row.top1_agreement, ((table[ids] + noise).argmax(-1) == table[ids].argmax(-1)).mean())


def test_tolerance_grows_with_the_logits_and_never_shrinks() -> None:
    assert TOLERANCE.allowed(np.full((2, 3), 0.01)) == 1e-4
    assert math.isclose(TOLERANCE.allowed(np.array([30.0, 40.0, -30.0, -40.0])), 1e-4 * math.sqrt(1250))
    assert TOLERANCE.allowed(np.array([np.inf])) == 1e-4


@pytest.mark.parametrize("mask", [-1e4, -1e9, float(np.finfo(np.float32).min), -math.inf])
@pytest.mark.parametrize(("delta", "passed"), [(0.0, True), (1e-2, False)])
def test_rows_that_the_model_masks_excuse_no_difference_of_others(mask: float, delta: float, passed: bool) -> None:
    class Masking(zoo.Bigram):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.table(input_ids).masked_fill(torch.arange(zoo.V) > 50, mask)

    report = proven(subject_of(Masking(), config=zoo.CONFIG), lambda logits, feeds: logits + delta)
    assert report.passed == passed
    assert all(row.tolerance < 1e-3 and math.isclose(row.max_abs_diff, delta, abs_tol=1e-5) for row in report.rows)


def test_a_mask_may_be_off_by_its_own_rounding_and_not_be_lost(bigram: ExportSubject) -> None:
    def masked(value: float) -> Callable[[np.ndarray, Feeds], np.ndarray]:
        def fault(logits: np.ndarray, feeds: Feeds) -> np.ndarray:
            logits[..., 7] = value
            return logits

        return fault

    class Masking(zoo.Bigram):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.table(input_ids).masked_fill(torch.arange(zoo.V) == 7, self.value)

    for value, given, passed in [
        (-1e9, -1e9 - 64, True),
        (-1e9, -3.0, False),
        (-math.inf, -3.0, False),
        (-3.0, -math.inf, False),
    ]:
        Masking.value = value
        report = proven(subject_of(Masking(), config=zoo.CONFIG), masked(given))
        assert report.passed == passed, (value, given)


def test_a_model_that_answers_differently_each_time_is_told_so() -> None:
    class Counting(zoo.Bigram):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.table(input_ids) + self.calls

    report = proven(subject_of(Counting(), config=zoo.CONFIG), lambda logits, feeds: logits)
    assert not report.passed and "when it is asked again: forward keeps a state, or draws at random" in report.verdict


def test_greedy_parts_and_ties(bigram: ExportSubject) -> None:
    """A file may differ on shapes that no row has; the continuation then shows it."""

    def other_at_length(delta: float) -> Callable[[np.ndarray, Feeds], np.ndarray]:
        def fault(logits: np.ndarray, feeds: Feeds) -> np.ndarray:
            if feeds[IDS].shape == (1, 12):  # the fifth step from a prompt of eight
                logits[0, -1, np.argsort(logits[0, -1])[-2]] += delta
            return logits

        return fault

    parted = proven(bigram, other_at_length(50.0))
    assert not parted.passed
    assert parted.greedy[0].same == 4
    assert "4 of 20 greedy tokens agree (then they part" in parted.verdict
    with torch.no_grad():  # the two best tokens after every token are one rounding apart
        best = bigram.adapted.model.table.weight.topk(2, dim=1).indices
        before = bigram.adapted.model.table.weight.clone()
        rows = torch.arange(zoo.V)
        bigram.adapted.model.table.weight[rows, best[:, 1]] = before[rows, best[:, 0]] - 1e-6
    try:
        tied = proven(bigram, other_at_length(1e-5))
    finally:
        with torch.no_grad():
            bigram.adapted.model.table.weight.copy_(before)
    assert tied.passed
    assert tied.greedy[0].tie


class Bytes:
    """A tokenizer of 61 entries."""

    def __len__(self) -> int:
        return zoo.V

    def encode(self, text: str) -> list[int]:
        return [byte % zoo.V for byte in text.encode()]


def test_bits_per_byte_are_compared_on_the_text_of_the_samples() -> None:
    subject = subject_of(zoo.Bigram(), tokenizer=Bytes(), config=zoo.CONFIG)
    subject = replace(subject, samples=samples_of(subject, "Grüße an alle, " * 9))
    lengths: list[int] = []
    report = proven(subject, lambda logits, feeds: (lengths.append(logits.shape[1]), logits)[1])
    assert report.passed
    assert max(lengths) == zoo.LIMIT  # no block is longer than the model takes
    (result,) = report.text
    assert result.file == result.model > 0
    assert result.tolerance == TOLERANCE.bits_per_byte
    assert not replace(result, file=result.model + 2e-3).passed


HALF = Tolerance(math.inf, math.inf, "judged by its cost", cost=0.02)


def test_a_format_judged_by_its_cost_may_differ_and_not_cost_more(bigram: ExportSubject) -> None:
    """Half of the logits' noise is harmless and large noise is not; both differ in every logit."""
    subject = replace(bigram, samples=samples_of(bigram))

    def noisy(size: float) -> ParityReport:
        generator = np.random.default_rng(0)
        return proven(
            subject, lambda logits, feeds: logits + generator.normal(0, size, logits.shape).astype(np.float32), HALF
        )

    little, much = noisy(0.05), noisy(1.0)
    assert little.passed and not much.passed
    assert all(row.passed for row in much.rows)
    assert "COSTS TOO MUCH" in much.verdict
    cost, on_random_ids = little.cost
    assert on_random_ids.share == GRID * cost.share
    # second order in the noise: half its variance, in bits; the other half of the noise's log-normalisers is left out
    assert math.isclose(cost.lost, 0.05**2 / 2 / math.log(2), rel_tol=0.2)
    assert not little.greedy  # continuations of files that may differ part early


def test_cost_against_a_sum_by_hand(bigram: ExportSubject) -> None:
    subject = replace(bigram, samples=samples_of(bigram))
    result = proven(subject, lambda logits, feeds: 0.9 * logits, HALF).cost[0]
    ids = subject.samples.batches[0][IDS].reshape(-1)
    rows = torch.from_numpy(bigram.adapted.model.table.weight.detach().numpy()[ids]).double()
    truth, file = rows.log_softmax(-1), (0.9 * rows).log_softmax(-1)
    assert result.rows == len(ids)
    assert math.isclose(result.model, float(-(truth.exp() * truth).sum(-1).mean()) / math.log(2), rel_tol=1e-5)
    assert math.isclose(result.lost, float((truth.exp() * (truth - file)).sum(-1).mean()) / math.log(2), rel_tol=1e-4)
    assert result.top1_agreement == 1


def test_a_cost_is_weighed_on_what_the_model_says_where_nothing_else_is_known(bigram: ExportSubject) -> None:
    cost, _ = proven(bigram, lambda logits, feeds: logits, HALF).cost
    assert (cost.origin, cost.lost) == ("what the model itself says", pytest.approx(0, abs=1e-9))


def test_a_dropped_mask_costs_too_much(masked: ExportSubject) -> None:
    def without_mask(logits: np.ndarray, feeds: Feeds) -> np.ndarray:
        return masked.logits({**feeds, MASK: np.ones_like(feeds[MASK])})

    report = proven(masked, without_mask, HALF)
    assert [cost.origin for cost in report.cost if not cost.passed] == ["random inputs padded on the left"]
    assert "COSTS TOO MUCH" in report.verdict


def test_what_is_not_compared_is_said(bigram: ExportSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not proven(bigram, lambda logits, feeds: logits).remarks
    monkeypatch.setattr("utils.export.parity.LARGEST_LOGITS", 4 * zoo.V * 2 * zoo.LIMIT)
    report = proven(bigram, lambda logits, feeds: logits)
    assert report.remarks == ["length 32 was compared at batch 1 only: the logits of 3 sequences fill memory"]
    assert report.passed and report.remarks[0] in report.summary()


def test_a_file_that_says_other_limits_than_the_model_is_refused(bigram: ExportSubject) -> None:
    other = Faulty(bigram, lambda logits, feeds: logits)
    other.signature = replace(bigram.signature, max_length=64)
    artifact = Artifact("fake", Path(__file__), traced_shape=Shape(2, 11))
    artifact.open_with(other)
    report = prove(artifact, bigram, TOLERANCE)
    assert not report.passed
    assert report.verdict == "the file says max_length = 64, the model 32"


def _report() -> ParityReport:
    return ParityReport(
        [ParityRow("onnx", 1, 7, max_abs_diff=2e-6, mean_abs_diff=1e-7, top1_agreement=1.0, tolerance=1e-4)],
        [GreedyResult("onnx", 20, 20)],
        [TextResult("onnx", 10, 30, 2.0, 2.0001, 1e-3)],
        [CostResult("onnx", 512, 3.0, 0.01, 0.02, 0.99, "<samples>")],
        traced_shape=Shape(2, 11),
        sizes={"onnx": 4_000_000},
        weights=8_000_000,
        tolerance=1e-4,
        reason="<why>",
    )


def test_views() -> None:
    report = _report()
    assert report.passed
    for words in (
        "2.00e-06",
        "20 of 20 greedy tokens",
        "2.0001 bits per byte",
        "batch 2 × length 11",
        "4.00 MB",
        "<why>",
        "<samples>",
    ):
        assert words in report.summary()
    assert "<why>" not in report._repr_html_() and "<samples>" not in report._repr_html_()
    frame = report.to_dataframe()
    assert list(frame.columns[:5]) == ["format", "batch", "length", "decoder_length", "padding"]
    assert frame["passed"].tolist() == [True]
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["rows"][0]["model_ms"] is None


@pytest.mark.parametrize(
    "change",
    [
        lambda report: report.rows.clear(),
        lambda report: setattr(report.rows[0], "max_abs_diff", math.nan),
        lambda report: setattr(report.rows[0], "max_abs_diff", 2e-4),
        lambda report: setattr(report.rows[0], "error", "no"),
        lambda report: setattr(report.greedy[0], "same", 3),
        lambda report: setattr(report.text[0], "file", 2.01),
        lambda report: setattr(report.text[0], "file", math.nan),
        lambda report: setattr(report.cost[0], "lost", 0.07),
        lambda report: setattr(report.cost[0], "lost", math.nan),
        lambda report: report.notes.append("the file says otherwise"),
    ],
)
def test_each_kind_of_difference_fails_the_report(change: Callable[[ParityReport], None]) -> None:
    report = _report()
    change(report)
    assert not report.passed
    assert not report.verdict.startswith(("equal", "runs"))
    assert report.to_dict()["passed"] is False


def test_joined_reports_keep_every_row() -> None:
    joined = ParityReport.joined([_report(), _report()])
    assert (len(joined.rows), len(joined.greedy), len(joined.text), len(joined.cost)) == (2, 2, 2, 2)
    assert joined.passed
    assert not ParityReport.joined([]).passed
