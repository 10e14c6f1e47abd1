from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
from unittest import mock

import pytest
import torch
from tokenizers import normalizers

from tests.training.tiny import TEXT, TinyTransformer, make_tiny
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.errors import ConfigError, DataError, MissingPackageError, TokenizerError, TrainingError
from utils.progress import Progress
from utils.tokenization.adaptive_tokenizer import AdaptiveTokenizer
from utils.tokenization.bpe_trainer import FastBPETrainer
from utils.tokenization.data_module import UniversalDataModule
from utils.training.dataset_utilities import resolve_data
from utils.training.generation import generate
from utils.training.objective import choose_objective
from utils.training.run_lock import FolderLock
from utils.training.training_config import TrainingConfig
from utils.training.training_core import train

SETTINGS = {"learning_rate": 1e-2, "batch_size": 4, "max_steps": 6, "run_name": "r"}


def run(tmp_path, model=None, data=(TEXT,), resume="auto", **settings):
    data = list(data) if isinstance(data, tuple) else data
    return train(
        model if model is not None else make_tiny(),
        data,
        {**SETTINGS, **settings},
        workspace=tmp_path,
        progress=False,
        resume=resume,
    )


def test_the_walk_gives_model_tokenizer_figures_and_files(tmp_path):
    result = run(tmp_path)
    keys = {
        "loss_history",
        "val_loss_history",
        "best_epoch",
        "final_loss",
        "metrics_summary",
        "checkpoint_path",
        "training_time",
        "run_name",
    }
    assert keys | {"workspace_root", "val_bits_per_byte_history", "bits_per_byte_untrained"} <= set(result)
    assert len(list(result)) == len(result) and all(result[key] is not None or key for key in result)
    folder = tmp_path / "r"
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        "config.json",
        "metrics.csv",
        "run.json",
        "recipe.json",
        "manifest.json",
        "tokenizer",
        "checkpoints",
        "resources.csv",
        "choices.json",
        "drift.json",
    }
    assert TrainingConfig.load(folder / "config.json").learning_rate == 1e-2
    assert len((folder / "metrics.csv").read_text().splitlines()) == 1 + 6
    assert result["val_bits_per_byte_history"][-1] < result["bits_per_byte_untrained"]
    assert not result.model.training and len(result.tokenizer) <= 300
    assert "bits per byte" in result.summary() and "<table" in result._repr_html_()
    assert generate(result, "green ", max_new_tokens=5).startswith("green ")


def test_the_manifest_holds_hash_and_size_of_every_file(tmp_path):
    folder = run(tmp_path).run_folder
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(listed) == {
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and p.name != "manifest.json" and not p.name.startswith(".")
    }
    for name, entry in listed.items():
        raw = (folder / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}


@pytest.mark.parametrize("data", [(TEXT,), tuple(TEXT.splitlines())])
def test_the_tokenizer_never_sees_validation_text(tmp_path, monkeypatch, data):
    seen, original = [], AdaptiveTokenizer.load_or_create.__func__

    def spy(cls, rows, dataset, *rest, **options):
        seen.extend(dataset)
        return original(cls, rows, dataset, *rest, **options)

    monkeypatch.setattr(AdaptiveTokenizer, "load_or_create", classmethod(spy))
    run(tmp_path, data=data)
    text = resolve_data(list(data))
    assert seen == list(text.train) and not set(seen) & set(text.validation)
    assert sum(map(len, [*text.train, *text.validation])) == sum(map(len, data))


def test_the_tokenizer_is_chosen_by_rows_and_text_and_the_reason_told(tmp_path):
    result = run(tmp_path)
    manifest = json.loads((result.run_folder / "manifest.json").read_text())
    assert result["tokenizer_reason"] == manifest["tokenizer_reason"]
    assert result["tokenizer_reason"].startswith("train_bpe: ") and "train_bpe" in result.summary()
    own = train(
        make_tiny(),
        [TEXT],
        SETTINGS,
        tokenizer=FastBPETrainer.train_on_dataset([TEXT], 280),
        workspace=tmp_path / "own",
        progress=False,
    )
    assert own["tokenizer_reason"] is None and len(own.tokenizer) == 280


def test_bits_per_byte_stand_beside_every_loss(tmp_path):
    notes = []
    with mock.patch("utils.training.engine.loop.TERMINAL_INTERVAL", 0.0):
        result = train(
            make_tiny(),
            [TEXT],
            {**SETTINGS, "max_steps": None, "epochs": 2},
            workspace=tmp_path,
            progress=lambda *report: notes.append(report[2]),
        )
    assert notes[-1].count("bits/byte") == 2
    assert len(result["bits_per_byte_history"]) == len(result["val_bits_per_byte_history"]) == 2
    table = result["metrics_summary"]
    for part, losses in (("train", result["loss_history"]), ("val", result["val_loss_history"])):
        per_nat = table[f"{part}/bits_per_byte"] / losses
        assert table[f"{part}/loss"].tolist() == losses and per_nat.max() == pytest.approx(per_nat.min())
    with (result.run_folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(row["train/bits_per_byte"] for row in rows) and rows[-1]["val/bits_per_byte"]
    assert float(rows[0]["train/bits_per_byte"]) / float(rows[0]["train/loss"]) == pytest.approx(
        float(table["train/bits_per_byte"][0] / table["train/loss"][0])
    )
    assert result.summary().count("bits per byte") == 2


@pytest.mark.parametrize("packed", [True, False])
def test_a_data_module_is_trained_on(tmp_path, packed):
    tokenizer = FastBPETrainer.train_on_dataset([TEXT], 300)
    module = UniversalDataModule(TEXT.splitlines(), tokenizer, max_length=16, packed=packed)
    result = run(tmp_path, data=module)
    assert result.tokenizer is tokenizer and len(result["step_loss_history"]) == 6
    assert result["val_bits_per_byte_history"][-1] < result["bits_per_byte_untrained"]
    assert run(tmp_path, data=module)["resumed_from_step"] == 6  # the same data: the finished run


def test_a_data_module_of_another_task_is_refused(tmp_path):
    tokenizer = FastBPETrainer.train_on_dataset([TEXT], 300)
    with pytest.raises(TrainingError, match=r"for the task 'masked'.*trained on 'lm'.*objective='masked'"):
        run(tmp_path, data=UniversalDataModule(TEXT.splitlines(), tokenizer, "masked", max_length=16))


def test_a_plain_module_is_adapted(tmp_path):
    torch.manual_seed(0)
    assert run(tmp_path, TinyTransformer())["final_loss"] > 0


def test_a_model_that_sees_the_future_is_trained_causally_and_the_reason_told(tmp_path, caplog):
    from utils.adapters.causality import sees_future

    result = run(tmp_path, make_tiny(causal=False))
    assert "made causal" in result["objective_reason"] and "made causal" in caplog.text
    assert sees_future(result.model).causal
    assert "sees later tokens (changing the token" in caplog.text and "a version made causal by" in caplog.text


def test_a_leak_of_training_mode_is_told_loudly(caplog):
    class Normalised(TinyTransformer):
        def __init__(self):
            super().__init__()
            self.over_the_batch = torch.nn.BatchNorm1d(300)

        def forward(self, input_ids):
            return self.over_the_batch(super().forward(input_ids).transpose(1, 2)).transpose(1, 2)

    _, reason = choose_objective(adapt(Normalised()))
    assert "in training mode" in reason and "reads its answers; trust the validation loss" in caplog.text


class Leaky(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(300, 8)

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        return (x + x.mean(1, keepdim=True)) @ self.embedding.weight.t()


def test_a_leak_that_cannot_be_mended_is_refused_for_the_next_token(tmp_path):
    with pytest.raises(TrainingError, match=r"sees later tokens.*only teach it to copy"):
        run(tmp_path, Leaky(), objective="next_token", max_length=16)
    assert not (tmp_path / "r").exists()


def test_a_leak_that_cannot_be_mended_is_trained_to_name_hidden_tokens_and_says_so(tmp_path, caplog):
    result = run(tmp_path, Leaky(), max_length=16)
    assert "naming hidden tokens: it sees later tokens" in result["objective_reason"] and result["task"] == "masked"
    assert "will not continue texts" in caplog.text and result["val_bits_per_byte_history"] == []
    assert 0 <= result["val_measures_history"][-1]["accuracy"] <= 1
    with pytest.raises(ConfigError, match="names hidden tokens and continues no text"):
        generate(result, "green ")


def test_a_spoilt_start_is_mended_and_the_reason_told(tmp_path):
    assert "re-drew token.weight" in run(tmp_path, make_tiny(width=128), max_steps=1)["initialisation_reason"]


def test_a_finished_run_of_that_name_is_returned_without_training(tmp_path):
    first = run(tmp_path)
    manifest = (tmp_path / "r" / "manifest.json").read_bytes()
    again = run(tmp_path)
    assert again["step_loss_history"] == first["step_loss_history"] and again["resumed_from_step"] == 6
    for name, value in first.model.state_dict().items():
        assert again.model.state_dict()[name].equal(value)
    assert (tmp_path / "r" / "manifest.json").read_bytes() == manifest
    assert "continued from step 6" in again.summary() and "continued from step 6" in again._repr_html_()
    assert "continued" not in first.summary()
    in_place = run(tmp_path, first.model)  # the cell is run again: the model in memory is the trained one
    assert in_place["step_loss_history"] == first["step_loss_history"]


def test_resume_never_begins_beside_it(tmp_path):
    run(tmp_path)
    assert run(tmp_path, resume="never")["run_name"] == "r-2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 5e-3}, "learning_rate: 0.01 → 0.005"),
        ({"max_steps": 8}, "max_steps: 6 → 8"),
        ({"data": (TEXT + "more text here\n" * 30,)}, "text, tokenizer or block length differ"),
        ({"model": make_tiny(width=32)}, "the model has other parameters"),
        ({"model": make_tiny(seed=5)}, "other weights.*resume='continue' to go on from the run's own weights"),
    ],
)
def test_a_run_that_was_begun_differently_does_not_continue(tmp_path, change, message):
    run(tmp_path)
    with pytest.raises(TrainingError, match=rf"(?s)begun differently.*{message}.*resume='never'"):
        run(tmp_path, **change)


def test_settings_without_effect_on_the_weights_may_change(tmp_path):
    run(tmp_path)
    assert run(tmp_path, notes="later", save_every_n_steps=3)["run_name"] == "r"


class Gone(Exception):
    pass


def interrupted(tmp_path, model=None, **settings):
    def stop(done, total, note):
        if done >= 3:
            raise Gone

    config = {**SETTINGS, "save_every_n_steps": 1, "run_name": None, **settings}
    with mock.patch("utils.training.engine.loop.TERMINAL_INTERVAL", 0.0), pytest.raises(Gone):
        train(model or make_tiny(), [TEXT], config, workspace=tmp_path, progress=stop)
    return config


def test_without_a_name_the_unfinished_run_continues_and_a_finished_one_does_not(tmp_path):
    config = interrupted(tmp_path)
    second = train(make_tiny(), [TEXT], config, workspace=tmp_path, progress=False)
    assert second["resumed_from_step"] >= 2
    assert f"continued from step {second['resumed_from_step']}" in second.summary()
    third = train(make_tiny(), [TEXT], config, workspace=tmp_path, progress=False)
    assert third["resumed_from_step"] == 0 and third["run_name"] != second["run_name"]
    assert third["step_loss_history"] == second["step_loss_history"]


class Mended(TinyTransformer):
    """The same parameters, another forward."""

    def forward(self, input_ids):
        return 0.5 * super().forward(input_ids)


@pytest.mark.parametrize("resume", ["auto", "continue"])
def test_without_a_name_another_model_of_the_same_shapes_begins_a_new_run(tmp_path, resume):
    config = interrupted(tmp_path)
    torch.manual_seed(0)
    mended = adapt(Mended(), {"vocab_size": 300, "max_seq_len": 16})
    result = train(mended, [TEXT], config, workspace=tmp_path, progress=False, resume=resume)
    assert result["resumed_from_step"] == 0
    (first,) = (p for p in tmp_path.iterdir() if p.name.startswith("run_") and p.name != result["run_name"])
    with pytest.raises(TrainingError, match="the model's code differs"):
        train(mended, [TEXT], {**config, "run_name": first.name}, workspace=tmp_path, progress=False)


def test_without_a_name_other_start_weights_begin_a_new_run_and_the_way_back_is_told(tmp_path, caplog):
    config = interrupted(tmp_path)
    (first,) = (p.name for p in tmp_path.iterdir() if p.name.startswith("run_"))
    result = train(make_tiny(seed=3), [TEXT], config, workspace=tmp_path, progress=False)
    assert result["resumed_from_step"] == 0
    assert f"run_name='{first}', resume='continue'" in caplog.text
    named = {**config, "run_name": first}
    assert train(make_tiny(seed=3), [TEXT], named, workspace=tmp_path, progress=False, resume="continue")[
        "resumed_from_step"
    ]


def test_an_interrupted_model_in_memory_continues(tmp_path):
    """Its weights are no longer those it started from: the cell was interrupted and is run again."""
    model = make_tiny()
    config = interrupted(tmp_path, model=model)
    assert not model.model.token.weight.equal(make_tiny().model.token.weight)
    result = train(model, [TEXT], config, workspace=tmp_path, progress=False)
    assert result["resumed_from_step"] >= 2


def test_a_run_that_is_being_trained_is_left_alone(tmp_path):
    config = interrupted(tmp_path)
    (first,) = (p for p in tmp_path.iterdir() if p.name.startswith("run_"))
    lock = FolderLock.acquire(first)
    with pytest.raises(TrainingError, match="being trained right now"):
        train(make_tiny(), [TEXT], {**config, "run_name": first.name}, workspace=tmp_path, progress=False)
    other = train(make_tiny(), [TEXT], config, workspace=tmp_path, progress=False)
    assert other["resumed_from_step"] == 0 and other["run_name"] != first.name
    lock.release()
    assert train(make_tiny(), [TEXT], config, workspace=tmp_path, progress=False)["run_name"] == first.name


def test_the_folder_is_held_while_training_and_free_afterwards(tmp_path):
    held = []
    train(
        make_tiny(),
        [TEXT],
        SETTINGS,
        workspace=tmp_path,
        progress=lambda *report: held.append(FolderLock.acquire(tmp_path / "r")),
    )
    assert held and all(lock is None for lock in held)
    assert FolderLock.acquire(tmp_path / "r") is not None


def test_the_summary_says_what_the_first_figure_is(tmp_path):
    result = run(tmp_path)
    assert "before training →" in result.summary() and "untrained" not in result.summary()


def test_a_model_of_another_task_is_never_trained_on_the_next_token(tmp_path):
    tiny = make_tiny()
    other = AdaptedModel(tiny.model, tiny.config, contract=dataclasses.replace(tiny.contract, task="classification"))
    with pytest.raises(
        TrainingError, match=r"objective='next_token' is not for TinyTransformer, a 'classification' model"
    ):
        run(tmp_path, other, data=([("a", 1), ("b", 0)] * 5)[:10], objective="next_token")
    assert not (tmp_path / "r").exists()


def test_without_a_name_other_settings_begin_a_new_run(tmp_path):
    interrupted(tmp_path)
    result = train(
        make_tiny(), [TEXT], {**SETTINGS, "run_name": None, "learning_rate": 3e-3}, workspace=tmp_path, progress=False
    )
    assert result["resumed_from_step"] == 0


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.txt").write_text("precious")
    with pytest.raises(TrainingError, match="is no run of this package"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"data": "python-doc"}, DataError, "Did you mean 'python-docs'"),
        ({"data": ["x"]}, DataError, "too few to split"),
        ({"data": ["", " "]}, DataError, "empty|no text|blank"),
        ({"config": {"batchsize": 3}}, ConfigError, "did you mean 'batch_size'"),
        ({"config": TrainingConfig(epochs=0)}, ConfigError, "epochs=0"),
        ({"config": 3}, ConfigError, "got int"),
        ({"progress": "yes"}, ConfigError, "progress= takes"),
        ({"resume": "always"}, ConfigError, "Known: 'auto'"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        train(make_tiny(), **{"data": [TEXT], "workspace": tmp_path, "progress": False, **arguments})


@pytest.mark.parametrize("as_list", [False, True])
def test_token_ids_are_trained_on_as_they_are(tmp_path, as_list):
    rows = torch.randint(0, 50, (12, 16), generator=torch.Generator().manual_seed(0))
    rows = torch.cat([rows, rows[:2]])  # equal rows lie on one side only
    result = run(tmp_path, data=[*rows] if as_list else rows, validation_fraction=0.25)
    assert len(result["loss_history"]) and all(map(math.isfinite, result["val_loss_history"]))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([torch.arange(4), torch.arange(5)], r"tensors \(T,\) of one length; got \(4,\), \(5,\)"),
        ([torch.arange(4), "text"], "of one length; got"),
        (torch.rand(4, 8), r"whole numbers \(N, T\); got torch.float32"),
        (torch.zeros(4, 8, dtype=torch.long), "two different rows"),
    ],
)
def test_token_ids_of_another_shape_are_refused(tmp_path, data, words):
    with pytest.raises(DataError, match=words):
        run(tmp_path, data=data)


def test_a_tokenizer_that_alters_text_is_taken_and_said_so(tmp_path, caplog):
    lower = FastBPETrainer.train_on_dataset([TEXT], 300)
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    result = train(make_tiny(), [TEXT], SETTINGS, tokenizer=lower, workspace=tmp_path, progress=False)
    assert result["loss_history"] and "does not give every text back" in caplog.text


def test_a_tokenizer_beyond_the_rows_is_refused(tmp_path):
    large = FastBPETrainer.train_on_dataset([TEXT], 310)
    with pytest.raises(TokenizerError, match="outside the model's 300 rows"):
        train(make_tiny(), [TEXT], tokenizer=large, workspace=tmp_path, progress=False)


def test_a_vocabulary_below_the_bytes_is_met_by_characters(tmp_path):
    result = run(tmp_path, make_tiny(vocab_size=100))
    assert result["tokenizer_reason"].startswith("character: ") and len(result.tokenizer) <= 100
    assert result["val_bits_per_byte_history"][-1] < result["bits_per_byte_untrained"]


def test_a_text_shorter_than_a_block_is_trained_on_and_said_so(tmp_path, caplog):
    result = run(tmp_path, data=("short, all",), max_steps=1, validation_fraction=0.4)
    assert result["block_length"] == len("short,") + 1 and "less than one block of 16" in caplog.text


def test_without_lightning_the_install_command_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("utils._extras.is_installed", lambda name: name != "pytorch_lightning")
    with pytest.raises(MissingPackageError, match="Training needs the package 'pytorch_lightning'"):
        run(tmp_path)


def test_progress_true_opens_one_display(tmp_path, monkeypatch, capsys):
    opened = []
    original = Progress.__init__
    monkeypatch.setattr(Progress, "__init__", lambda self, *a, **k: opened.append(a) or original(self, *a, **k))
    train(make_tiny(), [TEXT], {**SETTINGS, "max_steps": 2}, workspace=tmp_path)
    assert len(opened) == 1
    assert "2/2 steps" in capsys.readouterr().err
