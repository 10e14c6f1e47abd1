from __future__ import annotations

import math

import pytest
import torch

from utils.adapters.model_outputs import ModelOutputs, find_logits, next_token_loss


def test_loss_is_shifted_once_and_ignores_padding() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 5), torch.tensor([[1, 2, 3, 4], [0, 1, -100, -100]])
    log_p = logits.log_softmax(-1)
    predicted = [(0, 0, 2), (0, 1, 3), (0, 2, 4), (1, 0, 1)]  # (row, position, the token that follows it)
    by_hand = -sum(log_p[row, position, token] for row, position, token in predicted)
    torch.testing.assert_close(next_token_loss(logits, labels, "sum"), by_hand)
    torch.testing.assert_close(next_token_loss(logits, labels), by_hand / 4)
    assert next_token_loss(logits, labels, "none").shape == (2, 3)


def test_perfect_predictor_scores_zero_and_a_copier_does_not() -> None:
    ids = torch.tensor([[0, 1, 2, 3, 4]])
    perfect = 100 * torch.nn.functional.one_hot((ids + 1) % 6, 6).float()
    copier = 100 * torch.nn.functional.one_hot(ids, 6).float()
    assert next_token_loss(perfect, ids) < 1e-6
    assert next_token_loss(copier, ids) > 50


def test_no_label_gives_zero_not_nan() -> None:
    assert next_token_loss(torch.randn(1, 3, 4), torch.full((1, 3), -100)) == 0


def test_loss_is_computed_in_float32() -> None:
    logits = torch.zeros(1, 3, 7, dtype=torch.bfloat16)
    loss = next_token_loss(logits, torch.zeros(1, 3, dtype=torch.long))
    assert loss.dtype == torch.float32 and loss == pytest.approx(math.log(7))


def test_outputs_answer_by_name_and_key() -> None:
    outputs = ModelOutputs(torch.zeros(1), None)
    assert outputs["logits"] is outputs.logits and outputs["loss"] is None
    with pytest.raises(KeyError, match="there are 'logits' and 'loss'"):
        outputs["hidden"]


@pytest.mark.parametrize(
    ("shapes", "path"),
    [
        ([(2, 5, 8), (2, 5, 31)], (1,)),  # the vocabulary-wide one
        ([(2, 5, 31), (2, 5, 31)], (0,)),  # the first of two
        ([(2, 5, 8)], (0,)),  # nothing better
        ([(), (2, 31)], (1,)),  # one row per sequence
    ],
)
def test_logits_are_found_by_shape(shapes: list[tuple[int, ...]], path: tuple[int, ...]) -> None:
    found = find_logits(tuple(torch.zeros(shape) for shape in shapes), 2, 5, 31)
    assert found is not None and found[0].path == path


def test_no_tensor_no_logits() -> None:
    assert find_logits(None, 2, 5, 31) is None
    assert find_logits((torch.zeros(()), torch.zeros(7, 7, 7)), 2, 5, 31) is None
