"""The ways in which models want to be told what is hidden. Builds masks; which way a model wants is asked in `signature`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MaskConvention:
    """One way to write a mask.

    Attributes:
        form: "keep" (true or 1 = visible), "drop" (true or 1 = hidden) or "additive" (0 = visible, minus infinity = hidden).
        shape: "BT", "TT", "BTT", "B1TT", "B1T" or "B11T"; T × T axes are query × key. "B" is no mask but the number of real
            tokens of each row, which says the same of text that is padded on the right.
        dtype: "bool", "int" or "float".
        causal: whether later positions are hidden too; only for shapes with T × T.
    """

    form: str = "keep"
    shape: str = "BT"
    dtype: str = "int"
    causal: bool = False

    @property
    def carries_padding(self) -> bool:
        """Whether it can say that a token of one row is padding."""
        return self.shape != "TT"

    def build(self, attention_mask: torch.Tensor, like: torch.dtype) -> torch.Tensor:
        """Write `attention_mask` (B, T), 1 = real token, in this way.

        A position that would see nothing sees itself where the shape is T × T, so that no row of a softmax is empty.

        Args:
            attention_mask: (B, T), any dtype.
            like: floating dtype of an additive mask.
        """
        real = attention_mask.bool()
        if self.shape == "B":
            return real.sum(1)
        visible = self._visible(real)
        if self.form == "additive":
            return torch.zeros(visible.shape, dtype=like, device=visible.device).masked_fill(~visible, float("-inf"))
        value = visible if self.form == "keep" else ~visible
        return value if self.dtype == "bool" else value.to(torch.long if self.dtype == "int" else like)

    def _visible(self, real: torch.Tensor) -> torch.Tensor:
        if self.shape == "BT":
            return real
        if self.shape == "B11T":
            return real[:, None, None, :]
        if self.shape == "B1T":
            return real[:, None, :]
        length = real.shape[1]
        square = torch.ones(length, length, dtype=torch.bool, device=real.device)
        square = square.tril() if self.causal else square
        if self.shape == "TT":
            return square
        joined = square & real[:, None, :]  # (B, T, T)
        itself = torch.eye(length, dtype=torch.bool, device=real.device)
        joined = joined | itself & ~joined.any(-1, keepdim=True)
        return joined[:, None] if self.shape == "B1TT" else joined

    def words(self) -> str:
        """The convention as a phrase: "bool (B, T), true = hidden"."""
        if self.shape == "B":
            return "lengths (B,)"
        meaning = {"keep": "1 = visible", "drop": "1 = hidden", "additive": "0 = visible, -inf = hidden"}[self.form]
        return f"{self.dtype} {_SHAPES[self.shape]}, {meaning}" + (", causal" if self.causal else "")


_SHAPES = {
    "BT": "(B, T)",
    "TT": "(T, T)",
    "BTT": "(B, T, T)",
    "B1TT": "(B, 1, T, T)",
    "B1T": "(B, 1, T)",
    "B11T": "(B, 1, 1, T)",
}

LENGTHS = MaskConvention("keep", "B", "int")
"""The number of real tokens in place of a mask."""

_PADDING = tuple(
    MaskConvention(form, "BT", dtype)
    for form, dtype in (("keep", "int"), ("keep", "bool"), ("drop", "bool"), ("additive", "float"), ("drop", "float"))
)
_ROWS = tuple(
    MaskConvention(form, shape, dtype)
    for shape in ("B1T", "B11T")
    for form, dtype in (("keep", "bool"), ("drop", "bool"), ("additive", "float"))
)


def _square(shape: str, causal: bool) -> list[MaskConvention]:
    forms = (("additive", "float"), ("drop", "bool"), ("keep", "bool"), ("keep", "int"))
    if shape != "TT":  # a mask for each row is mostly written as what may be seen
        forms = (forms[2], forms[1], forms[0], forms[3])
    return [MaskConvention(form, shape, dtype, causal) for form, dtype in forms]


SQUARES = tuple(one for shape in ("TT", "BTT", "B1TT") for one in _square(shape, True))
"""Ways to write a causal mask beside another mask, the likeliest first."""

FULL_SQUARES = tuple(MaskConvention(one.form, one.shape, one.dtype, False) for one in SQUARES)
"""The same ways where every position may see every other, as in an encoder."""

BY_WORDS = {one.words(): one for one in (LENGTHS, *_PADDING, *_ROWS, *SQUARES, *FULL_SQUARES)}
"""Every convention that is ever tried, by its phrase."""


SQUARE_NAMES = ("attn_mask", "src_mask", "causal_mask", "mask")
"""Names under which decoders rather take a mask of query × key."""


def candidates(name: str, encoder: bool = False) -> Iterator[MaskConvention]:
    """Conventions that an argument of this name may follow, the likeliest first.

    Args:
        name: of the argument.
        encoder: whether the mask lies over the text that an encoder reads, where nothing is causal.
    """
    if "len" in name and "mask" not in name:
        yield LENGTHS
        return
    if "pad" in name:
        keep_int, keep_bool, drop_bool, additive, drop_float = _PADDING
        yield from (drop_bool, keep_bool, keep_int, additive, drop_float, *_ROWS)
        return
    wide = [
        one
        for causal in (True, False)
        if not (causal and encoder)
        for s in ("B1TT", "BTT")
        for one in _square(s, causal)
    ]
    if name in SQUARE_NAMES and not encoder:
        yield from [*SQUARES[:4], *wide, *_ROWS, *_PADDING]
        return
    yield from [*_PADDING, *_ROWS, *wide, *(FULL_SQUARES[:4] if encoder else SQUARES[:4])]
