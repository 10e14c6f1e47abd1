"""What is wrong with training settings: types, ranges, choices, secrets, and combinations that cannot work.

Reads settings, changes none. A value that could be meant is never complained about; a combination only where it cannot do
what it says.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.training.secrets import names_a_secret, secret_in, shown, where_it_belongs
from utils.training.setting_names import hint

if TYPE_CHECKING:
    from utils.training.training_config import TrainingConfig

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
INITIALISATIONS = ("auto", "keep")
OBJECTIVES = ("auto", "next_token", "masked")
SCHEDULES = ("cosine", "linear", "constant")
COMPILE_MODES = ("off", "default", "reduce-overhead", "max-autotune")
STRATEGIES = ("auto", "ddp", "fsdp")

MOST_SAMPLES, MOST_WORKERS = 1_000_000, 512
"""Of a batch, and of a loader, each in a process of its own: more than any machine has a use for is a slip of the key."""

_COUNT = (lambda value: value >= 1, "a whole number of 1 or more")
_SHARE = (lambda value: 0 <= value <= 1, "a share from 0 to 1")
_AMOUNT = (lambda value: value >= 0, "a number of 0 or more")

_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "learning_rate": (lambda v: 0 < v <= 10, "a number above 0 and at most 10"),
    "batch_size": (lambda v: 1 <= v <= MOST_SAMPLES, f"a whole number from 1 to {MOST_SAMPLES:,}"),
    "epochs": _COUNT,
    "max_steps": _COUNT,
    "max_length": (lambda v: v >= 2, "a whole number of 2 or more (a token and the next one)"),
    "final_learning_rate_ratio": _SHARE,
    "warmup_ratio": _SHARE,
    "weight_decay": _AMOUNT,
    "gradient_clip_norm": _AMOUNT,
    "gradient_accumulation_steps": _COUNT,
    "label_smoothing": (lambda v: 0 <= v < 1, "a share from 0 to below 1"),
    "ema_decay": (lambda v: 0 < v < 1, "a number between 0 and 1, such as 0.999"),
    "early_stopping_patience": _COUNT,
    "early_stopping_min_delta": _AMOUNT,
    "random_seed": (lambda v: 0 <= v < 2**32, f"a whole number from 0 to {2**32 - 1}"),
    "validation_fraction": (lambda v: 0 < v < 1, "a share between 0 and 1"),
    "val_every_n_steps": _COUNT,
    "num_workers": (lambda v: 0 <= v <= MOST_WORKERS, f"a whole number from 0 to {MOST_WORKERS}"),
    "devices": _COUNT,
    "save_every_n_epochs": _COUNT,
    "save_every_n_steps": _COUNT,
    "save_every_n_minutes": _AMOUNT,
    "keep_checkpoints": (lambda v: v >= 2, "a whole number of 2 or more (a torn newest one needs an older one)"),
    "vocab_size": _COUNT,
    "d_model": _COUNT,
    "num_layers": _COUNT,
}
CHOICES = {
    "precision": PRECISIONS,
    "initialisation": INITIALISATIONS,
    "objective": OBJECTIVES,
    "learning_rate_schedule": SCHEDULES,
    "compile_mode": COMPILE_MODES,
    "strategy": STRATEGIES,
}
"""Setting → the values that it takes; what is not here is a number, a text or a tick."""
_NOT_IN_FOLDER_NAMES = '/\\:*?"<>|'
_NOT_IN_PROJECTS = "/\\#?%:"  # what wandb refuses, after the first request


def problems_of(config: TrainingConfig) -> list[str]:
    """Every complaint: those about single settings first, then those about combinations of settings that are right alone."""
    alone = dict(_alone(config))
    sound = dataclasses.replace(config, **{name: _default(config, name) for name in alone})
    return [*alone.values(), *(text for names, text in _together(sound) if not alone.keys() & names)]


def _default(config: TrainingConfig, name: str) -> Any:
    return getattr(type(config)(), name)


def unknown_name(name: object, known: Iterable[str]) -> str:
    """The complaint about a name that is no setting."""
    text = shown(name)
    if names_a_secret(str(name)):
        return f"{text} is no setting: {where_it_belongs(str(name))}."
    return f"{text} is no setting{hint(name, known)}"


def unknown_choice(name: str, value: object, allowed: Iterable[str]) -> str:
    """The complaint about a value that is none of those that there are."""
    known = tuple(allowed)
    return f"{name}={shown(value)} is unknown{hint(value, known)} Known: {', '.join(known)}."


# ---- one setting alone ---------------------------------------------------------------------------------------------------
def _alone(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    """(setting, complaint), at most one for each setting."""
    hints = hints_of(type(config))  # type: ignore[arg-type] # instances have no hash, their class has
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        complaint = _type_problem(field.name, value, hints[field.name])
        if complaint is None and value is not None:
            complaint = _secret_problem(field.name, value) or _value_problem(field.name, value)
        if complaint is not None:
            yield field.name, complaint


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """Types of the settings; resolved once, since a form asks with every move of a slider."""
    return typing.get_type_hints(kind)


def _type_problem(name: str, value: Any, hint_: Any) -> str | None:
    if typing.get_origin(hint_) is list:
        (item,) = typing.get_args(hint_)
        right = isinstance(value, (list, tuple)) and all(isinstance(part, item) for part in value)
        return None if right else f"{name}={shown(value)}: expected a list of {item.__name__}, got {_kind(value)}."
    allowed = typing.get_args(hint_) or (hint_,)
    if not _is_of(value, allowed):
        names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in allowed)
        return f"{name}={shown(value)}: expected {names}, got {_kind(value)}."
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name}={value!r}: expected a finite number."
    return None


def _kind(value: Any) -> str:
    return type(value).__name__


def _is_of(value: Any, allowed: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, allowed) or (float in allowed and isinstance(value, int))


def _secret_problem(name: str, value: Any) -> str | None:
    texts = value if isinstance(value, (list, tuple)) else [value]
    kind = next((found for text in texts if isinstance(text, str) and (found := secret_in(text))), None)
    return None if kind is None else f"{name}={shown(value)} looks like {kind}; {where_it_belongs()}."


def _value_problem(name: str, value: Any) -> str | None:
    if name in _RANGES:
        is_right, expected = _RANGES[name]
        return None if is_right(value) else f"{name}={value!r}: expected {expected}."
    if name in CHOICES:
        return None if value in CHOICES[name] else unknown_choice(name, value, CHOICES[name])
    check = _TEXTS.get(name)
    wanted = None if check is None else check(value)
    return None if wanted is None else f"{name}={shown(value)}: expected {wanted}."


def _as_run_name(name: str) -> str | None:
    if not name or len(name.encode()) > 120 or name.startswith(".") or _strange(name, _NOT_IN_FOLDER_NAMES):
        listed = " ".join(_NOT_IN_FOLDER_NAMES)
        return f"a folder name of at most 120 bytes without {listed} and no dot in front"
    return None


def expected_project(name: str) -> str | None:
    """What a name of a W&B project must be, where this is none."""
    if not name.strip() or len(name) > 128 or _strange(name, _NOT_IN_PROJECTS):
        return f"a project name of at most 128 characters without {' '.join(_NOT_IN_PROJECTS)}"
    return None


def _as_folder(path: str) -> str | None:
    if not path.strip() or "\0" in path or "://" in path:
        return "the path of a folder on this machine or on a mounted drive"
    return None


def _as_formats(names: list[str]) -> str | None:
    if not names or any(not name.isidentifier() for name in names):
        return 'names of export formats, such as ["onnx"]'
    return None


def _strange(name: str, refused: str) -> bool:
    return any(character in refused or not character.isprintable() for character in name)


_TEXTS: dict[str, Callable[[Any], str | None]] = {
    "run_name": _as_run_name,
    "wandb_project": expected_project,
    "checkpoint_dir": _as_folder,
    "mirror_dir": _as_folder,
    "export_formats": _as_formats,
}
"""Setting → what was expected where a text is not right, else None."""


# ---- several settings together -------------------------------------------------------------------------------------------
def _together(config: TrainingConfig) -> Iterator[tuple[set[str], str]]:
    """(settings, complaint) for combinations that cannot do what they say."""
    yield from _stream_problems(config)
    yield from _schedule_problems(config)
    yield from _early_stopping_problems(config)
    yield from _hardware_problems(config)
    yield from _folder_problems(config)


def _stream_problems(config: TrainingConfig) -> Iterator[tuple[set[str], str]]:
    if config.stream_data and config.max_steps is None:
        yield (
            {"stream_data", "max_steps"},
            "stream_data=True needs max_steps, the optimizer steps after which training ends: a stream has no length.",
        )


def _schedule_problems(config: TrainingConfig) -> Iterator[tuple[set[str], str]]:
    if config.warmup_ratio == 1 and config.learning_rate_schedule != "constant":
        yield (
            {"warmup_ratio", "learning_rate_schedule"},
            f"warmup_ratio={config.warmup_ratio!r} leaves no step for the {config.learning_rate_schedule!r} fall of the learning "
            "rate: take less, such as 0.1, or learning_rate_schedule='constant'.",
        )


def _early_stopping_problems(config: TrainingConfig) -> Iterator[tuple[set[str], str]]:
    if config.early_stopping_patience is None and config.early_stopping_min_delta > 0:
        yield (
            {"early_stopping_min_delta", "early_stopping_patience"},
            f"early_stopping_min_delta={config.early_stopping_min_delta!r} does nothing without early_stopping_patience: "
            "set the patience too, such as 3.",
        )


def _hardware_problems(config: TrainingConfig) -> Iterator[tuple[set[str], str]]:
    if config.strategy != "auto" and config.devices == 1:
        yield (
            {"strategy", "devices"},
            f"strategy={config.strategy!r} spreads training over several devices, and devices=1: set devices=2 or more, or "
            "strategy='auto'.",
        )
    if config.strategy == "auto" and config.devices > 1:
        yield (
            {"strategy", "devices"},
            f"devices={config.devices!r} needs strategy='ddp' or 'fsdp': 'auto' trains on one device.",
        )
    if config.strategy == "fsdp" and config.ema_decay is not None:
        yield (
            {"strategy", "ema_decay"},
            f"ema_decay={config.ema_decay!r} averages whole weights, which strategy='fsdp' never holds in one place: take "
            "strategy='ddp', or ema_decay=None.",
        )
    if config.strategy == "fsdp" and config.compile_mode != "off":
        yield (
            {"strategy", "compile_mode"},
            f"compile_mode={config.compile_mode!r} compiles the model that is given, and strategy='fsdp' trains a copy of it in "
            "shards: take strategy='ddp', or compile_mode='off'.",
        )
    if config.deterministic and config.compile_mode == "max-autotune":
        yield (
            {"deterministic", "compile_mode"},
            "deterministic=True cannot hold with compile_mode='max-autotune', which chooses kernels by their speed of the "
            "moment: take compile_mode='default' or 'off'.",
        )


def _folder_problems(config: TrainingConfig) -> Iterator[tuple[set[str], str]]:
    if config.mirror_dir is None:
        return
    names = {"mirror_dir", "checkpoint_dir"}
    mirror, runs = (Path(os.path.expanduser(text)).resolve() for text in (config.mirror_dir, config.checkpoint_dir))
    if mirror == runs or runs in mirror.parents or mirror in runs.parents:
        where = "is" if mirror == runs else "lies inside" if runs in mirror.parents else "holds"
        yield (
            names,
            f"mirror_dir={shown(config.mirror_dir)} {where} checkpoint_dir={shown(config.checkpoint_dir)}: what takes one "
            "away would take the other. Name a folder elsewhere, such as one on Google Drive.",
        )
