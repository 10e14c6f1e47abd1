"""Data modules: from texts or images to the batches of any task, for a plain `pytorch_lightning.Trainer` or ours.

Joins what the files beside it do: split, tokenise once, pack or pad, order. The only file of this room that needs Lightning.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from utils.adapters.contract import TASKS
from utils.errors import ConfigError, DataError, TokenIdError, TokenizerError
from utils.progress import ProgressCallback, ignore_progress
from utils.tokenization.batch_order import EpochBatchSampler, Window
from utils.tokenization.batches import LabelledTexts, PaddedDocuments, TextPairs, class_numbers
from utils.tokenization.documents import Documents, Selection, as_documents
from utils.tokenization.encoding import Recipe
from utils.tokenization.loaders import DataLoaderFactory
from utils.tokenization.masked_lm import HIDDEN_SHARE, MaskedBlocks
from utils.tokenization.packing import pack_documents, padding_id, token_stream
from utils.tokenization.samples import Samples
from utils.tokenization.split import VALIDATION_FRACTION, sides, split_documents
from utils.tokenization.vision import IMAGE_KEYS, Images, VisionDataCollator, column_labels, labels_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

IMAGE_WORKERS = 2
"""Processes that make image batches ahead, at most one per core; text needs none (see `DataLoaderFactory`)."""

LABEL_COLUMNS, TARGET_COLUMNS = ("label", "labels", "class"), ("target", "targets", "summary", "translation", "answer")
"""Column names that are taken for classes and for answers, in this order."""


@dataclasses.dataclass
class _Part:
    """Examples of one side: texts with labels or targets where the task has them, or images."""

    texts: Any
    other: Sequence[Any] | None = None


class UniversalDataModule(pl.LightningDataModule):
    """Data of any task as batches that `UniversalModelAdapter` takes.

    | task | data | batch |
    |---|---|---|
    | "lm" | texts | packed blocks: `input_ids`, `labels`; with packed=False padded documents and `attention_mask` |
    | "masked" | texts | packed blocks with hidden tokens, true ids as labels there |
    | "seq2seq" | pairs (source, target) | `input_ids`, `attention_mask`, `labels` (B, T_target) |
    | "classification" | pairs (text, class) | `input_ids`, `attention_mask`, `labels` (B,) |
    | "vision" | pairs (image, class) | `pixel_values`, `labels` (B,) |

    Texts are tokenised once, and kept under a hash of text, tokenizer and settings where `cache_dir` is given. Training and
    validation part share no text. The order is a function of seed and epoch; a run of `pytorch_lightning.Trainer` that is
    resumed from a checkpoint goes on with the next batch. (One case is Lightning's: a checkpoint that is saved after the last
    batch of an epoch but before the epoch's end makes Lightning 2.6 skip an epoch. Save at the end of epochs, as its own
    checkpoints do by default.)

    Args:
        data: a list, a `datasets.Dataset`, or what `DatasetLoader` gives; {"train": …, "validation": …} brings both parts.
        tokenizer: for every task with texts.
        task: one of the above.
        validation: examples for validation; None keeps `validation_fraction` of the data back.
        batch_size: samples per batch.
        max_length: tokens per block, or of the longest text.
        packed: for "lm": join documents into full blocks, so that nothing is padded.
        labels, targets: one for each text or image, where the data does not bring them.
        column, label_column, target_column: of a dataset; None takes usual names.
        validation_fraction: share of the documents (of the characters, where there is only one); 0 keeps nothing back.
        seed: of split, order and hiding.
        accumulation: batches per optimizer step, so that batches say what they weigh; None asks the trainer.
        cache_dir: folder for tokens; None keeps them in memory.
        workers: processes that make batches; None takes none for texts and `IMAGE_WORKERS` for images.
        pin_memory: None does so where there is a GPU.
        hidden_share: for "masked".
        collator: for "vision".
        make_tokenizer: makes the tokenizer from the texts for training (sources and targets), where none is given.
        class_names: of a classification, in the order of their numbers; empty takes those of the data in their own order.
        progress: called with (documents done, documents, note) while tokenising.

    Raises:
        ConfigError: an unknown task or a number out of range. TokenizerError: no tokenizer for texts.
        DataError: (in `setup`) data that the task cannot use, with what is missing.

    Example:
        >>> module = UniversalDataModule(pairs, tokenizer, task="classification", batch_size=32)
        >>> pl.Trainer(max_epochs=3).fit(UniversalModelAdapter(model), module)
    """

    def __init__(
        self,
        data: Any,
        tokenizer: PreTrainedTokenizerBase | None = None,
        task: str = "lm",
        *,
        validation: Any = None,
        batch_size: int = 16,
        max_length: int = 512,
        packed: bool = True,
        labels: Sequence[Any] | None = None,
        targets: Sequence[str] | None = None,
        column: str | None = None,
        label_column: str | None = None,
        target_column: str | None = None,
        validation_fraction: float = VALIDATION_FRACTION,
        seed: int = 42,
        accumulation: int | None = None,
        cache_dir: str | Path | None = None,
        workers: int | None = None,
        pin_memory: bool | None = None,
        hidden_share: float = HIDDEN_SHARE,
        collator: VisionDataCollator | None = None,
        make_tokenizer: Callable[[Documents], PreTrainedTokenizerBase] | None = None,
        class_names: Sequence[str] = (),
        progress: ProgressCallback = ignore_progress,
    ) -> None:
        super().__init__()
        _check(task, tokenizer or make_tokenizer, {"batch_size": (batch_size, 1), "max_length": (max_length, 2)})
        self.task, self.tokenizer, self.packed = task, tokenizer, packed
        self.batch_size, self.max_length, self.seed, self.accumulation = batch_size, max_length, seed, accumulation
        self.validation_fraction, self.cache_dir, self.hidden_share = validation_fraction, cache_dir, hidden_share
        self.collator = collator if collator is not None else VisionDataCollator()
        cores = os.cpu_count() or 1
        self.workers = workers if workers is not None else min(IMAGE_WORKERS, cores) if task == "vision" else 0
        self.pin_memory = pin_memory if pin_memory is not None else torch.cuda.is_available()
        self.class_names: tuple[str, ...] = tuple(class_names)
        self.split_rule = ""
        self._data, self._validation = _both_parts(data, validation)
        self._given = labels if labels is not None else targets
        self._columns = (column, label_column, target_column)
        self._make_tokenizer, self._progress = make_tokenizer, progress
        self._samples: tuple[Samples, Samples | None] | None = None
        self._resume: dict[str, Any] | None = None

    # ---- what a trainer asks for -------------------------------------------------------------------------------------
    def setup(self, stage: str | None = None) -> None:
        """Split and tokenise, once.

        Raises:
            TokenIdError: the trainer's model has no rows for some id, or takes shorter sequences only.
        """
        if self._samples is None:
            train, validation = self._parts()
            if self.tokenizer is None and self._make_tokenizer is not None and self.task != "vision":
                answers = as_documents(train.other) if self.task == "seq2seq" else []
                self.tokenizer = self._make_tokenizer(
                    as_documents([*train.texts, *answers]) if answers else train.texts
                )
            self._samples = (
                self._made(train, "training"),
                None if validation is None else self._made(validation, "validation"),
            )
        self._check_model()

    def train_dataloader(self) -> DataLoader[Any]:
        """Every sample once an epoch, shuffled."""
        accumulation = self.accumulation
        if accumulation is None:
            accumulation = int(self.trainer.accumulate_grad_batches) if self.trainer is not None else 1
        loader = self._factory().train(self.train_samples, Window(self.batch_size, accumulation))
        sampler = loader.batch_sampler
        assert isinstance(sampler, EpochBatchSampler)
        trainer = self.trainer
        if trainer is not None:  # after a resume Lightning announces epochs by a counter that is one ahead
            sampler.now = lambda: trainer.current_epoch
        if self._resume is not None:
            sampler.resume_at(self._resume["epoch"], self._resume["batch"])
            self._resume = None
        return loader

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Every sample of the validation part, in order; no loader where there is no such part."""
        samples = self.validation_samples
        return [] if samples is None else self._factory().validation(samples, self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Where the run is in its data, from the trainer's own counters, since loaders run ahead."""
        if self.trainer is None or self._samples is None:
            return {}
        epoch, batch = data_position(self.trainer)
        return {"epoch": epoch, "batch": batch, "fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was; other data begin their epoch anew, with a warning."""
        if not state_dict:
            return
        self.setup()
        if state_dict["fingerprint"] != self.fingerprint:
            logger.warning("the checkpoint was made with other data or settings: the order does not go on from it")
            return
        self._resume = {"epoch": int(state_dict["epoch"]), "batch": int(state_dict["batch"])}

    # ---- what it holds -----------------------------------------------------------------------------------------------
    @property
    def train_samples(self) -> Samples:
        """The training part."""
        return self._ready()[0]

    @property
    def validation_samples(self) -> Samples | None:
        """The validation part; None where there is none."""
        return self._ready()[1]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over both parts and what orders them."""
        train, validation = self._ready()
        other = None if validation is None else validation.fingerprint
        return hashlib.sha256(f"{train.fingerprint}:{other}:{self.seed}:{self.batch_size}".encode()).hexdigest()

    def summary(self) -> str:
        """Task, sizes and the rule of the split, as text."""
        train, validation = self._ready()
        kept = "no validation" if validation is None else f"{len(validation):,} for validation"
        lines = [f"{self.task}: {len(train):,} samples ({train.tokens:,} tokens) for training, {kept}"]
        lines += [f"split: {self.split_rule}"] if self.split_rule else []
        lines += [f"classes: {', '.join(self.class_names[:20])}"] if self.class_names else []
        return "\n".join(lines)

    # ---- steps, each of which a subclass can override ------------------------------------------------------------------
    def _parts(self) -> tuple[_Part, _Part | None]:
        """Training and validation examples."""
        everything = self._examples(self._data, self._given)
        validation = self._validation
        if validation is None:
            validation = getattr(self._data, "validation", None)
            self.split_rule = "validation comes with the data" if validation is not None else ""
        if validation is not None:
            return everything, self._examples(validation, None)
        if self.validation_fraction == 0:
            return everything, None
        if self.task in ("lm", "masked"):
            return self._split_documents(everything.texts)
        if everything.other is not None and self.task != "seq2seq" and not self.class_names:
            _check_labelled(everything.other)
            _, self.class_names = class_numbers(everything.other)  # before a rare class falls on one side
        return self._split_examples(everything)

    def _split_documents(self, documents: Documents) -> tuple[_Part, _Part]:
        split = split_documents(documents, self.validation_fraction, self.seed)
        self.split_rule = split.how + (f"; {split.copies:,} copies stay on one side" if split.copies else "")
        self.split_rule += f"; {split.empty:,} empty ones are left out" if split.empty else ""
        return _Part(split.train), _Part(split.validation)

    def _split_examples(self, part: _Part) -> tuple[_Part, _Part]:
        """By example; examples of one text fall on one side. Images count as different."""
        texts = part.texts if self.task != "vision" else (f"image {i}" for i in range(len(part.texts)))
        found = sides(
            (text or "\0" for text in texts), self.validation_fraction, self.seed
        )  # an empty text is an example
        if not found.validation.any():
            raise DataError(
                f"The {len(part.texts)} examples are all of one text: none can be kept back for validation. Pass validation=."
            )
        self.split_rule = (
            f"{int(found.validation.sum()):,} of {len(found.validation):,} examples, drawn by seed {self.seed}"
        )
        return _chosen(part, ~found.validation), _chosen(part, found.validation)

    def _examples(self, data: Any, other: Sequence[Any] | None) -> _Part:
        """What was passed, as texts or images with what belongs to them."""
        column, label_column, target_column = self._columns
        if self.task in ("lm", "masked"):
            return _Part(as_documents(getattr(data, "documents", data), column))
        if other is None:
            other = getattr(data, "labels" if self.task != "seq2seq" else "targets", None)
        if self.task == "vision":
            return _images(data, other, label_column)
        if hasattr(data, "documents"):
            self.class_names = self.class_names or tuple(getattr(data, "label_names", ()))
            data = data.documents
        named = target_column if self.task == "seq2seq" else label_column
        return _texts_and(data, other, column, named, TARGET_COLUMNS if self.task == "seq2seq" else LABEL_COLUMNS)

    def _made(self, part: _Part, what: str) -> Samples:
        """Samples of one part."""
        if self.task == "vision":
            return Images(part.texts, self._numbered(part.other if part.other is not None else ()), self.collator)
        assert self.tokenizer is not None  # checked when the module was made
        padding = padding_id(self.tokenizer)
        if self.task == "lm" and not self.packed:
            return PaddedDocuments(self._stream(part.texts, Recipe(end=True)), self.max_length, padding)
        if self.task in ("lm", "masked"):
            blocks = pack_documents(part.texts, self.tokenizer, self.max_length, self.cache_dir, what, self._progress)
            if self.task == "lm":
                return blocks
            return MaskedBlocks(blocks, self.tokenizer, self.seed, what == "validation", self.hidden_share)
        return self._paired(part, padding)

    def _paired(self, part: _Part, padding: int) -> Samples:
        if self.task == "seq2seq":
            recipe = Recipe(end=True, marks=True, limit=self.max_length)
            targets = as_documents(part.other)
            return TextPairs(self._stream(part.texts, recipe), self._stream(targets, recipe), padding)
        numbers = self._numbered(part.other if part.other is not None else ())
        return LabelledTexts(self._stream(part.texts, Recipe(marks=True, limit=self.max_length)), numbers, padding)

    def _numbered(self, labels: Sequence[Any]) -> np.ndarray:
        """Class numbers; names are numbered as in the data for training."""
        _check_labelled(labels)
        if not self.class_names:
            numbers, self.class_names = class_numbers(labels)
            return numbers
        return _known_numbers(labels, self.class_names)

    def _stream(self, texts: Documents, recipe: Recipe) -> Any:
        assert self.tokenizer is not None
        stream = token_stream(texts, self.tokenizer, self.cache_dir, self._progress, recipe)
        cut = 0 if recipe.limit is None else int((np.diff(stream.ends, prepend=0) >= recipe.limit).sum())
        if cut:
            logger.info(
                "%d of %d texts reach max_length=%d and may have been cut there", cut, len(stream.ends), recipe.limit
            )
        return stream

    def _factory(self) -> DataLoaderFactory:
        return DataLoaderFactory(self.seed, self.pin_memory, self.workers)

    def _ready(self) -> tuple[Samples, Samples | None]:
        if self._samples is None:
            self.setup()
        assert self._samples is not None
        return self._samples

    def _check_model(self) -> None:
        """Hold ids and lengths against the trainer's model, before anything reaches a GPU."""
        adapted = getattr(getattr(self.trainer, "lightning_module", None), "adapted", None)
        if adapted is not None:
            for samples in self._ready():
                if samples is not None:
                    check_fits(samples, adapted.contract.vocab_size, adapted.contract.max_length)


class AdaptiveTokenizerDataModule(UniversalDataModule):
    """Packed blocks of a dataset for next-token training: the usual case, in its documented call.

    Args:
        dataset: texts, a `datasets.Dataset`, or what `DatasetLoader` gives.
        tokenizer: e.g. from `AdaptiveTokenizer.load_or_create`.
        batch_size: blocks per batch.
        max_length: tokens per block.
        options: further arguments of `UniversalDataModule`.
    """

    def __init__(
        self,
        dataset: Any,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 16,
        max_length: int = 512,
        **options: Any,
    ) -> None:
        super().__init__(dataset, tokenizer, batch_size=batch_size, max_length=max_length, **options)


def data_position(trainer: pl.Trainer) -> tuple[int, int]:
    """Epoch and batch that come next, from Lightning's counters; loaders may have run ahead."""
    epochs: Any = trainer.fit_loop.epoch_progress.current  # counts that are started, processed, …
    batch = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    if epochs.processed == epochs.started:
        batch = 0  # the epoch has ended: the next one begins at its first batch
    return int(epochs.processed), int(batch)


def check_fits(samples: Samples, rows: int | None, limit: int | None, what: str = "training") -> None:
    """Refuse ids and lengths that a model cannot take.

    Raises:
        TokenIdError: an id without a row, or a sample longer than the limit.
    """
    largest = samples.largest_id
    if rows is not None and largest is not None and largest >= rows:
        raise TokenIdError(
            f"The {what} data holds token id {largest}; the model has {rows} embedding rows (0 to {rows - 1}). "
            f"Use a tokenizer with at most {rows} entries."
        )
    if limit is not None and samples.longest > limit:
        raise TokenIdError(
            f"The {what} samples are up to {samples.longest} tokens long, the model takes at most {limit}. "
            f"Pass max_length={limit}."
        )


def _check(task: str, tokenizer: Any, numbers: Mapping[str, tuple[int, int]]) -> None:
    if task not in TASKS:
        raise ConfigError(f"task={task!r} is unknown. Known: {', '.join(TASKS)}.")
    for name, (value, least) in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name}={value!r}: expected a whole number of {least} or more.")
    if tokenizer is None and task != "vision":
        raise TokenizerError(
            f"The task {task!r} needs a tokenizer: pass tokenizer=, e.g. AdaptiveTokenizer.load_or_create(vocab_size, data)."
        )


def _both_parts(data: Any, validation: Any) -> tuple[Any, Any]:
    """Data and validation, where one mapping brings both."""
    for given in (data, validation):
        if isinstance(given, (str, Path)):
            raise DataError(
                f"A data module takes no name or path ({str(given)[:60]!r}): DatasetLoader.from_anything(name) reads it. Text "
                "itself goes into a list, [text], so that a mistyped path is never trained on."
            )
    for given in (data, validation):
        if given is not None and not hasattr(getattr(given, "documents", given), "__len__"):
            raise DataError(
                f"A data module goes through its data more than once, and a {type(given).__name__} can be gone through only once. "
                "Pass list(...) of it."
            )
    if not isinstance(data, Mapping):
        return data, validation
    if "train" not in data:
        raise DataError(f"data holds the parts {', '.join(map(repr, data))} and none named 'train'.")
    kept = next((data[name] for name in ("validation", "valid", "dev") if name in data), None)
    return data["train"], validation if validation is not None else kept


def _texts_and(
    data: Any, other: Sequence[Any] | None, column: str | None, named: str | None, usual: Sequence[str]
) -> _Part:
    """Texts with what belongs to each: given apart, in another column, or as pairs."""
    if other is None and hasattr(data, "column_names"):
        names = list(data.column_names)
        found = named if named is not None else next((name for name in usual if name in names), None)
        if found is None or found not in names:
            raise DataError(
                f"The dataset has the columns {', '.join(map(repr, names))} and none named {', '.join(map(repr, usual))}. "
                "Name it: label_column= or target_column=."
            )
        return _Part(as_documents(data, column), column_labels(data, found))
    if other is None:
        if not len(data):
            raise DataError("There are no examples.")
        wrong = next((i for i, item in enumerate(data) if not isinstance(item, (tuple, list)) or len(item) != 2), None)
        if wrong is not None:
            raise DataError(
                f"This task takes pairs (text, label or target); example {wrong} is none. Pass pairs, or labels= or targets=."
            )
        data, other = [text for text, _ in data], [value for _, value in data]
    documents = as_documents(data, column)
    if len(documents) != len(other):
        raise DataError(f"There are {len(documents)} texts and {len(other)} labels or targets: each text needs one.")
    return _Part(documents, other)


def _images(data: Any, labels: Sequence[Any] | None, label_column: str | None) -> _Part:
    if not len(data):
        raise DataError("There are no images.")
    if hasattr(data, "column_names") and not any(key in data.column_names for key in IMAGE_KEYS):
        raise DataError(
            f"The dataset has the columns {', '.join(data.column_names)} and none named {', '.join(IMAGE_KEYS)}. "
            "Rename the one that holds the images: dataset.rename_column(…, 'image')."
        )
    if labels is None:
        labels = labels_of(data) if label_column is None else column_labels(data, label_column)
    if len(labels) != len(data):
        raise DataError(f"There are {len(data)} images and {len(labels)} labels: each image needs one.")
    return _Part(data, list(labels))


def _check_labelled(labels: Sequence[Any]) -> None:
    """Refuse labels that are missing; NaN, which is unequal to itself, stands for none in tables."""
    missing = next((place for place, label in enumerate(labels) if label is None or label != label), None)
    if missing is not None:
        raise DataError(f"Example {missing} has no label. Leave unlabelled examples out.")


def _known_numbers(labels: Sequence[Any], names: Sequence[str]) -> np.ndarray:
    """Class numbers of labels by the names, or numbers, of known classes."""
    place = {name: number for number, name in enumerate(names)}
    numbers = [
        place.get(str(label), -1)
        if isinstance(label, (str, bool))
        else int(label)
        if isinstance(label, (int, np.integer)) and 0 <= label < len(names)
        else -1
        for label in labels
    ]
    unknown = sorted({str(label) for label, number in zip(labels, numbers) if number < 0})
    if unknown:
        raise DataError(
            f"There are classes that training does not have: {', '.join(unknown[:5])}. Training has {', '.join(names[:20])}."
        )
    return np.array(numbers, dtype=np.int64)


def _chosen(part: _Part, kept: np.ndarray) -> _Part:
    places = np.flatnonzero(kept)
    other = None if part.other is None else [part.other[int(i)] for i in places]
    if hasattr(part.texts, "select"):
        return _Part(part.texts.select(places), other)
    if isinstance(part.texts, Sequence) and not isinstance(part.texts, str):
        return _Part([part.texts[int(i)] for i in places], other)
    return _Part(Selection(part.texts, kept), other)
