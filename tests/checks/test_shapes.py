"""What "shape robustness" finds beyond shapes: logits that are no numbers at some lengths only."""

from __future__ import annotations

import pytest
import torch

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import shapes


class SpreadOfOneToken(m.Healthy):
    """Divides by the spread over the tokens, which a single token does not have."""

    def body(self, input_ids):
        x = super().body(input_ids)
        return x + 0.0 * x.var(dim=1, keepdim=True) if input_ids.shape[1] == 1 else x


@pytest.mark.filterwarnings("ignore:var")  # torch warns of what is planted here
def test_logits_that_are_no_numbers_at_one_length_fail():
    result = shapes.check(adapt(SpreadOfOneToken()))
    assert result.status == "fail"
    assert "3 of 12 shapes" in result.headline and "1×1" in result.headline, result.summary()
    assert "length alone: length 1 fails" in result.cause and "std()" in result.fix


def test_a_model_whose_logits_are_never_numbers_is_left_to_numerical_stability():
    torch.manual_seed(0)
    assert shapes.check(adapt(m.NaNWeight())).status == "pass"
