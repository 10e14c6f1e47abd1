"""What a run has given so far, from its folder or its mirror alone: the results mapping of a training, without training.

Reads verified checkpoints only; leaves bringing folders back to `run_mirror`.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from utils._extras import require
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.errors import CheckpointError, TrainingError
from utils.tokenization.bits import BitsPerByte
from utils.training.engine.checkpoint import CheckpointMetadata, CheckpointStore
from utils.training.engine.foreign import weights_for
from utils.training.engine.mirror_folder import FileSystem, mirror_path
from utils.training.objective import choose_objective
from utils.training.result import TrainingResult
from utils.training.run_mirror import RUN_FILE, MirroredRun, mirrored_run, mirrored_runs, restore_run, top_up
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from utils.training.engine.loop import LossesPerByte, TrainingLoop, ValidationLoop

logger = logging.getLogger(__name__)

WEIGHTS = "adapted."
"""What stands before the names of the model's own weights in a checkpoint."""


class RecoveredRun(TrainingResult):
    """A `TrainingResult` that was read and not trained; where no model was given it has none.

    Attributes:
        weights: verified weights of the newest generation (of the best one, where validation ended the run), by the adapted
            model's names.
        step: optimizer steps done; total_steps: those of the whole run; finished: whether it came to its end.
    """

    def __init__(
        self,
        model: AdaptedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        config: TrainingConfig,
        values: Mapping[str, Any],
        weights: dict[str, torch.Tensor],
        metadata: CheckpointMetadata,
        finished: bool,
        total_steps: int,
    ) -> None:
        super().__init__(model, tokenizer, config, values)  # type: ignore[arg-type]
        self.weights, self.step, self.finished, self.total_steps = weights, metadata.step, finished, total_steps

    def _rows(self) -> list[tuple[str, str]]:
        state = "finished" if self.finished else f"interrupted after step {self.step:,} of {self.total_steps:,}"
        if self.model is not None:
            return [("state", state), *super()._rows()]
        loss = self["final_loss"]
        return [
            ("run", self["run_name"]),
            ("state", state),
            ("model", "none was given: .weights holds the verified weights"),
            ("training loss", "no epoch yet" if math.isnan(loss) else f"{loss:.3f} nats per token"),
            ("checkpoint", str(self["checkpoint_path"])),
        ]


def recover(
    run: str | Path | TrainingResult,
    model: Any = None,
    *,
    mirror_dir: str | Path | None = None,
    workspace: str | Path = "runs",
    files: FileSystem | None = None,
) -> RecoveredRun:
    """What a finished or interrupted training gave, from its newest verified checkpoint.

    Args:
        run: folder of the run, its name in `workspace` or on `mirror_dir`, its folder on a mirror, or a result of it.
        model: the run's model as it was built (an `AdaptedModel`, or what `adapt` takes); the weights are put into it. None
            leaves them in `.weights`.
        mirror_dir: mirror of the run; taken where the workspace lacks it, or holds nothing as new that verifies.
        workspace: folder of runs in which a run from a mirror is restored.
        files: file system of the mirror; None takes the real one.

    Returns:
        The same mapping as a finished training; its histories end at the checkpoint.

    Raises:
        TrainingError: there is no such run, neither here nor on the mirror.
        CheckpointError: none of its checkpoints verifies, or the model is another one.
    """
    require("pytorch_lightning", extra="training", feature="Reading a run")
    path = _run_folder(run, mirror_dir, Path(workspace).expanduser(), files)
    store = _store_of(path)
    config = TrainingConfig.load(path / "config.json")
    if mirror_dir is not None:
        top_up(store, path.name, mirror_dir, files)
    metadata = store.newest()
    if metadata is None:
        raise CheckpointError(
            f"The run {path.name!r} in {path.parent} has no checkpoint that verifies: nothing was saved yet, or all is damaged."
        )
    checkpoint = store.load(store.folder / metadata.file)
    values, total = _values(checkpoint, path, store)
    best = store.best() if values["ended_early"] else None
    handed_over = checkpoint if best is None else store.load(store.folder / best.file)
    weights = _weights_in(handed_over)
    adapted = None
    if model is not None:
        adapted, _ = choose_objective(adapt(model), config.objective)  # attention made causal is so again
        adapted.load_state_dict(weights_for(adapted, weights, metadata.file))
        adapted.eval()
    return RecoveredRun(
        adapted,
        _tokenizer(path),
        config,
        values,
        weights,
        metadata,
        metadata.ends or (path / "manifest.json").is_file(),
        total,
    )


def saved_generations(run_folder: str | Path) -> list[CheckpointMetadata]:
    """What was saved of a run and is still kept, the newest first."""
    return _store_of(Path(run_folder)).generations()


def load_weights(adapted: AdaptedModel, run_folder: str | Path, saved: CheckpointMetadata) -> None:
    """Put the verified weights of one generation of a run into its model.

    Raises:
        CheckpointError: the file does not verify, or the model is another one.
    """
    store = _store_of(Path(run_folder))
    adapted.load_state_dict(weights_for(adapted, _weights_in(store.load(store.folder / saved.file)), saved.file))
    adapted.eval()


def _store_of(path: Path) -> CheckpointStore:
    """The checkpoints of a run's folder; untidied, since somebody may be writing."""
    return CheckpointStore(path / "checkpoints", _run_file(path)["run_id"], tidy=False)


def _weights_in(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The model's own weights in a checkpoint, by the adapted model's names."""
    state = checkpoint["state_dict"]
    return {name.removeprefix(WEIGHTS): value for name, value in state.items() if name.startswith(WEIGHTS)}


def histories(training: TrainingLoop, validation: ValidationLoop, bits: LossesPerByte) -> dict[str, Any]:
    """The part of a results mapping that tells what happened."""
    from utils.training.engine.loop import best_epoch, epoch_results, metric_row

    epochs = epoch_results(training, validation.history)
    losses = [item.loss for item in validation.history]
    untrained = validation.untrained
    per_byte = bits.validation
    return {
        "loss_history": [item.train_loss for item in epochs],
        "step_loss_history": list(training.step_losses),
        "val_loss_history": losses,
        "val_steps": [item.step for item in validation.history],
        "val_measures_history": [dict(item.measures) for item in validation.history],
        "val_loss_untrained": untrained,
        "measures_untrained": dict(validation.untrained_measures),
        "ended_early": training.ended,
        "bits_per_byte_history": [] if bits.train is None else [bits.train(item.train_loss) for item in epochs],
        "val_bits_per_byte_history": [] if per_byte is None else [per_byte(loss) for loss in losses],
        "bits_per_byte_untrained": None if per_byte is None or untrained is None else per_byte(untrained),
        "best_epoch": best_epoch(epochs) if epochs else 0,
        "final_loss": epochs[-1].train_loss if epochs else math.nan,
        "epoch_results": epochs,
        "metric_rows": [metric_row(item, bits) for item in epochs],
        "training_time": training.seconds,
    }


def places(path: Path, store: CheckpointStore) -> dict[str, Any]:
    """The part of a results mapping that says where things lie."""
    newest, best = store.newest(), store.best()
    return {
        "checkpoint_path": None if newest is None else str(store.folder / newest.file),
        "best_checkpoint_path": None if best is None else str(store.folder / best.file),
        "run_name": path.name,
        "workspace_root": str(path.parent),
        "run_folder": str(path),
    }


def _values(checkpoint: Mapping[str, Any], path: Path, store: CheckpointStore) -> tuple[dict[str, Any], int]:
    from utils.training.engine.loop import LossesPerByte, TrainingLoop, ValidationLoop
    from utils.training.engine.resume import STATE_KEY
    from utils.training.engine.watching import Watched

    facts = dict(checkpoint[STATE_KEY]["facts"])
    total, bits = int(facts.pop("total_steps")), facts.pop("bits")
    per_byte = {part: None if pair is None else BitsPerByte(*pair) for part, pair in bits.items()}
    training, validation = TrainingLoop(total), ValidationLoop()
    for callback in (training, validation):
        callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
    watched = Watched.of(checkpoint["callbacks"])
    training.finish(checkpoint["epoch"])  # the epoch that was open, as far as it came
    found = histories(training, validation, LossesPerByte(per_byte["train"], per_byte["validation"]))
    return {**facts, **found, **watched.histories(), **places(path, store)}, total


def _run_folder(
    run: str | Path | TrainingResult, mirror_dir: str | Path | None, workspace: Path, files: FileSystem | None
) -> Path:
    """The run's folder on the local disk, restored where only a mirror has it."""
    path = run.run_folder if isinstance(run, TrainingResult) else Path(run).expanduser()
    for place in (path, workspace / path.name):
        if (place / RUN_FILE).is_file():
            return place
    mirrored = _mirrored(path, mirror_dir, files)
    if mirrored is None:
        looked = f"{path}, {workspace / path.name}" + (
            f" and the mirror {mirror_dir}" if mirror_dir is not None else ""
        )
        raise TrainingError(
            f"There is no run {path.name!r}: {looked} hold none. Pass mirror_dir= where a mirror has it."
        )
    here = workspace / mirrored.name
    if (here / RUN_FILE).is_file():
        if _run_file(here)["run_id"] == mirrored.run["run_id"]:
            return here
        workspace = Path(tempfile.mkdtemp(prefix="recovered-", dir=workspace))  # another run has that name here
    restored = restore_run(mirrored, workspace)
    if restored is None:
        raise CheckpointError(f"No state of the run {mirrored.name!r} on the mirror is whole: it cannot be recovered.")
    return restored


def _mirrored(path: Path, mirror_dir: str | Path | None, files: FileSystem | None) -> MirroredRun | None:
    if mirror_dir is None:
        return mirrored_run(mirror_path(path), files)
    runs = [found for found in mirrored_runs(mirror_dir, files) if path.name in (found.name, found.folder.path.name)]
    return max(runs, key=lambda found: found.commits[0].step, default=None)


def _run_file(path: Path) -> dict[str, Any]:
    try:
        values = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
        return {**values, "run_id": str(values["run_id"])}
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path / RUN_FILE} is unreadable: {error}.") from error


def _tokenizer(path: Path) -> PreTrainedTokenizerBase | None:
    from utils.tokenization.tokenizer_files import load_saved

    return load_saved(path / "tokenizer")
