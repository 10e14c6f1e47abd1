from __future__ import annotations

import copy
import shutil

import numpy as np
import pytest
import torch

from tests.training.tiny import make_tiny
from utils.training.engine.compilation import compiled
from utils.training.engine.gradient_checkpointing import checkpointed, repeated_blocks
from utils.training.engine.trainer import Trainer
from utils.training.training_config import TrainingConfig

BLOCKS = np.random.default_rng(0).integers(0, 300, (8, 16))
BATCH = {"input_ids": torch.from_numpy(BLOCKS[:4])}


@pytest.fixture
def backend(monkeypatch):
    """A compiler that is quick: what is tested is the fall-back, and what the run does with a compiled model."""
    original = torch.nn.Module.compile
    calls = []

    def quick(self, *, mode=None):
        calls.append(mode)
        original(self, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", quick)
    return calls


def test_a_compiled_model_is_used_inside_and_as_before_afterwards(backend):
    model = make_tiny()
    names = list(model.state_dict())
    before = copy.deepcopy(model.state_dict())
    with compiled(model, "default", BATCH) as found:
        assert found.mode == "default" and "same loss" in found.reason
        assert model.model._compiled_call_impl is not None and list(model.state_dict()) == names
    assert model.model._compiled_call_impl is None and backend == [None]
    assert all(before[name].equal(value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("fault", ["raises", "wrong"])
def test_a_compiler_that_fails_is_left_off_with_the_reason(monkeypatch, caplog, fault):
    model = make_tiny()

    def broken(self, *, mode=None):
        if fault == "raises":
            raise RuntimeError("no compiler here\nand more")
        self._compiled_call_impl = lambda input_ids: type(self).forward(self, input_ids) * 2

    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    with compiled(model, "max-autotune", BATCH) as found:
        assert found.mode == "off" and model.model._compiled_call_impl is None
    words = {"raises": "no compiler here", "wrong": "it gives the loss"}[fault]
    assert words in found.reason and words in caplog.text and "and more" not in found.reason


def test_a_run_says_how_it_was_compiled(tmp_path, backend):
    config = TrainingConfig(max_steps=2, batch_size=4, compile_mode="reduce-overhead", run_name="r")
    result = Trainer(make_tiny(), None, config, workspace=tmp_path).train(BLOCKS)
    assert result["compile_mode"] == "reduce-overhead" and backend == ["reduce-overhead"]
    assert result.model.model._compiled_call_impl is None


@pytest.mark.slow  # the compiler itself: half a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="the CPU backend of torch.compile needs a C++ compiler")
def test_the_real_compiler_gives_the_same_losses(tmp_path):
    losses = {}
    for mode in ("off", "default"):
        config = TrainingConfig(max_steps=4, batch_size=4, compile_mode=mode, run_name=mode)
        model = make_tiny(dropout=0.0)
        losses[mode] = Trainer(model, None, config, workspace=tmp_path).train(BLOCKS, BLOCKS[:3])["step_loss_history"]
    assert losses["default"] == pytest.approx(losses["off"], rel=1e-4)


class Deep(torch.nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.token = torch.nn.Embedding(300, 16)
        self.layers = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(16, 2, 32, 0.3, batch_first=True) for _ in range(blocks)
        )

    def forward(self, input_ids):
        mask = torch.nn.Transformer.generate_square_subsequent_mask(input_ids.shape[1])
        x = self.token(input_ids)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return x @ self.token.weight.t()


def deep(blocks: int = 3):
    from utils.adapters.model_adapter import adapt

    torch.manual_seed(0)
    return adapt(Deep(blocks), {"vocab_size": 300, "max_seq_len": 16})


def test_blocks_computed_anew_give_the_same_gradients_and_keep_less():
    plain, kept = gradients(deep(), torch.enable_grad())
    anew, kept_anew = gradients(model := deep(), checkpointed(model))
    assert all(anew[name].equal(value) for name, value in plain.items())
    assert kept_anew < 0.7 * kept
    assert all("forward" not in vars(module) for module in model.modules())
    with checkpointed(model) as words:
        assert words.startswith("on: 3 blocks (TransformerEncoderLayer)")


def gradients(model, context):
    """Gradients of one batch, and how many numbers were kept for the backward pass."""
    saved = []
    with context, torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        torch.manual_seed(1)
        model.train()
        model.on_batch(BATCH).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}, sum(saved)


def test_a_model_without_blocks_says_so(caplog):
    with checkpointed(make_tiny()) as words:
        assert words == "off: the model has no repeated blocks"
    assert "no effect" in caplog.text


def test_the_largest_brothers_are_the_blocks():
    assert [type(block).__name__ for block in repeated_blocks(Deep(2))] == ["TransformerEncoderLayer"] * 2
    assert repeated_blocks(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))) == []


def test_a_run_with_checkpointing_gives_the_same_losses(tmp_path):
    losses = {}
    for on in (False, True):
        config = TrainingConfig(max_steps=3, batch_size=4, gradient_checkpointing=on, run_name=str(on))
        result = Trainer(deep(), None, config, workspace=tmp_path).train(BLOCKS)
        losses[on] = result["step_loss_history"]
    assert losses[True] == losses[False] and result["gradient_checkpointing"].startswith("on")
