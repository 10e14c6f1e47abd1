"""Which blocks of a model can be gathered by themselves. Shards in real processes: test_several.py."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.training.tiny import make_tiny
from utils.errors import ConfigError
from utils.training.engine.gradient_checkpointing import checkpointed
from utils.training.engine.several import has_unused_weights
from utils.training.engine.sharding import separate_blocks

BATCH = {"input_ids": torch.arange(8).view(2, 4), "labels": torch.arange(8).view(2, 4)}
NAMES = ["block.layers.0", "block.layers.1", "block.layers.2"]


def stack():
    return make_tiny(layers=3)


def read_from_outside(model):
    """Its last layer's weight, as a model with a tied projection does."""
    own = model.forward
    model.forward = lambda input_ids: own(input_ids) + model.block.layers[2].linear1.weight.mean()


def shared(model):
    model.block.layers[1].linear1 = model.block.layers[0].linear1


def also_elsewhere(model):
    model.extra = nn.Linear(16, 16)
    model.extra.weight = model.block.layers[0].self_attn.out_proj.weight


def skipped(model):
    block = model.block
    block.forward = lambda x, src_mask: block.layers[0](x, src_mask=src_mask)


def entered_by_another_door(model):
    block = model.block
    block.forward = lambda x, src_mask: block.layers[1](
        block.layers[0].linear2(block.layers[0].linear1(x)), src_mask=src_mask
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda model: None, NAMES),
        (read_from_outside, NAMES[:2]),
        (shared, NAMES[2:]),
        (also_elsewhere, NAMES[1:]),
        (skipped, NAMES[:1]),
        (entered_by_another_door, NAMES[1:2]),
    ],
)
def test_blocks_whose_weights_are_read_in_their_own_calls_alone(change, expected):
    adapted = stack()
    change(adapted.model)
    before = copy.deepcopy(adapted.state_dict())
    assert separate_blocks(adapted, BATCH) == expected
    assert all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in adapted.modules())


def left_out_at_random(model):
    block = model.block

    def forward(x, src_mask):
        for layer in block.layers:
            x = x if torch.rand(()) < 0.5 else layer(x, src_mask=src_mask)
        return x

    block.forward = forward


def chosen_by_the_data(model):
    block = model.block
    block.forward = lambda x, src_mask: block.layers[int(x[0, 0, 0] > 0)](x, src_mask=src_mask)
    with torch.no_grad():
        model.token.weight[0, 0], model.token.weight[4, 0] = 9.0, -9.0


@pytest.mark.parametrize("change", [left_out_at_random, chosen_by_the_data])
def test_a_model_that_does_not_read_the_same_weights_in_every_pass_is_for_ddp(change):
    adapted = stack()
    change(adapted.model)
    with pytest.raises(
        ConfigError, match=r"does not read all its weights in every pass \(block\.layers\..*strategy='ddp'"
    ):
        separate_blocks(adapted, BATCH)
    assert has_unused_weights(adapted, BATCH)


def test_a_model_of_one_block_has_none():
    assert separate_blocks(make_tiny(), BATCH) == []


def test_a_copy_computes_its_own_blocks_anew():
    adapted = make_tiny(layers=2, dropout=0.0)
    with checkpointed(adapted):
        other = copy.deepcopy(adapted)
        other.on_batch(BATCH).loss.backward()
    weight = other.model.block.layers[0].linear1.weight
    assert weight.grad is not None and weight.grad.abs().sum() > 0
    assert adapted.model.block.layers[0].linear1.weight.grad is None
