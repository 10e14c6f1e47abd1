"""What re-creates a run, written into its folder before the first step, and the call that does so.

`recipe.json` holds where model and data came from, with hashes, and on what the run was made; the model's source lies beside it,
and settings and tokenizer are in the folder anyway. What cannot be re-created is said by name. Leaves hashes of results to
`run_folder`.
"""

from __future__ import annotations

import csv
import datetime
import json
import logging
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import utils
from utils._files import list_files, sha256_of, write_json, write_text
from utils.errors import DataError, TrainingError
from utils.loading.model_loader import DEFAULT_SEED, load_model
from utils.progress import ProgressCallback
from utils.tokenization.tokenizer_files import load_saved
from utils.training.data_streams import open_stream, sizes_of
from utils.training.dataset_utilities import BUNDLED, DatasetLoader, resolve_data
from utils.training.run_mirror import RUN_FILE
from utils.training.task_examples import EXAMPLES
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from utils.adapters.model_adapter import AdaptedModel
    from utils.training.result import TrainingResult

logger = logging.getLogger(__name__)

READABLE = 64 * 2**20
"""Bytes of a file that is read a second time for its validation text."""

STREAM = "stream"
"""Kind of data that were read forward only."""

FORMAT_VERSION = 1
RECIPE_FILE, SOURCE_FOLDER = "recipe.json", "source"
PACKAGES = (
    *("torch", "numpy", "pandas", "pytorch-lightning", "transformers", "tokenizers", "datasets", "huggingface-hub"),
    *("safetensors", "pyarrow", "scikit-learn"),
)
"""Packages whose versions may change a run."""
_GIT_SECONDS = 5.0


# ---- facts ----------------------------------------------------------------------------------------------------------
def package_versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that a run depends on; "absent" where one is not installed."""
    found = {"python": platform.python_version(), "transformer-builder-colab": utils.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return {**found, "cuda": str(torch.version.cuda or "absent"), "cudnn": str(cudnn or "absent")}


def hardware() -> dict[str, Any]:
    """What the run is made on."""
    found: dict[str, Any] = {
        "system": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "gpus": [],
    }
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        found["gpus"].append(
            {"name": card.name, "capability": f"{card.major}.{card.minor}", "memory_bytes": card.total_memory}
        )
    return found


def code_revision(folder: Path | None = None) -> dict[str, Any]:
    """Git commit of this package's own code and whether it was changed since; both None where it is no checkout."""
    root = Path(utils.__file__).parents[1] if folder is None else folder
    if not (root / ".git").exists():
        return {"commit": None, "changed": None}
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit or None, "changed": None if status is None else bool(status)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=_GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        logger.debug("git does not tell the revision: %s", error)
        return None
    return done.stdout.strip()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no such call on Windows
        return None


def describe_data(data: Any, streamed: bool = False) -> dict[str, Any]:
    """Where data came from, so that it can be had again: a bundled name, a path with hashes, or a Hub name with its commit.

    What a program holds in memory is described as such; it cannot be had again without the program. Files that are streamed
    are told by their sizes alone: hashing them may take as long as the training.
    """
    if isinstance(data, str) and (data in BUNDLED or data in EXAMPLES):
        return {"kind": "bundled", "name": data}
    if isinstance(data, (str, Path)):
        path = Path(data).expanduser()
        if streamed and path.exists():
            return {"kind": STREAM, "path": str(path.resolve()), "sizes": sizes_of(path)}
        if path.is_file():
            return {
                "kind": "file",
                "path": str(path.resolve()),
                "sha256": sha256_of(path),
                "bytes": path.stat().st_size,
            }
        if path.is_dir():
            return {"kind": "folder", "path": str(path.resolve()), "files": list_files(path)}
        return {"kind": "hub", "name": str(data), "revision": _hub_revision(str(data))}
    return {"kind": "memory", "type": type(data).__name__}


def _hub_revision(name: str) -> str | None:
    from utils.training.data_hub import list_files as list_hub

    try:
        return list_hub(name, None, []).commit
    except DataError as error:
        logger.warning("the commit of the data set %s is not known, so the run cannot be re-created: %s", name, error)
        return None


def describe_model(adapted: AdaptedModel) -> dict[str, Any]:
    """Where a model's code came from."""
    source = adapted.source
    if source is None:
        return {"kind": "object", "name": adapted.name, "parameters": adapted.num_parameters()}
    kind = "source" if source.file_name in source.files else "saved"  # a folder of save_pretrained holds no code
    return {
        "kind": kind,
        "name": adapted.name,
        "parameters": adapted.num_parameters(),
        "origin": source.origin,
        "revision": source.revision,
        "file_name": source.file_name,
        "class_name": source.class_name,
        "sha256": dict(source.sha256),
    }


# ---- writing --------------------------------------------------------------------------------------------------------
def write_recipe(
    folder: Path, adapted: AdaptedModel, data: Mapping[str, Any] | None, changes: Mapping[str, str] | None = None
) -> None:
    """Write what re-creates a run into its folder; a run that continues keeps what is there.

    Args:
        folder: of the run.
        adapted: the model, before its first step.
        data: what `describe_data` gave; None for data that the caller made into samples itself.
        changes: other things that went into the run and cannot be written down, name → words.
    """
    if (folder / RECIPE_FILE).is_file():
        return
    model = describe_model(adapted)
    if model["kind"] == "source" and adapted.source is not None:
        for name, text in adapted.source.files.items():
            write_text(folder / SOURCE_FOLDER / name, text)
    write_json(
        folder / RECIPE_FILE,
        {
            "format_version": FORMAT_VERSION,
            "begun": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "model": model,
            "data": dict(data) if data is not None else {"kind": "memory", "type": "samples"},
            "changes": dict(changes or {}),
            "versions": package_versions(),
            "hardware": hardware(),
            "code": code_revision(),
        },
    )


def validation_text_of(result: TrainingResult, characters: int = 20_000) -> str | None:
    """The beginning of the text that a run was validated on; None where it cannot be had again at once.

    Bundled text, files of up to `READABLE` bytes and streamed files are read again and split as in the run; text of the Hub,
    data in memory and files that have changed are not.

    Args:
        result: what the training gave.
        characters: how much of it is wanted.
    """
    try:
        recipe = Recipe.read(result.run_folder)
    except TrainingError as error:
        logger.debug("no validation text: %s", error)
        return None
    origin = recipe.values.get("data", {})
    readable = origin.get("kind") == "bundled" and origin.get("name") in BUNDLED
    if origin.get("kind") == "file" and origin.get("bytes", 0) <= READABLE:
        path = Path(origin["path"])
        readable = path.is_file() and sha256_of(path) == origin["sha256"]
    streamed = origin.get("kind") == STREAM and not recipe.data_problems()
    if not readable and not streamed:
        return None
    try:
        documents = (
            open_stream(recipe.data()).held_back
            if streamed
            else resolve_data(recipe.data(), recipe.settings.validation_fraction).validation
        )
    except DataError as error:  # read with options that are not written down, such as a column
        logger.debug("no validation text: %s", error)
        return None
    parts: list[str] = []
    for document in documents:
        parts.append(str(document))
        if sum(map(len, parts)) >= characters:
            break
    return "\n".join(parts)[:characters] or None


# ---- re-creating ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Recipe:
    """A run's folder, read for re-creating it.

    Attributes:
        folder: of the run. values: content of recipe.json. fingerprint: of the run, from run.json. settings: of the run.
    """

    folder: Path
    values: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    settings: TrainingConfig

    @classmethod
    def read(cls, folder: str | Path) -> Recipe:
        """Read a run's folder.

        Raises:
            TrainingError: it is no folder of a run, or of one that was made before recipes were written.
        """
        root = Path(folder).expanduser()
        values, run = _read(root / RECIPE_FILE), _read(root / RUN_FILE)
        if values.get("format_version", 0) > FORMAT_VERSION:
            raise TrainingError(f"{RECIPE_FILE} has format version {values['format_version']}; update the package.")
        if not isinstance(run.get("fingerprint"), dict):
            raise TrainingError(f"{root / RUN_FILE} holds no fingerprint of a run.")
        return cls(root, values, run["fingerprint"], TrainingConfig.load(root / "config.json"))

    def problems(self, model: object = None, data: object = None) -> list[str]:
        """What keeps the run from being re-created, each by name; what the caller brings is no problem."""
        found = [f"{name}: {words}" for name, words in self.values.get("changes", {}).items()]
        if model is None:
            found += self._model_problems()
        if data is None:
            found += self.data_problems()
        return found

    def data(self) -> Any:
        """The data, as `train` takes it."""
        origin = self.values["data"]
        if origin["kind"] == "hub" and self.settings.stream_data:
            return open_stream(origin["name"], revision=origin["revision"])
        if origin["kind"] == "hub":
            return DatasetLoader.from_huggingface(origin["name"], progress=False, revision=origin["revision"])
        return origin["name"] if origin["kind"] == "bundled" else Path(origin["path"])

    def source(self) -> Path:
        """What `load_model` takes."""
        model = self.values["model"]
        if model["kind"] == "saved":
            return Path(model["origin"])
        return self.folder / SOURCE_FOLDER / model["file_name"]

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The run's tokenizer; None where it had none."""
        return load_saved(self.folder / "tokenizer")

    def changed_versions(self) -> list[str]:
        """Packages whose versions are others now."""
        then, now = self.values.get("versions", {}), package_versions()
        return [f"{name} {then[name]} → {now[name]}" for name in now if name in then and then[name] != now[name]]

    def _model_problems(self) -> list[str]:
        model = self.values["model"]
        if model["kind"] == "object":
            return [f"model: {model['name']} was made by a program; pass model= as it was before the run"]
        if model["kind"] == "saved":
            return (
                [] if Path(model["origin"]).is_dir() else [f"model: the folder {model['origin']} is gone; pass model="]
            )
        root, wrong = self.folder / SOURCE_FOLDER, []
        for name, digest in model["sha256"].items():
            path = root / name
            if root.resolve() not in path.resolve().parents:
                wrong.append(f"model: {name!r} leads out of the run's folder")
            elif not path.is_file():
                wrong.append(f"model: {SOURCE_FOLDER}/{name} is missing")
            elif sha256_of(path) != digest:
                wrong.append(f"model: {SOURCE_FOLDER}/{name} was changed since the run began")
        return wrong

    def data_problems(self) -> list[str]:
        """What keeps the data from being had again."""
        data = self.values["data"]
        if data["kind"] == "memory":
            return [f"data: a {data['type']} was passed by a program and is not kept; pass data="]
        if data["kind"] == "hub":
            return [] if data["revision"] else [f"data: the commit of {data['name']} was not known; pass data="]
        if data["kind"] == "bundled":
            return (
                []
                if data["name"] in (*BUNDLED, *EXAMPLES)
                else [f"data: there is no bundled {data['name']!r} any more"]
            )
        path = Path(data["path"])
        if not path.exists():
            return [f"data: {path} is gone; pass data="]
        if data["kind"] == STREAM:
            changed = sizes_of(path) != data["sizes"]
            return [f"data: {path} was changed since the run began; pass data= as it was"] if changed else []
        changed = sha256_of(path) != data["sha256"] if data["kind"] == "file" else list_files(path) != data["files"]
        return [f"data: {path} was changed since the run began; pass data= as it was"] if changed else []


def rerun(
    run_folder: str | Path,
    workspace: str | Path | None = None,
    *,
    model: Any = None,
    data: Any = None,
    seed: int | None = DEFAULT_SEED,
    trust: bool = False,
    run_name: str | None = None,
    progress: bool | ProgressCallback = True,
) -> TrainingResult:
    """Make a run again from its folder: the same model, data, tokenizer and settings, from the first step on.

    Args:
        run_folder: of a run, finished or not.
        workspace: folder for the new run; None takes the one that holds the run.
        model: instead of the run's source, for a model that a program made.
        data: instead of the run's data, where that was in memory.
        seed: of the fresh weights, as `load_model` takes it.
        trust: run the model's code although its review found something dangerous.
        run_name: of the new run; None takes "<old name>-rerun".
        progress: as for `train`.

    Returns:
        What the new run gave. On the same hardware, versions and number of threads its losses are those of the old one.

    Raises:
        TrainingError: something cannot be re-created, or is not what the run began with; all of it is listed before any step.
    """
    from utils.training.recreation import RecreatingCoordinator

    recipe = Recipe.read(run_folder)
    _refuse(recipe, recipe.problems(model, data))
    changed = recipe.changed_versions()
    if changed:
        logger.warning(
            "other versions than in the run, so losses may differ in their last digits: %s", ", ".join(changed)
        )
    if model is None:
        model = load_model(recipe.source(), class_name=recipe.values["model"]["class_name"], trust=trust, seed=seed)
    settings = TrainingConfig.from_dict(
        {**recipe.settings.to_dict(), "run_name": run_name or f"{recipe.folder.resolve().name}-rerun"}
    )
    coordinator = RecreatingCoordinator(
        model,
        recipe.data() if data is None else data,
        tokenizer=recipe.tokenizer(),
        training_config=settings,
        workspace=recipe.folder.resolve().parent if workspace is None else workspace,
        progress=progress,
        resume="never",
    )
    coordinator.recipe = recipe
    return coordinator.run()


def compare_losses(first: str | Path, second: str | Path) -> str:
    """How far the training losses of two runs agree, in a sentence."""
    one, other = (_losses(Path(folder) / "metrics.csv") for folder in (first, second))
    equal = sum(a == b for a, b in zip(one, other))
    if len(one) == len(other) == equal:
        return f"All {equal:,} training losses are equal."
    most = max((abs(float(a) - float(b)) for a, b in zip(one, other)), default=0.0)
    return (
        f"{equal:,} of {max(len(one), len(other)):,} training losses are equal; the largest difference is {most:.2g}."
    )


def _losses(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row.get("train/loss")]


def _refuse(recipe: Recipe, problems: list[str]) -> None:
    if problems:
        listed = "\n".join(f"- {text}" for text in problems)
        raise TrainingError(f"The run {recipe.folder.name!r} cannot be re-created:\n{listed}")


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TrainingError(
            f"{path} does not exist: {path.parent} is no folder of a run, or of one made before recipes were written."
        ) from error
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise TrainingError(f"{path} holds a {type(values).__name__} instead of an object.")
    return values
