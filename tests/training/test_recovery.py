"""What a run gave, from its folder or its mirror alone."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.training.engine.resume_runs import BLOCKS, VALIDATION, outcome, stop, trainer
from tests.training.tiny import TEXT, make_tiny
from utils.errors import CheckpointError, ConfigError, TrainingError
from utils.training.generation import generate
from utils.training.recovery import recover
from utils.training.training_core import train

SETTINGS = {"learning_rate": 1e-2, "batch_size": 4, "max_steps": 5, "run_name": "r"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    base = tmp_path_factory.mktemp("finished")
    settings = {**SETTINGS, "mirror_dir": str(base / "drive")}
    return train(make_tiny(), [TEXT], settings, workspace=base / "work", progress=False)


def test_a_finished_run_gives_the_mapping_of_its_training(finished):
    found = recover(finished.run_folder, make_tiny(5))
    assert set(found) == set(finished)
    timed = {"epoch_results", "metric_rows", "training_time", "metrics_summary"}  # seconds: the last save took some
    assert {key: found[key] for key in found if key not in timed} == {
        key: finished[key] for key in finished if key not in timed
    }
    assert found["metrics_summary"].drop(columns="seconds").equals(finished["metrics_summary"].drop(columns="seconds"))
    assert found.finished and found.step == found.total_steps == 5
    assert all(value.equal(finished.model.state_dict()[name]) for name, value in found.model.state_dict().items())
    assert generate(found, "green ", max_new_tokens=8, seed=0) == generate(finished, "green ", max_new_tokens=8, seed=0)
    assert "finished" in found.summary() and "<table" in found._repr_html_()


@pytest.mark.parametrize("how", ["name", "folder", "result"])
def test_the_mirror_alone_is_enough(finished, tmp_path, how):
    drive = finished.run_folder.parents[1] / "drive"
    if how == "name":
        found = recover("r", mirror_dir=drive, workspace=tmp_path)
    elif how == "folder":
        found = recover(next(path for path in drive.iterdir() if path.is_dir()), workspace=tmp_path)
    else:
        found = recover(finished.run_folder, mirror_dir=drive, workspace=tmp_path)  # the local one, which is there
    assert found["step_loss_history"] == finished["step_loss_history"] and found.finished
    assert found.model is None and len(found.tokenizer) == len(finished.tokenizer)
    weights = finished.model.state_dict()
    assert found.weights.keys() == weights.keys()
    assert all(value.equal(weights[name]) for name, value in found.weights.items())
    assert ".weights" in found.summary() and "<table" in found._repr_html_()


def test_a_damaged_local_run_is_topped_up_from_the_mirror(finished, tmp_path):
    drive = finished.run_folder.parents[1] / "drive"
    shutil.copytree(finished.run_folder, tmp_path / "r")
    for path in (tmp_path / "r" / "checkpoints").glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="no checkpoint that verifies"):
        recover("r", workspace=tmp_path)
    assert recover("r", workspace=tmp_path, mirror_dir=drive).step == 5


def test_an_interrupted_run_tells_how_far_it_came(tmp_path):
    stop(tmp_path, 7, 0, VALIDATION, epochs=2)
    found = recover("r", make_tiny(3), workspace=tmp_path)
    assert (found.step, found.total_steps, found.finished) == (7, 12, False)
    assert len(found["step_loss_history"]) == 7 and [item.step for item in found["epoch_results"]] == [6, 7]
    assert "interrupted after step 7 of 12" in found.summary()
    result, _ = outcome(tmp_path, epochs=2)  # and looking at it has changed nothing
    assert result["resumed_from_step"] == 7
    assert result["step_loss_history"][:7] == found["step_loss_history"]


def test_what_is_missing_or_does_not_fit_is_said(finished, tmp_path):
    with pytest.raises(TrainingError, match=r"no run 'x'.*mirror_dir="):
        recover("x", workspace=tmp_path)
    with pytest.raises(CheckpointError, match=r"another model.*other shapes"):
        recover(finished.run_folder, make_tiny(width=8))
    with pytest.raises(ConfigError, match="not mounted"):
        recover("x", workspace=tmp_path, mirror_dir="/content/drive/MyDrive/runs")


def test_a_new_machine_continues_a_run_that_only_the_mirror_has(tmp_path):
    changes = {"mirror_dir": str(tmp_path / "drive"), "epochs": 2}
    stop(tmp_path / "old", 5, 0, VALIDATION, **changes)
    shutil.rmtree(tmp_path / "old")
    with pytest.raises(TrainingError, match=r"begun differently(.|\n)*learning_rate: 0.01 → 0.02"):
        trainer(tmp_path / "new", **changes, learning_rate=2e-2).train(BLOCKS, VALIDATION)
    assert not list((tmp_path / "new").glob("r*"))  # what differs is not even copied
    result, facts = outcome(tmp_path / "new", **changes)
    assert result["resumed_from_step"] == 5
    assert facts == outcome(tmp_path / "other", epochs=2)[1]


def test_without_a_name_the_unfinished_run_of_the_same_model_comes_back(tmp_path):
    changes = {"mirror_dir": str(tmp_path / "drive"), "epochs": 2, "run_name": None}
    stop(tmp_path / "old", 5, 0, VALIDATION, **changes)
    (old,) = (path.name for path in (tmp_path / "old").glob("run_*"))
    shutil.rmtree(tmp_path / "old")
    other = trainer(tmp_path / "new", **{**changes, "run_name": "other"}, weight_decay=0.5).train(BLOCKS, VALIDATION)
    assert other["resumed_from_step"] == 0
    result, _ = outcome(tmp_path / "new", **changes)
    assert (result["run_name"], result["resumed_from_step"]) == (old, 5)


def test_a_drive_that_is_not_mounted_stops_before_the_first_step(tmp_path):
    with pytest.raises(ConfigError, match="not mounted"):
        trainer(tmp_path, mirror_dir="/content/drive/MyDrive/runs").train(BLOCKS, VALIDATION)
    assert not list(tmp_path.glob("*/checkpoints/*"))


def test_facts_in_a_checkpoint_name_no_places(finished, tmp_path):
    from utils.training.engine.checkpoint import CheckpointStore

    shutil.copytree(finished.run_folder, tmp_path / "r")
    run_id = json.loads((tmp_path / "r" / "run.json").read_text())["run_id"]
    store = CheckpointStore(tmp_path / "r" / "checkpoints", run_id)
    state = store.load(store.folder / store.newest().file)
    state["transformer_builder"]["facts"]["run_folder"] = "/etc"
    path = store.next_path(5)
    store.write(state, path)
    store.commit(path, 5)
    assert recover("r", workspace=tmp_path).run_folder == tmp_path / "r"
    assert torch.equal(
        recover("r", workspace=tmp_path).weights["model.position.weight"],
        finished.model.state_dict()["model.position.weight"],
    )
