"""What Colab shipped, day by day: every package and version of its images, from tests/data/colab_snapshots.csv."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SNAPSHOTS = Path(__file__).resolve().parent / "data" / "colab_snapshots.csv"
PYTHON_ROW, ABSENT = "(python)", "-"


@dataclass(frozen=True)
class Snapshot:
    """Colab's packages on one day: version of Python, and normalised name → version."""

    name: str
    python: str
    packages: dict[str, str]

    @property
    def interpreter(self) -> str:
        """The snapshot's Python where this machine has it, else the one that runs: markers and wheels are read for it."""
        found = shutil.which(f"python{self.python}")
        works = found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0
        return found if found and works else sys.executable


def snapshots() -> list[Snapshot]:
    """Every column of the table; an empty cell means "as in the column before"."""
    with SNAPSHOTS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    names = rows[0][1:]
    held: list[dict[str, str]] = [{} for _ in names]
    for package, *versions in rows[1:]:
        last = ABSENT
        for column, version in enumerate(versions):
            last = version or last
            if last != ABSENT:
                held[column][package] = last
    return [Snapshot(name, packages.pop(PYTHON_ROW), packages) for name, packages in zip(names, held, strict=True)]


def newest() -> Snapshot:
    """The newest image without a GPU, which is what a test can stand in for."""
    return max((item for item in snapshots() if item.name.endswith("cpu")), key=lambda item: item.name)
