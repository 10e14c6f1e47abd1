"""The proof itself: its shapes, its figures against plain numpy, and planted faults that it must not let through."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from export import zoo
from utils.errors import ConfigError, ExportError
from utils.export.artifact import Artifact
from utils.export.exporter import traced_shape_for
from utils.export.parity import Tolerance, lengths_for, prove, shapes_for
from utils.export.parity_report import GreedyResult, ParityReport, ParityRow, TextResult
from utils.export.subject import ExportSubject, subject_of, undisturbed

TOLERANCE = Tolerance(1e-4, 1e-3, "a test")
Feeds = Mapping[str, np.ndarray]


class Faulty:
    """A runner that answers as the model does, changed by `fault(logits, feeds)`."""

    def __init__(self, subject: ExportSubject, fault: Callable[[np.ndarray, Feeds], np.ndarray]) -> None:
        self.input_names, self.metadata = subject.input_names, {}
        self.subject, self.fault = subject, fault

    def run(self, feeds: Feeds) -> np.ndarray:
        with undisturbed(self.subject.adapted):
            return self.fault(self.subject.logits(dict(feeds)), feeds)


def proven(subject: ExportSubject, fault: Callable[[np.ndarray, Feeds], np.ndarray], **options: object) -> ParityReport:
    artifact = Artifact("fake", Path("nowhere"), traced_shape=(2, 11))
    artifact._runner = Faulty(subject, fault)
    return prove(artifact, subject, TOLERANCE, **options)


@pytest.fixture(scope="module")
def bigram() -> ExportSubject:
    torch.manual_seed(0)
    return subject_of(zoo.Bigram(), config=zoo.CONFIG)


@pytest.fixture(scope="module")
def masked() -> ExportSubject:
    torch.manual_seed(0)
    return subject_of(zoo.PostNorm(causal=True), config=zoo.CONFIG)


def test_no_compared_shape_is_ever_the_traced_one() -> None:
    for limit in range(1, 2050):
        batch, length = traced_shape_for(limit)
        shapes = shapes_for(limit, (batch, length))  # raises where one is the traced one
        assert {1, limit} <= {t for _, t in shapes}
        assert {b for b, _ in shapes} == {1, 3}
        assert 1 <= length <= limit
        assert batch != length
        if limit >= 5:
            assert length not in lengths_for(limit), limit
            assert length > 1
        if limit >= 8:
            assert {1, 7, limit} <= set(lengths_for(limit))
            assert any(t % 2 and t not in (1, 7, limit) for t in lengths_for(limit)), limit


def test_a_traced_shape_among_the_compared_ones_is_an_error() -> None:
    with pytest.raises(ExportError, match="trace with another one"):
        shapes_for(32, (3, 7))


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
        return masked.logits({"input_ids": feeds["input_ids"], "attention_mask": np.ones_like(feeds["attention_mask"])})

    report = proven(masked, without_mask)
    assert {row.padding for row in report.rows if not row.passed} == {"left"}
    assert all(row.passed for row in report.rows if row.padding == "none")


def test_padding_itself_is_not_compared(masked: ExportSubject) -> None:
    def other_at_padding(logits: np.ndarray, feeds: Feeds) -> np.ndarray:
        logits[feeds["attention_mask"] == 0] = np.nan
        return logits

    assert proven(masked, other_at_padding).passed


def test_figures_against_plain_numpy(bigram: ExportSubject) -> None:
    noise = np.random.default_rng(0).normal(size=(3, 32, zoo.V)).astype(np.float32)
    row = next(
        r for r in proven(bigram, lambda logits, feeds: logits + noise[: len(logits), : logits.shape[1]]).rows[::-1]
    )
    assert (row.batch, row.length) == (3, 32)
    ids = np.random.default_rng((2, 3, 32)).integers(0, zoo.V, size=(3, 32))
    ids[-1, -1] = zoo.V - 1
    table = bigram.adapted.model.table.weight.detach().numpy()
    assert math.isclose(row.max_abs_diff, np.abs(noise).max(), rel_tol=1e-4)
    assert math.isclose(row.mean_abs_diff, np.abs(noise).mean(), rel_tol=1e-4)
    assert math.isclose(row.top1_agreement, ((table[ids] + noise).argmax(-1) == table[ids].argmax(-1)).mean())


def test_tolerance_grows_with_the_logits_and_never_shrinks() -> None:
    assert TOLERANCE.allowed(np.full((2, 3), 0.01)) == 1e-4
    assert math.isclose(TOLERANCE.allowed(np.array([30.0, 40.0, -30.0, -40.0])), 1e-4 * math.sqrt(1250))
    assert TOLERANCE.allowed(np.array([np.inf])) == 1e-4


def test_greedy_parts_and_ties(bigram: ExportSubject) -> None:
    """A file may differ on shapes that no row has; the continuation then shows it."""

    def other_at_length(delta: float) -> Callable[[np.ndarray, Feeds], np.ndarray]:
        def fault(logits: np.ndarray, feeds: Feeds) -> np.ndarray:
            if feeds["input_ids"].shape == (1, 12):  # the fifth step from a prompt of eight
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


def test_bits_per_byte_against_a_sum_by_hand() -> None:
    subject = subject_of(zoo.Bigram(), tokenizer=Bytes(), config=zoo.CONFIG)
    text = "Grüße an alle, " * 9  # several blocks, the last one shorter; ü and ß are two bytes each
    lengths = []
    report = proven(subject, lambda logits, feeds: (lengths.append(logits.shape[1]), logits)[1], validation_text=text)
    assert max(lengths) == zoo.LIMIT  # no block is longer than the model takes
    ids = Bytes().encode(text)
    table = subject.adapted.model.table.weight.detach().double()
    nats = -sum(float(table[a].log_softmax(0)[b]) for a, b in itertools.pairwise(ids))
    (result,) = report.text
    assert (result.tokens, result.bytes) == (len(ids), len(text.encode()))
    assert math.isclose(result.model, nats / math.log(2) / len(text.encode()), rel_tol=1e-5)  # float32 against float64
    assert result.file == result.model
    assert report.passed


@pytest.mark.parametrize(
    ("text", "tokenizer", "words"), [("abc", None, "needs a tokenizer"), ("a", Bytes(), "at least two")]
)
def test_text_that_cannot_be_measured(text: str, tokenizer: object, words: str) -> None:
    subject = subject_of(zoo.Bigram(), tokenizer=tokenizer, config=zoo.CONFIG)
    with pytest.raises(ConfigError, match=words):
        proven(subject, lambda logits, feeds: logits, validation_text=text)


def test_encoders_of_every_kind_give_ids() -> None:
    from utils.export.parity import token_ids

    fast = SimpleNamespace(encode=lambda text, add_special_tokens: SimpleNamespace(ids=[1, 2]))
    assert token_ids(fast, "x") == [1, 2]
    assert token_ids(Bytes(), "a") == [97 % zoo.V]


def _report() -> ParityReport:
    rows = [ParityRow("onnx", 1, 7, max_abs_diff=2e-6, mean_abs_diff=1e-7, top1_agreement=1.0, tolerance=1e-4)]
    text = [TextResult("onnx", 10, 30, 2.0, 2.0001, 1e-3)]
    return ParityReport(rows, [GreedyResult("onnx", 20, 20)], text, (2, 11), 1e-4, "<why>")


def test_views() -> None:
    report = _report()
    assert report.passed
    for words in ("2.00e-06", "20 of 20 greedy tokens", "2.0001 bits per byte", "batch 2 × length 11", "<why>"):
        assert words in report.summary()
    assert "<why>" not in report._repr_html_()
    frame = report.to_dataframe()
    assert list(frame.columns[:4]) == ["format", "batch", "length", "padding"]
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
    ],
)
def test_each_kind_of_difference_fails_the_report(change: Callable[[ParityReport], None]) -> None:
    report = _report()
    change(report)
    assert not report.passed
    assert not report.verdict.startswith("equal")


def test_joined_reports_keep_every_row() -> None:
    joined = ParityReport.joined([_report(), _report()])
    assert (len(joined.rows), len(joined.greedy), len(joined.text)) == (2, 2, 2)
    assert joined.passed
    assert not ParityReport.joined([]).passed
