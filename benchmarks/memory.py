"""Peak memory from a large text file to an epoch of batches: `python benchmarks/memory.py --gigabytes 2`.

Writes a text file, and measures in a process of its own: reading it, splitting, a tokenizer, packing both parts into
memory-mapped files, and one epoch over all batches. The figure is the highest resident memory of that process (VmHWM, pages
of mapped files included) less what it had after importing. Linux only. Exit code 1 where the limit is missed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run from anywhere, as a file
os.environ.setdefault("HF_HUB_OFFLINE", "1")

LIMIT = 1 << 30
"""Most bytes above import."""
ROWS, BLOCK, BATCH = 8000, 512, 16


def resident(field: str = "VmHWM") -> int:
    """Bytes of resident memory of this process: its peak, or what it has now ("VmRSS")."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) * 1024


def write_text(path: Path, size: int) -> None:
    """Numbered paragraphs of Python's documentation, so that no two are alike."""
    from utils.training.dataset_utilities import python_docs

    paragraphs = [text for text in python_docs().split("\n\n") if text.strip()]
    with path.open("w", encoding="utf-8") as file:
        written = number = 0
        while written < size:
            number += 1
            written += file.write(f"{number}. {paragraphs[number * 7919 % len(paragraphs)]}\n\n")


def walk(path: Path, folder: Path) -> int:
    """The measured part; prints one line per stage."""
    import datasets
    import pytorch_lightning
    import transformers

    from utils.tokenization.batch_order import Window
    from utils.tokenization.bpe_trainer import FastBPETrainer
    from utils.tokenization.loaders import DataLoaderFactory
    from utils.tokenization.packing import pack_documents
    from utils.training.dataset_utilities import resolve_data

    assert datasets and pytorch_lightning and transformers  # imported for their size
    FastBPETrainer.train_on_dataset(["warm up, so that lazy imports are done"], 300)
    base, begun = resident("VmRSS"), time.perf_counter()

    def say(stage: str) -> None:
        above, seconds = (resident() - base) / 1e6, time.perf_counter() - begun
        print(f"{seconds:7.1f} s  peak {above:7.0f} MB above import  {stage}", flush=True)  # noqa: T201

    text = resolve_data(path)
    say(f"read: {len(text.train):,} + {len(text.validation):,} documents")
    tokenizer = FastBPETrainer.train_on_dataset(text.train, ROWS)
    say(f"tokenizer of {len(tokenizer):,} entries")
    parts = [pack_documents(part, tokenizer, BLOCK, folder) for part in (text.validation, text.train)]
    say(f"packed: {sum(part.tokens for part in parts):,} tokens")
    shown = sum(batch["input_ids"].numel() for batch in DataLoaderFactory().train(parts[1], Window(BATCH, 1)))
    say(f"one epoch: {shown:,} tokens shown")
    return 0 if resident() - base <= LIMIT else 1


def main(arguments: list[str] | None = None) -> int:
    """Write the text, measure in another process, judge."""
    parser = argparse.ArgumentParser(description="Peak memory of data preparation.")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: a temporary folder)")
    parser.add_argument("--walk", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.walk is not None:
        return walk(options.walk, options.folder)
    folder = Path(tempfile.mkdtemp(prefix="memory-", dir=options.folder))
    try:
        write_text(folder / "text.txt", int(options.gigabytes * 1e9))
        print(f"{(folder / 'text.txt').stat().st_size / 1e9:.2f} GB of text")  # noqa: T201 - a command: it speaks
        command = [sys.executable, __file__, "--walk", str(folder / "text.txt"), "--folder", str(folder)]
        done = subprocess.run(command, env={**os.environ, "TRANSFORMER_BUILDER_CACHE": str(folder)}, check=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("within the limit of 1 GiB" if done.returncode == 0 else "ABOVE the limit of 1 GiB, or failed")  # noqa: T201
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
