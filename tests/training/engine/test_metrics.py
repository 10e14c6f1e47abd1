from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from utils.adapters.model_outputs import ModelOutputs
from utils.training.engine.loss import LossStrategyRegistry
from utils.training.engine.metrics import MetricsEngine, macro_f1, perplexity


def measured(name, *batches):
    engine = MetricsEngine(LossStrategyRegistry.get(name))
    for logits, batch in batches:
        engine.update(ModelOutputs(logits), batch)
    return engine


def hot(ids, classes):
    return torch.nn.functional.one_hot(ids, classes).float()


def test_a_perfect_next_token_predictor_scores_one_and_a_copier_does_not():
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    perfect = measured("next_token", (hot(ids.roll(-1, 1), 8), {"input_ids": ids})).compute()
    copier = measured("next_token", (hot(ids, 8), {"input_ids": ids})).compute()
    assert perfect["accuracy"] == 1.0 and copier["accuracy"] == 0.0
    surprise = math.log(math.e + 7) - 1  # softmax of one 1 and seven 0
    assert perfect["loss"] == pytest.approx(surprise) and perfect["perplexity"] == pytest.approx(math.exp(surprise))


def test_every_label_counts_alike_whatever_the_batches():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 8, generator=generator)
    labels = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 7, -100, -100, -100, -100]])
    apart = [(logits[i : i + 1], {"input_ids": labels[i : i + 1], "labels": labels[i : i + 1]}) for i in range(2)]
    found = measured("masked", *apart).compute()
    expected = torch.nn.functional.cross_entropy(logits.view(-1, 8), labels.view(-1))
    assert found["loss"] == pytest.approx(float(expected))
    assert found["accuracy"] == pytest.approx(float((logits.argmax(-1) == labels).sum() / 8))


def test_a_batch_without_labels_adds_nothing():
    ids = torch.arange(3).view(1, 3)
    empty = (hot(ids, 8), {"input_ids": ids, "labels": torch.full((1, 3), -100)})
    full = (hot(ids, 8), {"input_ids": ids, "labels": ids})
    assert measured("masked", empty, full).compute() == measured("masked", full).compute()
    assert math.isnan(measured("masked", empty).compute()["loss"]) and math.isnan(measured("masked").compute()["loss"])


def test_classes_are_rated_as_scikit_learn_rates_them():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (60,), generator=generator)
    guesses = torch.where(
        torch.rand(60, generator=generator) < 0.6, labels, torch.randint(0, 5, (60,), generator=generator)
    )
    engine = measured(
        "classification",
        *((hot(g, 6), {"input_ids": g, "labels": y}) for g, y in zip(guesses.split(25), labels.split(25))),
    )
    found = engine.compute()
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, guesses))
    expected = f1_score(labels, guesses, labels=labels.unique().tolist(), average="macro")
    assert found["macro_f1"] == pytest.approx(expected) == pytest.approx(macro_f1(engine.confusion))
    assert int(engine.confusion.sum()) == 60
    engine.reset()
    assert engine.confusion is None


@pytest.mark.parametrize(("loss", "expected"), [(0.0, 1.0), (1.0, math.e), (5000.0, math.inf)])
def test_perplexity_never_overflows(loss, expected):
    assert perplexity(loss) == pytest.approx(expected)
