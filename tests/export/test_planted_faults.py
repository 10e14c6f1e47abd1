"""Files with a fault, made for real: each must be refused, and the same file without its fault must pass.

The faults are put into an ONNX graph that is right, or into what an exporter traces or saves.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

import utils
from export import zoo
from utils.adapters.model_adapter import adapt
from utils.errors import ExportError, ParityError, TokenizerError
from utils.export.artifact import Artifact
from utils.export.child import ChildRuntime
from utils.export.onnx import ONNXExporter
from utils.export.parity_report import ParityReport
from utils.export.safetensors_state import SafetensorsExporter
from utils.export.signature import Signature
from utils.export.subject import ExportSubject, LogitsOnly, subject_of
from utils.export.torchscript import TorchScriptExporter

Edit = Callable[[ModelProto], None]


@pytest.fixture(scope="module")
def child() -> Iterator[ChildRuntime]:
    with ChildRuntime(threads=1) as runtime:
        yield runtime


class Written:
    """A model, and its file as the exporter wrote it."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self.subject = subject_of(model, config=zoo.CONFIG)
        self.artifact = ONNXExporter().write(self.subject, folder / "model.onnx")


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Reads a mask on both sides; its head is tied to its embedding."""
    torch.manual_seed(0)
    return Written(zoo.PostNorm(), tmp_path_factory.mktemp("masked"))


class Edited(ONNXExporter):
    """Writes a file that was right, with an edit of its graph."""

    def __init__(self, good: Artifact, edit: Edit) -> None:
        super().__init__()
        self.good, self.edit = good, edit

    def write(self, subject: ExportSubject, path: Path) -> Artifact:
        model = onnx.load(self.good.path)
        self.edit(model)
        onnx.checker.check_model(model)  # the fault is one of meaning, not of form
        onnx.save(model, path)
        return Artifact("onnx", path, traced_shape=self.good.traced_shape, facts=self.good.facts)


def refusal(exporter: object, subject: ExportSubject, folder: Path, child: ChildRuntime) -> ParityReport:
    with pytest.raises(ParityError, match="not equal to the model and was not kept") as caught:
        exporter.stage(subject, folder / "staged", child)
    return caught.value.parity


def consumers(model: ModelProto, name: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if name in node.input]


def rewire(nodes: list[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        node.input[:] = [new if name == old else name for name in node.input]


def no_edit(model: ModelProto) -> None:
    pass


def drop_mask(model: ModelProto) -> None:
    """Every token counts as real, whatever the mask says; the input stays."""
    rewire(consumers(model, "attention_mask"), "attention_mask", "all_ones")
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape_of_ids"], ["all_ones"], value=one))
    model.graph.node.insert(0, helper.make_node("Shape", ["input_ids"], ["shape_of_ids"]))


def drop_mask_of_other_sequences(model: ModelProto) -> None:
    """The first sequence's mask is taken for all."""
    rewire(consumers(model, "attention_mask"), "attention_mask", "first_mask")
    zero = helper.make_tensor("zero", TensorProto.INT64, [1], [0])
    model.graph.initializer.append(zero)
    first = helper.make_node("Gather", ["attention_mask", "zero"], ["one_row"], axis=0)
    model.graph.node.insert(0, helper.make_node("Expand", ["one_row", "shape_of_ids"], ["first_mask"]))
    model.graph.node.insert(0, first)
    model.graph.node.insert(0, helper.make_node("Shape", ["input_ids"], ["shape_of_ids"]))


def second_output(model: ModelProto) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]:
    """Add the scores of another head of the same shape; returns both outputs."""
    (logits,) = model.graph.output
    other = helper.make_tensor_value_info("other", TensorProto.FLOAT, ["batch", "length", zoo.V])
    model.graph.node.append(helper.make_node("Neg", ["logits"], ["other"]))
    model.graph.output.append(other)
    return logits, other


def reorder_outputs(model: ModelProto) -> None:
    """The other head comes first and the names are right: readers who ask by name are served."""
    logits, other = (onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in second_output(model))
    del model.graph.output[:]
    model.graph.output.extend([other, logits])


def swap_outputs(model: ModelProto) -> None:
    """The other head is called logits."""
    second_output(model)
    for node in model.graph.node:
        swapped = {"logits": "other", "other": "logits"}
        node.output[:] = [swapped.get(name, name) for name in node.output]
        node.input[:] = [swapped.get(name, name) for name in node.input]


def untie_head(model: ModelProto) -> None:
    """The head gets a table of its own, freshly initialised; the embedding keeps the trained one."""
    (head,) = [node for node in model.graph.node if "logits" in node.output]
    (table,) = [tensor for tensor in model.graph.initializer if tensor.name in head.input]
    assert sorted(table.dims) == sorted((zoo.V, zoo.D))
    fresh = np.random.default_rng(0).normal(size=tuple(table.dims)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(fresh, "head.weight"))
    rewire([head], table.name, "head.weight")


def bake_length(model: ModelProto) -> None:
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[1].dim_value = 11


def bake_batch(model: ModelProto) -> None:
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 2


def cut_length(model: ModelProto) -> None:
    """The axes are free, and positions beyond the traced ones are those of the last one traced."""
    table = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("embedding_0_pos.weight"))
    values = numpy_helper.to_array(table).copy()
    values[11:] = values[10]
    table.CopyFrom(numpy_helper.from_array(values, table.name))


@pytest.mark.parametrize("edit", [no_edit, reorder_outputs])
def test_files_without_a_fault_pass(edit: Edit, masked: Written, tmp_path: Path, child: ChildRuntime) -> None:
    artifact = Edited(masked.artifact, edit).stage(masked.subject, tmp_path / "staged", child)
    assert artifact.parity.passed
    assert len(artifact.parity.rows) == 20


@pytest.mark.parametrize(
    ("edit", "failing"),
    [
        (drop_mask, lambda row: row.padding != "none"),
        (drop_mask_of_other_sequences, lambda row: row.padding != "none" and row.batch == 3),
        (swap_outputs, lambda row: True),
        (untie_head, lambda row: True),
        (bake_length, lambda row: True),
        (bake_batch, lambda row: True),
        (cut_length, lambda row: row.length > 11),
    ],
)
def test_faults_in_a_graph_are_refused(
    edit: Edit, failing: Callable, masked: Written, tmp_path: Path, child: ChildRuntime
) -> None:
    report = refusal(Edited(masked.artifact, edit), masked.subject, tmp_path, child)
    assert len(report.rows) == 20
    assert [row for row in report.rows if not row.passed] == [row for row in report.rows if failing(row)]


@pytest.mark.parametrize("free", [{0: "batch"}, {1: "length"}, {}])
def test_sizes_baked_by_the_exporter_are_refused(
    free: dict[int, str], tmp_path: Path, child: ChildRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = subject_of(zoo.Bigram(), config=zoo.CONFIG)
    monkeypatch.setattr(Signature, "axes_of", lambda self, name: free)
    report = refusal(ONNXExporter(), subject, tmp_path, child)
    assert "batch 1 × length 1" in report.verdict  # the traced one is 2 × 11: nothing that was compared runs
    assert not any(row.passed for row in report.rows)


class TwoHeads(nn.Module):
    """Scores for the next token, and scores of another head beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.next, self.other = nn.Embedding(zoo.V, zoo.V), nn.Embedding(zoo.V, zoo.V)

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.next(input_ids), "auxiliary": self.other(input_ids)}


class OtherHead(LogitsOnly):
    """Traces the head that does not count."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.adapted.model(input_ids)["auxiliary"]


class WithoutMask(LogitsOnly):
    """Forgets to hand the mask on."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.adapted(input_ids, torch.ones_like(attention_mask)).logits


def test_the_logits_of_the_wrong_head_are_refused(
    tmp_path: Path, child: ChildRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.export.torchscript.LogitsOnly", OtherHead)
    report = refusal(TorchScriptExporter(), subject_of(TwoHeads(), config=zoo.CONFIG), tmp_path, child)
    assert "8 of 8 shapes differ" in report.verdict


def test_a_mask_that_was_not_traced_is_refused(
    masked: Written, tmp_path: Path, child: ChildRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.export.torchscript.LogitsOnly", WithoutMask)
    report = refusal(TorchScriptExporter(), masked.subject, tmp_path, child)
    assert {row.padding for row in report.rows if not row.passed} == {"left", "right"}
    assert all(row.passed for row in report.rows if row.padding == "none")


class Branching(nn.Module):
    """Does something else where a token of that id is there; a trace keeps one of both ways."""

    def __init__(self, token: int, without: float, padding_idx: int | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(5000, 16, padding_idx=padding_idx)
        self.head, self.token, self.without = nn.Linear(16, 5000), token, without

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.table(input_ids)
        if (input_ids == self.token).any():
            x = x * (input_ids != self.token).unsqueeze(-1)
        else:
            x = x + self.without
        return self.head(x)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("token", "options"),
    [(0, {}), (3, {}), (4999, {}), (77, {"padding_idx": 77}), (1234, {})],
    ids=["lowest", "fourth", "highest", "padding row", "special token"],
)
def test_a_branch_on_special_ids_that_was_baked_is_refused(
    token: int, options: dict[str, int], tmp_path: Path, child: ChildRuntime
) -> None:
    subject = subject_of(Branching(token, 1.0, **options), config={"vocab_size": 5000, "max_seq_len": 32})
    subject = replace(subject, tokenizer=SimpleNamespace(all_special_ids=[1234]))
    report = refusal(TorchScriptExporter(), subject, tmp_path, child)
    assert any(row.passed for row in report.rows)  # the way that was traced


class Tied(nn.Module):
    """The usual two names of one table."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(zoo.V, zoo.D), nn.Linear(zoo.D, zoo.V, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(input_ids))


class Untied(SafetensorsExporter):
    """Saves a model whose head was initialised anew after it had been tied."""

    names: tuple[str, ...] = ("embed.weight", "head.weight")

    def write(self, subject: ExportSubject, path: Path) -> Artifact:
        from safetensors.torch import save_file

        trained = subject.adapted.model.embed.weight.detach().clone()
        tables = dict(zip(("embed.weight", "head.weight"), (trained, torch.randn_like(trained))))
        save_file({name: tables[name] for name in self.names}, path)
        return Artifact("safetensors", path)


def test_weights_that_are_no_longer_tied_are_refused(
    tmp_path: Path, child: ChildRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = subject_of(Tied(), config=zoo.CONFIG)
    assert SafetensorsExporter().stage(subject, tmp_path / "good", child).parity.passed
    with pytest.raises(ExportError, match=r"(?s)cannot be read back into the model.*head\.weight"):
        Untied().stage(subject, tmp_path / "both", child)
    monkeypatch.setattr(Untied, "names", ("head.weight",))  # as it is where the two were taken for one
    assert "8 of 8 shapes differ" in refusal(Untied(), subject, tmp_path, child).verdict


def test_a_tokenizer_of_more_entries_than_rows_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="62 entries, the model 61 embedding rows: ids 61 to 61 would fail"):
        utils.export(zoo.Bigram(), ("onnx",), tmp_path / "new", tokenizer=["x"] * 62, config=zoo.CONFIG)
    assert not (tmp_path / "new").exists()


def words(order: list[str]) -> object:
    """A tokenizer of 61 words, numbered in this order."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(order)}, unk_token=order[0]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_a_tokenizer_of_the_same_size_and_another_vocabulary_is_refused(tmp_path: Path) -> None:
    """What a model was trained with is known of a training result only."""
    names = [f"w{number}" for number in range(zoo.V)]
    result = SimpleNamespace(model=adapt(zoo.Bigram(), zoo.CONFIG), tokenizer=words(names))
    with pytest.raises(
        TokenizerError, match=r"other ids than the one that .Bigram. was trained with.*leave tokenizer= out"
    ):
        utils.export(result, ("onnx",), tmp_path / "new", tokenizer=words(names[::-1]))
    assert not (tmp_path / "new").exists()
    assert subject_of(result, tokenizer=words(names)).tokenizer is not result.tokenizer  # equal, and so accepted
    assert subject_of(result).tokenizer is result.tokenizer


def test_a_file_whose_weights_are_torn_is_refused(masked: Written, tmp_path: Path, child: ChildRuntime) -> None:
    class Torn(ONNXExporter):
        def write(self, subject: ExportSubject, path: Path) -> Artifact:
            content = masked.artifact.path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            return Artifact("onnx", path, traced_shape=masked.artifact.traced_shape)

    with pytest.raises(ExportError, match="cannot read"):
        Torn().stage(masked.subject, tmp_path / "staged", child)


def test_a_file_of_another_model_is_refused(masked: Written, tmp_path: Path, child: ChildRuntime) -> None:
    """Same class and sizes, other weights: what a folder that was mixed up holds."""

    class Other(ONNXExporter):
        def write(self, subject: ExportSubject, path: Path) -> Artifact:
            shutil.copy(masked.artifact.path, path)
            return replace(masked.artifact, path=path, files=(path,))

    torch.manual_seed(1)
    report = refusal(Other(), subject_of(zoo.PostNorm(), config=zoo.CONFIG), tmp_path, child)
    assert "20 of 20 shapes differ" in report.verdict
