"""Epochs of somebody's own loop: table, file, kill, continuation, refusals."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.training.wandb_files import history, offline_runs, run_of
from utils.errors import ConfigError
from utils.training.metrics_tracker import MetricsTracker


@pytest.fixture(autouse=True)
def no_key(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)


def test_the_documented_calls_give_the_documented_table(tmp_path):
    tracker = MetricsTracker(use_wandb=True)
    tracker.log_epoch(
        epoch=0,
        train_metrics={"loss": 2.0, "accuracy": 0.3},
        val_metrics={"loss": 2.1, "accuracy": 0.3},
        learning_rate=1e-4,
        gradient_norm=0.9,
        epoch_duration=12.0,
    )
    frame = tracker.get_summary()
    tracker.finish()
    assert list(frame.columns) == [
        *("epoch", "train/loss", "val/loss", "val/perplexity", "train/accuracy", "val/accuracy"),
        *("learning_rate", "gradient_norm", "epoch_duration"),
    ]
    assert frame.loc[0, "val/perplexity"] == pytest.approx(math.exp(2.1))
    pd.testing.assert_frame_equal(pd.read_csv(tracker.path), frame, check_dtype=False)
    [file] = offline_runs(tracker.folder)
    assert history(file)[0]["val/accuracy"] == 0.3


def test_a_tracker_on_the_same_folder_continues_file_and_run(tmp_path):
    for epochs in ((0, 1), (1, 2)):
        with MetricsTracker(True, folder=tmp_path / "m") as tracker:
            for epoch in epochs:
                tracker.log_epoch(epoch, {"loss": torch.tensor(3.0 - epoch + len(offline_runs(tmp_path / "m")))})
    assert tracker.get_summary()["epoch"].tolist() == [0, 1, 2]
    assert pd.read_csv(tracker.path)["train/loss"].tolist() == [4.0, 4.0, 3.0]  # epoch 1 was logged again
    runs = offline_runs(tmp_path / "m")
    assert len(runs) == 2 and len({run_of(file).run_id for file in runs}) == 1


def test_parts_that_come_late_or_never_leave_empty_cells(tmp_path):
    tracker = MetricsTracker(False, folder=tmp_path / "m")
    tracker.log_epoch(0, {"loss": 1.0})
    tracker.log_epoch(1, {"loss": 0.5, "tokens": 7}, {"loss": 1e9})
    frame = pd.read_csv(tracker.path)
    assert frame["val/loss"].isna().tolist() == [True, False]
    assert frame.loc[1, "val/perplexity"] == math.inf
    assert MetricsTracker(False, folder=tmp_path / "m").get_summary().equals(tracker.get_summary())


def test_nothing_of_w_and_b_is_imported_where_it_is_not_wanted():
    code = "import sys, utils.training.metrics_tracker as m; m.MetricsTracker(use_wandb=False); print('wandb' in sys.modules)"
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ).stdout == "False\n"


def test_a_killed_process_leaves_every_epoch_that_was_logged(tmp_path):
    code = (
        "import os, signal\nfrom utils.training.metrics_tracker import MetricsTracker\n"
        "t = MetricsTracker(use_wandb=False, folder='m')\n"
        "for e in range(5): t.log_epoch(e, {'loss': 1.0 / (e + 1)})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert pd.read_csv(tmp_path / "m" / "metrics.csv")["epoch"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"epoch": -1, "train_metrics": {}}, "epoch=-1"),
        ({"epoch": 1.0, "train_metrics": {}}, "epoch=1.0"),
        ({"epoch": 0, "train_metrics": {"loss": "low"}}, "train/loss must be a number"),
        ({"epoch": 0, "train_metrics": {"loss": torch.zeros(3)}}, "train/loss must be a number"),
        ({"epoch": 0, "train_metrics": {}, "val_metrics": {"loss": None}}, "val/loss must be a number"),
    ],
)
def test_what_is_no_metric_is_refused_by_name(tmp_path, arguments, words):
    with pytest.raises(ConfigError, match=words):
        MetricsTracker(False, folder=tmp_path / "m").log_epoch(**arguments)


def test_a_file_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "metrics.csv").write_text("name,price\napple,3\n", "utf-8")
    with pytest.raises(ConfigError, match="not written by a MetricsTracker"):
        MetricsTracker(False, folder=tmp_path)
    assert (tmp_path / "metrics.csv").read_text("utf-8").startswith("name,price")
