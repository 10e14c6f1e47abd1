"""utils.notebook: which model is meant, where the way leads on, and errors in one line."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import utils
import utils.examples
from utils import notebook
from utils.checks import determinism, gradients
from utils.checks.report import CheckResult, Report
from utils.checks.session import Session
from utils.errors import ConfigError, ExportError, GistNotFoundError
from utils.loading.gist_reference import parse_gist_reference
from utils.loading.model_loader import LoadedModel
from utils.progress import ignore_progress

ID = "0123456789abcdef0123456789abcdef"
OTHER = "fedcba9876543210fedcba9876543210"
REVISION = "5" * 40
PINNED = f"https://gist.github.com/{ID}/{REVISION}"


class ColabShell:
    """Recognised by the module in which its class is defined."""


ColabShell.__module__ = "google.colab._shell"


@pytest.fixture
def colab(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Call it with what the front end answers (an exception is raised); until then there is no Colab."""

    class Error(Exception):
        """As in google.colab.errors."""

    def answer(reply: object) -> None:
        def eval_js(script: str, ignore_result: bool = False, timeout_sec: float | None = None) -> object:
            assert timeout_sec is not None, "without a timeout this waits for ever where no page is open"
            if reply == "error":
                raise Error("the page is on another origin")
            return reply

        package = types.ModuleType("google.colab")
        package.errors = SimpleNamespace(Error=Error)
        package.output = SimpleNamespace(eval_js=eval_js)
        monkeypatch.setitem(sys.modules, "google.colab", package)
        ipython = types.ModuleType("IPython")
        ipython.get_ipython = ColabShell
        monkeypatch.setitem(sys.modules, "IPython", ipython)

    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    return answer


@pytest.mark.parametrize(
    ("text", "gist_id"),
    [
        (f"  {ID}\n", ID),
        (f"https://gist.github.com/somebody/{ID}", ID),
        (f"https://colab.research.google.com/gist/somebody/{ID}/template.ipynb", ID),
        (f"https://colab.research.google.com/github/a/b/blob/main/template.ipynb#gist_id={ID}", ID),
        ("https://github.com/somebody/0123456789abcdef0123", ""),
        ("no id!", ""),
        ("a/folder", ""),
        ("", ""),
    ],
)
def test_the_gist_of_a_typed_text_is_known(text: str, gist_id: str) -> None:
    assert notebook.gist_id_in(text) == gist_id
    assert notebook.find_model(text, {}).gist_id == gist_id


@pytest.mark.parametrize(
    ("form", "environ", "source", "place"),
    [
        ("", {"GIST_ID": ID}, ID, "environment variable"),
        (OTHER, {"GIST_ID": ID}, ID, "environment variable"),
        ("", {"GIST_ID": ID, "COLAB_NOTEBOOK_ID": f"gist/x/{OTHER}"}, ID, "environment variable"),
        (OTHER, {"COLAB_NOTEBOOK_ID": f"fileId=https%3A%2F%2Fgist.github.com%2Fx%2F{ID}"}, ID, "holds this notebook"),
        (
            "",
            {"COLAB_NOTEBOOK_ID": f"fileId=https%253A%252F%252Fgist.github.com%252Fx%252F{ID}"},
            ID,
            "holds this notebook",
        ),
        ("", {"JPY_SESSION_NAME": f"/gist/x/{ID}/template.ipynb"}, ID, "holds this notebook"),
        (f" {ID} ", {"COLAB_NOTEBOOK_ID": "1AbCdEfGh_drive_file"}, ID, "form field"),
        ("my/folder", {}, "my/folder", "form field"),
    ],
)
def test_the_first_place_that_says_something_decides(form: str, environ: dict, source: str, place: str) -> None:
    choice = notebook.find_model(form, environ)
    assert (choice.source, choice.is_example) == (source, False)
    assert place in choice.found_in
    assert choice.found_in in choice.summary()
    assert (OTHER in choice.summary()) == (form == OTHER), "what is passed over is said"


def test_with_nothing_given_the_example_is_named_plainly() -> None:
    choice = notebook.find_model("", {})
    assert choice.source == str(utils.examples.path())
    assert choice.gist_id == ""
    assert "bundled example" in choice.summary()
    assert "GIST_ID" in choice._repr_html_()


@pytest.mark.parametrize(
    ("answer", "source"),
    [
        (f"https://frame/ https://host/template.ipynb#gist_id={ID}", ID),
        (f"https://frame/ https://host/training.ipynb#gist_id={ID}&revision={REVISION}", PINNED),
        ("https://x-colab.googleusercontent.com/outputframe.html https://colab.research.google.com/", OTHER),
        (None, OTHER),  # no page is open
        ("error", OTHER),
    ],
)
def test_the_link_counts_where_the_front_end_tells_it(colab: Callable, answer: object, source: str) -> None:
    colab(answer)
    assert notebook.find_model(OTHER, {}).source == source


def test_kaggle_is_not_colab(colab: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    colab("")
    assert notebook.in_colab()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert not notebook.in_colab()


def test_without_ipython_it_is_not_colab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not notebook.in_colab()
    notebook.show_errors_plainly()  # and there is nobody to show errors to


def test_drive_is_mounted_where_that_is_wanted_and_nowhere_else(colab: Callable, monkeypatch, tmp_path) -> None:
    assert notebook.drive_folder(False) is None
    with pytest.raises(ConfigError, match=r"in Colab only. Untick SAVE_TO_GOOGLE_DRIVE"):
        notebook.drive_folder(True)
    colab("")
    mounted = []

    def mount(folder: str) -> None:
        mounted.append(folder)
        (tmp_path / "My Drive").mkdir()

    sys.modules["google.colab"].drive = SimpleNamespace(mount=mount)
    monkeypatch.setattr(notebook, "DRIVE", tmp_path)
    assert notebook.drive_folder(True) == str(tmp_path / "My Drive" / "transformer-builder")
    assert mounted == [str(tmp_path)]


def test_a_refused_drive_says_what_to_do(colab: Callable) -> None:
    colab("")

    def mount(folder: str) -> None:
        raise ValueError("mount failed")

    sys.modules["google.colab"].drive = SimpleNamespace(mount=mount)
    with pytest.raises(ConfigError, match=r"not mounted \(mount failed\). Run the cell again and allow it, or untick"):
        notebook.drive_folder(True)


def test_the_end_says_what_is_kept(tmp_path) -> None:
    assert "lost when it ends" in notebook.finish_drive(None)
    assert notebook.finish_drive(str(tmp_path)) == f"{tmp_path} is a folder of this machine."


REPOSITORY = "https://github.com/owner/name"


class Packed:
    """An export that is one file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.zip"

    def zip(self) -> Path:
        self.path.write_bytes(bytes(1_500_000))
        return self.path


def test_an_export_is_handed_over(colab: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = notebook.hand_over(Packed(tmp_path))  # type: ignore[arg-type]
    assert here == f"{tmp_path / 'run.zip'} (1.5 MB) holds everything."
    with pytest.raises(ConfigError, match=r"on your disk already: .*run.zip \(1.5 MB\)"):
        notebook.hand_over(Packed(tmp_path), download=True)  # type: ignore[arg-type]
    colab(None)
    assert "Tick DOWNLOAD" in notebook.hand_over(Packed(tmp_path))  # type: ignore[arg-type]
    sent: list[str] = []
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(files=SimpleNamespace(download=sent.append)))
    assert "on its way" in notebook.hand_over(Packed(tmp_path), download=True)  # type: ignore[arg-type]
    assert sent == [str(tmp_path / "run.zip")]


def test_an_export_is_copied_to_drive(tmp_path: Path) -> None:
    said = [notebook.hand_over(Packed(tmp_path), mirror=tmp_path / "drive" / "own") for _ in range(2)]  # type: ignore[arg-type]
    (copy,) = (tmp_path / "drive" / "own").iterdir()
    assert copy.read_bytes() == (tmp_path / "run.zip").read_bytes()
    assert said == [f"{tmp_path / 'run.zip'} (1.5 MB) holds everything. A copy lies in {copy}."] * 2
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ExportError, match="It is whole where it lies"):
        notebook.hand_over(Packed(tmp_path), mirror=tmp_path / "file")  # type: ignore[arg-type]


@pytest.mark.parametrize("repository", [REPOSITORY, f"{REPOSITORY}/", f"{REPOSITORY}.git"])
def test_the_link_onward_carries_the_gist_in_colab(colab: Callable, repository: str) -> None:
    colab("")
    report = SimpleNamespace(verdict="2 of 8 checks failed: <b>shapes</b>.", passed=False)
    onward = notebook.onward(report, notebook.find_model(ID, {}), repository)
    assert onward.link == f"https://colab.research.google.com/github/owner/name/blob/main/training.ipynb#gist_id={ID}"
    assert "2 of 8" in onward.summary() and ID in onward.summary()
    assert "&lt;b&gt;shapes" in onward._repr_html_()


def test_the_way_onward_is_pinned_to_what_was_read(colab: Callable) -> None:
    colab("")
    report = SimpleNamespace(verdict="All 8 checks passed.", passed=True)
    onward = notebook.onward(report, notebook.find_model(ID, {}), REPOSITORY, REVISION)
    assert onward.link.endswith(f"training.ipynb#gist_id={ID}&revision={REVISION}")
    assert f"paste {PINNED} into" in onward.summary()
    assert f"<code>{PINNED}</code>" in onward._repr_html_()
    for link in (onward.link, onward.model):  # both are taken where a gist is asked for, with the revision
        found = parse_gist_reference(link)
        assert (found.gist_id, found.revision) == (ID, REVISION)


def test_the_link_onward_is_the_file_elsewhere() -> None:
    report = SimpleNamespace(verdict="All 8 checks passed.", passed=True)
    onward = notebook.onward(report, notebook.find_model("", {}), REPOSITORY)
    assert onward.link == "training.ipynb"
    assert "paste" not in onward.summary()


def test_markup_from_outside_stays_text() -> None:
    shown = notebook.find_model("<img src=x onerror=alert(1)>", {})._repr_html_()
    assert "<img" not in shown and "&lt;img" in shown


def test_code_is_read_without_running_it(tmp_path) -> None:
    (tmp_path / "model.py").write_text("import os\n# </code><script>\nos.system('touch ran')\n", encoding="utf-8")
    reading = notebook.read(notebook.find_model(str(tmp_path), {}))
    assert "os.system" in reading.review.summary()
    assert "<script>" not in reading._repr_html_()
    assert "# </code><script>" in reading.summary()
    assert reading.revision is None
    assert not (tmp_path / "ran").exists()


def test_errors_are_shown_as_one_message() -> None:
    shown: list[list[str]] = []
    shell = SimpleNamespace(_showtraceback=lambda kind, error, lines: shown.append(lines))
    error = GistNotFoundError("There is no gist 123.")
    assert notebook._show_plainly(shell, type(error), error, None) == ["GistNotFoundError: There is no gist 123."]
    assert shown == [["GistNotFoundError: There is no gist 123."]]


FAULTY = """
import torch.nn.functional as F
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(32, 16)
        self.mixer = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 32)

    def forward(self, input_ids):
        x = F.dropout(self.embedding(input_ids), 0.5)
        return self.head((self.mixer(x)[0]).detach())
"""


@pytest.fixture
def faulty(tmp_path: Path) -> LoadedModel:
    (tmp_path / "model.py").write_text(FAULTY, "utf-8")
    (tmp_path / "config.json").write_text('{"vocab_size": 32, "max_seq_len": 16}', "utf-8")
    return utils.load_model(tmp_path)


def test_patches_are_applied_one_after_the_other_and_written(faulty: LoadedModel, tmp_path: Path) -> None:
    session = Session.of("Tier 1", faulty)
    mended = notebook.mend(session.run((determinism.check, gradients.check), ignore_progress), tmp_path / "mended.py")
    assert {check for check, _ in mended.steps} == {"determinism", "gradient flow"}
    assert mended.report.passed and mended.report.named("warn") == []
    text = (tmp_path / "mended.py").read_text("utf-8")
    assert "training=self.training" in text and "detach" not in text
    assert "-        x = F.dropout(self.embedding(input_ids), 0.5)" in mended.diff
    assert str(mended.path) in repr(mended) and "training=self.training" in mended._repr_html_()
    assert (tmp_path / "model.py").read_text("utf-8") == FAULTY


def test_a_sound_model_needs_no_mending_and_leaves_no_file(tmp_path: Path) -> None:
    report = Report("Tier 1", [CheckResult("causality", "pass", "fine")])
    mended = notebook.mend(report, tmp_path / "mended.py")
    assert repr(mended) == "Nothing to mend." and "Nothing to mend" in mended._repr_html_()
    red = Report("Tier 1", [CheckResult("causality", "fail", "it sees <b>all</b>")])
    assert "No known cure for: causality" in repr(notebook.mend(red, tmp_path / "mended.py"))
    assert list(tmp_path.iterdir()) == []


def test_tier_2_is_for_those_who_ask(faulty: LoadedModel) -> None:
    adapted = utils.adapt(faulty)
    assert "Tick LOOK_INSIDE" in repr(notebook.look_inside(adapted, False))
    report = notebook.look_inside(adapted, True)
    assert isinstance(report, Report) and report.title.startswith("Tier 2")
