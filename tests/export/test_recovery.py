"""What a model was built from: recipes go through JSON and back, calls are told by attributes, changes are kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from utils.adapters.causality import make_causal
from utils.adapters.model_adapter import adapt
from utils.errors import ExportError
from utils.export.recipes import apply_changes, build
from utils.export.recovery import _Writer, blueprint_of
from utils.export.standalone import copies_of
from utils.export.weights import tied_names, weights_sha256
from utils.loading.model_config import ModelConfig


@dataclass(frozen=True)
class Sizes:
    width: int = 8
    rates: tuple[float, ...] = (0.1, 0.2)


class Settings:
    """A class that only holds settings."""

    depth = 2

    def __init__(self, width: int) -> None:
        self.width = width


def through_json(value: Any) -> Any:
    writer = _Writer({}, ModelConfig())
    recipe = json.loads(json.dumps(writer.value(value, "it")))
    return build(recipe, writer.classes)


@pytest.mark.parametrize(
    "value",
    [1, 0.5, "a", None, True, [1, (2, "b")], {"a": {"b": (1,)}}, Sizes(4), torch.float16, F.gelu, nn.GELU, torch.tanh],
)
def test_values_come_back(value: Any) -> None:
    made = through_json(value)
    assert made == value and type(made) is type(value)


def test_objects_with_settings_come_back() -> None:
    assert vars(through_json(SimpleNamespace(a=1, b=Sizes()))) == {"a": 1, "b": Sizes()}
    made = through_json(Settings(5))
    assert made.width == 5 and made.depth == 2


def test_modules_come_back() -> None:
    made = through_json(nn.Sequential(nn.Linear(4, 8, bias=False), nn.Embedding(3, 2, padding_idx=1)))
    assert made[0].bias is None and made[0].out_features == 8 and made[1].padding_idx == 1


@pytest.mark.parametrize("value", [float("nan"), object(), {1: 2}, {"$call": 1}, lambda x: x, torch.zeros(2)])
def test_what_json_cannot_hold_is_named(value: Any) -> None:
    with pytest.raises(ExportError, match=r"^it "):
        _Writer({}, ModelConfig()).value(value, "it")


class Model(nn.Module):
    """Some arguments are attributes, one has another name, one is told by the config, one is changed later."""

    def __init__(
        self, rows: int, width: int = 4, sizes: Sizes | None = None, dropout: float = 0.1, *, deep: bool = False
    ):
        super().__init__()
        self.rows, self._width, self.sizes, self.deep = rows, width, sizes, deep
        self.table = nn.Embedding(rows, width)
        self.dropout = nn.Dropout(dropout)
        self.temperature = 1.0
        self.head = nn.Linear(width, rows, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.table(ids))) / self.temperature


def test_a_call_is_told_by_attributes_and_changes_are_kept() -> None:
    model = Model(30, 6, Sizes(3), dropout=0.4, deep=True)
    model.temperature = 2.0
    blueprint = blueprint_of(adapt(model))
    recipe = json.loads(json.dumps(blueprint.recipe))
    assert recipe["arguments"] == {
        "rows": 30,
        "width": 6,
        "sizes": {"$fields": "Sizes", "values": {"width": 3, "rates": {"$tuple": [0.1, 0.2]}}},
        "deep": True,
    }
    assert blueprint.changes == {"": {"temperature": 2.0}, "dropout": {"p": 0.4}}
    made = build(recipe, blueprint.classes)
    apply_changes(made, blueprint.changes, blueprint.classes)
    assert made.temperature == 2.0 and made.dropout.p == 0.4 and made.head.weight is made.table.weight


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.inner(ids)


def test_modules_as_arguments() -> None:
    blueprint = blueprint_of(adapt(Wrapper(Model(30))))
    assert blueprint.recipe["arguments"]["inner"]["$call"] == "Model" and set(blueprint.classes) == {"Wrapper", "Model"}


class Configured(nn.Module):
    """The required size is nowhere but in the config."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids)


def test_the_config_tells_what_no_attribute_does() -> None:
    assert blueprint_of(adapt(Configured(31))).recipe["arguments"] == {"vocab_size": 31}


class Wide(Configured):
    """Keeps nothing of a default that was overridden."""

    def __init__(self, vocab_size: int, factor: int = 1) -> None:
        super().__init__(vocab_size)
        self.more = nn.Linear(factor, factor)


def test_a_lost_argument_is_seen() -> None:
    with pytest.raises(ExportError, match=r"its weights would differ \(more.bias, more.weight\)"):
        blueprint_of(adapt(Wide(31, 3)))


def test_attention_made_causal_is_told() -> None:
    class_ = nn.TransformerEncoderLayer

    class Sees(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer, self.head = nn.Embedding(30, 8), class_(8, 2, 8, batch_first=True), nn.Linear(8, 30)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(self.table(ids)))

    Sees.__qualname__ = "Sees"
    blueprint = blueprint_of(make_causal(adapt(Sees())))
    assert blueprint.twins == ["layer"] and blueprint.rules == {} and blueprint.made_causal


def test_tied_names() -> None:
    assert tied_names(Model(30)) == {"head.weight": "table.weight"}


def test_one_hash_for_all_weights() -> None:
    model = Model(30)
    before = weights_sha256(model)
    with torch.no_grad():
        model.table.weight[0, 0] += 1e-3
    assert weights_sha256(model) != before


def test_copies_need_nothing_of_this_package() -> None:
    copies = copies_of(["utils.adapters.contract", "utils.adapters.causal_mode"])
    assert "adapter_masks.py" in copies and "adapter_errors.py" in copies
    assert "from .adapter_masks import MaskConvention" in copies["adapter_contract.py"]


def test_a_file_that_cannot_be_copied_is_seen() -> None:
    with pytest.raises(LookupError, match=r"utils\.export\.bundle cannot be copied: it imports utils"):
        copies_of(["utils.export.bundle"])
