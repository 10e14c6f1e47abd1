"""Every model of the zoo: adapted, it is what it was, gives what its author would get, and learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.zoo import hugging_face
from tests.zoo.__main__ import chosen, details, main, table, tally
from tests.zoo.arguments import Plain
from tests.zoo.entry import TASKS, Entry, V, seeded, text
from tests.zoo.examine import COLUMNS, Result, examine
from tests.zoo.table import ENTRIES, ZOO


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if entry.slow else []) for name, entry in ZOO.items()]
)
def test_model_is_served(name: str) -> None:
    result = examine(ZOO[name])
    assert not result.failures, "\n".join(f"{column}: {finding}" for column, finding in result.failures.items())
    assert tuple(result.findings) == COLUMNS


def test_zoo_is_as_large_as_promised() -> None:
    assert len(ZOO) == len(ENTRIES) >= 60, "names are unique"
    assert {entry.task for entry in ZOO.values()} == set(TASKS)
    kinds = {
        *hugging_face.CAUSAL,
        *hugging_face.MASKED,
        *hugging_face.SEQ2SEQ,
        *hugging_face.CLASSIFIERS,
        *hugging_face.VISION,
    }
    assert len(kinds) >= 25
    assert sum(entry.shows == "Hugging Face" for entry in ZOO.values()) < len(ZOO) / 1.5, "many are written here"


class Refusing(torch.nn.Module):
    """No call of it works."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        raise ValueError("not today")


def _entry(build: Callable[[], Any], reference: Any = lambda m, b: m(b["input_ids"]), **more: Any) -> Entry:
    return Entry("planted", "lm", build, reference, text(), **more)


@pytest.mark.parametrize(
    ("entry", "column", "words"),
    [
        (_entry(seeded(Plain), lambda m, b: m(b["input_ids"]) + 1e-3), "forward", "logits differ by 0.001"),
        (_entry(seeded(Plain), lambda m, b: m(b["input_ids"])[:, :-1]), "forward", "expected (3, 5, 61)"),
        (_entry(seeded(Plain), shift=0), "loss", "expected"),
        (_entry(seeded(Plain), loss=lambda m, b: torch.tensor(1.0)), "loss", "expected 1.000000"),
        (_entry(seeded(Plain), rows=V + 1), "contract", "vocab_size is 61, expected 62"),
        (_entry(seeded(Plain), limit=None), "contract", "max_length is 24, expected None"),
        (_entry(seeded(Plain), contract_task="masked"), "contract", "task is 'lm'"),
        (_entry(seeded(Plain), learning_rate=0.0), "step", "loss went from"),
        (_entry(Refusing, lambda m, b: torch.zeros(1)), "adapt", "Error"),
    ],
)
def test_examination_sees_a_planted_fault(entry: Entry, column: str, words: str) -> None:
    assert words in examine(entry).findings[column]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: model.eval(), "training modes"),
        (lambda model: torch.rand(1), "random state"),
        (lambda model: model.norm.weight.data.add_(1), "weights"),
        (lambda model: model.zero_grad(), "gradients"),
        (lambda model: model.register_buffer("trace", torch.zeros(1)), "state_dict keys"),
        (lambda model: setattr(model.head, "weight", torch.nn.Parameter(model.head.weight.clone())), "shared weights"),
    ],
)
def test_examination_sees_what_adapting_leaves_behind(
    change: Callable[[Any], object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.zoo import examine as module

    honest = module.adapt

    def careless(model: Any, *arguments: Any, **named: Any) -> Any:
        adapted = honest(model, *arguments, **named)
        change(model)
        return adapted

    monkeypatch.setattr(module, "adapt", careless)
    assert words in examine(_entry(seeded(Plain))).findings["kept"]


def test_table_counts_by_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keyword only", "tiny ViT, own loss"]) == 0
    printed = capsys.readouterr().out
    assert "keyword only" in printed and "lm: 1 of 1" in printed and "all: 2 of 2" in printed


def test_table_shows_failures() -> None:
    entry = dataclasses.replace(ZOO["input_ids"], rows=7)
    results = [Result(entry, {"adapt": "", "contract": "vocab_size is 61, expected 7"})]
    assert "FAIL" in table(results) and "all: 0 of 1" in tally(results)
    assert "- contract: vocab_size is 61, expected 7" in details(results, 1)
    assert [found.name for found in chosen(["nested dict"])] == ["nested dict"]
