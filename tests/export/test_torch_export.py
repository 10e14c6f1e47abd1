"""`.pt2` files: equal to the model, opened by torch alone, and refused in words where torch cannot capture the model."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from export import zoo
from utils.errors import ConfigError, ExportError, ParityError
from utils.export.artifact import Artifact
from utils.export.child import ChildRuntime
from utils.export.signature import MASK, Shape
from utils.export.subject import subject_of
from utils.export.torch_export import TorchExportExporter
from utils.export.tracing import experts_as_products


@pytest.fixture(scope="module")
def child() -> Iterator[ChildRuntime]:
    with ChildRuntime(threads=1) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(1)
    return zoo.PostNorm().train()


@pytest.fixture(scope="module")
def exported(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return TorchExportExporter.export(model, tmp_path_factory.mktemp("pt2"), zoo.CONFIG)


def test_file_equals_model_at_every_shape(exported: Artifact) -> None:
    rows = exported.parity.rows
    assert exported.parity.passed
    assert exported.path.name == "model.pt2"
    assert exported.traced_shape == Shape(2, 11)
    assert {(row.batch, row.length) for row in rows} == {(b, t) for b in (1, 3) for t in (1, 7, 17, zoo.LIMIT)}
    assert {row.padding for row in rows} == {"none", "left", "right"}
    assert max(row.max_abs_diff for row in rows) <= 1e-5  # the same kernels
    assert exported.signature.inputs == ("input_ids", MASK)
    assert exported.parity.greedy[0].same == 20


class Masked(nn.Module):
    """Cuts a causal mask that is as long as the limit, as nanoGPT does without fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(zoo.V, zoo.D), nn.Linear(zoo.D, zoo.V)
        self.register_buffer("bias", torch.ones(zoo.LIMIT, zoo.LIMIT).tril().view(1, zoo.LIMIT, zoo.LIMIT))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x, length = self.table(input_ids), input_ids.shape[1]
        scores = (x @ x.transpose(1, 2)).masked_fill(self.bias[:, :length, :length] == 0, -torch.inf)
        return self.head(scores.softmax(-1) @ x)


def test_a_table_that_is_cut_to_the_input_serves_its_whole_length(tmp_path: Path) -> None:
    artifact = TorchExportExporter.export(Masked(), tmp_path, zoo.CONFIG)
    ids = torch.arange(zoo.LIMIT)[None]
    module = torch.export.load(artifact).module()  # as elsewhere: with the file's own guards
    assert module(input_ids=ids).shape == (1, zoo.LIMIT, zoo.V)
    with pytest.raises(AssertionError, match="Guard failed"):
        module(input_ids=torch.zeros(1, zoo.LIMIT + 1, dtype=torch.long))


def test_torch_alone_opens_it(exported: Artifact, model: nn.Module, tmp_path: Path) -> None:
    ids = torch.arange(13).reshape(1, 13)
    torch.save(ids, tmp_path / "ids.pt")
    code = (
        "import sys, torch\n"
        "program = torch.export.load(sys.argv[1], extra_files=(extra := {'metadata.json': ''}))\n"
        "ids = torch.load(sys.argv[2])\n"
        "logits = program.module()(input_ids=ids, attention_mask=torch.ones_like(ids))\n"
        "assert not {'utils', 'transformers', 'export'} & set(sys.modules)\n"
        "torch.save(logits.detach(), sys.argv[3])\n"
        "print(extra['metadata.json'])"
    )
    files = [str(exported.path), str(tmp_path / "ids.pt"), str(tmp_path / "logits.pt")]
    run = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    with torch.no_grad():
        expected = model.eval()(ids)
    model.train()
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, atol=1e-5, rtol=0)
    facts = json.loads(run.stdout)
    assert facts == exported.facts
    assert facts["model_class"] == "PostNorm"


def test_no_path_of_this_machine_is_in_the_file(exported: Artifact) -> None:
    with zipfile.ZipFile(exported.path) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert b"metadata.json" in exported.path.read_bytes()
    assert b"site-packages" not in content
    assert str(Path(zoo.__file__).parent).encode() not in content


def test_the_model_is_left_as_it_was(exported: Artifact, model: nn.Module) -> None:
    assert all(module.training for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


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


class DropsFirst(zoo.Bigram):
    """Branches on a length of one, in a way that the model allows for."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits = self.table(input_ids)
        return logits if input_ids.shape[1] == 1 else logits + self.table.weight[0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Random, "the model gives other logits .*keeps a state, or draws at random"),
        (DropsFirst, "2 of 8 shapes differ.*batch 1 × length 1"),
    ],
)
def test_what_was_captured_and_differs_is_refused(
    make: type[nn.Module], words: str, tmp_path: Path, child: ChildRuntime
) -> None:
    with pytest.raises(ParityError, match=f"not equal to the model and was not kept: {words}"):
        TorchExportExporter().stage(subject_of(make(), config=zoo.CONFIG), tmp_path / "staged", child)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (Branches, ExportError, "(?s)'Branches' cannot be exported to torch.export.*data-dependent.*torch.where"),
        (Loops, ExportError, "(?s)'Loops' cannot be exported to torch.export.*Take sizes from the tensor"),
    ],
)
def test_what_cannot_be_exported_says_why_and_leaves_nothing(
    make: type[nn.Module], error: type[ExportError], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error, match=words):
        TorchExportExporter.export(make(), tmp_path / "new" / "model.pt2", {"vocab_size": zoo.V, "max_seq_len": 16})
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


class OwnLoss(zoo.Bigram):
    """Computes a loss beside its logits, which no length of one survives: it leads to no logit, and must leave no guard."""

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.table(input_ids)
        loss = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), input_ids[:, 1:])
        return {"loss": loss, "logits": logits}


def test_what_leads_to_no_logit_leaves_no_guard(tmp_path: Path, child: ChildRuntime) -> None:
    subject = subject_of(OwnLoss(), config=zoo.CONFIG)
    artifact = TorchExportExporter().stage(subject, tmp_path / "staged", child)
    assert {row.length for row in artifact.parity.rows if row.passed} == {1, 7, 17, 32}


def test_output_path_must_be_a_pt2_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.pt2"):
        TorchExportExporter.export(zoo.Bigram(), tmp_path / "model.pt", zoo.CONFIG)


def test_a_torn_file_is_refused(exported: Artifact, tmp_path: Path) -> None:
    torn = tmp_path / "model.pt2"
    torn.write_bytes(exported.path.read_bytes()[:-100])
    with pytest.raises(ExportError, match="torch cannot read"):
        Artifact("pt2", torn).run(input_ids=[[1]])


def test_experts_are_products_while_tracing_and_sorted_after() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_local_experts": 4}
    mixture = MixtralForCausalLM(
        MixtralConfig(vocab_size=9, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16, **small)
    ).eval()
    before, ids = mixture.get_experts_implementation(), torch.arange(9)[None]
    with torch.no_grad():
        expected = mixture(ids).logits
        with experts_as_products(mixture):
            assert mixture.config._experts_implementation == "batched_mm"
            inside = mixture(ids).logits
    assert mixture.get_experts_implementation() == before != {"": "batched_mm"}
    np.testing.assert_allclose(inside.numpy(), expected.numpy(), atol=1e-5)  # float32 in two orders of summation
