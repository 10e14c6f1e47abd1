"""Micro-batches that do not fit are cut and accumulated: the steps stay what they would have been."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.training.tiny import TinyTransformer
from utils.adapters.model_adapter import adapt
from utils.errors import DataError, TokenizerError, TrainingError
from utils.tokenization.packing import PackedBlocks
from utils.training.engine.loop import TrainingLoop
from utils.training.engine.trainer import Trainer
from utils.training.training_config import TrainingConfig

IDS = np.random.default_rng(0).integers(0, 300, 20 * 16 - 9).astype(np.uint16)
BLOCKS = PackedBlocks(IDS[: 19 * 16].reshape(19, 16), tail=IDS[19 * 16 :])
"""Twenty blocks, the last of them short: parts of a micro-batch hold different numbers of labels."""


class Scarce(TinyTransformer):
    """Has memory for `room` rows in the forward pass and for `room_back` rows in the backward pass."""

    def __init__(self, room: int = 10**6, room_back: int = 10**6, from_call: int = 0) -> None:
        super().__init__(dropout=0.0)
        self.room, self.room_back, self.from_call, self.calls = room, room_back, from_call, 0

    def forward(self, input_ids):
        scarce = self.training and torch.is_grad_enabled()
        self.calls += scarce
        scarce = scarce and self.calls > self.from_call
        if scarce and len(input_ids) > self.room:
            raise torch.OutOfMemoryError("no room in the forward pass")
        logits = super().forward(input_ids)
        if scarce and len(input_ids) > self.room_back:
            logits.register_hook(self.refuse)
        return logits

    @staticmethod
    def refuse(gradient):
        raise torch.OutOfMemoryError("no room in the backward pass")


def run(tmp_path, name="r", validation=None, **room):
    torch.manual_seed(0)
    model = adapt(Scarce(), {"vocab_size": 300, "max_seq_len": 16})
    for key, value in room.items():
        setattr(model.model, key, value)
    model.model.calls = 0
    config = TrainingConfig(
        learning_rate=1e-2, batch_size=4, gradient_accumulation_steps=2, epochs=2, run_name=name, warmup_ratio=0
    )
    trainer = Trainer(model, None, config, workspace=tmp_path)
    return trainer, trainer.train(BLOCKS, validation)


@pytest.mark.parametrize(
    ("room", "split"),
    [
        ({"room": 2}, 2),
        ({"room": 1}, 4),
        ({"room_back": 2}, 2),
        ({"room_back": 1}, 4),
        ({"room": 3, "room_back": 1}, 4),
        ({"room_back": 2, "from_call": 1}, 2),  # in the second micro-batch of a window: its first one is taken again
        ({"room": 2, "from_call": 5}, 2),
    ],
)
def test_out_of_memory_changes_no_step(tmp_path, caplog, room, split):
    _, plenty = run(tmp_path, "plenty")
    trainer, scarce = run(tmp_path, "scarce", **room)
    assert trainer.module.split == split and f"into {split} parts" in caplog.text
    assert scarce["step_loss_history"] == pytest.approx(plenty["step_loss_history"], rel=1e-5)
    for name, value in plenty.model.state_dict().items():  # sums in another order, over six steps of Adam
        assert torch.allclose(scarce.model.state_dict()[name], value, atol=2e-5), name


def test_a_resumed_run_knows_the_parts(tmp_path):
    run(tmp_path, room=2)
    trainer, again = run(tmp_path)  # finished: nothing is trained
    assert again["resumed_from_step"] == 6
    saved = torch.load(again["checkpoint_path"], weights_only=True)
    trainer.module.on_load_checkpoint(saved)
    assert trainer.module.split == 2


def test_a_single_sample_that_does_not_fit_ends_with_advice(tmp_path):
    with pytest.raises(TrainingError, match=r"Not even one sample.*gradient_checkpointing=True, lower max_length"):
        run(tmp_path, room=0)


@pytest.mark.slow
def test_validation_is_cut_too_and_measures_the_same(tmp_path, monkeypatch):
    _, plenty = run(tmp_path, "plenty", BLOCKS)
    original = Scarce.forward

    def scarce(self, input_ids):
        if not self.training and len(input_ids) > 1:
            raise torch.OutOfMemoryError("no room")
        return original(self, input_ids)

    trainer, small = run(tmp_path, "small")
    monkeypatch.setattr(Scarce, "forward", scarce)
    (measured,) = trainer.engine.validate(
        trainer.module, trainer._setup_loaders(trainer._setup_data(BLOCKS, BLOCKS)).validation, verbose=False
    )
    assert measured["val_loss"] == pytest.approx(plenty["val_loss_history"][-1], rel=1e-5)
    assert small["final_loss"] == plenty["final_loss"]


def test_data_that_cannot_be_scored_is_refused_by_name(tmp_path):
    tiny = adapt(TinyTransformer(), {"vocab_size": 300, "max_seq_len": 16})
    config = TrainingConfig(max_steps=1, objective="masked", run_name="r")
    with pytest.raises(TokenizerError, match="which ids are special"):
        Trainer(tiny, None, config, workspace=tmp_path).train(BLOCKS)
    tiny.contract = dataclasses.replace(tiny.contract, task="classification")
    with pytest.raises(DataError, match=r"made for the task 'lm', and the model is trained on 'classification'"):
        Trainer(tiny, None, TrainingConfig(max_steps=1, run_name="r"), workspace=tmp_path).train(
            PackedBlocks(np.ones((3, 4), int))
        )
    assert list(tmp_path.iterdir()) == []


def test_losses_that_come_late_are_those_that_count():
    loop = TrainingLoop(1)
    late = torch.zeros(())

    class Engine:
        global_step, should_stop = 1, False

    class Module:
        device = torch.device("cpu")

    late.fill_(2.5)
    loop.on_train_batch_end(Engine(), Module(), {"loss": torch.zeros(()), "batch_loss": late}, None, 0)
    assert loop.step_losses == [2.5]
