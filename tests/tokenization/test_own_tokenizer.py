from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models

from tests.tokenization.test_sentencepiece_model import PIECES, model_bytes
from utils.errors import TokenizerError
from utils.tokenization.bpe_trainer import FastBPETrainer
from utils.tokenization.own_tokenizer import complete_specials, load_own
from utils.tokenization.validator import TORTURE_TEXT

TEXTS = ["the quick brown fox jumps over the lazy dog. " * 20]


@pytest.fixture(scope="module")
def trained():
    return FastBPETrainer.train_on_dataset(TEXTS, 300, progress=False)


@pytest.fixture
def folder(trained, tmp_path):
    """The same tokenizer in every form."""
    trained.save_pretrained(tmp_path / "whole")
    trained.backend_tokenizer.save(str(tmp_path / "alone.json"))
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    trained.backend_tokenizer.model.save(str(pairs))
    (pairs / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>"}, "pad_token": "<pad>"}))
    return tmp_path


@pytest.mark.parametrize(
    "name", ["whole", "whole/tokenizer.json", "alone.json", "pairs", "pairs/vocab.json", "pairs/merges.txt"]
)
def test_each_form_gives_the_same_tokenizer(trained, folder, name):
    for source in (folder / name, str(folder / name)):
        found = load_own(source)
        assert found(TORTURE_TEXT, split_special_tokens=True)["input_ids"] == trained(TORTURE_TEXT)["input_ids"]
        assert (found.pad_token_id, found.eos_token_id) == (0, 3)
        assert found.decode(trained(TORTURE_TEXT)["input_ids"]) == TORTURE_TEXT


def test_objects_are_taken(trained):
    assert load_own(trained) is trained
    found = load_own(trained.backend_tokenizer)
    assert (found.pad_token, found.unk_token, found.bos_token, found.eos_token) == ("<pad>", "<unk>", "<s>", "</s>")


@pytest.mark.parametrize("kind", [1, 2])
def test_sentencepiece_models_are_taken(tmp_path, kind):
    (tmp_path / "my.model").write_bytes(model_bytes(PIECES, kind))
    for source in (tmp_path, tmp_path / "my.model"):
        found = load_own(source)
        assert found("ab a", split_special_tokens=True)["input_ids"] == [2, 5, 3]
        assert (found.eos_token_id, found.pad_token_id) == (1, None)


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({}, "nowhere", "There is no tokenizer at .*nowhere. What works"),
        ({}, "", "holds nothing"),
        ({"model.bin": "x"}, "", "holds model.bin"),
        ({"model.bin": "x"}, "model.bin", "no file of a tokenizer"),
        ({"a.model": "x", "b.model": "y"}, "", "holds 2 .model files"),
        ({"tokenizer.json": "{"}, "", "cannot be read as a tokenizer"),
        ({"vocab.json": "{", "merges.txt": ""}, "", "cannot be read"),
        ({"vocab.json": '{"a</w>": 0}', "merges.txt": "#version: 0.2\n"}, "", "lacks 256 of the 256 byte symbols"),
        ({"my.model": "text"}, "my.model", "no SentencePiece model"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, files, name, message):
    for file, content in files.items():
        (tmp_path / file).write_text(content)
    with pytest.raises(TokenizerError, match=message):
        load_own(tmp_path / name if name else tmp_path)


@pytest.mark.parametrize("thing", [5, None, ["a"], {"a": 1}])
def test_what_is_no_tokenizer_is_refused(thing):
    with pytest.raises(TokenizerError, match=r"is no tokenizer\. What works: a folder"):
        load_own(thing)


def plain(*entries: str, **specials: str):
    """A tokenizer of these entries without any special token but those named."""
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({entry: index for index, entry in enumerate(entries)}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **specials)


@pytest.mark.parametrize(
    ("tokenizer", "rows", "end", "pad", "notes"),
    [
        (plain("a", "</s>", "<pad>", eos_token="</s>", pad_token="<pad>"), 3, 1, 2, []),
        (plain("a", "</s>", "<pad>"), 3, 1, 2, ["</s> is taken as end-of-text", "<pad> is taken as padding"]),
        (
            plain("a", "<|endoftext|>"),
            3,
            1,
            2,
            ["<|endoftext|> is taken", "<pad> was added as padding token with id 2"],
        ),
        (plain("a"), 3, 1, 2, ["</s> was added as end-of-text token with id 1", "<pad> was added"]),
        (plain("a"), 2, 1, None, ["</s> was added"]),
        (plain("a", "</s>", eos_token="</s>"), 2, 1, None, []),
        (plain("a", "</s>", eos_token="</s>", pad_token="</s>"), 2, 1, None, ["never learn to stop"]),
        (plain("a", "</s>", eos_token="</s>", pad_token="</s>"), 3, 1, 2, ["<pad> was added"]),
        (plain("a", "[SEP]", "[PAD]"), 3, 1, 2, ["[SEP] is taken", "[PAD] is taken"]),
    ],
)
def test_missing_special_tokens_are_found_or_added_where_the_rows_allow(tokenizer, rows, end, pad, notes):
    before = (len(tokenizer), tokenizer.eos_token, tokenizer.pad_token)
    found, said = complete_specials(tokenizer, rows)
    assert (found.eos_token_id, found.pad_token_id) == (end, pad)
    assert len(said) == len(notes) and all(words in text for words, text in zip(notes, said)), said
    assert max(found.get_vocab().values()) < rows
    assert (len(tokenizer), tokenizer.eos_token, tokenizer.pad_token) == before  # what was passed stays as it is


def test_no_row_for_an_end_of_text_token_is_an_error():
    with pytest.raises(
        TokenizerError, match=r"no end-of-text token, and its 1 entries leave none of the model's 1 rows"
    ):
        complete_specials(plain("a"), 1)
