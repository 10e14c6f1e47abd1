"""How fast does the model answer? Latency and tokens per second per batch and length. Informs, never fails by itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.report import TABLE, CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler, run_model

NAME = "inference speed"
BATCHES = (1, 8)
LENGTHS = (32, 128)
LEAST, REPEATS = 3, 7
BUDGET = 0.15
"""Seconds for the repeats of one shape, after two runs to warm up. A slow model is measured `LEAST` times, the first run
included: what warming up takes is little beside it."""


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Time the forward pass in eval mode; median and interquartile range, warm-up excluded."""
    adapted.eval()
    lengths = sorted({sampler.length(length) for length in LENGTHS})
    rows = [measure(adapted, sampler.inputs(batch, length)) for batch in BATCHES for length in lengths]
    best = max(rows, key=lambda row: row["tokens/s"])
    one = rows[0]
    finding = (
        f"{best['tokens/s']:,.0f} tokens/s at {best['batch']} × {best['length']}; one text of {one['length']} tokens in "
        f"{one['median ms']:.2f} ms (IQR {one['IQR ms']:.2f} ms, {one['runs']} runs), on {_device_name(sampler.device)}."
    )
    return CheckResult(NAME, "pass", finding, measured={TABLE: rows, "device": _device_name(sampler.device)})


def measure(adapted: AdaptedModel, ids: torch.Tensor, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """Median latency and interquartile range in ms, and tokens per second, of the forward pass on `ids` (B, T)."""
    seconds, repeats = [_once(adapted, ids, clock)], LEAST
    if seconds[0] < BUDGET:
        again = _once(adapted, ids, clock)
        seconds, repeats = [], max(LEAST, min(REPEATS, int(BUDGET / max(again, 1e-9))))
    seconds += [_once(adapted, ids, clock) for _ in range(repeats - len(seconds))]
    quarter, median, three_quarters = statistics.quantiles(seconds, n=4, method="inclusive")
    return {
        "batch": ids.shape[0],
        "length": ids.shape[1] if ids.dim() == 2 else 1,
        "median ms": 1e3 * median,
        "IQR ms": 1e3 * (three_quarters - quarter),
        "tokens/s": ids.numel() / max(median, 1e-9),
        "runs": repeats,
    }


def _once(adapted: AdaptedModel, ids: torch.Tensor, clock: Callable[[], float]) -> float:
    _wait(ids.device)
    started = clock()
    with torch.no_grad():
        run_model(adapted, ids)
    _wait(ids.device)
    return clock() - started


def _wait(device: torch.device) -> None:
    """A GPU works on after the call returned; wait until it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'' if threads == 1 else 's'}" if device.type == "cpu" else str(device)
