"""Reads what W&B wrote offline back with the client's own reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def offline_runs(folder: Path) -> list[Path]:
    """The files of offline runs below a folder, oldest first."""
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def records(path: Path) -> list[Any]:
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    store = DataStore()
    store.open_for_scan(str(path))
    found = []
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        found.append(record)
    return found


def history(path: Path) -> list[dict[str, Any]]:
    """Logged rows, in order; names that begin with _ are the client's own and left out."""
    rows = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            rows.append({name: value for name, value in items.items() if not name.startswith("_")})
    return rows


def run_of(path: Path) -> Any:
    """The record that says which run it is."""
    return next(record.run for record in records(path) if record.WhichOneof("record_type") == "run")


def ended(path: Path) -> int | None:
    """Exit code of a run that was finished; None where it was left open."""
    found = [record.exit.exit_code for record in records(path) if record.WhichOneof("record_type") == "exit"]
    return found[-1] if found else None
