"""Environments of other versions, made once per machine, with the project's packages behind them.

Their own packages (a front end with ipywidgets 7 or 8 and its kernel; what Colab ships) come first on the path, and a `.pth`
file adds the environment that runs the tests, so that torch and what else is needed is installed only once.
BROWSER_ENVIRONMENTS names another folder than `.browser`. Run as a script it makes those that are named, or all.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.colab_snapshots import newest
from utils.install import normalised

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NAMES = ("lab", "classic", "colab")
OURS = ("torch", "torchaudio", "torchvision", "triton", "setuptools")
"""Of Colab's packages those that stay the project's own: hundreds of megabytes, made for one version of Python, and what that
torch asks for."""
THEIRS_ALONE = ("httpx", "httpcore", "h11", "sniffio", "tenacity", "torchao")
"""What Colab's versions ask for and the project's do not."""

log = logging.getLogger(__name__)


def python_of(name: str) -> Path:
    """The Python of the environment `name`; it is made first where it is missing or older than its requirements."""
    requirements = requirements_of(name)
    base = Path(os.environ.get("BROWSER_ENVIRONMENTS", ROOT / ".browser"))
    folder = base / f"{name}-{_recipe(requirements)}"
    base.mkdir(parents=True, exist_ok=True)
    with (base / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs would install into each other's half-made environment
        if not (folder / ".complete").exists():
            _make(folder, name, requirements)
            (folder / ".complete").touch()  # last: a half-made environment is made again
    return folder / "bin" / "python"


def requirements_of(name: str) -> list[str]:
    """Exact pins. Those of "colab": whatever the project, the classic front end and Colab's own versions use of its packages."""
    if name != "colab":
        return pins(HERE / "browser" / f"requirements-{name}.txt")
    files = (ROOT / "requirements.txt", ROOT / "requirements-colab.txt")
    used = {_package(pin) for file in files for pin in pins(file)} | {*THEIRS_ALONE}
    classic = {_package(pin): pin for pin in requirements_of("classic")}
    shipped = {package: f"{package}=={version}" for package, version in newest().packages.items()}
    kept = {package: shipped[package] for package in (used | {*classic}) & {*shipped} if package not in OURS}
    return sorted({**classic, **kept}.values())


def pins(file: Path) -> list[str]:
    """The lines of a requirements file, without remarks."""
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def _package(pin: str) -> str:
    return normalised(re.split(r"[=\s;]", pin)[0])


def _recipe(requirements: list[str]) -> str:
    """Names what an environment is made from: its requirements, and what lies behind it."""
    made_from = "\n".join((*requirements, sysconfig.get_path("purelib")))
    return hashlib.sha256(made_from.encode()).hexdigest()[:8]


def _make(folder: Path, name: str, requirements: list[str]) -> None:
    log.info("Installing %s (%d packages) into %s (about a minute) …", name, len(requirements), folder)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    listed = folder / "requirements.txt"
    listed.write_text("\n".join(requirements) + "\n", encoding="utf-8")
    alone = ["--no-deps"] if name == "colab" else []  # Colab's own pins contradict each other here and there
    done = subprocess.run([*pip, "install", *alone, "-r", str(listed)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip could not install what {name} needs: {done.stderr.strip()[-2000:]}")
    _link_behind(python, sysconfig.get_path("purelib"))


def _link_behind(python: Path, packages: str) -> None:
    """Put the folder `packages` at the end of that Python's path."""
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([str(python), "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    (Path(own) / "behind.pth").write_text(f"{packages}\n", encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for environment in sys.argv[1:] or NAMES:
        log.info("%s: %s", environment, python_of(environment))
