"""Models that are no plain decoder: recurrent, convolutional, state-space, encoder-decoders, classifiers, vision."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.blocks import Block, Decoder, bias_of
from tests.zoo.entry import CLASSES, LIMIT, Batch, D, Entry, V, classed_text, images, pairs, seeded, text


class LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(V, D), nn.LSTM(D, D, num_layers=2, batch_first=True, dropout=0.1)
        self.fc = nn.Linear(D, V)

    def forward(self, x: torch.Tensor, hidden: Any = None) -> tuple[torch.Tensor, Any]:
        y, hidden = self.lstm(self.embedding(x), hidden)
        return self.fc(y), hidden


class GRU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.gru, self.fc = nn.Embedding(V, D), nn.GRU(D, D, batch_first=True), nn.Linear(D, V)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.fc(self.gru(self.embedding(inputs))[0])


class SelectiveScan(nn.Module):
    """A state that decays by an amount that depends on the input, one step at a time."""

    def __init__(self, states: int = 4) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(V, D), nn.Linear(D, V)
        self.decay = nn.Parameter(torch.randn(D, states))
        self.step, self.enter, self.leave = nn.Linear(D, D), nn.Linear(D, states), nn.Linear(D, states)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        step = F.softplus(self.step(x))
        state = x.new_zeros(x.shape[0], *self.decay.shape)  # (B, D, S)
        outputs = []
        for place in range(x.shape[1]):
            kept = torch.exp(-step[:, place, :, None] * self.decay.exp())
            state = kept * state + (step * x)[:, place, :, None] * self.enter(x[:, place])[:, None, :]
            outputs.append((state * self.leave(x[:, place])[:, None, :]).sum(-1))
        return self.head(x + torch.stack(outputs, 1))


class CausalConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.conv, self.head = nn.Embedding(V, D), nn.Conv1d(D, D, 3), nn.Conv1d(D, V, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens).transpose(1, 2)  # (B, D, T)
        return self.head(torch.relu(self.conv(F.pad(x, (2, 0)))))  # (B, V, T)


class SeqTransformer(nn.Module):
    """`nn.Transformer` between a source and a target."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.src_embedding, self.tgt_embedding = nn.Embedding(V, D), nn.Embedding(V, D)
        self.transformer = nn.Transformer(D, 2, 1, 1, 2 * D, dropout=0.0, batch_first=batch_first)
        self.generator = nn.Linear(D, V)

    def forward(self, src: torch.Tensor, tgt: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tgt.shape[1 if self.batch_first else 0])
        return self.generator(self.transformer(self.src_embedding(src), self.tgt_embedding(tgt), tgt_mask=mask))


class SeqTransformerMasks(SeqTransformer):
    """The caller brings the masks."""

    def forward(
        self,
        src: torch.Tensor,
        tgt: torch.Tensor,
        tgt_mask: torch.Tensor,
        src_key_padding_mask: torch.Tensor,
    ) -> torch.Tensor:
        x, y = self.src_embedding(src), self.tgt_embedding(tgt)
        return self.generator(
            self.transformer(
                x,
                y,
                tgt_mask=tgt_mask,
                src_key_padding_mask=src_key_padding_mask,
                memory_key_padding_mask=src_key_padding_mask,
            )
        )


class SeqNamed(SeqTransformer):
    """The names of Hugging Face, without a default."""

    def forward(self, input_ids: torch.Tensor, decoder_input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": super().forward(input_ids, decoder_input_ids)}


class RecurrentPair(nn.Module):
    """An encoder's last state begins the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        self.encoder, self.decoder = nn.GRU(D, D, batch_first=True), nn.GRU(D, D, batch_first=True)
        self.out = nn.Linear(D, V)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        _, state = self.encoder(self.embedding(source))
        return self.out(self.decoder(self.embedding(target), state)[0])


class MeanClassifier(Decoder):
    def __init__(self) -> None:
        super().__init__(causal=False, outputs=CLASSES)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        if attention_mask is None:
            return self.head(self.hidden(input_ids).mean(1))
        x = self.hidden(input_ids, bias_of(attention_mask.bool())) * attention_mask[..., None]
        return self.head(x.sum(1) / attention_mask.sum(1, keepdim=True))


class FirstTokenClassifier(Decoder):
    """The first position speaks for the sequence; its own loss where labels are given."""

    def __init__(self) -> None:
        super().__init__(causal=False, outputs=CLASSES)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.head(self.hidden(input_ids)[:, 0])
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class LastStateClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.fc = nn.Embedding(V, D), nn.LSTM(D, D, batch_first=True), nn.Linear(D, CLASSES)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        _, (state, _) = self.lstm(self.embedding(text))
        return self.fc(state[-1])


class ConvolutionClassifier(nn.Module):
    """Convolutions of two widths and the maximum over time."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        self.convs = nn.ModuleList(nn.Conv1d(D, D, width, padding=1) for width in (2, 3))
        self.fc = nn.Linear(2 * D, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x).transpose(1, 2)
        return self.fc(torch.cat([torch.relu(conv(x)).amax(2) for conv in self.convs], 1))


class BagClassifier(nn.Module):
    """`nn.EmbeddingBag`: no position anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.EmbeddingBag(V, D, mode="mean"), nn.Linear(D, CLASSES)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.fc(self.embedding(input_ids))


class TinyViT(nn.Module):
    """Patches of 2 × 2 from 8 × 8 digits, a class token, one block."""

    def __init__(self, channels: int = 1, size: int = 8) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(channels, D, 2, stride=2)
        self.class_token = nn.Parameter(torch.zeros(1, 1, D))
        self.positions = nn.Parameter(torch.randn(1, (size // 2) ** 2 + 1, D) * 0.1)
        self.block, self.head = Block(causal=False), nn.Linear(D, CLASSES)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.block(x)[:, 0])


class TinyViTOwnLoss(TinyViT):
    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = super().forward(pixel_values)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Perceptron(nn.Module):
    """Flattens by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, D), nn.ReLU(), nn.Linear(D, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class FlatPerceptron(nn.Module):
    """Wants (B, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, D), nn.Linear(D, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


class Convolutions(nn.Module):
    """Two convolutions with batch norm, global pooling: any size."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, D, 3, 2, 1), nn.ReLU()
        )
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(D, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.pool(self.features(images)).flatten(1))


class FixedSizeConvolutions(nn.Module):
    """A linear layer after flattening: 8 × 8 and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3)
        self.fc1, self.fc2 = nn.Linear(8 * 2 * 2, D), nn.Linear(D, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(torch.relu(self.conv2(torch.relu(self.conv1(x)))), 2)
        return F.log_softmax(self.fc2(torch.relu(self.fc1(torch.flatten(x, 1)))), dim=1)


def _first(model: Any, batch: Batch) -> torch.Tensor:
    out = model(batch["input_ids"])
    return out[0] if isinstance(out, tuple) else out


def _pair(model: Any, batch: Batch) -> torch.Tensor:
    out = model(batch["input_ids"], batch["decoder_input_ids"])
    return out["logits"] if isinstance(out, dict) else out


def _pair_time_first(model: Any, batch: Batch) -> torch.Tensor:
    return model(batch["input_ids"].t(), batch["decoder_input_ids"].t()).transpose(0, 1)


def _pair_masks(model: Any, batch: Batch) -> torch.Tensor:
    future = nn.Transformer.generate_square_subsequent_mask(batch["decoder_input_ids"].shape[1])
    return model(batch["input_ids"], batch["decoder_input_ids"], future, batch["attention_mask"] == 0)


def _image(model: Any, batch: Batch) -> torch.Tensor:
    out = model(batch["pixel_values"])
    return out["logits"] if isinstance(out, dict) else out


def _lm(name: str, build: Any, reference: Any, shows: str, **more: Any) -> Entry:
    return Entry(name, "lm", seeded(build), reference, text(), shows, rows=V, limit=None, **more)


def _seq2seq(name: str, build: Any, shows: str, reference: Any = _pair, padded: bool = False) -> Entry:
    return Entry(name, "seq2seq", build, reference, pairs(padded=padded), shows, rows=V)


def _classes(name: str, build: Any, shows: str, reference: Any = _first, **more: Any) -> Entry:
    batch = more.pop("batch", classed_text(padded=False))
    return Entry(name, "classification", seeded(build), reference, batch, shows, rows=V, **more)


def _vision(name: str, build: Any, shows: str, **picture: Any) -> Entry:
    return Entry(name, "vision", build, _image, images(**picture), shows)


ENTRIES = [
    _lm("LSTM", LSTM, _first, "(logits, (h, c))"),
    _lm("GRU", GRU, _first, "recurrent"),
    _lm("selective scan", SelectiveScan, _first, "state space, step by step"),
    _lm("causal convolution", CausalConvolution, lambda m, b: m(b["input_ids"]).transpose(1, 2), "(B, V, T) out"),
    _seq2seq("nn.Transformer", seeded(SeqTransformer), "src, tgt"),
    _seq2seq(
        "nn.Transformer, time first", seeded(SeqTransformer, False), "(S, B), (T, B) → (T, B, V)", _pair_time_first
    ),
    _seq2seq(
        "nn.Transformer with masks", seeded(SeqTransformerMasks), "tgt_mask, src_key_padding_mask", _pair_masks, True
    ),
    _seq2seq("required decoder_input_ids", seeded(SeqNamed), "names of Hugging Face"),
    _seq2seq("recurrent encoder-decoder", seeded(RecurrentPair), "source, target"),
    _classes(
        "mean classifier",
        MeanClassifier,
        "(B, C), masked mean",
        lambda m, b: m(b["input_ids"], b["attention_mask"]),
        batch=classed_text(),
        limit=LIMIT,
    ),
    _classes(
        "first-token classifier",
        FirstTokenClassifier,
        "own loss",
        lambda m, b: m(b["input_ids"])["logits"],
        limit=LIMIT,
    ),
    _classes("last-state classifier", LastStateClassifier, "LSTM", limit=None),
    _classes("convolution classifier", ConvolutionClassifier, "CNN over text", limit=None),
    _classes("bag of words", BagClassifier, "nn.EmbeddingBag", limit=None),
    _vision("tiny ViT", seeded(TinyViT), "pixel_values, 8 × 8"),
    _vision("tiny ViT, own loss", seeded(TinyViTOwnLoss), "dict with loss"),
    _vision("tiny ViT, colour", seeded(TinyViT, 3, 16), "3 channels, 16 × 16", channels=3, size=16),
    _vision("perceptron", seeded(Perceptron), "x, flattened inside"),
    _vision("flat perceptron", seeded(FlatPerceptron), "x (B, 64)", flat=True),
    _vision("convolutions", seeded(Convolutions), "images, any size, batch norm", channels=3, size=16),
    _vision("convolutions of fixed size", seeded(FixedSizeConvolutions), "8 × 8 only, log-probabilities"),
]
