"""The adapted model: any `nn.Module` behind one call, `(input_ids, attention_mask, labels)` → logits and loss.

Joins what `graph_executor` completed and what `signature` found out. Plain torch: the Lightning module on top of it lives
in `lightning_adapter` and is imported only when somebody asks for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from utils.adapters.contract import CallContract, shifted_right
from utils.adapters.graph_executor import ComputationalGraphExecutor, GraphCompletion, complete
from utils.adapters.inference import infer_contract
from utils.adapters.losses import aligned, auxiliary_loss, cross_entropy
from utils.adapters.model_outputs import ModelOutputs
from utils.adapters.probing import device_of, dtype_of
from utils.adapters.signature import ModelSignatureInspector
from utils.errors import CallContractError, TokenIdError
from utils.loading.model_config import ModelConfig

if TYPE_CHECKING:
    from utils.adapters.fused_attention import FlashAttentionWrapper
    from utils.adapters.lightning_adapter import UniversalModelAdapter
    from utils.loading.model_loader import LoadedModel, ModelSource

__all__ = [
    "AdaptedModel",
    "ComputationalGraphExecutor",
    "FlashAttentionWrapper",
    "GraphCompletion",
    "ModelSignatureInspector",
    "UniversalModelAdapter",
    "adapt",
    "complete",
]


def __getattr__(name: str) -> object:
    if name == "UniversalModelAdapter":  # needs Lightning, which the validation path must not
        from utils.adapters.lightning_adapter import UniversalModelAdapter

        return UniversalModelAdapter
    if name == "FlashAttentionWrapper":  # it works on adapted models, so it lies above this file
        from utils.adapters.fused_attention import FlashAttentionWrapper

        return FlashAttentionWrapper
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class AdaptedModel(nn.Module):
    """A model behind the one calling contract of this package.

    Attributes:
        model: the model itself, completed where its export was broken; its parameter names are the original ones.
        config: what is known about the model, with what its modules told filled in.
        contract: how the model is called and where its logits are.
        completion: what was completed, on which evidence; `status` is "direct" where nothing had to be.
        source: files, origin and revision of a loaded model; None for a module that was passed in.

    Example:
        >>> adapted = adapt(model)
        >>> out = adapted(input_ids, labels=input_ids)   # input_ids: (B, T) int64
        >>> out.logits.shape, out.loss                   # (B, T, V), nats
    """

    def __init__(
        self,
        model: nn.Module,
        config: object = None,
        contract: CallContract | None = None,
        completion: GraphCompletion | None = None,
    ) -> None:
        super().__init__()
        known = ModelConfig.of(config)
        self.model = model
        self.contract = contract if contract is not None else infer_contract(model, known)
        self.config = _filled_in(known, self.contract)
        self.completion = completion if completion is not None else GraphCompletion.direct(model)
        self.source: ModelSource | None = None

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        **extras: torch.Tensor,
    ) -> ModelOutputs:
        """Call the model.

        Args:
            input_ids: (B, T) int64, every id below `contract.vocab_size`; for vision (B, C, H, W) pixels of any floating
                type: they are handed on in that of the weights.
            attention_mask: (B, T), 1 for a real token, 0 for padding. Passed on where the model takes one.
            labels: -100 where no loss counts. "lm": (B, T) unshifted, pass `input_ids`; "masked": (B, T), the true token at
                each position; "seq2seq": (B, T_dec) what the decoder should say; "classification" and "vision": (B,).
            label_smoothing: share of the target's probability that the loss spreads over all classes.
            extras: `decoder_input_ids` (B, T_dec) for "seq2seq", by default the labels shifted right, else the input
                shifted right; `pixel_values` in place of `input_ids`; anything else goes to the model by name.

        Returns:
            Logits (B, T, V), or (B, classes), and the mean loss in nats where labels were given.
        """
        contract = self.contract
        inputs = input_ids if input_ids is not None else extras.pop("pixel_values", None)
        if inputs is None:
            raise CallContractError(f"{self.name} needs input_ids (or pixel_values for images) as its first argument.")
        decoder_ids = extras.pop("decoder_input_ids", None)
        if contract.decoder_name is not None and decoder_ids is None and labels is not None:
            decoder_ids = shifted_right(labels, contract.start_id)
        dtype = dtype_of(self.model) if contract.writes_floats else torch.float32
        positional, keywords = contract.arguments(inputs, attention_mask, decoder_ids, self.model, dtype)
        output = self.model(*positional, **keywords, **extras)
        logits = contract.selector(self.training)(output, inputs.shape[0])
        loss = None if labels is None else self._loss(output, logits, labels, label_smoothing)
        return ModelOutputs(logits, loss)

    def on_batch(self, batch: Mapping[str, torch.Tensor], label_smoothing: float = 0.0) -> ModelOutputs:
        """Call the model on a batch as a data module makes it: `input_ids` or `pixel_values`, with `attention_mask` and
        `labels` where it has them; a language model's labels are its ids.
        """
        inputs = batch["input_ids"] if "input_ids" in batch else batch["pixel_values"]
        labels = batch.get("labels", inputs)
        return self(inputs, batch.get("attention_mask"), labels, label_smoothing=label_smoothing)

    def _loss(
        self, output: Any, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0
    ) -> torch.Tensor:
        """The task's loss, with the model's auxiliary losses added once."""
        if labels.shape != logits.shape[:-1]:
            raise CallContractError(
                f"labels must have the shape {tuple(logits.shape[:-1])} of {self.name}'s scores; got {tuple(labels.shape)}."
            )
        if not self.contract.scores_tokens:
            raise CallContractError(
                f"{self.name} gives hidden states {self.contract.output_size} wide and no scores for its "
                f"{self.contract.vocab_size} tokens: it has no head, so there is no loss. Add a head, or load the model "
                "with one (AutoModelForCausalLM instead of AutoModel)."
            )
        if logits.shape[-1] == 1:
            raise CallContractError(
                f"{self.name} gives one score per example, which is a number to fit or a yes or no, and not a choice between "
                "classes: cross-entropy would be 0 whatever it says. Compute the loss from .logits, or give the head two outputs."
            )
        loss = cross_entropy(*aligned(logits, labels, self.contract.shift), label_smoothing=label_smoothing)
        for path, weight in self.contract.auxiliary:
            made = auxiliary_loss(self.model, output, path)
            loss = loss + weight * made if made is not None else loss  # None: a mode that makes none
        return loss

    def check_inputs(self, input_ids: torch.Tensor) -> None:
        """Refuse ids and lengths that the model cannot take, before anything reaches the model or a GPU.

        Raises:
            TokenIdError: an id is negative or not below the embedding rows, or the sequence is longer than the limit.
        """
        if not self.contract.takes_tokens:
            return self._check_pixels(input_ids)
        rows, limit = self.contract.vocab_size, self.contract.max_length
        if input_ids.dim() != 2 or input_ids.is_floating_point() or input_ids.dtype == torch.bool:
            raise TokenIdError(
                f"input_ids must be whole numbers of shape (B, T); got {input_ids.dtype} of shape {tuple(input_ids.shape)}."
            )
        if limit is not None and input_ids.shape[1] > limit:
            raise TokenIdError(
                f"The sequence is {input_ids.shape[1]} tokens long, the model takes at most {limit}. Cut the text into blocks of {limit}."
            )
        shortest, step = self.contract.min_length, self.contract.multiple_of
        if input_ids.shape[1] < shortest or input_ids.shape[1] % step:
            words = f"multiples of {step} tokens" if step > 1 else f"at least {shortest} tokens"
            raise TokenIdError(
                f"The sequence is {input_ids.shape[1]} tokens long, the model takes {words}. Pad or cut the text."
            )
        if input_ids.numel() == 0 or rows is None:
            return None
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= rows:
            wrong = low if low < 0 else high
            where = [int(i) for i in (input_ids == wrong).nonzero()[0]]
            raise TokenIdError(
                f"Token id {wrong} at row {where[0]}, position {where[1]} does not fit the model's {rows} embedding rows "
                f"(0 to {rows - 1}). Use a tokenizer with at most {rows} entries."
            )

    def _check_pixels(self, pixels: torch.Tensor) -> None:
        expected = self.contract.image_shape
        if not pixels.is_floating_point() or tuple(pixels.shape[1:]) != expected:
            raise TokenIdError(
                f"Images must be floating-point of shape (B, {', '.join(map(str, expected or ()))}); got {pixels.dtype} of "
                f"shape {tuple(pixels.shape)}. Resize them and scale them to numbers between 0 and 1."
            )

    @property
    def device(self) -> torch.device:
        """Device of the first parameter; CPU for a model without any."""
        return device_of(self)

    @property
    def name(self) -> str:
        """The model's name in its config, else its class."""
        return self.config.model_name or type(self.model).__name__

    def num_parameters(self, trainable_only: bool = False) -> int:
        """Number of parameters; shared ones count once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trainable_only)

    def summary(self) -> str:
        """Name, size, contract and completions as text."""
        return (
            f"{self.name}: {self.num_parameters():,} parameters\n{self.contract.summary()}\n{self.completion.summary()}"
        )


def adapt(
    model: nn.Module | LoadedModel,
    config: object = None,
    source: str | Path | ModelSource | None = None,
    *,
    strict: bool = False,
    residual: str = "stream",
) -> AdaptedModel:
    """Complete a model where its export is broken, and put it behind the one calling contract.

    Args:
        model: an `nn.Module` or what `load_model` gave. An `AdaptedModel` is returned as it is.
        config: dict, namespace, Hugging Face config or path of a config.json; a loaded model brings its own.
        source: text or path of the file that defines the model's class; found by itself where Python knows it.
        strict: refuse completions that rest on conventions.
        residual: "stream" (skip = running residual stream) or "sublayer_input" (skip = what the sublayer read).

    Raises:
        GraphCompletionError: the export leaves something open; the message names the node and the edit that settles it.
        CallContractError: how to call the model cannot be settled; the message lists what was tried.
    """
    if isinstance(model, AdaptedModel):
        return model
    if not isinstance(model, nn.Module):
        if not isinstance(getattr(model, "model", None), nn.Module):
            raise CallContractError(
                f"adapt() takes an nn.Module or the result of load_model(); got {type(model).__name__}. "
                "For a path, gist id or URL call load_model() first."
            )
        loaded = model
        model, config = loaded.model, config if config is not None else loaded.config
        source = source if source is not None else loaded.source
    if source is not None and not isinstance(source, (str, Path)) and not hasattr(source, "text"):
        raise CallContractError(f"source= takes the text or path of a model file; got {type(source).__name__}.")
    known = ModelConfig.of(config if config is not None else getattr(model, "config", None))
    completion = complete(
        model, known, str(source) if isinstance(source, Path) else source, strict=strict, residual=residual
    )
    adapted = AdaptedModel(completion.model, known, completion=completion)
    adapted.source = None if isinstance(source, (str, Path)) else source
    return adapted


def _filled_in(config: ModelConfig, contract: CallContract) -> ModelConfig:
    """The config with vocabulary rows and length limit from the contract where it is silent."""
    return dataclasses.replace(
        config,
        vocab_size=config.vocab_size if config.vocab_size is not None else contract.vocab_size,
        max_seq_len=config.max_seq_len if config.max_seq_len is not None else contract.max_length,
    )
