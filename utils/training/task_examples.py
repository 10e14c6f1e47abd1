"""Built-in examples, one per task: data, a model, settings, and a measure that must be reached. Need no download.

An example holds what a training takes; training it is for the engine.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from utils._extras import require
from utils._random import fixed_random
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.adapters.model_outputs import IGNORED_LABEL
from utils.errors import ConfigError
from utils.training.baselines import byte_trigram_on_blocks
from utils.training.example_models import TinyCausalLM, TinyClassifier, TinyMaskedLM, TinySeq2Seq, TinyViT
from utils.training.example_texts import OPINIONS, dates, opinions, stories
from utils.training.setting_names import hint
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from utils.tokenization.data_module import UniversalDataModule
    from utils.tokenization.vision import VisionDataCollator

SEED = 7
"""Of the texts."""


@dataclass(frozen=True)
class TaskExample:
    """A task to try everything on.

    Attributes:
        name: as `example` takes it. spec: what is trained. about: the data in one sentence.
        train, validation: examples as `UniversalDataModule` takes them; no text is in both.
        config: settings that reach the target.
        target: value of the spec's metric that a training reaches on the validation part, better than `baseline()`.
        make_model: the model with fresh weights. make_tokenizer: of the training texts; None for images.
        make_baseline: the metric of what needs no model.
        sizes: what the model is told about itself.

    Example:
        >>> ex = example("cls_tiny")
        >>> result = Trainer(ex.adapted(), None, ex.config, ex.spec, ex.tokenizer()).train(ex.train, ex.validation)
    """

    name: str
    spec: TaskSpec
    about: str
    train: Sequence[Any]
    validation: Sequence[Any]
    config: TrainingConfig
    target: float
    make_model: Callable[[], nn.Module] = field(repr=False)
    make_tokenizer: Callable[[], PreTrainedTokenizerBase] | None = field(repr=False)
    make_baseline: Callable[[TaskExample], float] = field(repr=False)
    sizes: dict[str, Any] = field(default_factory=dict)

    def model(self, seed: int = 0) -> nn.Module:
        """A plain module with fresh weights, the same for a seed in every process."""
        with fixed_random(seed):
            return self.make_model()

    def adapted(self, seed: int = 0) -> AdaptedModel:
        """The same behind the calling contract, for this task: scores of every token of a block are those of the token itself
        in "masked", and of the next one in "lm", which no module tells by itself.
        """
        adapted = adapt(self.model(seed), self.sizes)
        if adapted.contract.task != self.spec.task:
            contract = dataclasses.replace(adapted.contract, task=self.spec.task)
            adapted = AdaptedModel(adapted.model, self.sizes, contract)
        return adapted

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Made of the training texts alone; None for images."""
        return None if self.make_tokenizer is None else self.make_tokenizer()

    def collator(self) -> VisionDataCollator | None:
        """What makes batches of the images; None for texts."""
        if self.spec.task != "vision":
            return None
        from utils.tokenization.vision import VisionDataCollator

        return VisionDataCollator(channels=1, size=None, mean=0.5, std=0.5)

    def data_module(self) -> UniversalDataModule:
        """Both parts as batches, with the batch size, length, seed and accumulation of the settings."""
        from utils.tokenization.data_module import UniversalDataModule

        config = self.config
        return UniversalDataModule(
            self.train,
            self.tokenizer(),
            self.spec.task,
            validation=self.validation,
            batch_size=config.batch_size,
            max_length=config.max_length or 512,
            seed=config.random_seed,
            accumulation=config.gradient_accumulation_steps,
            workers=config.num_workers,
            collator=self.collator(),
        )

    def baseline(self) -> float:
        """The metric, on the validation part, of what `spec.baseline` says."""
        return self.make_baseline(self)


def example_named(name: str) -> TaskExample:
    """A built-in example.

    Raises:
        ConfigError: there is none of that name. MissingPackageError: scikit-learn, for "vision_tiny".
    """
    make = EXAMPLES.get(str(name).strip().lower())
    if make is None:
        raise ConfigError(f"The example {name!r} is unknown{hint(name, EXAMPLES)} Known: {', '.join(EXAMPLES)}.")
    return make()


# ---- the examples --------------------------------------------------------------------------------------------------------
def _lm() -> TaskExample:
    texts = stories(2200, SEED)
    sizes = {"vocab_size": 384, "max_seq_len": 64}
    return TaskExample(
        "lm_tiny",
        TaskSpec.named("lm"),
        "Small sums in words: who has what after somebody gave or took some.",
        texts[:2000],
        texts[2000:],
        TrainingConfig(
            max_steps=400, batch_size=16, max_length=64, learning_rate=4e-3, weight_decay=0.1, val_every_n_steps=100
        ),
        target=0.75,
        make_model=lambda: TinyCausalLM(384, 64),
        make_tokenizer=functools.partial(_bpe, "lm_tiny", 384),
        make_baseline=_trigram,
        sizes=sizes,
    )


def _masked() -> TaskExample:
    texts = stories(2200, SEED)
    sizes = {"vocab_size": 512, "max_seq_len": 48}
    return TaskExample(
        "mlm_tiny",
        TaskSpec.named("masked"),
        "The same small sums, with tokens hidden that follow from what stands around them.",
        texts[:2000],
        texts[2000:],
        TrainingConfig(
            max_steps=700, batch_size=16, max_length=48, learning_rate=3e-3, objective="masked", val_every_n_steps=175
        ),
        target=0.55,
        make_model=lambda: TinyMaskedLM(512, 48),
        make_tokenizer=functools.partial(_bpe, "mlm_tiny", 512),
        make_baseline=_most_frequent_token,
        sizes=sizes,
    )


def _classification() -> TaskExample:
    pairs = opinions(2400, SEED)
    sizes = {"vocab_size": 400, "max_seq_len": 48, "num_classes": 3}
    return TaskExample(
        "cls_tiny",
        TaskSpec.named("classification", class_names=OPINIONS),
        "Sentences that praise, blame or only report; 'not' turns them round, what others say does not count.",
        pairs[:2000],
        pairs[2000:],
        TrainingConfig(epochs=4, batch_size=32, max_length=48, learning_rate=2e-3),
        target=0.9,
        make_model=lambda: TinyClassifier(400, 48, 3),
        make_tokenizer=functools.partial(_bpe, "cls_tiny", 400),
        make_baseline=_largest_class,
        sizes=sizes,
    )


def _seq2seq() -> TaskExample:
    pairs = dates(4400, SEED)
    sizes = {"vocab_size": 64, "max_seq_len": 32}
    return TaskExample(
        "seq2seq_tiny",
        TaskSpec.named("seq2seq"),
        "Dates as people write them, to be written as YYYY-MM-DD.",
        pairs[:4000],
        pairs[4000:],
        TrainingConfig(epochs=5, batch_size=32, max_length=32, learning_rate=3e-3),
        target=0.95,
        make_model=lambda: TinySeq2Seq(64, 32),
        make_tokenizer=functools.partial(_characters, "seq2seq_tiny", 64),
        make_baseline=_copied_source,
        sizes=sizes,
    )


def _vision() -> TaskExample:
    pairs = _digits()
    sizes = {"num_classes": 10, "image_size": 8, "num_channels": 1}
    return TaskExample(
        "vision_tiny",
        TaskSpec.named("vision", class_names=tuple("0123456789")),
        "1,797 handwritten digits of 8 × 8 grey pixels, from scikit-learn.",
        pairs[:1497],
        pairs[1497:],
        TrainingConfig(epochs=15, batch_size=32, learning_rate=3e-3, weight_decay=0.05),
        target=0.95,
        make_model=lambda: TinyViT(10),
        make_tokenizer=None,
        make_baseline=_largest_class,
        sizes=sizes,
    )


EXAMPLES: dict[str, Callable[[], TaskExample]] = {
    "lm_tiny": _lm,
    "mlm_tiny": _masked,
    "cls_tiny": _classification,
    "seq2seq_tiny": _seq2seq,
    "vision_tiny": _vision,
}
"""Name → what makes the example, one for each task."""


def _digits() -> list[tuple[np.ndarray, int]]:
    """(image (8, 8) uint8, digit), in an order drawn by `SEED`."""
    require("sklearn", extra="training", feature="The example vision_tiny")
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(labels))
    grey = (images.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)  # the file holds 0 … 16
    return [(grey[i], int(labels[i])) for i in order]


# ---- tokenizers ----------------------------------------------------------------------------------------------------------
def _texts_of(name: str) -> list[str]:
    """The training texts of an example, targets too."""
    found = []
    for item in example_named(name).train:
        texts = (item,) if isinstance(item, str) else item
        found += [text for text in texts if isinstance(text, str)]
    return found


@functools.lru_cache
def _bpe(name: str, entries: int) -> PreTrainedTokenizerBase:
    from utils.tokenization.bpe_trainer import SPECIAL_TOKENS, FastBPETrainer
    from utils.tokenization.masked_lm import MASK_NAMES

    specials = [*SPECIAL_TOKENS, MASK_NAMES[0]]
    return FastBPETrainer.train_on_dataset(_texts_of(name), entries, specials, progress=False)


@functools.lru_cache
def _characters(name: str, entries: int) -> PreTrainedTokenizerBase:
    from utils.tokenization.character_tokenizer import CharacterLevelTokenizer

    return CharacterLevelTokenizer(entries, texts=_texts_of(name))


# ---- baselines -----------------------------------------------------------------------------------------------------------
def _trigram(ex: TaskExample) -> float:
    """Bits per byte of a byte trigram of the training texts, on the bytes that a model is scored on."""
    from utils.tokenization.packing import pack_documents

    tokenizer = ex.tokenizer()
    assert tokenizer is not None
    blocks = pack_documents(ex.validation, tokenizer, ex.config.max_length or 64)
    return byte_trigram_on_blocks("".join(ex.train).encode(), blocks, tokenizer)


def _largest_class(ex: TaskExample) -> float:
    """Accuracy of always saying the class that training holds most of."""
    (largest, _), *_ = Counter(label for _, label in ex.train).most_common(1)
    return sum(label == largest for _, label in ex.validation) / len(ex.validation)


def _most_frequent_token(ex: TaskExample) -> float:
    """Accuracy of always saying the token that is hidden most often in training."""
    module = ex.data_module()
    hidden = torch.cat([batch["labels"].flatten() for batch in module.train_dataloader()])
    most = hidden[hidden != IGNORED_LABEL].mode().values
    asked = torch.cat([batch["labels"].flatten() for batch in module.val_dataloader()])
    return float((asked[asked != IGNORED_LABEL] == most).float().mean())


def _copied_source(ex: TaskExample) -> float:
    """Accuracy of saying, at each place of the target, the token that stands there in the source."""
    right = asked = 0
    for batch in ex.data_module().val_dataloader():
        labels, source = batch["labels"], batch["input_ids"]
        width = min(labels.shape[1], source.shape[1])
        scored = labels != IGNORED_LABEL
        right += int((labels[:, :width] == source[:, :width])[scored[:, :width]].sum())
        asked += int(scored.sum())
    return right / asked
