"""What a model is for, as other libraries name it."""

from __future__ import annotations

from utils.adapters.contract import CallContract

HEADS = {
    "lm": "CausalLM",
    "masked": "MaskedLM",
    "seq2seq": "Seq2SeqLM",
    "classification": "SequenceClassification",
    "tokens": "TokenClassification",
    "vision": "ImageClassification",
}
"""What a model is for → the ending of its auto class in transformers; "tokens" are classes of single tokens."""


def purpose_of(contract: CallContract) -> str:
    """What a model is for, as a key of `HEADS`."""
    by_token = contract.task == "classification" and contract.logits.layout not in ("BV", "LBV")
    return "tokens" if by_token else contract.task
