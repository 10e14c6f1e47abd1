"""`python -m utils search`: the settings of `train`, which of them are searched, and over which values. Searches nothing itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from utils.errors import ConfigError
from utils.training.search_space import DEFAULT_SPACE, SearchSpace
from utils.ui import train_command

USAGE = (
    "python -m utils search SOURCE [--data DATA] [--space NAME=VALUES …] [--trials N] [--seconds S] [--SETTING VALUE …]"
)


def add_arguments(command: argparse.ArgumentParser, positive: Callable[[str], float]) -> None:
    """Add what the command takes: that of `train`, and what is searched for how long.

    Args:
        command: the parser.
        positive: reads a positive number.
    """
    options = command.add_argument_group("search")
    usual = ", ".join(DEFAULT_SPACE)
    options.add_argument(
        "--space",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="a setting to search, with a range or choices: learning_rate=1e-5..1e-2, batch_size=4,8,16, "
        f"warmup_ratio=0..0.3:linear; may be given several times (default: {usual})",
    )
    options.add_argument("--trials", type=_count, default=20, metavar="N", help="trials in all (default: %(default)s)")
    options.add_argument("--seconds", type=positive, metavar="S", help="time for this call (default: none is set)")
    options.add_argument("--name", default="search", help="of the study, which goes on under it (default: %(default)s)")
    options.add_argument(
        "--search-seed", type=int, default=0, metavar="N", help="of the proposals (default: %(default)s)"
    )
    options.add_argument("--no-pruning", action="store_true", help="let every trial train to its end")
    options.add_argument("--no-range-test", action="store_true", help="begin with the learning rate of the settings")
    options.add_argument("--html", action="store_true", help="write report.html with pictures into the study's folder")
    train_command.add_arguments(command)


def run_search(options: argparse.Namespace) -> int:
    """Search as the options say; returns the exit code.

    Raises:
        TransformerBuilderError: what cannot be done, in one sentence.
    """
    settings = train_command.settings_from(options)
    if options.print_config:
        return train_command.run_training(options)
    if options.source is None:
        raise ConfigError("search needs a model: a gist id, gist URL, folder or model.py.")
    if options.resume != "auto":
        raise ConfigError(
            f"--resume {options.resume} is for train: a search goes on under its name. Take another --name to begin anew."
        )
    space = SearchSpace.from_texts(options.space, settings)

    import utils

    adapted = utils.adapt(utils.load_model(options.source, trust=options.trust), strict=options.strict)
    workspace = Path(options.workspace if options.workspace is not None else settings.checkpoint_dir).expanduser()
    try:
        found = utils.search(
            adapted,
            options.data,
            space,
            settings,
            trials=options.trials,
            seconds=options.seconds,
            name=options.name,
            tokenizer=train_command.own_tokenizer(options.tokenizer, adapted, workspace),
            workspace=workspace,
            pruning=not options.no_pruning,
            range_test=not options.no_range_test,
            seed=options.search_seed,
        )
    except KeyboardInterrupt:
        print("The same command goes on with the trial that ran.", file=sys.stderr)
        raise
    print(found.summary())
    if options.html:
        print(f"Page: {found.save_html()}")
    return 0 if found.study.best is not None else 1


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, such as 20; got {text!r}")
    return int(text)
