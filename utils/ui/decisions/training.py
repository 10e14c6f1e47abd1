"""Step 4: the settings of the training, with reasons, and a forecast that follows every change. No widget, no training.

Layers, each over the one before: defaults, preset, suggestions for this model and machine, what the person changed, and the
places that the wizard chooses (folder of runs, mirror, W&B).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError
from utils.progress import ProgressCallback, ignore_progress
from utils.tokenization.batch_order import fit_window
from utils.training.presets import PRESETS
from utils.training.setting_problems import problems_of
from utils.training.tracking import USUAL_PROJECT, WandbMode, choose_mode
from utils.training.training_config import TrainingConfig
from utils.ui.decisions.suggestions import Situation, Suggestion, suggest, suggest_end, suggest_preset

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from utils.adapters.model_adapter import AdaptedModel
    from utils.training.forecast import Forecast
    from utils.training.forecast_scaling import Extent, MeasuredModel
    from utils.ui.decisions.setup import Setup

GIVEN = "given"
"""Name of the choice "as passed to the wizard", where settings were passed."""
SAMPLE_CHARACTERS = 50_000
"""Characters of the text by which tokens are counted."""
ASSUMED_BYTES_PER_TOKEN = 3.0
"""Where no tokenizer was made yet."""


@dataclass
class TrainingForm:
    """What the person chose in step 4; kept in the state's file.

    Attributes:
        preset: name; empty takes the one that fits. changes: setting → value that differs from what was suggested.
        mirror: whether checkpoints are copied to `mirror_folder`; None: where a folder is known.
        mirror_folder: empty takes the wizard's. wandb: whether the run is logged to `wandb_project`.
    """

    preset: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    mirror: bool | None = None
    mirror_folder: str = ""
    wandb: bool = False
    wandb_project: str = USUAL_PROJECT


class TrainingDecision:
    """The settings and what they will take.

    Args:
        setup: the wizard's; its model, data and tokenizer are read.
        device: where training runs; None takes what `train` takes.
        mode: how W&B is used, as `choose_mode`.

    Attributes:
        form: what the person chose.
        measured: the model's costs; None until `measure`.
    """

    def __init__(
        self,
        setup: Setup,
        device: torch.device | None = None,
        mode: Callable[..., WandbMode] = choose_mode,
    ) -> None:
        self.setup, self._device, self._mode = setup, device, mode
        self.form = setup.state.form("training", TrainingForm)
        self.measured: MeasuredModel | None = None
        self._precision: tuple[object, str, str] | None = None
        self._density: tuple[object, object, float] | None = None
        self._wandb: WandbMode | None = None

    # ---- what is known ----------------------------------------------------------------------------------------------
    @property
    def ready(self) -> bool:
        """Whether the model is there, on which everything here depends."""
        return self.setup.validation.adapted is not None

    @property
    def adapted(self) -> AdaptedModel:
        """The model of step 1.

        Raises:
            ConfigError: it was not read yet.
        """
        found = self.setup.validation.adapted
        if found is None:
            raise ConfigError("The model has not been read yet: see step 1.")
        return found

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer of step 3, where it was made."""
        found: PreTrainedTokenizerBase | None = self.setup.tokenizer.made
        return found

    @property
    def device(self) -> torch.device:
        """Where training runs."""
        from utils.training.forecast import training_device

        return self._device or training_device()

    @property
    def situation(self) -> Situation:
        """Model and machine in numbers."""
        return Situation(self.adapted.contract.task, self.adapted.num_parameters(), self.longest, self.device.type)

    @property
    def longest(self) -> int:
        """Tokens of the longest sample that the model takes."""
        from utils.training.forecast_scaling import block_length

        return block_length(self.adapted)

    # ---- the settings -----------------------------------------------------------------------------------------------
    @cached_property
    def given(self) -> TrainingConfig | None:
        """Settings that were passed to the wizard.

        Raises:
            ConfigError: they do not hold.
        """
        passed = self.setup.given_settings
        if passed is None:
            return None
        if isinstance(passed, TrainingConfig):
            passed.validate()
            return passed
        return TrainingConfig.from_dict(passed)

    @property
    def preset(self) -> str:
        """Name of the preset in use; `GIVEN` for settings that were passed."""
        if self.form.preset in PRESETS or (self.form.preset == GIVEN and self.given is not None):
            return self.form.preset
        return GIVEN if self.given is not None else suggest_preset(self.situation)[0]

    @property
    def suggestion(self) -> Suggestion:
        """What fits this model, its data and this machine."""
        chosen = self.form.preset if self.form.preset in PRESETS else None
        found, extent = suggest(self.situation, chosen), self._extent_or_none()
        if found.preset == "fast_dev" or extent is None:
            return found
        preset = TrainingConfig.preset(found.preset, **found.settings)
        samples, _ = extent.samples(self.longest)
        per_epoch = fit_window(samples, preset.batch_size, preset.gradient_accumulation_steps).steps(samples)
        end, why = suggest_end(self.situation, preset.epochs, float(samples * self.longest), per_epoch)
        return Suggestion(found.preset, {**found.settings, **end}, {**found.reasons, "epochs": why})

    def config(self) -> TrainingConfig:
        """The settings as they are now; `problems` says whether they hold."""
        if self.preset == GIVEN and self.given is not None:
            base = self.given.to_dict()
        else:
            found = self.suggestion
            base = TrainingConfig.preset(found.preset, **found.settings).to_dict()
        return TrainingConfig(**{**base, **self._known(self.form.changes), **self._places(base)})

    def reasons(self) -> Mapping[str, str]:
        """Setting → why it has this value; "your choice" where it was changed."""
        found = {} if self.preset == GIVEN else dict(self.suggestion.reasons)
        found["precision"] = self.precision()[1]
        return {**found, **{name: "your choice" for name in self.form.changes if name != "precision"}}

    def choose_preset(self, name: str) -> None:
        """Take a preset; settings that were changed by hand give way to it.

        Raises:
            ConfigError: no such preset.
        """
        if name not in PRESETS and not (name == GIVEN and self.given is not None):
            raise ConfigError(f"There is no preset {name!r}. Known: {', '.join(PRESETS)}.")
        self._keep(preset=name, changes={})

    def change(self, name: str, value: Any) -> None:
        """Change one setting; a wrong value is kept, too, and `problems` says what is wrong with it.

        Raises:
            ConfigError: no such setting.
        """
        if name not in self._known({name: value}):
            raise ConfigError(f"There is no setting {name!r}.")
        changes = {**self.form.changes, name: value}
        if name == "epochs":  # whoever counts in epochs does not mean to be cut off by a number of steps
            changes |= {"max_steps": None, "val_every_n_steps": None}
        self._keep(changes=changes)

    def place(self, **choices: Any) -> None:
        """Change where the run is copied or logged: `mirror`, `mirror_folder`, `wandb`, `wandb_project`."""
        self._keep(**choices)

    def problems(self) -> list[str]:
        """Everything that is wrong, all at once."""
        from utils.training.engine.precision import check_precision
        from utils.training.model_sizes import model_mismatches

        config = self.config()
        found = problems_of(config)
        if not found:
            found = model_mismatches(config, self.adapted)
            try:
                check_precision(config.precision, self.device)
            except ConfigError as error:
                found.append(str(error))
        return found + self._mirror_problems()

    def _mirror_problems(self) -> list[str]:
        from utils.training.engine.mirror_folder import FileSystem, mirror_path, require_mounted

        if self.form.mirror and not self.mirror_folder:
            return ["A copy of the checkpoints is wanted, and no folder for it is named: name one, or switch it off."]
        if not self.mirrored:
            return []
        try:
            require_mounted(mirror_path(self.mirror_folder), FileSystem())
        except ConfigError as error:
            return [str(error)]
        return []

    @staticmethod
    def _known(values: Mapping[str, Any]) -> dict[str, Any]:
        names = {item.name for item in dataclasses.fields(TrainingConfig)}
        return {name: value for name, value in values.items() if name in names}

    def _keep(self, **changes: Any) -> None:
        changed = dataclasses.replace(self.form, **changes)
        self.setup.state.keep("training", changed)  # first: what it refuses is not taken
        self.form = changed

    # ---- places -----------------------------------------------------------------------------------------------------
    @property
    def mirror_folder(self) -> str:
        """Folder for copies of the checkpoints: the person's, else the wizard's; empty where there is none."""
        return self.form.mirror_folder or (str(self.setup.mirror) if self.setup.mirror is not None else "")

    @property
    def mirrored(self) -> bool:
        """Whether checkpoints are copied."""
        return bool(self.mirror_folder) if self.form.mirror is None else self.form.mirror

    @property
    def wandb(self) -> WandbMode:
        """How W&B would be used, by the environment alone; `ask_wandb` looks at Colab's secrets, too."""
        if self._wandb is None:
            self._wandb = self._mode(secret=lambda name: None)
        return self._wandb

    def ask_wandb(self) -> WandbMode:
        """Look for a key in Colab's secrets, too; Colab may ask the person to grant it."""
        self._wandb = self._mode()
        return self._wandb

    def _places(self, base: Mapping[str, Any]) -> dict[str, Any]:
        folder = self.mirror_folder
        found: dict[str, Any] = {"checkpoint_dir": str(self.runs)}
        if self.mirrored:
            found["mirror_dir"] = folder or None
        elif self.form.mirror is False:
            found["mirror_dir"] = None
        if self.form.wandb and self.wandb.mode == "online":
            found["wandb_project"] = self.form.wandb_project
        return found

    @property
    def runs(self) -> Path:
        """Folder of the wizard's runs."""
        return self.setup.folder / "runs"

    # ---- measuring and forecast -------------------------------------------------------------------------------------
    @property
    def to_measure(self) -> bool:
        """Whether the model must be measured (anew) before there is a forecast."""
        if self.measured is None or self.measured.adapted is not self.adapted:
            return True
        return self.measured.precision != self.precision()[0]

    def measure(self, progress: ProgressCallback = ignore_progress) -> MeasuredModel:
        """Measure the model: seconds, once; afterwards every forecast is arithmetic."""
        from utils.training.forecast_scaling import measure_model

        precision, _ = self._picked_precision(probe=True)
        batch = self.config().batch_size
        batch = batch if isinstance(batch, int) and batch > 0 else 1
        self.measured = measure_model(self.adapted, batch, precision, device=self.device, progress=progress)
        return self.measured

    def precision(self) -> tuple[str, str]:
        """The precision of the training, and why."""
        chosen = self.form.changes.get("precision", "auto")
        if self.preset == GIVEN and self.given is not None and "precision" not in self.form.changes:
            chosen = self.given.precision
        if chosen != "auto":
            return str(chosen), "your choice"
        return self._picked_precision(probe=False)

    def _picked_precision(self, probe: bool) -> tuple[str, str]:
        """What fits the device; with `probe` also what float16 does to the model, which takes a pass through it."""
        from utils.training.engine.precision import find_overflow, pick_precision

        if probe and self.precision()[1] == "your choice":
            return self.precision()
        known = self._precision
        if known is not None and known[0] is self.adapted:
            return known[1], known[2]
        found = pick_precision(self.device, probe=(lambda: find_overflow(self.adapted)) if probe else None)
        if probe:
            self._precision = (self.adapted, *found)
        return found

    def forecast(self) -> Forecast | None:
        """What the training will take; None before `measure`, without data, and while settings do not hold."""
        extent, config = self._extent_or_none(), self.config()
        if self.measured is None or extent is None or problems_of(config):
            return None
        return self.measured.forecast(config, extent, self.runs)

    def _extent_or_none(self) -> Extent | None:
        """How much data there is; None without data whose size is known."""
        from utils.training.forecast_scaling import Extent

        data = self.setup.dataset.loaded
        if data is None or not hasattr(data, "report"):
            return _extent_of_example(self.setup.dataset.for_training()) if self.setup.dataset.is_read else None
        packed = self.adapted.contract.task in ("lm", "masked")
        size = data.report.text_bytes / self._bytes_per_token() if packed else float(len(data))
        if data.validation is not None:
            other = data.validation
            held = other.report.text_bytes / self._bytes_per_token() if packed else float(len(other))
            return Extent(size, held, packed)
        fraction = (self.given or TrainingConfig()).validation_fraction
        fraction = self.form.changes.get("validation_fraction", fraction)
        fraction = (
            fraction if isinstance(fraction, float) and 0 < fraction < 1 else TrainingConfig().validation_fraction
        )
        return Extent(size * (1 - fraction), size * fraction, packed)

    def _bytes_per_token(self) -> float:
        """UTF-8 bytes of a token, counted in the beginning of the text."""
        tokenizer, data = self.tokenizer, self.setup.dataset.loaded
        if tokenizer is None:
            return ASSUMED_BYTES_PER_TOKEN
        if self._density is None or self._density[:2] != (tokenizer, data):
            text = _beginning(data)
            count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
            self._density = (tokenizer, data, len(text.encode()) / max(count, 1))
        return self._density[2]


def _extent_of_example(data: Any) -> Extent | None:
    """Of a built-in example that is no plain text; None for what cannot be counted without reading it."""
    from utils.training.forecast_scaling import Extent
    from utils.training.task_examples import EXAMPLES
    from utils.training.task_spec import example

    if not isinstance(data, str) or data not in EXAMPLES:
        return None
    found = example(data)
    return Extent(len(found.train), len(found.validation), packed=False)


def _beginning(documents: Any) -> str:
    """The first `SAMPLE_CHARACTERS` of the documents."""
    parts, size = [], 0
    for text in documents:
        parts.append(text[: SAMPLE_CHARACTERS - size])
        size += len(parts[-1])
        if size >= SAMPLE_CHARACTERS:
            break
    return "\n".join(parts)
