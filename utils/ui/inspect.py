"""What `python -m utils inspect` shows: contract, completion, code review and parameters of one model.

Gathers what the rooms say about a model and lays it out as text, page and JSON. Nothing is judged here: checks do that.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup
from torch import nn
from torch.nn.parameter import is_lazy

from utils._files import write_json, write_text
from utils._pages import render
from utils._tables import html_table, text_table
from utils.adapters.causality import make_causal, sees_future
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.errors import CallContractError
from utils.loading.model_loader import LoadedModel, load_model

ASSETS = Path(__file__).parent / "assets"

_COLUMNS = ("parameter", "shape", "count", "share", "tied to", "trainable")


@dataclass(frozen=True)
class ParameterRow:
    """One parameter under one of its names.

    Attributes:
        name: as in `state_dict`.
        shape: sizes of its axes; None where the module gives them only when it is first called.
        count: numbers that it holds; 0 where they were counted under an earlier name.
        share: part of all numbers of the model, 0 to 1.
        tied_to: the earlier name of the same weight; None for one that stands alone.
        trainable: whether it takes part in training.
    """

    name: str
    shape: tuple[int, ...] | None
    count: int
    share: float
    tied_to: str | None
    trainable: bool

    def cells(self) -> tuple[str, ...]:
        """Cells of the table."""
        shape = "not known yet" if self.shape is None else " × ".join(map(str, self.shape)) or "scalar"
        share = "" if self.tied_to else f"{self.share:.1%}"
        trainable = "yes" if self.trainable else "no"
        return self.name, shape, "" if self.tied_to else f"{self.count:,}", share, self.tied_to or "", trainable


@dataclass(frozen=True)
class ParameterTable:
    """All parameters of a model, each weight counted once.

    Attributes:
        rows: in the order of the modules; a tied weight stands under each of its names.
        buffers: numbers in buffers, which are saved or not and never trained.
    """

    rows: tuple[ParameterRow, ...]
    buffers: int = 0

    @classmethod
    def of(cls, model: nn.Module) -> ParameterTable:
        """Read a model's parameters; weights that share their memory count once."""
        first: dict[object, str] = {}
        total = sum(_count(parameter) for parameter in _distinct(model).values())
        rows = []
        for name, parameter in model.named_parameters(remove_duplicate=False):
            earlier = first.setdefault(_identity(parameter), name)
            count = _count(parameter) if earlier == name else 0
            shape = None if is_lazy(parameter) else tuple(parameter.shape)
            tied_to = earlier if earlier != name else None
            rows.append(
                ParameterRow(name, shape, count, count / total if total else 0.0, tied_to, parameter.requires_grad)
            )
        return cls(tuple(rows), sum(buffer.numel() for buffer in model.buffers() if not is_lazy(buffer)))

    @property
    def total(self) -> int:
        """Numbers in all parameters."""
        return sum(row.count for row in self.rows)

    @property
    def trainable(self) -> int:
        """Numbers that take part in training."""
        return sum(row.count for row in self.rows if row.trainable)

    @property
    def totals(self) -> str:
        """One sentence."""
        tied = sum(row.tied_to is not None for row in self.rows)
        return (
            f"{self.total:,} parameters in {len(self.rows) - tied} tensors, {self.trainable:,} of them trainable; "
            f"{tied} tied name{'s' if tied != 1 else ''}; {self.buffers:,} numbers in buffers."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {
            "total": self.total,
            "trainable": self.trainable,
            "buffers": self.buffers,
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }

    def summary(self) -> str:
        """Table and totals as text."""
        return f"{text_table(_COLUMNS, [row.cells() for row in self.rows], title='Parameters')}\n{self.totals}"

    def _repr_html_(self) -> str:
        return f"{html_table(_COLUMNS, [row.cells() for row in self.rows])}<p>{Markup.escape(self.totals)}</p>"


def _identity(parameter: nn.Parameter) -> object:
    """Equal for names of one weight: the same object, or another view of the same memory in the same shape."""
    if is_lazy(parameter) or parameter.numel() == 0 or parameter.is_meta:
        return id(parameter)
    return parameter.device, parameter.data_ptr(), tuple(parameter.shape), parameter.stride()


def _count(parameter: nn.Parameter) -> int:
    return 0 if is_lazy(parameter) else parameter.numel()


def _distinct(model: nn.Module) -> dict[object, nn.Parameter]:
    return {_identity(parameter): parameter for parameter in model.parameters()}


@dataclass(frozen=True)
class Causality:
    """Whether a model sees the future.

    Attributes:
        causal: no later token moves an earlier score; None where the question has no meaning.
        words: what was asked and seen, and what follows for training.
    """

    causal: bool | None
    words: str

    @classmethod
    def of(cls, adapted: AdaptedModel) -> Causality:
        """Ask the model; for a language model that sees the future, see whether it can be made causal."""
        try:
            report = sees_future(adapted)
        except CallContractError as error:
            return cls(None, f"Not asked: {error}")
        if report.causal:
            return cls(True, f"No: {report.evidence}.")
        said = f"Yes: {report.evidence}."
        if adapted.contract.task != "lm":
            return cls(False, f"{said}\nThat is how a {adapted.contract.task} model is meant to work.")
        try:
            reason = make_causal(adapted).contract.reasons["causality"]
        except CallContractError as error:
            return cls(False, f"{said}\nNext-token training would only teach it to copy: {error}")
        return cls(
            False, f"{said}\nTraining uses a version {reason}; that version was asked too, and sees nothing ahead."
        )


@dataclass(frozen=True)
class Inspection:
    """One model, read, completed and asked how it is called.

    Example:
        >>> inspection = inspect_source("my_export/")
        >>> print(inspection.summary())
        >>> inspection.save_html("inspection.html")
    """

    loaded: LoadedModel
    adapted: AdaptedModel

    @cached_property
    def parameters(self) -> ParameterTable:
        """The table of the completed model's parameters."""
        return ParameterTable.of(self.adapted.model)

    @cached_property
    def causality(self) -> Causality:
        """Whether later tokens move earlier scores, and what can be done about it."""
        return Causality.of(self.adapted)

    def sections(self) -> dict[str, str]:
        """Heading → text, in the order in which they are read."""
        completion = self.adapted.completion
        return {
            f"{self.adapted.name}, from {self.loaded.source.origin}": self.loaded.summary(),
            "What reading its code found": self.loaded.review.summary(),
            "What it left out": "\n\n".join(filter(None, [completion.summary(), completion.diff])),
            "How it is called": self.adapted.contract.summary(),
            "Whether it sees the future": self.causality.words,
            "What it holds": self.parameters.summary(),
        }

    def summary(self) -> str:
        """Everything as text."""
        return "\n\n".join(f"{title}\n{'=' * len(title)}\n{text.rstrip()}" for title, text in self.sections().items())

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        source, review, completion = self.loaded.source, self.loaded.review, self.adapted.completion
        return {
            "name": self.adapted.name,
            "source": {
                "origin": source.origin,
                "file": source.file_name,
                "class": source.class_name,
                "revision": source.revision,
                "sha256": dict(source.sha256),
            },
            "config": self.adapted.config.to_dict(),
            "review": {
                "verdict": review.verdict,
                "findings": [dataclasses.asdict(finding) for finding in review.findings],
                "imports": [dataclasses.asdict(module) for module in review.imports],
            },
            "completion": {
                "status": completion.status,
                "completions": [dataclasses.asdict(one) for one in completion.completions],
                "diff": completion.diff,
                "source": completion.source_after,
            },
            "contract": json.loads(self.adapted.contract.to_json()),
            "causality": dataclasses.asdict(self.causality),
            "parameters": self.parameters.to_dict(),
        }

    def to_html(self) -> str:
        """A page that needs nothing else: no script, no outside resource, readable in dark and light."""
        return render(
            ASSETS / "inspect.html",
            inspection=self,
            style=Markup((ASSETS / "report.css").read_text("utf-8")),
            intake=Markup(self.loaded._repr_html_()),
            review=Markup(self.loaded.review._repr_html_()),
            completion=Markup(self.adapted.completion._repr_html_()),
            parameters=Markup(self.parameters._repr_html_()),
        )

    def _repr_html_(self) -> str:
        return self.to_html()

    def save_html(self, path: str | Path) -> Path:
        """Write the page; an earlier one is replaced only when the new one is complete."""
        return write_text(path, self.to_html())

    def save_json(self, path: str | Path) -> Path:
        """Write `to_dict` as JSON, in the same manner."""
        return write_json(path, _plain(self.to_dict()))


def inspect_source(source: str | Path, *, trust: bool = False, strict: bool = False) -> Inspection:
    """Load a model, complete it and find out how it is called.

    Args:
        source: gist id, gist URL, folder (of an export, or as `save_pretrained` writes it) or model.py.
        trust: run code in spite of risky calls that the review found.
        strict: refuse completions that rest on conventions.

    Raises:
        TransformerBuilderError: a leaf of it, from loading, completing or asking; nothing is shown of a model that failed.
    """
    loaded = load_model(source, trust=trust)
    return Inspection(loaded, adapt(loaded, strict=strict))


def _plain(value: Any) -> Any:
    """Plain types all the way down; what JSON does not know is shown as Python writes it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and value - value != 0.0:  # infinities and NaN are no JSON
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
