"""int8: what is rounded, what stays in float, and that a file which costs too much is never kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import utils
from export import zoo
from utils.errors import ConfigError, ExportError, ParityError
from utils.export.onnx import ONNXExporter
from utils.export.quantization import Int8Exporter, StaticInt8Exporter
from utils.export.rounding import SHARE
from utils.export.sensitivity import layers_of, noise_of
from utils.export.signature import Shape, Signature
from utils.export.subject import LogitsOnly, subject_of

V, D = 61, 32
CONFIG = {"vocab_size": V, "max_seq_len": 16}


class Sure(nn.Module):
    """Says after each token its successor, surely, through layers that hand the token on unchanged.

    `loud` layers get a channel thousands of times louder than those that carry the token: rounded to 256 steps of that
    channel, the token is gone.
    """

    def __init__(self, loud: tuple[bool, ...] = (False, False, False)) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table = nn.Embedding(V, D)
        self.steps = nn.ModuleList(nn.Linear(D + 1, D, bias=False) for _ in loud)
        self.head = nn.Linear(D, V, bias=False)
        self.loud = loud
        codes = torch.linalg.qr(torch.randn(V, V, generator=generator))[0][:, :D]
        codes = codes / codes.norm(dim=1, keepdim=True)
        with torch.no_grad():
            self.table.weight.copy_(codes)
            self.head.weight.copy_(codes.roll(-1, 0) * 20)
            for step in self.steps:
                step.weight.copy_(torch.eye(D, D + 1))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.table(input_ids)
        for step, loud in zip(self.steps, self.loud):
            x = step(torch.cat([x, torch.full_like(x[..., :1], 5_000.0 if loud else 1.0)], dim=-1))
        return self.head(x)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> utils.export.Bundle:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("int8")
    return utils.export(zoo.PostNorm(causal=True), ("onnx", "int8", "int8_static"), out, config=zoo.CONFIG)


@pytest.mark.parametrize("name", ["int8", "int8_static"])
def test_a_sound_model_is_rounded_and_costs_little(plain: utils.export.Bundle, name: str) -> None:
    artifact = plain[name]
    assert artifact.parity is not None
    cost = artifact.parity.cost[0]
    assert all(one.passed for one in artifact.parity.cost)
    assert [one.origin for one in artifact.parity.cost[1:]] == [
        "random inputs",
        "random inputs padded on the left",
    ]
    assert 0 < cost.lost < SHARE * cost.model
    assert artifact.parity.max_abs_diff > 1e-4  # it is no copy of the float file
    assert artifact.facts["kept in float"] == "none"
    assert artifact.size_bytes < plain["onnx"].size_bytes
    kinds = {node.op_type for node in onnx.load(artifact.path).graph.node}
    assert kinds & ({"MatMulInteger"} if name == "int8" else {"QuantizeLinear"})
    assert artifact.signature == plain["onnx"].signature  # limits and masks hold for it, too
    assert artifact.run(input_ids=[[1, 2, 3]]).shape == (1, 3, zoo.V)


def test_the_float_file_is_not_left_beside_it(tmp_path: Path) -> None:
    artifact = Int8Exporter.export(zoo.Bigram(), None, tmp_path / "only_int8.onnx", zoo.CONFIG)
    assert [file.name for file in tmp_path.iterdir()] == ["only_int8.onnx"]
    assert artifact.parity is not None
    assert artifact.parity.passed


class OneScore(nn.Module):
    """A regression: one number for a text."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(zoo.V, zoo.D), nn.Linear(zoo.D, 1)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(input_ids).mean(1))


def test_a_single_score_has_no_bits_to_be_judged_by(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"gives a single score, .* every file would pass"):
        Int8Exporter.export(OneScore(), None, tmp_path / "m.onnx", zoo.CONFIG)


def test_int8_collapse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ParityError, match=r"not kept, however much stays in float.*with 4 layers in float, .*COSTS TOO MUCH"
    ) as caught:
        utils.export(Sure((True,) * 12), ("int8",), tmp_path / "out", config=CONFIG)
    assert not caught.value.parity.passed
    assert not (tmp_path / "out").exists()


def test_a_collapse_is_no_reason_to_withhold_the_other_formats(tmp_path: Path) -> None:
    bundle = utils.export(Sure((True,) * 12), ("onnx", "int8"), tmp_path / "out", config=CONFIG)
    assert [artifact.format for artifact in bundle.artifacts] == ["onnx"]
    assert "COSTS TOO MUCH" in bundle.refused["int8"]
    assert bundle.manifest["refused"] == bundle.refused
    assert sorted(path.name for path in bundle.out.glob("*.onnx")) == ["model.onnx"]


def test_layers_that_lose_most_stay_in_float(tmp_path: Path) -> None:
    artifact = Int8Exporter.export(Sure((False, True, False)), None, tmp_path / "m.onnx", CONFIG)
    kept = artifact.facts["kept in float"].split(", ")
    assert len(kept) == 1
    layers = {layer.name: layer for layer in layers_of(artifact.path)}
    assert layers[kept[0]].kind == "MatMul"  # the loud step is still a float product
    assert artifact.parity is not None
    assert artifact.parity.cost[0].passed
    assert artifact.parity.cost[0].top1_agreement > 0.98


def test_noise_is_that_of_rounding(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    ONNXExporter().write(subject_of(Sure((False, True, False)), config=CONFIG), path)
    layers = layers_of(path)
    assert sorted(layer.kind for layer in layers) == ["Gather", "MatMul", "MatMul", "MatMul", "MatMul"]
    noise = noise_of(path, layers, [Signature("lm", ("input_ids",), V, V, 16).feeds(Shape(4, 16))])
    loud = max(noise, key=lambda name: noise[name])
    assert noise[loud] > 0.1  # 5,000 in 255 steps: numbers below 10 are gone
    assert all(value < 1e-3 for name, value in noise.items() if name != loud)


class WithoutMask(LogitsOnly):
    """Forgets to hand the mask on."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.adapted(input_ids, torch.ones_like(attention_mask)).logits


def test_a_float_file_that_is_not_the_model_is_never_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.export.onnx.LogitsOnly", WithoutMask)
    with pytest.raises(ParityError, match="onnx file of 'PostNorm' is not equal"):
        Int8Exporter.export(zoo.PostNorm(causal=True), None, tmp_path / "m.onnx", zoo.CONFIG)
    assert not list(tmp_path.iterdir())


class Convolutions(nn.Module):
    """Images to classes with no other weights than those of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 5, 3)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(pixel_values).relu()).mean((2, 3))


def test_convolutions_are_rounded_by_the_static_way_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Convolutions()
    with pytest.raises(ExportError, match="Conv is rounded by int8_static only"):
        Int8Exporter.export(model, None, tmp_path / "dynamic.onnx")
    artifact = StaticInt8Exporter.export(model, None, tmp_path / "static.onnx")
    assert artifact.facts["int8"] == "static, 2 layers rounded"


class Activation(nn.Module):
    """Logits without a weight that could be rounded."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(V))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(input_ids, V).float() * self.scale


def test_nothing_to_round_is_said(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no weights that int8 could round.*no MatMul"):
        Int8Exporter.export(Activation(), None, tmp_path / "m.onnx", CONFIG)
    assert not list(tmp_path.iterdir())


class Odd(nn.Module):
    """Beside a table and a head, weights that ONNX Runtime does not round: a scaled product, and a stack of matrices."""

    def __init__(self, stacked: bool) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(V, D), nn.Linear(D, 3)
        self.weight, self.bias = (
            nn.Parameter(torch.randn(*((4,) if stacked else ()), D, D)),
            nn.Parameter(torch.randn(D)),
        )

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.table(input_ids).mean(1)
        if self.weight.dim() == 3:
            return self.head((x[:, None, None] @ self.weight).mean((1, 2)))
        return self.head(torch.addmm(self.bias, x, self.weight, beta=2, alpha=0.5))


@pytest.mark.parametrize("exporter", [Int8Exporter, StaticInt8Exporter])
@pytest.mark.parametrize("stacked", [False, True])
def test_what_onnx_runtime_cannot_round_stays_in_float_and_is_not_counted(
    tmp_path: Path, exporter: type[Int8Exporter], stacked: bool
) -> None:
    torch.manual_seed(0)
    artifact = exporter.export(Odd(stacked), None, tmp_path, CONFIG)
    weights = [one for one in onnx.load(artifact.path).graph.initializer if len(one.dims) > 1]
    floats = [tuple(one.dims) for one in weights if one.data_type == onnx.TensorProto.FLOAT]
    assert ((4, D, D) if stacked else (D, D)) in floats
    assert artifact.facts["int8"] == f"{exporter.method}, {len(weights) - len(floats)} layers rounded"
    assert len(floats) < len(weights) == 3


def test_static_ranges_come_from_the_text(tmp_path: Path) -> None:
    """Calibrated on a text of two tokens only, ranges of the others are cut off: the text matters."""
    seen: list[int] = []

    class Tokenizer:
        def encode(self, text: str) -> list[int]:
            return [3 + ord(letter) % 2 for letter in text]

        def get_vocab_size(self) -> int:
            return V

    original = StaticInt8Exporter._samples

    def spy(self: StaticInt8Exporter, subject: object) -> list[dict[str, np.ndarray]]:
        found = original(self, subject)  # type: ignore[arg-type]
        seen.extend(int(token) for batch in found for token in batch["input_ids"].ravel())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StaticInt8Exporter, "_samples", spy)
        StaticInt8Exporter.export(Sure(), Tokenizer(), tmp_path / "m.onnx", CONFIG, validation_text="abba" * 40)
    assert set(seen) == {3, 4}


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.onnx"):
        Int8Exporter.export(zoo.Bigram(), None, tmp_path / "model.bin", zoo.CONFIG)
