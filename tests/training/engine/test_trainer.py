from __future__ import annotations

import csv
import logging
import math
import signal
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from tests.training.tiny import TEXT, make_tiny
from utils.errors import ConfigError, DataError, TokenIdError, TokenizerError, TrainingError
from utils.tokenization.packing import PackedBlocks
from utils.training.dataset_utilities import split_text
from utils.training.engine.precision import pick_precision
from utils.training.engine.trainer import Trainer
from utils.training.training_config import TrainingConfig

BLOCKS = np.random.default_rng(0).integers(0, 300, (12, 16))


def trainer(tmp_path, kind=Trainer, model=None, tokenizer=None, progress=None, **settings):
    config = TrainingConfig(**{"learning_rate": 1e-2, "batch_size": 4, "run_name": "r", **settings})
    extra = {} if progress is None else {"progress": progress}
    return kind(
        model if model is not None else make_tiny(), None, config, tokenizer=tokenizer, workspace=tmp_path, **extra
    )


@pytest.mark.parametrize(
    ("device", "capability", "expected", "word"),
    [
        ("cpu", None, "32-true", "CPU"),
        ("cuda", (7, 5), "16-mixed", "SM 7.5 only emulates"),
        ("cuda", (8, 0), "bf16-mixed", "SM 8.0"),
        ("cuda", (9, 0), "bf16-mixed", "SM 9.0"),
        ("mps", None, "32-true", "MPS"),
    ],
)
def test_precision_follows_the_device(device, capability, expected, word):
    precision, why = pick_precision(torch.device(device), capability)
    assert precision == expected and word in why


@pytest.mark.parametrize(
    ("settings", "steps", "epochs", "validated"),
    [
        ({"epochs": 2}, 6, 2, [3, 6]),
        ({"max_steps": 4}, 4, 2, [3, 4]),
        ({"max_steps": 7, "epochs": 1}, 7, 3, [3, 6, 7]),
        ({"epochs": 2, "val_every_n_steps": 2}, 6, 2, [2, 4, 6]),
        ({"max_steps": 5, "val_every_n_steps": 2}, 5, 2, [2, 4, 5]),
        ({"epochs": 2, "batch_size": 2, "gradient_accumulation_steps": 3}, 4, 2, [2, 4]),
        ({"max_steps": 3, "batch_size": 2, "gradient_accumulation_steps": 2, "val_every_n_steps": 10}, 3, 1, [3]),
    ],
)
def test_steps_epochs_and_validations_are_as_many_as_asked(tmp_path, settings, steps, epochs, validated):
    result = trainer(tmp_path, **settings).train(BLOCKS, BLOCKS[:5])
    assert len(result["step_loss_history"]) == steps
    assert len(result["loss_history"]) == len(result["metrics_summary"]) == epochs
    assert result["val_steps"] == validated
    assert result["epoch_results"][-1].step == steps


def test_losses_equal_a_hand_written_loop(tmp_path):
    """Same blocks in the same order, AdamW, clipping and accumulation, without Lightning. In float64, which a loss of 13 needs:
    in float32 it is rounded to 1e-6.
    """

    class Plain(Trainer):
        def _setup_optimizer(self, adapted):
            return torch.optim.AdamW(adapted.parameters(), lr=1e-2, weight_decay=0.1)

        def _setup_scheduler(self, optimizer, total_steps):
            return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_steps)

    settings = {
        "epochs": 2,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clip_norm": 0.5,
        "initialisation": "keep",
    }
    run = trainer(tmp_path, Plain, make_tiny(dropout=0.0).double(), **settings)
    order = run._setup_loaders(run._setup_data(BLOCKS, None)).sampler
    got = run.train(BLOCKS)["step_loss_history"]

    model = make_tiny(dropout=0.0).double().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 6)
    expected = []
    for epoch in range(2):
        batches = order.batches(epoch)
        for first, second in zip(batches[::2], batches[1::2]):
            optimizer.zero_grad()
            losses = []
            for rows in (first, second):
                ids = torch.from_numpy(BLOCKS[rows])
                logits = model(ids).logits[:, :-1].flatten(0, 1)
                losses.append(torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()))
                (losses[-1] / 2).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            expected.append(sum(loss.item() for loss in losses) / 2)
    assert got == pytest.approx(expected, abs=1e-6, rel=0)


def test_the_last_step_of_an_epoch_is_the_mean_over_its_tokens(tmp_path):
    """Windows of 2 × 2 over 5 full blocks and one of 7 tokens: the second step has two micro-batches of unequal weight."""

    class Plain(Trainer):
        def _setup_optimizer(self, adapted):
            return torch.optim.SGD(adapted.parameters(), lr=0.1)

    data = PackedBlocks(BLOCKS[:5], tail=BLOCKS[5, :7])
    settings = {"batch_size": 2, "gradient_accumulation_steps": 2, "gradient_clip_norm": 0, "initialisation": "keep"}
    run = trainer(tmp_path, Plain, make_tiny(dropout=0.0), **settings)
    batches = run._setup_loaders(run._setup_data(data, None)).sampler.batches(0)
    result = run.train(data)

    model = make_tiny(dropout=0.0).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    for window in (batches[:2], batches[2:]):
        optimizer.zero_grad()
        rows = [BLOCKS[i] if i < 5 else BLOCKS[5, :7] for batch in window for i in batch]
        losses = [
            torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="sum")
            for ids in map(torch.from_numpy, rows)
        ]
        loss = sum(losses) / sum(len(row) - 1 for row in rows)
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert result["step_loss_history"] == pytest.approx(expected, abs=1e-5)  # one forward per row rounds differently
    for name, value in model.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("accumulation", "every", "validated"), [(5, 2, [2, 4, 6, 8]), (5, 3, [3, 6, 8]), (3, 1, list(range(1, 9)))]
)
def test_validations_follow_whole_steps_across_uneven_epochs(tmp_path, accumulation, every, validated):
    """12 batches an epoch make windows of 5, 5 and 2: counting batches would validate inside of them."""
    settings = {"max_steps": 8, "batch_size": 1, "gradient_accumulation_steps": accumulation}
    result = trainer(tmp_path, **settings, val_every_n_steps=every).train(BLOCKS, BLOCKS[:3])
    assert result["val_steps"] == validated


def test_validation_loss_weights_every_predicted_token_alike(tmp_path):
    result = trainer(tmp_path, epochs=1).train(BLOCKS, BLOCKS[:5])  # batches of 4 and 1
    ids = torch.from_numpy(BLOCKS[:5])
    with torch.no_grad():
        logits = result.model(ids).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).item()
    assert result["val_loss_history"][-1] == pytest.approx(expected, abs=1e-5)


def test_text_is_trained_on_and_measured_in_bits_per_byte(tmp_path, tokenizer):
    train, validation = split_text(TEXT)
    result = trainer(tmp_path, tokenizer=tokenizer, epochs=4).train([train], [validation])
    bits = result["val_bits_per_byte_history"]
    assert len(bits) == 4 and bits[-1] < bits[0] < result["bits_per_byte_untrained"]
    assert result["loss_history"][-1] < result["loss_history"][0]
    assert result["best_epoch"] == int(np.argmin(result["val_loss_history"]))
    row = result["metrics_summary"].iloc[-1]
    assert row["val/perplexity"] == pytest.approx(math.exp(row["val/loss"]))


def test_the_learning_rate_warms_up_and_decays(tmp_path):
    result = trainer(tmp_path, max_steps=20, warmup_ratio=0.25).train(BLOCKS)
    with (result.run_folder / "metrics.csv").open() as stream:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(stream)]
    assert rates.index(max(rates)) in (4, 5) and max(rates) == pytest.approx(1e-2)
    assert rates[:5] == sorted(rates[:5]) and rates[5:] == sorted(rates[5:], reverse=True)


def test_gradients_are_clipped(tmp_path):
    norms = []

    class Watch(pl.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            found = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
            norms.extend([torch.stack(found).norm().item()] if found else [])

    class Watched(Trainer):
        def _setup_engine(self, *arguments):
            engine = super()._setup_engine(*arguments)
            engine.callbacks.insert(0, Watch())
            return engine

    trainer(tmp_path, Watched, epochs=2, gradient_clip_norm=0.01).train(BLOCKS)
    assert norms and max(norms) <= 0.01 * 1.001


def test_progress_is_told_steps_total_and_loss(tmp_path):
    seen = []
    trainer(tmp_path, epochs=2, progress=lambda *report: seen.append(report)).train(BLOCKS, BLOCKS[:4])
    done, total, note = seen[-1]
    assert (done, total) == (6, 6) and "loss" in note and "tokens/s" in note


def test_losses_that_are_not_finite_stop_the_run_and_replace_no_checkpoint(tmp_path):
    class Exploding(Trainer):
        def _setup_optimizer(self, adapted):
            return torch.optim.SGD(adapted.parameters(), lr=1.0)

        def _setup_scheduler(self, optimizer, total_steps):
            return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1e-4 if step < 3 else 1e38)

    run = trainer(tmp_path, Exploding, epochs=20, save_every_n_steps=1, gradient_clip_norm=0)
    with pytest.raises(TrainingError, match=r"last 3 losses are not finite.*Lower learning_rate"):
        run.train(BLOCKS)
    for path in (tmp_path / "r" / "checkpoints").glob("*.ckpt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.isfinite(value).all() for value in state.values())


def test_nothing_is_printed_and_no_warning_shown(tmp_path, capsys, caplog):
    with warnings.catch_warnings(record=True) as shown, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        trainer(tmp_path, epochs=1).train(BLOCKS, BLOCKS[:4])
    assert capsys.readouterr() == ("", "")
    assert [str(item.message) for item in shown] == [] and caplog.text == ""


def test_an_interrupt_comes_out_as_keyboard_interrupt_and_the_signal_works_again(tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def interrupt(*report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, epochs=1, progress=interrupt).train(BLOCKS)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_request_to_end_the_process_is_no_interrupt(tmp_path):
    def terminate(*report):
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as left:
        trainer(tmp_path, epochs=2, progress=terminate).train(BLOCKS)
    assert left.value.code == 143


def test_a_request_to_end_in_the_last_batch_of_the_first_validation_is_heard(tmp_path):
    run = trainer(tmp_path, epochs=1)

    def terminate(*call):
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            signal.raise_signal(signal.SIGTERM)

    run.adapted.model.register_forward_pre_hook(terminate)
    with pytest.raises(SystemExit) as left:
        run.train(BLOCKS, BLOCKS[:1])
    assert left.value.code == 143 and not list(tmp_path.glob("**/*.ckpt"))


@pytest.mark.parametrize(
    ("train", "validation", "error", "message"),
    [
        (["text"], None, TokenizerError, "pass tokenizer="),
        (np.full((4, 16), 300), None, TokenIdError, "token id 300; the model has 300 embedding rows"),
        (np.zeros((4, 17), int), None, TokenIdError, "17 tokens long, the model takes at most 16"),
        (BLOCKS, np.full((4, 16), 301), TokenIdError, "validation data holds token id 301"),
        (42, None, DataError, "got int"),
        ([], None, DataError, "got an empty list"),
        (np.zeros((4, 16)), None, DataError, r"shape \(N, T\)"),
    ],
)
def test_data_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, train, validation, error, message):
    with pytest.raises(error, match=message):
        trainer(tmp_path).train(train, validation)
    assert list(tmp_path.iterdir()) == []


def test_half_precision_is_refused_where_lightning_would_take_another_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="'16-mixed' needs a CUDA device"):
        trainer(tmp_path, precision="16-mixed")
    assert list(tmp_path.iterdir()) == []


def test_the_precision_that_lightning_uses_is_reported(tmp_path):
    assert trainer(tmp_path, max_steps=1, precision="bf16-mixed").train(BLOCKS)["precision"] == "bf16-mixed"

    class Other(Trainer):
        def _setup_engine(self, plan, callbacks, store, precision):
            return super()._setup_engine(plan, callbacks, store, "64-true")

    assert trainer(tmp_path / "other", Other, max_steps=1).train(BLOCKS)["precision"] == "64-true"


def test_wrong_settings_and_other_tasks_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="batch_size=0"):
        trainer(tmp_path, batch_size=0)
