"""Checkpoint files of one run: written atomically, proven by a manifest, read only when the hash verifies.

`CheckpointStore` knows folders, bytes and hashes, no Lightning; *when* to save and *what* is left to `engine.resume`, copies
elsewhere to `engine.mirror`. `CheckpointManager` puts the three together for people with a trainer of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
import platform
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import torch

from utils._files import json_text, sha256_of, whole_file, write_text
from utils.errors import CheckpointError, ConfigError
from utils.progress import ProgressCallback, ignore_progress

if TYPE_CHECKING:
    from pytorch_lightning import Callback
    from torch import nn

    from utils.training.engine.mirror import Mirror, MirrorStatus
    from utils.training.engine.mirror_folder import FileSystem

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Version of checkpoint and manifest."""

_NAME = re.compile(r"step-(\d{8,})-(\d{6,})\.(ckpt|json)")
_TEMPORARY = re.compile(r"\.(step-.*\.(ckpt|json)\.)?[\w-]*\.tmp|\.step-\d+-\d+\.json\.\w+")
PIECE, MOST_WAITING = 1 << 20, 8
"""Bytes that are written and hashed together, and how many such pieces may wait to be hashed."""
FLUSHED_BESIDE = 1 << 22
"""Bytes from which what was written goes to the disk while the rest is still being written."""


@dataclass(frozen=True)
class CheckpointMetadata:
    """The manifest of one checkpoint; it is written last and makes the checkpoint valid.

    Attributes:
        file: name of the checkpoint file in the same folder.
        sha256, size: hash and bytes of that file.
        run_id: the run that wrote it.
        step: optimizer steps done; sequence: running number of saves in the run (the newest has the highest).
        val_loss: newest validation loss (nats per token) at that step, if one was taken at exactly that step.
        ends: whether the run ended with this step.
        versions: Python, torch and other versions that wrote it.
        format_version: version of this form.
    """

    file: str
    sha256: str
    size: int
    run_id: str
    step: int
    sequence: int
    val_loss: float | None = None
    ends: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """The manifest file: the fields, and a hash over them, so that no flipped bit of it is believed."""
        return json_text({**self.to_dict(), "seal": _seal(self.to_dict())})

    @classmethod
    def from_text(cls, text: str) -> CheckpointMetadata:
        """A manifest from its file.

        Raises:
            CheckpointError: it is torn, altered, or holds fields of the wrong type.
        """
        try:
            values = json.loads(text)
            seal = values.pop("seal")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"A checkpoint manifest is torn: {error}.") from error
        if seal != _seal(values):
            raise CheckpointError("A checkpoint manifest was altered: its seal does not fit its fields.")
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CheckpointMetadata:
        """A manifest from JSON; raises `CheckpointError` where fields are missing or of the wrong type."""
        known = {item.name for item in dataclasses.fields(cls)}
        try:
            found = cls(**{name: value for name, value in values.items() if name in known})
        except TypeError as error:
            raise CheckpointError(f"A checkpoint manifest lacks fields: {error}.") from error
        whole = (found.size, found.step, found.sequence, found.format_version)
        if (
            not all(isinstance(value, int) for value in whole)
            or not isinstance(found.sha256, str)
            or not isinstance(found.file, str)
        ):
            raise CheckpointError("A checkpoint manifest holds fields of the wrong type.")
        return found


def _seal(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


class CheckpointStore:
    """The checkpoints of one run in one folder.

    Args:
        folder: created where missing; only files whose names this class makes are ever read or deleted.
        run_id: written into each manifest; generations of another run are not read.
        keep: newest generations that stay, besides the one with the lowest validation loss.
        tidy: delete what killed saves left; False where another process may be writing.

    Attributes:
        on_commit: called with each generation that has become valid.
    """

    def __init__(self, folder: str | Path, run_id: str, keep: int = 2, tidy: bool = True) -> None:
        self.folder, self.run_id, self.keep = Path(folder).resolve(), run_id, keep
        self.on_commit: Callable[[CheckpointMetadata], None] | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._written: dict[str, tuple[str, int]] = {}
        if tidy:
            self._remove_orphans()

    # ---- writing ----------------------------------------------------------------------------------------------------
    def next_path(self, step: int) -> Path:
        """Where the next generation belongs."""
        sequence = max((item.sequence for item in self.generations()), default=0) + 1
        return self.folder / f"step-{step:08d}-{sequence:06d}.ckpt"

    def write(self, state: Mapping[str, Any], path: str | Path) -> None:
        """Write a checkpoint file: temporary file in the same folder, fsync, rename; `commit` makes the name durable."""
        target = self._own(path)
        with (
            self._all_or_nothing(target),
            whole_file(target, durable_name=False) as stream,
            contextlib.closing(_HashingWriter(stream)) as hashing,
        ):
            try:
                with _no_second_checksum():
                    torch.save(dict(state), cast(IO[bytes], hashing))
                hashing.settle()
            except RuntimeError as error:  # torch hides what the disk said
                raise hashing.error or error from error
        self._written[target.name] = (hashing.digest.hexdigest(), hashing.size)

    def commit(
        self, path: str | Path, step: int, val_loss: float | None = None, ends: bool = False
    ) -> CheckpointMetadata:
        """Write the manifest of a file that `write` wrote, then delete generations that are no longer kept."""
        target = self._own(path)
        digest, size = self._written.pop(target.name)
        sequence = int(target.stem.rsplit("-", 1)[1])
        metadata = CheckpointMetadata(
            target.name, digest, size, self.run_id, step, sequence, val_loss, ends, environment()
        )
        with self._all_or_nothing(target):
            write_text(target.with_suffix(".json"), metadata.to_text())
        self._prune()
        if self.on_commit is not None:
            self.on_commit(metadata)
        return metadata

    @contextlib.contextmanager
    def _all_or_nothing(self, target: Path) -> Iterator[None]:
        """Where the disk refuses a part of a generation, even its last fsync, nothing of the generation stays."""
        try:
            yield
        except OSError:
            target.with_suffix(".json").unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            raise

    def make_room(self) -> CheckpointMetadata | None:
        """Delete the oldest generation; never the newest that verifies, the best, or all there is.

        Returns:
            What was deleted, or None where nothing could be.
        """
        newest, best = self.newest(), self.best()
        kept = {item.file for item in (newest, best) if item is not None}
        others = [item for item in self.generations() if item.file not in kept]
        if newest is None or not others:
            return None
        self._delete(others[-1])
        return others[-1]

    # ---- reading ----------------------------------------------------------------------------------------------------
    def generations(self) -> list[CheckpointMetadata]:
        """All committed generations of this run, newest first (by sequence number, never by file time)."""
        found = []
        for manifest in self.folder.glob("step-*.json"):
            if not _NAME.fullmatch(manifest.name):
                continue
            try:
                metadata = CheckpointMetadata.from_text(manifest.read_text(encoding="utf-8"))
            except FileNotFoundError:  # deleted while this thread was looking
                continue
            except (UnicodeDecodeError, CheckpointError) as error:
                logger.warning("checkpoint manifest %s is unreadable and left aside: %s", manifest.name, error)
                continue
            if metadata.run_id == self.run_id and metadata.file == manifest.with_suffix(".ckpt").name:
                found.append(metadata)
        return sorted(found, key=lambda item: item.sequence, reverse=True)

    def newest(self) -> CheckpointMetadata | None:
        """The newest generation whose bytes verify; damaged ones are named in the log and passed over."""
        for metadata in self.generations():
            problem = self.problem_of(metadata)
            if problem is None:
                return metadata
            logger.warning("checkpoint %s is not used: %s", metadata.file, problem)
        return None

    def best(self) -> CheckpointMetadata | None:
        """The generation with the lowest validation loss; the earlier one where two are equal."""
        rated = [item for item in self.generations() if item.val_loss is not None]
        return min(rated, key=lambda item: (item.val_loss, item.sequence)) if rated else None

    def problem_of(self, metadata: CheckpointMetadata) -> str | None:
        """What is wrong with a generation's file, or None where size and SHA-256 agree with its manifest."""
        path = self.folder / metadata.file
        if metadata.format_version > FORMAT_VERSION:
            return f"it has format version {metadata.format_version}, this package reads up to {FORMAT_VERSION}"
        if not path.is_file():
            return "the file is missing"
        if path.stat().st_size != metadata.size:
            return f"it has {path.stat().st_size} bytes instead of {metadata.size}"
        if sha256_of(path) != metadata.sha256:
            return "its SHA-256 differs from the manifest"
        return None

    def load(self, path: str | Path) -> dict[str, Any]:
        """Read a checkpoint of this run: the bytes that were verified are the bytes that are loaded.

        Raises:
            CheckpointError: no manifest, a hash that differs, content beyond tensors and plain types, or the variable
                TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD, under which torch would run code from the file.
        """
        refuse_unsafe_loading()
        target = self._own(path)
        metadata = next((item for item in self.generations() if item.file == target.name), None)
        if metadata is None:
            raise CheckpointError(
                f"{target.name} has no manifest of this run ({self.run_id}): it was not finished, or it is foreign."
            )
        if not target.is_file():
            raise CheckpointError(f"{target.name} is missing.")
        raw = target.read_bytes()
        if hashlib.sha256(raw).hexdigest() != metadata.sha256:
            raise CheckpointError(f"{target.name} is damaged: its SHA-256 differs from the manifest.")
        return without_paths(torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True))

    # ---- own files --------------------------------------------------------------------------------------------------
    def _own(self, path: str | Path) -> Path:
        target = Path(path)
        if target.resolve().parent != self.folder or not _NAME.fullmatch(target.name):
            raise CheckpointError(f"{target} is no checkpoint of the folder {self.folder}.")
        return self.folder / target.name

    def _prune(self) -> None:
        generations = self.generations()
        best = self.best()
        kept = {item.file for item in generations[: self.keep]} | ({best.file} if best else set())
        for metadata in generations:
            if metadata.file not in kept:
                try:
                    self._delete(metadata)
                except OSError as error:  # one too many is no reason to lose what was just saved
                    logger.warning("checkpoint %s cannot be deleted: %s", metadata.file, error)

    def _delete(self, metadata: CheckpointMetadata) -> None:
        path = self._own(self.folder / metadata.file)
        path.with_suffix(".json").unlink(missing_ok=True)  # first: no manifest without a file
        path.unlink(missing_ok=True)

    def _remove_orphans(self) -> None:
        """Delete what a killed save left: temporary files, checkpoints without a manifest, and the other way round."""
        names = {path.name for path in self.folder.iterdir() if path.is_file() and not path.is_symlink()}
        for name in names:
            other = name[:-5] + {".ckpt": ".json", ".json": ".ckpt"}.get(name[-5:], "")
            if _TEMPORARY.fullmatch(name) or (_NAME.fullmatch(name) and other not in names):
                (self.folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _no_second_checksum() -> Iterator[None]:
    """Have torch write its archive without CRC-32, which takes longer than SHA-256 beside the writing and proves less.

    `torch.load` does not look at it; a program for archives in general says that the checksum is wrong.
    """
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


class _HashingWriter(io.RawIOBase):
    """Passes bytes on and hashes them meanwhile. torch writes archives front to back, so the hash is the file's.

    Hashing takes as long as writing; both let go of the interpreter, so that what was written is hashed beside the writing of
    what comes next. The disk is slower than both: it begins with the first megabytes, so that the fsync at the end finds little
    left to do.
    """

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self.digest, self.size, self._stream = hashlib.sha256(), 0, stream
        self.error: OSError | None = None
        self._hasher, self._flusher = (
            ThreadPoolExecutor(1, thread_name_prefix=f"checkpoint-{work}") for work in ("hash", "flush")
        )
        self._gathered = bytearray()  # waits to be hashed: a copy, for torch changes what it gave once `write` returns
        self._hashing: deque[Future[None]] = deque()
        self._flushing: Future[None] | None = None
        self._unflushed = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, view.nbytes, PIECE):
            self._pass_on(view[start : start + PIECE])
        return view.nbytes

    def settle(self) -> None:
        """Have everything hashed, and wait for the disk as far as it was asked; raises `OSError` where it refused."""
        self._hash_beside()
        while self._hashing:
            self._hashing.popleft().result()
        if self._flushing is not None:
            self._flushing.result()

    def close(self) -> None:
        """End the threads; the stream stays open."""
        self._hasher.shutdown()
        self._flusher.shutdown()
        super().close()

    def _pass_on(self, piece: memoryview) -> None:
        try:
            self._stream.write(piece)
            self._flush_beside(piece.nbytes)
        except OSError as error:
            self.error = error
            raise
        self._gathered += piece
        self.size += piece.nbytes
        if len(self._gathered) >= PIECE:
            self._hash_beside()

    def _hash_beside(self) -> None:
        self._hashing.append(self._hasher.submit(self.digest.update, self._gathered))
        self._gathered = bytearray()
        if len(self._hashing) > MOST_WAITING:
            self._hashing.popleft().result()

    def _flush_beside(self, written: int) -> None:
        """Have the disk begin; raises what an earlier flush met, since a disk tells each error only once."""
        self._unflushed += written
        if self._unflushed < FLUSHED_BESIDE or not hasattr(os, "fdatasync"):  # neither macOS nor Windows has it
            return
        if self._flushing is None or self._flushing.done():
            if self._flushing is not None:
                self._flushing.result()
            self._unflushed = 0
            self._flushing = self._flusher.submit(os.fdatasync, self._stream.fileno())


class CheckpointManager:
    """Checkpoints of an experiment, locally and on Google Drive, for any `pytorch_lightning.Trainer`.

    Local disk is the truth; `drive_path` gets a verified copy of each generation in the background. On a new machine the
    experiment comes back from there.

    Args:
        experiment_name: folder name of the experiment.
        drive_path: folder that mirrors are kept in, such as "/content/drive/MyDrive/checkpoints"; None mirrors nothing.
        local_dir: folder of the experiments on the local disk.
        keep: newest generations that are kept.
        save_every_n_epochs, save_every_n_steps, save_every_n_minutes: as in `TrainingConfig`.
        files: file system of the mirror; None takes the real one.

    Raises:
        ConfigError: a name that is none for a folder, or a Google Drive that is not mounted.
        TrainingError: the experiment is not on the local disk and the mirror cannot be read.

    Example:
        >>> manager = CheckpointManager("notes", drive_path="/content/drive/MyDrive/checkpoints")
        >>> trainer = pytorch_lightning.Trainer(callbacks=[manager.get_checkpoint_callback()])
        >>> trainer.fit(lit, module, ckpt_path=manager.latest_path, weights_only=True)   # goes on where it was
        >>> manager.sync_to_drive().summary()
    """

    def __init__(
        self,
        experiment_name: str,
        drive_path: str | Path | None = None,
        *,
        local_dir: str | Path = "checkpoints",
        keep: int = 2,
        save_every_n_epochs: int = 1,
        save_every_n_steps: int | None = None,
        save_every_n_minutes: float = 10.0,
        files: FileSystem | None = None,
    ) -> None:
        from utils.training.run_folder import open_experiment
        from utils.training.training_config import TrainingConfig

        self.config = TrainingConfig(
            run_name=experiment_name,
            keep_checkpoints=keep,
            save_every_n_epochs=save_every_n_epochs,
            save_every_n_steps=save_every_n_steps,
            save_every_n_minutes=save_every_n_minutes,
        )
        self.config.validate()
        self.experiment_name, self.drive_path, self._files = experiment_name, drive_path, files
        self.path = Path(local_dir).expanduser() / experiment_name
        self.run_id = open_experiment(self.path, drive_path, files)
        self._mirror: Mirror | None = None
        self.store = CheckpointStore(self.path / "checkpoints", self.run_id, keep, tidy=False)

    def get_checkpoint_callback(self) -> Callback:
        """The callback that saves; give it to the trainer as its last one.

        Raises:
            TrainingError: another process saves into this experiment.
        """
        from utils._extras import require

        require("pytorch_lightning", extra="training", feature="A checkpoint callback")
        from utils.training.engine.resume import GenerationSaver
        from utils.training.run_folder import lock_experiment

        lock_experiment(self.path)
        self.store = CheckpointStore(self.store.folder, self.run_id, self.config.keep_checkpoints)
        if self.drive_path is not None:
            self.store.on_commit = self._offer
        return GenerationSaver(self.store, self.config)

    @property
    def latest_path(self) -> str | None:
        """The newest checkpoint that verifies, for `ckpt_path=`; None where there is none."""
        newest = self._newest()
        return None if newest is None else str(self.store.folder / newest.file)

    def load_latest_checkpoint(self, model: nn.Module | None = None) -> dict[str, Any] | None:
        """The newest checkpoint that verifies, from the local disk or the mirror; None where there is none.

        Args:
            model: gets the weights: the Lightning module that was trained.

        Raises:
            CheckpointError: the weights are those of another model.
        """
        from utils.training.engine.foreign import weights_for

        newest = self._newest()
        if newest is None:
            return None
        checkpoint = self.store.load(self.store.folder / newest.file)
        if model is not None:
            model.load_state_dict(weights_for(model, checkpoint["state_dict"], newest.file))
        return checkpoint

    def sync_to_drive(self, timeout: float = 300.0, progress: ProgressCallback = ignore_progress) -> MirrorStatus:
        """Wait until the newest checkpoint is safe on the mirror.

        Args:
            timeout: seconds to wait at most.
            progress: called with bytes copied, bytes in total and a note.

        Returns:
            How far it came: what is safe, and what went wrong.

        Raises:
            ConfigError: there is no `drive_path`, or it lies on a Drive that is not mounted.
        """
        if self.drive_path is None:
            raise ConfigError("There is nowhere to copy to: pass CheckpointManager(experiment_name, drive_path=...).")
        newest = self.store.newest()
        if newest is not None:
            self._offer(newest)
        mirror, self._mirror = self._running_mirror(), None  # the next checkpoint begins another one
        return mirror.close(timeout, progress)

    def _newest(self) -> CheckpointMetadata | None:
        from utils.training.run_mirror import top_up

        if self.drive_path is not None:
            top_up(self.store, self.experiment_name, self.drive_path, self._files)
        return self.store.newest()

    def _offer(self, metadata: CheckpointMetadata) -> None:
        self._running_mirror().offer(metadata)

    def _running_mirror(self) -> Mirror:
        from utils.training.engine.mirror import Mirror

        assert self.drive_path is not None
        if self._mirror is None:
            self._mirror = Mirror(self.store, self.path, self.drive_path, self._files)
        return self._mirror


def without_paths(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint without the states of callbacks that name paths (Lightning's `ModelCheckpoint`): none is trusted."""
    callbacks = checkpoint.get("callbacks")
    if isinstance(callbacks, dict):
        for key in [key for key, state in callbacks.items() if _names_paths(state)]:
            del callbacks[key]
    return checkpoint


def _names_paths(state: Any) -> bool:
    return isinstance(state, Mapping) and any(str(key).endswith("path") for key in state)


def refuse_unsafe_loading() -> None:
    """Load nothing while a variable makes torch run code from files.

    Raises:
        CheckpointError: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set.
    """
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0").lower() not in ("", "0", "n", "no", "false"):
        raise CheckpointError(
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: loading could run code from the file. Unset it first."
        )


def changed_environment(versions: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """What of the environment that wrote a checkpoint is another one now: name → (before, now)."""
    now = environment()
    return {name: (before, now[name]) for name, before in versions.items() if name in now and now[name] != before}


def environment() -> dict[str, str]:
    """Versions on which bit-exact resume depends."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        **_installed(),
    }


@functools.cache
def _installed() -> dict[str, str]:
    """Versions of the packages that take part; asked once, because reading their metadata takes as long as a small save."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("pytorch-lightning", "transformers", "tokenizers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
