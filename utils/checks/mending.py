"""Searches a patch for a check that is not green: proposes changes, tries each on a copy, keeps the first that helps.

Generate and test: nothing is offered that was not re-tested. What is proposed lies in `cures`, how a patched copy comes
about in `rebuilding`, which checks run is for the caller to say.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.cures.catalogue import CURES
from utils.checks.cures.cure import Change
from utils.checks.limits import Limits, bounded
from utils.checks.patching import Patch
from utils.checks.rebuilding import UserSource, patched_model
from utils.checks.report import CheckResult
from utils.checks.runner import Check
from utils.checks.sampling import Sampler
from utils.errors import CheckError, ConfigError, TransformerBuilderError

logger = logging.getLogger(__name__)

MOST_TRIALS = 150
"""Patched copies that are tried for one check. Our own measurement: a model of 60 lines gets 30 to 100 proposals."""
MOST_PAIRS = 40
"""Of these, copies with two changes."""
GUARD_SECONDS = 3.0
"""A check that had not failed and took longer is not run again for each patch; `Report.apply` runs them all."""
STILL_FINE = {"pass": ("pass",), "skip": ("pass", "skip"), "warn": ("pass", "warn", "skip")}
"""What another check may say after a patch, by what it said before."""
UNMENDABLE = ("memory", "inference speed")
"""Checks that measure; no text of a model mends their findings."""


@dataclass(frozen=True)
class Trial:
    """A change that was tried.

    Attributes:
        change: what was changed.
        text: the source with it.
        result: what the responsible check said; None where the copy did not even run.
    """

    change: Change
    text: str
    result: CheckResult | None


@dataclass
class Mender:
    """Looks for patches of one model, for as long as it may.

    Attributes:
        model: the model; it stays as it is.
        checks: the checks that ran, by name.
        results: what they said, by name.
        limits: of each check.
        ends: on the monotonic clock, when nothing more is tried.
    """

    model: AdaptedModel
    checks: dict[str, Check]
    results: dict[str, CheckResult]
    limits: Limits
    ends: float
    _found: list[Patch] = field(default_factory=list)
    _sampler: Sampler | None = None

    def __post_init__(self) -> None:
        self._source = UserSource.of(self.model)

    @property
    def red(self) -> list[str]:
        """Names of the checks for which a patch is looked for, failures first; none for a model without source."""
        if self._source is None:
            return []
        order = ("fail", "warn")
        bad = [r for r in self.results.values() if r.status in order and r.name not in UNMENDABLE]
        return [result.name for result in sorted(bad, key=lambda result: order.index(result.status))]

    def patch_for(self, name: str, until: float | None = None) -> Patch | None:
        """The first change after which a check is green and no other says something worse; None where none was found.

        Args:
            name: of the check.
            until: when to stop, on the monotonic clock.
        """
        source = self._source
        if source is None:
            return None
        ends = self.ends if until is None else min(self.ends, until)
        for known in self._found:
            if (result := self._result(known.after, known.fresh_weights, name, ends)) is not None and _green(result):
                return self._patch(known.cure, known.after, result, known.fresh_weights)
        fallback: Trial | None = None
        for trial in self._trials(source, name, ends):
            if trial.result is None or not _green(trial.result):
                continue
            seen = self._seen_anew(trial, name, ends)
            if not seen:
                self._found.append(self._patch_of(trial))
                return self._found[-1]
            if seen == "skip" and fallback is None:
                fallback = trial
        return None if fallback is None else self._patch_of(fallback)

    def _patch_of(self, trial: Trial) -> Patch:
        assert trial.result is not None
        return self._patch(trial.change.words, trial.text, trial.result, trial.change.fresh)

    def _patch(self, words: str, text: str, result: CheckResult, fresh: bool) -> Patch:
        assert self._source is not None
        told = f"{result.name}: {result.status}, {result.headline}"
        return Patch(words, self._source.text, text, told, self._source.file_name, fresh)

    # ---- trying -----------------------------------------------------------------------------------------------------
    def _trials(self, source: UserSource, name: str, ends: float) -> Iterator[Trial]:
        """Each change by itself, then pairs of one that changed something and another."""
        done: list[Trial] = []
        before = self.results[name]
        for change, text in _proposals(source, before):
            if len(done) >= MOST_TRIALS or time.monotonic() > ends:
                return
            done.append(Trial(change, text, self._result(text, change.fresh, name, ends)))
            yield done[-1]
        helpful = [t for t in done if t.result is not None and _differs(t.result, before)]
        tried = 0
        for first in sorted(helpful, key=lambda trial: _rank(trial.result)):
            for change, text in _proposals(source, before, first.text):
                if tried >= MOST_PAIRS or time.monotonic() > ends:
                    return
                tried += 1
                fresh = first.change.fresh or change.fresh
                both = Change(f"{first.change.words}; {change.words}", (), fresh)
                yield Trial(both, text, self._result(text, fresh, name, ends))

    def _result(self, text: str, fresh: bool, name: str, ends: float) -> CheckResult | None:
        """What a check says about a copy with this text; None where there is no such copy."""
        left = ends - time.monotonic()
        if left <= 0 or self._source is None:
            return None
        try:
            with bounded(Limits(left, self.limits.bytes)):
                copy = patched_model(self.model, self._source, text, fresh, share=True)
                sampler = Sampler.of(copy)
        except (CheckError, ConfigError, TransformerBuilderError) as error:
            logger.debug("a proposal does not run: %s", error)
            return None
        if self._is_narrower(copy, sampler):
            return None
        check = self.checks[name]
        seen = check.screen(copy, sampler, self._limits(ends)) if check.screen is not None else None
        return seen if seen is not None and seen.status != "pass" else check(copy, sampler, self._limits(ends))

    def _is_narrower(self, copy: AdaptedModel, sampler: Sampler) -> bool:
        """Whether a copy takes less than the model, or does something else: what it refuses cannot turn a check red."""
        old, new = self.model.contract, copy.contract
        if self._sampler is None:
            self._sampler = Sampler.of(self.model)
        return (
            (new.task, new.takes_tokens, new.vocab_size) != (old.task, old.takes_tokens, old.vocab_size)
            or new.min_length > old.min_length
            or new.multiple_of > old.multiple_of
            or sampler.limit < self._sampler.limit
            or (new.mask_name is None and old.mask_name is not None)
        )

    def _seen_anew(self, trial: Trial, name: str, ends: float) -> str:
        """What a check that says something worse now said before: "" where none does, else "skip" where only such ones do.

        A check that was skipped, because the fault hid what it looks at, may find a second fault: then another change may
        mend both. One that was green and is skipped now was silenced, which mends nothing.
        """
        guards = [r for r in self.results.values() if r.name != name and r.status in STILL_FINE]
        hidden = ""
        for before in sorted(guards, key=lambda result: (result.status, result.seconds)):
            if before.seconds > GUARD_SECONDS:
                continue
            result = self._result(trial.text, trial.change.fresh, before.name, ends)
            if result is None or result.status not in STILL_FINE[before.status]:
                logger.debug("%s makes %s worse", trial.change.words, before.name)
                hidden = before.status
                if hidden != "skip":
                    break
        return hidden

    def _limits(self, ends: float) -> Limits:
        left = max(ends - time.monotonic(), 0.01)
        return Limits(left if self.limits.seconds is None else min(left, self.limits.seconds), self.limits.bytes)


def _proposals(source: UserSource, result: CheckResult, text: str | None = None) -> Iterator[tuple[Change, str]]:
    """(change, text with it) for one check: the likeliest cures first; no text twice, none that is no Python."""
    name, words = result.name, f"{result.headline} {result.cause} {result.fix}"
    text = source.text if text is None else text
    code = source.code(text)
    seen = {text, source.text}
    fitting = [cure for cure in CURES if cure.fits(name, words)]
    fitting.sort(key=lambda cure: cure.likelihood(name))
    for cure in fitting:
        for change in cure.propose(code):
            try:
                changed = change.applied(text)
                compile(changed, source.file_name, "exec", dont_inherit=True)
            except (SyntaxError, ValueError):
                logger.debug("%s: %s gives no Python", cure.name, change.words)
                continue
            if changed not in seen:
                seen.add(changed)
                yield change, changed


def _green(result: CheckResult) -> bool:
    return result.status == "pass"


def _differs(one: CheckResult, other: CheckResult) -> bool:
    return (one.status, one.headline) != (other.status, other.headline) and not one.unfinished


def _rank(result: CheckResult | None) -> int:
    """Warnings before failures: a change that mends half is the likelier half of a pair."""
    return 0 if result is not None and result.status == "warn" else 1


def by_name(checks: Sequence[Check]) -> dict[str, Check]:
    """Checks by their names."""
    return {check.name: check for check in checks}
