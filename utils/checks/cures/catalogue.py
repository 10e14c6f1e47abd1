"""Every cure that is known, those first whose pattern in the text is rarely right."""

from __future__ import annotations

from utils.checks.cures import attention, axes, gradients, numbers, registration, sizes, states, targets
from utils.checks.cures.cure import Cure

CURES: tuple[Cure, ...] = (
    *states.CURES,
    *registration.CURES,
    *axes.CURES,
    *attention.CURES,
    *gradients.CURES,
    *targets.CURES,
    *numbers.CURES,
    *sizes.CURES,
)
"""In the order in which they are tried."""
