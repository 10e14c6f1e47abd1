"""An exported folder on the Hugging Face Hub: what would go up, and the sending of it. Private unless said otherwise.

Only files that an export's own manifest lists are sent, each with the hash that it was exported with, and the card beside
them. Leaves writing those to `bundle`, `hf_folder` and `model_card`. No token is ever written, logged or part of a message.
"""

from __future__ import annotations

import contextlib
import html
import importlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from utils._extras import require
from utils._files import json_text, sha256_of
from utils._pages import render
from utils._tables import html_table, text_table
from utils.errors import ConfigError, HubError
from utils.export.formats import MANIFEST
from utils.export.hf_runner import FACTS_FILE
from utils.export.model_card import CARD_FILE, CARD_FILES
from utils.training.secrets import unmistakable_secret_in
from utils.training.tracking import colab_secret

TOKEN_NAME = "HF_TOKEN"
_OF_TRANSFORMERS = "hf/"
"""A bundle's folder for transformers; its files go to the top of the repository, where `from_pretrained` looks for them."""

_REST = "bundle/"
"""Where the bundle's other files then lie: both bring a config, a tokenizer and weights, under the same names."""

_REST_TEMPLATE = Path(__file__).with_name("templates") / "hub" / "rest.md.j2"

_TEXTS = {".py", ".json", ".md", ".txt", ".yaml", ".yml", ".svg", ".jinja", ".html"}
_LARGEST_TEXT = 64 * 2**20
_COLUMNS = ("file", "size")

_ADVICE = {
    400: "The Hub does not accept the request: {said}",
    401: "The Hub does not accept the token. Make one with write access at https://huggingface.co/settings/tokens and pass it as "
    "token=, as HF_TOKEN in the environment, or under Secrets (the key symbol) in Colab.",
    403: "The token may not write to {repo}. It needs write access, and you must be a member of an organisation to write there.",
    404: "There is no {repo} that this token can see: check the name of the user or organisation, and of the branch.",
    409: "{repo} was changed by somebody else at the same time. Call push_to_hub again.",
    413: "A file is larger than the Hub takes.",
    429: "The Hub takes no more requests from you for now{wait}. Try again later.",
}


Content = bytes  # `Upload.bytes` takes the name within the class


@dataclass(frozen=True)
class Upload:
    """One file of the repository.

    Attributes:
        name: in the repository.
        path: where it lies here.
        content: what is sent, where that is not the file as it lies here.
    """

    name: str
    path: Path
    content: Content | None = field(default=None, repr=False)

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.path.stat().st_size if self.content is None else len(self.content)

    @property
    def sent(self) -> str | Content:
        """What the Hub's client is given: the content, or the file's path."""
        return str(self.path) if self.content is None else self.content

    @property
    def text(self) -> str:
        """What is sent, as text."""
        raw = self.path.read_bytes() if self.content is None else self.content
        return raw.decode("utf-8", errors="replace")


@dataclass(frozen=True)
class Push:
    """What went up, or would.

    Attributes:
        repo_id: "owner/name", or "name" for your own account where nothing was asked yet.
        private: whether the repository is.
        revision: branch.
        uploads: the files.
        commit_message: of the one commit that holds them.
        dry_run: whether nothing was sent.
        url: of the commit; empty for a dry run.
    """

    repo_id: str
    private: bool
    revision: str
    uploads: tuple[Upload, ...]
    commit_message: str
    dry_run: bool = True
    url: str = ""

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(upload.bytes for upload in self.uploads)

    @property
    def title(self) -> str:
        """What happened, in a sentence."""
        visible = "private" if self.private else "PUBLIC"
        size = f"{len(self.uploads)} files, {self.total_bytes / 1e6:.2f} MB"
        where = f"the {visible} repository {self.repo_id}, branch {self.revision}"
        return f"Would send {size} to {where}" if self.dry_run else f"Sent {size} to {where}: {self.url}"

    def _rows(self) -> list[tuple[str, str]]:
        return [(upload.name, f"{upload.bytes:,} B") for upload in self.uploads]

    def summary(self) -> str:
        """Target and files as text."""
        return text_table(_COLUMNS, self._rows(), title=self.title)

    def _repr_html_(self) -> str:
        return f"<h4>{html.escape(self.title)}</h4>" + html_table(_COLUMNS, self._rows())


def push_to_hub(
    folder_or_bundle: Any,
    repo_id: str,
    private: bool = True,
    token: str | None = None,
    dry_run: bool = False,
    revision: str = "main",
    commit_message: str | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> Push:
    """Send an exported folder to a repository of the Hugging Face Hub, in one commit.

    Args:
        folder_or_bundle: what `export` gave, its folder, or a folder that `write_hf_folder` wrote.
        repo_id: "owner/name", or "name" for your own account; made where it is not there.
        private: of the repository. One that is public already is refused while this is True.
        token: with write access. None takes that of Colab's Secrets, of HF_TOKEN, or of `hf auth login`, in this order.
        dry_run: send nothing, ask nobody, and say what would go up.
        revision: branch; made where it is not there.
        commit_message: None writes one.
        progress: called with (bytes done, bytes in total, note).

    Raises:
        ConfigError: the folder is no export, has been changed since, or holds a key; or the name is no name of a repository.
        HubError: the Hub refuses or cannot be reached; the message says why and what to do.

    Example:
        >>> print(push_to_hub("exports/run", "me/my-model", dry_run=True).summary())
    """
    require("huggingface_hub", extra="training", feature="push_to_hub")
    _check_name(repo_id)
    uploads = tuple(planned(folder_or_bundle))
    message = commit_message or f"Export of {len(uploads)} files by transformer-builder-colab"
    plan = Push(repo_id, private, revision, uploads, message)
    if dry_run:
        _refuse_secrets(uploads, token)
        return plan
    secret = token or _token()
    _refuse_secrets(uploads, secret)
    with _explained(repo_id, secret):
        return _send(plan, secret, progress)


# ---- what goes up ---------------------------------------------------------------------------------------------------
def planned(folder_or_bundle: Any) -> Iterator[Upload]:
    """The files that would go up, by name.

    A bundle with a folder for transformers is a repository that `from_pretrained` loads: that folder's files lie on top,
    and all others below `bundle/`, with a manifest of their own that the self-test there reads.

    Raises:
        ConfigError: no export, or one whose files have been changed or lost.
    """
    root = Path(getattr(folder_or_bundle, "out", folder_or_bundle))
    if not root.is_dir():
        raise ConfigError(f"push_to_hub takes what export() gave, or its folder; there is no folder {root}.")
    manifest = next((name for name in (MANIFEST, FACTS_FILE) if (root / name).is_file()), None)
    if manifest is None:
        raise ConfigError(
            f"{root} is no exported folder: it has neither {MANIFEST} nor {FACTS_FILE}. Export first; other folders are not "
            "sent, since nothing says what may leave them."
        )
    entries = _entries(root / manifest)
    names = [manifest, *(name for name in CARD_FILES if name not in entries and (root / name).is_file())]
    uploads = [Upload(name, _checked(root, name, entries.get(name))) for name in [*names, *entries]]
    if any(name.startswith(_OF_TRANSFORMERS) for name in entries):
        uploads = _transformers_on_top(uploads)
    yield from sorted(uploads, key=lambda upload: upload.name)


def _transformers_on_top(uploads: Sequence[Upload]) -> list[Upload]:
    """The same files, placed as `planned` says; the card on top tells where the others are."""
    placed = []
    for upload in uploads:
        name = upload.name.removeprefix(_OF_TRANSFORMERS)
        if name != upload.name and name == CARD_FILE:
            placed.append(Upload(name, upload.path, f"{upload.text.rstrip()}\n\n{_where_the_rest_lies()}".encode()))
        elif name != upload.name:
            placed.append(replace(upload, name=name))
        elif name == MANIFEST:
            placed.append(Upload(_REST + name, upload.path, _manifest_of_the_rest(upload.text).encode()))
        else:
            placed.append(replace(upload, name=_REST + name))
    return placed


def _where_the_rest_lies() -> str:
    return render(_REST_TEMPLATE, folder=_REST, moved=_OF_TRANSFORMERS)


def _manifest_of_the_rest(text: str) -> str:
    """A bundle's manifest without its folder for transformers, which has a list of its own (export.json)."""
    content = json.loads(text)
    content["files"] = [entry for entry in content["files"] if not entry["name"].startswith(_OF_TRANSFORMERS)]
    content.get("formats", {}).pop("hf", None)
    return json_text(content)


def _entries(path: Path) -> dict[str, str]:
    """File name → SHA-256, as the manifest lists them."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(entry["name"]): str(entry["sha256"]) for entry in content["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no manifest of an export ({type(error).__name__}: {error}). Export anew."
        ) from error


def _checked(root: Path, name: str, digest: str | None) -> Path:
    """The file of a listed name, unchanged and inside the folder."""
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") for part in parts)
    path = root / name
    if hidden or PurePosixPath(name).is_absolute() or root.resolve() not in path.resolve().parents:
        raise ConfigError(
            f"The manifest of {root} lists {name!r}, which is hidden or lies outside of the folder; it is not sent."
        )
    if not path.is_file():
        raise ConfigError(f"{path} is listed in the manifest and is not there. Export anew.")
    if digest is not None and sha256_of(path) != digest:
        raise ConfigError(f"{path} has been changed since it was exported and proven. Export anew.")
    return path


def _refuse_secrets(uploads: tuple[Upload, ...], token: str | None) -> None:
    """Nothing leaves that holds a key: neither the one in use nor one that looks like no other text."""
    for upload in uploads:
        if upload.path.suffix.lower() not in _TEXTS or upload.bytes > _LARGEST_TEXT:
            continue
        text = upload.text
        kind = "the Hugging Face token in use" if token and token in text else unmistakable_secret_in(text)
        if kind is not None:
            raise ConfigError(f"{upload.path} seems to hold {kind}; nothing was sent. Take it out, and make a new one.")


# ---- the way up -----------------------------------------------------------------------------------------------------
def _send(plan: Push, token: str, progress: Callable[[int, int | None, str], None] | None) -> Push:
    from huggingface_hub import CommitOperationAdd, HfApi

    say = progress or (lambda done, total, note: None)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    say(0, plan.total_bytes, f"asking for {plan.repo_id}")
    repo_id = api.create_repo(plan.repo_id, private=plan.private, exist_ok=True).repo_id
    private = bool(api.model_info(repo_id).private)
    if plan.private and not private:
        raise HubError(
            f"{repo_id} is public, and private=True was asked for: nothing was sent. Make it private on the Hub, choose another "
            "name, or pass private=False (--public).",
            "refused",
        )
    if plan.revision != "main":
        api.create_branch(repo_id, branch=plan.revision, exist_ok=True)
    additions = [CommitOperationAdd(upload.name, upload.sent) for upload in plan.uploads]
    done = 0
    with _without_bars():
        for upload, addition in zip(plan.uploads, additions):
            say(done, plan.total_bytes, upload.name)
            api.preupload_lfs_files(repo_id, [addition], revision=plan.revision, free_memory=False)
            done += upload.bytes
        say(done, plan.total_bytes, "commit")
        made = api.create_commit(repo_id, additions, commit_message=plan.commit_message, revision=plan.revision)
    return Push(repo_id, private, plan.revision, plan.uploads, plan.commit_message, False, str(made.commit_url))


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """The Hub's client draws bars of its own; whoever called us has one already."""
    bars = _client("utils")
    were_off = bars.are_progress_bars_disabled()
    bars.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            bars.enable_progress_bars()


@contextlib.contextmanager
def _explained(repo_id: str, token: str) -> Iterator[None]:
    """Turns what the client raises into one sentence without the token."""
    errors = _client("errors")
    try:
        yield
    except (HubError, ConfigError):
        raise
    except (errors.HTTPError, OSError, ValueError, RuntimeError) as error:
        raise _explanation(error, repo_id, token) from error


def _explanation(error: Exception, repo_id: str, token: str) -> HubError:
    errors = _client("errors")
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, errors.HfHubHTTPError):
        cause = cause.__cause__  # what a thread of the upload met
    response = getattr(cause, "response", None)
    if response is not None:
        return _refusal(response, repo_id, token)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError("HF_HUB_OFFLINE is set, so nothing is sent. Unset it and call again.", "offline")
    if isinstance(error, (OSError, errors.HTTPError)):
        return HubError(
            f"The Hub cannot be reached ({type(error).__name__}): check the connection and call push_to_hub again. Nothing was "
            "committed.",
            "unreachable",
        )
    return HubError(f"The Hub does not accept what was sent: {_plain(str(error), token)}", "refused")


def _refusal(response: Any, repo_id: str, token: str) -> HubError:
    status = int(response.status_code)
    said = _plain(response.headers.get("X-Error-Message") or response.text, token)[:300]
    seconds = response.headers.get("Retry-After")
    wait = f" (it asks to wait {seconds} s)" if seconds else ""
    words = _ADVICE.get(status, f"The Hub answered with status {status}: {{said}}")
    kind = "missing" if status == 404 else "unreachable" if status >= 500 else "refused"
    return HubError(words.format(repo=repo_id, said=said, wait=wait), kind)


def _plain(text: str, token: str) -> str:
    return " ".join(text.split()).replace(token, "…")


def _check_name(repo_id: str) -> None:
    try:
        _client("utils").validate_repo_id(repo_id)
    except _client("errors").HFValidationError as error:
        raise ConfigError(f"repo_id={repo_id!r} is no name of a repository, such as 'me/my-model': {error}") from error


def _token() -> str:
    """The token of Colab's Secrets, of the environment or of the Hub's own login.

    Raises:
        HubError: there is none.
    """
    from huggingface_hub import get_token

    found = colab_secret(TOKEN_NAME) or os.environ.get(TOKEN_NAME, "").strip() or get_token()
    if not found:
        raise HubError(
            "There is no token for the Hugging Face Hub. Make one with write access at https://huggingface.co/settings/tokens and "
            "pass it as token=, as HF_TOKEN in the environment, under Secrets (the key symbol) in Colab, or run: hf auth login",
            "refused",
        )
    return str(found)


def _client(name: str) -> Any:
    """A module of the Hub's client."""
    return importlib.import_module(f"huggingface_hub.{name}")
