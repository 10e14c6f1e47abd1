"""What a slow mirror costs the steps of a training: `python benchmarks/mirroring.py`.

The same training saves every few steps, in turns without a mirror, and with one that takes its bytes slowly, as Google Drive
does. Figures are the medians over all rounds of the ratio of whole seconds per step, saves included, with their 95% interval.
Exit code 1 where the interval lies wholly above the limit, by processor time or by the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from anywhere, as a file

import torch

from benchmarks.adapter_overhead import BATCH, LENGTH, Decoder, within
from benchmarks.training_throughput import Stamped, Task
from utils.adapters.model_adapter import adapt
from utils.training.engine.mirror_folder import FileSystem
from utils.training.engine.trainer import Trainer
from utils.training.training_config import TrainingConfig

LIMIT = 1.03
"""Largest time of a step with a mirror, as a multiple of a step without one."""
BYTES_PER_SECOND = 10e6
"""What the slow mirror takes."""
EVERY = 8
"""Steps between saves."""
TASK = Task(Decoder, BATCH, LENGTH, 32, 4)


class SlowFileSystem(FileSystem):
    """Takes its bytes at `BYTES_PER_SECOND`."""

    def write(self, path: Path, chunks: Iterable[bytes]) -> None:
        """Write, and wait as a slow line would."""

        def slowly() -> Iterable[bytes]:
            for chunk in chunks:
                time.sleep(len(chunk) / BYTES_PER_SECOND)
                yield chunk

        super().write(path, slowly())


def seconds_per_step(mirrored: bool) -> tuple[float, float]:
    """Of one short run, by the clock and by processor time."""
    torch.manual_seed(0)
    blocks = Stamped(TASK)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingConfig(
            batch_size=TASK.batch,
            max_steps=TASK.steps,
            save_every_n_steps=EVERY,
            mirror_dir=str(Path(folder) / "mirror") if mirrored else None,
        )
        with (
            mock.patch("utils.training.engine.mirror.FileSystem", SlowFileSystem),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            Trainer(adapt(TASK.model()), None, settings, workspace=Path(folder) / "runs", resume="never").train(blocks)
    return blocks.per_step()


def main(arguments: list[str] | None = None) -> int:
    """Take turns, and judge."""
    parser = argparse.ArgumentParser(description="What a slow mirror costs the steps of a training.")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each (default: %(default)s)")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    seconds_per_step(False)
    ratios: dict[str, list[float]] = {"clock": [], "processor": []}
    for number in range(options.rounds):
        order = (False, True) if number % 2 else (True, False)
        found = {mirrored: seconds_per_step(mirrored) for mirrored in order}
        for place, name in enumerate(ratios):
            ratios[name].append(found[True][place] / found[False][place])
    held = [within(f"step with a slow mirror / without, {name} time", values, LIMIT) for name, values in ratios.items()]
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
