from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks.other_device import device_clash
from utils.checks.preserved import preserved


class Moving(m.Healthy):
    """Makes what it needs where its input lies, a constant of its own included."""

    def __init__(self):
        super().__init__()
        self.table = torch.linspace(0, 1, m.LIMIT)[:, None]

    def body(self, input_ids):
        device = input_ids.device
        positions = torch.arange(input_ids.shape[1], device=device)
        x = self.token_embedding(input_ids) + self.position_embedding(positions)
        return self.norm(x + self.table.to(device)[: input_ids.shape[1]])


class Branching(Moving):
    """Asks for a value, which a model without values does not have."""

    def body(self, input_ids):
        x = super().body(input_ids)
        return x if x.sum() > 0 else -x


class OnTheCPU(m.Healthy):
    def body(self, input_ids):
        return self.norm(self.token_embedding(input_ids) + self.position_embedding(torch.arange(input_ids.shape[1])))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(m.VOCABULARY, m.WIDTH)
        self.lstm = nn.LSTM(m.WIDTH, m.WIDTH, batch_first=True)
        self.head = nn.Linear(m.WIDTH, m.VOCABULARY)

    def forward(self, input_ids):
        return self.head(self.lstm(self.embedding(input_ids))[0])


@pytest.mark.parametrize(
    ("build", "statement"),
    [
        (Moving, None),
        (Branching, None),
        (Recurrent, None),
        (OnTheCPU, "torch.arange(input_ids.shape[1])"),
    ],
    ids=["moves", "branches on data", "recurrent", "positions on the CPU"],
)
def test_tensors_of_two_devices_are_found_without_a_second_device(build, statement):
    adapted = adapt(build()).eval()
    before = {name: p.clone() for name, p in adapted.named_parameters()}
    with preserved(adapted):
        place = device_clash(adapted, torch.zeros(1, 8, dtype=torch.long))
    assert (place is None) if statement is None else (statement in place), place
    assert all(torch.equal(before[name], p) and p.device.type == "cpu" for name, p in adapted.named_parameters())
