"""Which objective a model can honestly be trained with. Leaves finding out and mending to `adapters.causality`."""

from __future__ import annotations

import dataclasses
import logging

from utils.adapters.attention_calls import shared_copy
from utils.adapters.causality import make_causal, sees_future
from utils.adapters.model_adapter import AdaptedModel
from utils.errors import TrainingError, TransformerBuilderError

_LOG = logging.getLogger(__name__)


def choose_objective(adapted: AdaptedModel, mode: str = "auto") -> tuple[AdaptedModel, str]:
    """Make sure that training is no cheating.

    Args:
        adapted: the model; it stays as it is.
        mode: for models of text. "auto" trains next-token prediction, with attention made causal where it is not, and hides
            tokens where that is impossible; "next_token" takes the model only as it is; "masked" hides tokens.

    Returns:
        The model to train (the same weights; `contract.task` is the task that it is trained on) and the reason.

    Raises:
        TrainingError: "next_token" for a model that sees later tokens, or an objective that is not the model's.
    """
    task = adapted.contract.task
    if task == "lm":
        return as_masked(adapted, "objective='masked'") if mode == "masked" else _next_token(adapted, mode)
    if mode == "next_token" or (mode == "masked" and task != "masked"):
        raise TrainingError(
            f"objective={mode!r} is not for {adapted.name}, a {task!r} model. Take objective='auto'; if it is a language "
            "model, say so: AdaptedModel(model, config, contract=CallContract(task='lm', ...))."
        )
    return adapted, f"{_MEANINGS[task]}: the task of its contract"


_MEANINGS = {
    "masked": "naming hidden tokens",
    "seq2seq": "saying the target, token by token",
    "classification": "choosing a class for each text",
    "vision": "choosing a class for each image",
}


def as_masked(adapted: AdaptedModel, why: str) -> tuple[AdaptedModel, str]:
    """The model, over the same weights, scored on the tokens that were hidden from it."""
    reasons = {**adapted.contract.reasons, "task": f"masked: {why}"}
    masked = shared_copy(adapted)
    masked.contract = dataclasses.replace(adapted.contract, task="masked", reasons=reasons)
    return masked, f"naming hidden tokens: {why}"


def _next_token(adapted: AdaptedModel, mode: str) -> tuple[AdaptedModel, str]:
    found = sees_future(adapted)
    if found.in_training:
        _LOG.warning(
            "%s sees later tokens in training mode, though not in eval mode: %s. Its training loss reads its answers; trust "
            "the validation loss. Look for BatchNorm, experts of limited capacity, or a branch on self.training.",
            adapted.name,
            found.in_training,
        )
    if found.causal:
        return adapted, f"next-token prediction: the model is causal ({found.evidence})"
    if mode == "next_token":
        raise TrainingError(
            f"{adapted.name} sees later tokens ({found.evidence}), so next-token prediction would only teach it to copy. "
            "Pass objective='auto' to have its attention made causal, or export the model with causal attention."
        )
    try:
        causal = make_causal(adapted)
    except TransformerBuilderError as error:
        _LOG.warning(
            "%s sees later tokens (%s), so next-token prediction would only teach it to copy, and its attention cannot be made "
            "causal: %s It is trained to name hidden tokens instead, and will not continue texts.",
            adapted.name,
            found.evidence,
            error,
        )
        return as_masked(adapted, f"it sees later tokens ({found.evidence}) and cannot be made causal")
    _LOG.warning(
        "%s sees later tokens (%s). What is trained is a version %s; the exported file itself stays as it is.",
        adapted.name,
        found.evidence,
        causal.contract.reasons["causality"],
    )
    reason = (
        f"next-token prediction with attention made causal: the exported model sees later tokens ({found.evidence})"
    )
    return causal, reason
