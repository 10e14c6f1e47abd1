"""Whether a model sees the future, and how it can be kept from it.

Knows how to ask a model; the ways to change its attention lie in `causal_routes`, and which objective follows from the
answer is for `training` to say.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from dataclasses import dataclass, field

import torch

from utils.adapters.attention_calls import shared_copy
from utils.adapters.causal_probe import DOUBTFUL, LARGE, MOST_WORK, SHORT_LENGTHS, Leak, Probe, work_per_token
from utils.adapters.causal_routes import causal_modules, routes_of
from utils.adapters.model_adapter import AdaptedModel
from utils.adapters.probing import left_as_it_was
from utils.adapters.wide_masks import MatchingMasks
from utils.errors import CallContractError

_LOG = logging.getLogger(__name__)

LONGEST = 256
"""Longest sequence that is asked, at a few positions; the model's own limit where it is shorter."""


@dataclass(frozen=True)
class CausalityReport:
    """Whether a later token moves an earlier logit.

    Attributes:
        causal: no change of a token moved a logit before it.
        evidence: what was done and seen, in words; of a leak the smallest that was found.
        leak: largest change of an earlier logit, as a difference of scores; 0 for a causal model.
        changed_at: position of the token whose change moved an earlier logit most; None for a causal model.
        made_causal: names of the modules whose attention was made causal.
        moved_at: position of the logits that moved most; None for a causal model.
        length: number of tokens of the sequence in which that happened; the longest that was tried for a causal model.
        in_training: of a causal model, what moved an earlier logit in training mode alone (statistics over the batch, a
            branch on `self.training`), in words; empty where nothing did.
    """

    causal: bool
    evidence: str
    leak: float = 0.0
    changed_at: int | None = None
    made_causal: tuple[str, ...] = field(default=())
    moved_at: int | None = None
    length: int | None = None
    in_training: str = ""


def sees_future(adapted: AdaptedModel) -> CausalityReport:
    """Change later tokens of a random sequence and compare every earlier logit, in eval mode, with a fixed seed.

    At lengths 2, 3 and 12 everything from each position on is changed in turn, which no leak between two positions
    escapes; at the length limit (at most 256) the same is done at 8 positions. Then come other texts, as many as the
    model's size allows: the remaining positions, special ids, every id, futures of one id (`causal_questions`). Large
    models are asked at lengths 12 and the longest that is affordable, at a few positions; the report names the lengths.
    A model that takes a mask of padding is asked with one as well, because some drop their causal mask for it.
    All calls that are compared have the same shapes, draw the same random numbers and begin with the same buffers, so a
    causal model repeats its earlier logits nearly to the bit. What moves them by less than a thousandth of the largest
    logit is asked again in float64, where rounding shrinks and a leak does not. The model is left as it was.

    Returns:
        The report; `causal` is True where no earlier logit moved.

    Raises:
        CallContractError: the model gives one row of scores per sequence, so the question has no meaning; or it cannot
            be called at any of the lengths.
    """
    contract = adapted.contract
    if contract.logits.layout == "BV" or contract.task in ("classification", "vision"):
        raise CallContractError(
            f"{adapted.name} gives one row of scores per sequence: causality asks about scores per position."
        )
    made = tuple(causal_modules(adapted))
    rows = _vocabulary(adapted)
    lengths = _lengths(adapted)
    if not lengths or rows < 2:
        limit = contract.max_length
        return CausalityReport(
            True, f"with {limit} positions and {rows} ids there is no future to see", made_causal=made
        )
    with left_as_it_was(adapted):
        leak, asked = _first_leak(adapted, lengths, rows)
        if leak is not None:
            return _report_of(leak, leak.words(), made)
        length = max((n for n in asked if n <= SHORT_LENGTHS[-1]), default=min(asked))
        leak = _leak_beside_a_mask(adapted, length, rows)
        if leak is not None:
            words = f"where an attention mask hides the last token, {leak.words()}; without a mask nothing moved"
            return _report_of(leak, words, made)
        in_training = _leak_in_training(adapted, length, rows)
    return CausalityReport(
        True, _words(asked, in_training), made_causal=made, length=max(asked), in_training=in_training
    )


@dataclass(frozen=True)
class _Asked:
    """What was asked at one length: positions from which on tokens were changed, and noise of the answers."""

    places: int
    noise: float


def _first_leak(adapted: AdaptedModel, lengths: list[int], rows: int) -> tuple[Leak | None, dict[int, _Asked]]:
    """The leak at the first length that shows one, and what was asked at the others."""
    asked: dict[int, _Asked] = {}
    refused: Exception | None = None
    for length in lengths:
        try:
            leak, asked_here = _leak_at(adapted, length, rows)
        except Exception as error:  # noqa: BLE001 - a model that takes only some lengths is asked at those
            refused = error
            continue
        asked[length] = asked_here
        if leak is not None:
            return leak, asked
    if not asked:
        raise CallContractError(
            f"{adapted.name} could not be called with sequences of {', '.join(map(str, lengths))} tokens: {refused}"
        ) from refused
    return None, asked


def _report_of(leak: Leak, words: str, made: tuple[str, ...]) -> CausalityReport:
    return CausalityReport(False, words, leak.size, leak.changed_at, made, leak.moved_at, leak.length)


def _words(asked: dict[int, _Asked], in_training: str) -> str:
    """The evidence for a causal model."""
    shown = [
        f"{length}" if one.places >= length - 1 else f"{length} (from {one.places} of {length - 1} positions on)"
        for length, one in asked.items()
    ]
    words = f"changing later tokens moved no earlier logit, at lengths {', '.join(shown)}"
    noise = max(one.noise for one in asked.values())
    if noise > DOUBTFUL:
        words += f"; its answers to one question differ by {noise:.1e} of the largest logit, which could hide a leak"
    return words + (f"; but in training mode {in_training}" if in_training else "")


def _vocabulary(adapted: AdaptedModel) -> int:
    """Ids that the asked sequence may hold."""
    contract = adapted.contract
    known = [size for size in (contract.vocab_size, contract.output_size) if size]
    if contract.task == "seq2seq":
        return min(known, default=2)
    return known[0] if known else 2


def _lengths(adapted: AdaptedModel) -> list[int]:
    limit = adapted.contract.max_length
    longest = min(limit or LONGEST, LONGEST)
    work = work_per_token(adapted)
    while longest > SHORT_LENGTHS[-1] and work * longest * 7 > MOST_WORK:
        longest //= 2
    short = SHORT_LENGTHS if work < LARGE else SHORT_LENGTHS[-1:]
    return sorted({length for length in (*short, longest) if 2 <= length <= longest})


def _leak_at(
    adapted: AdaptedModel, length: int, rows: int, attention_mask: torch.Tensor | None = None
) -> tuple[Leak | None, _Asked]:
    """The leak at one length, or None, and what was asked. Doubtful cases are decided in float64."""
    probe = Probe(adapted, length, rows, attention_mask=attention_mask)
    found, share, limit = probe.look(None if attention_mask is None else ()), probe.share, probe.tolerance
    asked = _Asked(len(probe.places), probe.noise)
    half = probe.dtype in (torch.float16, torch.bfloat16)
    if (share == 0 or share > max(DOUBTFUL, limit)) and not half:
        return found, asked
    with MatchingMasks():
        wide = _in_float64(adapted, length, rows, attention_mask)
        if wide is not None:
            found, share, limit = wide.look(probe.doubts), wide.share, wide.tolerance
    return (found if share > limit else None), asked


def _leak_beside_a_mask(adapted: AdaptedModel, length: int, rows: int) -> Leak | None:
    """The leak of a model that is given a mask of padding; some drop their causal mask for it."""
    contract = adapted.contract
    if contract.mask_name is None or contract.task == "seq2seq" or length < 3:
        return None
    if contract.mask is None or not contract.mask.carries_padding:
        return None
    mask = torch.ones(1, length, dtype=torch.long, device=adapted.device)
    mask[:, -1] = 0
    try:
        return _leak_at(adapted, length, rows, mask)[0]
    except Exception as error:
        raise CallContractError(
            f"{adapted.name} takes {length} tokens, but fails once its {contract.mask_name} hides the last of them: {error}"
        ) from error


def _leak_in_training(adapted: AdaptedModel, length: int, rows: int) -> str:
    """What moves an earlier logit of a model in training mode, in words; empty where nothing does, or it cannot train so."""
    try:
        probe = Probe(adapted, length, rows, training=True)
        found = probe.look(())
    except Exception as error:  # noqa: BLE001 - a model may need labels or other inputs to run in training mode
        _LOG.debug("%s does not run in training mode: %s", adapted.name, error)
        return ""
    return found.words() if found is not None and probe.share > max(DOUBTFUL, probe.tolerance) else ""


def _in_float64(
    adapted: AdaptedModel, length: int, rows: int, attention_mask: torch.Tensor | None = None
) -> Probe | None:
    """The same question to a copy in float64; None for code with fixed types, where rounding of the own type decides."""
    try:
        wide = copy.deepcopy(adapted.model).double()
        wide = AdaptedModel(wide, adapted.config, adapted.contract, adapted.completion).eval()
        return Probe(wide, length, rows, attention_mask=attention_mask)
    except Exception as error:  # noqa: BLE001 - whatever foreign code says to another type
        _LOG.debug("%s does not run in float64: %s", adapted.name, error)
        return None


def make_causal(adapted: AdaptedModel) -> AdaptedModel:
    """Return the model with causal attention: same parameters, same names, proven by `sees_future`.

    Tried in this order, until one is proven: the model's own switches (`is_causal`, `causal`, Hugging Face's
    `config.is_decoder`), causal twins of `torch.nn` modules and of `scaled_dot_product_attention`, softmax attention
    written by hand, attention in windows. The new model shares every parameter and buffer with the old one, which stays
    as it is; given one token it gives what the old one gives. Its task is next-token prediction, and
    `contract.reasons["causality"]` says what was changed.

    Raises:
        CallContractError: the attention cannot be made causal from outside, or the result still sees the future.
    """
    if sees_future(adapted).causal:
        return adapted
    if adapted.contract.task == "seq2seq":
        raise CallContractError(
            f"The decoder of {adapted.name} sees later tokens. Its self-attention cannot be told from its encoder's from outside: "
            "pass a causal mask to it in forward (tgt_mask=…, is_causal=True)."
        )
    refusals: list[str] = []
    for route in routes_of(adapted):
        causal = shared_copy(adapted)
        changed = route.apply(causal)
        try:
            problem = _problem(adapted, causal, changed)
        except Exception as error:  # noqa: BLE001 - a switch may break a foreign model; that route is then refused
            problem = f"it no longer runs after {route.name} ({', '.join(changed)}): {error}"
        if problem is None:
            reasons = {**causal.contract.reasons, "causality": f"made causal by {route.name}: {', '.join(changed)}"}
            causal.contract = dataclasses.replace(causal.contract, task="lm", causal=True, reasons=reasons)
            return causal
        refusals.append(problem)
    if refusals:
        raise CallContractError(
            f"{adapted.name} {refusals[-1]}. Where something beside the attention mixes positions, look for pooling, "
            "convolution or a mean over the sequence."
        )
    raise CallContractError(
        f"{adapted.name} sees later tokens, and its attention cannot be made causal from outside: it holds no "
        "nn.MultiheadAttention, nn.TransformerEncoderLayer, scaled_dot_product_attention, softmax over scores (T, T) or switch "
        "such as is_causal. Give its attention a causal mask (is_causal=True), or train it with a masked objective."
    )


def _problem(adapted: AdaptedModel, causal: AdaptedModel, changed: list[str]) -> str | None:
    """Why the result is no causal version of the model, or None."""
    report = sees_future(causal)
    if not report.causal:
        return f"still sees later tokens after its attention ({', '.join(changed)}) was made causal: {report.evidence}"
    if adapted.contract.min_length > 1 or adapted.contract.multiple_of > 1:
        return None  # a model that takes no single token cannot be held against itself
    ids = torch.zeros(1, 3, dtype=torch.long, device=adapted.device)
    ids[:, 1:] = min(1, _vocabulary(adapted) - 1)
    with left_as_it_was(adapted), left_as_it_was(causal):
        alone = adapted(ids[:, :1]).logits.double()
        first = causal(ids).logits[:, :1].double()
    apart = float((first - alone).abs().max())
    allowed = 1e-4 * max(1.0, float(alone.abs().max()))
    if apart > allowed:
        return f"gives other logits for a single token after {', '.join(changed)} was switched (by {apart:.3g})"
    return None
