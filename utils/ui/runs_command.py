"""The command `python -m utils runs`: list, show, compare and clean. Its arguments and what it prints; the rest is in `training`."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from utils._tables import text_table
from utils.errors import ConfigError

if TYPE_CHECKING:
    from utils.training.dashboard import Dashboard
    from utils.training.run_cleaning import Removal
    from utils.training.run_comparison import RunComparison
    from utils.training.run_record import RunRecord
    from utils.training.runs import Run

LIST_COLUMNS = ("run", "begun", "state", "steps", "model", "data", "bits per byte", "val loss", "on disk")


def add_arguments(command: argparse.ArgumentParser, positive: Callable[[str], float]) -> None:
    """Add what the command takes.

    Args:
        command: the parser.
        positive: reads a positive number.
    """
    verbs = command.add_subparsers(required=True, metavar="verb")
    listing = _verb(verbs, "list", "all runs of a workspace, the newest first", run_list)
    listing.add_argument("--json", action="store_true", help="print everything that is known of them as JSON")
    listing.add_argument("--mirror", metavar="DIR", help="also runs that only this mirror has")
    show = _verb(verbs, "show", "one run: state, figures, checkpoints, exported folders", run_show)
    show.add_argument("name", help="name of the run, or the beginning of it")
    _add_pictures(show, "the run's dashboard")
    compare = _verb(verbs, "compare", "runs side by side, the best first", run_compare)
    compare.add_argument("names", nargs="*", metavar="name", help="names of runs (default: all)")
    _add_pictures(compare, "table and overlaid curves")
    clean = _verb(verbs, "clean", "delete runs, or checkpoints that are no longer needed", run_clean)
    clean.add_argument("names", nargs="*", metavar="name", help="names of runs to delete")
    clean.add_argument("--unfinished", action="store_true", help="runs that were interrupted")
    clean.add_argument("--older-than", type=positive, metavar="DAYS", help="only runs that began before that")
    clean.add_argument(
        "--checkpoints",
        action="store_true",
        help="keep the runs with their newest and best checkpoint; delete the others",
    )
    clean.add_argument("--yes", action="store_true", help="do not ask")


def run_list(options: argparse.Namespace) -> int:
    """Print the runs."""
    from utils.training.runs import load_runs

    root = _workspace(options)
    runs = load_runs((), root)
    elsewhere = [] if options.mirror is None else _only_mirrored(options.mirror, runs)
    if options.json:
        rows = [{**dataclasses.asdict(run.record), "state": run.state, "folder": str(run.folder)} for run in runs]
        rows += [{**dataclasses.asdict(record), "state": "mirrored", "folder": None} for record in elsewhere]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    cells = [_cells(run.record, run.state) for run in runs] + [_cells(record, "mirrored") for record in elsewhere]
    print(text_table(LIST_COLUMNS, cells, width=160) if cells else f"{root} holds no runs.")
    return 0


def run_show(options: argparse.Namespace) -> int:
    """Print one run.

    Raises:
        TrainingError: there is no such run.
    """
    from utils.training.runs import load_run

    run = load_run(options.name, _workspace(options))
    print(run.summary())
    if options.html or options.png:
        _save(run.dashboard(), options)
    return 0


def run_compare(options: argparse.Namespace) -> int:
    """Print runs side by side.

    Raises:
        TrainingError: one of them is not there, or there are none.
    """
    from utils.training.run_comparison import compare_runs

    comparison = compare_runs(options.names, _workspace(options))
    print(comparison.summary())
    _save(comparison, options)
    return 0


def run_clean(options: argparse.Namespace) -> int:
    """Say what would be deleted, ask, and delete it; 1 where the answer is no or something stayed.

    Raises:
        ConfigError: nothing says which runs, or nobody is there to be asked.
    """
    from utils.training.run_cleaning import finish_deletions, plan_removal
    from utils.training.run_index import RunIndex
    from utils.training.run_record import size

    root = _workspace(options)
    finish_deletions(root)
    plan = plan_removal(_chosen(options, root), options.checkpoints)
    for removal in plan:
        print(removal.describe())
    going = [removal for removal in plan if not removal.blocked]
    if not going:
        print("Nothing is to be deleted.")
        return 1 if plan else 0
    if not options.yes and not _agreed(going):
        print("Nothing was deleted.")
        return 1
    done = [removal for removal in going if removal.perform()]
    RunIndex(root).refresh()
    print(f"Deleted: {size(sum(removal.bytes for removal in done))} are free again. Copies on mirrors stay.")
    return 0 if len(done) == len(plan) else 1


def _chosen(options: argparse.Namespace, root: Path) -> list[Run]:
    from utils.training.runs import load_runs

    if not (options.names or options.unfinished or options.older_than or options.checkpoints):
        raise ConfigError(
            "runs clean needs to know which runs: names, --unfinished, --older-than DAYS, or --checkpoints for what all runs "
            "can spare."
        )
    runs = load_runs(options.names, root)
    if options.unfinished:
        runs = [run for run in runs if run.state == "interrupted"]
    if options.older_than:
        now, seconds = datetime.datetime.now(datetime.timezone.utc), options.older_than * 24 * 3600
        runs = [run for run in runs if (now - _begun(run)).total_seconds() > seconds]
    return runs


def _begun(run: Run) -> datetime.datetime:
    """When a run began; by the time of its first file where it does not say."""
    from utils.training.run_mirror import RUN_FILE

    utc = datetime.timezone.utc
    try:
        found = datetime.datetime.fromisoformat(run.record.begun)
    except ValueError:
        return datetime.datetime.fromtimestamp((run.folder / RUN_FILE).stat().st_mtime, utc)
    return found if found.tzinfo is not None else found.replace(tzinfo=utc)


def _agreed(going: list[Removal]) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("Nobody is there to be asked whether this may be deleted. Pass --yes to delete it.")
    noun = "this" if len(going) == 1 else f"these {len(going)}"
    try:
        return input(f"Delete {noun}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # ctrl-D
        return False


def _only_mirrored(mirror_dir: str, here: list[Run]) -> list[RunRecord]:
    from utils.training.run_index_mirror import mirrored_records

    known = {run.record.run_id for run in here}
    return [record for record in mirrored_records(mirror_dir) if record.run_id not in known]


def _cells(record: RunRecord, state: str) -> tuple[str, ...]:
    from utils.training.run_record import number, size

    figures = (number(record.bits_per_byte), number(record.val_loss), size(record.bytes))
    begun = record.begun[:16].replace("T", " ")
    return (record.name, begun, state, record.steps_of_total, record.model, record.data, *figures)


def _save(view: Dashboard | RunComparison, options: argparse.Namespace) -> None:
    """Write the page and the picture that were asked for."""
    if options.html:
        print(f"\nPage: {view.save_html(options.html)}")
    if options.png:
        print(f"\nPicture: {view.save_png(options.png)}")


def _workspace(options: argparse.Namespace) -> Path:
    from utils.training.runs import WORKSPACE

    return Path(options.workspace if options.workspace is not None else WORKSPACE).expanduser()


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    words: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=words, description=words)
    parser.add_argument("--workspace", metavar="DIR", help="folder of the runs (default: runs)")
    parser.set_defaults(run=run)
    return parser


def _add_pictures(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--html", metavar="FILE", help=f"also write {what} as a page")
    parser.add_argument("--png", metavar="FILE", help="also write the curves as a picture")
