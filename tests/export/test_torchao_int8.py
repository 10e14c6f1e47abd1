"""int8 by torchao: which layers are rounded, that the file opens with torch alone, and that a collapse is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import utils
from export import zoo
from utils.errors import ConfigError, ExportError, MissingPackageError, ParityError
from utils.export.rounding import SHARE
from utils.export.torch_export import TorchExportExporter
from utils.export.torchao_int8 import TorchaoInt8Exporter

V, D = 61, 32
CONFIG = {"vocab_size": V, "max_seq_len": 16}
OPENED_ALONE = """
import sys, torch
logits = torch.export.load(sys.argv[1]).module()(input_ids=torch.tensor([[1, 2, 3]]), attention_mask=torch.ones(1, 3).long())
print(tuple(logits.shape), "torchao" in sys.modules, "utils" in sys.modules)
"""


class Sure(nn.Module):
    """Says after each token its successor, through layers that hand it on. A `loud` one holds weights, for a channel that is
    always zero, next to which those that carry the token round to nothing.
    """

    def __init__(self, loud: tuple[bool, ...]) -> None:
        super().__init__()
        codes = torch.linalg.qr(torch.randn(V, V, generator=torch.Generator().manual_seed(1)))[0][:, :D]
        self.table = nn.Embedding(V, D)
        self.steps = nn.ModuleList(nn.Linear(D + 1, D, bias=False) for _ in loud)
        self.head = nn.Linear(D, V, bias=False)
        with torch.no_grad():
            self.table.weight.copy_(codes)
            self.head.weight.copy_(codes.roll(-1, 0) * 20)
            for step, is_loud in zip(self.steps, loud):
                step.weight.copy_(torch.eye(D, D + 1))
                step.weight[:, D] = 5_000.0 if is_loud else 0.0

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.table(input_ids)
        for step in self.steps:
            x = step(torch.cat([x, torch.zeros_like(x[..., :1])], dim=-1))
        return self.head(x)


def test_a_sound_model_is_rounded_costs_little_and_opens_with_torch_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = zoo.PostNorm(causal=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bundle = utils.export(model, ("pt2", "int8_pt2"), tmp_path, config=zoo.CONFIG)
    artifact = bundle["int8_pt2"]
    assert artifact.parity is not None
    assert 0 < artifact.parity.cost[0].lost < SHARE * artifact.parity.cost[0].model
    assert artifact.parity.max_abs_diff > 1e-4  # it is no copy of the float file
    assert artifact.facts["int8"] == "weights, 2 layers rounded"  # the head is tied to the embedding and stays float
    assert artifact.signature == bundle["pt2"].signature
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    alone = [sys.executable, "-I", "-c", OPENED_ALONE, str(artifact.path)]
    opened = subprocess.run(alone, capture_output=True, text=True, check=True)
    assert opened.stdout.split("\n")[-2] == f"(1, 3, {zoo.V}) False False"


@pytest.mark.slow  # two exports for a figure
def test_linear_layers_are_a_quarter_of_the_size(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(V, 256), nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, V))
    rounded = TorchaoInt8Exporter.export(model, None, tmp_path / "int8.pt2", CONFIG)
    whole = TorchExportExporter.export(model, tmp_path / "float.pt2", CONFIG)
    linears = 256 * 1024 + 1024 * V
    saved = whole.size_bytes - rounded.size_bytes
    assert saved == pytest.approx(3 * linears, rel=0.1)


@pytest.mark.slow  # captures a transformers model
def test_the_layers_of_gpt2_count_as_linear(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=32))
    artifact = TorchaoInt8Exporter.export(model, None, tmp_path / "m.pt2")
    assert artifact.facts["int8"] == "weights, 8 layers rounded"  # four in each block; the head is tied
    assert type(model.transformer.h[0].mlp.c_fc).__name__ == "Conv1D"  # the caller's model is untouched


def test_layers_that_lose_most_stay_in_float(tmp_path: Path) -> None:
    artifact = TorchaoInt8Exporter.export(Sure((False, True, False)), None, tmp_path / "m.pt2", CONFIG)
    assert artifact.facts["kept in float"] == "model.steps.1"
    assert artifact.parity is not None
    assert artifact.parity.cost[0].top1_agreement > 0.98


def test_a_collapse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ParityError, match=r"not kept, however much stays in float.*with 4 layers in float, .*COSTS TOO MUCH"
    ):
        TorchaoInt8Exporter.export(Sure((True,) * 12), None, tmp_path / "m.pt2", CONFIG)
    assert not list(tmp_path.iterdir())


def test_infinite_scores_are_no_warning_but_the_reason(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(V, D), nn.Linear(D, V))
    nn.init.constant_(model[1].bias[:1], torch.inf)
    with pytest.raises(ParityError, match="the model itself gives NaN or infinity"):
        TorchaoInt8Exporter.export(model, None, tmp_path / "m.pt2", CONFIG)


class OnlyTable(nn.Module):
    """A head that is tied to the embedding, and no other matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(V, D), nn.Linear(D, V, bias=False)
        self.head.weight = self.table.weight

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(input_ids))


def test_nothing_to_round_is_said(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"calls no nn\.Linear with weights of its own"):
        TorchaoInt8Exporter.export(OnlyTable(), None, tmp_path / "m.pt2", CONFIG)


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.pt2"):
        TorchaoInt8Exporter.export(zoo.Bigram(), None, tmp_path / "m.onnx", zoo.CONFIG)


def test_without_torchao_the_install_command_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils._extras.is_installed", lambda package: package != "torchao")
    with pytest.raises(MissingPackageError, match=r"needs the package 'torchao'.*\[export\]"):
        TorchaoInt8Exporter()


@pytest.mark.parametrize("width", [0, 1])
def test_a_layer_without_a_matrix_stays_in_float(tmp_path: Path, width: int) -> None:
    model = nn.Sequential(nn.Embedding(V, D), nn.Linear(D, width), nn.Linear(width, D), nn.Linear(D, V))
    artifact = TorchaoInt8Exporter.export(model, None, tmp_path / "model.pt2", CONFIG)
    assert artifact.facts["int8"] == "weights, 1 layers rounded"


def test_a_parametrized_layer_stays_in_float_and_is_left_as_it_was(tmp_path: Path) -> None:
    """Asked for its weight in training, a layer with spectral norm takes another step of its power iteration."""
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16))
    model = nn.Sequential(nn.Embedding(V, 16), normed, nn.Linear(16, V)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    artifact = TorchaoInt8Exporter.export(model, None, tmp_path / "m.pt2", CONFIG)
    assert artifact.facts["int8"] == "weights, 1 layers rounded"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Reads(nn.Module):
    """Calls a layer and does something else with its weights."""

    def __init__(self, read: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.table, self.middle, self.head = nn.Embedding(V, D), nn.Linear(D, D), nn.Linear(D, V)
        self.read = read

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.table(input_ids).to(self.middle.weight.dtype)
        return self.head(self.read(self.middle(x), self.middle.weight))


@pytest.mark.parametrize(
    ("read", "rounded"),
    [
        pytest.param(lambda x, weight: x @ weight.T, 1, id="a product by hand"),
        pytest.param(nn.functional.linear, 2, id="the layer's own operator"),
        pytest.param(lambda x, weight: x.view(*x.shape[:-1], weight.shape[0]), 2, id="their shape alone"),
    ],
)
def test_a_layer_whose_weights_are_read_beside_it_stays_in_float(
    tmp_path: Path, read: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], rounded: int
) -> None:
    artifact = TorchaoInt8Exporter.export(Reads(read), None, tmp_path / "m.pt2", CONFIG)
    assert artifact.facts["int8"] == f"weights, {rounded} layers rounded"


class HalfInside(nn.Module):
    """Computes in half precision, from the second layer on from numbers in it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle, self.head = nn.Embedding(V, D), nn.Linear(D, D), nn.Linear(D, V)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.head(self.middle(self.table(input_ids)))


def test_a_model_that_computes_in_half_precision_is_rounded(tmp_path: Path) -> None:
    artifact = TorchaoInt8Exporter.export(HalfInside(), None, tmp_path / "m.pt2", CONFIG)
    assert artifact.facts["int8"] == "weights, 2 layers rounded"
