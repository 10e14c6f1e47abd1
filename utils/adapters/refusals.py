"""Asking a stranger's model where a refusal is an answer: the one place that catches whatever a probed forward raises.

Probes call a model in ways that it may not be made for, to learn which it is. What is to be shown to people is caught and noted
where it is asked (`inference.Visit`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Otherwise = TypeVar("Otherwise")

REFUSED = object()
"""What `unless_refused` may give for a refusal where every other value could be an answer."""


def unless_refused(question: Callable[[], Answer], otherwise: Otherwise) -> Answer | Otherwise:
    """What the model answers, or `otherwise` where it raises; the log says what it raised.

    Example:
        >>> unless_refused(lambda: model(ids), REFUSED) is REFUSED
        False
    """
    try:
        return question()
    except Exception as error:
        logger.debug("a probe was refused", exc_info=error)
        return otherwise
