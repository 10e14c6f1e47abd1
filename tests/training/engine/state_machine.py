"""Random histories of a run and its mirror: saves, copies, crashes, damage, deletions and resumes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.training.engine.boundaries import Boundaries, in_child
from tests.training.engine.faults import ERRNOS, FaultyFileSystem, Run, is_content, raising, strangers
from utils.training.engine.checkpoint import CheckpointStore
from utils.training.engine.mirror_folder import folder_of
from utils.training.run_mirror import mirrored_runs, restore_run, top_up

STEPS_OF_A_SAVE = 45
"""A few more than the boundaries of one save, so that some crashes come after it."""


class Faults(RuleBasedStateMachine):
    """One run on one machine after the other.

    What is known: which steps were saved completely, which of them nobody has damaged since (here and on the mirror), and
    how far the mirror was called safe.
    """

    examples = 0

    @initialize()
    def begin(self) -> None:
        self.base = Path(tempfile.mkdtemp())
        self.drive, self.files = self.base / "drive", FaultyFileSystem()
        self.run = Run(self.base / "work")
        self.step, self.saved, self.good, self.safe = 0, set[int](), set[int](), set[int]()
        Faults.examples += 1

    def teardown(self) -> None:
        shutil.rmtree(self.base, ignore_errors=True)

    # ---- events -----------------------------------------------------------------------------------------------------
    @rule(loss=st.sampled_from([None, 1.0, 2.0, 3.0]))
    def save(self, loss: float | None) -> None:
        self.step += 1
        self.run.save(self.step, loss)
        self.saved.add(self.step)
        self.good.add(self.step)
        self._forget_deleted()

    @rule(at=st.integers(1, STEPS_OF_A_SAVE))
    def crash_in_a_save(self, at: int) -> None:
        self.step += 1

        def work() -> None:
            with Boundaries(at).watch():
                self.run.save(self.step)

        in_child(work)
        self.resume()
        if self.step in {item.step for item in self.run.store.generations()}:
            self.saved.add(self.step)
            self.good.add(self.step)
        self._forget_deleted()

    @rule()
    def resume(self) -> None:
        self.run = Run(self.base / "work")
        assert not strangers(self.run.store.folder)

    @rule(fault=st.sampled_from([None, None, *ERRNOS.values()]), times=st.integers(1, 60))
    def copy(self, fault: int | None, times: int) -> None:
        newest = self.run.store.newest()
        self.files.fault = None if fault is None else raising(fault, times=times)
        mirror = self.run.mirror(self.drive, self.files)
        if newest is not None:
            mirror.offer(newest)
        status = mirror.close(20)
        self.run.store.on_commit = self.files.fault = None
        if status.safe_step is not None:
            assert newest is not None and status.safe_step == newest.step
            self.safe = {status.safe_step}
        assert fault is not None or newest is None or status.safe_step == newest.step, status

    @precondition(lambda self: self.saved)
    @rule(data=st.data(), kind=st.sampled_from(["flip", "cut", "delete"]))
    def damage_a_file(self, data: st.DataObject, kind: str) -> None:
        files = sorted(self.run.store.folder.iterdir())
        if not files:
            return
        path = data.draw(st.sampled_from(files))
        self._damage(path, data.draw(st.integers(0, 10**6)), kind)
        self.good.discard(int(path.name.split("-")[1]))

    @precondition(lambda self: self.safe)
    @rule(data=st.data(), kind=st.sampled_from(["flip", "cut", "delete"]))
    def damage_the_mirror(self, data: st.DataObject, kind: str) -> None:
        path = data.draw(st.sampled_from(sorted(folder_of(self.drive, "r", self.run.run_id).iterdir())))
        self._damage(path, data.draw(st.integers(0, 10**6)), kind)
        self.safe = set()

    @rule()
    def lose_the_machine(self) -> None:
        shutil.rmtree(self.base / "work")
        runs = mirrored_runs(self.drive, pause=0)
        path = restore_run(runs[0], self.base / "work", pause=0) if runs else None
        if path is None:
            assert not self.safe
            self.run = Run(self.base / "work")
            self.good = set()
        else:
            self.run = Run(self.base / "work")
            newest = self.run.store.newest()
            assert newest is not None and not [step for step in self.safe if step > newest.step]
            self.good = {newest.step}
            self.step = max(self.step, newest.step)

    @precondition(lambda self: self.safe)
    @rule()
    def fetch_what_is_newer(self) -> None:
        top_up(self.run.store, "r", self.drive)
        newest = self.run.store.newest()
        assert newest is not None and newest.step >= max(self.safe)
        self.good.add(newest.step)

    # ---- what always holds ------------------------------------------------------------------------------------------
    @invariant()
    def the_newest_good_generation_is_found_and_whole(self) -> None:
        store = CheckpointStore(self.run.store.folder, self.run.run_id, tidy=False)
        newest = store.newest()
        if newest is not None:
            state = store.load(store.folder / newest.file)
            assert is_content(state) and state["step"] == newest.step and newest.step in self.saved
        here = {item.step for item in store.generations()}
        expected = max(self.good & here, default=None)
        assert expected is None or (newest is not None and newest.step >= expected)
        assert not self.good or self.good & here, "a good generation was deleted and none is left"

    @invariant()
    def nothing_but_generations_stays(self) -> None:
        assert len(self.run.store.generations()) <= self.run.keep + 2

    # ---- inside -----------------------------------------------------------------------------------------------------
    def _forget_deleted(self) -> None:
        self.good &= {item.step for item in self.run.store.generations()}

    @staticmethod
    def _damage(path: Path, at: int, kind: str) -> None:
        raw = path.read_bytes()
        if kind == "delete" or not raw:
            os.unlink(path)
        elif kind == "cut":
            path.write_bytes(raw[: at % len(raw)])
        else:
            place = at % len(raw)
            path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << at % 8]) + raw[place + 1 :])
