"""TorchScript files: traced and scripted, equal to the model; what the fused path of attention does to a trace; no warnings."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import utils
from export import zoo
from utils.errors import ConfigError, ExportError, ParityError
from utils.export.artifact import Artifact
from utils.export.child import ChildRuntime
from utils.export.signature import MASK, Shape
from utils.export.subject import subject_of
from utils.export.torchscript import TorchScriptExporter


@pytest.fixture(scope="module")
def child() -> Iterator[ChildRuntime]:
    with ChildRuntime(threads=1) as runtime:
        yield runtime


def staged(model: nn.Module, folder: Path, child: ChildRuntime, method: str = "trace") -> Artifact:
    return TorchScriptExporter(method).stage(subject_of(model, config=zoo.CONFIG), folder / "staged", child)


@pytest.mark.parametrize(
    ("make", "method", "inputs"),
    [
        (zoo.Nano, "trace", ("input_ids",)),
        (zoo.PostNorm, "trace", ("input_ids", MASK)),
        (zoo.Encoder, "trace", ("input_ids", MASK)),
        (zoo.Recurrent, "trace", ("input_ids",)),
        (zoo.Bigram, "script", ("input_ids",)),
        (zoo.Recurrent, "script", ("input_ids",)),
    ],
)
def test_file_equals_model_at_every_shape(
    make: Callable[[], nn.Module], method: str, inputs: tuple[str, ...], tmp_path: Path, child: ChildRuntime
) -> None:
    artifact = staged(make(), tmp_path, child, method)
    assert artifact.parity.passed
    unpadded = {(row.batch, row.length) for row in artifact.parity.rows if row.padding == "none"}
    assert unpadded == {(batch, length) for batch in (1, 3) for length in (1, 7, 17, zoo.LIMIT)}
    assert artifact.traced_shape == (Shape(2, 11) if method == "trace" else None)
    assert artifact.facts["method"] == method
    assert artifact.signature.inputs == inputs


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
def test_torch_alone_opens_it(tmp_path: Path) -> None:
    model = zoo.Nano()
    path = TorchScriptExporter.export(model, tmp_path, zoo.CONFIG, validate=False)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(path)(input_ids=ids), model.eval()(ids), atol=1e-5, rtol=0)


class Branches(zoo.Bigram):
    """A trace keeps the branch that the example took; a script keeps both."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits = self.table(input_ids)
        if input_ids.shape[1] > 8:
            return 2 * logits
        return logits


def test_a_trace_that_lost_a_branch_is_refused_and_a_script_keeps_it(tmp_path: Path, child: ChildRuntime) -> None:
    with pytest.raises(ParityError, match=r"4 of 8 shapes differ; the first is batch 1 × length 1:") as caught:
        staged(Branches(), tmp_path, child)
    assert {row.length for row in caught.value.parity.rows if row.passed} == {17, 32}
    assert staged(Branches(), tmp_path, child, "script").parity.passed


def test_a_loop_over_the_length_is_refused(tmp_path: Path, child: ChildRuntime) -> None:
    class Loops(zoo.Bigram):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return torch.stack([self.table(input_ids[:, t]) for t in range(input_ids.shape[1])], dim=1)

    with pytest.raises(ParityError, match="8 of 8 shapes differ"):
        staged(Loops(), tmp_path, child)


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
def test_the_fast_path_of_attention_is_off_while_tracing(
    tmp_path: Path, child: ChildRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left on, the trace holds the fused kernel for inference, and the file is another one."""
    kernels = ("_transformer_encoder_layer_fwd", "_native_multi_head_attention")
    subject = subject_of(zoo.Encoder(), config=zoo.CONFIG)

    def graph(artifact: Artifact) -> str:
        return str(torch.jit.load(artifact).inlined_graph)

    off = TorchScriptExporter().stage(subject, tmp_path / "off", child)
    assert not any(kernel in graph(off) for kernel in kernels)
    assert torch.backends.mha.get_fastpath_enabled()  # and on again
    monkeypatch.setattr("utils.export.tracing.without_fast_path", contextlib.nullcontext)
    on = TorchScriptExporter().stage(subject, tmp_path / "on", child, validate=False)
    assert any(kernel in graph(on) for kernel in kernels)


@pytest.mark.parametrize("method", ["trace", "script"])
def test_nobody_is_told_that_it_is_deprecated(
    method: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    artifact = TorchScriptExporter.export(zoo.Bigram(), tmp_path, zoo.CONFIG, method=method, validate=False)
    artifact.run(input_ids=[[1, 2]])
    assert [str(warning.message) for warning in recwarn] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (zoo.PostNorm, 'cannot be scripted: its call needs a mask.*method="trace"'),
        (zoo.gpt2, "cannot be scripted: its call needs a mask"),
    ],
)
def test_what_cannot_be_scripted_says_why(make: Callable[[], nn.Module], words: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=words):
        TorchScriptExporter.export(make(), tmp_path / "new" / "m.pt", zoo.CONFIG, method="script")
    assert list(tmp_path.iterdir()) == []


def test_source_that_torchscript_does_not_know_is_refused(tmp_path: Path) -> None:
    class Starred(zoo.Bigram):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.table(*[input_ids])

    with pytest.raises(ExportError, match=r"(?s)'Starred' cannot be exported to TorchScript. Reason: "):
        TorchScriptExporter.export(Starred(), tmp_path / "new" / "m.pt", zoo.CONFIG, method="script")


def test_unknown_method() -> None:
    with pytest.raises(ConfigError, match="method='compile' is unknown; TorchScript has 'trace' and 'script'"):
        TorchScriptExporter.export(zoo.Bigram(), method="compile")


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    artifact = TorchScriptExporter.export(zoo.Bigram(), tmp_path, zoo.CONFIG, validate=False)
    np.testing.assert_array_equal(artifact.run(input_ids=[[1]]).shape, (1, 1, zoo.V))
    torn = tmp_path / "torn.pt"
    torn.write_bytes(artifact.path.read_bytes()[:-200])
    with pytest.raises(ExportError, match="torch cannot read"):
        Artifact("torchscript", torn).run(input_ids=[[1]])


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
@pytest.mark.parametrize("method", ["trace", "script"])
def test_no_path_of_this_machine_goes_along(method: str, tmp_path: Path) -> None:
    model = zoo.Bigram().eval()
    artifact = TorchScriptExporter.export(model, tmp_path / "model.pt", zoo.CONFIG, method=method)
    assert artifact.parity is not None and artifact.parity.passed
    archive = zipfile.ZipFile(artifact.path)
    home = str(Path(utils.__file__).parents[1]).encode()
    assert not [name for name in archive.namelist() if home in archive.read(name) or name.endswith(".debug_pkl")]
    ids = torch.tensor([[3, 1, 4]])
    extra = {"metadata.json": ""}
    torch.testing.assert_close(torch.jit.load(artifact.path, _extra_files=extra)(input_ids=ids), model(ids))
    assert b"format_version" in extra["metadata.json"]
