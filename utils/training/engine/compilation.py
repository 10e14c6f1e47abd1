"""torch.compile for a run: proven on one batch, or left off with the reason. Trains nothing."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.preserved import preserved

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest difference of the loss, as a share of it: kernels sum in another order, and fuse what would be rounded between."""


@dataclass(frozen=True)
class Compilation:
    """Whether the model runs compiled, and why or why not."""

    mode: str
    reason: str


@contextlib.contextmanager
def compiled(
    adapted: AdaptedModel, mode: str, batch: Mapping[str, torch.Tensor], dtype: torch.dtype = torch.float32
) -> Iterator[Compilation]:
    """Run the model compiled inside this block; parameter names stay, and afterwards it is as it was.

    The compiled model first takes a forward and a backward pass on `batch`. Where that fails, or gives another loss than the
    uncompiled model, the block runs without it.

    Args:
        adapted: the model, on the device where it will train.
        mode: "off", "default", "reduce-overhead" or "max-autotune".
        batch: a batch of training data.
        dtype: of autocast; float32 is none.
    """
    if mode == "off":
        yield Compilation("off", "compile_mode='off'")
        return
    module = adapted.model
    batch = {name: value.to(adapted.device) for name, value in batch.items()}
    plain = _scored(adapted, batch, dtype)
    started = time.perf_counter()
    try:
        module.compile(mode=None if mode == "default" else mode)
        problem = _difference(plain, _scored(adapted, batch, dtype), TOLERANCE[dtype])
    except Exception as error:  # noqa: BLE001 - the compiler is a stranger, and a model that it cannot take trains without it
        problem = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    if problem is not None:
        module._compiled_call_impl = None
        logger.warning("the model trains uncompiled: torch.compile(mode=%r) failed (%s)", mode, problem)
        yield Compilation("off", f"compile_mode={mode!r} failed: {problem}")
        return
    found = Compilation(mode, f"compiled in {time.perf_counter() - started:.0f} s, the same loss on one batch")
    logger.info("torch.compile(mode=%r): %s", mode, found.reason)
    try:
        with torch._dynamo.config.patch(
            suppress_errors=True
        ):  # a shape that it cannot take runs uncompiled, with a warning
            yield found
    finally:
        module._compiled_call_impl = None


def _scored(adapted: AdaptedModel, batch: Mapping[str, torch.Tensor], dtype: torch.dtype) -> float:
    """Loss on the batch without dropout, after a pass of training forward and backward; the model is as it was."""
    with preserved(adapted):
        losses = []
        for training in (True, False):
            adapted.train(training)
            with torch.autocast(adapted.device.type, dtype=dtype, enabled=dtype is not torch.float32):
                loss = adapted.on_batch(batch).loss
            assert loss is not None  # on_batch gives labels
            loss.backward()
            losses.append(float(loss.detach()))
        return losses[-1]


def _difference(plain: float, found: float, tolerance: float) -> str | None:
    if abs(plain - found) <= tolerance * max(1.0, abs(plain)):
        return None
    return f"it gives the loss {found:.6g}, the uncompiled model {plain:.6g}"
