"""`torch.export`: the model as one `.pt2` file that torch opens without its source. Leaves the proof to `parity`."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from torch.export import Dim
from torch.fx.experimental import _config as symbolic

from utils.export.artifact import Artifact
from utils.export.exporter import Exporter, described, destination_of, traced_shape_for
from utils.export.parity import Tolerance, lengths_for
from utils.export.signature import Shape, Signature
from utils.export.subject import ExportSubject, LogitsOnly, subject_of
from utils.export.torch_runners import METADATA
from utils.export.tracing import recurrent_layers_as_loops, tracing

logger = logging.getLogger(__name__)


class TorchExportExporter(Exporter):
    """Writes `.pt2`.

    Example:
        >>> artifact = TorchExportExporter.export(model, "model.pt2", config)
        >>> torch.export.load(artifact).module()(input_ids=ids)     # elsewhere, with torch alone
    """

    format: ClassVar[str] = "pt2"
    file_name: ClassVar[str] = "model.pt2"
    tolerance: ClassVar[Tolerance] = Tolerance(
        max_abs_diff=1e-4,
        bits_per_byte=1e-3,
        reason="the same float32 kernels: only sums that the exporter regrouped run in another order",
    )

    @classmethod
    def export(
        cls, model: object, output_path: str | Path = "model.pt2", config: object = None, validate: bool = True
    ) -> Artifact:
        """Export one model to one file.

        Args:
            model: what `train`, `adapt` or `load_model` gave, or an `nn.Module`. It is left as it was.
            output_path: the file; an existing folder gets `model.pt2`.
            config: limits that the model does not tell itself.
            validate: prove the file equal to the model first, and keep it only then.

        Raises:
            ExportError: torch cannot capture the model; ParityError (a kind of it): the file is not equal to it.
            ConfigError: see `subject_of`, or another ending than `.pt2`.
        """
        destination = destination_of(output_path, cls.file_name)
        return cls().deliver(subject_of(model, config=config), destination, validate=validate)

    def write(self, subject: ExportSubject, path: Path) -> Artifact:
        """Capture and save. See `Exporter.write`."""
        traced = traced_shape_for(subject.signature)
        program = capture(subject, traced)
        facts = described(subject, traced)
        save_program(program, path, subject, facts)
        return Artifact(self.format, path, (path,), traced, facts)


def capture(subject: ExportSubject, traced: Shape) -> torch.export.ExportedProgram:
    """The model as torch's exported program, with free batch and lengths.

    Raises:
        ExportError: torch cannot capture it, or fixes a size.
    """
    with tracing(subject, "torch.export"), recurrent_layers_as_loops():
        model = LogitsOnly(subject.adapted).eval()
        try:
            program = _running_at_one(model, subject, traced)
        except Exception as error:  # noqa: BLE001 - told in the log; what the second way says is the reason that counts
            logger.debug("%s: sizes 0 and 1 are no longer told apart, after: %s", subject.name, error)
            with symbolic.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # as torch's ONNX exporter captures
                program = _captured(model, subject, traced)
    _open_at_the_limit(program, subject.signature)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # it holds paths of this machine
    return program


def save_program(
    program: torch.export.ExportedProgram, path: Path, subject: ExportSubject, facts: Mapping[str, str]
) -> None:
    """Write a program, with what is known about it.

    Raises:
        ExportError: torch cannot write it.
    """
    with tracing(subject, "torch.export"):
        torch.export.save(program, path, extra_files={METADATA: json.dumps(facts)})


def _open_at_the_limit(program: torch.export.ExportedProgram, signature: Signature) -> None:
    """Let the program run at the longest length, where the proof visits it.

    A table that forward cuts to the input's length, as a causal mask, is as long as the limit. Torch leaves out a cut that
    takes the whole, so it notes that it saw a shorter one; the cut is in the graph, and right at either length.
    """
    limit = signature.max_length
    if signature.takes_tokens and limit in lengths_for(signature):
        size = r"L\['\w+'\]\.size\(\)\[1\]"
        needless = re.compile(rf"{size} != {limit}|{limit} != {size}|{limit} != min\({limit}, {size}\)")
        guards = getattr(program, "_guards_code", [])
        program._guards_code = [guard for guard in guards if not needless.fullmatch(guard)]


def _captured(model: nn.Module, subject: ExportSubject, traced: Shape) -> torch.export.ExportedProgram:
    example = subject.example(traced)
    free = {name: dict.fromkeys(subject.signature.axes_of(name), Dim.DYNAMIC) for name in example}
    with torch.no_grad():  # a file is run, not trained; tracing what only gradients need takes half as long again
        return torch.export.export(model, (), kwargs=example, dynamic_shapes=free, strict=False)


def _running_at_one(model: nn.Module, subject: ExportSubject, traced: Shape) -> torch.export.ExportedProgram:
    """The program, proven to run at sizes of one.

    What a model computes beside its logits, such as its own loss, may refuse those sizes, and what refuses stays in the
    program as a guard. Where it does, the program is captured again from its own graph, without what leads to no logit.
    """
    program = _captured(model, subject, traced)
    try:
        _run_smallest(program, subject)
    except AssertionError:  # a guard
        module = program.module(check_guards=False)
        module.graph.eliminate_dead_code()
        module.recompile()
        program = _captured(module, subject, traced)
        _run_smallest(program, subject)
    return program


def _run_smallest(program: torch.export.ExportedProgram, subject: ExportSubject) -> None:
    signature = subject.signature
    length = signature.allowed_length(1) if signature.takes_tokens else None
    smallest = Shape(1, length, 1 if signature.has_decoder else None)
    with torch.no_grad():
        program.module()(**subject.example(smallest))
