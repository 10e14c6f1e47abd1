"""The command `python -m utils link`: its arguments, and what it prints. The links are made in `utils.colab_links`."""

from __future__ import annotations

import argparse
from pathlib import Path

import utils
from utils.colab_links import badge, open_in_colab, stamp
from utils.errors import ConfigError, GistIdError
from utils.loading.gist_reference import parse_gist_reference

REPOSITORY = "https://github.com/transformer-builder/transformer-builder-colab"
NOTEBOOKS = ("template.ipynb", "training.ipynb")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """What `link` takes."""
    command.add_argument("--gist", required=True, metavar="ID", help="id of the gist, or any link to it")
    command.add_argument(
        "--revision", metavar="SHA", help="pin this revision (default: the one in the link, else none)"
    )
    command.add_argument("--badge", action="store_true", help="as Markdown, with the picture that Colab provides")
    command.add_argument(
        "--stamp",
        metavar="DIR",
        help="also write copies of both notebooks whose form names the gist, for places where a link loses its fragment",
    )
    command.add_argument("--repository", default=REPOSITORY, help="whose notebooks to open (default: %(default)s)")
    command.add_argument(
        "--notebooks",
        metavar="DIR",
        default=str(Path(utils.__file__).resolve().parents[1]),
        help="where the notebooks to stamp lie (default: beside this package)",
    )


def run_link(options: argparse.Namespace) -> int:
    """Print a link for each notebook, and stamp copies where that is asked for.

    Raises:
        GistIdError: neither an id nor a link, or no revision.
        ConfigError: a copy cannot be made, or the repository is none on github.com.
    """
    gist = parse_gist_reference(options.gist)
    revision = _revision(options.revision) or gist.revision
    for name in NOTEBOOKS:
        link = open_in_colab(options.repository, name, gist.gist_id, revision)
        print(badge(link) if options.badge else f"{name}  {link}")
    if options.stamp:
        if Path(options.stamp).suffix == ".ipynb":
            raise ConfigError(
                f"--stamp {options.stamp} names one file, and two notebooks are stamped. Name a folder for both copies."
            )
        for name in NOTEBOOKS:
            print(f"Stamped: {stamp(Path(options.notebooks) / name, options.stamp, gist.gist_id, revision)}")
    return 0


def _revision(text: str | None) -> str | None:
    """A revision as it was typed.

    Raises:
        GistIdError: it is not 40 hex digits.
    """
    if text is None:
        return None
    try:
        found = parse_gist_reference(f"https://gist.github.com/{'0' * 20}/{text.strip()}").revision
    except GistIdError:
        found = None
    if found is None:
        raise GistIdError(
            f"--revision {text!r} is not a gist's revision. Expected 40 hex digits, as the gist's page shows them under "
            "Revisions; leave it out to take the newest each time."
        )
    return found
