"""`python -m utils export`, `serve` and `selftest`: a model becomes a folder, and the folder's own scripts are run.

Writing and proving is in `utils.export`; what the scripts do is theirs. Here is only finding things and handing options on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from utils._extras import require
from utils.errors import ConfigError
from utils.export.export_folder import own_manifest
from utils.export.formats import FORMATS, MANIFEST


def add_export(command: argparse.ArgumentParser) -> None:
    """Add what `export` takes."""
    command.add_argument(
        "source",
        help="a training run: its folder, or its name in runs; or gist id, gist URL, folder or model.py of a model as it came",
    )
    command.add_argument(
        "--formats",
        nargs="+",
        default=["onnx"],
        metavar="FORMAT",
        help="any of " + ", ".join(FORMATS) + " (default: onnx)",
    )
    command.add_argument("--out", metavar="DIR", help="folder to write (default: export, in the run's folder or here)")
    command.add_argument("--text", metavar="FILE", help="text of the kind that the model is used on, to prove it on")
    command.add_argument("--tokenizer", metavar="DIR", help="folder of the model's tokenizer (default: the run's)")
    command.add_argument("--zip", action="store_true", help="pack the folder into one file, too")
    command.add_argument("--trust", action="store_true", help="run code in spite of risky calls that the review found")
    command.set_defaults(run=export)


def export(options: argparse.Namespace) -> int:
    """Export a run, or a model as it came; 0 where every format was proven, 1 where one was refused.

    Raises:
        TransformerBuilderError: what cannot be done, in one sentence.
    """
    from utils.export.bundle import export as write
    from utils.progress import Progress
    from utils.tokenization.tokenizer_files import load_saved
    from utils.training.run_mirror import RUN_FILE
    from utils.training.runs import WORKSPACE

    source = Path(options.source).expanduser()
    if not source.exists() and (WORKSPACE / source / RUN_FILE).is_file():  # a run by its name
        source = WORKSPACE / source
    is_run = (source / RUN_FILE).is_file()
    text = None if options.text is None else _text(Path(options.text).expanduser())
    given = _trained(source, options.trust) if is_run else _as_it_came(options.source, options.trust)
    tokenizer = None if options.tokenizer is None else load_saved(Path(options.tokenizer).expanduser())
    if options.tokenizer is not None and tokenizer is None:
        raise ConfigError(f"--tokenizer: {options.tokenizer} holds no tokenizer.json.")
    out = Path(options.out).expanduser() if options.out is not None else (source if is_run else Path()) / "export"
    with Progress("Export", unit="steps") as progress:
        bundle = write(given, options.formats, out, tokenizer=tokenizer, validation_text=text, progress=progress)
    print(bundle.summary())
    if options.zip:
        print(f"\nPacked: {bundle.zip()}")
    return 1 if set(bundle.refused) & set(options.formats) else 0


def _trained(run: Path, trust: bool) -> object:
    """A run's result with its model built again from the run's own folder."""
    from utils.training.runs import load_run

    return load_run(run, run.parent).result(trust=trust)


def _as_it_came(source: str, trust: bool) -> object:
    import utils

    return utils.adapt(utils.load_model(source, trust=trust))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--text: {path} is not UTF-8 text ({error}).") from error


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
        refused = (own_manifest(root) or {}).get("refused", {})
        told = [f"{what} was refused: {refused[what]}" for what in ("onnx", "runtime") if what in refused]
        raise ConfigError(
            f"{folder} holds no {name}: "
            + (
                "; ".join(told)
                or "its scripts are written beside the format 'onnx'. Export with formats=(\"onnx\", …)."
            )
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
