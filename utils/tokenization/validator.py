"""Proof that a tokenizer fits a model: all problems at once. Builds and mends nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from utils._tables import html_table, text_table
from utils.errors import TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TORTURE_TEXT = (
    "Plain words,  double  spaces,\ttabs\nand lines.\r\n"
    "Fran\u00e7ais, Espa\u00f1ol, \u0420\u0443\u0441\u0441\u043a\u0438\u0439, \u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac, "
    "\u4e2d\u6587, \u65e5\u672c\u8a9e, \ud55c\uad6d\uc5b4, \u0627\u0644\u0639\u0631\u0628\u064a\u0629, \u0939\u093f\u0928\u094d\u0926\u0940. "
    "e\u0301 and \u00e9, \u00c5 and \u212b, \ufb01ligature, \u200bzero\u200dwidth\ufeff, \u202eright to left\u202c. "
    "\U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \U00010348 \x00\x01\x7f\x85 \ufffd 0123456789 { } ~ ` ' n't ."
)
"""Scripts, combining marks, emoji sequences, control characters and runs of blanks: what normalisers like to change."""


@dataclass
class TokenizerReport:
    """What was found out about one tokenizer.

    Attributes:
        problems: everything that makes the tokenizer unusable with the model; empty where it fits.
        notes: what is worth knowing and breaks nothing.
        size: number of entries; rows: what the model offers.
    """

    size: int
    rows: int
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing stands against using the tokenizer with the model."""
        return not self.problems

    def __bool__(self) -> bool:
        return self.passed

    def raise_for_problems(self) -> None:
        """Raise `TokenizerError` with all problems, where there are any."""
        if self.problems:
            listed = "\n".join(f"- {problem}" for problem in self.problems)
            raise TokenizerError(f"The tokenizer does not fit the model ({len(self.problems)} problems):\n{listed}")

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("problem", text) for text in self.problems] + [("note", text) for text in self.notes]
        return rows or [
            ("passed", f"{self.size:,} entries fit the model's {self.rows:,} rows, and every text survives.")
        ]

    def summary(self) -> str:
        """Verdict and findings as text."""
        return text_table(
            ("kind", "finding"), self._rows(), title="Tokenizer " + ("fits" if self.passed else "does not fit")
        )

    def _repr_html_(self) -> str:
        return html_table(("kind", "finding"), self._rows())


class TokenizerValidator:
    """Holds a tokenizer against a model's embedding rows."""

    @classmethod
    def validate(cls, tokenizer: PreTrainedTokenizerBase, expected_vocab_size: int) -> TokenizerReport:
        """Check ids, special tokens, round trip and decoding.

        A tokenizer that is smaller than the rows is fine (the rest of the rows stays unused); one that is larger is not.

        Args:
            tokenizer: any Hugging Face tokenizer.
            expected_vocab_size: embedding rows of the model.
        """
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        report = TokenizerReport(size=len(vocabulary), rows=expected_vocab_size)
        _check_rows(report, vocabulary)
        _check_specials(report, tokenizer)
        _check_round_trip(report, tokenizer)
        _check_decoding(report, tokenizer, vocabulary)
        return report


def _check_rows(report: TokenizerReport, vocabulary: dict[str, int]) -> None:
    beyond = sorted((index, token) for token, index in vocabulary.items() if not 0 <= index < report.rows)
    if beyond:
        index, token = beyond[0]
        report.problems.append(
            f"{len(beyond)} entries have ids outside the model's {report.rows} rows, the first is {token!r} with id {index}: "
            f"train a tokenizer of at most {report.rows} entries, or export the model with vocab_size={max(vocabulary.values()) + 1}."
        )
    if not vocabulary:
        report.problems.append("The vocabulary is empty.")
    elif not beyond and report.size < report.rows:
        report.notes.append(
            f"{report.size:,} entries; {report.rows - report.size:,} of the model's {report.rows:,} rows stay unused."
        )


def _check_specials(report: TokenizerReport, tokenizer: PreTrainedTokenizerBase) -> None:
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if end is None:
        report.problems.append("There is no end-of-text token (eos_token): documents could not be told apart.")
    if pad is None:
        report.notes.append("There is no padding token; packed blocks need none, padded batches do.")
    elif pad == end:
        report.problems.append(
            f"Padding and end of text share id {pad}: a model would never learn to stop. Set another pad_token."
        )
    named = {name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "unk", "bos", "eos")}
    shared = [
        f"{a} and {b} (id {named[a]})"
        for i, a in enumerate(named)
        for b in list(named)[i + 1 :]
        if named[a] is not None and named[a] == named[b] and {a, b} != {"pad", "eos"}
    ]
    if shared:
        report.notes.append("Special tokens share ids: " + ", ".join(shared) + ".")


def _check_round_trip(report: TokenizerReport, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer(TORTURE_TEXT, add_special_tokens=False, verbose=False)["input_ids"]
    beyond = sorted({index for index in ids if not 0 <= index < report.rows})
    if beyond:
        report.problems.append(f"Encoding a test text gives ids outside the model's {report.rows} rows: {beyond[:5]}.")
    back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if back != TORTURE_TEXT:
        at = next((i for i, (a, b) in enumerate(zip(TORTURE_TEXT, back)) if a != b), min(len(TORTURE_TEXT), len(back)))
        report.problems.append(
            f"Text does not survive encoding and decoding: at character {at}, {TORTURE_TEXT[at : at + 12]!r} becomes "
            f"{back[at : at + 12]!r}."
        )


def _check_decoding(report: TokenizerReport, tokenizer: PreTrainedTokenizerBase, vocabulary: dict[str, int]) -> None:
    taken: dict[int, str] = {}
    for token, index in vocabulary.items():
        if index in taken:
            report.problems.append(f"Id {index} stands for both {taken[index]!r} and {token!r}.")
            return
        taken[index] = token
    back = tokenizer.convert_ids_to_tokens(sorted(taken)) if taken else []
    wrong = [(index, token) for index, token in zip(sorted(taken), back) if token != taken[index]]
    if wrong:
        index, token = wrong[0]
        report.problems.append(
            f"{len(wrong)} ids do not decode to their entry, the first is {index}: {token!r} instead of {taken[index]!r}."
        )
