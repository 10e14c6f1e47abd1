"""The choice of tokens against transformers' own processors, and the rules of batches, streams and stop strings."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from utils import decoding
from utils.decoding import NoChoiceError, Sampling, StopText, TextStream, Writer, decode, next_id

ROWS = 57


def random_logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, ROWS).astype(np.float32)


def hf_shares(logits: np.ndarray, seen: list[int], sampling: Sampling) -> np.ndarray:
    """Probabilities after transformers' processors, in its order."""
    from transformers import (
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    steps = [
        RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
        TemperatureLogitsWarper(sampling.temperature),
    ]
    if sampling.top_k is not None:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None:
        steps.append(TopPLogitsWarper(sampling.top_p))
    ids, scores = torch.tensor([seen]), torch.from_numpy(logits.astype(np.float64))[None]
    for step in steps:
        scores = step(ids, scores)
    return torch.softmax(scores, -1)[0].numpy()


def found_shares(logits: np.ndarray, seen: list[int], sampling: Sampling, draws: int = 20_000) -> np.ndarray:
    """How often each id comes for evenly spaced draws: its probability, exact to 1/draws."""
    counts = np.zeros(len(logits))
    for draw in (np.arange(draws) + 0.5) / draws:
        counts[next_id(logits, seen, sampling, draw)] += 1
    return counts / draws


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": None},
        {"top_k": 5},
        {"top_k": None, "top_p": 0.7},
        {"top_k": None, "top_p": 0.01},
        {"top_k": 20, "top_p": 0.9, "temperature": 0.6},
        {"top_k": None, "repetition_penalty": 1.7},
        {"top_k": 9, "top_p": 0.8, "repetition_penalty": 0.6, "temperature": 1.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [1, 2])
def test_probabilities_are_those_of_transformers(settings, seed):
    sampling = Sampling(**{"temperature": 1.0, **settings})
    logits, seen = random_logits(seed), [3, 3, 9, 41]
    expected, draws = hf_shares(logits, seen, sampling), 2_000
    found = found_shares(logits, seen, sampling, draws)
    assert np.abs(found - expected).max() <= 1 / draws + 1e-9  # an interval may gain or lose one of the draws
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(expected))


@pytest.mark.parametrize(
    ("logits", "penalty", "chosen"),
    [([3.0, 2.0], 1.4, 0), ([3.0, 2.0], 1.6, 1), ([-2.0, -3.0], 1.4, 0), ([-2.0, -3.0], 1.6, 1), ([2.0, 3.0], 0.5, 0)],
)
def test_a_repeated_token_is_less_likely_whatever_its_sign(logits, penalty, chosen):
    assert next_id(np.array(logits), [0, 0], Sampling(temperature=0, repetition_penalty=penalty)) == chosen


@pytest.mark.parametrize(("top_k", "top_p"), [(1, None), (None, 1e-9), (None, None)])
def test_greedy_and_its_ties(top_k, top_p):
    logits = np.array([0.0, 4.0, 1.0, 4.0])
    temperature = 0 if top_k is None and top_p is None else 1.0
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    assert {next_id(logits, [], sampling, draw) for draw in (0.0, 0.5, 1 - 2**-53)} == {1}


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_ids_without_probability_are_never_drawn(draw):
    logits = np.array([-np.inf, 1.0, 1.0, -np.inf])
    assert next_id(logits, [], Sampling(top_k=None), draw) == (1 if draw == 0 else 2)
    assert next_id(logits, [], Sampling(top_k=None), draw, np.array([True, True, False, True])) == 1


@pytest.mark.parametrize("temperature", [1e-6, 5e-324])
def test_a_tiny_temperature_is_greedy_and_warns_of_nothing(temperature):
    with np.errstate(all="raise"), np.errstate(under="ignore"):
        assert next_id(np.array([1e4, -1e4, 2e4]), [], Sampling(temperature=temperature, top_k=None), 0.7) == 2


@pytest.mark.parametrize("penalty", decoding.PENALTIES)
def test_no_penalty_that_is_allowed_takes_the_choice_away(penalty):
    logits = np.array([3e38, 1.0, -3e38], dtype=np.float32)
    with np.errstate(all="raise"):
        assert next_id(logits, [0, 1, 2], Sampling(temperature=0, repetition_penalty=penalty)) == 0


@pytest.mark.parametrize("logits", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]])
def test_scores_that_leave_no_choice_are_refused(logits):
    with pytest.raises(NoChoiceError, match="leave nothing to choose"):
        next_id(np.array(logits), [], Sampling())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_new_tokens": -1, "temperature": float("nan")}, ["max_new_tokens", "temperature"]),
        ({"top_k": 0, "top_p": 0.0}, ["top_k", "top_p"]),
        ({"top_p": 1.1, "repetition_penalty": 0}, ["top_p", "repetition_penalty"]),
        ({"repetition_penalty": 1e-310}, ["repetition_penalty"]),
        ({"repetition_penalty": 101}, ["repetition_penalty"]),
        ({"seed": True, "stop_ids": (-1,)}, ["seed", "stop_ids"]),
        ({"top_p": "a"}, ["top_p"]),
        ({}, []),
    ],
)
def test_every_wrong_setting_is_named(values, words):
    assert [problem.split()[0] for problem in Sampling(**values).problems()] == words


# ---- batches ---------------------------------------------------------------------------------------------------------------
class Hashed:
    """A model whose logits depend on every id of the view; notes what it was asked for."""

    def __init__(self, rows: int = 20) -> None:
        self.rows, self.shapes, self.asked = rows, [], []

    def __call__(self, views: np.ndarray, rows: tuple[int, ...]) -> np.ndarray:
        self.shapes.append(views.shape)
        self.asked.append(rows)
        return np.stack([np.random.default_rng(view.tolist()).normal(0, 2, self.rows) for view in views])


PROMPTS = [[1, 2, 3], [4], [5, 6, 7], [8, 9]]


def run(prompts, sampling, **options):
    model = Hashed()
    found: list[list[int]] = [[] for _ in prompts]
    for new in decode(model, prompts, sampling, **options):
        for row, index in enumerate(new):
            if index is not None:
                found[row].append(index)
    return found, model


def test_a_batch_gives_each_prompt_what_it_gets_alone():
    sampling = Sampling(max_new_tokens=6, temperature=0, stop_ids=(7,))
    together, model = run(PROMPTS, sampling)
    assert together == [run([prompt], sampling)[0][0] for prompt in PROMPTS]
    assert (2, 3) in model.shapes, "prompts of one length run together"


def test_each_prompt_has_its_own_generator():
    sampling = Sampling(max_new_tokens=8, temperature=1.0, top_k=None)
    found, _ = run([[1, 2], [1, 2]], sampling)
    assert found[0] != found[1]
    assert found == run([[1, 2], [1, 2]], sampling)[0]
    assert found[0] == run([[1, 2]], sampling)[0][0]
    assert found != run([[1, 2], [1, 2]], Sampling(max_new_tokens=8, temperature=1.0, top_k=None, seed=1))[0]


def test_the_view_ends_at_the_limit_and_stop_ids_end_a_row_only():
    stops = Sampling(max_new_tokens=30, temperature=1.0, top_k=None, stop_ids=(3, 4))
    found, model = run(PROMPTS, stops, max_length=4)
    assert max(shape[1] for shape in model.shapes) == 4
    assert not {3, 4} & {index for row in found for index in row}
    assert len({len(row) for row in found}) > 1


def test_what_must_not_run_together_does_not():
    _, model = run([[1], [2], [3]], Sampling(max_new_tokens=1, temperature=0), together=["a", "b", "a"])
    assert sorted(model.asked) == [(0, 2), (1,)]


def test_a_row_that_needs_no_more_ends():
    asked = []
    found, _ = run(
        [[1], [2]], Sampling(max_new_tokens=4, temperature=0), ended=lambda row: asked.append(row) or row == 1
    )
    assert [len(row) for row in found] == [4, 0]


@pytest.mark.parametrize("width", [12, 20, 30])
def test_only_allowed_ids_are_drawn_however_wide_the_mask(width):
    allowed = np.zeros(width, dtype=bool)
    allowed[[2, 5]] = True
    found, _ = run([[1]], Sampling(max_new_tokens=20, temperature=2.0, top_k=None), allowed=allowed)
    assert set(found[0]) == {2, 5}


def test_wrong_settings_and_empty_prompts_are_refused_together():
    with pytest.raises(ValueError, match=r"top_k must be.*; prompt 1 is empty\."):
        run([[1], []], Sampling(top_k=0))


# ---- text ------------------------------------------------------------------------------------------------------------------
def byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made


def word_tokenizer() -> Tokenizer:
    words = ["▁The", "▁cat", "▁sat", "s", "<0xE4>", "<0xBD>", "<0xA0>", "▁"]
    made = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


@pytest.mark.parametrize("text", ["plain text", "für 你好 👩‍👩‍👧 ok", "a\ufffdb", "🎉" * 20, ""])
def test_pieces_join_to_the_whole_and_hold_no_half_characters(text):
    tokenizer = byte_tokenizer()
    ids, stream = tokenizer.encode(text).ids, TextStream(tokenizer.decode)
    pieces = [stream.push(index) for index in ids]
    assert "".join([*pieces, stream.finish()]) == text
    assert all(piece.count("\ufffd") <= text.count("\ufffd") for piece in pieces)


def test_bytes_that_become_no_character_come_at_the_end():
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("a你").ids[:-1]
    stream = TextStream(tokenizer.decode)
    pieces = [stream.push(index) for index in ids]
    assert pieces == ["a", "", ""] and stream.finish() == tokenizer.decode(ids)[1:]
    assert stream.finish() == ""


def test_spaces_between_words_survive_where_the_first_word_has_none():
    tokenizer = word_tokenizer()
    stream = TextStream(tokenizer.decode, [0])
    assert [stream.push(index) for index in (1, 3, 2)] == [" cat", "s", " sat"]
    alone = TextStream(tokenizer.decode)
    assert "".join(alone.push(index) for index in (0, 1, 4, 5, 6, 2)) == tokenizer.decode([0, 1, 4, 5, 6, 2])


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "reached"),
    [
        (["one ", "two ", "three"], ["two"], "one ", True),
        (["a", "b", "c", "d"], ["bcd"], "a", True),
        (["a", "b", "c", "x"], ["bcd"], "abcx", False),
        (["ab", "ab", "c"], ["abc", "zz"], "ab", True),
        (["x\n", "\n", "y"], ["\n\n"], "x", True),
        (["a", "b"], [], "ab", False),
        (["abc"], ["c", "b"], "a", True),
        (["tail b"], ["bc"], "tail b", False),
    ],
)
def test_stop_strings_end_before_them_even_across_pieces(pieces, stops, text, reached):
    stop = StopText(stops)
    given = [stop.push(piece) for piece in pieces]
    assert "".join([*given, stop.finish()]) == text
    assert stop.reached is reached


class Spells:
    """Says a text, byte by byte, then end-of-text."""

    def __init__(self, text: str, tokenizer: Tokenizer, start: int) -> None:
        self.ids, self.start = [*tokenizer.encode(text).ids, 256], start

    def __call__(self, views: np.ndarray, rows: tuple[int, ...]) -> np.ndarray:
        logits = np.zeros((len(views), 257))
        logits[:, self.ids[min(views.shape[1] - self.start, len(self.ids) - 1)]] = 9.0
        return logits


@pytest.mark.parametrize(
    ("stop", "most", "text", "reason", "tokens"),
    [
        ([], 50, "grün und mehr", "stop", 14),
        ([], 5, "grün", "length", 5),
        ([" u"], 50, "grün", "stop", 7),
        (["ehr"], 50, "grün und m", "stop", 14),
        (["nie"], 14, "grün und mehr", "length", 14),
        ([], 0, "", "length", 0),
    ],
)
def test_a_writer_says_why_it_ended(stop, most, text, reason, tokens):
    tokenizer = byte_tokenizer()
    step = Spells("grün und mehr", tokenizer, 2)
    writer = Writer(step, [[1, 2]], Sampling(most, 0, stop_ids=(256,)), tokenizer.decode, stop=stop)
    pieces = list(writer)
    (written,) = writer.texts
    assert "".join(piece for _, piece in pieces) == written.text == text
    assert (written.reason, len(written.ids)) == (reason, tokens)


# ---- the file itself -------------------------------------------------------------------------------------------------------
def test_the_file_runs_alone():
    """It is copied into every exported folder, where there is numpy and nothing of this package."""
    text = Path(decoding.__file__).read_text("utf-8")
    imported = {
        (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else node.names[0].name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy"}


def test_an_interpreter_without_torch_draws_the_same(tmp_path):
    (tmp_path / "decoding.py").write_bytes(Path(decoding.__file__).read_bytes())
    code = (
        "import sys, numpy as np, decoding\n"
        "step = lambda views, rows: np.tile(np.linspace(-1, 1, 50), (len(views), 1))\n"
        "print(list(decoding.decode(step, [[1], [2, 3]], decoding.Sampling(5, 1.0, seed=3))))\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    flat = lambda views, rows: np.tile(np.linspace(-1, 1, 50), (len(views), 1))  # noqa: E731
    assert done.stdout.strip() == str(list(decode(flat, [[1], [2, 3]], Sampling(5, 1.0, seed=3))))
