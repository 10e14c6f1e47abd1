from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import TokenizerError
from utils.tokenization.bpe_trainer import MINIMUM_VOCABULARY, SPECIAL_TOKENS, FastBPETrainer
from utils.tokenization.validator import TORTURE_TEXT

TEXTS = ["the quick brown fox jumps over the lazy dog. " * 20, "pack my box with five dozen jugs. " * 20]


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def decoded(tokenizer, text):
    return tokenizer.decode(ids(tokenizer, text), clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def small():
    return FastBPETrainer.train_on_dataset(TEXTS, 300)


@pytest.mark.parametrize("size", [MINIMUM_VOCABULARY, 261, 300])
def test_the_vocabulary_is_never_larger_than_asked(size):
    tokenizer = FastBPETrainer.train_on_dataset(TEXTS, size)
    assert len(tokenizer) == size
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))


def test_text_that_cannot_fill_the_vocabulary_gives_a_smaller_tokenizer_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        tokenizer = FastBPETrainer.train_on_dataset(["ab ab"], 1000)
    assert len(tokenizer) < 300
    assert f"fills {len(tokenizer)} of 1000" in caplog.text


def test_special_tokens_are_distinct_and_first(small):
    found = [small.pad_token_id, small.unk_token_id, small.bos_token_id, small.eos_token_id]
    assert found == [0, 1, 2, 3]
    assert tuple(small.convert_ids_to_tokens(found)) == SPECIAL_TOKENS


def test_further_special_tokens_take_the_next_ids():
    tokenizer = FastBPETrainer.train_on_dataset(TEXTS, 300, [*SPECIAL_TOKENS, "<user>"])
    assert ids(tokenizer, "<user>") == [4]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_unicode_text_survives(text):
    assert decoded(SHARED, text) == text


SHARED = FastBPETrainer.train_on_dataset(TEXTS, 280)


def test_the_torture_text_survives(small):
    assert decoded(small, TORTURE_TEXT) == TORTURE_TEXT


def test_training_is_deterministic():
    first, second = (FastBPETrainer.train_on_dataset(TEXTS, 300).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_a_saved_tokenizer_comes_back_equal(small, tmp_path):
    from transformers import AutoTokenizer

    small.save_pretrained(tmp_path)
    back = AutoTokenizer.from_pretrained(tmp_path)
    assert ids(back, TORTURE_TEXT) == ids(small, TORTURE_TEXT)
    assert (back.pad_token_id, back.eos_token_id) == (0, 3)


def test_the_cache_returns_the_same_tokenizer_and_another_for_other_text(tmp_path, monkeypatch):
    first = FastBPETrainer.train_on_dataset(TEXTS, 300, cache_dir=tmp_path)
    monkeypatch.setattr("utils.tokenization.bpe_trainer._train", lambda *_: pytest.fail("trained again"))
    again = FastBPETrainer.train_on_dataset(TEXTS, 300, cache_dir=tmp_path)
    assert ids(again, TORTURE_TEXT) == ids(first, TORTURE_TEXT)
    assert decoded(again, TORTURE_TEXT) == TORTURE_TEXT
    assert again.eos_token_id == 3
    monkeypatch.undo()
    FastBPETrainer.train_on_dataset(TEXTS[:1], 300, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # and no temporary folders


@pytest.mark.parametrize(
    ("texts", "size", "specials", "message"),
    [
        (TEXTS, 259, None, "at least 260 entries.*offers 259"),
        (TEXTS, 260, [*SPECIAL_TOKENS, "<x>"], "at least 261"),
        (TEXTS, True, None, "offers True"),
        ([], 300, None, "there is none"),
        ([""], 300, None, "there is none"),
        (["a", 5], 300, None, "of type int"),
        (TEXTS, 300, ["<pad>", "<unk>", "<s>"], "missing: </s>"),
        (TEXTS, 300, [*SPECIAL_TOKENS, "<pad>"], "double: <pad>"),
    ],
)
def test_what_cannot_be_trained_is_refused(texts, size, specials, message):
    with pytest.raises(TokenizerError, match=message):
        FastBPETrainer.train_on_dataset(texts, size, specials)
