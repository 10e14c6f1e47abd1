"""Streams: every token of the source once, the same block under the same number, from whatever place it is read on."""

from __future__ import annotations

import json
import random
from pathlib import Path

import datasets
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from utils.errors import DataError
from utils.tokenization import streaming
from utils.tokenization.encoding import Encoder
from utils.tokenization.packing import ENDED
from utils.tokenization.streaming import StreamedBlocks, StreamedText

LENGTH, GROUP = 8, 4
TEXTS = [f"{'abcdefghij'[n % 10] * (n * 7 % 23)}{n}" for n in range(200)]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "GROUP_TOKENS", LENGTH * GROUP)
    monkeypatch.setattr(streaming, "HELD_BACK_CHARACTERS", 100)
    monkeypatch.setattr(streaming, "SLICE_CHARACTERS", 40)


def characters(eos: bool = True) -> PreTrainedTokenizerFast:
    entries = [*"0123456789abcdefghij ", "?", "</s>"]
    backend = Tokenizer(models.WordLevel({entry: index for index, entry in enumerate(entries)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **({"eos_token": "</s>"} if eos else {}))


def rows(texts: list[str] = TEXTS, shards: int = 3) -> datasets.IterableDataset:
    return datasets.Dataset.from_dict({"text": texts}).to_iterable_dataset(num_shards=shards)


def random_rows():  # type: ignore[no-untyped-def]
    while True:
        yield {"text": str(random.random())}


def blocks(count: int = 500, seed: int = 3, text: StreamedText | None = None) -> StreamedBlocks:
    return StreamedBlocks(text or StreamedText(rows()), characters(), LENGTH, count, seed)


def expected(text: StreamedText, passes: int = 3) -> np.ndarray:
    """The blocks of the text for training in their own order, (n, T), the stream over and over."""
    ids = np.concatenate(Encoder(characters(), ENDED)(TEXTS[len(text.held_back) :]))
    ids = np.tile(ids, passes)
    return ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)


def test_no_token_is_lost_or_doubled_and_blocks_are_shuffled_within_their_group() -> None:
    made, whole = blocks(), expected(StreamedText(rows()))
    groups = len(whole) // GROUP
    got = np.concatenate([made.__getitems__([i])["input_ids"].numpy() for i in range(groups * GROUP)])
    for group in range(groups):
        part = slice(group * GROUP, (group + 1) * GROUP)
        assert sorted(map(tuple, got[part])) == sorted(map(tuple, whole[part]))
    assert (got != whole[: len(got)]).any()


def test_validation_has_the_first_documents_and_training_none_of_them() -> None:
    text = StreamedText(rows())
    assert text.held_back == TEXTS[: len(text.held_back)] and 90 < sum(map(len, text.held_back)) <= 100
    assert text.sample() == TEXTS[len(text.held_back) :]


def test_a_batch_is_unshifted_and_may_lie_across_groups() -> None:
    batch = blocks().__getitems__(range(GROUP - 2, GROUP + 3))
    assert batch["input_ids"].shape == (5, LENGTH) and batch["labels"].equal(batch["input_ids"])
    assert batch["input_ids"].dtype == batch["labels"].dtype


@pytest.mark.parametrize("stopped", range(1, 120, 7))
def test_read_on_from_the_places_of_a_checkpoint(stopped: int) -> None:
    """Also where the loader had run a batch ahead: the next batch that is asked for may be the one before."""
    whole, first, batch = blocks(), blocks(), 3
    for start in range(0, stopped * batch, batch):
        first.__getitems__(range(start, start + batch))
    resumed = blocks()
    resumed.know(json.loads(json.dumps(first.places())))
    begin = (stopped - 1) * batch
    asked = range(begin, begin + 40)
    assert resumed.__getitems__(asked)["input_ids"].equal(whole.__getitems__(asked)["input_ids"])
    assert min(resumed._places) == 0
    assert min(group for group in resumed._groups) >= begin // GROUP - streaming.GROUPS_KEPT  # nothing earlier was read


def test_after_a_look_at_the_beginning_a_run_goes_on_from_its_place_and_not_through_all_between() -> None:
    first = blocks()
    for start in range(0, 300, 3):
        first.__getitems__(range(start, start + 3))
    resumed, begun = blocks(), []
    resumed.know(first.places())
    resumed.__getitems__([0, 1])  # a forecast does that
    original = resumed._seek
    resumed._seek = lambda group: begun.append(group) or original(group)  # type: ignore[method-assign,func-returns-value]
    resumed.__getitems__([300])
    assert begun[0] >= 300 // GROUP - 1


def test_memory_holds_few_groups() -> None:
    made = blocks()
    for index in range(400):
        made.__getitems__([index])
        assert len(made._groups) <= streaming.GROUPS_KEPT and len(made._places) <= streaming.GROUPS_KEPT + 3


def test_seed_and_text_decide_the_order() -> None:
    first, again, other = blocks(), blocks(), blocks(seed=4)
    asked = range(40)
    assert first.__getitems__(asked)["input_ids"].equal(again.__getitems__(asked)["input_ids"])
    assert not first.__getitems__(asked)["input_ids"].equal(other.__getitems__(asked)["input_ids"])
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert blocks(text=StreamedText(rows(TEXTS[1:]))).fingerprint != first.fingerprint
    assert blocks(text=StreamedText(rows(), identity="another file")).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (lambda: rows().shuffle(seed=1, buffer_size=50).map(dict), "has a shuffle buffer.*Leave .shuffle"),
        (lambda: datasets.IterableDataset.from_generator(random_rows), "does not go on where it was"),
        (lambda: rows(["short"], shards=1), "would all be for validation"),
        (lambda: rows(["x" * 99, None, "y" * 99]), "holds nothing in 'text', not text"),
        (
            lambda: datasets.IterableDataset.from_generator(lambda: iter([{"a": "1", "b": "2"}])),
            "Name the one that holds",
        ),
        (lambda: datasets.IterableDataset.from_generator(lambda: iter([])), "holds no rows"),
    ],
)
def test_what_is_no_stream_of_text_is_refused(dataset, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=message):
        StreamedText(dataset())


def test_a_source_that_breaks_says_what_to_do() -> None:
    def broken():  # type: ignore[no-untyped-def]
        yield from ({"text": text} for text in TEXTS[:40])
        raise ConnectionError("the line went dead")

    text = StreamedText(datasets.IterableDataset.from_generator(broken))
    with pytest.raises(DataError, match=r"cannot be read on: .*the line went dead.*start again to go on"):
        blocks(text=text).__getitems__(range(200))


def test_a_tokenizer_without_end_of_text_is_refused() -> None:
    with pytest.raises(DataError, match="no end-of-text token"):
        StreamedBlocks(StreamedText(rows()), characters(eos=False), LENGTH, 10)


def test_a_stream_that_gives_no_token_does_not_turn_in_circles() -> None:
    made = blocks()
    made._encoder = lambda texts: [np.zeros(0, np.uint16) for _ in texts]  # type: ignore[method-assign,assignment]
    with pytest.raises(DataError, match="gives no token"):
        made.__getitems__([0])


SOURCES = {
    "shards": rows,
    "mapped": lambda: rows().map(lambda row: {"text": row["text"] + "a"}),
    "interleaved": lambda: datasets.interleave_datasets([rows(), rows(TEXTS[::-1])]),
    "taken": lambda: rows().skip(3).take(150),
}


@pytest.mark.parametrize("source", SOURCES)
def test_readers_of_one_stream_do_not_move_each_other(source: str) -> None:
    alone = blocks(text=StreamedText(SOURCES[source]()))
    shared = StreamedText(SOURCES[source]())
    first, second = blocks(text=shared), blocks(text=shared)
    for index in range(160):
        wanted = alone.__getitems__([index])["input_ids"]
        assert first.__getitems__([index])["input_ids"].equal(wanted)
        assert second.__getitems__([index])["input_ids"].equal(wanted)


@pytest.mark.parametrize("name", ["arrow", "pandas", "torch"])
def test_the_format_that_rows_are_shown_in_does_not_matter(name: str) -> None:
    text = StreamedText(rows().with_format(name))
    assert text.held_back + text.sample() == TEXTS


def test_a_file_that_is_not_utf8_is_refused_where_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("café\n\n".encode("latin-1") * 200)
    with pytest.raises(DataError, match=r"cannot be read on: UnicodeDecodeError: .* text UTF-8"):
        StreamedText(datasets.load_dataset("text", data_files=str(path), split="train", streaming=True))


def test_reading_a_stream_leaves_the_dataset_where_it_was() -> None:
    source = rows()
    assert StreamedText(source).sample() == StreamedText(source).sample() != []
