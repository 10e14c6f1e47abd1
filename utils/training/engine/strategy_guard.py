"""Which ways of training on several devices can work where this process runs, and which command line can where none does.

Knows strategies by name and facts about the process; starts nothing and asks no device.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from utils.errors import TrainingError
from utils.progress import in_notebook
from utils.training.training_config import TrainingConfig

SEVERAL_PROCESSES = False
"""Whether the engine of this release trains in several processes."""

ONE_DEVICE = "train on one device: strategy='auto', devices=1"

_IN_NOTEBOOKS = {
    "ddp": "starts the running script again for each device, and a notebook is no script",
    "fsdp": "starts the running script again for each device, and a notebook is no script",
    "deepspeed": "starts the running script again for each device, and a notebook is no script",
    "ddp_spawn": "starts fresh processes, which do not know what the cells of a notebook define",
    "dp": "copies the model to each device at each step, and Lightning has given it up",
}
"""Strategy → why it cannot work in a notebook, as the rest of a sentence."""


@dataclass(frozen=True)
class Surroundings:
    """Facts about the process.

    Attributes:
        in_notebook: an IPython kernel runs it. cuda_initialised: it has used a GPU. devices: GPUs of the machine.
        launched: torchrun, or a cluster, started it as one of several.
    """

    in_notebook: bool = False
    cuda_initialised: bool = False
    devices: int = 1
    launched: bool = False

    @classmethod
    def here(cls) -> Surroundings:
        """Those of this process; a machine without GPUs counts as one device."""
        return cls(
            in_notebook(),
            torch.cuda.is_initialized(),
            max(torch.cuda.device_count(), 1),  # counts without using one
            int(os.environ.get("WORLD_SIZE", "1") or 1) > 1,
        )


def check_strategy(config: TrainingConfig, surroundings: Surroundings | None = None) -> None:
    """Refuse a strategy that cannot work here, before anything is loaded.

    Args:
        config: `strategy` and `devices` are read.
        surroundings: facts about the process; None looks.

    Raises:
        TrainingError: it cannot; the message says why, and which command line can.
    """
    refused = refusal(config.strategy, config.devices, surroundings or Surroundings.here())
    if refused is not None:
        raise TrainingError(refused)


def refusal(strategy: str, devices: int, where: Surroundings, several: bool = SEVERAL_PROCESSES) -> str | None:
    """Why a strategy cannot work, and what can; None where it can.

    Args:
        strategy: a name that Lightning knows.
        devices: devices that are to train together.
        where: facts about the process.
        several: whether the engine trains in several processes at all.
    """
    if strategy == "auto" and devices == 1 and not where.launched:
        return None
    asked = f"strategy={strategy!r} with devices={devices}"
    reason = _reason(strategy, devices, where)
    if reason is not None and several:
        return (
            f"{asked} cannot work here: {reason}. On the command line: {command(strategy, devices)}\nOr {ONE_DEVICE}."
        )
    if reason is not None:
        return (
            f"{asked} cannot work here: {reason}. Its place is the command line ({command(strategy, devices)}), where this "
            f"release does not train on several devices yet. So {ONE_DEVICE}."
        )
    if not several:
        return f"{asked} needs several processes, and this release trains in one. So {ONE_DEVICE}."
    return None


def command(strategy: str, devices: int, config: str = "run.json") -> str:
    """The command line that trains on several devices of one machine.

    Args:
        strategy: of the settings; one that our settings do not know becomes "ddp".
        devices: processes, one for each device.
        config: file that `TrainingConfig.save` wrote.
    """
    kept = strategy if strategy in ("ddp", "fsdp") else "ddp"
    several = max(devices, 2)
    return (
        f"torchrun --nproc_per_node={several} -m utils train SOURCE --data DATA --config {config} "
        f"--strategy {kept} --devices {several}"
    )


def _reason(strategy: str, devices: int, where: Surroundings) -> str | None:
    """What stands against it in this process; None where nothing does."""
    if where.launched and strategy == "auto":
        return "several processes were started, and each of them would train the whole model alone"
    if where.in_notebook:
        if strategy in _IN_NOTEBOOKS:
            return f"{strategy} {_IN_NOTEBOOKS[strategy]}"
        if strategy == "ddp_notebook" and where.cuda_initialised:
            return "ddp_notebook forks this kernel, which has used the GPU already, and CUDA does not survive a fork"
        if strategy != "ddp_notebook":
            return "several devices need one process each, and a notebook is one process"
    if devices > where.devices:
        have = "one device" if where.devices == 1 else f"{where.devices} devices"
        return f"this machine has {have}"
    if not where.in_notebook and not where.launched:
        return "nobody started the other processes"
    return None
