"""Data sets of a Hub on a loopback port: which file is read, what each refusal says, and how long it takes."""

from __future__ import annotations

import io
import time

import pytest

from tests.training.hub import COMMIT, DatasetHub
from utils.errors import DataError
from utils.training import data_hub
from utils.training.dataset_utilities import DatasetLoader

pa, pq, constants = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet", "huggingface_hub.constants"))


def parquet(word: str) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": [f"{word} {i}" for i in range(10)], "label": [i % 2 for i in range(10)]}), sink)
    return sink.getvalue()


SHARDS = {
    f"data/{part}-0000{i}-of-00002.parquet": parquet(f"{part}{i}") for part in ("train", "validation") for i in (0, 1)
}
REPOSITORIES = {
    "me/plain": {"README.md": b"# about", "data/test-00000-of-00001.parquet": parquet("test"), **SHARDS},
    "me/script": {"script.py": b"raise SystemExit", "raw.zip": b"PK"},
    "me/gated": {"a.csv": b"text\nsecret\n"},
    "me/configs": {"en/x.csv": b"text\nhello\n", "de/x.csv": b"text\nhallo\n", "de/y.csv": b"text\nzwei\n"},
    "me/zipped": {"a.jsonl.gz": b"", "b.jsonl.gz": b""},
    "me/mixed": {"a.csv": b"text\na\n", "b.jsonl": b'{"text": "b"}\n'},
    "me/up": {"../../up.csv": b"text\na\n"},
    "me/converted": {
        "converted.py": b"",
        "en/train/0000.parquet": parquet("en"),
        "de/train/0000.parquet": parquet("de"),
    },
    "me/broken": {"a.parquet": b"PAR1 and nothing else"},
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TRANSFORMER_BUILDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data_hub, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(data_hub, "STALL_SECONDS", 2.0)
    with DatasetHub(REPOSITORIES) as server:
        server.cards["me/configs"] = {
            "configs": [
                {"config_name": "en", "data_files": "en/*.csv"},
                {
                    "config_name": "de",
                    "data_files": [{"split": "train", "path": "de/x.*"}, {"split": "test", "path": ["**/y.csv"]}],
                },
            ]
        }
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_the_training_part_is_read_and_validation_kept(hub):
    loaded = DatasetLoader.from_anything("me/plain", label_column="auto")
    assert list(loaded) == [f"train{shard} {i}" for shard in (0, 1) for i in range(10)]
    assert list(loaded.validation) == [f"validation{shard} {i}" for shard in (0, 1) for i in range(10)]
    assert list(loaded.labels) == [0, 1] * 10 and loaded.task == "classification"
    assert f"commit {COMMIT[:12]}" in loaded.summary() and "not read: 'test'" in loaded.summary()


def test_no_more_files_are_downloaded_than_needed(hub):
    loaded = DatasetLoader.from_huggingface("me/plain", split="train", max_documents=5)
    assert len(loaded) == 5
    assert {path.split("/")[-1] for path in hub.requests if path.startswith("GET /datasets")} == {
        "train-00000-of-00002.parquet"
    }


def test_a_configuration_names_its_files(hub):
    assert list(DatasetLoader.from_huggingface("me/configs", "en")) == ["hello"]
    assert list(DatasetLoader.from_huggingface("me/configs", "de", split="test")) == ["zwei"]


def test_the_parquet_branch_of_a_script_is_read(hub):
    loaded = DatasetLoader.from_huggingface("me/converted", "de", revision="refs/convert/parquet")
    assert loaded[0] == "de 0"


def test_a_second_run_needs_no_network(hub, monkeypatch):
    first = DatasetLoader.from_huggingface("me/plain")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = DatasetLoader.from_huggingface("me/plain")
    assert list(again) == list(first) and not hub.requests
    assert "the Hub was not asked" in again.summary()
    with pytest.raises(DataError, match=r"me/plain.*not in the local cache"):
        DatasetLoader.from_huggingface("me/plain", split="test")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("me/nowhere", {}, "does not exist on the Hub, or is private"),
        ("me/script", {}, r"needs its own script \(script.py\).*refs/convert/parquet"),
        ("me/gated", {}, "is gated: ask for access.*HF_TOKEN"),
        ("me/configs", {}, "several configurations. It has 'en', 'de'. Say which one: config_name='en'"),
        ("me/configs", {"config_name": "dee"}, "no configuration 'dee'. Did you mean 'de'"),
        ("me/plain", {"config_name": "x"}, "no configuration 'x'. It has none"),
        ("me/plain", {"split": "tain"}, "no part 'tain'; it has 'test', 'train', 'validation'"),
        ("me/zipped", {}, r"it holds .jsonl.gz. Load it yourself.*datasets.load_dataset\('me/zipped'"),
        ("me/mixed", {}, "several kinds of data"),
        ("me/up", {}, "leads to another folder; it is refused"),
        ("me/broken", {}, "a.parquet is damaged"),
        ("me/plain/too/long", {}, "the form is 'owner/name'"),
    ],
)
def test_each_refusal_says_how_on(hub, name, options, message):
    hub.gated.add("me/gated")
    started = time.monotonic()
    with pytest.raises(DataError, match=rf"(?s){message}"):
        DatasetLoader.from_huggingface(name, **options)
    assert time.monotonic() - started < 5


def test_a_gated_file_is_refused_with_a_token_too(hub, monkeypatch):
    hub.gated.add("me/gated")
    monkeypatch.setattr(data_hub, "_has_token", lambda: True)
    with pytest.raises(DataError, match="is gated"):
        DatasetLoader.from_huggingface("me/gated")


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_error_is_said_at_once(hub, status):
    hub.status["me/plain"] = status
    started = time.monotonic()
    with pytest.raises(DataError, match=f"answered with HTTP {status}, and it was never read here before"):
        DatasetLoader.from_huggingface("me/plain")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("what", ["delay", "file_delay"])
def test_a_hub_that_hangs_is_given_up(hub, what):
    setattr(hub, what, 30.0)
    started = time.monotonic()
    with pytest.raises(DataError, match=r"did not answer as expected|stopped arriving"):
        DatasetLoader.from_huggingface("me/plain")
    assert time.monotonic() - started < 10


def test_an_address_where_nobody_listens_is_given_up(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="never read here before"):
        DatasetLoader.from_huggingface("me/plain")


def test_what_does_not_fit_is_said_before_anything_moves(hub, monkeypatch):
    monkeypatch.setattr(data_hub, "GROWTH", 10**12)
    with pytest.raises(DataError, match=r"are free. Take a part of it: max_documents="):
        DatasetLoader.from_huggingface("me/plain")
    assert not [path for path in hub.requests if "/resolve/" in path]
    assert len(DatasetLoader.from_huggingface("me/plain", split="train", max_documents=3)) == 3
