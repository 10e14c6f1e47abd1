"""Proof that a tokenizer fits a model: all problems at once. Builds and mends nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from utils._tables import html_table, text_table
from utils.errors import TokenizerError
from utils.tokenization.character_tokenizer import alphabet, count_characters, cover, is_character_tokenizer

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

SLOW = 50_000
"""Characters per second below which a note says what that means. Tokenizers of the `tokenizers` library do a million."""

_SPEED_REPEATS = 20


@dataclass
class TokenizerReport:
    """What was found out about one tokenizer.

    Attributes:
        problems: everything that makes the tokenizer unusable with the model; empty where it fits.
        notes: what is worth knowing and breaks nothing.
        size: number of entries; rows: what the model offers.
        lossless: whether the test text survived, apart from characters that a character tokenizer does not hold.
        characters_per_second: how fast the test text was encoded; None where that failed.
    """

    size: int
    rows: int
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lossless: bool = False
    characters_per_second: float | None = None

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
    def validate(
        cls, tokenizer: PreTrainedTokenizerBase, expected_vocab_size: int, *, lossless: bool = True
    ) -> TokenizerReport:
        """Check ids, special tokens, round trip, decoding and speed.

        A tokenizer that is smaller than the rows is fine (the rest of the rows stays unused); one that is larger is not.
        A character tokenizer is judged by the characters that it holds, and the report says how much of the test text
        that is.

        Args:
            tokenizer: any Hugging Face tokenizer.
            expected_vocab_size: embedding rows of the model.
            lossless: False turns text that does not survive from a problem into a note, for tokenizers that are meant to
                normalise it.
        """
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        report = TokenizerReport(size=len(vocabulary), rows=expected_vocab_size)
        _check_rows(report, vocabulary)
        _check_specials(report, tokenizer)
        try:
            _check_round_trip(report, tokenizer, report.problems if lossless else report.notes)
            _check_marks(report, tokenizer)
            _check_speed(report, tokenizer)
        except Exception as error:  # noqa: BLE001 - whatever a foreign tokenizer raises is a finding like any other
            report.problems.append(f"Encoding and decoding a test text fails with {type(error).__name__}: {error}.")
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


def _check_round_trip(report: TokenizerReport, tokenizer: PreTrainedTokenizerBase, found: list[str]) -> None:
    ids = _encoded(tokenizer, TORTURE_TEXT)
    beyond = sorted({index for index in ids if not 0 <= index < report.rows})
    if beyond:
        report.problems.append(f"Encoding a test text gives ids outside the model's {report.rows} rows: {beyond[:5]}.")
    text, back = TORTURE_TEXT, _decoded(tokenizer, ids)
    if back != text and is_character_tokenizer(tokenizer):
        report.notes.append(f"Of the test text, {cover(count_characters([text]), tokenizer)}.")
        text = _held_text(tokenizer)
        back = _decoded(tokenizer, _encoded(tokenizer, text))
    report.lossless = back == text
    if not report.lossless:
        at = next((i for i, (a, b) in enumerate(zip(text, back)) if a != b), min(len(text), len(back)))
        found.append(
            f"Text does not survive encoding and decoding: at character {at}, {text[at : at + 12]!r} becomes "
            f"{back[at : at + 12]!r}."
        )


def _held_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Every character of a character tokenizer, in two orders, and what it holds of the test text."""
    held = sorted(alphabet(tokenizer))
    known = set(held)
    return "".join([*held, *held[::-1], *(character for character in TORTURE_TEXT if character in known)])


def _check_marks(report: TokenizerReport, tokenizer: PreTrainedTokenizerBase) -> None:
    """Whether text that spells out a special token can be kept text."""
    special = set(tokenizer.all_special_ids)
    marks = {
        text
        for text in tokenizer.all_special_tokens
        if special.intersection(_encoded(tokenizer, text)) - {tokenizer.unk_token_id}
    }
    if marks:
        report.notes.append(
            f"Text that spells out {', '.join(sorted(marks)[:5])} turns into special tokens, even with "
            "split_special_tokens=True: texts from strangers could end a document."
        )


def _check_speed(
    report: TokenizerReport, tokenizer: PreTrainedTokenizerBase, clock: Callable[[], float] = time.perf_counter
) -> None:
    texts = [TORTURE_TEXT] * _SPEED_REPEATS
    begun = clock()
    tokenizer(texts, add_special_tokens=False, verbose=False)
    speed = len(TORTURE_TEXT) * _SPEED_REPEATS / max(clock() - begun, 1e-9)
    report.characters_per_second = speed
    if speed < SLOW:
        report.notes.append(
            f"It encodes {speed:,.0f} characters a second: a megabyte of text takes {1e6 / speed:,.0f} s. A tokenizer with "
            "a tokenizer.json is a hundred times as fast."
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


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text as text: marks that it spells out are not read as special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return ids


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
