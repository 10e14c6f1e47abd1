"""How a model is prepared for its checks, whichever wrapping it comes in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from checks import models as m
from utils.checks.session import prepared
from utils.errors import CheckError


def test_a_compiled_model_is_checked_without_its_wrapper():
    model = m.Healthy()
    adapted, _ = prepared(torch.compile(model, backend="eager"))
    assert adapted.model is model


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch.ao says that it moves
def test_a_quantised_model_is_refused_with_what_to_do():
    model = torch.ao.quantization.quantize_dynamic(m.Healthy(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(CheckError, match=r"Healthy is quantised \(blocks\.0.*before it is quantised"):
        prepared(model, {"vocab_size": m.VOCABULARY, "max_seq_len": m.LIMIT})
