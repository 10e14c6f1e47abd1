"""A model held against others: what needs no training, an LSTM and a GPT of its size trained on the same data with the same
budget, and published checkpoints where a Hub is reachable. Trains through `training_core`; makes no model itself.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
import logging
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from utils._tables import html_table, text_table
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.errors import ConfigError, DataError, HubError, TrainingError
from utils.progress import ProgressCallback
from utils.tokenization.bits import BitsPerByte
from utils.tokenization.hub_access import fetch
from utils.tokenization.own_tokenizer import load_own
from utils.tokenization.packing import pack_documents
from utils.training import baseline_models
from utils.training.baselines import byte_trigram_on_blocks
from utils.training.data_streams import is_stream
from utils.training.dataset_utilities import DatasetLoader, TextData, resolve_data
from utils.training.engine.memory import estimate_memory
from utils.training.objective import choose_objective
from utils.training.run_record import RunRecord, number, size
from utils.training.training_config import TrainingConfig, settings_of
from utils.training.training_core import TrainingCoordinator

if TYPE_CHECKING:
    import pandas as pd

    from utils.checks.session import AnyModel
    from utils.training.loaded_dataset import LoadedDataset
    from utils.training.result import TrainingResult

logger = logging.getLogger(__name__)

PUBLISHED_LENGTH = 512
"""Tokens per block on which published checkpoints are scored, where they take as many."""

GLUE = {
    "cola": ("sentence", None), "sst2": ("sentence", None), "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"), "mnli": ("premise", "hypothesis"), "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"), "wnli": ("sentence1", "sentence2"),
}  # fmt: skip
"""Classification tasks of GLUE (Wang et al., arXiv 1804.07461) → their columns of text."""
GLUE_REPOSITORY = "nyu-mll/glue"


@dataclass(frozen=True)
class BenchmarkRow:
    """One model of a benchmark.

    Attributes:
        name: of the model. parameters: None for what has none.
        value: of the benchmark's measure on the validation part.
        tokens_per_second: of training. memory_bytes: of a training step in the type of the weights, estimated.
        run: folder of its training.
    """

    name: str
    value: float
    parameters: int | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None
    run: str | None = None


class Benchmark(Mapping[str, Any]):
    """What a benchmark found. Printed, it is the table; as a mapping it offers `table` (DataFrame), `rank` (1 is best), `metric`,
    `budget` (tokens or examples that each trained model saw), `notes`, and `better_than` (names).

    Attributes:
        rows: the best first. model_name: whose benchmark it is.
    """

    def __init__(
        self, model_name: str, metric: str, rows: Sequence[BenchmarkRow], budget: str, notes: Sequence[str]
    ) -> None:
        self.higher_is_better = metric == "accuracy"
        self.rows = sorted(rows, key=lambda row: -row.value if self.higher_is_better else row.value)
        self.model_name, self.metric, self.budget, self.notes = model_name, metric, budget, list(notes)

    def __getitem__(self, key: str) -> Any:
        return self._values()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())

    def to_dataframe(self) -> pd.DataFrame:
        """One row per model, the best first, with plain numbers."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(row) for row in self.rows]).rename(columns={"value": self.metric})

    def summary(self) -> str:
        """The table, the budget and the notes as text."""
        title = f"{self.model_name} against others, {self.budget}"
        return "\n".join([text_table(self._columns(), self._cells(), title=title), *self.notes])

    __str__ = __repr__ = summary

    def _repr_html_(self) -> str:
        return html_table(self._columns(), self._cells()) + html_table(("",), [(note,) for note in self.notes])

    def _columns(self) -> tuple[str, ...]:
        return ("model", "parameters", self.metric.replace("_", " "), "tokens/s", "memory")

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                row.name,
                number(row.parameters, 0),
                number(row.value),
                number(row.tokens_per_second, 0),
                size(row.memory_bytes),
            )
            for row in self.rows
        ]

    def _values(self) -> dict[str, Any]:
        names = [row.name for row in self.rows]
        place = names.index(self.model_name)
        return {
            "table": self.to_dataframe(),
            "rank": place + 1,
            "metric": self.metric,
            "budget": self.budget,
            "better_than": names[place + 1 :],
            "notes": list(self.notes),
        }


def benchmark(
    model: AnyModel,
    config: Any = None,
    data: Any = None,
    settings: TrainingConfig | Mapping[str, Any] | None = None,
    *,
    tokenizer: Any = None,
    published: Sequence[str] = (),
    workspace: str | Path | None = None,
    progress: bool | ProgressCallback = True,
) -> Benchmark:
    """Train a copy of a model and its baselines on the same data with the same budget, and compare them.

    Args:
        model: an `AdaptedModel`, or what `adapt` takes; it is left as it was. A language model, or a classifier of texts.
        config: what is known about the model, for `adapt`.
        data: as for `train`; None takes "python-docs" for language models. For classifiers also "glue/sst2" and so on, where
            the Hub is reachable.
        settings: of every training; None takes 300 steps of the defaults.
        tokenizer: of every training; None lets the first one choose.
        published: names of causal language models on the Hub, scored as they are on the same validation text.
        workspace: folder of the runs; None takes that of the settings.
        progress: as for `train`.

    Raises:
        ConfigError: a model of another task, or data that are streamed. DataError: data that cannot be had. TrainingError: as
            `train`.

    Example:
        >>> print(benchmark(model, config, settings={"max_steps": 300}))
    """
    chosen = settings_of(settings or {"max_steps": 300})
    if chosen.stream_data or is_stream(data):
        raise ConfigError(
            "The benchmark scores what needs no training on the same text, which a stream does not keep. Pass a part of it that "
            "is read as a whole: a file or a list of texts, with stream_data=False."
        )
    adapted, reason = choose_objective(copy.deepcopy(adapt(model, config)), chosen.objective)
    kind = _KINDS.get(adapted.contract.task)
    if kind is None:
        raise ConfigError(
            f"The benchmark compares causal language models and classifiers of texts; {adapted.name} is trained on the task "
            f"{adapted.contract.task!r} ({reason})."
        )
    return kind(adapted, data, chosen, tokenizer, workspace, progress).compare(published)


class _Keeping(TrainingCoordinator):
    """Keeps what it trains on, so that others are given exactly that."""

    def _parts(self, notes: bool | ProgressCallback) -> tuple[Any, Any]:
        self.parts = super()._parts(notes)
        return self.parts


@dataclass
class _Contest(abc.ABC):
    """One benchmark while it runs."""

    adapted: AdaptedModel
    data: Any
    settings: TrainingConfig
    tokenizer: Any
    workspace: str | Path | None
    progress: bool | ProgressCallback
    _length: int = 0

    metric = ""

    def compare(self, published: Sequence[str]) -> Benchmark:
        first = self._trained(self.adapted, self.adapted.name)
        self.tokenizer = first.tokenizer
        rows, notes = [self._row(self.adapted.name, first)], []
        wanted, same = self.adapted.num_parameters(), RunRecord.of_folder(first.run_folder).data_hash
        for name, made in self._baselines(wanted).items():
            result = self._trained(adapt(made, self._known()), name)
            if RunRecord.of_folder(result.run_folder).data_hash != same:
                raise TrainingError(f"The baseline {name} was given other samples than {self.adapted.name}.")
            rows.append(self._row(name, result))
            gap = result.model.num_parameters() / wanted - 1
            if abs(gap) > 0.1:
                notes.append(f"{name} has {gap:+.0%} parameters: the vocabulary leaves no nearer size.")
        rows += self._untrained()
        for repository in published:
            row, note = self._published(repository)
            rows += [row] if row is not None else []
            notes += [note] if note else []
        return Benchmark(self.adapted.name, self.metric, rows, self._budget(first), notes)

    # ---- of each task -----------------------------------------------------------------------------------------------
    @abc.abstractmethod
    def _baselines(self, parameters: int) -> dict[str, nn.Module]:
        """Name → a model of about that many parameters."""

    @abc.abstractmethod
    def _untrained(self) -> list[BenchmarkRow]:
        """What needs no training."""

    @abc.abstractmethod
    def _value(self, result: TrainingResult) -> float:
        """The measure of a training, at its best validation."""

    def _published(self, repository: str) -> tuple[BenchmarkRow | None, str]:
        return None, f"{repository} is not compared: published checkpoints are scored as language models only."

    # ---- of all -----------------------------------------------------------------------------------------------------
    def _trained(self, adapted: AdaptedModel, name: str) -> TrainingResult:
        values = {**self.settings.to_dict(), "run_name": f"benchmark-{name.replace(' ', '-').lower()}"}
        if adapted is not self.adapted:
            values |= {"max_length": self._length, "d_model": None, "num_layers": None}
        coordinator = _Keeping(
            adapted,
            self.data,
            tokenizer=self.tokenizer,
            training_config=TrainingConfig.from_dict(values),
            workspace=self.workspace,
            progress=self.progress,
            resume="never",
        )
        result = coordinator.run()
        if adapted is self.adapted:
            self._keep(coordinator.parts, result)
        return result

    @abc.abstractmethod
    def _keep(self, parts: tuple[Any, Any], first: TrainingResult) -> None:
        """Take down what the first training was given: the longest sample (`_length`), and the data for the others."""

    def _known(self) -> dict[str, int]:
        """What baselines are told of themselves."""
        return {"vocab_size": self._vocabulary, "max_seq_len": self._positions}

    @property
    def _positions(self) -> int:
        """Positions that a baseline needs: those of the model itself, where it says so."""
        return int(self.adapted.contract.max_length or self._length)

    @property
    def _vocabulary(self) -> int:
        return int(self.adapted.contract.vocab_size or 0)

    def _row(self, name: str, result: TrainingResult) -> BenchmarkRow:
        rows, length = self.settings.batch_size, int(result["block_length"])
        ids = torch.zeros((rows, length), dtype=torch.int64, device=result.model.device)
        return BenchmarkRow(
            name,
            self._value(result),
            result.model.num_parameters(),
            RunRecord.of_folder(result.run_folder).tokens_per_second,
            int(estimate_memory(result.model, lambda count: self._batch(ids[:1].expand(count, -1))).total(rows)),
            str(result.run_folder),
        )

    def _batch(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"input_ids": ids, "labels": ids}

    def _budget(self, first: TrainingResult) -> str:
        steps = len(first["step_loss_history"])
        return f"{steps:,} steps of {self.settings.batch_size * self.settings.gradient_accumulation_steps} samples each"


class _LanguageModels(_Contest):
    """Bits per byte on the same bytes."""

    metric = "bits_per_byte"

    def compare(self, published: Sequence[str]) -> Benchmark:
        data = "python-docs" if self.data is None else self.data
        self.text: TextData = resolve_data(data, self.settings.validation_fraction, progress=False)
        self.data = data if isinstance(data, (str, Path)) else self.text
        return super().compare(published)

    def _baselines(self, parameters: int) -> dict[str, nn.Module]:
        torch.manual_seed(self.settings.random_seed)
        return {
            "LSTM baseline": baseline_models.lstm_of_size(parameters, self._vocabulary),
            "GPT baseline": baseline_models.gpt_of_size(parameters, self._vocabulary, self._positions),
        }

    def _untrained(self) -> list[BenchmarkRow]:
        tokenizer = self.tokenizer
        blocks = pack_documents(self.text.validation, tokenizer, self._length)
        return [
            BenchmarkRow("uniform", BitsPerByte.of(blocks, tokenizer)(math.log(len(tokenizer)))),
            BenchmarkRow("byte trigram", byte_trigram_on_blocks(self.text.train_bytes, blocks, tokenizer)),
        ]

    def _keep(self, parts: tuple[Any, Any], first: TrainingResult) -> None:
        self._length = int(first["block_length"])

    def _value(self, result: TrainingResult) -> float:
        return float(min(result["val_bits_per_byte_history"]))

    def _budget(self, first: TrainingResult) -> str:
        tokens = len(first["step_loss_history"]) * self.settings.batch_size * self.settings.gradient_accumulation_steps
        return f"{tokens * int(first['block_length']):,} tokens of {self.text.name} for each trained model"

    def _published(self, repository: str) -> tuple[BenchmarkRow | None, str]:
        """A checkpoint of the Hub as it is; or why not, within seconds where the Hub does not answer."""
        try:
            with tempfile.TemporaryDirectory() as folder:
                tokenizer = load_own(fetch(repository, folder))
            model = _published_model(repository)
            length = min(PUBLISHED_LENGTH, int(getattr(model.config, "max_position_embeddings", PUBLISHED_LENGTH)))
            blocks = pack_documents(self.text.validation, tokenizer, length)
        except (HubError, OSError, ValueError) as error:
            return None, f"{repository} is not compared: it cannot be had from the Hugging Face Hub ({error})."
        value = BitsPerByte.of(blocks, tokenizer)(_mean_loss(model, blocks))
        count = sum(parameter.numel() for parameter in model.parameters())
        return BenchmarkRow(f"{repository} (published)", value, count), (
            f"{repository} was trained on other data with another budget, and may have seen this text."
        )


class _Classifiers(_Contest):
    """Accuracy on the same texts."""

    metric = "accuracy"

    def compare(self, published: Sequence[str]) -> Benchmark:
        if self.data is None:
            raise ConfigError("A classifier needs data=: pairs (text, class), a data set, or 'glue/sst2' and the like.")
        if isinstance(self.data, str) and self.data.startswith("glue/"):
            self.data = _glue(self.data.removeprefix("glue/"))
        return super().compare(published)

    def _baselines(self, parameters: int) -> dict[str, nn.Module]:
        torch.manual_seed(self.settings.random_seed)
        classes = int(self.adapted.contract.output_size or len(self.data.class_names))
        rows, positions = self._vocabulary, self._positions
        return {
            "LSTM baseline": baseline_models.lstm_classifier_of_size(parameters, rows, classes),
            "GPT baseline": baseline_models.gpt_classifier_of_size(parameters, rows, positions, classes),
        }

    def _untrained(self) -> list[BenchmarkRow]:
        counted = [Counter(_labels(samples)) for samples in (self.data.train_samples, self.data.validation_samples)]
        (largest, _), *_ = counted[0].most_common(1)
        share = counted[1][largest] / sum(counted[1].values())
        return [BenchmarkRow("always the largest class", share)]

    def _keep(self, parts: tuple[Any, Any], first: TrainingResult) -> None:
        module = parts[0]
        self.data, self._length = module, module.max_length

    def _value(self, result: TrainingResult) -> float:
        return float(max(measures["accuracy"] for measures in result["val_measures_history"]))

    def _batch(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0]}


_KINDS: dict[str, Callable[..., _Contest]] = {"lm": _LanguageModels, "classification": _Classifiers}


def _labels(samples: Any) -> list[int]:
    return [int(label) for label in samples.__getitems__(range(len(samples)))["labels"]]


def _glue(task: str) -> Any:
    """Rows of a task of GLUE, with their own validation part.

    Raises:
        ConfigError: no such task. DataError: the Hub does not give it.
    """
    if task not in GLUE:
        raise ConfigError(f"GLUE has no classification task {task!r}; it has {', '.join(GLUE)}.")
    first, second = GLUE[task]
    options: dict[str, Any] = {"progress": False, "column": first, "label_column": "label", "target_column": second}
    kept = "validation_matched" if task == "mnli" else "validation"
    try:
        train, validation = (
            DatasetLoader.from_huggingface(GLUE_REPOSITORY, task, split=split, **options) for split in ("train", kept)
        )
    except DataError as error:
        raise DataError(
            f"GLUE's {task} needs the Hugging Face Hub, which does not give it: {error} Pass data= with pairs (text, class) of "
            "your own instead."
        ) from error
    return {"train": _pairs(train), "validation": _pairs(validation)}


def _pairs(loaded: LoadedDataset) -> list[tuple[str, int]]:
    """(text, class); a second text stands in a line of its own."""
    second = loaded.targets or [""] * len(loaded)
    labels = loaded.labels or ()
    return [("\n".join(filter(None, texts)), int(label)) for *texts, label in zip(loaded, second, labels, strict=True)]


def _published_model(repository: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(repository).eval()


@torch.no_grad()
def _mean_loss(model: Any, blocks: Any) -> float:
    """Nats per predicted token over packed blocks."""
    total = tokens = 0.0
    for part in blocks.parts():
        for row in torch.from_numpy(part).long().split(8):
            logits = model(input_ids=row).logits[:, :-1].float()
            total += float(nn.functional.cross_entropy(logits.flatten(0, 1), row[:, 1:].flatten(), reduction="sum"))
            tokens += row[:, 1:].numel()
    return total / tokens
