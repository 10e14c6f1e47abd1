from __future__ import annotations

import math

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.training.tiny import TEXT
from utils.errors import DataError
from utils.tokenization import bits as room
from utils.tokenization.bits import BitsPerByte, Segment, scored_bytes, token_byte_lengths
from utils.tokenization.bpe_trainer import FastBPETrainer
from utils.tokenization.packing import pack_documents


@pytest.fixture(scope="module")
def tokenizer():
    return FastBPETrainer.train_on_dataset([TEXT], 300)


def test_bits_per_byte_equal_a_computation_by_hand(tokenizer):
    ids = tokenizer("äbc", add_special_tokens=False)["input_ids"]  # 2 + 1 + 1 bytes, all of them single-byte tokens
    assert len(ids) == 4
    blocks = np.array([ids, [*ids[:3], tokenizer.eos_token_id]])
    # predicted: row 1 the second byte of ä, b, c (3 bytes); row 2 the same byte, b (2 bytes) and end of text (none)
    measure = BitsPerByte.of(blocks, tokenizer)
    assert (measure.tokens, measure.size) == (6, 5)
    assert measure(2.0) == pytest.approx(2.0 * 6 / math.log(2) / 5)


def test_a_uniform_byte_model_needs_eight_bits_per_byte():
    assert BitsPerByte(tokens=1000, size=1000)(math.log(256)) == pytest.approx(8)


def test_byte_lengths_add_up_to_the_text(tokenizer):
    lengths = token_byte_lengths(tokenizer)
    text = TEXT + "Ünïcödé 🙂 \x00"
    assert lengths[tokenizer(text, add_special_tokens=False)["input_ids"]].sum() == len(text.encode())
    assert lengths[[0, 1, 2, 3]].tolist() == [0, 0, 0, 0]


def test_first_tokens_count_on_neither_side_and_the_tail_does(tokenizer):
    packed = pack_documents([TEXT], tokenizer, 16)
    assert packed.tokens % 16 > 1
    measure = BitsPerByte.of(packed, tokenizer)
    assert measure.tokens == packed.tokens - len(packed) == packed.loss_tokens.sum()
    shown = sum(len(tokenizer.decode(row[1:], skip_special_tokens=True).encode()) for row in packed.blocks.tolist())
    assert measure.size == shown


def test_many_blocks_are_counted_part_by_part(tokenizer, monkeypatch):
    packed = pack_documents([TEXT], tokenizer, 16)
    expected = BitsPerByte.of(packed, tokenizer), scored_bytes(packed, tokenizer)
    monkeypatch.setattr("utils.tokenization.packing.ROWS_AT_ONCE", 3)
    assert (BitsPerByte.of(packed, tokenizer), scored_bytes(packed, tokenizer)) == expected


def word_tokenizer(decoder):
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "ab": 2, "ü": 3}, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Whitespace(), decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def test_entries_that_are_only_put_together_have_fixed_bytes():
    tokenizer = word_tokenizer(decoders.Fuse())
    assert token_byte_lengths(tokenizer).tolist() == [0, 0, 2, 2]
    assert BitsPerByte.of(np.array([[2, 3, 1, 2]]), tokenizer) == BitsPerByte(3, 2 + 2)
    assert scored_bytes(np.array([[2, 3, 1, 2]]), tokenizer) == [Segment(b"ab", "üab".encode())]


def test_other_tokenizers_are_measured_by_decoding():
    tokenizer = word_tokenizer(decoders.WordPiece())  # joins words by blanks
    assert token_byte_lengths(tokenizer) is None
    assert BitsPerByte.of(np.array([[2, 3, 1, 2]]), tokenizer) == BitsPerByte(3, len(" ü ab".encode()))
    assert scored_bytes(np.array([[2, 3, 1, 2]]), tokenizer) == [Segment(b"ab", " ü ab".encode())]


@pytest.mark.parametrize("most", [1, 7, 50])
def test_of_many_blocks_some_are_decoded_and_stand_for_all(monkeypatch, most):
    monkeypatch.setattr(room, "DECODED_BLOCKS", most)
    blocks = np.full((50, 5), 2)
    assert BitsPerByte.of(blocks, word_tokenizer(decoders.WordPiece())) == BitsPerByte(200, 50 * 4 * 3)


def test_scored_bytes_are_those_of_the_measure(tokenizer):
    text = TEXT + "Ünïcödé 🙂 \x00\n" * 20
    packed = pack_documents([text, TEXT], tokenizer, 16)
    segments = scored_bytes(packed, tokenizer)
    assert sum(len(part.scored) for part in segments) == BitsPerByte.of(packed, tokenizer).size
    together = b"".join(part.free + part.scored for part in segments)
    assert (text + TEXT).encode() == together


def test_blocks_without_text_have_no_bits_per_byte(tokenizer):
    with pytest.raises(DataError, match="no text at all"):
        BitsPerByte.of(np.full((2, 4), tokenizer.eos_token_id), tokenizer)
