"""What a training gave, as one object and as a mapping. Computes nothing beyond its own views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils._tables import html_table, text_table

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

    from utils.adapters.model_adapter import AdaptedModel
    from utils.training.training_config import TrainingConfig

METRIC_COLUMNS = (
    "epoch",
    "step",
    "train/loss",
    "val/loss",
    "val/perplexity",
    "val/bits_per_byte",
    "learning_rate",
    "seconds",
    "train/bits_per_byte",
)
"""Columns of `metrics_summary`, one row per epoch."""


class TrainingResult(Mapping[str, Any]):
    """The trained model with everything that was measured.

    As a mapping it offers `loss_history` (mean training loss per epoch, nats per label, which is a token or an example),
    `step_loss_history` (one per optimizer step), `val_loss_history` and `val_bits_per_byte_history` (one per validation, at
    `val_steps`), `val_measures_history` (the other measures of each: accuracy, perplexity of tokens, macro F1 of classes),
    `gradient_norm_history` (one per optimizer step), `gradient_health`, `accumulation`, `val_loss_untrained` and `measures_untrained` (before the first step of this run), `task`, `class_names`, `ended_early` (why, or empty), `compile_mode`,
    `compile_reason`, `gradient_checkpointing`,
    `bits_per_byte_history` (of the training loss, one per epoch), `bits_per_byte_untrained` (of validation, before the first step of this run; a model that comes trained begins lower), `scored_bytes`
    (UTF-8 bytes over which bits per byte are taken), `block_length` (tokens), `best_epoch`, `final_loss`, `metrics_summary` (DataFrame), `epoch_results`,
    `checkpoint_path`, `training_time` (seconds), `run_name`, `workspace_root`, `run_folder`, `objective_reason`,
    `initialisation_reason`, `tokenizer_reason`, `precision`, `precision_reason` and `resumed_from_step` (0: from the beginning).

    Attributes:
        model: the trained model, in eval mode.
        tokenizer: the tokenizer that it was trained with; None where ready blocks were passed.
        config: the settings of the run.
    """

    def __init__(
        self,
        model: AdaptedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        config: TrainingConfig,
        values: Mapping[str, Any],
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self._values = dict(values)

    def __getitem__(self, key: str) -> Any:
        if key == "metrics_summary":
            return self.metrics_summary()
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        yield from (*self._values, "metrics_summary")

    def __len__(self) -> int:
        return len(self._values) + 1

    @property
    def run_folder(self) -> Path:
        """Folder with config, metrics, tokenizer, checkpoints and manifest."""
        return Path(self._values["run_folder"])

    def metrics_summary(self) -> pd.DataFrame:
        """One row per epoch; see `METRIC_COLUMNS`. Losses in nats per token."""
        import pandas as pd

        return pd.DataFrame(self._values["metric_rows"], columns=list(METRIC_COLUMNS))

    def _rows(self) -> list[tuple[str, str]]:
        values = self._values
        rows = [
            ("run", values["run_name"]),
            ("model", f"{self.model.name}, {self.model.num_parameters():,} parameters"),
        ]
        if values["resumed_from_step"]:
            rows.append(("continued", f"continued from step {values['resumed_from_step']:,} of an earlier run"))
        unit = "nats per token" if values["task"] in ("lm", "masked", "seq2seq") else "nats per example"
        history = values["bits_per_byte_history"]
        per_byte = f" ({history[-1]:.3f} bits per byte)" if history else ""
        rows.append(
            (
                "training loss",
                f"{values['final_loss']:.3f} {unit}{per_byte} after {len(values['step_loss_history']):,} steps",
            )
        )
        if values["val_bits_per_byte_history"]:
            before = values["bits_per_byte_untrained"]
            start = "" if before is None else f"{before:.3f} before training → "
            rows.append(("validation", f"{start}{values['val_bits_per_byte_history'][-1]:.3f} bits per byte"))
        elif values["val_loss_history"]:
            rows.append(("validation", f"{values['val_loss_history'][-1]:.3f} {unit}{_beside(values)}"))
        if values["ended_early"]:
            rows.append(("ended early", values["ended_early"]))
        rows += [
            ("time", f"{values['training_time']:.0f} s, {values['precision']} ({values['precision_reason']})"),
            ("objective", values["objective_reason"]),
            ("initialisation", values["initialisation_reason"]),
            *([("compiled", values["compile_reason"])] if self.config.compile_mode != "off" else []),
            *([("tokenizer", values["tokenizer_reason"])] if values["tokenizer_reason"] else []),
            ("checkpoint", str(values["checkpoint_path"])),
        ]
        return rows

    def summary(self) -> str:
        """The run in a few lines of text."""
        return text_table(("", ""), self._rows(), title="Training")

    def _repr_html_(self) -> str:
        return html_table(("", ""), self._rows())

    def __repr__(self) -> str:
        return f"TrainingResult(run_name={self._values['run_name']!r}, final_loss={self._values['final_loss']:.4f})"


def _beside(values: Mapping[str, Any]) -> str:
    """The other measures of the newest validation, with what they were before training."""
    newest, before = values["val_measures_history"][-1], values["measures_untrained"]
    if "accuracy" not in newest:
        return ""
    start = f"{before['accuracy']:.1%} before training → " if "accuracy" in before else ""
    rest = f", macro F1 {newest['macro_f1']:.3f}" if "macro_f1" in newest else ""
    return f", accuracy {start}{newest['accuracy']:.1%}{rest}"
