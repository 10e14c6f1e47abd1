"""What is seen of a training while it runs: a line with speed and time left, the loss curve, sample texts. Draws no widget.

Sample texts are made by `sample_hooks`, which knows the engine; this file is light, since every page of the wizard needs it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.progress import View

if TYPE_CHECKING:
    from utils.adapters.model_adapter import AdaptedModel
    from utils.training.live_plot import LivePicture, LivePlot
    from utils.ui.work import Outcome

PICTURE_SECONDS = 1.0
"""Between two pictures of the loss, at least."""
MOST_SAMPLES = 12
"""Sample texts that are kept: the first, and the newest ones."""


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote: after `step` optimizer steps, from `prompt`; `problem` where it could not."""

    step: int
    prompt: str
    text: str
    problem: str = ""


class Live(View):
    """The state of a running training. It is where a `Progress` and a `LivePlot` draw, and tells whoever looks.

    Attributes:
        line: where the run is, in one line. fraction: the share that is done; None where nobody knows.
        picture: the newest loss curve; None before the first.
        samples: texts, the oldest first. outcome: how the training ended; None before its end.
        in_thread: whether it runs beside the page, so that a button can stop it; else the notebook's interrupt does.
    """

    interval = 0.5

    def __init__(self) -> None:
        self.line, self.fraction = "", 0.0
        self.picture: LivePicture | None = None
        self.samples: list[Sample] = []
        self.outcome: Outcome | None = None
        self.in_thread = False
        self._watchers: list[Callable[[str], None]] = []

    @property
    def going_on(self) -> bool:
        """Whether a training began and has not ended."""
        return bool(self.line) and self.outcome is None

    def watch(self, changed: Callable[[str], None]) -> None:
        """Have every change told: "line", "picture", "samples" or "end", from the thread that trains."""
        self._watchers.append(changed)

    def begin(self) -> None:
        """Forget the training before."""
        self.line, self.fraction, self.picture, self.samples, self.outcome = "", 0.0, None, [], None
        for part in ("line", "picture", "samples"):
            self._tell(part)

    def draw(self, line: str, fraction: float | None) -> None:
        """Take where the run is (for `Progress`), in the thread that works."""
        self.in_thread = threading.current_thread() is not threading.main_thread()
        self.line, self.fraction = line, fraction or 0.0
        self._tell("line")

    def show(self, picture: LivePicture) -> None:
        """Take a loss curve (for `LivePlot`)."""
        self.picture = picture
        self._tell("picture")

    def add(self, sample: Sample) -> None:
        """Take a sample text."""
        self.samples.append(sample)
        if len(self.samples) > MOST_SAMPLES:
            del self.samples[1]
        self._tell("samples")

    def prepare(self, done: int, total: int | None, note: str) -> None:
        """Take what is done before the first step, as a `ProgressCallback`."""
        self.draw(f"Getting ready: {note}" if note else "Getting ready", done / total if total else None)

    def end(self, outcome: Outcome) -> None:
        """Tell that the training ended, and how."""
        self.outcome = outcome
        self._tell("end")

    def plot(self) -> LivePlot:
        """What draws the loss here."""
        from utils.training.live_plot import LivePlot

        return LivePlot(self, seconds=PICTURE_SECONDS)

    def _tell(self, part: str) -> None:
        for changed in self._watchers:
            changed(part)


def writes(adapted: AdaptedModel) -> bool:
    """Whether the model continues or answers texts."""
    return adapted.contract.task in ("lm", "seq2seq") and adapted.contract.multiple_of == 1


def prompt_of(documents: Sequence[Any]) -> str:
    """A short beginning for sample texts: the first words of the first document that has some."""
    for text in documents:
        words = list(itertools.takewhile(_is_word, str(text).split()))  # no line of asterisks below a heading
        if words:
            return " ".join(words[:4])[:60]
    return "The"


def _is_word(text: str) -> bool:
    return any(character.isalnum() for character in text)
