"""The view of step 2: which text the model learns from."""

from __future__ import annotations

from typing import Any

from utils.training.data_sources import KINDS as FILE_KINDS
from utils.training.data_upload import MAX_WIDGET_BYTES
from utils.ui import widgets
from utils.ui.steps.step import Shell, begin, said
from utils.ui.steps.validation import STATUS_WORDS
from utils.ui.work import Outcome

INTRO = "A model learns to write like the text that it reads: choose that text here, and look at what was found in it."
UPLOAD_HINT = (
    f"Text, CSV, JSON or Parquet, up to {MAX_WIDGET_BYTES >> 20} MB. A larger file comes in through Google Drive, or through "
    "Colab's own files.upload(): give its path then."
)
HUB_HINT = (
    "The name as it stands on huggingface.co, such as stanfordnlp/imdb. Only data files are read; nothing of it runs."
)
PATH_HINT = "A file or a folder, such as /content/drive/MyDrive/notes.txt."
NO_TEXT = "This is trained on as it is; there is no running text to look at."


class DatasetStep:
    """A source, a column, a preview and a verdict."""

    def __init__(self, shell: Shell) -> None:
        self.shell, self.decision = shell, shell.setup.dataset
        form = self.decision.form
        self._kind = widgets.choice("Where it comes from", "tb-data-kind", options=self._kinds(), value=form.kind)
        self._example = widgets.choice(
            "Example", "tb-data-example", options=self._examples(), value=self.decision.example
        )
        self._upload = widgets.file_upload("Choose a file", "tb-data-upload", accept=tuple(FILE_KINDS))
        self._uploaded = widgets.html_block("tb-data-uploaded")
        self._hub = widgets.text_field("Data set", "tb-data-hub", value=form.hub, placeholder="owner/name")
        self._most = widgets.number(
            "Documents at most",
            "tb-data-most",
            value=form.hub_documents,
            least=0,
            most=10**9,
            tip="0 reads all of them",
        )
        self._path = widgets.text_field("Path", "tb-data-path", value=form.path, placeholder="file or folder")
        self._groups = {
            "given": widgets.column(),
            "example": widgets.column(self._example),
            "upload": widgets.column(widgets.row(self._upload, self._uploaded), widgets.hint(UPLOAD_HINT)),
            "hub": widgets.column(self._hub, self._most, widgets.hint(HUB_HINT)),
            "path": widgets.column(self._path, widgets.hint(PATH_HINT)),
        }
        self._load = widgets.button("Read it", "tb-data-load", click=self.load, style="primary", icon="refresh")
        self._column = widgets.choice("Column of the text", "tb-data-column", options=[("automatic", "")], value="")
        self._preview = widgets.html_block("tb-data-preview")
        self._quality = widgets.html_block("tb-data-quality")
        self._listen()
        self.view = widgets.column(
            widgets.intro(INTRO),
            self._kind,
            *self._groups.values(),
            widgets.row(self._load, classes=["tb-actions"]),
            self._column,
            self._quality,
            self._preview,
            classes=["tb-step", "tb-dataset"],
        )

    def enter(self) -> None:
        """Show what was chosen; read it where that needs no further word."""
        widgets.fill_options(self._kind, self._kinds(), self.decision.form.kind)
        widgets.fill_options(self._example, self._examples(), self.decision.example)
        self._paint()
        if self.shell.may_begin and not self.decision.is_read and not self.decision.missing() and not self.shell.busy:
            self.load()

    def leave(self) -> str:
        """Empty where the text was read and can be trained on."""
        return self.decision.problem()

    def load(self) -> None:
        """Read what is chosen."""
        if begin(self.shell, self.decision.missing(), self.decision.load, self._ended, "Reading …"):
            self._paint_buttons()

    def _listen(self) -> None:
        for control, chosen in (
            (self._kind, lambda kind: self._chosen(at_once=kind in ("example", "given"), kind=kind)),
            (self._example, lambda name: self._chosen(at_once=True, example=name)),
            (self._hub, lambda name: self._chosen(hub=name.strip())),
            (self._most, lambda most: self._chosen(hub_documents=most)),
            (self._path, lambda path: self._chosen(path=path.strip())),
            (self._column, lambda name: self._chosen(at_once=True, column=name)),
            (self._upload, lambda _: self._arrived()),
        ):
            widgets.on_change(control, said(self.shell, chosen))

    def _chosen(self, at_once: bool = False, **values: Any) -> None:
        """Keep what the person changed; read it where that is all it takes."""
        before = self.decision.form
        self.decision.choose(**values)
        if self.decision.form == before:
            return
        self._paint()
        if at_once:
            self.load()

    def _arrived(self) -> None:
        """A file came from the browser."""
        try:
            files = widgets.uploaded(self._upload)
            if not files:
                return
            self.decision.keep_upload(files)
            widgets.set_value(self._kind, self.decision.form.kind)
        finally:
            widgets.clear_upload(self._upload)
        self._paint()
        self.load()

    def _ended(self, outcome: Outcome) -> None:
        self._paint()

    def _paint(self) -> None:
        decision = self.decision
        chosen = decision.form.kind
        for kind, group in self._groups.items():
            widgets.show(group, kind == chosen)
        # A file is one click away beside the example, too: most people come with one.
        widgets.show(self._groups["upload"], chosen == "upload" or (chosen == "example" and "upload" in decision.kinds))
        named = chosen == "upload" and decision.form.upload
        self._uploaded.value = widgets.plain_html(f"Chosen: {decision.form.upload}" if named else "")
        self._paint_column()
        current = decision.is_read or (decision.reading is None and bool(decision.columns))
        self._preview.value = widgets.text_html(
            "data_preview.html",
            data=decision.loaded if decision.is_read else None,
            plain=NO_TEXT if decision.is_read and decision.loaded is None else "",
            columns=decision.preview[0] if current else (),
            rows=decision.preview[1] if current else (),
        )
        quality = decision.quality if decision.is_read else None
        self._quality.value = widgets.text_html(
            "data_quality.html",
            verdict="" if quality is None else quality.verdict,
            passed=quality is None or quality.passed,
            rows=decision.rows,
            words=STATUS_WORDS,
        )
        self._paint_buttons()

    def _paint_column(self) -> None:
        names = self.decision.columns
        wanted = self.decision.form.column
        options = [("automatic", ""), *((name, name) for name in dict.fromkeys([*names, *filter(None, [wanted])]))]
        widgets.fill_options(self._column, options, wanted)
        widgets.show(self._column, len(names) > 1 or bool(wanted))

    def _paint_buttons(self) -> None:
        self._load.disabled = self.shell.busy
        self._load.description = "Read it again" if self.decision.is_read else "Read it"

    def _kinds(self) -> list[tuple[str, str]]:
        return [(told, kind) for kind, told in self.decision.kinds.items()]

    def _examples(self) -> list[tuple[str, str]]:
        return [(told, name) for name, told in self.decision.examples.items()]
