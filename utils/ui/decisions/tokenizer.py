"""Step 3 without widgets: which tokenizer the model gets, why, whether it fits, and how it cuts a text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from utils.errors import TokenizerError
from utils.ui.decisions.dataset import DatasetForm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from utils.tokenization.choice import Choice
    from utils.tokenization.validator import TokenizerReport
    from utils.ui.decisions.setup import Setup
    from utils.ui.work import Ticket

NAME = "tokenizer"
CACHE = "tokenizers"
"""Folder in the wizard's, in which tokenizers are kept."""
STRATEGIES = {
    "": "Automatic",
    "pretrained": "A well-known ready-made one",
    "train_bpe": "Learned from my text (byte-level BPE)",
    "character": "One token for each character",
    "custom": "My own",
}
TRY_IT = "The quick brown fox says “héllo”, 42 times. 🦊"
MOST_TRIED = 2000
"""Characters of a text that is tried."""


@dataclass
class TokenizerForm:
    """What is asked in step 3."""

    strategy: str = ""
    """A key of `STRATEGIES`; empty lets the model's rows and the text decide."""
    own: str = ""
    """The person's own tokenizer: a folder, a file, or the name of a Hub repository."""
    tried: str = TRY_IT
    """The text that is cut into tokens for a look."""


@dataclass(frozen=True)
class Piece:
    """One token of a tried text.

    Attributes:
        text: the characters that it stands for; empty for a further part of a character that the piece before it shows.
        token: as it stands in the vocabulary.
        number: its id.
        is_unknown: whether it stands for what the tokenizer has no entry for.
    """

    text: str
    token: str
    number: int
    is_unknown: bool = False


class TokenizerDecision:
    """Makes the tokenizer and shows what it does.

    Attributes:
        form: what is kept.
        made: the tokenizer; None until `make`, and where training makes its own.
        report: whether it fits the model; None likewise.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        kept = setup.state.form(NAME, TokenizerForm)
        self.form = kept if kept.strategy in STRATEGIES else replace(kept, strategy="")
        self.made: PreTrainedTokenizerBase | None = None
        self.report: TokenizerReport | None = None
        self._made_of: tuple[int, str, str, DatasetForm | None, str] | None = None

    # ---- what can be asked ------------------------------------------------------------------------------------------
    @property
    def rows(self) -> int | None:
        """Embedding rows of the model; None while it is not known, and for models without."""
        adapted = self._setup.validation.adapted
        return None if adapted is None else adapted.contract.vocab_size

    @property
    def not_needed(self) -> str:
        """Why no tokenizer is made here; empty where one is."""
        if self._setup.dataset.task == "vision":
            return "Images need no tokenizer. Go on."
        if self._setup.dataset.is_read and self._setup.dataset.loaded is None:
            return "The tokenizer of this data is made when training starts. Go on."
        return ""

    @property
    def strategies(self) -> dict[str, str]:
        """Strategy → what people call it: those that the model's rows allow."""
        from utils.tokenization.adaptive_tokenizer import AdaptiveTokenizer

        possible = ("custom",) if self.rows is None else AdaptiveTokenizer.possible_strategies(self.rows)
        return {name: told for name, told in STRATEGIES.items() if not name or name in possible}

    def choose(self, **values: Any) -> None:
        """Change fields of the form."""
        changed = replace(self.form, **values)
        self._setup.state.keep(NAME, changed)  # first: what it refuses is not taken
        self.form = changed

    def missing(self) -> str:
        """What is needed before it can be made; empty where nothing is."""
        if self.form.strategy == "custom" and not self.form.own.strip():
            return "Type where your tokenizer is: a folder, a tokenizer.json, a SentencePiece .model, or a Hub name."
        return ""

    # ---- making it --------------------------------------------------------------------------------------------------
    @property
    def is_made(self) -> bool:
        """Whether the tokenizer is there that is asked for, for the present model and data."""
        return self.made is not None and self._made_of == self._wanted()

    @property
    def choice(self) -> Choice | None:
        """Which kind it is and why; None before it is made."""
        from utils.tokenization.adaptive_tokenizer import choice_of

        return choice_of(self.made) if self.made is not None and self.is_made else None

    def make(self, ticket: Ticket) -> PreTrainedTokenizerBase:
        """Make the tokenizer from the training text and hold it against the model's rows.

        Raises:
            TokenizerError: it cannot be had, or does not fit; the message says what to do.
            DataError: the data cannot be read.
        """
        from utils.tokenization.adaptive_tokenizer import AdaptiveTokenizer
        from utils.tokenization.validator import TokenizerValidator
        from utils.training.dataset_utilities import resolve_data

        missing, rows = self.missing(), self._rows()
        if missing:
            raise TokenizerError(missing)
        self._setup.dataset.prepare(ticket)
        wanted, form = self._wanted(), self.form
        text = resolve_data(self._setup.dataset.loaded)
        made = AdaptiveTokenizer.load_or_create(
            rows,
            text.train,  # never the validation part, which it would then have seen
            self._setup.folder / CACHE,
            own=form.own.strip() if form.strategy == "custom" else None,
            strategy=form.strategy or None,  # type: ignore[arg-type] # a key of STRATEGIES
            progress=ticket.progress,
        )
        report = TokenizerValidator.validate(made, rows, lossless=False)
        report.raise_for_problems()
        self.made, self.report, self._made_of = made, report, wanted
        return made

    def prepare(self, ticket: Ticket) -> PreTrainedTokenizerBase | None:
        """What `utils.train` takes as `tokenizer=`; None where training makes it.

        Raises:
            TokenizerError, DataError: as `make`.
        """
        if self.not_needed:
            return None
        if not self.is_made:
            self.make(ticket)
        return self.made

    def problem(self) -> str:
        """Why the next step is not reached yet, and what to do; empty where nothing stands in the way."""
        if self.not_needed:
            return ""
        missing = self.missing()
        return missing or ("" if self.is_made else "The tokenizer has not been made yet: press Make it.")

    def _rows(self) -> int:
        adapted = self._setup.validation.prepare()
        rows = adapted.contract.vocab_size
        if rows is None:
            raise TokenizerError(
                f"How many token ids {adapted.name} takes is unknown: it has no embedding, and its config names no vocab_size. "
                "Pass a config with vocab_size to SetupWizard(model, config)."
            )
        return rows

    def _wanted(self) -> tuple[int, str, str, DatasetForm | None, str]:
        """What a tokenizer depends on; of the text also its fingerprint, since another file may come by the same name."""
        data = self._setup.dataset
        own = self.form.own.strip() if self.form.strategy == "custom" else ""
        return self.rows or 0, self.form.strategy, own, data.reading, str(getattr(data.loaded, "fingerprint", ""))

    # ---- trying it --------------------------------------------------------------------------------------------------
    def pieces(self) -> list[Piece]:
        """How the tried text is cut; [] while there is no tokenizer.

        Example:
            >>> [piece.text for piece in decision.pieces()]
            ['The', ' quick', ' brown', …]
        """
        if self.made is None or not self.is_made:
            return []
        return cut(self.made, self.form.tried[:MOST_TRIED])


def cut(tokenizer: PreTrainedTokenizerBase, text: str) -> list[Piece]:
    """The tokens of a text with the characters that each stands for, as text: marks in it stay text."""
    wants_spans = bool(getattr(tokenizer, "is_fast", False))
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=wants_spans, verbose=False
    )
    numbers = [int(number) for number in encoded["input_ids"]]
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(numbers)]
    shown = _spans(text, encoded["offset_mapping"]) if wants_spans else tokens
    unknown = tokenizer.unk_token_id
    return [Piece(*one, one[2] == unknown) for one in zip(shown, tokens, numbers, strict=True)]


def _spans(text: str, offsets: list[tuple[int, int]]) -> list[str]:
    """Each token's characters; a character that several tokens share is shown by the first of them."""
    shown, end = [], 0
    for start, stop in offsets:
        shown.append(text[max(start, end) : stop])
        end = max(end, stop)
    return shown
