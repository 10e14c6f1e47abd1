"""Does a saved model come back? What was saved, loaded over other weights, must give the same logits to the bit.

Where tensors hide that no state_dict holds is known to `hidden_tensors`.
"""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch
from torch import nn

from utils._random import fixed_random
from utils.adapters.model_adapter import AdaptedModel
from utils.checks.faults import Fault, judged
from utils.checks.hidden_tensors import Hidden, hidden_tensors
from utils.checks.inspection import listed
from utils.checks.other_device import device_clash
from utils.checks.report import CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler, run_model
from utils.errors import CheckError

NAME = "save and load"
LENGTH = 8
MOST_HIDDEN = 32
"""Hidden tensors that are looked at one by one; each costs a pass."""


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Save the state_dict to memory, spoil every weight, load it back with strict=True, and compare the logits.

    Then each tensor outside of the state_dict is spoiled by itself: one that moves the logits is lost in another process
    (random or trained values), or left behind by `.to(device)` (a constant kept as a plain attribute).
    """
    adapted.eval()
    inputs = sampler.inputs(1, sampler.length(LENGTH))
    before = _logits(adapted, inputs)
    if not torch.equal(before, _logits(adapted, inputs)):
        return CheckResult(NAME, "skip", "The same input gives different logits, so nothing can be compared.")
    tied = _tied(adapted.model)
    faults, saved_bytes = _saved_and_loaded(adapted, inputs, before)
    faults += [*_copies(adapted, tied), *_shared_storage(adapted.model)]
    hidden = [one for one in hidden_tensors(adapted.model) if not (one.kind == "buffer" and one.computed)]
    used = _used(adapted, inputs, hidden)
    place = device_clash(adapted, inputs)
    faults += [*_lost(adapted, used), *(() if place is None else _one_device_only(adapted, inputs, used, place))]
    measured: dict[str, Any] = {
        "bytes": saved_bytes,
        "tied": tied,
        "outside_of_state_dict": [one.name for one in used],
    }
    ties = f" Tied weights stay tied: {listed([' = '.join(names) for names in tied])}." if tied else ""
    fine = f"{saved_bytes / 1e6:.1f} MB of weights, saved and loaded with strict=True, give the same logits to the bit.{ties}"
    return judged(NAME, faults, fine, measured)


def _logits(adapted: AdaptedModel, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), fixed_random(0):
        return run_model(adapted, inputs).logits.clone().nan_to_num()


def _tied(model: nn.Module) -> list[list[str]]:
    """Names of parameters that are one and the same."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _saved_and_loaded(adapted: AdaptedModel, inputs: torch.Tensor, before: torch.Tensor) -> tuple[list[Fault], int]:
    """Faults of the way through a file, and the file's size."""
    model, file = adapted.model, io.BytesIO()
    try:
        torch.save(model.state_dict(), file)
        size = file.tell()
        file.seek(0)
        state = torch.load(file, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError, RuntimeError) as error:
        return [_not_plain(adapted, error)], 0
    file.close()
    for tensor in [*model.parameters(), *(buffer for name, buffer in model.named_buffers() if name in state)]:
        _spoil(tensor)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        words = " ".join(str(error).split())[:300]
        return [
            Fault(
                "fail",
                f"The state_dict of {adapted.name} does not load back into it: {words}",
                "state_dict() and load_state_dict() of the model, or of one of its modules, do not agree on the names.",
                "Remove the overridden state_dict, _save_to_state_dict or load_state_dict, or let both change the names alike.",
            )
        ], size
    if torch.equal(before, _logits(adapted, inputs)):
        return [], size
    missing = [name for name, _ in model.named_parameters() if name not in state]
    return [
        Fault(
            "fail",
            "The loaded model gives other logits than the saved one.",
            f"Loading does not restore {listed(missing)}, which the state_dict leaves out."
            if missing
            else f"Something in {adapted.name} that the logits depend on is changed by saving or loading (a hook, a rounding).",
            "Let state_dict() hold every parameter and every buffer that training changes, and load them unchanged.",
        )
    ], size


def _not_plain(adapted: AdaptedModel, error: Exception) -> Fault:
    words = " ".join(str(error).split())[:200]
    return Fault(
        "fail",
        f"The state_dict of {adapted.name} cannot be saved and loaded with weights_only=True: {words}",
        "It holds objects that are neither tensors nor plain types (get_extra_state, or an overridden state_dict).",
        "Return tensors, numbers, text, lists and dicts only.",
    )


def _spoil(tensor: torch.Tensor) -> None:
    """Other values of the same kind, in place. Call within `preserved`."""
    with torch.no_grad():
        if tensor.dtype == torch.bool:
            tensor.logical_not_()
        elif tensor.is_floating_point() or tensor.is_complex():
            tensor.data.mul_(-0.5).add_(0.25)
        else:
            tensor.data.add_(1)


def _copies(adapted: AdaptedModel, tied: list[list[str]]) -> list[Fault]:
    """Whether `copy.deepcopy` works and keeps ties; the tensors themselves are not copied for that."""
    try:
        copied = _skeleton(adapted.model)
    except Exception as error:  # noqa: BLE001 - whatever a stranger's __deepcopy__ or a tensor with a history raises
        words = " ".join(str(error).split())[:200]
        return [
            Fault(
                "warn",
                f"{adapted.name} cannot be copied: {type(error).__name__}: {words}",
                "An attribute holds a tensor that was computed from weights, or an object that refuses to be copied.",
                "Keep no results of forward on self, or detach them; averaging of weights and export copy the model.",
            )
        ]
    kept = _tied(copied)
    if kept == tied:
        return []
    lost = [" = ".join(names) for names in tied if names not in kept]
    return [
        Fault(
            "fail",
            f"A copy loses the tie of {listed(lost)}.",
            f"__deepcopy__ of {adapted.name} makes a parameter of its own for each name.",
            "Remove it, or tie the weights again in the copy.",
        )
    ]


def _skeleton(model: nn.Module) -> nn.Module:
    """A copy of the modules over the very same parameters and buffers."""
    memo = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, memo)


def _shared_storage(model: nn.Module) -> list[Fault]:
    """Two parameters over one piece of memory: they look tied until the model moves to another device."""
    owners: dict[tuple[torch.device, int], str] = {}
    pairs = []
    for name, parameter in model.named_parameters():
        if parameter.numel() == 0 or parameter.device.type == "meta":
            continue
        place = (parameter.device, parameter.data_ptr())
        if place in owners:
            pairs.append((owners[place], name))
        owners[place] = name
    if not pairs:
        return []
    first, second = pairs[0]
    return [
        Fault(
            "warn",
            f"{' and '.join(pairs[0])} share their memory and are two parameters.",
            f"{second} was given the values of {first} (.data), not the parameter: an optimizer updates them twice, and "
            ".to(device) parts them.",
            f"Tie the parameters: self.{second} = self.{first}.",
        )
    ]


def _used(adapted: AdaptedModel, inputs: torch.Tensor, hidden: list[Hidden]) -> list[Hidden]:
    """The hidden tensors that the logits depend on."""
    reference = _logits(adapted, inputs)
    if not hidden or not _moves(adapted, inputs, reference, hidden):
        return []
    return [one for one in hidden[:MOST_HIDDEN] if _moves(adapted, inputs, reference, [one])]


def _moves(adapted: AdaptedModel, inputs: torch.Tensor, reference: torch.Tensor, hidden: list[Hidden]) -> bool:
    """Whether the logits change, or cannot be computed, with these tensors spoiled."""
    kept = [one.tensor.detach().clone() for one in hidden]
    for one in hidden:
        _spoil(one.tensor)
    try:
        return not torch.equal(reference, _logits(adapted, inputs))
    except CheckError:  # an index that leads nowhere was read
        return True
    finally:
        for one, values in zip(hidden, kept, strict=True):
            one.tensor.data.copy_(values)


def _lost(adapted: AdaptedModel, used: list[Hidden]) -> list[Fault]:
    """Tensors that another process cannot restore."""
    lost = [one for one in used if one.learned or not one.computed]
    if not lost:
        return []
    first = lost[0]
    finding = (
        f"{len(lost)} tensors move the logits and are not in the state_dict: {listed([one.name for one in lost])}."
    )
    if first.kind == "module":
        return [
            Fault(
                "fail",
                finding,
                f"{first.owner} is a plain container, and modules in it are not registered: they are not saved, not trained and "
                "not moved.",
                f"Write self.{first.owner} = nn.ModuleList([…]) (or nn.ModuleDict).",
            )
        ]
    if first.kind == "buffer":
        why = f"{first.name} is registered with persistent=False and holds values that no formula gives."
        fix = f"Register {first.name} with persistent=True."
    elif first.learned:
        why = f"{first.name} is trainable and a plain tensor: no optimizer sees it, and it is not saved."
        fix = f"Write self.{first.owner} = nn.Parameter(…)."
    else:
        why = f"{first.name} is a plain attribute with values that no formula gives; a new process draws others."
        fix = f'Write self.register_buffer("{first.owner.rpartition(".")[2]}", …).'
    return [Fault("fail", finding, why, fix)]


def _one_device_only(adapted: AdaptedModel, inputs: torch.Tensor, used: list[Hidden], place: str) -> list[Fault]:
    """What stays where it is when the model moves: constants kept as plain attributes, or tensors that forward makes."""
    constants = [one for one in used if one.kind == "attribute" and one.computed]
    if constants:
        first = constants[0]
        return [
            Fault(
                "warn",
                f"{listed([one.name for one in constants])} stays behind when the model moves: .to(device) and .half() do not see it.",
                f"{first.name} is a plain attribute of {adapted.name}, no buffer.",
                f'Write self.register_buffer("{first.owner.rpartition(".")[2]}", …, persistent=False).',
            )
        ]
    return [
        Fault(
            "warn",
            f"The model runs on {inputs.device.type} only: moved to another device, tensors of two devices meet at {place}.",
            f"A tensor there is made without device=, or with a device that is written down, in forward of {adapted.name}.",
            "Make it where its input lies: torch.arange(…, device=input_ids.device), torch.zeros(…, device=x.device).",
        )
    ]
