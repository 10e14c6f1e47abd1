"""The whole walk on a bundled broken export: load, review, complete, check, train, sample, export, report.

Every stage is one call of a room below; this file only says their order and shows what they gave.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import utils
import utils.examples
from utils._files import list_files, write_json, write_text
from utils._tables import text_table
from utils.adapters.causality import CausalityReport, sees_future
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.checks.report import Report
from utils.errors import ConfigError
from utils.loading.model_loader import LoadedModel, load_model
from utils.progress import Progress
from utils.tier1_critical_validation import validate
from utils.training.baselines import byte_trigram_bits_per_byte
from utils.training.dataset_utilities import resolve_data
from utils.training.forecast import steps_within
from utils.training.generation import generate
from utils.training.training_config import TrainingConfig
from utils.training.training_core import train
from utils.ui.report_page import render_page

if TYPE_CHECKING:
    from utils.export.bundle import Bundle
    from utils.training.result import TrainingResult

DATA = "python-docs"
PROMPTS = ("The value of the ", "If an exception is ", "A function can ")
TRAINING_SECONDS = 60.0
MOST_STEPS = 1500
BATCH_SIZE = 8
LEARNING_RATE = 3e-3


@dataclass
class Walk:
    """What the stages gave, in their order.

    Attributes:
        folder: the run folder with everything below and `report.html`.
        bits_per_byte: validation bits per byte: "untrained", "byte trigram", "trained".
        seconds: duration of each stage.
    """

    folder: Path
    loaded: LoadedModel
    adapted: AdaptedModel
    causality: CausalityReport
    report: Report
    result: TrainingResult
    bits_per_byte: dict[str, float]
    samples: dict[str, str]
    bundle: Bundle
    forecast: str
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def page(self) -> Path:
        """The report."""
        return self.folder / "report.html"

    def promises(self) -> dict[str, str]:
        """What became of each promise of the walk, in one line with figures."""
        completion, bits = self.adapted.completion, self.bits_per_byte
        trained, trigram = bits["trained"], bits["byte trigram"]
        against = "better than" if trained < trigram else "not yet better than"
        return {
            "Completed": f"{len(completion.completions)} statements that the export left out or got wrong, "
            f"{len(completion.assumptions)} of them assumptions.",
            "Checked": self.report.verdict,
            "Trained": f"{bits['untrained']:.3f} → {trained:.3f} bits per byte of validation text, {against} a byte "
            f"trigram's {trigram:.3f}.",
            "Exported": f"the ONNX file is {self.bundle.parity.verdict}.",
        }

    def bits_table(self) -> list[tuple[str, str]]:
        """Rows (predictor, bits per byte) for the comparison."""
        return [(name, f"{value:.3f}") for name, value in self.bits_per_byte.items()]


def run_demo(
    workspace: str | Path = "runs",
    *,
    source: str | Path | None = None,
    data: str | Path = DATA,
    seconds: float = TRAINING_SECONDS,
    most_steps: int = MOST_STEPS,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Walk:
    """Walk the bundled export from gist-like source to a proven ONNX file.

    Args:
        workspace: folder in which the run folder is made.
        source: the export, as `load_model` takes it; None takes the bundled one.
        data: training text, as `train` takes it.
        seconds: how long the training may take on this machine; the number of steps is measured, not guessed.
        most_steps: optimizer steps that are never exceeded, on however fast a machine.
        seed: of the weights and of the training; each sample takes the next one.
        say: where lines of text go.

    Returns:
        What each stage gave; `Walk.page` is the report.

    Raises:
        TransformerBuilderError: a stage could not be done. What the stages before it wrote stays in the run folder, which
            then has no manifest.
    """
    from utils.export.rebuild import write_rebuild
    from utils.training.seed_manager import set_random_seed

    stages = _Stages(say)
    folder = _new_folder(Path(workspace))
    set_random_seed(seed)
    with stages("Load the export and read its code without running it"):
        loaded = load_model(utils.examples.path() if source is None else source)
        say(loaded.review.summary())
    with stages("Complete what the export left out"):
        adapted = adapt(loaded)
        completion = adapted.completion
        say(f"{completion.summary()}\n\n{completion.diff}")
        write_text(folder / "completion.diff", completion.diff)
    with stages("Check the model: tier 1"):
        with Progress("Tier 1", unit="checks") as progress:
            report = validate(adapted, progress=progress)
        report.save_html(folder / "tier1.html")
        causality = sees_future(adapted)
        say(report.summary())
    with stages(f"Train on {data} for about {seconds:.0f} s"):
        length = adapted.contract.max_length or 128
        steps, forecast = steps_within(adapted, BATCH_SIZE, length, seconds, most_steps)
        say(f"Forecast: {forecast}.")
        result = train(adapted, data, _settings(steps, seed), workspace=folder)
        bits = _compare(result, data)
        say(result.summary())
        say(text_table(("predictor", "bits per byte"), [(k, f"{v:.3f}") for k, v in bits.items()], title="Validation"))
        write_rebuild(result.model, result["checkpoint_path"], folder)
    with stages("Sample from the trained model"):
        samples = {
            prompt: generate(result, prompt, max_new_tokens=60, temperature=0.7, top_k=40, seed=seed + number)
            for number, prompt in enumerate(PROMPTS)
        }
        say("\n\n".join(samples.values()))
    with stages("Export to ONNX and prove the file equal to the model"):
        bundle = _export(result, data, folder / "export")
        say(bundle.summary())
    walk = Walk(
        folder, loaded, adapted, causality, report, result, bits, samples, bundle, forecast, dict(stages.seconds)
    )
    write_text(walk.page, render_page(walk))
    write_json(folder / "manifest.json", _manifest(walk, seed))
    say("")
    for promise, outcome in walk.promises().items():
        say(f"{promise + ':':<10} {outcome}")
    say(f"{'Report:':<10} {walk.page.resolve()}")
    return walk


def _manifest(walk: Walk, seed: int) -> dict[str, Any]:
    """What the folder holds and where it came from; written last."""
    return {
        "format_version": 1,
        "written_by": f"transformer-builder-colab {utils.__version__}",
        "promises": walk.promises(),
        "model": walk.bundle.manifest["model"],
        "bits_per_byte": walk.bits_per_byte,
        "seed": seed,
        "files": list_files(walk.folder),
    }


class _Stages:
    """Announces stages and takes their time."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self._title, self._start = say, "", 0.0
        self.seconds: dict[str, float] = {}

    def __call__(self, title: str) -> _Stages:
        self._title = title
        return self

    def __enter__(self) -> None:
        self._start = time.monotonic()
        self.say(f"\n── {len(self.seconds) + 1}. {self._title} " + "─" * max(3, 90 - len(self._title)))

    def __exit__(self, *error: object) -> None:
        self.seconds[self._title] = time.monotonic() - self._start


def _new_folder(workspace: Path) -> Path:
    name = f"demo-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    for number in range(100):
        folder = workspace / (name if number == 0 else f"{name}-{number}")
        if not folder.exists():
            folder.mkdir(parents=True)
            return folder
    raise ConfigError(f"{workspace} already holds a hundred runs named {name}; clean it up or pass --workspace.")


def _settings(steps: int, seed: int) -> TrainingConfig:
    return TrainingConfig(
        learning_rate=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        max_steps=steps,
        weight_decay=0.1,
        val_every_n_steps=max(1, steps // 8),
        random_seed=seed,
        run_name="training",
    )


def _compare(result: TrainingResult, data: str | Path) -> dict[str, float]:
    text = resolve_data(data, result.config.validation_fraction)
    return {
        "untrained": result["bits_per_byte_untrained"],
        "byte trigram": byte_trigram_bits_per_byte(text.train_bytes, text.validation_bytes),
        "trained": result["val_bits_per_byte_history"][-1],
    }


def _export(result: TrainingResult, data: str | Path, folder: Path) -> Bundle:
    text = resolve_data(data, result.config.validation_fraction)
    validation = text.validation_bytes.decode("utf-8")
    with Progress("Export", unit="steps") as progress:
        from utils.export.bundle import export

        return export(result, ("onnx",), folder, validation_text=validation, progress=progress)
