from __future__ import annotations

import importlib

import pytest

from utils.tokenization.hub_access import is_repository
from utils.tokenization.known_tokenizers import KNOWN_TOKENIZERS, tokenizers_for


@pytest.mark.parametrize("known", KNOWN_TOKENIZERS, ids=lambda known: known.name)
def test_rows_hold_the_entries(known):
    assert all(known.entries <= rows for rows in known.rows)
    assert known.repositories and all(is_repository(name) and "/" in name for name in known.repositories)


CONFIGS = {  # class of the transformers library → what its default rows belong to
    "gpt2.GPT2Config": "GPT-2",
    "gptj.GPTJConfig": "GPT-J",
    "roberta.RobertaConfig": "RoBERTa and BART",
    "bart.BartConfig": "RoBERTa and BART",
    "opt.OPTConfig": "OPT",
    "phi.PhiConfig": "Phi-1.5 and Phi-2",
    "llama.LlamaConfig": "Llama 2 and TinyLlama",
    "phi3.Phi3Config": "Phi-3",
    "starcoder2.Starcoder2Config": "StarCoder 2 and SmolLM",
    "falcon.FalconConfig": "Falcon",
    "bloom.BloomConfig": "BLOOM",
    "gemma2.Gemma2Config": "Gemma 1 and 2",
    "gemma3.Gemma3TextConfig": "Gemma 3",
    "gpt_neox.GPTNeoXConfig": "GPT-NeoX and Pythia",
    "qwen2.Qwen2Config": "Qwen 2.5",
    "bert.BertConfig": "BERT, lower case",
    "t5.T5Config": "T5",
    "albert.AlbertConfig": "ALBERT",
    "deberta_v2.DebertaV2Config": "DeBERTa v3",
}


@pytest.mark.parametrize(("path", "name"), CONFIGS.items())
def test_rows_agree_with_the_transformers_library(path, name):
    package, config = path.split(".")
    module = importlib.import_module(f"transformers.models.{package}.configuration_{package}")
    rows = getattr(module, config)().vocab_size
    assert name in {known.name for known in tokenizers_for(rows)}


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        (50257, ["GPT-2"]),
        (50304, ["GPT-2", "GPT-NeoX and Pythia"]),  # what keeps every text comes first
        (250002, ["XLM-RoBERTa"]),  # not OPT
        (49152, ["StarCoder 2 and SmolLM"]),  # not Phi
        (100277, ["GPT-4 (cl100k)"]),
        (262144, []),  # Gemma 3 has 262,145 entries
        (12345, []),
    ],
)
def test_tokenizers_are_found_by_rows(rows, names):
    assert [known.name for known in tokenizers_for(rows)] == names
