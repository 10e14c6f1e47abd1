from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from utils.training import run_lock
from utils.training.run_lock import FolderLock

HOLD = """
import sys, time
from pathlib import Path
from utils.training.run_lock import FolderLock
lock = FolderLock.acquire(Path(sys.argv[1]))
print("held" if lock else "taken", flush=True)
time.sleep(60)
"""


def test_one_holds_it_until_it_lets_go(tmp_path):
    lock = FolderLock.acquire(tmp_path)
    assert lock is not None and FolderLock.acquire(tmp_path) is None
    lock.release()
    lock.release()
    assert FolderLock.acquire(tmp_path) is not None


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_process_holds_nothing(tmp_path):
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root
    ) as process:
        assert process.stdout is not None and process.stdout.readline().strip() == "held"
        assert FolderLock.acquire(tmp_path) is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert FolderLock.acquire(tmp_path) is not None


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(file):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(run_lock, "lock_file", refuse)
    assert FolderLock.acquire(tmp_path) is not None
    assert "cannot be locked" in caplog.text


def test_a_forked_worker_that_outlives_a_killed_training_keeps_nothing_locked(tmp_path):
    import os
    import signal
    import time

    read, write = os.pipe()
    training = os.fork()
    if training == 0:
        lock = FolderLock.acquire(tmp_path)
        worker = os.fork()
        if worker == 0:
            os.write(write, str(os.getpid()).encode())
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
        os._exit(0 if lock is not None else 1)
    worker = int(os.read(read, 20))
    assert FolderLock.acquire(tmp_path) is None
    os.kill(training, signal.SIGKILL)
    os.waitpid(training, 0)
    try:
        lock = FolderLock.acquire(tmp_path)
        assert lock is not None
        lock.release()
    finally:
        os.kill(worker, signal.SIGKILL)
