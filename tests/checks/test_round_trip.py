from __future__ import annotations

import pytest
import torch
from torch import nn

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import round_trip
from utils.checks.hidden_tensors import follows_formula, hidden_tensors


class PlainTable(m.Healthy):
    """Keeps its positions in a plain attribute; of a formula, of random numbers, or trainable."""

    def __init__(self, table, persistent=None, by_hand=False):
        super().__init__()
        del self.position_embedding
        self.by_hand = by_hand
        if persistent is None:
            self.table = table
        else:
            self.register_buffer("table", table, persistent=persistent)

    def body(self, input_ids):
        table = self.table.to(input_ids.device) if self.by_hand else self.table
        x = self.token_embedding(input_ids) + table[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x) if not self.by_hand else x + block.mlp(x)
        return self.norm(x)


def _sinusoids():
    angles = torch.arange(m.LIMIT)[:, None] * 10000.0 ** (-torch.arange(0, m.WIDTH, 2) / m.WIDTH)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


class PlainList(m.Healthy):
    def __init__(self):
        super().__init__()
        self.extra = [nn.Linear(m.WIDTH, m.WIDTH) for _ in range(2)]

    def body(self, input_ids):
        x = super().body(input_ids)
        for layer in self.extra:
            x = x + layer(x)
        return x


class Remembers(m.Healthy):
    """Healthy: keeps its last activations, which the next call overwrites."""

    def body(self, input_ids):
        self.last = super().body(input_ids).detach()
        return self.last + 0 * super().body(input_ids)


class KeepsHistory(m.Healthy):
    """Keeps a result with its graph on self; such a tensor cannot be copied."""

    def __init__(self):
        super().__init__()
        self.scale = self.head.weight.mean() * 2

    def body(self, input_ids):
        return super().body(input_ids)


class TiedByData(m.Healthy):
    def __init__(self):
        super().__init__()
        self.head.weight.data = self.token_embedding.weight.data


class LeavesOut(m.Healthy):
    """Drops the head's weight from what is saved, and does not miss it when it loads."""

    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        return {name: tensor for name, tensor in state.items() if name != "head.weight"}

    def load_state_dict(self, state, strict=True, assign=False):
        return super().load_state_dict(state, strict=False)


class Renames(m.Healthy):
    def state_dict(self, *args, **kwargs):
        return {f"model.{name}": tensor for name, tensor in super().state_dict(*args, **kwargs).items()}


class Rounds(m.Healthy):
    def state_dict(self, *args, **kwargs):
        return {name: tensor.half().float() for name, tensor in super().state_dict(*args, **kwargs).items()}


class Setting:
    """No plain type."""


class ExtraState(m.Healthy):
    def get_extra_state(self):
        return Setting()

    def set_extra_state(self, state):
        pass


class UnsharedCopy(m.Healthy):
    def __init__(self):
        super().__init__(tied=True)

    def __deepcopy__(self, memo):
        copied = UnsharedCopy()
        copied.head.weight = nn.Parameter(torch.zeros_like(self.head.weight))
        return copied


class Counts(m.Healthy):
    """Healthy: a whole-number buffer and running statistics are saved like weights."""

    def __init__(self):
        super().__init__()
        self.register_buffer("order", torch.arange(m.WIDTH).flip(0))
        self.statistics = nn.BatchNorm1d(m.WIDTH)

    def body(self, input_ids):
        x = super().body(input_ids)[..., self.order]
        return self.statistics(x.transpose(1, 2)).transpose(1, 2)


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(pixel_values).mean((2, 3)))


def _run(build):
    torch.manual_seed(0)
    return round_trip.check(adapt(build()))


def _random_table():
    return torch.randn(m.LIMIT, m.WIDTH)


@pytest.mark.parametrize(
    ("build", "status", "words"),
    [
        (lambda: PlainTable(_random_table()), "fail", ["table", "no formula gives", 'register_buffer("table"']),
        (lambda: PlainTable(_random_table().requires_grad_()), "fail", ["trainable", "self.table = nn.Parameter"]),
        (lambda: PlainTable(_random_table(), persistent=False), "fail", ["persistent=False", "persistent=True"]),
        (lambda: PlainTable(_sinusoids()), "warn", ["table stays behind", ".to(device)", "persistent=False"]),
        (PlainList, "fail", ["extra[0].weight", "plain container", "self.extra = nn.ModuleList"]),
        (KeepsHistory, "warn", ["cannot be copied"]),
        (TiedByData, "warn", ["token_embedding.weight and head.weight share their memory", "self.head.weight ="]),
        (LeavesOut, "fail", ["other logits", "does not restore head.weight"]),
        (Renames, "fail", ["does not load back", "Missing key"]),
        (Rounds, "fail", ["other logits", "a rounding"]),
        (ExtraState, "fail", ["weights_only=True", "get_extra_state"]),
        (UnsharedCopy, "fail", ["token_embedding.weight = head.weight", "__deepcopy__"]),
    ],
)
def test_what_a_file_loses_is_found(build, status, words):
    result = _run(build)
    assert result.status == status, result.summary()
    assert [word for word in words if word not in result.summary()] == [], result.summary()


@pytest.mark.parametrize(
    "build",
    [
        m.Healthy,
        lambda: m.Healthy(tied=True),
        lambda: PlainTable(_random_table(), persistent=True),
        lambda: PlainTable(_sinusoids(), persistent=False),
        lambda: PlainTable(_sinusoids(), by_hand=True),
        Remembers,
        Counts,
        Pixels,
        m.NaNModule,
    ],
)
def test_healthy_models_come_back(build):
    result = _run(build)
    assert result.status == "pass", result.summary()


def test_ties_and_size_are_told():
    result = _run(lambda: m.Healthy(tied=True))
    assert result.measured["tied"] == [["token_embedding.weight", "head.weight"]]
    assert result.measured["bytes"] > 4 * sum(p.numel() for p in m.Healthy(tied=True).parameters())


def test_a_model_that_does_not_repeat_itself_is_skipped():
    class Counting(m.Healthy):
        calls = 0

        def forward(self, input_ids):
            Counting.calls += 1
            return super().forward(input_ids) + self.calls

    assert _run(Counting).status == "skip"


def test_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    model = PlainTable(_random_table())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()} | {"table": model.table.clone()}
    round_trip.check(adapt(model))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(before["table"], model.table)


@pytest.mark.parametrize(
    ("tensor", "made"),
    [
        (torch.arange(32), True),
        (torch.linspace(-1, 3, 40), True),
        (10000.0 ** (-torch.arange(16) / 16), True),
        (_sinusoids(), True),
        (_sinusoids().t(), True),
        (torch.full((12, 12), -torch.inf).triu(1), True),
        (torch.randn(64), False),
        (torch.randn(20, 16), False),
        (torch.rand(1, 40, 8), False),
    ],
)
def test_formulas_are_told_from_random_numbers(tensor, made):
    torch.manual_seed(0)
    assert follows_formula(tensor) is made


def test_hidden_tensors_are_found_wherever_they_lie():
    model = m.Healthy()
    model.blocks[0].scale = torch.ones(3)
    model.caches = {"past": [torch.zeros(2)]}
    model.more = [nn.Linear(2, 2)]
    model.register_buffer("mask", torch.ones(2), persistent=False)
    found = {hidden.name: hidden.kind for hidden in hidden_tensors(model)}
    assert found == {
        "mask": "buffer",
        "blocks.0.scale": "attribute",
        "caches['past'][0]": "attribute",
        "more[0].weight": "module",
        "more[0].bias": "module",
    }


@pytest.mark.parametrize(("name", "build"), list(m.hugging_face()))
def test_hugging_face_models_are_fine(name, build):
    result = _run(build)
    assert result.status == "pass", f"{name}\n{result.summary()}"
