"""Every setting of a training run, once: default, unit and effect. Reads and writes JSON; trains nothing."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils._files import write_json
from utils.errors import ConfigError
from utils.tokenization.split import VALIDATION_FRACTION

FORMAT_VERSION = 1
"""Version of the JSON form; an older one is upgraded when it is read."""

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
INITIALISATIONS = ("auto", "keep")
OBJECTIVES = ("auto", "next_token", "masked")
SCHEDULES = ("cosine", "linear", "constant")
COMPILE_MODES = ("off", "default", "reduce-overhead", "max-autotune")
STRATEGIES = ("auto", "ddp", "fsdp")


@dataclass
class TrainingConfig:
    """Settings of one training run. `problems()` lists everything that is wrong, `validate()` raises it all at once.

    Example:
        >>> config = TrainingConfig(learning_rate=2e-3, batch_size=8, max_steps=600)
        >>> config.validate()
    """

    learning_rate: float = 5e-4
    """Peak learning rate of AdamW, reached after warm-up."""
    batch_size: int = 8
    """Blocks per forward pass (one micro-batch)."""
    epochs: int = 1
    """Passes over the training text; not used where max_steps is given."""
    max_steps: int | None = None
    """Optimizer steps after which training ends, repeating the text as often as needed; None leaves it to epochs."""
    max_length: int | None = None
    """Tokens per block; None takes the model's limit, and a value above the limit is lowered to it."""
    learning_rate_schedule: str = "cosine"
    """What the learning rate does after warm-up: "cosine" and "linear" fall to final_learning_rate_ratio, "constant" stays."""
    final_learning_rate_ratio: float = 0.1
    """Learning rate at the last step as a share of the peak; not used by "constant"."""
    warmup_ratio: float = 0.1
    """Share of all optimizer steps over which the learning rate rises to its peak."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW, per unit of learning rate; off for biases, norms and embeddings."""
    gradient_clip_norm: float = 1.0
    """Largest L2 norm of all gradients together; 0 turns clipping off."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per optimizer step: the effective batch is batch_size times this."""
    fit_batch_to_memory: bool = True
    """True lowers batch_size where a probe on the GPU finds too little memory, and raises the accumulation to match."""
    label_smoothing: float = 0.0
    """Share of the target's probability that is spread over all classes in the training loss; validation never smooths."""
    ema_decay: float | None = None
    """Decay per optimizer step of an exponential moving average of the weights, which is then what is validated and handed
    over; None keeps none."""
    early_stopping_patience: int | None = None
    """Validations in a row without a lower loss after which training ends; None never ends early."""
    early_stopping_min_delta: float = 0.0
    """Nats by which a validation loss must be lower than the best one to count as lower."""
    gradient_checkpointing: bool = False
    """True computes activations anew in the backward pass: less memory, about a third more time."""
    compile_mode: str = "off"
    """torch.compile: "off", "default", "reduce-overhead" (CUDA graphs) or "max-autotune" (minutes of search)."""
    precision: str = "auto"
    """"auto" chooses by compute capability; "32-true", "bf16-mixed" or "16-mixed" (CUDA only) sets it."""
    random_seed: int = 42
    """Seed of initialisation, dropout and the order of blocks, 0 to 2**32 - 1."""
    deterministic: bool = False
    """True refuses kernels that are not reproducible (slower on GPUs)."""
    validation_fraction: float = VALIDATION_FRACTION
    """Share of the text that is kept for validation."""
    val_every_n_steps: int | None = None
    """Optimizer steps between validations; None validates at the end of each epoch. The end of training always does."""
    num_workers: int = 0
    """Processes that make batches ahead; 0 is right for packed text, images gain from 2."""
    strategy: str = "auto"
    """"auto" trains on one device; "ddp" and "fsdp" on several, one process each (never inside a notebook)."""
    devices: int = 1
    """Devices per machine that train together."""
    save_every_n_epochs: int = 1
    """Epochs between checkpoints."""
    save_every_n_steps: int | None = None
    """Optimizer steps between checkpoints, besides those at the end of epochs; None adds none."""
    save_every_n_minutes: float = 10.0
    """Minutes after which the next finished optimizer step is saved; 0 turns time-based checkpoints off."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept, besides the best one."""
    checkpoint_dir: str = "runs"
    """Workspace folder that holds one folder per run; train(workspace=...) overrides it."""
    mirror_dir: str | None = None
    """Folder, such as one on Google Drive, that gets a verified copy of each checkpoint in the background; None mirrors
    nothing."""
    run_name: str | None = None
    """Folder name of the run; None continues an unfinished run of the same model and settings, else names one by the time."""
    notes: str = ""
    """Free text that is kept with the run."""
    wandb_project: str | None = None
    """Project on Weights & Biases that the run is logged to, where a key exists, else offline; None does not log there."""
    tensorboard: bool = False
    """True also writes TensorBoard event files into the run's folder."""
    vocab_size: int | None = None
    """Rows of the embedding that the model must have; None takes the model as it is."""
    d_model: int | None = None
    """Width that the model must have; None takes the model as it is."""
    num_layers: int | None = None
    """Number of blocks that the model must have; None takes the model as it is."""
    initialisation: str = "auto"
    """"auto" re-draws embeddings only where PyTorch's default would spoil the start; "keep" never touches weights."""
    objective: str = "auto"
    """For models of text: "auto" trains next-token prediction, with attention made causal where it is not and its mask
    allows that, else masked prediction; "next_token" takes a causal model only; "masked" hides tokens."""

    # ---- complaints -------------------------------------------------------------------------------------------------
    def problems(self) -> list[str]:
        """Every complaint about the settings, each with what was expected and what came."""
        wrong_types = dict(_type_problems(self))
        found = list(wrong_types.values())
        for name, is_right, expected in _RANGES:
            value = getattr(self, name)
            if name not in wrong_types and value is not None and not is_right(value):
                found.append(f"{name}={value!r}: expected {expected}.")
        for name, allowed in _CHOICES.items():
            if name not in wrong_types and getattr(self, name) not in allowed:
                found.append(
                    f"{name}={getattr(self, name)!r} is unknown{_nearest(getattr(self, name), allowed)} Known: {', '.join(allowed)}."
                )
        if "run_name" not in wrong_types and self.run_name is not None:
            found.extend(_run_name_problems(self.run_name))
        return found

    def validate(self) -> None:
        """Raise `ConfigError` with all problems, where there are any."""
        _raise(self.problems())

    # ---- forms ------------------------------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """Settings from a mapping; what is missing takes its default.

        Raises:
            ConfigError: unknown names (with the nearest known one), wrong types and values, all together.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"TrainingConfig is read from a mapping of settings; got {type(values).__name__}.")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = [name for name in values if name not in known]
        config = cls(**{name: value for name, value in values.items() if name in known})
        complaints = [f"{name!r} is no setting{_nearest(str(name), known)}" for name in unknown]
        _raise(complaints + config.problems())
        return config

    def save(self, path: str | Path | None = None) -> Path:
        """Write the settings as JSON, atomically.

        Args:
            path: file to write; None makes `config_YYYYMMDD_HHMMSS.json` in the current folder.

        Returns:
            The path of the file.
        """
        if path is None:
            path = f"config_{datetime.datetime.now():%Y%m%d_%H%M%S}.json"
        return write_json(path, {"format_version": FORMAT_VERSION, **self.to_dict()})

    @classmethod
    def load(cls, path: str | Path) -> TrainingConfig:
        """Read settings that `save` wrote.

        Raises:
            ConfigError: no such file, no JSON, a newer format, or settings that `validate` refuses.
        """
        file = Path(path)
        if not file.is_file():
            raise ConfigError(f"There is no file {file} to read a TrainingConfig from.")
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file.name} is no JSON: {error}.") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{file.name} must hold a JSON object of settings; it holds a {type(values).__name__}.")
        version = values.pop("format_version", FORMAT_VERSION)
        if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
            raise ConfigError(
                f"{file.name} has format version {version!r}; this package reads up to {FORMAT_VERSION}. Update the package."
            )
        return cls.from_dict(values)


_COUNT = (lambda value: value >= 1, "a whole number of 1 or more")

_RANGES: list[tuple[str, Any, str]] = [
    ("learning_rate", lambda v: 0 < v <= 10, "a number above 0 and at most 10"),
    ("batch_size", *_COUNT),
    ("epochs", *_COUNT),
    ("max_steps", *_COUNT),
    ("max_length", lambda v: v >= 2, "a whole number of 2 or more (a token and the next one)"),
    ("final_learning_rate_ratio", lambda v: 0 <= v <= 1, "a share from 0 to 1"),
    ("label_smoothing", lambda v: 0 <= v < 1, "a share from 0 to below 1"),
    ("ema_decay", lambda v: 0 < v < 1, "a number between 0 and 1, such as 0.999"),
    ("early_stopping_patience", *_COUNT),
    ("early_stopping_min_delta", lambda v: v >= 0, "a number of 0 or more"),
    ("num_workers", lambda v: v >= 0, "a whole number of 0 or more"),
    ("devices", *_COUNT),
    ("vocab_size", *_COUNT),
    ("d_model", *_COUNT),
    ("num_layers", *_COUNT),
    ("warmup_ratio", lambda v: 0 <= v <= 1, "a share from 0 to 1"),
    ("weight_decay", lambda v: v >= 0, "a number of 0 or more"),
    ("gradient_clip_norm", lambda v: v >= 0, "a number of 0 or more"),
    ("gradient_accumulation_steps", *_COUNT),
    ("random_seed", lambda v: 0 <= v < 2**32, f"a whole number from 0 to {2**32 - 1}"),
    ("validation_fraction", lambda v: 0 < v < 1, "a share between 0 and 1"),
    ("val_every_n_steps", *_COUNT),
    ("save_every_n_epochs", *_COUNT),
    ("save_every_n_steps", *_COUNT),
    ("save_every_n_minutes", lambda v: v >= 0, "a number of 0 or more"),
    ("keep_checkpoints", lambda v: v >= 2, "a whole number of 2 or more (a torn newest one needs an older one)"),
]
_CHOICES = {
    "precision": PRECISIONS,
    "initialisation": INITIALISATIONS,
    "objective": OBJECTIVES,
    "learning_rate_schedule": SCHEDULES,
    "compile_mode": COMPILE_MODES,
    "strategy": STRATEGIES,
}


def _raise(complaints: list[str]) -> None:
    if complaints:
        listed = "\n".join(f"- {text}" for text in complaints)
        raise ConfigError(
            f"{len(complaints)} problem{'s' if len(complaints) > 1 else ''} in the training settings:\n{listed}"
        )


def _type_problems(config: TrainingConfig) -> list[tuple[str, str]]:
    hints = typing.get_type_hints(TrainingConfig)
    found = []
    for field in dataclasses.fields(config):
        allowed = typing.get_args(hints[field.name]) or (hints[field.name],)
        value = getattr(config, field.name)
        if not _is_of(value, allowed):
            names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in allowed)
            found.append((field.name, f"{field.name}={value!r}: expected {names}, got {type(value).__name__}."))
        elif isinstance(value, float) and not math.isfinite(value):
            found.append((field.name, f"{field.name}={value!r}: expected a finite number."))
    return found


def _is_of(value: Any, allowed: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, allowed) or (float in allowed and isinstance(value, int))


def _run_name_problems(name: str) -> list[str]:
    if (
        not name
        or len(name.encode()) > 120
        or name.startswith(".")
        or any(c in '/\\:*?"<>|' or not c.isprintable() for c in name)
    ):
        return [
            f'run_name={name!r}: expected a folder name of at most 120 bytes without / \\ : * ? " < > | and no dot in front.'
        ]
    return []


def _nearest(name: Any, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else "."
