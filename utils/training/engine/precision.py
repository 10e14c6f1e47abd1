"""Which floating-point precision a training runs in, and why: by device, and by what float16 does to the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.inspection import listed
from utils.checks.preserved import preserved
from utils.checks.sampling import Sampler, loss_of
from utils.errors import ConfigError

HALF_MAX = 65504.0
"""Largest number of float16; what lies beyond becomes infinite."""
PROBE_BATCH, PROBE_LENGTH = 2, 64
"""Sequences and tokens of the probe where no sample is given."""

_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}

_HALF_OPS = frozenset(("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "convolution", "_convolution"))
"""Operations that autocast computes in float16, as the dispatcher names them; fused attention besides. Norms, softmax,
losses and sums of a residual stream stay in float32, so what they give cannot overflow."""


@dataclass(frozen=True)
class Overflow:
    """What float16 does to a model's numbers in one forward and backward pass.

    Attributes:
        modules: modules in which a number beyond float16 occurred, in the order of the pass, with the largest one (inf
            where float16 itself was used).
        gradients: parameters whose gradients were not finite; looked at only in float16.
        largest: largest number of all that float16 would hold; where: the module it occurred in.
        measured: how, in words.
    """

    modules: tuple[tuple[str, float], ...]
    gradients: tuple[str, ...]
    largest: float
    where: str
    measured: str

    @property
    def found(self) -> bool:
        """Whether float16 is too small for this model."""
        return bool(self.modules or self.gradients)

    @property
    def reason(self) -> str:
        """One sentence with figures."""
        if self.modules:
            named = listed([f"{name} ({value:.3g})" for name, value in self.modules], 3)
            return f"numbers beyond float16's largest ({HALF_MAX:.0f}) in {named}; {self.measured}"
        if self.gradients:
            return f"gradients of {listed(list(self.gradients), 3)} are not finite in float16; {self.measured}"
        return f"the largest number, {self.largest:.3g} in {self.where}, fits float16; {self.measured}"


def pick_precision(
    device: torch.device,
    capability: tuple[int, int] | None = None,
    probe: Callable[[], Overflow] | None = None,
) -> tuple[str, str]:
    """Precision for a device and a model, and why.

    Args:
        device: where training runs.
        capability: compute capability of a CUDA device; None asks torch.
        probe: tells what float16 does to the model, as `lambda: find_overflow(adapted)`; asked only where float16 is the
            choice. None takes the device's word.

    Returns:
        "bf16-mixed", "16-mixed" or "32-true", and the reason.
    """
    if device.type != "cuda":
        return "32-true", f"{device.type.upper()} trains in full precision"
    major, minor = capability if capability is not None else torch.cuda.get_device_capability(device)
    if major >= 8:
        return "bf16-mixed", f"SM {major}.{minor} computes in bfloat16"
    why = f"SM {major}.{minor} only emulates bfloat16"
    overflow = probe() if probe is not None else None
    if overflow is not None and overflow.found:
        return "32-true", f"{why}, and float16 overflows: {overflow.reason}"
    return "16-mixed", f"{why}; float16 with a gradient scaler is fast there"


def autocast_of(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """What a forward pass in that precision runs in, as Lightning does it; nothing for "32-true"."""
    dtype = _DTYPES.get(precision)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that the device does not compute in (Lightning would take another one and go on).

    Raises:
        ConfigError: float16 away from CUDA.
    """
    if precision == "16-mixed" and device.type != "cuda":
        raise ConfigError(
            f"precision='16-mixed' needs a CUDA device; this training runs on {device.type.upper()}. Take precision='auto' "
            "(32-true here), or 'bf16-mixed'."
        )


def find_overflow(
    adapted: AdaptedModel, sample: Mapping[str, torch.Tensor] | None = None, half: bool | None = None
) -> Overflow:
    """One forward and backward pass in training mode, with every number looked at that autocast would hold in float16.

    A fresh model that passes may still overflow later in training; the gradient scaler then skips steps and
    `TrainingLoop` stops the run.

    Args:
        adapted: the model; random states, buffers, gradients, mode and weights are afterwards as before.
        sample: a batch as the data module gives it, best a small one; None draws token ids.
        half: compute in float16 under autocast; None does so on CUDA, and elsewhere computes in the model's own type and
            compares with float16's largest number.
    """
    device = adapted.device
    half = device.type == "cuda" if half is None else half
    autocast = torch.autocast(device.type, torch.float16) if half else contextlib.nullcontext()
    watch = _Watch(adapted.model)
    with preserved(adapted):
        adapted.train()
        with watch.modules(), autocast, watch:
            loss = _loss(adapted, sample)
        gradients: tuple[str, ...] = ()
        if half:
            loss.backward()
            gradients = tuple(_not_finite(adapted.model))
        largest = watch.largest()
    del loss
    beyond = tuple((name, value) for name, value in largest.items() if not value <= HALF_MAX)
    where, most = max(largest.items(), key=lambda item: item[1], default=("no module", 0.0))
    measured = f"measured in float16 on {device.type.upper()}" if half else "measured in full precision"
    return Overflow(beyond, gradients, most, where, measured)


def _loss(adapted: AdaptedModel, sample: Mapping[str, torch.Tensor] | None) -> torch.Tensor:
    if sample is None:
        sampler = Sampler.of(adapted)
        return loss_of(adapted, sampler.inputs(PROBE_BATCH, sampler.length(PROBE_LENGTH)))
    return batch_loss(adapted, sample)


def batch_loss(adapted: AdaptedModel, sample: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The training loss of a batch as the data module gives it, wherever it lies."""
    loss = adapted.on_batch({name: value.to(adapted.device) for name, value in sample.items()}).loss
    assert loss is not None  # on_batch gives labels
    return loss


def _not_finite(model: nn.Module) -> list[str]:
    named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    if not named:
        return []
    finite = torch.stack([torch.isfinite(gradient).all() for _, gradient in named]).tolist()
    return [name for (name, _), fine in zip(named, finite) if not fine]


class _Watch(TorchDispatchMode):
    """Keeps the largest absolute number that goes into or comes out of float16 operations, by module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._inside: list[str] = []
        self._seen: dict[str, list[torch.Tensor]] = {}

    @contextlib.contextmanager
    def modules(self) -> Iterator[None]:
        """Within the block, know which module computes."""
        handles = []
        for name, module in self._model.named_modules():
            handles.append(module.register_forward_pre_hook(self._entering(name or type(module).__name__)))
            handles.append(module.register_forward_hook(self._leaving, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, given: self._inside.append(name)

    def _leaving(self, module: nn.Module, given: Any, output: Any) -> None:
        self._inside.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if self._inside and (name in _HALF_OPS or name.startswith("_scaled_dot_product")):
            result = output if isinstance(output, tuple) else (output,)
            numbers = [t for t in (*args, *result[:1]) if isinstance(t, torch.Tensor) and t.is_floating_point()]
            largest = [t.detach().abs().max().float() for t in numbers if t.numel() and t.device.type != "meta"]
            self._seen.setdefault(self._inside[-1], []).extend(largest)
        return output

    def largest(self) -> dict[str, float]:
        """Largest absolute number by module: inf where one became too large, though NaN may follow from it; else NaN where one occurred."""
        seen = {name: torch.stack(values) for name, values in self._seen.items() if values}
        seen = {name: torch.where(values.isinf().any(), torch.inf, values.max()) for name, values in seen.items()}
        return dict(zip(seen, torch.stack(list(seen.values())).tolist())) if seen else {}
