"""Text from a trained model, one token at a time. Leaves training and serving to others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.preserved import preserved
from utils.errors import ConfigError, TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def generate(
    model: Any,
    prompt: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_new_tokens: int = 50,
    temperature: float = 0.8,
    top_k: int | None = 50,
    seed: int = 0,
) -> str:
    """Continue a prompt.

    Ids that the tokenizer lacks (embedding rows beyond it) and special tokens other than end-of-text are never drawn. What
    exceeds the model's length limit is cut off at the front of its view, not of the text. The same seed gives the same text
    on the same device. The model is left as it was.

    Args:
        model: what `train` gave, or an `AdaptedModel` together with `tokenizer`.
        tokenizer: taken from the result where there is one.
        prompt: text to continue; empty begins after an end-of-text mark.
        max_new_tokens: most tokens to add; fewer where the model ends the text.
        temperature: 0 always takes the likeliest token; 1 draws from the model's distribution; lower is safer.
        top_k: draw from the k likeliest tokens only; None draws from all.
        seed: of a private generator; the global random state is neither used nor changed.

    Returns:
        Prompt and continuation.

    Raises:
        ConfigError: an argument out of range. TokenizerError: no tokenizer, or one that does not fit the model.
    """
    adapted, tokenizer = _parts(model, tokenizer)
    _check_arguments(prompt, max_new_tokens, temperature, top_k, seed)
    end = tokenizer.eos_token_id
    prompt_ids = tokenizer(prompt, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    view = list(prompt_ids) or [_first_id(tokenizer)]
    adapted.check_inputs(torch.tensor([view[-(adapted.contract.max_length or len(view)) :]]))
    generator = torch.Generator().manual_seed(seed)
    new: list[int] = []
    allowed = _allowed(adapted, tokenizer)
    with preserved(adapted), torch.no_grad():  # inference tensors that a model keeps would break its next training
        adapted.eval()
        for _ in range(max_new_tokens):
            index = _next_id(adapted, view + new, allowed, temperature, top_k, generator)
            if index == end:
                break
            new.append(index)
    return prompt + str(tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _next_id(
    adapted: AdaptedModel,
    ids: list[int],
    allowed: torch.Tensor,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator,
) -> int:
    """Draw the next token id; `allowed` is (V,) bool."""
    limit = adapted.contract.max_length
    view = ids if limit is None else ids[-limit:]
    logits = adapted(torch.tensor([view], device=adapted.device)).logits[0, -1].float().cpu()  # (V,)
    logits = logits.masked_fill(~allowed[: len(logits)], float("-inf"))
    if temperature == 0:
        return int(logits.argmax())
    logits = logits / temperature
    if top_k is not None and top_k < len(logits):
        lowest = torch.topk(logits, top_k).values[-1]
        logits = logits.masked_fill(logits < lowest, float("-inf"))
    return int(torch.multinomial(torch.softmax(logits, dim=-1), 1, generator=generator))


def _allowed(adapted: AdaptedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Which ids may be drawn, as (V,) bool over the model's rows or the tokenizer's ids, whichever reach further."""
    ids = torch.tensor(sorted(tokenizer.get_vocab().values()))
    allowed = torch.zeros(max(adapted.contract.vocab_size or 0, int(ids.max()) + 1), dtype=torch.bool)
    allowed[ids] = True
    allowed[torch.tensor(tokenizer.all_special_ids, dtype=torch.int64)] = False
    if tokenizer.eos_token_id is not None:
        allowed[tokenizer.eos_token_id] = True
    return allowed


def _parts(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> tuple[AdaptedModel, PreTrainedTokenizerBase]:
    adapted = model if isinstance(model, AdaptedModel) else getattr(model, "model", None)
    if not isinstance(adapted, AdaptedModel):
        raise ConfigError(
            f"generate() takes the result of train() or an AdaptedModel; got {type(model).__name__}. Call adapt() first."
        )
    if adapted.contract.task != "lm":
        does = {"masked": "names hidden tokens", "seq2seq": "answers a source with a target"}
        raise ConfigError(
            f"{adapted.name} {does.get(adapted.contract.task, 'chooses classes')} and continues no text: generate() is for "
            "language models (contract.task == 'lm')."
        )
    chosen = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
    if chosen is None:
        raise TokenizerError("generate() needs the tokenizer that the model was trained with: pass tokenizer=.")
    return adapted, chosen


def _first_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands before the first token of a text: end-of-text in packed training data."""
    for index in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if index is not None:
            return int(index)
    raise TokenizerError("An empty prompt needs a tokenizer with an end-of-text or begin-of-text token. Pass a prompt.")


def _check_arguments(prompt: str, max_new_tokens: int, temperature: float, top_k: int | None, seed: int) -> None:
    def whole(value: Any, least: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    problems = []
    if not isinstance(prompt, str):
        problems.append(f"prompt must be text; got {type(prompt).__name__}")
    if not whole(max_new_tokens, 0):
        problems.append(f"max_new_tokens must be a whole number of 0 or more; got {max_new_tokens!r}")
    if (
        isinstance(temperature, bool)
        or not isinstance(temperature, (int, float))
        or not 0 <= temperature < float("inf")
    ):
        problems.append(f"temperature must be a number of 0 or more; got {temperature!r}")
    if top_k is not None and not whole(top_k, 1):
        problems.append(f"top_k must be a whole number of 1 or more, or None; got {top_k!r}")
    if not whole(seed, 0):
        problems.append(f"seed must be a whole number of 0 or more; got {seed!r}")
    if problems:
        raise ConfigError("generate(): " + "; ".join(problems) + ".")
