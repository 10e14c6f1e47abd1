"""Integrated gradients: exact where the answer is known, complete on every kind of model, equal to captum's."""

from __future__ import annotations

import pytest
import torch
from adapters import sequence_mixers as s
from torch import nn

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import attribution
from utils.checks.attribution import explain, integrated_gradients, nodes
from utils.checks.continuous import ContinuousInput
from utils.checks.sampling import Sampler


class Sums(nn.Module):
    """A score that is linear in the embeddings: the attribution of each token is its own term."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(m.VOCABULARY, 8), nn.Linear(8, m.VOCABULARY)

    def forward(self, input_ids):
        return self.head(self.embedding(input_ids).cumsum(1))


class Steps(Sums):
    """A score that jumps."""

    def forward(self, input_ids):
        return self.head((self.embedding(input_ids) > 0.1).float())


def tiny_vit():
    hf = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    return adapt(hf.ViTForImageClassification(hf.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=5)).eval())


MODELS = {
    "own": lambda: adapt(m.Healthy().eval()),
    "GPT-2": lambda: s.hugging_face("gpt2", "CausalLM"),
    "Llama": lambda: s.hugging_face("llama", "CausalLM"),
    "BERT": lambda: s.hugging_face("bert", "MaskedLM"),
    "T5": lambda: s.hugging_face("t5", "Seq2SeqLM", d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2),
    "classifier": lambda: s.hugging_face("bert", "SequenceClassification"),
    "time first": lambda: s.adapted(s.TimeFirstEncoder),
    "recurrent": lambda: s.adapted(s.Recurrent),
    "images": tiny_vit,
}


def test_a_linear_score_is_split_exactly():
    torch.manual_seed(0)
    adapted = adapt(Sums())
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    values = integrated_gradients(ContinuousInput.of(adapted, ids), lambda logits: logits[:, -1, 7], nodes(3)).sum(-1)
    expected = adapted.model.embedding(ids[0]) @ adapted.model.head.weight[7]
    torch.testing.assert_close(values, expected, atol=1e-6, rtol=1e-5)


def test_nodes_integrate_polynomials_exactly():
    assert sum(weight * place**9 for place, weight in nodes(5)) == pytest.approx(0.1)
    assert sum(weight for _, weight in nodes(8, 0.25, 0.75)) == pytest.approx(0.5)


@pytest.mark.parametrize("name", MODELS)
def test_the_gap_to_completeness_is_below_one_percent(name):
    result = attribution.check(MODELS[name]())
    assert result.status == "pass", result.headline
    measured = result.measured
    assert measured["completeness_gap"] < 0.01
    total = sum(row["attribution"] for row in measured["table"])
    assert total == pytest.approx(measured["difference"], rel=0.011)
    assert len(measured["table"]) == 16


@pytest.mark.parametrize("name", ["own", "GPT-2", "Llama", "BERT", "classifier"])
def test_equal_to_captum(name):
    pytest.importorskip("captum")  # a package for development only
    from captum.attr import LayerIntegratedGradients

    adapted = MODELS[name]()
    ids = Sampler.of(adapted).ids(1, 9)
    place = ContinuousInput.of(adapted, ids)
    score = (lambda logits: logits[:, 1]) if name == "classifier" else (lambda logits: logits[:, -1, 7])
    layer = adapted.model.get_submodule(place.name)
    theirs = LayerIntegratedGradients(lambda x: score(adapted(x).logits), layer).attribute(
        ids, baselines=torch.zeros_like(ids), n_steps=50, method="gausslegendre"
    )
    ours = integrated_gradients(place, score, nodes(50), layer(torch.zeros_like(ids))[0].detach())
    torch.testing.assert_close(ours, theirs[0].detach(), atol=1e-4, rtol=1e-4)
    assert float((ours - theirs[0]).abs().max() / ours.abs().max()) < 1e-4


class SteepNearZero(nn.Module):
    """Without positions, normalised twice: between zero and a millionth of the embedding the score leaves its start."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(m.VOCABULARY, 8), nn.Linear(8, m.VOCABULARY)

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        for _ in range(3):
            x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-12)
        return self.head(torch.tanh(x))


def test_where_zeros_have_no_integral_another_baseline_is_taken():
    torch.manual_seed(0)
    result = attribution.check(adapt(SteepNearZero()))
    assert (result.status, result.measured["baseline"]) == ("pass", "neutral")


def test_more_nodes_are_spent_only_where_they_are_needed():
    torch.manual_seed(0)
    place = ContinuousInput.of(adapt(Sums()), torch.tensor([[3, 1, 4]]))
    assert explain(place, lambda logits: logits[:, -1, 7]).steps == 8
    sharp = explain(place, lambda logits: torch.sigmoid(40 * (logits[:, -1, 7] - 0.1)))
    assert sharp.steps > 8 and sharp.gap < 0.01


def test_a_score_that_jumps_is_a_warning():
    torch.manual_seed(0)
    result = attribution.check(adapt(Steps()))
    assert result.status == "warn" and "miss the difference" in result.headline


@pytest.mark.parametrize("build", [m.NaNWeight])
def test_what_cannot_be_explained_is_skipped(build):
    assert attribution.check(adapt(build())).status == "skip"


def test_images_keep_their_shape():
    result = attribution.check(tiny_vit())
    assert result.arrays["pixels"].shape == (16, 16)
    assert {"row", "column"} <= set(result.measured["table"][0])
