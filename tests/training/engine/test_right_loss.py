"""The engine computes what a person would write down: equal gradients whatever the accumulation, equal losses to a loop by
hand and to `transformers.Trainer`, step for step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import transformers

from utils.adapters.model_adapter import adapt
from utils.tokenization.batches import PaddedDocuments
from utils.tokenization.block_cache import in_memory
from utils.tokenization.packing import PackedBlocks
from utils.training.engine.trainer import Trainer
from utils.training.training_config import TrainingConfig

ROWS, LENGTH = 300, 16
LENGTHS = (2, 16, 5, 9, 3, 16, 12, 7)
"""Tokens of the documents of one optimizer step."""


def documents(lengths=LENGTHS, seed=0):
    ids = np.random.default_rng(seed).integers(0, ROWS, sum(lengths)).astype(np.uint16)
    return PaddedDocuments(in_memory([(ids, list(lengths))], np.dtype(np.uint16), f"{seed}"), LENGTH, 0)


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=ROWS, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    config.bos_token_id = config.eos_token_id = 0
    return transformers.GPT2LMHeadModel(config)


class Double(Trainer):
    """Trains in float64."""

    def _setup_engine(self, plan, callbacks, store, precision):
        return super()._setup_engine(plan, callbacks, store, "64-true")


def trainer(tmp_path, model, kind=Trainer, **settings):
    settings = {"learning_rate": 1e-2, "run_name": "r", "initialisation": "keep", **settings}
    return kind(model, None, TrainingConfig(**settings), workspace=tmp_path)


# ---- accumulation ----------------------------------------------------------------------------------------------------
class Keep(pl.Callback):
    """Keeps the gradients of each optimizer step, before clipping."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        parameters = pl_module.adapted.named_parameters()
        self.steps.append({name: p.grad.clone() for name, p in parameters if p.grad is not None})


def gradients(tmp_path, accumulation):
    """Gradients and loss of one step over all documents, in so many micro-batches."""
    keep = Keep()

    class Kept(Double):
        def _setup_engine(self, *arguments):
            engine = super()._setup_engine(*arguments)
            engine.callbacks.insert(0, keep)
            return engine

    settings = {"batch_size": len(LENGTHS) // accumulation, "gradient_accumulation_steps": accumulation, "epochs": 1}
    result = trainer(tmp_path / str(accumulation), adapt(gpt2()), Kept, **settings).train(documents())
    (only,) = keep.steps
    return only, result["step_loss_history"]


def test_gradients_on_ragged_batches_are_equal_whatever_the_accumulation(tmp_path):
    """Means of micro-batches, taken once more as a mean, would differ here (checked below)."""
    whole, loss = gradients(tmp_path, 1)
    model, samples = gpt2().double(), documents()
    rows = samples.__getitems__(range(len(samples)))
    scores = model(rows["input_ids"], attention_mask=rows["attention_mask"]).logits[:, :-1]
    by_hand = F.cross_entropy(scores.flatten(0, 1), rows["labels"][:, 1:].flatten(), ignore_index=-100)
    by_hand.backward()
    assert loss == pytest.approx([by_hand.item()], abs=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(whole[f"model.{name}"], parameter.grad, atol=1e-6, rtol=0)
    for accumulation in (2, 4, 8):
        found, its_loss = gradients(tmp_path, accumulation)
        assert its_loss == pytest.approx(loss, abs=1e-6)
        assert found.keys() == whole.keys()
        for name, gradient in found.items():
            assert gradient.dtype == torch.float64
            torch.testing.assert_close(gradient, whole[name], atol=1e-6, rtol=0)


def test_the_mean_of_means_would_be_seen():
    """The test above has teeth: with these lengths, unweighted micro-batches give other gradients."""
    model, samples = gpt2().double(), documents()
    parts = [samples.__getitems__([place]) for place in range(len(samples))]
    means = [
        F.cross_entropy(model(part["input_ids"]).logits[0, :-1], part["labels"][0, 1:], reduction="mean")
        for part in parts
    ]
    right = sum(mean * (length - 1) for mean, length in zip(means, LENGTHS)) / (sum(LENGTHS) - len(LENGTHS))
    wrong = sum(means) / len(means)
    pairs = zip(*(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in (right, wrong)))
    assert max(float((a - b).abs().max()) for a, b in pairs) > 1e-2


# ---- a loop by hand --------------------------------------------------------------------------------------------------
STEPS, RATE, CLIP, DECAY, WARMUP = 200, 1e-3, 0.5, 0.1, 20
MATRICES = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def rate_at(step):
    """Linear to the peak over `WARMUP` steps, then half a cosine down to a tenth."""
    if step < WARMUP:
        return RATE * (step + 1) / WARMUP
    return RATE * (0.55 + 0.45 * math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def groups(model, decayed):
    """Weight decay for the parameters that are named, none for the others."""
    named = dict(model.named_parameters())
    rest = [p for name, p in named.items() if not name.endswith(decayed)]
    picked = [p for name, p in named.items() if name.endswith(decayed)]
    return [{"params": picked, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]


SETTINGS = {
    "learning_rate": RATE,
    "max_steps": STEPS,
    "gradient_clip_norm": CLIP,
    "weight_decay": DECAY,
    "warmup_ratio": WARMUP / STEPS,
    "final_learning_rate_ratio": 0.1,
    "save_every_n_minutes": 0.0,
}


def order_of(run, data):
    """Micro-batches of sample numbers, epoch after epoch, as the trainer will see them; windows end with the epoch."""
    plan = run._setup_data(data, None)
    sampler, size = run._setup_loaders(plan).sampler, plan.window.accumulation
    windows, epoch = [], 0
    while len(windows) < plan.total_steps:
        batches = sampler.batches(epoch)
        windows += [batches[i : i + size] for i in range(0, len(batches), size)]
        epoch += 1
    return windows[: plan.total_steps]


@pytest.mark.parametrize(
    ("kind", "dtype", "accumulation"),
    [
        (Trainer, torch.float32, 1),
        (Double, torch.float64, 1),
        pytest.param(Double, torch.float64, 3, marks=pytest.mark.slow),  # half a minute
    ],
)
def test_200_losses_equal_a_loop_by_hand(tmp_path, kind, dtype, accumulation):
    """Five epochs and more over blocks and one incomplete block, AdamW with two groups, clipping, warm-up and cosine."""
    ids = np.random.default_rng(0).integers(0, ROWS, (54, LENGTH)).astype(np.uint16)
    data = PackedBlocks(ids[:53], tail=ids[53, :7])
    rows = [torch.from_numpy((ids[i] if i < 53 else ids[i, :7]).astype(np.int64)) for i in range(54)]
    run = trainer(
        tmp_path,
        adapt(gpt2()).to(dtype),
        kind,
        batch_size=4,
        gradient_accumulation_steps=accumulation,
        **SETTINGS,
    )
    windows = order_of(run, data)
    got = run.train(data)["step_loss_history"]

    model = gpt2().to(dtype).train()
    optimizer = torch.optim.AdamW(groups(model, MATRICES), lr=RATE, betas=(0.9, 0.95))
    expected = []
    for step, window in enumerate(windows):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step)
        labels = sum(len(rows[i]) - 1 for batch in window for i in batch)
        optimizer.zero_grad()
        total = 0.0
        for batch in window:
            width = max(len(rows[i]) for i in batch)
            ids_ = torch.stack([F.pad(rows[i], (0, width - len(rows[i]))) for i in batch])
            wanted = torch.stack([F.pad(rows[i], (0, width - len(rows[i])), value=-100) for i in batch])[:, 1:]
            logits = model(ids_).logits[:, :-1]
            loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100, reduction="sum") / labels
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        expected.append(total)
    assert len(got) == STEPS and expected[-1] < expected[0]
    apart = np.abs(np.array(got) - expected)
    if dtype == torch.float32:
        apart /= expected  # 1e-6 of a loss of 5 is ten units in the last place of float32; absolutely it would be two
    assert apart.max() <= 1e-6, apart.max()


# ---- transformers.Trainer --------------------------------------------------------------------------------------------
class Recorded(transformers.Trainer):
    """Keeps the loss of every step, in the order of batches that it is given."""

    def __init__(self, batches, *arguments, **named):
        super().__init__(*arguments, **named)
        self.batches, self.losses = batches, []

    def get_train_dataloader(self):
        return torch.utils.data.DataLoader(self.batches, batch_size=None)

    def training_step(self, *arguments, **named):
        loss = super().training_step(*arguments, **named)
        self.losses.append(loss.item())
        return loss


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 2])  # one of them in every run
def test_200_losses_equal_those_of_transformers_trainer(tmp_path, accumulation):
    """A GPT-2 on padded documents of 2 to 16 tokens; both weight every token of a step alike."""
    lengths = np.random.default_rng(3).integers(2, LENGTH + 1, 8 * 50).tolist()
    data = documents(lengths, seed=1)
    settings = {"batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation, **SETTINGS}
    run = trainer(tmp_path, adapt(gpt2()), **settings)
    windows = order_of(run, data)
    got = run.train(data)["step_loss_history"]

    model = gpt2()
    optimizer = torch.optim.AdamW(groups(model, MATRICES), lr=RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step) / RATE)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "theirs"),
        max_steps=STEPS,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=CLIP,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        remove_unused_columns=False,
    )
    batches = [data.__getitems__(batch) for window in windows for batch in window]
    for batch in batches:
        batch["labels"][
            :, 0
        ] = -100  # never predicted, yet transformers would count it in the mean over a step's labels
    theirs = Recorded(batches, model, arguments, train_dataset=batches, optimizers=(optimizer, schedule))
    theirs.train()
    expected = np.array(theirs.losses).reshape(STEPS, accumulation).sum(1)
    assert expected[-1] < expected[0] and len(got) == STEPS
    apart = np.abs(np.array(got) - expected)
    assert apart.max() <= 1e-3, apart.max()
