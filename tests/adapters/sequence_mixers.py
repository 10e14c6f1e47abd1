"""Models with a known answer to "does it see the future?", one way of mixing positions each. Shared by the tests of
causality, attention and attention maps; importable, so that instances pickle to another process."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import torch.nn.functional as other_name
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from utils.adapters.model_adapter import AdaptedModel, adapt

V, D, T = 23, 16, 16


class Net(nn.Module):
    """Embedding, positions, one mixer on a residual stream, head. Causal where `mix` is."""

    limit = T

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.pos, self.head = nn.Embedding(V, D), nn.Embedding(self.limit, D), nn.Linear(D, V)
        self.mixer = self.make()

    def make(self) -> nn.Module:
        return nn.Identity()

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixer(x)

    def forward(self, input_ids):
        x = self.emb(input_ids) + self.pos(torch.arange(input_ids.shape[1]))
        return self.head(x + self.mix(x))


def past(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()


class Attention(Net):
    causal = None

    def make(self):
        return nn.MultiheadAttention(D, 2, batch_first=True)

    def mix(self, x):
        mask = None if self.causal is None else ~past(x)
        return self.mixer(x, x, x, attn_mask=mask, need_weights=False)[0]


class CausalAttention(Attention):
    causal = "yes"


class TimeFirst(Net):
    def make(self):
        return nn.MultiheadAttention(D, 2)

    def mix(self, x):
        y = x.transpose(0, 1)
        return self.mixer(y, y, y)[0].transpose(0, 1)


class ProjectedFirst(Attention):
    """Query, key and value of `nn.MultiheadAttention` are three tensors."""

    def mix(self, x):
        return self.mixer(x * 1.0, x + 0.0, x * 1.0)[0]


class OffByOne(Attention):
    """The mask begins one column too late."""

    def mix(self, x):
        mask = torch.full((x.shape[1],) * 2, float("-inf")).triu(2)
        return self.mixer(x, x, x, attn_mask=mask)[0]


class Encoder(Net):
    norm_first, batch_first, nested = False, True, True

    def make(self):
        layer = nn.TransformerEncoderLayer(D, 2, 32, 0.0, batch_first=self.batch_first, norm_first=self.norm_first)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=self.nested and self.batch_first)

    def mix(self, x):
        return self.mixer(x) if self.batch_first else self.mixer(x.transpose(0, 1)).transpose(0, 1)


class PreNormEncoder(Encoder):
    norm_first, nested = True, False


class TimeFirstEncoder(Encoder):
    batch_first = False


class OwnLayer(nn.TransformerEncoderLayer):
    pass


class OwnLayerEncoder(Encoder):
    def make(self):
        return nn.TransformerEncoder(OwnLayer(D, 2, 32, 0.0, batch_first=True), 2)


class PaddedEncoder(Encoder):
    """Pads with id 0 and takes the short cut of nested tensors."""

    def forward(self, input_ids):
        x = self.emb(input_ids) + self.pos(torch.arange(input_ids.shape[1]))
        hidden = self.mixer(x, src_key_padding_mask=(input_ids == 0) & (torch.arange(input_ids.shape[1]) > 0))
        return self.head(x + F.pad(hidden, (0, 0, 0, x.shape[1] - hidden.shape[1])))


class Convolution(Net):
    def make(self):
        return nn.Conv1d(D, D, 3, padding=1)

    def mix(self, x):
        return self.mixer(x.transpose(1, 2)).transpose(1, 2)


class CausalConvolution(Convolution):
    def make(self):
        return nn.Conv1d(D, D, 3)

    def mix(self, x):
        return self.mixer(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)


class Recurrent(Net):
    def make(self):
        return nn.GRU(D, D, batch_first=True)

    def mix(self, x):
        return self.mixer(x)[0]


class Bidirectional(Recurrent):
    def make(self):
        return nn.GRU(D, D // 2, batch_first=True, bidirectional=True)


class StateSpace(Net):
    """A diagonal linear recurrence."""

    def make(self):
        return nn.Linear(D, D)

    def mix(self, x):
        state, states = torch.zeros_like(x[:, 0]), []
        for step in self.mixer(x).unbind(1):
            state = 0.9 * state + step
            states.append(state)
        return torch.stack(states, 1)


class Mean(Net):
    def mix(self, x):
        return x.mean(1, keepdim=True)


class RunningMean(Net):
    def mix(self, x):
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


class Flipped(Net):
    def mix(self, x):
        return x.flip(1)


class NextEmbedding(Net):
    """Leaks exactly one position ahead."""

    def mix(self, x):
        return torch.cat([x[:, 1:], x[:, -1:]], 1)


class LastOnly(Net):
    """Only the last token leaks, into every earlier position."""

    def mix(self, x):
        return 1e-2 * x[:, -1:].expand_as(x)


class Faint(Net):
    """A leak of about a hundred-thousandth of the largest logit."""

    def mix(self, x):
        return 1e-5 * x.mean(1, keepdim=True)


class VeryFaint(Net):
    """A leak that float32 can hardly show."""

    def mix(self, x):
        return 1e-6 * x.mean(1, keepdim=True)


class FixedType(Net):
    """A faint leak in code that always computes in float32."""

    def mix(self, x):
        return (1e-4 * x.float().mean(1, keepdim=True)).to(x.dtype)


class NotANumber(Net):
    def mix(self, x):
        return x * float("nan")


class OverTime(Net):
    """Normalises each channel over the sequence."""

    def mix(self, x):
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True, unbiased=False) + 1e-5)


class OnlyWhenLong(Net):
    def mix(self, x):
        return x.mean(1, keepdim=True) if x.shape[1] > 13 else x


class OnlyWhenShort(Net):
    """The mask covers sequences of 12 tokens and more."""

    def mix(self, x):
        return x if x.shape[1] >= 12 else x.mean(1, keepdim=True)


class InChunks(Net):
    """Pieces of 4 tokens see themselves whole."""

    def mix(self, x):
        padded = F.pad(x, (0, 0, 0, -x.shape[1] % 4))
        return (
            padded.view(len(x), -1, 4, D)
            .mean(2, keepdim=True)
            .expand(-1, -1, 4, -1)
            .reshape(padded.shape)[:, : x.shape[1]]
        )


class OnePair(Net):
    """Position 6 sees position 7, and nothing else leaks."""

    def mix(self, x):
        return torch.cat([x[:, :6], x[:, 6:7] + x[:, 7:8].sum(1, keepdim=True), x[:, 7:]], 1) if x.shape[1] > 7 else x


class Fourier(Net):
    def mix(self, x):
        return torch.fft.fft2(x, dim=(1, 2)).real


class CausalFourier(Net):
    """A long causal convolution by way of the Fourier transform: clean, but rounding reaches earlier positions."""

    def make(self):
        return nn.Embedding(T, D)

    def mix(self, x):
        size = 2 * x.shape[1]
        kernel = self.mixer.weight[: x.shape[1]]
        return torch.fft.irfft(torch.fft.rfft(x, size, 1) * torch.fft.rfft(kernel, size, 0), size, 1)[:, : x.shape[1]]


class RoundedFourier(CausalFourier):
    """Clean, with rounding of about a ten-thousandth: two large results cancel."""

    def mix(self, x):
        return super().mix(x + 1e4) - super().mix(torch.full_like(x, 1e4))


class FourierBesideAttention(CausalFourier):
    """Clean, with rounding, and with an attention mask that stays in float32 whatever the type of the weights."""

    def mix(self, x):
        later = torch.full((x.shape[1], x.shape[1]), float("-inf"), dtype=torch.float32).triu(1)
        return super().mix(x) + F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], later)[:, 0]


class LinearAttention(Net):
    summed = staticmethod(lambda x: x.sum(1, keepdim=True))

    def mix(self, x):
        feature = F.elu(x) + 1
        memory = self.summed(feature[..., :, None] * x[..., None, :])  # (B, T, D, D)
        return torch.einsum("btd,btde->bte", feature, memory.expand(-1, x.shape[1], -1, -1)) / 100


class CausalLinearAttention(LinearAttention):
    summed = staticmethod(lambda x: x.cumsum(1))


class SlidingWindow(Net):
    """Each position sees itself and two before."""

    def mix(self, x):
        seen = past(x) & ~past(x).tril(-3)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=seen)


class SymmetricWindow(Net):
    def mix(self, x):
        near = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(1).triu(-1)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=near)


class AcrossRows(Net):
    """Rows of the batch see each other at their own position: no future, though rows depend on rows."""

    def mix(self, x):
        return x.mean(0, keepdim=True).expand_as(x)


class BatchNormed(Net):
    def make(self):
        return nn.BatchNorm1d(D)

    def mix(self, x):
        return self.mixer(x.transpose(1, 2)).transpose(1, 2)


class AlwaysDropout(CausalAttention):
    """Draws at random in eval mode too."""

    def mix(self, x):
        return F.dropout(super().mix(x), 0.5, training=True)


class MaskedLogits(CausalAttention):
    """Forbids one id with minus infinity."""

    def forward(self, input_ids):
        return super().forward(input_ids).index_fill(2, torch.tensor([0]), float("-inf"))


class OverHeads(Net):
    """Attention between the heads of one position: no future."""

    def mix(self, x):
        y = x.view(*x.shape[:2], 4, 4)
        return F.scaled_dot_product_attention(y, y, y).flatten(2)


class Fused(Net):
    def mix(self, x):
        return F.scaled_dot_product_attention(x, x, x)


class CausalFused(Net):
    def mix(self, x):
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)


class Heads(nn.Module):
    """Multi-head attention in its own words; `weigh` is what differs."""

    heads = 2

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        return self.out(self.weigh(q, k, v).transpose(1, 2).flatten(2))

    def weigh(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


class ByImport(Heads):
    def weigh(self, q, k, v):
        return scaled_dot_product_attention(q, k, v, scale=0.3)


class ByAlias(Heads):
    def weigh(self, q, k, v):
        return other_name.scaled_dot_product_attention(q, k, v)


class ByFullName(Heads):
    def weigh(self, q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(query=q, key=k, value=v)


def helper(q, k, v, attend=F.scaled_dot_product_attention):
    return (lambda *tensors: attend(*tensors))(q, k, v)


class ByHelper(Heads):
    def weigh(self, q, k, v):
        return helper(q, k, v)


class WithBoolMask(Heads):
    """The mask keeps every third earlier key, and the key itself, out of sight."""

    def weigh(self, q, k, v):
        n = q.shape[-2]
        distance = torch.arange(n)[:, None] - torch.arange(n)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=(distance % 3 != 1))


class WithBias(Heads):
    """Additive positional bias."""

    def weigh(self, q, k, v):
        n = q.shape[-2]
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=-(torch.arange(n)[:, None] - torch.arange(n)).abs() * 0.1
        )


class Grouped(Heads):
    def weigh(self, q, k, v):
        return F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True)


class ByHand(Heads):
    def weigh(self, q, k, v):
        return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1) @ v


class ByMethod(Heads):
    def weigh(self, q, k, v):
        return (q @ k.mT).softmax(-1) @ v


class BySoftmaxModule(Heads):
    def __init__(self) -> None:
        super().__init__()
        self.softmax = nn.Softmax(dim=-1)

    def weigh(self, q, k, v):
        return self.softmax(q @ k.mT) @ v


class KeysFirst(Heads):
    """Scores are (keys, queries)."""

    def weigh(self, q, k, v):
        return F.softmax(k @ q.mT, dim=-2).mT @ v


class HeadsLast(Heads):
    """Scores are (B, queries, heads, keys)."""

    def weigh(self, q, k, v):
        scores = torch.einsum("bhqd,bhkd->bqhk", q, k)
        return torch.einsum("bqhk,bhkd->bhqd", F.softmax(scores, -1, dtype=torch.float32), v)


class BySwitch(Heads):
    def __init__(self) -> None:
        super().__init__()
        self.causal = False

    def weigh(self, q, k, v):
        weights = (q @ k.mT).exp()
        weights = weights.tril() if self.causal else weights
        return weights / weights.sum(-1, keepdim=True) @ v


class ByWrongSwitch(BySwitch):
    """The switch changes more than the mask."""

    def weigh(self, q, k, v):
        return super().weigh(q, k, v * (1 + self.causal))


class BesideCross(Heads):
    """Self-attention, and attention to as many learnt vectors as a probe has tokens (5 and 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.randn(1, self.heads, 7, D // self.heads))

    def weigh(self, q, k, v):
        latent = self.latent.expand(q.shape[0], -1, -1, -1)
        return F.scaled_dot_product_attention(q, k, v) + F.scaled_dot_product_attention(q, latent, latent)


class InWindows(Heads):
    """Attention inside windows of 4 positions."""

    def weigh(self, q, k, v):
        pieces = zip(*(y.split(4, -2) for y in (q, k, v)))
        return torch.cat([F.scaled_dot_product_attention(*piece) for piece in pieces], -2)


class Sigmoid(Heads):
    """Weights without a softmax: nothing that could be masked from outside."""

    def weigh(self, q, k, v):
        return torch.sigmoid(q @ k.mT) @ v


class Checkpointed(Heads):
    """Computes its attention a second time in the backward pass, out of reach."""

    def weigh(self, q, k, v):
        from torch.utils.checkpoint import checkpoint

        return checkpoint(F.scaled_dot_product_attention, q, k, v, use_reentrant=False)


HEADS = [
    Heads, ByImport, ByAlias, ByFullName, ByHelper, WithBoolMask, WithBias, Grouped, ByHand, ByMethod, BySoftmaxModule,
    KeysFirst, HeadsLast, BySwitch, BesideCross,
]  # fmt: skip
"""Self-attention over the sequence in its own words, each of which can be made causal from outside."""


class Holding(Net):
    """A net whose mixer is of the given class."""

    def __init__(self, mixer: type[nn.Module]) -> None:
        super().__init__()
        self.mixer = mixer()


def adapted(kind: type[nn.Module]) -> AdaptedModel:
    """The net of that class, or one that holds a mixer of it."""
    torch.manual_seed(0)
    model = kind() if issubclass(kind, Net) else Holding(kind)
    return adapt(model.eval(), {"vocab_size": V, "max_seq_len": T})


TINY = {
    "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 24, "embedding_size": 16, "num_key_value_heads": 1, "pad_token_id": 1,
}  # fmt: skip


def hugging_face(family: str, head: str, attention: str = "sdpa", **changes: object) -> AdaptedModel:
    """A tiny model of transformers with random weights; its test is skipped where transformers is not installed."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(family, **{**TINY, **changes})
    chosen = {} if family == "mamba" else {"attn_implementation": attention}
    torch.manual_seed(0)
    return adapt(getattr(transformers, f"AutoModelFor{head}").from_config(config, **chosen).eval())
