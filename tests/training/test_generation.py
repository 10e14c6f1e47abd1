from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from tests.training.tiny import make_tiny
from utils.adapters.model_adapter import AdaptedModel
from utils.errors import ConfigError, TokenizerError
from utils.training import generation
from utils.training.generation import generate


class Scripted(nn.Module):
    """Prefers one fixed id, whatever comes in; rows reach beyond the tokenizer."""

    lengths: ClassVar[list[int]] = []  # of the class: what a module keeps is taken back after generating

    def __init__(self, ranking: list[int], rows: int = 320) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, 4)
        self.ranking = ranking

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        self.lengths.append(input_ids.shape[1])
        logits = torch.zeros(*input_ids.shape, self.embedding.num_embeddings) + 0 * self.embedding(input_ids).sum()
        for place, index in enumerate(self.ranking):
            logits[..., index] = 50.0 - place
        return logits


def scripted(ranking: list[int]) -> AdaptedModel:
    return AdaptedModel(Scripted(ranking), {"vocab_size": 320, "max_seq_len": 8})


@pytest.fixture
def green(tokenizer):
    return tokenizer("g", add_special_tokens=False)["input_ids"][0]


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_ids_without_text_are_never_drawn(tokenizer, green, temperature):
    beyond_and_special = [319, 300, tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
    text = generate(
        scripted([*beyond_and_special, green]),
        "a",
        tokenizer=tokenizer,
        max_new_tokens=3,
        temperature=temperature,
        top_k=1,
    )
    assert text == "aggg"


def test_end_of_text_ends_the_text(tokenizer, green):
    assert generate(scripted([tokenizer.eos_token_id, green]), "a", tokenizer=tokenizer, temperature=0) == "a"


def test_the_view_is_cropped_to_the_limit_and_the_text_is_not(tokenizer, green):
    model = scripted([green])
    model.model.lengths.clear()
    text = generate(model, "abcdefghijkl", tokenizer=tokenizer, max_new_tokens=4, temperature=0)
    assert text == "abcdefghijklgggg"
    assert max(model.model.lengths) == 8


def test_seeds_decide_and_the_global_state_is_untouched(tokenizer):
    model, before = make_tiny(), torch.get_rng_state()
    first, again, other = (generate(model, "on", tokenizer=tokenizer, seed=seed, temperature=1.0) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.get_rng_state().equal(before)


def test_top_k_of_one_is_greedy(tokenizer):
    model = make_tiny()
    assert generate(model, "on", tokenizer=tokenizer, top_k=1) == generate(
        model, "on", tokenizer=tokenizer, temperature=0
    )


def test_the_allowed_ids_are_found_once(tokenizer, monkeypatch):
    calls, original = [], generation._allowed
    monkeypatch.setattr(generation, "_allowed", lambda *parts: calls.append(parts) or original(*parts))
    generate(make_tiny(), "on", tokenizer=tokenizer, max_new_tokens=5)
    assert len(calls) == 1


def test_the_model_is_left_as_it_was(tokenizer):
    model = make_tiny()
    model.model.token.max_norm = 0.5  # rewrites rows in forward
    weights = model.model.token.weight.clone()
    generate(model, "on", tokenizer=tokenizer, max_new_tokens=2)
    assert model.model.token.weight.equal(weights)


def test_modes_are_as_before(tokenizer):
    model = make_tiny().train()
    model.model.block.eval()
    generate(model, "on", tokenizer=tokenizer, max_new_tokens=2)
    assert model.training and not model.model.block.training


def test_an_empty_prompt_begins_after_end_of_text(tokenizer, green):
    assert generate(scripted([green]), "", tokenizer=tokenizer, max_new_tokens=2, temperature=0) == "gg"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": 3}, "prompt must be text"),
        ({"max_new_tokens": -1}, "max_new_tokens must be"),
        ({"max_new_tokens": 1.5}, "max_new_tokens must be"),
        ({"temperature": -0.1}, "temperature must be"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"top_k": 0}, "top_k must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": True, "top_k": "x"}, "top_k must be.*seed must be"),
    ],
)
def test_wrong_arguments_are_named_together(tokenizer, arguments, message):
    with pytest.raises(ConfigError, match=message):
        generate(make_tiny(), arguments.pop("prompt", "a"), tokenizer=tokenizer, **arguments)


def test_model_and_tokenizer_are_asked_for(tokenizer):
    with pytest.raises(TokenizerError, match="pass tokenizer="):
        generate(make_tiny(), "a")
    with pytest.raises(ConfigError, match=r"Call adapt\(\) first"):
        generate(nn.Linear(2, 2), "a", tokenizer=tokenizer)
