from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.ui.decisions.test_dataset import SENTENCES
from tests.ui.hostile_strings import HOSTILE
from utils.errors import TokenizerError
from utils.tokenization.adaptive_tokenizer import AdaptiveTokenizer
from utils.ui.decisions.setup import Setup
from utils.ui.decisions.tokenizer import CACHE, TRY_IT, cut
from utils.ui.work import Ticket


def _setup(folder, rows=400, task="lm"):
    """A wizard whose model has so many rows."""
    setup = Setup(folder=folder, data=SENTENCES)
    contract = SimpleNamespace(vocab_size=rows, task=task)
    setup.validation.adapted = SimpleNamespace(contract=contract, name="Model")
    return setup


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Byte-level BPE of 400 entries."""
    return AdaptiveTokenizer.load_or_create(400, SENTENCES, tmp_path_factory.mktemp("cache"), progress=False)


@pytest.mark.parametrize(
    ("rows", "strategies"),
    [
        (100, ["", "character", "custom"]),
        (400, ["", "train_bpe", "character", "custom"]),
        (50257, ["", "pretrained", "train_bpe", "character", "custom"]),
        (3, ["", "custom"]),
    ],
)
def test_what_the_rows_allow_is_offered(tmp_path, rows, strategies):
    assert list(_setup(tmp_path, rows).tokenizer.strategies) == strategies


def test_it_is_made_from_the_training_text_and_fits(tmp_path):
    setup = _setup(tmp_path)
    decision = setup.tokenizer
    assert "press Make it" in decision.problem()
    assert decision.prepare(Ticket()) is decision.made
    assert (decision.choice.strategy, decision.choice.size) == ("train_bpe", len(decision.made))
    assert len(decision.made) <= 400
    assert decision.report.passed
    assert decision.problem() == ""
    assert "hold all bytes" in decision.choice.reason


def test_another_text_by_the_same_name_wants_another_tokenizer(tmp_path):
    setup, ticket = _setup(tmp_path), Ticket()
    setup.dataset.keep_upload({"mine.txt": "\n".join(SENTENCES).encode()})
    before = setup.tokenizer.prepare(ticket)
    setup.dataset.keep_upload({"mine.txt": b"Wholly different letters: xyzzy plugh quux jinx!\n" * 40})
    setup.dataset.load(ticket)
    assert not setup.tokenizer.is_made and "press Make it" in setup.tokenizer.problem()
    assert setup.tokenizer.prepare(ticket).get_vocab() != before.get_vocab()


@pytest.mark.parametrize(
    ("change", "made"),
    [
        (lambda setup: setup.tokenizer.choose(strategy="character"), False),
        (lambda setup: setup.dataset.choose(kind="example"), True),  # nothing else was read yet
        (lambda setup: setup.tokenizer.choose(tried="another"), True),
        (lambda setup: setup.tokenizer.choose(own="unused"), True),
    ],
)
def test_another_choice_is_made_anew(tmp_path, change, made):
    setup = _setup(tmp_path)
    setup.tokenizer.make(Ticket())
    change(setup)
    assert setup.tokenizer.is_made is made
    assert (setup.tokenizer.choice is not None) is made


def test_other_data_makes_another_tokenizer(tmp_path):
    setup = _setup(tmp_path)
    setup.tokenizer.make(Ticket())
    setup.dataset.choose(kind="example")
    setup.dataset.load(Ticket())
    assert not setup.tokenizer.is_made


def test_a_restart_finds_the_choice_and_the_cached_tokenizer(tmp_path):
    setup = _setup(tmp_path)
    setup.tokenizer.choose(tried="hello")
    first = setup.tokenizer.make(Ticket())
    assert (tmp_path / CACHE).is_dir()
    again = _setup(tmp_path).tokenizer
    assert again.form.tried == "hello"
    assert again.make(Ticket()).get_vocab() == first.get_vocab()


def test_ones_own_is_asked_for_and_held_against_the_rows(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "own")
    setup = _setup(tmp_path / "wizard", rows=len(tokenizer))
    setup.tokenizer.choose(strategy="custom")
    assert "Type where your tokenizer is" in setup.tokenizer.problem()
    with pytest.raises(TokenizerError, match=r"Type where"):
        setup.tokenizer.make(Ticket())
    setup.tokenizer.choose(own=str(tmp_path / "own"))
    assert setup.tokenizer.make(Ticket()).get_vocab() == tokenizer.get_vocab()
    small = _setup(tmp_path / "other", rows=300)
    small.tokenizer.choose(strategy="custom", own=str(tmp_path / "own"))
    with pytest.raises(TokenizerError, match=r"ids outside the model's 300 rows"):
        small.tokenizer.make(Ticket())
    assert small.tokenizer.made is None


def test_a_model_without_rows_is_said(tmp_path):
    setup = _setup(tmp_path, rows=None)
    with pytest.raises(TokenizerError, match=r"config with vocab_size"):
        setup.tokenizer.make(Ticket())


def test_images_need_none(tmp_path):
    setup = _setup(tmp_path, task="vision")
    assert setup.tokenizer.problem() == ""
    assert setup.tokenizer.prepare(Ticket()) is None


def test_the_pieces_are_the_text(tokenizer):
    for text in (TRY_IT, "", "  two  spaces\n", "中文 é 🦊🦊", *HOSTILE):
        pieces = cut(tokenizer, text)
        assert "".join(piece.text for piece in pieces) == text
        assert [piece.number for piece in pieces] == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert not any(piece.is_unknown for piece in pieces)


def test_marks_in_a_tried_text_stay_text(tokenizer):
    assert tokenizer.eos_token_id not in [piece.number for piece in cut(tokenizer, f"a{tokenizer.eos_token}b")]


def test_what_has_no_entry_is_marked(tmp_path):
    characters = AdaptiveTokenizer.load_or_create(100, ["abc " * 50], tmp_path, progress=False)
    assert [piece.is_unknown for piece in cut(characters, "a中b")] == [False, True, False]
