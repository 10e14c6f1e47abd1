"""The front ends' own environments, made once per machine, with the project's packages behind them.

A front end's packages (ipywidgets 7 or 8, its kernel, its server) come first on the path, and a `.pth` file adds the
environment that runs the tests, so that torch and what else the wizard needs is installed only once.
BROWSER_ENVIRONMENTS names another folder than `.browser`. Run as a script it makes all of them.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAMES = ("lab", "classic")

log = logging.getLogger(__name__)


def python_of(name: str) -> Path:
    """The Python of the environment `name`; it is made first where it is missing or older than its requirements."""
    requirements = HERE / f"requirements-{name}.txt"
    base = Path(os.environ.get("BROWSER_ENVIRONMENTS", ROOT / ".browser"))
    folder = base / f"{name}-{_recipe(requirements)}"
    base.mkdir(parents=True, exist_ok=True)
    with (base / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs would install into each other's half-made environment
        if not (folder / ".complete").exists():
            _make(folder, requirements)
            (folder / ".complete").touch()  # last: a half-made environment is made again
    return folder / "bin" / "python"


def _recipe(requirements: Path) -> str:
    """Names what an environment is made from: its requirements, and what lies behind it."""
    made_from = requirements.read_bytes() + sysconfig.get_path("purelib").encode()
    return hashlib.sha256(made_from).hexdigest()[:8]


def _make(folder: Path, requirements: Path) -> None:
    log.info("Installing %s into %s (about a minute) …", requirements.name, folder)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "install", "-r", str(requirements)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip could not install {requirements.name}: {done.stderr.strip()[-2000:]}")
    _link_behind(python, sysconfig.get_path("purelib"))


def _link_behind(python: Path, packages: str) -> None:
    """Put the folder `packages` at the end of that Python's path."""
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([str(python), "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    (Path(own) / "behind.pth").write_text(f"{packages}\n", encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for environment in NAMES:
        log.info("%s: %s", environment, python_of(environment))
