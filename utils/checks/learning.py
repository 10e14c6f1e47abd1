"""Can the model learn, and which token does each position answer with? A short training on one tiny batch.

Language models learn to count (x, x + 1, x + 2, …). There every token says at which place it stood, so that the answers
tell by how much labels are shifted. The weights are given back by `preserved`; real training is for `training`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.faults import Fault, judged
from utils.checks.own_loss import UNSHIFTED, OwnLoss, own_loss
from utils.checks.report import TABLE, CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler, labels_of, loss_of, run_model

NAME = "learning"
ROWS, LENGTH = 8, 8
"""Few tokens: a step of a large model costs little more than reading its weights."""
MOST_STEPS = 60
"""Our own measurement: all 106 Hugging Face models of the test zoo get to the goal within these."""
SECONDS = 12.0
"""Of this thread, so that other programs do not count: after these no further step begins, and what was reached is judged."""
GOAL = 0.75
"""Share of the loss of the best answer that ignores the input: what is below has read the input."""
RATE, FASTER, SLOWER, FASTEST = 0.05, 1.2, 0.7, 0.3
"""Each step moves every entry of a tensor by this share of the tensor's own size, against the sign of its gradient (signSGD,
Bernstein et al. 2018; relative steps, Shazeer and Stern 2018, section 8): no rate for each width and initialisation, and no
memory for an optimizer's state. The share grows while the loss falls, and shrinks where it rises ("bold driver", Battiti 1989)."""
LEAST_SIZE = 0.02
"""Root mean square that a tensor near zero (a bias) is taken to have: the usual scale of weights."""
FALLING = 0.9
"""A model that is too slow for the goal passes where its loss fell below this share of the first one."""
FALLING_FROZEN = 0.99
"""The same for a model of which parts are frozen (LoRA): what is left may be too little for the goal. Our own measurement:
corrections of rank 4 in the feed-forward of a small GPT get to 0.75 without dropout."""
WEAKEST, STRONGEST = 0.1, 10.0
"""Multiples of the gradient of a mean cross-entropy within which a model's own loss is one. Our own measurement: label
smoothing of 0.1 gives 0.9, a focal loss 1.1; a softmax before the cross-entropy 1 / V, a sum the number of labels."""


@dataclass
class Run:
    """One short training.

    Attributes:
        losses: in nats, one before each step, and the last one.
        goal: the loss to get below.
        out_of_time: whether the clock ended it before the goal.
    """

    losses: list[float] = field(default_factory=list)
    goal: float = math.nan
    out_of_time: bool = False

    @property
    def reached(self) -> bool:
        """Whether the last loss is at the goal; NaN never is."""
        return self.losses[-1] <= self.goal

    @property
    def steps(self) -> int:
        """Steps that were made."""
        return len(self.losses) - 1


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Train on one batch of 8 × 8 tokens (or 8 images) until the loss shows that the input is read.

    For a language model also: does position t read token t, does the model's own loss (where `forward` takes labels) hold
    it against token t + 1, and is that the token that it has learnt to name?
    """
    if not any(p.requires_grad for p in adapted.parameters()):
        return CheckResult(NAME, "skip", f"Every parameter of {adapted.name} is frozen: nothing can learn.")
    inputs = _batch(adapted, sampler)
    counting = adapted.contract.task == "lm" and _scored(adapted, inputs)
    shifts: dict[str, Any] = {}
    faults: list[Fault] = []
    if counting:
        shifts, faults = _shifts(adapted, inputs)
    faults += _probabilities(adapted, inputs)
    run = _train(adapted, inputs)
    faults += _unlearnt(adapted, run)
    if counting and run.reached:
        shifts["answers_by_distance"] = _answers(adapted, inputs)
    measured = {
        "first_loss": run.losses[0],
        "last_loss": run.losses[-1],
        "goal": run.goal,
        "steps": run.steps,
        **shifts,
        TABLE: [{"step": step, "loss": loss} for step, loss in enumerate(run.losses)],
    }
    return judged(NAME, faults, _told(run), measured)


def _told(run: Run) -> str:
    """The losses in words."""
    text = f"The loss on one batch falls from {run.losses[0]:.2f} to {run.losses[-1]:.2f} nats in {run.steps} steps"
    if run.out_of_time:
        return f"{text}; {SECONDS:g} s were over before the goal of {run.goal:.2f}."
    return f"{text} (goal {run.goal:.2f})."


def _unlearnt(adapted: AdaptedModel, run: Run) -> list[Fault]:
    """What is wrong with a training that did not get to its goal."""
    first, last, best = run.losses[0], run.losses[-1], min(run.losses)
    enough = FALLING_FROZEN if _partly_frozen(adapted) else FALLING if run.out_of_time else 0.0
    if run.reached or best < enough * first:
        return []
    words = f"{first:.2f} to {last:.2f} nats in {run.steps} steps, goal {run.goal:.2f}"
    if not math.isfinite(last):
        return [
            Fault(
                "fail",
                f"The loss becomes {last} while one batch is learnt ({words}).",
                f"A value in {adapted.name} overflows as soon as the weights move, or already at the start.",
                "See numerical stability and gradient flow for the first module that is not finite; normalise before it.",
            )
        ]
    if run.out_of_time:
        return [
            Fault(
                "warn",
                f"{SECONDS:g} s were too short to tell whether the model learns: {words}.",
                f"A step of {adapted.name} takes {SECONDS / max(1, run.steps):.1f} s here.",
                "Check a smaller version of the model (fewer layers, the same code), or on a GPU.",
            )
        ]
    how = "rises" if last > first else "does not fall far enough"
    return [
        Fault(
            "fail",
            f"One batch of {ROWS} examples cannot be learnt by heart: the loss {how} ({words}).",
            f"The logits of {adapted.name} do not follow its input, or gradients do not reach the weights: an input that is "
            "overwritten, labels of other positions, a cut graph, an activation that saturates.",
            "See gradient flow and numerical stability; follow the ids through forward to the logits.",
        )
    ]


def _probabilities(adapted: AdaptedModel, inputs: torch.Tensor) -> list[Fault]:
    """A softmax at the end of forward: the loss applies its own once more, and hardly learns."""
    if not _scored(adapted, inputs):
        return []
    adapted.eval()
    with torch.no_grad():
        logits = run_model(adapted, inputs).logits.float()
    sums = logits.sum(-1)
    if logits.shape[-1] < 2 or float(logits.min()) < 0 or not torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
        return []
    return [
        Fault(
            "fail",
            "The model returns probabilities: what it gives for each position is positive and adds up to 1.",
            f"forward of {adapted.name} ends with a softmax, and the loss (cross_entropy) applies its own once more.",
            f"Return the scores themselves from forward of {adapted.name}; apply softmax where probabilities are read.",
        )
    ]


# ---- by how much labels are shifted ----------------------------------------------------------------------------------
def _shifts(adapted: AdaptedModel, inputs: torch.Tensor) -> tuple[dict[str, Any], list[Fault]]:
    """What forward reads and what its own loss asks for, before anything is trained."""
    name = adapted.name
    reads, asks = _reads_itself(adapted, inputs), own_loss(adapted, inputs)
    own = asks.distance if asks is not None and asks.argument == UNSHIFTED else None
    measured = {"reads_current_token": reads, "own_loss_shift": own}
    faults = [] if asks is None else _own_loss_faults(name, asks)
    if reads is False:
        faults.append(
            Fault(
                "fail",
                "Labels are shifted twice: the logits at t never read token t, only earlier ones, and the loss shifts once more.",
                f"forward of {name} shifts by itself: it moves the ids or the logits by one place.",
                f"Remove the shift from forward of {name} (a roll, a start token put in front, ids[:, :-1]): logits[:, t] must "
                "be computed from tokens 0 … t.",
            )
        )
    if own == 2:
        faults.append(
            Fault(
                "fail",
                "Labels are shifted twice: the model's own loss holds position t against token t + 2.",
                f"{name} shifts labels in its loss although they, or the logits, are shifted already.",
                f"Shift in one place of {name}: cross_entropy(logits[:, :-1], labels[:, 1:]).",
            )
        )
    if own == 0 and not type(adapted.model).__module__.startswith(
        "transformers."
    ):  # there, callers shift (BartForCausalLM)
        faults.append(
            Fault(
                "warn",
                "Labels are shifted 0 times: the model's own loss holds position t against token t, which it reads.",
                f"{name} does not shift labels in its loss. Whoever passes the ids as labels teaches it to copy; train() computes "
                "the loss itself, and is not affected.",
                f"Shift in the loss of {name}, cross_entropy(logits[:, :-1], labels[:, 1:]), or call the argument `targets`.",
            )
        )
    return measured, faults


def _own_loss_faults(name: str, asks: OwnLoss) -> list[Fault]:
    """What is wrong with a model's own loss, whatever its labels are: train() makes its own, other trainers take this one."""
    usual = f"Compute it in forward of {name} as cross_entropy of the logits themselves, the mean over the labels, and return it as it is."
    if not asks.trains:
        return [
            Fault(
                "fail",
                "The model's own loss carries no gradient, although its logits do: who calls backward() on it trains nothing.",
                f"{name} detaches its loss (detach, item, no_grad, a new tensor).",
                usual,
            )
        ]
    if asks.strength is None or WEAKEST <= asks.strength <= STRONGEST:
        return []
    if asks.strength < 0:
        return [
            Fault(
                "fail",
                "The model's own loss has the wrong sign: it pushes the labels' scores down.",
                f"{name} returns the log-likelihood of the labels, or a loss that is negated once too often.",
                usual,
            )
        ]
    why = (
        "softmax (or another squashing) before cross_entropy, which takes scores and applies its own"
        if asks.strength < 1
        else "a sum in place of the mean, so that the step grows with the batch"
    )
    return [
        Fault(
            "warn",
            f"The model's own loss has {asks.strength:.2g} times the gradient of a mean cross-entropy.",
            f"The loss in {name} is scaled: {why}.",
            usual,
        )
    ]


def _reads_itself(adapted: AdaptedModel, inputs: torch.Tensor) -> bool | None:
    """Whether the last logits move with the last token; None where they move with no token at all, or are not finite."""
    adapted.eval()
    later, earlier = inputs[:1].repeat(1, 1), inputs[:1].repeat(1, 1)
    for changed, place in ((later, -1), (earlier, -2)):
        others = inputs[inputs != inputs[0, place]]
        if not len(others):
            return None  # one token alone is known
        changed[:, place] = others[-1]
    with torch.no_grad():
        plain, moved, before = (run_model(adapted, ids).logits[0, -1].float() for ids in (inputs[:1], later, earlier))
    if not (torch.isfinite(plain).all() and torch.isfinite(moved).all()):
        return None
    if not torch.allclose(plain, moved, rtol=0, atol=_noise(plain)):
        return True
    return False if not torch.allclose(plain, before, rtol=0, atol=_noise(plain)) else None


def _noise(logits: torch.Tensor) -> float:
    """Differences that rounding in float32 makes."""
    return 1e-6 * float(logits.abs().max())


def _answers(adapted: AdaptedModel, inputs: torch.Tensor) -> dict[str, float]:
    """Share of the positions whose best answer is the token 0, 1 and 2 places ahead, after the training."""
    adapted.eval()
    with torch.no_grad():
        best = run_model(adapted, inputs).logits.argmax(-1)
    length = inputs.shape[1]
    return {
        str(distance): float((best[:, : length - distance] == inputs[:, distance:]).double().mean())
        for distance in range(min(3, length))
    }


# ---- the batch -------------------------------------------------------------------------------------------------------
def _scored(adapted: AdaptedModel, inputs: torch.Tensor) -> bool:
    """Whether the task's own loss fits; see `loss_of`."""
    contract = adapted.contract
    return contract.scores_tokens and contract.output_size != 1 and not (contract.task == "lm" and inputs.shape[1] < 2)


def _batch(adapted: AdaptedModel, sampler: Sampler) -> torch.Tensor:
    """(8, 8) ids that count upwards from random starts, or 8 images."""
    drawn = sampler.inputs(ROWS, sampler.length(LENGTH))
    if not adapted.contract.takes_tokens:
        return drawn
    starts = torch.randperm(max(sampler.vocabulary, ROWS), generator=torch.Generator().manual_seed(0))[:ROWS, None]
    steps = torch.arange(drawn.shape[1])
    return ((starts + steps) % sampler.vocabulary).to(drawn.device)


def _goal(adapted: AdaptedModel, inputs: torch.Tensor, first: float) -> float:
    """Half the loss of the best answer that knows the position only: the entropy over the rows, averaged over positions."""
    if not _scored(adapted, inputs):
        return GOAL * first
    labels = labels_of(adapted, inputs).reshape(inputs.shape[0], -1)
    floors = []
    for column in labels.T:
        shares = torch.unique(column, return_counts=True)[1].double() / len(column)
        floors.append(float(-(shares * shares.log()).sum()))
    floor = sum(floors) / len(floors)
    return GOAL * (floor if floor > 0 else first)


# ---- the training ----------------------------------------------------------------------------------------------------
def _train(adapted: AdaptedModel, inputs: torch.Tensor) -> Run:
    """Steps until the goal is met, the loss is not finite, or the bounds are reached. Changes the weights."""
    adapted.train(not _partly_frozen(adapted) or _needs_training_mode(adapted))
    run, begun, rate = Run(), time.thread_time(), RATE
    with torch.enable_grad():
        for step in range(MOST_STEPS + 1):
            loss = loss_of(adapted, inputs)
            run.losses.append(float(loss.detach()))
            run.goal = _goal(adapted, inputs, run.losses[0]) if step == 0 else run.goal
            run.out_of_time = time.thread_time() - begun > SECONDS and not run.reached
            over = run.reached or run.out_of_time or not math.isfinite(run.losses[-1]) or not loss.requires_grad
            if over or step == MOST_STEPS:
                break
            if step:
                rate = min(rate * FASTER, FASTEST) if run.losses[-1] < run.losses[-2] else rate * SLOWER
            loss.backward()
            del loss  # its graph, before the next one is made
            _move(adapted, rate)
    return run


def _needs_training_mode(adapted: AdaptedModel) -> bool:
    """Whether gradients exist in training mode only, as for recurrent layers on CUDA.

    Elsewhere evaluation mode serves a partly frozen model: dropout would drown the small steps of what is left.
    """
    return adapted.device.type == "cuda" and any(isinstance(m, torch.nn.RNNBase) for m in adapted.modules())


def _partly_frozen(adapted: AdaptedModel) -> bool:
    """Whether somebody holds some of the parameters fixed."""
    return not all(parameter.requires_grad for parameter in adapted.parameters())


def _move(adapted: AdaptedModel, rate: float) -> None:
    """One step of every parameter against the sign of its gradient, which is used up."""
    with torch.no_grad():
        for parameter in adapted.parameters():
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                continue
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            size = float(torch.linalg.vector_norm(parameter)) / math.sqrt(max(1, parameter.numel()))
            parameter.add_(gradient.sgn_(), alpha=-rate * max(size, LEAST_SIZE))
