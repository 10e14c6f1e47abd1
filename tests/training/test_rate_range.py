from __future__ import annotations

import math

import pytest
import torch

from tests.training.tiny import TEXT, make_tiny
from utils.errors import ConfigError, TrainingError
from utils.tokenization.bpe_trainer import FastBPETrainer
from utils.training.rate_range import LEAST, SAFETY, proposed, rate_range_test, smoothed

RATES = [1e-5 * 10 ** (step / 10) for step in range(50)]


def test_running_means_have_no_bias_at_the_beginning():
    assert smoothed([4.0, 4.0, 4.0]) == pytest.approx([4.0, 4.0, 4.0])
    assert smoothed([4.0, 2.0])[-1] == pytest.approx((0.9 * 4 + 2) / 1.9)


def test_the_proposal_is_a_tenth_of_the_rate_of_the_lowest_mean():
    losses = [5 - 0.08 * step if step < 40 else 5 + step - 40 for step in range(50)]
    found = proposed(RATES, losses)
    means = smoothed(losses)
    assert found.suggestion == pytest.approx(RATES[means.index(min(means))] / SAFETY)
    assert "rises beyond it" in found.reason and found.reason.split(":")[0] in found.summary()
    assert "still fell at the highest rate" in proposed(RATES, [5 - 0.01 * step for step in range(50)]).reason


def test_losses_that_are_not_finite_are_left_out_and_too_few_are_an_error():
    found = proposed(RATES[:13], [5.0 - step / 10 for step in range(12)] + [math.nan])
    assert 0 < found.suggestion < RATES[12]
    with pytest.raises(TrainingError, match=f"saw 3 finite losses, and a proposal needs {LEAST}"):
        proposed(RATES[:4], [5.0, 4.0, 3.0, math.inf])


@pytest.mark.parametrize("wrong", [{"low": 1.0, "high": 0.1}, {"low": 0.0}, {"steps": 3}, {"high": 100.0}])
def test_a_range_that_is_none_is_refused(wrong):
    with pytest.raises(ConfigError, match="rises from a rate above 0 to a higher one"):
        rate_range_test(make_tiny(), [TEXT], progress=False, **wrong)


def test_a_tiny_model_gets_a_rate_with_which_it_learns_and_stays_as_it_was(tmp_path):
    model, notes = make_tiny(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = rate_range_test(
        model, [TEXT[begin : begin + 300] for begin in range(0, len(TEXT), 300)], {"batch_size": 4, "gradient_accumulation_steps": 2},
        tokenizer=FastBPETrainer.train_on_dataset([TEXT], 300), workspace=tmp_path, steps=40,
        progress=lambda done, total, note="": notes.append((done, total)),
    )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert 1e-4 < found.suggestion < 0.1 and len(found.losses) == len(found.rates) == notes[-1][0]
    assert found.losses[0] > 5 > min(found.losses)
