"""Everything the wizard decides and finds out, in one place without widgets: state, model, and the decisions of each step."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError
from utils.ui.state import WizardState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from utils.loading.model_loader import LoadedModel
    from utils.training.training_config import TrainingConfig
    from utils.ui.decisions.dataset import DatasetDecision
    from utils.ui.decisions.results import Results
    from utils.ui.decisions.review import Review
    from utils.ui.decisions.tokenizer import TokenizerDecision
    from utils.ui.decisions.training import TrainingDecision
    from utils.ui.decisions.validation import ValidationDecision


class Setup:
    """What the wizard works on.

    Args:
        model: a module, what `load_model` gave, what `load_model` takes (a gist, folder or file), or None for the bundled
            example.
        config: what is known about the model, where it brings no config.
        folder: where the wizard keeps its state, uploads, tokenizers and runs.
        mirror: folder that outlives this machine (Google Drive); None where there is none.
        data: what was passed as `data=`; None leaves it to the step.
        training_config: settings to begin with.

    Raises:
        ConfigError: the model is none, or the settings do not hold: here, where the cell shows it, and not in a later step.
    """

    def __init__(
        self,
        model: nn.Module | LoadedModel | str | Path | None = None,
        config: object = None,
        *,
        folder: str | Path = "wizard",
        mirror: str | Path | None = None,
        data: Any = None,
        training_config: TrainingConfig | Mapping[str, Any] | None = None,
    ) -> None:
        self.given_model, self.given_config = model, config
        self.given_data, self.given_settings = data, training_config
        self.folder, self.mirror = Path(folder), None if mirror is None else Path(mirror)
        _check_model(model)
        self.state = WizardState(self.folder)
        if training_config is not None:
            self.training.given  # noqa: B018 # read once, so that it complains

    @cached_property
    def validation(self) -> ValidationDecision:
        """Step 1; `.adapted` is the model in use."""
        from utils.ui.decisions.validation import ValidationDecision

        return ValidationDecision(self)

    @cached_property
    def dataset(self) -> DatasetDecision:
        """Step 2; `.loaded` is the data."""
        from utils.ui.decisions.dataset import DatasetDecision

        return DatasetDecision(self)

    @cached_property
    def tokenizer(self) -> TokenizerDecision:
        """Step 3; `.made` is the tokenizer."""
        from utils.ui.decisions.tokenizer import TokenizerDecision

        return TokenizerDecision(self)

    @cached_property
    def training(self) -> TrainingDecision:
        """Step 4; `.config()` gives the settings."""
        from utils.ui.decisions.training import TrainingDecision

        return TrainingDecision(self)

    @cached_property
    def review(self) -> Review:
        """Step 5."""
        from utils.ui.decisions.review import Review

        return Review(self)

    @cached_property
    def results(self) -> Results:
        """The run and what it gave: `.train(ticket)`, `.result`, `.bundle`."""
        from utils.ui.decisions.results import Results

        return Results(self)


def _check_model(given: Any) -> None:
    """Refuse what can be no model; asks for no class, so that torch need not be loaded for a path.

    Raises:
        ConfigError: it is none.
    """
    place = given is None or isinstance(given, (str, Path))
    if not place and not any(hasattr(part, "named_parameters") for part in (given, getattr(given, "model", None))):
        raise ConfigError(
            f"SetupWizard(model) takes an nn.Module, what utils.load_model gave, a gist, a folder or a file; got {type(given).__name__}."
        )
