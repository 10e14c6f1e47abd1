"""How much `FastBPETrainer` adds to the bare `tokenizers` trainer: `python benchmarks/tokenizer_training.py`.

Both train byte-level BPE of 32,000 entries on the same 10,000 documents, in turns, so that both see the same machine at the
same time; the median of the ratios of these pairs is the figure. Ours samples, hashes, checks, wraps and saves besides, into
a cache that is new each time. The documents are made up: words drawn by rank (few are frequent, most are rare, as in language), from a fixed seed, so
that 32,000 entries can be filled. The two results are compared entry by entry.
Exit code 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from anywhere, as a file

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from utils.tokenization.bpe_trainer import SPECIAL_TOKENS, FastBPETrainer

DOCUMENTS, ENTRIES = 10_000, 32_000
WORDS_PER_DOCUMENT, DISTINCT_WORDS = 300, 60_000

LIMIT = 1.1
"""Largest median ratio of our time to the bare trainer's that is allowed."""

LONGEST = 120.0
"""Seconds that training may take."""


def made_up_documents(count: int, seed: int = 0) -> list[str]:
    """Documents of words whose frequency falls with their rank."""
    draw = random.Random(seed)
    syllables = [
        first + vowel + last for first in "bcdfghjklmnprstvw" for vowel in "aeiou" for last in ("", "n", "r", "s")
    ]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(DISTINCT_WORDS)]
    weights = [1 / rank for rank in range(1, DISTINCT_WORDS + 1)]
    return [" ".join(draw.choices(words, weights, k=WORDS_PER_DOCUMENT)).capitalize() + "." for _ in range(count)]


def bare(documents: Sequence[str], entries: int) -> Tokenizer:
    """What one writes with the `tokenizers` library alone."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer=trainer, length=len(documents))
    return tokenizer


def ours(documents: Sequence[str], entries: int) -> Tokenizer:
    """The same through this package."""
    with tempfile.TemporaryDirectory() as cache:
        tokenizer = FastBPETrainer.train_on_dataset(documents, entries, cache_dir=cache, progress=False)
    backend: Tokenizer = tokenizer.backend_tokenizer
    return backend


def seconds(
    train: Callable[[Sequence[str], int], Tokenizer], documents: Sequence[str], entries: int
) -> tuple[float, float]:
    """How long one training takes: by the clock, and in seconds of all cores together."""
    begun, busy = time.perf_counter(), time.process_time()
    train(documents, entries)
    return time.perf_counter() - begun, time.process_time() - busy


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and judge."""
    parser = argparse.ArgumentParser(description="Time that FastBPETrainer adds to the bare trainer.")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs of times (default: %(default)s)")
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="documents (default: %(default)s)")
    parser.add_argument("--entries", type=int, default=ENTRIES, help="entries of the vocabulary (default: %(default)s)")
    options = parser.parse_args(arguments)
    documents = made_up_documents(options.documents)
    size = sum(map(len, documents))
    first, second = bare(documents, options.entries), ours(documents, options.entries)  # warm-up, and the comparison
    same = first.get_vocab() == second.get_vocab()
    told = f"{len(documents):,} documents, {size:,} bytes, {second.get_vocab_size():,} entries"
    print(f"{told}, equal vocabularies: {same}")  # noqa: T201 - a command: it speaks
    runs: dict[Callable[[Sequence[str], int], Tokenizer], list[tuple[float, float]]] = {bare: [], ours: []}
    for pair in range(max(options.pairs, 2)):
        for train in (bare, ours) if pair % 2 else (ours, bare):
            runs[train].append(seconds(train, documents, options.entries))
    (mine, busy), (theirs, their_busy) = zip(*runs[ours]), zip(*runs[bare])
    low, ratio, high = statistics.quantiles([a / b for a, b in zip(mine, theirs)], n=4)
    spread = f"quartiles {low:.3f} to {high:.3f}, {len(mine)} interleaved pairs"
    print(f"ours / bare: {ratio:.3f} ({spread}), limit {LIMIT}")  # noqa: T201
    cores = statistics.median(a / b for a, b in zip(busy, their_busy))
    print(f"ours / bare in seconds of all cores, which other work disturbs less: {cores:.3f}")  # noqa: T201
    print(  # noqa: T201
        f"bare {statistics.median(theirs):.2f} s, ours {statistics.median(mine):.2f} s, slowest {max(mine):.2f} s "
        f"(limit {LONGEST:.0f} s; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f})"
    )
    return 0 if ratio <= LIMIT and max(mine) <= LONGEST and same else 1


if __name__ == "__main__":
    sys.exit(main())
