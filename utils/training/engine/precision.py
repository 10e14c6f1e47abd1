"""Which floating-point precision a device trains in, and why. Knows devices, no models."""

from __future__ import annotations

import torch

from utils.errors import ConfigError


def pick_precision(device: torch.device, capability: tuple[int, int] | None = None) -> tuple[str, str]:
    """Precision for a device, and why.

    Args:
        device: where training runs.
        capability: compute capability of a CUDA device; None asks torch.

    Returns:
        "bf16-mixed", "16-mixed" or "32-true", and the reason.
    """
    if device.type != "cuda":
        return "32-true", f"{device.type.upper()} trains in full precision"
    major, minor = capability if capability is not None else torch.cuda.get_device_capability(device)
    if major >= 8:
        return "bf16-mixed", f"SM {major}.{minor} computes in bfloat16"
    return "16-mixed", f"SM {major}.{minor} only emulates bfloat16; float16 with a gradient scaler is fast there"


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
