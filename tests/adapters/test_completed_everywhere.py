"""Completed exports where ordinary modules go: compiled, exported, copied, pickled to another process, replicated on threads."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.adapters.broken_exports import CASES, T, V
from utils.adapters.causality import make_causal
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.loading.sources import import_source

FEW = list(CASES)[:: max(1, len(CASES) // 5)]
"""Cases that the default run compiles and exports; the others take minutes and are marked slow."""
COMPILED = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


def adapted(name: str) -> AdaptedModel:
    """The completed model of a case, in eval mode."""
    case = CASES[name]
    torch.manual_seed(0)
    model = import_source({"model.py": case.source}, "model.py").Net()
    return adapt(model, case.config, case.source, **case.arguments).eval()


def ids_of(batch: int, length: int) -> torch.Tensor:
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(batch * 100 + length))


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)  # kernels may sum in another order


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_without_a_break_at_any_shape(name: str) -> None:
    model = adapted(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    with torch._dynamo.config.patch(allow_rnn=True):  # recurrent modules are a switch of dynamo, whatever the model
        for shape in ((2, 7), (3, T), (4, 2)):
            close(compiled(ids_of(*shape)).logits, model(ids_of(*shape)).logits)


@pytest.mark.parametrize("name", COMPILED)
def test_exported_with_both_axes_free(name: str) -> None:
    model = adapted(name)
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    axes = {0: torch.export.Dim("batch", min=1, max=64)}
    if not recurrent:  # torch unrolls recurrent layers over the length; see the test below
        axes[1] = torch.export.Dim("length", min=2, max=T)
    exported = torch.export.export(
        model, (ids_of(2, 7),), dynamic_shapes={"input_ids": axes}, strict=not recurrent
    ).module()
    for batch, length in ((2, 7), (1, 3), (5, T), (64, 2)):
        ids = ids_of(batch, 7 if recurrent else length)
        close(exported(ids).logits, model(ids).logits)


@pytest.mark.slow  # tells when torch has learnt it, which the test above then should demand
def test_torch_itself_exports_recurrent_layers_at_one_length_only() -> None:
    axes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=2, max=T)}
    with pytest.raises(Exception, match="length"):
        torch.export.export(nn.LSTM(4, 4, batch_first=True), (torch.randn(2, 7, 4),), dynamic_shapes={"input": axes})


@pytest.mark.parametrize("name", CASES)
def test_a_copy_is_a_model_of_its_own(name: str) -> None:
    model = adapted(name)
    again = copy.deepcopy(model)
    close(again(ids_of(2, 7)).logits, model(ids_of(2, 7)).logits)
    assert list(again.state_dict()) == list(model.state_dict())
    assert not {id(p) for p in again.parameters()} & {id(p) for p in model.parameters()}
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    assert float(model(ids_of(2, 7)).logits.detach().abs().max()) > 0
    assert float(again(ids_of(2, 7)).logits.detach().abs().max()) == 0


@pytest.mark.slow
def test_all_are_unpickled_by_another_process(tmp_path: Path) -> None:
    models = {name: adapted(name) for name in CASES}
    models["made causal"] = make_causal(adapted("typical"))
    ids = ids_of(2, 7)
    answers = {name: model(ids).logits.detach() for name, model in models.items()}
    (tmp_path / "models.pickle").write_bytes(pickle.dumps((models, ids, answers)))
    code = (
        "import pickle, sys, torch\n"
        "models, ids, answers = pickle.load(open(sys.argv[1], 'rb'))\n"
        "wrong = [n for n, m in models.items() if not torch.allclose(m(ids).logits, answers[n], atol=1e-5)]\n"
        "print(len(models), wrong)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "models.pickle")],
        capture_output=True, text=True, timeout=60, check=False, cwd=root,
    )  # fmt: skip
    assert done.stdout.strip() == f"{len(CASES) + 1} []", done.stderr


def replicas_of(model: nn.Module, count: int) -> list[AdaptedModel]:
    """What `torch.nn.parallel.replicate` makes, without its copy to GPUs: plain tensors in place of parameters."""
    modules = list(model.modules())
    replicas = []
    for _ in range(count):
        again = {module: module._replicate_for_data_parallel() for module in modules}
        for module, replica in again.items():
            for name, child in module._modules.items():
                replica._modules[name] = None if child is None else again[child]
            for name, parameter in module._parameters.items():
                if parameter is None:
                    replica._parameters[name] = None
                else:
                    setattr(replica, name, parameter.clone())  # gradients flow back to the parameter
        replicas.append(again[model])
    return replicas


@pytest.mark.parametrize("name", [*CASES, "made causal"])
def test_replicas_run_at_once_and_give_their_gradients_back(name: str) -> None:
    model = make_causal(adapted("typical")) if name == "made causal" else adapted(name)
    count = 4
    start = threading.Barrier(count)
    replicas, batches = replicas_of(model, count), [ids_of(2 + n, 5 + n) for n in range(count)]

    def run(replica: AdaptedModel, ids: torch.Tensor) -> torch.Tensor:
        start.wait(timeout=30)
        for _ in range(3):
            logits = replica(ids).logits
        return logits

    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(run, replicas, batches))
    for ids, logits in zip(batches, answers):
        close(logits, model(ids).logits)
    sum(logits.square().mean() for logits in answers).backward()
    shared = {path: p.grad for path, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    sum(model(ids).logits.square().mean() for ids in batches).backward()
    assert shared and shared.keys() == {path for path, p in model.named_parameters() if p.grad is not None}
    for path, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(shared[path], p.grad, atol=1e-5, rtol=1e-4)
