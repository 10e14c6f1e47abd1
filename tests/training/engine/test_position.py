"""Lightning's counters, counted as one process would."""

from __future__ import annotations

import copy

import pytest

from utils.tokenization.batch_order import EpochBatchSampler
from utils.tokenization.pieces import DealtBatchSampler, Hand
from utils.training.engine.position import in_batches_of_one, in_own_batches

FORM = {"length": 22, "batch_size": 2, "accumulation": 2}  # 11 batches; of two processes 5 + 1 pieces each


def checkpoint(current, total, lag=0):
    def counts(ready):
        return {"ready": ready, "started": ready, "processed": ready, "completed": ready - lag}

    progress = {"current": counts(current), "total": counts(total), "is_last_batch": False}
    return {"loops": {"fit_loop": {"epoch_loop.batch_progress": progress}}}


@pytest.mark.parametrize(
    ("own", "whole"), [((0, 0), (0, 0)), ((3, 9), (6, 17)), ((6, 12), (11, 22)), ((0, 6), (0, 11))]
)
@pytest.mark.parametrize("lag", [0, 1])
def test_counts_of_two_processes_are_those_of_one_and_back(own, whole, lag):
    sampler = DealtBatchSampler(**FORM, hand=Hand(1, 2))
    found = checkpoint(*own, lag)
    in_batches_of_one(found, sampler)
    assert found == checkpoint(*whole, lag)
    in_own_batches(found, sampler)
    assert found == checkpoint(*own, lag)


def test_one_process_keeps_its_counts_whatever_they_are():
    found = checkpoint(3, 1000, 1)
    before = copy.deepcopy(found)
    in_batches_of_one(found, EpochBatchSampler(**FORM))
    in_own_batches(found, EpochBatchSampler(**FORM))
    assert found == before
