"""Copies of this package's own files for folders that run without it: the calling contract has one home, and travels from it.

A file can be copied where it imports nothing of this package but files that can be copied, by `from utils… import …` lines.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

import utils

PREFIX = "adapter_"
"""Of the copies' names, so that they do not meet the files of a model."""

_IMPORT = re.compile(r"^from (utils(?:\.\w+)+) import ", re.MULTILINE)


def copies_of(modules: Iterable[str]) -> dict[str, str]:
    """Texts of modules of this package and of all that they import from it, with imports made relative.

    Args:
        modules: dotted names, such as "utils.adapters.contract".

    Returns:
        File name → text, flat: "adapter_contract.py", "adapter_masks.py", …
    """
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        name = file_name_of(module)
        if name in found:
            continue
        text = _text_of(module)
        waiting += _IMPORT.findall(text)
        copied = _IMPORT.sub(lambda match: f"from .{file_name_of(match[1]).removesuffix('.py')} import ", text)
        _refuse_leftovers(copied, module)
        found[name] = _head(module) + copied
    return dict(sorted(found.items()))


def file_name_of(module: str) -> str:
    """Name of a module's copy: "utils.adapters.masks" → "adapter_masks.py"."""
    return f"{PREFIX}{module.rpartition('.')[2]}.py"


def _head(module: str) -> str:
    return (
        f"# Copied from {module.replace('.', '/')}.py of transformer-builder-colab {utils.__version__} (MIT license).\n"
    )


def _text_of(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise LookupError(f"{module} is no file of this package.")
    return Path(spec.origin).read_text(encoding="utf-8")


def _refuse_leftovers(text: str, module: str) -> None:
    """Whatever still imports this package would fail where the copy runs; a defect of ours, found when it is made."""
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.append(node.module or "")
    left = [name for name in names if name.split(".")[0] == "utils"]
    if left:
        raise LookupError(f"{module} cannot be copied: it imports {', '.join(left)}.")
