from __future__ import annotations

import random
import types

import pandas
import pytest

from utils.errors import TokenizerError
from utils.tokenization import text_sample
from utils.tokenization.text_sample import PIECE_CHARACTERS, RUN_CHARACTERS, take_sample

LINES = [f"document {number} " * 5 for number in range(1000)]


def test_a_text_that_fits_is_taken_whole():
    sample = take_sample(LINES)
    assert sample.texts == LINES
    assert (sample.documents, sample.stride) == (1000, 1)
    assert sample.read_bytes == sample.kept_bytes == sum(map(len, LINES))
    assert "all" in sample.rule


@pytest.mark.parametrize(("budget", "stride"), [(40_000, 2), (8_000, 16), (100, 1024), (1, 1024)])
def test_of_a_larger_text_every_kth_document_is_taken(budget, stride):
    sample = take_sample(LINES, budget)
    assert sample.stride == stride
    assert sample.texts == LINES[::stride]
    assert sample.kept_bytes <= budget or len(sample.texts) == 1
    assert sample.read_bytes == sum(map(len, LINES))
    assert f"one document in {stride}," in sample.rule


def test_lists_and_generators_give_the_same_sample():
    whole, streamed = take_sample(LINES, 8_000), take_sample((line for line in LINES), 8_000)
    assert whole == streamed and whole.digest == streamed.digest
    assert take_sample(LINES[::-1], 8_000).digest != whole.digest


def test_bytes_are_counted_not_characters():
    assert take_sample(["äß漢😀"]).kept_bytes == 2 + 2 + 3 + 4


def test_a_huge_document_is_sampled_in_pieces_and_words_stay_whole():
    text = " ".join(f"word{number}" for number in range(100_000))
    whole = take_sample(text)
    assert "".join(whole.texts) == text
    assert max(map(len, whole.texts)) <= PIECE_CHARACTERS
    assert all(piece.startswith(" word") for piece in whole.texts[1:])
    assert take_sample(text, 200_000).kept_bytes <= 200_000


@pytest.mark.parametrize(
    "text", ["x" * 10_500, "a b" + "y" * 2_001 + " c d", "漢" * 250_000, "a\n" * 99_999 + "z" * 1_500]
)
def test_long_runs_are_cut_and_nothing_is_lost(text):
    pieces = take_sample(text).texts
    assert "".join(pieces) == text
    assert all(len(word) <= RUN_CHARACTERS for piece in pieces for word in piece.split())


def test_memory_is_bounded_by_the_budget():
    def endless():
        for number in range(200_000):
            yield f"{number} " * 20

    sample = take_sample(endless(), 100_000)
    assert sample.kept_bytes <= 100_000 and sample.documents == 200_000


def test_the_number_of_documents_is_reported():
    seen = []
    take_sample(LINES, progress=lambda done, total, note: seen.append((done, total)))
    assert seen[-1] == (1000, 1000)
    assert len(seen) == 1000 // text_sample._REPORT_EVERY + 1


def test_the_same_texts_in_another_order_of_pieces_differ():
    shuffled = random.Random(0).sample(LINES, len(LINES))
    assert take_sample(shuffled).digest != take_sample(LINES).digest


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "there is none in 0 documents"),
        (["", ""], "there is none in 2 documents"),
        (["a", 5], "document 2 is of type int"),
        (["a", None], "document 2 is of type NoneType"),
        (["fine", "a\ud800b"], r"Document 2 holds a lone surrogate \(U\+D800\) at character 1.*utf-16"),
    ],
)
def test_what_is_no_text_is_refused(documents, message):
    with pytest.raises(TokenizerError, match=message):
        take_sample(documents)


def test_the_mend_that_the_message_names_works():
    mended = "a\ud800b".encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert take_sample([mended]).texts == ["a\ufffdb"]


def test_loaded_data_and_columns_are_read_by_their_texts():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"label": list(range(1000)), "text": LINES})
    assert take_sample(rows).texts == take_sample(rows["text"]).texts == LINES
    assert take_sample(types.SimpleNamespace(documents=LINES)).texts == LINES


@pytest.mark.parametrize("thing", [5, b"bytes", None])
def test_what_holds_no_texts_is_refused(thing):
    with pytest.raises(TokenizerError, match=f"Texts are wanted.*got {type(thing).__name__}"):
        take_sample(thing)


@pytest.mark.parametrize("thing", [{"text": ["one"]}, pandas.DataFrame({"text": ["one"]})], ids=["mapping", "frame"])
def test_the_names_of_columns_are_never_taken_for_texts(thing):
    with pytest.raises(TokenizerError, match="no list of texts"):
        take_sample(thing)


def test_the_path_of_a_file_is_never_taken_for_text(tmp_path):
    path = tmp_path / "notes.txt"
    assert take_sample(str(path)).texts == [str(path)]  # nothing lies there: it is text
    path.write_text("text")
    with pytest.raises(TokenizerError, match="is the path of a file here"):
        take_sample(str(path))
