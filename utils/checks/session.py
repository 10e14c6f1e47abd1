"""One run of checks over one model: in order, bounded, with progress, and kept where somebody interrupts it.

Which checks run is left to the tiers, what a check does to the checks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.checks.limits import Limits, bounded
from utils.checks.report import CheckResult, Report
from utils.checks.runner import Check
from utils.checks.sampling import Sampler
from utils.errors import ConfigError
from utils.progress import ProgressCallback

if TYPE_CHECKING:
    from torch import nn

    from utils.loading.model_loader import LoadedModel

GB = 1e9
FREE_SHARE = 0.8
"""Share of the free memory that a check may take where nobody says how much: the notebook itself needs the rest."""


@dataclass(frozen=True)
class Session:
    """A model, prepared for checks.

    Attributes:
        title: what the report is called.
        model: the adapted model.
        sampler: draws its inputs.
        limits: of each check.
        isolated: whether the checks run in a process of their own.
    """

    title: str
    model: AdaptedModel
    sampler: Sampler
    limits: Limits
    isolated: bool = False

    @classmethod
    def of(
        cls,
        title: str,
        model: AdaptedModel | LoadedModel | nn.Module,
        config: object = None,
        seconds_per_check: float | None = None,
        memory_limit_gb: float | None = None,
        isolated: bool = False,
    ) -> Session:
        """Adapt a model and find out its limits of length.

        Raises:
            ConfigError: a bound is no positive number, or nothing tells the vocabulary size.
            CheckError: finding out how the model is called passed a bound.
            GraphCompletionError: the export cannot be completed.
            CallContractError: how to call the model cannot be settled.
        """
        for name, value in (("seconds_per_check", seconds_per_check), ("memory_limit_gb", memory_limit_gb)):
            if value is not None and not (isinstance(value, (int, float)) and value > 0):
                raise ConfigError(f"{name}={value!r} must be a positive number, or None.")
        allowed = free_bytes() * FREE_SHARE if memory_limit_gb is None else memory_limit_gb * GB
        limits = Limits(seconds_per_check, allowed)
        with bounded(limits):
            adapted, sampler = prepared(model, config)
        return cls(f"{title}: {adapted.name}", adapted, sampler, limits, isolated)

    def run(self, checks: Sequence[Check], progress: ProgressCallback) -> Report:
        """The report of these checks; one that is interrupted keeps what is done and says so."""
        results: list[CheckResult] = []
        stopped = ""
        try:
            with self._place() as run:
                for done, check in enumerate(checks):
                    progress(done, len(checks), check.check_name)  # type: ignore[attr-defined]
                    results.append(run(check))
        except KeyboardInterrupt:
            stopped = f"Interrupted after {len(results)} of {len(checks)} checks."
        report = Report(self.title, results, stopped)
        progress(len(results), len(checks), report.verdict)
        return report

    @contextlib.contextmanager
    def _place(self) -> Iterator[Callable[[Check], CheckResult]]:
        """Where checks run: here, or in a process of their own."""
        if not self.isolated:
            yield lambda check: check(self.model, self.sampler, self.limits)
            return
        from utils.checks.isolated import IsolatedChecks

        with IsolatedChecks(self.model, self.sampler) as process:
            yield lambda check: process.run(check, self.limits)


def prepared(model: AdaptedModel | LoadedModel | nn.Module, config: object = None) -> tuple[AdaptedModel, Sampler]:
    """A model behind the calling contract, and what draws its inputs."""
    adapted = adapt(model, config)
    return adapted, Sampler.of(adapted, config)


def free_bytes() -> int:
    """Bytes of memory that this machine, or the container that it is, can still give."""
    import psutil

    return int(psutil.virtual_memory().available)
