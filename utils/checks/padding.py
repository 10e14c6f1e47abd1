"""Does padding change what a model says of a text? A text alone must score as the same text in a padded batch.

Whether rows of one batch meet is for `rows`; not-finite values of hidden positions are for `stability`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from utils.adapters.attention_calls import attention_calls, example_inputs
from utils.adapters.model_adapter import AdaptedModel
from utils.checks.faults import Fault, judged
from utils.checks.masking import (
    mixes_beside_attention,
    names_mask,
    ordinary_ids,
    padding_id,
    takes_padding,
    takes_padding_before,
)
from utils.checks.passage import relative_gap
from utils.checks.report import CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler, run_model

NAME = "padding invariance"
LENGTH, PADDING = 8, 4
"""Real tokens and padding tokens of the padded text."""
TOLERANCE = 1e-4
"""Relative to the largest logit, for float32. Other lengths are summed in another order: our own measurement over 100
models of the test zoo stays below 4e-6, and a mask that hides nothing starts at 1e-3."""
NARROW_TOLERANCE = 0.05
"""The same for float16 and bfloat16, whose rounding is 2**-11 and 2**-8 per operation."""


@dataclass(frozen=True)
class Padded:
    """One text, and what it becomes in a batch: beside a full row stand the text filled with `pad` and filled with `other`.

    Attributes:
        adapted: the model, in eval mode.
        text: (1, T) ids, none of which is a padding id.
        longer: (1, T + P) ids of the full row.
        decoder: (1, T_dec) ids for the decoder; None where there is none.
        pad: the model's own padding id; 0 where it names none.
        other: an id that means nothing to the model.
    """

    adapted: AdaptedModel
    text: torch.Tensor
    longer: torch.Tensor
    decoder: torch.Tensor | None
    pad: int
    other: int

    @classmethod
    def of(cls, adapted: AdaptedModel, sampler: Sampler) -> Padded | None:
        """None where the model takes no two lengths, or has too few ids."""
        length = sampler.length(LENGTH)
        whole = sampler.length(length + max(PADDING, sampler.step))
        if whole <= length and length > sampler.shortest:
            length, whole = sampler.length(length - 1), length
        if whole <= length or sampler.vocabulary < 3:
            return None
        pad = padding_id(adapted) or 0
        other, *real = (one for one in ordinary_ids(adapted, sampler.vocabulary, sampler.device).tolist() if one != pad)
        ids = torch.tensor(real or [other], device=sampler.device).repeat(2 * whole)[None]
        decoder = ids[:, 1 : length + 1] if adapted.contract.decoder_name is not None else None
        return cls(adapted, ids[:, :length], ids[:, 2 : whole + 2], decoder, pad, other)

    def alone(self) -> torch.Tensor:
        """Scores of the text by itself: (T, V), or (classes,)."""
        return self._scores(self.text, None)[0]

    def right(self, mask: str = "given") -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of the text with padding behind it, filled with `pad` and with `other`.

        Args:
            mask: "given" with a mask, "inverted" with its opposite, "none" without.
        """
        return self._in_batch(lambda text, fill: torch.cat([text, fill], 1), 0, mask)

    def left(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The same with padding before it, and a mask."""
        return self._in_batch(lambda text, fill: torch.cat([fill, text], 1), self._count, "given")

    @property
    def _count(self) -> int:
        """Number of padding tokens."""
        return self.longer.shape[1] - self.text.shape[1]

    def _in_batch(self, joined: object, start: int, mask: str) -> tuple[torch.Tensor, torch.Tensor]:
        fills = [torch.full_like(self.longer[:, : self._count], pad) for pad in (self.pad, self.other)]
        padded = [joined(self.text, fill) for fill in fills]  # type: ignore[operator]
        real = torch.zeros_like(self.longer)
        real[:, start : start + self.text.shape[1]] = 1
        if mask == "inverted":
            real = 1 - real
        rows = torch.cat([self.longer, *padded])  # (3, T + P)
        keep = torch.cat([torch.ones_like(self.longer), real, real])
        scores = self._scores(rows, None if mask == "none" else keep)
        if scores.dim() == 3 and scores.shape[1] == self.longer.shape[1] and self.decoder is None:
            scores = scores[:, start : start + self.text.shape[1]]
        return scores[1], scores[2]

    def _scores(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        more = {} if mask is None else {"attention_mask": mask}
        if self.decoder is not None:
            more["decoder_input_ids"] = self.decoder.expand(ids.shape[0], -1)
        with torch.no_grad():
            return run_model(self.adapted, ids, **more).logits.float()


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Score 8 tokens alone and with 4 padding tokens behind and before them, which the attention mask hides.

    Padding behind (the training side) must change nothing. Padding before matters where rows of unequal length are
    continued together: absolute positions shift with it by design, which is said and is no fault.
    """
    contract = adapted.contract
    if not contract.takes_tokens:
        return CheckResult(NAME, "skip", "Images are not padded.")
    if contract.logits.layout == "BV" and contract.task in ("lm", "masked"):
        return CheckResult(NAME, "skip", "The model scores the last position only, which is padding.")
    adapted.eval()
    padded = Padded.of(adapted, sampler)
    if padded is None:
        return CheckResult(NAME, "skip", "Needs two lengths and three token ids, and the model takes fewer.")
    alone = padded.alone()
    if not torch.isfinite(alone).all():
        return CheckResult(NAME, "skip", "The logits are not finite, so they cannot be compared.")
    limit = _tolerance(adapted)
    masked = takes_padding(contract)
    gaps = [relative_gap(alone, scores) for scores in padded.right()]
    measured = {"takes_mask": masked, "tolerance": limit, "right": gaps[0], "right_other_id": gaps[1]}
    if gaps[0] > limit:
        return judged(NAME, _right_faults(padded, alone, limit, masked), _harmless(adapted, gaps[0]), measured)
    note = [] if gaps[1] <= limit else [f"The model finds padding by its id {padded.pad}: pad with no other."]
    words, faults, left = _left(padded, alone, limit)
    how = "behind the attention mask" if masked else "although the model takes no mask"
    fine = f"Padding behind a text leaves its logits ({how}; relative difference {gaps[0]:.0e}, tolerance {limit:.0e})."
    return judged(NAME, faults, " ".join([fine, words]).strip(), {**measured, **left}, " ".join(note))


def _tolerance(adapted: AdaptedModel) -> float:
    kinds = {p.dtype for p in adapted.model.parameters()}
    return NARROW_TOLERANCE if kinds & {torch.float16, torch.bfloat16} else TOLERANCE


def _harmless(adapted: AdaptedModel, gap: float) -> str:
    """Why padding that changes logits is no fault."""
    if names_mask(adapted):
        return (
            f"Padding behind a text moves its logits by {gap:.1e} although the attention mask hides it: the convolutions or "
            f"recurrences of {adapted.name} read their neighbours, by design."
        )
    return (
        f"{adapted.name} takes no mask and reads padding. That does no harm where texts are packed into full blocks, as train() "
        "does for this task; a batch of unequal lengths must be sorted by length."
    )


def _right_faults(padded: Padded, alone: torch.Tensor, limit: float, masked: bool) -> list[Fault]:
    """Why padding behind a text changes its scores; nothing where no step of training or generation pads."""
    adapted = padded.adapted
    contract = adapted.contract
    if not masked or (not names_mask(adapted) and _ignored(padded, limit)):
        if contract.task in ("lm", "masked"):
            return []
        return [
            Fault(
                "warn",
                f"{adapted.name} takes no mask, so what it says of a text depends on how much padding the batch adds.",
                "forward has no argument that tells padding from text.",
                "Give forward an attention_mask (B, T) and hide its zeros in the attention (and in a mean over the text), or "
                "batch texts of equal length.",
            )
        ]
    gap = relative_gap(alone, padded.right()[0])
    finding = (
        f"Padding behind a text changes its logits by {gap:.1e} (relative, tolerance {limit:.0e}) although "
        f"{contract.mask_name or 'a mask'} hides it."
    )
    if not math.isfinite(gap):
        cause = "The mask makes values NaN: a softmax over a fully masked row, or 0 · inf."
        return [Fault("fail", finding, cause, "Mask with a large negative number in place of -inf.")]
    if _ignored(padded, limit):
        cause = f"forward of {adapted.name} takes {contract.mask_name} and does not use it."
        fix = "Pass it to the attention: key_padding_mask=~mask.bool() for nn.MultiheadAttention, attn_mask= for the others."
        return [Fault("fail", finding, cause, fix)]
    if relative_gap(alone, padded.right("inverted")[0]) <= limit:
        cause = f"{contract.mask_name} is read the wrong way round: its zeros are shown and its ones hidden."
        fix = f"Invert it where it is used: ~{contract.mask_name}.bool(), as nn.MultiheadAttention wants True where to hide."
        return [Fault("fail", finding, cause, fix)]
    if mixes_beside_attention(adapted.model):
        return []
    cause = (
        f"The mask reaches a part of {adapted.name} only: another layer, a mean or a maximum over the text, a convolution or a "
        "normalisation over time still reads padding."
    )
    fix = "Multiply by the mask before what mixes positions, and divide a mean by the number of real tokens."
    return [Fault("fail", finding, cause, fix)]


def _meant_for_attention(adapted: AdaptedModel) -> bool:
    """Whether attention is all that mixes tokens, so that a mask could hide padding before a text wholly."""
    if not names_mask(adapted) or mixes_beside_attention(adapted.model):
        return False
    with attention_calls(adapted) as calls, torch.no_grad():
        adapted(example_inputs(adapted, min(LENGTH, adapted.contract.max_length or LENGTH)))
    return any(min(call.lengths()) > 1 for call in calls)


def _ignored(padded: Padded, limit: float) -> bool:
    """Whether the mask changes nothing."""
    return relative_gap(padded.right()[0], padded.right("none")[0]) <= limit


def _left(padded: Padded, alone: torch.Tensor, limit: float) -> tuple[str, list[Fault], dict[str, float | bool]]:
    """What padding before a text does: in words, faults, and figures."""
    contract = padded.adapted.contract
    if not takes_padding_before(contract):
        return "", [], {}
    scores = padded.left()
    gaps = [relative_gap(alone, one) for one in scores]
    figures: dict[str, float | bool] = {"left": gaps[0], "left_other_id": gaps[1]}
    if gaps[0] <= limit:
        return f"Padding before it as well ({gaps[0]:.0e}).", [], figures
    if contract.task != "lm":
        return "", [], figures
    if not math.isfinite(gaps[0]):
        finding = "Padding before a text makes its logits NaN, so rows of unequal length cannot be continued together."
        cause = "A position that may see nothing has a softmax over nothing but -inf, and its NaN spreads."
        return "", [Fault("warn", finding, cause, "Mask with a large negative number in place of -inf.")], figures
    read = relative_gap(*scores)
    figures["left_padding_is_read"] = read > limit
    if read > limit and not _meant_for_attention(padded.adapted):
        return "Padding before it is read: continue rows of equal length together.", [], figures
    if read > limit:
        finding = f"Padding before a text is read although {contract.mask_name} hides it ({read:.1e}, relative)."
        cause = f"forward of {padded.adapted.name} takes {contract.mask_name} and does not use it, or not everywhere."
        fix = "Pass it to the attention beside the causal mask; until then continue rows of equal length together."
        return "", [Fault("warn", finding, cause, fix)], figures
    return (
        f"Padding before it shifts the positions by design ({gaps[0]:.0e}): continue rows of equal length together, or pass "
        "position_ids.",
        [],
        figures,
    )
