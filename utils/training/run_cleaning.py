"""What cleaning up would delete, said before it is done. Deletes only folders and files of runs, and none that is in use.

Whether somebody agrees is for the command line to ask.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils._files import write_json
from utils.training.run_folder import MANIFEST_FILE
from utils.training.run_lock import FolderLock
from utils.training.run_mirror import RUN_FILE
from utils.training.run_record import bytes_below, size
from utils.training.runs import Run

logger = logging.getLogger(__name__)

DELETING = ".deleting-"
"""What the names of half-deleted runs begin with: a killed deletion is finished by the next one."""

_LEFT = re.compile(re.escape(DELETING) + "[0-9a-f]{12}")
"""Such a name as a whole; a folder that somebody else has named is left alone."""


@dataclass(frozen=True)
class Removal:
    """One thing that would go.

    Attributes:
        run: whose; files: checkpoints that go; empty where the whole folder does.
        bytes: that become free. warning: what is lost for good; empty where nothing is.
        blocked: why it stays after all; empty where it goes.
    """

    run: Run
    files: tuple[Path, ...] = ()
    bytes: int = 0
    warning: str = ""
    blocked: str = ""

    def describe(self) -> str:
        """One line for people."""
        count = f"{len(self.files)} checkpoint{'s' if len(self.files) > 1 else ''}"
        what = f"{count} of {self.run.name}" if self.files else f"the run {self.run.name}"
        if self.blocked:
            return f"stays: {what} ({self.blocked})"
        return f"{what}, {size(self.bytes)}" + (f". {self.warning}" if self.warning else "")

    def perform(self) -> bool:
        """Delete it; False where a training has taken the run in the meantime."""
        lock = None if self.blocked else FolderLock.acquire(self.run.folder)
        if lock is None:
            logger.warning("the run %s is left alone: %s", self.run.name, self.blocked or "a training uses it now")
            return False
        try:
            if self.files:
                self._delete_checkpoints()
            else:
                _delete_folder(self.run.folder)
        finally:
            lock.release()
        return True

    def _delete_checkpoints(self) -> None:
        for file in self.files:
            file.with_suffix(".json").unlink(missing_ok=True)  # first, so that no manifest names a file that is gone
            file.unlink(missing_ok=True)
        self._forget_in_manifest()

    def _forget_in_manifest(self) -> None:
        """A finished run's manifest lists what is there."""
        manifest = self.run.folder / MANIFEST_FILE
        if not manifest.is_file():
            return
        values = json.loads(manifest.read_text(encoding="utf-8"))
        root = self.run.folder
        values["files"] = {name: facts for name, facts in values["files"].items() if (root / name).is_file()}
        write_json(manifest, values)


def plan_removal(runs: Sequence[Run], checkpoints_only: bool = False) -> list[Removal]:
    """What cleaning these runs would delete; nothing is touched.

    Args:
        runs: to clean.
        checkpoints_only: keep the runs, with their newest checkpoint that verifies and their best one.
    """
    found = [_linked(run) or (_checkpoints_of(run) if checkpoints_only else _whole(run)) for run in runs]
    return [removal for removal in found if removal is not None]


def finish_deletions(workspace: Path) -> None:
    """Delete what killed deletions left."""
    for path in workspace.glob(f"{DELETING}*"):
        if _LEFT.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _linked(run: Run) -> Removal | None:
    """Why a run stays that lies elsewhere and is only linked to; None where it lies here."""
    if not run.folder.is_symlink():
        return None
    return Removal(run, blocked=f"it is a link to {run.folder.resolve()}, where its files lie")


def _whole(run: Run) -> Removal:
    count, state = bytes_below(run.folder), run.state
    if state == "running":
        return Removal(run, bytes=count, blocked="it is being trained right now")
    if state == "finished":
        exported = len(run.bundles)
        return Removal(run, bytes=count, warning=f"{exported} exported folders go with it" if exported else "")
    store = run.store()
    newest = None if store is None else store.newest()
    if newest is None:
        return Removal(run, bytes=count)
    of = "" if run.record.total_steps is None else f" of {run.record.total_steps:,}"
    lost = f"Unfinished: its last good checkpoint (step {newest.step:,}{of}) is lost, and it cannot go on"
    mirror = run.config.mirror_dir
    return Removal(run, bytes=count, warning=lost + (f" except from the mirror {mirror}" if mirror else ""))


def _checkpoints_of(run: Run) -> Removal | None:
    """The generations besides the newest good one and the best one; None where there are no others."""
    store = run.store()
    newest = None if store is None else store.newest()
    if store is None or newest is None:  # nothing good is there: nothing is safe to delete
        return None
    kept = {newest.file} | {item.file for item in [store.best()] if item is not None}
    others = [item for item in store.generations() if item.file not in kept]
    if not others:
        return None
    files = tuple(run.path_of(item) for item in others)
    blocked = "it is being trained right now" if run.state == "running" else ""
    return Removal(run, files, sum(item.size for item in others), blocked=blocked)


def _delete_folder(folder: Path) -> None:
    """No longer a run first, then out of sight, then gone: whenever this is killed, no half run is left that could continue."""
    (folder / RUN_FILE).unlink()
    hidden = folder.rename(folder.with_name(f"{DELETING}{uuid.uuid4().hex[:12]}"))
    shutil.rmtree(hidden)
