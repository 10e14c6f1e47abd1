"""What a cure is: a name, the checks it may turn green, and the changes of the source that it proposes. Judges nothing.

A cure sees patterns in text, so most of what it proposes is wrong; whoever asks must try each change and keep the one
that helps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from utils.checks.cures.code import Code
from utils.loading.source_edits import Edit, edited

Proposals = Callable[[Code], Iterator["Change"]]


@dataclass(frozen=True)
class Change:
    """One change that a cure proposes.

    Attributes:
        words: what is changed, for a person.
        edits: of the text.
        fresh: the change is about how weights begin, so that the old weights must not be put back.
    """

    words: str
    edits: tuple[Edit, ...]
    fresh: bool = False

    @classmethod
    def of(cls, words: str, edits: Sequence[Edit], fresh: bool = False) -> Change:
        """A change from a list of edits."""
        return cls(words, tuple(edits), fresh)

    def applied(self, text: str) -> str:
        """The text with the change made."""
        return edited(text, self.edits)


@dataclass(frozen=True)
class Cure:
    """A known way to mend a kind of fault.

    Attributes:
        name: of the kind, e.g. "softmax over the keys".
        checks: names of the checks that see this fault, the likeliest first; empty: any may.
        propose: gives the changes for a source, the likeliest first.
        asked: a word that the check's finding, cause or fix must hold, for a change of a design that may be on purpose.
    """

    name: str
    checks: tuple[str, ...]
    propose: Proposals
    asked: str = ""

    def fits(self, check: str, words: str) -> bool:
        """Whether the fault is one that this check sees, and speaks of in these words."""
        return (not self.checks or check in self.checks) and self.asked in words

    def likelihood(self, check: str) -> int:
        """The lower, the likelier this cure is right for a check: its place among the cure's checks."""
        return self.checks.index(check) if self.checks else len(CHECKS_OF_ANY)


CHECKS_OF_ANY = range(4)
"""A cure for any check stands behind those that name the check among their first four."""


def cure(name: str, *checks: str, asked: str = "") -> Callable[[Proposals], Cure]:
    """Decorate a function that proposes changes into a `Cure` for these checks, for any where none is named."""
    return lambda propose: Cure(name, checks, propose, asked)
