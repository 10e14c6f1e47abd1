"""The executor against forwards that a person wrote by hand from the canvas."""

from __future__ import annotations

import copy
import itertools
import linecache
import pickle
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import utils.examples
from tests.adapters.broken_exports import CASES, REFUSED, D, Export, T, V, attend, export, nodes
from tests.adapters.broken_exports_by_kind import EMBEDDED, GATE, KINDS, KINDS_REFUSED, drawn, forward
from utils.adapters.graph_embeddings import EmbeddingWriter
from utils.adapters.graph_executor import ComputationalGraphExecutor, complete
from utils.adapters.graph_head import HeadWriter
from utils.adapters.graph_nodes import NodeWriter
from utils.adapters.graph_residuals import ResidualWriter
from utils.adapters.model_adapter import ModelSignatureInspector, adapt
from utils.errors import ConfigError, GraphCompletionError
from utils.loading.model_config import ModelConfig
from utils.loading.sources import import_source

EXPORTS = {**CASES, **KINDS}
REFUSALS = {**REFUSED, **KINDS_REFUSED}
SHAPES = [(1, 1), (2, 5), (3, T)]


def instance(source: str) -> nn.Module:
    """An instance of the class `Net` of a source, with reproducible weights."""
    torch.manual_seed(0)
    return import_source({"model.py": source}, "model.py").Net()


def completed_of(case: Export) -> nn.Module:
    """The completed module of a case; its parameters are those of the instance."""
    return complete(instance(case.source), case.config, case.source, **case.arguments).model


@pytest.mark.parametrize("name", EXPORTS)
def test_completed_export_agrees_with_the_hand_written_forward(name: str) -> None:
    case = EXPORTS[name]
    adapted = adapt(instance(case.source), case.config, case.source, **case.arguments)
    for training, (batch, length) in itertools.product((False, True), SHAPES):
        ids = torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(length))
        expected = case.reference(adapted.train(training).model, ids)
        # both sides compute in float32; attention sums in another order than the kernels do
        torch.testing.assert_close(adapted(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert adapted.completion.status == "completed"
    if case.assumptions is not None:
        assert len(adapted.completion.assumptions) == case.assumptions


MUTATIONS = {  # what an executor that guesses wrongly would write: (class, method, what takes its place)
    "an addition drops its skip": (
        ResidualWriter, "_add", lambda old: lambda self, node, name, terms, *rest: old(self, node, name, terms[-1:], *rest),
    ),
    "an addition drops its branch": (
        ResidualWriter, "_add", lambda old: lambda self, node, name, terms, *rest: old(self, node, name, terms[:1], *rest),
    ),
    "skip and branch are swapped": (
        ResidualWriter, "_add", lambda old: lambda self, node, name, terms, *rest: old(self, node, name, terms[::-1], *rest),
    ),
    "the skip is what the sublayer read": (
        ResidualWriter, "_skip_of_width",
        lambda old: lambda self, node, stream, branch: self._read_by_sublayer(self._branch_before(node, stream)),
    ),
    "the stream begins anew at the embedding": (
        ResidualWriter, "stream_before",
        lambda old: lambda self, node: [n for n in self.canvas.nodes if n.role == "embedding"][:1],
    ),
    "the logits are tied to another table": (
        HeadWriter, "_tied_weight", lambda old: lambda self, *given: "self.embedding_1.weight",
    ),
    "positions are left out": (
        EmbeddingWriter, "joined", lambda old: lambda self, nodes: old(self, [n for n in nodes if n.role == "embedding"]),
    ),
    "a node reads the embedding instead of what precedes it": (
        NodeWriter, "preceding", lambda old: lambda self, node: "embedding_0_output",
    ),
}  # fmt: skip
SWAPS = {
    "a gate that weighs its branch": Export(
        export(
            drawn("embedding_0", "mhsa_0", "residual_0", "output_0", residual_0="Gate()"),
            forward("residual_0_output", EMBEDDED),
            before=GATE,
        ),
        lambda m, ids: m.output_0(m.residual_0(m.embedding_0.weight[ids], attend(m.mhsa_0, m.embedding_0.weight[ids]))),
    ),
    "two tables, one of them tied": Export(
        export(
            drawn("embedding_0", "linear_0", "embedding_1", "ffn_0")
            .replace(f"({V}, {D})", f"({V}, 5)", 1)
            .replace(f"nn.Linear({D}, {D})", f"nn.Linear(5, {D})"),
            "def forward(self, input_0_tokens):\n"
            "    x = self.linear_0(self.embedding_0(input_0_tokens)) + self.embedding_1(input_0_tokens)\n"
            "    ffn_0_output = self.ffn_0(x)\n    return output_0_logits",
        ),
        lambda m, ids: (
            m.ffn_0(m.linear_0(m.embedding_0.weight[ids]) + m.embedding_1.weight[ids]) @ m.embedding_1.weight.T
        ),
    ),
}
"""Exports in which only the order of two values, or the choice between two tables, decides."""


def disagreeing() -> list[str]:
    """Exports that are refused, fail, or compute something else than their reference."""
    found = []
    for name, case in {**SWAPS, **{n: EXPORTS[n] for n in SENSITIVE}}.items():
        ids = torch.randint(V, (2, 5), generator=torch.Generator().manual_seed(5))
        try:
            completed = complete(instance(case.source), case.config, case.source, **case.arguments).model.eval()
            same = torch.allclose(completed(ids), case.reference(completed, ids), atol=1e-5, rtol=1e-5)
        except Exception:  # noqa: BLE001 - however a wrong completion shows itself, it is noticed
            same = False
        found += [] if same else [name]
    return found


SENSITIVE = (
    "typical",
    "pre-norm",
    "several embeddings",
    "positions apart",
    "position rows, and what reads them missing",
)


def test_exports_for_mutations_agree_without_one() -> None:
    assert disagreeing() == []


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_completion_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, method, mutate = MUTATIONS[name]
    monkeypatch.setattr(owner, method, mutate(getattr(owner, method)))
    assert disagreeing(), f"{name}, and every export still agrees with its reference"


@pytest.mark.parametrize("name", REFUSALS)
def test_what_stays_open_is_an_error_that_names_the_node(name: str) -> None:
    source, config, node, words = REFUSALS[name]
    with pytest.raises(GraphCompletionError) as caught:
        complete(instance(source), {"vocab_size": V, "max_seq_len": T, **config} if config == {} else config, source)
    assert caught.value.node == node, str(caught.value)
    assert words in str(caught.value)


def test_bundled_export_agrees_with_an_independent_forward() -> None:
    folder = utils.examples.path()
    module = import_source({"model.py": (folder / "model.py").read_text()}, "model.py")
    torch.manual_seed(1)
    model = module.PostNormTransformer()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
    completion = complete(model, ModelConfig.of(folder / "config.json"))

    def reference(m: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        stream = m.embedding_0_token.weight[ids] + m.embedding_0_pos.weight[: ids.shape[1]]
        stream = stream + attend(m.mhsa_0, stream)
        stream = stream + m.ffn_0(m.layernorm_0(stream))
        stream = stream + attend(m.mhsa_1, m.layernorm_1(stream))
        stream = stream + m.ffn_1(m.layernorm_2(stream))
        return m.layernorm_3(stream) @ m.embedding_0_token.weight.T

    for training in (True, False):
        for batch, length in ((1, 1), (2, 17), (3, 128)):
            ids = torch.randint(1024, (batch, length))
            both = [part.double() for part in (completion.model.train(training), model.train(training))]
            difference = (both[0](ids) - reference(both[1], ids)).abs().max().item()
            single = (completion.model.float()(ids) - reference(model.float(), ids)).abs().max().item()
            assert difference < 1e-6
            # float32: logits reach 40 with N(0, 1) embeddings, so 1e-6 of that scale is the last digit
            assert single < 1e-6 * max(1.0, reference(model, ids).abs().max().item())
    names = [completion.name for completion in completion.completions if completion.expression != "no argument"]
    assert names == [
        "residual_0_output",
        "residual_1_output",
        "residual_2_output",
        "residual_3_output",
        "output_0_logits",
    ]
    for name in names:
        assert f"+        {name} = " in completion.diff


def test_parameters_and_state_dict_keys_are_those_of_the_original() -> None:
    model = instance(CASES["typical"].source)
    completed = complete(model, CASES["typical"].config).model
    assert list(completed.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(completed.parameters(), model.parameters()))


def test_original_is_untouched() -> None:
    model = instance(CASES["typical"].source)
    before = type(model).forward
    training, state = model.training, torch.get_rng_state()
    complete(model, CASES["typical"].config)
    assert type(model).forward is before and model.training is training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_strict_refuses_conventions_and_allows_edges() -> None:
    case = CASES["typical"]
    with pytest.raises(
        GraphCompletionError, match="strict=True: residual_0_output could only be completed by convention"
    ):
        complete(instance(case.source), case.config, strict=True)
    parallel = CASES["edges of three terms"]
    source = parallel.source.replace(
        "return output_0_logits", "return layernorm_1_output @ self.embedding_0_token.weight.T"
    )
    assert complete(instance(source), parallel.config, strict=True).status == "completed"


def test_unknown_residual_reading_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"residual='other' is unknown\. Known: stream, sublayer_input"):
        complete(instance(CASES["typical"].source), residual="other")


SOUND = """import torch
import torch.nn as nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(29, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.unused = nn.Linear(8, 8)
        self.head = nn.Linear(8, 29)

    def forward(self, idx, layer_idx=None, attention_mask=None):
        x = self.emb(idx)
        for block in self.blocks:
            x = x + block(x)
        total = sum(p.sum() for p in (x, x)) * 0
        return self.head(x) + total
"""


def test_sound_model_is_left_alone() -> None:
    model = instance(SOUND)
    completion = complete(model, {"vocab_size": V})
    assert completion.status == "direct" and completion.model is model and completion.diff == ""


def test_correct_export_is_left_alone() -> None:
    source = CASES["typical"].source
    start = source.index("    def forward")
    correct = (
        source[:start]
        + """    def forward(self, input_ids, attention_mask=None):
        x = self.embedding_0_token(input_ids) + self.embedding_0_pos(torch.arange(input_ids.shape[1]))
        x = self.embedding_0_dropout(x)
        attended, _ = self.mhsa_0(x, x, x)
        skip = x + attended
        hidden = self.ffn_0(self.layernorm_0(skip))
        return self.layernorm_1(skip + hidden) @ self.embedding_0_token.weight.T
"""
    )
    assert complete(instance(correct), CASES["typical"].config).status == "direct"


def test_completed_module_is_an_ordinary_module(tmp_path) -> None:
    case = CASES["typical"]
    completed = completed_of(case).eval()
    ids = torch.randint(V, (2, 7))
    expected = completed(ids)
    torch.testing.assert_close(copy.deepcopy(completed)(ids), expected)
    torch.testing.assert_close(torch.compile(completed, fullgraph=True, backend="eager")(ids), expected)
    dims = {0: torch.export.Dim("batch", min=1, max=8), 1: torch.export.Dim("length", min=1, max=T)}
    exported = torch.export.export(completed, (ids,), dynamic_shapes={"input_ids": dims})
    torch.testing.assert_close(exported.module()(ids[:1, :3]), completed(ids[:1, :3]))
    (tmp_path / "model.pkl").write_bytes(pickle.dumps((completed, ids, expected)))
    script = "import pickle, sys, torch; m, i, e = pickle.load(open(sys.argv[1], 'rb')); torch.testing.assert_close(m(i), e); print('same')"
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path / "model.pkl")], capture_output=True, text=True)
    assert run.stdout.strip() == "same", run.stderr


def test_saved_source_is_importable_on_its_own(tmp_path) -> None:
    case = CASES["typical"]
    completion = complete(instance(case.source), case.config)
    path = completion.save(tmp_path / "completed.py")
    torch.manual_seed(0)
    again = import_source({"completed.py": path.read_text()}, "completed.py").Net()
    ids = torch.randint(V, (2, 5))
    torch.testing.assert_close(again.eval()(ids), completion.model.eval()(ids))
    assert complete(again, case.config, path.read_text()).status == "direct"


def test_executor_as_people_call_it() -> None:
    case = CASES["typical"]
    model = instance(case.source)
    inspector = ModelSignatureInspector(model)
    assert inspector.requires_intermediate_outputs()
    assert inspector.get_required_params() == [
        "input_0_tokens",
        "mhsa_0_output",
        "residual_0_output",
        "residual_1_output",
    ]
    executor = ComputationalGraphExecutor(model, inspector)
    ids = torch.randint(V, (2, 5))
    torch.testing.assert_close(
        executor.forward(ids, attention_mask=None), case.reference(model, ids), atol=1e-5, rtol=1e-5
    )


UNNUMBERED = """import torch
import torch.nn as nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(29, 8)
        self.attention = nn.Linear(8, 8)
        self.layer = nn.Linear(8, 29)

    def forward(s, input_ids, attention_mask=None, attention_bias=0.0, layer_idx=None):
        return s.layer(s.attention(s.embedding(input_ids)) + attention_bias)
"""


def test_arguments_that_begin_like_a_module_are_no_results_of_it() -> None:
    assert complete(instance(UNNUMBERED), {"vocab_size": V}).status == "direct"


def test_instance_may_have_another_name_than_self() -> None:
    case = CASES["typical"]
    start = case.source.index("    def forward")
    source = case.source[:start] + case.source[start:].replace("self", "this")
    adapted = adapt(instance(source), case.config)
    ids = torch.randint(V, (2, 5))
    torch.testing.assert_close(adapted(ids).logits, case.reference(adapted.model, ids), atol=1e-5, rtol=1e-5)
    assert adapted.completion.status == "completed"


def test_attention_mask_is_no_intermediate() -> None:
    class Net(nn.Module):
        def forward(self, input_ids, attention_mask, layer_idx, mhsa_bias=None): ...

    assert not ModelSignatureInspector(Net()).requires_intermediate_outputs()


def test_summary_and_html_escape_what_comes_from_the_export() -> None:
    source = CASES["typical"].source.replace("# residual: residual_1", "# residual: residual_1 <script>")
    completion = complete(instance(source), CASES["typical"].config, source)
    assert "residual_0_output" in completion.summary() and "assumption" in completion.summary()
    assert "<script>" not in completion._repr_html_()


AT_THE_PROMPT = """
import torch, torch.nn as nn
from utils.adapters.model_adapter import adapt
exec(compile({source!r}, "<stdin>", "exec"))
try:
    print(adapt(Net(), {{"vocab_size": 29}}).completion.status)
except Exception as error:
    print(type(error).__name__, str(error)[:60])
"""


@pytest.mark.parametrize(
    ("source", "answer"),
    [(SOUND, "direct"), (CASES["typical"].source, "CallContractError How to call Net could not be settled")],
)
def test_class_without_a_source_is_used_as_it_is(source: str, answer: str) -> None:
    script = AT_THE_PROMPT.format(source=source)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.stdout.startswith(answer), run.stdout + run.stderr


def test_class_of_a_notebook_cell_is_completed() -> None:
    """A cell's text lies in linecache, and its class in __main__: names come from there, not from the class's text."""
    source = CASES["typical"].source
    name = "<ipython-input-1-abc>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    namespace: dict = {"__name__": "cell"}
    sys.modules["cell"] = types.ModuleType("cell")
    sys.modules["cell"].__dict__.update(namespace)
    exec(compile(source, name, "exec"), sys.modules["cell"].__dict__)
    torch.manual_seed(0)
    adapted = adapt(sys.modules["cell"].Net(), CASES["typical"].config)
    ids = torch.randint(V, (2, 5))
    expected = CASES["typical"].reference(adapted.model, ids)
    torch.testing.assert_close(adapted(ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_same_input_gives_the_same_output() -> None:
    executor = ComputationalGraphExecutor(instance(CASES["every statement missing"].source).eval())
    ids = torch.randint(V, (2, 5))
    assert torch.equal(executor.forward(ids), executor.forward(ids))


def test_partial_edges_leave_the_rest_to_the_convention() -> None:
    case = CASES["typical"]
    names = (
        "input_0",
        "embedding_0",
        "mhsa_0",
        "residual_0",
        "layernorm_0",
        "ffn_0",
        "residual_1",
        "layernorm_1",
        "output_0",
    )
    config = nodes(*names, edges=[("ffn_0", "residual_1"), ("embedding_0", "mhsa_0")])
    adapted = adapt(instance(case.source), config, case.source)
    ids = torch.randint(V, (2, 5))
    torch.testing.assert_close(adapted(ids).logits, case.reference(adapted.model, ids), atol=1e-5, rtol=1e-5)
