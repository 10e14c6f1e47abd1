from __future__ import annotations

import json
import time

import pytest

from tests.tokenization.hub_server import HubServer
from utils.errors import HubError
from utils.tokenization.hub_access import HubLimits, fetch, is_repository

FAST = HubLimits(first_answer=0.5, total=1.5, max_bytes=100_000)
FILES = {"tokenizer_config.json": b'{"eos_token": "</s>"}', "tokenizer.json": b"{" + b" " * 5000 + b"}"}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    with HubServer() as server:
        server.files["a/b"] = dict(FILES)
        monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
        yield server


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "fetched"
    target.mkdir()
    return target


def test_the_files_arrive_whole(hub, folder):
    assert fetch("a/b", folder, FAST) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert hub.asked("vocab.json") == 0


def test_other_kinds_of_vocabularies_are_looked_for(hub, folder):
    hub.files["a/b"] = {"vocab.json": b"{}", "merges.txt": b""}
    fetch("a/b", folder, FAST)
    assert {path.name for path in folder.iterdir()} == {"vocab.json", "merges.txt"}
    hub.files["a/b"] = {"spiece.model": b"x"}
    fetch("a/b", folder, FAST)
    assert (folder / "spiece.model").is_file()


def test_redirects_are_followed_and_the_token_stays_with_the_hub(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.redirect = True
    fetch("a/b", folder, FAST)
    assert (folder / "tokenizer.json").read_bytes() == FILES["tokenizer.json"]
    seen = dict(zip(hub.requests, hub.tokens))
    assert seen["/a/b/resolve/main/tokenizer.json"] == "Bearer secret"
    assert seen["/cdn/a/b/resolve/main/tokenizer.json"] is None


@pytest.mark.parametrize(
    ("refusal", "kind", "words"),
    [
        ((401, "GatedRepo"), "gated", "is gated.*HF_TOKEN.*HTTP 401"),
        ((403, ""), "gated", "HTTP 403"),
        ((401, "RepoNotFound"), "missing", "does not exist on the Hub, or is private"),
        ((404, "RepoNotFound"), "missing", "does not exist"),
        ((404, ""), "missing", "does not exist.*or holds none of tokenizer.json"),
        ((500, ""), "unreachable", "HTTP 500"),
        ((503, ""), "unreachable", "HTTP 503"),
        ((429, ""), "unreachable", "HTTP 429"),
    ],
)
def test_a_refusal_is_told_at_once_and_in_words(hub, folder, refusal, kind, words):
    hub.refusals["a/b"] = refusal
    begun = time.monotonic()
    with pytest.raises(HubError, match=words) as caught:
        fetch("a/b", folder, FAST)
    assert caught.value.kind == kind
    assert time.monotonic() - begun < 0.5


@pytest.mark.parametrize(
    ("fault", "words", "seconds"),
    [
        ("accept", r"did not answer within 0\.5 s", 1.2),
        ("body", "broke off|did not arrive", 2.2),
        ("trickle", "did not arrive", 2.2),
    ],
)
def test_a_hub_that_hangs_is_left_in_time(hub, folder, fault, words, seconds):
    hub.hang = fault
    begun = time.monotonic()
    with pytest.raises(HubError, match=words) as caught:
        fetch("a/b", folder, FAST)
    assert caught.value.kind == "unreachable"
    assert time.monotonic() - begun < seconds


def test_a_torn_file_is_not_taken(hub, folder):
    hub.cut = True
    with pytest.raises(HubError, match=r"ended after \d+ of \d+ bytes|broke off") as caught:
        fetch("a/b", folder, FAST)
    assert caught.value.kind == "unreachable"


def test_a_file_beyond_the_cap_is_refused_before_it_is_sent(hub, folder):
    hub.files["a/b"]["tokenizer.json"] = b" " * 100_001
    with pytest.raises(HubError, match="larger than 100,000 bytes") as caught:
        fetch("a/b", folder, FAST)
    assert caught.value.kind == "refused"


def test_nobody_listens(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"127\.0\.0\.1 cannot be reached") as caught:
        fetch("a/b", folder, FAST)
    assert caught.value.kind == "unreachable"


def test_a_name_that_nobody_resolves_is_left_in_time(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: time.sleep(3))
    begun = time.monotonic()
    with pytest.raises(HubError, match="did not answer within"):
        fetch("a/b", folder, FAST)
    assert time.monotonic() - begun < 1.2


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_mode_asks_nobody(hub, folder, monkeypatch, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv(name, "1")
    with pytest.raises(HubError, match="offline mode is set") as caught:
        fetch("a/b", folder, FAST)
    assert caught.value.kind == "offline" and not hub.requests


def test_the_hubs_own_cache_is_used_even_offline(hub, folder, monkeypatch, tmp_path):
    snapshot = tmp_path / "hub-cache" / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").write_text(json.dumps({}))
    (tmp_path / "hub-cache" / "models--a--b" / "refs").mkdir()
    (tmp_path / "hub-cache" / "models--a--b" / "refs" / "main").write_text("0123")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch("a/b", folder, FAST) == snapshot


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpt2", True),
        ("a/b-c.d", True),
        ("../x", False),
        ("a/../b", False),
        ("a/b/c", False),
        ("", False),
        ("a b", False),
    ],
)
def test_names_of_repositories(text, expected, tmp_path):
    assert is_repository(text) is expected
    if not expected:
        with pytest.raises(HubError, match="no name of a Hub repository"):
            fetch(text, tmp_path, FAST)
