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
