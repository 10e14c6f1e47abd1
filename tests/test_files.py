"""utils._files: a file is there completely or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from utils import _files
from utils._files import list_files, sha256_of, whole_file, write_json, write_text


def test_writes_and_makes_the_folders_on_the_way(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a" / "b" / "note.txt", "größer\nzwei\n")
    assert path.read_bytes() == "größer\nzwei\n".encode()  # UTF-8 and these line ends everywhere
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["note.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_earlier_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = write_text(tmp_path / "x.txt", "before")

    def stopped() -> None:
        with whole_file(path) as file:
            file.write(b"half of")
            assert path.read_text() == "before"
            raise error

    with pytest.raises(error):
        stopped()
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"], "no temporary file stays"


def test_the_bytes_are_durable_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(_files.os, "fsync", lambda handle: (order.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(_files.os, "replace", lambda a, b: (order.append("replace"), replace(a, b))[1])
    write_text(tmp_path / "x.txt", "content")
    assert order == (["fsync", "replace", "fsync"] if os.name != "nt" else ["fsync", "replace"])


def test_a_target_that_is_a_folder_is_refused_without_traces(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError):
        write_text(tmp_path / "x", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_json_is_json(tmp_path: Path) -> None:
    path = write_json(tmp_path / "x.json", {"name": "größer", "values": [1, None, 0.5]})
    assert json.loads(path.read_text("utf-8")) == {"name": "größer", "values": [1, None, 0.5]}
    assert path.read_text("utf-8").endswith("}\n") and "größer" in path.read_text("utf-8")
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, {"value": value})
    assert json.loads(path.read_text("utf-8"))["values"] == [1, None, 0.5]


@pytest.mark.parametrize("size", [0, 5, (1 << 20) + 1])
def test_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path, size: int) -> None:
    (tmp_path / "x").write_bytes(b"a" * size)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(b"a" * size).hexdigest()


def test_files_are_listed_by_name_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.txt", ".hidden", ".cache/d.txt", "a/.lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    listed = list_files(tmp_path)
    assert [entry["name"] for entry in listed] == ["a/c.txt", "b.txt"]
    assert listed[1] == {"name": "b.txt", "bytes": 5, "sha256": hashlib.sha256(b"b.txt").hexdigest()}
