"""Which file names from outside are safe to write and to import. Knows names, not files."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable

from utils.errors import GistContentError

_WINDOWS = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])", re.IGNORECASE)
_MAX_BYTES = 255
_IMPORTED_BY_MODELS = frozenset(
    [
        "torch",
        "torchvision",
        "torchaudio",
        "torchtext",
        "numpy",
        "scipy",
        "pandas",
        "sklearn",
        "matplotlib",
        "transformers",
        "tokenizers",
        "datasets",
        "accelerate",
        "safetensors",
        "huggingface_hub",
        "einops",
        "flash_attn",
        "xformers",
        "triton",
        "timm",
        "peft",
        "bitsandbytes",
        "sentencepiece",
        "tiktoken",
        "pytorch_lightning",
        "lightning",
        "torchmetrics",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "optuna",
        "wandb",
        "tqdm",
        "yaml",
        "requests",
        "PIL",
        "cv2",
        "jax",
        "jaxlib",
        "flax",
        "tensorflow",
        "keras",
        "mamba_ssm",
        "omegaconf",
        "hydra",
        "pydantic",
        "rich",
        "psutil",
        "IPython",
        "ipywidgets",
        "google",
        "utils",
        "pip",
        "setuptools",
        "pkg_resources",
        "pytest",
        "_pytest",
        "conftest",
        "sitecustomize",
        "usercustomize",
    ]
)
SHADOWED = frozenset(name.casefold() for name in _IMPORTED_BY_MODELS | sys.stdlib_module_names)
"""Module names, case-folded, that a file from outside must not have."""


def problem_with_name(name: str) -> str | None:
    """Why a single file name (no folders) is refused; None where it is safe."""
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "is no valid Unicode"
    plain = unicodedata.normalize("NFKC", name)
    if not name or size > _MAX_BYTES:
        return "is empty" if not name else f"is {size} bytes long (at most {_MAX_BYTES})"
    if any(mark in plain for mark in "/\\∕⧵⁄") or plain.strip(". ") == "":
        return "leads to another folder"
    if any(unicodedata.category(character).startswith(("C", "Zl", "Zp")) for character in name):
        return "holds control or invisible characters"
    if any(character in '<>:"|?*' for character in plain) or plain[-1] in ". " or plain[0] == " ":
        return "holds characters that some systems read as something else"
    if _WINDOWS.fullmatch(plain.split(".")[0].rstrip()):
        return "is reserved on Windows"
    return _problem_with_import(plain.casefold())


def _problem_with_import(name: str) -> str | None:
    stem, _, suffix = name.partition(".")
    if name.endswith(".pth"):
        return "would be run by Python at every start"
    if suffix in ("py", "pyc", "pyi", "so", "pyd") and stem in SHADOWED:
        return f"would hide the module {stem!r}"
    return None


def check_names(names: Iterable[str]) -> None:
    """Refuse unsafe names and names that some file systems cannot tell apart.

    Raises:
        GistContentError: with the name, quoted, and the reason.
    """
    seen: dict[str, str] = {}
    for name in names:
        problem = problem_with_name(name)
        if problem is not None:
            raise GistContentError(f"The file name {ascii(name)[:300]} {problem}; the gist is refused.")
        twin = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        if twin in seen:
            raise GistContentError(
                f"The file names {seen[twin]!a} and {name!a} are the same to some systems; the gist is refused."
            )
        seen[twin] = name
