"""What is asked of each entry, as findings: an empty text where it holds, else what was seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.entry import UNKNOWN, Batch, Entry
from utils.adapters.model_adapter import AdaptedModel, adapt

TOLERANCE = 1e-5
"""Largest difference of logits; both sides run the same kernels in float32, so this leaves room for another order of sums."""

COLUMNS = ("adapt", "kept", "contract", "forward", "loss", "step")
"""Questions, in the order of the table."""


@dataclass
class Result:
    """Findings about one entry."""

    entry: Entry
    findings: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def failures(self) -> dict[str, str]:
        return {column: finding for column, finding in self.findings.items() if finding}


def examine(entry: Entry) -> Result:
    """Build, adapt and try one entry; whatever raises is a finding of the question at hand."""
    result, begun = Result(entry), time.perf_counter()
    try:
        _examine(entry, result)
    finally:
        result.seconds = time.perf_counter() - begun
    return result


def _examine(entry: Entry, result: Result) -> None:
    model = entry.build()
    batch = entry.batch()
    model.eval()
    with torch.no_grad():
        expected = entry.reference(model, batch).clone()
    before = Snapshot(model)
    adapted: list[AdaptedModel] = []
    result.findings["adapt"] = _asked(lambda: adapted.append(_adapt(entry, model)) or "")
    result.findings["kept"] = before.differences(model)
    if not adapted:
        return
    one = adapted[0]
    before.restore(model)
    result.findings["kept"] = result.findings["kept"] or _keys(before, one)
    one.eval()
    result.findings["contract"] = _contract(entry, one)
    result.findings["forward"] = _asked(lambda: _forward(entry, one, batch, expected))
    result.findings["loss"] = _asked(lambda: _loss(entry, one, batch, expected))
    result.findings["step"] = _asked(lambda: _step(entry, one, batch))


def _asked(question: Callable[[], str]) -> str:
    try:
        return question()
    except Exception as error:  # noqa: BLE001 - whatever is raised is the finding, and is shown
        return f"{type(error).__name__}: {error}"


def _adapt(entry: Entry, model: nn.Module) -> AdaptedModel:
    return adapt(model, entry.config, entry.source, **entry.arguments)


class Snapshot:
    """What a model must still be after it was adapted: modes, weights, gradients, flags and random state."""

    def __init__(self, model: nn.Module) -> None:
        model.train()
        for index, module in enumerate(model.modules()):
            module.training = index % 3 != 1  # modes that no call to train() or eval() would leave
        for index, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 0.5) if index % 2 else None
        self.modes = [module.training for module in model.modules()]
        self.keys = list(model.state_dict())
        self.state = {name: value.clone() for name, value in model.state_dict().items()}
        self.buffers = {name: value.clone() for name, value in model.named_buffers()}
        self.pointers = {name: value.data_ptr() for name, value in model.named_parameters(remove_duplicate=False)}
        self.random = torch.get_rng_state()

    def differences(self, model: nn.Module) -> str:
        """What has changed, in words."""
        state, buffers = model.state_dict(), dict(model.named_buffers())
        changes = {
            "training modes": [module.training for module in model.modules()] != self.modes,
            "state_dict keys": list(state) != self.keys,
            "weights": any(not torch.equal(state[name], value) for name, value in self.state.items() if name in state),
            "buffers": set(buffers) != set(self.buffers)
            or any(not torch.equal(buffers[name], value) for name, value in self.buffers.items()),
            "gradients": any(
                (parameter.grad is None) == bool(index % 2) or (index % 2 and not bool((parameter.grad == 0.5).all()))
                for index, parameter in enumerate(model.parameters())
            ),
            "shared weights": {n: v.data_ptr() for n, v in model.named_parameters(remove_duplicate=False)}
            != self.pointers,
            "random state": not torch.equal(torch.get_rng_state(), self.random),
        }
        changed = [name for name, differs in changes.items() if differs]
        return f"changed by adapt: {', '.join(changed)}" if changed else ""

    @staticmethod
    def restore(model: nn.Module) -> None:
        """Drop the gradients that were planted."""
        for parameter in model.parameters():
            parameter.grad = None


def _keys(before: Snapshot, adapted: AdaptedModel) -> str:
    """The adapted model's own parameters keep their names and their storage."""
    if list(adapted.model.state_dict()) != before.keys:
        return f"state_dict keys differ: {sorted(set(adapted.model.state_dict()) ^ set(before.keys))[:6]}"
    pointers = {n: v.data_ptr() for n, v in adapted.model.named_parameters(remove_duplicate=False)}
    return "" if pointers == before.pointers else "the adapted model has other weights"


def _contract(entry: Entry, adapted: AdaptedModel) -> str:
    contract = adapted.contract
    claims: list[tuple[str, Any, Any]] = [("task", entry.contract_task or entry.task, contract.task)]
    if entry.rows != UNKNOWN:
        claims.append(("vocab_size", entry.rows, contract.vocab_size))
    if entry.limit != UNKNOWN:
        claims.append(("max_length", entry.limit, contract.max_length))
    return "; ".join(f"{name} is {got!r}, expected {want!r}" for name, want, got in claims if got != want)


def _compare(what: str, got: torch.Tensor, expected: torch.Tensor) -> str:
    if got.shape != expected.shape:
        return f"{what} {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if not bool(torch.isfinite(expected).all()):
        return f"{what}: the reference itself is not finite"
    difference = float((got - expected).abs().max())
    scale = max(1.0, float(expected.abs().max()))
    return "" if difference <= TOLERANCE * scale else f"{what} differ by {difference:.3g}"


def _forward(entry: Entry, adapted: AdaptedModel, batch: Batch, expected: torch.Tensor) -> str:
    """With and without labels the logits are those of the model called properly."""
    with torch.no_grad():
        bare = adapted(**{name: value for name, value in batch.items() if name != "labels"})
        with_labels = adapted(**batch)
    if bare.loss is not None:
        return "a loss without labels"
    want = _real(entry, batch, expected)
    return _compare("logits", _real(entry, batch, bare.logits), want) or _compare(
        "logits with labels", _real(entry, batch, with_labels.logits), want
    )


def _real(entry: Entry, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
    """Scores of padding have no meaning: a mask may let such a position see itself or nothing. They are set to 0."""
    mask = batch.get("attention_mask")
    if mask is None or entry.task not in ("lm", "masked") or logits.shape[:2] != mask.shape:
        return logits
    return logits.masked_fill(mask[..., None] == 0, 0.0)


def expected_loss(entry: Entry, adapted: AdaptedModel, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the reference's logits, shifted where the entry says so."""
    if entry.loss is not None:
        return entry.loss(adapted.model, batch)
    labels, task = batch["labels"], entry.contract_task or entry.task
    shift = entry.shift if entry.shift is not None else int(task == "lm")
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1), ignore_index=-100)


def _loss(entry: Entry, adapted: AdaptedModel, batch: Batch, expected: torch.Tensor) -> str:
    with torch.no_grad():
        got = adapted(**batch).loss
        want = expected_loss(entry, adapted, batch, expected)
    if got is None:
        return "no loss although labels were given"
    return _compare("loss", got.float(), want.float()) and f"loss is {float(got):.6f}, expected {float(want):.6f}"


def _step(entry: Entry, adapted: AdaptedModel, batch: Batch) -> str:
    """One optimizer step on a batch lowers its loss; decoder inputs are left for the adapter to make from the labels."""
    given = {name: value for name, value in batch.items() if name != "decoder_input_ids"}
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=entry.learning_rate, weight_decay=0.0)
    first = adapted(**given).loss
    first.backward()
    optimizer.step()
    with torch.no_grad():
        second = adapted(**given).loss
    return "" if second < first else f"loss went from {first.item():.6f} to {second.item():.6f}"
