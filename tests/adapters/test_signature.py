from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from utils.adapters.contract import CallContract
from utils.adapters.inference import infer_contract
from utils.adapters.model_outputs import LogitsSelector
from utils.adapters.probing import left_as_it_was
from utils.adapters.signature import ModelSignatureInspector, is_intermediate_name
from utils.errors import CallContractError
from utils.loading.model_config import ModelConfig

V, D, T = 31, 8, 9
Pair = namedtuple("Pair", ["hidden", "logits"])


@dataclass
class Answer:
    loss: torch.Tensor | None
    logits: torch.Tensor


class Net(nn.Module):
    """Embedding, position table and head; subclasses change how they are called and what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe, self.head = nn.Embedding(V, D), nn.Embedding(T, D), nn.Linear(D, V)

    def scores(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.wte(ids) + self.wpe(torch.arange(ids.shape[1])))


class ByName(Net):
    def forward(self, idx):
        return self.scores(idx)


class OfCanvas(Net):
    def forward(self, input_0_tokens, scale=1.0):
        return self.scores(input_0_tokens) * scale


class Positional(Net):
    def forward(self, *args, **kwargs):
        return self.scores(args[0])


class KeywordOnly(Net):
    def forward(self, *, tokens, attention_mask=None):
        return self.scores(tokens)


class NeedsScalar(Net):
    def forward(self, input_ids, temperature):
        return self.scores(input_ids) / temperature


class OnlyLastWithoutTargets(Net):
    def forward(self, idx, targets=None):
        logits = self.scores(idx)
        return (logits, torch.zeros(())) if targets is not None else (logits[:, [-1], :], None)


class Tuple(Net):
    def forward(self, input_ids):
        return self.wte(input_ids), self.scores(input_ids)


class LossFirst(Net):
    def forward(self, input_ids):
        return torch.zeros(()), self.scores(input_ids)


class Dictionary(Net):
    def forward(self, input_ids):
        return {"hidden": self.wte(input_ids), "logits": self.scores(input_ids)}


class Named(Net):
    def forward(self, input_ids):
        return Pair(self.wte(input_ids), self.scores(input_ids))


class DataClass(Net):
    def forward(self, input_ids):
        return Answer(None, self.scores(input_ids))


class TimeFirst(Net):
    def forward(self, input_ids):
        return self.scores(input_ids).transpose(0, 1)


class VocabularyInTheMiddle(Net):
    def forward(self, input_ids):
        return self.scores(input_ids).transpose(1, 2)


class Classifier(Net):
    def forward(self, input_ids):
        return self.scores(input_ids).mean(1)[:, :3]


@pytest.mark.parametrize(
    ("kind", "input_name", "path", "layout"),
    [
        (ByName, "idx", (), "BTV"),
        (OfCanvas, "input_0_tokens", (), "BTV"),
        (Positional, None, (), "BTV"),
        (KeywordOnly, "tokens", (), "BTV"),
        (NeedsScalar, "input_ids", (), "BTV"),
        (OnlyLastWithoutTargets, "idx", (0,), "BTV"),
        (Tuple, "input_ids", (1,), "BTV"),
        (LossFirst, "input_ids", (1,), "BTV"),
        (Dictionary, "input_ids", ("logits",), "BTV"),
        (Named, "input_ids", ("logits",), "BTV"),
        (DataClass, "input_ids", ("logits",), "BTV"),
        (TimeFirst, "input_ids", (), "TBV"),
        (VocabularyInTheMiddle, "input_ids", (), "BVT"),
        (Classifier, "input_ids", (), "BV"),
    ],
)
def test_contract_is_found(kind: type[Net], input_name: str | None, path: tuple, layout: str) -> None:
    contract = infer_contract(kind(), ModelConfig.of({"temperature": 2.0}))
    assert (contract.input_name, contract.logits.path, contract.logits.layout) == (input_name, path, layout)
    assert contract.vocab_size == V and contract.max_length == T
    assert contract.task == ("classification" if kind is Classifier else "lm")
    assert contract.constants == ({"temperature": 2.0} if kind is NeedsScalar else {})
    assert CallContract.from_json(contract.to_json()) == contract


def test_what_cannot_be_settled_says_what_was_tried() -> None:
    class Mystery(nn.Module):
        def forward(self, input_ids, secret):
            return input_ids

    with pytest.raises(
        CallContractError, match=r"Its forward takes \(input_ids, secret\)\. Tried: .*missing 1 required"
    ) as caught:
        infer_contract(Mystery(), ModelConfig.of(None))
    assert "contract=CallContract(" in str(caught.value)


def test_length_limit_prefers_the_smaller_of_table_and_config() -> None:
    assert infer_contract(ByName(), ModelConfig.of({"max_seq_len": 4})).max_length == 4
    assert infer_contract(ByName(), ModelConfig.of({"max_seq_len": 400})).max_length == T


def test_probe_leaves_the_model_as_it_was() -> None:
    class Counting(ByName):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(D)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, idx):
            self.calls += 1
            return super().forward(idx) + torch.rand(())

    model = Counting().train()
    model.norm.eval()
    state = torch.get_rng_state()
    infer_contract(model, ModelConfig.of(None))
    assert model.training and not model.norm.training and model.calls == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_state_comes_back_after_an_error_too() -> None:
    model = ByName().train()
    model.register_buffer("calls", torch.zeros(()))

    def fail() -> None:
        with left_as_it_was(model):
            model.calls += 5
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert model.training and model.calls == 0


class OffsetPositions(Net):
    """Positions begin at row 2, as in RoBERTa and BART."""

    def forward(self, input_ids):
        return self.head(self.wte(input_ids) + self.wpe(torch.arange(input_ids.shape[1]) + 2))


class OwnTable(nn.Module):
    """Embeds without an `nn.Embedding`."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.kinds, self.head = nn.Parameter(torch.randn(V, D)), nn.Embedding(2, D), nn.Linear(D, V)

    def forward(self, input_ids):
        return self.head(F.embedding(input_ids, self.table) + self.kinds(torch.zeros_like(input_ids)))


def test_limit_and_rows_are_those_that_the_model_asks_for() -> None:
    assert infer_contract(OffsetPositions(), ModelConfig.of(None)).max_length == T - 2
    contract = infer_contract(OwnTable(), ModelConfig.of(None))
    assert (contract.vocab_size, contract.max_length) == (V, None)
    assert infer_contract(OwnTable(), ModelConfig.of({"vocab_size": V})).vocab_size == V


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("mhsa_0_output", True),
        ("residual_12_output", True),
        ("feed_forward_0_x", True),
        ("input_0_tokens", False),
        ("attention_mask", False),
        ("layer_idx", False),
        ("attention_0", False),
        ("output_hidden_states", False),
    ],
)
def test_intermediate_names(name: str, is_one: bool) -> None:
    assert is_intermediate_name(name) is is_one


def test_inspector_lists_parameters() -> None:
    inspector = ModelSignatureInspector(NeedsScalar())
    assert inspector.get_parameters() == ["input_ids", "temperature"] == inspector.get_required_params()
    assert ModelSignatureInspector(Positional()).get_required_params() == []


def test_summary_names_every_point() -> None:
    text = infer_contract(ByName(), ModelConfig.of(None)).summary()
    assert "forward(idx)" in text and f"vocabulary rows: {V}" in text and f"longest sequence: {T}" in text


def test_selector_reads_nested_outputs() -> None:
    logits = torch.rand(2, 3, 4)
    assert LogitsSelector(("a", 1))({"a": (None, logits)}) is logits
    assert torch.equal(LogitsSelector((), "TBV")(logits.transpose(0, 1)), logits)
