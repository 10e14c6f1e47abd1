"""The whole walk on a bundled broken export: load, review, complete, check, train, sample, export, report.

Every stage is one call of a room below; this file only says their order and shows what they gave.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import utils.examples
from utils._files import list_files, write_json, write_text
from utils._tables import text_table
from utils.adapters.causality import CausalityReport, sees_future
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.checks.report import Report
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
PROMPTS = ("The ", "If the ", "A class ")
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

    def verdict(self) -> str:
        """One sentence on each promise of the walk, with figures."""
        trained, trigram = self.bits_per_byte["trained"], self.bits_per_byte["byte trigram"]
        against = "better than" if trained < trigram else "not yet better than"
        return (
            f"{len(self.adapted.completion.completions)} completions; tier 1: {self.report.verdict} "
            f"Validation {trained:.3f} bits per byte, {against} a byte trigram's {trigram:.3f}. {self.bundle.parity.verdict}"
        )

    def bits_table(self) -> list[tuple[str, str]]:
        """Rows (predictor, bits per byte) for the comparison."""
        return [(name, f"{value:.3f}") for name, value in self.bits_per_byte.items()]


def run_demo(
    workspace: str | Path = "runs",
    *,
    seconds: float = TRAINING_SECONDS,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Walk:
    """Walk the bundled export from gist-like source to a proven ONNX file.

    Args:
        workspace: folder in which the run folder is made.
        seconds: how long the training may take on this machine; the number of steps is measured, not guessed.
        seed: of the weights and of the training.
        say: where lines of text go.

    Returns:
        What each stage gave; `Walk.page` is the report.
    """
    from utils.training.seed_manager import set_random_seed

    stages = _Stages(say)
    folder = _new_folder(Path(workspace))
    set_random_seed(seed)
    with stages("Load the bundled export and read its code without running it"):
        loaded = load_model(utils.examples.path())
        say(loaded.review.summary())
    with stages("Complete what the export left out"):
        adapted = adapt(loaded)
        completion = adapted.completion
        say(f"{completion.summary()}\n\n{completion.diff}")
        completion.save(folder / "model.py")
        write_text(folder / "completion.diff", completion.diff)
    with stages("Check the model: tier 1"):
        with Progress("Tier 1", unit="checks") as progress:
            report = validate(adapted, progress=progress)
        report.save_html(folder / "tier1.html")
        causality = sees_future(adapted)
        say(report.summary())
    with stages(f"Train on {DATA} for about {seconds:.0f} s"):
        length = adapted.contract.max_length or 128
        steps, forecast = steps_within(adapted, BATCH_SIZE, length, seconds, MOST_STEPS)
        say(f"Forecast: {forecast}.")
        result = train(adapted, DATA, _settings(steps, seed), workspace=folder)
        bits = _compare(result)
        say(result.summary())
        say(text_table(("predictor", "bits per byte"), [(k, f"{v:.3f}") for k, v in bits.items()], title="Validation"))
    with stages("Sample from the trained model"):
        samples = {prompt: generate(result, prompt, max_new_tokens=60, temperature=0.7, top_k=40) for prompt in PROMPTS}
        say("\n\n".join(samples.values()))
    with stages("Export to ONNX and prove the file equal to the model"):
        bundle = _export(result, folder / "export")
        say(bundle.summary())
    walk = Walk(
        folder, loaded, adapted, causality, report, result, bits, samples, bundle, forecast, dict(stages.seconds)
    )
    write_text(walk.page, render_page(walk))
    write_json(folder / "manifest.json", {"format_version": 1, "verdict": walk.verdict(), "files": list_files(folder)})
    say(f"\n{walk.verdict()}\n\nReport: {walk.page.resolve()}")
    return walk


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
    raise FileExistsError(f"{workspace} already holds a hundred runs named {name}; clean it up or pass --workspace.")


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


def _compare(result: TrainingResult) -> dict[str, float]:
    text = resolve_data(DATA, result.config.validation_fraction)
    return {
        "untrained": result["bits_per_byte_untrained"],
        "byte trigram": byte_trigram_bits_per_byte(text.train_bytes, text.validation_bytes),
        "trained": result["val_bits_per_byte_history"][-1],
    }


def _export(result: TrainingResult, folder: Path) -> Bundle:
    text = resolve_data(DATA, result.config.validation_fraction)
    validation = text.validation_bytes.decode("utf-8")
    with Progress("Export", unit="steps") as progress:
        from utils.export.bundle import export

        return export(result, ("onnx",), folder, validation_text=validation, progress=progress)
