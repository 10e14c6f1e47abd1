"""Random canvases with broken exports: what is completed must agree with walking the canvas node by node."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, event, given, seed, settings
from torch import nn

from tests.adapters.canvases import D, Export, T, V, exports
from utils.adapters.graph_executor import complete
from utils.errors import GraphCompletionError
from utils.loading.sources import import_source

COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def instance(source: str) -> nn.Module:
    torch.manual_seed(0)
    return import_source({"model.py": source}, "model.py").Net()


def check(export: Export) -> None:
    """Complete an export and compare it with its canvas; where something was taken away, an error must name the node."""
    model = instance(export.source)
    keys = list(model.state_dict())
    try:
        completion = complete(model, export.config, export.source)
    except GraphCompletionError as error:
        # without a drawn output node the result is called "output"
        if export.open is None or error.node not in (export.open, export.open.removesuffix("_0")):
            raise AssertionError(f"{error}\n{shown(export)}") from error
        event("refused, rightly")
        return
    assert export.open is None or completion.status == "direct", f"{export.open} was guessed\n{completion.source_after}"
    event(completion.status)
    assert list(completion.model.state_dict()) == keys
    completion.model.double()  # its modules are those of `model`; forty nodes deep, float32 drifts by more than 1e-5
    for training, (batch, length) in zip((False, True, False), ((1, 1), (2, 5), (3, T))):
        ids = torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(length))
        expected = export.evaluate(model.train(training), ids)
        given_back = completion.model.train(training)(ids)
        logits = given_back[0] if isinstance(given_back, tuple) else given_back
        # attention and sums run in another order here
        torch.testing.assert_close(logits, expected, atol=1e-9, rtol=1e-9, msg=lambda m: f"{m}\n{shown(export)}")
    written = set(completion.source_after.splitlines()) - set(completion.source_before.splitlines())
    assert all(len(line) <= 120 for line in written), [line for line in written if len(line) > 120]
    again = instance(completion.source_after)
    assert complete(again, export.config, completion.source_after).status == "direct", completion.source_after


def shown(export: Export) -> str:
    return f"{export.source[export.source.index('class Net') :]}\n{export.config}"


@pytest.mark.parametrize("part", range(2))
def test_completed_export_agrees_with_the_canvas(part: int) -> None:
    """120 examples, the same in every run, in parts that each take some seconds."""

    @seed(part)
    @settings(max_examples=60, **COMMON)
    @given(exports())
    def agrees(export: Export) -> None:
        check(export)

    agrees()


@pytest.mark.slow
@seed(4)
@settings(max_examples=1500, **COMMON)
@given(exports())
def test_many_completed_exports_agree_with_the_canvas(export: Export) -> None:
    check(export)


def test_strategy_is_as_wide_as_it_says() -> None:
    assert D < V and D < T
