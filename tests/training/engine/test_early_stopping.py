from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.training.tiny import make_tiny
from utils.training.engine.early_stopping import judge
from utils.training.engine.loop import ValidationLoop
from utils.training.engine.trainer import Trainer
from utils.training.recovery import recover
from utils.training.training_config import TrainingConfig

NAN = float("nan")


@pytest.mark.parametrize(
    ("losses", "patience", "delta", "stop_at"),
    [
        ([6, 5, 5, 5, 5], 3, 0.0, 5),
        ([6, 5, 6, 4, 5], 3, 0.0, None),
        ([6, 5, 6, 4, 5, 5], 2, 0.0, 6),
        ([6, 5.99, 5.98, 5.97], 3, 0.1, 4),
        ([6, NAN, NAN], 2, 0.0, 3),
        ([NAN, NAN], 2, 0.0, 2),
        ([1, 2], 1, 0.0, 2),
        ([], 1, 0.0, None),
    ],
)
def test_it_stops_when_the_best_loss_is_old(losses, patience, delta, stop_at):
    stops = [n for n in range(len(losses) + 1) if judge(losses[:n], patience, delta).stop]
    assert (stops[0] if stops else None) == stop_at


BLOCKS = np.random.default_rng(0).integers(0, 300, (12, 16))


def trained(tmp_path, monkeypatch, losses, **settings):
    """A run whose validation losses are the given ones."""
    original, given = ValidationLoop.on_validation_end, iter(losses)

    def told(self, trainer, module):
        if trainer.state.fn == "fit":
            loss = next(given)
            monkeypatch.setattr(module.metrics, "compute", lambda: {"loss": loss})
        original(self, trainer, module)

    monkeypatch.setattr(ValidationLoop, "on_validation_end", told)
    config = TrainingConfig(**{"batch_size": 4, "epochs": 9, "run_name": "r", "early_stopping_patience": 2, **settings})
    result = Trainer(make_tiny(), None, config, workspace=tmp_path).train(BLOCKS, BLOCKS[:4])
    monkeypatch.setattr(ValidationLoop, "on_validation_end", original)
    return result


@pytest.mark.parametrize(
    ("settings", "steps"), [({}, 12), ({"val_every_n_steps": 2}, 8), ({"gradient_accumulation_steps": 2}, 8)]
)
def test_a_run_ends_early_is_finished_and_stays_so(tmp_path, monkeypatch, settings, steps):
    first = trained(tmp_path, monkeypatch, [5.0, 4.0, 4.5, 4.1, 3.0, 2.0, 1.0], **settings)
    assert len(first["step_loss_history"]) == steps and "2 validations old (patience 2)" in first["ended_early"]
    assert (first.run_folder / "manifest.json").is_file() and first["checkpoint_path"]
    assert f"step-{steps:08d}" in first["checkpoint_path"]
    best = torch.load(first["best_checkpoint_path"], weights_only=True)["state_dict"]
    assert first["best_checkpoint_path"] != first["checkpoint_path"]
    assert all(value.equal(best[f"adapted.{name}"]) for name, value in first.model.state_dict().items())
    assert json.loads((first.run_folder / "manifest.json").read_text())["steps"] == steps
    recovered = recover(first.run_folder, make_tiny(seed=3))
    assert recovered.finished and all(
        value.equal(best[f"adapted.{name}"]) for name, value in recovered.model.state_dict().items()
    )
    again = trained(tmp_path, monkeypatch, [0.1] * 20, **settings)  # the cell is run again
    assert again["step_loss_history"] == first["step_loss_history"] and again["resumed_from_step"] == steps
    assert again["ended_early"] == first["ended_early"]
    for name, value in first.model.state_dict().items():
        assert again.model.state_dict()[name].equal(value)


def test_a_run_that_becomes_better_goes_to_its_end(tmp_path, monkeypatch):
    result = trained(tmp_path, monkeypatch, [5.0, 6.0, 4.0, 5.0, 3.0, 4.0, 2.0, 3.0, 1.0])
    assert len(result["step_loss_history"]) == 27 and result["ended_early"] == ""
