"""Padded batches: masks by length, every token predicted once, losses over real tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from tests.training.tiny import TEXT, make_tiny
from utils.errors import DataError
from utils.tokenization.batches import LabelledTexts, PaddedDocuments, TextPairs, class_numbers, pad
from utils.tokenization.block_cache import in_memory
from utils.tokenization.bpe_trainer import FastBPETrainer
from utils.tokenization.encoding import Recipe
from utils.tokenization.packing import token_stream

TOKENIZER = FastBPETrainer.train_on_dataset([TEXT], 300)


def stream(documents: list[list[int]]):
    ids = np.array([index for row in documents for index in row], dtype=np.uint16)
    return in_memory([(ids, [len(row) for row in documents])], np.dtype(np.uint16), "key")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=10), st.integers(2, 12))
def test_every_token_but_a_documents_first_is_predicted_once(lengths, longest):
    documents, begin = [], 0
    for length in lengths:
        documents.append(list(range(begin, begin + length)))
        begin += length
    expected = [index for row in documents for index in row[1:]]
    if not expected:
        with pytest.raises(DataError, match="nothing to learn"):
            PaddedDocuments(stream(documents), longest, 0)
        return
    samples = PaddedDocuments(stream(documents), longest, 0)
    batch = samples.__getitems__(range(len(samples)))
    scored = batch["labels"][:, 1:]
    assert sorted(scored[scored != -100].tolist()) == expected
    assert batch["input_ids"].shape[1] == samples.longest <= longest
    assert samples.loss_tokens.tolist() == (scored != -100).sum(1).tolist()
    assert samples.lengths.tolist() == batch["attention_mask"].sum(1).tolist()


def test_end_of_text_keeps_its_loss_where_it_doubles_as_padding():
    end = TOKENIZER.eos_token_id
    samples = PaddedDocuments(token_stream(("one bottle", "a"), TOKENIZER, recipe=Recipe(end=True)), 64, padding=end)
    batch = samples.__getitems__([0, 1])
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"]):
        last = int(mask.sum()) - 1
        assert labels[last] == end == ids[last] and set(labels[last + 1 :].tolist()) <= {-100}
        assert set(ids[last:].tolist()) == {end}


def test_the_padded_loss_is_the_mean_over_real_tokens():
    """Against each document alone, without any padding; ragged lengths, so that a mean of means would differ."""
    model = make_tiny(dropout=0.0).eval()
    documents = ["green bottles", "a", "one falls down.\n", "hang on wall number 3"]
    samples = PaddedDocuments(token_stream(documents, TOKENIZER, recipe=Recipe(end=True)), 16, TOKENIZER.pad_token_id)
    batch = samples.__getitems__(range(len(samples)))
    assert not batch["attention_mask"].all()
    with torch.no_grad():
        found = model(batch["input_ids"], batch["attention_mask"], batch["labels"]).loss.item()
        total = 0.0
        for i in range(len(samples)):
            alone = samples.__getitems__([i])
            logits = model(alone["input_ids"]).logits[0, :-1].double()
            total += torch.nn.functional.cross_entropy(logits, alone["labels"][0, 1:], reduction="sum").item()
    assert found == pytest.approx(total / samples.loss_tokens.sum(), rel=1e-6)  # float32 against float64


def bert_like():
    backend = Tokenizer(models.WordLevel({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4}, unk_token="[UNK]"))
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]")


def test_a_text_with_a_class_keeps_the_frame_of_its_tokenizer():
    texts = token_stream(("a", ""), bert_like(), recipe=Recipe(marks=True, limit=8))
    batch = LabelledTexts(texts, [1, 0], padding=0).__getitems__([0, 1])
    assert batch["input_ids"].tolist() == [[1, 4, 2], [1, 2, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]] and batch["labels"].tolist() == [1, 0]
    cut = token_stream(("a" * 3,), bert_like(), recipe=Recipe(marks=True, limit=2))
    assert LabelledTexts(cut, [0], 0)[0]["input_ids"].tolist() == [1, 2]


def test_a_text_without_tokens_is_one_token_and_no_empty_row():
    texts = token_stream(("green", ""), TOKENIZER, recipe=Recipe(marks=True, limit=8))
    batch = LabelledTexts(texts, [1, 0], padding=7).__getitems__([1, 0])
    assert batch["attention_mask"].sum(1).min() == 1 and batch["input_ids"][0, 0] == 7


def test_pairs_end_with_end_of_text_once_and_answers_are_padded_with_ignored_labels():
    end, recipe = TOKENIZER.eos_token_id, Recipe(end=True, marks=True, limit=16)
    pairs = TextPairs(
        token_stream(("one", "two bottles"), TOKENIZER, recipe=recipe),
        token_stream(("1", "2 bottles fall"), TOKENIZER, recipe=recipe),
        TOKENIZER.pad_token_id,
    )
    batch = pairs.__getitems__([0, 1])
    assert [row[row != -100][-1].item() for row in batch["labels"]] == [end, end]
    assert (batch["labels"] == end).sum() == 2 and (batch["input_ids"] == end).sum() == 2
    assert (batch["labels"][0] == -100).any() and batch["input_ids"].shape == batch["attention_mask"].shape
    assert pairs.loss_tokens.tolist() == (batch["labels"] != -100).sum(1).tolist()
    framed = token_stream(("a",), bert_like(), recipe=recipe)
    assert framed.ids.tolist() == [1, 4, 2]  # the frame ends with it already


def test_a_text_that_was_cut_does_not_pretend_to_end():
    cut = token_stream(("green bottles hang on a wall",), TOKENIZER, recipe=Recipe(end=True, marks=True, limit=3))
    assert len(cut) == 3 and TOKENIZER.eos_token_id not in cut.ids


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        ([2, 0, 1], [2, 0, 1], ("0", "1", "2")),
        (np.array([1, 0]), [1, 0], ("0", "1")),
        (["dog", "cat", "dog"], [1, 0, 1], ("cat", "dog")),
        ([True, False], [1, 0], ("False", "True")),
    ],
)
def test_classes_are_numbered(labels, numbers, names):
    found, known = class_numbers(labels)
    assert found.tolist() == numbers and known == names


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "no labels"),
        ([1, -1], "Label -1 of example 1 is negative"),
        ([1, "a", None], "is .* all whole numbers"),
        ([0.5], "Label 0 is 0.5"),
    ],
)
def test_labels_that_are_none_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        class_numbers(labels)


def test_each_text_needs_its_label():
    with pytest.raises(DataError, match="2 texts and 1 labels"):
        LabelledTexts(stream([[1], [2]]), [0], 0)


def test_padding_goes_to_the_longest_row():
    ids, mask = pad([np.array([5, 6, 7]), np.array([8])], 9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
