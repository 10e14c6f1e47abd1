"""What a person decided in the wizard, kept in a JSON file so that a reload or a restarted kernel finds it again.

Knows sections of plain values and no widget; what the values mean is left to the decision classes. Never holds a secret.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from utils._files import write_json
from utils.errors import ConfigError

logger = logging.getLogger(__name__)

FILE_NAME = "wizard.json"
FORMAT_VERSION = 1
"""Of the file; a newer one is not read."""

Form = TypeVar("Form")
"""A dataclass of plain values with defaults: what one step asks."""


class WizardState:
    """The forms of all steps, by name, and which step is on screen; written after each change.

    Args:
        folder: of the wizard; made with the first change.

    Attributes:
        step: place of the step on screen, 0 for the first.
        visited: highest place that the person has reached.
        lost: why an earlier file could not be used; empty where it could, or where there is none.
        unsaved: why the file cannot be written now (a full disk, a folder that is read-only); empty where it can.

    Example:
        >>> state = WizardState("wizard")
        >>> form = state.form("dataset", DatasetForm)      # as it was left, or its defaults
        >>> state.keep("dataset", dataclasses.replace(form, kind="hub"))
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / FILE_NAME
        self.step, self.visited, self.lost, self.unsaved = 0, 0, "", ""
        self._watchers: list[Callable[[], None]] = []
        self._forms: dict[str, dict[str, Any]] = {}
        self._turn = threading.Lock()  # a step in the page and work in a thread may both keep something
        self._read()

    def form(self, name: str, kind: type[Form]) -> Form:
        """The form of a step as it was left; a value of another type than its default's is left out.

        Args:
            name: of the form.
            kind: a dataclass whose fields all have defaults.
        """
        hints = get_type_hints(kind)
        names = {item.name for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
        kept = self._forms.get(name, {})
        return kind(**{key: value for key, value in kept.items() if key in names and _fits(value, hints[key])})

    def keep(self, name: str, form: Any) -> None:
        """Keep a step's form and write the file.

        Raises:
            ConfigError: a value holds a key, token or password.
        """
        values = dataclasses.asdict(form)
        _refuse_secrets(name, values)
        with self._turn:
            if self._forms.get(name) != values:
                self._forms[name] = values
                self._write()

    def watch(self, changed: Callable[[], None]) -> None:
        """Have it told when `unsaved` changes."""
        self._watchers.append(changed)

    def go(self, step: int) -> None:
        """Remember which step is on screen."""
        with self._turn:
            if (step, max(step, self.visited)) != (self.step, self.visited):
                self.step, self.visited = step, max(step, self.visited)
                self._write()

    def _write(self) -> None:
        content = {"format_version": FORMAT_VERSION, "step": self.step, "visited": self.visited, "forms": self._forms}
        before = self.unsaved
        try:
            write_json(self.path, content)
            self.unsaved = ""
        except OSError as error:  # the person goes on all the same, and knows it
            self.unsaved = (
                f"What you choose cannot be kept in {self.path} ({error}): it holds until this kernel ends. Make room there, or "
                "give the wizard another folder: SetupWizard(model, folder=…)."
            )
        if self.unsaved != before:
            if self.unsaved:
                logger.warning("%s", self.unsaved)
            for changed in self._watchers:
                changed()

    def _read(self) -> None:
        if not self.path.is_file():
            return
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            version = content["format_version"]
            if version != FORMAT_VERSION:
                raise ValueError(f"it has format version {version}, and this package reads {FORMAT_VERSION}")
            forms = {str(name): dict(values) for name, values in content["forms"].items()}
            step, visited = int(content["step"]), int(content["visited"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.lost = f"{self.path} cannot be used ({error}), so everything begins with its defaults."
            logger.warning("%s", self.lost)
            return
        self._forms, self.step, self.visited = forms, max(step, 0), max(visited, step, 0)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of a field's type; containers are told by their own type alone."""
    allowed = tuple(getattr(kind, "__origin__", kind) for kind in (get_args(hint) if _is_union(hint) else (hint,)))
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return True
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, tuple(kind for kind in allowed if isinstance(kind, type)))


def _is_union(hint: Any) -> bool:
    return bool(get_args(hint)) and not isinstance(getattr(hint, "__origin__", None), type)


def _refuse_secrets(name: str, values: dict[str, Any]) -> None:
    from utils.training.secrets import names_a_secret, unmistakable_secret_in, where_it_belongs

    for key, value in values.items():
        found = unmistakable_secret_in(value) if isinstance(value, str) else None
        if found or (names_a_secret(key) and isinstance(value, str) and value):
            raise ConfigError(f"{name}.{key} holds {found or 'a secret'}: {where_it_belongs(key)}.")
