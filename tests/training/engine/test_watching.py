"""What is seen of every run: gradients, accumulation, speed, memory fit, forecast, plot; kept through a resume."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.tiny import make_tiny
from utils.adapters.model_adapter import adapt
from utils.errors import ConfigError, TrainingError
from utils.training.engine.checkpoint import CheckpointMetadata
from utils.training.engine.live import LivePlotCallback
from utils.training.engine.memory import MicroBatch
from utils.training.engine.trainer import CHOICES_FILE, Trainer, TrainingHooks
from utils.training.recovery import recover
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

BLOCKS = np.random.default_rng(0).integers(0, 300, (16, 16))


def run(tmp_path, kind=Trainer, progress=None, **settings):
    config = TrainingConfig(
        **{"batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 6, "run_name": "r", **settings}
    )
    more = {} if progress is None else {"progress": progress}
    return kind(make_tiny(), None, config, workspace=tmp_path, **more)


def test_a_run_tells_its_gradients_and_its_accumulation(tmp_path):
    result = run(tmp_path).train(BLOCKS, BLOCKS[:3])
    norms = result["gradient_norm_history"]
    assert len(norms) == 6 and all(norm > 0 for norm in norms) and len(set(norms)) == 6
    assert {item.layer for item in result["gradient_health"]} >= {"token", "block.linear1"}
    stats = result["accumulation"]
    assert (stats.optimizer_steps, stats.micro_batches, stats.effective_batch) == (6, 12, 4)
    with (result.run_folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["gradient_norm"]) for row in rows] == norms
    assert float(rows[3]["val/accuracy"]) == result["val_measures_history"][0]["accuracy"]
    assert (result.run_folder / "resources.csv").is_file()
    for again in (run(tmp_path).train(BLOCKS, BLOCKS[:3]), recover(result.run_folder)):  # finished: read, not trained
        assert again["gradient_norm_history"] == norms and again["accumulation"].micro_batches == 12
        assert again["val_measures_history"] == result["val_measures_history"] and again["task"] == "lm"


def test_who_watches_gets_a_forecast_first_and_others_pay_nothing_for_it(tmp_path):
    assert run(tmp_path).train(BLOCKS)["forecast"] is None
    told = run(tmp_path / "b", progress=lambda *report: None).train(BLOCKS)
    assert told["forecast"].startswith("Forecast: fits") and "6 steps" in told["forecast"]
    assert told["step_loss_history"] == run(tmp_path).train(BLOCKS)["step_loss_history"]  # measuring leaves no trace


def test_a_micro_batch_that_was_found_is_kept_by_the_run(tmp_path, monkeypatch):
    """The probe itself needs a GPU; what the run does with its answer does not."""

    class OnGpu(Trainer):
        def _setup_micro_batch(self, plan, precision):
            device, self.device = self.device, torch.device("cuda")
            monkeypatch.setattr("torch.nn.Module.to", lambda self, *_: self)
            try:
                return super()._setup_micro_batch(plan, precision)
            finally:
                self.device = device
                monkeypatch.undo()

    fitted = MicroBatch(1, 4, True, "1 of 2 fits")
    with monkeypatch.context() as patch:
        patch.setattr("utils.training.engine.trainer.fit_to_memory", lambda *_: fitted)
        result = run(tmp_path, OnGpu).train(BLOCKS)
    assert result["micro_batch_reason"] == "1 of 2 fits"
    assert (result["accumulation"].micro_batches, result["accumulation"].effective_batch) == (24, 4)
    kept = json.loads((result.run_folder / CHOICES_FILE).read_text())
    assert kept["batch_size"] == 1 and kept["accumulation"] == 4 and kept["precision"] == "32-true"
    again = run(tmp_path).train(BLOCKS)  # another machine: batches are counted as the run counts them
    assert again["step_loss_history"] == result["step_loss_history"]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"vocab_size": 301}, ConfigError, "vocab_size=301, and TinyTransformer has 300 embedding rows"),
        ({"strategy": "ddp", "devices": 2}, TrainingError, "one device"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, settings, error, words):
    with pytest.raises(error, match=words):
        run(tmp_path, **settings)
    assert list(tmp_path.iterdir()) == []


class Plot:
    def __init__(self):
        self.wanted, self.drawn, self.closed = True, [], None

    def update(self, losses, validations):
        self.drawn.append(len(losses))

    def close(self, losses, validations):
        self.closed = (len(losses), len(validations))


def test_the_plot_is_drawn_as_training_goes(tmp_path):
    plot = Plot()

    class Plotting(Trainer):
        def _setup_callbacks(self, *arguments):
            callbacks = super()._setup_callbacks(*arguments)
            callbacks.watchers.rest.append(LivePlotCallback(callbacks.training, callbacks.validation, plot))
            return callbacks

    run(tmp_path, Plotting).train(BLOCKS, BLOCKS[:3])
    assert plot.drawn[-1] == 6 and plot.closed == (6, 2)


def test_settings_that_an_older_release_did_not_have_count_as_usual(tmp_path):
    result = run(tmp_path).train(BLOCKS)
    file = result.run_folder / "run.json"
    values = json.loads(file.read_text())
    for name in ("label_smoothing", "ema_decay", "early_stopping_patience"):
        del values["fingerprint"]["settings"][name]
    file.write_text(json.dumps(values))
    assert run(tmp_path).train(BLOCKS)["resumed_from_step"] == 6
    with pytest.raises(TrainingError, match=r"ema_decay: None → 0\.9"):
        run(tmp_path, ema_decay=0.9).train(BLOCKS)


def test_a_run_that_goes_on_clips_and_measures_as_before(tmp_path):
    """Lightning announces no epoch where a run goes on in the middle of one."""

    class Gone(Exception):
        pass

    class Leave(TrainingHooks):
        def on_step_end(self, step, loss):
            if step == 2:
                raise Gone

    settings = {
        "gradient_clip_norm": 0.5,
        "learning_rate": 1e-2,
        "save_every_n_steps": 1,
        "epochs": 2,
        "max_steps": None,
    }
    whole = run(tmp_path / "whole", **settings).train(BLOCKS)
    assert all(norm > 0.5 for norm in whole["gradient_norm_history"]), "else nothing is clipped"
    first = run(tmp_path / "broken", **settings)
    first.hooks = Leave()
    with pytest.raises(Gone):
        first.train(BLOCKS)
    again = run(tmp_path / "broken", **settings).train(BLOCKS)
    assert again["resumed_from_step"] in (1, 2)
    assert again["gradient_norm_history"] == whole["gradient_norm_history"]
    assert again["step_loss_history"] == whole["step_loss_history"]


def test_another_environment_is_told(tmp_path, caplog):
    result = run(tmp_path, save_every_n_steps=1).train(BLOCKS)
    manifest = Path(result["checkpoint_path"]).with_suffix(".json")
    metadata = CheckpointMetadata.from_dict(json.loads(manifest.read_text()))
    older = dataclasses.replace(metadata, versions={**metadata.versions, "torch": "1.13"})
    manifest.write_text(older.to_text())
    run(tmp_path, save_every_n_steps=1).train(BLOCKS)
    assert f"torch 1.13 → {torch.__version__}" in caplog.text


def test_a_loss_of_another_task_is_refused(tmp_path):
    trainer = run(tmp_path)
    trainer.spec = TaskSpec("lm", "lm", "loss", "classification")
    with pytest.raises(TrainingError, match=r"'classification' is for the task 'classification'.*loss='next_token'"):
        trainer.train(BLOCKS)
    with pytest.raises(ConfigError, match="did you mean 'next_token'"):
        TaskSpec("lm", "lm", "loss", "nxt_token")


def test_a_schedule_of_ones_own_needs_no_optimizer_of_ones_own(tmp_path):
    class Stepped(Trainer):
        def _setup_scheduler(self, optimizer, total_steps):
            return torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

    result = run(tmp_path, Stepped, learning_rate=1e-2).train(BLOCKS)
    with (result.run_folder / "metrics.csv").open() as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    assert rates == pytest.approx([1e-2, 1e-2, 5e-3, 5e-3, 2.5e-3, 2.5e-3])


def test_validation_measures_no_auxiliary_loss(tmp_path):
    class Balanced(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(300, 8)
            self.head = torch.nn.Linear(8, 300)

        def forward(self, input_ids):
            x = self.embedding(input_ids)
            return {"logits": self.head(x), "aux_loss": 1.0 + 0 * x.sum()}

    torch.manual_seed(0)
    adapted = adapt(Balanced(), {"vocab_size": 300, "max_seq_len": 16})
    assert adapted.contract.auxiliary, "else there is nothing to leave out"
    config = TrainingConfig(max_steps=1, batch_size=4, learning_rate=1e-9, run_name="r", initialisation="keep")
    result = Trainer(adapted, None, config, workspace=tmp_path).train(BLOCKS, BLOCKS)
    assert result["final_loss"] == pytest.approx(result["val_loss_history"][-1] + 1.0, abs=0.2)
