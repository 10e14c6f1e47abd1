"""Every task through the verb `train`, from raw data to a measured result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import utils
from tests.training.tiny import TEXT, TinyTransformer
from utils.adapters.model_adapter import adapt
from utils.errors import DataError, TrainingError
from utils.tokenization.bpe_trainer import FastBPETrainer
from utils.tokenization.data_module import UniversalDataModule
from utils.training.engine.trainer import Trainer
from utils.training.task_spec import TaskSpec, example
from utils.training.training_config import TrainingConfig
from utils.training.training_core import TrainingCoordinator, train

COLOURS = ("red", "blue", "green")
TEXTS = [(f"the {COLOURS[i % 3]} thing has number {i}", COLOURS[i % 3]) for i in range(60)]
PAIRS = [(f"the {COLOURS[i % 3]} thing has number {i}", f"it is {COLOURS[i % 3]}") for i in range(60)]


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(300, 16), nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.embedding(input_ids) * mask[..., None]  # (B, T, C)
        return self.head(x.sum(1) / mask.sum(1, keepdim=True))


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(300, 16), nn.Linear(16, 300)
        self.transformer = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True)

    def forward(self, input_ids, decoder_input_ids):
        mask = nn.Transformer.generate_square_subsequent_mask(decoder_input_ids.shape[1])
        x = self.transformer(self.embedding(input_ids), self.embedding(decoder_input_ids), tgt_mask=mask)
        return self.head(x)


class Seer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 2)

    def forward(self, pixel_values):
        return self.head(pixel_values.flatten(1))


def images():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(60, 8, 8, generator=generator) / 4
    return [(noise[i] + (0.7 if i % 2 else 0.0), ("dark", "bright")[i % 2]) for i in range(60)]


TASKS = {
    "classification": (Classifier, None, lambda: TEXTS),
    "seq2seq": (Translator, None, lambda: PAIRS),
    "vision": (Seer, {"image_size": 8, "num_channels": 1}, images),
    "masked": (TinyTransformer, {"vocab_size": 300, "max_seq_len": 16}, lambda: [TEXT]),
    "lm": (TinyTransformer, {"vocab_size": 300, "max_seq_len": 16}, lambda: [TEXT]),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_becomes_better_at_what_it_is_for(tmp_path, task):
    kind, config, data = TASKS[task]
    torch.manual_seed(0)
    settings = {"learning_rate": 1e-2, "batch_size": 8, "max_steps": 100, "label_smoothing": 0.05, "ema_decay": 0.8}
    if task == "masked":
        settings["objective"] = "masked"
    result = train(adapt(kind(), config), data(), settings, workspace=tmp_path, progress=False)
    assert result["task"] == task
    assert result["val_loss_history"][-1] < 0.95 * result["val_loss_untrained"]
    classes = task in ("classification", "vision")
    assert ("macro_f1" in result["val_measures_history"][-1]) == classes
    assert set(result["class_names"]) == (
        {"red", "blue", "green"} if task == "classification" else set(result["class_names"])
    )
    assert (result["tokenizer_reason"] is None) == (task == "vision")
    assert ("nats per example, accuracy" in result.summary()) == classes
    if classes:
        assert result["val_measures_history"][-1]["accuracy"] > 0.9
    assert (result.run_folder / "tokenizer").is_dir() == (task != "vision")


def test_the_coordinator_gives_lightnings_trainer_and_module(tmp_path):
    model, config = TinyTransformer(), {"vocab_size": 300, "max_seq_len": 16}
    coordinator = TrainingCoordinator(
        model=model,
        config=config,
        tokenizer=FastBPETrainer.train_on_dataset([TEXT], 290),
        dataset=[TEXT],
        training_config={"max_steps": 3},
        workspace=tmp_path,
        progress=False,
    )
    trainer, lit = coordinator.train()
    assert trainer.global_step == 3 and lit.adapted.model is not None
    assert len(coordinator.result["step_loss_history"]) == 3 and len(coordinator.result.tokenizer) == 290


def test_the_tokenizer_of_labelled_texts_never_sees_validation(tmp_path):
    seen: list[str] = []

    def make(texts):
        seen.extend(texts)
        return FastBPETrainer.train_on_dataset(list(texts), 290)

    module = UniversalDataModule(PAIRS, None, "seq2seq", make_tokenizer=make)
    module.setup()
    train_texts = {text for pair in PAIRS for text in pair}
    held_back = {source for source, _ in PAIRS} - set(seen)
    assert set(seen) <= train_texts and len(held_back) == len(module.validation_samples)


def test_parts_given_apart_are_kept_apart(tmp_path):
    tokenizer = FastBPETrainer.train_on_dataset([text for text, _ in TEXTS], 290)
    config = TrainingConfig(max_steps=2, batch_size=4, run_name="r")
    trainer = Trainer(adapt(Classifier()), None, config, tokenizer=tokenizer, workspace=tmp_path)
    result = trainer.train(TEXTS[:30], TEXTS[30:40])
    assert len(result["val_loss_history"]) == 1
    assert (
        len(
            Trainer(adapt(Classifier()), None, config, tokenizer=tokenizer, workspace=tmp_path / "b").train(TEXTS[:30])[
                "val_loss_history"
            ]
        )
        == 0
    )


def test_an_average_of_the_weights_is_what_is_validated_and_handed_over(tmp_path):
    results = {}
    for decay in (None, 0.9):
        torch.manual_seed(0)
        config = TrainingConfig(max_steps=6, batch_size=8, learning_rate=1e-2, ema_decay=decay, run_name=str(decay))
        trainer = Trainer(adapt(Seer(), {"image_size": 8, "num_channels": 1}), None, config, workspace=tmp_path)
        results[decay] = trainer.train(images()[:40], images()[40:])
    plain, mean = results[None], results[0.9]
    assert plain["step_loss_history"] == mean["step_loss_history"]
    saved = torch.load(mean["checkpoint_path"], weights_only=True)
    name = "adapted.model.head.weight"
    assert saved["current_model_state"][name].equal(plain.model.model.head.weight)
    assert saved["state_dict"][name].equal(mean.model.model.head.weight)
    assert not mean.model.model.head.weight.equal(plain.model.model.head.weight)


def test_a_smoothed_loss_is_for_training_alone(tmp_path):
    losses = {}
    for smoothing in (0.0, 0.3):
        torch.manual_seed(0)
        config = TrainingConfig(
            max_steps=1, batch_size=40, label_smoothing=smoothing, learning_rate=1e-9, run_name=str(smoothing)
        )
        trainer = Trainer(adapt(Seer(), {"image_size": 8, "num_channels": 1}), None, config, workspace=tmp_path)
        losses[smoothing] = trainer.train(images()[:40], images()[40:])
    assert losses[0.3]["val_loss_history"] == pytest.approx(losses[0.0]["val_loss_history"], abs=1e-6)
    assert losses[0.3]["final_loss"] != pytest.approx(losses[0.0]["final_loss"], abs=1e-4)


def test_a_data_module_for_another_task_is_refused(tmp_path):
    module = UniversalDataModule(images(), task="vision", collator=None)
    with pytest.raises(TrainingError, match=r"for the task 'vision', and the model is trained on 'classification'"):
        train(adapt(Classifier()), module, {"max_steps": 1}, workspace=tmp_path, progress=False)


@pytest.mark.parametrize("name", ["cls_tiny", "lm_tiny"])
def test_a_built_in_example_is_data_by_its_name(tmp_path, name):
    ex = example(name)
    result = train(ex.adapted(), name, {"max_steps": 2}, workspace=tmp_path, progress=False)
    assert result["task"] == ex.spec.task and len(result["val_loss_history"]) == 1
    assert set(result["class_names"]) == set(ex.spec.class_names)


def test_a_model_of_images_is_exported_and_runs_alone(tmp_path):
    result = train(
        adapt(Seer(), {"image_size": 8, "num_channels": 1}),
        images(),
        {"max_steps": 1},
        workspace=tmp_path,
        progress=False,
    )
    bundle = utils.export(result, out=tmp_path / "out")
    assert bundle.parity.passed and not bundle.refused
    assert bundle["onnx"].run(pixel_values=np.zeros((5, 1, 8, 8), np.float32)).shape == (5, 2)
    assert (bundle.out / "selftest.py").is_file()


def test_a_model_comes_in_eval_mode_and_trains_in_training_mode(tmp_path):
    losses = []
    for training in (True, False):
        torch.manual_seed(0)
        model = adapt(TinyTransformer(dropout=0.5), {"vocab_size": 300, "max_seq_len": 16}).train(training)
        ids = torch.randint(0, 300, (12, 16), generator=torch.Generator().manual_seed(1))
        result = train(model, ids, {"max_steps": 3}, workspace=tmp_path / str(training), progress=False)
        losses.append(result["step_loss_history"])
    assert losses[0] == losses[1]


def test_what_cannot_be_trained_is_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(TrainingError, match="are frozen: there is nothing to train"):
        train(adapt(Classifier()).requires_grad_(False), TEXTS, workspace=tmp_path, progress=False)
    with pytest.raises(DataError, match=r"a zip can be gone through only once. Pass list\(\.\.\.\)"):
        train(adapt(Classifier()), zip("abc", (0, 1, 0)), workspace=tmp_path, progress=False)
    assert not [entry for entry in tmp_path.iterdir() if entry.name != ".cache"]


def test_classes_are_numbered_as_the_spec_names_them(tmp_path):
    spec = TaskSpec.named("classification", class_names=("red", "green", "blue"))
    result = train(adapt(Classifier()), TEXTS, {"max_steps": 1}, task_spec=spec, workspace=tmp_path, progress=False)
    assert tuple(result["class_names"]) == ("red", "green", "blue")
    wrong = TaskSpec.named("classification", class_names=("red", "green", "yellow"))
    with pytest.raises(DataError, match=r"classes that training does not have: blue"):
        train(adapt(Classifier()), TEXTS, {"max_steps": 1}, task_spec=wrong, workspace=tmp_path / "b", progress=False)


def test_batch_statistics_are_not_counted_twice(tmp_path, caplog):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(64, 64), nn.BatchNorm1d(64)

        def forward(self, x):
            return self.norm(self.linear(x))

    class Deep(Seer):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Block(), Block()])

        def forward(self, pixel_values):
            x = pixel_values.flatten(1)
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    settings = {"max_steps": 2, "gradient_checkpointing": True}
    model = adapt(Deep(), {"image_size": 8, "num_channels": 1})
    result = train(model, images(), settings, workspace=tmp_path, progress=False)
    assert result["gradient_checkpointing"].startswith("off: BatchNorm1d") and "no effect" in caplog.text
