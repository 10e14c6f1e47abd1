"""`python -m utils train`: flags for every setting, errors before anything is fetched, and a run from end to end."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch  # noqa: F401 - imported in a test first, it would be broken by the guard that puts modules back

import utils
from utils.__main__ import main
from utils.testing import TINY_SOURCES
from utils.training.presets import PRESETS
from utils.training.training_config import TrainingConfig, setting_docs
from utils.ui.train_command import flag

TEXT = "".join(f"{n} green bottles hang on wall number {n % 7}, and one falls down.\n" for n in range(160))
MODEL = TINY_SOURCES["tensor"]["model.py"].replace("vocab_size=50", "vocab_size=300")


def printed_config(capsys: pytest.CaptureFixture[str], *arguments: str) -> TrainingConfig:
    assert main(["train", "x", *arguments, "--print-config"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values.pop("format_version") == 2
    return TrainingConfig.from_dict(values)


def test_every_setting_has_a_flag_with_its_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert left.value.code == 0
    for name, text in setting_docs().items():
        assert f"{flag(name)} " in shown.replace(",", " ") and text.split()[0] in shown
    assert "(default: 0.0005)" in shown and "(default: none)" in shown and "(default: off)" in shown


OTHER = {  # a value for each setting that is not its default, as it is typed; those of --preset-like use stand for themselves
    "learning_rate": "1e-3", "batch_size": "4", "epochs": "3", "max_steps": "70", "max_length": "32", "stream_data": True, "weight_decay": "0",
    "learning_rate_schedule": "linear", "final_learning_rate_ratio": "0.5", "warmup_ratio": "0.2", "gradient_clip_norm": "2",
    "gradient_accumulation_steps": "2", "fit_batch_to_memory": False, "label_smoothing": "0.1", "ema_decay": "0.99",
    "early_stopping_patience": "2", "early_stopping_min_delta": "0.01", "gradient_checkpointing": True, "compile_mode": "default",
    "precision": "32-true", "random_seed": "7", "deterministic": True, "validation_fraction": "0.2", "val_every_n_steps": "10",
    "num_workers": "2", "strategy": "ddp", "devices": "2", "save_every_n_epochs": "2", "save_every_n_steps": "5",
    "save_every_n_minutes": "1.5", "keep_checkpoints": "3", "checkpoint_dir": "elsewhere", "mirror_dir": "/mnt/drive/x",
    "run_name": "r", "notes": "100 % ä", "wandb_project": "p", "tensorboard": True, "vocab_size": "300", "d_model": "8",
    "num_layers": "1", "initialisation": "keep", "objective": "masked", "export_bundle": True, "export_formats": "onnx,pt2",
}  # fmt: skip


def test_flags_set_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    words: list[str] = []
    for name, value in OTHER.items():
        words += [flag(name), value] if isinstance(value, str) else [flag(name) if value else flag(f"no_{name}")]
    config, defaults = printed_config(capsys, *words), TrainingConfig()
    assert OTHER.keys() == {field.name for field in dataclasses.fields(TrainingConfig)}
    assert [name for name in OTHER if getattr(config, name) == getattr(defaults, name)] == []
    assert config.learning_rate == 1e-3 and config.export_formats == ["onnx", "pt2"] and config.max_steps == 70


def test_flags_override_a_file_and_a_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = TrainingConfig(batch_size=2, notes="kept", max_steps=5).save(tmp_path / "run.json")
    config = printed_config(capsys, "--config", str(file), "--batch-size", "3", "--max-steps", "none")
    assert config == TrainingConfig(batch_size=3, notes="kept")
    (tmp_path / "run.yaml").write_text("batch_size: 2\nlearning_rate: 5e-5\nmax_steps: 5\n", "utf-8")
    config = printed_config(capsys, "--config", str(tmp_path / "run.yaml"), "--batch-size", "3")
    assert config == TrainingConfig(batch_size=3, learning_rate=5e-5, max_steps=5)
    for name in PRESETS:
        assert printed_config(capsys, "--preset", name, "--notes", "x") == TrainingConfig.preset(name, notes="x")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--learning-rate", "fast", "--epochs", "0"], ["2 problems", "learning_rate='fast'", "epochs=0"]),
        (["--precision", "fp16", "--devices", "2"], ["did you mean '16-mixed'", "devices=2 needs strategy"]),
        (["--config", "missing.json"], ["There is no file missing.json"]),
        (["--preset", "fast"], ["did you mean 'fast_dev'"]),
        (["--strategy", "ddp", "--devices", "2"], ["torchrun"]),
        (["--notes", "hf_" + "aB3" * 12], ["looks like a Hugging Face token"]),
        (["--export-bundle", "--export-formats", "onxn"], ["did you mean 'onnx'"]),
        (["--resume", "auto"], ["There is no file or folder"]),
    ],
)
def test_settings_that_do_not_hold_end_with_2(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "nowhere/model.py", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.out == ""
    assert [word for word in words if word not in captured.err] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lr", "1"], "--lr: did you mean --learning-rate?"),
        (["--epoch=3", "--bs", "4"], "--bs: did you mean --batch-size?"),
        (["--config", "a.json", "--preset", "large"], "not allowed with argument"),
        (["--resume", "never-ever"], "invalid choice"),
    ],
)
def test_flags_that_do_not_exist_end_with_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", "x", *arguments])
    assert left.value.code == 2 and words in capsys.readouterr().err


def test_train_without_a_model_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert "train needs a model" in capsys.readouterr().err


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A model, a text and settings; what is typed to train it in a few steps."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL, "utf-8")
    Path("config.json").write_text('{"vocab_size": 300, "d_model": 8, "max_seq_len": 16}', "utf-8")
    Path("notes.txt").write_text(TEXT, "utf-8")
    TrainingConfig(max_steps=4, batch_size=4, run_name="r").save("run.json")
    return ["train", "model.py", "--data", "notes.txt", "--config", "run.json"]


def test_train_trains_and_goes_on(project: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*project, "--workspace", "w", "--learning-rate", "1e-3"]) == 0
    captured = capsys.readouterr()
    assert "after 4 steps" in captured.out and "TinyModel: " in captured.err
    assert TrainingConfig.load("w/r/config.json").learning_rate == 1e-3 and Path("w/r/manifest.json").is_file()
    assert main([*project, "--workspace", "w"]) == 2  # the same name, another learning rate
    assert "learning_rate: 0.001 → 0.0005" in capsys.readouterr().err
    assert main([*project, "--workspace", "w", "--resume", "never", "--tokenizer", "w/r/tokenizer"]) == 0
    assert Path("w/r-2/manifest.json").is_file()


def test_train_exports_where_that_is_asked_for(project: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*project, "--export-bundle"]) == 0
    assert "Exported to" in capsys.readouterr().out
    assert list(Path("runs/r/export").glob("*.onnx"))


@pytest.mark.slow
def test_train_needs_no_terminal_and_floods_no_log(project: list[str]) -> None:
    environ = {**os.environ, "PYTHONPATH": str(Path(utils.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "utils", *project],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environ, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) < 15, done.stderr
    assert "GPU available" not in done.stderr and "Warning" not in done.stderr and "\r" not in done.stderr


def test_an_interrupted_training_ends_with_130_and_says_how_to_go_on(
    project: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(utils, "train", interrupted)
    assert main(project) == 130
    assert "goes on from the newest checkpoint" in capsys.readouterr().err
