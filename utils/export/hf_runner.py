"""A folder of transformers, opened as a stranger would open it: with the code in it, and every weight accounted for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils._extras import require
from utils.errors import ExportError
from utils.export.purposes import HEADS
from utils.export.runner import Runner
from utils.export.signature import Signature
from utils.export.weights import weights_sha256

FACTS_FILE, FORMAT_VERSION = "export.json", 1
"""What the folder's writer says about it, beside what transformers reads."""


class HFFolderRunner(Runner):
    """Runs the model that transformers loads from a folder; whoever opens one runs the code in it.

    Attributes:
        model: the loaded model, in eval mode.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """Load the folder.

        Args:
            path: the folder.
            threads: of torch, for the whole process; None leaves them as they are.

        Raises:
            ExportError: no such folder, weights are missing or left over, or are not those that were written.
            MissingPackageError: transformers is not installed.
        """
        require("transformers", extra="training", feature="A Hugging Face folder")
        if threads is not None:
            torch.set_num_threads(threads)
        root = Path(path)
        written = _read(root)
        self.signature = Signature.from_json(json.dumps(written["signature"]))
        self.facts: Mapping[str, str] = written["facts"]
        self.model = _loaded(root, written["auto_class"])
        if weights_sha256(self.model) != written["weights_sha256"]:
            raise ExportError(f"The weights that transformers loads from {root} are not those that were written.")

    def run(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Runner.run`."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feeds.items()}
        try:
            with torch.no_grad():
                logits = self.model(**tensors).logits
        except Exception as error:
            raise ExportError(f"The model of the folder fails: {type(error).__name__}: {error}") from error
        return np.asarray(logits.float().numpy())


def _read(root: Path) -> dict[str, Any]:
    try:
        written = json.loads((root / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{root} is no exported folder of transformers: {FACTS_FILE} cannot be read ({error})."
        ) from error
    if not isinstance(written, dict) or written.get("format_version", 0) > FORMAT_VERSION:
        raise ExportError(f"{root / FACTS_FILE} has a format of a later version of this package.")
    return written


def _loaded(root: Path, auto_class: str) -> Any:
    """The model, with every key accounted for."""
    import transformers

    if auto_class not in {f"AutoModelFor{head}" for head in HEADS.values()}:
        raise ExportError(f"{root / FACTS_FILE} names {auto_class!r}, which is no auto class of a model.")
    try:
        model, info = getattr(transformers, auto_class).from_pretrained(
            root, trust_remote_code=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:
        raise ExportError(f"transformers cannot load {root}: {type(error).__name__}: {error}") from error
    wrong = {what: sorted(map(str, keys)) for what, keys in info.items() if keys}
    if wrong:
        listed = "; ".join(f"{what}: {', '.join(keys[:4])}" for what, keys in wrong.items())
        raise ExportError(f"transformers cannot load {root} as it was written: {listed}.")
    return model.eval()
