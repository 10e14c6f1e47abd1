"""Tokenising and packing a text, side by side: `python benchmarks/packing.py`.

Three ways over the same documents with the same tokenizer, in turns within one run, so that all see the same machine:
bare `encode_batch` of the `tokenizers` library, which keeps nothing; `pack_documents`, from a `datasets.Dataset` to a
memory-mapped file that was written and read back; and the recipe of the `transformers` examples (`datasets.map` batched to
tokenise, `datasets.map` batched to group). Each turn writes into an empty folder. Of a way's turns the fastest counts,
since other work only ever adds time; the ratio of processor time (all threads) is given beside it. Exit code 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from anywhere, as a file
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

from utils.tokenization.bpe_trainer import FastBPETrainer
from utils.tokenization.packing import pack_documents
from utils.training.dataset_utilities import python_docs

BLOCK, ROWS, BATCH = 512, 8000, 1000
AGAINST_BARE, AGAINST_RECIPE = 0.8, 1.0
"""Least throughput of ours over that of the others."""


def documents(count: int) -> list[str]:
    """Documents of 1 to 40 paragraphs of Python's documentation, drawn by a fixed seed."""
    paragraphs = [text for text in python_docs().split("\n\n") if text.strip()]
    random = np.random.default_rng(0)
    sizes = np.minimum(random.geometric(0.15, count), 40)
    return ["\n\n".join(paragraphs[i] for i in random.integers(0, len(paragraphs), size)) for size in sizes]


def bare(texts: list[str], tokenizer: Any) -> int:
    """`encode_batch`, a thousand documents at a time, and the number of ids."""
    backend = tokenizer.backend_tokenizer
    tokens = 0
    for begin in range(0, len(texts), BATCH):
        encoded = backend.encode_batch(texts[begin : begin + BATCH], add_special_tokens=False)
        tokens += sum(len(item.ids) for item in encoded)
    return tokens


def recipe(dataset: Any, tokenizer: Any) -> int:
    """Tokenise, append end-of-text, join, cut into blocks; the rest of each batch of documents is dropped."""

    def tokenise(rows: dict[str, list[str]]) -> dict[str, Any]:
        ids = tokenizer(rows["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {"input_ids": [[*row, tokenizer.eos_token_id] for row in ids]}

    def group(rows: dict[str, list[list[int]]]) -> dict[str, Any]:
        joined = [index for row in rows["input_ids"] for index in row]
        blocks = [joined[i : i + BLOCK] for i in range(0, len(joined) // BLOCK * BLOCK, BLOCK)]
        return {"input_ids": blocks, "labels": [list(block) for block in blocks]}

    options: dict[str, Any] = {"batched": True, "batch_size": BATCH, "load_from_cache_file": False}
    tokens = dataset.map(tokenise, remove_columns=["text"], **options)
    return len(tokens.map(group, **options)) * BLOCK


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and judge."""
    import datasets

    parser = argparse.ArgumentParser(description="Throughput of tokenising and packing.")
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=5, help="turns of each way (default: %(default)s)")
    options = parser.parse_args(arguments)
    datasets.disable_progress_bars()
    texts = documents(options.documents)
    size = sum(len(text.encode()) for text in texts)
    tokenizer = FastBPETrainer.train_on_dataset(texts, ROWS)
    folder = Path(tempfile.mkdtemp(prefix="packing-"))
    try:
        datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(folder / "text"))
        dataset = datasets.load_from_disk(str(folder / "text"))
        ways: dict[str, Callable[[Path], int]] = {
            "bare encode_batch": lambda place: bare(texts, tokenizer),
            "pack_documents": lambda place: pack_documents(dataset, tokenizer, BLOCK, place).tokens,
            "datasets.map and group_texts": lambda place: recipe(dataset, tokenizer),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        work: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(options.turns):
            names = list(ways)[turn % 3 :] + list(ways)[: turn % 3]
            for name in names:
                place = folder / f"turn-{turn}"
                begun, used = time.perf_counter(), time.process_time()
                tokens = ways[name](place)
                seconds[name].append(time.perf_counter() - begun)
                work[name].append(time.process_time() - used)
                shutil.rmtree(place, ignore_errors=True)
                if turn == 0:
                    print(f"{name}: {tokens:,} tokens")  # noqa: T201 - a command: it speaks
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return report(size, len(texts), seconds, work)


def report(size: int, count: int, seconds: dict[str, list[float]], work: dict[str, list[float]]) -> int:
    """Print the figures; 1 where a limit is missed."""
    rates = {name: size / min(times) / 1e6 for name, times in seconds.items()}
    turns = len(seconds["pack_documents"])
    print(f"{count:,} documents, {size / 1e6:.1f} MB, {os.cpu_count()} cores, best of {turns}")  # noqa: T201
    for name, rate in rates.items():
        spread = ", ".join(f"{time_:.2f}" for time_ in seconds[name])
        print(f"{name:<30} {rate:6.2f} MB/s   (seconds: {spread})")  # noqa: T201
    ours = rates["pack_documents"]
    ratios = {
        "bare encode_batch": (ours / rates["bare encode_batch"], AGAINST_BARE),
        "datasets.map and group_texts": (ours / rates["datasets.map and group_texts"], AGAINST_RECIPE),
    }
    for name, (ratio, least) in ratios.items():
        verdict = "reached" if ratio >= least else "MISSED"
        per_work = min(work[name]) / min(work["pack_documents"])
        figure = f"{ratio:.2f} (at least {least:.2f}: {verdict}); of processor time {per_work:.2f}"
        print(f"pack_documents / {name}: {figure}")  # noqa: T201
    return 0 if all(ratio >= least for ratio, least in ratios.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
