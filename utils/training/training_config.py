"""Every setting of a training run, once: default, unit and effect. Reads and writes JSON; trains nothing.

What is wrong with settings is for `setting_problems` to say, what older files mean for `config_versions`.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime
import functools
import html
import inspect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from utils._files import write_json
from utils.errors import ConfigError, UnknownSettingError
from utils.tokenization.split import VALIDATION_FRACTION
from utils.training.config_files import read_settings
from utils.training.config_versions import FORMAT_VERSION, upgraded
from utils.training.presets import PRESETS
from utils.training.secrets import shown
from utils.training.setting_names import hint
from utils.training.setting_problems import problems_of, unknown_name

__all__ = ["GROUPS", "ConfigDifferences", "TrainingConfig", "TrainingConfigBuilder", "compare_configs", "setting_docs"]

GROUPS: dict[str, tuple[str, ...]] = {
    "model": ("vocab_size", "d_model", "num_layers", "initialisation"),
    "training": (
        *("learning_rate", "batch_size", "epochs", "max_steps", "max_length", "weight_decay", "gradient_clip_norm"),
        *(
            "stream_data",
            "gradient_accumulation_steps",
            "label_smoothing",
            "ema_decay",
            "objective",
            "random_seed",
            "deterministic",
        ),
    ),
    "schedule": ("learning_rate_schedule", "final_learning_rate_ratio", "warmup_ratio"),
    "validation": (
        *("validation_fraction", "val_every_n_steps", "early_stopping_patience", "early_stopping_min_delta"),
    ),
    "checkpoints": (
        *("save_every_n_epochs", "save_every_n_steps", "save_every_n_minutes", "keep_checkpoints"),
        *("checkpoint_dir", "mirror_dir"),
    ),
    "tracking": ("run_name", "notes", "wandb_project", "tensorboard"),
    "hardware": (
        *("precision", "compile_mode", "gradient_checkpointing", "fit_batch_to_memory", "num_workers", "strategy"),
        "devices",
    ),
    "export": ("export_bundle", "export_formats"),
}
"""Group → its settings; every setting is in exactly one. The builder, the command line and forms show them by these."""

T = TypeVar("T")


def _naming_the_nearest(cls: type[T]) -> type[T]:
    """Let the constructor of a dataclass say which settings a call has misspelled, all of them and with the nearest names."""
    made = cls.__init__

    @functools.wraps(made)
    def init(self: Any, *values: Any, **settings: Any) -> None:
        _refuse_unknown(settings)
        made(self, *values, **settings)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


@_naming_the_nearest
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
    stream_data: bool = False
    """True reads the text while it is trained on, for text larger than memory or disk; needs max_steps, and keeps the first
    200,000 characters for validation."""
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
    export_bundle: bool = False
    """True has `python -m utils train` export the trained model at the end; in Python `utils.export(result)` does so."""
    export_formats: list[str] = dataclasses.field(default_factory=lambda: ["onnx"])
    """Formats of that export, as `utils.export` takes them."""

    def __post_init__(self) -> None:
        """Keep formats as the list that JSON knows."""
        if isinstance(self.export_formats, tuple):
            self.export_formats = list(self.export_formats)

    # ---- complaints -------------------------------------------------------------------------------------------------
    def problems(self) -> list[str]:
        """Every complaint about the settings and their combinations, each with what was expected and what came."""
        return problems_of(self)

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
        _refuse_unknown(values, always=True)
        return cls(**values)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> TrainingConfig:
        """Settings for a purpose: "fast_dev", "standard", "large", "classification" or "vision" (see `presets`).

        Args:
            name: of the preset, in any case.
            changes: settings that differ from it.

        Raises:
            ConfigError: no such preset, or settings that do not hold, all of them listed.

        Example:
            >>> TrainingConfig.preset("fast_dev", batch_size=2).max_steps
            20
        """
        found = PRESETS.get(str(name).strip().lower())
        if found is None:
            raise ConfigError(f"The preset {shown(name)} is unknown{hint(name, PRESETS)} Known: {', '.join(PRESETS)}.")
        return cls.from_dict({**found.settings, **changes})

    def save(self, path: str | Path | None = None) -> Path:
        """Write the settings as JSON, atomically.

        Args:
            path: file to write; None makes `config_YYYYMMDD_HHMMSS.json` in the current folder, and a name with -2, -3, …
                where there is one of that second already.

        Returns:
            The path of the file.

        Raises:
            ConfigError: a setting holds what looks like a secret, or does not hold otherwise.
        """
        self.validate()
        content = {"format_version": FORMAT_VERSION, **self.to_dict()}
        if path is not None:
            return write_json(path, content)
        taken = _free_name()
        try:
            return write_json(taken, content)
        except BaseException:
            taken.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | Path) -> TrainingConfig:
        """Read settings that `save` wrote, of this version or an older one, or that a person wrote in JSON or YAML.

        Raises:
            ConfigError: no such file, not what its ending says, a newer format, or settings that `validate` refuses.
        """
        return cls.from_dict(upgraded(read_settings(path), Path(path).name))


class ConfigDifferences(dict[str, tuple[Any, Any]]):
    """Setting → (value of the first, value of the second); printed as `learning_rate: 5e-05 → 0.0001`."""

    def summary(self) -> str:
        """One line per setting that differs."""
        lines = [f"{name}: {_short(before)} → {_short(after)}" for name, (before, after) in self.items()]
        return "\n".join(lines) if lines else "no setting differs"

    __str__ = summary

    def _repr_html_(self) -> str:
        if not self:
            return "<p>no setting differs</p>"
        cells = (
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(_short(a))}</td><td>{html.escape(_short(b))}</td></tr>"
            for name, (a, b) in self.items()
        )
        return f"<table><tr><th>setting</th><th>before</th><th>after</th></tr>{''.join(cells)}</table>"


def settings_of(config: TrainingConfig | Mapping[str, Any] | None) -> TrainingConfig:
    """The settings that a verb's `config=` means.

    Raises:
        ConfigError: they do not hold, all problems together; or it is neither settings nor a mapping.
    """
    if config is None:
        return TrainingConfig()
    if isinstance(config, TrainingConfig):
        config.validate()
        return config
    if isinstance(config, Mapping):
        return TrainingConfig.from_dict(config)
    raise ConfigError(f"config= takes a TrainingConfig or a mapping of settings; got {type(config).__name__}.")


def compare_configs(
    first: TrainingConfig | Mapping[str, Any], second: TrainingConfig | Mapping[str, Any]
) -> ConfigDifferences:
    """What differs between two settings.

    Args:
        first: settings, or a mapping of them (what it does not name has its default).
        second: the same.

    Returns:
        Setting → (value of `first`, value of `second`), in the order of the settings; a dict that prints itself readably.

    Example:
        >>> print(compare_configs(TrainingConfig(), TrainingConfig(batch_size=4)))
        batch_size: 8 → 4
    """
    before, after = (
        (item if isinstance(item, TrainingConfig) else TrainingConfig.from_dict(item)).to_dict()
        for item in (first, second)
    )
    return ConfigDifferences({name: (before[name], after[name]) for name in before if before[name] != after[name]})


class TrainingConfigBuilder:
    """Settings group by group; `build` checks them together, once.

    Every method returns the builder. A name that is no setting of the method's group is an error at once, which says where
    it belongs or what is nearest.

    Example:
        >>> config = TrainingConfigBuilder().with_training(learning_rate=1e-4, batch_size=4).with_schedule(warmup_ratio=0.05).build()
    """

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        self._settings = dict(settings or {})
        _refuse_unknown(self._settings)

    @classmethod
    def from_config(cls, config: TrainingConfig) -> TrainingConfigBuilder:
        """Begin with the settings of another config, which stays as it is."""
        return cls(config.to_dict())

    @classmethod
    def from_preset(cls, name: str) -> TrainingConfigBuilder:
        """Begin with a preset (see `TrainingConfig.preset`)."""
        return cls(TrainingConfig.preset(name).to_dict())

    def with_model(self, **settings: Any) -> TrainingConfigBuilder:
        """What the model must be: vocab_size, d_model, num_layers, initialisation."""
        return self._with("model", settings)

    def with_training(self, **settings: Any) -> TrainingConfigBuilder:
        """Learning rate, batch, length of the training, regularisation, seed."""
        return self._with("training", settings)

    def with_schedule(self, **settings: Any) -> TrainingConfigBuilder:
        """How the learning rate rises and falls."""
        return self._with("schedule", settings)

    def with_validation(self, **settings: Any) -> TrainingConfigBuilder:
        """How much is kept for validation, how often it is scored, and when training ends early."""
        return self._with("validation", settings)

    def with_checkpoints(self, **settings: Any) -> TrainingConfigBuilder:
        """When checkpoints are saved, where, and how many are kept."""
        return self._with("checkpoints", settings)

    def with_tracking(self, **settings: Any) -> TrainingConfigBuilder:
        """Name and notes of the run, and where it is logged."""
        return self._with("tracking", settings)

    def with_hardware(self, **settings: Any) -> TrainingConfigBuilder:
        """Precision, compilation, memory, worker processes and devices."""
        return self._with("hardware", settings)

    def with_export(self, **settings: Any) -> TrainingConfigBuilder:
        """What is exported at the end."""
        return self._with("export", settings)

    def build(self) -> TrainingConfig:
        """The settings.

        Raises:
            ConfigError: all problems of all groups together.
        """
        return TrainingConfig.from_dict(self._settings)

    def _with(self, group: str, settings: Mapping[str, Any]) -> TrainingConfigBuilder:
        elsewhere = {name: other for other, names in GROUPS.items() for name in names if other != group}
        complaints = [
            f"{name!r} belongs to with_{elsewhere[name]}()." if name in elsewhere else unknown_name(name, _known())
            for name in settings
            if name not in GROUPS[group]
        ]
        if complaints:
            raise UnknownSettingError(_listed(complaints, f"with_{group}() takes {', '.join(GROUPS[group])}"))
        self._settings.update(settings)
        return self


def setting_docs() -> dict[str, str]:
    """Setting → the line that documents it, read from the class itself: the one home of help texts."""
    (body,) = (
        node.body
        for node in ast.parse(inspect.getsource(inspect.getmodule(TrainingConfig))).body  # type: ignore[arg-type]
        if isinstance(node, ast.ClassDef) and node.name == TrainingConfig.__name__
    )
    found = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


def _known() -> list[str]:
    return [field.name for field in dataclasses.fields(TrainingConfig)]


def _refuse_unknown(settings: Mapping[str, Any], always: bool = False) -> None:
    """Refuse names that are no settings, with what is wrong about the others; `always` looks at those anyway.

    Raises:
        UnknownSettingError: a name is none. ConfigError: with `always`, a value does not hold.
    """
    known = _known()
    complaints = [unknown_name(name, known) for name in settings if name not in known]
    if not complaints and not always:
        return
    others = TrainingConfig(**{name: value for name, value in settings.items() if name in known})
    if complaints:
        raise UnknownSettingError(_listed(complaints + others.problems()))
    _raise(others.problems())


def _raise(complaints: list[str]) -> None:
    if complaints:
        raise ConfigError(_listed(complaints))


def _listed(complaints: list[str], rule: str = "") -> str:
    listed = "\n".join(f"- {text}" for text in complaints)
    head = f"{len(complaints)} problem{'s' if len(complaints) > 1 else ''} in the training settings"
    return f"{head} ({rule}):\n{listed}" if rule else f"{head}:\n{listed}"


def _free_name() -> Path:
    """A file name of this second that nobody has; the file is made, so that nobody takes it meanwhile."""
    stem = f"config_{datetime.datetime.now():%Y%m%d_%H%M%S}"
    for number in itertools.count(1):
        path = Path(f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        return path
    raise AssertionError("counting never ends")


def _short(value: Any) -> str:
    return shown(value) if isinstance(value, (str, list, tuple)) else str(value)
