"""`python -m tests.checks.corpus`: the confusion table of seeded faults and checks. Exit code 1 below the bar."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings

import torch

from tests.checks.corpus.entry import Fault
from tests.checks.corpus.table import (
    CHECKS,
    FAULTS,
    FLAGGED_SHARE,
    MENDED_SHARE,
    Row,
    examine,
    examine_fault,
    twins,
)
from utils._tables import text_table
from utils.adapters.model_adapter import adapt
from utils.checks.runner import Check
from utils.checks.session import Session
from utils.progress import ignore_progress

SLOW = "export dry run"
"""The one check that takes many seconds per model."""


def main(arguments: list[str] | None = None) -> int:
    """Examine the chosen faults and their twins, print the table, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.checks.corpus", description=__doc__)
    parser.add_argument("--only", metavar="PART", help="faults whose name or responsible check holds this text")
    parser.add_argument("--fast", action="store_true", help="only the responsible check of each fault")
    parser.add_argument("--cures", action="store_true", help="instead: which faults with a known cure a patch mends")
    parser.add_argument("--all", action="store_true", help=f"also the {SLOW} of models that are not about it (minutes)")
    parser.add_argument(
        "--zoo", action="store_true", help="the Hugging Face models of tests/zoo instead: every alarm is listed"
    )
    parser.add_argument("--verbose", action="store_true", help="what was said about each miss and false alarm")
    options = parser.parse_args(arguments)
    _quiet()
    quick = {name: check for name, check in CHECKS.items() if options.all or name != SLOW}
    if options.cures:
        return cures(
            [fault for fault in FAULTS if fault.cure and (options.only or "") in f"{fault.name} {fault.check}"], quick
        )
    if options.zoo:
        return zoo(options.only or "", quick)
    chosen = [fault for fault in FAULTS if not options.only or options.only in f"{fault.name} {fault.check}"]
    faulty = [examine_fault(fault, _checks_for(fault, {} if options.fast else quick)) for fault in chosen]
    healthy = [examine(name, fault.build_twin(), quick.values()) for name, fault in twins(chosen).items()]
    say(confusion(faulty))
    say(alarms(healthy))
    if options.verbose:
        say(remarks(faulty, healthy))
    share = sum(row.caught for row in faulty) / max(len(faulty), 1)
    false_alarms = sum(not row.sound for row in healthy)
    say(f"{share:.1%} of {len(faulty)} faults flagged by the responsible check (bar {FLAGGED_SHARE:.0%})")
    say(f"{false_alarms} of {len(healthy)} healthy twins raise an alarm (bar 0)")
    return 0 if share >= FLAGGED_SHARE and not false_alarms else 1


def _checks_for(fault: Fault, checks: dict[str, Check]) -> list[Check]:
    """These checks and the responsible one, in the order of tier 1."""
    return [check for name, check in CHECKS.items() if name in checks or name == fault.check]


def cures(faults: list[Fault], checks: dict[str, Check]) -> int:
    """Try the patch of every fault with a known cure; the exit code is 1 below the bar."""
    cells = []
    for number, fault in enumerate(faults, start=1):
        report = Session.of("corpus", fault.build()).run(_checks_for(fault, checks), ignore_progress)
        patch = report[fault.check].patch
        mended = patch is not None and report.apply(fault.check)[fault.check].status == "pass"
        cells.append((fault.name, fault.check, fault.cure, "yes" if mended else "NO", patch.summary() if patch else ""))
        say(f"{number}/{len(faults)} {fault.name}: {'mended' if mended else 'NOT mended'}")
    say(text_table(("fault", "responsible check", "known cure", "mended", "by the patch"), cells, width=200))
    share = sum(row[3] == "yes" for row in cells) / max(len(cells), 1)
    say(f"{share:.1%} of {len(cells)} faults with a known cure mended and re-tested green (bar {MENDED_SHARE:.0%})")
    return 0 if share >= MENDED_SHARE else 1


def zoo(part: str, checks: dict[str, Check]) -> int:
    """Tier 1 over the Hugging Face models of the zoo; the exit code is 1 where a check fails."""
    from tests.zoo.hugging_face import ENTRIES

    rows = []
    for entry in ENTRIES:
        if part in entry.name:
            rows.append(examine(entry.name, adapt(entry.build(), entry.config, **entry.arguments), checks.values()))
            say("\n".join([f"## {entry.name}", *_complaints(rows[-1])]))
    failing = [row for row in rows if "fail" in row.flagged.values()]
    warned = [row for row in rows if not row.sound and row not in failing]
    say(f"{len(rows)} models: {len(failing)} with a failed check, {len(warned)} with warnings only")
    return 1 if failing else 0


def confusion(rows: list[Row]) -> str:
    """One line per fault: who is responsible, whether it was seen, and who flagged it."""
    cells = [
        (
            row.name,
            row.fault.base if row.fault else "",
            row.fault.check if row.fault else "",
            "yes" if row.caught else "MISSED",
            row.error or ", ".join(f"{name} ({status})" for name, status in row.flagged.items()),
        )
        for row in rows
    ]
    return text_table(("fault", "model", "responsible check", "flagged", "by"), cells, width=200)


def alarms(rows: list[Row]) -> str:
    """One line per healthy twin."""
    cells = [(row.name, ", ".join(f"{name} ({status})" for name, status in row.flagged.items()) or "-") for row in rows]
    return text_table(("healthy twin", "alarms"), cells, width=200)


def remarks(faulty: list[Row], healthy: list[Row]) -> str:
    """Everything that was said about the faults that were missed and the twins that raise an alarm."""
    lines = []
    for row in [row for row in faulty if not row.caught] + [row for row in healthy if not row.sound]:
        lines += [f"## {row.name} {row.error}", *_complaints(row)]
    return "\n".join(lines)


def _complaints(row: Row) -> list[str]:
    """Of a faulty model what the responsible check says, of another model every warning and failure."""
    wanted = {row.fault.check} if row.fault is not None else set(row.flagged)
    return [result.summary() for result in row.results if result.name in wanted]


def say(text: str) -> None:
    """Print: a command speaks."""
    print(text, flush=True)  # noqa: T201


def _quiet() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
