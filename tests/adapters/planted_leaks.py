"""Models that leak where few texts show it, and clean ones that look as if they leaked. Shared by the tests of causality."""

from __future__ import annotations

import random

import numpy
import torch
import torch.nn.functional as F
from adapters.sequence_mixers import CausalAttention, Net, V, past
from torch import nn

D = 16
LONG = 256


class Long(Net):
    limit = LONG


class BeyondSixtyFour(Long):
    def mix(self, x):
        return torch.cat([x[:, :64], x[:, 64:].mean(1, keepdim=True).expand_as(x[:, 64:])], 1) if x.shape[1] > 64 else x


class WindowEdge(Long):
    """The last position of a window of 32 sees the first of the next, in one window only."""

    def mix(self, x):
        y = x.clone()
        if x.shape[1] > 96:
            y[:, 95] = y[:, 95] + x[:, 96]
        return y


class FarPair(Long):
    """Position 130 sees position 131, and nothing else leaks."""

    def mix(self, x):
        y = x.clone()
        if x.shape[1] > 131:
            y[:, 130] = y[:, 130] + 0.1 * x[:, 131]
        return y


class NextToLastSeesLast(Net):
    def mix(self, x):
        return torch.cat([x[:, :-2], x[:, -1:], x[:, -1:]], 1) if x.shape[1] > 1 else x


class BatchStatistics(Net):
    """BatchNorm that never keeps statistics: normalises over the batch and over time, in eval mode too."""

    def make(self):
        return nn.BatchNorm1d(D, track_running_stats=False)

    def mix(self, x):
        return self.mixer(x.transpose(1, 2)).transpose(1, 2)


class LayerNormOverTime(Net):
    def mix(self, x):
        return F.layer_norm(x.transpose(1, 2), (x.shape[1],)).transpose(1, 2)


class Gate(Net):
    """Squeeze and excite: one gate for the whole sequence."""

    def make(self):
        return nn.Linear(D, D)

    def mix(self, x):
        return x * torch.sigmoid(self.mixer(x.mean(1)))[:, None]


class ChoppedAtTheWrongEnd(Net):
    def make(self):
        return nn.Conv1d(D, D, 3, padding=4, dilation=2)

    def mix(self, x):
        return self.mixer(x.transpose(1, 2))[:, :, 4:].transpose(1, 2)


class ReversedRecurrence(Net):
    def make(self):
        return nn.RNN(D, D, batch_first=True)

    def mix(self, x):
        return self.mixer(x.flip(1))[0].flip(1)


class LastState(Net):
    """A recurrence that is clean, beside its last state for everybody."""

    def make(self):
        return nn.LSTM(D, D, batch_first=True)

    def mix(self, x):
        y, (state, _) = self.mixer(x)
        return y + 0.1 * state[0][:, None]


class ExpertsChoose(Net):
    """Each of 3 experts takes the third of the sequence that it likes best."""

    def make(self):
        return nn.ModuleList([nn.Linear(D, 3), *(nn.Linear(D, D) for _ in range(3))])

    def mix(self, x):
        router, *experts = self.mixer
        scores, out = router(x).softmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(experts):
            weight, index = scores[..., number].topk(max(1, x.shape[1] // 3), dim=1)
            places = index[..., None].expand(-1, -1, D)
            out = out.scatter_add(1, places, weight[..., None] * expert(x.gather(1, places)))
        return out


class FullExperts(Net):
    """Tokens choose one of 2 experts, each of which keeps a third of the sequence, the surest tokens first."""

    def make(self):
        return nn.ModuleList([nn.Linear(D, 2), nn.Linear(D, D), nn.Linear(D, D)])

    def mix(self, x):
        router, *experts = self.mixer
        weight, index = router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(experts):
            sure = torch.where(index == number, weight, torch.tensor(-1.0))
            rank = sure.argsort(1, descending=True).argsort(1)
            out = out + ((index == number) & (rank < max(1, x.shape[1] // 3)))[..., None] * expert(x)
        return out


class SoftMask(Net):
    """The mask subtracts 12 where it should hide."""

    def mix(self, x):
        hidden = torch.zeros(x.shape[1], x.shape[1]).masked_fill(~past(x), -12.0)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=hidden)


class MaskedAfterSoftmax(Net):
    """Future weights are cut off, but the others were divided by them."""

    def mix(self, x):
        return (x @ x.mT / 4).softmax(-1).tril() @ x


class Tiny(Net):
    def mix(self, x):
        return 1e-4 * x.flip(1)


class InDouble(Net):
    def __init__(self) -> None:
        super().__init__()
        self.double()

    def mix(self, x):
        return 1e-6 * x.mean(1, keepdim=True)


class WrongCumulativeSum(Net):
    def mix(self, x):
        return x.flip(1).cumsum(1).flip(1) / 10


class ByArgmax(Net):
    """The embedding of the strongest position: no derivative tells of it."""

    def mix(self, x):
        return 0.1 * x[torch.arange(len(x)), x.sum(-1).argmax(1)][:, None]


class BySign(Net):
    """The sign of the mean over everything, which most texts share."""

    def mix(self, x):
        return x + 0.05 * torch.sign(x.mean((1, 2), keepdim=True))


class ByThreshold(Net):
    """A step where the mean over everything is high, as it hardly ever is."""

    def mix(self, x):
        return x + 0.5 * (x.mean((1, 2), keepdim=True) > 0.12)


class Quantised(Net):
    """Rounds to 8 bits with one scale for the sequence."""

    def mix(self, x):
        scale = x.abs().amax((1, 2), keepdim=True) / 127
        return (x / scale).round() * scale


class Downsampled(Net):
    def mix(self, x):
        halves = F.avg_pool1d(x.transpose(1, 2), 2, ceil_mode=True)
        return F.interpolate(halves, size=x.shape[1], mode="nearest").transpose(1, 2)


class PrefixOfFour(Net):
    """The first 4 positions see each other."""

    def mix(self, x):
        mask = past(x)
        mask[:4, :4] = True
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


class IfAnyIs(Net):
    """Everything grows where a certain id stands anywhere."""

    rows, settings, special = 5000, {}, 4999

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(self.rows, D), nn.Linear(D, self.rows)

    def forward(self, input_ids):
        x = self.emb(input_ids) + self.pos(torch.arange(input_ids.shape[1]))
        return self.head(x * (1 + 0.5 * (input_ids == self.special).any(1)[:, None, None]))


class IfEndOfText(IfAnyIs):
    settings, special = {"eos_token_id": 11}, 11


class IfMasked(IfAnyIs):
    special = 17

    def __init__(self) -> None:
        super().__init__()
        self.mask_token_id = 17


class IfRare(IfAnyIs):
    special = 3127


class IfRepeated(Net):
    """A token that is repeated next knows it."""

    def forward(self, input_ids):
        x = self.emb(input_ids) + self.pos(torch.arange(input_ids.shape[1]))
        following = F.pad(input_ids[:, 1:], (0, 1), value=-1)
        return self.head(x + 0.1 * (following == input_ids)[..., None] * x)


class ForgetfulSwitch(Net):
    """Sees everything, and has a switch against it that holds only as long as no mask of padding comes, as in DistilBERT."""

    def __init__(self) -> None:
        super().__init__()
        self.is_causal = False

    def forward(self, input_ids, attention_mask=None):
        x = self.emb(input_ids) + self.pos(torch.arange(input_ids.shape[1]))
        mask = None if attention_mask is None else attention_mask[:, None, :].bool()
        hidden = F.scaled_dot_product_attention(x, x, x, attn_mask=mask, is_causal=self.is_causal and mask is None)
        return self.head(x + hidden)


LEAKS = [
    BeyondSixtyFour, WindowEdge, FarPair, NextToLastSeesLast, BatchStatistics, LayerNormOverTime, Gate,
    ChoppedAtTheWrongEnd, ReversedRecurrence, LastState, ExpertsChoose, FullExperts, SoftMask, MaskedAfterSoftmax, Tiny,
    InDouble, WrongCumulativeSum, ByArgmax, BySign, ByThreshold, Quantised, Downsampled, PrefixOfFour, IfAnyIs,
    IfEndOfText, IfMasked, IfRare, IfRepeated, ForgetfulSwitch,
]  # fmt: skip


class DilatedConvolution(Net):
    def make(self):
        return nn.Conv1d(D, D, 3, padding=4, dilation=2)

    def mix(self, x):
        return self.mixer(x.transpose(1, 2))[:, :, : x.shape[1]].transpose(1, 2)


class TimeMix(Net):
    """In the manner of RWKV: a decaying weighted mean of values."""

    def make(self):
        return nn.ModuleList(nn.Linear(D, D) for _ in range(3))

    def mix(self, x):
        receptance, key, value = (layer((x + F.pad(x, (0, 0, 1, -1))) / 2) for layer in self.mixer)
        above = below = torch.zeros_like(x[:, 0])
        out = []
        for k, v in zip(key.exp().unbind(1), value.unbind(1)):
            above, below = 0.9 * above + k * v, 0.9 * below + k
            out.append(above / (below + 1e-6))
        return torch.stack(out, 1) * receptance.sigmoid()


class SelectiveScan(Net):
    """In the manner of Mamba, as a cumulative sum in logarithms: rounding grows along the sequence."""

    def make(self):
        return nn.Linear(D, 2 * D)

    def mix(self, x):
        step, value = self.mixer(x).chunk(2, -1)
        decay = (-F.softplus(step)).cumsum(1)
        return (decay.exp() * ((-decay).exp() * value).cumsum(1)).clamp(-50, 50)


class LinearBias(Net):
    """In the manner of ALiBi."""

    def mix(self, x):
        distance = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        bias = (-0.5 * distance).masked_fill(distance < 0, float("-inf"))
        return F.scaled_dot_product_attention(x, x, x, attn_mask=bias)


class FiniteMask(Net):
    """Hides by a large finite number, as much code does."""

    def mix(self, x):
        return (x @ x.mT / 4).masked_fill(~past(x), -1e4).softmax(-1) @ x


class LearntPrefix(Net):
    def make(self):
        return nn.Embedding(4, D)

    def mix(self, x):
        keys = torch.cat([self.mixer.weight.expand(len(x), -1, -1), x], 1)
        seen = F.pad(past(x), (4, 0), value=True)
        return F.scaled_dot_product_attention(x, keys, keys, attn_mask=seen)


class ChunksAndTheirPast(Net):
    def mix(self, x):
        chunk = torch.arange(x.shape[1]) // 4
        return F.scaled_dot_product_attention(x, x, x, attn_mask=past(x) & (chunk[:, None] - chunk <= 1))


class DropoutInTraining(CausalAttention):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.9)

    def mix(self, x):
        return self.drop(super().mix(x))


class TokensChoose(Net):
    def make(self):
        return nn.ModuleList([nn.Linear(D, 3), *(nn.Linear(D, D) for _ in range(3))])

    def mix(self, x):
        router, *experts = self.mixer
        weight, index = router(x).softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(experts):
            row, place, rank = (index == number).nonzero(as_tuple=True)
            out.index_put_((row, place), weight[row, place, rank][:, None] * expert(x[row, place]), accumulate=True)
        return out


class Rescaled(Net):
    """Divides by the largest number of the sequence and multiplies it back: rounding alone tells of the future."""

    def mix(self, x):
        largest = x.abs().amax((1, 2), keepdim=True)
        return x / largest * largest


class HalfInside(Net):
    def mix(self, x):
        y = x.bfloat16()
        return F.scaled_dot_product_attention(y, y, y, is_causal=True).float()


class KeyCache(Net):
    """Writes its keys into a buffer, for generation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(64, self.limit, D), persistent=False)
        self.calls: list[int] = []

    def mix(self, x):
        self.calls.append(x.shape[1])
        self.keys[: len(x), : x.shape[1]] = x.detach()
        keys = self.keys[: len(x), : x.shape[1]].clone()
        return F.scaled_dot_product_attention(x, keys, keys, is_causal=True)


class RunningBuffer(Net):
    """Each call leaves something behind that moves the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(D))

    def mix(self, x):
        y = x + 0.1 * self.mean
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 1))
        return y


class OneToken(Net):
    limit = 1


class Draws(CausalAttention):
    """Draws at random in eval mode, from a different source in each subclass."""

    def noise(self, x):
        return torch.randn(len(x), 1, D)

    def mix(self, x):
        return super().mix(x) + 0.1 * self.noise(x)


class DrawsFromNumpy(Draws):
    def noise(self, x):
        shared = numpy.random  # the global state, as much code does
        return torch.from_numpy(shared.standard_normal(x.shape)).float()


class DrawsFromPython(Draws):
    def noise(self, x):
        return random.random()


class DrawsFromItsOwn(Draws):
    def __init__(self) -> None:
        super().__init__()
        self.source = torch.Generator().manual_seed(1)

    def noise(self, x):
        return torch.randn(x.shape, generator=self.source)


class Documents(Net):
    """Packed texts, apart at id 1, see their own past only; id 0 is padding."""

    def forward(self, input_ids):
        x = self.emb(input_ids) + self.pos(torch.arange(input_ids.shape[1]))
        text = (input_ids == 1).cumsum(1)
        seen = (text[:, :, None] == text[:, None]) & past(x) & (input_ids != 0)[:, None]
        seen = seen | torch.eye(x.shape[1], dtype=torch.bool)
        return self.head(x + F.scaled_dot_product_attention(x, x, x, attn_mask=seen))


class Retention(Net):
    def mix(self, x):
        distance = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        return (x @ x.mT * (0.9 ** distance.clamp(min=0) * (distance >= 0))) @ x / 10


class RunningMaximum(Net):
    def mix(self, x):
        return x.cummax(1)[0]


class LargeLogits(CausalAttention):
    def forward(self, input_ids):
        return super().forward(input_ids) * 1e6


CLEAN = [
    DilatedConvolution, TimeMix, SelectiveScan, LinearBias, FiniteMask, LearntPrefix, ChunksAndTheirPast,
    DropoutInTraining, TokensChoose, Rescaled, HalfInside, KeyCache, RunningBuffer, OneToken, Draws, DrawsFromNumpy,
    DrawsFromPython, DrawsFromItsOwn, Documents, Retention, RunningMaximum, LargeLogits,
]  # fmt: skip


class InTrainingOnly(Net):
    def mix(self, x):
        return x.mean(1, keepdim=True) if self.training else x


def settings_of(kind: type[Net]) -> dict[str, int]:
    """The config of a model of this class."""
    return {"vocab_size": getattr(kind, "rows", V), "max_seq_len": kind.limit, **getattr(kind, "settings", {})}
