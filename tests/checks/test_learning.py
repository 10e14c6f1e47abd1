"""What "learning" finds: models that cannot learn a batch by heart, and labels that are shifted 0 times or twice."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import learning


class OwnLoss(m.Healthy):
    """Gives its own loss where labels come; `shift` tells against which token it holds position t."""

    shift = 1

    def forward(self, input_ids, labels=None):
        logits = super().forward(input_ids)
        if labels is None:
            return {"logits": logits}
        length = labels.shape[1] - self.shift
        scores, wanted = logits[:, :length].flatten(0, 1), labels[:, self.shift :].flatten()
        return {"loss": F.cross_entropy(scores, wanted), "logits": logits}


class NeverShifted(OwnLoss):
    shift = 0


class ShiftedTwice(OwnLoss):
    shift = 2


class ShiftsTokens(m.Healthy):
    """Puts a start token in front, so that logits at t are made of tokens before t."""

    def forward(self, input_ids):
        return super().forward(F.pad(input_ids, (1, -1)))


class ShiftsLogits(m.Healthy):
    def forward(self, input_ids):
        return F.pad(super().forward(input_ids), (0, 0, 1, -1))


class WrongLoss(OwnLoss):
    """Makes of its logits and labels something else than the mean of cross-entropies."""

    def forward(self, input_ids, labels=None):
        given = super().forward(input_ids, labels)
        return given if labels is None else {**given, "loss": self.wrong(given["logits"][:, :-1], labels[:, 1:])}


class Negated(WrongLoss):
    def wrong(self, logits, labels):
        return -F.cross_entropy(logits.flatten(0, 1), labels.flatten())


class Severed(WrongLoss):
    def wrong(self, logits, labels):
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten()).detach()


class Summed(WrongLoss):
    def wrong(self, logits, labels):
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


class SquashedTwice(WrongLoss):
    def wrong(self, logits, labels):
        return F.cross_entropy(logits.flatten(0, 1).softmax(-1), labels.flatten())


class Smoothed(WrongLoss):
    """Healthy."""

    def wrong(self, logits, labels):
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)


class Focal(WrongLoss):
    """Healthy: easy tokens count less."""

    def wrong(self, logits, labels):
        chances = logits.flatten(0, 1).softmax(-1).gather(1, labels.flatten()[:, None])
        return (-((1 - chances) ** 2) * chances.log()).mean()


class Probabilities(m.Healthy):
    def forward(self, input_ids):
        return super().forward(input_ids).softmax(-1)


class Adapted(nn.Module):
    """Healthy: a frozen layer with a low-rank correction that starts at zero (Hu et al. 2021)."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(0.02 * torch.randn(4, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, 4))

    def forward(self, x):
        return self.layer(x) + x @ self.down.T @ self.up.T


class LowRank(m.Healthy):
    """Healthy: everything is frozen but the corrections."""

    def __init__(self):
        super().__init__()
        self.requires_grad_(False)
        for block in self.blocks:
            block.mlp[0], block.mlp[2] = Adapted(block.mlp[0]), Adapted(block.mlp[2])


class Targets(m.Healthy):
    """nanoGPT's way: the caller shifts."""

    def forward(self, idx, targets=None):
        logits = super().forward(idx)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class NegatedTargets(Targets):
    def forward(self, idx, targets=None):
        logits, loss = super().forward(idx, targets)
        return logits, None if loss is None else -loss


class Explodes(m.Healthy):
    """Fine at the start; the first step of training drives the root below zero."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1e-6))

    def forward(self, input_ids):
        return super().forward(input_ids) * torch.sqrt(self.scale) / torch.sqrt(self.scale)


def _checked(build):
    torch.manual_seed(0)
    return learning.check(adapt(build()))


@pytest.mark.parametrize(
    "build", [m.Healthy, m.ZeroHead, m.PartlyFrozen, OwnLoss, Smoothed, Focal, Targets, lambda: m.Healthy(limit=1)]
)
def test_a_healthy_model_learns_a_batch_by_heart(build):
    result = _checked(build)
    assert result.status == "pass", result.summary()
    assert result.measured["last_loss"] <= result.measured["goal"] < result.measured["first_loss"]


@pytest.mark.parametrize(("name", "build"), list(m.hugging_face()), ids=[name for name, _ in m.hugging_face()])
def test_hugging_face_defaults_learn(name, build):
    assert _checked(build).status == "pass"


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (m.Constant, ["cannot be learnt by heart"]),
        (m.MultipliedByZero, ["cannot be learnt by heart"]),
        (m.NaNWeight, ["loss becomes nan"]),
        (Explodes, ["loss becomes nan"]),
        (NeverShifted, ["shifted 0 times", "own loss", "labels[:, 1:]"]),
        (ShiftedTwice, ["shifted twice", "t + 2"]),
        (Probabilities, ["returns probabilities", "softmax"]),
        (Negated, ["wrong sign", "negated"]),
        (NegatedTargets, ["wrong sign", "negated"]),
        (Severed, ["carries no gradient", "detach"]),
        (Summed, ["56 times", "a sum in place of the mean"]),
        (SquashedTwice, ["0.01", "softmax"]),
        (ShiftsTokens, ["shifted twice", "never read token t"]),
        (ShiftsLogits, ["shifted twice", "never read token t"]),
    ],
)
def test_what_cannot_learn_or_shifts_wrongly_is_named(build, words):
    result = _checked(build)
    assert result.status == ("warn" if build in (NeverShifted, Summed, SquashedTwice) else "fail"), result.summary()
    assert [word for word in words if word not in result.summary()] == [], result.summary()


def test_what_is_frozen_need_not_reach_the_goal():
    result = _checked(LowRank)
    assert result.status == "pass" and result.measured["last_loss"] > result.measured["goal"], result.summary()


def test_two_tokens_are_enough_to_see_what_is_read():
    result = _checked(lambda: m.Healthy(vocabulary=2))
    assert result.measured["reads_current_token"] is True
    assert result.status == "pass", result.summary()


def test_after_the_training_positions_name_the_next_token():
    shares = _checked(m.Healthy).measured["answers_by_distance"]
    assert max(shares, key=shares.get) == "1"


def test_a_frozen_model_is_skipped():
    result = _checked(m.Frozen)
    assert (result.status, "frozen" in result.headline) == ("skip", True)


@pytest.mark.parametrize(("losses", "status"), [([4.0, 3.9], "warn"), ([4.0, 3.0], "pass")])
def test_a_model_too_slow_for_the_goal_is_judged_by_the_fall(losses, status):
    adapted = adapt(m.Healthy())
    faults = learning._unlearnt(adapted, learning.Run(losses, 1.0, out_of_time=True))
    assert [fault.status for fault in faults] == ([] if status == "pass" else [status])


def test_time_ends_the_training(monkeypatch):
    monkeypatch.setattr(learning, "SECONDS", 0.0)
    result = _checked(m.Healthy)
    assert result.measured["steps"] == 0
    assert result.status == "warn"
