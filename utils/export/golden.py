"""Golden requests: what the model itself answers, kept beside its exported file so that others can ask the file the same.

Answers come from the model that was trained, never from the file that they judge. Leaves asking the file to `selftest.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.decoding import Sampling, next_id
from utils.export.signature import IDS, Shape, Signature
from utils.tokenization.encoding import Encoder, Recipe
from utils.training.generation import allowed_ids, encoded_prompts, write

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Run = Callable[[dict[str, np.ndarray]], np.ndarray]
"""Feeds by name → logits, as the model computes them."""

FORMAT_VERSION = 1
PROMPTS = ("The ", "Once upon a time")
MAIN_FILE = "model.onnx"

_ROUNDING = 0.1
"""Share of the tolerance by which scores are moved to see whether another machine's rounding could change a choice."""

_PLACES, _TRIALS, _SEED = 64, 4, 7
_SETTINGS = (
    ("greedy", Sampling(max_new_tokens=12, temperature=0)),
    ("sampled", Sampling(max_new_tokens=12, temperature=0.8, top_k=50, top_p=0.95, repetition_penalty=1.1)),
)


def golden_requests(
    signature: Signature,
    run: Run,
    tokenizer: PreTrainedTokenizerBase | None,
    tolerances: Mapping[str, float],
    prompts: Sequence[str] = PROMPTS,
) -> dict[str, Any]:
    """Ask the model, and write down what it says.

    Args:
        signature: what its file takes.
        run: the model's own logits.
        tokenizer: its tokenizer; None for images.
        tolerances: name of each file → how far its logits may be from the model's. Texts are asked of `MAIN_FILE` only.
        prompts: texts to begin with.

    Returns:
        Content of golden.json. Texts end where rounding could choose another token.
    """
    return {
        "format_version": FORMAT_VERSION,
        "tolerances": dict(tolerances),
        "logits": [_logits(signature, run, shape, padding) for shape, padding in _calls(signature)],
        "texts": _texts(signature, run, tokenizer, prompts, tolerances[MAIN_FILE]),
        "classes": _classes(signature, run, tokenizer, prompts),
    }


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities (classes,) of scores, in float64."""
    shares = np.exp(scores.astype(np.float64) - scores.max())
    return shares / shares.sum()


# ---- logits -----------------------------------------------------------------------------------------------------------
def _calls(signature: Signature) -> list[tuple[Shape, str]]:
    """Shapes to ask for, none repeated; with padding where the file takes a mask."""
    if not signature.takes_tokens:
        return [(Shape(1), "none"), (Shape(3), "none")]
    lengths = list(dict.fromkeys(signature.allowed_length(length) for length in (1, 7, 33)))
    decoder = 5 if signature.max_length is None else min(5, signature.max_length)
    tails = (decoder,) if signature.has_decoder else (None,)
    calls = [(Shape(batch, length, tail), "none") for length in lengths for batch in (1, 3) for tail in tails]
    padded = [(Shape(2, lengths[-1], tail), side) for side in signature.masked_sides for tail in tails]
    return calls + padded


def _logits(signature: Signature, run: Run, shape: Shape, padding: str) -> dict[str, Any]:
    feeds = signature.feeds(shape, padding)
    logits = np.asarray(run(feeds), dtype=np.float32)
    places = np.random.default_rng(_SEED).permutation(_real_places(signature, feeds, logits.shape))[:_PLACES]
    flat = logits.reshape(-1)
    kept = [int(place) for place in np.sort(places) if np.isfinite(flat[place])]
    return {
        "name": str(shape) + ("" if padding == "none" else f", padded on the {padding}"),
        "sizes": list(shape),
        "padding": padding,
        "shape": list(logits.shape),
        "places": kept,
        "values": [float(flat[place]) for place in kept],
    }


def _real_places(signature: Signature, feeds: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Flat indices of the logits that count: those of padded tokens mean nothing."""
    real = np.ones(shape, dtype=bool)
    if signature.takes_mask and signature.scores_tokens and not signature.has_decoder:
        real &= feeds["attention_mask"].astype(bool)[:, :, None]
    return np.flatnonzero(real)


# ---- texts ------------------------------------------------------------------------------------------------------------
@dataclass
class _Asked:
    """The model behind the face of a file, with the scores of every choice it was asked for."""

    signature: Signature
    answer: Run
    scores: list[np.ndarray] = field(default_factory=list)

    def run(self, **inputs: Any) -> np.ndarray:
        """Logits; the last token's row is remembered."""
        logits = np.asarray(self.answer(self.signature.checked(inputs, "the model")))
        self.scores.append(logits[0, -1])
        return logits


def _texts(
    signature: Signature,
    run: Run,
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Sequence[str],
    tolerance: float,
) -> list[dict[str, Any]]:
    grows = signature.min_length == signature.multiple_of == 1  # else no prompt goes on token by token
    if signature.task not in ("lm", "seq2seq") or tokenizer is None or not grows:
        return []
    return [
        _text(signature, run, tokenizer, prompt, name, sampling, tolerance * _ROUNDING)
        for prompt in prompts
        for name, sampling in _SETTINGS
    ]


def _text(
    signature: Signature,
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    name: str,
    sampling: Sampling,
    rounding: float,
) -> dict[str, Any]:
    """One continuation, cut before the first choice that rounding could turn."""
    asked = _Asked(signature, run)
    (written,) = write(asked, [prompt], sampling, tokenizer)
    (ids,) = encoded_prompts(asked, [prompt], tokenizer)
    seen = ids if signature.task == "lm" else [int(signature.first_decoder_ids(np.array([ids]))[0, 0])]
    settled = _settled(
        asked.scores, seen, written.ids, sampling, allowed_ids(tokenizer, signature.output_size), rounding
    )
    if settled < sampling.max_new_tokens and settled <= len(written.ids):
        sampling = replace(sampling, max_new_tokens=settled)
        (written,) = write(asked, [prompt], sampling, tokenizer)
    return {
        "name": f"{name}, {prompt!r}",
        "prompt": prompt,
        "prompt_ids": [int(index) for index in ids],
        "sampling": {key: value for key, value in vars(sampling).items() if key != "stop_ids"},
        "ids": written.ids,
        "text": written.text,
    }


def _settled(
    scores: Sequence[np.ndarray],
    seen: Sequence[int],
    new: Sequence[int],
    sampling: Sampling,
    allowed: np.ndarray,
    rounding: float,
) -> int:
    """How many choices stay the same where every score is moved by up to `rounding`."""
    noise, random = np.random.default_rng(_SEED), np.random.Generator(np.random.PCG64([sampling.seed, 0]))
    for number, row in enumerate(scores):
        draw, before = random.random(), [*seen, *new[:number]]
        fitting = allowed[: len(row)] if len(allowed) >= len(row) else np.pad(allowed, (0, len(row) - len(allowed)))
        moved = [row + noise.uniform(-rounding, rounding, len(row)) for _ in range(_TRIALS)]
        if len({next_id(one, before, sampling, draw, fitting) for one in (row, *moved)}) > 1:
            return number
    return len(scores)


# ---- classes ----------------------------------------------------------------------------------------------------------
def _classes(
    signature: Signature, run: Run, tokenizer: PreTrainedTokenizerBase | None, prompts: Sequence[str]
) -> list[dict[str, Any]]:
    if signature.task != "classification" or tokenizer is None:
        return []
    encode = Encoder(tokenizer, Recipe(marks=True, limit=signature.max_length))
    found = []
    for prompt, ids in zip(prompts, encode(prompts)):
        if signature.allowed_length(len(ids)) != len(ids):
            continue  # too short for the model, or no multiple: the file refuses it
        logits = run(signature.checked({IDS: ids[None].astype(np.int64)}, "the model"))
        found.append({"text": prompt, "scores": softmax(np.asarray(logits)[0]).tolist()})
    return found
