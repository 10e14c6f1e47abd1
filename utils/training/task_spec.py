"""What a training is for: task, loss, measure, and which part of the data means what. Knows names; computes nothing.

Built-in examples of each task, with data, model and settings, are in `task_examples`; `example` hands them on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.adapters.contract import TASKS
from utils.errors import ConfigError
from utils.training.engine.loss import LossStrategyRegistry
from utils.training.setting_names import hint

if TYPE_CHECKING:
    from utils.adapters.model_adapter import AdaptedModel
    from utils.training.task_examples import TaskExample

METRICS = {"bits_per_byte": False, "accuracy": True, "loss": False}
"""Measure of a task → whether more is better. Accuracy is over whatever carries loss: texts, images, hidden or target tokens."""


@dataclass(frozen=True)
class TaskSpec:
    """What a training is for.

    Attributes:
        name: what people call it.
        task: one of `utils.adapters.contract.TASKS`; what the data module makes batches for and the model's contract says.
        metric: a name of `METRICS`, by which a run is judged.
        loss: name of the strategy in `engine.loss`.
        input_column: column of a dataset with the texts or images; None takes usual names.
        label_column: column with the classes, or with the answers of "seq2seq"; None takes usual names.
        class_names: of a classification, in the order of their numbers; empty where the data says.
        baseline: what a model must be better than, in words.

    Example:
        >>> TaskSpec.named("cls").metric
        'accuracy'
        >>> TaskSpec.named("vision", class_names=("cat", "dog")).class_names
        ('cat', 'dog')
    """

    name: str
    task: str
    metric: str
    loss: str
    input_column: str | None = None
    label_column: str | None = None
    class_names: tuple[str, ...] = ()
    baseline: str = ""

    def __post_init__(self) -> None:
        """Refuse tasks and measures that there are not.

        Raises:
            ConfigError: one of these, with the nearest.
        """
        for what, value, known in (("task", self.task, TASKS), ("metric", self.metric, tuple(METRICS))):
            if value not in known:
                raise ConfigError(f"{what}={value!r} is unknown{hint(value, known)} Known: {', '.join(known)}.")
        LossStrategyRegistry.get(self.loss)  # raises where there is none
        if isinstance(self.class_names, str) or len(set(self.class_names)) < len(self.class_names):
            raise ConfigError(f"class_names holds the name of each class once; got {self.class_names!r}.")
        object.__setattr__(self, "class_names", tuple(self.class_names))

    def for_data(self) -> dict[str, Any]:
        """Columns and classes, where they are named, as `UniversalDataModule` takes them."""
        second = "target_column" if self.task == "seq2seq" else "label_column"
        named = {"column": self.input_column, second: self.label_column}
        found: dict[str, Any] = {name: column for name, column in named.items() if column is not None}
        return {**found, "class_names": self.class_names} if self.class_names else found

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the metric is better."""
        return METRICS[self.metric]

    def is_better(self, value: float, other: float) -> bool:
        """Whether one value of the metric is better than another."""
        return value > other if self.higher_is_better else value < other

    @classmethod
    def named(cls, name: str, **changes: Any) -> TaskSpec:
        """The usual spec of a task, by its own name or one that people use for it ("clm", "mlm", "cls", "translation", …).

        Args:
            name: in any case, with spaces, - or _.
            changes: fields that differ.

        Raises:
            ConfigError: no such task, with the nearest; or a field that there is not.
        """
        key = str(name).strip().lower().replace("-", "_").replace(" ", "_")
        task = ALSO_CALLED.get(key, key)
        if task not in SPECS:
            raise ConfigError(
                f"The task {name!r} is unknown{hint(key, [*SPECS, *ALSO_CALLED])} Known: {', '.join(SPECS)}."
            )
        fields = [field.name for field in dataclasses.fields(cls)]
        for field in changes:
            if field not in fields:
                raise ConfigError(f"A TaskSpec has no {field!r}{hint(field, fields)} It has {', '.join(fields)}.")
        return dataclasses.replace(SPECS[task], **changes)

    @classmethod
    def for_model(cls, adapted: AdaptedModel, class_names: Sequence[str] = ()) -> TaskSpec:
        """The spec of what a model was made for, as its contract says.

        Args:
            adapted: the model.
            class_names: of a classifier.

        Raises:
            ConfigError: another number of classes than the model has scores.
        """
        contract = adapted.contract
        scores = contract.output_size if contract.task in ("classification", "vision") else None
        if class_names and scores is not None and len(class_names) != scores:
            raise ConfigError(
                f"{len(class_names)} class names, and {adapted.name} gives {scores} scores: name each class."
            )
        return cls.named(contract.task, class_names=tuple(class_names))


SPECS = {
    spec.name: spec
    for spec in (
        TaskSpec("lm", "lm", "bits_per_byte", "next_token", baseline="a byte trigram of the training text"),
        TaskSpec("masked", "masked", "accuracy", "masked", baseline="always the most frequent token"),
        TaskSpec("seq2seq", "seq2seq", "accuracy", "seq2seq", baseline="the source itself, copied"),
        TaskSpec("classification", "classification", "accuracy", "classification", baseline="always the largest class"),
        TaskSpec("vision", "vision", "accuracy", "vision", baseline="always the largest class"),
    )
}
"""Task → its usual spec."""

ALSO_CALLED = {
    "clm": "lm", "causal_lm": "lm", "next_token": "lm", "language_modeling": "lm", "language_model": "lm",
    "mlm": "masked", "masked_lm": "masked", "masked_language_modeling": "masked", "fill_mask": "masked",
    "sequence_to_sequence": "seq2seq", "translation": "seq2seq", "summarization": "seq2seq", "text2text": "seq2seq",
    "cls": "classification", "text_classification": "classification", "sequence_classification": "classification",
    "sentiment": "classification", "image_classification": "vision", "vision_classification": "vision", "image": "vision",
}  # fmt: skip
"""Other names of tasks."""


def example(name: str) -> TaskExample:
    """A built-in example: data, model, settings, and what must be reached (see `task_examples`)."""
    from utils.training.task_examples import example_named

    return example_named(name)
