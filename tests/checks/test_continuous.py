from __future__ import annotations

import pytest
import torch
from adapters import sequence_mixers as s
from torch import nn

from checks import models as m
from checks.test_attribution import tiny_vit
from utils.adapters.model_adapter import adapt
from utils.checks.continuous import ContinuousInput
from utils.checks.sampling import Sampler


class Indexed(nn.Module):
    """Looks its tokens up without a module."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7, 7))

    def forward(self, input_ids):
        return self.weight[input_ids]


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: adapt(m.Healthy()), "token_embedding"),
        (lambda: s.hugging_face("gpt2", "CausalLM"), "transformer.wte"),
        (lambda: s.hugging_face("bert", "MaskedLM"), "bert.embeddings.word_embeddings"),
        (lambda: s.adapted(s.TimeFirstEncoder), "emb"),
        (tiny_vit, ""),
    ],
)
def test_the_place_is_found_and_can_be_written(build, name):
    adapted = build().eval()
    inputs = Sampler.of(adapted).inputs(1, 9)
    place = ContinuousInput.of(adapted, inputs)
    assert place.name == name
    with torch.no_grad():
        clean = adapted(inputs).logits
        torch.testing.assert_close(place.run(lambda values: values), clean)
        other = place.run(lambda values: torch.cat([values[:1], 2 * values[:1] + 1]), rows=2)
    torch.testing.assert_close(other[:1], clean, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(other[1:], clean)
    assert not any(module._forward_hooks for module in adapted.modules())


@pytest.mark.parametrize(("config", "own"), [({"pad_token_id": 3}, None), (None, 3)])
def test_padding_is_the_neutral_input(config, own):
    """As the config says it, or the embedding itself."""
    model = m.Healthy()
    model.token_embedding.padding_idx = own
    adapted = adapt(model, config).eval()
    place = ContinuousInput.of(adapted, torch.tensor([[5, 6, 7]]))
    assert torch.equal(place.neutral(), adapted.model.token_embedding(torch.tensor([[3, 3, 3]])))


def test_without_a_module_there_is_no_place():
    assert ContinuousInput.of(adapt(Indexed()), torch.tensor([[1, 2, 3]])) is None
