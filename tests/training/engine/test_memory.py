from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from tests.training.engine.test_right_loss import documents
from tests.training.tiny import make_tiny
from utils.errors import TrainingError
from utils.tokenization.packing import PackedBlocks
from utils.training.engine import memory
from utils.training.engine.memory import (
    MOST_TRIALS,
    estimate_memory,
    fit_to_memory,
    is_out_of_memory,
    largest_batches,
)

BATCHES = largest_batches(PackedBlocks(np.random.default_rng(0).integers(0, 300, (12, 16))))


class Gpu:
    """Stands for a device that holds `room` samples."""

    def __init__(self, room):
        self.room, self.tried = room, []

    def __call__(self, size):
        self.tried.append(size)
        if size > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 1e6 * size


def fit(gpu, batch_size, accumulation=1, budget=1e12):
    return fit_to_memory(make_tiny(), BATCHES, batch_size, accumulation, trial=gpu, budget=budget)


@pytest.mark.parametrize(
    ("room", "batch_size", "found"),
    [
        (100, 8, 8),
        (8, 8, 8),
        (7, 8, 4),
        (3, 8, 2),
        (1, 8, 1),
        (5, 12, 4),
        (11, 12, 6),
        (6, 7, 1),
        (1, 4096, 1),
        (40, 64, 32),
    ],
)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_largest_micro_batch_that_fits_keeps_the_product(room, batch_size, found, accumulation):
    gpu = Gpu(room)
    answer = fit(gpu, batch_size, accumulation)
    assert answer.batch_size == found and answer.probed
    assert answer.batch_size * answer.accumulation == batch_size * accumulation
    assert len(gpu.tried) == len(answer.trials) <= MOST_TRIALS and gpu.tried[0] == batch_size
    assert (f"batch_size={batch_size} fits" in answer.reason) == (found == batch_size)


def test_a_margin_counts_as_not_fitting():
    assert fit(Gpu(100), 8, budget=4.5e6).batch_size == 4


def test_what_fits_nowhere_is_an_error_with_the_next_step():
    with pytest.raises(TrainingError, match=r"with 1 sample needs more than there is.*gradient_checkpointing"):
        fit(Gpu(0), 8)


def test_other_errors_come_through():
    def broken(size):
        raise RuntimeError("expected scalar type Float")

    with pytest.raises(RuntimeError, match="scalar type"):
        fit(broken, 8)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_full_memory_are_known(error, full):
    assert is_out_of_memory(error) == full


def live_tensors():
    gc.collect()
    return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())


@pytest.mark.parametrize("fails", [False, True])
def test_a_trial_leaves_no_tensor_and_no_trace(fails):
    """The real trial, on the CPU: tensors that it made are gone, model and random state are as before."""
    adapted, made = make_tiny(), []
    values = {name: value.clone() for name, value in adapted.state_dict().items()}
    adapted.model.token.weight.grad = kept = torch.ones_like(adapted.model.token.weight)
    state, real = torch.get_rng_state(), memory._training(adapted, BATCHES, "32-true", False)
    hook = lambda module, given, output: made.append(weakref.ref(output))  # noqa: E731
    adapted.model.block.register_forward_hook(hook)

    def trial(size):
        peak = real(size)
        if fails and size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return peak

    before = live_tensors()
    answer = fit_to_memory(adapted, BATCHES, 8, trial=trial, budget=1.0)
    assert answer.batch_size == (2 if fails else 8) and made
    assert all(reference() is None for reference in made)
    assert live_tensors() <= before
    assert all(value.equal(values[name]) for name, value in adapted.state_dict().items())
    assert adapted.model.token.weight.grad is kept and kept.eq(1).all()
    assert all(p.grad is None for name, p in adapted.model.named_parameters() if name != "token.weight")
    assert torch.get_rng_state().equal(state) and adapted.training == make_tiny().training


def test_on_a_cpu_memory_is_estimated_and_rarely_the_limit():
    answer = fit_to_memory(make_tiny(), BATCHES, 8, 2)
    assert (answer.batch_size, answer.accumulation, answer.probed) == (8, 2, False)
    assert "not probed: CPU memory is not the limit here" in answer.reason
    estimate = estimate_memory(make_tiny(), BATCHES)
    small = fit_to_memory(make_tiny(), BATCHES, 8, budget=estimate.total(4) / memory.CPU_SHARE + 1)
    assert (small.batch_size, small.accumulation) == (4, 2) and "estimated for this CPU" in small.reason


def test_the_estimate_counts_weights_gradients_optimizer_and_average():
    adapted = make_tiny()
    size = 4 * adapted.num_parameters()
    estimate = estimate_memory(adapted, BATCHES, ema=True)
    assert sum(estimate.fixed.values()) == 5 * size  # weights, gradients, two moments, average; no buffers
    assert estimate.per_sample > 2 * 4 * 300 * 16 and estimate.total(2) - estimate.total(1) == estimate.per_sample


def test_the_estimate_extrapolates_to_batches_never_measured():
    from utils.checks.memory import saved_by
    from utils.training.engine.precision import batch_loss

    adapted = make_tiny(dropout=0.0)
    estimate = estimate_memory(adapted, BATCHES)
    adapted.train()
    kept = saved_by(adapted, lambda: batch_loss(adapted, BATCHES(8)))
    scores = 2 * 4 * 300 * 16 * 8
    assert estimate.total(8) - sum(estimate.fixed.values()) == pytest.approx(kept + scores, rel=0.02)


def test_the_longest_samples_are_tried():
    assert largest_batches(documents())(3)["attention_mask"].sum(1).tolist() == [16, 16, 12]
    assert largest_batches(documents())(20)["input_ids"].shape == (20, 16)


@pytest.mark.gpu
def test_a_gpu_is_as_empty_afterwards_as_before():
    adapted = make_tiny().to("cuda")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    assert fit_to_memory(adapted, BATCHES, 8, precision="16-mixed").batch_size == 8
    assert torch.cuda.memory_allocated() <= before
