"""The recurrence of selective state spaces (Mamba) in a fixed number of steps, for graphs whose length is free.

Knows the maths and the arguments of transformers' scan. Leaves putting it in that one's place to `tracing`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

DOUBLINGS_WITHOUT_LIMIT = 20
"""Doublings for a model that tells no longest length: right up to 2²⁰ = 1 048 576 tokens."""


def doublings_for(max_length: int | None) -> int:
    """How often the reach of `prefix_scan` must double to span a sequence of `max_length` tokens; None: no limit is known.

    Example:
        >>> doublings_for(48), doublings_for(64), doublings_for(1)
        (6, 6, 0)
    """
    return DOUBLINGS_WITHOUT_LIMIT if max_length is None else (max_length - 1).bit_length()  # ceil(log2)


def prefix_scan(decays: torch.Tensor, increments: torch.Tensor, doublings: int) -> torch.Tensor:
    """All states of hₜ = aₜ · hₜ₋₁ + bₜ from h₋₁ = 0, without a loop over t.

    Every step joins each place with the one 1, 2, 4, … places before: the inclusive scan of Hillis and Steele ("Data
    parallel algorithms", CACM 29(12), 1986) over the pairs (a, b), which join as (a₁, b₁), (a₂, b₂) → (a₁a₂, a₂b₁ + b₂).
    Nothing is divided, so decays that fall to 0 cost no accuracy. The work is `doublings` × T, whatever T is.

    Args:
        decays: a, (B, D, T, N).
        increments: b, (B, D, T, N).
        doublings: steps; the states are right as long as T ≤ 2 ** doublings (beyond, the earliest tokens are forgotten).

    Returns:
        h, (B, D, T, N).
    """
    places = torch.arange(increments.shape[2], device=increments.device)  # (T,)
    # Nothing comes before place 0. With a₀ = 0 every product that reaches it is 0, so that a place with nothing that far
    # before it may read place 0 instead, and keeps its state.
    products = torch.where(places[:, None] > 0, decays, torch.zeros_like(decays))
    states = increments
    for doubling in range(doublings):
        before = (places - 2**doubling).clamp(min=0)
        states = states + products * states.index_select(2, before)
        products = products * products.index_select(2, before)
    return states


def selective_scan(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    use_mambapy: bool = False,
    use_associative_scan: bool = False,
    *,
    doublings: int,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Transformers' `mamba_selective_scan` (`models/mamba/modeling_mamba.py`), its loop over the length by `prefix_scan`.

    Discretization and types are that function's; `B`, `C` and the capital letters are those of the paper (Gu and Dao,
    "Mamba", 2023, algorithm 2). An argument that this does not know is refused by Python.

    Args:
        hidden_states: (B, D, T).
        dt: step sizes, (B, D, T).
        A: decay rates, (D, N).
        B: input projection, (B, N, T).
        C: output projection, (B, N, T).
        D: weights of the skip connection, (D,).
        z: gate, (B, D, T).
        delta_bias: added to `dt`, (D,).
        delta_softplus: whether `dt` goes through a softplus.
        return_last_state: whether the state after the last token, (B, D, N), is returned as well.
        use_mambapy: chooses between other ways to the same numbers, and nothing here.
        use_associative_scan: likewise.
        doublings: see `prefix_scan`.

    Returns:
        The outputs (B, D, T), or they and the last state.
    """
    if delta_bias is not None:
        dt = dt + delta_bias.to(dt.dtype)[..., None]
    if delta_softplus:
        dt = F.softplus(dt)
    decays = torch.exp(A[None, :, None, :] * dt[:, :, :, None])  # (B, D, T, N)
    projected = dt[:, :, :, None] * B.transpose(1, 2)[:, None].float()  # (B, D, T, N)
    states = prefix_scan(decays, projected * hidden_states[:, :, :, None].float(), doublings)
    read = torch.matmul(states.transpose(1, 2).to(hidden_states.dtype), C.transpose(1, 2).unsqueeze(-1))  # (B, T, D, 1)
    outputs = read.squeeze(-1).transpose(1, 2)  # (B, D, T)
    if D is not None:
        outputs = outputs + hidden_states * D[None, :, None]
    if z is not None:
        outputs = outputs * F.silu(z)
    return (outputs, states[:, :, -1]) if return_last_state else outputs
