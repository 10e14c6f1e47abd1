from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import DataError
from utils.tokenization.split import sides, split_documents, split_text

DOCUMENTS = tuple(f"document {n}" for n in range(200))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(alphabet="abc", max_size=2), min_size=2, max_size=60), st.integers(0, 5), st.floats(0.01, 0.9))
def test_no_text_lies_on_both_sides_and_none_is_lost(documents, seed, fraction):
    if len(set(documents) - {""}) < 2:
        return
    split = split_documents(tuple(documents), fraction, seed)
    train, validation = list(split.train), list(split.validation)
    assert train and validation and not set(train) & set(validation)
    assert sorted(train + validation) == sorted(text for text in documents if text)
    assert split.empty == documents.count("")
    assert split.copies == len(train + validation) - len(set(train + validation))
    places = iter(documents)
    assert all(text in places for text in train)  # in their order


@pytest.mark.parametrize(("fraction", "expected"), [(0.1, 20), (0.5, 100), (0.001, 1), (0.999, 199)])
def test_the_share_is_exact_where_no_text_occurs_twice(fraction, expected):
    split = split_documents(DOCUMENTS, fraction)
    assert len(split.validation) == expected and len(split.train) == 200 - expected
    assert str(expected) in split.how and "seed 42" in split.how


def test_seeds_draw_differently_and_places_do_not_matter():
    def drawn(documents, seed):
        return set(split_documents(tuple(documents), 0.2, seed).validation)

    assert drawn(DOCUMENTS, 0) == drawn(DOCUMENTS[::-1], 0) != drawn(DOCUMENTS, 1)
    assert len(drawn(DOCUMENTS, 0) & drawn(DOCUMENTS, 1)) < 20  # 8 expected of 40 in 40
    assert len(drawn(DOCUMENTS, 0) & drawn([*DOCUMENTS, "one more"], 0)) >= 39


def test_all_copies_of_a_frequent_text_go_together():
    side = sides(("a",) * 50 + DOCUMENTS, 0.1, 3)
    assert len(set(side.validation[:50])) == 1 and side.copies == 49


@pytest.mark.parametrize(
    ("text", "fraction", "expected"),
    [
        ("one\ntwo\nthree\nfour\n", 0.3, ("one\ntwo\nthree\n", "four\n")),
        ("abcdefghij", 0.2, ("abcdefgh", "ij")),
        ("ab", 0.5, ("a", "b")),
        ("aaaa\nb", 0.5, ("aaaa\n", "b")),
    ],
)
def test_a_single_document_is_cut_where_a_line_begins(text, fraction, expected):
    assert split_text(text, fraction) == expected
    split = split_documents(("", text, text), fraction)
    assert (list(split.train), list(split.validation)) == ([expected[0]], [expected[1]])
    assert split.copies == 1 and split.empty == 1


@pytest.mark.parametrize(
    ("documents", "fraction", "message"),
    [
        ((), 0.1, "no text in the 0 documents"),
        (("", ""), 0.1, "no text in the 2 documents"),
        (("  \n",), 0.1, "empty or blank"),
        (("a",), 0.1, "1 characters: too few"),
        (DOCUMENTS, 0, "between 0 and 1; got 0"),
        (DOCUMENTS, 1.0, "between 0 and 1"),
    ],
)
def test_what_cannot_be_split_is_refused(documents, fraction, message):
    with pytest.raises(DataError, match=message):
        split_documents(documents, fraction)


def test_hashes_of_many_documents_are_kept_as_numbers():
    assert sides(DOCUMENTS, 0.1, 0).keys.dtype == np.uint64
