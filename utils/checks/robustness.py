"""How much does the answer move when the input moves a little? Noise on embeddings (or pixels), and edited tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from utils.adapters.contract import shifted_right
from utils.adapters.model_adapter import AdaptedModel
from utils.checks.continuous import ContinuousInput
from utils.checks.report import TABLE, CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler, run_model

NAME = "robustness"
BATCH, LENGTH = 2, 32
NOISES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Standard deviations of the noise, relative to the root mean square of what it is added to."""
EDITS = (0.1, 0.2, 0.4)
"""Shares of the tokens that are edited."""
FRAGILE = 0.1
"""Divergence in nats at the smallest noise from which a model is fragile. Our own measurement: fresh Hugging Face models
stay below 1e-4, and bfloat16 alone moves every value by up to 0.4%."""

Edit = Callable[[torch.Tensor, int, int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Compare the distribution on a changed input with that on the clean one: KL divergence in nats and top-1 agreement.

    Where tokens are edited, only the scores of those that stayed are compared, each with its own.
    """
    adapted.eval()
    inputs = sampler.inputs(BATCH, sampler.length(LENGTH))
    held = _held_decoder(adapted, inputs)
    with torch.no_grad():
        clean = run_model(adapted, inputs, **held).logits
    if not torch.isfinite(clean).all():
        return CheckResult(NAME, "skip", "The logits are not finite, so they cannot be compared.")
    rows = [*_noisy(adapted, inputs, clean, held), *_edited(adapted, sampler, inputs, clean, held)]
    if not rows:
        return CheckResult(NAME, "skip", f"Neither the embeddings nor the tokens of {adapted.name} can be changed.")
    measured, least = {TABLE: rows}, rows[0]
    if least["change"].endswith("noise") and not least["KL"] <= FRAGILE:
        return CheckResult(
            NAME,
            "warn",
            f"Noise of {least['amount']:.0%} moves the distribution by {least['KL']:.2g} nats; {FRAGILE:g} is much.",
            "Small differences are amplified on the way: large weights, no normalisation, or a division by something small.",
            "Normalise before each sublayer and initialise with std 0.02; the check of initialisation names what is unusual.",
            measured,
        )
    return CheckResult(NAME, "pass", f"{_said(least)}; {_said(rows[-1])}.", measured=measured)


def _said(row: dict[str, Any]) -> str:
    """One row in words."""
    return f"{row['change']} of {row['amount']:.0%}: {row['KL']:.2g} nats, top-1 {row['agreement']:.0%}"


def _held_decoder(adapted: AdaptedModel, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """The decoder goes on reading the clean text, so that only what the encoder reads is changed."""
    if adapted.contract.decoder_name is None:
        return {}
    return {"decoder_input_ids": shifted_right(inputs, adapted.contract.start_id)}


def _noisy(
    adapted: AdaptedModel, inputs: torch.Tensor, clean: torch.Tensor, held: dict[str, torch.Tensor]
) -> list[dict[str, Any]]:
    place = ContinuousInput.of(adapted, inputs)
    if place is None:
        return []
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(place.values.shape, generator=generator).to(place.values) * place.values.square().mean().sqrt()
    kind = "embedding noise" if adapted.contract.takes_tokens else "pixel noise"
    rows = []
    for scale in NOISES:
        with torch.no_grad():
            moved = place.run(lambda values, scale=scale: values + scale * noise, None, **held)  # type: ignore[misc]
        rows.append(_row(kind, scale, _flat(clean), _flat(moved)))
    return rows


def _edited(
    adapted: AdaptedModel, sampler: Sampler, inputs: torch.Tensor, clean: torch.Tensor, held: dict[str, torch.Tensor]
) -> list[dict[str, Any]]:
    if not adapted.contract.takes_tokens or inputs.shape[1] < 2:
        return []
    by_token = clean.dim() == 3 and not held
    rows = []
    for kind, edit in TOKEN_EDITS.items():
        for share in EDITS:
            generator = torch.Generator().manual_seed(1)
            edited, origin = edit(inputs, max(1, round(share * inputs.shape[1])), sampler.vocabulary, generator)
            with torch.no_grad():
                moved = run_model(adapted, edited, **held).logits
            stayed = origin >= 0
            if by_token and not bool(stayed.any()):
                continue
            before, after = (clean[:, origin[stayed]], moved[:, stayed]) if by_token else (clean, moved)
            rows.append(_row(f"{kind} tokens", share, _flat(before), _flat(after)))
    return rows


def substituted(
    ids: torch.Tensor, count: int, vocabulary: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put random tokens in place of `count` of them.

    Returns:
        The edited ids (B, T), and for each place the place that its token had before, (T,); -1 where it is another token.
    """
    chosen = torch.randperm(ids.shape[1], generator=generator)[:count].to(ids.device)
    edited, origin = ids.clone(), torch.arange(ids.shape[1], device=ids.device)
    edited[:, chosen] = torch.randint(vocabulary, (len(ids), count), generator=generator).to(ids.device)
    origin[chosen] = -1
    return edited, origin


def swapped(
    ids: torch.Tensor, count: int, vocabulary: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Let `count` tokens, at least two, change places with a neighbour; the pairs do not overlap. Returns as `substituted`.

    The scores of both are left out: what follows them has changed.
    """
    first = 2 * torch.randperm(ids.shape[1] // 2, generator=generator)[: max(1, count // 2)].to(ids.device)
    order = torch.arange(ids.shape[1], device=ids.device)
    order[first], order[first + 1] = first + 1, first
    origin = order.clone()
    origin[first] = origin[first + 1] = -1
    return ids[:, order], origin


def deleted(
    ids: torch.Tensor, count: int, vocabulary: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take `count` tokens out and put random ones at the end, so that the length stays. Returns as `substituted`."""
    count = min(count, ids.shape[1] - 1)
    gone = torch.randperm(ids.shape[1], generator=generator)[:count].to(ids.device)
    kept = torch.ones(ids.shape[1], dtype=torch.bool, device=ids.device).index_fill(0, gone, False).nonzero()[:, 0]
    added = torch.randint(vocabulary, (len(ids), count), generator=generator).to(ids.device)
    return torch.cat([ids[:, kept], added], 1), torch.cat([kept, kept.new_full((count,), -1)])


TOKEN_EDITS: dict[str, Edit] = {"substituted": substituted, "swapped": swapped, "deleted": deleted}
"""Word for the edit → what does it."""


def divergence(clean: torch.Tensor, moved: torch.Tensor) -> tuple[float, float]:
    """KL(clean ‖ moved) in nats and share of rows with the same highest score, of logits (N, V)."""
    p, q = clean.log_softmax(-1), moved.log_softmax(-1)
    nats = (p.exp() * (p - q)).masked_fill(p == float("-inf"), 0.0).sum(-1).mean()
    return float(nats.clamp(min=0)), float((clean.argmax(-1) == moved.argmax(-1)).double().mean())


def _row(change: str, amount: float, clean: torch.Tensor, moved: torch.Tensor) -> dict[str, Any]:
    if clean.shape[-1] == 1:  # one number: its change, relative to its size, takes the place of a divergence
        size = clean.square().mean().sqrt().clamp(min=1e-30)
        return {
            "change": change,
            "amount": amount,
            "KL": float((moved - clean).square().mean().sqrt() / size),
            "agreement": 1.0,
        }
    nats, agreement = divergence(clean, moved)
    return {"change": change, "amount": amount, "KL": nats, "agreement": agreement}


def _flat(logits: torch.Tensor) -> torch.Tensor:
    return logits.reshape(-1, logits.shape[-1]).float()
