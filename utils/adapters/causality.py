"""Whether a model sees the future, and how it can be kept from it.

Knows how to ask a model; the ways to change its attention lie in `causal_routes`, and which objective follows from the
answer is for `training` to say.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from utils.adapters.attention_calls import shared_copy
from utils.adapters.causal_routes import causal_modules, routes_of
from utils.adapters.model_adapter import AdaptedModel
from utils.adapters.probing import left_as_it_was
from utils.errors import CallContractError

_LOG = logging.getLogger(__name__)

PROBE_SEED = 0
SHORT_LENGTHS = (2, 3, 12)
"""Lengths at which every position is asked."""

LONGEST = 256
"""Longest sequence that is asked, at a few positions; the model's own limit where it is shorter."""

MOST_WORK = 1e11
"""Multiplications that one length may cost, by the count of parameters; larger models are asked at fewer places."""

LARGE = 1e8
"""Multiplications per token from which on a model is asked at a few positions of two lengths only."""

DOUBTFUL = 1e-3
"""Share of the largest logit below which a movement may be rounding, so that the model is asked again in float64."""

ROUNDING = {torch.float64: 1e-10, torch.float32: 2e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Share of the largest logit up to which a movement counts as rounding: kernels and Fourier transforms sum in an order
that depends on their input. Measured for float32 at up to 4e-7."""

Run = Callable[[torch.Tensor], torch.Tensor]


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
    """

    causal: bool
    evidence: str
    leak: float = 0.0
    changed_at: int | None = None
    made_causal: tuple[str, ...] = field(default=())
    moved_at: int | None = None
    length: int | None = None


@dataclass(frozen=True)
class _Leak:
    length: int
    changed_at: int
    moved_at: int
    size: float
    scale: float
    single: bool

    def words(self) -> str:
        what = f"token at position {self.changed_at}" if self.single else f"tokens from position {self.changed_at} on"
        return (
            f"changing the {what} of {self.length} moved an earlier logit by {self.size:.3g} "
            f"(at position {self.moved_at}; largest logit {self.scale:.3g})"
        )


def sees_future(adapted: AdaptedModel) -> CausalityReport:
    """Change later tokens of a random sequence and compare every earlier logit, in eval mode, with a fixed seed.

    At lengths 2, 3 and 12 everything from each position on is changed in turn, which no leak between two positions
    escapes; at the length limit (at most 256) the same is done at 8 positions. Large models are asked at lengths 12 and
    the longest that is affordable, at a few positions; the report names the lengths. All calls of one length have the same
    shapes, so a causal model repeats its earlier logits nearly to the bit. What moves them by less than a thousandth of
    the largest logit is asked again in float64, where rounding shrinks and a leak does not. The model is left as it was.

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
    tried: list[int] = []
    noise = 0.0
    refused: Exception | None = None
    with left_as_it_was(adapted):
        for length in lengths:
            try:
                leak, varied = _leak_at(adapted, length, rows)
            except Exception as error:  # noqa: BLE001 - a model that takes only some lengths is asked at those
                refused = error
                continue
            if leak is not None:
                return CausalityReport(
                    False, leak.words(), leak.size, leak.changed_at, made, leak.moved_at, leak.length
                )
            tried.append(length)
            noise = max(noise, varied)
    if not tried:
        raise CallContractError(
            f"{adapted.name} could not be called with sequences of {', '.join(map(str, lengths))} tokens: {refused}"
        ) from refused
    words = f"changing later tokens moved no earlier logit, at lengths {', '.join(map(str, tried))}"
    if noise > DOUBTFUL:
        words += f"; its answers to one question differ by {noise:.1e} of the largest logit, which could hide a leak"
    return CausalityReport(True, words, made_causal=made, length=tried[-1])


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
    work = 2.0 * adapted.num_parameters()
    while longest > SHORT_LENGTHS[-1] and work * longest * 7 > MOST_WORK:
        longest //= 2
    short = SHORT_LENGTHS if work < LARGE else SHORT_LENGTHS[-1:]
    return sorted({length for length in (*short, longest) if 2 <= length <= longest})


def _cuts(adapted: AdaptedModel, length: int) -> list[int]:
    """Positions from which on tokens are changed: all in a short sequence, a spread in a long one."""
    spread = {1, 2, length // 4, length // 3, length // 2, 2 * length // 3, 3 * length // 4, length - 1}
    if 2.0 * adapted.num_parameters() * length * 12 > MOST_WORK:
        spread = {1, length // 2, length - 1}
    chosen = range(1, length) if length <= SHORT_LENGTHS[-1] and 2.0 * adapted.num_parameters() < LARGE else spread
    return sorted(position for position in chosen if 1 <= position < length)


def _leak_at(adapted: AdaptedModel, length: int, rows: int) -> tuple[_Leak | None, float]:
    """The leak at one length, or None, and the noise of the answers; doubtful cases are decided in float64."""
    probe = _Probe(adapted, length, rows)
    found, share, limit = probe.look(), probe.share, probe.tolerance
    half = probe.dtype in (torch.float16, torch.bfloat16)
    if (share == 0 or share > max(DOUBTFUL, limit)) and not half:
        return found, probe.noise
    wide = _in_float64(adapted, length, rows)
    if wide is not None:
        found, share, limit = wide.look(), wide.share, wide.tolerance
    return (found if share > limit else None), probe.noise


def _in_float64(adapted: AdaptedModel, length: int, rows: int) -> _Probe | None:
    """The same question to a copy in float64; None for code with fixed types, where rounding of the own type decides."""
    try:
        wide = copy.deepcopy(adapted.model).double()
        return _Probe(AdaptedModel(wide, adapted.config, adapted.contract, adapted.completion).eval(), length, rows)
    except Exception as error:  # noqa: BLE001 - whatever foreign code says to another type
        _LOG.debug("%s does not run in float64: %s", adapted.name, error)
        return None


class _Narrow(TorchFunctionMode):
    """Notes the narrowest floating type that took part."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype = torch.float64

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            if isinstance(value, torch.Tensor):
                dtype = torch.float32 if value.dtype == torch.complex64 else value.dtype
                if dtype in ROUNDING and ROUNDING[dtype] > ROUNDING[self.dtype]:
                    self.dtype = dtype
        return function(*args, **(kwargs or {}))


class _Probe:
    """One model at one length.

    Attributes:
        dtype: narrowest floating type that took part.
        share: largest movement that was found, as a share of the largest logit.
        noise: share by which the answers to the same question differ; 0 for nearly every model.
        tolerance: share up to which a movement is rounding.
    """

    def __init__(self, adapted: AdaptedModel, length: int, rows: int) -> None:
        self.adapted, self.length, self.rows = adapted, length, rows
        generator = torch.Generator().manual_seed(PROBE_SEED + length)
        self.ids = torch.randint(rows, (1 if adapted.num_parameters() > 1e7 else 2, length), generator=generator)
        self.ids = self.ids.to(adapted.device)
        with _Narrow() as narrow:  # a run of its own: torch.nn takes other ways while a mode watches
            self.logits(self.ids)
        self.dtype = narrow.dtype
        self.before = self.logits(self.ids)
        self.scale = max(1e-30, float(self.before.nan_to_num(0.0, 0.0, 0.0).abs().max()))
        self.share = 0.0
        repeated = float(self.moved(self.ids).max()) / self.scale
        self.noise = repeated if math.isfinite(repeated) else 0.0  # a NaN is no noise
        self.tolerance = max(ROUNDING[self.dtype], 4 * self.noise)

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, T, V), with the same draws of dropout each time."""
        torch.manual_seed(PROBE_SEED)
        if self.adapted.contract.task != "seq2seq":
            return self.adapted(ids).logits.detach().double()
        source = self.ids[:, : max(2, self.length // 2)]
        return self.adapted(source, decoder_input_ids=ids).logits.detach().double()

    def moved(self, changed: torch.Tensor) -> torch.Tensor:
        """How far the logits of each position (T,) moved; a NaN, before or after, has moved endlessly far."""
        after = self.logits(changed)
        same = after == self.before  # infinities of masked ids
        distance = torch.where(same, 0.0, (after - self.before).abs()).nan_to_num(nan=float("inf"))
        return distance.amax((0, 2))[: self.length]

    def look(self) -> _Leak | None:
        """Change everything from each cut on; the largest movement before a cut, told by the smallest change."""
        worst: tuple[float, int, int] | None = None
        last = self.length - 1
        changes = [(cut, self._others()) for cut in _cuts(self.adapted, self.length)]
        for cut, others in [*changes, (last, torch.zeros_like(self.ids))]:
            changed = torch.cat([self.ids[:, :cut], others[:, cut:]], 1)
            size, place = self.moved(changed)[:cut].max(0)
            if worst is None or float(size) > worst[0]:
                worst = float(size), cut, int(place)
        if worst is None or worst[0] == 0:
            return None
        self.share = worst[0] / self.scale
        return self._smallest(*worst)

    def _others(self) -> torch.Tensor:
        """Another id at every position."""
        return (self.ids + 1 + (self.rows - 1) // 2) % self.rows if self.rows > 2 else 1 - self.ids

    def _smallest(self, size: float, cut: int, place: int) -> _Leak:
        """The same leak by changing one token only, where that is enough."""
        best = _Leak(self.length, cut, place, size, self.scale, cut == self.length - 1)
        if best.single:
            return best
        positions = range(1, self.length) if self.length <= SHORT_LENGTHS[-1] else _cuts(self.adapted, self.length)
        others, single = self._others(), None
        for position in positions:
            changed = self.ids.clone()
            changed[:, position] = others[:, position]
            moved, at = self.moved(changed)[:position].max(0)
            if float(moved) > max(size / 100, single.size if single else 0.0):
                single = _Leak(self.length, position, int(at), float(moved), self.scale, True)
        return single or best


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
            f"{adapted.name} {refusals[-1]}. Something else mixes positions; look for pooling, convolution or a mean over the "
            "sequence."
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
    ids = torch.zeros(1, 3, dtype=torch.long, device=adapted.device)
    ids[:, 1:] = min(1, _vocabulary(adapted) - 1)
    with left_as_it_was(adapted), left_as_it_was(causal):
        try:
            alone = adapted(ids[:, :1]).logits.double()
        except Exception:  # noqa: BLE001 - a model that takes no single token cannot be held against itself
            return None
        first = causal(ids).logits[:, :1].double()
    apart = float((first - alone).abs().max())
    allowed = 1e-4 * max(1.0, float(alone.abs().max()))
    if apart > allowed:
        return f"gives other logits for a single token after {', '.join(changed)} was switched (by {apart:.3g})"
    return None
