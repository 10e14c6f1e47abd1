"""Dead units; the other planted faults of gradients lie in `test_faults`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertModel

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import gradients


class Rectified(m.Healthy):
    """Its MLP has a ReLU, as a module or as a function, and so many of its units start far below zero."""

    def __init__(self, dead=0, functional=False):
        super().__init__()
        self.functional = functional
        for block in self.blocks:
            block.mlp[1] = nn.Identity() if functional else nn.ReLU()
        with torch.no_grad():
            self.blocks[1].mlp[0].bias[:dead] = -100.0
        if functional:
            for block in self.blocks:
                block.mlp[0].register_forward_hook(lambda module, given, output: F.relu(output))


def _run(build):
    torch.manual_seed(0)
    return gradients.check(adapt(build()))


@pytest.mark.parametrize("functional", [False, True])
def test_a_layer_that_is_nearly_dead_fails(functional):
    result = _run(lambda: Rectified(30, functional))
    assert result.status == "fail", result.summary()
    assert "94% of blocks.1.mlp.0 moves nothing" in result.headline
    assert "GELU" in result.fix


def test_a_layer_that_is_wholly_dead_is_named():
    result = _run(lambda: Rectified(32))
    assert result.status == "fail" and "blocks.1.mlp.0" in result.headline


@pytest.mark.parametrize("dead", [0, 8, 20])
def test_some_dead_units_are_a_figure(dead):
    result = _run(lambda: Rectified(dead))
    assert result.status == "pass", result.summary()
    assert result.measured["dead_units"].get("blocks.1.mlp.0", 0.0) == pytest.approx(dead / 32, abs=0.1)


class Shrinking(nn.Module):
    """Strides of 32 leave one place of a 32 × 32 picture, where a pooling less its input is zero."""

    def __init__(self, stated=None):
        super().__init__()
        if stated:
            self.image_size = stated
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.GELU(), nn.Conv2d(8, 8, 8, stride=8))
        self.norm, self.pool = nn.GroupNorm(1, 8), nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.head = nn.Linear(8, 4)

    def forward(self, pixel_values):
        x = self.stem(pixel_values)
        y = self.norm(x)
        return self.head((x + self.pool(y) - y).amax((2, 3)))


@pytest.mark.parametrize(("stated", "status"), [(None, "pass"), (32, "warn"), (64, "pass")])
def test_a_picture_that_shrinks_to_one_place_is_no_fault_of_the_architecture(stated, status):
    result = _run(lambda: Shrinking(stated))
    assert result.status == status, result.summary()
    assert ("strides leave too few places for norm to learn; on pictures of 64 × 64" in result.headline) is (
        stated != 64
    )


class Ignored(Shrinking):
    """The norm's output is multiplied by zero, whatever the picture."""

    def forward(self, pixel_values):
        return self.head((self.stem(pixel_values) + 0 * self.norm(self.stem(pixel_values))).mean((2, 3)))


def test_larger_pictures_do_not_excuse_what_is_multiplied_by_zero():
    result = _run(lambda: Ignored())
    assert result.status == "fail" and "exactly zero in 1 modules: norm" in result.headline, result.summary()


class WithEncoder(nn.Module):
    """A packaged encoder under a head of one's own; its pooler is not read."""

    def __init__(self, idle=False):
        super().__init__()
        config = BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
        self.encoder, self.head = BertModel(config), nn.Linear(16, 40)
        if idle:
            self.second = BertModel(config)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.encoder(input_ids, attention_mask).last_hidden_state)


def test_what_a_package_leaves_unused_is_said_and_no_warning():
    result = _run(WithEncoder)
    assert result.status == "pass", result.summary()
    assert "2 parameters are not used, by the design of BertModel: encoder.pooler.dense.weight" in result.headline
    assert result.measured["unused_by_design"] == ["encoder.pooler.dense.weight", "encoder.pooler.dense.bias"]


def test_a_packaged_model_that_ones_own_forward_forgets_is_warned_of():
    result = _run(lambda: WithEncoder(idle=True))
    assert result.status == "warn", result.summary()
    assert "never called: second.embeddings" in result.headline


def test_a_weight_that_is_made_in_each_call_is_asked_for_no_gradient(recwarn):
    model = m.Healthy()
    nn.utils.weight_norm(model.blocks[0].mlp[0])
    result = gradients.check(adapt(model))
    assert result.status == "pass", result.summary()
    assert not [w for w in recwarn if "not a leaf" in str(w.message)]
