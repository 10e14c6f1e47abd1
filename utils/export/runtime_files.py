"""What makes an exported folder run without this package: scripts, tokenizer, pinned requirements and golden requests.

The scripts are templates in `templates/bundle`; modules that the notebook uses too (decoding, signature, errors) go along
as they are. Leaves the model's file to its exporter, the answers to `golden`, and the manifest to `bundle`.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import utils
from utils._files import write_json, write_text
from utils._pages import render
from utils.errors import ConfigError, MissingPackageError, TokenizerError
from utils.export.golden import MAIN_FILE, PROMPTS, Run, golden_requests
from utils.export.signature import Signature
from utils.tokenization.encoding import Recipe
from utils.training.generation import allowed_ids, first_id, source_recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = Path(__file__).with_name("templates") / "bundle"
SCRIPTS = ("inference.py", "limits.py", "server.py", "selftest.py", "Dockerfile")
SHARED = ("decoding.py", "export/signature.py", "errors.py")
"""Modules of this package that the folder holds too. They need numpy only, and each other."""

PACKAGES = ("onnxruntime", "numpy", "tokenizers", "fastapi", "starlette", "pydantic", "uvicorn")
"""What the scripts import, and requirements.txt pins."""

SERVER_VERSIONS = {"fastapi": "0.165.0", "starlette": "1.10.0", "pydantic": "2.14.4", "uvicorn": "0.54.0"}
"""Exporting needs no server: where one of its packages is missing, all are pinned as the tests ran with them."""

TOLERANCE = 1e-3
"""How far logits of model.onnx may be from the model's on any machine: ten times what its parity check allows here."""

FORMAT_VERSION = 1
_TASKS = {
    "lm": "A language model: it continues texts.",
    "masked": "A masked language model: it names hidden tokens.",
    "seq2seq": "An encoder-decoder: it answers a source text with another.",
    "classification": "A text classifier.",
    "vision": "An image classifier.",
}


def write_runtime(
    folder: str | Path,
    signature: Signature,
    tokenizer: PreTrainedTokenizerBase | None,
    run: Run,
    facts: Mapping[str, str],
    *,
    class_names: Sequence[str] = (),
    tolerances: Mapping[str, float] | None = None,
    prompts: Sequence[str] = PROMPTS,
) -> list[Path]:
    """Write everything that `model.onnx` in this folder needs to answer and to prove itself; the manifest comes after.

    Args:
        folder: where the model's file lies or will lie.
        signature: what the file takes and gives.
        tokenizer: the model's tokenizer; None for images.
        run: the model's own logits for feeds by name. Golden answers are made with it, so it must not be the file's.
        facts: what is known about the model; "model_name" among it.
        class_names: names of the classes, in order.
        tolerances: file → how far its logits may be from the model's. Default: `TOLERANCE` for model.onnx; name
            model_int8.onnx here where it lies beside it.
        prompts: texts of the golden requests.

    Returns:
        The files, in the order in which they were written.

    Raises:
        TokenizerError: the tokenizer is missing, or is none that the tokenizers library can run alone.
        MissingPackageError: a package whose version would be pinned is not installed.
        ConfigError: the tolerances lack model.onnx, or the class names do not fit the model.

    Example:
        >>> write_runtime("exports/run", signature, tokenizer, subject.logits, subject.facts)
    """
    root = Path(folder)
    allowed_apart = dict(tolerances) if tolerances is not None else {MAIN_FILE: TOLERANCE}
    _check(signature, tokenizer, class_names, allowed_apart)
    pins = _pins()
    golden = golden_requests(signature, run, tokenizer, allowed_apart, prompts)
    name = facts.get("model_name", "model")
    written = [write_text(root / "signature.json", signature.to_json() + "\n")]
    written += _tokenizer_files(tokenizer, root)
    written.append(write_json(root / "generation.json", _generation(signature, tokenizer, name, class_names)))
    written.append(write_text(root / "golden.json", json.dumps(golden, ensure_ascii=False, allow_nan=False) + "\n"))
    written += [write_text(root / Path(module).name, _alone(module)) for module in SHARED]
    written += [write_text(root / script, render(TEMPLATES / f"{script}.j2")) for script in SCRIPTS]
    written.append(write_text(root / "Dockerfile.dockerignore", render(TEMPLATES / "dockerignore.j2")))
    written.append(write_text(root / "requirements.txt", render(TEMPLATES / "requirements.txt.j2", pins=pins)))
    usage = render(TEMPLATES / "USAGE.md.j2", **_usage(signature, name, prompts[0]))
    return [*written, write_text(root / "USAGE.md", usage)]


def _check(
    signature: Signature,
    tokenizer: PreTrainedTokenizerBase | None,
    class_names: Sequence[str],
    tolerances: Mapping[str, float],
) -> None:
    if signature.takes_tokens and getattr(tokenizer, "backend_tokenizer", None) is None:
        what = (
            "no tokenizer was given"
            if tokenizer is None
            else f"{type(tokenizer).__name__} is written in Python only"
            if hasattr(tokenizer, "save_pretrained")
            else f"{type(tokenizer).__name__} is none of transformers"
        )
        raise TokenizerError(
            f"A folder that runs alone needs a tokenizer of the tokenizers library, and {what}. Pass the model's "
            "PreTrainedTokenizerFast; one of the tokenizers library becomes one by PreTrainedTokenizerFast(tokenizer_object=…)."
        )
    if MAIN_FILE not in tolerances:
        raise ConfigError(f"tolerances must name {MAIN_FILE}; got {', '.join(tolerances) or 'nothing'}.")
    if class_names and len(class_names) != signature.output_size:
        raise ConfigError(
            f"There are {len(class_names)} class names, and the model has {signature.output_size} classes."
        )


def _pins() -> list[tuple[str, str]]:
    """Package and version: what is installed. A server that is not installed as a whole is pinned as it was tried."""
    found = {name: _installed(name) for name in PACKAGES}
    whole = all(found.get(name) for name in SERVER_VERSIONS)  # parts of two servers were never tried together
    server: dict[str, str] = {} if whole else SERVER_VERSIONS
    missing = [name for name in PACKAGES if not found[name] and name not in server]
    if missing:
        raise MissingPackageError(
            f"The folder's requirements pin the versions that are installed here, and {', '.join(missing)} is not. "
            'Install it with: pip install -e ".[export,training]" (in a checkout) or '
            "pip install -r requirements-training.txt (in Colab)."
        )
    return [(name, version) for name in PACKAGES if (version := server.get(name) or found[name])]


def _installed(name: str) -> str | None:
    """The version, without a build's label such as +cu126; None where the package is not there."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def _alone(module: str) -> str:
    """A module's text, with its imports of this package turned to the files that lie beside it."""
    text = (Path(utils.__file__).parent / module).read_text("utf-8")
    return re.sub(r"^from utils\.(?:\w+\.)*(\w+) import", r"from \1 import", text, flags=re.MULTILINE)


def _tokenizer_files(tokenizer: PreTrainedTokenizerBase | None, root: Path) -> list[Path]:
    if tokenizer is None:
        return []
    saved = [Path(name) for name in tokenizer.save_pretrained(str(root))]
    return [path for path in saved if path.is_file()]


def _generation(
    signature: Signature, tokenizer: PreTrainedTokenizerBase | None, name: str, class_names: Sequence[str]
) -> dict[str, Any]:
    """What inference.py must know besides the signature. `never_drawn` holds ranges of ids, their ends not included."""
    recipe = _recipe(signature)
    known: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "class_names": list(class_names),
        "add_special_tokens": recipe.marks,
        "append_end": recipe.end,
        "first_id": None,
        "eos_token_id": None,
        "rows": 0,
        "never_drawn": [],
    }
    if tokenizer is None:
        return known
    end = tokenizer.eos_token_id
    known |= {"first_id": first_id(tokenizer), "eos_token_id": None if end is None else int(end)}
    if signature.scores_tokens:
        allowed = allowed_ids(tokenizer, signature.output_size)
        known |= {"rows": len(allowed), "never_drawn": _ranges([not may for may in allowed.tolist()])}
    return known


def _recipe(signature: Signature) -> Recipe:
    """How texts are encoded: as in the training of that task."""
    if signature.task == "seq2seq":
        return source_recipe(signature.max_length)
    return Recipe(marks=signature.task == "classification")


def _ranges(flags: Sequence[bool]) -> list[list[int]]:
    """[begin, end) of each run of True."""
    edges = [
        place
        for place in range(len(flags) + 1)
        if (place > 0 and flags[place - 1]) != (place < len(flags) and flags[place])
    ]
    return [list(pair) for pair in zip(edges[::2], edges[1::2])]


def _usage(signature: Signature, name: str, prompt: str) -> dict[str, Any]:
    """Values of USAGE.md."""
    limit = "" if signature.max_length is None else f" of up to {signature.max_length:,}"
    shape = ", ".join(map(str, signature.image_shape or ()))
    ids = {"input_ids": [[1] * signature.allowed_length(3)]} if signature.takes_tokens else {}
    return {
        "name": name,
        "what": _TASKS[signature.task],
        "takes": f"sequences{limit} tokens" if signature.takes_tokens else f"images of shape ({shape})",
        "writes": signature.task in ("lm", "seq2seq"),
        "classifies": not signature.scores_tokens,
        "text": signature.takes_tokens,
        "image_shape": shape,
        "image_name": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model",
        "prompt": prompt,
        "prompt_shell": shlex.quote(prompt),
        "generate_body": _shell({"prompt": prompt, "max_new_tokens": 50, "temperature": 0.8, "top_k": 50, "seed": 0}),
        "completion_body": _shell({"prompt": prompt, "max_tokens": 50, "stream": True}),
        "classify_body": _shell({"text": prompt}),
        "logits_body": _shell(ids),
    }


def _shell(body: Mapping[str, Any]) -> str:
    """JSON that may stand between single quotes of a shell."""
    return json.dumps(body).replace("'", "'\\''")
