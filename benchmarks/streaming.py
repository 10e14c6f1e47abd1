"""What streaming costs: `python benchmarks/streaming.py [--gigabytes 4] [--groups 2] [--minutes 10]`.

Text of that size is written as shards of JSON lines. A decoder of two million parameters trains on it at 8 × 128 tokens, in one
process as a stream and in another on memory-mapped tokens of a part of the same text. One of the two is stopped (SIGSTOP, with
whatever it does beside its steps) while the other runs, in turns of some seconds, so that both meet the same machine; until the
stream has trained on whole groups, so that reading and tokenising as many are inside. The figure is the ratio of steps per
second over all turns, with a 95% interval by drawing turns anew.

Then a stream is trained on for some minutes while its memory is watched; and it is gone on with in the middle of all the
text, by a process that was told the place only, block by block the same.

Exit code 1 where the ratio is below 0.95, memory grows by more than 5% after its first fifth, or a block differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from anywhere, as a file
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import psutil
import torch
from transformers import PreTrainedTokenizerBase

from benchmarks.adapter_overhead import BATCH, LENGTH, ROWS, Decoder
from utils.adapters.model_adapter import adapt
from utils.errors import TrainingStopped
from utils.tokenization.adaptive_tokenizer import AdaptiveTokenizer
from utils.tokenization.own_tokenizer import load_own
from utils.tokenization.packing import pack_documents
from utils.tokenization.streaming import GROUP_TOKENS, StreamedBlocks, StreamedText
from utils.tokenization.tokenizer_files import save_tokenizer
from utils.training.data_streams import open_stream
from utils.training.dataset_utilities import python_docs
from utils.training.engine.hooks import TrainingHooks
from utils.training.engine.trainer import Trainer
from utils.training.training_config import TrainingConfig

LIMIT, GROWTH = 0.95, 1.05
SHARDS, WARM_UP = 16, 30
GROUP_STEPS = GROUP_TOKENS // (BATCH * LENGTH)
"""Steps in which a stream's reader reads and tokenises one group."""
TURN_SECONDS = 4.0
FOR_EVER = 10**7
"""Steps of a training that is ended from outside."""
MAPPED_BYTES = 32 << 20
"""Text whose tokens are memory-mapped: more than one training sees."""


class Clock(TrainingHooks):
    """Takes the time of a training's steps, and its memory; ends it after `seconds`."""

    def __init__(self, seconds: float) -> None:
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


class Counter(TrainingHooks):
    """Writes how many steps are done where another process reads it."""

    def __init__(self, path: Path) -> None:
        self._steps = np.memmap(path, np.int64, "r+", shape=(1,))

    def on_step_end(self, step: int, loss: float) -> None:
        """One step is done."""
        self._steps[0] = step


class Trainee:
    """A training in another process, which runs while it is let."""

    def __init__(self, kind: str, scratch: Path) -> None:
        path = scratch / f"{kind}.steps"
        path.write_bytes(bytes(8))
        self._steps = np.memmap(path, np.int64, "r", shape=(1,))
        self.turns: list[tuple[int, float]] = []  # steps and seconds
        self._process = psutil.Popen([sys.executable, __file__, "--train", kind, "--scratch", str(scratch)])

    @property
    def steps(self) -> int:
        """That are done."""
        return int(self._steps[0])

    def warm_up(self) -> None:
        """Let it begin, alone."""
        while self.steps < WARM_UP:
            if self._process.poll() is not None:
                raise SystemExit(f"a training ended with status {self._process.returncode}")
            time.sleep(0.1)
        self._process.suspend()

    def turn(self) -> None:
        """Let it run for a moment. A step that is cut off counts in the next turn."""
        before, begun = self.steps, time.perf_counter()
        self._process.resume()
        time.sleep(TURN_SECONDS)
        self._process.suspend()
        self.turns.append((self.steps - before, time.perf_counter() - begun))

    def end(self) -> None:
        """End it, for good."""
        self._process.kill()
        self._process.wait()


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


def train(
    data: object, tokenizer: PreTrainedTokenizerBase, hooks: TrainingHooks, over: Callable[[], bool] = lambda: False
) -> None:
    """Train a new decoder until it is over."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as workspace:
        settings = TrainingConfig(
            max_steps=FOR_EVER, batch_size=BATCH, max_length=LENGTH, precision="32-true", save_every_n_minutes=0.0
        )
        model = adapt(Decoder(), {"vocab_size": ROWS, "max_seq_len": LENGTH})
        trainer = Trainer(
            model, None, settings, tokenizer=tokenizer, workspace=workspace, resume="never", hooks=hooks, stop=over
        )
        with contextlib.suppress(TrainingStopped):
            trainer.train(data)


def train_for_ever(kind: str, scratch: Path) -> None:
    """What another process does: train, as a stream or on memory-mapped tokens, until it is ended."""
    tokenizer = load_own(scratch / "tokenizer")
    text = open_stream(scratch / "shards")
    data: object = text
    if kind == "mapped":
        sample = text.sample()
        documents = sample * (MAPPED_BYTES // sum(map(len, sample)) + 1)
        data = pack_documents(documents, tokenizer, LENGTH, scratch / "tokens")
    train(data, tokenizer, Counter(scratch / f"{kind}.steps"))


def compare(scratch: Path, groups: int) -> bool:
    """Whether the stream is fast enough."""
    with contextlib.ExitStack() as stack:
        both = []
        for kind in ("mapped", "stream"):
            both.append(Trainee(kind, scratch))
            stack.callback(both[-1].end)
            both[-1].warm_up()
        mapped, stream = both
        first = stream.steps
        while stream.steps - first < groups * GROUP_STEPS:
            for trainee in both if len(mapped.turns) % 2 else both[::-1]:
                trainee.turn()
    rates = [np.array(trainee.turns).sum(0) for trainee in (stream, mapped)]
    for name, (steps, seconds) in zip(("stream", "memory-mapped"), rates):
        print(f"{name}: {steps * BATCH * LENGTH / seconds:,.0f} tokens/s over {steps:,.0f} steps")  # noqa: T201
    turns, random = np.array([stream.turns, mapped.turns]), np.random.default_rng(0)
    drawn = turns[:, random.integers(0, turns.shape[1], (2000, turns.shape[1]))].sum(2)  # (2, draws, steps and seconds)
    low, high = np.quantile(drawn[0, :, 0] / drawn[0, :, 1] * drawn[1, :, 1] / drawn[1, :, 0], [0.025, 0.975])
    ratio = rates[0][0] / rates[0][1] * rates[1][1] / rates[1][0]
    spread = f"95% {low:.3f} to {high:.3f}, {turns.shape[1]} turns"
    print(f"stream over memory-mapped: {ratio:.3f} ({spread}), limit {LIMIT}")  # noqa: T201
    return bool(ratio >= LIMIT)


def watch_memory(text: StreamedText, tokenizer: PreTrainedTokenizerBase, minutes: float) -> bool:
    """Whether memory stays flat."""
    clock = Clock(60 * minutes)
    train(text, tokenizer, clock, clock.over)
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
    parser.add_argument("--groups", type=int, default=2, help="of the stream that are compared (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--train", choices=("stream", "mapped"), help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.train:
        train_for_ever(options.train, options.scratch)
        return 0
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        folder = scratch / "shards"
        folder.mkdir()
        write_shards(folder, options.gigabytes)
        text = open_stream(folder)
        tokenizer = AdaptiveTokenizer.load_or_create(ROWS, text.sample(), progress=False)
        save_tokenizer(tokenizer, scratch / "tokenizer")
        fast = compare(scratch, options.groups) if options.groups else True
        flat = watch_memory(text, tokenizer, options.minutes) if options.minutes else True
        exact = go_on_in_the_middle(folder, tokenizer)
    return 0 if fast and flat and exact else 1


if __name__ == "__main__":
    sys.exit(main())
