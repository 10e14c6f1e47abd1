"""How often an interrupted run equals the uninterrupted one: `python -m tests.training.engine.resume_table`.

Prints one row per way of being interrupted, with k of n. Equal means: every loss, validation, learning rate, weight,
optimizer slot and schedule, bit for bit. Takes a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.training.engine.resume_runs import (
    THREE_EPOCHS,
    THREE_EPOCHS_STEPS,
    VALIDATION,
    digest,
    outcome,
    stop,
    train_in_this_process,
    trainer,
)

ROOT = Path(__file__).resolve().parents[3]
STEPS = range(1, THREE_EPOCHS_STEPS)


@dataclass(frozen=True)
class Row:
    """One way of being interrupted: so many runs, of which so many came out equal; what differed elsewhere."""

    name: str
    runs: int
    equal: int
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name:<66} {self.equal:>3} of {self.runs:<3} {self.note}"


@functools.cache
def uninterrupted(folder: Path, **changes: Any) -> dict[str, str]:
    """Hashes of a run that nobody stops."""
    workspace = Path(tempfile.mkdtemp(dir=folder))
    return digest(outcome(workspace, **{**THREE_EPOCHS, **changes})[1])


def _count(name: str, folder: Path, cases: Iterator[tuple[str, dict[str, str]]]) -> Row:
    expected, wrong, runs = uninterrupted(folder), [], 0
    for label, found in cases:
        runs += 1
        differing = [key for key in expected if found.get(key) != expected[key]]
        if differing:
            wrong.append(f"{label}: {', '.join(differing)}")
    return Row(name, runs, runs - len(wrong), "; ".join(wrong))


def every_step(folder: Path, workers: int, steps: range = STEPS) -> Row:
    """Stopped after every optimizer step, resumed in the same process with other start weights."""

    def cases() -> Iterator[tuple[str, dict[str, str]]]:
        for step in steps:
            workspace = Path(tempfile.mkdtemp(dir=folder))
            yield str(step), digest(outcome(workspace, (step,), num_workers=workers, **THREE_EPOCHS)[1])

    return _count(f"stopped after every optimizer step, {workers} workers", folder, cases())


def workers_change(folder: Path, steps: range = range(4, 18, 6)) -> Row:
    """Begun with two workers, gone on with none."""

    def cases() -> Iterator[tuple[str, dict[str, str]]]:
        for step in steps:
            workspace = Path(tempfile.mkdtemp(dir=folder))
            stop(workspace, step, 0, VALIDATION, num_workers=2, **THREE_EPOCHS)
            yield str(step), digest(outcome(workspace, **THREE_EPOCHS)[1])

    return _count("stopped with 2 workers, resumed with 0", folder, cases())


def rare_saves(folder: Path, steps: range = STEPS) -> Row:
    """Saved every fifth step only: the steps since then are repeated."""

    def cases() -> Iterator[tuple[str, dict[str, str]]]:
        for step in steps:
            workspace = Path(tempfile.mkdtemp(dir=folder))
            seed = 0 if step < 5 else None  # where nothing is saved yet, the run begins anew from what it is given
            yield str(step), digest(outcome(workspace, (step,), seed=seed, **THREE_EPOCHS, save_every_n_steps=5)[1])

    return _count("stopped after every optimizer step, saved every 5th", folder, cases())


def lost_machines(folder: Path, steps: range = STEPS) -> Row:
    """Stopped after every optimizer step, the local folder deleted, restored from the mirror."""

    def cases() -> Iterator[tuple[str, dict[str, str]]]:
        for step in steps:
            base = Path(tempfile.mkdtemp(dir=folder))
            changes = {**THREE_EPOCHS, "mirror_dir": str(base / "drive")}
            stop(base / "old", step, 0, VALIDATION, **changes)
            shutil.rmtree(base / "old")
            result, facts = outcome(base / "new", **changes)
            assert result["resumed_from_step"] == step, "the mirror was behind"
            yield str(step), digest(facts)

    return _count("machine lost after every optimizer step, restored from the mirror", folder, cases())


def chains(folder: Path, runs: int = 4, resumes: int = 10) -> Row:
    """Stopped ten times in one run."""

    def cases() -> Iterator[tuple[str, dict[str, str]]]:
        for number in range(runs):
            steps = tuple(sorted(random.Random(number).sample(STEPS, resumes)))
            workspace = Path(tempfile.mkdtemp(dir=folder))
            yield str(steps), digest(outcome(workspace, steps, num_workers=number % 2 * 2, **THREE_EPOCHS)[1])

    return _count(f"chains of {resumes} resumes, 0 and 2 workers", folder, cases())


def signals(folder: Path, steps: range = range(1, 18, 4)) -> Row:
    """Asked to end in the middle of a step: the step ends and is saved, and nothing else."""

    def cases() -> Iterator[tuple[str, dict[str, str]]]:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background of a shell ignores it
        for number in (signal.SIGINT, signal.SIGTERM):
            for step in steps:
                workspace = Path(tempfile.mkdtemp(dir=folder))
                run = trainer(workspace, **THREE_EPOCHS, save_every_n_steps=None)
                run.stop_before, run.act = step, functools.partial(signal.raise_signal, number)
                try:
                    run.train(*_data())
                except KeyboardInterrupt:
                    heard = signal.SIGINT
                except SystemExit:
                    heard = signal.SIGTERM
                else:
                    heard = None
                result, facts = outcome(workspace, **THREE_EPOCHS)
                label = f"{number.name} in step {step + 1}, resumed from {result['resumed_from_step']}"
                found = digest(facts)
                yield label, found if result["resumed_from_step"] == step + 1 and heard == number else {}

    return _count("SIGINT and SIGTERM inside a step", folder, cases())


def killed(folder: Path, runs: int, fresh: bool, together: int = 2) -> Row:
    """Killed one to three times at random moments, each time gone on with in another process."""
    how = "new interpreters" if fresh else "new processes"
    seconds = _seconds(folder, fresh)
    with ThreadPoolExecutor(together) as pool:
        work = functools.partial(_killed_run, folder, seconds, fresh)
        answers = list(pool.map(work, range(runs)))
    kills = sum(count for count, _ in answers)
    cases = ((f"run {number}", found) for number, (_, found) in enumerate(answers))
    row = _count(f"1 to 3 random kill -9, {how}", folder, cases)
    return Row(row.name, row.runs, row.equal, f"({kills} kills) {row.note}".strip())


def _killed_run(folder: Path, seconds: float, fresh: bool, number: int) -> tuple[int, dict[str, str]]:
    draw, kills = random.Random(number), 0
    workspace = Path(tempfile.mkdtemp(dir=folder))
    changes = {**THREE_EPOCHS, "num_workers": number % 2 * 2}
    wanted, answer = draw.randint(1, 3), workspace / "answer.json"
    while not answer.exists():
        process = _Process(workspace, answer, changes, fresh)
        if kills < wanted:
            process.wait(draw.uniform(0.1, 0.9) * seconds)
            if process.kill():
                kills += 1
            elif kills == 0:  # it was faster than ever: what it did is no test
                answer.unlink(missing_ok=True)
                shutil.rmtree(workspace / "r")
        elif not process.wait(300) or not answer.exists():
            return kills, {"error": f"exit code {process.code}"}
    return kills, json.loads(answer.read_text())


class _Process:
    """A training in another process: forked from a server that has imported and done nothing, or a new interpreter."""

    def __init__(self, workspace: Path, answer: Path, changes: dict[str, Any], fresh: bool) -> None:
        arguments = (str(workspace), str(answer), changes)
        self._fresh: subprocess.Popen[bytes] | None = None
        if fresh:
            command = [sys.executable, "-m", train_in_this_process.__module__]
            if train_in_this_process.__module__ == "__main__":
                raise AssertionError("run as a module")
            self._fresh = subprocess.Popen(
                [*command, *arguments[:2], json.dumps(changes)],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        else:
            with _STARTING:
                context = _server()
                self._forked = context.Process(target=_quietly, args=arguments)
                self._forked.start()

    @property
    def code(self) -> int | None:
        return self._fresh.poll() if self._fresh is not None else self._forked.exitcode

    def wait(self, seconds: float) -> bool:
        """Whether it has ended."""
        end = time.monotonic() + seconds
        while self.code is None and time.monotonic() < end:
            time.sleep(0.01)
        return self.code is not None

    def kill(self) -> bool:
        """Whether it was still running."""
        (self._fresh or self._forked).kill()
        self.wait(30)
        return self.code == -signal.SIGKILL


_STARTING = threading.Lock()


@functools.cache
def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.engine.resume_runs"])
    return context


def _quietly(workspace: str, answer: str, changes: dict[str, Any]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    multiprocessing.set_start_method("fork", force=True)  # for its workers: else each imports everything anew
    train_in_this_process(workspace, answer, changes)


def _seconds(folder: Path, fresh: bool) -> float:
    """How long an uninterrupted run takes in another process, its start included."""
    workspace = Path(tempfile.mkdtemp(dir=folder))
    _Process(workspace / "warm", workspace / "warm.json", THREE_EPOCHS, fresh).wait(300)
    began = time.monotonic()
    _Process(workspace, workspace / "answer.json", THREE_EPOCHS, fresh).wait(300)
    return time.monotonic() - began


def _data() -> tuple[Any, Any]:
    from tests.training.engine.resume_runs import BLOCKS

    return BLOCKS, VALIDATION


ROWS: list[Callable[[Path], Row]] = [
    lambda folder: every_step(folder, 0),
    lambda folder: every_step(folder, 2),
    workers_change,
    rare_saves,
    lost_machines,
    chains,
    signals,
    lambda folder: killed(folder, 30, fresh=False),
    lambda folder: killed(folder, 4, fresh=True),
]


def main() -> int:
    """Print the table; exit code 1 where a run differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", help="numbers of rows, from 1; all where none are given")
    chosen = parser.parse_args().rows or range(1, len(ROWS) + 1)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for number in chosen:
            began = time.monotonic()
            row = ROWS[number - 1](Path(folder))
            good = good and row.equal == row.runs
            print(f"{row}  [{time.monotonic() - began:.0f} s]", flush=True)  # noqa: T201 - a program for the terminal
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
