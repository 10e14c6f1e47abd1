"""Dead units; the other planted faults of gradients lie in `test_faults`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

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
