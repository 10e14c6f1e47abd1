"""Calls that need more than ids: batches as mappings, first states, sizes, flags, other encodings, wrappers, lengths."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.blocks import BLOCKED, Decoder, bias_of
from tests.zoo.entry import CLASSES, LIMIT, Batch, D, Entry, V, classed_text, ids_of, padded_text, pairs, seeded, text


class Encoder(Decoder):
    """Sees every position, so that a mask that is left out moves every score."""

    def __init__(self) -> None:
        super().__init__(causal=False)

    def masked(self, ids: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
        return self.scores(ids, None if keep is None else bias_of(keep.bool()))


class BatchOfAll(Encoder):
    """One mapping with everything; the mask may be missing."""

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits": self.masked(batch["input_ids"], batch.get("attention_mask"))}


class BatchWithLabels(Decoder):
    """One mapping in which labels must stand."""

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        logits = self.scores(batch["tokens"])
        loss = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:])
        return {"loss": loss, "logits": logits}


class MaskThroughKeywords(Encoder):
    """A wrapper that hands on whatever it gets."""

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return self.masked(input_ids, kwargs.get("attention_mask"))


class Handed(nn.Module):
    """A wrapper that names nothing at all."""

    def __init__(self) -> None:
        super().__init__()
        self.base_model = MaskThroughKeywords()

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.base_model(*args, **kwargs)


class PositionalMask(Encoder):
    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor | None = None, /) -> torch.Tensor:
        return self.masked(ids, attention_mask)


class FirstState(nn.Module):
    """A hidden state that cannot be None; the model makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn, self.out = nn.Embedding(V, D), nn.GRU(D, D, batch_first=True), nn.Linear(D, V)

    def init_hidden(self, batch_size: int) -> torch.Tensor:
        return self.embedding.weight.new_zeros(1, batch_size, D)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert h.shape[1] == x.shape[0]
        y, h = self.rnn(self.embedding(x), h)
        return self.out(y), h


class WordModel(nn.Module):
    """(T, B) ids and a state in, (T · B, V) log-probabilities out: the word-level model of PyTorch's examples."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.rnn, self.decoder = nn.Embedding(V, D), nn.LSTM(D, D), nn.Linear(D, V)

    def forward(self, input: torch.Tensor, hidden: Any) -> tuple[torch.Tensor, Any]:
        y, hidden = self.rnn(self.encoder(input), hidden)
        return F.log_softmax(self.decoder(y).view(-1, V), dim=1), hidden


class Switches(Decoder):
    """Flags, a temperature, sizes and a device, none with a default."""

    def forward(
        self,
        x: torch.Tensor,
        is_training: bool,
        need_weights: bool,
        temperature: float,
        batch_size: int,
        seq_len: int,
        device: Any,
        exit_layer: int | None,
    ) -> Any:
        assert exit_layer is None
        logits = self.scores(x.to(device)).view(batch_size, seq_len, -1) / temperature
        return (logits, self.norm.weight) if need_weights or is_training else logits


class MaskFirst(Encoder):
    """A (T, T) mask before the ids."""

    def forward(self, mask: torch.Tensor, idx: torch.Tensor, input_pos: torch.Tensor | None = None) -> torch.Tensor:
        return self.scores(idx, torch.zeros(mask.shape).masked_fill(~mask, BLOCKED), input_pos)


class RowMask(Encoder):
    """(B, 1, T), 1 = may be read."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        assert mask.dim() == 3 and mask.shape[1] == 1
        return self.scores(x, torch.zeros(mask.shape).masked_fill(mask == 0, BLOCKED)[:, None])


class OddMask(Encoder):
    def forward(self, ids: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        return self.masked(ids, keep)


class BothOptional(nn.Module):
    """Two masks that may be left out; only one of them says padding."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(D, 2, 2 * D, dropout=0.0, batch_first=True)
        self.embedding, self.out = nn.Embedding(V, D), nn.Linear(D, V)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, src: torch.Tensor, src_mask: Any = None, src_key_padding_mask: Any = None) -> torch.Tensor:
        return self.out(self.encoder(self.embedding(src), src_mask, src_key_padding_mask))


class OptionalLengths(Encoder):
    def forward(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        return self.masked(x, None if lengths is None else torch.arange(x.shape[1]) < lengths[:, None])


class Packed(nn.Module):
    """Lengths (B,) for packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(V, D), nn.Linear(2 * D, CLASSES)
        self.rnn = nn.LSTM(D, D, batch_first=True, bidirectional=True)

    def forward(self, text: torch.Tensor, text_lengths: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(text), text_lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, (state, _) = self.rnn(packed)
        return self.fc(torch.cat([state[0], state[1]], 1))


class Bag(nn.Module):
    """All tokens of the batch in one row, and where each text begins."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.EmbeddingBag(V, D), nn.Linear(D, CLASSES)

    def forward(self, text: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return self.fc(self.embedding(text, offsets))


class OneHot(nn.Module):
    """(B, T, V) numbers in place of ids."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(V, D, batch_first=True), nn.Linear(D, V)

    def forward(self, x: torch.Tensor, hidden: Any = None) -> tuple[torch.Tensor, Any]:
        y, hidden = self.lstm(x, hidden)
        return self.fc(y), hidden


class Embedded(Decoder):
    """(B, T, D) vectors in place of ids."""

    def forward(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.block(inputs_embeds)))

    def get_input_embeddings(self) -> nn.Module:
        return self.token_embedding


class OnlyWhole(nn.Module):
    """A layer over time: `LIMIT` tokens and no other number."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.over_time, self.out = nn.Embedding(V, D), nn.Linear(LIMIT, LIMIT), nn.Linear(D, V)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return self.out(self.over_time(self.embedding(idx).transpose(1, 2)).transpose(1, 2))


class Chunks(Decoder):
    """Multiples of 8 tokens."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1] % 8 == 0
        return self.head(self.token_embedding(x).unflatten(1, (-1, 8)).cumsum(2).flatten(1, 2))


class WideKernel(nn.Module):
    """At least 7 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.conv, self.out = nn.Embedding(V, D), nn.Conv1d(D, D, 7), nn.Linear(D, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.conv(self.embedding(x).transpose(1, 2)).amax(2))


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn, self.out = nn.Embedding(V, D), nn.GRU(D, D, batch_first=True), nn.Linear(D, V)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(self.embedding(x))[0])


class Translator(nn.Module):
    """`nn.Transformer` with every mask from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(V, D), nn.Embedding(V, D)
        self.transformer, self.generator = nn.Transformer(D, 2, 1, 1, 2 * D, dropout=0.0), nn.Linear(D, V)

    def forward(
        self,
        src: torch.Tensor,
        trg: torch.Tensor,
        src_mask: torch.Tensor,
        tgt_mask: torch.Tensor,
        src_padding_mask: torch.Tensor,
        tgt_padding_mask: torch.Tensor,
        memory_key_padding_mask: torch.Tensor,
    ) -> torch.Tensor:
        masks = (src_mask, tgt_mask, None, src_padding_mask, tgt_padding_mask, memory_key_padding_mask)
        return self.generator(self.transformer(self.source(src), self.target(trg), *masks))


class OptionalTargetMask(Translator):
    """Without the mask its decoder sees what it should say."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(D, 2, 1, 1, 2 * D, dropout=0.0, batch_first=True)

    def forward(self, enc_inputs: torch.Tensor, dec_inputs: torch.Tensor, tgt_mask: Any = None) -> torch.Tensor:  # type: ignore[override]
        scores = self.generator(self.transformer(self.source(enc_inputs), self.target(dec_inputs), tgt_mask=tgt_mask))
        return scores.flatten(0, 1)


class TeacherForcing(nn.Module):
    """Time first; feeds itself its own words half of the time unless it is told not to."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(V, D), nn.Linear(D, V)
        self.encoder, self.decoder = nn.GRU(D, D), nn.GRUCell(D, D)

    def forward(self, src: torch.Tensor, trg: torch.Tensor, teacher_forcing_ratio: float = 0.5) -> torch.Tensor:
        state, token, outputs = self.encoder(self.embedding(src))[1][0], trg[0], []
        for place in range(trg.shape[0]):
            state = self.decoder(self.embedding(token), state)
            outputs.append(self.out(state))
            forced = random.random() < teacher_forcing_ratio
            token = trg[min(place + 1, trg.shape[0] - 1)] if forced else outputs[-1].argmax(-1)
        return torch.stack(outputs)


def _ids(batch: Batch) -> torch.Tensor:
    return batch["input_ids"]


def _keep(batch: Batch) -> torch.Tensor:
    return batch["attention_mask"]


def _target(batch: Batch) -> torch.Tensor:
    return batch["decoder_input_ids"]


def _translated(model: Any, batch: Batch) -> torch.Tensor:
    padding, later = _keep(batch) == 0, torch.ones(4, 4, dtype=torch.bool).triu(1)
    masks = (torch.zeros(6, 6, dtype=torch.bool), later, padding, torch.zeros(3, 4, dtype=torch.bool), padding)
    return model(_ids(batch).t(), _target(batch).t(), *masks).transpose(0, 1)


def _lm(name: str, build: Any, reference: Any, shows: str, batch: Any = None, **more: Any) -> Entry:
    return Entry(name, "lm", build, reference, batch or text(), shows, **more)


def _long(length: int, classes: bool = False) -> Any:
    def make() -> Batch:
        ids = ids_of(length=length)
        return {"input_ids": ids, "labels": torch.tensor([0, CLASSES - 1, 1]) if classes else ids.clone()}

    return make


def _scripted(trace: bool) -> Any:
    def build() -> nn.Module:
        model = seeded(Scripted)()
        return torch.jit.trace(model, ids_of()) if trace else torch.jit.script(model)

    return build


def _parallel() -> nn.Module:
    return nn.DataParallel(seeded(MaskThroughKeywords)())


ENTRIES = [
    _lm(
        "batch as a mapping",
        seeded(BatchOfAll),
        lambda m, b: m({"input_ids": _ids(b), "attention_mask": _keep(b)})["logits"],
        "keys that forward reads, one of them optional",
        padded_text(),
        rows=V,
        limit=LIMIT,
    ),
    _lm(
        "batch with labels",
        seeded(BatchWithLabels),
        lambda m, b: m({"tokens": _ids(b), "labels": _ids(b)})["logits"],
        "keys tokens and labels, both required",
    ),
    _lm(
        "mask through **kwargs",
        seeded(MaskThroughKeywords),
        lambda m, b: m(_ids(b), attention_mask=_keep(b)),
        "an argument that no signature names",
        padded_text(),
    ),
    _lm(
        "all handed on",
        seeded(Handed),
        lambda m, b: m(_ids(b), attention_mask=_keep(b)),
        "adapters of weights",
        padded_text(),
    ),
    _lm("DataParallel", _parallel, lambda m, b: m(_ids(b), attention_mask=_keep(b)), "nn.DataParallel", padded_text()),
    _lm(
        "mask by position",
        seeded(PositionalMask),
        lambda m, b: m(_ids(b), _keep(b)),
        "forward(ids, mask=None, /)",
        padded_text(),
    ),
    _lm(
        "init_hidden", seeded(FirstState), lambda m, b: m(_ids(b), m.init_hidden(3))[0], "a state that the model makes"
    ),
    _lm(
        "word model",
        seeded(WordModel),
        lambda m, b: m(_ids(b).t(), None)[0].view(6, 3, V).transpose(0, 1),
        "(T, B) → (T · B, V), state required",
    ),
    _lm(
        "switches",
        seeded(Switches),
        lambda m, b: m(_ids(b), False, False, 1.0, 3, 6, "cpu", None),
        "flags, sizes, device, temperature",
    ),
    _lm(
        "mask first",
        seeded(MaskFirst),
        lambda m, b: m(torch.ones(6, 6, dtype=torch.bool).tril(), _ids(b)),
        "(T, T) mask before the ids",
    ),
    _lm(
        "mask (B, 1, T)",
        seeded(RowMask),
        lambda m, b: m(_ids(b), _keep(b)[:, None]),
        "one row of visible tokens",
        padded_text(),
    ),
    _lm("mask called keep", seeded(OddMask), lambda m, b: m(_ids(b), _keep(b)), "name", padded_text()),
    _lm(
        "two optional masks",
        seeded(BothOptional),
        lambda m, b: m(_ids(b), None, _keep(b) == 0),
        "padding in the second",
        padded_text(),
    ),
    _lm(
        "optional lengths",
        seeded(OptionalLengths),
        lambda m, b: m(_ids(b), _keep(b).sum(1)),
        "lengths from the mask",
        padded_text(),
    ),
    _lm("one-hot", seeded(OneHot), lambda m, b: m(F.one_hot(_ids(b), V).float())[0], "(B, T, V) in", rows=V),
    _lm("embedded", seeded(Embedded), lambda m, b: m(m.token_embedding(_ids(b))), "inputs_embeds only"),
    _lm("one length only", seeded(OnlyWhole), lambda m, b: m(_ids(b)), "exactly 24 tokens", _long(LIMIT), limit=LIMIT),
    _lm("multiples of 8", seeded(Chunks), lambda m, b: m(_ids(b)), "chunks", _long(16)),
    _lm("scripted", _scripted(False), lambda m, b: m(_ids(b)), "torch.jit.script", rows=V),
    _lm("traced", _scripted(True), lambda m, b: m(_ids(b)), "torch.jit.trace, no signature", rows=V),
    Entry(
        "packed classifier",
        "classification",
        seeded(Packed),
        lambda m, b: m(_ids(b), _keep(b).sum(1)),
        classed_text(),
        "lengths from the mask, packed",
        rows=V,
    ),
    Entry(
        "bag with offsets",
        "classification",
        seeded(Bag),
        lambda m, b: m(_ids(b)[_keep(b).bool()], torch.tensor([0, 6, 10])),
        classed_text(),
        "all tokens in one row",
        rows=V,
    ),
    Entry(
        "at least 7 tokens",
        "classification",
        seeded(WideKernel),
        lambda m, b: m(_ids(b)),
        _long(9, classes=True),
        "convolution without padding",
    ),
    Entry(
        "translator with all masks", "seq2seq", seeded(Translator), _translated, pairs(), "seven arguments, time first"
    ),
    Entry(
        "optional target mask",
        "seq2seq",
        seeded(OptionalTargetMask),
        lambda m, b: m(_ids(b), _target(b), torch.ones(4, 4, dtype=torch.bool).triu(1)).view(3, 4, V),
        pairs(padded=False),
        "enc_inputs, dec_inputs; flat scores; made causal",
    ),
    Entry(
        "teacher forcing",
        "seq2seq",
        seeded(TeacherForcing),
        lambda m, b: m(_ids(b).t(), _target(b).t(), 1.0).transpose(0, 1),
        pairs(padded=False),
        "told the truth at each step",
    ),
]
