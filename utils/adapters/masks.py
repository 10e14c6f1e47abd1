"""The ways in which models want to be told what is hidden. Builds masks; which way a model wants is asked in `signature`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

MASK_NAMES = (
    "attention_mask",
    "attn_mask",
    "mask",
    "src_mask",
    "causal_mask",
    "padding_mask",
    "pad_mask",
    "key_padding_mask",
    "src_key_padding_mask",
    "src_padding_mask",
    "input_mask",
)
"""Names of arguments that take a mask over the input."""

DECODER_MASK_NAMES = ("tgt_mask", "trg_mask", "decoder_mask", "dec_mask", "target_mask")
"""Names of arguments that take a causal mask over the decoder's ids."""


@dataclass(frozen=True)
class MaskConvention:
    """One way to write a mask.

    Attributes:
        form: "keep" (true or 1 = visible), "drop" (true or 1 = hidden) or "additive" (0 = visible, minus infinity = hidden).
        shape: "BT", "TT", "BTT", "B1TT" or "B11T"; T × T axes are query × key.
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
        meaning = {"keep": "1 = visible", "drop": "1 = hidden", "additive": "0 = visible, -inf = hidden"}[self.form]
        shape = {"BT": "(B, T)", "TT": "(T, T)", "BTT": "(B, T, T)", "B1TT": "(B, 1, T, T)", "B11T": "(B, 1, 1, T)"}[
            self.shape
        ]
        return f"{self.dtype} {shape}, {meaning}" + (", causal" if self.causal else "")


CAUSAL_SQUARES = tuple(
    MaskConvention(form, "TT", dtype, True)
    for form, dtype in (("additive", "float"), ("drop", "bool"), ("keep", "bool"))
)
"""Ways to write a causal (T, T) mask beside another mask."""


def candidates(name: str) -> Iterator[MaskConvention]:
    """Conventions that an argument of this name may follow, the likeliest first."""
    padding = [
        MaskConvention("keep", "BT", "int"),
        MaskConvention("keep", "BT", "bool"),
        MaskConvention("drop", "BT", "bool"),
        MaskConvention("additive", "BT", "float"),
    ]
    wide = [
        MaskConvention(form, shape, dtype, causal)
        for causal in (True, False)
        for shape in ("B1TT", "BTT")
        for form, dtype in (("keep", "bool"), ("drop", "bool"), ("additive", "float"), ("keep", "int"))
    ] + [
        MaskConvention(form, "B11T", dtype)
        for form, dtype in (("keep", "bool"), ("drop", "bool"), ("additive", "float"))
    ]
    square = [
        MaskConvention(form, "TT", dtype, True)
        for form, dtype in (("additive", "float"), ("drop", "bool"), ("keep", "bool"), ("keep", "int"))
    ]
    if "padding" in name or "pad" in name:
        yield from (padding[2], padding[1], padding[0], padding[3])
        return
    if name in ("attn_mask", "src_mask", "causal_mask", "mask"):
        yield from [*square, *wide, *padding]
        return
    yield from [*padding, *wide, *square]
