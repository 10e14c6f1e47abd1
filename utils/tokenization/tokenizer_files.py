"""Tokenizers on disk: written whole or not at all, verified before they are read, wrapped without running foreign code.

Knows files; which tokenizer is wanted is decided elsewhere. No loader of the Hugging Face library is asked for a folder:
it may ask the network about a folder's name, and chooses classes by what the folder says.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils._files import list_files, sync_folder, write_json
from utils.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

MANIFEST = "tokenizer_manifest.json"
"""Names and SHA-256 of the other files; a folder without it was never finished."""

_NAMED_SPECIALS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_KEPT_SETTINGS: dict[str, type | tuple[type, ...]] = {
    "model_max_length": (int, float),
    "padding_side": str,
    "truncation_side": str,
    "model_input_names": list,
    "split_special_tokens": bool,
    "chat_template": str,
}
"""Settings of tokenizer_config.json that are taken over, with their types; the rest is decided by tokenizer.json."""


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Path:
    """Write a tokenizer's files so that `folder` appears complete or not at all.

    A finished folder is left as it is; an unfinished or damaged one is replaced. Two processes may write the same folder:
    the first to finish wins.
    """
    target = Path(folder)
    if is_complete(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise TokenizerError(
            f"Tokenizers cannot be kept in {target.parent}: {error.strerror or error}. Choose a folder that can be written to "
            "(cache_dir=)."
        ) from error
    try:
        tokenizer.save_pretrained(str(temporary))
        write_json(temporary / MANIFEST, {"format": 1, "files": list_files(temporary)})
        _put(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def is_complete(folder: str | Path) -> bool:
    """Whether `save_tokenizer` finished this folder and every file still is what was written."""
    root = Path(folder)
    try:
        listed = json.loads((root / MANIFEST).read_text("utf-8"))["files"]
        found = [entry for entry in list_files(root) if entry["name"] != MANIFEST]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(listed == found)


def load_saved(folder: str | Path) -> PreTrainedTokenizerFast | None:
    """The tokenizer that `save_tokenizer` wrote; None where there is none, or where it was damaged (said in the log)."""
    root = Path(folder)
    if not root.is_dir():
        return None
    if not is_complete(root):
        logger.info("%s is unfinished or damaged; its tokenizer is made anew", root)
        return None
    return wrap_folder(root)


def wrap_folder(folder: str | Path) -> PreTrainedTokenizerFast:
    """Wrap a folder's tokenizer.json with the special tokens of its tokenizer_config.json and special_tokens_map.json.

    Raises:
        TokenizerError: a file cannot be read as what it should be.
    """
    return wrap(read_backend(Path(folder) / "tokenizer.json"), read_config(folder))


def read_config(folder: str | Path) -> dict[str, Any]:
    """What a folder says about special tokens and settings; tokenizer_config.json counts before special_tokens_map.json.

    Raises:
        TokenizerError: a file is no JSON object.
    """
    root = Path(folder)
    return {**_read_json(root / "special_tokens_map.json"), **_read_json(root / "tokenizer_config.json")}


def read_backend(path: str | Path) -> Tokenizer:
    """Read a tokenizer.json, without the truncation and padding that it may carry.

    Raises:
        TokenizerError: the file is missing or is no tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        text = Path(path).read_text("utf-8")
        backend = Tokenizer.from_str(text)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise TokenizerError(f"{Path(path).name} cannot be read as a tokenizer: {error}.") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def wrap(backend: Tokenizer, config: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """A `PreTrainedTokenizerFast` around a `tokenizers` object.

    Args:
        backend: the tokenizer; it is copied.
        config: what a tokenizer_config.json says: special tokens as text or as {"content": text}, and settings. Special
            tokens that the vocabulary lacks are left out, so that wrapping never adds an id.
    """
    from transformers import PreTrainedTokenizerFast

    known = backend.get_vocab(with_added_tokens=True)
    named = {f"{name}_token": _token_text(config.get(f"{name}_token")) for name in _NAMED_SPECIALS}
    specials: dict[str, Any] = {name: text for name, text in named.items() if text in known}
    further = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    texts = [_token_text(token) for token in (further.values() if isinstance(further, Mapping) else further)]
    extra = [text for text in texts if text in known and text not in specials.values()]
    settings = {key: config[key] for key, kind in _KEPT_SETTINGS.items() if isinstance(config.get(key), kind)}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        additional_special_tokens=extra,
        clean_up_tokenization_spaces=False,  # the default of older releases drops spaces before punctuation
        **specials,
        **settings,
    )


def _put(temporary: Path, target: Path) -> None:
    """Rename onto the target; a damaged one makes way, a finished one of another process stays."""
    for _ in range(2):
        try:
            os.replace(temporary, target)
            sync_folder(target.parent)
            return
        except OSError:
            if is_complete(target):
                return
            if not target.exists():
                raise
            shutil.rmtree(target, ignore_errors=True)
    raise TokenizerError(
        f"{target} cannot be written: something else is there. Remove it, or choose another cache_dir."
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path.name} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path.name} holds a {type(content).__name__}; a JSON object is expected.")
    return content


def _token_text(token: object) -> str | None:
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None
