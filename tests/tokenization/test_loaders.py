from __future__ import annotations

import numpy as np
import pytest
import torch

from utils.tokenization.batch_order import Window
from utils.tokenization.loaders import SHARE, DataLoaderFactory
from utils.tokenization.packing import PackedBlocks

BLOCKS = PackedBlocks(np.arange(44, dtype=np.uint16).reshape(11, 4), tail=np.array([50, 51, 52]))


def test_batches_are_int64_and_labels_are_the_unshifted_ids():
    batch = next(iter(DataLoaderFactory(0).validation(BLOCKS, 3)))
    assert batch["input_ids"].shape == (3, 4) and str(batch["input_ids"].dtype) == "torch.int64"
    assert batch["labels"].equal(batch["input_ids"]) and batch["labels"].data_ptr() != batch["input_ids"].data_ptr()


def test_loaders_draw_nothing_from_the_global_random_state():
    loader = DataLoaderFactory(0).train(BLOCKS, Window(2, 1))
    before = torch.get_rng_state()
    list(loader)
    assert torch.get_rng_state().equal(before)


def test_batches_say_what_they_weigh_under_accumulation_only():
    assert all(SHARE not in batch for batch in DataLoaderFactory(0).train(BLOCKS, Window(5, 1)))
    batches = list(DataLoaderFactory(0).train(BLOCKS, Window(5, 2)))  # batches of 5, 5 and 2 blocks
    predicted = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
    expected = [2 * predicted[0] / sum(predicted[:2]), 2 * predicted[1] / sum(predicted[:2]), 2.0]
    assert [batch[SHARE].item() for batch in batches] == pytest.approx(expected)


def test_workers_change_nothing():
    def shown(workers):
        batches = list(DataLoaderFactory(3, workers=workers).train(BLOCKS, Window(3, 2)))
        return [{name: value.tolist() for name, value in batch.items()} for batch in batches]

    assert shown(0) == shown(2)


@pytest.mark.parametrize("pin", [True, False])
def test_memory_is_pinned_where_asked(pin):
    assert DataLoaderFactory(pin_memory=pin).train(BLOCKS, Window(1, 1)).pin_memory is pin
