"""Tasks by name, by model, and in the words of an error."""

from __future__ import annotations

import dataclasses

import pytest
from torch import nn

from tests.training.tiny import make_tiny
from utils.adapters.contract import TASKS
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.errors import ConfigError
from utils.training.model_sizes import model_mismatches
from utils.training.task_spec import ALSO_CALLED, METRICS, SPECS, TaskSpec, example
from utils.training.training_config import TrainingConfig


def test_there_is_a_spec_for_each_task() -> None:
    assert tuple(spec.task for spec in SPECS.values()) == TASKS
    assert len({spec.loss for spec in SPECS.values()}) == 5
    assert all(spec.baseline and spec.metric in METRICS for spec in SPECS.values())


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("lm", "lm"), ("CLM", "lm"), ("next-token", "lm"), ("mlm", "masked"), ("Masked LM", "masked"), ("cls", "classification"),
        ("text-classification", "classification"), ("translation", "seq2seq"), ("image classification", "vision"),
        *((name, task) for name, task in ALSO_CALLED.items()),
    ],
)  # fmt: skip
def test_tasks_have_many_names(name: str, task: str) -> None:
    assert TaskSpec.named(name).task == task


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TaskSpec.named("clasification"), "did you mean 'classification'"),
        (lambda: TaskSpec.named("seq2sec"), "did you mean 'seq2seq'"),
        (lambda: TaskSpec.named("xyz"), "is unknown. Known: lm, masked"),
        (lambda: TaskSpec.named("cls", classnames=("a",)), "did you mean 'class_names'"),
        (lambda: TaskSpec.named("lm", metric="acuracy"), "metric='acuracy' is unknown; did you mean 'accuracy'"),
        (lambda: TaskSpec("mine", "language", "loss", "next_token"), "task='language' is unknown"),
        (lambda: TaskSpec.named("cls", class_names=("a", "a")), "each class once"),
        (lambda: TaskSpec.named("cls", class_names="ab"), "each class once"),
    ],
)
def test_what_there_is_not_is_named(make, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert words in str(caught.value)


def test_a_spec_cannot_be_changed_but_replaced() -> None:
    spec = TaskSpec.named("cls", class_names=["a", "b"], label_column="y")
    assert spec.class_names == ("a", "b") and spec.label_column == "y"
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "other"  # type: ignore[misc]


def test_better_is_more_or_less() -> None:
    assert TaskSpec.named("cls").is_better(0.9, 0.5) and not TaskSpec.named("cls").is_better(0.5, 0.5)
    assert TaskSpec.named("lm").is_better(0.5, 0.9) and not TaskSpec.named("lm").higher_is_better


@pytest.mark.parametrize(
    ("name", "task"),
    [("lm_tiny", "lm"), ("cls_tiny", "classification"), ("seq2seq_tiny", "seq2seq"), ("vision_tiny", "vision")],
)
def test_the_spec_of_a_model_is_what_its_contract_says(name: str, task: str) -> None:
    assert TaskSpec.for_model(adapt(example(name).model(), example(name).sizes)).task == task


def test_the_classes_of_a_model_are_counted() -> None:
    adapted = example("cls_tiny").adapted()
    assert TaskSpec.for_model(adapted, ["a", "b", "c"]).class_names == ("a", "b", "c")
    with pytest.raises(ConfigError, match="2 class names, and TinyClassifier gives 3 scores"):
        TaskSpec.for_model(adapted, ["a", "b"])


# ---- sizes that the settings name ----------------------------------------------------------------------------------------
class Plain(nn.Module):
    def __init__(self, projected: bool = False) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(40, 8), nn.LayerNorm(12 if projected else 8)
        self.up = nn.Linear(8, 12) if projected else nn.Identity()
        self.head = nn.Linear(12 if projected else 8, 40)

    def forward(self, input_ids):
        return self.head(self.norm(self.up(self.embedding(input_ids))))


def stated() -> AdaptedModel:
    return adapt(Plain(), {"vocab_size": 40, "d_model": 8, "num_layers": 1})


@pytest.mark.parametrize(
    ("make", "asked", "words"),
    [
        (stated, {"vocab_size": 40, "d_model": 8, "num_layers": 1}, []),
        (stated, {}, []),
        (stated, {"vocab_size": 50257}, ["vocab_size=50257, and Plain has 40 embedding rows"]),
        (stated, {"d_model": 768, "num_layers": 12}, ["d_model=768, and Plain has 8", "num_layers=12, and Plain has 1 as its number"]),
        (lambda: adapt(Plain()), {"d_model": 768, "num_layers": 12}, ["d_model=768, and Plain has 8"]),  # layers: not told
        (lambda: adapt(Plain(projected=True)), {"d_model": 12}, []),  # the embedding's width is not the stream's
        (make_tiny, {"vocab_size": 300, "d_model": 16}, []),
        (make_tiny, {"vocab_size": 301, "d_model": 17}, ["vocab_size=301", "d_model=17"]),
    ],
)  # fmt: skip
def test_sizes_that_differ_are_named(make, asked: dict[str, int], words: list[str]) -> None:
    found = model_mismatches(TrainingConfig(**asked), make())
    assert len(found) == len(words) and all(word in line for word, line in zip(words, found)), found
