from __future__ import annotations

import pytest
import torch

from tests.checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import initialisation
from utils.training.initialisation import initialise
from utils.training.training_config import TrainingConfig


class LoudHead(m.Healthy):
    """A head of its own that is too loud; no embedding is to blame."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.head.weight.normal_(0, 3.0)


@pytest.mark.parametrize("make", [lambda: m.Healthy(tied=True), LoudHead], ids=["tied default", "loud head"])
def test_training_is_named_only_where_it_mends_the_matrix(make):
    torch.manual_seed(0)
    adapted = adapt(make())
    result = initialisation.check(adapted)
    assert result.status == "warn"
    _, weight = initialisation.output_head(adapted)
    before = weight.detach().clone()
    initialise(adapted, TrainingConfig().initialisation, {"input_ids": torch.randint(61, (4, 16))})
    mended = not weight.equal(before)
    assert ("TrainingConfig(initialisation='auto')" in result.fix) == mended
    assert ("nn.init.normal_(head.weight" in result.fix) == (not mended)
    assert "train(initialisation" not in result.fix


@pytest.mark.parametrize("std", [0.3, 1.5, 3.0])
def test_the_spread_of_scores_is_read_from_the_weights_whatever_mask_and_bias(std):
    generator = torch.Generator().manual_seed(0)
    scores = std * torch.randn(8, 2, 32, 32, generator=generator)
    bias = -5.0 * torch.arange(32.0).sub(torch.arange(32.0)[:, None]).abs()  # ALiBi, equal for every text
    causal = torch.ones(32, 32, dtype=torch.bool).tril()
    weights = (scores + 0.1 * bias).masked_fill(~causal, float("-inf")).softmax(-1)
    assert initialisation.score_spread(weights) == pytest.approx(std, rel=0.05)


def test_a_single_text_or_few_keys_tell_nothing_of_the_spread():
    weights = torch.randn(4, 2, 5, 5).softmax(-1)
    assert initialisation.score_spread(weights) == 0.0
    assert initialisation.score_spread(torch.randn(1, 2, 32, 32).softmax(-1)) == 0.0
