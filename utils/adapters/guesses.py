"""Guesses how a model may want to be called, from names, defaults, config and modules. Asks the model nothing.

Which guess is right is for `inference` to find out.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from utils.adapters.contract import CallContract
from utils.adapters.masks import CAUSAL_SQUARES, DECODER_MASK_NAMES, MASK_NAMES, candidates
from utils.adapters.signature import ModelSignatureInspector, is_input_name
from utils.loading.model_config import ModelConfig

INPUT_NAMES = ("input_ids", "idx", "tokens", "token_ids", "input_tokens", "inputs", "ids", "src", "x", "input", "inp")
"""Names of the argument that takes token ids, the usual ones first."""

PIXEL_NAMES = ("pixel_values", "pixels", "images", "image", "img", "imgs")
"""Names of the argument that takes images."""

LABEL_NAMES = ("labels", "targets", "target", "y")
"""Names of arguments that take labels."""

DECODER_NAMES = (
    "decoder_input_ids",
    "tgt",
    "trg",
    "decoder_ids",
    "tgt_ids",
    "target_ids",
    "decoder_tokens",
    "tgt_tokens",
    "dec_input",
)
"""Names of the argument that takes the decoder's token ids."""

POSITION_NAMES = ("position_ids", "positions", "pos", "pos_ids", "position", "input_pos")
SEGMENT_NAMES = ("token_type_ids", "segment_ids", "segments", "token_types")
LENGTH_NAMES = ("lengths", "seq_lens", "seq_lengths", "input_lengths", "src_lengths")
FRESH_STATES = (
    "hidden",
    "state",
    "states",
    "hx",
    "h0",
    "hidden_state",
    "past",
    "cache",
    "past_key_values",
    "kv_cache",
    "mems",
)
"""Required arguments that are None at the beginning of a text."""

OFFSETS = ("start_pos", "offset", "past_length", "cache_position", "start", "pos_offset")
"""Required arguments that are 0 at the beginning of a text."""

_SIZES = (32, 28, 8, 16, 64, 224, 24, 48, 96, 14, 128, 256)


class Guesses:
    """Contracts worth trying for one model."""

    def __init__(self, model: nn.Module, config: ModelConfig) -> None:
        self.model, self.config = model, config
        self.inspector = ModelSignatureInspector(model)
        self.parameters = {
            name: parameter
            for name, parameter in self.inspector.signature.parameters.items()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }

    def guesses(self) -> Iterator[CallContract]:
        """Contracts worth trying, the likeliest first."""
        images = list(self._image_guesses())
        if self._looks_like_vision():
            yield from images
        for time_first in (False, True):
            yield from (replace(guess, time_first=time_first) for guess in self._text_guesses())
        if not self._looks_like_vision():
            yield from images

    def _text_guesses(self) -> Iterator[CallContract]:
        for name in self._input_names():
            base = CallContract(input_name=name, constants=self._constants())
            for built in self._built():
                for with_mask in self._with_required_mask(replace(base, built=built)):
                    yield from self._with_decoder_or_labels(with_mask)

    def _with_decoder_or_labels(self, base: CallContract) -> Iterator[CallContract]:
        decoder = self._decoder_name()
        if decoder is not None:
            yield replace(base, decoder_name=decoder, task="seq2seq", start_id=self._start_id())
        if decoder is None or not self._is_required(decoder):
            yield base
            yield from (replace(base, label_name=name) for name in LABEL_NAMES if name in self.parameters)

    def _input_names(self) -> list[str | None]:
        takes_any = any(p.kind is p.VAR_KEYWORD for p in self.inspector.signature.parameters.values())
        takes_more = any(p.kind is p.VAR_POSITIONAL for p in self.inspector.signature.parameters.values())
        if self.parameters or not takes_any:
            return [self._input_name()]
        return [*([None] if takes_more else []), *INPUT_NAMES]

    def _is_required(self, name: str) -> bool:
        return name in self.parameters and self.parameters[name].default is inspect.Parameter.empty

    def _input_name(self) -> str | None:
        by_keyword = [n for n, p in self.parameters.items() if p.kind is not p.POSITIONAL_ONLY]
        for name in INPUT_NAMES:
            if name in by_keyword:
                return name
        for name in by_keyword:
            if is_input_name(name):
                return name
        first = next(iter(self.parameters.values()), None)
        return first.name if first is not None and first.kind is not first.POSITIONAL_ONLY else None

    def _decoder_name(self) -> str | None:
        for name in DECODER_NAMES:
            if name in self.parameters:
                return name
        required = [n for n in ("target", "targets", "y") if self._is_required(n)]
        return required[0] if required and self._input_name() in ("src", "source", "x") else None

    def _start_id(self) -> int:
        values = (self.config.raw.get(key) for key in ("decoder_start_token_id", "bos_token_id", "pad_token_id"))
        return next((v for v in values if isinstance(v, int) and not isinstance(v, bool)), 0)

    def _constants(self) -> dict[str, Any]:
        """Required arguments that the config knows, and a cache that nobody reads switched off."""
        special = {
            *MASK_NAMES,
            *DECODER_NAMES,
            *POSITION_NAMES,
            *SEGMENT_NAMES,
            *LABEL_NAMES,
            *PIXEL_NAMES,
            self._input_name(),
        }
        needed = [n for n in self.parameters if self._is_required(n) and n not in special]
        constants = {
            name: getattr(self.config, name) for name in needed if getattr(self.config, name, None) is not None
        }
        constants.update({name: None for name in needed if name in FRESH_STATES})
        constants.update({name: 0 for name in needed if name in OFFSETS})
        if "use_cache" in self.parameters:
            constants["use_cache"] = False
        return constants

    def _built(self) -> Iterator[dict[str, str]]:
        """Ways to build required positions, segments, lengths and causal masks beside the main mask."""
        fixed = {name: "zeros (B, T)" for name in SEGMENT_NAMES if self._is_required(name)}
        fixed |= {name: "lengths (B,)" for name in LENGTH_NAMES if self._is_required(name)}
        positions = [name for name in POSITION_NAMES if self._is_required(name)]
        kinds = ("positions (B, T)", "positions (T,)") if positions else ("",)
        further = [name for name in self._required_masks() if name != self._main_mask()]
        squares = CAUSAL_SQUARES if further else CAUSAL_SQUARES[:1]
        for kind in kinds:
            for square in squares:
                masks = {
                    n: f"mask {square.words()}" + (" of the decoder" if n.startswith(("tgt", "trg", "dec")) else "")
                    for n in further
                }
                yield {**fixed, **dict.fromkeys(positions, kind), **masks}

    def _required_masks(self) -> list[str]:
        return [n for n in self.parameters if self._is_required(n) and (n in MASK_NAMES or n in DECODER_MASK_NAMES)]

    def _main_mask(self) -> str | None:
        """The required mask that carries padding: the one that is named for it, else the first over the input."""
        required = [name for name in self._required_masks() if name not in DECODER_MASK_NAMES]
        return next((name for name in required if "pad" in name), required[0] if required else None)

    def _with_required_mask(self, base: CallContract) -> Iterator[CallContract]:
        name = self._main_mask()
        if name is None:
            yield base
            return
        for convention in candidates(name):
            yield replace(base, mask_name=name, mask=convention, mask_required=True)

    def _looks_like_vision(self) -> bool:
        if any(name in self.parameters for name in PIXEL_NAMES):
            return True
        embeds = any(isinstance(m, nn.Embedding) for m in self.model.modules()) or self.config.vocab_size is not None
        return not embeds

    def _image_guesses(self) -> Iterator[CallContract]:
        name = next((n for n in PIXEL_NAMES if n in self.parameters), None) or self._input_name()
        for channels, height, width in self._image_shapes():
            shape = CallContract(
                input_name=name, constants=self._constants(), task="vision", image_shape=(channels, height, width)
            )
            yield shape
            yield replace(shape, flat_pixels=True)

    def _image_shapes(self) -> list[tuple[int, int, int]]:
        holders = (self.config, *self.model.modules())
        stated = next((v for h in holders for n in ("image_size", "img_size") if (v := _own(h, n)) is not None), None)
        sizes = (
            [(stated, stated)]
            if isinstance(stated, int)
            else [tuple(stated)]
            if isinstance(stated, (list, tuple))
            else []
        )
        convolution = next((m for m in self.model.modules() if isinstance(m, nn.Conv2d)), None)
        channels = getattr(self.config, "num_channels", None) or (
            convolution.in_channels if convolution is not None else None
        )
        if sizes or convolution is not None:
            return [(channels or 3, int(h), int(w)) for h, w in [*sizes, *((s, s) for s in _SIZES)]]
        first = next((m for m in self.model.modules() if isinstance(m, nn.Linear)), None)
        if first is None:
            return []
        roots = [(c, round((first.in_features / c) ** 0.5)) for c in (1, 3)]
        return [(c, side, side) for c, side in roots if c * side * side == first.in_features]


def _own(holder: object, name: str) -> Any:
    """A plain attribute; None where it is absent or no size."""
    value = getattr(holder, name, None)
    return value if isinstance(value, (int, tuple, list)) and not isinstance(value, bool) else None
