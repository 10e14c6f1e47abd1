"""What streaming costs: `python benchmarks/streaming.py [--gigabytes 4] [--pairs 4] [--minutes 10]`.

Text of that size is written as shards of JSON lines. A decoder of two million parameters trains on it at 8 × 128 tokens: as
a stream, and, in turn with it, on memory-mapped tokens of a part of the same text. Each training is longer than a group of
the stream, so that reading and tokenising it are inside. Figures are tokens per second and, pair by pair, their ratio.

Then a stream is trained on for some minutes while its memory is watched; and it is gone on with in the middle of all the
text, by a process that was told the place only, block by block the same.

Exit code 1 where the median ratio is below 0.95, memory grows by more than 5% after its first fifth, or a block differs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from anywhere, as a file
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import psutil
import torch
from transformers import PreTrainedTokenizerBase

from benchmarks.adapter_overhead import BATCH, LENGTH, ROWS, Decoder
from utils.adapters.model_adapter import adapt
from utils.tokenization.adaptive_tokenizer import AdaptiveTokenizer
from utils.tokenization.packing import pack_documents
from utils.tokenization.streaming import GROUP_TOKENS, StreamedBlocks, StreamedText
from utils.training.data_streams import open_stream
from utils.training.dataset_utilities import python_docs
from utils.training.engine.hooks import TrainingHooks
from utils.training.engine.trainer import Trainer
from utils.training.training_config import TrainingConfig

LIMIT, GROWTH = 0.95, 1.05
SHARDS, WARM_UP = 16, 30
STEPS = GROUP_TOKENS // (BATCH * LENGTH) * 5 // 4 + WARM_UP
"""Of one training: a group and a quarter, so that each reads ahead at least one whole group."""
MAPPED_BYTES = 32 << 20
"""Text whose tokens are memory-mapped: more than one training sees."""


class Clock(TrainingHooks):
    """Takes the time of a training's steps, without the first ones; ends it after `seconds`."""

    def __init__(self, seconds: float = float("inf")) -> None:
        self.times: list[float] = []
        self.memory: list[tuple[float, int]] = []
        self.seconds = seconds

    def on_step_end(self, step: int, loss: float) -> None:
        """One step is done."""
        self.times.append(time.perf_counter())
        if step % 50 == 0:
            self.memory.append((self.times[-1] - self.times[0], psutil.Process().memory_info().rss))

    def over(self) -> bool:
        """Whether the time is up."""
        return bool(self.times) and self.times[-1] - self.times[0] > self.seconds

    def rate(self) -> float:
        """Tokens per second."""
        times = self.times[WARM_UP:]
        return (len(times) - 1) * BATCH * LENGTH / (times[-1] - times[0])


def write_shards(folder: Path, gigabytes: float) -> None:
    """Paragraphs of the bundled text in random order, as JSON lines."""
    paragraphs = np.array([part for part in python_docs().split("\n\n") if part.strip()], dtype=object)
    random = np.random.default_rng(0)
    for number in range(SHARDS):
        with (folder / f"part-{number:02}.jsonl").open("w") as shard:
            size = 0
            while size < gigabytes * 1e9 / SHARDS:
                chosen = random.integers(0, len(paragraphs), 8)
                size += shard.write(json.dumps({"text": "\n\n".join(paragraphs[chosen])}) + "\n")


def train(data: object, tokenizer: PreTrainedTokenizerBase, steps: int, seconds: float = float("inf")) -> Clock:
    """Train a new decoder."""
    torch.manual_seed(0)
    clock = Clock(seconds)
    with tempfile.TemporaryDirectory() as workspace:
        settings = TrainingConfig(
            max_steps=steps, batch_size=BATCH, max_length=LENGTH, precision="32-true", save_every_n_minutes=0.0
        )
        model = adapt(Decoder(), {"vocab_size": ROWS, "max_seq_len": LENGTH})
        trainer = Trainer(
            model,
            None,
            settings,
            tokenizer=tokenizer,
            workspace=workspace,
            resume="never",
            hooks=clock,
            stop=clock.over,
        )
        try:
            trainer.train(data)
        except Exception:
            if not clock.over():
                raise
    return clock


def compare(text: StreamedText, mapped: object, tokenizer: PreTrainedTokenizerBase, pairs: int) -> bool:
    """Whether the stream is fast enough."""
    ratios = []
    for number in range(pairs):
        order = (text, mapped) if number % 2 else (mapped, text)
        rates = {id(data): train(data, tokenizer, STEPS).rate() for data in order}
        ratios.append(rates[id(text)] / rates[id(mapped)])
        mine, theirs = rates[id(text)], rates[id(mapped)]
        print(f"stream {mine:,.0f} tokens/s, memory-mapped {theirs:,.0f}: {ratios[-1]:.3f}", flush=True)  # noqa: T201
    middle = statistics.median(ratios)
    print(f"stream over memory-mapped: {middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), limit {LIMIT}")  # noqa: T201
    return middle >= LIMIT


def watch_memory(text: StreamedText, tokenizer: PreTrainedTokenizerBase, minutes: float) -> bool:
    """Whether memory stays flat."""
    clock = train(text, tokenizer, 10_000_000 // (BATCH * LENGTH) * 1_000, 60 * minutes)
    settled = [size for seconds, size in clock.memory if seconds >= 12 * minutes]
    last = clock.memory[-1]
    growth = max(settled) / settled[0]
    print(  # noqa: T201
        f"memory over {last[0] / 60:.1f} minutes and {len(clock.times) * BATCH * LENGTH:,} tokens: {settled[0] / 1e6:,.0f} MB after a "
        f"fifth, {max(settled) / 1e6:,.0f} MB at most ({growth:.3f}, limit {GROWTH})"
    )
    return growth <= GROWTH


def go_on_in_the_middle(folder: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether blocks behind the middle are the same for whoever reads through and for whoever only knows a place."""
    text = open_stream(folder)
    wanted = sum(path.stat().st_size for path in folder.iterdir()) / 2
    place, size = text.begin, 0
    for before, document in text.read(text.begin):
        place = before
        size += len(document)
        if size >= wanted:
            break
    whole = StreamedBlocks(text, tokenizer, LENGTH, 10_000_000)
    middle = {"1000": place.as_dict()}
    whole.know(middle)
    first = 1000 * whole.group_length
    step = whole.group_length // 2
    expected = {index: whole[index]["input_ids"] for index in range(first, first + 4 * whole.group_length, step)}
    later = StreamedBlocks(open_stream(folder), tokenizer, LENGTH, 10_000_000)
    later.know(json.loads(json.dumps(whole.places())))
    begun = time.perf_counter()
    asked = [index for index in expected if index >= first + 3 * whole.group_length]
    same = sum(bool(later[index]["input_ids"].equal(expected[index])) for index in asked)
    seconds = time.perf_counter() - begun
    print(f"in the middle ({size / 1e9:.1f} GB): {same} of {len(asked)} blocks are the same, found in {seconds:.1f} s")  # noqa: T201
    return same == len(asked)


def main() -> int:
    """Everything; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "shards")
        folder.mkdir()
        write_shards(folder, options.gigabytes)
        text = open_stream(folder)
        sample = text.sample()
        tokenizer = AdaptiveTokenizer.load_or_create(ROWS, sample, progress=False)
        documents = sample * (MAPPED_BYTES // sum(map(len, sample)) + 1)
        mapped = pack_documents(documents, tokenizer, LENGTH, Path(scratch, "tokens"))
        fast = compare(text, mapped, tokenizer, options.pairs) if options.pairs else True
        flat = watch_memory(text, tokenizer, options.minutes) if options.minutes else True
        exact = go_on_in_the_middle(folder, tokenizer)
    return 0 if fast and flat and exact else 1


if __name__ == "__main__":
    sys.exit(main())
