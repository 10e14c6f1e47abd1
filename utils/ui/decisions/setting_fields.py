"""One form field for each setting, made from `TrainingConfig`: name, kind, choices, help. No widget, no default of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from utils.errors import ConfigError
from utils.training.secrets import secret_in, where_it_belongs
from utils.training.setting_problems import CHOICES, hints_of
from utils.training.setting_text import read, written
from utils.training.training_config import GROUPS, TrainingConfig, setting_docs

ELSEWHERE = frozenset(
    {
        *(
            "epochs",
            "learning_rate",
            "batch_size",
            "max_length",
            "precision",
            "mirror_dir",
            "wandb_project",
        ),  # above the fold
        *("checkpoint_dir", "run_name"),  # the wizard keeps runs in its own folder, by names that it finds again
        *("vocab_size", "d_model", "num_layers"),  # what the model is was settled in the first step
        *("strategy", "devices"),  # several processes never inside a notebook
        *("export_bundle", "export_formats"),  # chosen among the results
    }
)
"""Settings that the advanced fold does not show."""


@dataclass(frozen=True)
class SettingField:
    """One setting as a form shows it.

    Attributes:
        name: of the setting. group: of `GROUPS`. help: the line that documents it.
        kind: "tick", "choice" or "text". choices: the values of a choice.
    """

    name: str
    group: str
    help: str
    kind: str
    choices: tuple[str, ...] = ()

    def shown(self, value: Any) -> Any:
        """A value as the form shows it: a tick or choice as it is, everything else as text."""
        if self.kind != "text":
            return value
        return "" if value == "" else written(value)

    def meant(self, shown: Any) -> Any:
        """What the person means by what the form shows.

        Raises:
            ConfigError: it looks like a key, token or password, which no form keeps.
        """
        if self.kind != "text":
            return shown
        text = str(shown).strip()
        if kind := secret_in(text):
            raise ConfigError(f"{self.name}: what you typed looks like {kind}; {where_it_belongs()}.")
        found = read(text, hints_of(TrainingConfig)[self.name])
        finite = not isinstance(found, float) or math.isfinite(found)
        return found if finite else text  # kept as it was typed; JSON has no such number, and it does not hold anyway


def advanced_fields() -> list[SettingField]:
    """Every setting that is not shown elsewhere, in the order of the groups."""
    return [_field(name, group) for group, names in GROUPS.items() for name in names if name not in ELSEWHERE]


def _field(name: str, group: str) -> SettingField:
    help_text = setting_docs()[name]
    if hints_of(TrainingConfig)[name] is bool:
        return SettingField(name, group, help_text, "tick")
    if name in CHOICES:
        return SettingField(name, group, help_text, "choice", tuple(CHOICES[name]))
    return SettingField(name, group, help_text, "text")
