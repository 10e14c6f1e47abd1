"""A run is made again from its folder alone, with equal losses; what cannot be had again is said by name, before any step."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

import utils.__main__ as command_line
from tests.training.tiny import TEXT, make_tiny
from utils.adapters.model_adapter import adapt
from utils.errors import TrainingError
from utils.loading.model_loader import load_model
from utils.tokenization import streaming
from utils.training import run_manifest
from utils.training.run_manifest import (
    Recipe,
    code_revision,
    compare_losses,
    describe_data,
    hardware,
    package_versions,
    rerun,
    validation_text_of,
)
from utils.training.training_core import train

MODEL = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, vocab_size=300, d_model=16, max_seq_len=16):
        super().__init__()
        self.token = nn.Embedding(vocab_size, d_model)
        self.position = nn.Embedding(max_seq_len, d_model)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(d_model, vocab_size)

    def forward(self, input_ids):
        x = self.token(input_ids) + self.position.weight[: input_ids.shape[1]]
        return self.head(torch.tanh(self.drop(x)))
"""
SETTINGS = {"learning_rate": 1e-2, "batch_size": 4, "max_steps": 4, "run_name": "first", "val_every_n_steps": 2}


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.py").write_text(MODEL, "utf-8")
    (folder / "config.json").write_text('{"vocab_size": 300, "d_model": 16, "max_seq_len": 16}', "utf-8")
    return folder


@pytest.fixture
def text(tmp_path) -> Path:
    (tmp_path / "notes.txt").write_text(TEXT, "utf-8")
    return tmp_path / "notes.txt"


def first_run(source, data, tmp_path, **settings):
    torch.rand(7)  # whatever was drawn before plays no part
    return train(load_model(source), data, {**SETTINGS, **settings}, workspace=tmp_path / "runs", progress=False)


@pytest.mark.slow  # loads, trains and starts a process that does both again
def test_the_bundled_example_is_re_created_with_equal_losses(tmp_path, capsys):
    import utils.examples

    config = {**SETTINGS, "max_steps": 2, "batch_size": 2, "val_every_n_steps": None}
    first = train(load_model(utils.examples.path()), "python-docs", config, workspace=tmp_path / "runs", progress=False)
    assert command_line.main(["rerun", str(first.run_folder), "--workspace", str(tmp_path / "again")]) == 0
    again = tmp_path / "again" / "first-rerun"
    assert "All 2 training losses are equal." in capsys.readouterr().out
    assert compare_losses(first.run_folder, again) == "All 2 training losses are equal."
    hashes = [json.loads((run / "manifest.json").read_text("utf-8"))["files"] for run in (first.run_folder, again)]
    assert hashes[0]["metrics.csv"] == hashes[1]["metrics.csv"]


def test_a_run_over_a_file_is_re_created_though_the_model_is_gone(source, text, tmp_path):
    first = first_run(source, text, tmp_path)
    (source / "model.py").unlink()
    again = rerun(first.run_folder, progress=False)
    assert again["step_loss_history"] == first["step_loss_history"]
    assert again["val_loss_history"] == first["val_loss_history"]
    assert again.run_folder == tmp_path / "runs" / "first-rerun"
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    third = rerun(again.run_folder, progress=False, run_name="third")  # a re-created run can be re-created
    assert third["step_loss_history"] == first["step_loss_history"]


def test_the_recipe_says_where_everything_came_from(source, text, tmp_path):
    first = first_run(source, str(text), tmp_path)
    recipe = json.loads((first.run_folder / "recipe.json").read_text("utf-8"))
    assert recipe["model"]["origin"] == str(source) and recipe["model"]["class_name"] in ("Small", None)
    assert set(recipe["model"]["sha256"]) == {"model.py", "config.json"}
    assert recipe["data"] == {**describe_data(text), "path": str(text)}
    assert recipe["versions"] == package_versions()
    assert recipe["hardware"]["cores"] >= 1
    files = json.loads((first.run_folder / "manifest.json").read_text("utf-8"))["files"]
    assert {"recipe.json", "source/model.py", "source/config.json", "config.json", "run.json"} <= set(files)


def test_a_run_that_continues_keeps_its_recipe(source, text, tmp_path):
    first = first_run(source, text, tmp_path)
    before = (first.run_folder / "recipe.json").read_bytes()
    first_run(source, text, tmp_path)
    assert (first.run_folder / "recipe.json").read_bytes() == before


def changed_text(run, source, text):
    text.write_text(TEXT + "one more line\n", "utf-8")


def missing_text(run, source, text):
    text.unlink()


def changed_source(run, source, text):
    (run / "source" / "model.py").write_text(MODEL.replace("tanh", "sin"), "utf-8")


def missing_source(run, source, text):
    (run / "source" / "config.json").unlink()


def leading_out(run, source, text):
    recipe = json.loads((run / "recipe.json").read_text("utf-8"))
    recipe["model"]["sha256"]["../../model/model.py"] = "0" * 64
    (run / "recipe.json").write_text(json.dumps(recipe), "utf-8")


def other_settings(run, source, text):
    config = json.loads((run / "config.json").read_text("utf-8"))
    (run / "config.json").write_text(json.dumps({**config, "learning_rate": 0.5}), "utf-8")


def no_recipe(run, source, text):
    (run / "recipe.json").unlink()


def torn_recipe(run, source, text):
    (run / "recipe.json").write_text('{"format_version": 1, ', "utf-8")


def newer_recipe(run, source, text):
    (run / "recipe.json").write_text('{"format_version": 99}', "utf-8")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (changed_text, "notes.txt was changed since the run began"),
        (missing_text, "notes.txt is gone"),
        (changed_source, "source/model.py was changed"),
        (missing_source, "source/config.json is missing"),
        (leading_out, "leads out of the run's folder"),
        (other_settings, "learning_rate: 0.01 → 0.5"),
        (no_recipe, "made before recipes were written"),
        (torn_recipe, "recipe.json cannot be read"),
        (newer_recipe, "format version 99"),
    ],
)
def test_what_is_not_as_it_was_is_named_and_nothing_is_trained(source, text, tmp_path, spoil, words):
    first = first_run(source, text, tmp_path, max_steps=1, val_every_n_steps=None)
    spoil(first.run_folder, source, text)
    with pytest.raises(TrainingError, match=words):
        rerun(first.run_folder, progress=False)
    assert [folder.name for folder in (tmp_path / "runs").iterdir() if (folder / "run.json").exists()] == ["first"]


def test_several_faults_are_listed_together(source, text, tmp_path):
    first = first_run(source, text, tmp_path, max_steps=1, val_every_n_steps=None)
    missing_text(first.run_folder, source, text)
    missing_source(first.run_folder, source, text)
    assert len(Recipe.read(first.run_folder).problems()) == 2


def test_what_a_program_made_is_brought_by_the_program(tmp_path, tokenizer):
    texts = [TEXT[:4000], TEXT[4000:]]
    arguments = {"tokenizer": tokenizer, "workspace": tmp_path / "runs", "progress": False}
    first = train(make_tiny(seed=3), texts, SETTINGS, **arguments)
    with pytest.raises(TrainingError, match=r"(?s)model: .*made by a program.*data: a list was passed"):
        rerun(first.run_folder, progress=False)
    again = rerun(first.run_folder, model=make_tiny(seed=3), data=texts, progress=False)
    assert again["step_loss_history"] == first["step_loss_history"]
    with pytest.raises(TrainingError, match="starts from other weights"):
        rerun(first.run_folder, model=make_tiny(seed=4), data=texts, progress=False)
    with pytest.raises(TrainingError, match="text, tokenizer or block length differ"):
        rerun(first.run_folder, model=make_tiny(seed=3), data=texts[:1], progress=False)


def test_fresh_weights_of_another_seed_need_that_seed(source, text, tmp_path):
    arguments = {"workspace": tmp_path / "runs", "progress": False}
    first = train(adapt(load_model(source, seed=5)), text, SETTINGS, **arguments)
    with pytest.raises(TrainingError, match="come with model= or seed="):
        rerun(first.run_folder, progress=False)
    assert rerun(first.run_folder, seed=5, progress=False)["step_loss_history"] == first["step_loss_history"]


def test_other_versions_are_said(source, text, tmp_path, caplog, monkeypatch):
    first = first_run(source, text, tmp_path, max_steps=1, val_every_n_steps=None)
    monkeypatch.setattr(run_manifest, "package_versions", lambda: {"torch": "9.9"})
    rerun(first.run_folder, progress=False)
    assert "→ 9.9" in caplog.text


def test_data_is_described_by_what_finds_it_again(text, tmp_path, monkeypatch):
    assert describe_data("python-docs") == {"kind": "bundled", "name": "python-docs"}
    assert describe_data(["a"]) == {"kind": "memory", "type": "list"}
    folder = describe_data(tmp_path)
    assert folder["kind"] == "folder" and [item["name"] for item in folder["files"]] == ["notes.txt"]
    monkeypatch.setattr(run_manifest, "_hub_revision", lambda name: "c0ffee")
    assert describe_data("owner/name") == {"kind": "hub", "name": "owner/name", "revision": "c0ffee"}


def test_the_revision_of_a_checkout_is_known_and_changes_are_seen(tmp_path):
    assert code_revision(tmp_path) == {"commit": None, "changed": None}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@x"]
    (tmp_path / "a.txt").write_text("1", "utf-8")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    found = code_revision(tmp_path)
    assert len(found["commit"]) == 40 and found["changed"] is False
    (tmp_path / "a.txt").write_text("2", "utf-8")
    assert code_revision(tmp_path)["changed"] is True


def test_hardware_is_plain_json():
    assert json.loads(json.dumps(hardware())) == hardware()


def test_a_streamed_run_is_re_created_without_its_files_ever_being_hashed(source, text, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "HELD_BACK_CHARACTERS", 500)
    text.write_text("\n\n".join(text.read_text("utf-8").splitlines()), "utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(run_manifest, "sha256_of", lambda path: pytest.fail(f"{path} was hashed") if path == text else "")
        first = first_run(source, text, tmp_path, stream_data=True)
    recipe = json.loads((first.run_folder / "recipe.json").read_text("utf-8"))
    assert recipe["data"] == {"kind": "stream", "path": str(text), "sizes": {"notes.txt": text.stat().st_size}}
    again = rerun(first.run_folder, progress=False)
    assert again["step_loss_history"] == first["step_loss_history"]
    assert rerun(again.run_folder, progress=False, run_name="third")["loss_history"] == first["loss_history"]
    shown = validation_text_of(first)
    assert shown is not None and shown in text.read_text("utf-8").replace("\n\n", "\n")
    text.write_text(text.read_text("utf-8") + "more", "utf-8")
    with pytest.raises(TrainingError, match="was changed since the run began"):
        rerun(first.run_folder, progress=False)
