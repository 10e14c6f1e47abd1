"""The command `python -m utils push`: its arguments, and what it prints. The sending is in `utils.export.hub`."""

from __future__ import annotations

import argparse


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes. A token is never one of them: command lines are kept in histories."""
    command.add_argument("folder", help="folder that an export wrote")
    command.add_argument("repo_id", metavar="repository", help="owner/name on the Hugging Face Hub")
    command.add_argument("--dry-run", action="store_true", help="say what would go up, and send nothing")
    command.add_argument("--public", action="store_true", help="make the repository public (default: private)")
    command.add_argument("--branch", default="main", help="branch of the repository (default: %(default)s)")
    command.add_argument("--message", metavar="TEXT", help="of the commit")


def run_push(options: argparse.Namespace) -> int:
    """Send, or say what would be sent; returns the exit code.

    Raises:
        TransformerBuilderError: what cannot be done, in one sentence.
    """
    from utils.export.hub import push_to_hub
    from utils.progress import Progress

    with Progress("Push", unit="bytes") as progress:
        push = push_to_hub(
            options.folder,
            options.repo_id,
            private=not options.public,
            dry_run=options.dry_run,
            revision=options.branch,
            commit_message=options.message,
            progress=progress,
        )
    print(push.summary())
    return 0
