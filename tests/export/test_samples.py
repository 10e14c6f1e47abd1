"""What files are judged on: texts as bits per byte, held against sums by hand, and what a model says of itself."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from export import zoo
from utils.errors import ConfigError, ExportError, TokenIdError
from utils.export import samples as samples_module
from utils.export.samples import Text, bits_per_byte, samples_of, token_ids
from utils.export.signature import DECODER_IDS, IDS, MASK, PIXELS, Signature
from utils.export.subject import ExportSubject, subject_of


class Bytes:
    """A tokenizer of 61 entries."""

    def __len__(self) -> int:
        return zoo.V

    def encode(self, text: str) -> list[int]:
        return [byte % zoo.V for byte in text.encode()]


class Chunks(zoo.Bigram):
    """Takes multiples of 8 tokens only."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        batch, length = input_ids.shape
        return self.table(input_ids.view(batch, length // 8, 8)).view(batch, length, -1)


class Classes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(zoo.V, 8), nn.Linear(8, 3)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(input_ids).mean(1))


TEXT = "Grüße an alle, " * 9  # several blocks, the last one shorter; ü and ß are two bytes each


def by_hand(model: zoo.Bigram, ids: list[int], size: int) -> float:
    table = model.table.weight.detach().double()
    nats = -sum(float(table[a].log_softmax(0)[b]) for a, b in itertools.pairwise(ids))
    return nats / math.log(2) / size


def bits(subject: ExportSubject, text: Text) -> tuple[float, list[int]]:
    """Bits per byte of the model itself, and the lengths of its blocks."""
    lengths: list[int] = []

    def run(feeds: dict[str, np.ndarray]) -> np.ndarray:
        lengths.append(feeds[IDS].shape[1])
        return subject.logits(feeds)

    return bits_per_byte(run, subject.signature, text), lengths


@pytest.mark.parametrize("limit", [2, 3, 16, 32, 4096, None])
def test_bits_per_byte_against_a_sum_by_hand(limit: int | None) -> None:
    subject = subject_of(zoo.Bigram(), tokenizer=Bytes(), config={"vocab_size": zoo.V, "max_seq_len": limit})
    text = samples_of(subject, TEXT).text
    assert text == Text(tuple(Bytes().encode(TEXT)), len(TEXT.encode()))
    measured, lengths = bits(subject, text)
    expected = by_hand(subject.adapted.model, Bytes().encode(TEXT), len(TEXT.encode()))
    assert math.isclose(measured, expected, rel_tol=1e-5)  # float32 against float64
    assert max(lengths) <= (limit or 10_000)


@pytest.mark.parametrize("characters", [8, 13, 16, 17, 31, 32, 33, 100])
def test_every_token_counts_once_where_only_some_lengths_run(characters: int) -> None:
    model = Chunks()
    signature = Signature("lm", (IDS,), zoo.V, zoo.V, 32, min_length=8, multiple_of=8)
    subject = replace(subject_of(zoo.Bigram(), config=zoo.CONFIG), signature=signature)
    subject.adapted.model.table.weight = model.table.weight
    text = "abcdefghij"[:10] * 10
    text = text[:characters]
    measured, lengths = bits(subject, Text(tuple(Bytes().encode(text)), characters))
    assert math.isclose(measured, by_hand(model, Bytes().encode(text), characters), rel_tol=1e-5)
    assert all(length % 8 == 0 for length in lengths)


def test_a_model_of_chunks_is_asked_in_chunks() -> None:
    subject = subject_of(Chunks(), tokenizer=Bytes(), config=zoo.CONFIG)
    assert (subject.signature.min_length, subject.signature.multiple_of) == (8, 8)
    samples = samples_of(subject, TEXT)
    assert {batch[IDS].shape for batch in samples.batches} == {(1, 32)}
    bits(subject, samples.text)  # runs
    (said,) = samples_of(subject).batches
    assert said[IDS].shape == (8, 64 if subject.signature.max_length is None else 32)
    with pytest.raises(ConfigError, match="gives 7 tokens; at least 8 are needed"):
        samples_of(subject, "seven 7")


def test_blocks_are_read_with_their_context_and_cut_where_they_must() -> None:
    """Overlap by one token: 40 tokens at a limit of 32 are read as 0…31 and 31…39."""
    subject = subject_of(zoo.Nano(), config=zoo.CONFIG)
    subject.adapted.eval()
    ids = np.random.default_rng(0).integers(0, zoo.V, 40)
    measured, lengths = bits(subject, Text(tuple(int(i) for i in ids), 40))
    assert lengths == [32, 9]
    with torch.no_grad():
        nats = 0.0
        for begin, end in ((0, 32), (31, 40)):
            scores = subject.adapted.model(torch.tensor(ids[None, begin:end])).double().log_softmax(-1)[0]
            nats -= sum(float(scores[t, ids[begin + t + 1]]) for t in range(end - begin - 1))
    assert math.isclose(measured, nats / math.log(2) / 40, rel_tol=1e-5)


def test_no_block_is_longer_than_memory_allows() -> None:
    subject = subject_of(zoo.Bigram(), config={"max_seq_len": 100_000})
    _, lengths = bits(subject, Text((1,) * 3000, 3000))
    assert max(lengths) == samples_module.BLOCK


class Unlucky(zoo.Bigram):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] == 7:
            raise IndexError("seven is unlucky")
        return super().forward(input_ids)


def test_a_model_that_fails_while_it_speaks_is_named_with_the_shape() -> None:
    with pytest.raises(ExportError, match=r"'Unlucky' itself fails .*shape \(8, 7\): IndexError: seven is unlucky"):
        samples_of(subject_of(Unlucky(), config=zoo.CONFIG))


def test_long_texts_are_cut() -> None:
    subject = subject_of(zoo.Bigram(), tokenizer=Bytes(), config=zoo.CONFIG)
    samples = samples_of(subject, "é" * 30_000)
    assert (len(samples.text.ids), samples.text.size) == (40_000, 40_000)
    assert samples.origin == "the validation text"


class Fixed:
    """A tokenizer that always gives these ids."""

    def __init__(self, *ids: int) -> None:
        self.ids = ids

    def encode(self, text: str) -> list[int]:
        return list(self.ids)


@pytest.mark.parametrize(
    ("text", "tokenizer", "error", "words"),
    [
        ("abc", None, ConfigError, "needs a tokenizer"),
        ("a", Bytes(), ConfigError, "gives 1 tokens; at least 2"),
        ("", Bytes(), ConfigError, "gives 0 tokens"),
        (b"abc", Bytes(), ConfigError, "is a text; got bytes"),
        (["abc"], Bytes(), ConfigError, "is a text; got list"),
        ("abc", Fixed(*[1] * 100, 61), TokenIdError, "gives id 61 .*rows for 0 to 60"),
        ("abc", Fixed(1, 2, -1), TokenIdError, "gives id -1"),
    ],
)
def test_texts_that_cannot_be_measured(text: str, tokenizer: object, error: type, words: str) -> None:
    subject = subject_of(zoo.Bigram(), tokenizer=tokenizer, config=zoo.CONFIG)
    with pytest.raises(error, match=words):
        samples_of(subject, text)


def test_half_a_character_is_read_as_another() -> None:
    subject = subject_of(zoo.Bigram(), tokenizer=Bytes(), config=zoo.CONFIG)
    assert samples_of(subject, "half \ud83d of it").text == samples_of(subject, "half ? of it").text


def test_texts_for_models_of_images_are_refused() -> None:
    pictures = Signature("vision", (PIXELS,), 4, image_shape=(1, 8, 8))
    subject = replace(subject_of(zoo.Bigram(), config=zoo.CONFIG), signature=pictures)
    with pytest.raises(ConfigError, match="takes images"):
        samples_of(subject, "text")
    (batch,) = samples_of(subject).batches
    assert batch[PIXELS].shape == (32, 1, 8, 8)


def test_texts_become_blocks_with_what_the_file_takes() -> None:
    base = subject_of(zoo.Bigram(), tokenizer=Bytes(), config=zoo.CONFIG)
    masked = replace(base, signature=replace(base.signature, inputs=(IDS, MASK)))
    batches = samples_of(masked, TEXT).batches
    joined = np.concatenate([batch[IDS][0] for batch in batches])
    np.testing.assert_array_equal(joined, Bytes().encode(TEXT)[: len(joined)])
    assert all(batch[MASK].all() and batch[MASK].shape == batch[IDS].shape for batch in batches)
    pairs = Signature("seq2seq", (IDS, DECODER_IDS), zoo.V, zoo.V, 32, start_id=2)
    samples = samples_of(replace(base, signature=pairs), TEXT)
    assert samples.text is None
    first = samples.batches[0]
    np.testing.assert_array_equal(first[DECODER_IDS][0], [2, *first[IDS][0, :-1]])


def test_one_token_at_a_time_predicts_nothing() -> None:
    subject = subject_of(zoo.Bigram(), tokenizer=Bytes(), config={"max_seq_len": 1})
    assert samples_of(subject, TEXT).text is None


def test_what_a_model_says_follows_its_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frequencies of 40,000 followers against the model's probabilities: chi-square of 5 × 4 degrees of freedom."""
    monkeypatch.setattr(samples_module, "SEQUENCES", 2000)
    monkeypatch.setattr(samples_module, "TOKENS", 21)
    model = zoo.Bigram(5)
    with torch.no_grad():
        model.table.weight.copy_(torch.randn(5, 5))
    subject = subject_of(model, config={"max_seq_len": 64})
    (batch,) = samples_of(subject).batches
    ids = batch[IDS]
    assert ids.shape == (2000, 21)
    counts = np.zeros((5, 5))
    np.add.at(counts, (ids[:, :-1].ravel(), ids[:, 1:].ravel()), 1)
    expected = counts.sum(1, keepdims=True) * model.table.weight.detach().double().softmax(-1).numpy()
    assert ((counts - expected) ** 2 / expected).sum() < 45.3  # exceeded by chance once in a thousand


def test_what_a_model_says_is_repeatable_and_touches_nothing() -> None:
    subject = subject_of(zoo.Nano().train(), config=zoo.CONFIG)
    before = torch.get_rng_state()
    first, second = samples_of(subject), samples_of(subject)
    np.testing.assert_array_equal(first.batches[0][IDS], second.batches[0][IDS])
    assert torch.equal(torch.get_rng_state(), before)
    assert subject.adapted.model.training
    assert first.batches[0][IDS].shape == (8, zoo.LIMIT)
    assert len(np.unique(first.batches[0][IDS], axis=0)) == 8
    assert first.text is None
    assert first.origin == "what the model itself says"


def test_columns_beyond_the_rows_are_never_said() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 64))  # a head padded to a round width
    subject = subject_of(model, config={"max_seq_len": 64, "vocab_size": 9})
    assert samples_of(subject).batches[0][IDS].max() == 8


def test_models_that_say_nothing_get_random_examples() -> None:
    subject = subject_of(Classes(), config=zoo.CONFIG)
    assert subject.signature.task == "classification"
    samples = samples_of(subject)
    assert samples.origin == "random ids"
    assert samples.batches[0][IDS].shape == (32, zoo.LIMIT)


def test_encoders_of_every_kind_give_ids() -> None:
    fast = SimpleNamespace(encode=lambda text, add_special_tokens: SimpleNamespace(ids=[1, 2]))
    assert token_ids(fast, "x") == [1, 2]
    assert token_ids(Bytes(), "a") == [97 % zoo.V]
