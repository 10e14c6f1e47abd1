"""A patch of a model's source, and what re-tests it. Knows no cure; those lie in `cures`."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from utils._files import write_text


@dataclass(frozen=True)
class Patch:
    """A change of the user's source after which the check passed on a copy of the model.

    Attributes:
        cure: what was changed, in a few words.
        before: the whole source as it was.
        after: the whole source as it should be.
        retested: what the check said about the patched copy.
        file_name: of the source, for the diff.
        fresh_weights: the change is about how weights begin, so a patched copy is not given the old ones.
    """

    cure: str
    before: str
    after: str
    retested: str
    file_name: str = "model.py"
    fresh_weights: bool = False

    @property
    def diff(self) -> str:
        """The change as a unified diff, as `patch` and `git apply` take it."""
        before, after = (_lines(text) for text in (self.before, self.after))
        lines = difflib.unified_diff(before, after, f"a/{self.file_name}", f"b/{self.file_name}")
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)

    def save(self, path: str | Path) -> Path:
        """Write the patched source, or the diff where the name ends in .diff or .patch; the user's own file is not touched."""
        return write_text(path, self.diff if Path(path).suffix in (".diff", ".patch") else self.after)

    def summary(self) -> str:
        """What is changed and that it was re-tested, in one line."""
        return f"{self.cure}; re-tested: {self.retested}"


def _lines(text: str) -> list[str]:
    """Lines as git counts them: each ends with its line feed, and nothing else ends one."""
    return [line for line in re.split(r"(?<=\n)", text) if line]
