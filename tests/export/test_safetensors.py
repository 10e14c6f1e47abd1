"""safetensors files: the weights alone, under the model's names, shared ones once; read back into a model that had lost all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file
from torch import nn
from torch.nn.utils import prune

from export import zoo
from utils.errors import ExportError, MissingPackageError, ParityError
from utils.export.artifact import Artifact
from utils.export.child import ChildRuntime
from utils.export.safetensors_state import SafetensorsExporter
from utils.export.signature import Signature
from utils.export.subject import ExportSubject, subject_of


class Tied(nn.Module):
    """Two names of one table, a buffer that is kept, one that is not, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(zoo.V, zoo.D), nn.Linear(zoo.D, zoo.V, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(3.0))
        self.register_buffer("offset", torch.tensor(2.0), persistent=False)
        self.register_buffer("steps", torch.tensor(7))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(input_ids)) * self.scale + self.offset + self.steps


@pytest.fixture(scope="module")
def child() -> Iterator[ChildRuntime]:
    with ChildRuntime() as runtime:  # asked for nothing: weights are read back here
        yield runtime


def staged(exporter: SafetensorsExporter, subject: ExportSubject, folder: Path, child: ChildRuntime) -> Artifact:
    return exporter.stage(subject, folder / "staged", child)


def test_shared_weights_are_stored_once_and_tied_again(tmp_path: Path, child: ChildRuntime) -> None:
    model = Tied()
    artifact = staged(SafetensorsExporter(), subject_of(model, config=zoo.CONFIG), tmp_path, child)
    assert artifact.parity.passed
    assert artifact.parity.max_abs_diff == 0
    stored = load_file(artifact.path)
    assert len(set(stored) & {"embed.weight", "head.weight"}) == 1
    assert set(stored) - {"embed.weight", "head.weight"} == {"scale", "steps"}
    assert artifact.size_bytes < 1.5 * 4 * zoo.V * zoo.D + 4096
    other = Tied()
    assert load_model(other, str(artifact.path)) == (set(), [])
    assert other.head.weight is other.embed.weight
    assert torch.equal(other.head.weight, model.embed.weight)


def test_weights_that_are_computed_from_others_are_no_obstacle(tmp_path: Path, child: ChildRuntime) -> None:
    """A pruned layer holds its weight as a tensor with a history, of which Python makes no copy."""
    model = nn.Sequential(nn.Embedding(zoo.V, zoo.D), nn.Linear(zoo.D, zoo.V))
    prune.l1_unstructured(model[1], "weight", 0.5)
    held = model[1].weight
    artifact = staged(SafetensorsExporter(), subject_of(model, config=zoo.CONFIG), tmp_path, child)
    assert artifact.parity.max_abs_diff == 0
    assert model[1].weight is held


def test_metadata_says_what_it_is(tmp_path: Path, child: ChildRuntime) -> None:
    artifact = staged(SafetensorsExporter(), subject_of(zoo.Bigram(), config=zoo.CONFIG), tmp_path, child)
    with safe_open(artifact.path, "pt") as file:
        facts = file.metadata()
    assert facts["format"] == "pt"  # what transformers asks for
    assert facts["model_class"] == "Bigram"
    assert Signature.from_json(facts["signature"]).vocab_size == zoo.V


def test_it_is_no_file_to_run(tmp_path: Path, child: ChildRuntime) -> None:
    artifact = staged(SafetensorsExporter(), subject_of(zoo.Bigram(), config=zoo.CONFIG), tmp_path, child)
    with pytest.raises(ExportError, match=r"holds weights and no model.*load_model\(model, path\)"):
        artifact.run(input_ids=[[1]])


def test_the_model_keeps_its_numbers(tmp_path: Path, child: ChildRuntime) -> None:
    model = Tied()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    staged(SafetensorsExporter(), subject_of(model, config=zoo.CONFIG), tmp_path, child)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Changed(SafetensorsExporter):
    """Saves the state after a change."""

    def __init__(self, change: object) -> None:
        super().__init__()
        self.change = change

    def write(self, subject: ExportSubject, path: Path) -> Artifact:
        state = {name: value.clone() for name, value in subject.adapted.model.state_dict().items()}
        self.change(state)
        save_file(state, path)
        return Artifact(self.format, path)


def nan(state: dict[str, torch.Tensor]) -> None:
    state["table.weight"][3, 4] = float("nan")


def last_bit(state: dict[str, torch.Tensor]) -> None:
    row = state["table.weight"][1]
    row[0] = torch.nextafter(row[0], torch.tensor(9.0))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda state: state.pop("table.weight"), ExportError, 'Missing key.*"table.weight"'),
        (lambda state: state.update(extra=torch.ones(1)), ExportError, 'Unexpected key.*"extra"'),
        (lambda state: state.update({"table.weight": torch.ones(2, 2)}), ExportError, "size mismatch"),
        (nan, ParityError, "NaN or infinity where the model does not"),
        (last_bit, ParityError, "shapes differ"),  # nothing may differ, not even by rounding
    ],
)
def test_other_weights_are_refused(
    change: object, error: type[ExportError], words: str, tmp_path: Path, child: ChildRuntime
) -> None:
    with pytest.raises(error, match=f"(?s){words}"):
        staged(Changed(change), subject_of(zoo.Bigram(), config=zoo.CONFIG), tmp_path, child)


def test_a_model_with_nan_weights_is_refused(tmp_path: Path, child: ChildRuntime) -> None:
    subject = subject_of(zoo.Bigram(), config=zoo.CONFIG)
    with torch.no_grad():
        subject.adapted.model.table.weight[3, 4] = float("nan")
    with pytest.raises(ParityError, match="the model itself gives NaN or infinity"):
        staged(SafetensorsExporter(), subject, tmp_path, child)


def test_a_torn_file_is_refused(tmp_path: Path, child: ChildRuntime) -> None:
    class Torn(SafetensorsExporter):
        def write(self, subject: ExportSubject, path: Path) -> Artifact:
            artifact = super().write(subject, path)
            path.write_bytes(path.read_bytes()[:-10])
            return artifact

    with pytest.raises(ExportError, match="cannot be read back into the model"):
        staged(Torn(), subject_of(zoo.Bigram(), config=zoo.CONFIG), tmp_path, child)


def test_weights_that_overlap_are_refused(tmp_path: Path, child: ChildRuntime) -> None:
    model = zoo.Bigram()
    whole = torch.randn(2 * zoo.V, zoo.V)
    model.table.weight = nn.Parameter(whole[: zoo.V])
    model.register_buffer("shifted", whole[1 : zoo.V + 1])
    with pytest.raises(ExportError, match="'Bigram' cannot be kept as safetensors"):
        staged(SafetensorsExporter(), subject_of(model, config=zoo.CONFIG), tmp_path, child)


def test_missing_package_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils._extras.is_installed", lambda package: package != "safetensors")
    with pytest.raises(MissingPackageError, match="A safetensors file needs the package 'safetensors'"):
        SafetensorsExporter()
