"""Every container, order of axes and loss that a model can give."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.blocks import Decoder
from tests.zoo.entry import LIMIT, UNKNOWN, Batch, D, Entry, V, masked_text, padded_text, seeded, text


def _next_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Independent of the package: every pair (position, next label) on its own."""
    losses = [
        -logits[row, place].log_softmax(-1)[labels[row, place + 1]]
        for row in range(labels.shape[0])
        for place in range(labels.shape[1] - 1)
        if labels[row, place + 1] != -100
    ]
    return torch.stack(losses).mean()


class Named(NamedTuple):
    logits: torch.Tensor
    hidden: torch.Tensor


@dataclasses.dataclass
class Record:
    loss: torch.Tensor | None
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


class TupleLogitsFirst(Decoder):
    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.hidden(input_ids)
        return self.head(x), x


class TupleHiddenFirst(Decoder):
    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.hidden(input_ids)
        return x, self.head(x)


class ListOutput(Decoder):
    def forward(self, input_ids: torch.Tensor) -> list[torch.Tensor]:
        return [self.scores(input_ids)]


class LogitsLoss(Decoder):
    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits = self.scores(input_ids)
        if labels is None:
            return logits, None
        return logits, F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100)


class LossLogits(Decoder):
    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        logits = self.scores(input_ids)
        if labels is None:
            return None, logits
        return F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100), logits


class DictOutput(Decoder):
    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.hidden(input_ids)
        return {"hidden_states": x, "logits": self.head(x)}


class OddDict(Decoder):
    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.hidden(input_ids)
        return {"features": x, "next_token_scores": self.head(x)}


class Nested(Decoder):
    def forward(self, input_ids: torch.Tensor) -> dict[str, Any]:
        x = self.hidden(input_ids)
        return {"decoder": {"states": [x], "logits": self.head(x)}}


class NamedOutput(Decoder):
    def forward(self, input_ids: torch.Tensor) -> Named:
        x = self.hidden(input_ids)
        return Named(self.head(x), x)


class DataclassOutput(Decoder):
    def forward(self, input_ids: torch.Tensor) -> Record:
        x = self.hidden(input_ids)
        return Record(None, self.head(x), x)


class TransformersOutput(Decoder):
    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        from transformers.modeling_outputs import CausalLMOutput

        logits = self.scores(input_ids)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100)
        return CausalLMOutput(loss=loss, logits=logits)


class AttentionBeside(Decoder):
    """Maps (B, H, T, T) and a length (B,) beside the scores."""

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        length = input_ids.shape[1]
        maps = torch.ones(input_ids.shape[0], 2, length, length, device=input_ids.device) / length
        return {"attentions": maps, "norm": self.hidden(input_ids).norm(dim=-1), "output": self.scores(input_ids)}


class TimeFirstOutput(Decoder):
    """(B, T) in, (T, B, V) out."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.scores(input_ids).transpose(0, 1)


class VocabularyInTheMiddle(Decoder):
    """(B, V, T), ready for `cross_entropy`."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.scores(input_ids).transpose(1, 2)


class TimeFirstBoth(nn.Module):
    """(T, B) in, (T, B, V) out, no batch_first anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn, self.out = nn.Embedding(V, D), nn.LSTM(D, D), nn.Linear(D, V)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.rnn(self.embedding(x))
        return self.out(y)


class WidthOfVocabulary(nn.Module):
    """The width equals the vocabulary: two tensors could be the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix, self.head = nn.Embedding(V, V), nn.Linear(V, V), nn.Linear(V, V)

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.tanh(self.mix(self.embedding(input_ids)))
        return {"last_hidden_state": x, "logits": self.head(x)}


class LogProbabilities(Decoder):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return F.log_softmax(self.scores(input_ids), dim=-1)


class Half(Decoder):
    """bfloat16 weights: the loss is computed in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.to(torch.bfloat16)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.norm(self.token_embedding(input_ids))))


class Experts(Decoder):
    """Two experts and a router that wants to be balanced; the balance loss is already weighted."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(D, 2)
        self.experts = nn.ModuleList(nn.Linear(D, D) for _ in range(2))

    def mixed(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.hidden(input_ids)
        weights = self.router(x).softmax(-1)  # (B, T, E)
        y = sum(weights[..., [index]] * expert(x) for index, expert in enumerate(self.experts))
        return self.head(x + y), 0.01 * 2 * weights.mean((0, 1)).square().sum()


class ExpertsDict(Experts):
    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        logits, balance = self.mixed(input_ids)
        return {"logits": logits, "aux_loss": balance}


class ExpertsTuple(Experts):
    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.mixed(input_ids)


class ExpertsOwnLoss(Experts):
    """The loss that it gives holds the balance loss already."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits, balance = self.mixed(input_ids)
        out = {"logits": logits, "aux_loss": balance}
        if labels is not None:
            own = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100)
            out["loss"] = own + balance
        return out


class MaskedOwnLoss(Decoder):
    """A bidirectional encoder whose own loss is not shifted."""

    def __init__(self) -> None:
        super().__init__(causal=False)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        bias = None if attention_mask is None else (1.0 - attention_mask[:, None, None, :].float()) * -1e9
        logits = self.scores(input_ids, bias)
        out = {"logits": logits}
        if labels is not None:
            out["loss"] = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100)
        return out


class MaskedNoLoss(Decoder):
    """A bidirectional encoder without a loss."""

    def __init__(self) -> None:
        super().__init__(causal=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.scores(input_ids)


def _with_balance(model: Any, batch: Batch) -> torch.Tensor:
    logits, balance = model.mixed(batch["input_ids"])
    return _next_token_loss(logits, batch["labels"]) + balance


def _lm(name: str, build: Any, reference: Any, shows: str, **more: Any) -> Entry:
    more = {"limit": LIMIT, "rows": V, **more}
    return Entry(name, "lm", seeded(build), reference, more.pop("batch", text()), shows, **more)


def _at(*path: Any) -> Any:
    """Call with the ids and walk to the scores."""

    def reference(model: Any, batch: Batch) -> torch.Tensor:
        value = model(batch["input_ids"])
        for step in path:
            value = getattr(value, step) if isinstance(step, str) and not isinstance(value, dict) else value[step]
        return value

    return reference


ENTRIES = [
    _lm("(logits, hidden)", TupleLogitsFirst, _at(0), "tuple"),
    _lm("(hidden, logits)", TupleHiddenFirst, _at(1), "tuple, scores last"),
    _lm("[logits]", ListOutput, _at(0), "list"),
    _lm("(logits, loss)", LogitsLoss, _at(0), "own shifted loss second", batch=padded_text()),
    _lm("(loss, logits)", LossLogits, _at(1), "own shifted loss first", batch=padded_text()),
    _lm("dict", DictOutput, _at("logits"), "dict with logits"),
    _lm("dict, odd names", OddDict, _at("next_token_scores"), "dict without logits"),
    _lm("nested dict", Nested, _at("decoder", "logits"), "containers in containers"),
    _lm("namedtuple", NamedOutput, _at("logits"), "namedtuple"),
    _lm("dataclass", DataclassOutput, _at("logits"), "dataclass with an empty loss"),
    _lm("ModelOutput", TransformersOutput, _at("logits"), "transformers' ModelOutput", batch=padded_text()),
    _lm("attention maps beside", AttentionBeside, _at("output"), "tensors of other shapes"),
    _lm("(T, B, V) out", TimeFirstOutput, lambda m, b: m(b["input_ids"]).transpose(0, 1), "time first at the end"),
    _lm("(B, V, T) out", VocabularyInTheMiddle, lambda m, b: m(b["input_ids"]).transpose(1, 2), "vocabulary between"),
    _lm(
        "time first",
        TimeFirstBoth,
        lambda m, b: m(b["input_ids"].t()).transpose(0, 1),
        "(T, B) → (T, B, V), recurrent",
        limit=None,
    ),
    _lm("width = vocabulary", WidthOfVocabulary, _at("logits"), "two tensors of one shape", limit=None),
    _lm("log-probabilities", LogProbabilities, _at(), "log_softmax at the end"),
    _lm("bfloat16", Half, _at(), "loss in float32", limit=UNKNOWN, learning_rate=1e-2),
    _lm("balance loss in a dict", ExpertsDict, _at("logits"), "aux_loss, added once", loss=_with_balance),
    _lm("balance loss in a tuple", ExpertsTuple, _at(0), "(logits, aux_loss)", loss=_with_balance),
    _lm("balance loss in the own loss", ExpertsOwnLoss, _at("logits"), "added once, not twice", loss=_with_balance),
    Entry(
        "own unshifted loss",
        "masked",
        seeded(MaskedOwnLoss),
        lambda m, b: m(b["input_ids"], b["attention_mask"])["logits"],
        masked_text(),
        "labels stay where they are",
        rows=V,
        limit=LIMIT,
    ),
    Entry(
        "encoder without a loss",
        "masked",
        seeded(MaskedNoLoss),
        _at(),
        lambda: {key: value for key, value in masked_text()().items() if key != "attention_mask"},
        "every position sees every other",
        contract_task="lm",
        rows=V,
        limit=LIMIT,
    ),
]
