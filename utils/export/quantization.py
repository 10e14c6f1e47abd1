"""int8: the ONNX file with its matrices rounded to 256 steps, kept only where it costs next to nothing.

Two ways, both ONNX Runtime's own: "dynamic" rounds activations as they come, "static" by ranges that were measured on the
model's samples (the validation text, where there is one). Leaves what to keep in float to `rounding`, ranking layers to
`sensitivity` and judging to `parity`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from utils._extras import require
from utils.errors import ExportError
from utils.export.artifact import Artifact
from utils.export.child import ChildRuntime
from utils.export.exporter import traced_shape_for
from utils.export.onnx import EXTERNAL_DATA_ABOVE, ONNXExporter
from utils.export.rounding import RoundedExporter
from utils.export.runner import first_lines
from utils.export.sensitivity import Layer, layers_of, noise_of
from utils.export.subject import ExportSubject
from utils.export.tracing import chatter_in_the_log
from utils.progress import ProgressCallback


class Int8Exporter(RoundedExporter):
    """Writes int8 ONNX.

    Args:
        method: "dynamic", or "static" for runtimes and processors where ranges must be known beforehand.

    Example:
        >>> artifact = Int8Exporter.export(model, tokenizer, "model_int8.onnx", config, validation_text=text)
        >>> artifact.parity.cost[0].lost, artifact.facts["kept in float"]
    """

    format: ClassVar[str] = "int8"
    file_name: ClassVar[str] = "model_int8.onnx"
    method: ClassVar[str] = "dynamic"
    kinds: ClassVar[tuple[str, ...]] = ("MatMul", "Gemm", "Gather")

    def __init__(self) -> None:
        """Check that what int8 needs is installed; raises `MissingPackageError` as `ONNXExporter` does."""
        self._float = ONNXExporter()

    def write(self, subject: ExportSubject, path: Path) -> Artifact:
        """Round everything that can be, of a float file that is not proven. See `Exporter.write`; `stage` proves both."""
        with tempfile.TemporaryDirectory() as folder:
            return self._rounded(subject, self._float.write(subject, Path(folder) / "float.onnx").path, path, ())

    def _source(self, subject: ExportSubject, folder: Path, child: ChildRuntime, progress: ProgressCallback) -> Path:
        """The float file that is rounded, proven equal to the model: that of the same bundle, else one of its own."""
        of_the_bundle = folder.parent / ONNXExporter.format / ONNXExporter.file_name
        if of_the_bundle.is_file():  # what is not proven does not stay there
            return of_the_bundle
        own = folder.parent / f"{self.format}-float"
        return self._float.stage(subject, own, child, progress=progress).path

    def _noise(self, subject: ExportSubject, source: Path) -> dict[str, float]:
        return noise_of(source, self._layers(source), self._samples(subject))

    def _rounded(self, subject: ExportSubject, source: Path, path: Path, kept: Sequence[str]) -> Artifact:
        onnx = require("onnx", extra="export", feature="int8 export")
        layers = self._layers(source)
        chosen = [layer for layer in layers if layer.name not in kept]
        if not chosen:
            raise ExportError(
                f"{subject.name!r} has no weights that int8 could round: its file holds no MatMul, Gemm or Gather with "
                "weights of their own"
                + (", and Conv is rounded by int8_static only." if self.method == "dynamic" else " and no Conv.")
            )
        model = onnx.load(str(source))
        del model.graph.value_info[:]  # shapes that rounding changes; they are inferred anew
        with chatter_in_the_log():
            try:
                self._quantize(model, path, layers, chosen, subject)
            except Exception as error:  # its exceptions share no base class
                raise ExportError(
                    f"ONNX Runtime cannot round {subject.name!r} to int8: {type(error).__name__}: {first_lines(str(error))}"
                ) from error
        facts = self._mark(path, kept, len(chosen))
        beside = sorted(file for file in path.parent.glob(f"{path.name}.*"))
        return Artifact(self.format, path, (path, *beside), traced_shape_for(subject.signature), facts)

    def _quantize(
        self, model: Any, path: Path, layers: Sequence[Layer], chosen: Sequence[Layer], subject: ExportSubject
    ) -> None:
        """ONNX Runtime's dynamic quantization: weights by channel, activations by call."""
        from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

        quantize_dynamic(
            model,
            str(path),
            op_types_to_quantize=["MatMul", "Gather"],
            per_channel=True,
            reduce_range=True,  # 7 bits of weights: 8 overflow on processors without VNNI, such as Colab's
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_all_but(model, chosen),
            use_external_data_format=subject.weight_bytes() > EXTERNAL_DATA_ABOVE,
        )

    def _layers(self, source: Path) -> list[Layer]:
        return [layer for layer in layers_of(source) if layer.kind in self.kinds]

    def _mark(self, path: Path, kept: Sequence[str], rounded: int) -> dict[str, str]:
        """Write into the file what was done to it."""
        onnx = require("onnx", extra="export", feature="int8 export")
        model = onnx.load(str(path), load_external_data=False)
        facts = {prop.key: prop.value for prop in model.metadata_props if not prop.key.startswith("onnx.")}
        facts |= {"int8": f"{self.method}, {rounded} layers rounded", "kept in float": ", ".join(kept) or "none"}
        onnx.helper.set_model_props(model, facts)
        onnx.save(model, str(path))
        return facts


class StaticInt8Exporter(Int8Exporter):
    """Writes int8 ONNX whose activations have fixed ranges; convolutions are rounded too."""

    format: ClassVar[str] = "int8_static"
    file_name: ClassVar[str] = "model_int8_static.onnx"
    method: ClassVar[str] = "static"
    kinds: ClassVar[tuple[str, ...]] = ("MatMul", "Gemm", "Gather", "Conv")

    def _quantize(
        self, model: Any, path: Path, layers: Sequence[Layer], chosen: Sequence[Layer], subject: ExportSubject
    ) -> None:
        """ONNX Runtime's static quantization: ranges of activations from the samples."""
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        batches = self._samples(subject)

        class Reader(CalibrationDataReader):
            def get_next(self) -> dict[str, np.ndarray] | None:
                return batches.pop() if batches else None

        quantize_static(
            model,
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm", "Conv", "Gather"],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_all_but(model, chosen),
            use_external_data_format=subject.weight_bytes() > EXTERNAL_DATA_ABOVE,
        )


def _all_but(model: Any, chosen: Sequence[Layer]) -> list[str]:
    """Names of every node that stays in float; the quantizer calls a Gemm that it rewrites `<name>_MatMul`."""
    names = {layer.name for layer in chosen}
    return [form for node in model.graph.node if node.name not in names for form in (node.name, f"{node.name}_MatMul")]
