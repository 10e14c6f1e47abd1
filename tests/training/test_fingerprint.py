from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.training.tiny import make_tiny
from utils.training.fingerprint import model_identity, weights_hash


def changed(model, what):
    if what == "weights":
        with torch.no_grad():
            model.model.token.weight[3, 3] += 1e-6
    elif what == "code":
        model.completion.source_after += "\n"
    elif what == "contract":
        model.contract = dataclasses.replace(model.contract, max_length=12)
    elif what == "reasons":
        model.contract = dataclasses.replace(model.contract, reasons={"task": "said so"})
    return model


def test_equal_models_are_equal():
    assert model_identity(make_tiny()) == model_identity(make_tiny())


@pytest.mark.parametrize("what", ["weights", "code", "contract"])
def test_each_part_is_told_apart(what):
    before, after = model_identity(make_tiny()), model_identity(changed(make_tiny(), what))
    assert [part for part in before if before[part] != after[part]] == [what]


def test_words_about_the_contract_make_no_other_model():
    assert model_identity(make_tiny()) == model_identity(changed(make_tiny(), "reasons"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_any_type_are_hashed(dtype):
    model = make_tiny().to(dtype)
    model.register_buffer("steps", torch.tensor(3))  # no axes
    assert weights_hash(model) != weights_hash(make_tiny())
