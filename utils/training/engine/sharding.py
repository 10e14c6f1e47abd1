"""Weights, gradients and optimizer state in shards, one in each process (`strategy="fsdp"`), on torch's `fully_shard`.

What is sharded is a copy: the person's model stays whole, and gets the trained weights at the end. Checkpoints are put
together in the leading process and are those that one process would write, so that any number of processes goes on from them.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from utils.adapters.model_adapter import AdaptedModel


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for `fully_shard`, reading checkpoints of one process through the run's verified files."""

    def __init__(self, world: int) -> None:
        super().__init__(data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Give each process its shards of weights and optimizer state."""
        assert self.model is not None
        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.model, checkpoint["state_dict"], options=options)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"]):
            named = _renamed(state, self._by_number(state, optimizer))
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
            _count_here(optimizer)
        return dict(checkpoint)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As one process would keep it: whole, and numbered in the order of the optimizer; nothing but in the first process."""
        assert self.model is not None
        plain = getattr(optimizer, "optimizer", optimizer)  # Lightning's wrapper, or not
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = dict(get_optimizer_state_dict(self.model, plain, options=options))
        if not state:
            return state
        names = itertools.chain(*self._names(plain))
        return _renamed(state, {name: number for number, name in enumerate(names)})

    def _by_number(self, state: Mapping[str, Any], optimizer: Optimizer) -> dict[Any, str]:
        """Number in a state → name of the weight at the same place of this optimizer."""
        groups = zip(state["param_groups"], self._names(optimizer))
        return {number: name for group, names in groups for number, name in zip(group["params"], names)}

    def _names(self, optimizer: Optimizer) -> list[list[str]]:
        """Names of the weights in each group."""
        assert self.model is not None
        known = {id(weight): name for name, weight in self.model.named_parameters()}
        return [[known[id(weight)] for weight in group["params"]] for group in optimizer.param_groups]


def sharded(adapted: AdaptedModel, mesh: Any) -> AdaptedModel:
    """A copy of the model in shards: gathered for each pass, and kept in parts between passes.

    Args:
        adapted: the model; it stays as it is.
        mesh: of devices, from Lightning's module.
    """
    found = copy.deepcopy(adapted).to(mesh.device_type)
    fully_shard(found.model, mesh=mesh["data_parallel"])
    return found


def gather_into(adapted: AdaptedModel, parts: AdaptedModel) -> None:
    """Copy the weights of a sharded model into a whole one. Every process must call it."""
    adapted.load_state_dict({name: _whole(value) for name, value in parts.state_dict().items()})


def local(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """What this process holds of each tensor: all of it, where it is in no shards."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def in_shards(tensors: Iterable[torch.Tensor | None]) -> bool:
    """Whether any of them is in shards."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def clip_shards(parameters: Iterable[nn.Parameter], most: float, total: torch.Tensor) -> None:
    """As `torch.nn.utils.clip_grads_with_norm_`, with the norm over all shards."""
    factor = torch.clamp(most / (total + 1e-6), max=1.0)
    for gradient in local(p.grad for p in parameters if p.grad is not None):
        gradient.mul_(factor.to(gradient.device))


def _renamed(state: Mapping[str, Any], keys: Mapping[Any, Any]) -> dict[str, Any]:
    """An optimizer's state with other keys for its weights; one that was never stepped has no state to rename."""
    groups = [{**group, "params": [keys[key] for key in group["params"]]} for group in state["param_groups"]]
    return {"state": {keys[key]: slot for key, slot in state["state"].items()}, "param_groups": groups}


def _count_here(optimizer: Optimizer) -> None:
    """Keep counts of steps as plain numbers, as a fused optimizer makes them itself and takes no others."""
    for slot in optimizer.state.values():
        for name, value in slot.items():
            if isinstance(value, DTensor) and not value.dim():
                slot[name] = value.to_local()


def _whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value
