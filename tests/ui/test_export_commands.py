from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from utils import __main__ as command_line
from utils import _extras
from utils._files import write_json
from utils.export.export_folder import KIND

SCRIPT = "import sys; print(sys.argv[1:]); print(__file__); sys.exit({code})"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An exported folder whose scripts say what they were called with."""
    (tmp_path / "manifest.json").write_text("{}")
    for name in ("server.py", "selftest.py"):
        (tmp_path / name).write_text(SCRIPT.format(code=0))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "handed_on"),
    [
        (["serve"], "['--host', '127.0.0.1', '--port', '8000']"),
        (["serve", "--host", "0.0.0.0", "--port", "9", "--file", "model_int8.onnx"], "'--file', 'model_int8.onnx']"),
        (["selftest"], "[]"),
        (["selftest", "--no-server"], "['--no-server']"),
    ],
)
def test_the_folders_own_script_is_run(folder, capfd, arguments, handed_on):
    command, *options = arguments
    assert command_line.main([command, str(folder), *options]) == 0
    said = capfd.readouterr().out
    assert handed_on in said and str(folder) in said


def test_its_exit_code_is_ours(folder):
    (folder / "selftest.py").write_text(SCRIPT.format(code=1))
    assert command_line.main(["selftest", str(folder)]) == 1


@pytest.mark.parametrize("command", ["serve", "selftest"])
def test_what_is_no_finished_export_is_said(folder, capsys, command):
    (folder / "server.py").unlink()
    (folder / "selftest.py").unlink()
    assert command_line.main([command, str(folder)]) == 2
    assert "its scripts are written beside the format 'onnx'" in capsys.readouterr().err
    write_json(folder / "manifest.json", {"kind": KIND, "refused": {"runtime": "no tokenizer was given"}})
    assert command_line.main([command, str(folder)]) == 2
    script = "server.py" if command == "serve" else "selftest.py"
    assert f"holds no {script}: runtime was refused: no tokenizer was given" in capsys.readouterr().err
    (folder / "manifest.json").unlink()
    assert command_line.main([command, str(folder)]) == 2
    assert "holds no manifest.json, so it is no finished export" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "missing", "code", "said"),
    [
        (["serve"], "fastapi", 2, "[serve]"),
        (["selftest"], "uvicorn", 2, "[serve]"),
        (["selftest", "--no-server"], "uvicorn", 0, ""),
        (["selftest", "--no-server"], "onnxruntime", 2, "[export]"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(folder, capsys, monkeypatch, arguments, missing, code, said):
    installed = _extras.is_installed
    monkeypatch.setattr(_extras, "is_installed", lambda package: package != missing and installed(package))
    command, *options = arguments
    assert command_line.main([command, str(folder), *options]) == code
    message = capsys.readouterr().err
    assert said in message and (code == 0 or repr(missing) in message)


def test_an_interrupt_ends_the_server_and_the_command(folder):
    """As Ctrl-C in a terminal does it: both processes get the signal."""
    (folder / "server.py").write_text(
        "import http.server, sys\n"
        "port = int(sys.argv[sys.argv.index('--port') + 1])\n"
        "try:\n    http.server.HTTPServer(('127.0.0.1', port), http.server.SimpleHTTPRequestHandler).serve_forever()\n"
        "except KeyboardInterrupt:\n    sys.exit(0)\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "utils", "serve", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(20) == 0
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=2)
