"""The processes that train together: which of them this one is, and all that they say to each other.

The only file that talks through `torch.distributed`. A launcher (torchrun, SLURM's srun) starts the processes and tells each
its place in environment variables; where none did, there is one process, and every call here is a plain one that costs
nothing. What a step computes together is for Lightning's strategies.
"""

from __future__ import annotations

import atexit
import datetime
import logging
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from utils.errors import RAISED_ELSEWHERE, TrainingError

logger = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = datetime.timedelta(hours=2)
"""How long a process waits for the others: the first one may be reading data, tokenizing, or writing a large checkpoint. One
that dies ends the others through the launcher, long before."""


@dataclass(frozen=True)
class Place:
    """What a launcher says about this process: its number of all, its number on this machine, and how many there are."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1

    @classmethod
    def here(cls, variables: Mapping[str, str] = os.environ) -> Place:
        """Read from torchrun's variables, else from those of SLURM's srun."""
        if int(variables.get("WORLD_SIZE") or 1) > 1 and "RANK" in variables:
            rank = int(variables["RANK"])
            return cls(rank, int(variables.get("LOCAL_RANK", rank)), int(variables["WORLD_SIZE"]))
        interactive = variables.get("SLURM_JOB_NAME") in ("bash", "interactive")  # Lightning's rule
        if int(variables.get("SLURM_STEP_NUM_TASKS") or 1) > 1 and "SLURM_PROCID" in variables and not interactive:
            tasks = int(variables["SLURM_STEP_NUM_TASKS"])
            return cls(int(variables["SLURM_PROCID"]), int(variables["SLURM_LOCALID"]), tasks)
        return cls()


@dataclass(frozen=True)
class Processes:
    """The processes of a training, as one of them sees them. The first one leads: it alone writes files and messages.

    A call that talks must be made by every process, in the same order. None of them waits for ever for one that raised an
    error in `lead` or `together`: the error is raised in all.

    Attributes:
        rank: number of this process, from 0; world: how many there are.

    Example:
        >>> processes = Processes.here()
        >>> folder = processes.lead(lambda: make_folder())      # made once, known to all
        >>> if processes.any(time_is_up()):                     # the same answer everywhere
        ...     save()
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> Processes:
        """Those that a launcher started with this one; the group is formed at the first call."""
        place = Place.here()
        if place.world == 1:
            return cls()
        if not dist.is_initialized():
            _form_group(place)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return self.world > 1

    # ---- doing ------------------------------------------------------------------------------------------------------
    def lead(self, action: Callable[[], T]) -> T:
        """What the action gives in the first process, in all of them; it must survive pickling.

        Raises:
            BaseException: what the action raised, in every process.
        """
        if not self.several:
            return action()
        value, error = _attempt(action) if self.leads else (None, None)
        box: list[Any] = [value, _portable(error, 0)]
        dist.broadcast_object_list(box, src=0)
        _raise_any(self.rank, error, [box[1]])
        return box[0]

    def together(self, action: Callable[[], T]) -> T:
        """What the action gives here, once it is done in every process. It must not talk to the others.

        Raises:
            BaseException: what it raised in the first process in which it failed, in every process.
        """
        if not self.several:
            return action()
        value, error = _attempt(action)
        _raise_any(self.rank, error, self.gather(_portable(error, self.rank)))
        return value  # type: ignore[return-value]

    def in_turn(self, action: Callable[[], T]) -> T:
        """As `together`, first in the leading process: the others then find in caches what it left there."""
        if not self.several:
            return action()
        value = self.together(action if self.leads else _nothing)
        rest = self.together(_nothing if self.leads else action)
        return value if self.leads else rest  # type: ignore[return-value]

    # ---- telling ----------------------------------------------------------------------------------------------------
    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order."""
        if not self.several:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def any(self, wish: bool) -> bool:
        """Whether any process wishes it."""
        return bool(self.highest([int(wish)])[0])

    def highest(self, values: Sequence[int]) -> list[int]:
        """The highest of each number over all processes."""
        if not self.several:
            return list(values)
        found = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return [int(value) for value in found]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, on the tensor's device; a GPU is not made to wait."""
        if not self.several:
            return tensor
        found = tensor.detach().clone()
        dist.all_reduce(found)
        return found

    def share(self, tensors: Sequence[torch.Tensor]) -> None:
        """Give all processes the values that the tensors have in the first one."""
        for tensor in tensors if self.several else ():
            dist.broadcast(tensor.detach(), src=0)

    def barrier(self) -> None:
        """Wait for the others."""
        self.any(False)


ALONE = Processes()
"""One process."""


def _form_group(place: Place) -> None:
    """Form the group before Lightning would, which takes the one that there is."""
    if "RANK" not in os.environ:  # SLURM names neither address nor port; Lightning's rule for both
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

        cluster = SLURMEnvironment(auto_requeue=False)
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = cluster.main_address, str(cluster.main_port)
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=PATIENCE, rank=place.rank, world_size=place.world
    )
    atexit.register(_leave_group)


def _leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _attempt(action: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return action(), None
    except BaseException as error:  # noqa: BLE001 - it is raised again, in every process
        return None, error


def _portable(error: BaseException | None, rank: int) -> BaseException | None:
    """The error in a form that other processes can take."""
    if error is None:
        return None
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever a foreign class does when it is copied
        error = TrainingError(f"process {rank} failed: {type(error).__name__}: {error}")
    return error


def _raise_any(rank: int, own: BaseException | None, errors: Sequence[BaseException | None]) -> None:
    """Raise the first of the errors: as it is in the process that raised it, marked as another's elsewhere."""
    first = next((place for place, error in enumerate(errors) if error is not None), None)
    if first is None:
        return
    if own is not None and first == rank:
        raise own
    error = errors[first]
    assert error is not None
    setattr(error, RAISED_ELSEWHERE, True)
    raise error


def _nothing() -> None:
    """What a process does whose turn it is not."""
