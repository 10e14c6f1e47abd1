"""Does the model read the order of its tokens, and does its table of positions take part?

A length beyond the table is for `shapes`, a model that sees later tokens for `causality`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.faults import Fault, judged
from utils.checks.inspection import listed, token_embedding, wake_zero_matrices, watched, where
from utils.checks.masking import ordinary_ids
from utils.checks.passage import relative_gap
from utils.checks.report import CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler, run_model

NAME = "position sensitivity"
LENGTH = 11
"""Tokens of the text; a length that no width of a model is likely to share."""
BLIND = 2e-6
"""A new order of the earlier tokens moves the answer by less than this share of what other tokens move it by: rounding. Our
own measurement on 180 models of the test zoo, at the first module that mixes tokens: those that read the order stay above
1e-3 (one with nearly even attention at 8e-6), those that cannot below 5e-7."""
UNREAD = 1e-6
"""Other earlier tokens move the answer by less than this, relative to its largest logit: they are not read."""
_POSITION = re.compile(r"(w?pe|pos|pos_?(emb|enc)\w*|position(s|al)?(_\w+)?|abs_?pos\w*|\w+_(pos|positions?|pe))")
"""Parts of names that tables of positions have."""


@dataclass
class Answers:
    """What is said at the last position of a text, by the model and by each module on the way.

    Attributes:
        logits: (V,) or (classes,).
        modules: name → (C,) of the modules that give (1, T, C) or (T, 1, C), in the order of the calls.
    """

    logits: torch.Tensor
    modules: dict[str, torch.Tensor] = field(default_factory=dict)


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Reverse the tokens before the last one, and replace them by others; the last answer must follow both.

    Where the order arrives at the logits but not at the first module that mixes tokens, it is read off the causal mask
    alone (a model without position information). A table of positions must give different rows to different tokens.
    """
    contract = adapted.contract
    if not contract.takes_tokens:
        return CheckResult(NAME, "skip", "Images have no order of tokens.")
    length = sampler.length(LENGTH)
    if length < 3 or sampler.vocabulary < 2:
        return CheckResult(NAME, "skip", f"{length} tokens of {sampler.vocabulary} ids have no order to change.")
    adapted.eval()
    wake_zero_matrices(adapted.model)  # tables of positions, heads and branches that start at zero
    texts = _texts(adapted, sampler, length)
    told, turned, other = (_answers(adapted, ids) for ids in texts)
    if not all(torch.isfinite(one.logits).all() for one in (told, turned, other)):
        return CheckResult(NAME, "skip", "The logits are not finite, so they cannot be compared.")
    by_order, by_content = relative_gap(told.logits, turned.logits), relative_gap(told.logits, other.logits)
    measured: dict[str, Any] = {"moved_by_order": by_order, "moved_by_other_tokens": by_content}
    used = _used_rows(adapted, texts[0])
    faults = _table_faults(adapted, used, length)
    if by_content <= UNREAD:
        faults.append(_no_context(adapted, contract.task))
    elif by_order <= BLIND * by_content:
        faults.append(_bag(adapted, contract.task))
    elif (mixing := _first_mixing(told, turned, other)) is not None:
        measured["first_mixing_module"] = mixing
        if not used and _blind_at(mixing, told, turned, other):
            faults.append(_order_by_mask(adapted, mixing))
    share = by_order / by_content if by_content else 0.0
    fine = f"Another order of earlier tokens moves the last answer ({share:.1%} of what other tokens move it by)."
    return judged(NAME, faults, fine, measured)


def _texts(adapted: AdaptedModel, sampler: Sampler, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(1, T) each: a text, the same with the tokens before the last one reversed, and other tokens before the last one.

    The first token stays where there are enough: classifiers and encoders read their answer there. Every id comes once
    where the vocabulary allows it, and none that means padding: some models count positions from those.
    """
    known = ordinary_ids(adapted, sampler.vocabulary, sampler.device)
    if len(known) < 2:
        known = torch.arange(sampler.vocabulary, device=sampler.device)
    told = known.repeat(length)[:length][None]
    inner = slice(1 if length > 3 else 0, length - 1)
    if few := len(known) < length:  # runs of one id: repeated in turn, they could read the same from both ends
        told = known.repeat_interleave(-(-length // len(known)))[:length][None]
    turned, changed = told.clone(), told.clone()
    turned[:, inner] = told[:, inner].flip(1)
    changed[:, inner] = (
        known[-1]
        if few
        else known.roll(-length if len(known) > 2 * length else -1).repeat(length)[:length][None, inner]
    )
    return told, turned, changed


def _answers(adapted: AdaptedModel, ids: torch.Tensor) -> Answers:
    """One pass; an encoder-decoder reads the ids with its encoder and always the same ones with its decoder."""
    found = Answers(torch.empty(0))
    length = ids.shape[1]

    def look(name: str, tensor: torch.Tensor) -> None:
        if tensor.dim() == 3 and name not in found.modules and tensor.shape[:2] in ((1, length), (length, 1)):
            found.modules[name] = (tensor[0, -1] if tensor.shape[0] == 1 else tensor[-1, 0]).float()

    more = {"decoder_input_ids": torch.zeros_like(ids[:, :2])} if adapted.contract.decoder_name is not None else {}
    with torch.no_grad(), watched(adapted.model, look):
        logits = run_model(adapted, ids, **more).logits.float()
    found.logits = logits[0, -1] if logits.dim() == 3 else logits[0]
    return found


def _first_mixing(told: Answers, turned: Answers, other: Answers) -> str | None:
    """The first module whose output at the last token depends on earlier ones; None where none is seen."""
    for name, value in told.modules.items():
        if name in other.modules and name in turned.modules and relative_gap(value, other.modules[name]) > UNREAD:
            return name
    return None


def _blind_at(name: str, told: Answers, turned: Answers, other: Answers) -> bool:
    """Whether a module reads which tokens come before, and not in which order."""
    by_order = relative_gap(told.modules[name], turned.modules[name])
    return by_order <= BLIND * relative_gap(told.modules[name], other.modules[name])


def _no_context(adapted: AdaptedModel, task: str) -> Fault:
    read = "the last token" if task == "lm" else "its own token"
    return Fault(
        "warn",
        f"The answer at a token depends on {read} alone: earlier tokens move nothing.",
        f"Nothing in {adapted.name} carries information from one token to another, or what does is not added to the rest.",
        "Add attention (or a recurrence) between the embedding and the head, and add its output to the residual stream.",
    )


def _bag(adapted: AdaptedModel, task: str) -> Fault:
    return Fault(
        "warn" if task == "classification" else "fail",
        "Another order of the tokens gives the same answer: the model reads a bag of words.",
        f"{adapted.name} adds no positions, or adds the same to every token.",
        "Add a learned position to every token, x = tok(ids) + pos(torch.arange(T, device=ids.device)), or rotate queries "
        "and keys (RoPE).",
    )


def _order_by_mask(adapted: AdaptedModel, name: str) -> Fault:
    return Fault(
        "warn",
        f"{name} sees earlier tokens without their order; only the causal mask tells the order, from the second layer on.",
        f"{adapted.name} has no position information that reaches {where(adapted, name)}. Models without it are a known "
        "choice (NoPE, Kazemnejad et al. 2023) and learn the order slowly; if positions were meant, they are not applied.",
        "If it is a choice, leave it. Otherwise add positions to the embedding, or rotate queries and keys along the time "
        "axis (not along heads or batch).",
    )


def _tables(adapted: AdaptedModel, length: int) -> dict[str, nn.Parameter]:
    """Trainable tables of positions by name: (L, D), (1, L, D) or (L, 1, D) with a row for each token of the text."""
    tokens = token_embedding(adapted)
    found = {}
    for name, parameter in adapted.model.named_parameters():
        parts = [part for part in name.split(".") if not part.isdigit() and part not in ("weight", "table")]
        rows = max(parameter.shape[:-1], default=0)
        plain = parameter.dim() == 2 or (parameter.dim() == 3 and 1 in parameter.shape[:2])
        is_tokens = tokens is not None and parameter is tokens[1].weight
        if parts and _POSITION.fullmatch(parts[-1]) and plain and rows >= length and not is_tokens:
            found[name] = parameter
    return {name: parameter for name, parameter in found.items() if parameter.requires_grad}


def _used_rows(adapted: AdaptedModel, ids: torch.Tensor) -> dict[str, int]:
    """How many rows of each table of positions the logits of a text depend on."""
    tables = _tables(adapted, ids.shape[1])
    if not tables:
        return {}
    more = {"decoder_input_ids": ids} if adapted.contract.decoder_name is not None else {}
    with torch.enable_grad():
        logits = run_model(adapted, ids, **more).logits
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
        gradients = torch.autograd.grad((logits * weights).sum(), list(tables.values()), allow_unused=True)
    return {
        name: 0 if gradient is None else int((_rows(gradient).abs().amax(-1) > 0).sum())
        for name, gradient in zip(tables, gradients, strict=True)
    }


def _table_faults(adapted: AdaptedModel, used: dict[str, int], length: int) -> list[Fault]:
    """Tables whose rows never reach the logits, or of which all tokens share one row."""
    faults = []
    if unused := [name for name, rows in used.items() if rows == 0]:
        owner = unused[0].removesuffix(".weight")
        faults.append(
            Fault(
                "fail",
                f"A table of positions moves no logit: {listed(unused)}.",
                f"forward of {adapted.name} does not use {where(adapted, owner)}, or loses it before the logits.",
                f"Add it to the token embedding: x = x + self.{owner}(torch.arange(T, device=ids.device)).",
            )
        )
    if shared := [name for name, rows in used.items() if rows == 1]:
        owner = shared[0].removesuffix(".weight")
        faults.append(
            Fault(
                "fail",
                f"All {length} tokens get the same row of {listed(shared)}.",
                "The positions are counted along the batch axis, or are constant.",
                f"Count along time: torch.arange(ids.shape[1], device=ids.device) for {where(adapted, owner)}.",
            )
        )
    return faults


def _rows(gradient: torch.Tensor) -> torch.Tensor:
    """(L, D) of a table's gradient."""
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    return dense.reshape(-1, dense.shape[-1])
