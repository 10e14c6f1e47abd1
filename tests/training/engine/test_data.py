from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.tiny import TEXT
from utils.errors import DataError
from utils.training.engine.data import (
    DataLoaderFactory,
    EpochBatchSampler,
    PackedBlocks,
    Window,
    fit_window,
    pack_documents,
)


def test_documents_are_joined_by_end_of_text_and_cut_into_full_blocks(tokenizer):
    documents = ["one green bottle", "falls down\n", "and </s> is text here"]
    blocks = pack_documents(documents, tokenizer, 4).blocks
    stream = []
    for text in documents:
        stream += tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] + [
            tokenizer.eos_token_id
        ]
    assert blocks.dtype == np.uint16 and blocks.shape[1] == 4
    assert blocks.ravel().tolist() == stream[: len(stream) // 4 * 4]
    assert stream.count(tokenizer.eos_token_id) == len(documents)  # a written-out mark is text


def test_the_cache_is_memory_mapped_and_keyed_by_text_tokenizer_and_length(tokenizer, tmp_path):
    first = pack_documents([TEXT], tokenizer, 16, tmp_path)
    again = pack_documents([TEXT], tokenizer, 16, tmp_path)
    assert isinstance(again.blocks, np.memmap)
    assert np.array_equal(first.blocks, again.blocks) and first.fingerprint == again.fingerprint
    assert len(list(tmp_path.iterdir())) == 1
    pack_documents([TEXT + "x"], tokenizer, 16, tmp_path)
    pack_documents([TEXT], tokenizer, 8, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x93NUMPY\x01\x00"])
def test_a_broken_cache_is_written_again(tokenizer, tmp_path, content):
    expected = pack_documents([TEXT], tokenizer, 16, tmp_path).blocks.copy()
    next(tmp_path.iterdir()).write_bytes(content)
    assert np.array_equal(pack_documents([TEXT], tokenizer, 16, tmp_path).blocks, expected)


def test_too_little_text_is_refused_with_figures(tokenizer):
    with pytest.raises(
        DataError, match=r"validation text gives \d+ tokens \(5 characters\), too few for one block of 64"
    ):
        pack_documents(["short"], tokenizer, 64, what="validation")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 3), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_shows_each_block_at_most_once_and_whole_windows_only(length, batch, accumulation, seed, epoch):
    sampler = EpochBatchSampler(length, batch, seed, accumulation)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    shown = [index for part in batches for index in part]
    assert len(batches) == len(sampler) and len(batches) % accumulation == 0
    assert len(set(shown)) == len(shown) == length // (batch * accumulation) * batch * accumulation
    assert all(len(part) == batch for part in batches)


def test_order_depends_on_seed_and_epoch_only():
    orders = {}
    for seed in range(3):
        for epoch in range(3):
            sampler = EpochBatchSampler(40, 4, seed)
            list(sampler)  # having been used before makes no difference
            sampler.set_epoch(epoch)
            orders[seed, epoch] = str(list(sampler))
            assert orders[seed, epoch] == str(EpochBatchSampler(40, 4, seed).batches(epoch))
    assert len(set(orders.values())) == 9


def test_a_start_skips_batches_in_its_epoch_only_and_the_length_stays():
    sampler = EpochBatchSampler(40, 4, 1)
    whole = sampler.batches(2)
    sampler.resume_at(2, 3)
    sampler.set_epoch(2)
    assert list(sampler) == whole[3:] and len(sampler) == 10
    sampler.set_epoch(3)
    assert list(sampler) == sampler.batches(3)


def test_validation_shows_every_block_once_in_order():
    sampler = EpochBatchSampler(10, 4, shuffle=False)
    assert [index for part in sampler for index in part] == list(range(10)) and len(sampler) == len(list(sampler)) == 3


@pytest.mark.parametrize(
    ("blocks", "asked", "found"),
    [(100, (8, 2), (8, 2)), (16, (8, 2), (8, 2)), (15, (8, 2), (8, 1)), (7, (2, 4), (2, 3)), (1, (8, 4), (1, 1))],
)
def test_a_window_shrinks_to_the_text_and_says_so(blocks, asked, found):
    window = fit_window(blocks, *asked)
    assert (window.batch_size, window.accumulation) == found
    assert bool(window.why) == (asked != found)


def test_batches_are_int64_and_labels_are_the_unshifted_ids():
    blocks = PackedBlocks(np.arange(12, dtype=np.uint16).reshape(3, 4))
    batch = next(iter(DataLoaderFactory(0).train(blocks, Window(3, 1))))
    assert batch["input_ids"].shape == (3, 4) and str(batch["input_ids"].dtype) == "torch.int64"
    assert batch["labels"].equal(batch["input_ids"]) and batch["labels"].data_ptr() != batch["input_ids"].data_ptr()
    assert blocks[1]["input_ids"].tolist() == [4, 5, 6, 7]


def test_loaders_draw_nothing_from_the_global_random_state():
    import torch

    loader = DataLoaderFactory(0).train(PackedBlocks(np.arange(40).reshape(10, 4)), Window(2, 1))
    before = torch.get_rng_state()
    list(loader)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("blocks", [np.zeros((0, 4), int), np.zeros((3, 1), int), np.zeros(4, int), np.zeros((3, 4))])
def test_what_is_no_block_is_refused(blocks):
    with pytest.raises(DataError, match=r"shape \(N, T\)"):
        PackedBlocks(blocks)
