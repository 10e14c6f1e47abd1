from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from utils.errors import DataError
from utils.training.baselines import WittenBellTrigram, byte_trigram_bits_per_byte, byte_trigram_on_blocks
from utils.training.dataset_utilities import python_docs, split_text


def reference(train: list[int], history: tuple[int, ...], symbol: int, alphabet: int) -> float:
    """Witten–Bell by its definition, recursing over ever shorter histories and counting by scanning the text."""
    if history:
        shorter = reference(train, history[1:], symbol, alphabet)
    followers = [train[i] for i in range(len(history), len(train)) if tuple(train[i - len(history) : i]) == history]
    if not history:
        shorter = 1 / alphabet
    if not followers:
        return shorter
    kinds = len(set(followers))
    return (followers.count(symbol) + kinds * shorter) / (len(followers) + kinds)


TRAIN = [0, 1, 0, 2, 0, 1, 1, 2, 0, 1, 0, 0]


@pytest.mark.parametrize("length", [0, 1, 2])
def test_probabilities_equal_a_brute_force_and_sum_to_one(length):
    model = WittenBellTrigram(TRAIN, alphabet=4)
    for history in itertools.product(range(4), repeat=length):
        found = [model.probability(symbol, history) for symbol in range(4)]
        assert found == pytest.approx([reference(TRAIN, history, symbol, 4) for symbol in range(4)], rel=1e-12)
        assert math.fsum(found) == pytest.approx(1, abs=1e-12)
        assert min(found) > 0


def test_bits_add_up_over_the_text():
    model, text = WittenBellTrigram(TRAIN, alphabet=4), [3, 0, 1, 2]
    expected = -sum(math.log2(reference(TRAIN, tuple(text[max(i - 2, 0) : i]), text[i], 4)) for i in range(4))
    assert model.bits(text) == pytest.approx(expected)


def test_the_bundled_example_is_near_its_measured_figure():
    train, validation = split_text(python_docs())
    assert 2.2 < byte_trigram_bits_per_byte(train.encode(), validation.encode()) < 2.7  # 2.466 with Python 3.11's text


def test_on_blocks_exactly_the_scored_bytes_count(tokenizer):
    """Two blocks of single-byte tokens: the first byte of each is free, history ends at the block."""
    ids = {letter: tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "xqz"}
    blocks = np.array([[ids["x"], ids["q"], ids["z"]], [ids["z"], tokenizer.eos_token_id, ids["x"]]])
    train = b"xqzxqqzx"
    terms = [((ord("x"),), "q"), ((ord("x"), ord("q")), "z"), ((ord("z"),), "x")]
    expected = -sum(math.log2(reference(list(train), history, ord(symbol), 256)) for history, symbol in terms) / 3
    assert byte_trigram_on_blocks(train, blocks, tokenizer) == pytest.approx(expected)
    with pytest.raises(DataError, match="scored bytes"):
        byte_trigram_on_blocks(train, np.full((1, 3), tokenizer.eos_token_id), tokenizer)


@pytest.mark.parametrize(("train", "validation"), [(b"", b"a"), (b"a", b"")])
def test_empty_text_is_refused(train, validation):
    with pytest.raises(DataError, match="needs training and validation text"):
        byte_trigram_bits_per_byte(train, validation)
