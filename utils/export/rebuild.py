"""What brings a trained model back as a torch module: its source, its config, and a script that joins them with a checkpoint.

Writes plain files; leaves the checkpoint itself to `training`, and files for other runtimes to the exporters.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from utils._files import sha256_of, write_text
from utils._pages import render
from utils.adapters.model_adapter import AdaptedModel
from utils.errors import ExportError
from utils.export.subject import attention_made_causal

TEMPLATE = Path(__file__).with_name("templates") / "rebuild.py.j2"
PREFIX = "adapted."
"""Under this the training's checkpoint keeps the names of an `AdaptedModel` (the attribute of `UniversalModelAdapter`)."""


def write_rebuild(adapted: AdaptedModel, checkpoint: str | Path, folder: str | Path) -> tuple[Path, Path, Path]:
    """Write model.py (as completed), config.json (as it came) and rebuild.py into a folder.

    Args:
        adapted: the trained model.
        checkpoint: its checkpoint; best inside `folder`, so that the folder can be moved.
        folder: where the files go.

    Returns:
        Paths of model.py, config.json and rebuild.py. `python rebuild.py` proves the checkpoint's SHA-256, re-applies
        causal attention where training did, and gives the same logits.

    Raises:
        ExportError: the model's source is not known, so that no file could build it.
    """
    if not adapted.completion.source_after:
        raise ExportError(
            f"{adapted.name} has no source that could be written to model.py: adapt() what load_model() gave, or pass source=."
        )
    root = Path(folder)
    script = render(
        TEMPLATE,
        class_name=type(adapted.model).__name__,
        checkpoint=Path(os.path.relpath(checkpoint, root)).as_posix(),
        sha256=sha256_of(checkpoint),
        prefix=PREFIX,
        made_causal=attention_made_causal(adapted),
    )
    model = adapted.completion.save(root / "model.py")
    config = write_text(root / "config.json", _config_text(adapted))
    return model, config, write_text(root / "rebuild.py", script)


def _config_text(adapted: AdaptedModel) -> str:
    """The config as it came with the model, else as it is known."""
    files = {} if adapted.source is None else adapted.source.files
    return files.get("config.json") or json.dumps(adapted.config.to_dict(), indent=2) + "\n"
