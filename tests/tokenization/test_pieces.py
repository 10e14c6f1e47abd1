"""Windows dealt to several processes: nothing lost or doubled, equally many pieces each, and weights that add up."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.tokenization.batch_order import EpochBatchSampler
from utils.tokenization.pieces import DealtBatchSampler, Hand, Piece, dealt, micro_batches

FORMS = {
    "length": st.integers(1, 60),
    "batch": st.integers(1, 6),
    "accumulation": st.integers(1, 5),
    "world": st.integers(1, 4),
    "seed": st.integers(0, 5),
}


def order(length, batch, accumulation, seed, **more):
    weights = np.random.default_rng(seed).integers(0, 9, length)
    return {"length": length, "batch_size": batch, "seed": seed, "accumulation": accumulation, "loss_tokens": weights}


@settings(max_examples=300, deadline=None)
@given(**FORMS)
def test_windows_of_several_processes_are_those_of_one(length, batch, accumulation, world, seed):
    whole = order(length, batch, accumulation, seed)
    one = EpochBatchSampler(**whole)
    hands = [DealtBatchSampler(**whole, hand=Hand(rank, world)) for rank in range(world)]
    pieces, own = [list(sampler) for sampler in hands], micro_batches(accumulation, world)
    assert {len(part) for part in pieces} == {len(sampler) for sampler in hands} == {len(pieces[0])}
    batches = one.batches(0)
    windows = [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]
    assert len(windows) == -(-len(pieces[0]) // own)
    for number, window in enumerate(windows):
        mine = [piece for part in pieces for piece in part[number * own : (number + 1) * own]]
        expected = sorted(itertools.chain(*window))
        labels = whole["loss_tokens"]
        total = int(labels[expected].sum())
        for piece in mine:  # averaged over processes and over their micro-batches, each label weighs alike
            assert (
                piece.share == pytest.approx(int(labels[list(piece)].sum()) * world * own / max(total, 1))
                or not piece.share
            )
        assert sum(piece.share for piece in mine) == pytest.approx(world * own if total else 0)
        seen = [index for piece in mine if piece.share for index in piece]
        assert sorted(seen) == sorted(
            index for index in expected if any(index in piece for piece in mine if piece.share)
        )
        assert {index for index in expected if labels[index]} <= set(seen) and len(set(seen)) == len(seen)


@settings(max_examples=200, deadline=None)
@given(**FORMS)
def test_a_validation_counts_each_sample_once(length, batch, accumulation, world, seed):
    named = {"length": length, "batch_size": batch, "accumulation": accumulation, "shuffle": False, "weighed": False}
    parts = [list(DealtBatchSampler(**named, hand=Hand(rank, world))) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    assert {piece.share for part in parts for piece in part} <= {None, 0.0}
    assert sorted(i for part in parts for piece in part if piece.share is None for i in piece) == list(range(length))


@settings(max_examples=200, deadline=None)
@given(**FORMS)
def test_a_place_means_the_same_for_any_number_of_processes(length, batch, accumulation, world, seed):
    whole = order(length, batch, accumulation, seed)
    one, dealer = EpochBatchSampler(**whole), DealtBatchSampler(**whole, hand=Hand(0, world))
    ends = [*range(0, len(one), accumulation), len(one)]
    assert [dealer.whole(dealer.own(end)) for end in ends] == ends
    for end in ends:
        dealer.resume_at(0, end)
        rest = list(dealer)
        dealer.resume_at(0, 0)
        assert rest == list(dealer)[dealer.own(end) :]


def test_the_example_of_the_docstring():
    assert dealt([[7, 3, 5]], accumulation=1, world=2) == [
        [Piece([7], pytest.approx(2 / 3))],
        [Piece([3, 5], pytest.approx(4 / 3))],
    ]


def test_batches_stay_whole_where_a_window_holds_enough_of_them():
    assert dealt([[0, 1], [2, 3], [4, 5], [6, 7]], 4, 2) == [
        [Piece([0, 1], 1.0), Piece([4, 5], 1.0)],
        [Piece([2, 3], 1.0), Piece([6, 7], 1.0)],
    ]


def test_a_window_with_too_few_is_filled_up_with_what_weighs_nothing():
    assert dealt([[4]], 1, 3) == [[Piece([4], 0.0)], [Piece([4], 0.0)], [Piece([4], 3.0)]]
