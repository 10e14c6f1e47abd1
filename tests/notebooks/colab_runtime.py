"""Colab's runtime, as far as a test can have it: an environment with its exact versions, in which nothing else is found."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from notebook_runner import ROOT
from packaging.requirements import Requirement

from tests.colab_snapshots import newest
from tests.environments import pins, python_of
from utils.install import normalised


def colab_python() -> str:
    """A Python with Colab's versions of all that is there (torch stays the project's own), or what NOTEBOOK_PYTHON names."""
    return os.environ.get("NOTEBOOK_PYTHON") or str(python_of("colab"))


def not_in_colab(*added: Path) -> str:
    """Modules of this environment that a fresh runtime lacks, with commas between, as `BLOCKED_PACKAGES` takes them.

    Args:
        added: requirements files that are installed there first; what they bring is not among the modules.
    """
    there = set(newest().packages) | _closure(line for file in added for line in pins(file))
    found = packages_distributions().items()
    return ",".join(sorted(module for module, names in found if not there & {normalised(name) for name in names}))


def training_requirements() -> Path:
    """What the install cell of training.ipynb adds."""
    return ROOT / "requirements-training.txt"


def _closure(requirements: Iterable[str]) -> set[str]:
    """The packages that are asked for and all that they ask for, by normalised name."""
    found: set[str] = set()
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        asked = waiting.pop()
        name = normalised(asked.name)
        if name in found or (asked.marker is not None and not asked.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        try:
            waiting += [Requirement(line) for line in requires(asked.name) or ()]
        except PackageNotFoundError:  # not here, so there is nothing to hide either
            continue
    return found
