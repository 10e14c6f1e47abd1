"""Settings as people type them: value to text and back, for the command line and for forms. What holds is for `setting_problems`."""

from __future__ import annotations

import typing
from typing import Any


def written(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, list):
        return ",".join(value)
    if value is None or isinstance(value, bool):
        return {None: "none", True: "on", False: "off"}[value]
    return repr(value) if value == "" else str(value)


def read(text: Any, hint: Any) -> Any:
    """What a text means for a setting of that type; text that means nothing stays text, and is complained about."""
    if isinstance(text, bool):
        return text
    if typing.get_origin(hint) is list:
        return [part.strip() for part in text.split(",") if part.strip()]
    kinds = typing.get_args(hint) or (hint,)
    if type(None) in kinds and text.strip().lower() == "none":
        return None
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    return text
