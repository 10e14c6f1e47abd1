from __future__ import annotations

import pytest
import torch

from tests.ui.small_setup import small_setup
from utils.training.forecast import Forecast
from utils.ui.decisions.review import Review
from utils.ui.decisions.training import TrainingDecision


@pytest.fixture
def setup(tmp_path, tokenizer):
    found = small_setup(tmp_path, tokenizer)
    vars(found)["training"] = TrainingDecision(found, torch.device("cpu"))
    return found


def words(review: Review) -> dict[str, str]:
    return {name: text for section in review.sections() for name, text in section.rows}


def test_everything_that_was_decided_is_on_one_page(setup):
    setup.training.change("epochs", 7)
    found = words(setup.review)
    assert found["model"] == "TinyTransformer, 7,280 parameters" and found["task"] == "lm"
    assert found["size"].startswith("160 documents") and found["vocabulary"] == "300 tokens"
    assert found["length"] == "7 epochs" and found["precision"] == "32-true: CPU trains in full precision"
    assert "time" not in found
    setup.training.measure()
    assert words(setup.review)["time"].endswith("on CPU")
    assert [section.place for section in setup.review.sections()] == [0, 1, 2, 3]


def test_a_wizard_that_nobody_touched_says_what_will_be_taken(tmp_path):
    setup = small_setup(tmp_path)
    setup.validation.adapted = None
    assert "default" in setup.review.plan()[0] and setup.review.problems() == []
    assert words(setup.review)["settings"] == "those that fit the model"


@pytest.mark.parametrize(
    ("finished", "changed", "sentence"),
    [
        (False, False, "goes on from its newest checkpoint"),
        (True, False, "is finished already"),
        (True, True, "A new run begins; the run my-run had other settings"),
    ],
)
def test_the_plan_says_what_becomes_of_an_earlier_run(setup, finished, changed, sentence):
    run = setup.training.runs / "my-run"
    run.mkdir(parents=True)
    if finished:
        (run / "manifest.json").write_text("{}")
    setup.results._keep(name="my-run", subject=setup.results.subject())
    if changed:
        setup.training.change("epochs", 3)
    assert any(sentence in line for line in setup.review.plan())


def test_failed_checks_a_full_disk_and_long_hours_are_warned_of(setup, monkeypatch):
    setup.validation.form.passed, setup.validation.form.verdict = False, "1 of 15 checks failed: gradients."
    cost = setup.training.measure().cost(1, 16)
    long = Forecast(10**9, 10**9, cost, 0.0, 1e6, 3, 1e3, 1e12, 1.0, None, "CPU")
    monkeypatch.setattr(setup.training, "forecast", lambda: long)
    first, second, third = setup.review.warnings()
    assert "checks failed" in first and "the local disk" in second and "hours" in third


def test_data_and_tokenizer_that_are_no_text_are_named_all_the_same(setup):
    data = setup.dataset
    data.loaded, data.task, data.examples = None, "vision", {"vision_tiny": "Handwritten digits"}
    data.for_training = lambda: "vision_tiny"
    setup.tokenizer.made, setup.tokenizer.not_needed = None, "Images need no tokenizer. Go on."
    found = words(setup.review)
    assert found["data"] == "Handwritten digits" and found["tokenizer"] == "Images need no tokenizer."
    assert "tokens per sample" not in found
    data.for_training = lambda: [torch.ones(3)]
    assert words(setup.review)["data"] == "what the notebook passed"


def test_problems_of_the_settings_stand_in_the_way(setup):
    setup.training.change("epochs", 0)
    setup.training.change("batch_size", 0)
    assert len(setup.review.problems()) == 2
