"""The matrix of models and formats: its list, its verdicts, and a few of its rows. The whole of it is a long test."""

from __future__ import annotations

import math

import pytest

from export.matrix import NAMED, Cell, Row, chosen, complaints, fill, refusals, table, totals
from tests.zoo.entry import TASKS
from tests.zoo.table import ZOO
from utils.export.parity_report import CostResult, ParityReport, ParityRow

FEW = ("LSTM", "encoder with padding mask", "nn.Transformer", "tiny ViT")
"""A recurrence, a mask on both sides, a decoder, and images."""


def test_the_list_covers_all_tasks_and_kinds() -> None:
    entries = chosen()
    names = {entry.name for entry in entries}
    assert len(entries) == len(names) >= 45
    assert {entry.task for entry in entries} == set(TASKS)
    assert names >= set(NAMED)
    assert sum(name.startswith("export: ") for name in names) >= 5
    assert sum("(causal)" in name for name in names) >= 5
    assert [entry.name for entry in chosen(("tiny ViT",))] == [name for name in ZOO if "tiny ViT" in name]


def kept(difference: float) -> Cell:
    return Cell(ParityReport([ParityRow("onnx", 1, 7, max_abs_diff=difference, tolerance=1e-4)] * 20))


def row(name: str, **cells: Cell) -> Row:
    return Row(ZOO[name], dict(cells))


def test_cells_in_words() -> None:
    assert kept(3e-7).words() == "equal 3e-07 (20 shapes)"
    costly = ParityReport(kept(0.5).report.rows, cost=[CostResult("int8", 9, 3.0, 0.02, 0.05, 0.9, "x")])
    assert Cell(costly).words() == "costs 2.0e-02 bits (20 shapes)"
    assert Cell(reason="no aten.scan").words() == "refused: no aten.scan"


@pytest.mark.parametrize(
    ("reason", "named"),
    [
        ("No ONNX function found for aten.grid_sampler_3d", True),
        ("2 of 8 shapes differ; the first is batch 1 × length 1: it fails", True),
        ("tracing inferred a static shape of 11", True),
        ("'M' cannot be scripted: its call needs a mask", True),
        ("We ran into an error. Please check the warnings above.", False),
        ("TypeError: cannot unpack", False),
        ("", False),
    ],
)
def test_a_refusal_must_name_its_cause(reason: str, named: bool) -> None:
    assert Cell(reason=reason).names_its_cause is named
    rows = [row("LSTM", torchscript=Cell(reason=reason))]
    assert bool(complaints(rows)) is not named
    assert ("<- NO CAUSE" in refusals(rows)) is not named


@pytest.mark.parametrize(("lost", "fine"), [(0, True), (1, True), (2, False)])
def test_too_many_refusals_are_a_complaint(lost: int, fine: bool) -> None:
    names = list(ZOO)[:20]
    cells = [Cell(reason="no aten.scan")] * lost + [kept(1e-7)] * (20 - lost)
    rows = [row(name, onnx=cell, torchscript=Cell(reason="no aten.scan")) for name, cell in zip(names, cells)]
    assert (not complaints(rows)) is fine
    assert totals(rows).splitlines()[0] == f"onnx: {20 - lost} of 20 ({(20 - lost) / 20:.0%}, at least 95% wanted)"
    assert len(table(rows).splitlines()) == 21
    assert len(refusals(rows).splitlines()) == 20 + lost


@pytest.mark.slow  # a minute and more beside other work
def test_a_few_models_in_every_format() -> None:
    heard: list[str] = []
    rows = fill([ZOO[name] for name in FEW], ("onnx", "pt2", "torchscript", "safetensors"), heard.append)
    assert refusals(rows) == "Nothing was refused."
    assert complaints(rows) == []
    assert len(heard) == 16
    assert all(math.isfinite(cell.report.max_abs_diff) for one in rows for cell in one.cells.values())
    assert {len(one.cells["onnx"].report.rows) for one in rows} == {8, 20, 2}


@pytest.mark.slow  # minutes: fifty models; `python -m tests.export` asks every format
def test_the_matrix_of_the_two_formats_that_nearly_every_model_must_have() -> None:
    rows = fill(chosen(), ("onnx", "pt2"))
    assert not complaints(rows), "\n".join([*complaints(rows), refusals(rows), totals(rows)])
