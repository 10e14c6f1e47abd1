"""Data sets of the Hugging Face Hub, read from their data files. Runs nothing that a repository holds.

First the list of files is asked for, under a deadline, and kept: later runs find their files in the Hub's own cache without a
network. Then the files of the chosen part are downloaded one after another as they are needed, by `huggingface_hub`, pinned
to one commit, and read by `data_readers`.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from utils._extras import require
from utils._files import write_json
from utils.errors import DataError
from utils.loading.cache import cache_root
from utils.loading.file_names import problem_with_name
from utils.progress import ProgressCallback, ignore_progress
from utils.tokenization.hub_access import is_offline, is_repository
from utils.training.data_objects import Reject, Row
from utils.training.data_readers import READERS
from utils.training.data_rows import load_parts
from utils.training.data_sources import KINDS, DataFile, by_part, file_on_disk, matches, one_kind
from utils.training.data_store import SPARE_BYTES
from utils.training.loaded_dataset import LoadedDataset, ReadOptions, ReadReport

logger = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_SECONDS = 5.0
"""How long the Hub may take to list a data set; whoever is offline waits no longer than this."""
STALL_SECONDS = 20.0
"""How long a download may bring nothing."""
POLL_SECONDS = 0.2
GROWTH = 3
"""Room that data needs, as a multiple of its download: the file itself, and its text, which Parquet compresses."""
CONVERTED = "refs/convert/parquet"
"""Branch on which the Hub keeps Parquet copies of data sets, one folder for each configuration."""

_DEFAULT_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True)
class Listing:
    """What a repository holds.

    Attributes:
        name: "owner/name".
        commit: SHA of the commit.
        files: path → bytes (0 where the Hub did not say).
        configs: configurations as the README's head gives them.
        gated: whether access has to be granted.
    """

    name: str
    commit: str
    files: Mapping[str, int]
    configs: Sequence[Mapping[str, Any]] = ()
    gated: bool = False


def load_from_hub(name: str, options: ReadOptions, progress: ProgressCallback = ignore_progress) -> LoadedDataset:
    """Read a data set of the Hub.

    Args:
        name: "owner/name".
        options: how to read; `config_name`, `split` and `revision` among them.
        progress: told the bytes of the file that is read.

    Raises:
        DataError: it cannot be had, needs code of its own, does not fit, or is not clear. Each says how on.
    """
    if not is_repository(name):
        raise DataError(f"{name!r} is no name of a Hub data set; the form is 'owner/name'.")
    require("huggingface_hub", extra="training", feature="Reading from the Hugging Face Hub")
    notes: list[str] = []
    listing = list_files(name, options.revision, notes)
    parts = _parts(listing, options, notes)
    _check_room(listing, parts, options)
    report = ReadReport(name)  # what readers note before the report of their part is there
    sources = {
        part: [HubRows(listing, file, options, report, progress) for file in files] for part, files in parts.items()
    }
    loaded = load_parts(name, sources, options, [*notes, f"commit {listing.commit[:12]}"])
    for text in report.notes:
        loaded.report.note(text)
    for text in report.warnings:
        loaded.report.note(text, warning=True)
    return loaded


def training_files(name: str, options: ReadOptions) -> tuple[Listing, list[str]]:
    """What a data set holds, and its files for training in their order.

    Raises:
        DataError: as for `load_from_hub`.
    """
    if not is_repository(name):
        raise DataError(f"{name!r} is neither a file or folder here nor the name of a Hub data set ('owner/name').")
    require("huggingface_hub", extra="training", feature="Reading from the Hugging Face Hub")
    listing = list_files(name, options.revision, [])
    parts = _parts(listing, options, [])
    part = options.split or ("train" if "train" in parts else next(iter(parts)))
    if part not in parts:
        raise DataError(f"{name} has no part {part!r}; it has {', '.join(map(repr, parts))}.")
    return listing, parts[part]


class HubRows:
    """Rows of one file of a repository, which is downloaded when the first row is asked for."""

    def __init__(
        self, listing: Listing, file: str, options: ReadOptions, report: ReadReport, progress: ProgressCallback
    ) -> None:
        self.listing, self.name, self.options, self.report, self.progress = listing, file, options, report, progress
        self._kind = KINDS[PurePosixPath(file).suffix.lower()]
        self.is_table = READERS[self._kind].is_table

    @property
    def label_names(self) -> Mapping[str, Sequence[str]]:
        """See `data_objects.RowSource`."""
        return READERS[self._kind](self._downloaded(), self.options, self.report).label_names

    def rows(self, reject: Reject, columns: list[str] | None = None) -> Iterator[tuple[int, Row]]:
        """See `data_objects.RowSource`."""
        reader = READERS[self._kind](self._downloaded(), self.options, self.report, self.progress)
        yield from reader.rows(reject, columns)

    def _downloaded(self) -> DataFile:
        return file_on_disk(download(self.listing, self.name, self.progress), self.name)


def list_files(name: str, revision: str | None, notes: list[str]) -> Listing:
    """What a repository holds, from the Hub, or as it was when it was last asked.

    Args:
        name: "owner/name".
        revision: commit, branch or tag; None for the main branch.
        notes: is told when the Hub could not be asked.

    Raises:
        DataError: the Hub refuses, or cannot be reached and was never asked before.
    """
    record = cache_root() / "data" / "hub" / name.replace("/", "--") / f"{(revision or 'main').replace('/', '--')}.json"
    try:
        if is_offline():
            raise _UnreachableError("offline mode is set (HF_HUB_OFFLINE)")
        listing = _within_deadline(lambda: _ask(name, revision))
    except _UnreachableError as error:
        known = _recorded(record)
        if known is None:
            raise DataError(
                f"{name} cannot be read: {error}, and it was never read here before. Use data of your own, or 'python-docs'."
            ) from error
        notes.append(f"the Hub was not asked ({error}); the files are those of {known.commit[:12]}, as listed earlier")
        return known
    for file in listing.files:
        problem = next((why for part in file.split("/") if (why := problem_with_name(part))), None)
        if problem and PurePosixPath(file).suffix.lower() in KINDS:
            raise DataError(f"{name} holds a file whose name {ascii(file)[:200]} {problem}; it is refused.")
    write_json(record, asdict(listing))
    return listing


def download(listing: Listing, file: str, progress: ProgressCallback = ignore_progress) -> Path:
    """The path of one file in the Hub's cache.

    Raises:
        DataError: it cannot be had.
    """
    from huggingface_hub import hf_hub_download

    def fetch() -> Path:
        with _hub_faults(listing.name):
            path = hf_hub_download(
                listing.name,
                file,
                repo_type="dataset",
                revision=listing.commit,
                endpoint=_endpoint(),
                cache_dir=os.environ.get("HF_HUB_CACHE"),
                etag_timeout=ANSWER_SECONDS,
                local_files_only=is_offline(),
            )
        return Path(path)

    with _quiet():
        return _while_it_moves(fetch, listing, file, progress)


class _UnreachableError(DataError):
    """The Hub did not answer, or must not be asked."""


def _ask(name: str, revision: str | None) -> Listing:
    from huggingface_hub import HfApi

    with _hub_faults(name, revision):
        info = HfApi(endpoint=_endpoint()).dataset_info(
            name, revision=revision, timeout=ANSWER_SECONDS, files_metadata=True
        )
    card = info.card_data.to_dict() if info.card_data is not None else {}
    configs = card.get("configs")
    return Listing(
        name,
        info.sha or revision or "main",
        {file.rfilename: file.size or 0 for file in info.siblings or ()},
        [dict(item) for item in configs if isinstance(item, dict)] if isinstance(configs, list) else [],
        bool(info.gated),
    )


@contextlib.contextmanager
def _hub_faults(name: str, revision: str | None = None) -> Iterator[None]:
    """Turns what `huggingface_hub` raises into one sentence."""
    try:
        yield
    except Exception as error:
        meaning = _refusal(error, name, revision) or _no_answer(error, name)
        if meaning is None:
            raise
        raise meaning from error


def _refusal(error: Exception, name: str, revision: str | None) -> DataError | None:
    """What the Hub said no to; None where it did not answer."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or (status == 403 and isinstance(error, errors.HfHubHTTPError)):
        return DataError(_gated(name))
    if isinstance(error, errors.RevisionNotFoundError):
        return DataError(f"{name} has no revision {revision!r} on the Hub.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return DataError(
            f"{name} does not exist on the Hub, or is private (then a token is needed: HF_TOKEN). Check the spelling: "
            f"{_DEFAULT_ENDPOINT}/datasets."
        )
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return DataError(f"A file of {name} is no longer on the Hub: {_first_line(error)}")
    return None


def _no_answer(error: Exception, name: str) -> _UnreachableError | None:
    """A connection that failed or an answer that is none; None for what is our own fault."""
    from huggingface_hub import errors

    host = _endpoint().split("//")[-1]
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _UnreachableError(
            f"a file of {name} is not in the local cache, and {host} cannot be reached ({_first_line(error)})"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _UnreachableError(f"{host} answered with HTTP {getattr(error.response, 'status_code', '?')}")
    foreign = type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests")
    if foreign or isinstance(error, (OSError, ValueError, RuntimeError)):
        return _UnreachableError(f"{host} did not answer as expected ({_first_line(error)})")
    return None


def _gated(name: str) -> str:
    return (
        f"{name} is gated: ask for access on {_DEFAULT_ENDPOINT}/datasets/{name}, make a token in your account's settings, and put "
        "it into the environment variable HF_TOKEN (in Colab: the secret HF_TOKEN). Or take another data set."
    )


def _within_deadline(action: Callable[[], Listing], seconds: float | None = None) -> Listing:
    """Run in a thread of its own, since looking up a name, or a server that sends a byte now and then, cannot be interrupted."""
    allowed = 2 * ANSWER_SECONDS if seconds is None else seconds
    work = _Work(action)
    work.thread.join(allowed)
    if not work.ended:
        raise _UnreachableError(f"{_host()} did not answer within {allowed:g} s")
    return work.result()


def _while_it_moves(fetch: Callable[[], Path], listing: Listing, file: str, progress: ProgressCallback) -> Path:
    """Run a download as long as its file grows: `huggingface_hub` itself tries a silent server for minutes."""
    size = listing.files.get(file) or None
    before = grown = _cached_bytes(listing.name)
    work, moved = _Work(fetch), time.monotonic()
    while not work.ended:
        work.thread.join(POLL_SECONDS)
        now = _cached_bytes(listing.name)
        if now != grown:
            grown, moved = now, time.monotonic()
            progress(min(max(grown - before, 0), size or grown), size, f"downloading {file}")
        if not work.ended and time.monotonic() - moved > STALL_SECONDS:
            raise _UnreachableError(
                f"{file} of {listing.name} stopped arriving from {_host()}; nothing came for {STALL_SECONDS:g} s"
            )
    return work.result()


def _cached_bytes(name: str) -> int:
    """Bytes that the Hub's cache holds of a repository, unfinished downloads included."""
    from huggingface_hub import constants

    root = Path(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE)
    total = 0
    for path in (root / f"datasets--{name.replace('/', '--')}" / "blobs").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # a finished download is renamed
            total += path.stat().st_size
    return total


class _Work(Generic[T]):
    """An action in a thread of its own, and what came of it."""

    def __init__(self, action: Callable[[], T]) -> None:
        self._action = action
        self._results: list[T] = []
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="hub", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._action())
        except BaseException as error:  # noqa: BLE001 - carried over to the waiting thread, which raises it
            self._error = error

    @property
    def ended(self) -> bool:
        return not self.thread.is_alive()

    def result(self) -> T:
        """What the action returned; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._results[0]


def _recorded(path: Path) -> Listing | None:
    try:
        return Listing(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        logger.warning("the list of files in %s cannot be read (%s)", path, error)
        return None


def _parts(listing: Listing, options: ReadOptions, notes: list[str]) -> dict[str, list[str]]:
    """Part → files of known kinds, in order."""
    if listing.gated and not is_offline() and not _has_token():
        raise DataError(_gated(listing.name))
    config = _config(listing, options, notes)
    script = f"{listing.name.split('/')[-1]}.py"
    if script in listing.files and config is None:
        raise DataError(
            f"{listing.name} needs its own script ({script}), and code of a data set is not run. For many of them the Hub keeps "
            f"Parquet copies: pass revision='{CONVERTED}' (and config_name=)."
        )
    declared = _declared(config, listing) if config is not None else {}
    if declared:
        return {part: _readable(listing, files, part) for part, files in declared.items()}
    below = f"{config['data_dir'].strip('/')}/" if config and isinstance(config.get("data_dir"), str) else ""
    files = [
        file
        for file in sorted(listing.files)
        if file.startswith(below) and not PurePosixPath(file).name.startswith(".")
    ]
    found = _readable(listing, [file for file in files if matches(file, options.pattern)], "")
    found = [file for file in found if file.lower() != "readme.md"] or found
    kept, _, left_out = one_kind(found, listing.name)
    parts, more = by_part(kept)
    notes += left_out + more
    return parts


def _config(listing: Listing, options: ReadOptions, notes: list[str]) -> Mapping[str, Any] | None:
    """The configuration that is meant; None where the repository has none."""
    configs = [dict(item) for item in listing.configs if item.get("config_name")]
    if not configs and options.revision == CONVERTED:
        folders = sorted({file.split("/")[0] for file in listing.files if file.endswith(".parquet") and "/" in file})
        configs = [{"config_name": folder, "data_dir": folder} for folder in folders]
    names = [str(item["config_name"]) for item in configs]
    wanted = options.config_name
    if wanted is not None:
        if wanted not in names:
            near = difflib.get_close_matches(wanted, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{listing.name} has no configuration {wanted!r}.{hint} {_listed(names)}")
        return configs[names.index(wanted)]
    if not configs:
        return None
    chosen = [item for item in configs if item.get("default")] or [i for i in configs if i["config_name"] == "default"]
    if not chosen and len(configs) > 1:
        raise DataError(
            f"{listing.name} has several configurations. {_listed(names)} Say which one: config_name='{names[0]}'."
        )
    config = (chosen or configs)[0]
    if len(configs) > 1:
        notes.append(f"the configuration {config['config_name']!r} is its default; {_listed(names)}")
    return config


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return f"It has {', '.join(map(repr, names[:30]))}{more}." if names else "It has none."


def _declared(config: Mapping[str, Any], listing: Listing) -> dict[str, list[str]]:
    """Part → files, as a configuration declares them; {} where it declares none."""
    given = config.get("data_files")
    below = f"{config['data_dir'].strip('/')}/" if isinstance(config.get("data_dir"), str) else ""
    if isinstance(given, str) or (isinstance(given, list) and given and all(isinstance(item, str) for item in given)):
        given = [{"split": "train", "path": given}]
    parts: dict[str, list[str]] = {}
    for item in given if isinstance(given, list) else ():
        if not isinstance(item, dict):
            continue
        path = item.get("path")
        paths = path if isinstance(path, list) else [path]
        patterns = [_as_regex(below + path.removeprefix("./")) for path in paths if isinstance(path, str)]
        files = [file for pattern in patterns for file in sorted(listing.files) if pattern.fullmatch(file)]
        parts.setdefault(str(item.get("split", "train")), []).extend(dict.fromkeys(files))
    return {part: files for part, files in parts.items() if files}


def _as_regex(pattern: str) -> re.Pattern[str]:
    """A pattern of a README: `*` stays inside a folder, `**` crosses folders."""
    pieces = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(pieces.get(piece, re.escape(piece)) for piece in re.split(r"(\*\*/|\*\*|\*|\?)", pattern))
    )


def _readable(listing: Listing, files: Sequence[str], part: str) -> list[str]:
    """Those of known kinds; a part that has none is refused with the way out."""
    found = [file for file in files if PurePosixPath(file).suffix.lower() in KINDS]
    data = [file for file in found if PurePosixPath(file).name.lower() not in ("readme.md", "dataset_infos.json")]
    if data:
        return found
    shown = ", ".join(
        sorted({"".join(PurePosixPath(file).suffixes[-2:]) for file in files if not file.endswith(".md")})[:8]
    )
    raise DataError(
        f"{listing.name}{f' (part {part!r})' if part else ''} holds no file of a kind that is read ({', '.join(KINDS)})"
        f"{f'; it holds {shown}' if shown else ''}. Load it yourself and pass it on: "
        f"data=datasets.load_dataset('{listing.name}', split='train')."
    )


def _check_room(listing: Listing, parts: Mapping[str, Sequence[str]], options: ReadOptions) -> None:
    """Refuse what does not fit on the disk, before anything moves."""
    if options.max_documents is not None:
        return
    chosen = [options.split] if options.split in parts else list(parts)
    size = sum(listing.files.get(file, 0) for part in chosen if part is not None for file in parts[part])
    free = shutil.disk_usage(_existing_parent(cache_root())).free
    if GROWTH * size > free - SPARE_BYTES:
        raise DataError(
            f"{listing.name} has {size / 2**30:.1f} GB of files, which need about {GROWTH * size / 2**30:.1f} GB here; {free / 2**30:.1f} GB "
            "are free. Take a part of it: max_documents=100_000 downloads no more files than that needs."
        )


def _existing_parent(path: Path) -> Path:
    return path if path.exists() else _existing_parent(path.parent)


def _has_token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or _DEFAULT_ENDPOINT).rstrip("/")


def _host() -> str:
    return _endpoint().split("//")[-1]


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).split("\n")[0][:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the Hub's own progress bars: there is one display, ours."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()
