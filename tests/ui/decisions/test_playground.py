from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from tests.training.tiny import make_tiny
from tests.ui.small_setup import small_setup
from utils.training.generation import generate, generate_tokens
from utils.ui.decisions.playground import FINAL, Drawing, Playground
from utils.ui.work import Ticket


@pytest.fixture(scope="module")
def result(tmp_path_factory, tokenizer):
    setup = small_setup(tmp_path_factory.mktemp("playground"), tokenizer)
    for name, value in {"batch_size": 8, "max_steps": 12, "val_every_n_steps": 4, "learning_rate": 0.02}.items():
        setup.training.change(name, value)
    return setup.results.train(Ticket())


@pytest.mark.parametrize("how", [Drawing(), Drawing(temperature=0.0), Drawing(top_k=0, temperature=1.5, seed=3)])
def test_the_playground_writes_what_the_verb_writes(result, how):
    choices = list(Playground(result).write(FINAL, "8 green", how))
    text = generate(
        result,
        "8 green",
        max_new_tokens=how.tokens,
        temperature=how.temperature,
        top_k=how.top_k or None,
        seed=how.seed,
    )
    assert "8 green" + "".join(choice.text for choice in choices) == text


def test_probabilities_are_those_of_the_model(result):
    (choice,) = itertools.islice(generate_tokens(result, "8 green", temperature=0, likeliest=300), 1)
    shares = [share for _, share in choice.likeliest]
    assert sum(shares) == pytest.approx(1.0) and shares == sorted(shares, reverse=True)
    assert choice.probability == shares[0]
    ids = result.tokenizer("8 green", return_tensors="pt")["input_ids"]
    logits = result.model(ids).logits[0, -1].detach().double().numpy()
    assert choice.probability == pytest.approx(float(np.exp(logits.max()) / np.exp(logits).sum()), rel=1e-5)


def test_earlier_checkpoints_write_their_own_text_and_the_trained_model_stays(result):
    playground = Playground(result)
    names = [name for name, _ in playground.checkpoints]
    assert names[0] == FINAL and len(names) >= 3 and "validation loss" in playground.checkpoints[1][1]
    before = {name: value.clone() for name, value in result.model.state_dict().items()}
    how = Drawing(temperature=0.0, tokens=20)
    texts = {name: [choice.probability for choice in playground.write(name, "8 green", how)] for name in names}
    assert texts[names[1]] == texts[FINAL] and texts[names[-1]] != texts[FINAL]  # the newest one is the trained model
    assert all(result.model.state_dict()[name].equal(value) for name, value in before.items())


def test_two_texts_can_grow_in_turn(result):
    playground, how = Playground(result), Drawing(tokens=8)
    oldest = playground.checkpoints[-1][0]
    alone = [list(playground.write(name, "8 ", how)) for name in (FINAL, oldest)]
    together = list(zip(playground.write(FINAL, "8 ", how), playground.write(oldest, "8 ", how)))
    assert [list(side) for side in zip(*together)] == alone


def test_models_that_write_nothing_say_so(result):
    blind = SimpleNamespace(run_folder=result.run_folder, model=make_tiny(), tokenizer=None)
    assert "no text to begin with" in Playground(blind).why_not
    seer = SimpleNamespace(contract=SimpleNamespace(task="vision", multiple_of=1))
    unseeing = SimpleNamespace(run_folder=result.run_folder, model=seer, tokenizer=None)
    assert "A model for vision continues no text" in Playground(unseeing).why_not
    assert Playground(result).why_not == ""
