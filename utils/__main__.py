"""The command line: `python -m utils demo`, `inspect`, `validate`, `train`, `search`, `runs`, `export`, … Parses, calls the rooms, prints.

Exit codes: 0 done and sound, 1 the model did not pass, 2 wrong use or a clear error, 130 interrupted,
143 ended by SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

from utils.errors import RAISED_ELSEWHERE, TransformerBuilderError
from utils.ui import (
    export_commands,
    link_command,
    push_command,
    runs_command,
    search_command,
    train_command,
    validate_command,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return int(options.run(options))
    except TransformerBuilderError as error:
        if not getattr(error, RAISED_ELSEWHERE, False):
            print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a folder or file that cannot be written, a full disk
        logging.getLogger(__name__).debug("the operating system refused", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    """Says which setting an unknown flag most likely means."""

    def error(self, message: str) -> NoReturn:
        unknown = message.startswith("unrecognized arguments:")
        super().error(message + train_command.meant(message) if unknown else message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m utils",
        description="From a drawn transformer to a model that is trained, proven and runs elsewhere.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    demo = commands.add_parser("demo", help="the whole walk on a bundled broken export, in about three minutes")
    demo.add_argument("--workspace", default="runs", help="folder for the run folder (default: %(default)s)")
    demo.add_argument("--seconds", type=_positive, default=60.0, help="time for training (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of weights and training (default: %(default)s)")
    demo.set_defaults(run=_demo)
    inspect = commands.add_parser(
        "inspect", help="load a model and show its contract, completion, review and parameters"
    )
    _add_source(inspect)
    inspect.add_argument("--html", metavar="FILE", help="also write all of it as a page")
    inspect.add_argument("--json", metavar="FILE", help="also write all of it as JSON")
    inspect.set_defaults(run=_inspect)
    validate = commands.add_parser("validate", help="load a model, complete it, check it, and say what to mend")
    _add_source(validate)
    validate_command.add_arguments(validate, _positive)
    validate.set_defaults(run=validate_command.run_validation)
    train = commands.add_parser(
        "train", help="load a model, complete it and train it", usage=train_command.USAGE, allow_abbrev=False
    )
    train_command.add_arguments(train)
    train.set_defaults(run=train_command.run_training)
    search = commands.add_parser(
        "search", help="search for the settings that train a model best", usage=search_command.USAGE, allow_abbrev=False
    )
    search_command.add_arguments(search, _positive)
    search.set_defaults(run=search_command.run_search)
    rerun = commands.add_parser("rerun", help="make a run again from its folder, from the first step on")
    rerun.add_argument("folder", metavar="run", help="folder of the run")
    rerun.add_argument(
        "--workspace", metavar="DIR", help="folder for the new run (default: the one that holds the run)"
    )
    rerun.add_argument("--trust", action="store_true", help="run code in spite of risky calls that the review found")
    rerun.set_defaults(run=_rerun)
    runs = commands.add_parser("runs", help="list, show, compare and clean the runs of a workspace")
    runs_command.add_arguments(runs, _positive)
    export = commands.add_parser("export", help="write a trained run or a model as files that are proven equal to it")
    export_commands.add_export(export)
    export_commands.add_serve(commands.add_parser("serve", help="serve an exported folder over HTTP"))
    export_commands.add_selftest(commands.add_parser("selftest", help="prove an exported folder with its own script"))
    push = commands.add_parser("push", help="send an exported folder to the Hugging Face Hub, private by default")
    push_command.add_arguments(push)
    push.set_defaults(run=push_command.run_push)
    link = commands.add_parser("link", help='"Open in Colab" links for a gist, and notebooks that carry its id')
    link_command.add_arguments(link)
    link.set_defaults(run=link_command.run_link)
    return parser


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", help="gist id, gist URL, folder or model.py")
    command.add_argument("--trust", action="store_true", help="run code in spite of risky calls that the review found")
    command.add_argument("--strict", action="store_true", help="refuse completions that rest on conventions")


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number, such as 60; got {text!r}")
    return value


def _demo(options: argparse.Namespace) -> int:
    from utils.ui.demo import run_demo

    run_demo(options.workspace, seconds=options.seconds, seed=options.seed)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from utils.ui.inspect import inspect_source

    inspection = inspect_source(options.source, trust=options.trust, strict=options.strict)
    print(inspection.summary())
    if options.html:
        print(f"\nPage: {inspection.save_html(options.html)}")
    if options.json:
        print(f"\nJSON: {inspection.save_json(options.json)}")
    return 0


def _rerun(options: argparse.Namespace) -> int:
    from utils.training.run_manifest import compare_losses, rerun

    result = rerun(options.folder, options.workspace, trust=options.trust)
    print(result.summary())
    print(f"\n{compare_losses(options.folder, result.run_folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
