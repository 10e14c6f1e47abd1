"""Which ways of training on several devices can work where this process runs, and which command line can where none does.

Knows strategies by name and facts about the process; starts nothing and asks no device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from utils.errors import TrainingError
from utils.progress import in_notebook
from utils.training.engine.processes import Place
from utils.training.training_config import TrainingConfig

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
        launched: how many processes torchrun, or a cluster, started together; 1 where nobody did.
        on_cpu: the machine has no GPU, and processes share its cores.
    """

    in_notebook: bool = False
    cuda_initialised: bool = False
    devices: int = 1
    launched: int = 1
    on_cpu: bool = False

    @classmethod
    def here(cls) -> Surroundings:
        """Those of this process; a machine without GPUs counts as one device."""
        return cls(
            in_notebook(),
            torch.cuda.is_initialized(),
            max(torch.cuda.device_count(), 1),  # counts without using one
            Place.here().world,
            not torch.cuda.device_count(),
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


def refusal(strategy: str, devices: int, where: Surroundings) -> str | None:
    """Why a strategy cannot work, and what can; None where it can.

    Args:
        strategy: a name that Lightning knows.
        devices: devices of one machine that are to train together.
        where: facts about the process.
    """
    if strategy == "auto" and devices == 1 and where.launched == 1:
        return None
    reason = _reason(strategy, devices, where)
    if reason is None:
        return None
    return (
        f"strategy={strategy!r} with devices={devices} cannot work here: {reason}. On the command line: "
        f"{command(strategy, devices)}\nOr {ONE_DEVICE}."
    )


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
    if where.launched > 1 and strategy == "auto":
        return "several processes were started, and each of them would train the whole model alone"
    if where.in_notebook:
        return _in_notebook(strategy, where)
    if devices > where.devices and not where.on_cpu:
        have = "one device" if where.devices == 1 else f"{where.devices} devices"
        return f"this machine has {have}"
    if where.launched == 1:
        return "nobody started the other processes"
    if where.launched % devices:
        return f"{where.launched} processes were started, which is no multiple of devices"
    return None


def _in_notebook(strategy: str, where: Surroundings) -> str:
    if strategy in _IN_NOTEBOOKS:
        return f"{strategy} {_IN_NOTEBOOKS[strategy]}"
    if strategy == "ddp_notebook" and where.cuda_initialised:
        return "ddp_notebook forks this kernel, which has used the GPU already, and CUDA does not survive a fork"
    return "several devices need one process each, and a notebook is one process"
