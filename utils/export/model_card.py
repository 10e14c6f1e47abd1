"""The model card: what is known about an exported model, as a README.md that the Hub understands. What is unknown says so.

Gathers what the rooms below found out and writes it down; measures nothing and invents no sentence. Every text from outside
(names, notes, paths, comments) is escaped. How the parts of a model are found is for `architecture`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from utils._extras import require
from utils._files import whole_file, write_text
from utils._pages import render
from utils._tables import markdown_code, markdown_table, markdown_text
from utils.adapters.causality import CausalityReport
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.export.architecture import architecture_svg, heads_of, parts_of
from utils.export.parity_report import ParityReport
from utils.export.purposes import HEADS, purpose_of
from utils.training.curves import picture_png
from utils.training.dashboard import RunHistory, loss_panel
from utils.training.run_manifest import RECIPE_FILE, Recipe, package_versions
from utils.training.secrets import without_secrets
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData
    from torch import nn

    from utils.training.result import TrainingResult

TEMPLATES = Path(__file__).with_name("templates")
CARD_FILE, DIAGRAM_FILE, CURVE_FILE = "README.md", "architecture.svg", "training_curve.png"
CARD_FILES = (CARD_FILE, DIAGRAM_FILE, CURVE_FILE)
"""The card and its pictures."""
UNKNOWN = "unknown"

_PURPOSES = {
    "lm": ("text-generation", "predicts the next token of a text"),
    "masked": ("fill-mask", "names hidden tokens of a text"),
    "seq2seq": (None, "answers a source text with a target text"),
    "classification": ("text-classification", "chooses a class for a text"),
    "tokens": ("token-classification", "chooses a class for each token of a text"),
    "vision": ("image-classification", "chooses a class for an image"),
}
"""Purpose → the Hub's pipeline tag (None where it has none for models without a fixed use) and words."""

_SIZES = {
    "vocab_size": "vocabulary rows",
    "max_seq_len": "longest sequence (tokens)",
    "d_model": "width",
    "num_layers": "layers",
}
_SETTINGS = (
    *(
        "learning_rate",
        "batch_size",
        "gradient_accumulation_steps",
        "max_steps",
        "epochs",
        "weight_decay",
        "warmup_ratio",
    ),
    *("random_seed", "validation_fraction"),
)
_METRICS = {
    "val/loss": "validation loss",
    "val/bits_per_byte": "validation bits per byte",
    "train/loss": "training loss",
}


@dataclass(frozen=True)
class CardInputs:
    """What a card is written from. Everything but the model may be missing; the card then says "unknown".

    Attributes:
        adapted: the model.
        config: further settings of the model, as they came.
        tokenizer: what turns text into ids.
        training_config: settings of the training; a result brings its own.
        result: what the training gave.
        parity: the proof; of one format or several.
        refused: format → why it was not exported.
        files: format → name of its file or folder, beside the card.
        causality: what `sees_future` said.
        data: facts about the data beyond those of the run's recipe, name → words.
        license: identifier of the Hub, such as "mit"; language: code such as "en". Neither is ever guessed.
        labels: names of the classes.
    """

    adapted: AdaptedModel
    config: Any = None
    tokenizer: Any = None
    training_config: TrainingConfig | Mapping[str, Any] | None = None
    result: TrainingResult | None = None
    parity: ParityReport | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    causality: CausalityReport | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    license: str | None = None
    language: str | None = None
    labels: Sequence[str] | None = None

    @property
    def purpose(self) -> str:
        """Key of `_PURPOSES`."""
        return purpose_of(self.adapted.contract)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the training; empty where they are unknown."""
        given = self.training_config if self.training_config is not None else getattr(self.result, "config", None)
        if isinstance(given, TrainingConfig):
            return given.to_dict()
        return given if isinstance(given, Mapping) else {}

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The run's recipe.json; empty where there is none."""
        folder = self.run_folder
        path = None if folder is None else folder / RECIPE_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}

    @property
    def run_folder(self) -> Path | None:
        """The run's folder, where there is one."""
        return None if self.result is None else self.result.run_folder


class ModelCardGenerator:
    """Writes model cards."""

    @staticmethod
    def generate(
        model: AdaptedModel | nn.Module,
        config: Any = None,
        tokenizer: Any = None,
        training_config: TrainingConfig | Mapping[str, Any] | None = None,
        output_path: str | Path = CARD_FILE,
        **known: Any,
    ) -> Path:
        """Write README.md with the pictures that it shows.

        Args:
            model: adapted or plain.
            config: of a plain model.
            tokenizer: what turns text into ids; None where unknown.
            training_config: settings of the training; None where unknown.
            output_path: the card's file, or a folder, which gets a README.md.
            known: the other attributes of `CardInputs` by name: result=, parity=, refused=, license=, …

        Returns:
            Path of the card; architecture.svg and, where a training is known, training_curve.png lie beside it.

        Raises:
            MissingPackageError: huggingface_hub or matplotlib is not installed.
        """
        adapted = model if isinstance(model, AdaptedModel) else adapt(model, config)
        path = Path(output_path)
        path = path / CARD_FILE if path.is_dir() or not path.suffix else path
        inputs = CardInputs(adapted, config, tokenizer, training_config, **known)
        return write_model_card(inputs, path)


def write_model_card(inputs: CardInputs, path: str | Path) -> Path:
    """Write the card and its pictures. See `ModelCardGenerator.generate`."""
    target = Path(path)
    parts = parts_of(inputs.adapted)
    write_text(target.with_name(DIAGRAM_FILE), architecture_svg(parts, inputs.adapted.name))
    curve = _curve(inputs)
    if curve is not None:
        with whole_file(target.with_name(CURVE_FILE)) as file:
            file.write(curve)
    return write_text(target, model_card(inputs, with_curve=curve is not None))


def model_card(inputs: CardInputs, with_curve: bool = False) -> str:
    """The card's text: the Hub's metadata block, then Markdown.

    Args:
        inputs: what is known.
        with_curve: whether the picture of the losses lies beside the card.
    """
    require("huggingface_hub", extra="training", feature="A model card")
    adapted = inputs.adapted
    body = render(
        TEMPLATES / "model_card.md.j2",
        name=markdown_text(adapted.name),
        what=_what(inputs),
        usage=_usage(inputs),
        sizes=markdown_table(("size", "value"), _sizes(inputs)),
        diagram=DIAGRAM_FILE,
        parts=_parts_table(adapted),
        data=markdown_table(("data", "what is known"), _data(inputs)),
        training=markdown_table(("training", "value"), _training(inputs)),
        curve=CURVE_FILE if with_curve else "",
        metrics=_metrics(inputs),
        parity=_parity(inputs.parity),
        refused=markdown_table(("format", "why"), list(inputs.refused.items())) if inputs.refused else "",
        completion=_completion(adapted),
        causality=_causality(inputs),
        limits=markdown_table(("limit", "value"), _limits(inputs)),
        recreation=_recreation(inputs),
        environment=markdown_table(("package", "version"), list(package_versions().items())),
    )
    return without_secrets(f"---\n{card_data(inputs).to_yaml()}\n---\n\n{body}")


def card_data(inputs: CardInputs) -> ModelCardData:
    """The metadata block, of facts alone: license, language and data sets only where they are known."""
    from huggingface_hub import ModelCardData

    data = inputs.recipe.get("data", {})
    hub = data["name"] if data.get("kind") == "hub" else None
    tags = ["transformer-builder", *(["custom_code"] if "hf" in inputs.files else [])]
    results = _eval_results(inputs, hub, data.get("revision")) if hub else None
    return ModelCardData(
        language=inputs.language,
        license=inputs.license,
        library_name="transformers" if "hf" in inputs.files else None,
        pipeline_tag=_PURPOSES[inputs.purpose][0],
        tags=tags,
        datasets=[hub] if hub else None,
        metrics=sorted(_measured(inputs)) or None,
        eval_results=results or None,
        model_name=inputs.adapted.name if results else None,
    )


# ---- what the card says ---------------------------------------------------------------------------------------------
def _what(inputs: CardInputs) -> str:
    adapted = inputs.adapted
    kind = markdown_text(type(adapted.model).__name__)
    return f"{kind}, {adapted.num_parameters():,} parameters: {_PURPOSES[inputs.purpose][1]}."


def _usage(inputs: CardInputs) -> list[str]:
    """How each file is loaded."""
    texts = []
    for name, file in inputs.files.items():
        template = TEMPLATES / "usage" / f"{name}.j2"
        if template.is_file():
            code = render(
                template,
                file=file,
                auto_class=f"AutoModelFor{HEADS[inputs.purpose]}",
                purpose=inputs.purpose,
                tokenizer=_known_tokenizer(inputs) is not None,
            )
            texts.append(markdown_code(code, "python"))
        else:
            texts.append(f"Format {markdown_text(name)}: {markdown_text(file)}")
    return texts


def _sizes(inputs: CardInputs) -> list[tuple[str, object]]:
    config, contract = inputs.adapted.config, inputs.adapted.contract
    values: list[tuple[str, object]] = [("parameters (shared ones once)", f"{inputs.adapted.num_parameters():,}")]
    if contract.takes_tokens:
        values += [(words, _known(getattr(config, name))) for name, words in _SIZES.items()]
        values.append(("attention heads", _known(heads_of(inputs.adapted))))
    else:
        values.append(
            ("image (channels × height × width)", " × ".join(map(str, contract.image_shape or ())) or UNKNOWN)
        )
    scores = "scores per token" if contract.task in ("lm", "masked", "seq2seq") else "classes"
    return [*values, (scores, _known(contract.output_size))]


def _parts_table(adapted: AdaptedModel) -> str:
    total = max(1, adapted.num_parameters())
    rows = [
        (
            part.name,
            part.kind + (f" × {part.count}" if part.count > 1 else ""),
            f"{part.parameters:,}",
            f"{part.parameters / total:.1%}",
            part.settings or "—",
            part.output or "—",
        )
        for part in parts_of(adapted)
    ]
    return markdown_table(("part", "class", "parameters", "share", "settings", "output for 2 examples"), rows)


def _data(inputs: CardInputs) -> list[tuple[str, object]]:
    data = inputs.recipe.get("data", {})
    settings, result = inputs.settings, inputs.result
    rows: list[tuple[str, object]] = [("source", _source(data))]
    for key, words in (("revision", "revision"), ("sha256", "SHA-256"), ("bytes", "size in bytes")):
        if data.get(key):
            rows.append((words, data[key]))
    rows.append(("kept for validation", _known(settings.get("validation_fraction"))))
    if result is not None and result.get("scored_bytes"):
        rows.append(("bytes of validation text that are scored", f"{result['scored_bytes']:,}"))
    if result is not None and result.get("block_length"):
        rows.append(("block length (tokens)", result["block_length"]))
    rows.append(("tokenizer", _tokenizer(inputs)))
    return [*rows, *inputs.data.items()]


def _source(data: Mapping[str, Any]) -> str:
    """Where the data came from; of a local path only the name, since cards travel."""
    kind = data.get("kind")
    if kind == "hub":
        return f"Hugging Face Hub: {data['name']}"
    if kind == "bundled":
        return f"bundled with transformer-builder-colab: {data['name']}"
    if kind == "stream":
        return f"a stream of the author: {PurePath(str(data['path'])).name}"
    if kind in ("file", "folder"):
        return f"a {kind} of the author: {PurePath(str(data['path'])).name}"
    return f"made by a program ({data['type']})" if kind == "memory" else UNKNOWN


def _known_tokenizer(inputs: CardInputs) -> Any:
    """The one that was given, else the result's own; None where there is none."""
    return inputs.tokenizer if inputs.tokenizer is not None else getattr(inputs.result, "tokenizer", None)


def _tokenizer(inputs: CardInputs) -> str:
    tokenizer = _known_tokenizer(inputs)
    if tokenizer is None:
        return UNKNOWN if inputs.adapted.contract.takes_tokens else "none: the model takes images"
    entries = f"{len(tokenizer):,} entries" if hasattr(tokenizer, "__len__") else "size unknown"
    reason = inputs.result["tokenizer_reason"] if inputs.result is not None else ""
    return f"{type(tokenizer).__name__}, {entries}" + (f" ({reason})" if reason else "")


def _training(inputs: CardInputs) -> list[tuple[str, object]]:
    settings, result = inputs.settings, inputs.result
    rows: list[tuple[str, object]] = [(name.replace("_", " "), _known(settings.get(name))) for name in _SETTINGS]
    if result is None:
        return rows
    return [
        ("objective", result["objective_reason"]),
        ("steps", f"{len(result['step_loss_history']):,}"),
        ("time", f"{result['training_time']:.0f} s"),
        ("precision", f"{result['precision']} ({result['precision_reason']})"),
        *rows,
        *([("ended early", result["ended_early"])] if result["ended_early"] else []),
    ]


def _measured(inputs: CardInputs) -> dict[str, float]:
    """Figures of the last validation by the Hub's names."""
    if inputs.result is None or not inputs.result["val_measures_history"]:
        return {}
    newest = inputs.result["val_measures_history"][-1]
    return {name: float(newest[name]) for name in ("perplexity", "accuracy") if name in newest}


def _metrics(inputs: CardInputs) -> str:
    result = inputs.result
    if result is None:
        return f"{UNKNOWN.capitalize()}: no training is known."
    history = RunHistory.of_result(result)
    rows: list[tuple[str, object]] = []
    for name, words in _METRICS.items():
        column = history[name]
        rows.append((words, f"{column.y[0]:.4f} → {column.y[-1]:.4f}" if column else "not recorded"))
    rows += [(f"validation {name}", f"{value:.4f}") for name, value in _measured(inputs).items()]
    return markdown_table(("metric", "first → last"), rows)


def _eval_results(inputs: CardInputs, dataset: str, revision: str | None) -> list[Any]:
    from huggingface_hub import EvalResult

    task = _PURPOSES[inputs.purpose][0]
    if task is None:
        return []
    return [
        EvalResult(
            task_type=task,
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_revision=revision,
            dataset_split="held-out share of the training data",
            metric_type=name,
            metric_value=value,
        )
        for name, value in _measured(inputs).items()
    ]


def _parity(parity: ParityReport | None) -> str:
    if parity is None:
        return f"{UNKNOWN.capitalize()}: no file was compared with the model."
    content = parity.to_dict()
    names = list(dict.fromkeys(name for row in content["rows"] for name in row))
    rows = [[_figure(row.get(name)) for name in names] for row in content["rows"]]
    beside = [*(entry.line() for entry in parity.greedy), *(entry.line() for entry in parity.text)]
    notes = [parity.verdict, *beside, parity.reason]
    listed = "\n".join(f"* {markdown_text(note)}" for note in notes if note)
    return f"{markdown_table([name.replace('_', ' ') for name in names], rows)}\n\n{listed}"


def _figure(value: object) -> str:
    """A cell: numbers with three digits, "—" where nothing was measured."""
    if value is None or value == "":
        return "—"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _completion(adapted: AdaptedModel) -> str:
    completion = adapted.completion
    if completion.status == "direct":
        return "Nothing: the model runs as it came."
    rows = [entry.row() for entry in completion.completions]
    told = f"{len(rows)} statements, {len(completion.assumptions)} of them assumptions that another reading was possible for."
    return f"{told}\n\n{markdown_table(('what', 'completed as', 'evidence', 'why'), rows)}"


def _causality(inputs: CardInputs) -> str:
    changed = inputs.adapted.contract.reasons.get("causality", "")
    told = f"The attention was {markdown_text(changed)}." if changed else ""
    if inputs.causality is not None:
        verdict = (
            "No later token moves an earlier score" if inputs.causality.causal else "Later tokens move earlier scores"
        )
        told = f"{told} {verdict}: {markdown_text(inputs.causality.evidence)}.".strip()
    if told:
        return told
    known = {True: "The model sees no later token, as far as a probe shows.", False: "The model sees later tokens."}
    return known.get(inputs.adapted.contract.causal, f"{UNKNOWN.capitalize()}, or without meaning for this task.")  # type: ignore[arg-type]


def _limits(inputs: CardInputs) -> list[tuple[str, object]]:
    contract = inputs.adapted.contract
    if not contract.takes_tokens:
        return [("images", " × ".join(map(str, contract.image_shape or ()))), ("bias and safety", UNKNOWN)]
    rows: list[tuple[str, object]] = [
        ("longest sequence (tokens)", "no limit found" if contract.max_length is None else contract.max_length),
        ("token ids", UNKNOWN if contract.vocab_size is None else f"0 to {contract.vocab_size - 1}"),
        ("padding", contract.mask.words() if contract.mask is not None else "cannot be masked"),
    ]
    if contract.min_length > 1 or contract.multiple_of > 1:
        rows.append(("lengths", f"at least {contract.min_length}, in multiples of {contract.multiple_of}"))
    return [*rows, ("bias and safety", UNKNOWN), ("intended use", UNKNOWN)]


def _recreation(inputs: CardInputs) -> str:
    folder = inputs.run_folder
    if folder is None or not (folder / RECIPE_FILE).is_file():
        return f"{UNKNOWN.capitalize()}: no folder of a run is known."
    command = f"python -m utils rerun {json.dumps(folder.name)}"
    missing = Recipe.read(folder).problems()
    told = "".join(f"\n* {markdown_text(problem)}" for problem in missing)
    note = f"\n\nWhat the folder does not hold, and must be brought:\n{told}" if missing else ""
    return f"With the run's folder at hand:\n\n{markdown_code(command, 'sh')}{note}"


def _curve(inputs: CardInputs) -> bytes | None:
    if inputs.result is None:
        return None
    history = RunHistory.of_result(inputs.result)
    return picture_png([loss_panel(history["train/loss"], history["val/loss"], history.axis)], columns=1)


def _known(value: object) -> object:
    return UNKNOWN if value is None else value
