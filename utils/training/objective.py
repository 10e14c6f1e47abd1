"""Which objective a model can honestly be trained with. Leaves finding out and mending to `adapters.causality`."""

from __future__ import annotations

import logging

from utils.adapters.model_adapter import AdaptedModel
from utils.errors import TrainingError, TransformerBuilderError

_LOG = logging.getLogger(__name__)

_MEANINGS = {
    "masked": "it scores the token at each position itself",
    "seq2seq": "its decoder answers another sequence",
    "classification": "it gives one row of scores per example",
    "vision": "it takes images",
}


def check_task(adapted: AdaptedModel) -> None:
    """Refuse models whose scores are not about the next token.

    Raises:
        TrainingError: `contract.task` is another than "lm".
    """
    task = adapted.contract.task
    if task != "lm":
        raise TrainingError(
            f"{adapted.name} is a {task!r} model ({_MEANINGS.get(task, 'its scores are not about the next token')}). This "
            "release trains next-token prediction only, which would teach such a model something else. Checks and export "
            "work for it; train it with its own objective elsewhere. If it is a language model, say so: "
            "AdaptedModel(model, config, contract=CallContract(task='lm', ...))."
        )


def choose_objective(adapted: AdaptedModel, mode: str = "auto") -> tuple[AdaptedModel, str]:
    """Make sure that next-token training is no cheating.

    Args:
        adapted: the model; it stays as it is.
        mode: "auto" makes the attention causal where it is not; "next_token" takes the model only as it is.

    Returns:
        The model to train (the same weights, with causal attention where it saw later tokens before) and the reason.

    Raises:
        TrainingError: the model is no language model, or it sees later tokens and its attention cannot or must not be
            made causal.
    """
    from utils.adapters.causality import make_causal, sees_future

    check_task(adapted)
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
        raise TrainingError(
            f"{adapted.name} sees later tokens ({found.evidence}), so next-token prediction would only teach it to copy, and "
            f"its attention cannot be made causal: {error} Export the model with causal attention."
        ) from error
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
