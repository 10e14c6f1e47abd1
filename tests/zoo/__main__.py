"""`python -m tests.zoo [names…]`: tries every entry and prints the table of results. Exit code 1 where one fails."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings

import torch

from tests.zoo.entry import TASKS, Entry
from tests.zoo.examine import COLUMNS, Result, examine
from tests.zoo.table import ZOO
from utils._files import write_text
from utils._tables import text_table


def main(arguments: list[str] | None = None) -> int:
    """Try the chosen entries; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; all entries without any")
    parser.add_argument("--failures", metavar="FILE", help="write the failing entries with their exact findings")
    options = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every config is here; nothing is ever fetched
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = [examine(entry) for entry in chosen(options.names)]
    print(table(results))  # noqa: T201 - a command: it speaks
    print(tally(results))  # noqa: T201
    failing = [result for result in results if result.failures]
    if options.failures:
        write_text(options.failures, details(failing, len(results)))
    elif failing:
        print(details(failing, len(results)))  # noqa: T201
    return 1 if failing else 0


def chosen(parts: list[str]) -> list[Entry]:
    """Entries whose name holds one of the parts, by task; all where there is no part."""
    entries = [entry for name, entry in ZOO.items() if not parts or any(part in name for part in parts)]
    return sorted(entries, key=lambda entry: TASKS.index(entry.task))


def table(results: list[Result]) -> str:
    """One row per entry."""
    rows = [
        (
            result.entry.task,
            result.entry.name,
            *("FAIL" if result.findings.get(c) else "ok" if c in result.findings else "-" for c in COLUMNS),
            f"{result.seconds * 1000:.0f}",
            result.entry.shows,
        )
        for result in results
    ]
    return text_table(("task", "model", *COLUMNS, "ms", "stands for"), rows, width=160)


def tally(results: list[Result]) -> str:
    """How many entries hold, by task and in total."""
    lines = []
    for task in (*TASKS, None):
        mine = [result for result in results if task in (result.entry.task, None)]
        lines.append(f"{task or 'all'}: {sum(not result.failures for result in mine)} of {len(mine)}")
    return "\n" + "\n".join(lines) + f"\n{sum(result.seconds for result in results):.1f} s"


def details(failing: list[Result], total: int) -> str:
    """The failing entries with what was seen."""
    lines = [f"# {len(failing)} of {total} entries fail", ""]
    for result in failing:
        lines.append(f"## {result.entry.name} ({result.entry.task}; {result.entry.shows})")
        lines += [f"- {column}: {finding}" for column, finding in result.failures.items()]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
