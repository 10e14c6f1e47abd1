"""Answers that are more than one tensor of scores: stacks, objects, losses left behind, labels of tokens, pictures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.blocks import Block, Decoder
from tests.zoo.entry import CLASSES, Batch, D, Entry, V, classed_text, images, padded_text, seeded, text
from tests.zoo.outputs import Experts, _next_token_loss

TAGS = 5
"""Labels of a tagger."""


class EveryLayer(Decoder):
    """Scores after each layer; the last are the model's final word."""

    def __init__(self) -> None:
        super().__init__()
        self.second = Block()

    def forward(self, input_ids: torch.Tensor) -> list[torch.Tensor]:
        x = self.block(self.token_embedding(input_ids))
        return [self.head(self.norm(x)), self.head(self.norm(self.second(x)))]


class Stacked(EveryLayer):
    """The same as one tensor (L, B, T, V)."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return torch.stack(super().forward(input_ids))


class SeveralAhead(Decoder):
    """(B, T, n, V): the next token and those after it."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(D, V) for _ in range(3))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.hidden(input_ids)
        return torch.stack([head(x) for head in self.heads], 2)


class Flat(Decoder):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores(x).view(-1, V)


class Object(Decoder):
    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(hidden=self.hidden(input_ids), logits=self.scores(input_ids), loss=None)


class MainAndAuxiliary(Decoder):
    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(D, V)

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.hidden(input_ids)
        return {"aux_logits": self.auxiliary(x), "main_logits": self.head(x)}


class Metrics(Decoder):
    """Scalars that are no losses."""

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.scores(input_ids)
        p = logits.softmax(-1)
        return {"logits": logits, "entropy": -(p * p.log()).sum(-1).mean(), "temperature": torch.tensor(0.7)}


class LeftOnModel(Experts):
    """The balance loss stays behind as an attribute."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits, self.aux_loss = self.mixed(input_ids)
        return logits


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.choose = nn.Linear(D, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.choose(x).softmax(-1)
        self.l_aux = weights.mean((0, 1)).square().sum()
        return x * weights[..., :1]


class LeftOnLayers(Decoder):
    """Each layer leaves its own; the model's own loss holds them with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.routers = nn.ModuleList(Router() for _ in range(2))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        x = self.hidden(input_ids)
        for router in self.routers:
            x = x + router(x)
        logits = self.head(x)
        if labels is None:
            return {"logits": logits}
        return {"logits": logits, "loss": _next_token_loss(logits, labels) + 0.3 * sum(r.l_aux for r in self.routers)}


class Gathered(LeftOnLayers):
    """The model sums what its layers leave."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        logits = super().forward(input_ids)["logits"]
        self.balance_loss = 0.1 * sum(router.l_aux for router in self.routers)
        return logits


class CutByLabels(Decoder):
    """The scores lose a position where labels are given."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.scores(input_ids)
        if labels is None:
            return {"logits": logits}
        loss = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:])
        return {"logits": logits[:, :-1], "loss": loss}


class OnlyLoss(Decoder):
    """Scores, or nothing but the loss."""

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        logits = self.scores(idx)
        return logits if targets is None else F.cross_entropy(logits.view(-1, V), targets.view(-1), ignore_index=-1)


class RequiredTargets(Decoder):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.scores(x)
        return logits, F.cross_entropy(logits.view(-1, V), y.reshape(-1))


class FewerScores(Decoder):
    """A table of 64 rows, and scores for the 61 that are ever said."""

    def __init__(self) -> None:
        super().__init__(vocabulary=64, outputs=64)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.scores(input_ids)[..., :V]


class Indexed(nn.Module):
    """The embedding is a bare parameter, read by indexing."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Parameter(torch.randn(V, D)), nn.Parameter(torch.randn(D, V))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table[x] @ self.out


class Remembering(Decoder):
    """Writes a cache, a counter, a list within a dict and another buffer at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.cache, self.facts = torch.zeros(4, D), {"seen": [0]}
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden(x)
        with torch.no_grad():
            self.cache[0] += hidden[0, 0]
            self.facts["seen"][0] += 1
            self.last = hidden.clone()
        return self.head(hidden)


class Tagger(nn.Module):
    """A row of scores for each token that is no vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(V, D), nn.LSTM(D, D, bidirectional=True)
        self.out = nn.Linear(2 * D, TAGS)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return F.log_softmax(self.out(self.lstm(self.embedding(text))[0]), dim=-1)


class HiddenBeside(Decoder):
    """Hidden states (B, T, D) beside the scores (B, classes)."""

    def __init__(self) -> None:
        super().__init__(causal=False, outputs=CLASSES)

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.hidden(input_ids)
        return x, self.head(x.mean(1))


class RequiredClass(HiddenBeside):
    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        logits = self.head(self.hidden(input_ids)[:, 0])
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class TimeFirstClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn, self.fc = nn.Embedding(V, D), nn.LSTM(D, D), nn.Linear(D, CLASSES)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return self.fc(self.rnn(self.embedding(text))[1][0].squeeze(0))


class Picture(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(channels, 8, 3), nn.Linear(8, CLASSES)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x)).mean((2, 3))


class ChannelsLast(Picture):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x.permute(0, 3, 1, 2)))


class PictureInMapping(Picture):
    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.features(batch["image"]))}


class PictureWithClass(Picture):
    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.head(self.features(images))
        return F.cross_entropy(logits, labels), logits


class FeaturesFirst(Picture):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.features(x)
        return features, self.head(features)


class LinearPatches(nn.Module):
    """16 × 16 pictures, as only the number of places tells."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Linear(48, D), nn.Parameter(torch.randn(1, 17, D))
        self.class_token = nn.Parameter(torch.randn(1, 1, D))
        self.block, self.head = Block(causal=False), nn.Linear(D, CLASSES)

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        x = self.embed(F.unfold(img, 4, stride=4).transpose(1, 2))
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.block(x)[:, 0])


class OddSize(nn.Module):
    """20 × 20 pictures, as only the layer after the convolution tells."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 18 * 18, CLASSES)

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(img).flatten(1))


def _ids(batch: Batch) -> torch.Tensor:
    return batch["input_ids"]


def _tagged() -> Batch:
    batch = text()()
    return {**batch, "labels": batch["labels"] % TAGS}


def _lm(name: str, build: Any, reference: Any, shows: str, **more: Any) -> Entry:
    return Entry(name, "lm", seeded(build), reference, more.pop("batch", text()), shows, **more)


def _classes(name: str, build: Any, reference: Any, shows: str, batch: Any = None) -> Entry:
    return Entry(name, "classification", seeded(build), reference, batch or classed_text(padded=False), shows, rows=V)


def _vision(name: str, build: Any, reference: Any, shows: str, channels: int = 3, size: int = 16) -> Entry:
    return Entry(name, "vision", seeded(build), reference, images(channels, size), shows)


def _loss_with(*paths: str) -> Any:
    """Next-token loss and what lies on the model under these names."""

    def loss(model: Any, batch: Batch) -> torch.Tensor:
        return _next_token_loss(model(_ids(batch)), batch["labels"]) + sum(getattr(model, path) for path in paths)

    return loss


ENTRIES = [
    _lm("scores of every layer", EveryLayer, lambda m, b: m(_ids(b))[-1], "list, the last counts"),
    _lm("(L, B, T, V) out", Stacked, lambda m, b: m(_ids(b))[-1], "layers stacked, the last counts"),
    _lm("(B, T, n, V) out", SeveralAhead, lambda m, b: m(_ids(b))[:, :, 0], "several tokens ahead, the next counts"),
    _lm("(B · T, V) out", Flat, lambda m, b: m(_ids(b)).view(3, 6, V), "two axes are one"),
    _lm("plain object", Object, lambda m, b: m(_ids(b)).logits, "attributes of a namespace"),
    _lm(
        "main and auxiliary scores", MainAndAuxiliary, lambda m, b: m(_ids(b))["main_logits"], "names tell which count"
    ),
    _lm("metrics beside", Metrics, lambda m, b: m(_ids(b))["logits"], "scalars that are no losses"),
    _lm(
        "loss left on the model",
        LeftOnModel,
        lambda m, b: m(_ids(b)),
        "attribute aux_loss",
        loss=_loss_with("aux_loss"),
    ),
    _lm(
        "losses left on layers",
        LeftOnLayers,
        lambda m, b: m(_ids(b))["logits"],
        "weighed as in the own loss",
        loss=lambda m, b: m(_ids(b), b["labels"])["loss"],
    ),
    _lm("losses gathered", Gathered, lambda m, b: m(_ids(b)), "counted once", loss=_loss_with("balance_loss")),
    _lm("scores cut by labels", CutByLabels, lambda m, b: m(_ids(b))["logits"], "T - 1 scores beside the own loss"),
    _lm("scores or loss", OnlyLoss, lambda m, b: m(_ids(b)), "nothing but the loss with targets"),
    _lm("required y", RequiredTargets, lambda m, b: m(_ids(b), _ids(b))[0], "x, y; own unshifted loss"),
    _lm("61 scores for 64 rows", FewerScores, lambda m, b: m(_ids(b)), "rows that are never said", rows=V),
    _lm("indexed table", Indexed, lambda m, b: m(_ids(b)), "parameter[ids]", rows=V),
    _lm("remembering", Remembering, lambda m, b: m(_ids(b)), "caches and counters come back", batch=padded_text()),
    _classes("tagger, time first", Tagger, lambda m, b: m(_ids(b).t()).transpose(0, 1), "labels of tokens", _tagged),
    _classes("hidden states first", HiddenBeside, lambda m, b: m(_ids(b))[1], "(B, T, D) beside (B, C)"),
    _classes("required class", RequiredClass, lambda m, b: m(_ids(b), b["labels"])["logits"], "labels (B,) required"),
    _classes("time-first classifier", TimeFirstClassifier, lambda m, b: m(_ids(b).t()), "(T, B) → (B, C)"),
    _vision("channels last", ChannelsLast, lambda m, b: m(b["pixel_values"].permute(0, 2, 3, 1)), "(B, H, W, C)"),
    _vision(
        "picture in a mapping", PictureInMapping, lambda m, b: m({"image": b["pixel_values"]})["logits"], "key image"
    ),
    _vision(
        "picture with class", PictureWithClass, lambda m, b: m(b["pixel_values"], b["labels"])[1], "labels required"
    ),
    _vision("features first", FeaturesFirst, lambda m, b: m(b["pixel_values"])[1], "(features, scores)"),
    _vision("linear patches", LinearPatches, lambda m, b: m(b["pixel_values"]), "16 × 16 by its places"),
    _vision("20 × 20", OddSize, lambda m, b: m(b["pixel_values"]), "by the layer after the convolution", 1, 20),
]
