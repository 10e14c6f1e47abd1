from __future__ import annotations

import random
import re

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from utils.errors import TokenizerError
from utils.tokenization.bpe_trainer import FastBPETrainer
from utils.tokenization.character_tokenizer import CharacterLevelTokenizer
from utils.tokenization.validator import SLOW, TORTURE_TEXT, TokenizerValidator, _check_speed

TEXTS = ["the quick brown fox jumps over the lazy dog. " * 20]


@pytest.fixture(scope="module")
def good():
    return FastBPETrainer.train_on_dataset(TEXTS, 280, progress=False)


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
    tokenizer = FastBPETrainer.train_on_dataset(TEXTS, 280, progress=False)
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


def test_a_fitting_tokenizer_keeps_every_text_and_is_fast(good):
    report = TokenizerValidator.validate(good, 280)
    assert report.lossless and report.characters_per_second > SLOW


@pytest.mark.parametrize(
    ("text", "rows", "words"),
    [
        ("a few characters", 100, r"\d+\.\d+% of the text's .* which read as <unk>"),
        (TORTURE_TEXT, 120, "$^"),  # all of the test text is held: nothing to say
    ],
)
def test_a_character_tokenizer_is_judged_by_what_it_holds(text, rows, words):
    report = TokenizerValidator.validate(CharacterLevelTokenizer(rows, texts=[text]), rows)
    assert report.passed and report.lossless
    assert any(re.search(words, note) for note in report.notes) is (words != "$^")


def test_a_character_tokenizer_that_alters_what_it_holds_is_found():
    tokenizer = CharacterLevelTokenizer(50, texts=["abc xyz"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("x", "y")
    report = TokenizerValidator.validate(tokenizer, 50)
    assert not report.lossless and any("does not survive" in text for text in report.problems)


def test_loss_may_be_a_note_where_it_is_meant():
    tokenizer = wrapped({"<unk>": 0, "</s>": 1, "a": 2}, normalizers.Lowercase(), eos_token="</s>")
    report = TokenizerValidator.validate(tokenizer, 3, lossless=False)
    assert report.passed and not report.lossless
    assert any("does not survive" in text for text in report.notes)


def test_text_that_always_turns_into_special_tokens_is_noted(good):
    from tokenizers import models as kinds

    vocabulary = [("<unk>", 0.0), ("</s>", 0.0), ("<", -5.0), ("/", -5.0), ("s", -5.0), (">", -5.0)]
    backend = Tokenizer(kinds.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    notes = TokenizerValidator.validate(tokenizer, 6).notes
    assert any("Text that spells out </s> turns into special tokens" in note for note in notes)
    assert not any("spells out" in note for note in TokenizerValidator.validate(good, 280).notes)


def test_a_slow_tokenizer_is_noted(good):
    ticks = iter([0.0, 100.0])
    report = TokenizerValidator.validate(good, 280)
    _check_speed(report, good, lambda: next(ticks))
    assert any("characters a second: a megabyte of text takes" in note for note in report.notes)


def test_a_tokenizer_that_raises_is_a_problem_like_any_other(good, monkeypatch):
    tokenizer = FastBPETrainer.train_on_dataset(TEXTS, 280, progress=False)
    monkeypatch.setattr(type(tokenizer), "decode", lambda *_, **__: random.no_such_thing)
    problems = TokenizerValidator.validate(tokenizer, 270).problems
    assert any("fails with AttributeError" in text for text in problems)
    assert any("outside the model's 270 rows" in text for text in problems)
