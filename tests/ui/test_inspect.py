"""utils.ui.inspect: the parameter table, and the whole as text, page and JSON."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import utils.examples
from utils.adapters.model_adapter import adapt
from utils.errors import GraphCompletionError, ModelLoadError, UntrustedCodeError
from utils.testing import TINY_SOURCES
from utils.ui.inspect import Causality, Inspection, ParameterTable, inspect_source

HOSTILE = "<script>alert(1)</script>"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight
        self.mix.weight.requires_grad_(False)
        self.register_buffer("positions", torch.zeros(3, 2))


class TiedByMemory(Tied):
    """Two parameters that lie in one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.head.weight = nn.Parameter(self.embedding.weight.data)


def folder_of(tmp_path: Path, name: str, **files: str) -> Path:
    """A folder that holds one of the tiny sources, with files added or replaced."""
    for file_name, text in {**TINY_SOURCES[name], **files}.items():
        (tmp_path / file_name).write_text(text, "utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def broken_export() -> Inspection:
    return inspect_source(utils.examples.path())


@pytest.mark.parametrize("model", [Tied, TiedByMemory])
def test_each_weight_counts_once(model: type[nn.Module]) -> None:
    table = ParameterTable.of(model())
    rows = {row.name: row for row in table.rows}
    assert (table.total, table.trainable, table.buffers) == (40 + 16 + 4, 40 + 4, 6)
    assert rows["head.weight"].tied_to == "embedding.weight" and rows["head.weight"].count == 0
    assert rows["embedding.weight"].tied_to is None and rows["embedding.weight"].share == pytest.approx(40 / 60)
    assert sum(row.share for row in table.rows if row.tied_to is None) == pytest.approx(1.0)
    assert rows["mix.weight"].shape == (4, 4) and not rows["mix.weight"].trainable
    assert "60 parameters in 3 tensors, 44 of them trainable; 1 tied name; 6 numbers in buffers." in table.summary()


@pytest.mark.parametrize(
    ("model", "total", "shape"),
    [
        (nn.ReLU(), 0, None),
        (nn.LazyLinear(3), 0, "not known yet"),
        (nn.Linear(2, 3, device="meta"), 9, "3 × 2"),
        (nn.ParameterList([nn.Parameter(torch.tensor(1.0))]), 1, "scalar"),
    ],
)
def test_unusual_parameters(model: nn.Module, total: int, shape: str | None) -> None:
    table = ParameterTable.of(model)
    assert table.total == total
    assert f"{total:,} parameters" in table.summary()
    assert shape is None or shape in table.summary()


def test_table_names_are_those_of_the_state_dict() -> None:
    model = Tied()
    assert [row.name for row in ParameterTable.of(model).rows] == list(
        dict(model.named_parameters(remove_duplicate=False))
    )


def test_text_tells_all_four(broken_export: Inspection) -> None:
    text = broken_export.summary()
    for words in ("What reading its code found", "no risky calls", "vocabulary rows: 1024", "544,000 parameters"):
        assert words in text
    assert "+        residual_0_output = embedding_0_x + mhsa_0_output" in text, "the diff is shown"


class Leaky(nn.Module):
    """Adds the mean over the sequence; `pooled` gives one row of scores."""

    def __init__(self, pooled: bool = False) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(30, 8), nn.Linear(8, 3 if pooled else 30)
        self.pooled = pooled

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        return self.head(x.mean(1) if self.pooled else x + x.mean(1, keepdim=True))


def test_what_follows_from_seeing_the_future_is_said(broken_export: Inspection) -> None:
    assert broken_export.causality.causal is False
    assert "Yes: changing the token" in broken_export.summary()
    assert (
        "Training uses a version made causal by a causal mask in its attention: model.mhsa_0" in broken_export.to_html()
    )
    refused = Causality.of(adapt(Leaky()))
    assert refused.causal is False and "would only teach it to copy" in refused.words
    assert Causality.of(adapt(nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 30)))).words.startswith("No: changing")
    assert "Not asked:" in Causality.of(adapt(Leaky(pooled=True))).words


class _Page(HTMLParser):
    """Tags that were opened and never closed, and every address in the page."""

    VOID = ("meta", "br", "link", "img", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_needs_nothing_else(broken_export: Inspection) -> None:
    page = _Page(broken_export.to_html())
    assert page.open == [] and page.addresses == [] and "script" not in page.tags
    assert {"h1", "h2", "table", "pre", "style"} <= page.tags
    assert "Content-Security-Policy" in broken_export.to_html()


def test_what_comes_from_outside_is_escaped(tmp_path: Path) -> None:
    config = json.dumps({"vocab_size": 50, "d_model": 8, "max_seq_len": 16, "model_name": HOSTILE, "note": HOSTILE})
    source = (
        TINY_SOURCES["tensor"]["model.py"] + f"\n\ndef load(path='{HOSTILE}'):\n    return open(path)  # {HOSTILE}\n"
    )
    page = inspect_source(folder_of(tmp_path, "tensor", **{"config.json": config, "model.py": source})).to_html()
    assert HOSTILE not in page and "&lt;script&gt;" in page


def test_json_holds_plain_types(broken_export: Inspection, tmp_path: Path) -> None:
    path = broken_export.save_json(tmp_path / "inspection.json")
    content = json.loads(path.read_text("utf-8"))
    assert content["contract"]["vocab_size"] == 1024
    assert content["completion"]["status"] == "completed" and content["completion"]["diff"].startswith("---")
    assert content["parameters"]["total"] == sum(row["count"] for row in content["parameters"]["rows"]) == 544_000
    assert content["source"]["class"] == "PostNormTransformer" and len(content["source"]["sha256"]["model.py"]) == 64
    assert content["review"]["findings"] == []
    assert content["causality"]["causal"] is False


def test_model_that_runs_as_it_came_has_no_diff(tmp_path: Path) -> None:
    inspection = inspect_source(folder_of(tmp_path, "tensor"))
    assert inspection.to_dict()["completion"]["diff"] == ""
    assert "The model runs as it came" in inspection.summary() and "The model runs as it came" in inspection.to_html()


def test_refusals_are_those_of_the_rooms(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no file or folder"):
        inspect_source(tmp_path / "nowhere")
    with pytest.raises(UntrustedCodeError, match=r"os\.system"):
        inspect_source(folder_of(tmp_path, "dangerous"))
    with pytest.raises(GraphCompletionError, match="strict"):
        inspect_source(utils.examples.path(), strict=True)
