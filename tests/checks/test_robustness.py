from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from adapters import sequence_mixers as s

from checks import models as m
from checks.test_attribution import tiny_vit
from utils.adapters.model_adapter import adapt
from utils.checks import robustness

IDS = torch.arange(40).view(2, 20)


@pytest.mark.parametrize("count", [1, 4, 9])
@pytest.mark.parametrize("kind", robustness.TOKEN_EDITS)
def test_an_edit_says_where_each_token_came_from(kind, count):
    edited, origin = robustness.TOKEN_EDITS[kind](IDS, count, 1000, torch.Generator().manual_seed(0))
    assert edited.shape == IDS.shape and origin.shape == (20,)
    stayed = origin >= 0
    assert torch.equal(edited[:, stayed], IDS[:, origin[stayed]])
    assert not torch.equal(edited, IDS)
    changed = int((~stayed).sum())
    assert changed == {"substituted": count, "deleted": count, "swapped": 2 * max(1, count // 2)}[kind]


def test_swapped_tokens_are_the_same_tokens():
    edited, _ = robustness.swapped(IDS, 6, 1000, torch.Generator().manual_seed(0))
    assert torch.equal(edited.sort(1).values, IDS)


def test_divergence_is_that_of_torch():
    clean, moved = torch.randn(2, 6, 11, generator=torch.Generator().manual_seed(0)).unbind(0)
    nats, agreement = robustness.divergence(clean, moved)
    expected = F.kl_div(moved.log_softmax(-1), clean.softmax(-1), reduction="batchmean")
    assert nats == pytest.approx(float(expected), rel=1e-5)
    assert robustness.divergence(clean, clean) == (0.0, 1.0)
    assert agreement == float((clean.argmax(-1) == moved.argmax(-1)).double().mean())


def test_a_forbidden_token_is_no_infinite_divergence():
    clean = torch.tensor([[1.0, float("-inf"), 0.0]])
    assert robustness.divergence(clean, clean) == (0.0, 1.0)


def test_what_is_no_number_is_not_called_equal():
    clean = torch.zeros(2, 3)
    assert not robustness.divergence(clean, clean * float("nan"))[0] <= robustness.FRAGILE


def test_more_noise_moves_more():
    torch.manual_seed(0)
    result = robustness.check(adapt(m.Healthy()))
    noise = [row for row in result.measured["table"] if row["change"] == "embedding noise"]
    assert [row["amount"] for row in noise] == list(robustness.NOISES)
    assert [row["KL"] for row in noise] == sorted(row["KL"] for row in noise)
    assert result.status == "pass" and noise[0]["KL"] < 1e-3 < noise[-1]["KL"]
    assert len(result.measured["table"]) == len(robustness.NOISES) + 3 * len(robustness.EDITS)


def test_a_causal_model_does_not_care_for_what_comes_later():
    """Only tokens after the first edit may be moved: with the last token edited nothing that stayed is."""
    torch.manual_seed(0)
    adapted = adapt(m.Healthy())
    edited, origin = IDS[:, :16].clone(), torch.arange(16)
    edited[:, -1], origin[-1] = 60, -1
    with torch.no_grad():
        clean, moved = adapted.eval()(IDS[:, :16]).logits, adapted(edited).logits
    stayed = origin >= 0
    assert robustness.divergence(clean[:, stayed].flatten(0, 1), moved[:, stayed].flatten(0, 1))[0] < 1e-6


class Amplifying(m.Healthy):
    """Small differences of its input become large ones."""

    def body(self, input_ids):
        return torch.sin(300 * super().body(input_ids)) * 5


def test_a_fragile_model_is_a_warning():
    torch.manual_seed(0)
    result = robustness.check(adapt(Amplifying()))
    assert result.status == "warn" and "Noise of 1%" in result.headline
    assert robustness.check(adapt(m.NaNWeight())).status == "skip"


TASKS = {  # name → (model, kinds of change)
    "masked": (lambda: s.hugging_face("bert", "MaskedLM"), 4),
    "classification": (lambda: s.hugging_face("bert", "SequenceClassification"), 4),
    "seq2seq": (lambda: s.hugging_face("t5", "Seq2SeqLM", d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2), 4),
    "vision": (tiny_vit, 1),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_measured(task):
    build, kinds = TASKS[task]
    adapted = build()
    assert adapted.contract.task == task
    result = robustness.check(adapted)
    assert result.status == "pass", result.headline
    assert len({row["change"] for row in result.measured["table"]}) == kinds
