from __future__ import annotations

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from utils.adapters.lightning_adapter import UniversalModelAdapter, decay_groups
from utils.adapters.model_adapter import adapt
from utils.errors import DataError


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.norm, self.head = nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 11)
        self.head.weight = self.emb.weight

    def forward(self, input_ids):
        return self.head(self.norm(self.emb(input_ids)))


def test_documented_call() -> None:
    lit = UniversalModelAdapter(Tiny(), {"vocab_size": 11}, None, learning_rate=5e-5)
    ids = torch.randint(11, (2, 5))
    loss = lit(ids, None, ids)["loss"]
    torch.testing.assert_close(loss, adapt(lit.adapted)(ids, labels=ids).loss)


def test_norms_biases_and_embeddings_are_not_decayed() -> None:
    model = Tiny()
    model.extra = nn.Linear(8, 8)
    decayed, rest = decay_groups(model, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(model.extra.weight)] and decayed["weight_decay"] == 0.1
    assert rest["weight_decay"] == 0.0
    counted = sum(p.numel() for group in (decayed, rest) for p in group["params"])
    assert counted == sum(p.numel() for p in model.parameters())  # the tied matrix once


@pytest.mark.parametrize(("step", "share"), [(0, 0.1), (9, 1.0), (10, 1.0), (55, 0.55), (100, 0.1), (200, 0.1)])
def test_schedule_rises_and_falls(step: int, share: float) -> None:
    lit = UniversalModelAdapter(Tiny(), {"vocab_size": 11}, total_steps=100, warmup_ratio=0.1, final_rate=0.1)
    assert lit.rate_at(step) == pytest.approx(share)


def test_optimizer_with_and_without_a_schedule() -> None:
    plain = UniversalModelAdapter(Tiny(), {"vocab_size": 11}, learning_rate=1e-3).configure_optimizers()
    assert isinstance(plain, torch.optim.AdamW) and plain.param_groups[0]["lr"] == 1e-3
    both = UniversalModelAdapter(Tiny(), {"vocab_size": 11}, learning_rate=1e-3, total_steps=10).configure_optimizers()
    assert both["lr_scheduler"]["interval"] == "step"
    assert math.isclose(both["optimizer"].param_groups[0]["lr"], 1e-3)  # a warm-up of one step


def test_adapted_model_is_used_as_it_is() -> None:
    adapted = adapt(Tiny(), {"vocab_size": 11})
    assert UniversalModelAdapter(adapted).adapted is adapted


def fit(batches, accumulation: int) -> None:
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        accumulate_grad_batches=accumulation,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer.fit(UniversalModelAdapter(Tiny(), {"vocab_size": 11}), loader)


@pytest.mark.filterwarnings("ignore")
def test_ragged_labels_are_refused_under_accumulation_only() -> None:
    ids = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(0))
    short = ids.clone()
    short[1, 3:] = -100
    full, ragged = {"input_ids": ids, "labels": ids}, {"input_ids": ids, "labels": short}
    fit([full, ragged], accumulation=1)
    fit([full, full, ragged, ragged], accumulation=2)
    with pytest.raises(DataError, match="predicts 7 tokens, the first one 10"):
        fit([full, ragged], accumulation=2)
