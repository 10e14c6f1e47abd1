from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from utils.errors import TokenizerError
from utils.tokenization.bpe_trainer import FastBPETrainer
from utils.tokenization.validator import TokenizerValidator

TEXTS = ["the quick brown fox jumps over the lazy dog. " * 20]


@pytest.fixture(scope="module")
def good():
    return FastBPETrainer.train_on_dataset(TEXTS, 280)


def wrapped(vocabulary: dict[str, int], normalizer=None, **specials) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    if normalizer is not None:
        backend.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **specials)


def test_a_fitting_tokenizer_passes(good):
    report = TokenizerValidator.validate(good, 280)
    assert report and report.passed and not report.problems
    report.raise_for_problems()
    assert "fits" in report.summary() and "passed" in report._repr_html_()


def test_a_smaller_tokenizer_fits_and_is_noted(good):
    report = TokenizerValidator.validate(good, 300)
    assert report.passed
    assert "20 of the model's 300 rows stay unused" in " ".join(report.notes)


def test_ids_beyond_the_rows_are_named(good):
    report = TokenizerValidator.validate(good, 270)
    assert "10 entries have ids outside the model's 270 rows" in report.problems[0]
    assert "with id 270" in report.problems[0]


def test_padding_that_is_end_of_text_is_a_problem(good):
    tokenizer = FastBPETrainer.train_on_dataset(TEXTS, 280)
    tokenizer.pad_token = tokenizer.eos_token
    assert any("share id 3" in text for text in TokenizerValidator.validate(tokenizer, 280).problems)


@pytest.mark.parametrize(
    ("tokenizer", "rows", "words"),
    [
        (wrapped({"<unk>": 0, "a": 1}), 2, "no end-of-text token"),
        (wrapped({"<unk>": 0, "</s>": 1}, eos_token="</s>"), 2, "does not survive encoding and decoding"),
        (wrapped({"<unk>": 0, "a": 1}, normalizers.Lowercase()), 2, "does not survive"),
    ],
)
def test_each_problem_is_found(tokenizer, rows, words):
    assert any(words in text for text in TokenizerValidator.validate(tokenizer, rows).problems)


def test_all_problems_are_raised_together():
    tokenizer = wrapped({"<unk>": 0, "</s>": 7}, eos_token="</s>", pad_token="</s>")
    with pytest.raises(
        TokenizerError, match=r"(?s)problems\).*outside the model's 2 rows.*share id 7.*does not survive"
    ):
        TokenizerValidator.validate(tokenizer, 2).raise_for_problems()
