"""Useful tokens per second of a training epoch on short documents, side by side: `python benchmarks/padded_training.py`.

The same small GPT-2 is trained for one epoch on the same short documents, each ended by end-of-text: by `transformers.Trainer`
as it comes (8 documents a batch, padded to the longest of them), and by this package's `Trainer` on packed blocks (8 blocks a
batch). Useful are tokens of documents; padding is not. Both are measured in turns within one run, from the first to the last
step, without loading and saving. Needs `pip install accelerate`. Exit code 1 where the limit is missed.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from anywhere, as a file
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import transformers

from utils.adapters.model_adapter import adapt
from utils.tokenization.bpe_trainer import FastBPETrainer
from utils.tokenization.packing import pack_documents
from utils.training.dataset_utilities import python_docs
from utils.training.engine.trainer import Trainer
from utils.training.training_config import TrainingConfig

ROWS, LENGTH, BATCH = 2000, 128, 8
LEAST = 2.0
"""Least ratio of useful tokens per second."""


def documents(count: int) -> list[str]:
    """Single sentences and short paragraphs: 2 to 90 words, about 15 in the middle."""
    words = python_docs().split()
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(2.7, 0.8, count), 2, 90).astype(int)
    begins = random.integers(0, len(words) - 90, count)
    return [" ".join(words[begin : begin + length]) for begin, length in zip(begins, lengths)]


def model() -> transformers.GPT2LMHeadModel:
    """A GPT-2 of about one million parameters."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=ROWS, n_positions=LENGTH, n_embd=128, n_layer=4, n_head=4, bos_token_id=2, eos_token_id=3
    )
    return transformers.GPT2LMHeadModel(config)


def padded(texts: list[str], tokenizer: Any, folder: Path) -> tuple[int, float]:
    """One epoch of `transformers.Trainer`: useful tokens and seconds."""
    rows = [[*tokenizer(text)["input_ids"][: LENGTH - 1], tokenizer.eos_token_id] for text in texts]
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    settings = transformers.TrainingArguments(
        str(folder), num_train_epochs=1, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True
    )
    trainer = transformers.Trainer(
        model(), settings, data_collator=collator, train_dataset=[{"input_ids": row} for row in rows]
    )
    return sum(map(len, rows)), trainer.train().metrics["train_runtime"]


def packed(texts: list[str], tokenizer: Any, folder: Path) -> tuple[int, float]:
    """One epoch of ours: useful tokens and seconds."""
    blocks = pack_documents(texts, tokenizer, LENGTH)
    config = TrainingConfig(batch_size=BATCH, epochs=1, run_name="run", save_every_n_minutes=0)
    result = Trainer(adapt(model()), None, config, workspace=folder).train(blocks)
    return blocks.tokens, result["training_time"]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and judge."""
    parser = argparse.ArgumentParser(description="Packed against padded training on short documents.")
    parser.add_argument("--documents", type=int, default=3000)
    parser.add_argument("--turns", type=int, default=3, help="epochs of each way (default: %(default)s)")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    texts = documents(options.documents)
    tokenizer = FastBPETrainer.train_on_dataset(texts, ROWS)
    rates: dict[str, list[float]] = {"padded": [], "packed": []}
    work: dict[str, list[float]] = {"padded": [], "packed": []}
    for turn in range(options.turns):
        for name in ("padded", "packed") if turn % 2 == 0 else ("packed", "padded"):
            begun = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                tokens, seconds = {"padded": padded, "packed": packed}[name](texts, tokenizer, Path(folder))
            rates[name].append(tokens / seconds)
            work[name].append(tokens / (time.process_time() - begun))
            print(f"{name}: {tokens:,} useful tokens in {seconds:.1f} s, {tokens / seconds:,.0f} per second")  # noqa: T201
    ratio = statistics.median(ours / theirs for ours, theirs in zip(rates["packed"], rates["padded"]))
    per_work = statistics.median(ours / theirs for ours, theirs in zip(work["packed"], work["padded"]))
    print(f"per second of processor time, loading and saving included: {per_work:.2f}")  # noqa: T201
    verdict = "reached" if ratio >= LEAST else "MISSED"
    print(f"packed / padded default of transformers.Trainer: {ratio:.2f} (at least {LEAST:.1f}: {verdict})")  # noqa: T201
    return 0 if ratio >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
