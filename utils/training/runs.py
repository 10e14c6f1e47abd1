"""Runs by name: what one gave, its checkpoints, its exported folders. Finds and reads; trains nothing.

Which runs there are is for `run_index` to know, how they compare for `run_comparison`.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils._tables import html_table, text_table
from utils.errors import TrainingError
from utils.training.dashboard import Dashboard, RunHistory
from utils.training.engine.checkpoint import CheckpointMetadata, CheckpointStore
from utils.training.run_folder import MANIFEST_FILE
from utils.training.run_index import RunIndex
from utils.training.run_lock import FolderLock
from utils.training.run_manifest import Recipe
from utils.training.run_mirror import RUN_FILE
from utils.training.run_record import CHECKPOINTS, CONFIG_FILE, RunRecord, number, size, store_of
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from utils.training.recovery import RecoveredRun

logger = logging.getLogger(__name__)

WORKSPACE = Path(TrainingConfig().checkpoint_dir)
"""Where runs lie unless somebody says otherwise."""


@dataclass(frozen=True)
class Run:
    """One run, found by its name.

    Attributes:
        folder: of the run. record: what its folder said when it was found.

    Example:
        >>> run = load_run("first")
        >>> run.best_checkpoint, run.bundles
        >>> print(generate(run.result(), "The "))
    """

    folder: Path
    record: RunRecord

    @property
    def name(self) -> str:
        """Name of the run, which is that of its folder."""
        return self.folder.name

    @property
    def state(self) -> str:
        """One of "finished", "running" (a process holds it now) and "interrupted"."""
        return state_of(self.folder, self.record)

    @property
    def config(self) -> TrainingConfig:
        """Settings of the run."""
        return TrainingConfig.load(self.folder / CONFIG_FILE)

    @property
    def history(self) -> RunHistory:
        """Everything that was measured, by column."""
        return RunHistory.of_folder(self.folder)

    def checkpoints(self) -> list[CheckpointMetadata]:
        """Its saved generations, the newest first; `path_of` says where one lies. Their bytes are not verified here."""
        store = self.store()
        return [] if store is None else store.generations()

    def path_of(self, checkpoint: CheckpointMetadata) -> Path:
        """File of a checkpoint."""
        return self.folder / CHECKPOINTS / checkpoint.file

    @property
    def newest_checkpoint(self) -> Path | None:
        """Newest checkpoint whose bytes verify; None where there is none."""
        store = self.store()
        found = None if store is None else store.newest()
        return None if found is None else self.path_of(found)

    @property
    def best_checkpoint(self) -> Path | None:
        """Checkpoint with the lowest validation loss; None where none was validated."""
        store = self.store()
        found = None if store is None else store.best()
        return None if found is None else self.path_of(found)

    @property
    def bundles(self) -> list[Path]:
        """Exported folders inside the run's folder, complete ones only."""
        return sorted(file.parent for file in self.folder.glob(f"*/{MANIFEST_FILE}"))

    def result(self, model: Any = None, *, trust: bool = False) -> RecoveredRun:
        """What the run gave so far, with its model: what `generate` and `export` take.

        Args:
            model: as it was built, for a run whose model a program made; None builds it from the source in the run's folder.
            trust: run that source although its review found something dangerous.

        Raises:
            TrainingError: the model cannot be had from the folder. CheckpointError: no checkpoint verifies.
        """
        from utils.training.recovery import recover

        return recover(self.folder, self._built(trust) if model is None else model)

    def dashboard(self) -> Dashboard:
        """The run as a picture."""
        return Dashboard(self.folder)

    def store(self) -> CheckpointStore | None:
        """Its checkpoints, for reading; None where it has no folder of them."""
        return store_of(self.folder, self.record.run_id)

    def summary(self) -> str:
        """The run in a few lines of text."""
        return text_table(("", ""), self._rows(), title=f"Run {self.name}")

    __str__ = summary

    def _repr_html_(self) -> str:
        return html_table(("", ""), self._rows())

    def _built(self, trust: bool) -> Any:
        from utils.loading.model_loader import load_model

        recipe = Recipe.read(self.folder)
        problems = [text for text in recipe.problems(data="not needed") if text.startswith("model")]
        if problems:
            raise TrainingError(
                f"The model of the run {self.name!r} cannot be built from its folder: {'; '.join(problems)}."
            )
        return load_model(recipe.source(), class_name=recipe.values["model"]["class_name"], trust=trust)

    def _rows(self) -> list[tuple[str, str]]:
        record = self.record
        parameters = "" if record.parameters is None else f", {record.parameters:,} parameters"
        of = "" if record.total_steps is None else f" of {record.total_steps:,}"
        at = "" if record.best_step is None else f" (step {record.best_step:,})"
        return [
            ("folder", str(self.folder)),
            ("begun", record.begun or "not said"),
            ("state", f"{self.state}, {record.steps:,}{of} steps"),
            ("model", f"{record.model or 'not said'}{parameters}"),
            ("data", record.data or "not said"),
            ("training loss", number(record.train_loss)),
            ("best validation", f"{number(record.bits_per_byte)} bits per byte, loss {number(record.val_loss)}{at}"),
            ("speed", f"{number(record.tokens_per_second, 0)} tokens/s, {size(record.memory_bytes)} of memory"),
            ("time", "–" if record.seconds is None else f"{record.seconds:,.0f} s"),
            ("checkpoints", f"{record.checkpoints}; best {_named(self.best_checkpoint)}"),
            ("exported", ", ".join(str(path) for path in self.bundles) or "nothing"),
            ("on disk", size(record.bytes)),
            ("notes", record.notes or "–"),
        ]


def state_of(folder: Path, record: RunRecord) -> str:
    """What a run is doing: "finished", "running" or "interrupted"."""
    if FolderLock.is_held(folder):
        return "running"
    return "finished" if record.finished else "interrupted"


def load_run(name: str | Path, workspace: str | Path = WORKSPACE) -> Run:
    """A run by its name, by the beginning of its name where one run alone has it, or by its folder.

    Args:
        name: of the run, or its folder.
        workspace: folder of the runs.

    Raises:
        TrainingError: there is no such run; the nearest names are said.

    Example:
        >>> load_run("first").best_checkpoint
    """
    path, root = Path(name).expanduser(), Path(workspace).expanduser()
    places = (root / path.name, path) if path.name == str(name) else (path, root / path.name)
    for place in places:
        if str(name).strip() and (place / RUN_FILE).is_file():
            return Run(place, RunRecord.of_folder(place))
    records = RunIndex(root).refresh()
    begun = [record for record in records if str(name) and record.name.startswith(str(name))]
    if len(begun) == 1:
        return Run(root / begun[0].name, begun[0])
    raise TrainingError(_not_found(str(name), root, [record.name for record in begun or records], bool(begun)))


def load_runs(names: Sequence[str], workspace: str | Path = WORKSPACE) -> list[Run]:
    """Several runs by name; all runs of the workspace, the newest first, where none is named."""
    root = Path(workspace).expanduser()
    if names:
        return [load_run(name, root) for name in dict.fromkeys(names)]
    return [Run(root / record.name, record) for record in RunIndex(root).refresh()]


def _not_found(name: str, workspace: Path, names: list[str], several: bool) -> str:
    if not names:
        return f"There is no run {name!r}: {workspace} holds no runs. Pass workspace= (--workspace) where they lie elsewhere."
    if several:
        return f"Several runs in {workspace} begin with {name!r}: {', '.join(names)}. Name one of them."
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"There is no run {name!r} in {workspace}.{hint} There are: {', '.join(names[:20])}."


def _named(path: Path | None) -> str:
    return "none" if path is None else path.name
