from __future__ import annotations

import logging
import random
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.tiny import make_tiny
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.decoding import Sampling
from utils.errors import ConfigError, DataError, GenerationError, TokenIdError, TokenizerError
from utils.export.signature import Signature
from utils.training import generation
from utils.training.generation import encoded_prompts, generate, generate_stream, write
from utils.training.generation_steps import CachedStep


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
    calls, original = [], generation.allowed_ids
    monkeypatch.setattr(generation, "allowed_ids", lambda *parts: calls.append(parts) or original(*parts))
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
        ({"top_p": 0, "repetition_penalty": -1}, "top_p must be.*repetition_penalty must be"),
        ({"prompt": ["a", 3]}, "prompt must be text; got int"),
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


# ---- batches and streams ---------------------------------------------------------------------------------------------------
PROMPTS = ["1 green", "on", "", "2 green bottles hang on wall number"]


def test_a_list_gives_a_list_and_each_text_what_it_gets_alone(tokenizer):
    model = make_tiny()
    options = {"tokenizer": tokenizer, "temperature": 0, "max_new_tokens": 12}
    assert generate(model, PROMPTS, **options) == [generate(model, prompt, **options) for prompt in PROMPTS]
    assert generate(model, [], **options) == []


def test_prompts_of_a_list_draw_apart(tokenizer):
    first, second = generate(make_tiny(), ["on", "on"], tokenizer=tokenizer, temperature=1.0, max_new_tokens=20)
    assert first != second
    assert first == generate(make_tiny(), "on", tokenizer=tokenizer, temperature=1.0, max_new_tokens=20)


@pytest.mark.parametrize("prompt", ["on", "für 你好"])
def test_streamed_pieces_join_to_the_text(tokenizer, prompt):
    model, options = make_tiny(), {"tokenizer": tokenizer, "temperature": 1.5, "top_k": None, "max_new_tokens": 60}
    pieces = list(generate_stream(model, prompt, **options))
    assert prompt + "".join(pieces) == generate(model, prompt, **options)
    assert len(pieces) > 5


def test_a_stream_checks_at_once_and_gives_the_model_back_when_closed(tokenizer):
    model = make_tiny().train()
    with pytest.raises(ConfigError, match="temperature"):
        generate_stream(model, "a", tokenizer=tokenizer, temperature=-1)
    stream = generate_stream(model, "on", tokenizer=tokenizer)
    next(stream)
    stream.close()
    assert model.training


def test_random_numbers_of_whoever_reads_a_stream_are_not_rolled_back(tokenizer):
    model, mine = make_tiny(), []
    for _ in generate_stream(model, "on", tokenizer=tokenizer, max_new_tokens=8):
        mine.append((torch.rand(()).item(), np.random.random(), random.random()))  # noqa: NPY002 - the reader's own habit
    assert len(set(mine)) == len(mine) > 1
    after = torch.rand(()).item()
    assert after not in {number for number, _, _ in mine}


def test_a_model_that_draws_numbers_takes_none_of_the_readers(tokenizer):
    class Drawing(Scripted):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return super().forward(input_ids) + 0 * torch.rand(1)

    model = AdaptedModel(Drawing([300, 40]), {"vocab_size": 320, "max_seq_len": 8})
    torch.manual_seed(5)
    expected = [torch.rand(()).item() for _ in range(4)]
    torch.manual_seed(5)
    stream = generate_stream(model, "on", tokenizer=tokenizer, temperature=0, max_new_tokens=4)
    assert [torch.rand(()).item() for _ in stream] == expected


def test_a_model_that_says_nan_is_named(tokenizer):
    model = make_tiny()
    with torch.no_grad():
        model.model.token.weight[5] = float("nan")
    with pytest.raises(GenerationError, match=r"TinyTransformer: .*leave nothing to choose"):
        generate(model, "on", tokenizer=tokenizer)


def test_half_a_surrogate_pair_is_no_text(tokenizer):
    with pytest.raises(DataError, match="half of a surrogate pair"):
        generate(make_tiny(), "\ud800", tokenizer=tokenizer)


# ---- against transformers --------------------------------------------------------------------------------------------------
SMALL = {"vocab_size": 304, "bos_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_positions=48, n_embd=32, n_layer=2, n_head=4, **SMALL))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 48}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes, **SMALL))


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(**sizes, **SMALL))


def bart() -> nn.Module:
    from transformers import BartConfig, BartForConditionalGeneration

    layers = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 32))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"d_model": 32, "max_position_embeddings": 48, "decoder_start_token_id": 2, "forced_eos_token_id": None}
    return BartForConditionalGeneration(BartConfig(**layers, **heads, **sizes, **SMALL))


MODELS = {"gpt2": gpt2, "llama": llama, "t5": t5, "bart": bart}


def built(name: str) -> AdaptedModel:
    """With weights so large that texts do not repeat one token."""
    torch.manual_seed(1)
    model = MODELS[name]()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4 if weight.dim() > 1 else 1)
    return adapt(model.eval())


@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_that_of_transformers(tokenizer, name):
    adapted = built(name)
    adapted.model.generation_config.suppress_tokens = np.flatnonzero(~generation.allowed_ids(tokenizer, 304)).tolist()
    prompts = ["4 green bottles", "on wall"]
    for prompt, written in zip(prompts, write(adapted, prompts, Sampling(20, 0, repetition_penalty=6.0), tokenizer)):
        (ids,) = encoded_prompts(adapted, [prompt], tokenizer)
        said = adapted.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
            repetition_penalty=6.0,
        )[0].tolist()
        new = said[1:] if adapted.contract.decoder_name else said[len(ids) :]
        assert written.ids == [index for index in new if index != 3]
        assert len(set(written.ids)) > 3


class Calls:
    """Lengths of what a module was called with."""

    def __init__(self, module: nn.Module) -> None:
        self.lengths: list[int] = []
        module.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("decoder_input_ids", kwargs.get("input_ids"))
        self.lengths.append(given.shape[1])


@pytest.mark.parametrize(("name", "temperature"), [("gpt2", 0), *((name, 1.0) for name in MODELS)])
def test_the_cache_changes_no_text_even_past_the_limit(tokenizer, name, temperature):
    adapted = built(name)
    options = {"tokenizer": tokenizer, "temperature": temperature, "max_new_tokens": 60, "seed": 3}
    prompts = ["7 green", "on wal", "8 green", "bottles hang on"]
    calls = Calls(adapted.model)
    cached = generate(adapted, prompts, **options)
    assert calls.lengths.count(1) > 60, "the newest token alone went in"
    assert cached == generate(adapted, prompts, use_cache=False, **options)


def test_a_cache_that_lies_is_not_used(tokenizer, caplog, monkeypatch):
    adapted, options = built("gpt2"), {"tokenizer": tokenizer, "temperature": 0, "max_new_tokens": 12}
    expected, inner = generate(adapted, "on", use_cache=False, **options), adapted.model.transformer.forward

    def forgetful(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        return inner(*args, past_key_values=None, **kwargs)

    monkeypatch.setattr(adapted.model.transformer, "forward", forgetful)
    with caplog.at_level(logging.WARNING):
        assert generate(adapted, "on", **options) == expected
    assert "without its key/value cache: logits differ by" in caplog.text


def test_models_without_a_cache_are_recomputed(tokenizer):
    assert not CachedStep.fits(make_tiny())
    assert CachedStep.fits(built("gpt2"))


# ---- exported files --------------------------------------------------------------------------------------------------------
class File:
    """A model behind the face of an exported file."""

    def __init__(self, adapted: AdaptedModel) -> None:
        contract = adapted.contract
        inputs = ("input_ids", "decoder_input_ids") if contract.decoder_name else ("input_ids",)
        limits = {"vocab_size": contract.vocab_size, "max_length": contract.max_length, "start_id": contract.start_id}
        self.signature = Signature(contract.task, inputs, contract.output_size, **limits)
        self.path, self._adapted = "model.onnx", adapted

    def run(self, **inputs: Any) -> np.ndarray:
        with torch.no_grad():
            ids = {name: torch.from_numpy(value) for name, value in inputs.items()}
            return self._adapted(**ids).logits.numpy()


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_file_gives_the_text_of_its_model(tokenizer, name):
    adapted, options = built(name), {"tokenizer": tokenizer, "temperature": 1.0, "max_new_tokens": 12, "seed": 4}
    prompts = ["7 green", "on wall", ""]
    assert generate(File(adapted), prompts, **options) == generate(adapted, prompts, **options)
    pieces = "".join(generate_stream(File(adapted), "on", **options))
    assert pieces and generate(adapted, "on", **options).endswith(pieces)


def test_an_encoder_decoder_answers_and_does_not_repeat_the_source(tokenizer):
    text = generate(built("t5"), "7 green bottles", tokenizer=tokenizer, temperature=0, max_new_tokens=6)
    assert text and not text.startswith("7 green")


def test_a_source_is_encoded_as_in_training(tokenizer):
    """With end-of-text, cut at the limit: what `UniversalDataModule` gives an encoder."""
    from utils.tokenization.data_module import UniversalDataModule

    texts = ["7 green bottles", "on wall " * 30]
    pairs = [(text, text) for text in texts]
    data = UniversalDataModule(pairs, tokenizer, "seq2seq", validation=pairs, batch_size=1, max_length=48)
    batches = [batch["input_ids"][0].tolist() for batch in data.train_dataloader()]
    found = encoded_prompts(built("bart"), texts, tokenizer)
    assert found[0][-1] == tokenizer.eos_token_id and len(found[1]) == 48
    assert all(ids in batches for ids in found)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"task": "masked"}, ConfigError, "names hidden tokens and continues no text"),
        ({"task": "classification"}, ConfigError, "chooses classes and continues no text"),
        ({"multiple_of": 4}, ConfigError, "multiples of 4 tokens only"),
        ({"min_length": 9}, ConfigError, "at least 9 tokens; the prompt has"),
        ({"vocab_size": 50}, TokenizerError, "go from 0 to 49"),
    ],
)
def test_files_that_cannot_write_are_refused(tokenizer, changes, error, message):
    import dataclasses

    file = File(built("gpt2"))
    file.signature = dataclasses.replace(file.signature, **changes)
    with pytest.raises(error, match=message):
        generate(file, "green", tokenizer=tokenizer)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tokenizer):
    with pytest.raises(TokenIdError, match="does not fit the model's 40 embedding rows"):
        generate(make_tiny(vocab_size=40), "green", tokenizer=tokenizer)
