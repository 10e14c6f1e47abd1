from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.training.tiny import make_tiny
from utils.checks.initialisation import EXCESS, USUAL_STD, default_embeddings
from utils.errors import ConfigError
from utils.training.initialisation import first_outputs, initialise

SAMPLE = torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(0))


def wide(seed: int = 0):
    return make_tiny(seed, width=128)  # a tied N(0, 1) matrix of this width spoils the start


def test_a_spoilt_start_is_mended_and_the_reason_holds_the_figures():
    model = wide()
    before = first_outputs(model, {"input_ids": SAMPLE}).loss
    done = initialise(model, "auto", {"input_ids": SAMPLE})
    after = first_outputs(model, {"input_ids": SAMPLE}).loss
    assert before > math.log(300) + EXCESS > after
    assert done.redrawn == ("token.weight", "position.weight")
    assert f"{before:.2f}" in done.reason and f"{after:.2f}" in done.reason
    assert model.model.token.weight.std().item() == pytest.approx(USUAL_STD, rel=0.05)


def test_the_same_seed_draws_the_same_weights():
    one, two = wide(), wide()
    for model in (one, two):
        initialise(model, "auto", {"input_ids": SAMPLE}, seed=7)
    assert one.model.token.weight.equal(two.model.token.weight)


def test_keep_touches_nothing():
    model = wide()
    weights = model.model.token.weight.clone()
    assert initialise(model, "keep", {"input_ids": SAMPLE}).redrawn == ()
    assert model.model.token.weight.equal(weights)


@pytest.mark.parametrize(
    ("std", "words"),
    [(0.02, "within 1 nat"), (1.3, "no embedding looks like PyTorch's default")],
    ids=["a good start", "someone's choice"],
)
def test_other_weights_are_kept(std, words):
    model = wide()
    with torch.no_grad():
        for module in (model.model.token, model.model.position):
            module.weight.normal_(0, std, generator=torch.Generator().manual_seed(0))
    weights = model.model.token.weight.clone()
    done = initialise(model, "auto", {"input_ids": SAMPLE})
    assert words in done.reason and done.redrawn == ()
    assert model.model.token.weight.equal(weights)


def test_a_padding_row_stays_zero_and_does_not_hide_the_default():
    model = wide()
    model.model.token.padding_idx = 0
    with torch.no_grad():
        model.model.token.weight[0] = 0
    assert "token.weight" in default_embeddings(model)
    initialise(model, "auto", {"input_ids": SAMPLE})
    assert model.model.token.weight[0].abs().sum() == 0


def test_a_shared_matrix_is_listed_once():
    model = wide()
    model.model.twin = nn.Embedding(300, 128)
    model.model.twin.weight = model.model.token.weight
    assert list(default_embeddings(model)) == ["token.weight", "position.weight"]


def test_first_outputs_leave_no_trace():
    """An embedding with max_norm rewrites its rows in forward, also in eval mode."""
    model = wide().train()
    model.model.token.max_norm = 0.5
    weights, states = model.model.token.weight.clone(), torch.get_rng_state()
    first_outputs(model, {"input_ids": SAMPLE})
    assert model.model.token.weight.equal(weights) and torch.get_rng_state().equal(states) and model.training


def test_modes_are_as_before_and_unknown_modes_refused():
    model = wide().train()
    first_outputs(model, {"input_ids": SAMPLE})
    assert model.training and model.model.block.training
    with pytest.raises(ConfigError, match="Known: auto, keep"):
        initialise(model, "xavier", {"input_ids": SAMPLE})
