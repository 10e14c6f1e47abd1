"""How much time `AdaptedModel` adds to a forward pass: `python benchmarks/adapter_overhead.py`.

A decoder of two million parameters runs on CPU at 8 × 128 tokens, bare and adapted in turns, each first in every other
turn. Of every few turns the fastest counts, since other work only ever adds time; each such pair gives one ratio, and the
figure is the median over all pairs with its 95% confidence interval. With one thread the clock counts this thread's own
processor time, so that programs beside it are left out. The same is done with the bare model on both sides: that control
says what this machine alone adds. The adapter's own cost is measured around a module that only hands out a finished
tensor, and given in µs a call and as a share of the forward.

Exit code 1 where the interval lies above the limit, or where it does not tell and the adapter's own share is above; and
where the adapted model does not compile without a graph break.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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

    bare: list[float] = field(default_factory=list)
    adapted: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Adapted over bare, pair by pair."""
        return [slow / fast for slow, fast in zip(self.adapted, self.bare)]

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval of the median ratio."""
        return median_interval(self.ratios)

    def summary(self) -> str:
        """Median ratio with its interval as text."""
        low, high = self.interval
        return f"{statistics.median(self.ratios):.4f} (95% interval {low:.4f} to {high:.4f}, {len(self.bare)} pairs)"


def median_interval(values: list[float]) -> tuple[float, float]:
    """95% confidence interval of a median, from the order of the values alone, whatever their distribution.

    The numbers below the true median are distributed as fair coin tosses; the interval leaves 2.5% on each side.
    """
    ordered, total = sorted(values), len(values)
    chance, rank = 0.0, 0
    while rank < (total - 1) // 2 and (chance := chance + math.comb(total, rank) / 2**total) <= 0.025:
        rank += 1
    return ordered[max(0, rank - 1)], ordered[min(total - 1, total - rank)]


def within(what: str, ratios: list[float], limit: float) -> bool:
    """Print median and interval of ratios beside their limit; False where the whole interval lies above it."""
    low, high = median_interval(ratios)
    print(f"{what}: {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f}), limit {limit}")  # noqa: T201 - a command: it speaks
    return low <= limit


def measure(bare: Callable[[], object], adapted: Callable[[], object], pairs: int) -> Overhead:
    """Run both in turns, each first in every other turn; `TURNS` turns make one pair of times."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    result = Overhead()
    for _ in range(pairs):
        times: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(TURNS):
            for is_bare in (turn % 2 == 0, turn % 2 == 1):
                begun = clock()
                (bare if is_bare else adapted)()
                times[is_bare].append(clock() - begun)
        result.bare.append(min(times[True]))
        result.adapted.append(min(times[False]))
    return result


def own_cost(adapted: AdaptedModel, ids: torch.Tensor, calls: int = 300) -> float:
    """Seconds per call that the adapter itself takes: median around `Finished`, less the module's own."""
    finished = Finished(adapted(ids).logits)
    around = AdaptedModel(finished, adapted.config, contract=adapted.contract).eval()
    costs = measure(lambda: finished(ids), lambda: around(ids), calls)
    return statistics.median(costs.adapted) - statistics.median(costs.bare)


def judge(overhead: Overhead, share: float) -> tuple[bool, str]:
    """Whether the limit is kept, and on which figure that rests.

    Args:
        overhead: pairs of the whole model.
        share: the adapter's own cost over the bare forward.
    """
    low, high = overhead.interval
    if high <= LIMIT:
        return True, f"within the limit of {LIMIT:.2f}: so is the whole interval"
    if low > LIMIT:
        return False, f"above the limit of {LIMIT:.2f}: so is the whole interval"
    kept = 1 + share <= LIMIT
    return kept, f"the interval holds the limit of {LIMIT:.2f}; the own cost decides: {'within' if kept else 'above'}"


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
    bare = statistics.median(overhead.bare)
    kept, why = judge(overhead, own / bare)
    print(f"adapted / bare: {overhead.summary()}")  # noqa: T201
    print(f"control, bare / bare: {control.summary()}")  # noqa: T201
    own_share = f"{own * 1e6:.0f} µs a call, {own / bare:.3%} of the bare forward of {bare * 1000:.2f} ms"
    print(f"the adapter's own cost: {own_share}")  # noqa: T201
    print(f"{why} ({BATCH} × {LENGTH} tokens, {torch.get_num_threads()} threads, torch {torch.__version__})")  # noqa: T201
    torch.compile(adapted, fullgraph=True, backend="eager")(ids)
    print("torch.compile(fullgraph=True): no graph break")  # noqa: T201
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
