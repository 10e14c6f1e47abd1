"""ONNX files against their models, and what happens where none can be made. Parity of all kinds of model stands here."""

from __future__ import annotations

import json
import logging
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from packaging.version import Version
from torch import nn

import utils
import utils.examples
from export import zoo
from utils.errors import ConfigError, ExportError, MissingPackageError, ParityError, TokenIdError
from utils.export import ONNXExporter
from utils.export.artifact import Artifact
from utils.export.exporter import Exporter
from utils.export.signature import Shape, Signature
from utils.export.torch_export import TorchExportExporter
from utils.export.torchscript import TorchScriptExporter

RECURRENT = pytest.mark.skipif(
    Version(Version(torch.__version__).base_version) < Version("2.13"),
    reason="older exporters unroll an LSTM at the traced length",
)
MODELS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "post-norm": (zoo.PostNorm, {"left", "right"}),
    "post-norm causal": (lambda: zoo.PostNorm(causal=True), {"left"}),
    "nanoGPT": (zoo.Nano, set()),
    "encoder": (zoo.Encoder, {"left", "right"}),
    "GPT-2": (zoo.gpt2, {"left"}),
    "Llama": (zoo.llama, {"left"}),
}


@pytest.mark.parametrize("name", [*MODELS, pytest.param("LSTM", marks=RECURRENT)])
def test_file_equals_model_at_every_shape(name: str, tmp_path: Path) -> None:
    make, sides = MODELS.get(name, (zoo.Recurrent, set()))
    artifact = ONNXExporter.export(make(), None, tmp_path / "model.onnx", zoo.CONFIG)
    rows = artifact.parity.rows
    assert artifact.parity.passed
    assert max(row.max_abs_diff for row in rows) <= 1e-4  # float32: measured 6e-6 at most here
    unpadded = {(row.batch, row.length) for row in rows if row.padding == "none"}
    assert unpadded == {(batch, length) for batch in (1, 3) for length in (1, 7, 17, zoo.LIMIT)}
    assert artifact.traced_shape == Shape(2, 11)
    assert {row.padding for row in rows} - {"none"} == sides
    assert artifact.parity.greedy[0].same == 20
    assert artifact.signature.inputs == (("input_ids", "attention_mask") if sides else ("input_ids",))


@RECURRENT
@pytest.mark.slow  # four exports
def test_a_recurrent_layer_is_exported_a_second_time_in_the_same_process(tmp_path: Path) -> None:
    for formats in (("onnx",), ("pt2", "onnx"), ("onnx",)):
        bundle = utils.export(zoo.Recurrent(), formats, tmp_path / "out", config=zoo.CONFIG)
        assert bundle.refused.keys().isdisjoint(formats)


def test_the_bundled_export_is_equal_at_its_own_size(tmp_path: Path) -> None:
    adapted = utils.adapt(utils.load_model(utils.examples.path()))
    artifact = ONNXExporter.export(adapted, None, tmp_path / "model.onnx")
    differences = {(row.batch, row.length): row.max_abs_diff for row in artifact.parity.rows if row.padding == "none"}
    asked = {(batch, length) for batch in (1, 3) for length in (1, 7, adapted.contract.max_length)}
    assert asked <= set(differences) and (3, 128) in asked
    assert (artifact.traced_shape.batch, artifact.traced_shape.length) not in differences
    # absolute, whatever the size of the logits; float32 in another order of summation
    assert {shape: d for shape, d in differences.items() if not d <= 1e-4} == {}


@pytest.fixture(scope="module")
def nano() -> nn.Module:
    torch.manual_seed(1)
    return zoo.Nano()


@pytest.fixture(scope="module")
def exported(nano: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return ONNXExporter.export(nano, None, tmp_path_factory.mktemp("nano") / "model.onnx", zoo.CONFIG)


def test_reloaded_file_answers_as_the_model(nano: nn.Module, exported: Artifact) -> None:
    again = Artifact("onnx", exported.path)  # nothing but the path: everything else comes from the file
    ids = torch.randint(0, zoo.V, (5, 23))
    with torch.no_grad():
        expected = nano.eval()(ids).numpy()
    for given in (ids, ids.numpy(), ids.tolist(), ids.int()):
        np.testing.assert_allclose(
            again.run(input_ids=given), expected, atol=1e-4
        )  # float32 in two orders of summation


def test_metadata_lets_a_finder_know_what_it_is(exported: Artifact) -> None:
    facts = exported.runner.facts
    assert {"model_class": "Nano", "task": "lm", "traced_shape": "batch 2 × length 11"}.items() <= facts.items()
    assert exported.signature == Signature("lm", ("input_ids",), zoo.V, zoo.V, zoo.LIMIT)
    assert json.loads(facts["signature"])["max_length"] == zoo.LIMIT  # for readers without this package
    assert re.fullmatch(r"[0-9a-f]{64}", facts["weights_sha256"])
    assert int(facts["opset"]) >= 17
    assert facts["torch"] == torch.__version__
    assert dict(facts) == exported.facts
    model = onnx.load(exported.path)
    axes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert axes == [["batch", "length"], ["batch", "length", zoo.V]]
    assert [value.name for value in model.graph.output] == ["logits"]


def test_no_path_of_this_machine_is_in_the_file(exported: Artifact) -> None:
    content = exported.path.read_bytes()
    assert b"site-packages" not in content
    assert str(Path(zoo.__file__).parent).encode() not in content


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        ({}, ConfigError, "needs input_ids"),
        ({"input_ids": [1, 2]}, ConfigError, r"shape \(batch, length\)"),
        ({"input_ids": [[0.5]]}, ConfigError, "whole numbers"),
        ({"input_ids": np.zeros((1, 0), dtype=int)}, ConfigError, "at least 1 × 1"),
        ({"input_ids": [[1, 61]]}, TokenIdError, "61 does not fit.*0 to 60"),
        ({"input_ids": [[1, -1]]}, TokenIdError, "-1 does not fit"),
        ({"input_ids": [[1] * 33]}, TokenIdError, "33 tokens long.*at most 32"),
        ({"input_ids": [[1, 2]], "attention_mask": [[0, 1]]}, ConfigError, "takes no attention_mask"),
        ({"input_ids": [[1]], "labels": [[1]]}, ConfigError, "no input labels; it takes input_ids"),
    ],
)
def test_run_refuses_what_the_model_would_refuse(
    exported: Artifact, inputs: dict[str, object], error: type, words: str
) -> None:
    with pytest.raises(error, match=words):
        exported.run(**inputs)


def test_a_mask_of_ones_changes_nothing(exported: Artifact) -> None:
    np.testing.assert_array_equal(
        exported.run(input_ids=[[1, 2]], attention_mask=[[1, 1]]), exported.run(input_ids=[[1, 2]])
    )


def test_artifact_travels_to_another_process(exported: Artifact) -> None:
    import pickle

    exported.run(input_ids=[[1]])  # the session is open now and must stay behind
    again = pickle.loads(pickle.dumps(exported))
    np.testing.assert_array_equal(again.run(input_ids=[[4, 2]]), exported.run(input_ids=[[4, 2]]))


def test_views_tell_the_traced_shape_and_escape(exported: Artifact) -> None:
    assert "batch 2 × length 11" in exported.summary()
    assert "equal at all 8 shapes" in exported.summary()
    shown = Artifact("onnx", exported.path, facts={"model_name": "<img onerror=x>"})._repr_html_()
    assert "<img" not in shown


def test_model_and_random_states_are_left_as_they_were(tmp_path: Path) -> None:
    model = zoo.PostNorm().train()
    model.embedding_0_dropout.eval()  # a mode of one's own must survive as well
    model.layernorm_0.weight.grad = torch.ones(zoo.D)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    fast_path, grad = torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled()
    ONNXExporter.export(model, None, tmp_path / "model.onnx", zoo.CONFIG, validate=False)
    assert model.training
    assert model.mhsa_0.training
    assert not model.embedding_0_dropout.training
    assert torch.equal(model.layernorm_0.weight.grad, torch.ones(zoo.D))
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    assert (torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled()) == (fast_path, grad)


def test_export_is_silent_and_keeps_what_was_said(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    with caplog.at_level(logging.DEBUG, logger="utils.export"):
        ONNXExporter().export(zoo.Bigram(), None, tmp_path, zoo.CONFIG)  # an instance, and a folder, serve as well
    assert (tmp_path / "model.onnx").is_file()
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
    assert "torch.onnx" in caplog.text


class Branches(zoo.Bigram):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits = self.table(input_ids)
        return 2 * logits if logits.sum() > 0 else logits


class Loops(zoo.Bigram):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.table(input_ids[:, t]) for t in range(input_ids.shape[1])], dim=1)


class Random(zoo.Bigram):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.table(input_ids) + torch.rand(1)


class Exotic(zoo.Bigram):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.table(input_ids) + torch.linalg.matrix_exp(self.table.weight)[0]


class Infinite(zoo.Bigram):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.table(input_ids) / 0.0


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (Branches, ExportError, "(?s)'Branches' cannot be exported.*data-dependent.*torch.where"),
        (Loops, ExportError, "(?s)static shape of 11.*Take sizes from the tensor"),
        (Exotic, ExportError, "(?s)matrix_exp.*no ONNX counterpart"),
        (Random, ParityError, "(?s)not equal to the model and was not kept.*keeps a state, or draws at random"),
        (Infinite, ParityError, "the model itself gives NaN or infinity"),
    ],
)
def test_what_cannot_be_exported_says_why_and_leaves_nothing(
    make: type[nn.Module], error: type[ExportError], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error, match=words) as caught:
        ONNXExporter.export(make(), None, tmp_path / "new" / "model.onnx", {"vocab_size": zoo.V, "max_seq_len": 16})
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    if error is ParityError:
        assert not caught.value.parity.passed


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_short_limits(limit: int, tmp_path: Path) -> None:
    artifact = ONNXExporter.export(zoo.Bigram(), None, tmp_path / "model.onnx", {"max_seq_len": limit})
    assert artifact.parity.passed
    assert max(row.length for row in artifact.parity.rows) == limit
    assert artifact.parity.greedy[0].tokens == limit - max(1, limit // 2) + 1


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.export.onnx.EXTERNAL_DATA_ABOVE", 1000)
    artifact = ONNXExporter.export(zoo.Bigram(128), None, tmp_path / "model.onnx", {"max_seq_len": 16})
    assert artifact.parity.passed
    assert [file.name for file in artifact.files] == ["model.onnx", "model.onnx.data"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert Artifact("onnx", artifact.path).run(input_ids=[[3]]).shape == (1, 1, 128)  # found again after the move


def test_large_logits_are_allowed_their_rounding(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(zoo.V, 256), nn.Linear(256, zoo.V))
    with torch.no_grad():
        model[1].weight.mul_(3000)
    artifact = ONNXExporter.export(model, None, tmp_path / "model.onnx", SimpleNamespace(**zoo.CONFIG))
    assert artifact.parity.max_abs_diff > 1e-4  # equal up to rounding: the ratio to the logits' size is 1e-7
    assert artifact.parity.passed


def test_other_precisions_are_exported_in_float32_and_say_so(tmp_path: Path) -> None:
    model = zoo.Bigram().to(torch.bfloat16)
    artifact = ONNXExporter.export(model, None, tmp_path / "model.onnx", zoo.CONFIG)
    assert artifact.facts["precision"] == "float32 (copied from bfloat16 on cpu)"
    assert artifact.run(input_ids=[[1]]).dtype == np.float32
    assert model.table.weight.dtype == torch.bfloat16


def test_output_path_must_be_an_onnx_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.onnx"):
        ONNXExporter.export(zoo.Bigram(), None, tmp_path / "model.pt", zoo.CONFIG)


@pytest.mark.parametrize(
    ("exporter", "ending"), [(ONNXExporter, ".onnx"), (TorchExportExporter, ".pt2"), (TorchScriptExporter, ".pt")]
)
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("file/model", r"file is a file; name a file in a folder"),
        ("x" * 300, r"can be no file: .*too long"),
        ("a\0b", r"can be no file: .*null"),
        (None, r"output_path=None can be no file"),
        pytest.param(
            "/proc/model",
            r"Nothing can be written into /proc",
            marks=pytest.mark.skipif(not Path("/proc").is_dir(), reason="Linux"),
        ),
    ],
)
def test_output_path_must_be_a_place_for_a_file(
    exporter: type[Exporter], ending: str, path: str | None, words: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    given = None if path is None else tmp_path / f"{path}{ending}"
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        exporter.export(zoo.Bigram(), output_path=given, config=zoo.CONFIG)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_missing_package_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils._extras.is_installed", lambda package: package != "onnxscript")
    with pytest.raises(MissingPackageError, match=r"ONNX export needs the package 'onnxscript'.*\[export\]"):
        ONNXExporter()


def test_files_that_are_no_onnx_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="There is no onnx file"):
        Artifact("onnx", tmp_path / "absent.onnx").run(input_ids=[[1]])
    (tmp_path / "torn.onnx").write_bytes(b"\x08\x07not onnx")
    with pytest.raises(ExportError, match="cannot read"):
        Artifact("onnx", tmp_path / "torn.onnx").run(input_ids=[[1]])


def test_tolerance_is_the_documented_one() -> None:
    assert ONNXExporter.tolerance.max_abs_diff == 1e-4
    assert math.isclose(ONNXExporter.tolerance.bits_per_byte, 1e-3)
