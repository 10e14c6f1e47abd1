"""One run of checks over one model: in order, bounded, with progress, and kept where somebody interrupts it.

Which checks run is left to the tiers, what a check does to the checks.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.checks.limits import Limits, available_memory, bounded
from utils.checks.memory import GB
from utils.checks.mending import Mender, by_name
from utils.checks.patching import Patch
from utils.checks.rebuilding import UserSource, patched_model
from utils.checks.report import CheckCallback, CheckResult, Report, ignore_check
from utils.checks.runner import Check
from utils.checks.sampling import Sampler
from utils.errors import CheckError, ConfigError, TransformerBuilderError
from utils.progress import ProgressCallback, ignore_progress

if TYPE_CHECKING:
    from torch import nn

    from utils.loading.model_loader import LoadedModel

    AnyModel = AdaptedModel | LoadedModel | nn.Module
    """What `validate` and its kin take: adapted, loaded, or a plain module."""

logger = logging.getLogger(__name__)

PATCH_SECONDS = 30.0
"""How long patches are looked for, for all checks of a report together: what a person waits for with a look at the screen."""
AT_ONCE = 3
"""Each search may take this part of the time that is left: one fault turns many checks red, and one patch mends them all."""
REHEARSAL = "finding out how the model is called"
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
        model: AnyModel,
        config: object = None,
        seconds_per_check: float | None = None,
        memory_limit_gb: float | None = None,
        isolated: bool = False,
    ) -> Session:
        """Adapt a model and find out its limits of length.

        Raises:
            ConfigError: a bound is no positive number, or nothing tells the vocabulary size.
            CheckError: finding out how the model is called passed a bound, or ended the process that it was tried in.
            GraphCompletionError: the export cannot be completed.
            CallContractError: how to call the model cannot be settled.
        """
        for name, value in (("seconds_per_check", seconds_per_check), ("memory_limit_gb", memory_limit_gb)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value < math.inf):
                raise ConfigError(f"{name}={value!r} must be a positive number, or None.")
        allowed = available_memory() * FREE_SHARE if memory_limit_gb is None else memory_limit_gb * GB
        limits = Limits(seconds_per_check, allowed)
        if isolated:
            rehearse(model, config, limits)
        with bounded(limits):
            adapted, sampler = prepared(model, config)
        return cls(f"{title}: {adapted.name}", adapted, sampler, limits, isolated)

    def run(
        self,
        checks: Sequence[Check],
        progress: ProgressCallback,
        patches: bool | Collection[str] = True,
        on_check: CheckCallback = ignore_check,
    ) -> Report:
        """The report of these checks; one that is interrupted keeps what is done and says so.

        Args:
            checks: in their order.
            progress: told before each check, and before each search for a patch.
            patches: look for a patch of the model's source for each check that is not green; names: for these only.
            on_check: given each result as soon as it is there.
        """
        results: list[CheckResult] = []
        stopped = ""
        try:
            with self._place() as run:
                for done, check in enumerate(checks):
                    progress(done, len(checks), check.name)
                    results.append(run(check))
                    on_check(results[-1])
        except KeyboardInterrupt:
            stopped = f"Interrupted after {len(results)} of {len(checks)} checks."
        if patches is not False and not stopped:
            self.mend(checks, results, progress, None if patches is True else patches)
        report = Report(self.title, results, stopped, Examined(self, tuple(checks)))
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

    def mend(
        self,
        checks: Sequence[Check],
        results: list[CheckResult],
        progress: ProgressCallback,
        wanted: Collection[str] | None,
    ) -> None:
        """Look for patches; one search that is interrupted ends all of them, and what was found stays.

        Args:
            checks: that ran.
            results: of them; those that are found a patch for are given it.
            progress: told before each search.
            wanted: names of the checks to look for; None: of all that are not green.
        """
        held = (result for result in results if not (self.isolated and result.unfinished))  # it would end this process
        named = {result.name: result for result in held}
        mender = Mender(self.model, by_name(checks), named, self.limits, time.monotonic() + PATCH_SECONDS)
        red = [name for name in mender.red if wanted is None or name in wanted]
        try:
            for place, name in enumerate(red):
                progress(len(checks), len(checks), f"{name}: looking for a patch")
                share = (mender.ends - time.monotonic()) / min(len(red) - place, AT_ONCE)
                named[name].patch = mender.patch_for(name, time.monotonic() + share)
        except KeyboardInterrupt:
            logger.info("The search for patches was interrupted.")


@dataclass(frozen=True)
class Examined:
    """What a report was made of, able to make the same report of a patched copy.

    Attributes:
        session: the model and how its checks ran.
        checks: which ran, in their order.
    """

    session: Session
    checks: tuple[Check, ...]

    @property
    def model(self) -> AdaptedModel:
        """The model that was examined."""
        return self.session.model

    def patched(
        self,
        patch: Patch,
        among: Collection[str] = (),
        progress: ProgressCallback = ignore_progress,
        on_check: CheckCallback = ignore_check,
    ) -> Report:
        """The report of the same checks on a copy with the patch applied, which holds weights of its own.

        Args:
            patch: of a check of this report.
            among: checks for which a patch is looked for anew, where they are not green.
            progress: told before each check.
            on_check: given each result as soon as it is there.

        Raises:
            CheckError: the patch is of another source, or the patched source does not run.
        """
        source = UserSource.of(self.model)
        if source is None or source.text != patch.before:
            raise CheckError(
                f"The patch ({patch.cure}) changes {patch.file_name}, and the source of {self.model.name} is another text. Use "
                "the patch of a check of this very report."
            )
        copy = patched_model(self.model, source, patch.after, patch.fresh_weights, share=False)
        session = replace(self.session, title=f"{self.session.title}, patched", model=copy, sampler=Sampler.of(copy))
        return session.run(self.checks, progress, among, on_check)


def prepared(model: AnyModel, config: object = None) -> tuple[AdaptedModel, Sampler]:
    """A model behind the calling contract, and what draws its inputs.

    Raises:
        CheckError: the model's weights are quantised.
    """
    adapted = adapt(_unwrapped(model), config)
    _refuse_quantised(adapted)
    return adapted, Sampler.of(adapted, config)


def rehearse(model: AnyModel, config: object, limits: Limits) -> None:
    """Find out in another process how the model is called, so that one that ends its process does not end this one.

    Raises:
        CheckError: it ended that process, or passed a bound there.
    """
    from utils.checks.isolated import IsolatedChecks

    with IsolatedChecks(model, config) as process:
        result = process.ask(_rehearsal, REHEARSAL, limits)
    if result.unfinished:
        raise CheckError(
            f"Finding out how the model is called could not be finished: {result.unfinished} Run the model on a few token ids by "
            "itself, in a script, in train and in eval mode, and mend what ends it."
        )


def _rehearsal(model: AnyModel, config: object, limits: Limits) -> CheckResult:
    """Runs in the other process; what is wrong with the model in clear words is found again in this one."""
    try:
        with bounded(limits):
            prepared(model, config)
    except TransformerBuilderError as error:
        logger.info("the rehearsal ended with: %s", error)
    return CheckResult(REHEARSAL, "pass", "The process is still there.")


def _unwrapped(model: AnyModel) -> AnyModel:
    """What `torch.compile` wraps: the same weights, and every check hooks modules, which a compiled call does not bear."""
    from torch import nn

    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def _refuse_quantised(adapted: AdaptedModel) -> None:
    """Integers have no gradient, and the scale of a whole batch is measured in every call: half the checks would complain."""
    for name, module in adapted.model.named_modules():
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
            raise CheckError(
                f"{adapted.name} is quantised ({name} is a {type(module).__module__}.{type(module).__name__}), so it can neither "
                "be trained nor compared to the last digits. Check the model before it is quantised; export() proves what "
                "quantisation changes."
            )
