"""The only file that asks which optional packages are installed."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from utils.errors import MissingPackageError


def is_installed(package: str) -> bool:
    """Whether `package` (an import name such as "onnxruntime") can be found, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # a parent package is missing, or a stand-in sits in sys.modules without a spec
        return False


def require(package: str, *, extra: str, feature: str) -> ModuleType:
    """Import `package`, or say which extra brings it.

    Args:
        package: import name, e.g. "onnxruntime" or "pytorch_lightning".
        extra: the extra of pyproject.toml that holds it: "training", "search", "export", "serve", "ui" or "dev".
        feature: what the user asked for, as the subject of the message: "ONNX export".

    Raises:
        MissingPackageError: the package cannot be found; the message holds the install command.
    """
    if not is_installed(package):
        raise MissingPackageError(
            f'{feature} needs the package {package!r}, which is not installed. Install it with: pip install -e ".[{extra}]" '
            f"(in a checkout) or pip install -r requirements-training.txt (in Colab)."
        )
    return importlib.import_module(package)
