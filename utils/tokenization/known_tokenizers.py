"""Published tokenizers by the embedding rows of the models that they belong to. A table; fetches nothing.

Rows and entries differ: models round their rows up (50,277 entries in 50,304, 50,432 or 50,688 rows), or leave room for
more. Rows are those of each model's config.json, entries the length of its tokenizer; sources are named beside each.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownTokenizer:
    """One published tokenizer.

    Attributes:
        name: what people call it.
        rows: embedding rows of the models that use it.
        entries: ids of the tokenizer, the largest id plus one.
        repositories: where it lies on the Hub; ungated ones first.
        changes: how it alters text; empty where every text survives.
    """

    name: str
    rows: tuple[int, ...]
    entries: int
    repositories: tuple[str, ...]
    changes: str = ""

    @property
    def is_lossless(self) -> bool:
        """Whether every text survives encoding and decoding."""
        return not self.changes


_COMPOSES = "composes accents (Unicode NFC)"
_FOLDS = "replaces look-alike characters and runs of blanks (Unicode NFKC)"

KNOWN_TOKENIZERS = (
    # 50,304 is GPT-2 padded to a multiple of 64, as nanoGPT and llm.c do
    KnownTokenizer("GPT-2", (50257, 50304), 50257, ("openai-community/gpt2",)),
    # OpenAI's two lists of byte pairs, whose special ids lie at the end: tiktoken's openai_public.py
    KnownTokenizer("GPT-4 (cl100k)", (100277,), 100277, ("Xenova/gpt-4",)),
    KnownTokenizer("GPT-4o (o200k)", (200019,), 200019, ("Xenova/gpt-4o",)),
    # GPT-2's 50,257 entries and 143 fillers: huggingface/transformers#13696
    KnownTokenizer("GPT-J", (50400,), 50400, ("EleutherAI/gpt-j-6b",)),
    KnownTokenizer("RoBERTa and BART", (50265,), 50265, ("FacebookAI/roberta-base", "facebook/bart-base")),
    # RoBERTa's entries, rows rounded up to a multiple of 8: facebookresearch/metaseq#469
    KnownTokenizer("OPT", (50272,), 50265, ("facebook/opt-125m",)),
    KnownTokenizer("Phi-1.5 and Phi-2", (51200,), 50295, ("microsoft/phi-2", "microsoft/phi-1_5")),
    KnownTokenizer("Llama 2 and TinyLlama", (32000,), 32000, ("TinyLlama/TinyLlama_v1.1", "huggyllama/llama-7b")),
    # Llama's 32,000 and 11 special tokens: guidance-ai/guidance#792
    KnownTokenizer("Phi-3", (32064,), 32011, ("microsoft/Phi-3-mini-4k-instruct",)),
    KnownTokenizer("Mistral v0.3", (32768,), 32768, ("unsloth/mistral-7b-v0.3", "mistralai/Mistral-7B-v0.3")),
    KnownTokenizer("Llama 3", (128256,), 128256, ("unsloth/Llama-3.2-1B", "meta-llama/Llama-3.2-1B")),
    KnownTokenizer("StarCoder 2 and SmolLM", (49152,), 49152, ("HuggingFaceTB/SmolLM-135M", "bigcode/starcoder2-3b")),
    KnownTokenizer("Falcon", (65024,), 65024, ("tiiuae/falcon-7b",)),
    # 200 rows of padding: the model card, and huggingface/transformers#19336
    KnownTokenizer("BLOOM", (250880,), 250680, ("bigscience/bloom-560m",)),
    KnownTokenizer("Gemma 1 and 2", (256000,), 256000, ("unsloth/gemma-2-2b", "google/gemma-2-2b")),
    # id 262,144 stands for images, so that the 262,144 rows of the text-only 1B model do not hold it: transformers#37011
    KnownTokenizer("Gemma 3", (262208,), 262145, ("unsloth/gemma-3-4b-pt", "google/gemma-3-4b-pt")),
    # one tokenizer, rows rounded up per degree of parallelism: EleutherAI/pythia#68
    KnownTokenizer("GPT-NeoX and Pythia", (50304, 50432, 50688), 50277, ("EleutherAI/gpt-neox-20b",), _COMPOSES),
    # 152,064 in the larger models: QwenLM/Qwen3#292, arcee-ai/mergekit#425
    KnownTokenizer("Qwen 2.5", (151936, 152064), 151665, ("Qwen/Qwen2.5-0.5B",), _COMPOSES),
    KnownTokenizer(
        "BERT, lower case", (30522,), 30522, ("google-bert/bert-base-uncased",), "lower-cases and drops blanks"
    ),
    KnownTokenizer("BERT, cased", (28996,), 28996, ("google-bert/bert-base-cased",), "drops blanks and line breaks"),
    # 28 rows of padding: huggingface/transformers#4875
    KnownTokenizer("T5", (32128,), 32100, ("google-t5/t5-small",), _FOLDS),
    KnownTokenizer("ALBERT", (30000,), 30000, ("albert/albert-base-v2",), "lower-cases, and " + _FOLDS),
    KnownTokenizer("XLM-RoBERTa", (250002,), 250002, ("FacebookAI/xlm-roberta-base",), _FOLDS),
    # 128,000 pieces and [MASK]: huggingface/transformers#19301
    KnownTokenizer("DeBERTa v3", (128100,), 128001, ("microsoft/deberta-v3-base",), _FOLDS),
)


def tokenizers_for(rows: int) -> tuple[KnownTokenizer, ...]:
    """Known tokenizers of models with exactly these rows, those that keep every text first."""
    return tuple(sorted((known for known in KNOWN_TOKENIZERS if rows in known.rows), key=lambda k: not k.is_lossless))
