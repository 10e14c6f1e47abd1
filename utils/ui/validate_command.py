"""The command `python -m utils validate`: its arguments, and what it prints. The checking is in `utils.checks`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from utils.checks.report import Report


def add_arguments(command: argparse.ArgumentParser, positive: Callable[[str], float]) -> None:
    """Add what the command takes beside its source.

    Args:
        command: the parser.
        positive: reads a positive number.
    """
    command.add_argument(
        "--tier", type=int, default=1, metavar="N", help="1: the critical checks, 2: insight (default: %(default)s)"
    )
    command.add_argument("--html", metavar="FILE", help="also write the report with its pictures as a page")
    command.add_argument("--json", metavar="FILE", help="also write the report as JSON")
    command.add_argument(
        "--seconds-per-check",
        type=positive,
        default=argparse.SUPPRESS,  # the verb has the default
        metavar="S",
        help="end a check after this time",
    )
    command.add_argument("--memory-limit-gb", type=positive, metavar="GB", help="end a check that takes more memory")
    command.add_argument(
        "--isolated",
        action="store_true",
        help="run the checks in a process of their own, for a model that crashes or hangs",
    )


def run_validation(options: argparse.Namespace) -> int:
    """Load, complete, check and print; returns the exit code: 0 passed, 1 not.

    Raises:
        TransformerBuilderError: what cannot be done, in one sentence.
    """
    import utils
    from utils.progress import Progress

    loaded = utils.load_model(options.source, trust=options.trust)
    print(loaded.review.summary(), end="\n\n")
    adapted = utils.adapt(loaded, strict=options.strict)
    print(adapted.summary(), adapted.completion.diff, sep="\n\n")
    with Progress(f"Tier {options.tier}", unit="checks") as progress:
        report = utils.validate(
            adapted,
            tier=options.tier,
            progress=progress,
            memory_limit_gb=options.memory_limit_gb,
            isolated=options.isolated,
            **{name: value for name, value in vars(options).items() if name == "seconds_per_check"},
        )
    print(report.summary())
    _write(report, options.html, options.json)
    return 0 if report.passed else 1


def _write(report: Report, html: str | None, json: str | None) -> None:
    from utils._files import write_text

    if html:
        print(f"Report: {report.save_html(html)}")
    if json:
        print(f"JSON: {write_text(Path(json), report.to_json())}")
