"""How much time `AdaptedModel` adds to a forward pass: `python benchmarks/adapter_overhead.py`.

A decoder of two million parameters runs on CPU at 8 × 128 tokens, bare and adapted in turns, so that both see the same
machine at the same time. Of every few turns the fastest counts, since other work only ever adds time; each such pair
gives one ratio, the median over all pairs is the figure, the quartiles are its spread. The same is done with the bare model
on both sides: a figure that differs from 1 by no more than that control does says nothing about the adapter.
One thread, so that a busy machine disturbs little. The adapter's own cost is measured too, around a module that only hands
out a finished tensor. Whether the adapted model compiles without a graph break is asked once, by capture.
Exit code 1 where the limit is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from anywhere, as a file

import torch
import torch.nn.functional as F
from torch import nn

from utils.adapters.model_adapter import AdaptedModel, adapt

BATCH, LENGTH = 8, 128
ROWS, WIDTH, LAYERS, HEADS = 1000, 192, 4, 4
TURNS = 4
"""Turns of which the fastest counts."""

LIMIT = 1.02
"""Largest median ratio of adapted to bare time that is allowed."""


class Block(nn.Module):
    """Pre-norm causal attention and feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query_key_value, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, D) → (B, T, D)."""
        batch, length, _ = x.shape
        split = self.query_key_value(self.norm_1(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(split[0], split[1], split[2], is_causal=True)
        x = x + self.project(attended.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.feed_forward(self.norm_2(x))


class Decoder(nn.Module):
    """A GPT of two million parameters with a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(ROWS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, T) → (B, T, V)."""
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


class Finished(nn.Module):
    """Gives the same logits at once, so that what remains is the adapter."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, T) → (B, T, V)."""
        return self.logits


@dataclass
class Overhead:
    """Seconds of each pair of runs."""

    bare: list[float]
    adapted: list[float]

    @property
    def ratios(self) -> list[float]:
        """Adapted over bare, pair by pair."""
        return [slow / fast for slow, fast in zip(self.adapted, self.bare)]

    def summary(self) -> str:
        """Median ratio, spread and times as text."""
        low, median, high = statistics.quantiles(self.ratios, n=4)
        verdict = "within" if median <= LIMIT else "above"
        return (
            f"adapted / bare: {median:.4f} (quartiles {low:.4f} to {high:.4f}, {len(self.bare)} interleaved pairs), "
            f"{verdict} the limit of {LIMIT:.2f}\n"
            f"bare {statistics.median(self.bare) * 1000:.2f} ms, adapted {statistics.median(self.adapted) * 1000:.2f} ms "
            f"(medians, {BATCH} × {LENGTH} tokens, {torch.get_num_threads()} threads, torch {torch.__version__})"
        )


def measure(bare: Callable[[], object], adapted: Callable[[], object], pairs: int) -> Overhead:
    """Run both in turns, each first in every other turn; `TURNS` turns make one pair of times."""
    result = Overhead([], [])
    for _ in range(pairs):
        times: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(TURNS):
            for is_bare in (turn % 2 == 0, turn % 2 == 1):
                begun = time.perf_counter()
                (bare if is_bare else adapted)()
                times[is_bare].append(time.perf_counter() - begun)
        result.bare.append(min(times[True]))
        result.adapted.append(min(times[False]))
    return result


def own_cost(adapted: AdaptedModel, ids: torch.Tensor, calls: int = 300) -> float:
    """Seconds per call that the adapter itself takes: median around `Finished`, less the module's own."""
    finished = Finished(adapted(ids).logits)
    around = AdaptedModel(finished, adapted.config, contract=adapted.contract).eval()
    costs = measure(lambda: finished(ids), lambda: around(ids), calls)
    return statistics.median(costs.adapted) - statistics.median(costs.bare)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and judge."""
    parser = argparse.ArgumentParser(description="Time that AdaptedModel adds to a forward pass.")
    parser.add_argument("--pairs", type=int, default=40, help="interleaved pairs of times (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = Decoder().eval()
    adapted = adapt(model).eval()
    ids = torch.randint(ROWS, (BATCH, LENGTH))
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")  # noqa: T201 - a command: it speaks
    with torch.inference_mode():
        measure(lambda: model(ids), lambda: adapted(ids), 5)  # warm-up
        overhead = measure(lambda: model(ids), lambda: adapted(ids), max(2, options.pairs))
        control = measure(lambda: model(ids), lambda: model(ids), max(2, options.pairs))
        own = own_cost(adapted, ids)
    print(overhead.summary())  # noqa: T201
    low, median, high = statistics.quantiles(control.ratios, n=4)
    print(f"control, bare / bare: {median:.4f} (quartiles {low:.4f} to {high:.4f}): what this machine alone adds")  # noqa: T201
    share = own / statistics.median(overhead.bare)
    print(f"the adapter's own cost: {own * 1e6:.0f} µs a call, {share:.4%} of the bare forward")  # noqa: T201
    torch.compile(adapted, fullgraph=True, backend="eager")(ids)
    print("torch.compile(fullgraph=True): no graph break")  # noqa: T201
    return 0 if statistics.median(overhead.ratios) <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
