"""Where metrics go besides our own files: Weights & Biases and TensorBoard. Knows names, numbers and steps, no training.

W&B is offline unless a key is there, so that nothing ever asks for a login. A key is read from the environment, Colab's secrets
or a netrc file, handed to the client in memory, and never written by us. What the client cannot do is said once, as a warning:
tracking never ends a training.
"""

from __future__ import annotations

import base64
import json
import logging
import netrc
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from utils._extras import require
from utils.errors import ConfigError
from utils.training.setting_problems import expected_project

logger = logging.getLogger(__name__)

USUAL_PROJECT = "transformer-builder"
"""Project on Weights & Biases, where a run is wanted there and none is named."""

KEY = "WANDB_API_KEY"
"""Name of the environment variable, and of the secret in Colab, that holds the key."""
STEP = "step"
"""Name of the axis over which everything is drawn: optimizer steps (epochs for `MetricsTracker`)."""
ASK_SECONDS, START_SECONDS, FINISH_SECONDS = 6.0, 30.0, 60.0
"""How long W&B's server may take to answer at all, to begin a run, and to take the rest of it at the end."""
_DEFAULT_HOST = "https://api.wandb.ai"

Row = Mapping[str, float]
"""Names and numbers of one step; `STEP` among them."""


class Sink(Protocol):
    """Something that takes rows. No method raises: what cannot be done is a warning."""

    def log(self, rows: Iterable[Row]) -> None:
        """Take rows in the order of their steps."""

    def finish(self, succeeded: bool = True) -> None:
        """Take no more. A second call does nothing."""


# ---- which way to go ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class WandbMode:
    """How W&B is used, and why.

    Attributes:
        mode: "online", "offline" or "disabled".
        reason: in words.
        key: given to the client in memory; None where it is not needed.
    """

    mode: str
    reason: str
    key: str | None = field(default=None, repr=False)


def choose_mode(
    environ: Mapping[str, str] = os.environ, secret: Callable[[str], str | None] | None = None
) -> WandbMode:
    """Online where a key exists, else offline; WANDB_MODE and WANDB_DISABLED are obeyed.

    Args:
        environ: environment variables.
        secret: gives a secret of the notebook by name, or None; None asks Colab where there is one.
    """
    asked = environ.get("WANDB_MODE", "").strip().lower()
    if environ.get("WANDB_DISABLED", "").strip().lower() in ("1", "true", "yes") or asked == "disabled":
        return WandbMode("disabled", "WANDB_DISABLED or WANDB_MODE says so")
    if asked in ("offline", "dryrun"):
        return WandbMode("offline", f"WANDB_MODE={asked}")
    if key := environ.get(KEY, "").strip():
        return WandbMode("online", f"key from the environment variable {KEY}", key)
    if key := ((colab_secret if secret is None else secret)(KEY) or "").strip():
        return WandbMode("online", f"key from the Colab secret {KEY}", key)
    if left := _in_netrc(environ):
        return WandbMode("online", "key from the netrc file", left)
    return WandbMode("offline", f"no key: set the environment variable or Colab secret {KEY} to log online")


def colab_secret(name: str) -> str | None:
    """A secret of Colab's user; None outside Colab, where there is none, and where it is not granted."""
    try:
        from google.colab import userdata
    except ImportError:
        return None
    try:
        return str(userdata.get(name))
    except Exception as error:  # noqa: BLE001 - not granted, not found and no front end have no common base there
        logger.info("the Colab secret %s is not available (%s)", name, type(error).__name__)
        return None


def _in_netrc(environ: Mapping[str, str]) -> str | None:
    """The key that an earlier `wandb login` left, read as the client reads it."""
    host = urlsplit(_server(environ)).netloc
    named = environ.get("NETRC")
    places = [Path(named)] if named else [Path("~/.netrc"), Path("~/_netrc")]
    for place in places:
        try:
            found = netrc.netrc(place.expanduser()).authenticators(host)
            return None if found is None else found[2]
        except FileNotFoundError:
            continue
        except (netrc.NetrcParseError, OSError, RuntimeError) as error:  # RuntimeError: no home folder
            logger.warning("%s cannot be read, so no key is taken from it: %s", place, type(error).__name__)
    return None


def _server(environ: Mapping[str, str] = os.environ) -> str:
    return environ.get("WANDB_BASE_URL", "").strip().rstrip("/") or _DEFAULT_HOST


def refusal_of(server: str, key: str, seconds: float = ASK_SECONDS) -> str | None:
    """Why the server will not take runs with this key, in words; None where it will. Waits `seconds` at most.

    The client itself would wait longer, and an id whose run it failed to begin stays taken in its process.
    """
    answer = [f"{server} did not answer within {seconds:g} s"]
    asking = threading.Thread(target=lambda: answer.append(_ask(server, key, seconds)), daemon=True)
    asking.start()
    asking.join(seconds)  # a name that is not resolved waits beyond the time limit of a socket
    return answer[-1] or None


def _ask(server: str, key: str, seconds: float) -> str:
    """One question for the owner of the key; empty where there is one."""
    pair = base64.b64encode(f"api:{key}".encode()).decode()
    headers = {"Authorization": f"Basic {pair}", "Content-Type": "application/json"}
    question = json.dumps({"query": "query Viewer { viewer { id } }"}).encode()
    try:
        request = urllib.request.Request(f"{server}/graphql", question, headers)
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=seconds) as response:
            found = json.loads(response.read(1 << 16))
        return "" if found["data"]["viewer"] else f"{server} does not know the key"
    except urllib.error.HTTPError as error:
        return f"{server} does not know the key" if error.code in (401, 403) else f"{server} answers {error.code}"
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"{server} cannot be reached ({type(error).__name__})"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to the server that was named, and to no other."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


# ---- Weights & Biases -----------------------------------------------------------------------------------------------
class WandbSink:
    """One run on Weights & Biases. It is a run of its own: a run that the person has open is left alone.

    Args:
        folder: where the client keeps its files (below `wandb/`); `wandb sync` sends those of an offline run later.
        project: name of the project.
        run_id: the same id continues the same run.
        name, notes, config: what W&B shows beside the curves; `config` holds plain values.
        mode: None chooses.
        group: name of the group that W&B shows the run in.

    Raises:
        MissingPackageError: `wandb` is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        project: str,
        run_id: str,
        name: str | None = None,
        notes: str = "",
        config: Mapping[str, Any] | None = None,
        mode: WandbMode | None = None,
        group: str | None = None,
    ) -> None:
        self._wandb = require("wandb", extra="tracking", feature="Logging to Weights & Biases")
        self.folder, self.project, self.run_id = Path(folder).resolve(), project, run_id
        self._arguments = {"name": name, "notes": notes or None, "config": dict(config or {}), "group": group}
        self.mode = choose_mode() if mode is None else mode
        self._run: Any = None
        if self.mode.mode != "disabled":
            self._run = self._begin()

    @property
    def address(self) -> str | None:
        """Page of the run; None offline."""
        return getattr(self._run, "url", None)

    def log(self, rows: Iterable[Row]) -> None:
        """Take rows in the order of their steps."""
        if self._run is None:
            return
        try:
            for row in rows:
                self._run.log(dict(row))
        except Exception as error:  # noqa: BLE001 - whatever the client raises, training goes on
            logger.warning("W&B takes no more (%s); the run's own files go on", _first_line(error))
            self.finish(False)

    def finish(self, succeeded: bool = True) -> None:
        """End the run, so that nothing else is logged into it. A second call does nothing."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish(exit_code=0 if succeeded else 1)
        except Exception as error:  # noqa: BLE001 - whatever the client raises, training goes on
            logger.warning("W&B did not end the run cleanly: %s", _first_line(error))
        if self.mode.mode == "offline":
            logger.info("W&B run %s is offline; `wandb sync %s` sends it", self.run_id, Path(str(run.dir)).parent)

    def _begin(self) -> Any:
        """The run as chosen, else offline, else None; never a question to the person."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for mode, run_id in self._ways():
            try:
                run = self._open(mode, run_id)
            except Exception as error:  # noqa: BLE001 - whatever the client raises, training goes on
                text = _first_line(error).replace(mode.key or "\0", "…")
                logger.warning("W&B cannot begin a run %s: %s", mode.mode, text)
            else:
                self.mode, self.run_id = mode, run_id
                logger.info("W&B: %s (%s)", mode.mode, mode.reason)
                return run
        self.mode = WandbMode("disabled", "W&B failed to start")
        return None

    def _ways(self) -> list[tuple[WandbMode, str]]:
        """Modes to try, with the id of the run in each."""
        if self.mode.mode != "online":
            return [(self.mode, self.run_id)]
        refusal = refusal_of(_server(), self.mode.key or "")
        if refusal is not None:
            logger.warning("W&B: %s; the run is kept offline", refusal)
            return [(WandbMode("offline", refusal), self.run_id)]
        last = WandbMode("offline", "W&B's server failed to begin the run")
        return [(self.mode, self.run_id), (last, f"{self.run_id}-offline")]  # the client keeps the first id taken

    def _open(self, way: WandbMode, run_id: str) -> Any:
        wandb = self._wandb
        wanted = {
            "mode": way.mode,
            "api_key": way.key,
            "init_timeout": START_SECONDS,
            "finish_timeout": FINISH_SECONDS,
            "console": "off",  # what a cell prints is not ours to send
            "silent": True,
            "disable_git": True,
            "disable_code": True,
        }
        known = {name: value for name, value in wanted.items() if name in wandb.Settings.model_fields}
        run = wandb.init(
            dir=str(self.folder),
            project=self.project,
            id=run_id,
            resume="allow" if way.mode == "online" else None,  # offline the id alone says which run it is
            reinit="create_new",  # beside a run that the person has open
            settings=wandb.Settings(**known),
            **self._arguments,
        )
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        return run


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")


# ---- TensorBoard ----------------------------------------------------------------------------------------------------
class TensorBoardSink:
    """Event files for TensorBoard.

    Args:
        folder: where they go.
        first_step: what lies there from this step on is taken back: a resumed run writes it anew.

    Raises:
        MissingPackageError: `tensorboard` is not installed.
    """

    def __init__(self, folder: str | Path, first_step: int = 0) -> None:
        require("tensorboard", extra="tracking", feature="Logging for TensorBoard")
        from torch.utils.tensorboard import SummaryWriter

        self.folder = Path(folder)
        self._writer: Any = SummaryWriter(str(self.folder), purge_step=first_step)

    def log(self, rows: Iterable[Row]) -> None:
        """Take rows in the order of their steps."""
        if self._writer is None:
            return
        try:
            for row in rows:
                for name, value in row.items():
                    if name != STEP:
                        self._writer.add_scalar(name, value, int(row[STEP]))
            self._writer.flush()
        except OSError as error:
            logger.warning("TensorBoard's files cannot be written (%s); the run's own files go on", error)
            self.finish(False)

    def finish(self, succeeded: bool = True) -> None:
        """Close the files. A second call does nothing."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close()
        except OSError as error:
            logger.warning("TensorBoard's last events are lost: %s", error)


# ---- both -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Destination:
    """Where one run is logged to, settled before it begins; opened when the first step is near.

    Attributes:
        folder: of the run.
        run_id: of the run; a resumed run has the same one.
        project: of W&B; None does not log there.
        tensorboard: whether event files are written.
        name, notes, config, group: as for `WandbSink`.
    """

    folder: Path
    run_id: str
    project: str | None = None
    tensorboard: bool = False
    name: str | None = None
    notes: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    group: str | None = None

    def check(self) -> None:
        """Say now what is missing, not after hours.

        Raises:
            MissingPackageError: a package is not installed. ConfigError: the project has no name that W&B takes.
        """
        if self.project is not None:
            require("wandb", extra="tracking", feature="Logging to Weights & Biases")
            expected = expected_project(self.project)
            if expected is not None:
                raise ConfigError(f"wandb_project={self.project!r}: expected {expected}")
        if self.tensorboard:
            require("tensorboard", extra="tracking", feature="Logging for TensorBoard")

    def open(self, first_step: int) -> list[Sink]:
        """Begin, or continue from a step on."""
        sinks: list[Sink] = []
        if self.project is not None:
            shown = {"name": self.name, "notes": self.notes, "config": self.config, "group": self.group}
            sinks.append(WandbSink(self.folder, self.project, self.run_id, **shown))  # type: ignore[arg-type]
        if self.tensorboard:
            sinks.append(TensorBoardSink(self.folder / "tensorboard", first_step))
        return sinks
