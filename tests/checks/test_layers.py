from __future__ import annotations

import pytest
import torch
from adapters import sequence_mixers as s
from torch import nn

import utils
import utils.examples
from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks.layers import as_rows, layer_outputs, layers_of
from utils.checks.sampling import Sampler


class Shared(m.Healthy):
    """One block that is used twice."""

    def body(self, input_ids):
        x = super().body(input_ids)
        return self.blocks[0](x)


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (m.Healthy, ["blocks.0", "blocks.1"]),
        (lambda: s.hugging_face("gpt2", "CausalLM").model, ["transformer.h.0", "transformer.h.1"]),
        (lambda: s.PreNormEncoder(), ["mixer.layers.0", "mixer.layers.1"]),
        (s.CausalAttention, ["emb", "pos", "head", "mixer"]),
        (lambda: nn.Sequential(m.Sigmoids(1)), ["0.embedding", "0.layers", "0.head"]),
    ],
)
def test_the_layers_of_a_model(build, names):
    assert list(layers_of(build())) == names


def test_a_canvas_export_is_taken_apart_at_its_first_level():
    names = list(layers_of(utils.adapt(utils.load_model(utils.examples.path())).model))
    assert len(names) > 4 and not any("." in name for name in names)


def test_outputs_come_in_order_and_calls_are_numbered():
    adapted = adapt(Shared())
    layers = layer_outputs(adapted.eval(), Sampler.of(adapted).ids(3, 5))
    assert [layer.name for layer in layers] == ["blocks.0", "blocks.1", "blocks.0 (call 2)"]
    assert all(layer.rows.shape == (15, m.WIDTH) and layer.change > 0 for layer in layers)
    assert not any(module._forward_hooks for module in adapted.modules())


def test_rows_of_time_first_values_belong_to_the_same_tokens():
    values = torch.randn(3, 5, 4)
    assert torch.equal(as_rows(values.transpose(0, 1), 3), as_rows(values, 3))
    image = torch.randn(2, 4, 3, 3)
    assert torch.equal(as_rows(image, 2)[0], image[0, :, 0, 0])
