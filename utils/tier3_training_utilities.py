"""Tier 3: how a model learns. Thin: each function is one call of the training engine, with the names that people's notebooks use.

`utils.train` is the verb; runs that these functions make lie beside all others (`python -m utils runs list`).
"""

# ruff: noqa: PT028 -- the test_* functions are the product, not tests: most of their arguments may be left out

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError

if TYPE_CHECKING:
    from utils.adapters.model_adapter import AdaptedModel
    from utils.checks.session import AnyModel
    from utils.progress import ProgressCallback
    from utils.training.benchmark import Benchmark
    from utils.training.result import TrainingResult

__all__ = ["test_benchmark_comparison", "test_fine_tuning"]

USUAL_DATA = {"lm": "python-docs", "masked": "python-docs", "seq2seq": "seq2seq_tiny", "classification": "cls_tiny"}
"""Task → what a model is trained on where nobody says; "cls_tiny" has three classes."""


def test_fine_tuning(
    model: AnyModel,
    config: object = None,
    n_epochs: int = 3,
    learning_rate: float = 5e-5,
    batch_size: int = 4,
    use_wandb: bool = False,
    *,
    data: Any = None,
    tokenizer: Any = None,
    workspace: str | Path | None = None,
    progress: bool | ProgressCallback = True,
    **settings: Any,
) -> TrainingResult:
    """Train a model for some epochs, in place; an interrupted call goes on where it stopped.

    Args:
        model: what `adapt` takes.
        config: what is known about it, such as SimpleNamespace(vocab_size=…, max_seq_len=…).
        n_epochs: passes over the data.
        learning_rate: peak of AdamW.
        batch_size: samples per step.
        use_wandb: also log to Weights & Biases: online where a key exists, else offline.
        data: as for `utils.train`; None takes what is bundled for the task (`USUAL_DATA`).
        tokenizer: None lets one be chosen for the model's rows and the text.
        workspace: folder of the runs; None takes "runs".
        progress: as for `utils.train`.
        **settings: any other setting of `TrainingConfig`.

    Returns:
        The results: `metrics_summary` (DataFrame, one row per epoch), `best_epoch`, `loss_history`, and all the rest that
        `utils.train` gives.

    Raises:
        ConfigError: settings that do not hold, or a task for which nothing is bundled. The others are those of `utils.train`.

    Example:
        >>> results = test_fine_tuning(model=model, config=config, n_epochs=10, learning_rate=5e-5, batch_size=4)
        >>> results["metrics_summary"], results["best_epoch"]
    """
    from utils.adapters.model_adapter import adapt
    from utils.training.tracking import USUAL_PROJECT
    from utils.training.training_config import TrainingConfig
    from utils.training.training_core import train

    adapted = adapt(model, config)
    named: dict[str, Any] = {"epochs": n_epochs, "learning_rate": learning_rate, "batch_size": batch_size}
    if use_wandb:
        named["wandb_project"] = settings.pop("wandb_project", None) or USUAL_PROJECT
    return train(
        adapted,
        _usual_data(adapted) if data is None else data,
        TrainingConfig.from_dict({**settings, **named}),
        tokenizer=tokenizer,
        workspace=workspace,
        progress=progress,
    )


def test_benchmark_comparison(
    model: AnyModel,
    config: object = None,
    data: Any = None,
    max_steps: int = 300,
    learning_rate: float = 1e-3,
    batch_size: int = 8,
    published: Sequence[str] = (),
    *,
    tokenizer: Any = None,
    workspace: str | Path | None = None,
    progress: bool | ProgressCallback = True,
    **settings: Any,
) -> Benchmark:
    """Hold a model against baselines: those that need no training, and an LSTM and a GPT of its size with the same budget.

    A copy of the model is trained, and the model is left as it was. Language models are compared in bits per byte on the same
    bytes (uniform, byte trigram, LSTM, GPT), classifiers of texts in accuracy (largest class, LSTM, GPT).

    Args:
        model: what `adapt` takes.
        config: what is known about it.
        data: as for `utils.train`; None takes the bundled text. For classifiers also "glue/sst2" and the other tasks of GLUE,
            where a Hub is reachable.
        max_steps: optimizer steps of each training.
        learning_rate: peak of AdamW in each training.
        batch_size: samples per step.
        published: names of language models on the Hub, such as "distilgpt2", scored as they are on the same text. Where no Hub
            answers, the result says so.
        tokenizer: of every training; None lets one be chosen.
        workspace: folder of the runs; None takes "runs".
        progress: as for `utils.train`.
        **settings: any other setting of `TrainingConfig`, the same for all.

    Returns:
        A mapping with `table` (DataFrame), `rank` and `better_than`; printed or shown, it is the table with parameters, measure,
        tokens/s and memory.

    Raises:
        ConfigError: a model of another task, or settings that do not hold. DataError: data that cannot be had.

    Example:
        >>> print(test_benchmark_comparison(model, config, max_steps=300))
    """
    from utils.training.benchmark import benchmark

    named = {"max_steps": max_steps, "learning_rate": learning_rate, "batch_size": batch_size}
    return benchmark(
        model,
        config,
        data,
        {**settings, **named},
        tokenizer=tokenizer,
        published=published,
        workspace=workspace,
        progress=progress,
    )


def _usual_data(adapted: AdaptedModel) -> str:
    task = adapted.contract.task
    if task not in USUAL_DATA:
        raise ConfigError(f"Nothing is bundled for {adapted.name}, a model of the task {task!r}: pass data=.")
    return USUAL_DATA[task]


for _function in (test_fine_tuning, test_benchmark_comparison):
    _function.__test__ = False  # type: ignore[union-attr]  # pytest must not collect them
