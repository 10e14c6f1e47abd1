"""Install what training.ipynb adds to Colab, and prove that nothing which was there before has changed.

Colab's kernel has numpy and torch loaded before the first cell, so replacing a preinstalled package breaks the process.
Everything installed is therefore held by a constraint file while pip resolves. Leaves to `_extras` whether a feature can
run at all.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from utils._tables import html_table, text_table
from utils.errors import MissingPackageError

LAST_LINES = 5  # of pip's output, in the message of a failure


@dataclass(frozen=True)
class Installed:
    """What an installation added and changed.

    Attributes:
        added: distribution name → version of what was not there before.
        changed: distribution name → (version before, version after); must be empty in Colab.
    """

    added: Mapping[str, str] = field(default_factory=dict)
    changed: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str, str]]:
        """Package, before, now."""
        moved = [(name, before, now) for name, (before, now) in sorted(self.changed.items())]
        return moved + [(name, "", version) for name, version in sorted(self.added.items())]

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not self.rows():
            return "Everything needed for training is installed already; nothing was changed."
        return f"Added {len(self.added)} packages; changed {len(self.changed)} of those that were there."

    def summary(self) -> str:
        """The verdict and a table."""
        table = text_table(("Package", "Before", "Now"), self.rows())
        return f"{self.verdict}\n{table}" if self.rows() else self.verdict

    __repr__ = summary

    def _repr_html_(self) -> str:
        return f"<p>{self.verdict}</p>" + (html_table(("Package", "Before", "Now"), self.rows()) if self.rows() else "")


def install_requirements(requirements: str | Path) -> Installed:
    """Install a requirements file into the running environment without changing what it holds.

    Does nothing, and needs no network, where every requirement is satisfied already.

    Raises:
        MissingPackageError: pip could not resolve or download the packages, or changed one that was there.
    """
    before = installed_versions()
    if not unsatisfied(requirements, before):
        return Installed()
    _run_pip(Path(requirements), before)
    importlib.invalidate_caches()
    after = installed_versions()
    added = {name: version for name, version in after.items() if name not in before}
    changed = {name: (old, after.get(name, "removed")) for name, old in before.items() if after.get(name) != old}
    if changed:
        moved = ", ".join(f"{name} {old} → {new}" for name, (old, new) in sorted(changed.items()))
        raise MissingPackageError(
            f"pip changed packages that were there: {moved}. Restart the session, then run again."
        )
    return Installed(added, changed)


def installed_versions() -> dict[str, str]:
    """Every installed distribution: normalised name → version."""
    found = ((item.metadata["Name"], item.version) for item in importlib.metadata.distributions())
    return {normalised(name): version for name, version in found if name}


def normalised(name: str) -> str:
    """A distribution name as indexes compare it: "ml_dtypes" and "ML-dtypes" are "ml-dtypes"."""
    return re.sub(r"[-_.]+", "-", name).lower()


def unsatisfied(requirements: str | Path, versions: Mapping[str, str]) -> list[str]:
    """The requirement lines that `versions` (normalised name → version) does not satisfy."""
    from packaging.requirements import Requirement

    lines = (line.split("#")[0].strip() for line in Path(requirements).read_text(encoding="utf-8").splitlines())
    asked = [Requirement(line) for line in lines if line]
    relevant = [item for item in asked if item.marker is None or item.marker.evaluate()]
    return [
        str(item)
        for item in relevant
        if normalised(item.name) not in versions
        or not item.specifier.contains(versions[normalised(item.name)], prereleases=True)
    ]


def _run_pip(requirements: Path, held: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text(
            "".join(f"{name}=={version}\n" for name, version in sorted(held.items())), encoding="utf-8"
        )
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += ["--requirement", str(requirements), "--constraint", str(constraints)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-LAST_LINES:])
        raise MissingPackageError(
            f"pip could not install the packages of {requirements.name} beside what is there. It said:\n{said}"
        )
