"""What is left after faults of the machine, the disk and the mirror: `python -m tests.training.engine.fault_table`.

Prints one row per kind of fault, with k of n. Right means: the newest good generation is found, its content is whole,
nothing torn is ever loaded, no file is left over, the next save works, and the mirror says what is true.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch

from tests.training.engine.boundaries import DIED, Boundaries, full, in_child, small_disk
from tests.training.engine.faults import (
    ERRNOS,
    PAUSES,
    FaultyFileSystem,
    Run,
    is_content,
    raising,
    slow,
    strangers,
    until,
)
from tests.training.engine.resume_runs import THREE_EPOCHS, digest, facts_of, trainer
from tests.training.engine.resume_table import Row, _data, uninterrupted
from utils.errors import CheckpointError
from utils.training.engine.checkpoint import CheckpointStore
from utils.training.engine.mirror_folder import FileSystem, MirrorFolder
from utils.training.run_mirror import mirrored_runs, restore_run

Case = tuple[str, str]
"""A label, and what is wrong; nothing where it is empty."""


def table_row(name: str, cases: Iterator[Case]) -> Row:
    """How many cases are right."""
    found = list(cases)
    wrong = [f"{label}: {problem}" for label, problem in found if problem]
    return Row(name, len(found), len(found) - len(wrong), "; ".join(wrong[:5]))


def newest_of(store: CheckpointStore) -> int | None:
    """Step of the newest generation, once its content is seen to be whole."""
    newest = store.newest()
    if newest is None:
        return None
    state = store.load(store.folder / newest.file)
    assert is_content(state) and state["step"] == newest.step, "a torn checkpoint was loaded"
    return newest.step


def with_generations(folder: Path, *steps: int) -> Run:
    """A run in a new folder."""
    run = Run(Path(tempfile.mkdtemp(dir=folder)))
    for step in steps:
        run.save(step)
    return run


# ---- the machine ----------------------------------------------------------------------------------------------------
def kills_inside_a_save(folder: Path) -> Row:
    """The process ends at every boundary between two system calls of a save that also deletes an old generation."""
    with Boundaries().watch() as counting:
        with_generations(folder, 1, 2)
        before = counting.count
        run = with_generations(folder, 1, 2)
        run.save(3)
    number = counting.count - 2 * before

    def cases() -> Iterator[Case]:
        for at in range(1, number + 1):
            run = with_generations(folder, 1, 2)
            code = in_child(lambda at=at, run=run: _save_watched(run, at))
            yield str(at), _after_save(run, code == DIED)

    return table_row("killed inside a save, at every system call", cases())


def _save_watched(run: Run, at: int) -> None:
    with Boundaries(at).watch():
        run.save(3)


def _after_save(run: Run, ended: bool) -> str:
    again = Run(run.path.parent)
    found = newest_of(again.store)
    left = strangers(again.store.folder)
    saved = newest_of(again.store) if again.save(4) else None
    kept = len(again.store.generations())
    if not ended:
        return "the boundary was not reached"
    if found not in (2, 3) or saved != 4 or kept > 2:
        return f"newest {found}, then {saved}, {kept} generations"
    return f"left over: {left}" if left or strangers(again.store.folder) else ""


def kills_inside_a_copy(folder: Path) -> Row:
    """The process ends at every operation of the mirror while the third generation is copied and the first deleted."""

    def mirrored(run: Run, at: int | None) -> FaultyFileSystem:
        boundaries = Boundaries(at)
        files = FaultyFileSystem(lambda operation, path: boundaries.cross())
        mirror = run.mirror(run.path.parent / "drive", files)
        run.save(3)
        mirror.close(20)
        return files

    def begun() -> Run:
        run = with_generations(folder)
        mirror = run.mirror(run.path.parent / "drive")
        for step in (1, 2):
            run.save(step)
            until(lambda step=step: mirror.status.safe_step == step)
        mirror.close(20)
        return run

    def cases() -> Iterator[Case]:
        number = len(mirrored(begun(), None).calls)
        for at in range(1, number + 1):
            run = begun()
            code = in_child(lambda at=at, run=run: mirrored(run, at))
            yield str(at), "the boundary was not reached" if code != DIED else _after_copy(run)

    return table_row("killed inside a copy to the mirror, at every operation", cases())


def _after_copy(run: Run) -> str:
    drive, base = run.path.parent / "drive", run.path.parent
    found = restored(drive, base / "new")
    again = Run(base)
    mirror = again.mirror(drive)
    mirror.offer(again.store.newest())
    status = mirror.close(20)
    if found not in (2, 3) or status.safe_step != again.store.newest().step or status.problem:
        return f"restored {found}, then {status}"
    left = orphans(drive)
    return f"left over: {left}" if left else ""


def restored(drive: Path, workspace: Path) -> int | None:
    """Step of the generation that a new machine gets."""
    runs = mirrored_runs(drive, pause=0)
    path = restore_run(runs[0], workspace, pause=0) if runs else None
    return None if path is None else newest_of(CheckpointStore(path / "checkpoints", str(runs[0].run["run_id"])))


def orphans(drive: Path) -> list[str]:
    """Objects on the mirror that no commit names."""
    (folder,) = drive.iterdir()
    named = {item.object for commit in MirrorFolder(folder, FileSystem()).read_commits() for item in commit.files}
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".bin" and path.name not in named)


# ---- bytes that change ----------------------------------------------------------------------------------------------
def damage(raw: bytes, kind: str, draw: random.Random) -> bytes:
    """Bytes with one bit flipped, cut off, or with a page of zeros."""
    at = draw.randrange(len(raw))
    if kind == "bit flips":
        return raw[:at] + bytes([raw[at] ^ 1 << draw.randrange(8)]) + raw[at + 1 :]
    if kind == "truncations":
        return raw[:at]
    page = raw[at : at + 64]
    return raw[:at] + (bytes(len(page)) if any(page) else b"\xff" * len(page)) + raw[at + len(page) :]


def damaged_locally(folder: Path, kind: str, number: int) -> Row:
    """The newest checkpoint, or in every fourth case its manifest, is damaged at a random place."""
    run = with_generations(folder, 1, 2)
    newest = run.store.newest()
    checkpoint = run.store.folder / newest.file

    def cases() -> Iterator[Case]:
        for seed in range(number):
            target = checkpoint.with_suffix(".json") if seed % 4 == 3 else checkpoint
            good = target.read_bytes()
            target.write_bytes(damage(good, kind, random.Random(seed)))
            found = run.store.newest()
            loads = _loads(run.store, checkpoint)
            target.write_bytes(good)
            unchanged = found == newest and target != checkpoint  # JSON may be written in two ways
            older = found is not None and found.step == 1 and not loads
            yield f"seed {seed}", "" if older or unchanged else f"newest {found}, loads: {loads}"

    return table_row(f"{kind} in the newest checkpoint or manifest", cases())


def damaged_on_the_mirror(folder: Path, kind: str, number: int) -> Row:
    """The newest commit or one of its objects is damaged: a new machine gets that state whole, or the one before."""
    run = with_generations(folder)
    drive = run.path.parent / "drive"
    mirror = run.mirror(drive)
    for step in (1, 2):
        run.save(step)
        until(lambda step=step: mirror.status.safe_step == step)
    mirror.close(20)
    (place,) = drive.iterdir()
    commits = MirrorFolder(place, FileSystem()).read_commits()
    own = {item.object for item in commits[0].files} - {item.object for item in commits[1].files}
    targets = [place / name for name in sorted([*own, commits[0].file])]

    def cases() -> Iterator[Case]:
        for seed in range(number):
            target = targets[seed % len(targets)]
            good = target.read_bytes()
            target.write_bytes(damage(good, kind, random.Random(seed)))
            found = restored(drive, Path(tempfile.mkdtemp(dir=folder)))
            target.write_bytes(good)
            right = found == 1 or (found == 2 and target.name == commits[0].file)
            yield f"seed {seed}", "" if right else f"restored {found}"

    return table_row(f"{kind} on the mirror", cases())


def _loads(store: CheckpointStore, path: Path) -> bool:
    try:
        store.load(path)
    except CheckpointError:
        return False
    return True


# ---- full disks -----------------------------------------------------------------------------------------------------
def full_inside_a_save(folder: Path) -> Row:
    """The disk is full once, at every boundary of a save: an error, nothing left over, and the next save works."""
    with Boundaries().watch() as counting:
        with_generations(folder, 1, 2).save(3)
        total = counting.count
    with Boundaries().watch() as counting:
        with_generations(folder, 1, 2)
    number = total - counting.count

    def cases() -> Iterator[Case]:
        for at in range(1, number + 1):
            run = with_generations(folder, 1, 2)
            try:
                with Boundaries(at, full).watch():
                    run.save(3)
                    error = None
            except OSError as raised:
                error = raised
            again = Run(run.path.parent)
            found, left = newest_of(again.store), strangers(again.store.folder)
            again.save(4)
            right = found == (3 if error is None else 2) and not left and newest_of(again.store) == 4
            yield str(at), "" if right else f"{error!r}, newest {found}, left over: {left}"

    return table_row("disk full once, at every system call of a save", cases())


def full_disks(folder: Path, sizes: range = range(280, 920, 80)) -> Row:
    """Whole trainings on a small tmpfs (sizes in KiB) that wants to hold five generations: they end, and equal others."""
    expected = uninterrupted(folder, save_every_n_steps=1, keep_checkpoints=5)

    def cases() -> Iterator[Case]:
        for size in sizes:
            with small_disk(Path(tempfile.mkdtemp(dir=folder)), size << 10) as disk:
                if disk is None:
                    yield "tmpfs", "this process may not mount one"
                    return
                yield f"{size} KiB", _train_on(disk, expected)

    return table_row("trainings on a full tmpfs", cases())


def _train_on(disk: Path, expected: dict[str, str]) -> str:
    run = trainer(disk, **THREE_EPOCHS, keep_checkpoints=5)
    result = run.train(*_data())
    checkpoints = Path(result["run_folder"]) / "checkpoints"
    left = strangers(checkpoints)
    if left:
        return f"left over: {left}"
    if result["checkpoint_path"] is None:
        return "no checkpoint"
    found = digest(facts_of(result))
    wrong = [name for name in ("losses", "validations", "weights") if found[name] != expected[name]]
    return f"other {', '.join(wrong)}" if wrong else ""


# ---- the mirror -----------------------------------------------------------------------------------------------------
def mirror_faults(folder: Path) -> Row:
    """Whole trainings with a mirror that fails: equal to others, quick enough, with a status that is true."""
    expected = uninterrupted(folder)
    always = {name: FaultyFileSystem(raising(number)) for name, number in ERRNOS.items()}
    later = {f"{name}, later": _failing_later(number) for name, number in ERRNOS.items()}
    at_times = {f"{name}, at times": _failing_at_times(number) for name, number in ERRNOS.items()}
    lies = {
        "lies: cut": FaultyFileSystem(lie=lambda chunk: chunk[:-1]),
        "lies: zeros": FaultyFileSystem(lie=lambda chunk: bytes(len(chunk))),
        "slow": FaultyFileSystem(slow(0.2)),
        "vanishes": FaultyFileSystem(_vanishing(after=40)),
        "sound": FaultyFileSystem(),
    }

    def cases() -> Iterator[Case]:
        for name, files in {**always, **later, **at_times, **lies}.items():
            base = Path(tempfile.mkdtemp(dir=folder))
            yield name, _train_mirrored(base, files, expected, sound=name in ("sound", "slow") or "times" in name)

    return table_row("trainings with a mirror that fails", cases())


def _train_mirrored(base: Path, files: FaultyFileSystem, expected: dict[str, str], sound: bool) -> str:
    drive = base / "drive"
    with (
        mock.patch("utils.training.engine.mirror.FileSystem", return_value=files),
        mock.patch("utils.training.engine.mirror.FIRST_PAUSE", PAUSES[0]),
        mock.patch("utils.training.engine.mirror.LONGEST_PAUSE", PAUSES[1]),
    ):
        run = trainer(base / "work", mirror_dir=str(drive), **THREE_EPOCHS)
        result = run.train(*_data())
    found, status = digest(facts_of(result)), run.mirror.status
    wrong = [name for name in expected if found[name] != expected[name]]
    files.fault = files.lie = None
    for place in base.glob("drive-*"):
        place.rename(drive)
    safe = restored_step(drive, base / "new")
    if wrong:
        return f"other {', '.join(wrong)}"
    if status.safe_step is not None and (safe or 0) < status.safe_step:
        return f"said to be safe: {status.safe_step}, restored: {safe}"
    if (status.safe_step is None and sound) or (sound and status.safe_step != 18):
        return f"not safe at the end: {status.summary()}"
    return "" if sound or status.problem else "no problem is told"


def restored_step(drive: Path, workspace: Path) -> int | None:
    """Step of the newest generation of a real training that a new machine gets."""
    runs = mirrored_runs(drive, pause=0)
    path = restore_run(runs[0], workspace, pause=0) if runs else None
    if path is None:
        return None
    store = CheckpointStore(path / "checkpoints", str(runs[0].run["run_id"]))
    newest = store.newest()
    return None if newest is None else int(store.load(store.folder / newest.file)["global_step"])


def _failing_later(number: int) -> FaultyFileSystem:
    fault, calls = raising(number), iter(range(10**9))
    return FaultyFileSystem(lambda operation, path: fault(operation, path) if next(calls) > 40 else None)


def _failing_at_times(number: int) -> FaultyFileSystem:
    fault, draw = raising(number), random.Random(number)
    return FaultyFileSystem(lambda operation, path: fault(operation, path) if draw.random() < 0.02 else None)


def _vanishing(after: int) -> Callable[[str, Path], None]:
    calls = iter(range(10**9))

    def fault(operation: str, path: Path) -> None:
        if next(calls) == after:
            drive = next(parent for parent in [path, *path.parents] if parent.name == "drive")
            drive.rename(drive.with_name("drive-gone"))

    return fault


# ---- everything together --------------------------------------------------------------------------------------------
def histories(folder: Path, examples: int = 60) -> Row:
    """Random histories of saves, copies, crashes, damage, deletions and resumes."""
    from hypothesis import HealthCheck, settings
    from hypothesis.stateful import run_state_machine_as_test

    from tests.training.engine.state_machine import Faults

    Faults.examples = 0
    chosen = settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
    )
    run_state_machine_as_test(Faults, settings=chosen)  # raises with the shortest history that goes wrong
    return Row("random histories of up to 25 events", Faults.examples, Faults.examples)


ROWS: list[Callable[[Path], Row]] = [
    kills_inside_a_save,
    kills_inside_a_copy,
    lambda folder: damaged_locally(folder, "bit flips", 200),
    lambda folder: damaged_locally(folder, "truncations", 50),
    lambda folder: damaged_locally(folder, "zero pages", 50),
    lambda folder: damaged_on_the_mirror(folder, "bit flips", 100),
    lambda folder: damaged_on_the_mirror(folder, "truncations", 50),
    full_inside_a_save,
    full_disks,
    mirror_faults,
    histories,
]


def main() -> int:
    """Print the table; exit code 1 where something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", help="numbers of rows, from 1; all where none are given")
    chosen = parser.parse_args().rows or range(1, len(ROWS) + 1)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    good = True
    folder = tempfile.mkdtemp()
    try:
        for number in chosen:
            began = time.monotonic()
            row = ROWS[number - 1](Path(folder))
            good = good and row.equal == row.runs
            print(f"{row}  [{time.monotonic() - began:.0f} s]", flush=True)  # noqa: T201 - a program for the terminal
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
