"""`python -m tests.export [--formats …] [names…]`: exports models of the zoo in every format and prints which were proven equal.

Exit code 1 where a refusal names no cause, or ONNX or `.pt2` hold less than 95% of the models.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings

import torch

from tests.export.matrix import chosen, complaints, fill, refusals, table, totals
from utils._files import write_text
from utils.export.exporter import FORMATS


def main(arguments: list[str] | None = None) -> int:
    """Fill the matrix; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.export", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; the fixed list without any")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS), help="all without any")
    parser.add_argument("--report", metavar="FILE", help="write table, refusals and totals there as well")
    options = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every config is here; nothing is ever fetched
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = fill(chosen(options.names), options.formats, _tell)
    wrong = complaints(rows)
    text = "\n\n".join((table(rows), "Refused:\n" + refusals(rows), totals(rows), *wrong))
    print(text)  # noqa: T201 - a command: it speaks
    if options.report:
        write_text(options.report, text + "\n")
    return 1 if wrong else 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
