"""Whether a model sees the future, and how it can be kept from it.

Knows how to ask a model and how to change its attention; which objective follows from the answer is for `training` to say.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch

from utils.adapters.attention import causal_twins, use_causal_twins
from utils.adapters.model_adapter import AdaptedModel
from utils.adapters.probing import left_as_it_was
from utils.errors import CallContractError

PROBE_SEED = 0
PROBE_LENGTH = 12


@dataclass(frozen=True)
class CausalityReport:
    """Whether a later token moves an earlier logit.

    Attributes:
        causal: no change of a token moved a logit before it.
        evidence: what was done and seen, in words.
        leak: largest change of an earlier logit, as a difference of scores; 0 for a causal model.
        changed_at: position of the token whose change moved an earlier logit most; None for a causal model.
        made_causal: names of the modules whose attention was made causal.
    """

    causal: bool
    evidence: str
    leak: float = 0.0
    changed_at: int | None = None
    made_causal: tuple[str, ...] = field(default=())


def sees_future(adapted: AdaptedModel) -> CausalityReport:
    """Change single tokens of a random batch and compare every earlier logit, in eval mode, with a fixed seed.

    The model is left as it was. Differences up to 1e-6 of the largest logit count as rounding (kernels may sum in another
    order); a NaN counts as a difference.

    Returns:
        The report; `causal` is True where no earlier logit moved.

    Raises:
        CallContractError: the model gives one row of scores per sequence, so the question has no meaning.
    """
    contract = adapted.contract
    if contract.task != "lm":
        raise CallContractError(
            f"{adapted.name} gives one row of scores per sequence: causality asks about scores per position."
        )
    length = min(PROBE_LENGTH, contract.max_length or PROBE_LENGTH)
    rows = contract.vocab_size or contract.output_size or 2
    if length < 2 or rows < 2:
        return CausalityReport(True, f"with {length} positions and {rows} ids there is no future to see")
    generator = torch.Generator().manual_seed(PROBE_SEED)
    ids = torch.randint(rows, (2, length), generator=generator).to(adapted.device)
    positions = sorted({1, length // 2, length - 1})
    leaks: dict[int, float] = {}
    with left_as_it_was(adapted):
        before = adapted(ids).logits.float()
        scale = max(1.0, float(before.nan_to_num().abs().max()))
        for position in positions:
            changed = ids.clone()
            changed[:, position] = (
                (changed[:, position] + 1 + rows // 2) % rows if rows > 2 else 1 - changed[:, position]
            )
            moved = (adapted(changed).logits.float() - before)[:, :position].abs()
            leaks[position] = float(moved.nan_to_num(nan=float("inf")).max())
    worst = max(leaks, key=lambda position: leaks[position])
    if leaks[worst] <= 1e-6 * scale:
        return CausalityReport(True, f"changing the token at positions {positions} of {length} moved no earlier logit")
    return CausalityReport(
        False,
        f"changing the token at position {worst} moved an earlier logit by {leaks[worst]:.3g}",
        leaks[worst],
        worst,
    )


def make_causal(adapted: AdaptedModel) -> AdaptedModel:
    """Return the model with causal attention: same parameters, same names, proven by `sees_future`.

    The new model shares every parameter and buffer with the old one, which stays as it is.

    Raises:
        CallContractError: the attention has no causal twin, or the result still sees the future.
    """
    if sees_future(adapted).causal:
        return adapted
    names = causal_twins(adapted)
    if not names:
        raise CallContractError(
            f"{adapted.name} sees later tokens, and its attention cannot be made causal from outside: it holds no "
            "nn.MultiheadAttention or nn.TransformerEncoderLayer. Give its attention a causal mask (is_causal=True), or train "
            "it with a masked objective."
        )
    causal = copy.deepcopy(adapted, _sharing(adapted))
    use_causal_twins(causal, names)
    report = sees_future(causal)
    if not report.causal:
        raise CallContractError(
            f"{adapted.name} still sees later tokens after its attention ({', '.join(names)}) was made causal: "
            f"{report.evidence}. Something else mixes positions; look for pooling, convolution or a mean over the sequence."
        )
    return causal


def _sharing(adapted: AdaptedModel) -> dict[int, object]:
    """A memo for `deepcopy` under which modules are copied and their tensors shared."""
    tensors = [*adapted.parameters(), *adapted.buffers()]
    return {id(tensor): tensor for tensor in tensors}
