from __future__ import annotations

import pytest
import torch

from utils.adapters.masks import BY_WORDS, LENGTHS, MaskConvention, candidates

INF = float("inf")


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        (MaskConvention("keep", "BT", "int"), [[1, 1, 0]]),
        (MaskConvention("drop", "BT", "bool"), [[False, False, True]]),
        (MaskConvention("additive", "BT", "float"), [[0.0, 0.0, -INF]]),
        (MaskConvention("drop", "B1T", "bool"), [[[False, False, True]]]),
        (LENGTHS, [2]),
        (MaskConvention("keep", "B11T", "bool"), [[[[True, True, False]]]]),
        (
            MaskConvention("additive", "TT", "float", causal=True),
            [[0.0, -INF, -INF], [0.0, 0.0, -INF], [0.0, 0.0, 0.0]],
        ),
        (
            MaskConvention("keep", "BTT", "bool", causal=True),
            [[[True, False, False], [True, True, False], [True, True, False]]],
        ),
        (
            MaskConvention("drop", "B1TT", "bool"),
            [[[[False, False, True], [False, False, True], [False, False, True]]]],
        ),
    ],
)
def test_mask_is_written_as_the_convention_says(convention: MaskConvention, expected: list) -> None:
    built = convention.build(torch.tensor([[1, 1, 0]]), torch.float32)
    assert torch.equal(built, torch.tensor(expected))


def test_additive_mask_has_the_dtype_of_the_model() -> None:
    built = MaskConvention("additive", "BT", "float").build(torch.ones(1, 2), torch.bfloat16)
    assert built.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", ["BTT", "B1TT"])
@pytest.mark.parametrize("causal", [False, True])
def test_no_row_of_a_softmax_is_empty(shape: str, causal: bool) -> None:
    padded_left = torch.tensor([[0, 0, 1, 1]])
    built = MaskConvention("additive", shape, "float", causal).build(padded_left, torch.float32)
    assert torch.isfinite(built.softmax(-1)).all()


def test_names_order_the_guesses() -> None:
    assert next(iter(candidates("src_key_padding_mask"))) == MaskConvention("drop", "BT", "bool")
    assert next(iter(candidates("attention_mask"))) == MaskConvention("keep", "BT", "int")
    assert next(iter(candidates("attn_mask"))).causal
    assert "1 = hidden" in MaskConvention("drop", "BT", "bool").words()


@pytest.mark.parametrize("name", ["attention_mask", "mask", "src_padding_mask", "lengths"])
@pytest.mark.parametrize("encoder", [False, True])
def test_every_guess_has_its_own_words(name: str, encoder: bool) -> None:
    guesses = list(candidates(name, encoder))
    assert len(guesses) == len(set(guesses)) and all(BY_WORDS[guess.words()] == guess for guess in guesses)
    assert not (encoder and any(guess.causal for guess in guesses))
