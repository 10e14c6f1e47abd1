"""The export dry run: what the exporters take, what they refuse, and when ONNX is left out."""

from __future__ import annotations

import pytest
import torch

from tests.checks import models as m
from utils.adapters.model_adapter import adapt
from utils.errors import ExportError
from utils.export import dry_run


class DecidesByValue(m.Healthy):
    """Branches on what it computed, which no graph can hold."""

    def forward(self, input_ids):
        logits = super().forward(input_ids)
        return logits * 2 if logits.mean() > 0 else logits


def _checked(build):
    torch.manual_seed(0)
    return dry_run.check(adapt(build()))


def _rows(result):
    return {row["format"]: row["status"] for row in result.measured["table"]}


@pytest.fixture
def without_onnx(monkeypatch):
    monkeypatch.setattr(dry_run, "is_installed", lambda package: False)


def test_a_healthy_model_is_captured(without_onnx):
    result = _checked(m.Healthy)
    assert result.status == "pass", result.summary()
    assert _rows(result) == {"torch.export": "ok", "ONNX": "skipped"}
    assert "free batch and length" in result.headline and "onnx is not installed" in result.headline


@pytest.mark.slow  # the ONNX exporter alone takes tens of seconds on a busy machine
def test_onnx_is_tried_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(dry_run, "LONGEST_CAPTURE", 1e9)
    result = _checked(lambda: m.Healthy(layers=1))
    assert _rows(result) == {"torch.export": "ok", "ONNX": "ok"}, result.summary()


def test_a_refusal_names_the_reason_and_is_a_warning():
    result = _checked(DecidesByValue)
    assert result.status == "warn", result.summary()
    assert _rows(result) == {"torch.export": "refused", "ONNX": "skipped"}
    assert "DataDependent" in result.cause
    assert "torch.where" in result.fix


def test_onnx_refusing_is_a_warning_too(monkeypatch):
    import utils.export.onnx

    def refuse(subject, traced):
        raise ExportError(
            f"{subject.name!r} cannot be exported to ONNX. Reason: no such operator\nWhat to do: another one"
        )

    monkeypatch.setattr(dry_run, "LONGEST_CAPTURE", 1e9)
    monkeypatch.setattr(utils.export.onnx, "translate", refuse)
    result = _checked(lambda: m.Healthy(layers=1))
    assert (result.status, result.cause, result.fix) == ("warn", "no such operator", "another one")


def test_a_large_model_is_not_traced_twice(monkeypatch):
    monkeypatch.setattr(dry_run, "LONGEST_CAPTURE", 0.0)
    result = _checked(lambda: m.Healthy(layers=1))
    assert result.status == "pass"
    assert _rows(result) == {"torch.export": "ok", "ONNX": "skipped"}


def test_nothing_is_written(tmp_path, monkeypatch, without_onnx):
    monkeypatch.chdir(tmp_path)
    _checked(m.Healthy)
    assert list(tmp_path.iterdir()) == []
