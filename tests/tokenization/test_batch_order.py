from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.tokenization.batch_order import BatchIndices, EpochBatchSampler, fit_window, mixed_seed


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 7),
    st.integers(1, 3),
    st.integers(0, 5),
    st.integers(0, 5),
    st.booleans(),
    st.booleans(),
)
def test_an_epoch_shows_each_sample_exactly_once(length, batch, accumulation, seed, epoch, grouped, shuffle):
    lengths = np.random.default_rng(seed).integers(1, 50, length) if grouped else None
    sampler = EpochBatchSampler(length, batch, seed, accumulation, shuffle, lengths=lengths)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(index for part in batches for index in part) == list(range(length))
    assert len(batches) == len(sampler)
    assert all(len(part) == batch for part in batches[:-1]) and 1 <= len(batches[-1]) <= batch


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
    sampler = EpochBatchSampler(40, 4, 1, accumulation=3)
    whole = sampler.batches(2)
    sampler.resume_at(2, 3)
    sampler.set_epoch(2)
    rest = list(sampler)
    assert rest == whole[3:] and len(sampler) == 10
    assert [batch.share for batch in rest] == sampler.shares(whole)[3:]  # windows are counted from the epoch's begin
    sampler.set_epoch(3)
    assert list(sampler) == sampler.batches(3)


def test_without_shuffling_the_order_is_that_of_the_samples():
    sampler = EpochBatchSampler(10, 4, shuffle=False)
    assert [index for part in sampler for index in part] == list(range(10)) and len(sampler) == len(list(sampler)) == 3


def test_shares_make_a_step_the_mean_over_all_labels_of_its_window():
    weights = np.array([5, 1, 7, 3, 2, 9, 4])
    sampler = EpochBatchSampler(7, 2, 0, accumulation=3, loss_tokens=weights)
    batches = sampler.batches(0)
    means = np.random.default_rng(0).random(7)  # loss of each sample
    for begin in (0, 3):
        window = batches[begin : begin + 3]
        shares = sampler.shares(batches)[begin : begin + 3]
        micro = [np.average(means[b], weights=weights[b]) * share / 3 for b, share in zip(window, shares)]
        everything = [index for batch in window for index in batch]
        assert sum(micro) == pytest.approx(np.average(means[everything], weights=weights[everything]))


@pytest.mark.parametrize(("length", "batch"), [(12, 2), (24, 4)])
def test_equal_batches_weigh_exactly_one(length, batch):
    assert set(EpochBatchSampler(length, batch, accumulation=3).shares([[0] * batch] * 6)) == {1.0}


def test_without_accumulation_nothing_is_weighed():
    assert [batch.share for batch in EpochBatchSampler(5, 2)] == [None] * 3


def test_samples_of_similar_length_come_together_and_batches_stay_shuffled():
    lengths = np.random.default_rng(0).integers(1, 500, 2000)
    padded = {}
    for name, given_lengths in (("alike", lengths), ("any", None)):
        batches = EpochBatchSampler(2000, 8, 3, lengths=given_lengths).batches(0)
        padded[name] = sum(len(b) * lengths[b].max() for b in batches) / lengths.sum()
        assert np.corrcoef(range(len(batches)), [lengths[b].mean() for b in batches])[0, 1] < 0.2
    assert padded["alike"] < 1.1 < 1.6 < padded["any"]


def test_batches_travel_with_epoch_and_share():
    sent = pickle.loads(pickle.dumps(BatchIndices([3, 1], 7, 0.5)))
    assert (sent, sent.epoch, sent.share) == ([3, 1], 7, 0.5)


@pytest.mark.parametrize(
    ("samples", "asked", "found", "steps"),
    [
        (100, (8, 2), (8, 2), 7),
        (16, (8, 2), (8, 2), 1),
        (15, (8, 2), (8, 2), 1),
        (7, (2, 4), (2, 4), 1),
        (5, (2, 4), (2, 3), 1),
        (1, (8, 4), (1, 1), 1),
    ],
)
def test_a_window_shrinks_to_the_text_and_says_so(samples, asked, found, steps):
    window = fit_window(samples, *asked)
    assert (window.batch_size, window.accumulation) == found and window.steps(samples) == steps
    assert bool(window.why) == (samples < asked[0] * asked[1])


def test_neighbouring_numbers_share_no_seed():
    seeds = {mixed_seed(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**63 for seed in seeds)
