"""The walk from a gist, folder or file to a model: fetch, read without running, choose, build.

Each step lives in its own file; here they are said in order. How the model is called, and the completion of a broken
`forward`, belong to `utils.adapters`.
"""

from __future__ import annotations

import contextlib
import html
import inspect
import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import nn

from utils._random import fixed_random
from utils._tables import html_table
from utils.errors import GistContentError, ModelLoadError, UntrustedCodeError
from utils.loading import generated
from utils.loading.class_choice import choose_class, choose_main_file
from utils.loading.code_review import CodeReview, review_files
from utils.loading.constructor import call_arguments
from utils.loading.gist import Gist, download_gist, looks_like_gist, parse_gist_reference, store_gist
from utils.loading.local import LocalFolder
from utils.loading.model_config import ModelConfig
from utils.loading.saved_model import SavedModel, is_saved_model, read_saved_model
from utils.loading.sources import import_source, local_files, module_path

if TYPE_CHECKING:
    from utils.adapters.model_adapter import GraphCompletion

_LOG = logging.getLogger(__name__)

DEFAULT_SEED = 0
"""Seed of a loaded model's fresh weights."""


@dataclass
class ModelSource:
    """Where a model's code came from, and the code.

    Attributes:
        text: source of the main file, as it came.
        file_name: name of the main file.
        origin: "gist <id>@<revision>", or the path of the folder or file.
        class_name: the model's class, once it is chosen.
        revision: the gist's revision, 40 hex digits; None for local files.
        sha256: file name → SHA-256 of its bytes.
        files: file name → text of every file that took part (the main file, what it imports, config.json).
        arguments: what the class was called with, by name, once it is built; None for a model that came built.
    """

    text: str
    file_name: str
    origin: str
    class_name: str | None = None
    revision: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, Any] | None = field(default=None, repr=False)


@dataclass(eq=False)
class LoadedModel:
    """A model, its config, where it came from, and what reading its code told."""

    model: nn.Module
    config: ModelConfig
    source: ModelSource
    review: CodeReview
    seed: int | None = None
    """Seed of the fresh weights; None where they were drawn from the random state of the moment."""

    @cached_property
    def completion(self) -> GraphCompletion:
        """What the export left out and how it is completed.

        Raises:
            GraphCompletionError: something is left open that source, modules and config do not settle.
        """
        from utils.adapters.model_adapter import complete

        return complete(self.model, self.config, self.source)

    def _rows(self) -> list[tuple[str, str]]:
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return [
            ("model", type(self.model).__name__),
            ("parameters", f"{parameters:,}" + ("" if self.seed is None else f", fresh weights of seed {self.seed}")),
            ("config", self.config.summary() if self.config.raw else "none; what the model itself tells stands below"),
            ("origin", self.source.origin),
            ("review", self.review.verdict),
            *((f"SHA-256 {name}", digest) for name, digest in self.source.sha256.items()),
        ]

    def summary(self) -> str:
        """Plain text: class, size, config, origin, review verdict, hashes."""
        return "\n".join(f"{name}: {value}" for name, value in self._rows())

    def _repr_html_(self) -> str:
        return f"<p><b>{html.escape(type(self.model).__name__)}</b></p>" + html_table(("what", "value"), self._rows())


@dataclass
class _Intake:
    """What was gathered before anything runs."""

    source: ModelSource
    config_text: str | None
    hint: str | None = None
    gist: Gist | None = None
    saved: SavedModel | None = None


def load_model(
    source: str | Path,
    *,
    revision: str | None = None,
    config: ModelConfig | Mapping[str, Any] | str | Path | None = None,
    class_name: str | None = None,
    trust: bool = False,
    cache_dir: str | Path | None = None,
    seed: int | None = DEFAULT_SEED,
    **constructor_arguments: Any,
) -> LoadedModel:
    """Load a model from its source code, or from a folder that transformers wrote (`save_pretrained`).

    Its fresh weights are the same each time, also in another process, so that a run continues after a restart.

    Nothing is run before it was reviewed. The review is advice, not a sandbox: a model that is loaded is code of its
    author, running here.

    Args:
        source: gist id, any URL of a gist (page, API, raw, Colab), a folder, or a Python file.
        revision: pins a gist to one of its revisions.
        config: settings that win over config.json (a mapping), or stand in its place (a ModelConfig, an object or a path).
        class_name: the class to build, where the file holds several.
        trust: build the model although the review found something dangerous.
        cache_dir: where fetched gists are kept; by default below the user's cache folder.
        seed: of the random numbers that importing and constructing draw (Python, NumPy, torch), whose states are as before
            afterwards; None leaves them alone, so that each load gives other weights. It is not handed to the constructor:
            one that wants a `seed` finds it in the config.
        **constructor_arguments: handed to the constructor; they win over the config.

    Raises:
        GistError: the gist cannot be had or used (`GistIdError`, `GistNotFoundError`, `GistRateLimitError`, …).
        ConfigError: config.json cannot be read.
        UntrustedCodeError: the review found something dangerous, and `trust` is False.
        ModelLoadError: a syntax error, a missing package, no class or too many, an argument that nothing supplies, or a
            constructor that raises.

    Example:
        >>> loaded = load_model("my_export/")  # a folder with model.py and config.json
        >>> loaded.model(torch.zeros(1, 8, dtype=torch.long))
    """
    _refuse_seed(seed)
    intake = _gather(source, revision, cache_dir, class_name)
    if intake.saved is not None:
        return _load_saved(intake, intake.saved, config, constructor_arguments, seed)
    settings = _read_config(config, intake)
    code = {name: text for name, text in intake.source.files.items() if name.endswith(".py")}
    review = review_files(code)
    _refuse_missing(review, intake.source)
    _refuse_danger(review, intake.source, trust)
    if intake.gist is not None:
        store_gist(intake.gist, cache_dir)
    model = build_model(intake.source, settings, class_name, constructor_arguments, intake.hint, seed)
    return LoadedModel(model, settings, intake.source, review, seed)


def read_source(source: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None) -> ModelSource:
    """Gather a model's files as `load_model` does, to be shown and reviewed: nothing is run and nothing is written.

    Raises:
        GistError: the gist cannot be had or used.
        ModelLoadError: no such file, no model among the files, or a syntax error.
    """
    return _gather(source, revision, cache_dir).source


def _load_saved(
    intake: _Intake, saved: SavedModel, config: object, arguments: Mapping[str, Any], seed: int | None
) -> LoadedModel:
    """A model of transformers, whose folder holds no code to be reviewed."""
    if config is not None or arguments:
        given = "config" if config is not None else next(iter(arguments))
        raise ModelLoadError(
            f"{given}= cannot change a saved model: its weights fit its own config.json in {saved.folder} only."
        )
    settings = _read_config(None, intake)
    with _seeded(seed if saved.weights is None else None):
        model = _run(saved.build, f"{saved.class_name} cannot be loaded", intake.source)
    return LoadedModel(
        model, settings, intake.source, CodeReview(sha256=saved.sha256()), seed if saved.weights is None else None
    )


def _gather(
    source: str | Path, revision: str | None, cache_dir: str | Path | None, class_name: str | None = None
) -> _Intake:
    """Read everything that takes part; write nothing, run nothing."""
    _refuse_no_source(source, revision)
    path = Path(source).expanduser()
    text = str(source)
    exists = "://" not in text and "\0" not in text and len(text) < 4096 and _exists(path)
    if not isinstance(source, Path) and not exists and looks_like_gist(source):
        return _gather_gist(source, revision, cache_dir)
    if revision is not None:
        raise ModelLoadError(f"revision={revision!r} belongs to gists, but {text!r} is a local path.")
    if not exists:
        raise ModelLoadError(
            f"There is no file or folder {text!r} (looked in {Path.cwd()}), and it is no gist id or URL."
        )
    return _gather_folder(path, class_name)


def _refuse_no_source(source: object, revision: object) -> None:
    """An empty text would mean the working directory, and run what happens to lie there."""
    if not isinstance(source, str | Path):
        raise ModelLoadError(
            f"A model's source must be a text (gist id, URL, path) or a Path, but is {_short(source)} "
            f"({type(source).__name__})."
        )
    if revision is not None and not isinstance(revision, str):
        raise ModelLoadError(f"revision must be a text of 40 hex digits, but is {_short(revision)}.")
    if isinstance(source, str) and not source.strip():
        parse_gist_reference(source)


def _refuse_seed(seed: object) -> None:
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32):
        raise ModelLoadError(f"seed must be a whole number from 0 to {2**32 - 1}, or None, but is {_short(seed)}.")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _gather_gist(source: str, revision: str | None, cache_dir: str | Path | None) -> _Intake:
    gist = download_gist(source, revision=revision, cache_dir=cache_dir)
    python = {name: text for name, text in gist.files.items() if name.endswith(".py")}
    main = choose_main_file(python)
    if main is None:
        listed = ", ".join([*gist.files, *gist.ignored]) or "no files"
        raise GistContentError(
            f"Gist {gist.gist_id} has no model.py, and not exactly one file with an nn.Module class. It holds: {listed}. "
            f"Export the model again, or name the file model.py."
        )
    files = local_files(main, gist.files.get)
    return _intake(main, files, gist.files.get, f"gist {gist.gist_id}@{gist.revision}", gist.sha256, gist)


def _gather_saved(path: Path, config_text: str, class_name: str | None) -> _Intake:
    saved = read_saved_model(path, config_text, class_name)
    source = ModelSource(
        text=saved.class_text,
        file_name=saved.class_file,
        origin=str(path),
        class_name=saved.class_name,
        sha256=saved.sha256(),
        files={"config.json": config_text},
    )
    return _Intake(source, config_text, saved=saved)


def _gather_folder(path: Path, class_name: str | None = None) -> _Intake:
    folder = LocalFolder(path if path.is_dir() else path.parent)
    main = path.name
    if path.is_dir():
        config_text = folder.read("config.json")
        if config_text is not None and is_saved_model(path, config_text):
            return _gather_saved(path, config_text, class_name)
        python = {"model.py": ""} if (path / "model.py").is_file() else folder.python_files()
        found = choose_main_file(python)
        if found is None:
            raise ModelLoadError(
                f"The folder {path} has no model.py, and not exactly one file with an nn.Module class. Its Python files: "
                f"{', '.join(python) or 'none'}. Name the file: load_model({str(path / 'your_model.py')!r})."
            )
        main = found
    elif path.suffix != ".py":
        raise ModelLoadError(f"{path} is no Python file. Give a model.py, a folder that holds one, or a gist.")
    return _intake(main, local_files(main, folder.read), folder.read, str(path), folder.sha256, None)


def _intake(
    main: str,
    files: dict[str, str],
    read: Callable[[str], str | None],
    origin: str,
    sha256: Mapping[str, str],
    gist: Gist | None,
) -> _Intake:
    config_text = read("config.json")
    if config_text is not None:
        files = {**files, "config.json": config_text}
    source = ModelSource(
        text=files[main],
        file_name=main,
        origin=origin,
        revision=gist.revision if gist else None,
        sha256={name: sha256[name] for name in files},
        files=files,
    )
    return _Intake(source, config_text, gist.name_hint if gist else None, gist)


def _read_config(given: Any, intake: _Intake) -> ModelConfig:
    """config.json, with the caller's settings on top."""
    if given is not None and not isinstance(given, Mapping):
        return ModelConfig.of(given)
    own = ModelConfig() if intake.config_text is None else ModelConfig.from_json(intake.config_text)
    return own.updated(given) if given else own


def _refuse_missing(review: CodeReview, source: ModelSource) -> None:
    if review.missing:
        names = ", ".join(f"{module.name!r} (line {module.line})" for module in review.missing)
        command = " ".join(module.pip_name for module in review.missing)
        raise ModelLoadError(
            f"{source.file_name} imports {names}, which this runtime lacks. Nothing is installed silently; if you trust "
            f"{'it' if len(review.missing) == 1 else 'them'}, install with: pip install {command}"
        )


def _refuse_danger(review: CodeReview, source: ModelSource, trust: bool) -> None:
    dangers = review.at_least("danger")
    if not dangers:
        return
    listed = "\n".join(f"  {f.file_name}:{f.line}  {f.call}  ({f.kind}: {f.why})  {f.code}" for f in dangers)
    if trust:
        _LOG.warning("Loading %s although its review found:\n%s", source.origin, listed)
        return
    raise UntrustedCodeError(
        f"{source.origin} was not run: reading its code found what a model does not need.\n{listed}\n"
        f"If you have read it and trust its author: load_model(..., trust=True), or --trust on the command line."
    )


def build_model(
    source: ModelSource,
    config: ModelConfig,
    class_name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    hint: str | None = None,
    seed: int | None = DEFAULT_SEED,
) -> nn.Module:
    """Import the source, choose its class (noted in `source.class_name`) and call the constructor.

    Importing and constructing are seeded apart: a source that was imported before is not imported again.

    Raises:
        ModelLoadError: importing or constructing raised, or the class or its arguments cannot be settled.
    """
    code = {name: text for name, text in source.files.items() if name.endswith(".py")}
    with _seeded(seed):
        module = _run(lambda: import_source(code, source.file_name), f"{source.file_name} cannot be imported", source)
    cls = choose_class(module, source.text, config, class_name, hint)
    source.class_name = cls.__name__
    with _seeded(seed):
        return _construct(cls, config, arguments or {}, module, source)


def _seeded(seed: int | None) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if seed is None else fixed_random(seed)


def _construct(
    cls: type[nn.Module], config: ModelConfig, arguments: Mapping[str, Any], module: ModuleType, source: ModelSource
) -> nn.Module:
    what = f"{cls.__name__} cannot be built"
    positional, named = _run(lambda: call_arguments(cls, config, arguments, module), what, source)
    shown = [_short(value) for value in positional] + [f"{name}={_short(value)}" for name, value in named.items()]
    call = f"{cls.__name__}({', '.join(shown)})"
    model = _run(lambda: cls(*positional, **named), what, source, call)
    if not issubclass(type(model), nn.Module):
        raise ModelLoadError(
            f"{what}: {call} gave a value of type {type(model).__name__}, which is no torch.nn.Module."
        )
    source.arguments = dict(inspect.signature(cls).bind(*positional, **named).arguments)
    return model


def _run(step: Callable[[], Any], what: str, source: ModelSource, subject: str = "it") -> Any:
    """Run code of the user; whatever it raises is wrapped once, with the line of the user's file.

    A KeyboardInterrupt alone passes: nothing tells whether the code raised it or a person pressed the key.
    """
    try:
        return step()
    except (ModelLoadError, KeyboardInterrupt):
        raise
    except ModuleNotFoundError as error:
        name = error.name or str(error)
        raise ModelLoadError(
            f"{what}: it needs the module {name!r}, which this runtime lacks{_place(error, source)}. If you trust it, "
            f"install the package that holds it, e.g.: pip install {name.split('.')[0]}"
        ) from error
    except BaseException as error:
        raise ModelLoadError(
            f"{what}: {subject} raised {type(error).__name__}: {_message(error)}{_place(error, source)}"
        ) from error


def _message(error: BaseException) -> str:
    """The text of an error whose class may be the user's own."""
    try:
        return _short(str(error), 500)
    except Exception:  # noqa: BLE001 - whatever their __str__ raises
        return "(its message cannot be read)"


def _place(error: BaseException, source: ModelSource) -> str:
    """The innermost frame that lies in the user's files, as " (model.py, line 7: `self.x = …`)"; else empty."""
    root = str(generated.folder_of(""))
    lines = {
        module_path(name): (name, text.splitlines()) for name, text in source.files.items() if name.endswith(".py")
    }
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(root) and frame.lineno:
            inner = Path(frame.filename).relative_to(root).as_posix().partition("/")[2]
            name, text = lines.get(module_path(inner), (inner, []))
            code = text[frame.lineno - 1].strip() if frame.lineno <= len(text) else ""
            return f" ({name}, line {frame.lineno}: `{code}`)"
    return ""


def _short(value: object, limit: int = 80) -> str:
    shown = value if isinstance(value, str) and limit > 80 else repr(value)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
