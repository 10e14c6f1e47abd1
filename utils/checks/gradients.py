"""Does every trainable weight get a usable gradient? Missing, zero, NaN, vanishing, exploding; dead units; modules never called.

Layers are compared with each other, never with an absolute value: the scale of all gradients together is a matter of the
loss and the learning rate.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from utils._random import fixed_random
from utils.adapters.model_adapter import AdaptedModel
from utils.adapters.pictures import states_size
from utils.checks.faults import Fault, judged
from utils.checks.graph_leaves import unregistered_leaves
from utils.checks.inspection import calls, left_unused_by_library, listed, output_head, owners, role, wake, where
from utils.checks.report import TABLE, CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler, larger_pictures, loss_of, run_model
from utils.errors import CheckError

NAME = "gradient flow"
BATCH, LENGTH = 4, 32
SIBLING_RATIO = 1e3
"""Largest ratio of gradients between sibling layers of a stack. Our own measurement on fresh models: pre- and post-norm
with 24 layers 3, ten Hugging Face families at most 4 and Electra 141; 12 sigmoid layers without residuals 1e9."""
MEDIAN_RATIO = 1e-9
"""A matrix whose gradient is this small against the median matrix does not learn: it is below the rounding of float32
(2**-24) by a factor of 60. Queries and keys start small, as their gradients hold each other: our own measurement is 3e-5 for
most fresh Hugging Face models, 8e-8 for a narrow MobileBERT and 5e-8 for MobileViT (5 M parameters, 256 × 256)."""

DEAD_SHARE = 0.9
"""Share of a layer's units without gradient from which on it counts as dead. Of a healthy ReLU layer each unit is silent on
one token in two, so on n tokens 2**-n of them by chance. Our own measurement on at most 128 tokens: 25% in the test zoo."""


@dataclass
class Survey:
    """What one backward pass showed.

    Attributes:
        sizes: root mean square of the gradient by parameter, only of parameters that have one.
        missing: trainable parameters without gradient whose module ran.
        unused: modules that hold parameters, never ran, and got no gradient.
        zero: modules whose gradients are all exactly zero.
        broken: parameters with NaN or infinite gradients.
        frozen: parameters that do not require gradients.
        silent: parameter-free submodules that never ran (information only).
        outside: what the loss would teach and the model's parameters leave out.
        dead: share of units that get no gradient, of the linear layers that have such units.
        cut: whether the logits depend on what is missing.
        idle: parameters that a package's class does not use by its design, and that class.
    """

    sizes: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    zero: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    dead: dict[str, float] = field(default_factory=dict)
    cut: bool = False
    idle: dict[str, str] = field(default_factory=dict)


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """One forward and backward pass in train mode on 4 × 32 random ids, then a look at every parameter's gradient.

    The details hold `max_gradient`, `min_gradient` (root mean squares), `has_vanishing_gradients` and
    `has_exploding_gradients`, and one row per parameter.
    """
    first, woken = _woken_survey(adapted, sampler)
    survey, larger = _with_more_room(adapted, sampler, first)
    survey.cut = bool(survey.missing) and _moves_logits(adapted, larger, survey.missing)
    survey.idle = left_unused_by_library(adapted.model, _without_use(adapted.model, survey))
    matrices = [n for n, p in adapted.model.named_parameters() if p.dim() >= 2 and survey.sizes.get(n, 0.0) > 0]
    stacks = _uneven_stacks(adapted.model, survey.sizes)
    faint = _faint(survey.sizes, matrices)
    faults = [*_breaks(adapted, survey), *_left_out(adapted, survey), *_imbalances(adapted, stacks, faint)]
    details = _details(adapted.model, survey, stacks, faint, woken)
    notes = [_idle_words(survey.idle)] if survey.idle else []
    if woken:
        notes.append(f"{listed(woken)} starts at zero, and was given small noise to see below it.")
    if larger is not sampler:
        words = _shrunk(first, sampler, larger)
        if states_size(adapted.model, adapted.config):
            faults.append(_too_small(adapted, words, larger))
        else:
            notes.append(words)
    return judged(NAME, faults, _fine(survey, details), details, " ".join(notes))


def _fine(survey: Survey, details: dict[str, Any]) -> str:
    """The finding where there is no fault."""
    others = "other " if survey.idle else ""
    frozen = f" {len(survey.frozen)} frozen: {listed(survey.frozen)}." if survey.frozen else ""
    span = f"rms {details['min_gradient']:.1e} to {details['max_gradient']:.1e}"
    return f"All {len(survey.sizes)} {others}trainable parameters get a gradient, {span}.{frozen}"


def _idle_words(idle: dict[str, str]) -> str:
    """What an installed package's class does not use, by its design."""
    return f"{len(idle)} parameters are not used, by the design of {listed(sorted(set(idle.values())))}: {listed(list(idle))}."


def _without_use(model: nn.Module, survey: Survey) -> list[str]:
    """Parameters that move no logit: of modules that never ran, and of modules that ran."""
    of = owners(model)
    return [*(() if survey.cut else survey.missing), *(name for module in survey.unused for name in of[module])]


def _woken_survey(adapted: AdaptedModel, sampler: Sampler) -> tuple[Survey, list[str]]:
    """The gradients after what starts at zero has moved, and the names of what was moved.

    A branch that starts at zero is a known choice: the zeros get a gradient and move, and then what lies below them gets one.
    Zeros that get no gradient themselves would stay for ever, so they are left as they are.
    """
    survey, woken = _survey(adapted, sampler), list[str]()
    while survey.zero and (moved := _movable_zeros(adapted.model, survey)):
        wake(adapted.model, moved)
        woken += moved
        survey = _survey(adapted, sampler)
    return survey, woken


def _with_more_room(adapted: AdaptedModel, sampler: Sampler, survey: Survey) -> tuple[Survey, Sampler]:
    """The survey on the smallest larger pictures that leave no module without gradient; else what was given.

    Strides may leave a single place of a small picture. There a pooling less its input, a normalisation over places and the
    attention over one patch are constant, which says nothing about a healthy architecture.
    """
    for larger in larger_pictures(sampler) if survey.zero else ():
        try:
            found = _survey(adapted, larger)
        except CheckError:  # it takes one size only
            break
        if not found.zero:
            return found, larger
    return survey, sampler


def _side(sampler: Sampler) -> str:
    assert sampler.image_shape is not None
    return f"{sampler.image_shape[1]} × {sampler.image_shape[2]}"


def _shrunk(small: Survey, sampler: Sampler, larger: Sampler) -> str:
    """What larger pictures changed, in words."""
    return (
        f"On pictures of {_side(sampler)} the strides leave too few places for {listed(small.zero)} to learn; on pictures of "
        f"{_side(larger)} every module learns."
    )


def _too_small(adapted: AdaptedModel, finding: str, larger: Sampler) -> Fault:
    """The model's own size of pictures is too small for its strides."""
    return Fault(
        "warn",
        finding,
        f"The config of {adapted.name} states a size that its strides shrink to almost one place; a pooling less its input, a "
        "normalisation over places and the attention over one patch are constant there.",
        f"Train on pictures of {_side(larger)}, or take smaller strides or fewer stages.",
    )


def _movable_zeros(model: nn.Module, survey: Survey) -> list[str]:
    """Parameters that are all zero and get a gradient: the matrices, or else the vectors, apart from biases."""
    zeros = [
        (name, p.dim())
        for name, p in model.named_parameters()
        if survey.sizes.get(name, 0.0) > 0 and not name.endswith("bias") and not p.any()
    ]
    return [name for name, axes in zeros if axes >= 2] or [name for name, _ in zeros]


def _survey(adapted: AdaptedModel, sampler: Sampler) -> Survey:
    adapted.train()
    for parameter in adapted.parameters():
        parameter.grad = None
    with torch.enable_grad(), torch.random.fork_rng(), calls(adapted.model) as called:
        torch.manual_seed(0)
        loss = loss_of(adapted, sampler.inputs(BATCH, sampler.length(LENGTH)))
        outside = unregistered_leaves(adapted.model, loss) if loss.requires_grad else []
        if loss.requires_grad:
            loss.backward()
    survey = Survey(frozen=[n for n, p in adapted.model.named_parameters() if not p.requires_grad], outside=outside)
    for module, parameters in owners(adapted.model).items():
        _look_at(
            module, {n: p for n, p in parameters.items() if p.requires_grad}, module in called or not module, survey
        )
    survey.dead = _dead_units(adapted.model)
    survey.silent = [
        name
        for name, module in adapted.model.named_modules()
        if name
        and name not in called
        and not any(True for _ in module.parameters())
        and not any(True for _ in module.children())
    ]
    return survey


def _look_at(module: str, parameters: dict[str, nn.Parameter], ran: bool, survey: Survey) -> None:
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    if parameters and not gradients and not ran:
        survey.unused.append(module)
        return
    survey.missing += [name for name in parameters if name not in gradients]
    for name, gradient in gradients.items():
        values = gradient.coalesce().values() if gradient.is_sparse else gradient
        size = float(values.double().square().mean().sqrt()) if values.numel() else 0.0
        survey.sizes[name] = size
        if not torch.isfinite(values).all():
            survey.broken.append(name)
    if gradients and all(survey.sizes[name] == 0 for name in gradients):
        survey.zero.append(module)


def _dead_units(model: nn.Module) -> dict[str, float]:
    """Share of the units (output rows) of each linear layer that move nothing; layers without such units are left out.

    A unit behind a ReLU that never fires gets a gradient of exactly zero in its bias and in its whole row of weights.
    """
    shares = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.Linear) or weight is None:
            continue
        if not weight.is_leaf:  # weight_norm makes it in each call
            continue
        if weight.grad is None or weight.grad.is_sparse:
            continue
        share = float((weight.grad.abs().amax(1) == 0).float().mean())
        if share > 0:
            shares[name] = share
    return shares


def _uneven_stacks(model: nn.Module, sizes: dict[str, float]) -> dict[str, tuple[str, str, float]]:
    """Stacks whose weakest and strongest sibling differ too much: role → (weakest, strongest, ratio)."""
    stacks: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and sizes.get(name, 0.0) > 0:
            stacks.setdefault((role(name), tuple(parameter.shape)), []).append(name)
    uneven = {}
    for (kind, _), names in stacks.items():
        weakest, strongest = min(names, key=sizes.__getitem__), max(names, key=sizes.__getitem__)
        ratio = sizes[strongest] / sizes[weakest]
        if ratio > SIBLING_RATIO:
            uneven[kind] = (weakest, strongest, ratio)
    return uneven


def _faint(sizes: dict[str, float], matrices: list[str]) -> list[str]:
    """Matrices whose gradient vanishes against the median one. Biases are left out: a key bias has none by theory."""
    if len(matrices) < 2:
        return []
    median = statistics.median(sizes[name] for name in matrices)
    return [name for name in matrices if sizes[name] < MEDIAN_RATIO * median]


def _breaks(adapted: AdaptedModel, survey: Survey) -> list[Fault]:
    """Faults that need no comparison."""
    name, faults = adapted.name, []
    if survey.broken:
        faults.append(
            Fault(
                "fail",
                f"NaN or infinite gradients in {len(survey.broken)} parameters: {listed(survey.broken)}.",
                f"The backward pass of {name} overflows or divides by zero; a softmax over a fully masked row, a square root or "
                "logarithm of 0, and a division without epsilon do that.",
                "See the check of numerical stability for the first module that is not finite; add an epsilon or mask with a "
                "large negative number instead of -inf.",
            )
        )
    if not survey.sizes:
        what = (
            "every parameter is frozen"
            if not survey.missing and not survey.unused
            else "the loss does not depend on any parameter"
        )
        faults.append(
            Fault(
                "fail",
                f"Nothing in {name} can be trained: {what}.",
                "requires_grad is False everywhere."
                if "frozen" in what
                else "forward detaches the graph (detach, no_grad, .data).",
                "Set requires_grad_(True) on what shall learn."
                if "frozen" in what
                else "Remove detach(), .data or no_grad from forward.",
            )
        )
    elif missing := [parameter for parameter in survey.missing if parameter not in survey.idle]:
        faults.append(_missing(adapted, missing, survey.cut))
    if survey.zero:
        faults.append(
            Fault(
                "fail",
                f"Gradients are exactly zero in {len(survey.zero)} modules: {listed(survey.zero)}.",
                f"What {where(adapted, survey.zero[0])} computes does not move the loss: multiplied by zero, masked away, behind a "
                "dead activation, or the logits ignore it.",
                f"Follow the output of {survey.zero[0] or 'the model'} through forward to the logits.",
            )
        )
    faults += _dead_layers(adapted, survey)
    of = owners(adapted.model)
    if unused := [module for module in survey.unused if not survey.idle.keys() >= of[module].keys()]:
        faults.append(
            Fault(
                "warn",
                f"{len(unused)} modules hold weights and are never called: {listed(unused)}.",
                f"forward of {name} does not use {where(adapted, unused[0])}; its weights stay as they are.",
                f"Call {unused[0]} in forward, or remove it from __init__.",
            )
        )
    return faults


def _missing(adapted: AdaptedModel, names: list[str], cut: bool) -> Fault:
    """Parameters without gradient: cut off where they move the logits, of no use where they do not."""
    first = names[0].rpartition(".")[0]
    if cut:
        return Fault(
            "fail",
            f"{len(names)} parameters get no gradient although their module runs and the logits depend on them: {listed(names)}.",
            f"The path from {where(adapted, first)} to the loss is cut, by detach(), no_grad, .data, argmax or rounding.",
            f"In forward of {adapted.name}, follow the output of {first or 'the model'} to the logits and remove what cuts it.",
        )
    return Fault(
        "warn",
        f"{len(names)} parameters get no gradient although their module runs, and the logits do not depend on them: {listed(names)}.",
        f"What {where(adapted, first)} computes with them is not used, or needs inputs that were not given.",
        f"Use the result in forward of {adapted.name}, or remove these parameters from __init__.",
    )


def _moves_logits(adapted: AdaptedModel, sampler: Sampler, names: list[str]) -> bool:
    """Whether noise on these parameters moves a logit. They are given back at the end of the check."""
    adapted.eval()
    inputs = sampler.inputs(BATCH, sampler.length(LENGTH))
    with torch.no_grad(), fixed_random(0):
        before = run_model(adapted, inputs).logits.clone()
        for name in names:
            parameter = adapted.model.get_parameter(name)
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).to(parameter)
            parameter.add_(noise * max(float(parameter.float().square().mean().sqrt()), 0.1))
    with torch.no_grad(), fixed_random(0):
        return not torch.equal(before.nan_to_num(), run_model(adapted, inputs).logits.nan_to_num())


def _left_out(adapted: AdaptedModel, survey: Survey) -> list[Fault]:
    """What could learn and does not: tensors that are no parameters, and a frozen head under layers that train."""
    faults = []
    if survey.outside:
        name = survey.outside[0]
        faults.append(
            Fault(
                "fail",
                f"{len(survey.outside)} tensors that the loss would teach are no parameters of the model: {listed(survey.outside)}.",
                "An optimizer moves model.parameters() and a checkpoint keeps state_dict(); neither holds them, because they are "
                "plain tensors, lie in a plain list or dict, or belong to a layer that is made anew in every call.",
                f"Register {name} in __init__: nn.Parameter for a tensor, nn.ModuleList or nn.ParameterList for a list.",
            )
        )
    head = output_head(adapted)
    if head is not None and head[0] in survey.frozen and _mostly_trained(adapted.model):
        faults.append(
            Fault(
                "warn",
                f"The output head {head[0]} is frozen, while the layers below it learn.",
                f"{where(adapted, head[0].rpartition('.')[0])} has requires_grad=False, so the scores stay where they started.",
                f"Remove requires_grad_(False) from {head[0]}; freeze most of the model where only a part of it shall learn.",
            )
        )
    return faults


def _mostly_trained(model: nn.Module) -> bool:
    """Whether more matrices learn than are frozen; adapters on a frozen model are the other way round."""
    matrices = [p.requires_grad for p in model.parameters() if p.dim() >= 2]
    return 2 * sum(matrices) > len(matrices)


def _dead_layers(adapted: AdaptedModel, survey: Survey) -> list[Fault]:
    """Layers that are dead but for a few units; wholly dead ones are among the modules with zero gradients."""
    dead = {name: share for name, share in survey.dead.items() if share >= DEAD_SHARE and name not in survey.zero}
    if not dead:
        return []
    name, share = max(dead.items(), key=lambda entry: entry[1])
    return [
        Fault(
            "fail",
            f"Dead units in {len(dead)} layers: {listed(list(dead))}; {share:.0%} of {name} moves nothing.",
            f"The units of {where(adapted, name)} lie below zero for every token, so the ReLU behind it passes neither value nor "
            "gradient.",
            f"Initialise {name} again (bias 0, nn.init.kaiming_normal_), normalise what goes into it, or use GELU.",
        )
    ]


def _imbalances(adapted: AdaptedModel, stacks: dict[str, tuple[str, str, float]], faint: list[str]) -> list[Fault]:
    faults = []
    if stacks:
        weak, strong, ratio = max(stacks.values(), key=lambda entry: entry[2])
        kind = "vanish towards" if _comes_before(adapted.model, weak, strong) else "grow towards"
        faults.append(
            Fault(
                "fail",
                f"Gradients {kind} the input: {weak} gets {ratio:.1e} times less than its sibling {strong}.",
                f"The signal is scaled by a constant factor per layer between {where(adapted, weak.rpartition('.')[0])} and "
                f"{strong.rpartition('.')[0]}: no residual connection, no normalisation, or a saturating activation.",
                "Add residual connections and a LayerNorm before each sublayer, or use GELU in place of sigmoid/tanh.",
            )
        )
    if faint:
        faults.append(
            Fault(
                "warn",
                f"Gradients vanish in {listed(faint)}: below {MEDIAN_RATIO:.0e} of the median matrix.",
                f"{where(adapted, faint[0].rpartition('.')[0])} hardly moves the loss: saturated, scaled down, or almost masked.",
                f"Look at what follows {faint[0].rpartition('.')[0]} in forward: scale factors, saturating activations, masks.",
            )
        )
    return faults


def _comes_before(model: nn.Module, first: str, second: str) -> bool:
    names = [name for name, _ in model.named_parameters()]
    return names.index(first) < names.index(second)


def _details(
    model: nn.Module, survey: Survey, stacks: dict[str, tuple[str, str, float]], faint: list[str], woken: list[str]
) -> dict[str, Any]:
    weak_first = [_comes_before(model, weak, strong) for weak, strong, _ in stacks.values()]
    rows = [
        {"parameter": name, "shape": str(tuple(p.shape)), "gradient rms": survey.sizes.get(name)}
        for name, p in model.named_parameters()
    ]
    return {
        TABLE: rows,
        "max_gradient": max(survey.sizes.values(), default=0.0),
        "min_gradient": min((size for size in survey.sizes.values() if size > 0), default=0.0),
        "has_vanishing_gradients": bool(survey.zero or faint or any(weak_first)),
        "has_exploding_gradients": bool(survey.broken) or not all(weak_first),
        "missing": survey.missing,
        "unused_modules": survey.unused,
        "zero_modules": survey.zero,
        "nan_parameters": survey.broken,
        "frozen": survey.frozen,
        "outside_parameters": survey.outside,
        "never_called_without_parameters": survey.silent,
        "started_at_zero": woken,
        "unused_by_design": list(survey.idle),
        "dead_units": survey.dead,
    }
