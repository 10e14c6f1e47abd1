"""What a model's calling contract says, and how a call is made by it. Finding a contract out is for `signature`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from utils.adapters.builders import TOKENWISE, build, embedding_of
from utils.adapters.logits import LogitsSelector
from utils.adapters.masks import MaskConvention

TASKS = ("lm", "masked", "seq2seq", "classification", "vision")


@dataclass(frozen=True)
class CallContract:
    """How a model is called and what its answer means.

    Attributes:
        input_name: keyword of the token ids or pixels; None where they go by position.
        mask_name: keyword of the mask; None where the model takes none.
        mask: how the mask is written; None where the model takes none.
        mask_required: whether the model cannot be called without a mask.
        label_name: keyword that must be fed so that the model gives logits for every position; None for most.
        decoder_name: keyword of the decoder's token ids; None for models without a decoder.
        constants: further arguments that every call passes, with their values.
        built: arguments that every call builds: name → one of the kinds that `builders` knows, such as "positions (T,)".
        positional: those of the names that can only be given by position, in order.
        packed: whether all arguments go in as one mapping, the only argument of `forward`.
        logits: where the output keeps the logits.
        logits_training: the same in training mode, where the model gives something else then; None for most.
        auxiliary: (path, weight) of losses that the model adds by itself, such as the balance of experts. A path that
            begins with "module:<name>" leads to an attribute that the model leaves on that module.
        time_first: whether the model takes ids as (T, B).
        vocab_size: rows of the token embedding; every id must be below it. None where the model has no embedding.
        output_size: width of the logits (V), or number of classes.
        max_length: longest sequence that the model accepts, in tokens; None where nothing limits it.
        min_length: shortest sequence, in tokens.
        multiple_of: every length must be a multiple of this.
        encoding: how ids go in: "ids", "one-hot" (B, T, V), "embedded" by the model's own table, or "flat" (all tokens of
            the batch in one row, as `nn.EmbeddingBag` takes them).
        image_shape: (channels, height, width) of the pixels of one example; None for text.
        flat_pixels: whether pixels go in as (B, channels · height · width).
        channels_last: whether pixels go in as (B, height, width, channels).
        task: one of `TASKS`: "lm" scores the next token, "masked" the token itself, "seq2seq" the decoder's next token,
            "classification" and "vision" give one row of scores per example.
        causal: whether no later token moves an earlier logit, as far as the probe shows; None where it has no meaning.
        start_id: id with which decoder inputs begin; None where they begin with the last label, as mBART's language code.
        reasons: for each settled point, how it was found.
    """

    input_name: str | None = "input_ids"
    mask_name: str | None = None
    mask: MaskConvention | None = None
    mask_required: bool = False
    label_name: str | None = None
    decoder_name: str | None = None
    constants: dict[str, Any] = field(default_factory=dict)
    built: dict[str, str] = field(default_factory=dict)
    positional: tuple[str, ...] = ()
    packed: bool = False
    logits: LogitsSelector = field(default_factory=LogitsSelector)
    logits_training: LogitsSelector | None = None
    auxiliary: tuple[tuple[tuple[str | int, ...], float], ...] = ()
    time_first: bool = False
    vocab_size: int | None = None
    output_size: int | None = None
    max_length: int | None = None
    min_length: int = 1
    multiple_of: int = 1
    encoding: str = "ids"
    image_shape: tuple[int, int, int] | None = None
    flat_pixels: bool = False
    channels_last: bool = False
    task: str = "lm"
    causal: bool | None = None
    start_id: int | None = 0
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def shift(self) -> int:
        """How far labels lie ahead of the logits that score them: 1 for next-token prediction, else 0."""
        return 1 if self.task == "lm" else 0

    @property
    def scores_tokens(self) -> bool:
        """Whether the last axis can score every token; hidden states of a model without a head cannot."""
        if self.task not in ("lm", "masked", "seq2seq") or self.vocab_size is None or self.output_size is None:
            return True
        return self.output_size >= self.vocab_size or self.decoder_name is not None

    @property
    def writes_floats(self) -> bool:
        """Whether a call writes numbers of the model's own dtype: pixels, additive masks, weights of a mask, one-hot vectors."""
        floating = self.mask is not None and self.mask.dtype == "float"
        floating = floating or not self.takes_tokens  # weights of 16 or 64 bits take no pixels of 32
        return floating or self.encoding == "one-hot" or any("float" in kind for kind in self.built.values())

    @property
    def takes_tokens(self) -> bool:
        """Whether the main input is token ids; pixels otherwise."""
        return self.task != "vision"

    def arguments(
        self,
        inputs: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        decoder_ids: torch.Tensor | None = None,
        model: nn.Module | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of one call.

        Args:
            inputs: (B, T) ids, or (B, C, H, W) pixels.
            attention_mask: (B, T), 1 = real token.
            decoder_ids: (B, T_dec) ids.
            model: gives its mode, its first state and its embedding to the arguments that are built of them.
            dtype: floating dtype of pixels, additive masks and one-hot vectors.
        """
        keywords: dict[str, Any] = dict(self.constants)
        if self.mask_name is not None and self.mask is not None and (attention_mask is not None or self.mask_required):
            keywords[self.mask_name] = self.mask.build(_all_real(inputs, attention_mask), dtype)
        ids = inputs if self.decoder_name is None else self._decoder_ids(inputs, decoder_ids)
        for name, kind in self.built.items():
            value = build(kind, inputs, ids, attention_mask, model, dtype)
            keywords[name] = self._turned(value) if kind.startswith(TOKENWISE) else value
        if self.label_name is not None:
            keywords[self.label_name] = self._turned(ids)
        if self.decoder_name is not None:
            keywords[self.decoder_name] = self._turned(ids)
        given = self._encoded(inputs, attention_mask, model, dtype)
        if self.packed:
            return ({**keywords, self.input_name or "input_ids": given},), {}
        if self.input_name is None:
            return (given,), keywords
        keywords[self.input_name] = given
        return tuple(keywords.pop(name) for name in self.positional if name in keywords), keywords

    def _turned(self, ids: torch.Tensor) -> torch.Tensor:
        return ids.transpose(0, 1) if self.time_first else ids

    def _encoded(
        self, inputs: torch.Tensor, attention_mask: torch.Tensor | None, model: nn.Module | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """The main input as the model takes it."""
        if not self.takes_tokens:
            turned = inputs.permute(0, 2, 3, 1) if self.channels_last and inputs.dim() == 4 else inputs
            return (turned.flatten(1) if self.flat_pixels else turned).to(dtype)
        if self.encoding == "flat":
            return inputs.flatten() if attention_mask is None else inputs[attention_mask.bool()]
        given = self._turned(inputs)
        if self.encoding == "one-hot":
            return F.one_hot(given, self.vocab_size or -1).to(dtype)
        if self.encoding == "embedded":
            return embedding_of(model)(given)
        return given

    def _decoder_ids(self, inputs: torch.Tensor, decoder_ids: torch.Tensor | None) -> torch.Tensor:
        return decoder_ids if decoder_ids is not None else shifted_right(inputs, self.start_id)

    def selector(self, training: bool) -> LogitsSelector:
        """Where the logits lie in this mode."""
        return self.logits_training if training and self.logits_training is not None else self.logits

    def summary(self) -> str:
        """One line per point, with its reason."""
        names = [
            self.input_name or "<first argument>",
            self.mask_name,
            self.decoder_name,
            self.label_name,
            *self.built,
            *self.constants,
        ]
        points: dict[str, object] = {"call": f"forward({', '.join(name for name in names if name)})", "task": self.task}
        if self.takes_tokens:
            points["vocabulary rows"] = self.vocab_size
            points["longest sequence"] = self.max_length if self.max_length is not None else "no limit found"
            if self.min_length > 1:
                points["shortest sequence"] = self.min_length
            if self.multiple_of > 1:
                points["lengths"] = f"multiples of {self.multiple_of}"
            if self.encoding != "ids":
                points["ids go in"] = _ENCODINGS[self.encoding]
        else:
            points["image"] = " × ".join(map(str, self.image_shape or ())) + (
                ", channels last" if self.channels_last else ""
            )
        points["logits"] = f"{'.'.join(map(str, self.logits.path)) or 'the output itself'}, axes {self.logits.layout}"
        if self.mask is not None:
            points["mask"] = f"{self.mask_name}: {self.mask.words()}"
        points.update({name: value for name, value in self.built.items() if value.startswith("mask ")})
        if self.decoder_name is not None:
            points["decoder begins with"] = "the last label" if self.start_id is None else f"id {self.start_id}"
        if self.time_first:
            points["axes"] = "ids go in as (T, B)"
        if self.auxiliary:
            points["auxiliary loss"] = ", ".join(
                f"{weight:g} × {'.'.join(map(str, path))}" for path, weight in self.auxiliary
            )
        if self.causal is not None:
            points["causal"] = "yes" if self.causal else "no: later tokens move earlier logits"
        return "\n".join(
            f"{name}: {value}" + (f"  ({self.reasons[name]})" if name in self.reasons else "")
            for name, value in points.items()
        )

    def to_json(self) -> str:
        """The contract as JSON; `CallContract.from_json` reads it back."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> CallContract:
        """Read what `to_json` wrote."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CallContract:
        """The contract of `dataclasses.asdict`, also of one that JSON has turned into lists."""
        values = dict(content)
        selector, mask, image = values.pop("logits"), values.pop("mask"), values.pop("image_shape")
        training = values.pop("logits_training", None)
        auxiliary = tuple((tuple(path), weight) for path, weight in values.pop("auxiliary"))
        return cls(
            logits=LogitsSelector(tuple(selector["path"]), selector["layout"]),
            logits_training=LogitsSelector(tuple(training["path"]), training["layout"]) if training else None,
            positional=tuple(values.pop("positional", ())),
            mask=MaskConvention(**mask) if mask else None,
            image_shape=tuple(image) if image else None,
            auxiliary=auxiliary,
            **values,
        )


def shifted_right(ids: torch.Tensor, start_id: int | None) -> torch.Tensor:
    """Decoder inputs (B, T) for labels (B, T): begin with `start_id`, or the last real label, and drop the last; ignored ones become 0."""
    if start_id is not None:
        start = torch.full_like(ids[:, :1], start_id)
    else:
        start = ids.gather(1, (ids >= 0).sum(1, keepdim=True).sub(1).clamp(min=0)).clamp(min=0)
    return torch.cat([start, ids[:, :-1].clamp(min=0)], dim=1)


def _all_real(inputs: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The mask (B, T), all ones where none was given."""
    if attention_mask is not None:
        return attention_mask
    return torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)


_ENCODINGS = {
    "one-hot": "one-hot, (B, T, V)",
    "embedded": "embedded by the model's own table, (B, T, D)",
    "flat": "all tokens of the batch in one row, (B · T,)",
}
