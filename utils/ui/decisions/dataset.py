"""Step 2 without widgets: where the text comes from, which column holds it, and whether it is good enough to train on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils._files import whole_file
from utils.errors import ColumnChoiceError, DataError
from utils.ui.decisions.validation import CheckRow

if TYPE_CHECKING:
    from utils.training.data_quality import DataQuality
    from utils.training.loaded_dataset import LoadedDataset, Preview
    from utils.ui.decisions.setup import Setup
    from utils.ui.work import Ticket

NAME = "dataset"
UPLOADS = "uploads"
"""Folder in the wizard's: what was uploaded, so that a restarted kernel has it."""
HUB_DOCUMENTS = 20_000
"""Documents that are read of a Hub data set unless the person wants more: minutes, where all of it may take hours."""
PAIR_COLUMNS = {"classification": ("text", "class"), "seq2seq": ("source", "target"), "vision": ("image", "class")}
PREVIEWED = 5
"""Rows of a built-in example that are shown."""

KINDS = {
    "example": "Bundled example",
    "upload": "A file from my computer",
    "hub": "Hugging Face Hub",
    "path": "A path on this machine or on Drive",
}
GIVEN = "given"
"""Kind of what was passed as `data=`."""

_UNSAFE = re.compile(r"[^\w.-]+")


@dataclass
class DatasetForm:
    """What is asked in step 2."""

    kind: str = ""
    """A key of `KINDS`, or "given"; empty takes what was passed as `data=`, else the example."""
    example: str = ""
    """Name of the bundled example; empty takes the first that suits the model."""
    upload: str = ""
    """Name of the uploaded file in the folder of uploads."""
    hub: str = ""
    """Name of the Hub data set, "owner/name"."""
    hub_documents: int = HUB_DOCUMENTS
    """Most documents to read of it; 0 for all."""
    path: str = ""
    """File or folder."""
    column: str = ""
    """Column of the text; empty takes the obvious one."""
    label: str = ""
    """Column of classes or target texts, for models that need one; empty takes the obvious one."""


class DatasetDecision:
    """Reads the data and judges it.

    Attributes:
        form: what is kept.
        loaded: the data; None until `load` read it, and for data that is no text.
        quality: what was found out about it; None likewise.
        columns: names of the columns that can be chosen as text.
        reading: what was read last, as a form; tells whether `loaded` is still what is asked for.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self.form = setup.state.form(NAME, DatasetForm)
        if self.form.kind not in self.kinds:
            self.form = replace(self.form, kind=next(iter(self.kinds)), column="", label="")
        self.loaded: LoadedDataset | None = None
        self.quality: DataQuality | None = None
        self.columns: tuple[str, ...] = ()
        self.preview: tuple[tuple[str, ...], tuple[tuple[str, ...], ...]] = ((), ())
        self.reading: DatasetForm | None = None

    # ---- what can be asked ------------------------------------------------------------------------------------------
    @property
    def task(self) -> str:
        """Of the model's contract; "lm" while the model is not known."""
        adapted = self._setup.validation.adapted
        return "lm" if adapted is None else str(adapted.contract.task)

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of source → what people call it."""
        given = {GIVEN: "What the notebook passed"} if self._setup.given_data is not None else {}
        images = self.task == "vision"  # no file of images is read here
        return {**given, **{kind: told for kind, told in KINDS.items() if kind == "example" or not images}}

    @property
    def examples(self) -> dict[str, str]:
        """Name of each bundled example that suits the model → what it is."""
        if self.task in ("lm", "masked"):
            return {
                "python-docs": "Python's documentation (half a megabyte of English)",
                "lm_tiny": "Small sums in words (for very small models)",
            }
        names = {
            "classification": ("cls_tiny", "Opinions, each with a class"),
            "seq2seq": ("seq2seq_tiny", "Dates and how they are written"),
            "vision": ("vision_tiny", "Handwritten digits"),
        }
        name, told = names[self.task]
        return {name: told}

    @property
    def example(self) -> str:
        """Name of the chosen example, or of the first that suits the model."""
        return self.form.example if self.form.example in self.examples else next(iter(self.examples))

    def choose(self, **values: Any) -> None:
        """Change fields of the form; another source forgets the columns that were chosen for the one before."""
        changed = replace(self.form, **values)
        if _source(changed) != _source(self.form):
            changed = replace(changed, **{"column": "", "label": "", **values})
        self._setup.state.keep(NAME, changed)  # first: what it refuses is not taken
        self.form = changed

    def keep_upload(self, files: Mapping[str, bytes]) -> Path:
        """Copy an uploaded file into the wizard's folder and choose it.

        Raises:
            DataError: nothing has arrived.
        """
        if not files:
            raise DataError("No file has arrived. Press the button and choose one.")
        name, content = list(files.items())[-1]
        path = self._setup.folder / UPLOADS / safe_name(name)
        with whole_file(path) as stream:
            stream.write(content)
        self.choose(kind="upload", upload=path.name)
        self.reading = None
        return path

    # ---- reading ----------------------------------------------------------------------------------------------------
    @property
    def is_read(self) -> bool:
        """Whether what is asked for has been read."""
        return self.reading is not None and self.reading == self.form

    def missing(self) -> str:
        """What the form lacks before anything can be read; empty where nothing does."""
        form = self.form
        if form.kind == "upload" and not form.upload:
            return "Choose a file from your computer first."
        if form.kind == "hub" and not form.hub.strip():
            return "Type the name of a data set on the Hugging Face Hub, such as stanfordnlp/imdb."
        if form.kind == "path" and not form.path.strip():
            return "Type the path of a file or folder."
        return ""

    def load(self, ticket: Ticket) -> LoadedDataset | None:
        """Read the data and judge it.

        Returns:
            The data; None where it is no text (images, token ids), which is trained on as it is.

        Raises:
            DataError: something is missing or it cannot be read; the message says how on. `ColumnChoiceError` where a column
                must be chosen; `columns` and `preview` are filled then.
        """
        missing = self.missing()
        if missing:
            raise DataError(missing)
        asked = self.form
        self.loaded, self.quality, self.columns, self.preview, self.reading = None, None, (), ((), ()), None
        try:
            loaded = self._read(asked, ticket)
        except ColumnChoiceError as error:
            self.columns, self.preview = error.candidates, (error.columns, error.rows)
            raise DataError(
                f"Several columns hold text: {', '.join(error.candidates)}. Choose the one to train on under “Column of the text”; it is read then."
            ) from error
        if loaded is not None:
            self._judge(loaded, ticket)
        self.loaded, self.reading = loaded, asked
        return loaded

    def prepare(self, ticket: Ticket) -> Any:
        """What `utils.train` takes as `data=`; read first where it has not been.

        Raises:
            DataError: as `load`, and where the text cannot be trained on.
        """
        if not self.is_read:
            self.load(ticket)
        problem = self.problem()
        if problem:
            raise DataError(problem)
        return self.for_training()

    def for_training(self) -> Any:
        """The plainest thing that names the data: a run can then be made again from its folder."""
        form = self.form
        if form.kind == GIVEN:
            return self._setup.given_data if not form.column else self.loaded
        if form.kind == "example":
            return self.example
        plain = not form.column and form.kind in ("upload", "path") and self.task in ("lm", "masked")
        return str(self._place()) if plain else self.loaded

    def _read(self, form: DatasetForm, ticket: Ticket) -> LoadedDataset | None:
        from utils.training.dataset_utilities import DatasetLoader

        options = self._options(form)
        if form.kind == "hub":
            if form.hub_documents > 0:
                options["max_documents"] = form.hub_documents
            return DatasetLoader.from_huggingface(form.hub.strip(), progress=ticket.progress, **options)
        if form.kind in ("upload", "path"):
            place = self._place()
            if not place.exists():
                raise DataError(
                    f"There is no file or folder {str(place)!r} on this machine. Look at its spelling, or choose a file."
                )
            read = DatasetLoader.from_folder if place.is_dir() else DatasetLoader.from_file
            return read(place, progress=ticket.progress, **options)
        data = self.example if form.kind == "example" else self._setup.given_data
        pairs = self._example_pairs() if form.kind == "example" else None
        if pairs is not None:
            self.preview = pairs
            return None
        if _is_no_text(data):
            return None
        return DatasetLoader.from_anything(_texts_of(data), progress=ticket.progress, **options)

    def _place(self) -> Path:
        form = self.form
        if form.kind == "upload":
            return self._setup.folder / UPLOADS / form.upload
        return Path(form.path.strip()).expanduser()

    def _options(self, form: DatasetForm) -> dict[str, Any]:
        options: dict[str, Any] = {"column": form.column} if form.column else {}
        if self.task == "classification":
            options["label_column"] = form.label or "auto"
        if self.task == "seq2seq" and form.kind != "example":
            options["target_column"] = form.label or "target"
        return options

    def _example_pairs(self) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]] | None:
        """Names and first rows of an example that is no plain text; None for text."""
        if self.task in ("lm", "masked"):
            return None
        from utils.training.task_spec import example

        rows = example(self.example).train[:PREVIEWED]
        return PAIR_COLUMNS[self.task], tuple((_shown(first), _shown(second)) for first, second in rows)

    def _judge(self, loaded: LoadedDataset, ticket: Ticket) -> None:
        from utils.training.data_quality import examine_data

        self.quality = examine_data(loaded, progress=ticket.progress)
        self.columns = (loaded.choice.text, *loaded.choice.alternatives)
        self.preview = _rows_of(loaded.preview)

    # ---- the verdict ------------------------------------------------------------------------------------------------
    @property
    def rows(self) -> list[CheckRow]:
        """What was found out about the text; what does not apply is left out."""
        if self.quality is None:
            return []
        return [CheckRow.of(check) for check in self.quality.report.checks if check.status != "skip"]

    def problem(self) -> str:
        """Why the next step is not reached yet, and what to do; empty where nothing stands in the way."""
        missing = self.missing()
        if missing:
            return missing
        if not self.is_read:
            return "The data has not been read yet: press Read it."
        if self.quality is not None and not self.quality.passed:
            return f"Training cannot use this text: {self.quality.verdict} The rows below say what to do."
        return ""


def safe_name(name: str) -> str:
    """A file name from outside as one that is written: letters, digits, dot, dash; never a way out of the folder."""
    last = re.split(r"[/\\]", name)[-1]
    path = Path(_UNSAFE.sub("_", last).lstrip(".") or "upload.txt")
    return f"{path.stem[:80]}{path.suffix[:16].lower()}"


def _source(form: DatasetForm) -> tuple[str, str]:
    return form.kind, str(getattr(form, form.kind, ""))


def _rows_of(preview: Preview) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    return preview.columns, preview.rows


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return str(value)[:200] if shape is None else f"{'×'.join(map(str, shape))} pixels"


def _is_no_text(data: Any) -> bool:
    """Token ids and data modules, which training takes as they are."""
    first = data[0] if isinstance(data, (list, tuple)) and data else data
    return hasattr(first, "detach") or hasattr(data, "train_dataloader")


def _texts_of(data: Any) -> Any:
    """The texts behind the name of a built-in example; anything else as it is."""
    from utils.training.task_examples import EXAMPLES

    if not isinstance(data, str) or data not in EXAMPLES:
        return data
    from utils.training.task_spec import example

    found = example(data)
    return {"train": list(found.train), "validation": list(found.validation)}
