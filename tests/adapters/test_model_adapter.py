from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import utils.examples
from utils.adapters.contract import CallContract
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.errors import CallContractError, TokenIdError
from utils.loading.model_loader import load_model


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)

    def forward(self, x, attention_mask=None):
        hidden = self.emb(x)
        if attention_mask is not None:
            hidden = hidden * attention_mask.unsqueeze(-1)
        return self.head(hidden)


def test_any_module_gets_the_one_call() -> None:
    model = Tiny()
    adapted = adapt(model, SimpleNamespace(vocab_size=11, max_seq_len=6))
    ids = torch.randint(11, (2, 4))
    out = adapted(ids, labels=ids)
    assert torch.equal(out.logits, model(ids)) and out.loss is not None and out["loss"].dim() == 0
    assert adapted(ids).loss is None
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    assert torch.equal(adapted(ids, mask).logits, model(ids, mask))
    assert not torch.equal(adapted(ids, mask).logits, model(ids))
    assert list(adapted.model.state_dict()) == list(model.state_dict())
    assert adapt(adapted) is adapted and adapted.num_parameters() == sum(p.numel() for p in model.parameters())


def test_loaded_example_is_completed_and_adapted() -> None:
    adapted = adapt(load_model(utils.examples.path()))
    assert adapted.completion.status == "completed" and adapted.name == "PostNormTransformer"
    assert (adapted.contract.vocab_size, adapted.contract.max_length) == (1024, 128)
    assert adapted(torch.randint(1024, (3, 128))).logits.shape == (3, 128, 1024)
    for words in ("544,000 parameters", "residual_3_output", "vocabulary rows: 1024"):
        assert words in adapted.summary()


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (
            torch.tensor([[0, 11]]),
            r"Token id 11 at row 0, position 1 does not fit the model's 11 embedding rows \(0 to 10\)",
        ),
        (torch.tensor([[0], [-1]]), "Token id -1 at row 1, position 0"),
        (torch.zeros(1, 7, dtype=torch.long), "7 tokens long, the model takes at most 6"),
        (torch.zeros(3, dtype=torch.long), r"of shape \(B, T\); got torch.int64 of shape \(3,\)"),
        (torch.zeros(1, 3), "must be whole numbers"),
    ],
)
def test_ids_that_do_not_fit_are_refused_before_the_model_runs(ids: torch.Tensor, words: str) -> None:
    adapted = adapt(Tiny(), {"vocab_size": 11, "max_seq_len": 6})
    with pytest.raises(TokenIdError, match=words):
        adapted.check_inputs(ids)
    adapted.check_inputs(torch.zeros(2, 6, dtype=torch.long))


@pytest.mark.parametrize("thing", ["model.py", None, 3])
def test_what_is_no_model_is_refused(thing: object) -> None:
    with pytest.raises(CallContractError, match=r"takes an nn\.Module or the result of load_model"):
        adapt(thing)


def test_contract_by_hand_wins() -> None:
    class Odd(Tiny):
        def forward(self, x, secret):
            return self.head(self.emb(x)) + secret

    adapted = AdaptedModel(Odd(), contract=CallContract(input_name="x", constants={"secret": 1.0}, vocab_size=11))
    assert adapted(torch.zeros(1, 2, dtype=torch.long)).logits.shape == (1, 2, 11)


def test_adapted_model_copies_pickles_compiles_and_exports() -> None:
    adapted = adapt(load_model(utils.examples.path())).eval()
    ids = torch.randint(1024, (2, 9))
    expected = adapted(ids).logits
    assert torch.equal(copy.deepcopy(adapted)(ids).logits, expected)
    assert torch.equal(pickle.loads(pickle.dumps(adapted))(ids).logits, expected)
    compiled = torch.compile(adapted, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(ids).logits, expected)
    shape = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=1, max=128)}
    program = torch.export.export(adapted, (ids,), dynamic_shapes={"input_ids": shape})
    torch.testing.assert_close(program.module()(ids[:1, :4]).logits, adapted(ids[:1, :4]).logits)


def test_lightning_module_is_handed_on() -> None:
    from utils.adapters import lightning_adapter, model_adapter

    assert model_adapter.UniversalModelAdapter is lightning_adapter.UniversalModelAdapter
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = model_adapter.Nothing
