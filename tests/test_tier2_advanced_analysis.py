from __future__ import annotations

import copy
import sys

import pytest
import torch
from adapters import sequence_mixers as s
from checks import models as m
from checks.test_attribution import tiny_vit

import utils
from utils import tier2_advanced_analysis as tier2

NAMES = ["attention patterns", "attribution", "robustness", "effective rank", "layer similarity", "dead neurons"]


def test_tier_2_runs_every_analysis_and_draws_each():
    torch.manual_seed(0)
    seen = []
    report = utils.validate(m.Healthy(), tier=2, progress=lambda *step: seen.append(step))
    assert [check.name for check in report.checks] == NAMES == [check.name for check in tier2.TIER2]
    assert report.verdict == "All 6 checks passed." and report.title == "Tier 2: Healthy"
    assert [note for _, _, note in seen[:-1]] == NAMES
    assert list(report.figures()) == NAMES
    assert report._repr_html_().count("data:image/png") == len(NAMES)
    assert len(report.to_json()) > 1000


TASKS = {
    "masked": lambda: s.hugging_face("bert", "MaskedLM"),
    "seq2seq": lambda: s.hugging_face("bart", "Seq2SeqLM", **dict.fromkeys(
        ("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 2), d_model=16),
    "classification": lambda: s.hugging_face("bert", "SequenceClassification"),
    "vision": tiny_vit,
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_no_task_is_too_much(task):
    adapted = TASKS[task]()
    assert adapted.contract.task == task
    before = copy.deepcopy(adapted.state_dict())
    report = utils.validate(adapted, tier=2)
    assert report.passed and report.named("pass") == NAMES, report.summary()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), adapted.state_dict().values()))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in adapted.parameters())
    assert len(report.figures()) == len(NAMES)


@pytest.mark.parametrize("build", [m.NaNWeight, m.NaNStatement, m.Constant, m.BufferLimit, m.Frozen])
def test_a_broken_model_ends_no_analysis(build):
    report = utils.validate(build(), tier=2)
    assert not [check.unfinished for check in report.checks if check.unfinished]


def test_one_token_is_enough():
    report = utils.validate(m.Healthy(limit=1), {"max_seq_len": 1}, tier=2)
    assert not [check.unfinished for check in report.checks if check.unfinished]


def test_tier_1_does_not_load_tier_2(monkeypatch):
    monkeypatch.delitem(sys.modules, "utils.tier2_advanced_analysis")
    utils.validate(m.Healthy(layers=1), tier=1)
    assert "utils.tier2_advanced_analysis" not in sys.modules
