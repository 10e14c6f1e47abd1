from __future__ import annotations

import hashlib
import json
import logging
import time
from pathlib import Path

import pytest

from utils.errors import (
    ConfigError,
    GistContentError,
    GistIdError,
    GistNotFoundError,
    GistRateLimitError,
    GistUnreachableError,
)
from utils.loading import gist as gist_room
from utils.loading.gist import download_gist, fetch_gist, gist_folder, parse_gist_reference, store_gist
from utils.loading.http import Client, Limits, check_url
from utils.testing import GIST_ID, TINY_SOURCES, Behaviour, FakeClock, GistServer, rate_limited

REVISION = "a" * 40
QUICK = Limits(attempts=3, first_delay=0.5, timeout=20, deadline=60)
IMPATIENT = Limits(attempts=3, first_delay=0.5, timeout=0.7, deadline=60)
BASE = "https://gist.github.com"


@pytest.fixture
def server(monkeypatch):
    with GistServer({GIST_ID: TINY_SOURCES["tensor"]}) as running:
        monkeypatch.setenv("GITHUB_API_URL", running.url)
        yield running


@pytest.fixture
def clock():
    return FakeClock()


def get(tmp_path, clock, source=GIST_ID, **options):
    return fetch_gist(source, **{"cache_dir": tmp_path / "cache", "sleep": clock.sleep, "limits": QUICK, **options})


def nothing_written(tmp_path: Path) -> bool:
    return not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("text", "gist_id", "revision"),
    [
        (GIST_ID, GIST_ID, None),
        (f"  {GIST_ID.upper()}\n", GIST_ID, None),
        ("0123456789abcdef0123", "0123456789abcdef0123", None),
        ("1234567", "1234567", None),
        (f"{BASE}/{GIST_ID}", GIST_ID, None),
        (f"gist.github.com/someone/{GIST_ID}", GIST_ID, None),
        (f"{BASE}/someone/{GIST_ID}.git", GIST_ID, None),
        (f"{BASE}/someone/{GIST_ID}/{REVISION}", GIST_ID, REVISION),
        (f"{BASE}/{GIST_ID}/{REVISION}#file-model-py", GIST_ID, REVISION),
        (f"{BASE}/abcdef0/{GIST_ID}", GIST_ID, None),
        (f"https://api.github.com/gists/{GIST_ID}", GIST_ID, None),
        (f"https://api.github.com/gists/{GIST_ID}/{REVISION}", GIST_ID, REVISION),
        (f"https://gist.githubusercontent.com/me/{GIST_ID}/raw/model.py", GIST_ID, None),
        (f"https://colab.research.google.com/github/o/r/blob/main/template.ipynb#gist_id={GIST_ID}", GIST_ID, None),
        (f"https://colab.research.google.com/gist/me/{GIST_ID}/template.ipynb", GIST_ID, None),
        (f"git@gist.github.com:{GIST_ID}.git", GIST_ID, None),
        (f"<{BASE}/me/{GIST_ID}>", GIST_ID, None),
    ],
)
def test_a_pasted_text_names_its_gist(text, gist_id, revision):
    reference = parse_gist_reference(text)
    assert (reference.gist_id, reference.revision) == (gist_id, revision)


def test_a_raw_url_keeps_its_hash_apart_and_a_link_its_name():
    raw = parse_gist_reference(f"https://gist.githubusercontent.com/me/{GIST_ID}/raw/{REVISION}/model.py")
    assert (raw.revision, raw.raw_hash) == (None, REVISION)
    assert parse_gist_reference(f"https://colab.research.google.com/x.ipynb#gist_id={GIST_ID}&name=GPT").name == "GPT"


@pytest.mark.parametrize(
    "text",
    ["", "hello world", "not-a-gist", "xyz", f"{BASE}/someone", "https://example.com/" + GIST_ID, "file:///etc/passwd",
     "https://[::1", f"https://x/#gist_id=../{GIST_ID}", "a" * 5000, "abc\0def", "../../etc/passwd", f"{GIST_ID}/../x"],
)  # fmt: skip
def test_what_is_no_gist_is_refused_with_what_is_expected(text):
    with pytest.raises(GistIdError, match=r"gist id nor a gist URL.*Expected"):
        parse_gist_reference(text)


def test_a_fetched_gist_is_pinned_hashed_and_stored(server, tmp_path, clock):
    gist = get(tmp_path, clock)
    text = TINY_SOURCES["tensor"]["model.py"]
    assert gist.files["model.py"] == text
    assert gist.revision == server.revision(GIST_ID)
    assert gist.sha256["model.py"] == hashlib.sha256(text.encode()).hexdigest()
    folder = gist_folder(GIST_ID, gist.revision, tmp_path / "cache")
    assert (folder / "files" / "model.py").read_text() == text
    assert json.loads((folder / "manifest.json").read_text())["sha256"] == gist.sha256
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]  # no temporary folder


def test_a_pinned_revision_is_the_old_one_and_needs_no_network_twice(server, tmp_path, clock):
    old = server.revision(GIST_ID)
    server.add(GIST_ID, {"model.py": "new = 1\n"})
    assert get(tmp_path, clock).files["model.py"] == "new = 1\n"
    assert get(tmp_path, clock, revision=old).files["model.py"] == TINY_SOURCES["tensor"]["model.py"]
    asked = len(server.requests)
    assert get(tmp_path, clock, source=f"{BASE}/me/{GIST_ID}/{old}").revision == old
    assert len(server.requests) == asked


def test_a_damaged_cache_is_fetched_anew(server, tmp_path, clock):
    gist = get(tmp_path, clock)
    path = gist_folder(GIST_ID, gist.revision, tmp_path / "cache") / "files" / "model.py"
    path.write_text("import os\n")
    assert get(tmp_path, clock, revision=gist.revision).files == gist.files
    assert path.read_text() == gist.files["model.py"]


def test_a_raw_url_is_followed_by_content_hash_then_by_revision(server, tmp_path, clock):
    data = TINY_SOURCES["tensor"]["model.py"].encode()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    raw = f"https://gist.githubusercontent.com/me/{GIST_ID}/raw"
    old = server.revision(GIST_ID)
    assert get(tmp_path, clock, source=f"{raw}/{blob}/model.py").revision == old
    server.add(GIST_ID, {"model.py": "new = 1\n"})
    assert get(tmp_path, clock, source=f"{raw}/{old}/model.py").revision == old
    with pytest.raises(GistNotFoundError, match=r"older state of a file.*pass revision="):
        get(tmp_path, clock, source=f"{raw}/{blob}/model.py")


@pytest.mark.parametrize("revision", ["main", "abc", "g" * 40, "../" + "a" * 37])
def test_a_revision_that_is_none_is_refused(revision, tmp_path, clock):
    with pytest.raises(GistIdError, match="40 hex digits"):
        get(tmp_path, clock, revision=revision)


def test_missing_gists_and_revisions_are_not_found(server, tmp_path, clock):
    with pytest.raises(GistNotFoundError, match=r"knows no gist.*Check the id"):
        get(tmp_path, clock, source="f" * 32)
    with pytest.raises(GistNotFoundError, match="Check the id and the revision"):
        get(tmp_path, clock, revision=REVISION)
    assert nothing_written(tmp_path)


@pytest.mark.parametrize("status", [403, 429])
def test_a_rate_limit_names_the_local_time_of_its_end(server, tmp_path, clock, status):
    reset = int(time.time()) + 600
    server.misbehave(GIST_ID, rate_limited(reset))
    server.behaviours[GIST_ID].status = status
    with pytest.raises(GistRateLimitError, match=time.strftime("at %H:%M on %d", time.localtime(reset))) as caught:
        get(tmp_path, clock)
    assert caught.value.reset_at == reset
    assert "in 10 minutes" in str(caught.value)
    assert "GITHUB_TOKEN" in str(caught.value)
    assert clock.sleeps == []
    assert nothing_written(tmp_path)


def test_other_limits(server, tmp_path, clock):
    server.misbehave(GIST_ID, Behaviour(429, headers={"Retry-After": "30"}))
    with pytest.raises(GistRateLimitError, match="in less than a minute"):
        get(tmp_path, clock)
    server.misbehave(GIST_ID, Behaviour(403, headers={"X-RateLimit-Remaining": "50"}))
    with pytest.raises(GistUnreachableError, match="blocked"):
        get(tmp_path, clock)
    server.misbehave(GIST_ID, Behaviour(401))
    with pytest.raises(GistUnreachableError, match="GITHUB_TOKEN"):
        get(tmp_path, clock)


@pytest.mark.parametrize(
    ("behaviour", "sleeps"),
    [
        (Behaviour(500, times=1), [0.5]),
        (Behaviour(503, times=2), [0.5, 1.0]),
        (Behaviour(delay=2.0, times=1), [0.5]),
        (Behaviour(cut=50, times=2), [0.5, 1.0]),
    ],
)
def test_what_passes_is_tried_again_with_growing_pauses(server, tmp_path, clock, behaviour, sleeps):
    server.misbehave(GIST_ID, behaviour)
    assert "model.py" in get(tmp_path, clock, limits=IMPATIENT if behaviour.delay else QUICK).files
    assert clock.sleeps == sleeps


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (Behaviour(500), "in 3 tries.*answered 500"),
        (Behaviour(cut=50), "in 3 tries.*broke off after 50 of"),
        (Behaviour(delay=2.0), "in 3 tries.*no answer in time"),
        (Behaviour(answer=b"<html>Sign in</html>"), "not answer as the GitHub API"),
        (Behaviour(answer=b"[1, 2]"), "no list of files"),
        (Behaviour(answer=b'{"files": {}, "files": {}}'), "'files' stands twice"),
        (Behaviour(500, times=None, headers={"Retry-After": "1"}), "answered 500"),
    ],
)
def test_what_does_not_pass_is_said_and_leaves_nothing(server, tmp_path, clock, behaviour, words):
    server.misbehave(GIST_ID, behaviour)
    with pytest.raises(GistUnreachableError, match=words):
        get(tmp_path, clock, limits=IMPATIENT if behaviour.delay else QUICK)
    assert nothing_written(tmp_path)


def test_an_answer_that_drips_for_ever_ends_at_the_deadline(server, monkeypatch):
    ticks = iter(range(0, 10_000, 100))
    client = Client(server.url, limits=Limits(attempts=1, deadline=50), clock=lambda: next(ticks))
    with pytest.raises(GistUnreachableError, match="longer than 50 s"):
        client.get(f"{server.url}/gists/{GIST_ID}", 10_000)


def test_a_server_that_is_not_there(monkeypatch, tmp_path, clock):
    monkeypatch.setenv("GITHUB_API_URL", "http://127.0.0.1:9")
    with pytest.raises(GistUnreachableError, match="in 3 tries"):
        get(tmp_path, clock)


def test_a_cut_file_comes_whole_from_its_raw_address(server, tmp_path, clock):
    server.misbehave(GIST_ID, Behaviour(truncated=("model.py",)))
    assert get(tmp_path, clock).files["model.py"] == TINY_SOURCES["tensor"]["model.py"]
    assert any(path.startswith("/raw/") for path in server.requests)


def test_text_in_another_encoding_is_read_from_its_bytes(server, tmp_path, clock):
    text = "# Größe\nx = 1\n"
    server.add(GIST_ID, {"model.py": text.encode("utf-16"), "other.py": b"\xef\xbb\xbf" + text.encode()})
    assert get(tmp_path, clock).files == {"model.py": text, "other.py": text}


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (Behaviour(redirect="http://192.0.2.1/gists/x"), "192.0.2.1.*nothing is fetched"),
        (Behaviour(redirect="file:///etc/passwd"), "unsafe address; nothing is fetched"),
        (Behaviour(truncated=("model.py",), raw_url="https://evil.example/x"), "evil.example.*nothing is fetched"),
        (Behaviour(truncated=("model.py",), raw_url="http://gist.githubusercontent.com/x"), "nothing is fetched"),
        (Behaviour(truncated=("model.py",), raw_url="https://gist.githubusercontent.com@evil.example/"), "evil.example"),
        (Behaviour(truncated=("model.py",), raw_redirect="https://evil.example/x"), "evil.example.*nothing is fetched"),
        (Behaviour(truncated=("model.py",), raw_url="https://gist.githubusercontent.com:99999/x"), "no address: Port"),
        (Behaviour(truncated=("model.py",), raw_url="http://[::1/x"), "no address: Invalid IPv6"),
        (Behaviour(truncated=("model.py",), raw_url="https://gist.githubusercontent.com/\u2603"), r"\\u2603', which is no address"),
        (Behaviour(truncated=("model.py",), raw_url="https://gist.githubusercontent.com/x\r\nHost: evil"), "no address: it holds"),
        (Behaviour(redirect="http://127.0.0.1:99999/x"), "no address: Port"),
        (Behaviour(redirect="http://[bad/x"), "no address: Invalid IPv6"),
        (Behaviour(truncated_list=True), "list of files short"),
        (Behaviour(sizes={"model.py": 3}), "should hold 3 bytes, but holds"),
        (Behaviour(sizes={"model.py": -1}), "does not say how large"),
        (Behaviour(sizes={"model.py": 6_000_000}), r"6,000,000 bytes; at most 5,000,000"),
        (Behaviour(overrides={"id": "ffff"}), "'?ffff'? came"),
        (Behaviour(overrides={"history": []}), "names no revision"),
        (Behaviour(overrides={"files": {"model.py": {"filename": "x.py", "size": 0, "content": ""}}}), "contradicts"),
        (Behaviour(overrides={"files": {"model.py": {"size": 3, "content": "\ud800"}}}), "no valid Unicode"),
    ],
)  # fmt: skip
def test_lies_and_detours_are_refused_and_leave_nothing(server, tmp_path, clock, behaviour, words):
    server.misbehave(GIST_ID, behaviour)
    with pytest.raises(GistContentError, match=words):
        get(tmp_path, clock)
    assert nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"model.py": "x" * 5_000_001}, "5,000,001 bytes"),
        ({f"part{n}.txt": "x" * 4_900_000 for n in range(5)}, "24,500,000 bytes; at most 20,000,000"),
        ({f"f{n}.py": "" for n in range(1000)}, "1,000 files; at most 100"),
        ({"model.py": b"x = 1\0"}, "NUL character"),
        ({"model.py": b"x = '\xff'"}, "no UTF-8 text: byte 5 is 0xff"),
        ({"../model.py": "x = 1"}, "leads to another folder"),
        ({"torch.py": "x = 1"}, "would hide the module 'torch'"),
        ({"Model.py": "", "model.py": ""}, "the same to some systems"),
    ],
)
def test_hostile_content_is_refused_and_leaves_nothing(server, tmp_path, clock, files, words):
    server.add(GIST_ID, files)
    with pytest.raises(GistContentError, match=words):
        get(tmp_path, clock)
    assert nothing_written(tmp_path)


def test_a_raw_answer_larger_than_claimed_is_cut_off(server, tmp_path, clock, monkeypatch):
    server.misbehave(GIST_ID, Behaviour(truncated=("model.py",)))
    monkeypatch.setattr(gist_room, "MAX_FILE_BYTES", 400)
    server.behaviours[GIST_ID].sizes = {"model.py": 300}
    with pytest.raises(GistContentError, match="larger than 400 bytes"):
        get(tmp_path, clock)


def test_pickles_are_listed_and_never_fetched(server, tmp_path, clock):
    server.add(GIST_ID, {"model.py": "x = 1\n", "weights.pkl": b"\x80\x04cos\nsystem\n", "notes.md": "# hi"})
    gist = get(tmp_path, clock)
    assert set(gist.ignored) == {"weights.pkl", "notes.md"}
    assert set(gist.files) == {"model.py"}
    assert not any("weights" in path for path in server.requests)
    assert not list(tmp_path.rglob("*.pkl"))


def test_the_token_goes_to_the_api_alone_and_into_no_message(server, tmp_path, clock, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("GITHUB_TOKEN", "s3cret-token")
    with GistServer() as other:
        revision = server.revision(GIST_ID)
        other.history = server.history
        raw = f"{other.url}/raw/{GIST_ID}/{revision}/model.py"
        server.misbehave(GIST_ID, Behaviour(truncated=("model.py",), raw_url=raw))
        get(tmp_path, clock)
        assert server.headers[0]["Authorization"] == "Bearer s3cret-token"
        assert all("Authorization" not in headers for headers in other.headers)
    server.misbehave(GIST_ID, Behaviour(500))
    with pytest.raises(GistUnreachableError) as caught:
        get(tmp_path, clock)
    assert "s3cret" not in str(caught.value) + caplog.text + repr(Client("https://x", "s3cret"))


@pytest.mark.parametrize("base", ["http://github.example", "ftp://127.0.0.1", "file:///tmp", "github", "https://u:p@x"])
def test_an_api_address_that_is_unsafe_is_refused(base, monkeypatch):
    monkeypatch.setenv("GITHUB_API_URL", base)
    with pytest.raises(ConfigError, match="must be an https address"):
        download_gist(GIST_ID)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://gist.githubusercontent.com/x", True),
        ("https://raw.githubusercontent.com/x", True),
        ("https://api.github.com/gists/1", True),
        ("http://api.github.com/gists/1", False),
        ("https://api.github.com:8443/x", False),
        ("http://127.0.0.1/x", False),
        ("http://localhost:80/x", False),
        ("http://169.254.169.254/latest", False),
        ("https://user:pw@gist.githubusercontent.com/x", False),
        ("https://githubusercontent.com/x", False),
        ("https://gist.githubusercontent.com.evil.example/x", False),
    ],
)
def test_hosts_that_a_real_api_may_lead_to(url, allowed):
    if allowed:
        check_url(url, "https://api.github.com")
    else:
        with pytest.raises(GistContentError, match="nothing is fetched"):
            check_url(url, "https://api.github.com")


def test_storing_fails_whole(server, tmp_path, clock, monkeypatch):
    gist = download_gist(GIST_ID, cache_dir=tmp_path, sleep=clock.sleep)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.loading.cache.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        store_gist(gist, tmp_path)
    assert nothing_written(tmp_path)
