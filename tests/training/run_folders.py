"""Run folders as a training leaves them, written without training."""

from __future__ import annotations

from pathlib import Path

from utils._files import write_json
from utils.training.engine.checkpoint import CheckpointStore
from utils.training.run_folder import MANIFEST_FILE, write_csv
from utils.training.training_config import TrainingConfig


def make_run(
    workspace: Path,
    name: str,
    bits: tuple[float, ...] = (3.0, 2.0),
    *,
    finished: bool = True,
    begun: str = "2026-05-01T10:00:00+00:00",
    checkpoints: int = 2,
    data: str = "same",
    **settings: object,
) -> Path:
    """A run of ten steps per validation, with checkpoints at the last of them."""
    folder, run_id = workspace / name, f"id-{name}"
    folder.mkdir(parents=True)
    steps = 10 * len(bits)
    write_json(
        folder / "run.json",
        {"format_version": 1, "run_id": run_id, "fingerprint": {"data": data, "total_steps": 10 * len(bits)}},
    )
    TrainingConfig(run_name=name, **settings).save(folder / "config.json")  # type: ignore[arg-type]
    model = {"kind": "object", "name": "Tiny", "parameters": 1234}
    write_json(
        folder / "recipe.json",
        {"format_version": 1, "begun": begun, "model": model, "data": {"kind": "bundled", "name": "python-docs"}},
    )
    rows = [
        (step, 4.0 - step / 100, bits[step // 10 - 1] if step % 10 == 0 else None, 2 * bits[step // 10 - 1] if step % 10 == 0 else None)
        for step in range(1, steps + 1)
    ]  # fmt: skip
    write_csv(folder / "metrics.csv", ("step", "train/loss", "val/bits_per_byte", "val/loss"), rows)
    speeds = [(10, 1.0, 100.0, 2_000_000), (steps, 4.0, 200.0, 3_000_000)]
    write_csv(folder / "resources.csv", ("step", "seconds", "tokens_per_second", "memory_bytes"), speeds)
    store = CheckpointStore(folder / "checkpoints", run_id, keep=9)
    for number in range(checkpoints):
        path = store.next_path(number + 1)
        store.write({"step": number}, path)
        store.commit(path, number + 1, val_loss=float(9 - number) if number else 1.0)
    if finished:
        files = {f"checkpoints/{path.name}": {} for path in (folder / "checkpoints").iterdir()}
        write_json(folder / MANIFEST_FILE, {"format_version": 1, "run_id": run_id, "files": files})
    return folder
