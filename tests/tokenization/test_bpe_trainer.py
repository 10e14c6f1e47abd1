from __future__ import annotations

import copy
import logging
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import TokenizerError
from utils.tokenization.bpe_trainer import MINIMUM_VOCABULARY, SPECIAL_TOKENS, FastBPETrainer
from utils.tokenization.validator import TORTURE_TEXT

TEXTS = ["the quick brown fox jumps over the lazy dog. " * 20, "pack my box with five dozen jugs. " * 20]


def train(*arguments, **settings):
    return FastBPETrainer.train_on_dataset(*arguments, **{"progress": False, **settings})


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def decoded(tokenizer, text):
    return tokenizer.decode(ids(tokenizer, text), clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def small():
    return train(TEXTS, 300)


@pytest.mark.parametrize("size", [MINIMUM_VOCABULARY, 261, 300])
def test_the_vocabulary_is_never_larger_than_asked(size):
    tokenizer = train(TEXTS, size)
    assert len(tokenizer) == size
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))


def test_text_that_cannot_fill_the_vocabulary_gives_a_smaller_tokenizer_and_says_so(caplog):
    with caplog.at_level(logging.INFO):
        tokenizer = train(["ab ab"], 1000)
    assert len(tokenizer) < 300
    assert f"fills {len(tokenizer)} of 1000" in caplog.text
    assert all(record.levelno < logging.WARNING for record in caplog.records)


def test_special_tokens_are_distinct_and_first(small):
    found = [small.pad_token_id, small.unk_token_id, small.bos_token_id, small.eos_token_id]
    assert found == [0, 1, 2, 3]
    assert tuple(small.convert_ids_to_tokens(found)) == SPECIAL_TOKENS


def test_further_special_tokens_take_the_next_ids():
    tokenizer = train(TEXTS, 300, [*SPECIAL_TOKENS, "<user>"])
    assert tokenizer.convert_tokens_to_ids("<user>") == 4
    assert tokenizer("<user>", split_special_tokens=False)["input_ids"] == [4]
    assert 4 not in ids(tokenizer, "<user>")


MARKS = ["<pad><unk><s></s>" * 400, "</s>\n</s> " * 400, "<user> </s><user>" * 400]


def test_text_that_spells_out_special_tokens_stays_text(tmp_path):
    """Trained on nothing but such text, so that merges into the very words would be found."""
    tokenizer = train(MARKS, 1000, [*SPECIAL_TOKENS, "<user>"], tmp_path)
    again = train(MARKS, 1000, [*SPECIAL_TOKENS, "<user>"], tmp_path)
    for one in (tokenizer, again, pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        for text in [*MARKS, "<s>", " <s>", "a</s>b"]:
            assert min(ids(one, text)) > 4
            assert decoded(one, text) == text


@pytest.mark.parametrize("mark", ["###", "user", "\u0120the", "a", "\u00c3\u0124", "--", "12"])
def test_special_tokens_that_could_be_text_are_refused(mark):
    with pytest.raises(TokenizerError, match="could also be pieces of ordinary text"):
        train([f"{mark} " * 100], 300, [*SPECIAL_TOKENS, mark])


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_unicode_text_survives(text):
    assert decoded(SHARED, text) == text


SHARED = train(TEXTS, 280)


def test_the_torture_text_survives(small):
    assert decoded(small, TORTURE_TEXT) == TORTURE_TEXT


def test_training_is_deterministic():
    first, second = (train(TEXTS, 300).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_a_saved_tokenizer_comes_back_equal(small, tmp_path):
    from transformers import AutoTokenizer

    small.save_pretrained(tmp_path)
    back = AutoTokenizer.from_pretrained(tmp_path)
    assert ids(back, TORTURE_TEXT) == ids(small, TORTURE_TEXT)
    assert (back.pad_token_id, back.eos_token_id) == (0, 3)


def test_the_cache_returns_the_same_tokenizer_and_another_for_other_text(tmp_path, monkeypatch):
    first = train(TEXTS, 300, cache_dir=tmp_path)
    monkeypatch.setattr("utils.tokenization.bpe_trainer._train", lambda *_: pytest.fail("trained again"))
    again = train(TEXTS, 300, cache_dir=tmp_path)
    assert ids(again, TORTURE_TEXT) == ids(first, TORTURE_TEXT)
    assert decoded(again, TORTURE_TEXT) == TORTURE_TEXT
    assert again.eos_token_id == 3
    monkeypatch.undo()
    train(TEXTS[:1], 300, cache_dir=tmp_path)
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
        train(texts, size, specials)


def test_generators_and_lists_give_the_same_tokenizer():
    streamed = train((text for text in TEXTS), 300)
    assert streamed.backend_tokenizer.to_str() == train(TEXTS, 300).backend_tokenizer.to_str()


def test_a_larger_text_is_sampled_and_the_rule_is_said(caplog):
    with caplog.at_level(logging.INFO):
        train([f"line {number} of many" for number in range(2000)], 300, sample_bytes=10_000)
    assert "one document in 4," in caplog.text


def test_a_dataset_is_read_by_its_text_column():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"label": [0, 1], "text": TEXTS})
    assert train(rows, 300).backend_tokenizer.to_str() == train(TEXTS, 300).backend_tokenizer.to_str()


def test_progress_is_told():
    told = []
    train(TEXTS * 300, 300, progress=lambda *state: told.append(state))
    notes = [note for _, _, note in told]
    assert notes[:2] == ["reading", "reading"]
    assert {"read", "counting words", "merging pairs", "300 entries"} <= set(notes)


def test_a_vocabulary_of_half_a_million_reserves_no_memory_for_a_short_text():
    assert len(train(["short"], 10**9)) < 300


UNUSUAL = {
    "nul": ["a\0b" * 50],
    "one line of a megabyte": ["abc def " * 125_000],
    "a megabyte without a blank": ["".join(random.Random(0).choices("ACGT", k=1_000_000))],
    "empty documents": ["", "text text", ""],
    "blanks only": [" \n\t\r\n" * 50],
    "half a character in bytes": ["\U0001f600" * 50],
    "crlf": ["one\r\ntwo\r\n" * 50],
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_texts_survive(name):
    tokenizer = train(UNUSUAL[name], 300)
    for text in [*UNUSUAL[name], TORTURE_TEXT]:
        assert decoded(tokenizer, text) == text


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), min_size=1), st.integers(260, 320))
def test_whatever_it_is_trained_on_the_text_survives_and_no_id_is_beyond_the_rows(texts, size):
    if not any(texts):
        return
    tokenizer = train(texts, size)
    for text in texts:
        found = ids(tokenizer, text)
        assert all(len(SPECIAL_TOKENS) <= index < size for index in found)
        assert decoded(tokenizer, text) == text
