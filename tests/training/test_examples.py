"""Every built-in example trains to its target, above its baseline, on a CPU. `python -m tests.training.test_examples` tells."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.adapters.model_adapter import AdaptedModel
from utils.adapters.model_outputs import IGNORED_LABEL
from utils.errors import ConfigError, MissingPackageError
from utils.tokenization.bits import BitsPerByte
from utils.training.engine.trainer import Trainer
from utils.training.example_texts import OPINIONS, dates, opinions, stories
from utils.training.result import TrainingResult
from utils.training.task_examples import EXAMPLES, TaskExample
from utils.training.task_spec import SPECS, example

SECONDS = 120
"""Processor time that a training may take, on one thread."""
FOUND: dict[str, str] = {}
"""What each example reached."""


def trained(ex: TaskExample, workspace: Path, steps: int | None = None) -> TrainingResult:
    """What a person does with an example."""
    config = ex.config if steps is None else dataclasses.replace(ex.config, max_steps=steps)
    return Trainer(ex.adapted(), None, config, ex.spec, ex.tokenizer(), workspace=workspace).train(ex.data_module())


@torch.no_grad()
def score(ex: TaskExample, adapted: AdaptedModel) -> tuple[float, float]:
    """The example's metric on its validation part, computed here and nowhere else, and the mean loss in nats."""
    module = ex.data_module()
    module.setup()
    right = asked = 0
    nats = 0.0
    for batch in module.val_dataloader():
        inputs = batch["input_ids"] if "input_ids" in batch else batch["pixel_values"]
        logits, labels = adapted(inputs, batch.get("attention_mask"), batch["labels"]).logits, batch["labels"]
        if ex.spec.task == "lm":
            logits, labels = logits[:, :-1], labels[:, 1:]
        scored = labels != IGNORED_LABEL
        right += int((logits.argmax(-1) == labels)[scored].sum())
        asked += int(scored.sum())
        nats -= float(logits.log_softmax(-1)[scored].gather(-1, labels[scored][:, None]).sum())
    if ex.spec.metric == "accuracy":
        return right / asked, nats / asked
    return BitsPerByte.of(module.validation_samples, ex.tokenizer())(nats / asked), nats / asked


def check_example(name: str, workspace: Path) -> None:
    ex = example(name)
    begin = time.process_time()
    result = trained(ex, workspace)
    seconds = time.process_time() - begin
    reached, baseline = score(ex, result.model)[0], ex.baseline()
    FOUND[name] = f"{ex.spec.metric} {reached:.3f}, target {ex.target}, baseline {baseline:.3f}, {seconds:.0f} s"
    assert ex.spec.is_better(ex.target, baseline), "the target asks for more than the baseline"
    assert ex.spec.is_better(reached, ex.target), FOUND[name]
    assert seconds < SECONDS, FOUND[name]
    told = (
        result["val_bits_per_byte_history"][-1]
        if ex.spec.metric == "bits_per_byte"
        else result["val_measures_history"][-1]["accuracy"]
    )
    assert told == pytest.approx(reached, rel=1e-3), "the run measures what is measured here"


@pytest.mark.slow  # half a minute and more each; the fast one below stands for them in the default run
@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "cls_tiny"])
def test_an_example_reaches_its_target(name: str, tmp_path: Path) -> None:
    check_example(name, tmp_path)


def test_the_classification_reaches_its_target(tmp_path: Path) -> None:
    check_example("cls_tiny", tmp_path)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_untrained_model_is_far_from_the_target_and_learns(name: str, tmp_path: Path) -> None:
    ex = example(name)
    metric, nats = score(ex, ex.adapted().eval())
    assert not ex.spec.is_better(metric, ex.target)
    result = trained(ex, tmp_path, steps=12)
    assert result["val_loss_history"][-1] < result["val_loss_untrained"] == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_an_example_holds(name: str) -> None:
    ex = example(name)
    assert ex.name == name and ex.config.problems() == []
    keys = [[_key(item) for item in part] for part in (ex.train, ex.validation)]
    assert not set(keys[0]) & set(keys[1]), "nothing is in both parts"
    assert len(ex.validation) >= 200
    assert ex.adapted().contract.task == ex.spec.task
    assert ex.spec.is_better(ex.target, ex.baseline())
    if ex.spec.class_names:
        assert ex.data_module().class_names in ((), ex.spec.class_names)
        module = ex.data_module()
        module.setup()
        assert module.class_names == ex.spec.class_names


def _key(item: object) -> object:
    first = item[0] if isinstance(item, tuple) else item
    return first.tobytes() if isinstance(first, np.ndarray) else first


def test_there_is_an_example_of_each_task() -> None:
    assert {example(name).spec.name for name in EXAMPLES} == set(SPECS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_weights_and_data_are_the_same_each_time(name: str) -> None:
    state = torch.get_rng_state()
    first, second, other = (example(name).model(seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state()), "nobody else's random numbers are drawn"
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
    assert [_key(item) for item in example(name).train[:50]] == [_key(item) for item in example(name).train[:50]]


def test_an_unknown_example_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'cls_tiny'.*Known: lm_tiny"):
        example("cls_tin")


def test_images_need_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils._extras.is_installed", lambda package: False)
    with pytest.raises(MissingPackageError, match="vision_tiny needs the package 'sklearn'"):
        example("vision_tiny")


# ---- the rules of the texts ----------------------------------------------------------------------------------------------
def test_the_sums_are_right() -> None:
    numbers = {word: place for place, word in enumerate(_numbers())}
    for text in stories(300, 3):
        words = text.replace(".", "").split()
        amounts = [numbers[word] for word in words if word in numbers]
        assert len(amounts) == 3
        expected = amounts[0] - amounts[1] if "gives" in words else amounts[0] + amounts[1]
        assert amounts[2] == expected, text


def _numbers() -> tuple[str, ...]:
    from utils.training.example_texts import NUMBERS

    return NUMBERS


def test_the_dates_are_right() -> None:
    import datetime

    for written, target in dates(300, 3):
        date = datetime.date.fromisoformat(target)
        assert str(date.year) in written and str(date.day) in written
        assert date.strftime("%b") in written or f".{date.month}." in written


def test_the_opinions_need_more_than_words() -> None:
    pairs = opinions(600, 3)
    assert {opinion for _, opinion in pairs} == set(OPINIONS)
    turned = [(text, opinion) for text, opinion in pairs if " not " in text and opinion != "neutral"]
    assert len(turned) > 60
    mixed = [text for text, opinion in pairs if opinion == "neutral" and "called it" in text]
    assert len(mixed) > 20, "what others say stands beside a neutral report, too"


def main() -> None:
    """Train every example and print what it reached."""
    for name in EXAMPLES:
        with tempfile.TemporaryDirectory() as folder:
            check_example(name, Path(folder))
        print(f"{name}: {FOUND[name]}", flush=True)  # noqa: T201 - this is a command


if __name__ == "__main__":
    main()
