"""Which modules a file imports, and whether this runtime has them. Imports none of them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from utils._extras import is_installed

ImportStatus = Literal["local", "standard library", "installed", "missing"]

PIP_NAMES = {
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "yaml": "pyyaml",
    "flash_attn": "flash-attn",
    "mamba_ssm": "mamba-ssm",
    "causal_conv1d": "causal-conv1d",
    "rotary_embedding_torch": "rotary-embedding-torch",
    "x_transformers": "x-transformers",
    "pytorch_lightning": "pytorch-lightning",
    "huggingface_hub": "huggingface-hub",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "torch_geometric": "torch-geometric",
    "dateutil": "python-dateutil",
    "local_attention": "local-attention",
    "lion_pytorch": "lion-pytorch",
    "vector_quantize_pytorch": "vector-quantize-pytorch",
    "hydra": "hydra-core",
}
"""Import name → name on the package index, where the two differ."""


@dataclass(frozen=True)
class ImportedModule:
    """One top-level module that a file imports.

    Attributes:
        name: top-level import name.
        status: "local" (a sibling file), "standard library", "installed" or "missing".
        line: where it is first imported, from 1.
        optional: the file can be imported without it (a try/except ImportError, a function body, TYPE_CHECKING).
    """

    name: str
    status: ImportStatus
    line: int
    optional: bool

    @property
    def pip_name(self) -> str:
        """What to hand to `pip install`."""
        return PIP_NAMES.get(self.name, self.name)


def imports_of(tree: ast.Module, siblings: frozenset[str]) -> tuple[ImportedModule, ...]:
    """The top-level modules that a file imports, each once, by name."""
    found: dict[str, ImportedModule] = {}
    for name, line, optional in sorted(_statements(tree), key=lambda entry: entry[1]):
        known = found.get(name)
        if known is None or (known.optional and not optional):
            found[name] = ImportedModule(name, _status(name, siblings), known.line if known else line, optional)
    return tuple(found[name] for name in sorted(found))


def _status(name: str, siblings: frozenset[str]) -> ImportStatus:
    if name in siblings:
        return "local"
    if name in sys.stdlib_module_names or name in sys.builtin_module_names:
        return "standard library"
    return "installed" if is_installed(name) else "missing"


def _statements(tree: ast.Module) -> Iterator[tuple[str, int, bool]]:
    """(top-level name, line, optional) of each absolute import."""
    stack: list[tuple[ast.AST, bool]] = [(tree, False)]
    while stack:
        node, optional = stack.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno, optional) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0], node.lineno, optional
        stack.extend((child, optional or _shields(node, child)) for child in ast.iter_child_nodes(node))


def _shields(node: ast.AST, child: ast.AST) -> bool:
    """Whether an import in `child` may fail, or never runs, when the file is imported."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return True
    if isinstance(node, ast.Try):
        return child in node.body and any(_catches_import_error(handler) for handler in node.handlers)
    return isinstance(node, ast.If) and child in node.body and "TYPE_CHECKING" in ast.unparse(node.test)


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    caught = "ImportError" if handler.type is None else ast.unparse(handler.type)
    return any(name in caught for name in ("ImportError", "ModuleNotFoundError", "Exception"))
