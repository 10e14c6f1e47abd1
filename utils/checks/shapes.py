"""Does the model run at every batch size and length up to its limit, and is one token more refused cleanly?"""

from __future__ import annotations

from typing import Any

import torch

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.faults import Fault, judged
from utils.checks.inspection import listed
from utils.checks.report import TABLE, CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import LONGEST, Sampler, run_model
from utils.errors import CheckError, TokenIdError

NAME = "shape robustness"
BATCHES = (1, 2, 4)
ODD_LENGTH = 7
OK = "ok"
"""Status of a shape that works; any other status is the reason why it does not."""
RESERVED_ROWS = 2
"""Rows of a position table that some architectures keep for padding (RoBERTa and its kin)."""
LARGEST_LOGITS = 64 * 2**20
"""No logits with more elements than this are made (256 MB in float32)."""


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Run batch {1, 2, 4} × length {1, 2, 7, limit} in eval mode and compare each output shape with (B, T, V)."""
    adapted.eval()
    rows = [_try(adapted, sampler, batch, length) for batch, length in _grid(adapted, sampler)]
    refusals = _refusals(adapted, sampler)
    details = {TABLE: rows, "limit": sampler.limit, "limit_source": sampler.limit_source, "refusals": refusals}
    wrong = [row for row in rows if row["status"] != OK]
    faults = [_shape_fault(adapted, wrong, rows)] if wrong else []
    faults += _finite_faults(adapted, rows)
    faults += [*_limit_faults(adapted, sampler), *_refusal_faults(refusals), *_width_faults(adapted, sampler)]
    longest = max(row["length"] for row in rows)
    fine = f"{len(rows)} shapes run, up to {longest} tokens. Limit {sampler.limit}: {sampler.limit_source}."
    if sampler.image_shape is not None:
        fine = f"{len(rows)} batches of images {'×'.join(map(str, sampler.image_shape))} run."
    return judged(NAME, faults, fine, details)


def _grid(adapted: AdaptedModel, sampler: Sampler) -> list[tuple[int, int]]:
    if sampler.image_shape is not None:
        return [(batch, 1) for batch in BATCHES]
    lengths = sorted({sampler.length(length) for length in (1, 2, ODD_LENGTH, min(sampler.limit, LONGEST))})
    width = adapted.contract.output_size or sampler.vocabulary
    return [(b, n) for n in lengths for b in BATCHES if b == 1 or b * n * width <= LARGEST_LOGITS]


def _try(adapted: AdaptedModel, sampler: Sampler, batch: int, length: int) -> dict[str, Any]:
    inputs = sampler.inputs(batch, length)
    row: dict[str, Any] = {
        "batch": batch,
        "length": length,
        "input": str(tuple(inputs.shape)),
        "output": None,
        "finite": None,
        "status": OK,
    }
    width = adapted.contract.output_size or sampler.vocabulary
    per_token = adapted.contract.takes_tokens and "T" in adapted.contract.logits.layout  # token labels too
    expected = (batch, length, width) if per_token else (batch, width)
    try:
        with torch.no_grad():
            logits = run_model(adapted, inputs).logits
    except CheckError as error:
        return {**row, "status": str(error)}
    shape, finite = tuple(logits.shape), bool(torch.isfinite(logits).all())
    return {
        **row,
        "output": str(shape),
        "finite": finite,
        "status": OK if shape == expected else f"expected {expected}, got {shape}",
    }


def _refusals(adapted: AdaptedModel, sampler: Sampler) -> dict[str, bool]:
    """What must be refused → whether `check_inputs` refuses it."""
    if sampler.image_shape is not None:
        return {"pixels as whole numbers": _is_refused(adapted, sampler.inputs(1, 1).long())}
    cases = {f"id {sampler.vocabulary}, one past the embedding rows": torch.full((1, 1), sampler.vocabulary)}
    if sampler.stated is not None:
        cases[f"{sampler.stated + 1} tokens, one past the limit"] = torch.zeros(
            (1, sampler.stated + 1), dtype=torch.long
        )
    return {text: _is_refused(adapted, ids) for text, ids in cases.items()}


def _is_refused(adapted: AdaptedModel, ids: torch.Tensor) -> bool:
    try:
        adapted.check_inputs(ids)
    except TokenIdError:
        return True
    return False


def _shape_fault(adapted: AdaptedModel, wrong: list[dict[str, Any]], rows: list[dict[str, Any]]) -> Fault:
    shapes = [f"{row['batch']}×{row['length']}" for row in wrong]
    return Fault(
        "fail",
        f"{len(wrong)} of {len(rows)} shapes (batch×length) do not work: {listed(shapes)}. First: {wrong[0]['status']}",
        _pattern(wrong, rows),
        f"In forward of {adapted.name} take batch and length from input_ids.shape instead of constants, and slice masks and "
        "position tables to the length.",
    )


def _finite_faults(adapted: AdaptedModel, rows: list[dict[str, Any]]) -> list[Fault]:
    """Shapes whose logits are no numbers where those of others are; where all are, numerical stability says more."""
    odd, ran = [row for row in rows if row["finite"] is False], [row for row in rows if row["finite"] is not None]
    if not odd or len(odd) == len(ran):
        return []
    shapes = [f"{row['batch']}×{row['length']}" for row in odd]
    return [
        Fault(
            "fail",
            f"At {len(odd)} of {len(ran)} shapes (batch×length) the logits are NaN or infinite: {listed(shapes)}.",
            _pattern(odd, [row for row in ran if row["finite"]]),
            f"In forward of {adapted.name} look for what a single element leaves undefined: std() or var() over one (use "
            "correction=0 and an epsilon), a division by length - 1, a mean over an empty slice.",
        )
    ]


def _limit_faults(adapted: AdaptedModel, sampler: Sampler) -> list[Fault]:
    """The model runs shorter sequences only than it, or its config, states; or states nothing and has a limit."""
    if sampler.limit == (sampler.stated or sampler.limit) and "found by trying" not in sampler.limit_source:
        return []
    said = f"The stated limit is {sampler.stated} tokens" if sampler.stated else "No limit is stated"
    reserved = sampler.stated is None or sampler.stated - sampler.limit <= RESERVED_ROWS
    return [
        Fault(
            "warn" if reserved else "fail",
            f"{said}, and the longest sequence that runs has {sampler.limit}.",
            f"A mask or position table of {adapted.name} ends there (some models keep rows of the table for padding).",
            f"State max_seq_len={sampler.limit} in config.json" + ("." if reserved else ", or enlarge that table."),
        )
    ]


def _refusal_faults(refusals: dict[str, bool]) -> list[Fault]:
    sloppy = [text for text, refused in refusals.items() if not refused]
    if not sloppy:
        return []
    return [
        Fault(
            "warn",
            f"Not refused: {listed(sloppy)}.",
            "The calling contract does not know this limit, so bad input reaches the model (on a GPU as a device-side assert).",
            "State vocab_size and max_seq_len in config.json.",
        )
    ]


def _pattern(wrong: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """What the shapes that do not work have in common."""
    for key in ("batch", "length"):
        bad, good = {row[key] for row in wrong}, {row[key] for row in rows if row["status"] == OK}
        if good and not bad & good:
            return f"It depends on the {key} alone: {key} {', '.join(map(str, sorted(bad)))} fails, {', '.join(map(str, sorted(good)))} works."
    return "Every shape fails." if len(wrong) == len(rows) else "It depends on batch and length together."


def _width_faults(adapted: AdaptedModel, sampler: Sampler) -> list[Fault]:
    """A head that scores more or fewer tokens than the embedding knows."""
    width, rows = adapted.contract.output_size, sampler.vocabulary
    if width == rows:  # the contract leaves out ids that the head does not score; the config may know them
        rows = max(rows, adapted.config.vocab_size or 0)
    if adapted.contract.task != "lm" or width is None or width == rows:
        return []
    narrow = width < rows
    return [
        Fault(
            "fail" if narrow and width != adapted.config.vocab_size else "warn",
            f"The output head scores {width} tokens, the embedding knows {rows}.",
            "Tokens beyond the head can be read but never predicted."
            if narrow
            else "Ids can be generated that cannot be read back.",
            f"Give the head {rows} outputs, or use a tokenizer with at most {min(width, rows)} entries.",
        )
    ]
