"""Texts → token ids, as fast as the tokenizer's own library and with nothing but text in them. Keeps nothing.

Marks that are written out in a text, such as "</s>", are text and are not turned into special tokens. Truncation and
padding, which calls of a tokenizer leave behind in it, have no effect, and the tokenizer that was passed stays as it is.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from utils.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

PIECE_CHARACTERS = 1 << 20
"""Longer documents are encoded in pieces: a tokenizer takes about a hundred bytes per token of a text that it works on."""

_WINDOW, _CONTEXT, _TRIES = 8192, 256, 16
_PLACES = re.compile(r"(?<=\n)(?=\S)|(?<=\S)(?= \S)")
"""Where a text may be cut: at the beginning of a line, or before a single space."""

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Recipe:
    """What becomes of a text besides its own tokens.

    Attributes:
        end: whether end-of-text follows, unless the ids end with it already or were cut.
        marks: whether the tokenizer's own frame is put around, such as [CLS] and [SEP].
        limit: tokens after which a text is cut, the frame included; None cuts none.
    """

    end: bool = False
    marks: bool = False
    limit: int | None = None


class Encoder:
    """Encodes texts with one tokenizer.

    Attributes:
        dtype: uint16 where every id fits, else int32.
        end: id of end-of-text where the recipe asks for it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, recipe: Recipe = Recipe()) -> None:
        self.recipe = recipe
        largest = max(tokenizer.get_vocab().values(), default=0)  # ids may leave gaps
        self.dtype = np.dtype(np.uint16 if largest < 2**16 else np.int32)
        self.end = tokenizer.eos_token_id if recipe.end else None
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            self._encode = _slow(tokenizer, recipe)
        else:
            own = copy.deepcopy(backend)
            own.encode_special_tokens = True
            own.no_padding()
            if recipe.limit is None:
                own.no_truncation()
            else:
                own.enable_truncation(recipe.limit)
            self._encode = _fast(own, recipe.marks)

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids (T,) of each text."""
        if self.recipe.marks or self.recipe.limit is not None:  # such texts are not cut into pieces
            return [self._ended(np.array(ids, dtype=self.dtype)) for ids in self._encode(texts)]
        return [self._ended(ids) for ids in self._plain(texts)]

    def _ended(self, ids: np.ndarray) -> np.ndarray:
        full = self.recipe.limit is not None and len(ids) >= self.recipe.limit
        framed = self.recipe.marks and len(ids) > 0 and ids[-1] == self.end
        return ids if self.end is None or full or framed else np.append(ids, self.dtype.type(self.end))

    def _plain(self, texts: Sequence[str]) -> list[np.ndarray]:
        pieces = [self._pieces(text) if len(text) > PIECE_CHARACTERS else [text] for text in texts]
        encoded = iter(self._encode([piece for parts in pieces for piece in parts]))
        return [self._joined([next(encoded) for _ in parts]) for parts in pieces]

    def _joined(self, parts: list[list[int]]) -> np.ndarray:
        arrays = [np.array(ids, dtype=self.dtype) for ids in parts]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def _pieces(self, text: str) -> list[str]:
        """A text in pieces that encode as the whole does; what cannot be cut stays in one."""
        pieces, begin = [], 0
        while len(text) - begin > PIECE_CHARACTERS:
            place = self._place(text, begin + PIECE_CHARACTERS)
            if place is None:
                break
            pieces.append(text[begin:place])
            begin = place
        return [*pieces, text[begin:]]

    def _place(self, text: str, end: int) -> int | None:
        """The last place before `end` where cutting changes no token around it."""
        window = text[end - _WINDOW : end + 2]
        found = [end - _WINDOW + match.start() for match in _PLACES.finditer(window)]
        by_line = sorted((place for place in found if place < end), key=lambda at: (text[at - 1] == "\n", at))
        for place in reversed(by_line[-_TRIES:]):
            before, after = text[max(place - _CONTEXT, 0) : place], text[place : place + _CONTEXT]
            whole, left, right = self._encode([before + after, before, after])
            if list(whole) == [*left, *right]:
                return place
        return None


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over all that decides how a tokenizer encodes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        text = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    else:
        if backend.truncation is not None or backend.padding is not None:
            backend = copy.deepcopy(backend)
            backend.no_truncation()  # both are set by calls, and have no effect here
            backend.no_padding()
        text = backend.to_str()
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _fast(backend: Tokenizer, marks: bool) -> Callable[[Sequence[str]], list[list[int]]]:
    """A tokenizer of the `tokenizers` library, which works on the texts of one call in parallel."""

    def encode(texts: Sequence[str]) -> list[list[int]]:
        try:
            return [item.ids for item in backend.encode_batch_fast(list(texts), add_special_tokens=marks)]
        except TypeError as error:
            raise DataError(_surrogate_problem(texts) or f"A document is no text: {error}.") from error

    return encode


def _surrogate_problem(texts: Sequence[str]) -> str | None:
    """Words for half a surrogate pair, which is no character and cannot be written as UTF-8."""
    for text in texts:
        found = _SURROGATE.search(text) if isinstance(text, str) else None
        if found is not None:
            around = text[max(found.start() - 20, 0) : found.start() + 20]
            return (
                f"A document holds U+{ord(found.group()):04X} at character {found.start()}, half of a surrogate pair and no "
                f"character of its own, near {around!r}. Repair it: text.encode('utf-16', 'surrogatepass').decode('utf-16', "
                "'replace')."
            )
    return None


def _slow(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Callable[[Sequence[str]], list[list[int]]]:
    """A tokenizer that is written in Python."""

    def encode(texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        return tokenizer(
            list(texts),
            add_special_tokens=recipe.marks,
            truncation=recipe.limit is not None,
            max_length=recipe.limit,
            return_attention_mask=False,
            split_special_tokens=True,
            verbose=False,
        )["input_ids"]

    return encode
