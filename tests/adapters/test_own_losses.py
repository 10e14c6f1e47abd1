"""Losses that a model makes by itself, in either mode, and how it begins its decoder."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from utils.adapters.contract import CallContract, shifted_right
from utils.adapters.model_adapter import adapt
from utils.adapters.model_outputs import next_token_loss
from utils.errors import CallContractError

V, D, START = 23, 8, 5
IDS = torch.tensor([[3, 3, 7, 1, 9, 20], [8, 8, 2, 5, 6, 11]])


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head, self.router = nn.Embedding(V, D), nn.Linear(D, V), nn.Linear(D, 2)

    def balance(self, x: torch.Tensor) -> torch.Tensor:
        return self.router(x).softmax(-1).mean((0, 1)).square().sum()


class InTraining(Base):
    """Makes its balance loss while it trains, and leaves it behind."""

    def forward(self, input_ids):
        x = self.embedding(input_ids).cumsum(1)
        self.aux_loss = self.balance(x) if self.training else 0.0
        return self.head(x)


class TupleInTraining(Base):
    """Gives one tensor, or a tuple while it trains."""

    def forward(self, input_ids):
        x = self.embedding(input_ids).cumsum(1)
        return (self.balance(x), self.head(x)) if self.training else self.head(x)


@pytest.mark.parametrize("kind", [InTraining, TupleInTraining])
def test_losses_of_training_mode_count_in_training_mode(kind: type[Base]) -> None:
    model = kind()
    adapted = adapt(model).train()
    out = adapted(IDS, labels=IDS)
    x = model.embedding(IDS).cumsum(1)
    torch.testing.assert_close(out.loss, next_token_loss(model.head(x), IDS) + model.balance(x))
    out = adapted.eval()(IDS, labels=IDS)
    torch.testing.assert_close(out.loss, next_token_loss(model.head(x), IDS))
    assert CallContract.from_json(adapted.contract.to_json()) == adapted.contract


class Translator(Base):
    """Makes decoder ids of labels: begins with a fixed id, or with the last label."""

    def __init__(self, wraps: bool) -> None:
        super().__init__()
        self.wraps, self.state = wraps, nn.GRU(D, D, batch_first=True)

    def forward(self, input_ids, decoder_input_ids=None, labels=None):
        if decoder_input_ids is None and labels is not None:
            start = labels[:, -1:] if self.wraps else torch.full_like(labels[:, :1], START)
            decoder_input_ids = torch.cat([start, labels[:, :-1]], 1)
        _, state = self.state(self.embedding(input_ids))
        return {"logits": self.head(self.state(self.embedding(decoder_input_ids), state)[0])}


@pytest.mark.parametrize(("wraps", "start"), [(True, None), (False, START)])
def test_decoder_begins_as_the_model_begins_it(wraps: bool, start: int | None) -> None:
    model = Translator(wraps)
    adapted = adapt(model, {"decoder_start_token_id": START})
    assert adapted.contract.task == "seq2seq" and adapted.contract.start_id == start
    torch.testing.assert_close(adapted(IDS, labels=IDS[:, :3]).logits, model(IDS, labels=IDS[:, :3])["logits"])


def test_last_real_label_begins_the_decoder() -> None:
    labels = torch.tensor([[4, 5, 6], [7, 8, -100]])
    assert shifted_right(labels, None).tolist() == [[6, 4, 5], [8, 7, 8]]


def test_one_score_is_no_choice_between_classes() -> None:
    class Regression(Base):
        def forward(self, input_ids):
            return self.router(self.embedding(input_ids).mean(1))[:, :1]

    adapted = adapt(Regression())
    assert adapted(IDS).logits.shape == (2, 1)
    with pytest.raises(CallContractError, match="one score per example"):
        adapted(IDS, labels=torch.tensor([0, 0]))
