"""JSON from outside, read strictly: what two readers could understand differently is refused. Knows no config."""

from __future__ import annotations

import json
import re
from typing import Any

from utils.errors import ConfigError

MAX_BYTES = 5_000_000
MAX_DEPTH = 64
_TOKENS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


def parse_json(text: str, name: str, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """Parse `text`; `name` is what messages call it.

    Raises:
        ConfigError: too large, nested too deeply, no JSON (with line and column), a duplicate key, NaN or Infinity, or
            an integer of absurd length.
    """
    size = len(text.encode("utf-8", errors="surrogatepass")) if 4 * len(text) > max_bytes else 0  # 4 bytes at most
    if size > max_bytes:
        raise ConfigError(f"{name} holds {size:,} bytes; at most {max_bytes:,} are read.")
    brackets = text.count("[") + text.count("{")
    depth = nesting_depth(text) if brackets > max_depth else 0  # fewer brackets than levels: nothing to count
    if depth > max_depth:
        raise ConfigError(f"{name} is nested {depth} levels deep; at most {max_depth} are read.")
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{name} is no JSON: {error.msg} at line {error.lineno}, column {error.colno}.\n{_caret(text, error)}"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    except ValueError as error:  # an integer with more digits than Python converts
        raise ConfigError(f"{name} holds a number that cannot be read: {error}") from error


def nesting_depth(text: str) -> int:
    """How deep brackets and braces outside strings are nested, counted without recursion."""
    depth = deepest = 0
    for token in _TOKENS.finditer(text):
        mark = token.group()
        if mark in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in "]}":
            depth -= 1
    return deepest


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ConfigError(f"the key {key!r} stands twice in one object; keep one of the two.")
        result[key] = value
    return result


def _refuse_constant(word: str) -> Any:
    raise ConfigError(f"{word} is no JSON number; write a finite one or null.")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ConfigError(f"the number {digits} is too large for a float.")
    return value


def _caret(text: str, error: json.JSONDecodeError) -> str:
    line = text.splitlines()[error.lineno - 1] if error.lineno <= len(text.splitlines()) else ""
    start = max(0, error.colno - 41)
    return f"    {line[start : start + 80]}\n    {' ' * (error.colno - 1 - start)}^"


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite)
"""Made once: JSON lines are parsed by the million."""
