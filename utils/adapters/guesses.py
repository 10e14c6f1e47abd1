"""Guesses how a model may want to be called, from names, annotations, config and modules. Asks the model nothing.

Which guess is right is for `inference` to find out; what a name says is for `roles`, what a picture may measure for `pictures`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from utils.adapters.builders import FIRST_STATES, OF_DECODER
from utils.adapters.contract import CallContract
from utils.adapters.masks import FULL_SQUARES, LENGTHS, SQUARES, MaskConvention, candidates
from utils.adapters.pictures import image_shapes
from utils.adapters.roles import EMBEDDING_NAMES, INPUT_NAMES, LABEL_NAMES, PIXEL_NAMES, Argument
from utils.adapters.signature import ModelSignatureInspector, is_input_name
from utils.loading.model_config import ModelConfig

_MADE = {"length": "length", "batch": "batch size", "device": "device", "training": "training mode"}
"""Parts that a call builds in one way."""

_STARTING: dict[str, Any] = {
    "state": None,
    "start": 0,
    "temperature": 1.0,
    "dropout": 0.0,
    "step": 0,
    "flag": False,
    "causal": True,
}
"""Parts that have one value at the beginning of a text, or one that changes nothing."""


class Guesses:
    """Contracts worth trying for one model."""

    def __init__(self, model: nn.Module, config: ModelConfig) -> None:
        self.model, self.config = model, config
        self.inspector = ModelSignatureInspector(model)
        parameters = self.inspector.signature.parameters.values()
        self.takes_args = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.takes_keywords = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.packed = False
        self.arguments: dict[str, Argument] = {}
        self.know(Argument.of(p) for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))

    def know(self, arguments: Iterator[Argument] | list[Argument], packed: bool = False) -> None:
        """Take these as what a call consists of: arguments of `forward`, or keys of the one mapping that it takes."""
        self.arguments, self.packed = {argument.name: argument for argument in arguments}, packed
        self.parts = {name: argument.part for name, argument in self.arguments.items()}
        self.pixel_name = next((name for name in PIXEL_NAMES if name in self.arguments), None)
        self.input_name = self._input_name()
        if self.input_name is not None:
            self.parts[self.input_name] = "input"

    def guesses(self) -> Iterator[CallContract]:
        """Contracts worth trying, the likeliest first."""
        images = self._image_guesses()
        if self._looks_like_vision():
            yield from images
        for time_first in (False, True):
            yield from (replace(guess, time_first=time_first) for guess in self.text_guesses())
        yield from images  # what is left of them
        yield from self._other_encodings()

    def named(self, *parts: str, required: bool = False) -> list[str]:
        """Names of the arguments of these parts, in the order of the signature."""
        return [n for n, part in self.parts.items() if part in parts and (self.is_required(n) or not required)]

    def is_required(self, name: str) -> bool:
        """Whether a call without this argument is refused."""
        return name in self.arguments and self.arguments[name].required

    # ---- text -------------------------------------------------------------------------------------------------------

    def text_guesses(self) -> Iterator[CallContract]:
        for name in self._input_names():
            for constants, built in self._values():
                base = CallContract(
                    input_name=name,
                    constants=constants,
                    built=built,
                    packed=self.packed,
                    positional=tuple(n for n, argument in self.arguments.items() if argument.positional),
                )
                yield from self._with_decoder(base)
                yield from self._with_labels(base)

    def _with_decoder(self, base: CallContract) -> Iterator[CallContract]:
        """The seq2seq reading: the decoder's name is clear, or labels are required and may as well be its ids."""
        for name in self._decoder_names():
            labels = next((n for n in self.named("labels", required=True) if n != name), None)
            guess = replace(base, decoder_name=name, label_name=labels, task="seq2seq", start_id=self._start_id())
            yield from self._with_masks(guess)

    def _with_labels(self, base: CallContract) -> Iterator[CallContract]:
        if self.named("decoder", required=True):
            return
        required = self.named("labels", required=True)
        for with_masks in self._with_masks(base):
            if not required:
                yield with_masks
            for name in required or [n for n in LABEL_NAMES if n in self.arguments]:
                yield replace(with_masks, label_name=name)
            for name in required:
                yield replace(with_masks, built={**with_masks.built, name: "zeros (B,)"})

    def _decoder_names(self) -> list[str]:
        clear = self.named("decoder")
        also = ("target", "targets", "y")
        return clear[:1] or [n for n in self.named("labels", required=True) if n in also]

    def _input_names(self) -> list[str | None]:
        if self.arguments or not self.takes_keywords:
            return [self.input_name]
        return [*([None] if self.takes_args else []), *INPUT_NAMES]

    def _input_name(self) -> str | None:
        """The argument that the text (or the picture) goes into: by its name, else the first that nothing else claims."""
        unclaimed = sorted(self.named(""), key=lambda name: not self.is_required(name))
        ranked = [
            *(n for n in INPUT_NAMES if n in self.arguments),
            *(n for n in self.arguments if self.parts[n] in ("encoder", "pixels")),
            *(n for n in self.named("embeddings", required=True)),
            *(n for n in unclaimed if is_input_name(n)),
            *unclaimed,
            *self.named("embeddings", "decoder", "state", "batch"),
            *self.arguments,
        ]
        return next(iter(ranked), None)

    def _start_id(self) -> int:
        values = (self.config.raw.get(key) for key in ("decoder_start_token_id", "bos_token_id", "pad_token_id"))
        return next((v for v in values if isinstance(v, int) and not isinstance(v, bool)), 0)

    # ---- values of the other arguments ------------------------------------------------------------------------------

    def _values(self) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
        """Ways to fill the required arguments that are no input, mask or label: constants, and what a call builds."""
        constants = self._constants()
        built = {
            name: _MADE[part] for name, part in self.parts.items() if part in _MADE and self._is_open(name, constants)
        }
        built |= dict.fromkeys(self.named("segments", required=True), "zeros (B, T)")
        positions = [n for n in self.named("positions", required=True) if n not in constants]
        states = [n for n in self.named("state", required=True) if constants.get(n, 0) is None]
        makers = [name for name in dir(type(self.model)) if FIRST_STATES.fullmatch(name)] if states else []
        for kind in ("positions (B, T)", "positions (T,)") if positions else ("",):
            for maker in ("", *makers):
                fresh = dict.fromkeys(states, f"state {maker}") if maker else {}
                left = {name: value for name, value in constants.items() if name not in fresh}
                yield left, {**built, **dict.fromkeys(positions, kind), **fresh}

    def _is_open(self, name: str, constants: dict[str, Any]) -> bool:
        return self.is_required(name) and name not in constants and name != self.input_name

    def _constants(self) -> dict[str, Any]:
        """Required arguments with one value that is known, a cache that nobody reads off, and the decoder fed the truth."""
        found = {
            name: value for name in self.arguments if (value := self._constant(name)) is not None or self._is_none(name)
        }
        if "use_cache" in self.arguments:
            found["use_cache"] = False
        for name in self.named("teacher forcing"):
            whether = self.arguments[name].annotation == "bool" or isinstance(self.arguments[name].default, bool)
            found[name] = True if whether else 1.0
        return found

    def _constant(self, name: str) -> Any:
        part = self.parts[name]
        limit = name.startswith(("max", "block", "context"))  # a limit of the model, not the length at hand
        if not self.is_required(name) or part in _TENSORS or (part in _MADE and not limit):
            return None
        stated = getattr(self.config, name, None)
        return stated if stated is not None else _STARTING.get(part)

    def _is_none(self, name: str) -> bool:
        """Whether a required argument is None at the beginning of a text."""
        part, argument = self.parts[name], self.arguments[name]
        return argument.required and (part == "state" or (part == "" and argument.may_be_none))

    # ---- masks ------------------------------------------------------------------------------------------------------

    def main_masks(self) -> list[str]:
        """Masks over the input, those for padding first."""
        over_input = self.named("mask", "lengths")
        return sorted(over_input, key=lambda n: (self.parts[n] == "lengths", "pad" not in n))

    def _with_masks(self, base: CallContract) -> Iterator[CallContract]:
        """Every way to write the masks that are required."""
        required = [n for n in self.main_masks() if self.is_required(n) and n not in base.built]
        others = [*required[1:], *self.named("memory mask", "decoder mask", required=True)]
        if not required and not others:
            yield base
            return
        encoder = base.decoder_name is not None
        mains: list[MaskConvention | None] = list(candidates(required[0], encoder)) if required else [None]
        squares = [n for n in others if self._is_square(n, encoder)]
        ways = range(len(SQUARES)) if squares else range(1)
        for main, way in itertools.product(mains, ways):
            built = {n: self._other_mask(n, main, way, encoder, n in squares) for n in others}
            yield replace(
                base,
                mask_name=required[0] if required else None,
                mask=main,
                mask_required=main is not None,
                built={**base.built, **built},
            )

    def _is_square(self, name: str, encoder: bool) -> bool:
        """Whether a further mask is one of query × key: all but those that say padding, lengths, or what memory hides."""
        part = self.parts[name]
        return not ("pad" in name or "len" in name or part == "lengths" or (part == "memory mask" and encoder))

    def _other_mask(self, name: str, main: MaskConvention | None, way: int, encoder: bool, square: bool) -> str:
        ending = OF_DECODER if self.parts[name] == "decoder mask" and encoder else ""
        if square:
            full = encoder and not ending
            return f"mask {(FULL_SQUARES if full else SQUARES)[way].words()}{ending}"
        if "len" in name and "mask" not in name:
            return f"mask {LENGTHS.words()}{ending}"
        padding = main if main is not None and main.carries_padding else next(candidates("pad"))
        return f"mask {padding.words()}{ending}"

    # ---- other inputs -----------------------------------------------------------------------------------------------

    def _other_encodings(self) -> Iterator[CallContract]:
        """Ids one-hot, embedded, or all in one row: tried where the model refuses them as they are."""
        for guess in self.text_guesses():
            if guess.decoder_name is not None:
                continue
            if self.named("bag offsets", required=True):
                offsets = dict.fromkeys(self.named("bag offsets"), "bag offsets (B,)")
                yield replace(guess, encoding="flat", built={**guess.built, **offsets})
                continue
            if guess.input_name in EMBEDDING_NAMES:
                yield replace(guess, encoding="embedded")
            for width in self._one_hot_widths():
                yield replace(guess, encoding="one-hot", vocab_size=width)

    def _one_hot_widths(self) -> list[int]:
        if any(isinstance(module, nn.Embedding) for module in self.model.modules()):
            return []
        first = next((m for m in self.model.modules() if isinstance(m, (nn.RNNBase, nn.Linear))), None)
        width = getattr(first, "input_size", getattr(first, "in_features", None))
        return [width] if isinstance(width, int) and width > 1 else []

    def _looks_like_vision(self) -> bool:
        embeds = any(isinstance(m, nn.Embedding) for m in self.model.modules()) or self.config.vocab_size is not None
        if self.pixel_name is not None:  # a model that takes both reads the text, and may look at a picture
            return not (embeds and self.input_name != self.pixel_name and self.input_name in INPUT_NAMES)
        return not embeds

    def _image_guesses(self) -> Iterator[CallContract]:
        labels = dict.fromkeys(self.named("labels", required=True), "zeros (B,)")
        for constants, built in itertools.islice(self._values(), 1):
            for shape in image_shapes(self.model, self.config, self.pixel_name is not None):
                guess = CallContract(
                    input_name=self.pixel_name or self.input_name,
                    constants=constants,
                    built={**built, **labels},
                    packed=self.packed,
                    positional=tuple(n for n, argument in self.arguments.items() if argument.positional),
                    task="vision",
                    image_shape=shape,
                )
                yield guess
                yield replace(guess, channels_last=True)
                yield replace(guess, flat_pixels=True)


_TENSORS = (
    "input",
    "mask",
    "decoder mask",
    "memory mask",
    "lengths",
    "decoder",
    "encoder",
    "labels",
    "pixels",
    "segments",
    "positions",
    "embeddings",
    "state",
)
"""Parts that take tensors, so that no number of the config can be meant."""
