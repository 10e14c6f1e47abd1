"""What a file says that it takes: axes, limits, refusals, and the way of all that through JSON. Numbers only, no model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from utils.errors import ConfigError, TokenIdError
from utils.export.signature import DECODER_IDS, IDS, MASK, PIXELS, Shape, Signature, padding_mask

LM = Signature("lm", (IDS, MASK), 61, 61, 32, masked_sides=("left",))
BARE = Signature("lm", (IDS,), 61, 61, 32)
CHUNKS = Signature("lm", (IDS,), 61, 61, 36, min_length=8, multiple_of=8)
PAIRS = Signature("seq2seq", (IDS, MASK, DECODER_IDS), 99, 99, 64, masked_sides=("left", "right"), start_id=2)
CLASSES = Signature("classification", (IDS, MASK), 4, 61, None, masked_sides=("left", "right"))
IMAGES = Signature("vision", (PIXELS,), 4, image_shape=(3, 16, 16))
ALL = {"lm": LM, "bare": BARE, "chunks": CHUNKS, "pairs": PAIRS, "classes": CLASSES, "images": IMAGES}


@pytest.mark.parametrize("name", ALL)
def test_json_and_back(name: str) -> None:
    text = ALL[name].to_json()
    assert Signature.from_json(text) == ALL[name]
    assert "\n" not in text
    assert hash(Signature.from_json(text)) == hash(ALL[name])  # tuples again, not lists


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no signature"),
        ("[]", "no signature"),
        ("{}", "no signature.*format_version"),
        ('{"format_version": 1}', "no signature.*inputs"),
        (json.dumps({**LM.to_dict(), "inputs": 3}), "no signature"),
        (json.dumps({**LM.to_dict(), "surprise": 3}), "no signature.*surprise"),
        (json.dumps({**LM.to_dict(), "format_version": "new"}), "no signature"),
        (json.dumps({**LM.to_dict(), "format_version": 2}), "has version 2, this package reads up to 1"),
        (json.dumps({"format_version": 2, "other": "fields"}), "has version 2"),
    ],
)
def test_what_is_no_signature_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Signature.from_json(text)


@pytest.mark.parametrize(
    ("name", "given", "axes"),
    [
        ("lm", MASK, {0: "batch", 1: "length"}),
        ("pairs", DECODER_IDS, {0: "batch", 1: "decoder_length"}),
        ("images", PIXELS, {0: "batch"}),
    ],
)
def test_free_axes(name: str, given: str, axes: dict[int, str]) -> None:
    assert ALL[name].axes_of(given) == axes


def test_one_token_has_no_free_length() -> None:
    assert Signature("lm", (IDS,), 5, 5, 1).axes_of(IDS) == {0: "batch"}


@pytest.mark.parametrize(
    ("name", "shape", "logits"),
    [
        ("lm", Shape(3, 7), (3, 7, 61)),
        ("pairs", Shape(3, 7, 4), (3, 4, 99)),
        ("classes", Shape(2, 9), (2, 4)),
        ("images", Shape(5), (5, 4)),
    ],
)
def test_feeds_have_the_sizes_and_the_highest_id(name: str, shape: Shape, logits: tuple[int, ...]) -> None:
    signature = ALL[name]
    feeds = signature.feeds(shape)
    assert tuple(feeds) == signature.inputs
    assert signature.shape_of(feeds) == shape
    assert signature.output_shape(shape) == logits
    again = signature.feeds(shape)
    assert all(np.array_equal(feeds[key], again[key]) for key in feeds)
    assert not any(np.array_equal(feeds[key], other) for key, other in signature.feeds(Shape(4, 8, 5)).items())
    if signature.takes_tokens:
        assert feeds[IDS].max() == signature.vocab_size - 1
        assert feeds[IDS].min() >= 0
    checked = signature.checked(feeds, "file")
    assert all(np.array_equal(feeds[key], checked[key]) for key in feeds)


@pytest.mark.parametrize("rows", [1, 2, 3, 9, 61, 50_000])
def test_special_ids_are_in_batches_and_in_no_single_sequence(rows: int) -> None:
    known = Signature("seq2seq", (IDS, DECODER_IDS), rows, rows, 32, start_id=0)
    special = {index for index in (*range(min(4, rows // 8)), rows - 1, 17) if index < rows}
    for name, array in known.feeds(Shape(3, 9, 8), marks=(17, 10**6, -1)).items():
        assert special <= set(array.flat), name
        assert array[-1, -1] == rows - 1
    for array in known.feeds(Shape(1, 9, 8), marks=(17,)).values():
        assert rows == 1 or not special & set(array.flat)
        assert array.min() >= 0 and array.max() < rows


def test_padding_of_feeds() -> None:
    np.testing.assert_array_equal(LM.feeds(Shape(2, 6), "left")[MASK], [[0, 0, 1, 1, 1, 1], [1] * 6])
    np.testing.assert_array_equal(LM.feeds(Shape(2, 6), "right")[MASK], [[1, 1, 1, 1, 0, 0], [1] * 6])
    assert LM.feeds(Shape(2, 6))[MASK].all()


@pytest.mark.parametrize(
    ("shape", "side", "expected"),
    [
        ((1, 6), "left", [[0, 0, 1, 1, 1, 1]]),
        ((3, 4), "right", [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]]),
        ((1, 1), "left", [[1]]),
        ((2, 3), "", [[1, 1, 1], [1, 1, 1]]),
    ],
)
def test_padding_mask(shape: tuple[int, int], side: str, expected: list[list[int]]) -> None:
    np.testing.assert_array_equal(padding_mask(shape, side), expected)


@pytest.mark.parametrize(
    ("name", "asked", "given"),
    [
        ("lm", 7, 7),
        ("lm", 99, 32),
        ("lm", 0, 1),
        ("classes", 9999, 9999),
        ("chunks", 1, 8),
        ("chunks", 13, 16),
        ("chunks", 99, 32),
    ],
)
def test_allowed_length(name: str, asked: int, given: int) -> None:
    assert ALL[name].allowed_length(asked) == given


@pytest.mark.parametrize(
    ("name", "inputs", "error", "words"),
    [
        ("bare", {}, ConfigError, "file needs input_ids of shape .batch, length.; got nothing"),
        ("bare", {MASK: [[1]]}, ConfigError, "needs input_ids.*got attention_mask"),
        ("bare", {IDS: [1, 2]}, ConfigError, r"shape \(batch, length\)"),
        ("bare", {IDS: [[[1]]]}, ConfigError, r"got int64 of shape \(1, 1, 1\)"),
        ("bare", {IDS: [[0.5]]}, ConfigError, "whole numbers"),
        ("bare", {IDS: [["a"]]}, ConfigError, "whole numbers"),
        ("bare", {IDS: [[1, 2], [3]]}, ConfigError, "all rows equally long"),
        ("bare", {IDS: np.zeros((1, 0), dtype=int)}, ConfigError, "at least 1 × 1"),
        ("bare", {IDS: [[1, 61]]}, TokenIdError, "61 does not fit file.*0 to 60"),
        ("bare", {IDS: [[1, -1]]}, TokenIdError, "-1 does not fit"),
        ("bare", {IDS: [[1] * 33]}, TokenIdError, "33 tokens long; file takes at most 32"),
        ("bare", {IDS: [[1, 2]], MASK: [[0, 1]]}, ConfigError, "takes no attention_mask"),
        ("bare", {IDS: [[1]], "labels": [[1]]}, ConfigError, "no input labels; it takes input_ids"),
        ("lm", {IDS: [[1, 2]], MASK: [[1]]}, ConfigError, r"has shape \(1, 1\), input_ids \(1, 2\)"),
        ("lm", {IDS: [[1, 2]], MASK: [[0.1, 1]]}, ConfigError, "attention_mask must be whole numbers"),
        ("chunks", {IDS: [[1] * 9]}, TokenIdError, "9 tokens long; file takes multiples of 8"),
        ("chunks", {IDS: [[1] * 4]}, TokenIdError, "4 tokens long; file takes multiples of 8"),
        ("pairs", {IDS: [[1]], DECODER_IDS: [[99]]}, TokenIdError, "99 does not fit"),
        ("pairs", {IDS: [[1]], DECODER_IDS: [[1] * 65]}, TokenIdError, "65 tokens long"),
        ("pairs", {IDS: [[1], [2]], DECODER_IDS: [[1]]}, ConfigError, "decoder_input_ids has 1 rows, input_ids 2"),
        ("images", {IDS: [[1]]}, ConfigError, r"needs pixel_values of shape \(batch, 3, 16, 16\); got input_ids"),
        ("images", {PIXELS: np.zeros((1, 3, 8, 8))}, ConfigError, r"shape \(batch, 3, 16, 16\).*\(1, 3, 8, 8\)"),
        ("images", {PIXELS: np.zeros((0, 3, 16, 16))}, ConfigError, r"\(0, 3, 16, 16\)"),
        ("images", {PIXELS: np.full((1, 3, 16, 16), "x")}, ConfigError, "must be numbers"),
        ("images", {PIXELS: np.full((1, 3, 16, 16), np.nan)}, ConfigError, "must be finite as float32"),
        ("images", {PIXELS: np.full((1, 3, 16, 16), 1e39)}, ConfigError, "must be finite as float32"),
    ],
)
def test_inputs_that_the_model_would_refuse(name: str, inputs: dict[str, object], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        ALL[name].checked(inputs, "file")


def test_at_least_so_many_tokens() -> None:
    seven = Signature("classification", (IDS,), 4, 61, None, min_length=7)
    with pytest.raises(TokenIdError, match="6 tokens long; file takes at least 7"):
        seven.checked({IDS: [[1] * 6]}, "file")
    assert seven.checked({IDS: [[1] * 7]}, "file")[IDS].shape == (1, 7)


@pytest.mark.parametrize(
    "given", [[[3, 5]], np.array([[3, 5]], np.int32), torch.tensor([[3, 5]]), np.array([[3, 5]], np.uint8)]
)
def test_every_kind_of_array_becomes_int64(given: object) -> None:
    made = LM.checked({IDS: given, "labels": None}, "file")
    assert made[IDS].dtype == made[MASK].dtype == np.int64
    np.testing.assert_array_equal(made[IDS], [[3, 5]])
    np.testing.assert_array_equal(made[MASK], [[1, 1]])  # left out: all tokens are real


def test_a_mask_of_ones_is_no_contradiction_to_a_file_without_mask() -> None:
    assert set(BARE.checked({IDS: [[1, 2]], MASK: [[True, True]]}, "file")) == {IDS}


def test_answers_begin_as_the_model_begins_them() -> None:
    np.testing.assert_array_equal(PAIRS.checked({IDS: [[5, 6], [7, 8]]}, "file")[DECODER_IDS], [[2], [2]])
    without_start = Signature("seq2seq", (IDS, DECODER_IDS), 99, 99)
    np.testing.assert_array_equal(without_start.checked({IDS: [[5, 6], [7, 8]]}, "file")[DECODER_IDS], [[6], [8]])


def test_pixels_become_float32() -> None:
    made = IMAGES.checked({PIXELS: np.zeros((2, 3, 16, 16), np.uint8)}, "file")
    assert made[PIXELS].dtype == np.float32
