"""What a text is made of: scripts, kinds of characters, a language, traces of damage. Counts; judges nothing."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LANGUAGE_WORDS: dict[str, str] = {
    "English": "the of and to in is that it for was on are with as be by this from or an",
    "German": "der die und das den von zu mit sich des auf für ist im dem nicht ein eine als auch",
    "French": "le la les des et est une du dans que qui pour pas sur au avec ce il sont plus",
    "Spanish": "el los las y que del se por con una su para es al lo como más pero sus está",
    "Italian": "il di che è della per un con non le si da dei nel alla sono anche gli più del",
    "Portuguese": "o os as que não uma do da em para com por dos no na mais como ao foi ser",
    "Dutch": "het een van en dat niet op te zijn voor met aan er om ook als maar bij dan naar",
}
"""Twenty function words of each language that the rule below tells apart; languages in other scripts are told by script."""
LANGUAGE_SHARE = 0.08
"""Least share of function words among all words. In running text of the right language it is above a fifth."""
LANGUAGE_LEAD = 1.5
"""How many times more such words than those of the second language."""

_WORD = re.compile(r"[^\W\d_]+")
_MOJIBAKE = re.compile("[ÃÂ][\u0080-\u00bf]|â€[\u0080-\u00ff™œžŸ˜]?")
_KEPT_CONTROLS = "\t\n\r"


@dataclass(frozen=True)
class Characters:
    """Characters of a text by kind.

    Attributes:
        total: number of characters.
        scripts: script → share of the letters, largest first.
        kinds: kind ("letters", "digits", "spaces", "punctuation", "symbols", "controls", "other") → share of all.
        distinct: number of different characters.
        controls: control characters other than tab and line ends; replaced: U+FFFD, which stands for lost characters;
            mojibake: places that look like UTF-8 decoded as Windows-1252.
    """

    total: int
    scripts: dict[str, float]
    kinds: dict[str, float]
    distinct: int
    controls: int
    replaced: int
    mojibake: int


def count_characters(texts: Iterable[str]) -> Characters:
    """Count the characters of texts by script and kind."""
    counts: Counter[str] = Counter()
    mojibake = 0
    for text in texts:
        counts.update(text)
        mojibake += 0 if text.isascii() else len(_MOJIBAKE.findall(text))
    kinds: Counter[str] = Counter()
    scripts: Counter[str] = Counter()
    for character, count in counts.items():
        kind = _kind(character)
        kinds[kind] += count
        if kind == "letters":
            scripts[_script(character)] += count
    total, letters = max(counts.total(), 1), max(scripts.total(), 1)
    controls = sum(n for c, n in counts.items() if unicodedata.category(c) == "Cc" and c not in _KEPT_CONTROLS)
    return Characters(
        counts.total(),
        {name: count / letters for name, count in scripts.most_common()},
        {name: count / total for name, count in kinds.most_common()},
        len(counts),
        controls,
        counts["\ufffd"],
        mojibake,
    )


def guess_language(texts: Sequence[str]) -> tuple[str, str]:
    """The language by function words, and the finding in words; ("", …) where the rule does not decide.

    Rule: the language whose twenty function words make up the largest share of the words, if that is at least
    `LANGUAGE_SHARE` and `LANGUAGE_LEAD` times that of the second. It knows seven languages and says nothing about others.
    """
    words: Counter[str] = Counter()
    for text in texts:
        words.update(_WORD.findall(text.lower()))
    total = max(words.total(), 1)
    shares = {name: sum(words[word] for word in known.split()) / total for name, known in LANGUAGE_WORDS.items()}
    (first, share), (second, next_share), *_ = sorted(shares.items(), key=lambda item: -item[1])
    if share >= LANGUAGE_SHARE and share >= LANGUAGE_LEAD * next_share:
        return (
            first,
            f"looks like {first}: its function words are {share:.0%} of the words (next: {second}, {next_share:.0%})",
        )
    known = ", ".join(LANGUAGE_WORDS)
    return "", f"no language decided: function words of {first} are {share:.0%} of the words (known: {known})"


def _kind(character: str) -> str:
    category = unicodedata.category(character)
    if character.isspace():
        return "spaces"
    names = {"L": "letters", "M": "letters", "N": "digits", "P": "punctuation", "S": "symbols"}
    return names.get(category[0], "controls" if category == "Cc" else "other")


def _script(character: str) -> str:
    """The script of a letter: the first word of its Unicode name, which is the script's name for nearly all letters."""
    first = unicodedata.name(character, "UNNAMED").split(" ")[0].split("-")[0].capitalize()
    return {"Cjk": "Han", "Combining": "Combining marks", "Mathematical": "Mathematical letters"}.get(first, first)
