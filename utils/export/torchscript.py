"""TorchScript: the model for runtimes that know nothing newer. Legacy: torch has deprecated it; `.pt2` takes its place.

Leaves the proof to `parity`.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from utils._files import whole_file
from utils.errors import ConfigError, ExportError
from utils.export.artifact import Artifact
from utils.export.exporter import Exporter, described, destination_of, traced_shape_for
from utils.export.parity import Tolerance
from utils.export.signature import IDS, Shape
from utils.export.subject import ExportSubject, LogitsOnly, subject_of
from utils.export.torch_runners import METADATA
from utils.export.tracing import tracing

METHODS = ("trace", "script")


class TorchScriptExporter(Exporter):
    """Writes TorchScript, which is legacy: choose `.pt2` unless the place where it runs knows only TorchScript.

    The file holds no paths of the machine that wrote it; so an error inside it names operators, not lines of your source.

    Args:
        method: "trace" records one call; "script" translates the source of a model that is called with ids alone.

    Example:
        >>> artifact = TorchScriptExporter.export(model, "model.torchscript.pt", config, method="trace")
        >>> torch.jit.load(artifact)(input_ids=ids)
    """

    format: ClassVar[str] = "torchscript"
    file_name: ClassVar[str] = "model.torchscript.pt"
    tolerance: ClassVar[Tolerance] = Tolerance(
        max_abs_diff=1e-4,
        bits_per_byte=1e-3,
        reason="the same float32 kernels, some of them fused by TorchScript, whose sums run in another order",
    )

    @classmethod
    def export(
        cls,
        model: object,
        output_path: str | Path = "model.torchscript.pt",
        config: object = None,
        method: str = "trace",
        validate: bool = True,
    ) -> Artifact:
        """Export one model to one file.

        Args:
            model: what `train`, `adapt` or `load_model` gave, or an `nn.Module`. It is left as it was.
            output_path: the file; an existing folder gets `model.torchscript.pt`.
            config: limits that the model does not tell itself.
            method: "trace" or "script".
            validate: prove the file equal to the model first, and keep it only then.

        Raises:
            ExportError: TorchScript cannot hold the model; ParityError (a kind of it): the file is not equal to it.
            ConfigError: see `subject_of`, or an unknown method.
        """
        destination = destination_of(output_path, cls.file_name, any_ending=True)
        return cls(method).deliver(subject_of(model, config=config), destination, validate=validate)

    def __init__(self, method: str = "trace") -> None:
        if method not in METHODS:
            raise ConfigError(f"method={method!r} is unknown; TorchScript has {' and '.join(map(repr, METHODS))}.")
        self.method = method

    def write(self, subject: ExportSubject, path: Path) -> Artifact:
        """Trace or script, and save. See `Exporter.write`."""
        traced = traced_shape_for(subject.signature) if self.method == "trace" else None
        facts = {**described(subject, traced), "method": self.method}
        with tracing(subject, "TorchScript"), torch.no_grad():
            module = _scripted(subject) if traced is None else _traced(subject, traced)
            torch.jit.save(module, str(path), _extra_files={METADATA: json.dumps(facts)})
        _without_source_ranges(path)
        return Artifact(self.format, path, (path,), traced, facts)


def _without_source_ranges(path: Path) -> None:
    """Write the archive anew without `*.debug_pkl`: they hold paths of this machine, and only messages of errors use them."""
    with zipfile.ZipFile(path) as before, whole_file(path) as stream, zipfile.ZipFile(stream, "w") as after:
        for record in before.infolist():
            if not record.filename.endswith(".debug_pkl"):
                _copy_record(before, after, record)


def _copy_record(before: zipfile.ZipFile, after: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    """Copy one file between archives, a piece at a time; its date is the same on every day."""
    anew = zipfile.ZipInfo(record.filename)
    anew.file_size = record.file_size
    with before.open(record) as source, after.open(anew, "w") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _traced(subject: ExportSubject, traced: Shape) -> Any:
    model = LogitsOnly(subject.adapted).eval()
    return torch.jit.trace(model, example_kwarg_inputs=subject.example(traced), strict=False, check_trace=False)


class _IdsOnly(nn.Module):
    """Gives the one argument of a scripted model its name in every file."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, T) → (B, T, V)."""
        logits: torch.Tensor = self.model(input_ids)  # TorchScript knows no `typing.cast`
        return logits


def _scripted(subject: ExportSubject) -> Any:
    """The model's own source translated; only models whose call needs nothing around it can be."""
    contract = subject.adapted.contract
    beyond = {
        "a mask": subject.signature.takes_mask,
        "other inputs than ids": subject.signature.inputs[0] != IDS or len(subject.signature.inputs) > 1,
        "built arguments": bool(contract.built or contract.constants or contract.label_name),
        "another layout": contract.time_first or contract.packed or contract.encoding != "ids",
        "logits inside a larger output": bool(contract.logits.path),
    }
    needed = [what for what, is_so in beyond.items() if is_so]
    if needed:
        raise ExportError(
            f"{subject.name!r} cannot be scripted: its call needs {', '.join(needed)}, which only tracing records. Use "
            'method="trace".'
        )
    return torch.jit.script(_IdsOnly(torch.jit.script(subject.adapted.model.eval())))
