"""Text that is larger than memory and disk: read forward, tokenised on the way, and gone on with in its middle.

A stream keeps no file and knows no length. What it gives is as fixed as that of a file: block `i` is always the same tokens,
so loaders ask for blocks by number, and a resumed run asks for the next one. Reading itself, remote files included, is
`datasets.IterableDataset`'s; which files are data is for `training.data_streams`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from utils.errors import DataError
from utils.tokenization.batch_order import mixed_seed
from utils.tokenization.documents import chosen_column, text_fingerprint
from utils.tokenization.encoding import Encoder, tokenizer_fingerprint
from utils.tokenization.packing import ENDED
from utils.tokenization.samples import Batch, Samples

if TYPE_CHECKING:
    from datasets import IterableDataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

HELD_BACK_CHARACTERS = 200_000
"""The first documents, up to so many characters, are for validation: some 50,000 tokens, a second or two of a small model."""

SAMPLE_CHARACTERS = 20_000_000
"""Text behind those that a tokenizer is made from: merges settle long before, and it lies in memory."""

GROUP_TOKENS = 1 << 20
"""Blocks are shuffled within groups of so many tokens (2 to 4 MB), and a run goes on from the beginning of a group, whose
tokens are made anew (a second or two)."""

SLICE_CHARACTERS = 1 << 18
"""Characters that are tokenised at once: the interpreter is held for a few milliseconds, and training goes on beside it."""

GROUPS_KEPT = 2
"""Groups in memory beside the one that is read ahead; a batch may lie across two."""


@dataclass(frozen=True)
class Place:
    """Between two tokens of a stream.

    Attributes:
        reader: what `IterableDataset.state_dict` gave before the document; None is the stream's beginning.
        offset: tokens of that document that lie before the place.
    """

    reader: Mapping[str, Any] | None = None
    offset: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"reader": self.reader, "offset": self.offset}


class StreamedText:
    """The texts of a `datasets.IterableDataset`, in its order.

    Args:
        dataset: rows; read as often as needed, by several readers at once.
        column: the column that holds text; None takes a usual name, or the only column.
        name: for people.
        identity: what tells this source from another one that begins alike, such as the sizes of its files.

    Attributes:
        held_back: the first documents, which are for validation and never trained on.

    Raises:
        DataError: no text in it, too little of it, or rows that cannot be gone on with where one was (a shuffle buffer).

    Example:
        >>> rows = datasets.load_dataset("json", data_files="shards/*.jsonl", split="train", streaming=True)
        >>> utils.train(model, StreamedText(rows), TrainingConfig(max_steps=50_000))
    """

    def __init__(
        self, dataset: IterableDataset, column: str | None = None, name: str = "stream", identity: str = ""
    ) -> None:
        self.name, self.identity = name, identity
        self._rows = dataset.with_format(None)  # rows of plain values, whatever the format they are shown in
        self._first = dict(dataset.state_dict())
        if any(type(step).__name__ == "BufferShuffledExamplesIterable" for step in _steps_of(dataset)):
            raise DataError(
                f"{name} has a shuffle buffer, whose rows are lost when a run goes on in the middle. Leave .shuffle() out: blocks are "
                f"shuffled here, within groups of {GROUP_TOKENS:,} tokens."
            )
        self.column = chosen_column(self._column_names(), column)
        self.held_back: list[str] = []
        self._begin = Place()
        size = 0
        for before, text in self.read(Place()):
            if self.held_back and size + len(text) > HELD_BACK_CHARACTERS:
                self._begin = before
                self._prove_exact(before, text)
                break
            self.held_back.append(text)
            size += len(text)
        if self._begin == Place():
            raise DataError(
                f"{name} holds {len(self.held_back)} documents ({size:,} characters), which would all be for validation. Text of "
                "that size is no stream: pass it as it is, without stream_data."
            )

    @property
    def begin(self) -> Place:
        """The first place of the text for training."""
        return self._begin

    def read(self, place: Place) -> Iterator[tuple[Place, str]]:
        """Documents from the one that a place lies in, each with the place before it; its offset is left to the caller.

        Raises:
            DataError: a row without text, or a source that cannot be read on.
        """
        for reader, row in self._rows_from(place):
            yield Place(reader), text_of(row, self.column, self.name)

    def sample(self) -> list[str]:
        """Documents for training from the beginning, up to `SAMPLE_CHARACTERS`."""
        texts: list[str] = []
        size = 0
        for _, text in self.read(self._begin):
            texts.append(text)
            size += len(text)
            if size >= SAMPLE_CHARACTERS:
                break
        return texts

    def _column_names(self) -> list[str]:
        names = self._rows.column_names
        if names is None:  # known only once a row was read
            row = next(self._rows_from(Place()), None)
            if row is None:
                raise DataError(f"{self.name} holds no rows.")
            names = list(row[1])
        return list(names)

    def _rows_from(self, place: Place) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """Rows from a place, each with the state of the reader before it."""
        dataset = _reader_of(self._rows)
        before = place.reader or self._first
        dataset.load_state_dict(dict(before))
        rows = iter(dataset)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # whatever file systems, servers and decoders raise
                raise DataError(
                    f"{self.name} cannot be read on: {type(error).__name__}: {error}. Files must be whole and text UTF-8. What was "
                    "trained is saved; start again to go on from there."
                ) from error
            yield before, row
            before = dataset.state_dict()

    def _prove_exact(self, place: Place, text: str) -> None:
        """Go on at a place whose text is known, and see whether it comes again."""
        if next(self.read(place), (place, ""))[1] != text:
            raise DataError(
                f"{self.name} does not go on where it was: what comes after its first documents differs from one reading to the next. "
                "Its order must be fixed."
            )


def text_of(row: Mapping[str, Any], column: str, name: str) -> str:
    """The text of a row.

    Raises:
        DataError: it holds none.
    """
    text = row.get(column)
    if not isinstance(text, str):
        raise DataError(
            f"A row of {name} holds {'nothing' if text is None else type(text).__name__} in {column!r}, not text. Leave such "
            "rows out: dataset.filter(lambda row: isinstance(row[column], str))."
        )
    return text


def _reader_of(dataset: IterableDataset) -> IterableDataset:
    """The same rows, with a place of their own: a dataset keeps its place in its steps, so two readers would move each other's."""
    reader = copy(dataset)
    reader._ex_iterable = _copied_step(dataset._ex_iterable)
    return reader


def _copied_step(step: Any) -> Any:
    step = copy(step)  # what it reads stays shared
    if hasattr(step, "ex_iterable"):
        step.ex_iterable = _copied_step(step.ex_iterable)
    if hasattr(step, "ex_iterables"):
        step.ex_iterables = [_copied_step(inner) for inner in step.ex_iterables]
    return step


def _steps_of(dataset: IterableDataset) -> Iterator[Any]:
    """The steps that the rows of a dataset go through; `datasets` has no public name for them."""
    waiting = [getattr(dataset, "_ex_iterable", None)]
    while waiting:
        step = waiting.pop()
        if step is not None:
            yield step
            waiting += [getattr(step, "ex_iterable", None), *getattr(step, "ex_iterables", ())]


class StreamedBlocks(Samples):
    """Blocks of a stream by number, asked for in rising order; those of a group of `GROUP_TOKENS` tokens are shuffled.

    A batch holds `input_ids` and `labels`, both (B, T) int64 and unshifted, as that of `PackedBlocks`. At its end the stream
    begins anew. The next group is read in a thread while one is trained on.

    Args:
        text: the stream.
        tokenizer: its end-of-text token ends each document.
        block_length: tokens per block, T.
        count: blocks that are needed: what `len` gives.
        seed: of the order within groups.

    Raises:
        DataError: no end-of-text token.
    """

    task: ClassVar[str | None] = "lm"
    in_order: ClassVar[bool] = True

    def __init__(
        self, text: StreamedText, tokenizer: PreTrainedTokenizerBase, block_length: int, count: int, seed: int = 0
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError(
                "The tokenizer has no end-of-text token (eos_token), which packed text needs between documents."
            )
        self.text, self.block_length, self.count, self.seed = text, block_length, count, seed
        self.group_length = max(GROUP_TOKENS // block_length, 1)
        self._encoder = Encoder(tokenizer, ENDED)
        self._largest = max(tokenizer.get_vocab().values(), default=0)
        first = [text_fingerprint(text.held_back), text.identity, tokenizer_fingerprint(tokenizer)]
        facts = [*first, block_length, self.group_length, seed]
        self.fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        self._places = {0: text.begin}
        self._groups: dict[int, np.ndarray] = {}
        self._reader: Iterator[tuple[np.ndarray, Place]] | None = None
        self._next = 0
        self._asked = (0, 0)  # the first groups of the last two batches: loaders run one batch ahead
        self._ahead: Future[tuple[np.ndarray, Place]] | None = None
        self._thread: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return self.count

    @property
    def longest(self) -> int:
        """Tokens of each block."""
        return self.block_length

    @property
    def tokens(self) -> int:
        """Tokens of all blocks that are needed."""
        return self.count * self.block_length

    @property
    def largest_id(self) -> int:
        """Largest id that the tokenizer gives: those of the stream are not known before."""
        return self._largest

    @property
    def loss_tokens(self) -> np.ndarray:
        """Tokens that each block predicts, (N,) int64: all but its first."""
        return np.broadcast_to(np.int64(self.block_length - 1), (self.count,))  # one number, however many blocks

    def parts(self) -> Iterator[np.ndarray]:
        """The ids of the first group, (n, T): what stands for all where a measure needs the whole."""
        yield self._group(0)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch at once."""
        places = [index if index >= 0 else index + self.count for index in indices]
        self._asked = (self._asked[1], min(places) // self.group_length)
        ids = torch.from_numpy(np.stack([self._block(place) for place in places]).astype(np.int64))  # (B, T)
        return {"input_ids": ids, "labels": ids.clone()}

    # ---- going on in the middle ----------------------------------------------------------------------------------------
    def places(self) -> dict[str, Any]:
        """Where the groups that were asked for last begin, for a checkpoint: number of the group → place."""
        return {str(group): place.as_dict() for group, place in self._places.items() if group >= min(self._asked)}

    def know(self, places: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the places that `places` gave in an earlier run of the same stream: no document before them is tokenised again,
        and no file before the one in which they lie is opened.
        """
        self._places.update({int(group): Place(place["reader"], place["offset"]) for group, place in places.items()})

    # ---- reading ---------------------------------------------------------------------------------------------------------
    def _block(self, index: int) -> np.ndarray:
        group, place = divmod(index, self.group_length)
        order = np.random.default_rng(mixed_seed(self.seed, group)).permutation(self.group_length)
        return self._group(group)[order[place]]

    def _group(self, group: int) -> np.ndarray:
        """The blocks of a group, (G, T), in the order of the stream."""
        if group in self._groups:
            return self._groups[group]
        nearest = max(number for number in self._places if number <= group)
        if self._reader is None or group < self._next or nearest > self._next:
            self._seek(nearest)
        while self._next <= group:
            self._groups[self._next], self._places[self._next + 1] = self._read_ahead().result()
            self._next, self._ahead = self._next + 1, None
            for old in [number for number in self._groups if number <= self._next - 1 - GROUPS_KEPT]:
                del self._groups[old]
            for old in [number for number in self._places if 0 < number < min(*self._asked, self._next - GROUPS_KEPT)]:
                del self._places[old]
        self._read_ahead()
        return self._groups[group]

    def _read_ahead(self) -> Future[tuple[np.ndarray, Place]]:
        """The next group, as soon as it is read."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="stream")
        if self._ahead is None:
            assert self._reader is not None  # `_seek` comes first
            self._ahead = self._thread.submit(next, self._reader)  # touches nothing that others use
        return self._ahead

    def _seek(self, group: int) -> None:
        """Begin at a group whose place is known."""
        if self._ahead is not None:
            self._ahead.exception()  # one reader at a time
        logger.info("%s is read from its group %d of %d tokens", self.text.name, group, GROUP_TOKENS)
        self._reader, self._next, self._ahead = self._read_groups(self._places[group]), group, None
        self._groups.clear()

    def _read_groups(self, place: Place) -> Iterator[tuple[np.ndarray, Place]]:
        """Groups of blocks (G, T) from a place, each with the place behind it."""
        wanted = self.group_length * self.block_length
        # documents: the place before one, its ids, how many of them are taken
        waiting: deque[tuple[Place, np.ndarray, int]] = deque()
        size = 0
        for before, ids, skipped in self._encoded(place):
            waiting.append((before, ids, skipped))
            size += len(ids) - skipped
            while size >= wanted:
                parts, needed = [], wanted
                while needed:
                    before, ids, taken = waiting.popleft()
                    part = ids[taken : taken + needed]
                    parts.append(part)
                    needed -= len(part)
                    if taken + len(part) < len(ids) or not needed:
                        waiting.appendleft((before, ids, taken + len(part)))
                before, _, taken = waiting[0]
                size -= wanted
                yield np.concatenate(parts).reshape(self.group_length, self.block_length), Place(before.reader, taken)

    def _encoded(self, place: Place) -> Iterator[tuple[Place, np.ndarray, int]]:
        """Documents as ids, without end: the place before each, its ids (T,), and how many of them lie before `place`."""
        skipped = place.offset
        while True:
            found = 0
            for part in self._slices(place):
                encoded = self._encoder([text for _, text in part])
                for (before, _), ids in zip(part, encoded):
                    yield before, ids, skipped
                    found += len(ids)
                    skipped = 0
            if not found and place == self.text.begin:
                raise DataError(f"{self.text.name} gives no token behind the documents that are for validation.")
            logger.info("%s has ended, and begins anew", self.text.name)
            place, skipped = self.text.begin, 0

    def _slices(self, place: Place) -> Iterator[list[tuple[Place, str]]]:
        gathered: list[tuple[Place, str]] = []
        size = 0
        for item in self.text.read(place):
            gathered.append(item)
            size += len(item[1]) + 1
            if size >= SLICE_CHARACTERS:
                yield gathered
                gathered, size = [], 0
        if gathered:
            yield gathered
