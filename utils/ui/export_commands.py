"""`python -m utils serve` and `selftest`: an exported folder's own scripts, run with this interpreter.

What the scripts do is theirs; here is only finding them and handing options on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from utils._extras import require
from utils.errors import ConfigError

MANIFEST = "manifest.json"


def add_serve(command: argparse.ArgumentParser) -> None:
    """Add what `serve` takes."""
    _add_folder(command)
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    command.add_argument("--port", type=int, default=8000, help="port (default: %(default)s)")
    command.add_argument("--file", help="which file to serve, for example model_int8.onnx (default: model.onnx)")
    command.set_defaults(run=serve)


def add_selftest(command: argparse.ArgumentParser) -> None:
    """Add what `selftest` takes."""
    _add_folder(command)
    command.add_argument("--no-server", action="store_true", help="leave out the checks over HTTP")
    command.set_defaults(run=selftest)


def serve(options: argparse.Namespace) -> int:
    """Serve an exported folder until interrupted.

    Raises:
        ConfigError: the folder is no exported one. MissingPackageError: fastapi, uvicorn or onnxruntime is missing.
    """
    script = _script(options.folder, "server.py")
    _require_runtime(server=True)
    chosen = [] if options.file is None else ["--file", options.file]
    return _run(script, ["--host", options.host, "--port", str(options.port), *chosen])


def selftest(options: argparse.Namespace) -> int:
    """Prove an exported folder; 0 where everything holds, else 1. Errors are those of `serve`."""
    script = _script(options.folder, "selftest.py")
    _require_runtime(server=not options.no_server)
    return _run(script, ["--no-server"] if options.no_server else [])


def _add_folder(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", help="folder that export wrote")


def _script(folder: str, name: str) -> Path:
    root = Path(folder).expanduser()
    if not (root / MANIFEST).is_file():
        raise ConfigError(
            f"{folder} holds no {MANIFEST}, so it is no finished export. Export there first: utils.export(result, out={folder!r})."
        )
    if not (root / name).is_file():
        raise ConfigError(
            f"{folder} holds no {name}: its scripts are written beside the format 'onnx'. Export with formats=(\"onnx\", …)."
        )
    return root.resolve() / name


def _require_runtime(server: bool) -> None:
    """Say what is missing before a child process fails by it."""
    require("onnxruntime", extra="export", feature="Running an exported folder")
    require("tokenizers", extra="training", feature="Running an exported folder")
    if server:
        require("fastapi", extra="serve", feature="Serving an exported folder")
        require("uvicorn", extra="serve", feature="Serving an exported folder")


def _run(script: Path, arguments: Sequence[str]) -> int:
    process = subprocess.Popen([sys.executable, str(script), *arguments], cwd=script.parent)
    try:
        return process.wait()
    except KeyboardInterrupt:  # the terminal interrupts both: the child closes its connections, and is waited for
        return process.wait()
