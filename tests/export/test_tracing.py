"""Selective scans without a loop: the same numbers at every length, put in place while tracing and taken out again."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from export import zoo
from export.matrix import fill, refusals
from tests.zoo.table import ZOO
from utils.errors import ExportError
from utils.export.exporter import traced_shape_for
from utils.export.selective_scan import DOUBLINGS_WITHOUT_LIMIT, doublings_for, prefix_scan, selective_scan
from utils.export.signature import Shape
from utils.export.subject import subject_of
from utils.export.torch_export import capture
from utils.export.tracing import selective_scans_in_doublings, tracing

modeling_mamba = pytest.importorskip("transformers.models.mamba.modeling_mamba")
if not hasattr(modeling_mamba, "mamba_selective_scan"):
    pytest.skip("this transformers has its selective scan elsewhere", allow_module_level=True)

FAMILIES = ("mamba (causal)", "falcon_mamba (causal)", "jamba (causal)")


def loop(decays: torch.Tensor, increments: torch.Tensor) -> torch.Tensor:
    """The recurrence as it is defined."""
    state, states = torch.zeros_like(increments[:, :, 0]), []
    for place in range(increments.shape[2]):
        state = decays[:, :, place] * state + increments[:, :, place]
        states.append(state)
    return torch.stack(states, dim=2)


@pytest.mark.parametrize("doublings", [8, DOUBLINGS_WITHOUT_LIMIT])
@pytest.mark.parametrize("length", [1, 2, 7, 64, 255, 256])
def test_prefix_scan_is_the_loop(length: int, doublings: int) -> None:
    torch.manual_seed(length)
    decays = 1.1 * torch.rand(2, 3, length, 4, dtype=torch.float64)
    decays[:, :, length // 2] = 0  # a forgotten past: a scan that divides by products of decays fails here
    increments = torch.randn(2, 3, length, 4, dtype=torch.float64)
    # 1e-12: sums of a few hundred terms of about 1, in another order
    torch.testing.assert_close(
        prefix_scan(decays, increments, doublings), loop(decays, increments), atol=1e-12, rtol=1e-12
    )


@pytest.mark.parametrize(("doublings", "reach"), [(0, 1), (3, 8)])
def test_prefix_scan_reaches_two_to_the_doublings(doublings: int, reach: int) -> None:
    ones = torch.ones(1, 1, 20, 1)
    expected = torch.arange(1, 21).clamp(max=reach).float()
    torch.testing.assert_close(prefix_scan(ones, ones, doublings).flatten(), expected)


@pytest.mark.parametrize(
    ("limit", "doublings"), [(None, 20), (1, 0), (2, 1), (3, 2), (64, 6), (65, 7), (255, 8), (256, 8)]
)
def test_doublings_span_the_limit(limit: int | None, doublings: int) -> None:
    assert doublings_for(limit) == doublings


@pytest.mark.parametrize("whole", [True, False], ids=["every argument", "the least arguments"])
@pytest.mark.parametrize("length", [1, 2, 7, 64, 255])
def test_selective_scan_is_that_of_transformers(length: int, whole: bool) -> None:
    torch.manual_seed(length)
    batch, width, size = 2, 5, 4

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64)

    step = normal(batch, width, length) if whole else normal(batch, width, length).abs()  # a softplus makes it positive
    arguments = (normal(batch, width, length), step, -torch.rand(width, size, dtype=torch.float64))
    arguments += (normal(batch, size, length), normal(batch, size, length))
    optional = {}
    if whole:
        optional = {"D": normal(width), "z": normal(batch, width, length), "delta_bias": normal(width)}
        optional |= {"delta_softplus": True, "return_last_state": True}
    expected = modeling_mamba.mamba_selective_scan(*arguments, **optional)
    given = selective_scan(*arguments, **optional, doublings=doublings_for(length))
    torch.testing.assert_close(given, expected, atol=1e-12, rtol=1e-12)


def source_of(name: str) -> tuple[nn.Module, ModuleType]:
    """A model of the zoo and the file of transformers that its scan is in."""
    model = ZOO[name].build()
    return model, sys.modules[type(model).__module__]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_scan_is_replaced_only_while_tracing(name: str) -> None:
    model, source = source_of(name)
    original = source.mamba_selective_scan
    with selective_scans_in_doublings(model, 100):
        assert source.mamba_selective_scan.func is selective_scan
        assert source.mamba_selective_scan.keywords == {"doublings": 7}
    assert source.mamba_selective_scan is original


def test_the_scan_is_restored_after_an_error() -> None:
    model, source = source_of(FAMILIES[0])
    original = source.mamba_selective_scan

    def traced() -> None:
        with tracing(subject_of(model), "ONNX"):
            assert source.mamba_selective_scan is not original
            raise RuntimeError("planted")

    with pytest.raises(ExportError, match="planted"):
        traced()
    assert source.mamba_selective_scan is original


def test_a_subclass_in_another_file_is_found() -> None:
    model, source = source_of(FAMILIES[0])
    mixer = model.backbone.layers[0].mixer
    mixer.__class__ = type("OwnMixer", (type(mixer),), {"__module__": __name__})
    with selective_scans_in_doublings(mixer, None):
        assert source.mamba_selective_scan.func is selective_scan


def test_another_function_of_that_name_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def mamba_selective_scan() -> None:
        """Not transformers'."""

    monkeypatch.setattr(zoo, "mamba_selective_scan", mamba_selective_scan, raising=False)
    with selective_scans_in_doublings(zoo.Bigram(), None):
        assert zoo.mamba_selective_scan is mamba_selective_scan


def test_the_length_of_mamba_stays_free() -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "state_size": 4}
    model = modeling_mamba.MambaForCausalLM(modeling_mamba.MambaConfig(vocab_size=zoo.V, **small)).eval()
    subject = subject_of(model, config=zoo.CONFIG)
    program = capture(subject, traced_shape_for(subject.signature)).module()
    for length in (1, 5, zoo.LIMIT):
        inputs = subject.example(Shape(2, length))
        with torch.no_grad():
            # 1e-5: float32 sums in another order
            torch.testing.assert_close(program(**inputs), model(**inputs).logits, atol=1e-5, rtol=0)


@pytest.mark.slow  # a minute of tracing and optimizing: twenty doublings in each of two layers
def test_mamba_passes_the_whole_grid() -> None:
    rows = fill([ZOO["mamba (causal)"]], ("onnx", "pt2"))
    assert refusals(rows) == "Nothing was refused."
    for cell in rows[0].cells.values():
        assert {row.length for row in cell.report.rows} == {1, 7, 129, 256}
