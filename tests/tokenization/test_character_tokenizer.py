from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import TokenizerError
from utils.tokenization.bpe_trainer import SPECIAL_TOKENS, FastBPETrainer
from utils.tokenization.character_tokenizer import (
    DEFAULT_CHARACTERS,
    CharacterLevelTokenizer,
    alphabet,
    is_character_tokenizer,
)
from utils.tokenization.validator import TORTURE_TEXT

HELD = "the quick, brown fox\n\t\r jumps \x00\x01\x7f e\u0301 \u00e9 \u6f22\u5b57 \U0001f600\U0001f469\u200d\U0001f467 \U00010348 <s></s><pad>"


@pytest.fixture(scope="module")
def tokenizer():
    return CharacterLevelTokenizer(100, texts=[HELD])


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_special_tokens_come_first_then_characters_by_frequency():
    found = CharacterLevelTokenizer(8, texts=["bbb", "aa", "cc", "d"])
    assert found.convert_ids_to_tokens(range(8)) == [*SPECIAL_TOKENS, "b", "a", "c", "d"]
    assert CharacterLevelTokenizer(6, texts=["bbb", "aa", "cc", "d"]).convert_ids_to_tokens([4, 5]) == ["b", "a"]


@pytest.mark.parametrize("size", [5, 99, 100, 128, 259, 500_000])
def test_no_id_is_beyond_the_rows(size):
    found = CharacterLevelTokenizer(size, texts=[TORTURE_TEXT])
    assert sorted(found.get_vocab().values()) == list(range(len(found)))
    assert len(found) <= size
    assert max(ids(found, TORTURE_TEXT + "\u2603")) < size


def test_what_is_held_survives_character_by_character(tokenizer):
    assert len(ids(tokenizer, HELD)) == len(HELD)
    assert tokenizer.decode(ids(tokenizer, HELD)) == HELD
    assert tokenizer.decode(ids(tokenizer, HELD), skip_special_tokens=True) == HELD


def test_what_is_not_held_reads_as_unknown_one_for_one(tokenizer):
    assert ids(tokenizer, "t\u2603\u2603h") == [*ids(tokenizer, "t"), 1, 1, *ids(tokenizer, "h")]
    assert tokenizer.decode([4, 1, 4], skip_special_tokens=True) == tokenizer.decode([4, 4])


def test_marks_in_text_stay_text(tokenizer):
    text = "<s></s><pad>"
    for one in (tokenizer, pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert one.decode(ids(one, text)) == text and min(ids(one, text)) >= 4
    assert tokenizer(text, split_special_tokens=False)["input_ids"] == [2, 3, 0]


def test_offsets_point_into_the_text(tokenizer):
    found = tokenizer(HELD, return_offsets_mapping=True)["offset_mapping"]
    assert found == [(place, place + 1) for place in range(len(HELD))]


@pytest.mark.parametrize(("side", "expected"), [("right", [5, 0, 0]), ("left", [0, 0, 5])])
def test_batches_are_padded_on_either_side(side, expected):
    found = CharacterLevelTokenizer(10, texts=["aab"])
    batch = found(["aab", "b"], padding=True, padding_side=side)
    assert batch["input_ids"][1] == expected
    assert batch["attention_mask"][1] == [int(index != 0) for index in expected]


@pytest.mark.parametrize("loader", ["AutoTokenizer", "PreTrainedTokenizerFast"])
def test_a_saved_tokenizer_comes_back_equal_without_this_package(tokenizer, tmp_path, loader):
    import transformers

    tokenizer.save_pretrained(tmp_path)
    assert "utils" not in (tmp_path / "tokenizer_config.json").read_text()
    back = getattr(transformers, loader).from_pretrained(tmp_path)
    assert ids(back, HELD + "\u2603 </s>") == ids(tokenizer, HELD + "\u2603 </s>")
    assert back.decode(ids(back, HELD)) == HELD
    assert (back.pad_token_id, back.unk_token_id, back.bos_token_id, back.eos_token_id) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("text", "share", "words"),
    [
        ("abab", 1.0, "every one of the text's 4 characters"),
        ("abx\u6f22" * 2, 0.5, r"50\.00% .*'x', '\u6f22'"),
        ("", 1.0, "every one"),
    ],
)
def test_coverage_is_told(text, share, words):
    import re

    found = CharacterLevelTokenizer(10, texts=["ab"])
    coverage = CharacterLevelTokenizer.coverage(found, [text, "ab"] if not text else [text])
    assert coverage.share == share
    assert re.search(words, str(coverage))


def test_a_share_that_is_not_whole_never_reads_as_all():
    found = CharacterLevelTokenizer(10, texts=["a"])
    assert "100.00%" not in str(CharacterLevelTokenizer.coverage(found, "a" * 100_000 + "b"))


def test_coverage_lists_the_most_frequent_first_and_no_more_than_ten():
    found = CharacterLevelTokenizer(5, texts=["a"])
    told = str(CharacterLevelTokenizer.coverage(found, "".join(chr(65 + n) * (n + 1) for n in range(15))))
    assert "'O', 'N'" in told and "and 5 more" in told


def test_without_texts_it_writes_ascii():
    found = CharacterLevelTokenizer(128)
    assert alphabet(found) == set(DEFAULT_CHARACTERS)
    assert found.decode(ids(found, DEFAULT_CHARACTERS)) == DEFAULT_CHARACTERS


def test_further_special_tokens_take_the_next_ids():
    found = CharacterLevelTokenizer(10, [*SPECIAL_TOKENS, "<user>"], texts=["ab"])
    assert found.convert_ids_to_tokens([4, 5, 6]) == ["<user>", "a", "b"]


def test_which_tokenizers_are_made_of_characters(tokenizer):
    assert is_character_tokenizer(tokenizer)
    assert not is_character_tokenizer(FastBPETrainer.train_on_dataset(["ab"], 260, progress=False))


@pytest.mark.parametrize("size", [0, 4, -1, True, 7.5, None])
def test_too_few_rows_are_refused(size):
    with pytest.raises(TokenizerError, match="needs more entries than its 4 special tokens"):
        CharacterLevelTokenizer(size, texts=["a"])


def test_a_single_character_is_no_special_token():
    with pytest.raises(TokenizerError, match="ordinary text"):
        CharacterLevelTokenizer(10, [*SPECIAL_TOKENS, "x"], texts=["a"])


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(5, 60))
def test_any_text_survives_but_for_unknown_characters(text, size):
    found = CharacterLevelTokenizer(size, texts=[text])
    known = alphabet(found)
    back = ids(found, text)
    assert [index != 1 for index in back] == [character in known for character in text]
    held = "".join(character for character in text if character in known)
    assert found.decode(ids(found, held)) == held
