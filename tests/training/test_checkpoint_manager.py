"""`CheckpointManager` with a plain Lightning trainer, and checkpoints of unknown origin."""

from __future__ import annotations

import shutil

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import save_file
from torch import nn

from tests.training.engine.faults import ERRNOS, FaultyFileSystem, raising
from tests.training.tiny import TEXT, make_tiny
from utils import CheckpointManager
from utils.adapters.model_adapter import UniversalModelAdapter
from utils.errors import CheckpointError, ConfigError
from utils.tokenization.data_module import UniversalDataModule
from utils.training.checkpoint_manager import CheckpointManager as HandedOn
from utils.training.engine import checkpoint as home
from utils.training.engine.checkpoint import CheckpointStore
from utils.training.engine.foreign import load_foreign


def test_both_documented_paths_name_one_class():
    assert CheckpointManager is HandedOn is home.CheckpointManager


@pytest.fixture
def fit(tokenizer, tmp_path):
    def fit(manager, max_steps, callbacks=(), seed=0):
        """A training without this package's trainer, with somebody's own checkpoints beside ours."""
        torch.manual_seed(1)
        lit = UniversalModelAdapter(make_tiny(seed), learning_rate=1e-2, total_steps=12)
        module = UniversalDataModule([TEXT[:3000]], tokenizer, batch_size=4, max_length=16, seed=3)
        trainer = pl.Trainer(
            max_steps=max_steps,
            callbacks=[*callbacks, manager.get_checkpoint_callback()],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            limit_val_batches=0,
            num_sanity_val_steps=0,
            enable_checkpointing=bool(callbacks),
        )
        trainer.fit(lit, module, ckpt_path=manager.latest_path, weights_only=True)
        return lit

    return fit


def test_a_plain_trainer_resumes_exactly_and_on_a_new_machine(fit, tmp_path):
    whole = fit(CheckpointManager("whole", local_dir=tmp_path, save_every_n_steps=4), 12)
    drive = tmp_path / "drive"
    manager = CheckpointManager("notes", drive_path=drive, local_dir=tmp_path / "a", save_every_n_steps=4)
    fit(manager, 9)
    status = manager.sync_to_drive()
    assert status.safe_step == 9 and "up to step 9" in status.summary()  # the end is saved, whatever the interval
    shutil.rmtree(tmp_path / "a")
    again = CheckpointManager("notes", drive_path=drive, local_dir=tmp_path / "b", save_every_n_steps=4)
    assert again.load_latest_checkpoint()["global_step"] == 9
    lit = fit(again, 12, seed=7)
    assert all(value.equal(lit.state_dict()[name]) for name, value in whole.state_dict().items())
    assert again.sync_to_drive().safe_step == 12
    fresh = UniversalModelAdapter(make_tiny(9))
    again.load_latest_checkpoint(fresh)
    assert all(value.equal(fresh.state_dict()[name]) for name, value in whole.state_dict().items())


def test_paths_of_other_callbacks_do_not_travel(fit, tmp_path):
    theirs = pl.callbacks.ModelCheckpoint(dirpath=tmp_path / "theirs", every_n_train_steps=2)
    manager = CheckpointManager("notes", local_dir=tmp_path, save_every_n_steps=4)
    fit(manager, 5, [theirs])
    assert list((tmp_path / "theirs").glob("*.ckpt"))  # theirs are written as ever
    found = manager.load_latest_checkpoint()
    assert not [key for key in found["callbacks"] if "ModelCheckpoint" in key]
    assert str(tmp_path) not in repr(found["callbacks"])


def test_without_checkpoints_there_is_nothing_to_load(tmp_path):
    manager = CheckpointManager("notes", local_dir=tmp_path)
    assert manager.load_latest_checkpoint() is None and manager.latest_path is None
    with pytest.raises(ConfigError, match="drive_path="):
        manager.sync_to_drive()


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden"])
def test_a_name_that_is_none_for_a_folder_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="expected a folder name"):
        CheckpointManager(name, local_dir=tmp_path)


def test_an_unmounted_drive_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not mounted"):
        CheckpointManager("notes", "/content/drive/MyDrive/checkpoints", local_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", ERRNOS.values(), ids=ERRNOS.keys())
def test_a_failing_drive_is_told_and_raises_nothing(fit, tmp_path, number, monkeypatch):
    monkeypatch.setattr("utils.training.engine.mirror.FIRST_PAUSE", 0.01)
    files = FaultyFileSystem()
    manager = CheckpointManager("notes", tmp_path / "drive", local_dir=tmp_path, files=files)
    files.fault = raising(number)
    path = manager.store.next_path(1)
    manager.store.write({"state_dict": {}}, path)
    manager.store.commit(path, 1)
    status = manager.sync_to_drive()
    assert status.safe_step is None and status.problem and status.newest_step == 1
    files.fault = None
    assert manager.sync_to_drive().safe_step == 1


# ---- checkpoints of unknown origin ----------------------------------------------------------------------------------
def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


class Evil:
    def __reduce__(self):
        return (open, ("canary", "w"))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model."])
@pytest.mark.parametrize("place", [None, "state_dict", "model_state_dict", "model"])
def test_weights_of_others_are_found_and_nothing_else_is_taken(tmp_path, prefix, place):
    source, target = linear(), linear()
    weights = {prefix + name: value for name, value in source.state_dict().items()}
    rest = {
        "callbacks": {"ModelCheckpoint": {"best_model_path": "/etc/passwd"}},
        "hyper_parameters": {"lr": 1},
        "loops": {},
    }
    torch.save(weights if place is None else {place: weights, **rest}, tmp_path / "x.ckpt")
    found = load_foreign(tmp_path / "x.ckpt", target)
    assert found.keys() == target.state_dict().keys()
    assert all(value.equal(source.state_dict()[name]) for name, value in target.state_dict().items())


def test_safetensors_are_read(tmp_path):
    source = linear()
    save_file(source.state_dict(), tmp_path / "x.safetensors")
    assert load_foreign(tmp_path / "x.safetensors").keys() == source.state_dict().keys()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dict": nn.Linear(3, 5).state_dict()}, r"another model.*missing: 0\.bias"),
        ({**linear().state_dict(), "0.weight": torch.zeros(9, 9)}, r"other shapes: 0\.weight: \(9, 9\) in the file"),
        ({"state_dict": {}, "epoch": 3}, "holds no weights"),
        ([1, 2], "holds no weights"),
        ({"state_dict": Evil()}, "more than tensors"),
        (Evil(), "more than tensors"),
    ],
)
def test_what_does_not_fit_or_is_no_weights_is_refused_and_changes_nothing(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "x.ckpt")
    model = linear()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=words):
        load_foreign(tmp_path / "x.ckpt", model)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("cut", [0, 10, 300])
@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
def test_a_torn_file_is_refused(tmp_path, cut, ending):
    path = tmp_path / f"x.{ending}"
    save_file(linear().state_dict(), path) if ending == "safetensors" else torch.save(linear().state_dict(), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"torn|safetensors"):
        load_foreign(path)


@pytest.mark.parametrize("path", ["https://example.org/x.ckpt", "s3://bucket/x.ckpt", "nowhere.ckpt"])
def test_no_url_is_followed(path):
    with pytest.raises(CheckpointError, match=r"is a URL|no checkpoint file"):
        load_foreign(path)


def test_the_variable_that_turns_safe_loading_off_is_refused(tmp_path, monkeypatch):
    torch.save(linear().state_dict(), tmp_path / "x.ckpt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CheckpointError, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        load_foreign(tmp_path / "x.ckpt")


def test_a_store_gives_no_paths(tmp_path):
    store = CheckpointStore(tmp_path, "run")
    path = store.next_path(1)
    store.write({"callbacks": {"A": {"best_model_path": "/etc"}, "B": {"x": 1}}}, path)
    store.commit(path, 1)
    assert store.load(path)["callbacks"] == {"B": {"x": 1}}
