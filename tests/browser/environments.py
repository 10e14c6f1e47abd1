"""The front ends' own environments, made once per machine, with the project's packages behind them.

A front end's packages (ipywidgets 7 or 8, its kernel, its server) come first on the path, and a `.pth` file adds the
environment that runs the tests, so that torch and what else the wizard needs is installed only once.
BROWSER_ENVIRONMENTS names another folder than `.browser`. Run as a script it makes all of them.
"""

from __future__ import annotations

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
    """The Python of the environment `name`, which is made first where it is missing or older than its requirements."""
    folder = Path(os.environ.get("BROWSER_ENVIRONMENTS", ROOT / ".browser")) / name
    requirements = HERE / f"requirements-{name}.txt"
    python, mark, wanted = folder / "bin" / "python", folder / ".complete", _recipe(requirements)
    if not (mark.exists() and mark.read_text(encoding="utf-8") == wanted):
        _make(folder, python, requirements)
        mark.write_text(wanted, encoding="utf-8")  # last: a half-made environment is made again
    return python


def _recipe(requirements: Path) -> str:
    """What an environment is made from; another recipe makes it anew."""
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    return f"{digest} behind it {sysconfig.get_path('purelib')}\n"


def _make(folder: Path, python: Path, requirements: Path) -> None:
    log.info("Installing %s into %s (about a minute) …", requirements.name, folder)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
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
