"""Settings: what is refused and in which words, files, comparison, builder, presets, and that each setting is read."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import utils
import utils.training.training_config as module
from utils._files import write_json
from utils.errors import ConfigError, UnknownSettingError
from utils.training.config_versions import FORMAT_VERSION
from utils.training.presets import PRESETS
from utils.training.training_config import GROUPS, TrainingConfig, TrainingConfigBuilder, compare_configs, setting_docs

WRONG = [
    ("learning_rate", 0), ("learning_rate", -1e-3), ("learning_rate", 11), ("learning_rate", float("nan")), ("learning_rate", "fast"),
    ("learning_rate", True), ("batch_size", 0), ("batch_size", 2.5), ("batch_size", True), ("batch_size", None), ("epochs", 0), ("epochs", "3"),
    ("max_steps", 0), ("max_steps", -1), ("max_length", 1), ("warmup_ratio", -0.1), ("warmup_ratio", 1.1), ("weight_decay", -1),
    ("gradient_clip_norm", -1), ("gradient_clip_norm", float("inf")), ("gradient_accumulation_steps", 0), ("precision", "bf16"),
    ("precision", 16), ("random_seed", -1), ("random_seed", 2**32), ("deterministic", 1), ("deterministic", "yes"),
    ("validation_fraction", 0), ("validation_fraction", 1), ("val_every_n_steps", 0), ("save_every_n_epochs", 0), ("save_every_n_steps", 0),
    ("save_every_n_minutes", -1), ("keep_checkpoints", 1), ("label_smoothing", 1), ("ema_decay", 1.0),
    ("batch_size", 10**12), ("num_workers", 9999), ("ema_decay", 0), ("early_stopping_patience", 0), ("num_workers", -1), ("devices", 0), ("strategy", "deepspeed"), ("compile_mode", "fast"),
    ("learning_rate_schedule", "step"), ("final_learning_rate_ratio", 2), ("early_stopping_min_delta", -1), ("vocab_size", 0), ("d_model", 1.5),
    ("tensorboard", "yes"), ("wandb_project", ""), ("wandb_project", "a/b"), ("wandb_project", "x" * 129), ("mirror_dir", ""),
    ("checkpoint_dir", "gs://bucket/runs"), ("checkpoint_dir", "a\0b"), ("export_bundle", "onnx"), ("export_formats", []), ("export_formats", "onnx"),
    ("export_formats", ["../x"]), ("run_name", ""), ("run_name", "../up"), ("run_name", "a/b"), ("run_name", ".hidden"),
    ("run_name", "x" * 121), ("run_name", "a\0b"), ("initialisation", "xavier"), ("objective", "guess"), ("notes", None), ("checkpoint_dir", 3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda item: str(item)[:20])
def test_each_wrong_setting_is_named(name, value):
    problems = dataclasses.replace(TrainingConfig(), **{name: value}).problems()
    assert (
        len(problems) == 1
        and problems[0].startswith(f"{name}=")
        and ("expected" in problems[0] or "Known" in problems[0])
    )


def test_the_defaults_hold():
    assert TrainingConfig().problems() == []
    TrainingConfig().validate()


def test_all_problems_are_raised_together():
    with pytest.raises(ConfigError, match=r"(?s)3 problems.*batch_size=0.*epochs=-1.*did you mean 'bf16-mixed'"):
        TrainingConfig(batch_size=0, epochs=-1, precision="bf16-mixd").validate()


def test_unknown_names_get_the_nearest_one_together_with_wrong_values():
    with pytest.raises(
        ConfigError, match=r"(?s)2 problems.*'batchsize' is no setting; did you mean 'batch_size'.*epochs=0"
    ):
        TrainingConfig.from_dict({"batchsize": 4, "epochs": 0})


def test_save_and_load_give_the_same_settings(tmp_path):
    config = TrainingConfig(learning_rate=1e-3, max_steps=7, notes="ä <b>", run_name="r")
    assert TrainingConfig.load(config.save(tmp_path / "c.json")) == config
    assert TrainingConfig.from_dict(config.to_dict()) == config


def test_a_name_is_made_from_the_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = TrainingConfig().save()
    assert re.fullmatch(r"config_\d{8}_\d{6}\.json", path.name) and path.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "holds a list"),
        ('{"format_version": 99}', "version 99"),
        ('{"epoch": 1}', "did you mean 'epochs'"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, text, message):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        TrainingConfig.load(path)
    with pytest.raises(ConfigError, match="no file"):
        TrainingConfig.load(tmp_path / "missing.json")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_json(tmp_path / "c.json", {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]


DOCUMENTED_CALL = {
    "learning_rate": 5e-5, "batch_size": 4, "epochs": 10, "vocab_size": 50257, "d_model": 768, "num_layers": 12, "random_seed": 42,
    "deterministic": False, "wandb_project": "p", "run_name": "r", "notes": "n", "checkpoint_dir": "checkpoints", "save_every_n_epochs": 1,
    "warmup_ratio": 0.1, "weight_decay": 0.01, "gradient_accumulation_steps": 4, "compile_mode": "default", "export_bundle": True,
    "export_formats": ["onnx"],
}  # fmt: skip
KEY = "0123456789abcdef" * 2 + "01234567"  # 40 hex digits
HF, GH = "hf_" + "aB3" * 12, "ghp_" + "aB3" * 12

INVALID = [  # (settings, words of each problem): exactly these problems, all of them in one error
    ({"batch_size": 0, "epochs": 0}, ["batch_size=0: expected a whole number", "epochs=0"]),
    ({"learning_rate": "5e-5", "batch_size": "8"}, ["learning_rate='5e-5': expected float, got str", "batch_size='8'"]),
    ({"learning_rate": -1, "weight_decay": -1, "gradient_clip_norm": -1}, ["learning_rate=-1", "weight_decay=-1", "clip_norm=-1"]),
    ({"learning_rat": 1e-3}, ["'learning_rat' is no setting; did you mean 'learning_rate'?"]),
    ({"lr": 1e-3, "bs": 4}, ["did you mean 'learning_rate'?", "did you mean 'batch_size'?"]),
    ({"LearningRate": 1e-3, "batchsize": 0, "epochs": 0}, ["'learning_rate'?", "'batch_size'?", "epochs=0"]),
    ({"batch-size": 4, "max-steps": 3}, ["did you mean 'batch_size'?", "did you mean 'max_steps'?"]),
    ({"num_train_epochs": 3, "per_device_train_batch_size": 8}, ["'epochs'?", "'batch_size'?"]),
    ({"lr_scheduler_type": "linear", "warmup_steps": 100}, ["'learning_rate_schedule'?", "'warmup_ratio'?"]),
    ({"max_grad_norm": 1.0, "seed": 1, "fp16": True}, ["'gradient_clip_norm'?", "'random_seed'?", "'precision'?"]),
    ({"accumulate_grad_batches": 4, "gradient_clip_val": 1}, ["'gradient_accumulation_steps'?", "'gradient_clip_norm'?"]),
    ({"output_dir": "x", "save_total_limit": 3}, ["'checkpoint_dir'?", "'keep_checkpoints'?"]),
    ({"experiment_name": "x", "project": "y"}, ["'run_name'?", "'wandb_project'?"]),
    ({"patience": 3, "ema": 0.9, "compile": True}, ["'early_stopping_patience'?", "'ema_decay'?", "'compile_mode'?"]),
    ({"zzz": 1, "qqqq": 2}, ["'zzz' is no setting.", "'qqqq' is no setting."]),
    ({"wandb_api_key": KEY}, ["'wandb_api_key' is no setting: a config never holds a secret; set WANDB_API_KEY in the environment"]),
    ({"hf_token": HF, "batch_size": 0}, ["set HF_TOKEN in the environment", "batch_size=0"]),
    ({"api_key": "x", "password": "y", "client_secret": "z"}, ["'api_key'", "'password'", "'client_secret'"]),
    ({"notes": f"my key {KEY}"}, ["looks like a Weights & Biases key"]),
    ({"notes": HF, "run_name": GH}, ["looks like a Hugging Face token", "looks like a GitHub token"]),
    ({"wandb_project": KEY, "mirror_dir": "https://user:pass@host/x"}, ["wandb_project='0123…'", "a URL with credentials"]),
    ({"notes": "WANDB_API_KEY=abcdefghij0123456789", "epochs": 0}, ["looks like a key or token", "epochs=0"]),
    ({"notes": "password: hunter22", "checkpoint_dir": "s3://u:pw@b"}, ["a password", "a URL with credentials"]),
    ({"precision": "fp16", "compile_mode": "none"}, ["did you mean '16-mixed'?", "did you mean 'off'?"]),
    ({"precision": "bf16", "objective": "mlm"}, ["did you mean 'bf16-mixed'?", "did you mean 'masked'?"]),
    ({"learning_rate_schedule": "cosin", "strategy": "fdsp"}, ["did you mean 'cosine'?", "did you mean 'fsdp'?"]),
    ({"compile_mode": "reduce_overhead", "objective": "next-token"}, ["'reduce-overhead'?", "'next_token'?"]),
    ({"initialisation": "Auto", "precision": "BF16-mixed"}, ["did you mean 'auto'?", "did you mean 'bf16-mixed'?"]),
    ({"strategy": "ddp"}, ["strategy='ddp' spreads training over several devices"]),
    ({"devices": 2, "epochs": 0}, ["devices=2 needs strategy=", "epochs=0"]),
    ({"strategy": "fsdp", "devices": 4, "ema_decay": 0.999}, ["never holds in one place"]),
    ({"strategy": "fsdp", "devices": 4, "compile_mode": "default"}, ["trains a copy of it in shards"]),
    ({"deterministic": True, "compile_mode": "max-autotune"}, ["deterministic=True cannot hold"]),
    ({"warmup_ratio": 1.0}, ["leaves no step for the 'cosine' fall"]),
    ({"warmup_ratio": 1, "learning_rate_schedule": "linear", "batch_size": 0}, ["the 'linear' fall", "batch_size=0"]),
    ({"warmup_ratio": 1.5, "learning_rate_schedule": "linear"}, ["a share from 0 to 1"]),
    ({"max_steps": 0, "val_every_n_steps": 20}, ["max_steps=0"]),
    ({"early_stopping_min_delta": 0.1}, ["does nothing without early_stopping_patience"]),
    ({"early_stopping_min_delta": -0.1, "early_stopping_patience": 0}, ["min_delta=-0.1", "patience=0"]),
    ({"mirror_dir": "runs"}, ["mirror_dir='runs' is checkpoint_dir='runs'"]),
    ({"mirror_dir": "runs/mirror"}, ["lies inside checkpoint_dir"]),
    ({"mirror_dir": ".", "keep_checkpoints": 1}, ["holds checkpoint_dir", "keep_checkpoints=1"]),
    ({"run_name": "../../etc", "keep_checkpoints": 0, "save_every_n_minutes": -1}, ["run_name=", "keep_checkpoints=0", "minutes=-1"]),
    ({"epochs": None, "batch_size": None, "notes": None}, ["epochs=None: expected int, got NoneType", "batch_size=None", "notes=None"]),
    ({"deterministic": 1, "tensorboard": 0, "fit_batch_to_memory": "no"}, ["deterministic=1: expected bool", "tensorboard=0", "memory='no'"]),
    ({"learning_rate": float("nan"), "ema_decay": float("inf")}, ["learning_rate=nan: expected a finite", "ema_decay=inf"]),
    ({"export_formats": ["onnx", 3], "export_bundle": None}, ["expected a list of str", "export_bundle=None"]),
    ({"vocab_size": 0, "d_model": -1, "num_layers": 0}, ["vocab_size=0", "d_model=-1", "num_layers=0"]),
    ({"label_smoothing": 1.0, "validation_fraction": 0.0, "num_workers": -1}, ["label_smoothing=1.0", "fraction=0.0", "workers=-1"]),
    ({"random_seed": -5, "devices": 0, "strategy": "dp"}, ["random_seed=-5", "devices=0", "did you mean 'ddp'?"]),
    ({"gradient_accumulation_steps": 0.5, "gradient_checkpointing": "on"}, ["steps=0.5: expected int", "checkpointing='on'"]),
    ({"d_model": True, "epochs": True, "warmup_ratio": True}, ["d_model=True", "epochs=True", "warmup_ratio=True"]),
    ({"checkpoint_dir": "", "mirror_dir": " ", "wandb_project": "a#b"}, ["checkpoint_dir=''", "mirror_dir=' '", "wandb_project='a#b'"]),
    ({"n_layers": 12, "hidden_size": 768, "vocab": 5}, ["'num_layers'?", "'d_model'?", "'vocab' is no setting; did you mean 'vocab_size'?"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "words"), INVALID, ids=lambda item: ",".join(item)[:60] if isinstance(item, dict) else ""
)
def test_invalid_settings_are_reported_all_at_once(settings, words):
    with pytest.raises(ConfigError) as caught:
        TrainingConfig.from_dict(settings)
    head, *complaints = str(caught.value).splitlines()
    assert head.startswith(f"{len(words)} problem") and len(complaints) == len(words), str(caught.value)
    assert [word for word in words if not any(word in line for line in complaints)] == []
    assert not any(secret in str(caught.value) for secret in (KEY, HF, GH, "hunter22", "pass@"))


def test_the_table_of_invalid_settings_is_long_enough():
    assert len(INVALID) >= 50


def test_the_constructor_names_what_was_meant_too():
    with pytest.raises(TypeError, match=r"(?s)2 problems.*'lr' is no setting; did you mean 'learning_rate'.*epochs=0"):
        TrainingConfig(lr=1e-3, epochs=0)
    with pytest.raises(UnknownSettingError, match="'batchsize'"):
        dataclasses.replace(TrainingConfig(), batchsize=3)


HARMLESS = [
    {"notes": "commit 0123456789ab, tokens: 100000000, see https://github.com/a/b?x=1 and git@github.com:a/b"},
    {"notes": "pad token: <|endoftext|>", "run_name": "sk-learn-digits-baseline-experiment"},
    {"notes": "ssh://git@github.com/a/b.git", "run_name": "hf_gpt2_small_from_scratch_again"},
    {"max_steps": 10, "val_every_n_steps": 20, "save_every_n_steps": 20},  # the end is validated and saved anyway
    {"early_stopping_patience": 3, "epochs": 4},
    {"early_stopping_patience": 50, "max_steps": 100},  # how many epochs that is depends on the data
    {"warmup_ratio": 1.0, "learning_rate_schedule": "constant"},
    {"mirror_dir": "/content/drive/MyDrive/runs", "checkpoint_dir": "/content/runs"},
    {"strategy": "ddp", "devices": 2, "ema_decay": 0.999},
    DOCUMENTED_CALL,
]


@pytest.mark.parametrize("settings", HARMLESS, ids=lambda item: ",".join(item)[:40])
def test_what_can_be_meant_is_not_complained_about(settings):
    assert TrainingConfig(**settings).problems() == []


@pytest.mark.parametrize("name", ["max_token", "pad_token", "tokens_per_step", "keys", "token_count"])
def test_names_about_text_are_not_taken_for_secrets(name):
    with pytest.raises(ConfigError, match="no setting") as caught:
        TrainingConfig.from_dict({name: 1})
    assert "secret" not in str(caught.value)


# ---- files ---------------------------------------------------------------------------------------------------------------
def test_the_documented_call_and_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrainingConfig(**DOCUMENTED_CALL)
    config.validate()
    path = config.save()
    assert TrainingConfig.load(path) == config and config.to_dict()["export_formats"] == ["onnx"]
    assert json.loads(path.read_text())["format_version"] == FORMAT_VERSION
    assert list(tmp_path.iterdir()) == [path.resolve()]


def test_saves_of_one_second_do_not_overwrite_each_other(tmp_path, monkeypatch):
    class Still(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.datetime, "datetime", Still)
    paths = [TrainingConfig(batch_size=size).save() for size in (1, 2, 3)]
    assert [path.name for path in paths] == [f"config_20260102_030405{end}.json" for end in ("", "-2", "-3")]
    assert [TrainingConfig.load(path).batch_size for path in paths] == [1, 2, 3]


def test_a_failed_save_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="Hugging Face token"):
        TrainingConfig(notes=HF).save()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        TrainingConfig().save()
    assert list(tmp_path.iterdir()) == []


VERSION_1 = {  # every setting that there was
    "format_version": 1, "learning_rate": 0.001, "batch_size": 4, "epochs": 2, "max_steps": None, "max_length": 64, "warmup_ratio": 0.1,
    "weight_decay": 0.01, "gradient_clip_norm": 1.0, "gradient_accumulation_steps": 2, "precision": "auto", "random_seed": 1,
    "deterministic": False, "validation_fraction": 0.1, "val_every_n_steps": None, "save_every_n_epochs": 1, "save_every_n_steps": None,
    "save_every_n_minutes": 10.0, "keep_checkpoints": 2, "checkpoint_dir": "runs", "run_name": None, "notes": "old",
    "initialisation": "auto", "objective": "auto",
}  # fmt: skip


def test_files_of_version_1_are_read(tmp_path):
    config = TrainingConfig.load(write_json(tmp_path / "old.json", VERSION_1))
    expected = {name: value for name, value in VERSION_1.items() if name != "format_version"}
    assert config == TrainingConfig(**expected, fit_batch_to_memory=False)  # version 1 never changed the batch size


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, "2", None, True])
def test_versions_that_nobody_wrote_are_refused(tmp_path, version):
    with pytest.raises(ConfigError, match="format version"):
        TrainingConfig.load(write_json(tmp_path / "c.json", {"format_version": version}))


# ---- comparison, builder, presets ----------------------------------------------------------------------------------------
def test_comparison():
    a, b = TrainingConfig(learning_rate=5e-5, notes="<b>"), TrainingConfig(learning_rate=1e-4, notes="")
    found = compare_configs(a, b)
    assert found == {"learning_rate": (5e-5, 1e-4), "notes": ("<b>", "")}
    assert str(found).splitlines() == ["learning_rate: 5e-05 → 0.0001", "notes: '<b>' → ''"]
    assert "&lt;b&gt;" in found._repr_html_() and "<b>" not in found._repr_html_()
    assert compare_configs(a, a.to_dict()) == {} and str(compare_configs(a, a)) == "no setting differs"


def test_the_builder_gives_what_the_constructor_gives():
    base = TrainingConfig(notes="kept", batch_size=2)
    built = (
        TrainingConfigBuilder.from_config(base)
        .with_training(learning_rate=1e-4, batch_size=8, weight_decay=0.1)
        .build()
    )
    assert built == TrainingConfig(notes="kept", learning_rate=1e-4, batch_size=8, weight_decay=0.1)
    assert base == TrainingConfig(notes="kept", batch_size=2)


def test_each_setting_is_taken_by_exactly_one_group_of_the_builder():
    names = [field.name for field in dataclasses.fields(TrainingConfig)]
    assert sorted(name for group in GROUPS.values() for name in group) == sorted(names)
    for group, members in GROUPS.items():
        values = {name: getattr(TrainingConfig(), name) for name in members}
        assert getattr(TrainingConfigBuilder(), f"with_{group}")(**values).build() == TrainingConfig()


def test_the_builder_says_where_a_setting_belongs():
    builder = TrainingConfigBuilder()
    with pytest.raises(
        ConfigError, match=r"(?s)2 problems.*'precision' belongs to with_hardware\(\).*did you mean 'learning_rate'"
    ):
        builder.with_training(precision="auto", learning_rat=1.0)
    assert builder.build() == TrainingConfig()


def test_the_builder_checks_all_groups_together():
    builder = (
        TrainingConfigBuilder().with_training(epochs=0).with_hardware(devices=2).with_checkpoints(keep_checkpoints=1)
    )
    with pytest.raises(ConfigError, match=r"(?s)3 problems.*epochs=0.*keep_checkpoints=1.*devices=2"):
        builder.build()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold(name):
    config = TrainingConfig.preset(name.upper())
    assert config == TrainingConfigBuilder.from_preset(name).build()
    assert compare_configs(TrainingConfig(), config), "it differs from the defaults"
    defaults = TrainingConfig().to_dict()
    said = PRESETS[name].settings
    assert [key for key in said if said[key] == defaults[key]] == [], "says what the default says anyway"


def test_an_unknown_preset_and_changes_to_one():
    with pytest.raises(ConfigError, match="did you mean 'fast_dev'"):
        TrainingConfig.preset("fastdev")
    with pytest.raises(ConfigError, match="did you mean 'batch_size'"):
        TrainingConfig.preset("fast_dev", batchsize=2)
    assert TrainingConfig.preset("large", batch_size=1).batch_size == 1


# ---- every setting is documented, and read -------------------------------------------------------------------------------
NOT_READ_YET: set[str] = set()
"""Settings whose feature is still to come; whoever builds one takes it off."""
ONLY_COMPARED = {"vocab_size", "d_model", "num_layers"}  # by model_sizes, which takes them by name


def test_every_setting_is_documented():
    docs = setting_docs()
    assert list(docs) == [field.name for field in dataclasses.fields(TrainingConfig)]
    assert [name for name, text in docs.items() if len(text) < 20 or not text.endswith(".")] == []


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TrainingConfig)])
def test_every_setting_is_read_somewhere(name):
    root = Path(utils.__file__).parent
    own = {"training_config.py", "setting_problems.py"}
    readers = "\n".join(path.read_text("utf-8") for path in root.glob("**/*.py") if path.name not in own)
    used = re.search(rf"(settings|config)\.{name}\b", readers) is not None or name in ONLY_COMPARED or name == "notes"
    assert used is (name not in NOT_READ_YET), f"nothing reads {name}" if not used else f"{name} is read: take it off"


def test_settings_need_no_torch():
    code = "import sys, utils.training.training_config as m; m.TrainingConfig().validate(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


WRITTEN = {
    "learning_rate: 5e-5\nepochs: 3": {"learning_rate": 5e-5, "epochs": 3},
    "compile_mode: off\nnotes: no": {"compile_mode": "off", "notes": "no"},
    "deterministic: true\nmax_steps: null\nexport_formats: [onnx, pt2]": {
        "deterministic": True,
        "max_steps": None,
        "export_formats": ["onnx", "pt2"],
    },
    "batch_size: 010\nrun_name: 12_30\nnotes: 1:30": {"batch_size": 10, "run_name": "12_30", "notes": "1:30"},
    "notes: 2026-05-01\nwarmup_ratio: .2\nval_every_n_steps: 10": {
        "notes": "2026-05-01",
        "warmup_ratio": 0.2,
        "val_every_n_steps": 10,
    },
}


@pytest.mark.parametrize("text", WRITTEN)
def test_yaml_is_read_as_it_is_meant(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text, "utf-8")
    assert TrainingConfig.load(tmp_path / "run.yaml") == TrainingConfig(**WRITTEN[text])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs: [1", r"run\.yml is no YAML"),
        ("epochs: 1\nepochs: 2", "names epochs twice"),
        ("- epochs", "must hold a YAML mapping of settings; it holds a list"),
        ("lr: 1", "did you mean 'learning_rate'"),
        ("[" * 9999, r"run\.yml is no YAML"),
        ("notes: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
)
def test_yaml_that_is_none_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "run.yml").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=words):
        TrainingConfig.load(tmp_path / "run.yml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"epochs": 1, "epochs": 2}', "'epochs' stands twice"),
        ('{"epochs": NaN}', "NaN is no JSON number"),
        ("[" * 9999, "nested 9999 levels deep"),
        ('{"epochs": 1', r"run\.json is no JSON"),
    ],
)
def test_json_that_two_readers_could_understand_differently_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "run.json").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=words):
        TrainingConfig.load(tmp_path / "run.json")
