"""What a model's own losses say: where auxiliary ones lie, which weight they have, and whether its labels are shifted.

Asks through a visit; the call itself is settled in `inference`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import nn

from utils.adapters.contract import CallContract, shifted_right
from utils.adapters.logits import LogitsSelector
from utils.adapters.losses import auxiliary_loss, cross_entropy, next_token_loss
from utils.adapters.model_outputs import find_logits, is_loss_name, losses_in, scalars_in
from utils.adapters.probing import left_as_it_was
from utils.adapters.refusals import REFUSED, unless_refused
from utils.adapters.roles import LABEL_NAMES, Argument

Path = tuple[str | int, ...]


class Visit(Protocol):
    """Whoever asks the model."""

    model: nn.Module
    arguments: dict[str, Argument]

    def ask(self, contract: CallContract, inputs: torch.Tensor, **more: Any) -> Any: ...

    def decoder_ids(self, contract: CallContract, inputs: torch.Tensor) -> torch.Tensor | None: ...


def settle_losses(visit: Visit, contract: CallContract, inputs: torch.Tensor) -> CallContract:
    """Find auxiliary losses, what training mode gives, and whether the model's own loss is shifted."""
    contract = _with_training_mode(visit, contract, inputs)
    if contract.task == "seq2seq":
        return _with_start(visit, contract, inputs)
    return _with_own_loss(visit, contract, inputs) if contract.task == "lm" else contract


def _with_training_mode(visit: Visit, contract: CallContract, inputs: torch.Tensor) -> CallContract:
    """Note losses that the model makes without labels, in either mode, and another place of the logits while it trains."""
    made: dict[Path, torch.Tensor] = {}
    for training in (False, True):
        output, found = _asked_in(visit, contract, inputs, training)
        made = {**found, **made}
        if training:
            contract = _told_by_training(contract, output, inputs, visit)
    if contract.label_name is not None or any(kind == "zeros (B,)" for kind in contract.built.values()):
        return contract
    return replace(contract, auxiliary=tuple((path, 1.0) for path in made))


def _asked_in(
    visit: Visit, contract: CallContract, inputs: torch.Tensor, training: bool
) -> tuple[Any, dict[Path, torch.Tensor]]:
    """One call in a mode, with gradients: what came back, and the losses in it or left behind on modules.

    Nothing came back where the model refuses: batch norm does so with some probes in training mode.
    """
    with left_as_it_was(visit.model), torch.enable_grad():
        for module in visit.model.modules():
            if module.training != training:
                module.training = training
        output = unless_refused(
            lambda: visit.ask(contract, inputs, decoder=visit.decoder_ids(contract, inputs)), REFUSED
        )
        if output is REFUSED:  # then nothing more is known, and eval mode has told what matters
            return None, {}
        given = {path: tensor for path, tensor in losses_in(output).items() if float(tensor.detach()) != 0.0}
        return output, given or dict(_left_behind(visit.model))


def _left_behind(model: nn.Module) -> Iterator[tuple[Path, torch.Tensor]]:
    """Losses that lie as attributes on modules, the outermost alone where it gathers those of its parts."""
    outer: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{over}.") or over == "" for over in outer):
            continue
        losses = [
            (attribute, value)
            for attribute, value in vars(module).items()
            if isinstance(value, torch.Tensor)
            and value.dim() == 0
            and value.grad_fn is not None
            and is_loss_name(attribute)
        ]
        if losses:
            outer.append(name)
        yield from (
            ((f"module:{name}", attribute), value) for attribute, value in losses if float(value.detach()) != 0.0
        )


def _told_by_training(contract: CallContract, output: Any, inputs: torch.Tensor, visit: Visit) -> CallContract:
    """The selector of training mode, where that of eval mode leads to nothing of the same shape."""
    selector = contract.logits
    if output is None:
        return contract
    try:
        logits = selector(output, inputs.shape[0])
    except (KeyError, IndexError, AttributeError, TypeError):
        logits = None
    if isinstance(logits, torch.Tensor) and logits.shape[-1] == contract.output_size:
        return contract
    decoder = visit.decoder_ids(contract, inputs)
    length = -1 if contract.task == "vision" else (decoder if decoder is not None else inputs).shape[1]
    found = find_logits(output, inputs.shape[0], length, contract.output_size)
    if found is None or found[0].width(tuple(found[1])) != contract.output_size:
        return contract
    return replace(contract, logits_training=LogitsSelector(found[0].path, selector.layout))


def _with_own_loss(visit: Visit, contract: CallContract, ids: torch.Tensor) -> CallContract:
    """Compare the model's own loss, where it has one, with the shifted and the plain cross-entropy of its logits."""
    name = next((n for n in LABEL_NAMES if n in visit.arguments and n != contract.decoder_name), None)
    if name is None or contract.task != "lm" or contract.packed:
        return contract
    if visit.arguments[name].required and name != contract.label_name:
        return contract
    labels = ids.t() if contract.time_first else ids

    def asked() -> tuple[Any, torch.Tensor]:
        output = visit.ask(replace(contract, label_name=None), ids, **{name: labels.clone()})
        return output, contract.logits(output, ids.shape[0]).float()

    found = unless_refused(asked, None)
    if found is None:  # it wants labels in another form: the model's own loss stays unused
        return contract
    output, logits = found
    own = [value for _, value in scalars_in(output)]
    if not own or logits.shape[:-1] != ids.shape:
        return contract
    shifted, plain = float(next_token_loss(logits, ids)), float(cross_entropy(logits, ids))
    contract = _weighed(contract, output, own, shifted if contract.causal else plain, visit.model)
    is_plain = any(abs(v - plain) < min(1e-4 * max(1.0, plain), abs(v - shifted)) for v in own)
    if contract.causal or not is_plain:
        return contract
    reason = "its own loss scores each token at its own position, and it sees the whole text"
    return replace(contract, task="masked", reasons={**contract.reasons, "task": reason})


def _with_start(visit: Visit, contract: CallContract, ids: torch.Tensor) -> CallContract:
    """Where the model makes decoder ids of labels by itself, begin them as it does."""
    name = next((n for n in LABEL_NAMES if n in visit.arguments and not visit.arguments[n].required), None)
    if name is None or contract.decoder_name is None or visit.arguments[contract.decoder_name].required:
        return contract
    labels = visit.decoder_ids(contract, ids)
    assert labels is not None  # asked of encoder-decoders only

    def compared() -> CallContract:
        alone = replace(contract, decoder_name=None)
        own = contract.logits(visit.ask(alone, ids, **{name: labels.clone()}), ids.shape[0])
        for start in dict.fromkeys((contract.start_id, None, *range(4))):
            made = visit.ask(contract, ids, decoder=shifted_right(labels, start))
            if torch.allclose(contract.logits(made, ids.shape[0]), own, atol=1e-5):
                reason = "the model makes decoder ids of labels in this way"
                return replace(contract, start_id=start, reasons={**contract.reasons, "decoder begins with": reason})
        return contract

    return unless_refused(compared, contract)  # one that makes no decoder ids of labels: the config has the word


def _weighed(contract: CallContract, output: Any, own: list[float], entropy: float, model: nn.Module) -> CallContract:
    """Where the model's own loss holds its auxiliary losses, take the weight that they have there, one for all."""
    if not contract.auxiliary:
        return contract
    losses = [v for at, v in scalars_in(output) if at and at[-1] == "loss"] or own[:1]
    values = [auxiliary_loss(model, output, path) for path, _ in contract.auxiliary]
    total = sum(float(value) for value in values if value is not None)
    weight = (losses[0] - entropy) / total if total else 1.0
    if abs(weight) < 1e-5:
        return replace(contract, auxiliary=())
    if not 0 < weight < 100:
        return contract
    return replace(contract, auxiliary=tuple((path, round(weight, 6)) for path, _ in contract.auxiliary))
