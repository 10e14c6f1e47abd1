"""Can the model be exported? The exporters are tried on the untrained model, so that they cannot fail after hours of training.

A check like those in `checks`; it lies here because it calls the exporters. Nothing is written, and no number is compared:
that is for the export itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from utils._extras import is_installed
from utils.adapters.model_adapter import AdaptedModel
from utils.checks.faults import Fault, judged
from utils.checks.report import TABLE, CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler
from utils.errors import ExportError
from utils.export.exporter import traced_shape_for
from utils.export.subject import ExportSubject, untrained_subject
from utils.export.torch_export import capture

NAME = "export dry run"
OK = "ok"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnx_ir")
LONGEST_CAPTURE = 3.0
"""Seconds of the processor that torch.export may take for ONNX to be tried too, which takes about twice as long. Our own measurement: a GPT-2 of 124 million parameters takes 8 s for the first alone."""


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Capture the model by `torch.export` with free batch and length; and by the ONNX exporter, where it is installed.

    A refusal is a warning: the model can be trained, but its files would be missing afterwards.
    """
    subject = untrained_subject(adapted, _limits(sampler))
    traced = traced_shape_for(subject.signature)
    first, program = _tried("torch.export", lambda: capture(subject, traced))
    rows = [first, _onnx(subject, program, first)]
    faults = [_fault(row) for row in rows if row["status"] == "refused"]
    tried = " and ".join(row["format"] for row in rows if row["status"] == OK)
    note = " ".join(f"{row['format']} was not tried: {row['reason']}." for row in rows if row["status"] == "skipped")
    free = "batch and length" if adapted.contract.takes_tokens else "batch"
    return judged(NAME, faults, f"{tried} can capture the model with free {free}.", {TABLE: rows}, note)


def _limits(sampler: Sampler) -> dict[str, Any]:
    """What the sampler knows beside the model: rows and the longest sequence."""
    if sampler.image_shape is not None:
        return {}
    stated = {} if sampler.stated is None else {"max_seq_len": sampler.stated}
    return {"vocab_size": sampler.vocabulary, **stated}


def _onnx(subject: ExportSubject, program: Any, first: dict[str, Any]) -> dict[str, Any]:
    """The row of ONNX."""
    missing = [package for package in ONNX_PACKAGES if not is_installed(package)]
    if missing:
        return _row("ONNX", "skipped", 0.0, f"{missing[0]} is not installed (training.ipynb installs it)")
    if first["status"] != OK:
        return _row("ONNX", "skipped", 0.0, "its exporter begins with torch.export, which refused")
    if first["seconds"] > LONGEST_CAPTURE:
        why = f"the model is large (torch.export took {first['seconds']:.0f} s); export() will try it"
        return _row("ONNX", "skipped", 0.0, why)
    from utils.export.onnx import translate

    return _tried("ONNX", lambda: translate(subject, program))[0]


def _tried(name: str, export: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
    """One row, whether a format takes the model and what stands in the way; and what the exporter gave."""
    begun = time.process_time()
    try:
        made = export()
    except ExportError as error:
        return _row(name, "refused", time.process_time() - begun, str(error)), None
    return _row(name, OK, time.process_time() - begun), made


def _row(name: str, status: str, seconds: float, reason: str = "") -> dict[str, Any]:
    return {"format": name, "status": status, "seconds": seconds, "reason": reason}


def _fault(row: dict[str, Any]) -> Fault:
    """The words of a refusal; the exporters' errors say the reason first and then what to do (see `tracing`)."""
    told, _, advice = row["reason"].partition("\nWhat to do: ")
    summary, _, reason = told.partition(" Reason: ")
    return Fault("warn", f"{summary} The files of this format would be missing after training.", reason or told, advice)
