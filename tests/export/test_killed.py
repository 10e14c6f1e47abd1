"""Exports that are killed: whatever the moment, a manifest lists only files that are there and whole, and the next export works.

The process is killed by SIGKILL, at a step that it announces, or at a random moment.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import utils
from utils._files import sha256_of
from utils.errors import ExportError

ROOT = Path(utils.__file__).parents[1]
FORMATS = ("torchscript", "safetensors")
FILES = {"model.torchscript.pt", "model.safetensors", "README.md", "architecture.svg"}
SCRIPT = """
import sys, time
import torch
import utils
from export import zoo
from utils.export import bundle

def announced(name):
    inner = getattr(bundle, name)
    def step(*given, **named):
        print(name, flush=True)
        time.sleep(0.3)
        result = inner(*given, **named)
        print(name + " done", flush=True)
        time.sleep(1.0)  # the one who kills us must get there before the next step
        return result
    return step

for name in sys.argv[2:]:
    setattr(bundle, name, announced(name))
model = zoo.Bigram()
print("ready", flush=True)
sys.stdin.readline()
utils.export(model, ("torchscript", "safetensors"), sys.argv[1], config=zoo.CONFIG)
print("finished", flush=True)
"""


class Export:
    """An export in a process of its own, which waits for a word."""

    def __init__(self, out: Path, *steps: str) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(out), *steps],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.wait_for("ready")

    def begin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def wait_for(self, line: str, count: int = 1) -> None:
        assert self.process.stdout is not None
        for said in self.process.stdout:
            count -= said.strip() == line
            if not count:
                return
        raise AssertionError(f"the export ended before {line!r}")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a whole export."""
    out = tmp_path_factory.mktemp("earlier")
    export(out)
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture
def out(earlier: dict[str, bytes], tmp_path: Path) -> Path:
    """A folder with a whole export."""
    for name, content in earlier.items():
        (tmp_path / name).write_bytes(content)
    assert listed(tmp_path) == FILES
    return tmp_path


def export(out: Path) -> None:
    from export import zoo

    utils.export(zoo.Bigram(), FORMATS, out, config=zoo.CONFIG)


def listed(out: Path) -> set[str]:
    """Names in the manifest, each proven to be there and whole; nothing where there is no manifest."""
    if not (out / "manifest.json").exists():
        return set()
    files = json.loads((out / "manifest.json").read_text("utf-8"))["files"]
    for entry in files:
        assert sha256_of(out / entry["name"]) == entry["sha256"], entry["name"]
    return {entry["name"] for entry in files}


def whole_or_void(out: Path, earlier: dict[str, bytes]) -> str:
    """What is left: the earlier export, the new one, or none."""
    names = listed(out)
    if not names:
        return "void"
    assert names == FILES
    return "earlier" if (out / "manifest.json").read_bytes() == earlier["manifest.json"] else "new"


def next_one_is_clean(out: Path) -> None:
    """The next export works and nothing hidden stays; files that no manifest listed are kept under other names."""
    export(out)
    assert listed(out) == FILES
    names = {path.name for path in out.iterdir() if ".previous" not in path.name}
    assert names == {"manifest.json", *FILES}


@pytest.mark.parametrize(
    ("step", "count", "left"),
    [
        pytest.param("_staged", 1, "earlier", marks=pytest.mark.slow),  # nothing is written yet
        pytest.param("make_room", 1, "earlier", marks=pytest.mark.slow),  # all is proven, and nothing moved
        ("publish done", 1, "void"),  # one file is new and one is old
        pytest.param("sync_folder", 1, "void", marks=pytest.mark.slow),  # both are new, and nothing says so
        pytest.param("write_json done", 1, "earlier", marks=pytest.mark.slow),
        pytest.param("sync_folder done", 2, "new", marks=pytest.mark.slow),
    ],
)
def test_killed_at_a_step(step: str, count: int, left: str, out: Path, earlier: dict[str, bytes]) -> None:
    victim = Export(out, step.split()[0])
    victim.begin()
    victim.wait_for(step, count)
    victim.kill()
    assert whole_or_void(out, earlier) == left
    next_one_is_clean(out)


@pytest.mark.slow  # starts and waits for several exports
def test_what_a_live_export_has_staged_stays(out: Path) -> None:
    slow = Export(out, "_card")
    slow.begin()
    slow.wait_for("_card")
    slow.process.send_signal(signal.SIGSTOP)
    staged = [path for path in out.iterdir() if path.name.startswith(".export-")]
    assert len(staged) == 2  # the folder and its lock
    export(out)
    assert all(path.exists() for path in staged)
    slow.process.send_signal(signal.SIGCONT)
    slow.wait_for("finished")
    slow.kill()
    assert listed(out) == FILES
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.slow  # starts and waits for several exports
def test_two_exports_do_not_mix_in_one_folder(out: Path) -> None:
    slow = Export(out, "make_room")
    slow.begin()
    slow.wait_for("make_room")
    slow.process.send_signal(signal.SIGSTOP)
    with pytest.raises(ExportError, match="Another export is moving its files"):
        export(out)
    assert not (out / "manifest.json").exists() or listed(out) == FILES
    slow.process.send_signal(signal.SIGCONT)
    slow.wait_for("finished")
    slow.kill()
    next_one_is_clean(out)


@pytest.mark.slow  # ten processes that import torch
def test_killed_at_random_moments(out: Path, earlier: dict[str, bytes]) -> None:
    generator = random.Random(0)
    seconds = None
    for _ in range(10):
        victim = Export(out)
        begun = time.monotonic()
        victim.begin()
        if seconds is None:  # how long a whole one takes here
            victim.wait_for("finished")
            seconds = time.monotonic() - begun
        else:
            time.sleep(generator.uniform(0, seconds))
        victim.kill()
        whole_or_void(out, earlier)
    next_one_is_clean(out)
