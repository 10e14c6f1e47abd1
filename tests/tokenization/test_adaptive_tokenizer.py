from __future__ import annotations

import itertools
import json
import logging
import os
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path

import pytest
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from tests.tokenization.hub_server import HubServer
from tests.tokenization.test_sentencepiece_model import PIECES, model_bytes
from utils.errors import ConfigError, TokenizerError
from utils.tokenization.adaptive_tokenizer import AdaptiveTokenizer, choice_of
from utils.tokenization.bpe_trainer import FastBPETrainer
from utils.tokenization.character_tokenizer import alphabet
from utils.tokenization.hub_access import HubLimits
from utils.tokenization.known_tokenizers import KnownTokenizer
from utils.tokenization.tokenizer_files import load_saved, save_tokenizer
from utils.tokenization.validator import TORTURE_TEXT, TokenizerValidator
from utils.training.dataset_utilities import python_docs

ROOT = Path(__file__).resolve().parents[2]
SIZES = [100, 128, 259, 260, 300, 1_000, 5_000, 32_000, 50_257, 128_256, 151_936, 262_144, 500_000]
CORPORA = {
    "10 lines": [f"line {number} of a short text" for number in range(10)],
    "1,000 lines": python_docs().splitlines()[:1000],
    "offline corpus": [python_docs()],
    "mixed scripts": [
        TORTURE_TEXT,
        "\u0417\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439\u0442\u0435 \u4f60\u597d \U0001f600\x00\x1f",
        *"\U0001f1eb\u0301\ufeff\n\r",
    ]
    * 3,
}
FAST = HubLimits(first_answer=0.6, total=1.5)


def make(*arguments, **settings):
    return AdaptiveTokenizer.load_or_create(*arguments, **{"progress": False, **settings})


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture
def no_socket(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))


def every_size_and_text():
    """The long text at sizes that it is far from filling goes the same way; one of them is enough by default."""
    for size, corpus in itertools.product(SIZES, CORPORA):
        long = corpus == "offline corpus" and size in (128, 300, 50_257, 128_256, 151_936, 262_144)
        yield pytest.param(size, corpus, marks=[pytest.mark.slow] if long else [])


@pytest.mark.parametrize(("size", "corpus"), list(every_size_and_text()))
def test_any_size_and_any_text_meet_offline(size, corpus, tmp_path, caplog, no_socket):
    """A tokenizer that works, ids below the rows, exact round trip or the stated coverage, no warning, no waiting."""
    texts = CORPORA[corpus]
    begun = time.monotonic()
    with warnings.catch_warnings(), caplog.at_level(logging.INFO):
        warnings.simplefilter("error")
        tokenizer = make(size, texts, tmp_path)
    assert time.monotonic() - begun < 30  # training included; the network is not asked at all
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert max(tokenizer.get_vocab().values()) < size
    assert TokenizerValidator.validate(tokenizer, size).passed
    missing = set() if size >= 260 else set("".join(texts)) - alphabet(tokenizer)
    choice = choice_of(tokenizer)
    if size < 260:
        stated = "read as <unk>" if missing else "every one of the text's"
        assert any(stated in note for note in choice.notes)
        assert len(tokenizer) == size or not missing
    assert choice.size == len(tokenizer) and choice.strategy == ("train_bpe" if size >= 260 else "character")
    assert any("stay unused" in note for note in choice.notes) == (len(tokenizer) < size)
    for text in dict.fromkeys(texts):
        found = ids(tokenizer, text)
        assert all((1 if size < 260 else 4) <= index < size and index not in (2, 3) for index in found)
        assert tokenizer.decode(found) == "".join("<unk>" if character in missing else character for character in text)
    assert all(record.levelno < logging.WARNING for record in caplog.records)


@pytest.mark.parametrize("size", [128, 300])
def test_a_saved_tokenizer_comes_back_equal(size, tmp_path):
    tokenizer = make(size, CORPORA["mixed scripts"], tmp_path / "cache")
    tokenizer.save_pretrained(tmp_path / "t")
    for back in (PreTrainedTokenizerFast.from_pretrained(tmp_path / "t"), make(size, own=tmp_path / "t")):
        assert ids(back, TORTURE_TEXT) == ids(tokenizer, TORTURE_TEXT)
        assert back.decode(ids(tokenizer, TORTURE_TEXT)) == TORTURE_TEXT
        assert (back.pad_token_id, back.eos_token_id, back.padding_side) == (0, 3, tokenizer.padding_side)


@pytest.mark.parametrize(
    ("rows", "documents", "strategy"),
    [
        (100, 10**6, "character"),
        (259, 0, "character"),
        (260, 1, "train_bpe"),
        (260, 0, "custom"),
        (50_257, 0, "pretrained"),
        (50_257, 1_000, "pretrained"),
        (50_257, 100_000, "train_bpe"),  # 100 MB fill the rows
        (50_304, 1_000, "pretrained"),
        (50_432, 1_000, "train_bpe"),  # only a tokenizer that composes accents has these rows
        (30_522, 1_000, "train_bpe"),
        (12_345, 10, "train_bpe"),
        (500_000, 10, "train_bpe"),
        (4, 1_000, "custom"),
    ],
)
def test_the_strategy_follows_rows_and_text(rows, documents, strategy):
    assert AdaptiveTokenizer.detect_strategy(rows, documents) == strategy


@pytest.mark.parametrize("rows", [0, -1, True, "300", 2.5, None])
def test_rows_are_a_number(rows):
    with pytest.raises(TokenizerError, match="1 or more; got"):
        AdaptiveTokenizer.detect_strategy(rows, 10)


@pytest.mark.parametrize("documents", [-1, "10", 1.5, True])
def test_documents_are_a_number(documents):
    with pytest.raises(TokenizerError, match="number of documents"):
        AdaptiveTokenizer.detect_strategy(300, documents)


@pytest.mark.parametrize("rows", [3, 100, 260, 5000, 30522, 50257])
def test_what_is_possible_is_what_is_chosen_or_an_alternative(rows):
    choice = AdaptiveTokenizer.advise(rows, ["some text"] * 50)
    named = {
        strategy for strategy in ("pretrained", "train_bpe", "character") if f"'{strategy}'" in str(choice.alternatives)
    }
    assert set(AdaptiveTokenizer.possible_strategies(rows)) == named | {choice.strategy, "custom"}


def test_an_unknown_strategy_is_never_taken_for_another(tmp_path):
    with pytest.raises(ConfigError, match="strategy='train_bpee' is unknown; did you mean 'train_bpe'"):
        AdaptiveTokenizer.load_or_create(300, ["text"], tmp_path, strategy="train_bpee")


def test_what_was_chosen_is_no_alternative_to_itself(tmp_path):
    choice = AdaptiveTokenizer.load_or_create(300, ["text"], tmp_path, strategy="character").choice
    assert not any("strategy='character'" in text for text in choice.alternatives)
    assert any("strategy='train_bpe'" in text for text in choice.alternatives)


def test_a_cache_that_cannot_be_written_to_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TokenizerError, match="Choose a folder that can be written to"):
        AdaptiveTokenizer.load_or_create(300, ["text"], tmp_path / "file")


def test_advice_gives_reason_and_alternatives_without_network_or_training(no_socket):
    choice = AdaptiveTokenizer.advise(50_432, ["some text"])
    told = str(choice)
    assert choice.strategy == "train_bpe" and choice.size is None
    assert "GPT-NeoX and Pythia has these rows, but composes accents" in told.replace("\n", " ")
    assert "own='EleutherAI/gpt-neox-20b'" in " ".join(choice.alternatives)
    assert "strategy='character'" in told and "<table" in choice._repr_html_()
    assert "50,257 rows are those of GPT-2" in AdaptiveTokenizer.advise(50_257).reason


def test_outside_text_in_a_choice_is_escaped(tmp_path):
    folder = tmp_path / "<b>name"
    FastBPETrainer.train_on_dataset(["text"], 300, progress=False).save_pretrained(folder)
    assert "&lt;b&gt;name" in choice_of(make(300, own=folder))._repr_html_()


@pytest.mark.parametrize(
    "texts", ["one text", ("a", "b"), (text for text in ["a", "b"]), types.SimpleNamespace(documents=["a", "b"])]
)
def test_texts_may_come_in_any_container(texts, tmp_path):
    assert len(make(300, texts, tmp_path)) >= 260


def test_nothing_to_go_by_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(TokenizerError, match=r"no tokenizer for 12,345 rows.*dataset=.*own="):
        make(12_345, cache_dir=tmp_path)
    with pytest.raises(TokenizerError, match=r"no tokenizer for 50,257 rows.*GPT-2.*offline mode is set"):
        make(50_257, cache_dir=tmp_path)
    with pytest.raises(TokenizerError, match=r"no tokenizer for 3 rows.*hold no character"):
        make(3, ["text"], tmp_path)


def test_special_tokens_of_ones_own(tmp_path):
    for rows in (100, 300):
        tokenizer = make(rows, ["a <user> b"], tmp_path, special_tokens=["<pad>", "<unk>", "<s>", "</s>", "<user>"])
        assert tokenizer.convert_tokens_to_ids("<user>") == 4
        assert 4 not in ids(tokenizer, "a <user> b")


def test_progress_is_told(tmp_path):
    told = []
    make(300, ["some text"] * 600, tmp_path, progress=lambda *state: told.append(state))
    assert {"read", "merging pairs"} <= {note for _, _, note in told}


# the Hub, on a loopback port


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Files of a real tokenizer repository of 290 entries."""
    folder = tmp_path_factory.mktemp("published")
    FastBPETrainer.train_on_dataset([python_docs()[:20_000]], 290, progress=False).save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = json.loads(files["tokenizer_config.json"])
    del config["split_special_tokens"]  # others do not write it
    return {**files, "tokenizer_config.json": json.dumps(config).encode()}


@pytest.fixture
def hub(monkeypatch, tmp_path, published):
    """Two repositories are known for 290 and for 300 rows; the first is served."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    table = (KnownTokenizer("Tiny", (290, 300), 290, ("a/first", "a/second")),)
    monkeypatch.setattr("utils.tokenization.known_tokenizers.KNOWN_TOKENIZERS", table)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.files["a/first"] = dict(published)
        yield server


def reach(rows, tmp_path, texts=("a few words",), **settings):
    return make(rows, texts, tmp_path / "cache", hub_limits=FAST, **settings)


def test_a_known_tokenizer_is_fetched_verified_and_kept(hub, tmp_path, published):
    tokenizer = reach(290, tmp_path)
    choice = choice_of(tokenizer)
    assert (choice.strategy, choice.source, choice.size) == ("pretrained", "Tiny: a/first", 290)
    assert "rows are those of Tiny, and 11 bytes of text would fill about" in choice.reason
    assert tokenizer.decode(ids(tokenizer, TORTURE_TEXT + "</s>")) == TORTURE_TEXT + "</s>"
    assert min(ids(tokenizer, "</s><pad>")) > 3
    asked = len(hub.requests)
    again = reach(290, tmp_path)
    assert len(hub.requests) == asked  # from the cache
    assert min(ids(again, "</s><pad>")) > 3
    assert ids(again, TORTURE_TEXT) == ids(tokenizer, TORTURE_TEXT)
    assert reach(300, tmp_path).choice.notes == ("10 of the model's 300 rows stay unused.",)


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((401, "GatedRepo"), "a/first is gated"),
        ((403, "GatedRepo"), "a/first is gated"),
        ((404, "RepoNotFound"), "a/first does not exist"),
        ((500, ""), "HTTP 500"),
    ],
)
def test_a_refusal_falls_to_the_next_tier_at_once_and_says_so(hub, tmp_path, refusal, words):
    hub.refusals = {"a/first": refusal, "a/second": refusal}
    begun = time.monotonic()
    tokenizer = reach(290, tmp_path)
    assert time.monotonic() - begun < 5
    assert tokenizer.choice.strategy == "train_bpe"
    assert any(words in note and "is not to be had" in note for note in tokenizer.choice.notes)
    assert tokenizer.decode(ids(tokenizer, TORTURE_TEXT)) == TORTURE_TEXT
    assert hub.asked("tokenizer_config.json") == (1 if refusal[0] == 500 else 2)  # no retries


@pytest.mark.parametrize("fault", ["accept", "body", "trickle"])
def test_a_hub_that_hangs_falls_to_the_next_tier_in_time(hub, tmp_path, fault):
    hub.hang = fault
    begun = time.monotonic()
    tokenizer = reach(290, tmp_path)
    assert time.monotonic() - begun < 5
    assert tokenizer.choice.strategy == "train_bpe"
    assert any("did not a" in note or "broke off" in note for note in tokenizer.choice.notes)


def test_nobody_who_listens_costs_less_than_five_seconds(hub, tmp_path, monkeypatch):
    """With the limits that everybody gets."""
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: time.sleep(8))
    begun = time.monotonic()
    tokenizer = make(290, ["a few words"], tmp_path / "cache")
    assert time.monotonic() - begun < 5
    assert tokenizer.choice.strategy == "train_bpe"
    assert any("did not answer within 4 s" in note for note in tokenizer.choice.notes)


def test_a_gated_source_is_followed_by_an_open_one(hub, tmp_path, published):
    hub.refusals = {"a/first": (401, "GatedRepo")}
    hub.files["a/second"] = dict(published)
    assert reach(290, tmp_path).choice.source == "Tiny: a/second"


def altered(published, alter):
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(published["tokenizer.json"].decode())
    alter(backend)
    return {**published, "tokenizer.json": backend.to_str().encode()}


def lower_cased(backend):
    backend.normalizer = normalizers.Lowercase()


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (lambda backend: backend.add_tokens(["further"]), "outside the model's 290 rows"),
        (lower_cased, "does not survive"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_not_taken(hub, tmp_path, published, alter, words):
    hub.files["a/first"] = altered(published, alter)
    choice = reach(290, tmp_path).choice
    assert choice.strategy == "train_bpe" and any(words in note for note in choice.notes)


def test_a_broken_file_is_not_taken(hub, tmp_path, published):
    hub.files["a/first"] = {**published, "tokenizer.json": b"{}"}
    choice = reach(290, tmp_path).choice
    assert choice.strategy == "train_bpe"
    assert any("cannot be read as a tokenizer" in note for note in choice.notes)
    assert not list((tmp_path / "cache").glob("hub-*"))


def test_a_damaged_cache_is_fetched_anew(hub, tmp_path):
    reach(290, tmp_path)
    (tmp_path / "cache" / "hub-a--first" / "tokenizer.json").write_text("{}")
    assert reach(290, tmp_path).choice.strategy == "pretrained"
    assert load_saved(tmp_path / "cache" / "hub-a--first") is not None


def test_text_that_fills_the_rows_is_trained_on(hub, tmp_path):
    choice = reach(290, tmp_path, ["plenty of words " * 100]).choice
    assert choice.strategy == "train_bpe" and not hub.requests
    assert any("strategy='pretrained'" in text for text in choice.alternatives)


def test_a_tier_that_is_asked_for_is_had_or_the_reason_raised(hub, tmp_path):
    assert reach(290, tmp_path, ["plenty of words " * 100], strategy="pretrained").choice.strategy == "pretrained"
    assert reach(290, tmp_path, strategy="train_bpe").choice.strategy == "train_bpe"
    assert reach(290, tmp_path, strategy="character").choice.strategy == "character"
    with pytest.raises(TokenizerError, match="at least 260 entries"):
        reach(200, tmp_path, strategy="train_bpe")
    with pytest.raises(TokenizerError, match="no known tokenizer belongs to 280 rows"):
        reach(280, tmp_path, strategy="pretrained")
    with pytest.raises(TokenizerError, match="own="):
        reach(290, tmp_path, strategy="custom")
    hub.refusals = {"a/first": (401, "GatedRepo")}
    with pytest.raises(TokenizerError, match=r"is not to be had: a/first is gated.*a/second does not exist"):
        make(290, ["x"], tmp_path / "other", strategy="pretrained")


def test_vocabulary_and_merges_from_the_hub(hub, tmp_path, published):
    from tokenizers import Tokenizer

    folder = tmp_path / "pairs"
    folder.mkdir()
    Tokenizer.from_str(published["tokenizer.json"].decode()).model.save(str(folder))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.files["a/first"] = {**files, "special_tokens_map.json": b'{"eos_token": "</s>"}'}
    tokenizer = reach(300, tmp_path)
    assert tokenizer.choice.strategy == "pretrained"
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "</s>")
    assert "<pad> is taken as padding token" not in tokenizer.choice.notes  # named by habit on loading


# one's own


def test_ones_own_tokenizer_comes_first(hub, tmp_path, published):
    own = FastBPETrainer.train_on_dataset(["x y z"], 262, progress=False)
    tokenizer = reach(290, tmp_path, own=own)
    assert tokenizer is own and tokenizer.choice.strategy == "custom" and not hub.requests
    assert reach(290, tmp_path, own="a/first").choice.source == "Hub repository a/first"
    with pytest.raises(TokenizerError, match=r"'a/none' is neither a file or folder here.*does not exist"):
        reach(290, tmp_path, own="a/none")


def test_an_own_tokenizer_may_normalise_and_the_loss_is_noted(hub, tmp_path, published):
    hub.files["a/first"] = altered(published, lower_cased)
    choice = reach(290, tmp_path, own="a/first").choice
    assert any("does not survive" in note for note in choice.notes)


def test_an_own_sentencepiece_model(tmp_path):
    (tmp_path / "my.model").write_bytes(model_bytes(PIECES))
    tokenizer = make(8, own=tmp_path / "my.model")
    assert (len(tokenizer), tokenizer.eos_token, tokenizer.pad_token_id) == (7, "</s>", 6)
    assert "<pad> was added as padding token with id 6" in tokenizer.choice.notes


def test_an_own_tokenizer_beyond_the_rows_is_refused():
    own = FastBPETrainer.train_on_dataset(["some text " * 9], 262, progress=False)
    with pytest.raises(TokenizerError, match="outside the model's 261 rows"):
        make(261, own=own)


def test_two_processes_share_a_cache(tmp_path):
    script = (
        "import sys; from utils.tokenization.adaptive_tokenizer import AdaptiveTokenizer as A\n"
        "print(A.load_or_create(300, ['some text'] * 50, sys.argv[1], progress=False)('text')['input_ids'])"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    runs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env=dict(os.environ)) for _ in range(2)]
    said = {run.communicate(timeout=60)[0] for run in runs}
    assert len(said) == 1 and all(run.returncode == 0 for run in runs)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_choice_is_none_for_other_tokenizers(tmp_path):
    assert choice_of(FastBPETrainer.train_on_dataset(["x"], 260, progress=False)) is None
    save_tokenizer(make(300, ["x"], tmp_path), tmp_path / "t")
    assert choice_of(load_saved(tmp_path / "t")) is None
