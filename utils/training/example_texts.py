"""Texts of the built-in examples, made by rules and a seed: nothing to download, the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

NAMES = ("Ana", "Ben", "Cleo", "Dara", "Eli", "Finn", "Gita", "Hugo", "Iris", "Jon", "Kira", "Liam")
THINGS = ("apples", "books", "coins", "drums", "eggs", "flags", "gloves", "hats", "keys", "lamps")
PLACES = ("garden", "harbour", "kitchen", "library", "market", "station")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
           "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen")  # fmt: skip
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")  # fmt: skip

PRAISE = ("good", "great", "lovely", "funny", "clever", "moving", "bright", "fine")
BLAME = ("bad", "dull", "weak", "slow", "boring", "clumsy", "sad", "poor")
SUBJECTS = ("film", "book", "song", "play", "meal", "game", "story", "concert")
OPINIONS = ("negative", "neutral", "positive")


def stories(count: int, seed: int) -> list[str]:
    """Small sums in words about who has what: the end of each follows from its beginning.

    Example:
        >>> stories(1, 0)[0]
        'Gita is in the market and has seven eggs. ...
    """
    return _different(_story, count, seed)


def opinions(count: int, seed: int) -> list[tuple[str, str]]:
    """(sentence, one of `OPINIONS`): "not" turns a judgement round, what others say does not count, a price is no judgement."""
    return _different(_opinion, count, seed)


def dates(count: int, seed: int) -> list[tuple[str, str]]:
    """(a date as people write it, the same as YYYY-MM-DD)."""
    return _different(_date, count, seed)


def _story(draw: random.Random) -> str:
    giver, taker = draw.sample(NAMES, 2)
    thing, place = draw.choice(THINGS), draw.choice(PLACES)
    first, second = draw.randint(1, 9), draw.randint(1, 9)
    begin = f"{taker} is in the {place} and has {NUMBERS[first]} {thing}."
    if first > second and draw.random() < 0.5:
        change, rest = f"{taker} gives {NUMBERS[second]} of them to {giver}.", first - second
    else:
        change, rest = f"{giver} comes to the {place} and brings {NUMBERS[second]} more.", first + second
    return f"{begin} {change} Now {taker} has {NUMBERS[rest]} {thing}."


def _opinion(draw: random.Random) -> tuple[str, str]:
    subject = draw.choice(SUBJECTS)
    others = f"although {draw.choice(NAMES)} called it {draw.choice(PRAISE + BLAME)}"
    if draw.random() < 0.2:
        sentence, opinion = (
            f"the {subject} cost {NUMBERS[draw.randint(2, 18)]} coins in the {draw.choice(PLACES)}",
            "neutral",
        )
    else:
        praised, turned = draw.random() < 0.6, draw.random() < 0.35
        word = draw.choice(PRAISE if praised else BLAME)
        sentence = f"the {subject} was {'not ' if turned else ''}{draw.choice(('', 'very ', 'really '))}{word}"
        opinion = "positive" if praised != turned else "negative"
    parts = [sentence, others] if draw.random() < 0.5 else [sentence]
    if draw.random() < 0.3:
        parts.reverse()
    return ", ".join(parts) + ".", opinion


def _date(draw: random.Random) -> tuple[str, str]:
    year, month, day = draw.randint(1900, 2099), draw.randint(1, 12), draw.randint(1, 28)
    name = MONTHS[month - 1]
    written = (
        f"{day} {name} {year}",
        f"{name} {day}, {year}",
        f"{day}. {name[:3]} {year}",
        f"{year}, {name} {day}",
        f"{day}.{month}.{year}",
    )
    return draw.choice(written), f"{year}-{month:02d}-{day:02d}"


def _different(make: Callable[[random.Random], T], count: int, seed: int) -> list[T]:
    """`count` different ones, in the order in which they were drawn."""
    return list(_drawn(make, count, random.Random(seed)))


def _drawn(make: Callable[[random.Random], T], count: int, draw: random.Random) -> Iterator[T]:
    seen: set[T] = set()
    while len(seen) < count:
        item = make(draw)
        if item not in seen:
            seen.add(item)
            yield item
