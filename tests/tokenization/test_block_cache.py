"""Token files: there completely or not at all, and never read unless proven."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from utils.errors import DataError
from utils.tokenization import block_cache
from utils.tokenization.block_cache import HEADER_BYTES, read_stream, write_stream

CHUNKS = [(np.arange(10, dtype=np.uint16), [3, 0, 7]), (np.arange(5, dtype=np.uint16), [5])]
U16 = np.dtype(np.uint16)
ROOT = str(Path(__file__).resolve().parents[2])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tokens-k.bin"
    write_stream(path, CHUNKS, U16, "k")
    return path


def test_what_is_written_is_read(file):
    stream = read_stream(file, "k")
    assert stream.ids.tolist() == [*range(10), *range(5)] and stream.ids.dtype == np.uint16
    assert stream.ends.tolist() == [3, 3, 10, 15] and stream.path == file
    stream.release()
    assert stream.ids.tolist() == [*range(10), *range(5)]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@pytest.mark.parametrize("count", [0, 1, 3, 2048])
def test_every_length_and_kind_fits(tmp_path, dtype, count):
    ids = np.arange(count).astype(dtype)
    stream = write_stream(tmp_path / "tokens-a.bin", [(ids, [count])], np.dtype(dtype), "a")
    assert np.array_equal(stream.ids, ids) and stream.ends.tolist() == [count]
    assert read_stream(tmp_path / "tokens-a.bin", "a").ids.dtype == dtype


def damaged_header(raw: bytes, **changes: object) -> bytes:
    header = {**json.loads(raw[:HEADER_BYTES]), **changes}
    return json.dumps(header).encode().ljust(HEADER_BYTES) + raw[HEADER_BYTES:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: b"garbage",
        lambda raw: raw[:-1],
        lambda raw: raw + b"\0",
        lambda raw: raw[: HEADER_BYTES + 4],
        lambda raw: raw[:HEADER_BYTES],
        lambda raw: raw[: HEADER_BYTES + 2] + bytes([raw[HEADER_BYTES + 2] ^ 1]) + raw[HEADER_BYTES + 3 :],
        lambda raw: raw[:-1] + b"\x01",
        lambda raw: b"\0" * HEADER_BYTES + raw[HEADER_BYTES:],
        lambda raw: damaged_header(raw, key="other"),
        lambda raw: damaged_header(raw, format=99),
        lambda raw: damaged_header(raw, magic="other"),
        lambda raw: damaged_header(raw, ids=14),
        lambda raw: damaged_header(raw, ids=-1),
        lambda raw: damaged_header(raw, dtype="|O"),
        lambda raw: damaged_header(raw, dtype="<i4"),
        lambda raw: damaged_header(raw, documents="many"),
        lambda raw: b"[1]".ljust(HEADER_BYTES) + raw[HEADER_BYTES:],
    ],
)
def test_a_torn_or_foreign_file_is_not_read(file, damage, caplog):
    file.write_bytes(damage(file.read_bytes()))
    assert read_stream(file, "k") is None
    assert "are not used" in caplog.text
    assert write_stream(file, CHUNKS, U16, "k").ids.tolist() == [*range(10), *range(5)]


def test_no_file_is_no_stream(tmp_path, caplog):
    assert read_stream(tmp_path / "tokens-k.bin", "k") is None and caplog.text == ""


def failing(error: OSError):
    yield CHUNKS[0]
    raise error


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, code):
    with pytest.raises(DataError, match=r"disk is full: 20 bytes of tokens .* bytes are free now"):
        write_stream(tmp_path / "tokens-k.bin", failing(OSError(code, "full")), U16, "k")
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_the_source_comes_out_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_stream(tmp_path / "tokens-k.bin", failing(FileNotFoundError(2, "gone")), U16, "k")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be kept in .*Choose a folder"):
        write_stream(tmp_path / "file" / "tokens-k.bin", CHUNKS, U16, "k")


LIMITED = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
import numpy as np, pathlib
from utils.errors import DataError
from utils.tokenization.block_cache import write_stream
try:
    chunks = ((np.zeros(10_000, np.uint16), [10_000]) for _ in range(9))
    write_stream(pathlib.Path(sys.argv[2]) / "tokens-k.bin", chunks, np.dtype(np.uint16), "k")
except DataError as error:
    print("told:", error)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="the limit is one of Unix")
def test_a_real_limit_of_the_file_system_is_told(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIMITED, ROOT, str(tmp_path)], capture_output=True, text=True)
    assert "told: The disk is full" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


WRITER = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np, pathlib
from utils.tokenization.block_cache import write_stream
def chunks():
    for number in range(40):
        yield np.full(1000, number, np.uint16), [1000]
        if len(sys.argv) > 3 and number == int(sys.argv[3]):
            os.kill(os.getpid(), 9)
        time.sleep(0.005)
print(len(write_stream(pathlib.Path(sys.argv[2]) / "tokens-k.bin", chunks(), np.dtype(np.uint16), "k")))
"""


def writer(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, ROOT, str(folder), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is one of Unix")
def test_a_killed_writer_leaves_nothing_that_is_read_and_the_next_one_clears_up(tmp_path, monkeypatch):
    killed = writer(tmp_path, "20")
    killed.communicate()
    assert killed.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".tmp" and read_stream(tmp_path / "tokens-k.bin", "k") is None
    write_stream(tmp_path / "tokens-k.bin", CHUNKS, U16, "k")
    assert left.exists()  # it might belong to a writer that just begins
    os.utime(left, (time.time() - 3600,) * 2)
    write_stream(tmp_path / "tokens-k.bin", CHUNKS, U16, "k")
    assert not left.exists() and read_stream(tmp_path / "tokens-k.bin", "k") is not None


@pytest.mark.skipif(os.name == "nt", reason="locks are released otherwise there")
def test_the_file_of_a_living_writer_is_left_alone(tmp_path, monkeypatch):
    def chunks():
        yield CHUNKS[0]
        (own,) = tmp_path.glob(".tokens-*.tmp")
        os.utime(own, (time.time() - 3600,) * 2)
        write_stream(tmp_path / "tokens-other.bin", CHUNKS, U16, "other")
        assert own.exists()

    write_stream(tmp_path / "tokens-k.bin", chunks(), U16, "k")


def test_two_processes_at_once_both_succeed(tmp_path):
    both = [writer(tmp_path), writer(tmp_path)]
    assert [one.communicate()[0].strip() for one in both] == ["40000"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["tokens-k.bin"]
    assert read_stream(tmp_path / "tokens-k.bin", "k").ids[::1000].tolist() == list(range(40))


@pytest.mark.slow
def test_kills_at_random_times_never_leave_a_torn_file(tmp_path):
    """Each try is killed after another delay; whatever stands there afterwards is whole or nothing."""
    outcomes = set()
    for number in range(40):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = writer(folder)
        time.sleep(0.15 + number * 0.015)
        process.kill()
        process.communicate()
        found = read_stream(folder / "tokens-k.bin", "k")
        outcomes.add(found is None)
        assert found is None or len(found) == 40_000
    assert outcomes == {True, False}  # else the delays missed the writing


def test_nothing_of_a_file_is_kept_in_memory_twice(file):
    stream = read_stream(file, "k")
    assert not stream.ids.flags.writeable and not stream.ids.flags.owndata and block_cache.FORMAT == 1
