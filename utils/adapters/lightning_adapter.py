"""The LightningModule on top of an adapted model. The only file of this room that needs Lightning.

Knows one training step, one validation step and the optimizer; leaves data, callbacks and checkpoints to `training`.
"""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from utils.adapters.fused_step import takes_fused
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.adapters.model_outputs import ModelOutputs, counted
from utils.errors import DataError

ADAM_BETAS = (0.9, 0.95)
"""Running averages of AdamW: the custom for language models since GPT-3 (Brown et al. 2020); PyTorch's is (0.9, 0.999)."""

FINAL_RATE = 0.1
"""Learning rate at the last step as a share of the peak (Hoffmann et al. 2022 decay to a tenth)."""


class UniversalModelAdapter(pl.LightningModule):
    """Any model as a LightningModule.

    A batch is a mapping with `input_ids` (B, T) int64 or `pixel_values` (B, C, H, W), optional `labels` with -100 where no
    loss counts (for a language model unshifted, and the ids themselves where absent; else as `AdaptedModel` takes them),
    optional `attention_mask` (B, T), and optional `loss_share`: what the micro-batch weighs in its accumulation window, so
    that the step is the mean over all labels of the window (`UniversalDataModule` gives it). The defaults are those of a
    fine-tuning by hand; `train()` passes the values of `TrainingConfig`, which has defaults of its own for training from
    scratch.

    Example:
        >>> lit = UniversalModelAdapter(model, config, tokenizer, learning_rate=5e-5)
        >>> lit(input_ids, attention_mask, labels)["loss"]
    """

    def __init__(
        self,
        generated_model: nn.Module,
        config: object = None,
        tokenizer: Any = None,
        learning_rate: float = 5e-5,
        *,
        weight_decay: float = 0.01,
        warmup_ratio: float = 0.1,
        total_steps: int | None = None,
        betas: tuple[float, float] = ADAM_BETAS,
        final_rate: float = FINAL_RATE,
        schedule: str = "cosine",
    ) -> None:
        """Adapt the model where it is not adapted yet.

        Args:
            generated_model: any module; an `AdaptedModel` is used as it is.
            config: as for `adapt`.
            tokenizer: kept for callers that decode samples; training does not read it.
            learning_rate: peak rate of AdamW.
            weight_decay: decoupled decay of matrices; norms, biases and embeddings are not decayed.
            warmup_ratio: share of the steps over which the rate rises from 0.
            total_steps: optimizer steps of the whole run; without it the rate stays constant.
            betas: running averages of AdamW.
            final_rate: rate at the last step as a share of the peak.
            schedule: what the rate does after warm-up: "cosine", "linear" or "constant".
        """
        super().__init__()
        self.adapted: AdaptedModel = adapt(generated_model, config)
        self.tokenizer = tokenizer
        self.learning_rate, self.weight_decay, self.betas = learning_rate, weight_decay, betas
        self.warmup_ratio, self.total_steps, self.final_rate = warmup_ratio, total_steps, final_rate
        self.schedule = schedule
        self._window_tokens = 0

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> ModelOutputs:
        """Logits (B, T, V) and, where labels are given, the loss in nats."""
        return self.adapted(input_ids, attention_mask, labels)

    def _loss(self, batch: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        loss = self.adapted.on_batch({**batch, "labels": labels}).loss
        assert loss is not None  # labels were given
        return loss

    def training_step(self, batch: dict[str, torch.Tensor], batch_index: int) -> torch.Tensor:
        """Loss of one micro-batch, nats per label, times its share where the batch brings one.

        Raises:
            DataError: under gradient accumulation the micro-batches of one step carry different numbers of labels and no
                shares. The mean of their means, which Lightning takes, would weight labels of small micro-batches more.
        """
        labels = _labels(batch)
        if "loss_share" in batch:
            return self._loss(batch, labels) * batch["loss_share"]
        accumulation = self._trainer.accumulate_grad_batches if self._trainer is not None else 1
        if accumulation > 1:  # counting makes a GPU wait, so only here
            self._check_window(self._counted(labels), batch_index % accumulation)
        return self._loss(batch, labels)

    def _counted(self, labels: torch.Tensor) -> int:
        """Labels that carry loss."""
        return int(counted(labels, self.adapted.contract.shift))

    def _check_window(self, tokens: int, place: int) -> None:
        if place == 0:
            self._window_tokens = tokens
        elif tokens != self._window_tokens:
            raise DataError(
                f"Micro-batch {place + 1} of an accumulation window predicts {tokens} tokens, the first one "
                f"{self._window_tokens}: their mean would weight tokens unequally. Take a UniversalDataModule, whose batches "
                "say what they weigh, or set accumulate_grad_batches=1."
            )

    def validation_step(self, batch: dict[str, torch.Tensor], batch_index: int) -> torch.Tensor:
        """Loss of one validation batch; the epoch's mean weights every label alike."""
        labels = _labels(batch)
        loss = self._loss(batch, labels)
        self.log("val_loss", loss, on_step=False, on_epoch=True, batch_size=self._counted(labels), sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW; with `total_steps` also a linear warm-up and a decay to `final_rate` of the peak, per step."""
        optimizer = self.usual_optimizer()
        if self.total_steps is None:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate_at)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": 1}}

    def usual_optimizer(self) -> torch.optim.Optimizer:
        """AdamW at the peak rate, as one kernel where nothing stands against it (a third of the time of one by one)."""
        groups = decay_groups(self.adapted, self.weight_decay)
        scaled = self._trainer is not None and getattr(self._trainer.precision_plugin, "scaler", None) is not None
        fused = takes_fused((p for group in groups for p in group["params"]), scaled)
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, fused=fused)

    def rate_at(self, step: int) -> float:
        """Learning rate at an optimizer step, as a share of the peak."""
        total = max(1, self.total_steps or 1)
        warmup = max(1, round(self.warmup_ratio * total))
        if step < warmup:
            return (step + 1) / warmup
        if self.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        fallen = progress if self.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * progress))
        return 1 - (1 - self.final_rate) * fallen


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of AdamW: matrices are decayed; vectors (norms, biases) and embeddings are not. Shared ones once."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [p for p in trainable if p.dim() >= 2 and id(p) not in embeddings]
    rest = [p for p in trainable if p.dim() < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _labels(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return batch["labels"] if "labels" in batch else batch["input_ids"]
