from __future__ import annotations

import logging
import math
import re

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from tests.training.tiny import make_tiny
from utils.adapters.model_adapter import UniversalModelAdapter, adapt
from utils.training.engine import gradient_monitor
from utils.training.engine.gradient_monitor import EXPLODING_RATIO, GradientMonitor, LayerNorms, judge

SQUARE = ((4, 4),)


def layers(**norms):
    """Layers of 16 elements each; a name that begins with `bias` holds no matrix."""
    return {
        name.replace("__", "."): LayerNorms(norm, 16, not name.startswith("bias"), SQUARE)
        for name, norm in norms.items()
    }


@pytest.mark.parametrize(
    ("norms", "statuses", "words"),
    [
        ({"a": 1.0, "b": 2.0}, ["healthy", "healthy"], ""),
        ({"a": 1.0, "b": None}, ["healthy", "missing"], "b gets no gradient.*requires_grad_"),
        ({"a": 1.0, "b": 0.0}, ["healthy", "zero"], "b is exactly zero"),
        ({"a": math.nan, "b": 1.0}, ["non-finite", "healthy"], "gradient of a is nan.*precision='32-true'"),
        ({"a": math.inf, "b": 1.0}, ["non-finite", "healthy"], "gradient of a is inf"),
        (
            {"l__0": 1e-4, "l__1": 1e-2, "l__2": 1.0},
            ["vanishing", "healthy", "healthy"],
            "l.0 is 1e.04 times weaker than that of l.2.*residual",
        ),
        (
            {"l__0": 1e4, "l__1": 10.0, "l__2": 1.0},
            ["exploding", "healthy", "healthy"],
            "l.0 is 1e.04 times that of l.2.*gradient_clip_norm",
        ),
        ({"a": 1.0, "b": 1.0, "c": 1e-10}, ["healthy", "healthy", "vanishing"], "c is 1e-10 of the median.*saturated"),
        ({"a": 1.0, "bias": 1e-9}, ["healthy", "healthy"], ""),  # a key's bias has no gradient by theory
        ({"l__0": 1e-2, "l__1": 1.0}, ["healthy", "healthy"], ""),
        ({"a": 1e200, "b": 1e200}, ["healthy", "healthy"], ""),  # squares of these are beyond float64
    ],
)
def test_each_layer_is_judged_and_the_advice_names_it(norms, statuses, words):
    found = judge(layers(**norms), step=7)
    assert [item.status for item in found] == statuses
    assert all(bool(item.advice) == (item.status != "healthy") and item.step == 7 for item in found)
    if words:
        bad = next(item for item in found if item.status != "healthy")
        assert re.search(words, bad.advice), bad.advice


@pytest.mark.parametrize(
    ("before", "status"),
    [([1.0, 1.0, 1.0], "exploding"), ([1.0, 1.0], "healthy"), ([1.0, 300.0, 300.0], "healthy"), ([], "healthy")],
)
def test_a_layer_explodes_against_its_own_past(before, status):
    past = [{"a": value / 4} for value in before]  # root mean square of 16 elements
    (found,) = judge(layers(a=EXPLODING_RATIO * 1.01), past)
    assert found.status == status
    assert status == "healthy" or "lower learning_rate" in found.advice


def test_shares_are_parts_of_the_squared_norm():
    found = judge(layers(a=3.0, b=4.0, c=None))
    assert [item.share for item in found] == pytest.approx([9 / 25, 16 / 25, 0.0])
    assert all(math.isnan(item.share) for item in judge(layers(a=1.0, b=math.inf)))


def test_overflow_under_a_scaler_is_said_to_be_usual_at_first():
    assert "scaler" in judge(layers(a=math.inf), scaled=True)[0].advice
    assert "scaler" not in judge(layers(a=math.inf))[0].advice


# ---- in a training ---------------------------------------------------------------------------------------------------
def batches(number=6):
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(300, (2, 8), generator=generator)} for _ in range(number)]


def fit(tmp_path, *callbacks, model=None, lit=None, clip=None, accumulation=1, epochs=1, ckpt_path=None, number=6):
    engine = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=accumulation,
        gradient_clip_val=clip,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
    )
    lit = lit or UniversalModelAdapter(model or make_tiny(dropout=0.0), learning_rate=1e-2)
    engine.fit(
        lit, torch.utils.data.DataLoader(batches(number), batch_size=None), ckpt_path=ckpt_path, weights_only=True
    )
    return engine


def test_norms_equal_those_of_a_loop_by_hand_before_clipping(tmp_path):
    monitor = GradientMonitor()
    fit(tmp_path, monitor, clip=0.01, accumulation=2)
    model, expected = make_tiny(dropout=0.0).train(), []
    optimizer = UniversalModelAdapter(model, learning_rate=1e-2).configure_optimizers()
    made = batches()
    for pair in zip(made[::2], made[1::2]):
        optimizer.zero_grad()
        for batch in pair:
            (model(batch["input_ids"], labels=batch["input_ids"]).loss / 2).backward()
        expected.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)))
        optimizer.step()
    assert monitor.gradient_norms == pytest.approx(expected, rel=1e-5)
    assert min(expected) > 0.01 and monitor.clipped_share(0.01) == 1.0 and monitor.clipped_share(1e9) == 0.0


def test_every_layer_is_there_by_its_own_name(tmp_path):
    monitor, model = GradientMonitor(every=4), make_tiny(dropout=0.0)
    fit(tmp_path, monitor, model=model)
    owners = {name.rpartition(".")[0] for name, _ in model.model.named_parameters()}
    assert {item.layer for item in monitor.health} == owners
    assert {item.step for item in monitor.health} == {4}
    assert math.sqrt(sum(item.norm**2 for item in monitor.health)) == pytest.approx(monitor.gradient_norms[3], rel=1e-5)
    assert sum(item.share for item in monitor.health) == pytest.approx(1.0)
    assert monitor.problems == []


class Broken(nn.Module):
    """`unused` gets no gradient, `closed` an exact zero."""

    def __init__(self):
        super().__init__()
        self.token, self.head = nn.Embedding(300, 8), nn.Linear(8, 300)
        self.unused, self.closed = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, input_ids):
        x = self.token(input_ids)
        return self.head(x + 0.0 * self.closed(x)) + self.unused(x.detach()).detach().sum() * 0


def test_broken_layers_are_named_once_in_the_log(tmp_path, caplog):
    monitor = GradientMonitor(every=2)
    with caplog.at_level(logging.WARNING, logger=gradient_monitor.__name__):
        fit(tmp_path, monitor, model=adapt(Broken(), {"vocab_size": 300}))
    assert {item.layer: item.status for item in monitor.problems} == {"unused": "missing", "closed": "zero"}
    assert len(caplog.records) == 2 and "step 1: unused gets no gradient" in caplog.text
    assert "2 of 4 layers need a look" in monitor.summary() and "<td>missing</td>" in monitor._repr_html_()


def test_a_scaled_loss_is_read_without_its_factor(tmp_path):
    """As under 16-mixed: Lightning divides the scaler's factor out before the callback is called."""
    from pytorch_lightning.plugins.precision import MixedPrecision

    plain, scaled = GradientMonitor(), GradientMonitor()
    fit(tmp_path, plain, number=2)
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    plugin.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)
    engine = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        plugins=[plugin],
        callbacks=[scaled],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
    )
    lit = UniversalModelAdapter(make_tiny(dropout=0.0), learning_rate=1e-2)
    engine.fit(lit, torch.utils.data.DataLoader(batches(2), batch_size=None))
    assert scaled.gradient_norms == pytest.approx(plain.gradient_norms, rel=1e-4)
    assert scaled._scaled and not plain._scaled


def test_the_history_goes_on_in_a_resumed_run(tmp_path):
    whole, first, second = (GradientMonitor(every=4) for _ in range(3))
    fit(tmp_path, whole, epochs=2)
    fit(tmp_path, first, epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    fit(tmp_path, second, epochs=2, ckpt_path=str(tmp_path / "a.ckpt"))
    assert len(whole.gradient_norms) == 12 and second.gradient_norms == whole.gradient_norms
    assert second.health == whole.health and second.health[0].step == 12


def test_nothing_is_read_step_by_step(tmp_path, monkeypatch):
    """A read makes a GPU wait: five steps take one read at most, that of the first look when the second one comes."""
    read, original = [], torch.Tensor.tolist

    def counted(tensor):
        read.append(tensor.shape)
        return original(tensor)

    class Quiet(pl.Callback):
        def on_train_batch_start(self, *arguments):
            monkeypatch.setattr(torch.Tensor, "tolist", counted)

        def on_train_batch_end(self, *arguments):
            monkeypatch.setattr(torch.Tensor, "tolist", original)

    monitor = GradientMonitor(every=4)
    fit(tmp_path, Quiet(), monitor, number=5)
    assert len(read) == 1 and len(monitor.gradient_norms) == 5


def test_sparse_gradients_are_measured(tmp_path):
    class Sparse(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.rows = nn.Embedding(300, 4, sparse=True)

        def training_step(self, batch, index):
            return self.rows(batch["input_ids"]).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    monitor = GradientMonitor()
    fit(tmp_path, monitor, lit=Sparse(), number=1)
    counts = torch.bincount(batches(1)[0]["input_ids"].flatten(), minlength=300).float()
    assert monitor.gradient_norms == pytest.approx([float(counts.norm()) * 2], rel=1e-5)  # four columns of each row
