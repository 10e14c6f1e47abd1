"""Weights, gradients and optimizer state in shards, one in each process (`strategy="fsdp"`), on torch's `fully_shard`.

What is sharded is a copy: the person's model stays whole, in main memory, and gets the trained weights at the end. Blocks are
gathered one after the other, so that a device holds one of them whole at a time, besides what stands outside of all blocks.
Checkpoints are put together in the leading process and are those that one process would write, so that any number of processes
goes on from them.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.preserved import preserved
from utils.errors import ConfigError
from utils.training.engine.gradient_checkpointing import repeated_blocks

PASSES = 8
"""Passes of a model that are watched before it is trained in several processes."""


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for `fully_shard`, reading checkpoints of one process through the run's verified files.

    Args:
        world: number of processes.
        blocks: names of the modules that are gathered by themselves, from `separate_blocks`.
    """

    def __init__(self, world: int, blocks: Sequence[str]) -> None:
        super().__init__(data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=False)
        self.blocks = tuple(blocks)

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


def separate_blocks(adapted: AdaptedModel, batch: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the repeated blocks that can be gathered by themselves: all their weights are theirs alone, and are read only
    while the block is called. What is read from outside, as the weight of a tied head, is in shards at that moment.

    Args:
        adapted: the model; it takes a few passes and stays as it is.
        batch: of training data.

    Raises:
        ConfigError: not every pass reads the same weights, as with experts or layers that are left out at random.
    """
    names = {id(module): name for name, module in adapted.model.named_modules()}
    blocks = repeated_blocks(adapted.model)
    holders = Counter(id(weight) for _, weight in adapted.model.named_parameters(remove_duplicate=False))
    alone = [block for block in blocks if _holds_alone(block, holders)]
    with preserved(adapted), torch.no_grad(), _Passes(alone) as passes:
        adapted.train()
        for row in few_rows(batch):
            adapted.on_batch({name: value.to(adapted.device) for name, value in row.items()})
            passes.next()
    some = [name for name, weight in adapted.model.named_parameters() if id(weight) in passes.read_in_some()]
    if some:
        raise ConfigError(
            f"{adapted.name} does not read all its weights in every pass ({some[0]} and {len(some) - 1} more in some only). "
            "strategy='fsdp' gathers weights in all processes at once, and each would wait for the others for ever: take "
            "strategy='ddp'."
        )
    return [names[id(block)] for block in alone if passes.only_inside(block)]


def few_rows(batch: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """`PASSES` batches of one row each, round and round: enough to see most models that choose anew what they compute."""
    rows = max(len(value) for value in batch.values() if value.dim())
    for row in itertools.islice(itertools.cycle(range(rows)), PASSES):
        yield {name: value[row : row + 1] if value.dim() else value for name, value in batch.items()}


def sharded(adapted: AdaptedModel, mesh: Any, blocks: Sequence[str]) -> AdaptedModel:
    """A copy of the model in shards: gathered block by block for each pass, and kept in parts between passes.

    Args:
        adapted: the model, which moves to main memory and stays as it is otherwise.
        mesh: of devices, from Lightning's module.
        blocks: names of modules that are gathered by themselves.
    """
    found = copy.deepcopy(adapted.to("cpu"))  # each module goes to the device as it is sharded, never the whole model
    for module in (*(found.model.get_submodule(name) for name in blocks), found.model):
        fully_shard(module, mesh=mesh["data_parallel"])
    return found.to(mesh.device_type)  # what is outside of the model proper, if anything


def gather_into(adapted: AdaptedModel, parts: AdaptedModel) -> None:
    """Copy the weights of a sharded model into a whole one in main memory. Every process must call it."""
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
    """A value of a state, gathered in main memory."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _holds_alone(block: nn.Module, holders: Counter[int]) -> bool:
    """Whether nothing outside the block knows its weights by a name."""
    inside = Counter(id(weight) for _, weight in block.named_parameters(remove_duplicate=False))
    return bool(inside) and all(holders[key] == count for key, count in inside.items())


class _Passes(TorchFunctionMode):
    """Notes which weights each pass reads, which blocks are called, and which have a weight that is read while they are not."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self._owners = {id(weight): block for block in blocks for weight in block.parameters()}
        self._blocks, self._under_way = blocks, Counter[int]()
        self._called, self._outside = set[int](), set[int]()
        self._read, self._passes = set[int](), list[set[int]]()
        self._hooks = contextlib.ExitStack()

    def next(self) -> None:
        """A pass is over."""
        self._passes.append(self._read)
        self._read = set()

    def read_in_some(self) -> set[int]:
        """Weights that some passes read and others do not, by identity."""
        read = Counter(weight for one in self._passes for weight in one)
        return {weight for weight, count in read.items() if count < len(self._passes)}

    def only_inside(self, block: nn.Module) -> bool:
        """Whether the block was called, and its weights were read in its calls alone."""
        return id(block) in self._called and id(block) not in self._outside

    def __enter__(self) -> _Passes:
        for block in self._blocks:
            self._hooks.callback(block.register_forward_pre_hook(self._begin).remove)
            self._hooks.callback(block.register_forward_hook(self._end, always_call=True).remove)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if not isinstance(value, nn.Parameter):
                continue
            self._read.add(id(value))
            owner = self._owners.get(id(value))
            if owner is not None and not self._under_way[id(owner)]:
                self._outside.add(id(owner))
        return func(*args, **(kwargs or {}))

    def _begin(self, block: nn.Module, _arguments: Any) -> None:
        self._called.add(id(block))
        self._under_way[id(block)] += 1

    def _end(self, block: nn.Module, _arguments: Any, _output: Any) -> None:
        self._under_way[id(block)] -= 1
