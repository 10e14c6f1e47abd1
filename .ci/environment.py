"""Create the local environment with the pinned packages. The Makefile calls it; nothing here is part of the product.

Usage: python .ci/environment.py FOLDER REQUIREMENTS

A half-made environment is redone from nothing; a finished one that is only out of date is brought up to date. The file
FOLDER/.complete is written last, so that its presence and date tell make whether there is anything to do.
Set TORCH_INDEX_URL to take torch from another index, for example a CPU build.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

CUDA_PACKAGE = re.compile(r"(nvidia|cuda|triton)\b")  # what a CUDA build of torch asks for

NOTE = """
Note: pip takes the CUDA build of torch here (with {count} or more CUDA packages, several GB), but this machine shows no NVIDIA GPU.
Everything works with it too. To take the small CPU build instead, stop now (Ctrl-C) and give the address of the index
of CPU builds, which the selector on pytorch.org shows after --index-url (choose Linux, Pip, Python, CPU):

    make TORCH_INDEX_URL=<that address> demo

Going on with the CUDA build.
"""


def main(folder: Path, requirements: Path) -> None:
    """Make or refresh the environment in `folder`, then mark it complete."""
    mark = folder / ".complete"
    if not (mark.exists() and works(folder)):
        create(folder)
    mark.unlink(missing_ok=True)
    install(folder, requirements)
    mark.write_text("Written when every pinned package was installed.\n", encoding="utf-8")


def works(folder: Path) -> bool:
    """Whether the environment's Python starts (it does not when the Python it was made from is gone)."""
    python = folder / "bin" / "python"
    return python.exists() and subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


def create(folder: Path) -> None:
    """Make an empty environment in place of whatever lies there."""
    print(f"Creating {folder} with Python {platform.python_version()} …", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    made = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True, check=False)
    if made.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        hint = "On Debian and Ubuntu its parts come with: apt-get install python3-venv"
        sys.exit(f"{made.stdout}{made.stderr}\nPython could not create a virtual environment. {hint}")


def install(folder: Path, requirements: Path) -> None:
    """Install the pinned packages; torch first where the person chose an index for it."""
    pin = torch_pin(requirements)
    chosen = os.environ.get("TORCH_INDEX_URL", "").strip()
    if chosen:
        pip(folder, "install", "--no-deps", "--index-url", chosen, pin)
    elif count := needless_cuda_packages(folder, pin):
        print(NOTE.format(count=count), flush=True)
    print(f"Installing the packages of {requirements.name} (a few minutes the first time) …", flush=True)
    pip(folder, "install", "-r", str(requirements))


def torch_pin(requirements: Path) -> str:
    """The line "torch==…" of the requirements file."""
    pins = re.findall(r"(?m)^torch==[^\s;]+", requirements.read_text(encoding="utf-8"))
    if len(pins) != 1:
        sys.exit(f"{requirements} must pin torch exactly once; found {pins}")
    return pins[0]


def needless_cuda_packages(folder: Path, pin: str) -> int:
    """How many CUDA packages pip would fetch for torch although no NVIDIA GPU is visible; 0 where all is well."""
    if platform.system() != "Linux" or has_nvidia_gpu() or has_torch(folder):
        return 0
    command = [*pip_command(folder), "install", "--dry-run", "--quiet", "--no-deps", "--report", "-", pin]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:  # the installation itself will say what is wrong, at length
        return 0
    return count_cuda_packages(json.loads(done.stdout))


def count_cuda_packages(report: dict) -> int:
    """How many distinct CUDA packages the torch of a pip report asks for."""
    asked = [line for item in report["install"] for line in item["metadata"].get("requires_dist", [])]
    names = {re.split(r"[^A-Za-z0-9_-]", line, maxsplit=1)[0] for line in asked if "extra ==" not in line}
    return sum(bool(CUDA_PACKAGE.match(name)) for name in names)


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver is loaded (its file exists) or its tool answers."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True, check=False).returncode == 0


def has_torch(folder: Path) -> bool:
    """Whether some torch is installed in the environment already, so that the choice was made before."""
    return any(folder.glob("lib/python*/site-packages/torch/__init__.py"))


def pip_command(folder: Path) -> list[str]:
    """How to call the environment's own pip, without its advice to upgrade."""
    return [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]


def pip(folder: Path, *arguments: str) -> None:
    """Run pip; a failure ends the whole command, because pip has then said why."""
    code = subprocess.run([*pip_command(folder), *arguments], check=False).returncode
    if code:
        sys.exit(f"\npip could not finish (exit code {code}). Mend the cause above and run the same command again.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
