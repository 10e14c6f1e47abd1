"""ONNX: the model as one file for ONNX Runtime, with dynamic batch and length. Leaves the proof to `parity`.

Written by torch's dynamo exporter only: the older one freezes the length silently (pytorch issues 122321 and 110347).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

import utils
from utils._extras import require
from utils.errors import ExportError
from utils.export.artifact import Artifact
from utils.export.exporter import PRODUCER, Exporter, described, destination_of, traced_shape_for
from utils.export.parity import Tolerance
from utils.export.runner import first_lines
from utils.export.signature import DECODER_IDS, IDS, Shape, Signature
from utils.export.subject import ExportSubject, LogitsOnly, subject_of
from utils.export.tracing import tracing

EXTERNAL_DATA_ABOVE = 2**31 - 2**27
"""Bytes of weights above which they lie in `<file>.data`: a protobuf message ends at 2 GiB, and the graph needs room too."""


class ONNXExporter(Exporter):
    """Writes ONNX.

    Example:
        >>> artifact = ONNXExporter.export(model, tokenizer, "model.onnx", config)
        >>> artifact.run(input_ids=ids).shape, artifact.parity.passed
    """

    format: ClassVar[str] = "onnx"
    file_name: ClassVar[str] = "model.onnx"
    tolerance: ClassVar[Tolerance] = Tolerance(
        max_abs_diff=1e-4,
        bits_per_byte=1e-3,
        reason="float32 on both sides: sums run in another order, which costs about 1e-6 of the logits' size",
    )

    @classmethod
    def export(
        cls,
        model: object,
        tokenizer: object = None,
        output_path: str | Path = "model.onnx",
        config: object = None,
        validate: bool = True,
    ) -> Artifact:
        """Export one model to one file.

        Args:
            model: what `train`, `adapt` or `load_model` gave, or an `nn.Module`. It is left as it was.
            tokenizer: checked against the model's rows and named in the metadata.
            output_path: the file; an existing folder gets `model.onnx`.
            config: limits that the model does not tell itself.
            validate: prove the file equal to the model first, and keep it only then.

        Returns:
            The artifact; `artifact.parity` is the proof.

        Raises:
            MissingPackageError: onnx, onnxruntime or onnxscript is not installed.
            ExportError: the exporter cannot take the model; ParityError (a kind of it): the file is not equal to it.
            ConfigError, TokenizerError: see `subject_of`.
        """
        destination = destination_of(output_path, cls.file_name)
        return cls().deliver(subject_of(model, tokenizer=tokenizer, config=config), destination, validate=validate)

    def __init__(self) -> None:
        """Check that what ONNX export needs is installed.

        Raises:
            MissingPackageError: a package is missing; the message holds the install command.
        """
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require(package, extra="export", feature="ONNX export")

    def write(self, subject: ExportSubject, path: Path) -> Artifact:
        """Trace, convert, describe and check. See `Exporter.write`."""
        traced = traced_shape_for(subject.signature)
        program = convert(subject, traced)
        facts = {
            **described(subject, traced, "onnx", "onnxscript"),
            "opset": str(program.model.opset_imports.get("", "unknown")),
        }
        _describe(program, subject.signature, facts)
        program.save(str(path), external_data=subject.weight_bytes() > EXTERNAL_DATA_ABOVE)
        _check(path)
        beside = sorted(file for file in path.parent.iterdir() if file.name.startswith(path.name) and file != path)
        return Artifact(self.format, path, (path, *beside), traced, facts)


def convert(subject: ExportSubject, traced: Shape) -> Any:
    """Run torch's exporter; returns its `ONNXProgram`, which lies in memory only.

    Raises:
        ExportError: the exporter cannot take the model.
    """
    example, signature = subject.example(traced), subject.signature
    with tracing(subject, "ONNX"), torch.no_grad():
        return torch.onnx.export(
            LogitsOnly(subject.adapted).eval(),
            (),
            kwargs=example,
            dynamo=True,
            dynamic_shapes={name: signature.axes_of(name) for name in example},
            input_names=list(example),
            output_names=["logits"],
            verbose=False,
        )


def translate(subject: ExportSubject, program: torch.export.ExportedProgram) -> Any:
    """The same of a program that `torch.export` has captured already, and not simplified: for whether it can be, not for a file.

    Raises:
        ExportError: an operator has no counterpart in ONNX.
    """
    with tracing(subject, "ONNX"):
        return torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)


def _describe(program: Any, signature: Signature, facts: dict[str, str]) -> None:
    """Write the metadata, say the output's axes, and drop the stack traces, which hold paths of this machine."""
    ir = require("onnx_ir", extra="export", feature="ONNX export")
    model, (logits,) = program.model, program.model.graph.outputs
    for graph in (model.graph, *model.functions.values()):
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
    if len(logits.shape) == 3:  # a recurrent layer leaves the traced length in the declared output
        main = DECODER_IDS if signature.has_decoder else IDS
        length = signature.axes_of(main).get(1, 1)
        logits.shape = ir.Shape(["batch", length, logits.shape[2]])
    model.producer_name, model.producer_version = PRODUCER, utils.__version__
    model.metadata_props.update(facts)


def _check(path: Path) -> None:
    onnx = require("onnx", extra="export", feature="ONNX export")
    try:
        onnx.checker.check_model(str(path))  # by path, so that weights beside it are found
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"The exporter wrote a malformed ONNX file: {first_lines(str(error))}. Try another torch version."
        ) from error
