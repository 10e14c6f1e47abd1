"""Tier 3 under its documented names: thin calls of the engine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.training.tiny import TEXT, TinyTransformer
from utils import test_functions, tier3_training_utilities
from utils.errors import ConfigError
from utils.training.example_models import TinyViT
from utils.training.training_config import TrainingConfig

CONFIG = SimpleNamespace(vocab_size=300, max_seq_len=16)
TEXTS = [TEXT[i : i + 400] for i in range(0, len(TEXT), 400)]


def test_fine_tuning_gives_the_documented_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = test_functions.test_fine_tuning(
        model=TinyTransformer(), config=CONFIG, n_epochs=2, learning_rate=5e-3, batch_size=32, use_wandb=False, data=TEXTS,
        progress=False, run_name="r",
    )  # fmt: skip
    summary = results["metrics_summary"]
    assert list(summary["epoch"]) == [0, 1] and len(results["loss_history"]) == 2
    assert results["best_epoch"] in (0, 1) and results["loss_history"][1] < results["loss_history"][0]
    used = TrainingConfig.load(tmp_path / "runs" / "r" / "config.json")
    assert (used.epochs, used.learning_rate, used.batch_size, used.wandb_project) == (2, 5e-3, 32, None)


def test_what_is_asked_for_reaches_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("utils.training.training_core.train", lambda *args, **kwargs: seen.append((args, kwargs)))
    test_functions.test_fine_tuning(TinyTransformer(), CONFIG, use_wandb=True, max_steps=7)
    ((_, data, settings), _) = seen[0]
    assert data == "python-docs" and (settings.wandb_project, settings.max_steps) == ("transformer-builder", 7)
    with pytest.raises(ConfigError, match="n_epoch"):
        test_functions.test_fine_tuning(TinyTransformer(), CONFIG, n_epoch=3)
    with pytest.raises(ConfigError, match="Nothing is bundled for TinyViT"):
        test_functions.test_fine_tuning(TinyViT(10))


def test_the_benchmark_hands_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("utils.training.benchmark.benchmark", lambda *args, **kwargs: seen.append((args, kwargs)))
    model = TinyTransformer()
    test_functions.test_benchmark_comparison(model, CONFIG, TEXTS, 5, published=["x"], max_length=8)
    ((args, kwargs),) = seen
    assert args[:3] == (model, CONFIG, TEXTS) and kwargs["published"] == ["x"]
    assert args[3] == {"max_steps": 5, "learning_rate": 1e-3, "batch_size": 8, "max_length": 8}


def test_pytest_does_not_collect_them() -> None:
    for name in tier3_training_utilities.__all__:
        assert getattr(test_functions, name) is getattr(tier3_training_utilities, name)
        assert getattr(tier3_training_utilities, name).__test__ is False
