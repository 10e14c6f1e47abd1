"""ONNX: the model as one file for ONNX Runtime, with dynamic batch and length. Leaves the proof to `parity`.

Written by torch's dynamo exporter only: the older one freezes the length silently (pytorch issues 122321 and 110347).
"""

from __future__ import annotations

import contextlib
import io
import logging
import platform
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

import utils
from utils._extras import require
from utils.errors import ConfigError, ExportError
from utils.export.artifact import Artifact
from utils.export.exporter import Exporter, traced_shape_for
from utils.export.parity import Tolerance
from utils.export.subject import ExportSubject, LogitsOnly, subject_of, undisturbed

logger = logging.getLogger(__name__)

PRODUCER = "transformer-builder-colab"
EXTERNAL_DATA_ABOVE = 2**31 - 2**27
"""Bytes of weights above which they lie in `<file>.data`: a protobuf message ends at 2 GiB, and the graph needs room too."""

_TALKATIVE = ("torch", "onnxscript", "onnx_ir")

_ADVICE = (
    (
        r"static shape|specializ|Dim\.DYNAMIC|[Cc]onstraints violated|ConstraintViolation",
        "forward fixes its batch or length. Take sizes from the tensor (x.shape[1]) and not from numbers, and avoid Python "
        "loops over the length. A recurrent layer (nn.LSTM, nn.GRU) needs torch 2.13 for a dynamic length.",
    ),
    (
        r"data-dependent|DataDependent|\.item\(\)|vmap",
        "forward decides by the values of a tensor. Replace `if`, `.item()` and indexing by values with torch.where or a mask.",
    ),
    (
        r"No ONNX function|DispatchError|ConversionError|decompos",
        "An operator has no ONNX counterpart. Write it with basic operations (matmul, softmax, where, …).",
    ),
)
_ADVICE_OTHERWISE = (
    "Reduce forward to tensor operations until torch.export.export(model, (input_ids,)) runs; set the log level of "
    "'utils.export' to DEBUG to see everything that the exporter said."
)


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
        destination = Path(output_path)
        if destination.is_dir():
            destination = destination / cls.file_name
        if destination.suffix != ".onnx":
            raise ConfigError(f"output_path must end in .onnx; got {str(output_path)!r}.")
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
        traced = traced_shape_for(subject.max_length)
        program = _convert(subject, traced)
        facts = _metadata(subject, traced, program)
        _describe(program, subject, facts)
        program.save(str(path), external_data=subject.weight_bytes() > EXTERNAL_DATA_ABOVE)
        _check(path)
        beside = sorted(file for file in path.parent.iterdir() if file.name.startswith(path.name) and file != path)
        return Artifact(self.format, path, (path, *beside), traced, facts)

    def open(self, path: Path) -> OnnxRunner:
        """Open a file with ONNX Runtime. See `Exporter.open`."""
        return OnnxRunner(path)


class OnnxRunner:
    """An ONNX file, opened on the CPU with as many threads as torch uses."""

    def __init__(self, path: Path) -> None:
        ort = require("onnxruntime", extra="export", feature="Running an ONNX file")
        if not path.is_file():
            raise ExportError(f"There is no ONNX file at {path}.")
        options = ort.SessionOptions()
        options.log_severity_level = 4  # it prints every error that it also raises
        options.intra_op_num_threads = torch.get_num_threads()
        # Idle threads must sleep: they would take the cores from the model that they are compared with.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class
            raise ExportError(f"ONNX Runtime cannot read {path}: {error}") from error
        self.input_names: tuple[str, ...] = tuple(given.name for given in self._session.get_inputs())
        self.metadata: Mapping[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def run(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """Logits (B, T, V) for arrays (B, T).

        Raises:
            ExportError: ONNX Runtime refuses the inputs or fails.
        """
        try:
            return self._session.run(["logits"], dict(feeds))[0]
        except Exception as error:  # its exceptions share no base class
            shapes = {name: value.shape for name, value in feeds.items()}
            raise ExportError(f"ONNX Runtime fails for {shapes}: {_first_lines(str(error))}") from error


def _convert(subject: ExportSubject, traced: tuple[int, int]) -> Any:
    """Run torch's exporter; returns its `ONNXProgram`."""
    ids = torch.arange(traced[0] * traced[1]).reshape(traced) % subject.vocab_size
    example = {name: ids if name == "input_ids" else torch.ones_like(ids) for name in subject.input_names}
    # Where the limit is one token, the length is no variable.
    axes = {0: "batch", 1: "length"} if subject.max_length > 1 else {0: "batch"}
    with undisturbed(subject.adapted), _without_fast_path(), _chatter_in_the_log():
        try:
            return torch.onnx.export(
                LogitsOnly(subject.adapted).eval(),
                (),
                kwargs=example,
                dynamo=True,
                dynamic_shapes=dict.fromkeys(example, axes),
                input_names=list(example),
                output_names=["logits"],
                verbose=False,
            )
        except Exception as error:  # the exporter lets through whatever the model's code raises
            raise ExportError(_explain(subject.name, error)) from error


def _describe(program: Any, subject: ExportSubject, facts: dict[str, str]) -> None:
    """Write the metadata, say the output's axes, and drop the stack traces, which hold paths of this machine."""
    ir = require("onnx_ir", extra="export", feature="ONNX export")
    model, (logits,) = program.model, program.model.graph.outputs
    for graph in (model.graph, *model.functions.values()):
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
    if len(logits.shape) == 3:  # a recurrent layer leaves the traced length in the declared output
        length = "length" if subject.max_length > 1 else 1
        logits.shape = ir.Shape(["batch", length, logits.shape[2]])
    model.producer_name, model.producer_version = PRODUCER, utils.__version__
    model.metadata_props.update(facts)


def _metadata(subject: ExportSubject, traced: tuple[int, int], program: Any) -> dict[str, str]:
    """What a person who finds the file later needs to know about it; plain strings, no dates, so that it is repeatable."""
    versions = {
        name: require(name, extra="export", feature="ONNX export").__version__ for name in ("onnx", "onnxscript")
    }
    return {
        **subject.facts,
        "format_version": "1",
        "traced_batch": str(traced[0]),
        "traced_length": str(traced[1]),
        "opset": str(program.model.opset_imports.get("", "unknown")),
        "torch": torch.__version__,
        "python": platform.python_version(),
        **versions,
        PRODUCER: utils.__version__,
    }


def _check(path: Path) -> None:
    onnx = require("onnx", extra="export", feature="ONNX export")
    try:
        onnx.checker.check_model(str(path))  # by path, so that weights beside it are found
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"The exporter wrote a malformed ONNX file: {_first_lines(str(error))}. Try another torch version."
        ) from error


@contextlib.contextmanager
def _without_fast_path() -> Iterator[None]:
    """Trace `nn.MultiheadAttention` as the maths that it is: its fused kernel for inference has no ONNX counterpart."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Forwarder(logging.Handler):
    """Hands records of other packages on to our log, as debug information."""

    def emit(self, record: logging.LogRecord) -> None:
        logger.debug("%s: %s", record.name, record.getMessage())


def _talkers() -> list[logging.Logger]:
    """The exporter's loggers, and those below them that show their records themselves."""
    below = [
        name for name in logging.root.manager.loggerDict if name.startswith(tuple(f"{top}." for top in _TALKATIVE))
    ]
    return [logging.getLogger(top) for top in _TALKATIVE] + [t for t in map(logging.getLogger, below) if t.handlers]


@contextlib.contextmanager
def _chatter_in_the_log() -> Iterator[None]:
    """Send what the exporter prints, logs and warns to our log instead of the screen.

    Where it fails it prints whole graphs. The redirection holds for the process, as long as the tracing runs.
    """
    printed = io.StringIO()
    talkers = _talkers()
    before = [(talker.handlers, talker.propagate) for talker in talkers]
    for talker in talkers:
        talker.handlers, talker.propagate = [_Forwarder()], False
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
        ):
            warnings.simplefilter("always")
            yield
    finally:
        for talker, (handlers, propagate) in zip(talkers, before):
            talker.handlers, talker.propagate = handlers, propagate
        if printed.getvalue().strip():
            logger.debug("printed: %s", printed.getvalue())
        for warning in caught:
            logger.debug("%s: %s", warning.category.__name__, warning.message)


def _explain(name: str, error: BaseException) -> str:
    """The exporter's reason, without its essay, and what to do about it."""
    deepest = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__
    everything = f"{error}\n{type(deepest).__name__}: {deepest}"
    advice = next((text for pattern, text in _ADVICE if re.search(pattern, everything)), _ADVICE_OTHERWISE)
    return f"{name!r} cannot be exported to ONNX. Reason: {type(deepest).__name__}: {_first_lines(str(deepest))}\nWhat to do: {advice}"


def _first_lines(text: str, count: int = 4) -> str:
    """The first lines of a foreign message, without terminal colours."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]
    return " ".join(lines[:count])[:600]
