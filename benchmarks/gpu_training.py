"""What the engine makes of a GPU: `python benchmarks/gpu_training.py`.

GPT-2 with 124 million parameters trains on random tokens at 8 × 1024: by our `Trainer` in float32 and in mixed precision, and by
a bare PyTorch loop in the same mixed precision. They take turns, so that the clock of the card is the same for all. A step lasts
from one request for a batch to the next, with the card's work waited for. Printed are medians, their ratios, the share of the
card's peak that the model's own arithmetic reaches (model-FLOPs utilisation), and the highest memory of each.

Arithmetic per token: 6 × parameters + 12 × layers × width × length (forward and backward; PaLM, appendix B).
Exit code 1 where mixed precision is below 1.4 × float32.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from anywhere, as a file
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from benchmarks.training_throughput import quiet
from utils.adapters.model_adapter import adapt
from utils.tokenization.packing import PackedBlocks
from utils.training.engine.trainer import Trainer
from utils.training.training_config import TrainingConfig

LIMIT = 1.4
"""Least throughput of mixed precision as a multiple of float32's (issue 5)."""
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "T4": 65e12}
"""Name of a card → its peak in half precision, dense, in operations per second (data sheets)."""
WARM_UP = 5


class Timed(PackedBlocks):
    """Blocks that note when they are asked for."""

    times: list[float]

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return super().__getitems__(indices)


def model_of(size: str) -> transformers.GPT2LMHeadModel:
    """GPT-2, with fresh weights."""
    shapes = {"124M": {}, "tiny": {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 500}}
    torch.manual_seed(0)
    config = transformers.GPT2Config(**shapes[size], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    config.bos_token_id = config.eos_token_id = config.vocab_size - 1
    return transformers.GPT2LMHeadModel(config)


def by_ours(blocks: Timed, size: str, batch: int, steps: int, precision: str) -> None:
    """Train with `Trainer`, which is told not to look for a batch size."""
    settings = TrainingConfig(
        learning_rate=1e-4, batch_size=batch, max_steps=steps, precision=precision, fit_batch_to_memory=False
    )
    with tempfile.TemporaryDirectory() as folder:
        Trainer(adapt(model_of(size)), None, settings, workspace=Path(folder), resume="never").train(blocks)


def by_loop(blocks: Timed, size: str, batch: int, steps: int, precision: str) -> None:
    """Train as a person writes it down, with autocast to bfloat16 or without."""
    model = model_of(size).cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    for step in range(steps):
        ids = blocks.__getitems__(range(step * batch, (step + 1) * batch))["input_ids"].cuda(non_blocking=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=precision != "32-true"):
            logits = model(ids).logits
            loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]).float(), ids[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


WAYS: dict[str, tuple[Callable[..., None], str]] = {
    "ours, float32": (by_ours, "32-true"),
    "ours, float16": (by_ours, "16-mixed"),
    "ours, mixed": (by_ours, "bf16-mixed"),
    "loop, float32": (by_loop, "32-true"),
    "loop, mixed": (by_loop, "bf16-mixed"),
}


def measure(way: str, size: str, batch: int, length: int, steps: int) -> tuple[list[float], int]:
    """Seconds of each step after the warm-up, and the highest memory in bytes."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    rows = 500 if size == "tiny" else 50_257
    ids = np.random.default_rng(0).integers(0, rows - 1, (batch * (steps + 1), length)).astype(np.uint16)
    blocks = Timed(ids)
    blocks.times = []
    train, precision = WAYS[way]
    with mock.patch.object(torch.cuda, "reset_peak_memory_stats"):  # the engine reads the peak of every few seconds
        train(blocks, size, batch, steps, precision)
    taken = [after - before for before, after in zip(blocks.times, blocks.times[1:])]
    return taken[WARM_UP:], torch.cuda.max_memory_allocated()


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and judge."""
    parser = argparse.ArgumentParser(description="What the engine makes of a GPU.")
    parser.add_argument("--size", choices=("124M", "tiny"), default="124M")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=30, help="of each turn (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="of each way (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device: nothing is measured")  # noqa: T201 - a command: it speaks
        return 2
    quiet()
    card = torch.cuda.get_device_name()
    model = model_of(options.size)
    config = model.config
    per_token = 6 * model.num_parameters() + 12 * config.n_layer * config.n_embd * options.length
    peak = next((value for name, value in PEAKS.items() if name in card), None)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    memory: dict[str, int] = dict.fromkeys(WAYS, 0)
    for turn in range(options.turns):
        for way in list(WAYS)[turn % len(WAYS) :] + list(WAYS)[: turn % len(WAYS)]:
            taken, highest = measure(way, options.size, options.batch, options.length, options.steps)
            seconds[way] += taken
            memory[way] = max(memory[way], highest)
    print(  # noqa: T201
        f"{card}, torch {torch.__version__}, {model.num_parameters():,} parameters, {options.batch} × {options.length}"
    )
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    for way, median in medians.items():
        speed = options.batch * options.length / median
        share = f", {speed * per_token / peak:.1%} of {peak / 1e12:.0f} TFLOP/s" if peak else ""
        print(f"{way:<14} {1e3 * median:7.1f} ms a step, {speed:,.0f} tokens/s{share}, {memory[way] / 1e9:.2f} GB")  # noqa: T201
    gain = medians["ours, float32"] / medians["ours, mixed"]
    print(f"mixed precision over float32: {gain:.2f} (limit {LIMIT})")  # noqa: T201
    for kind in ("float32", "mixed"):
        ours, loop = f"ours, {kind}", f"loop, {kind}"
        print(  # noqa: T201
            f"our Trainer over the bare loop, {kind}: throughput {medians[loop] / medians[ours]:.3f}, "
            f"memory {memory[ours] / memory[loop]:.3f}"
        )
    return int(gain < LIMIT)


if __name__ == "__main__":
    sys.exit(main())
