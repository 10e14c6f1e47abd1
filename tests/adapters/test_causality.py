from __future__ import annotations

import copy
import io
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from adapters import planted_leaks
from adapters import sequence_mixers as s
from torch import nn

import utils.examples
from utils.adapters import causal_probe
from utils.adapters.attention import causal_twins
from utils.adapters.causality import make_causal, sees_future
from utils.adapters.contract import CallContract
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.errors import CallContractError
from utils.loading.model_loader import load_model

V, T = s.V, s.T
LEAKING = [
    s.Attention, s.TimeFirst, s.ProjectedFirst, s.OffByOne, s.Encoder, s.Convolution, s.Bidirectional, s.Mean, s.Flipped,
    s.NextEmbedding, s.LastOnly, s.Faint, s.OverTime, s.OnlyWhenLong, s.OnlyWhenShort, s.InChunks, s.OnePair, s.Fourier,
    s.LinearAttention, s.SymmetricWindow, s.Fused, s.InWindows, s.Sigmoid, *s.HEADS,
]  # fmt: skip
CLEAN = [
    s.Net, s.CausalAttention, s.CausalConvolution, s.Recurrent, s.StateSpace, s.RunningMean, s.CausalFourier,
    s.CausalLinearAttention, s.SlidingWindow, s.AcrossRows, s.BatchNormed, s.AlwaysDropout, s.MaskedLogits, s.OverHeads,
    s.CausalFused,
]  # fmt: skip


@pytest.mark.parametrize("kind", LEAKING)
def test_leak_is_found(kind: type[nn.Module]) -> None:
    report = sees_future(s.adapted(kind))
    assert not report.causal and report.leak > 0 and report.made_causal == ()
    assert report.moved_at < report.changed_at < report.length <= T
    assert f"position {report.changed_at}" in report.evidence and f"of {report.length} moved" in report.evidence


@pytest.mark.parametrize("kind", CLEAN)
def test_clean_model_is_not_blamed(kind: type[nn.Module]) -> None:
    model = s.adapted(kind)
    if kind is s.AcrossRows:  # rows that depend on rows: whether axis 0 is the batch cannot be seen from outside
        model = AdaptedModel(model.model, model.config, CallContract(vocab_size=V, output_size=V, max_length=T))
    report = sees_future(model)
    assert report.causal and report.leak == 0 and "moved no earlier logit" in report.evidence and report.length == T


def planted(kind: type[nn.Module]) -> AdaptedModel:
    torch.manual_seed(0)
    return adapt(kind(), planted_leaks.settings_of(kind))


@pytest.mark.parametrize("kind", planted_leaks.LEAKS)
def test_leak_that_few_texts_show_is_found(kind: type[nn.Module]) -> None:
    report = sees_future(planted(kind))
    assert not report.causal and report.leak > 0
    assert report.moved_at < report.changed_at < report.length <= kind.limit


@pytest.mark.parametrize("kind", planted_leaks.CLEAN)
def test_clean_model_that_looks_leaky_is_not_blamed(kind: type[nn.Module]) -> None:
    model = planted(kind)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    legacy = numpy.random
    sources = torch.get_rng_state(), random.getstate(), legacy.get_state()[1].tolist()
    report = sees_future(model)
    assert report.causal and report.leak == 0 and report.in_training == ""
    assert model.training and all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), sources[0])
    assert (random.getstate(), legacy.get_state()[1].tolist()) == sources[1:]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (planted_leaks.IfEndOfText, "(to id 11)"),
        (planted_leaks.IfRare, "(to id 3127)"),
        (planted_leaks.WindowEdge, "token at position 96 "),
        (planted_leaks.FarPair, "token at position 131 "),
    ],
)
def test_evidence_names_what_it_takes(kind: type[nn.Module], words: str) -> None:
    assert words in sees_future(planted(kind)).evidence


@pytest.mark.parametrize("kind", [planted_leaks.InTrainingOnly, s.BatchNormed])
def test_leak_in_training_mode_is_told_beside_the_verdict(kind: type[nn.Module]) -> None:
    report = sees_future(planted(kind))
    assert report.causal and "moved an earlier logit" in report.in_training
    assert f"but in training mode {report.in_training}" in report.evidence


def test_evidence_says_how_many_positions_of_a_long_text_were_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal_probe, "SEARCH_WORK", 0.0)
    assert "256 (from 8 of 255 positions on)" in sees_future(planted(planted_leaks.Long)).evidence
    monkeypatch.undo()
    assert sees_future(planted(planted_leaks.Long)).evidence.endswith("at lengths 2, 3, 12, 256")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("kind", "causal"),
    [(s.CausalAttention, True), (s.CausalFused, True), (s.Attention, False), (s.LastOnly, False), (s.Faint, False)],
)
def test_other_types_are_told_apart(kind: type[nn.Module], causal: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = kind().to(dtype)
    assert sees_future(adapt(model, {"vocab_size": V, "max_seq_len": T})).causal is causal
    assert next(model.parameters()).dtype == dtype


@pytest.mark.parametrize(
    ("family", "head", "causal"),
    [
        ("gpt2", "CausalLM", True), ("llama", "CausalLM", True), ("mamba", "CausalLM", True), ("opt", "CausalLM", True),
        ("bert", "MaskedLM", False), ("roberta", "MaskedLM", False), ("electra", "MaskedLM", False),
    ],
)  # fmt: skip
def test_transformers_are_told_apart(family: str, head: str, causal: bool) -> None:
    extra = (
        {"word_embed_proj_dim": 16, "ffn_dim": 32}
        if family == "opt"
        else {"state_size": 4}
        if family == "mamba"
        else {}
    )
    assert sees_future(s.hugging_face(family, head, **extra)).causal is causal


@pytest.mark.parametrize(
    ("kind", "changed", "moved", "length"),
    [(s.OnePair, 7, 6, 12), (s.OnlyWhenShort, 1, 0, 2), (s.LastOnly, 1, 0, 2)],
)
def test_evidence_is_the_smallest(kind: type[nn.Module], changed: int, moved: int, length: int) -> None:
    report = sees_future(s.adapted(kind))
    assert (report.changed_at, report.moved_at, report.length) == (changed, moved, length)


@pytest.mark.parametrize("kind", [s.CausalFourier, s.FourierBesideAttention])
def test_rounding_is_settled_in_float64(kind: type[nn.Module]) -> None:
    """The long convolution moves earlier logits in float32 by rounding alone; the check must see that and forgive it."""
    model = s.adapted(kind)
    ids = torch.randint(V, (1, T))
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] + 1) % V
    moved = float((model(ids).logits - model(changed).logits)[:, :-1].detach().abs().max())
    assert 0 < moved < 1e-4 and sees_future(model).causal


@pytest.mark.parametrize("rows", [1, 2])
def test_few_ids(rows: int) -> None:
    class Few(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = nn.Embedding(rows, 4)

        def forward(self, input_ids):
            x = self.emb(input_ids)
            return (x + x.mean(1, keepdim=True)) @ self.emb.weight.t()

    assert sees_future(adapt(Few())).causal is (rows == 1)  # one id has no other to be changed to


def test_model_of_one_length_is_asked_there() -> None:
    class Fixed(s.Mean):
        def forward(self, input_ids):
            if input_ids.shape[1] not in (5, T):
                raise ValueError("only 5 or 16 tokens")
            return super().forward(input_ids)

    assert sees_future(s.adapted(Fixed)).length == T


MADE = [
    s.Attention, s.TimeFirst, s.ProjectedFirst, s.OffByOne, s.Encoder, s.PreNormEncoder, s.TimeFirstEncoder,
    s.OwnLayerEncoder, s.PaddedEncoder, s.SymmetricWindow, s.Fused, s.InWindows, *s.HEADS,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("kind", MADE)
def test_made_causal_is_proven_and_keeps_the_weights(kind: type[nn.Module]) -> None:
    before = s.adapted(kind)
    after = make_causal(before)
    assert sees_future(after).causal and not sees_future(before).causal
    assert list(after.state_dict()) == list(before.state_dict())
    assert all(a is b for a, b in zip(before.parameters(), after.parameters()))
    assert "made causal by" in after.contract.reasons["causality"]
    ids = torch.randint(1, V, (2, 7))
    with torch.no_grad():
        whole, alone = after.eval()(ids).logits, before.eval()(ids[:, :1]).logits
        # one token has no future: position 0 is what the original gives for that token alone
        torch.testing.assert_close(whole[:, :1], alone, atol=1e-5, rtol=1e-5)
        # the past alone decides: a shorter text gives the same
        torch.testing.assert_close(after(ids[:, :4]).logits, whole[:, :4], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(after.train()(ids).logits, whole, atol=1e-5, rtol=1e-5)


def test_padding_takes_the_causal_mask_along() -> None:
    model = s.adapted(s.PaddedEncoder)
    causal = make_causal(model)
    ids = torch.tensor([[3, 4, 5, 0, 0], [1, 2, 3, 4, 5]])
    with torch.no_grad():
        whole = causal(ids).logits
        torch.testing.assert_close(whole[:1, :3], causal(ids[:1, :3]).logits, atol=1e-5, rtol=1e-5)
        assert torch.isfinite(whole).all()


@pytest.mark.parametrize("kind", [s.Heads, s.ByHand, s.ByHelper])
def test_attention_in_own_words_equals_an_independent_computation(kind: type[nn.Module]) -> None:
    causal = make_causal(s.adapted(kind))
    mixer, x = causal.model.mixer, torch.randn(2, 9, s.D)
    q, k, v = (y.unflatten(-1, (2, -1)).transpose(1, 2) for y in mixer.qkv(x).chunk(3, -1))
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), -1e30)
    expected = mixer.out((torch.exp(scores - scores.amax(-1, True)).div(
        torch.exp(scores - scores.amax(-1, True)).sum(-1, True)) @ v).transpose(1, 2).flatten(2))  # fmt: skip
    torch.testing.assert_close(mixer(x), expected, atol=1e-5, rtol=1e-5)


def test_cross_attention_beside_it_keeps_seeing_everything() -> None:
    causal = make_causal(s.adapted(s.BesideCross))
    (rule,) = type(causal.model.mixer).causal_rules
    assert rule.kind == "sdpa" and rule.indices == (0,)
    before = [float(p.detach().abs().sum()) for p in causal.parameters()]
    causal(torch.randint(V, (1, 7))).logits[:, 0].sum().backward()
    assert float(causal.model.mixer.latent.grad[:, :, -1].abs().sum()) > 0  # position 0 reads the last latent vector
    assert before == [float(p.detach().abs().sum()) for p in causal.parameters()]


def test_a_module_that_only_crosses_is_left_out() -> None:
    class Both(s.Attention):
        def make(self):
            return nn.ModuleDict({"own": super().make(), "cross": super().make(), "memory": nn.Embedding(6, s.D)})

        def mix(self, x):
            x = self.mixer["own"](x, x, x)[0]
            memory = self.mixer["memory"].weight.expand(len(x), -1, -1)
            return self.mixer["cross"](x, memory, memory)[0]

    causal = make_causal(s.adapted(Both))
    assert sees_future(causal).made_causal == ("model.mixer.own",)
    assert type(causal.model.mixer["cross"]) is nn.MultiheadAttention


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_transformers_equal_their_own_decoder(family: str, attention: str) -> None:
    transformers = pytest.importorskip("transformers")
    encoder = s.hugging_face(family, "MaskedLM", attention)
    causal = make_causal(encoder)
    assert causal.contract.task == "lm" and list(causal.state_dict()) == list(encoder.state_dict())
    assert encoder.model.config.is_decoder is False and not sees_future(encoder).causal
    decoder = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(family, **{**s.TINY, "is_decoder": True}), attn_implementation=attention
    ).eval()
    missing = decoder.load_state_dict(encoder.model.state_dict(), strict=False)
    assert not [name for name in missing.missing_keys if "predictions" not in name and "head" not in name]
    ids = torch.randint(2, V, (2, 9))
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    names = {"bert": "bert", "roberta": "roberta", "electra": "electra"}
    with torch.no_grad():
        one, other = (
            getattr(model, names[family])(ids, attention_mask=mask).last_hidden_state
            for model in (causal.model, decoder)
        )
    torch.testing.assert_close(one[mask == 1], other[mask == 1], atol=1e-5, rtol=1e-5)


def test_switch_that_a_mask_of_padding_undoes_is_not_enough() -> None:
    given = planted(planted_leaks.ForgetfulSwitch)
    switched = copy.deepcopy(given)
    switched.model.is_causal = True
    report = sees_future(switched)
    assert not report.causal and "where an attention mask hides the last token" in report.evidence
    causal = make_causal(given)
    assert causal.contract.reasons["causality"] == "made causal by a causal mask in its attention: model"
    ids = torch.randint(V, (1, 9))
    whole, padded = causal(ids).logits, causal(ids, torch.tensor([[1] * 6 + [0] * 3])).logits
    torch.testing.assert_close(padded[:, :6], whole[:, :6], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "sizes"), [("distilbert", {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}), ("albert", {})]
)
def test_padding_leaves_transformers_causal(family: str, sizes: dict[str, int]) -> None:
    causal = make_causal(s.hugging_face(family, "MaskedLM", **sizes))
    ids = torch.randint(2, V, (1, 9))
    with torch.no_grad():
        whole, padded = causal(ids).logits, causal(ids, torch.tensor([[1] * 6 + [0] * 3])).logits
    torch.testing.assert_close(padded[:, :6], whole[:, :6], atol=1e-5, rtol=1e-5)


def test_transformers_without_a_switch_are_masked_at_their_attention() -> None:
    model = s.hugging_face("distilbert", "MaskedLM", dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    causal = make_causal(model)
    assert "attention" in causal.contract.reasons["causality"] and sees_future(causal).causal
    assert sees_future(causal).made_causal or "switches" in causal.contract.reasons["causality"]


def test_causal_attention_equals_an_explicit_mask() -> None:
    leaking = s.adapted(s.Attention)
    explicit = s.CausalAttention()
    explicit.load_state_dict(leaking.model.state_dict())
    ids = torch.randint(V, (3, 9))
    torch.testing.assert_close(make_causal(leaking)(ids).logits, explicit(ids))


def test_causal_model_is_returned_as_it_is() -> None:
    model = s.adapted(s.CausalAttention)
    assert make_causal(model) is model


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (s.Mean, "cannot be made causal from outside"),
        (s.Convolution, "is_causal=True"),
        (s.Sigmoid, "masked objective"),
        (s.Bidirectional, "cannot be made causal from outside"),
        (s.Checkpointed, "cannot be made causal from outside"),
    ],
)
def test_what_cannot_be_made_causal_says_so(kind: type[nn.Module], words: str) -> None:
    with pytest.raises(CallContractError, match=words):
        make_causal(s.adapted(kind))


def test_leak_beside_the_attention_is_still_found_afterwards() -> None:
    class Both(s.Attention):
        def mix(self, x):
            return super().mix(x) + x.mean(1, keepdim=True)

    with pytest.raises(CallContractError, match=r"still sees later tokens after its attention \(model.mixer\)"):
        make_causal(s.adapted(Both))


def test_bundled_export_sees_the_future_until_it_is_made_causal() -> None:
    export = adapt(load_model(utils.examples.path()))
    assert not sees_future(export).causal
    assert causal_twins(export) == ["model.mhsa_0", "model.mhsa_1"]
    report = sees_future(make_causal(export))
    assert report.causal and report.made_causal == ("model.mhsa_0", "model.mhsa_1")


def test_asking_leaves_the_model_as_it_was() -> None:
    model = s.adapted(s.Attention).train()
    state, weights = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    sees_future(model)
    assert model.training and model.model.mixer.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), model.state_dict().values()))
    assert all(p.grad is None and not m._forward_hooks for m in model.modules() for p in m.parameters())


def test_classification_has_no_future() -> None:
    class Classifier(s.Net):
        def forward(self, input_ids):
            return super().forward(input_ids).mean(1)[:, :3]

    with pytest.raises(CallContractError, match="one row of scores per sequence"):
        sees_future(s.adapted(Classifier))


SURVIVORS = [s.Encoder, s.ByHand, s.WithBoolMask, s.BesideCross]


@pytest.mark.parametrize("kind", SURVIVORS)
def test_causal_model_compiles_and_exports(kind: type[nn.Module]) -> None:
    causal = make_causal(s.adapted(kind)).eval()
    long, short = torch.randint(V, (2, 9)), torch.randint(V, (3, 6))
    torch._dynamo.reset()
    compiled = torch.compile(causal, fullgraph=True, backend="eager", dynamic=True)
    batch, length = torch.export.Dim("batch", min=2, max=8), torch.export.Dim("length", min=2, max=T)
    exported = torch.export.export(causal, (long,), dynamic_shapes={"input_ids": {0: batch, 1: length}},
                                   strict=False).module()  # fmt: skip
    for ids in (long, short):
        expected = causal(ids).logits
        torch.testing.assert_close(compiled(ids).logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(exported(ids).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", SURVIVORS)
def test_causal_model_is_copied_and_pickled(kind: type[nn.Module]) -> None:
    causal = make_causal(s.adapted(kind))
    ids = torch.randint(V, (2, 9))
    for again in (copy.deepcopy(causal), pickle.loads(pickle.dumps(causal))):
        torch.testing.assert_close(again(ids).logits, causal(ids).logits)
        assert sees_future(again).causal and type(again.model.mixer) is type(causal.model.mixer)
        again.load_state_dict(causal.state_dict())


def test_causal_models_reach_another_process(tmp_path: Path) -> None:
    models = [make_causal(s.adapted(kind)) for kind in SURVIVORS]
    ids = torch.randint(V, (2, 9))
    buffer = io.BytesIO()
    pickle.dump((models, ids, [model(ids).logits.detach() for model in models]), buffer)
    (tmp_path / "models.pickle").write_bytes(buffer.getvalue())
    code = (
        "import pickle, sys, torch\n"
        "models, ids, expected = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(max(float((m(ids).logits - e).abs().max()) for m, e in zip(models, expected)) < 1e-6)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'tests')!r}]\n{code}", str(tmp_path / "models.pickle")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "True", done.stderr


def test_replicas_on_threads_stay_causal() -> None:
    from concurrent.futures import ThreadPoolExecutor

    causal = make_causal(s.adapted(s.Heads)).eval()
    replicas = [causal, copy.deepcopy(causal)]
    batches = [torch.randint(V, (2, 9)) for _ in range(8)]
    with ThreadPoolExecutor(2) as pool:
        given = list(pool.map(lambda pair: replicas[pair[0] % 2](pair[1]).logits, enumerate(batches)))
    for ids, logits in zip(batches, given):
        torch.testing.assert_close(causal(ids).logits, logits)
