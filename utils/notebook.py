"""What the notebooks call between the verbs: which model is meant, its code on the page, errors in one line, the way on.

Everything here returns an object with a text and an HTML view. Fetching, completing, checking and training are left to
the packages below; the notebooks' cells hold calls only.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import utils.examples
from utils._files import sha256_of, whole_file
from utils._pages import render
from utils.colab_links import fragment, open_in_colab, pinned
from utils.errors import ConfigError, ExportError, GistIdError, TransformerBuilderError
from utils.loading.gist_reference import looks_like_gist, parse_gist_reference
from utils.progress import ProgressCallback, ignore_progress

if TYPE_CHECKING:
    from utils.adapters.model_adapter import AdaptedModel
    from utils.checks.patching import Patch
    from utils.checks.report import CheckCallback, Report
    from utils.export.bundle import Bundle
    from utils.loading.code_review import CodeReview
    from utils.loading.model_loader import ModelSource

log = logging.getLogger(__name__)

IN_FRAGMENT = re.compile(r"[#&?]gist_id=([0-9A-Za-z]+)(?:&revision=([0-9a-f]{40}))?")
GIST_ADDRESS = re.compile(r"\bgist(?:\.github(?:usercontent)?\.com)?/(?:[\w.-]+/)?([0-9a-f]{20,40})\b")
DRIVE = Path("/content/drive")
"""Where Colab mounts Google Drive."""

MOST_PATCHES = 5
"""Patches that are applied one after the other; more faults than that want a person's look first."""

FRONT_END_SECONDS = 3
"""How long to wait for the browser, which never answers when no page is open."""

READ_ADDRESSES = """(() => {
  const addresses = [window.location.href, document.referrer];
  try { addresses.push(window.parent.location.href); } catch (error) { /* the page is on another origin */ }
  return addresses.join(" ");
})()"""


def in_colab() -> bool:
    """Whether the kernel is Colab's own: its shell class is, which Kaggle's image (built on Colab's) does not share."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "google.colab" in str(type(shell)) and not os.environ.get("KAGGLE_KERNEL_RUN_TYPE")


@dataclass(frozen=True)
class ModelChoice:
    """Which model the notebook works on, and how that was decided.

    Attributes:
        source: what `utils.load_model` takes: a gist id or link as it was given, or the folder of the bundled example.
        gist_id: the id that links carry on; empty for the bundled example and for what is no gist.
        found_in: where the answer was found, e.g. "the form field GIST_ID".
        passed_over: what was also given and is not used; empty in the usual case.
    """

    source: str
    gist_id: str
    found_in: str
    passed_over: str = ""

    @property
    def is_example(self) -> bool:
        """True when nobody named a model, so that the bundled example stands in."""
        return self.source == str(utils.examples.path())

    def summary(self) -> str:
        """One or two sentences for people."""
        if self.is_example:
            return (
                "No model was named, so this is the bundled example export. To check your own, paste the id or link of "
                "your gist into the field GIST_ID above and run the cells again."
            )
        first = f"Model: {self.source} (from {self.found_in})."
        return f"{first} Not used: {self.passed_over}." if self.passed_over else first

    __repr__ = summary

    def _repr_html_(self) -> str:
        return _render("model_choice.html", choice=self)


def find_model(form: str = "", environ: Mapping[str, str] = os.environ) -> ModelChoice:
    """Decide which model the notebook works on.

    The first of these that says something: the link's fragment (`#gist_id=…`, where the front end lets the kernel see
    it; Colab's does not), the environment variable GIST_ID, the gist in which the notebook itself lies, the form field.
    Otherwise it is the bundled example.

    Args:
        form: what the person typed: a gist id, any link to a gist, a folder or a file `model.py`; may be empty.
        environ: environment variables.
    """
    places: dict[str, Callable[[], str]] = {
        "the link": _from_link,
        "the environment variable GIST_ID": lambda: environ.get("GIST_ID", "").strip(),
        "the gist that holds this notebook": lambda: _from_identity(environ),
        "the form field GIST_ID": form.strip,
    }
    for place, look in places.items():
        source = look()
        if source:
            typed = form.strip()
            ignored = f"{typed!r} from the form field GIST_ID" if typed and typed != source else ""
            return ModelChoice(source, gist_id_in(source), place, ignored)
    return ModelChoice(str(utils.examples.path()), "", "the package")


def gist_id_in(text: str) -> str:
    """The gist id that a typed text means; empty where it is a path or nothing that could be a gist."""
    if not text.strip() or not looks_like_gist(text):
        return ""
    try:
        return parse_gist_reference(text).gist_id
    except GistIdError:  # `read` and `load_model` say what is wrong with it
        return ""


def _from_link() -> str:
    """The id in the page's address, where a front end answers and its page shares the address with its outputs."""
    if not in_colab():
        return ""
    from google.colab import errors, output

    try:
        addresses = output.eval_js(READ_ADDRESSES, timeout_sec=FRONT_END_SECONDS)
    except errors.Error as error:
        log.debug("the front end did not tell its address: %s", error)
        return ""
    match = IN_FRAGMENT.search(str(addresses or ""))
    return pinned(match[1], match[2]) if match else ""


def _from_identity(environ: Mapping[str, str]) -> str:
    """The id of the gist in which the notebook lies, as far as the kernel is told the notebook's address."""
    told = [environ.get("COLAB_NOTEBOOK_ID", ""), environ.get("JPY_SESSION_NAME", "")]
    found = next((gist_id for text in told if (gist_id := _gist_in_address(text))), "")
    return found or next((gist_id for path in _session_paths(environ) if (gist_id := _gist_in_address(path))), "")


def _gist_in_address(text: str) -> str:
    match = GIST_ADDRESS.search(unquote(unquote(text)))
    return match[1] if match else ""


def _session_paths(environ: Mapping[str, str]) -> list[str]:
    """Addresses of the open notebooks, from the notebook server inside Colab's own machine; [] elsewhere."""
    host = environ.get("COLAB_JUPYTER_IP", "")
    if not host:
        return []
    address = f"http://{host}:{environ.get('KMP_TARGET_PORT', '9000')}/api/sessions"
    try:
        with urllib.request.urlopen(address, timeout=FRONT_END_SECONDS) as answer:
            sessions = json.load(answer)
    except (OSError, ValueError) as error:
        log.debug("%s did not tell the notebook's address: %s", address, error)
        return []
    return [str(session.get("path", "")) for session in sessions if isinstance(session, dict)]


@dataclass(frozen=True)
class Reading:
    """A model's code as it was fetched, and what reading it told; nothing has run.

    Attributes:
        source: the files with their hashes and where they came from.
        review: imports and risky calls.
    """

    source: ModelSource
    review: CodeReview

    @property
    def revision(self) -> str | None:
        """What pins a gist to what was read; None for local files."""
        return self.source.revision

    def summary(self) -> str:
        """The review, then every file as it came."""
        files = (f"--- {name}\n{text}" for name, text in self.source.files.items())
        return "\n\n".join([f"From {self.source.origin}", self.review.summary(), *files])

    __repr__ = summary

    def _repr_html_(self) -> str:
        return _render("reading.html", reading=self)


def read(choice: ModelChoice) -> Reading:
    """Fetch the code of the chosen model and review it, without running any of it.

    Raises:
        GistError: the gist cannot be had or used.
        ModelLoadError: there is no such file, or its source is no Python.
    """
    from utils.loading.code_review import review_files
    from utils.loading.model_loader import read_source

    source = read_source(choice.source)
    return Reading(source, review_files({name: text for name, text in source.files.items() if name.endswith(".py")}))


@dataclass(frozen=True)
class Mended:
    """What the patches of a report made of a model, one after the other.

    Attributes:
        steps: (check, what was changed), in their order; empty where no check holds a patch.
        report: on the model with all of them.
        diff: from the source as it came to the mended one.
        path: the mended source; None where nothing was changed.
        fresh_weights: whether a patch was about how weights begin, so that they were drawn anew.
    """

    steps: tuple[tuple[str, str], ...]
    report: Report
    diff: str = ""
    path: Path | None = None
    fresh_weights: bool = False

    def summary(self) -> str:
        """The steps, the diff, and what the checks say afterwards."""
        if self.path is None:
            red = self.report.named("fail", "warn")
            return f"No known cure for: {', '.join(red)}." if red else "Nothing to mend."
        steps = [f"  {check}: {cure}" for check, cure in self.steps]
        return "\n".join(
            ["Mended and checked again:", *steps, "", self.diff, f"{self.report.verdict} Saved as {self.path}."]
        )

    __repr__ = summary

    def _repr_html_(self) -> str:
        return _render("mended.html", mended=self)


def mend(
    report: Report,
    path: str | Path = "model_mended.py",
    progress: ProgressCallback = ignore_progress,
    on_check: CheckCallback | None = None,
) -> Mended:
    """Apply the patches of a report one after the other, each on what the one before it left, and write the source.

    The model that was checked stays as it is.

    Args:
        report: what `utils.validate` returned.
        path: file for the mended source.
        progress: told before each check of a mended copy.
        on_check: given each result of it as soon as it is there.
    """
    from utils.checks.report import ignore_check

    steps: list[tuple[str, str]] = []
    first: Patch | None = None
    last: Patch | None = None
    fresh = False
    while len(steps) < MOST_PATCHES:
        check = next((check for check in report.checks if check.patch is not None), None)
        if check is None or check.patch is None:
            break
        first, last = first or check.patch, check.patch
        fresh = fresh or check.patch.fresh_weights
        steps.append((check.name, check.patch.cure))
        report = report.apply(check, progress, on_check or ignore_check)
    if first is None or last is None:
        return Mended((), report)
    whole = dataclasses.replace(last, before=first.before)
    return Mended(tuple(steps), report, whole.diff, whole.save(path), fresh)


def look_inside(adapted: AdaptedModel, wanted: bool) -> Report | Skipped:
    """The analyses of tier 2, where they are wanted: they take longer than the checks."""
    if not wanted:
        return Skipped("Tick LOOK_INSIDE and run this cell again to see attention, attribution and the layers.")
    from utils.tier1_critical_validation import validate

    return validate(adapted, tier=2, progress=True)


@dataclass(frozen=True)
class Skipped:
    """A part that was not asked for, and how to have it."""

    how: str

    def __repr__(self) -> str:
        return self.how


@dataclass(frozen=True)
class Onward:
    """The verdict, and the way to training.

    Attributes:
        verdict: the report's sentence.
        passed: whether the model may go on as it is.
        model: what training.ipynb takes for the same code: the gist's link with its revision; empty for the bundled
            example and for local files.
        link: address of training.ipynb; it carries the gist and its revision.
    """

    verdict: str
    passed: bool
    model: str
    link: str

    def summary(self) -> str:
        """Verdict, link, and what to paste where the link cannot carry the model."""
        paste = f" If it asks for the model, paste {self.model} into GIST_ID." if self.model else ""
        return f"Tier 1 verdict: {self.verdict}\nNext, train it: {self.link}{paste}"

    __repr__ = summary

    def _repr_html_(self) -> str:
        return _render("onward.html", onward=self)


def onward(report: Report, choice: ModelChoice, repository: str, revision: str | None = None) -> Onward:
    """Say the verdict of `report` and link to training.ipynb with the gist of `choice`, pinned to what was checked.

    Args:
        report: what `utils.validate` returned.
        choice: what `find_model` returned.
        repository: address of the repository on github.com; Colab opens training.ipynb from there.
        revision: of the gist as it was read (`Reading.revision`), so that training takes the code that was checked.
    """
    model = pinned(choice.gist_id, revision)
    return Onward(report.verdict, report.passed, model, _training_notebook(repository, choice.gist_id, revision))


def _training_notebook(repository: str, gist_id: str, revision: str | None) -> str:
    """Address of training.ipynb: through Colab in Colab, the file beside this notebook elsewhere."""
    if in_colab():
        return open_in_colab(repository, "training.ipynb", gist_id, revision)
    return f"training.ipynb{fragment(gist_id, revision)}"


def drive_folder(wanted: bool) -> str | None:
    """Mount Google Drive where that is wanted, and name the folder on it in which runs are mirrored.

    A cell of its own must call it: Colab asks for consent, and waits.

    Args:
        wanted: the form's tick; without it nothing is mounted and nothing is mirrored.

    Raises:
        ConfigError: this is not Colab, or Drive was not mounted.
    """
    if not wanted:
        return None
    if not in_colab():
        raise ConfigError(
            "Google Drive can be mounted in Colab only. Untick SAVE_TO_GOOGLE_DRIVE; a folder of your own is given to "
            "utils.TrainingConfig(mirror_dir=...)."
        )
    from google.colab import drive

    try:
        drive.mount(str(DRIVE))
    except (ValueError, OSError) as error:  # refused, timed out
        raise ConfigError(
            f"Google Drive was not mounted ({error}). Run the cell again and allow it, or untick SAVE_TO_GOOGLE_DRIVE."
        ) from error
    own = next((DRIVE / name for name in ("MyDrive", "My Drive") if (DRIVE / name).is_dir()), DRIVE / "MyDrive")
    return str(own / "transformer-builder")


def hand_over(bundle: Bundle, download: bool = False, mirror: str | Path | None = None) -> str:
    """Pack an export into one file; send it to the browser where that is wanted, and copy it to Drive. Says where it is.

    Args:
        bundle: what `utils.export` gave.
        download: the form's tick; for Colab.
        mirror: what `drive_folder` gave, or another folder that outlives this machine; None: no copy. The copy's name ends
            with the beginning of its SHA-256, so that none replaces another.

    Raises:
        ConfigError: a download was asked for and this is not Colab.
        ExportError: the copy cannot be written; the packed file is whole all the same.
    """
    packed = bundle.zip()
    told = f"{packed} ({packed.stat().st_size / 1e6:.1f} MB)"
    if download and not in_colab():
        raise ConfigError(f"A download is for Colab; here the file lies on your disk already: {told}.")
    if download:
        from google.colab import files

        files.download(str(packed))
        told += " is on its way to your computer. Keep this tab open until it is there."
    else:
        told += " holds everything."
        told += " Tick DOWNLOAD and run this cell again to send it to your computer." if in_colab() else ""
    return told if mirror is None else f"{told} A copy lies in {_copied(packed, Path(mirror))}."


def _copied(packed: Path, folder: Path) -> Path:
    """A copy of the file in that folder, completely or not at all."""
    target = folder / f"{packed.stem}-{sha256_of(packed)[:8]}{packed.suffix}"
    try:
        with packed.open("rb") as source, whole_file(target) as stream:
            shutil.copyfileobj(source, stream, 1 << 20)
    except OSError as error:
        raise ExportError(
            f"{packed} could not be copied to {folder} ({error}). It is whole where it lies; look whether the folder is there and "
            "has room, and run this cell again."
        ) from error
    return target


def finish_drive(folder: str | None) -> str:
    """Send everything to Drive and unmount it, at the very end; says what was done.

    Args:
        folder: what `drive_folder` gave.
    """
    if folder is None:
        return (
            "Nothing was mirrored to Google Drive; files in this session are lost when it ends. Download what you need."
        )
    from utils.training.engine.mirror import flush_drive

    done = flush_drive(folder)
    return f"Everything is on Google Drive, in {folder}." if done else f"{folder} is a folder of this machine."


def show_errors_plainly() -> None:
    """In a notebook, show errors that this package raises on purpose as one message instead of a traceback.

    The cell still fails, so "Run all" stops there. Outside a notebook nothing changes.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None:
        shell.set_custom_exc((TransformerBuilderError,), _show_plainly)


def _show_plainly(
    shell: Any, kind: type[BaseException], error: BaseException, trace: Any, tb_offset: Any = None
) -> list[str]:
    """IPython's handler: send the message alone to the page; the traceback goes to the log."""
    log.debug("shown as one message", exc_info=(kind, error, trace))
    lines = [f"{kind.__name__}: {error}"]
    shell._showtraceback(kind, error, lines)  # the only way to an error output without a traceback
    return lines


def _render(template: str, **values: object) -> str:
    return render(Path(__file__).with_name("templates") / template, **values)
