"""The process that runs exported files: what crashes, hangs or babbles over there is an error here, and the next file opens.

Crashing runtimes are files of a format of their own, whose opener the child imports from a folder on its path.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import utils
from utils.errors import ExportError
from utils.export import child as child_module
from utils.export.child import ChildRuntime
from utils.export.signature import Signature

ROOT = Path(utils.__file__).parents[1]
LM = Signature("lm", ("input_ids",), 5, 5, 8)
FEEDS = {"input_ids": np.array([[1, 4, 2]])}
TABLE = np.arange(25, dtype=np.float32).reshape(5, 5)

RUNTIMES = """
import os, signal, sys, time
from utils.export.runner import OPENERS, Runner
from utils.export.onnx_runner import OnnxRunner

class Odd(OnnxRunner):
    def __init__(self, path, threads=None):
        super().__init__(path.with_name("model.onnx"), threads)
        self.path = path
        if path.suffix == ".opening":
            self.act()

    def run(self, feeds):
        self.act()
        return super().run(feeds)

    def act(self):
        exec(self.path.read_text("utf-8"))

OPENERS["odd"] = ("odd_runtimes", "Odd")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bigram model as ONNX, made of two nodes, so that nothing here needs torch."""
    made = tmp_path_factory.mktemp("files")
    table = helper.make_tensor("table", TensorProto.FLOAT, TABLE.shape, TABLE.ravel())
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["logits"])],
        "bigram",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", 5])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"signature": LM.to_json(), "model_name": "bigram"})
    onnx.save(model, made / "model.onnx")
    (made / "odd_runtimes.py").write_text(RUNTIMES, "utf-8")
    return made


@pytest.fixture(scope="module")
def child(folder: Path) -> Iterator[ChildRuntime]:
    """A runtime that knows one format more than the package does; it starts anew after every crash."""
    known = f"import sys; sys.path[:0] = [sys.argv[1], {str(folder)!r}]; import odd_runtimes; "
    with pytest.MonkeyPatch.context() as patch, ChildRuntime(seconds=60.0, threads=1) as runtime:
        patch.setattr(child_module, "_START", child_module._START.replace("import sys;", known, 1))
        yield runtime


def odd(folder: Path, code: str, when: str = "running") -> Path:
    """A file whose runtime does this."""
    path = folder / f"odd.{when}"
    path.write_text(textwrap.dedent(code), "utf-8")
    return path


def process_of(runtime: ChildRuntime) -> int:
    assert runtime._process is not None
    return runtime._process.pid


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_it_answers_as_the_file_does(child: ChildRuntime, folder: Path) -> None:
    runner = child.open("onnx", folder / "model.onnx")
    assert runner.signature == LM
    assert runner.facts["model_name"] == "bigram"
    logits, milliseconds = runner.timed(FEEDS)
    np.testing.assert_array_equal(logits, TABLE[FEEDS["input_ids"]])
    np.testing.assert_array_equal(runner.run(FEEDS), logits)
    assert 0 < milliseconds < 1000


def test_several_files_are_open_at_once_and_one_process_serves_them(child: ChildRuntime, folder: Path) -> None:
    first, second = child.open("onnx", folder / "model.onnx"), child.open("onnx", folder / "model.onnx")
    pid = process_of(child)
    first.close()
    np.testing.assert_array_equal(second.run(FEEDS), TABLE[FEEDS["input_ids"]])
    assert process_of(child) == pid
    with pytest.raises(ExportError, match="no longer open"):
        first.run(FEEDS)
    first.close()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "by SIGSEGV .running the file."),
        ("import ctypes; ctypes.string_at(0)", "by SIGSEGV"),
        ("os.write(2, b'double free or corruption'); os.abort()", "by SIGABRT .*Last words: .*double free"),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"by SIGKILL \(out of memory\?\)"),
        ("os._exit(3)", "with exit code 3 .*Last words: none"),
        ("sys.exit('licence missing')", "with exit code 1 .*Last words: licence missing"),
    ],
)
def test_a_crash_is_told_and_the_next_open_works(child: ChildRuntime, folder: Path, code: str, words: str) -> None:
    with pytest.raises(ExportError, match=f"(?s){words}"):
        child.open("odd", odd(folder, code)).run(FEEDS)
    np.testing.assert_array_equal(child.open("onnx", folder / "model.onnx").run(FEEDS), TABLE[FEEDS["input_ids"]])


def test_a_crash_while_opening_is_told(child: ChildRuntime, folder: Path) -> None:
    with pytest.raises(ExportError, match=r"by SIGABRT \(opening odd.opening\)"):
        child.open("odd", odd(folder, "os.abort()", "opening"))
    assert child.open("onnx", folder / "model.onnx").run(FEEDS).shape == (1, 3, 5)


def test_files_that_were_open_in_a_crashed_process_say_so(child: ChildRuntime, folder: Path) -> None:
    before = child.open("onnx", folder / "model.onnx")
    with pytest.raises(ExportError, match="SIGSEGV"):
        child.open("odd", odd(folder, "os.kill(os.getpid(), signal.SIGSEGV)")).run(FEEDS)
    with pytest.raises(ExportError, match=r"no longer open.*Open it again"):
        before.run(FEEDS)
    pid = process_of(child)
    before.close()  # nothing is left to be closed, and no file of the new process is
    assert process_of(child) == pid


def test_a_runtime_that_hangs_is_ended(folder: Path, child: ChildRuntime) -> None:
    runner = child.open("odd", odd(folder, "time.sleep(600)"))
    pid, child.seconds = process_of(child), 0.5
    begun = time.monotonic()
    with pytest.raises(ExportError, match=r"did not answer within 0.5 s and was ended \(running the file\)"):
        runner.run(FEEDS)
    assert time.monotonic() - begun < 10
    assert not is_running(pid)
    child.seconds = 60.0
    assert child.open("onnx", folder / "model.onnx").run(FEEDS).shape == (1, 3, 5)


@pytest.mark.parametrize(
    "code",
    [
        "print('{\"ms\": 1}')",
        "os.write(1, b'garbage without end')",
        "sys.stdout.write('x' * 100_000); sys.stdout.flush()",
        "os.write(2, b'y' * 300_000)",  # more than a pipe holds
        "import subprocess; subprocess.run(['sh', '-c', 'echo from a child of the child'])",
        "import warnings; warnings.warn('beware')",
    ],
)
def test_what_a_runtime_prints_is_no_answer(
    child: ChildRuntime, folder: Path, code: str, capfd: pytest.CaptureFixture[str]
) -> None:
    np.testing.assert_array_equal(child.open("odd", odd(folder, code)).run(FEEDS), TABLE[FEEDS["input_ids"]])
    assert capfd.readouterr() == ("", "")


def test_a_runtime_that_reads_the_orders_does_not_get_them(child: ChildRuntime, folder: Path) -> None:
    runner = child.open("odd", odd(folder, "assert not sys.stdin.read()"))
    np.testing.assert_array_equal(runner.run(FEEDS), TABLE[FEEDS["input_ids"]])
    np.testing.assert_array_equal(runner.run(FEEDS), TABLE[FEEDS["input_ids"]])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise RuntimeError('no kernel for Frobnicate')", "RuntimeError: no kernel for Frobnicate"),
        ("raise MemoryError", "MemoryError"),
        ("from utils.errors import ExportError; raise ExportError('our own words')", "^our own words$"),
    ],
)
def test_what_a_runtime_raises_is_the_answer(child: ChildRuntime, folder: Path, code: str, words: str) -> None:
    runner = child.open("odd", odd(folder, code))
    pid = process_of(child)
    with pytest.raises(ExportError, match=words):
        runner.run(FEEDS)
    assert process_of(child) == pid  # an error is no crash
    assert child.open("onnx", folder / "model.onnx").run(FEEDS).shape == (1, 3, 5)


def test_wrong_feeds_are_named_by_the_runtime(child: ChildRuntime, folder: Path) -> None:
    with pytest.raises(ExportError, match=r"ONNX Runtime fails for \{'input_ids': \(1, 3\)\}.*float"):
        child.open("onnx", folder / "model.onnx").run({"input_ids": np.ones((1, 3), np.float32)})


@pytest.mark.parametrize(
    ("format_name", "content", "words"),
    [
        ("onnx", None, "There is no onnx file at"),
        ("onnx", b"\x08\x07torn", "cannot read"),
        ("onnx", b"", "cannot read"),
        ("safetensors", b"weights", r"\(safetensors\) holds weights and no model.*load_model"),
    ],
)
def test_files_that_cannot_be_opened(
    child: ChildRuntime, tmp_path: Path, format_name: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=words):
        child.open(format_name, path)


def test_a_file_without_signature_is_not_ours(child: ChildRuntime, folder: Path, tmp_path: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(ExportError, match=r"foreign\.onnx holds no signature.*Export it again"):
        child.open("onnx", tmp_path / "foreign.onnx")


def test_nothing_is_left_after_close(folder: Path) -> None:
    with ChildRuntime(threads=1) as runtime:
        runtime.open("onnx", folder / "model.onnx").run(FEEDS)
        pid, files = process_of(runtime), Path(runtime._folder.name)
        assert is_running(pid) and any(files.iterdir())
    assert not is_running(pid)
    assert not files.exists()


def test_nothing_is_started_before_it_is_needed() -> None:
    with ChildRuntime() as runtime:
        assert runtime._process is None


def test_onnx_files_need_no_torch_over_there(child: ChildRuntime, folder: Path) -> None:
    code = "assert not {'torch', 'onnx', 'lightning', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    child.open("odd", odd(folder, code)).run(FEEDS)


def test_the_child_takes_the_threads_of_this_side(child: ChildRuntime, folder: Path) -> None:
    child.open("odd", odd(folder, "assert sys.argv[2] == '1', sys.argv")).run(FEEDS)


SCRIPT = """
import json, os, sys
from pathlib import Path
import numpy as np
from utils.export.child import ChildRuntime
child = ChildRuntime(threads=1)
logits = child.open("onnx", Path({path!r})).run({{"input_ids": np.array([[1, 4, 2]])}})
print(json.dumps([os.getpid(), child._process.pid, child._folder.name, logits.tolist()]), flush=True)
"""


@pytest.mark.parametrize("how", ["script", "stdin"])
def test_it_works_without_a_main_guard(how: str, folder: Path, tmp_path: Path) -> None:
    """A notebook has no file and no guard: a child that imports its parent's main module would begin all over again."""
    code = SCRIPT.format(path=str(folder / "model.onnx"))
    (tmp_path / "script.py").write_text(code, "utf-8")
    run = subprocess.run(
        [sys.executable, str(tmp_path / "script.py") if how == "script" else "-"],
        input=code if how == "stdin" else "",
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    (line,) = run.stdout.splitlines()
    parent, pid, files, logits = json.loads(line)
    np.testing.assert_array_equal(logits, TABLE[FEEDS["input_ids"]])
    _wait_until(lambda: not is_running(pid))  # it was never closed: it ends because nobody asks any more
    assert parent != pid
    assert not Path(files).exists()


def test_the_child_ends_with_a_parent_that_is_killed_and_removes_its_files(folder: Path) -> None:
    code = SCRIPT.format(path=str(folder / "model.onnx")) + "\nimport time; time.sleep(600)\n"
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert parent.stdout is not None
    _, pid, files, _ = json.loads(parent.stdout.readline())
    assert Path(files).is_dir()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _wait_until(lambda: not is_running(pid))
    assert not Path(files).exists()


def _wait_until(happened: object, seconds: float = 20.0) -> None:
    assert callable(happened)
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
