from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from utils.adapters.model_outputs import ModelOutputs, aligned, cross_entropy, next_token_loss
from utils.errors import ConfigError, DataError
from utils.training.engine.loss import ClassificationLoss, LossStrategy, LossStrategyRegistry

IDS = torch.tensor([[1, 2, 3, 4], [4, 3, -100, -100]])


def test_every_task_has_a_strategy_and_its_own_name():
    from utils.adapters.contract import TASKS

    assert {LossStrategyRegistry.for_task(task).task for task in TASKS} == set(TASKS)
    assert len(LossStrategyRegistry.names()) >= 5
    for name in LossStrategyRegistry.names():
        assert LossStrategyRegistry.get(name).name == name


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ConfigError, match=r"no loss strategy 'next_tokn'; did you mean 'next_token'\?"):
        LossStrategyRegistry.get("next_tokn")


@pytest.mark.parametrize(
    ("name", "batch", "count"),
    [
        ("next_token", {"input_ids": IDS.abs() % 5, "labels": IDS}, 4),  # the first of each row is predicted by nobody
        ("next_token", {"input_ids": IDS.abs() % 5}, 6),
        ("masked", {"input_ids": IDS, "labels": IDS}, 6),
        ("seq2seq", {"input_ids": IDS, "labels": IDS}, 6),
        ("classification", {"input_ids": IDS, "labels": torch.tensor([1, -100])}, 1),
        ("vision", {"pixel_values": torch.zeros(2, 1, 4, 4), "labels": torch.tensor([1, 0])}, 2),
    ],
)
def test_labels_that_carry_loss_are_counted(name, batch, count):
    assert int(LossStrategyRegistry.get(name).counted(batch)) == count


@pytest.mark.parametrize("name", ["masked", "seq2seq", "classification", "vision"])
def test_a_batch_that_cannot_be_scored_is_named(name):
    with pytest.raises(DataError, match=rf"The loss '{name}' needs .*'labels'.*add"):
        LossStrategyRegistry.get(name).check({"input_ids": IDS, "pixel_values": IDS})


def test_scores_stand_beside_the_labels_that_they_are_about():
    logits = torch.randn(2, 4, 7)
    scores, labels = LossStrategyRegistry.get("next_token").targets(logits, {"input_ids": IDS, "labels": IDS})
    assert labels.equal(IDS[:, 1:]) and scores.equal(logits[:, :-1])
    assert all(a.equal(b) for a, b in zip(aligned(logits, IDS, 0), (logits, IDS)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_equal_those_of_torch(smoothing):
    logits = torch.randn(2, 4, 7, dtype=torch.float64)
    expected = F.cross_entropy(
        logits[:, :-1].reshape(-1, 7).float(), IDS[:, 1:].reshape(-1), ignore_index=-100, label_smoothing=smoothing
    )
    assert float(next_token_loss(logits, IDS, label_smoothing=smoothing)) == pytest.approx(float(expected), rel=1e-6)
    classes = torch.tensor([3, 1])
    expected = F.cross_entropy(logits[:, 0].float(), classes, label_smoothing=smoothing)
    assert float(cross_entropy(logits[:, 0], classes, label_smoothing=smoothing)) == pytest.approx(float(expected))


def test_a_loss_of_ones_own_is_registered_once(monkeypatch):
    monkeypatch.setattr(LossStrategyRegistry, "_known", dict(LossStrategyRegistry._known))

    @LossStrategyRegistry.register
    class Brier(ClassificationLoss):
        name = "brier"

        def __call__(self, adapted, batch, label_smoothing=0.0):
            out = adapted.on_batch(batch)
            wanted = F.one_hot(batch["labels"], out.logits.shape[-1])
            return ModelOutputs(out.logits, ((out.logits.softmax(-1) - wanted) ** 2).sum(-1).mean())

    class Model:
        def on_batch(self, batch):
            return ModelOutputs(torch.tensor([[0.0, math.log(3)]]))

    batch = {"input_ids": IDS, "labels": torch.tensor([1])}
    assert float(LossStrategyRegistry.get("brier")(Model(), batch).loss) == pytest.approx(2 / 16)
    assert LossStrategyRegistry.register(Brier) is Brier

    class Other(ClassificationLoss):
        name = "brier"

    with pytest.raises(ConfigError, match=r"'brier' is there already \(Brier\)"):
        LossStrategyRegistry.register(Other)

    class Nameless(LossStrategy):
        pass

    with pytest.raises(ConfigError, match="Nameless needs a name and a task"):
        LossStrategyRegistry.register(Nameless)
