"""What an exported file takes and gives: names, axes and limits of its inputs and of its logits. Numbers and arrays only.

Written as JSON into every file and manifest, so that whoever opens a file later, without torch and without this package,
knows what may go in. Leaves finding these facts out to `subject` and comparing to `parity`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from utils.errors import ConfigError, TokenIdError

FORMAT_VERSION = 1
IDS, MASK, DECODER_IDS, PIXELS = "input_ids", "attention_mask", "decoder_input_ids", "pixel_values"
"""Names of the inputs that files have; a file has those that its model takes, in this order."""

_SEED = 2

_LOWEST = 4
"""So many ids from 0 on usually mean something else than words: padding, beginning, end, unknown."""


class Shape(NamedTuple):
    """Sizes of one call: sequences or images, tokens of each, and tokens of the decoder. None where there is no such axis."""

    batch: int
    length: int | None = None
    decoder_length: int | None = None

    def __str__(self) -> str:
        if self.length is None:
            return f"batch {self.batch}"
        tail = "" if self.decoder_length is None else f" → {self.decoder_length}"
        return f"batch {self.batch} × length {self.length}{tail}"


@dataclass(frozen=True)
class Signature:
    """What one file takes and gives.

    Attributes:
        task: "lm", "masked", "seq2seq", "classification" or "vision".
        inputs: names of the inputs, in order; ids and masks are int64 (B, T), pixels float32 (B, C, H, W).
        output_size: width of the logits: (B, T, V) for "lm" and "masked", (B, T_dec, V) for "seq2seq", else (B, classes).
        vocab_size: rows of the token embedding; every id is below it. None for images.
        max_length: longest sequence in tokens; None where nothing limits it, and for images.
        min_length, multiple_of: what else holds for the length.
        masked_sides: where padding may stand so that the mask matters: "left", "right".
        image_shape: (channels, height, width); None for text.
        start_id: id with which decoder inputs begin; None where they begin with the last id of the source.
    """

    task: str
    inputs: tuple[str, ...]
    output_size: int | None = None
    vocab_size: int | None = None
    max_length: int | None = None
    min_length: int = 1
    multiple_of: int = 1
    masked_sides: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] | None = None
    start_id: int | None = None

    # ---- as a text --------------------------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """The signature in one line."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Signature:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: it is no signature, or one of a later version.
        """
        try:
            values = json.loads(text)
            version = int(values.pop("format_version"))
            if version <= FORMAT_VERSION:
                for name in ("inputs", "masked_sides", "image_shape"):
                    values[name] = None if values[name] is None else tuple(values[name])
                return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"This is no signature of an exported file ({error}): {text[:200]!r}.") from error
        raise ConfigError(f"The signature has version {version}, this package reads up to {FORMAT_VERSION}.")

    # ---- axes -------------------------------------------------------------------------------------------------------
    @property
    def takes_mask(self) -> bool:
        """Whether the file has an `attention_mask` input."""
        return MASK in self.inputs

    @property
    def takes_tokens(self) -> bool:
        """Whether the main input is token ids; pixels otherwise."""
        return PIXELS not in self.inputs

    @property
    def has_decoder(self) -> bool:
        """Whether the file takes `decoder_input_ids`."""
        return DECODER_IDS in self.inputs

    @property
    def scores_tokens(self) -> bool:
        """Whether there is a row of logits for every token, (B, T, V)."""
        return self.task in ("lm", "masked", "seq2seq")

    def axes_of(self, name: str) -> dict[int, str]:
        """Axes of an input whose size is free: index → "batch", "length" or "decoder_length"."""
        if name == PIXELS or self.max_length == 1:
            return {0: "batch"}
        return {0: "batch", 1: "decoder_length" if name == DECODER_IDS else "length"}

    def allowed_length(self, length: int) -> int:
        """The nearest length that the model takes."""
        step = self.multiple_of
        least = -(-max(1, self.min_length) // step) * step
        most = self.max_length // step * step if self.max_length is not None else length + step
        return max(least, min(most, round(length / step) * step))

    def shape_of(self, feeds: Mapping[str, np.ndarray]) -> Shape:
        """The sizes of a call."""
        main = feeds[IDS if self.takes_tokens else PIXELS]
        if not self.takes_tokens:
            return Shape(main.shape[0])
        batch, length = main.shape
        return Shape(batch, length, feeds[DECODER_IDS].shape[1] if self.has_decoder else None)

    def output_shape(self, shape: Shape) -> tuple[int | None, ...]:
        """Shape of the logits for a call of these sizes."""
        if not self.scores_tokens:
            return (shape.batch, self.output_size)
        return (shape.batch, shape.decoder_length if self.has_decoder else shape.length, self.output_size)

    # ---- inputs -----------------------------------------------------------------------------------------------------
    def feeds(self, shape: Shape, padding: str = "none", marks: Sequence[int] = ()) -> dict[str, np.ndarray]:
        """Random inputs of these sizes, always the same.

        Ids to which a model may do something of their own (the lowest, the highest, and `marks`) are in every batch of
        several sequences and in no single one: a file that saw an example with them or without and kept only what was
        done there differs in the other case.

        Args:
            shape: sizes of the call.
            padding: "left" or "right" masks some tokens of every other sequence; "none" masks nothing.
            marks: further such ids, for example those of a tokenizer's special tokens.
        """
        seed = (_SEED, *(size or 0 for size in shape))
        generator = np.random.default_rng(seed)
        if not self.takes_tokens:
            size = (shape.batch, *(self.image_shape or ()))
            return {PIXELS: generator.standard_normal(size, dtype=np.float32)}
        assert self.vocab_size is not None and shape.length is not None
        special = self._special(marks)
        made = {IDS: _ids(generator, (shape.batch, shape.length), self.vocab_size, special)}
        if self.takes_mask:
            made[MASK] = padding_mask((shape.batch, shape.length), padding)
        if self.has_decoder:
            made[DECODER_IDS] = _ids(generator, (shape.batch, shape.decoder_length or 1), self.vocab_size, special)
        return made

    def _special(self, marks: Sequence[int]) -> list[int]:
        """Ids that may mean something of their own, the highest first."""
        rows = self.vocab_size or 1
        lowest = range(min(_LOWEST, rows // 8))
        return list(dict.fromkeys(index for index in (rows - 1, *lowest, *marks) if 0 <= index < rows))

    def checked(self, given: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
        """Inputs as arrays, refused where the model itself would refuse them: runtimes read id −1 as the last row.

        Args:
            given: tensors, arrays or nested lists by name. A mask that is left out is all ones; `decoder_input_ids` that
                are left out begin the answer.
            where: name of the file, for messages.

        Raises:
            ConfigError: an input is missing, unknown or of another shape; or padding is masked and the file has no mask.
            TokenIdError: an id or the length is beyond what the model takes.
        """
        kept = {name: value for name, value in given.items() if value is not None}
        main = IDS if self.takes_tokens else PIXELS
        if main not in kept:
            raise ConfigError(
                f"{where} needs {main} of shape {self._words(main)}; got {', '.join(sorted(kept)) or 'nothing'}."
            )
        arrays = {name: self._array(name, value, where) for name, value in kept.items() if name in (*self.inputs, MASK)}
        unknown = sorted(set(kept) - set(arrays))
        if unknown:
            raise ConfigError(f"{where} has no input {', '.join(unknown)}; it takes {', '.join(self.inputs)}.")
        if not self.takes_tokens:
            return {PIXELS: arrays[PIXELS]}
        self._check_ids(arrays[IDS], where)
        self._check_steps(arrays[IDS].shape[1], where)
        self._settle_mask(arrays, where)
        if self.has_decoder:
            self._settle_decoder_ids(arrays, where)
        return {name: arrays[name] for name in self.inputs}

    def first_decoder_ids(self, ids: np.ndarray) -> np.ndarray:
        """What every answer begins with: (B, 1)."""
        return ids[:, -1:] if self.start_id is None else np.full((len(ids), 1), self.start_id, np.int64)

    def _settle_mask(self, arrays: dict[str, np.ndarray], where: str) -> None:
        ids, mask = arrays[IDS], arrays.get(MASK)
        if mask is not None and mask.shape != ids.shape:
            raise ConfigError(f"attention_mask has shape {mask.shape}, input_ids {ids.shape}; they must agree.")
        if self.takes_mask:
            arrays.setdefault(MASK, np.ones_like(ids))
        elif mask is not None:
            if not mask.all():
                raise ConfigError(
                    f"{where} takes no attention_mask, so padding cannot be masked; run sequences of one length."
                )
            del arrays[MASK]

    def _settle_decoder_ids(self, arrays: dict[str, np.ndarray], where: str) -> None:
        given = arrays.setdefault(DECODER_IDS, self.first_decoder_ids(arrays[IDS]))
        self._check_ids(given, where)
        if len(given) != len(arrays[IDS]):
            raise ConfigError(f"{DECODER_IDS} has {len(given)} rows, input_ids {len(arrays[IDS])}; they must agree.")

    def _array(self, name: str, value: Any, where: str) -> np.ndarray:
        """One input as an array of its type and number of axes."""
        try:
            array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        except ValueError as error:  # rows of unequal length
            raise ConfigError(
                f"{name} must be of shape {self._words(name)}, all rows equally long: {error}."
            ) from error
        if name == PIXELS:
            if (
                array.dtype.kind not in "fiu"
                or array.ndim != 4
                or array.shape[1:] != self.image_shape
                or not len(array)
            ):
                raise ConfigError(
                    f"{where}: pixel_values must be numbers of shape {self._words(name)}; got {array.dtype} of shape "
                    f"{array.shape}."
                )
            with np.errstate(over="ignore"):  # it becomes infinite, and is refused as such
                pixels = array.astype(np.float32)
            if not np.isfinite(pixels).all():
                raise ConfigError(
                    f"{where}: pixel_values must be finite as float32; got NaN, or numbers beyond {np.finfo(np.float32).max:.4g}."
                )
            return pixels
        if array.ndim != 2 or array.dtype.kind not in "iub" or array.size == 0:
            raise ConfigError(
                f"{name} must be whole numbers of shape (batch, length), at least 1 × 1; got {array.dtype} of shape "
                f"{array.shape}."
            )
        return array.astype(np.int64)

    def _words(self, name: str) -> str:
        if name == PIXELS:
            return f"(batch, {', '.join(map(str, self.image_shape or ()))})"
        return "(batch, length)"

    def _check_ids(self, ids: np.ndarray, where: str) -> None:
        length = ids.shape[1]
        if self.max_length is not None and length > self.max_length:
            raise TokenIdError(f"The sequence is {length} tokens long; {where} takes at most {self.max_length}.")
        if self.vocab_size is not None and (ids.min() < 0 or ids.max() >= self.vocab_size):
            wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise TokenIdError(f"Token id {wrong} does not fit {where}: its ids go from 0 to {self.vocab_size - 1}.")

    def _check_steps(self, length: int, where: str) -> None:
        if length < self.min_length or length % self.multiple_of:
            words = f"multiples of {self.multiple_of}" if self.multiple_of > 1 else f"at least {self.min_length}"
            raise TokenIdError(f"The sequence is {length} tokens long; {where} takes {words}.")


def _ids(generator: np.random.Generator, size: tuple[int, int], rows: int, special: Sequence[int]) -> np.ndarray:
    """Ids (B, T) below `rows`: special ones in up to half of the places of a batch, and nowhere in a single sequence."""
    drawn: np.ndarray = np.arange(rows, dtype=np.int64)
    if size[0] == 1 and len(special) < rows:
        drawn = np.delete(drawn, special)
    ids: np.ndarray = drawn[generator.integers(0, len(drawn), size)]
    if size[0] > 1:
        places = np.append(ids.size - 1, generator.permutation(ids.size - 1))[: ids.size // 2]
        ids.flat[places[: len(special)]] = special[: len(places)]
    return ids


def padding_mask(shape: tuple[int, int], side: str) -> np.ndarray:
    """A mask (B, T) int64 that pads about a third of every other sequence, beginning with the first one."""
    batch, length = shape
    mask = np.ones(shape, dtype=np.int64)
    padded = max(1, length // 3) if length > 1 else 0
    for row in range(0, batch, 2):
        if side == "left":
            mask[row, :padded] = 0
        elif side == "right":
            mask[row, length - padded :] = 0
    return mask
