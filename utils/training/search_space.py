"""Which settings a search may change, and over which values. Knows settings and numbers; asks a trial, runs none."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from utils.errors import ConfigError
from utils.training.secrets import shown
from utils.training.setting_names import hint
from utils.training.training_config import GROUPS, TrainingConfig

NOT_SEARCHED = {
    **dict.fromkeys(
        ("epochs", "max_steps"),
        "it is the budget of a trial, and a longer training nearly always wins: set it in config=",
    ),
    **dict.fromkeys(("vocab_size", "d_model", "num_layers"), "it describes the model, which every trial starts from"),
    "validation_fraction": "losses on other validation data do not compare",
    "objective": "losses of another objective do not compare",
    "random_seed": "the luckiest seed is no setting that carries over",
    "val_every_n_steps": "the search itself says when to validate",
    **dict.fromkeys(
        (*GROUPS["checkpoints"], *GROUPS["tracking"], *GROUPS["export"]), "it does not change what is learnt"
    ),
    **dict.fromkeys(("strategy", "devices", "num_workers"), "it does not change what is learnt"),
    "deterministic": "it does not change what is learnt",
}
"""Setting → why no search changes it."""

LOG_SCALED = frozenset(
    {"learning_rate", "weight_decay", "batch_size", "gradient_accumulation_steps", "early_stopping_min_delta"}
)
"""Settings whose ratios matter, not their differences: ranges of them that begin above 0 are searched on a log scale."""

DEFAULT_SPACE: dict[str, Any] = {"learning_rate": (1e-5, 1e-2), "weight_decay": (1e-3, 0.3), "warmup_ratio": (0.0, 0.3)}
"""What is searched where nobody says: AdamW's own settings, around the values that published trainings of transformers take
(learning rates 6e-5 to 6e-4 and weight decay 0.1 in Brown et al. 2020, table 2.1; higher rates suit smaller models)."""


class Suggests(Protocol):
    """What the space asks of a trial; `optuna.Trial` is one."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = ...) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = ...) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Attributes:
        low, high: ends, in the setting's own unit; whole numbers where the setting is one.
        log: whether ratios matter instead of differences; None takes what is usual for the setting.

    Example:
        >>> SearchSpace({"learning_rate": Range(1e-5, 1e-2), "warmup_ratio": (0.0, 0.2), "batch_size": [4, 8, 16]})
    """

    low: float
    high: float
    log: bool | None = None

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}" + (" (log scale)" if self.log else "")

    def to_json(self) -> dict[str, Any]:
        """As `study.json` keeps it."""
        return {"low": self.low, "high": self.high, "log": bool(self.log)}

    def suggested(self, trial: Suggests, name: str) -> float:
        """A value of it."""
        if isinstance(self.low, int):
            return trial.suggest_int(name, self.low, int(self.high), log=bool(self.log))
        return trial.suggest_float(name, self.low, self.high, log=bool(self.log))

    def nearest(self, value: Any) -> Any:
        """The value of the range that is nearest to one from outside; None for what is no number."""
        return min(max(value, self.low), self.high) if isinstance(value, (int, float)) else None


@dataclass(frozen=True)
class Choices:
    """One of several values, without an order."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return "one of " + ", ".join(map(str, self.values))

    def to_json(self) -> list[Any]:
        """As `study.json` keeps it."""
        return list(self.values)

    def suggested(self, trial: Suggests, name: str) -> Any:
        """A value of it."""
        return trial.suggest_categorical(name, self.values)

    def nearest(self, value: Any) -> Any:
        """The value itself where it is one of the choices; None else."""
        return value if value in self.values else None


class SearchSpace:
    """The settings that a search changes, each with its values.

    Args:
        space: setting → `(low, high)`, a `Range`, or a list of choices.
        config: settings that stay as they are, beside which the values must hold.

    Raises:
        ConfigError: everything that is wrong with it, together, with the nearest names.

    Example:
        >>> space = SearchSpace({"learning_rate": (1e-5, 1e-2), "batch_size": [4, 8, 16]})
        >>> print(space.summary())
        learning_rate: 1e-05 to 0.01 (log scale)
        batch_size: one of 4, 8, 16
    """

    def __init__(self, space: Mapping[str, Any] | None = None, config: TrainingConfig | None = None) -> None:
        given = DEFAULT_SPACE if space is None else space
        if not isinstance(given, Mapping) or not given:
            raise ConfigError(
                "A search space maps settings to values, such as {'learning_rate': (1e-5, 1e-2), 'batch_size': [4, 8]}; got "
                f"{shown(given)}."
            )
        config = config if config is not None else TrainingConfig()
        self.parts: dict[str, Range | Choices] = {}
        complaints = []
        for name, values in given.items():
            found = _part(name, values)
            complaints += [found] if isinstance(found, str) else _beside(config, name, found)
            if not isinstance(found, str):
                self.parts[name] = found
        if complaints:
            listed = "\n".join(f"- {text}" for text in complaints)
            raise ConfigError(
                f"{len(complaints)} problem{'s' if len(complaints) > 1 else ''} in the search space:\n{listed}"
            )

    @classmethod
    def from_texts(cls, texts: Sequence[str], config: TrainingConfig | None = None) -> SearchSpace:
        """From a command line: `learning_rate=1e-5..1e-2`, `batch_size=4,8,16`, `warmup_ratio=0..0.3:linear`.

        Raises:
            ConfigError: a text is of no such form, a setting is named twice, or the space does not hold.
        """
        pairs = [_read(text) for text in texts]
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"The search space names {', '.join(twice)} twice. Give each setting its values once.")
        return cls(dict(pairs) if pairs else None, config)

    def settings(self, base: TrainingConfig, values: Mapping[str, Any]) -> TrainingConfig:
        """The settings of a trial.

        Raises:
            ConfigError: values that do not hold together.
        """
        found = dataclasses.replace(base, **values)
        found.validate()
        return found

    def suggested(self, trial: Suggests) -> dict[str, Any]:
        """A value for each setting, from a trial."""
        return {name: part.suggested(trial, name) for name, part in self.parts.items()}

    def start(self, config: TrainingConfig, learning_rate: float | None = None) -> dict[str, Any]:
        """The values of `config` that lie in the space, moved to its ends where they lie outside.

        Args:
            config: the settings that a search begins from.
            learning_rate: what a range test found, instead of the settings' own.
        """
        own = {name: getattr(config, name) for name in self.parts}
        if learning_rate is not None and "learning_rate" in own:
            own["learning_rate"] = learning_rate
        near = {name: self.parts[name].nearest(value) for name, value in own.items()}
        return {name: value for name, value in near.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """As `study.json` keeps it."""
        return {name: part.to_json() for name, part in self.parts.items()}

    def summary(self) -> str:
        """One line for each setting."""
        return "\n".join(f"{name}: {part}" for name, part in self.parts.items())

    __str__ = summary


def searchable() -> list[str]:
    """The settings that a search may change."""
    return [field.name for field in dataclasses.fields(TrainingConfig) if field.name not in NOT_SEARCHED]


def _part(name: str, values: Any) -> Range | Choices | str:
    """The values of a setting, or what is wrong with them."""
    if name in NOT_SEARCHED:
        return f"{name} cannot be searched: {NOT_SEARCHED[name]}."
    if name not in searchable():
        return f"{shown(name)} is no setting that can be searched{hint(name, searchable())}"
    if isinstance(values, tuple) and len(values) == 2 and all(_is_number(value) for value in values):
        values = Range(*values)
    if isinstance(values, Range):
        return _range(name, values)
    if isinstance(values, (list, tuple)) and values:
        return (
            Choices(tuple(values))
            if len(set(map(repr, values))) == len(values)
            else f"{name}: a choice is named twice."
        )
    return (
        f"{name}={shown(values)}: expected a range (low, high) or a list of choices, such as "
        f"{name}: (1e-5, 1e-2) or {name}: [1e-4, 1e-3]."
    )


def _range(name: str, values: Range) -> Range | str:
    kinds = typing.get_args(typing.get_type_hints(TrainingConfig)[name]) or (
        typing.get_type_hints(TrainingConfig)[name],
    )
    if bool in kinds or not {int, float} & set(kinds):
        return f"{name} has no range from {values.low} to {values.high}: list its choices, such as {name}: [...]."
    low, high = values.low, values.high
    if not (_is_number(low) and _is_number(high) and low < high):
        return f"{name}: a range goes from a lower to a higher number; got {low!r} to {high!r}."
    if float not in kinds and not (isinstance(low, int) and isinstance(high, int)):
        return f"{name} is a whole number; got a range from {low!r} to {high!r}."
    log = name in LOG_SCALED and low > 0 if values.log is None else values.log
    if log and low <= 0:
        return f"{name}: a log scale begins above 0; got {low!r} to {high!r}. Begin higher, or take log=False."
    return Range(low, high, log) if float not in kinds else Range(float(low), float(high), log)


def _beside(config: TrainingConfig, name: str, part: Range | Choices) -> list[str]:
    """What the settings say about the ends of a range, or about each choice."""
    known = set(config.problems())
    tried = (part.low, part.high) if isinstance(part, Range) else part.values
    found = [text for value in tried for text in dataclasses.replace(config, **{name: value}).problems()]
    return [text for text in dict.fromkeys(found) if text not in known]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _read(text: str) -> tuple[str, Any]:
    """A setting and its values from `name=low..high`, `name=low..high:log` or `name=a,b,c`."""
    name, equals, values = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    if not equals or not values.strip():
        raise ConfigError(
            f"{shown(text)} is no part of a search space: expected NAME=LOW..HIGH or NAME=A,B,C, such as "
            "learning_rate=1e-5..1e-2 or batch_size=4,8,16."
        )
    span, _, scale = values.partition(":")
    if ".." not in span:
        return name, [_typed(part) for part in values.split(",") if part.strip()]
    low, _, high = span.partition("..")
    if scale not in ("", "log", "linear"):
        raise ConfigError(f"{shown(text)}: the scale of a range is log or linear; got {shown(scale)}.")
    return name, Range(_typed(low), _typed(high), {"log": True, "linear": False}.get(scale))


def _typed(text: str) -> Any:
    """A word of a command line as the value that it spells."""
    text = text.strip()
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"none": None, "true": True, "false": False}.get(text.lower(), text)
