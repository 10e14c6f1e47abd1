"""Whether two data sets are alike: a profile of each, and graded verdicts on what differs.

A profile counts what occurs (tokens or pairs of bytes, lengths, unknown tokens; brightness, channels and sizes of images) in a
bounded sample, in `GROUPS` groups of whole documents. Two profiles are compared by the Jensen-Shannon distance of their counts
(base 2, from 0 to 1). Two samples of one source differ too, the more so the smaller they are; how much is measured between
halves of each data set itself, and only what goes beyond that counts. Trains nothing and reads no files.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from utils._files import write_json
from utils._tables import html_table, text_table
from utils.adapters.contract import TASKS
from utils.errors import ConfigError, DataError, TokenizerError
from utils.tokenization.encoding import Encoder, Recipe, tokenizer_fingerprint
from utils.tokenization.samples import Samples
from utils.tokenization.text_sample import take_sample
from utils.tokenization.vision import Images, to_unit
from utils.training.curves import Panel, Series, picture_png

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT_VERSION = 1
GROUPS = 8
"""Groups of a profile; halves of them are compared with each other."""
KINDS = 2048
"""Symbols that are told apart. A larger vocabulary is folded onto so many by a fixed hash, which keeps profiles small."""
TEXT_BYTES, MOST_SAMPLES = 2 << 20, 4096
"""UTF-8 bytes of text, and blocks or images, from which a profile is taken."""
MANY_DOCUMENTS, PIECE_CHARACTERS = 64, 2000
"""With fewer documents, their pieces are spread over the groups instead of whole documents."""
RUN = 128
"""Symbols within which repetitions count less."""
FEWEST = 16
"""Observations that both sides need, else nothing is said."""

GRADES = ("none", "low", "moderate", "high")
DISTANCES = (0.10, 0.18, 0.25)
"""Corrected Jensen-Shannon distances at which drift is low, moderate and high. Measured: 0 between samples of one source, 20 to
400 documents each (0 of 200 pairs beyond chance); program text against documentation 0.26 in pairs of bytes and 0.43 in tokens;
messages of one program in other European languages 0.31 to 0.45 and 0.48 to 0.57, in other scripts 0.57 and more."""
RATES = (0.005, 0.02, 0.10)
"""Differences of the share of unknown tokens at which drift is low, moderate and high."""
_SURE = 4.0
"""Standard deviations that chance does not reach: 1 in 30,000."""
MOST_FREEDOM = 80
"""Kinds that count as independent, at most: tokens of one text go together, so that more do not make a difference surer."""
_SPLITS = 24
_HASH = np.uint64(2654435761)  # Knuth's multiplicative hash, 2**32 over the golden ratio


DRIFT_FILE = "drift.json"
"""Where a run's folder keeps the comparison of its training and validation data (`DriftMetrics.save`)."""


@dataclass(frozen=True)
class Feature:
    """Counts of one thing, in groups of documents.

    Attributes:
        name: such as "tokens" or "lengths"; title: for people, with the unit.
        edges: borders of the kinds, one more than there are, where they are ranges of numbers; empty for symbols.
        counts: `GROUPS` rows of as many numbers as there are kinds.
    """

    name: str
    title: str
    edges: tuple[float, ...]
    counts: tuple[tuple[float, ...], ...]

    @property
    def table(self) -> np.ndarray:
        """The counts as an array (groups, kinds)."""
        return np.asarray(self.counts, dtype=np.float64)

    @property
    def shares(self) -> np.ndarray:
        """Share of each kind over all groups, (kinds,)."""
        total = self.table.sum(0)
        return total / max(total.sum(), 1.0)


@dataclass(frozen=True)
class DatasetProfile:
    """What a data set holds, in numbers.

    Attributes:
        task: "text" or "images".
        unit: what was counted: "tokens", "pairs of bytes" or "pixels".
        vocabulary: fingerprint of the tokenizer; empty where none took part.
        samples: documents, blocks or images in all; taken: of which a sample was profiled, in words.
        figures: name → number, for people.
        features: counts by name.
    """

    task: str
    unit: str
    vocabulary: str
    samples: int
    taken: str
    figures: Mapping[str, float]
    features: Mapping[str, Feature]
    format_version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON types; a group's counts are one text, which keeps files short."""
        features = {
            name: {"title": item.title, "edges": list(item.edges), "counts": [_written(row) for row in item.counts]}
            for name, item in self.features.items()
        }
        plain = {
            name: getattr(self, name) for name in ("task", "unit", "vocabulary", "samples", "taken", "format_version")
        }
        return {**plain, "figures": dict(self.figures), "features": features}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetProfile:
        """A profile from JSON.

        Raises:
            ConfigError: it is none, or of a newer format.
        """
        try:
            if values["format_version"] > FORMAT_VERSION:
                raise ConfigError(f"The profile has format version {values['format_version']}; update the package.")
            features = {
                name: Feature(
                    name,
                    item["title"],
                    tuple(item["edges"]),
                    tuple(tuple(map(float, row.split())) for row in item["counts"]),
                )
                for name, item in values["features"].items()
            }
            return cls(**{**values, "features": features, "figures": dict(values["figures"])})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"This is no profile of a data set: {type(error).__name__} {error}.") from error

    def save(self, path: str | Path) -> Path:
        """Write the profile as JSON, atomically."""
        return write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> DatasetProfile:
        """Read what `save` wrote."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} holds no profile: {error}.") from error
        return cls.from_dict(values)

    def _rows(self) -> list[tuple[str, str]]:
        size = (("samples", f"{self.samples:,}"), ("profiled", self.taken), ("unit", self.unit))
        return [*size, *((name, f"{value:,.4g}") for name, value in self.figures.items())]

    def summary(self) -> str:
        """The figures as text."""
        return text_table(("", ""), self._rows(), title="Profile")

    def _repr_html_(self) -> str:
        return html_table(("", ""), self._rows())


# ---- profiles -------------------------------------------------------------------------------------------------------
def compute_dataset_profile(
    data: Any, tokenizer: PreTrainedTokenizerBase | None = None, task: str | None = None
) -> DatasetProfile:
    """Count what a data set holds, in a bounded sample that is the same for the same data.

    Args:
        data: texts, or anything that `DatasetLoader.from_anything` reads; token ids (N, T); samples of a data module; images
            as arrays or tensors (N, H, W), (N, H, W, C) or (N, C, H, W), as a list, or as `Images`.
        tokenizer: counts tokens and unknown ones; without it texts are counted by pairs of bytes.
        task: "lm", "masked", "seq2seq", "classification" or "text" for texts, "vision" for images; None looks at the data.

    Raises:
        DataError: there is nothing in the data, or it is of no kind that is known.
        ConfigError: the task is unknown.
    """
    if task not in (None, "text", *TASKS):
        raise ConfigError(f"task={task!r} is unknown. Known: text, {', '.join(TASKS)}.")
    if task == "vision" or (task is None and _holds_images(data)):
        return _images(data)
    if isinstance(data, torch.Tensor):
        data = data.cpu().numpy()
    if isinstance(data, Samples) or (isinstance(data, np.ndarray) and data.ndim == 2 and data.dtype.kind in "iu"):
        return _ids(data, tokenizer)
    return _texts(data, tokenizer)


def _holds_images(data: Any) -> bool:
    if isinstance(data, Images):
        return True
    if isinstance(data, (np.ndarray, torch.Tensor)):
        return data.ndim in (3, 4)
    first = data[0] if isinstance(data, (list, tuple)) and len(data) else None
    first = first[0] if isinstance(first, tuple) and first else first
    return hasattr(first, "getbands") or (isinstance(first, (np.ndarray, torch.Tensor)) and first.ndim in (2, 3))


def _texts(data: Any, tokenizer: PreTrainedTokenizerBase | None) -> DatasetProfile:
    from utils.training.dataset_utilities import DatasetLoader

    documents = DatasetLoader.from_anything(data, progress=False)
    lengths: list[int] = []
    try:
        sample = take_sample(_measured(documents, lengths), TEXT_BYTES)
    except TokenizerError as error:
        raise DataError(f"There is no text to profile: {error}") from error
    units = sample.texts if len(sample.texts) >= MANY_DOCUMENTS else _cut(sample.texts)
    if tokenizer is None:
        symbols: Iterable[np.ndarray] = map(_byte_pairs, units)
    else:
        symbols = Encoder(tokenizer, Recipe(end=False))(units)
    counted = _Symbols(tokenizer)
    counted.add(symbols, len(units))
    return _text_profile(len(lengths), sample.rule, counted, np.array(lengths), "characters")


def _ids(data: Any, tokenizer: PreTrainedTokenizerBase | None) -> DatasetProfile:
    count = len(data)
    chosen = _chosen(count)
    rows = list(_rows_of(data, chosen))
    if not rows:
        raise DataError("There are no token ids to profile.")
    counted = _Symbols(tokenizer, plain_ids=True)
    counted.add(rows, len(rows))
    taken = f"{len(rows):,} of {count:,} rows"
    return _text_profile(count, taken, counted, np.array([len(row) for row in rows]), "tokens")


def _rows_of(data: Any, chosen: Sequence[int]) -> Iterator[np.ndarray]:
    """Ids of the chosen rows, (T,), without padding."""
    if isinstance(data, np.ndarray):
        yield from (data[index] for index in chosen)
        return
    for index in chosen:
        batch = data.__getitems__([index])
        if "input_ids" not in batch:
            raise DataError(f"Samples of type {type(data).__name__} hold no token ids.")
        ids = batch["input_ids"][0].numpy()
        yield ids[batch["attention_mask"][0].numpy() != 0] if "attention_mask" in batch else ids


def _measured(documents: Iterable[str], lengths: list[int]) -> Iterator[str]:
    for text in documents:
        lengths.append(len(text))
        yield text


def _cut(texts: Sequence[str]) -> list[str]:
    return [text[begin : begin + PIECE_CHARACTERS] for text in texts for begin in range(0, len(text), PIECE_CHARACTERS)]


def _byte_pairs(text: str) -> np.ndarray:
    raw = np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8).astype(np.int64)
    return raw[:-1] * 256 + raw[1:]


class _Symbols:
    """Counts ids by group, and how many of them are unknown."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, plain_ids: bool = False) -> None:
        self.unknown_id = None if tokenizer is None else tokenizer.unk_token_id
        self.vocabulary = "" if tokenizer is None else tokenizer_fingerprint(tokenizer)
        self.unit = "pairs of bytes" if tokenizer is None and not plain_ids else "tokens"
        self.seen = 0
        self.counts = np.zeros((GROUPS, KINDS))
        self.unknown = np.zeros((GROUPS, 2), dtype=np.int64)

    def add(self, units: Iterable[np.ndarray], number: int) -> None:
        for ids, group in zip(units, _groups(number)):
            self.seen += len(ids)
            self.counts[group] += _damped(_folded(ids))
            missing = 0 if self.unknown_id is None else int((ids == self.unknown_id).sum())
            self.unknown[group] += (len(ids) - missing, missing)


def _folded(ids: np.ndarray) -> np.ndarray:
    """Ids onto `KINDS` kinds; the first `KINDS // 2`, where frequent tokens lie, keep a kind of their own."""
    whole = ids.astype(np.uint64)
    own = KINDS // 2
    hashed = own + ((whole * _HASH) % np.uint64(2**32) * np.uint64(KINDS - own)) // np.uint64(2**32)
    return np.where(whole < own, whole, hashed).astype(np.int64)


def _damped(kinds: np.ndarray) -> np.ndarray:
    """How often each kind occurs, (KINDS,), where n times within a run of `RUN` symbols count as log(1 + n).

    Words come in bursts: what a document says once it says again, and a drawn line is a hundred dashes. Plain counts of two
    samples of one source then differ by single documents (compare Church and Gale 1995).
    """
    runs = np.arange(len(kinds), dtype=np.int64) // RUN
    places, times = np.unique(runs * KINDS + kinds, return_counts=True)
    return np.bincount(places % KINDS, weights=np.log1p(times), minlength=KINDS)


def _groups(number: int) -> np.ndarray:
    """A group for each of `number` documents: all of equal size, in an order of chance that is always the same."""
    return np.random.default_rng(0).permutation(number) % GROUPS


def _chosen(count: int) -> list[int]:
    """Rows to look at, evenly spaced."""
    return list(range(count)) if count <= MOST_SAMPLES else np.linspace(0, count - 1, MOST_SAMPLES).astype(int).tolist()


def _text_profile(samples: int, taken: str, counted: _Symbols, lengths: np.ndarray, unit: str) -> DatasetProfile:
    seen = counted.seen
    figures = {
        f"mean length ({unit})": float(lengths.mean()),
        f"median length ({unit})": float(np.median(lengths)),
        f"longest ({unit})": float(lengths.max()),
        counted.unit: float(seen),
    }
    features = {
        "symbols": Feature("symbols", counted.unit, (), _tuples(counted.counts.round(1))),
        "lengths": _histogram("lengths", f"length ({unit})", lengths, _doublings(34)),
    }
    if counted.unknown_id is not None:
        figures["unknown tokens (share)"] = float(counted.unknown[:, 1].sum() / max(seen, 1))
        features["unknown"] = Feature("unknown", "unknown tokens", (), _tuples(counted.unknown))
    return DatasetProfile("text", counted.unit, counted.vocabulary, samples, taken, figures, features)


def _images(data: Any) -> DatasetProfile:
    count = len(data) if hasattr(data, "__len__") else 0
    if not count:
        raise DataError("There are no images to profile.")
    chosen = _chosen(count)
    measured = [_measure(_image_of(data, index)) for index in chosen]
    brightness, contrast, pixels, ratio = (np.array([item[place] for item in measured]) for place in range(4))
    channels = {len(item[4]) for item in measured}
    shares, powers = tuple(np.linspace(0, 1, 33)), tuple(np.linspace(-4, 4, 33))
    features = {
        "brightness": _histogram("brightness", "mean brightness of an image", brightness, shares),
        "contrast": _histogram("contrast", "standard deviation within an image", contrast, shares),
        "sizes": _histogram("sizes", "pixels", pixels, _doublings(34)),
        "shapes": _histogram("shapes", "width to height, in powers of two", np.log2(ratio), powers),
    }
    figures = {"brightness": float(brightness.mean()), "contrast": float(contrast.mean())}
    for channel in range(max(channels)):
        own = [item[4][channel] for item in measured if len(item[4]) > channel]
        means, deviations = np.array([pair[0] for pair in own]), np.array([pair[1] for pair in own])
        figures[f"channel {channel} mean"], figures[f"channel {channel} deviation"] = means.mean(), deviations.mean()
        for what, values in (("mean", means), ("deviation", deviations)):
            name = f"channel {channel} {what}"
            features[name] = _histogram(name, f"{what} of channel {channel}", values, shares)
    figures |= {"pixels": float(pixels.mean()), "width to height": float(ratio.mean())}
    taken = f"{len(chosen):,} of {count:,} images"
    plain = {name: float(value) for name, value in figures.items()}
    return DatasetProfile("images", "pixels", "", count, taken, plain, features)


def _image_of(data: Any, index: int) -> torch.Tensor:
    if isinstance(data, Images):
        return data.image(index)
    item = data[index]
    if isinstance(item, Mapping):
        item = next((item[name] for name in ("image", "img", "pixel_values") if name in item), item)
    return to_unit(item[0] if isinstance(item, tuple) else item, index)


def _measure(image: torch.Tensor) -> tuple[float, float, int, float, list[tuple[float, float]]]:
    """Brightness, contrast, pixels, width to height, and mean and deviation of each channel of (C, H, W)."""
    own = [(float(channel.mean()), float(channel.std(unbiased=False))) for channel in image]
    height, width = image.shape[1:]
    return float(image.mean()), float(image.std(unbiased=False)), height * width, width / height, own


def _doublings(number: int) -> tuple[float, ...]:
    """0, 1, and then two steps to each doubling."""
    return (0.0, 1.0, *(2 ** (step / 2) for step in range(1, 2 * number)))


def _histogram(name: str, title: str, values: np.ndarray, edges: tuple[float, ...]) -> Feature:
    groups = _groups(len(values))
    inside = np.clip(values, edges[0], edges[-1])
    counts = np.stack([np.histogram(inside[groups == group], edges)[0] for group in range(GROUPS)])
    return Feature(name, title, tuple(map(float, edges)), _tuples(counts))


def _written(row: Sequence[float]) -> str:
    return " ".join(f"{value:.10g}" for value in row)


def _tuples(counts: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in counts.tolist())


# ---- comparison -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class FeatureDrift:
    """How far two data sets differ in one thing.

    Attributes:
        name, title: of the feature.
        grade: one of `GRADES`, or "not judged" where there is too little data.
        effect: corrected distance (0 to 1), or difference of the shares of unknown tokens.
        distance: Jensen-Shannon distance between halves of both, as measured.
        noise: the same between halves of one data set: what chance alone gives.
        why: in words.
    """

    name: str
    title: str
    grade: str
    effect: float
    distance: float
    noise: float
    why: str


@dataclass(frozen=True)
class DriftMetrics:
    """Verdicts on two data sets.

    Attributes:
        features: one verdict for each thing that was compared.
        profiles: the first and the second profile.
        names: what the two are called.
    """

    features: tuple[FeatureDrift, ...]
    profiles: tuple[DatasetProfile, DatasetProfile]
    names: tuple[str, str] = ("first", "second")

    @property
    def grade(self) -> str:
        """The worst grade: "none", "low", "moderate" or "high"; "not judged" where nothing could be."""
        judged = [item.grade for item in self.features if item.grade in GRADES]
        return max(judged, key=GRADES.index) if judged else "not judged"

    @property
    def verdict(self) -> str:
        """One sentence that names what differs most."""
        grade = self.grade
        if grade == "not judged":
            return "Too little data to say whether the two differ."
        if grade == "none":
            return f"No drift between {self.names[0]} and {self.names[1]} beyond chance."
        worst = [item.title for item in self.features if item.grade == grade]
        return f"{grade.capitalize()} drift between {self.names[0]} and {self.names[1]}: {', '.join(worst)}."

    def __getitem__(self, name: str) -> FeatureDrift:
        """The verdict on one feature."""
        return next(item for item in self.features if item.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Verdicts and both profiles as JSON types."""
        return {
            "format_version": FORMAT_VERSION,
            "grade": self.grade,
            "verdict": self.verdict,
            "names": list(self.names),
            "features": [dataclasses.asdict(item) for item in self.features],
            "profiles": [profile.to_dict() for profile in self.profiles],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DriftMetrics:
        """What `to_dict` gave.

        Raises:
            ConfigError: it is something else.
        """
        try:
            first, second = (DatasetProfile.from_dict(item) for item in values["profiles"])
            features = tuple(FeatureDrift(**item) for item in values["features"])
            one, other = values["names"]
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"This is no comparison of data sets: {type(error).__name__} {error}.") from error
        return cls(features, (first, second), (str(one), str(other)))

    def save(self, path: str | Path) -> Path:
        """Write the comparison as JSON, atomically."""
        return write_json(path, self.to_dict())

    def _rows(self) -> list[tuple[str, str, str, str, str]]:
        return [
            (item.title, item.grade, f"{item.effect:.3f}", f"{item.distance:.3f} ({item.noise:.3f})", item.why)
            for item in self.features
        ]

    _COLUMNS = ("what", "drift", "effect", "distance (chance)", "why")

    def summary(self) -> str:
        """Verdict and table as text."""
        return text_table(self._COLUMNS, self._rows(), title=self.verdict)

    __repr__ = summary

    def _repr_html_(self) -> str:
        import html

        return f"<p>{html.escape(self.verdict)}</p>" + html_table(self._COLUMNS, self._rows())

    def panels(self) -> list[Panel]:
        """Four panels: the distribution of symbols (or brightness), lengths (or sizes), a second look, and the verdicts."""
        is_text = self.profiles[0].task == "text"
        shown = ("symbols", "lengths", "unknown") if is_text else ("brightness", "sizes", "channel 0 mean")
        return [*(self._panel(name) for name in shown), self._verdict_panel()]

    def figure(self) -> bytes:
        """The four panels as PNG.

        Raises:
            MissingPackageError: matplotlib is not installed.
        """
        return picture_png(self.panels(), columns=2)

    def _panel(self, name: str) -> Panel:
        pair = [profile.features.get(name) for profile in self.profiles]
        first, second = pair
        if first is None or second is None:
            return Panel("unknown tokens" if name == "unknown" else name, missing="not recorded")
        if name == "symbols":
            order = np.argsort(-(first.shares + second.shares), kind="stable")[:200]
            series = [
                Series(label, range(1, len(order) + 1), (item.shares[order] * 100).tolist())
                for label, item in zip(self.names, (first, second))
            ]
            return Panel(first.title, "kind, most frequent first", "% of all", series, logarithmic=True)
        if name == "unknown":
            bars = [(label, 100 * float(item.shares[1])) for label, item in zip(self.names, (first, second))]
            return Panel(first.title, "", "% of all tokens", bars=bars)
        places = np.asarray(first.edges[:-1])
        used = np.flatnonzero(first.shares + second.shares)
        span = slice(max(int(used.min()) - 1, 0), int(used.max()) + 2) if len(used) else slice(0, 2)
        series = [
            Series(label, places[span].tolist(), (item.shares[span] * 100).tolist(), stepped=True)
            for label, item in zip(self.names, (first, second))
        ]
        return Panel(first.title, "from", "% of all", series, wide=name in ("lengths", "sizes"))

    def _verdict_panel(self) -> Panel:
        bars = [(f"{item.title}: {item.grade}", item.effect) for item in self.features]
        return Panel(f"drift: {self.grade}", "", "effect", bars=bars, marks=list(zip(GRADES[1:], DISTANCES)))


def compare_profiles(
    first: DatasetProfile, second: DatasetProfile, names: tuple[str, str] = ("first", "second")
) -> DriftMetrics:
    """Say in what two data sets differ, and how much.

    Args:
        first: profile of one data set.
        second: profile of another of the same kind, counted with the same tokenizer.
        names: what the two are called in the verdict.

    Raises:
        ConfigError: the profiles count different things.

    Example:
        >>> compare_profiles(compute_dataset_profile(train), compute_dataset_profile(validation)).grade
    """
    for what in ("task", "unit", "vocabulary"):
        one, other = getattr(first, what), getattr(second, what)
        if one != other:
            shown = "different tokenizers" if what == "vocabulary" else f"{what} {one!r} and {other!r}"
            raise ConfigError(f"These profiles cannot be compared ({shown}). Profile both data sets in the same way.")
    shared = [name for name in first.features if name in second.features]
    verdicts = [_judged(first.features[name], second.features[name]) for name in shared]
    missing = sorted(set(first.features) ^ set(second.features))
    verdicts += [FeatureDrift(name, name, "high", 1.0, 1.0, 0.0, "only one of the two has it") for name in missing]
    return DriftMetrics(tuple(verdicts), (first, second), names)


def _judged(first: Feature, second: Feature) -> FeatureDrift:
    one, other = first.table, second.table
    if first.edges != second.edges or one.shape[1] != other.shape[1]:
        raise ConfigError(f"The profiles count {first.title} in different ranges; take both with one version.")
    if min(one.sum(), other.sum()) < FEWEST or min(_filled(one), _filled(other)) < 2:
        return FeatureDrift(
            first.name, first.title, "not judged", 0.0, 0.0, 0.0, f"fewer than {FEWEST} observations on one side"
        )
    between, within = _between(one, other), (_within(one) + _within(other)) / 2
    excess = max(0.0, between - within)
    kinds = int(((one.sum(0) + other.sum(0)) >= 5).sum())
    sure = between >= _ratio(min(max(kinds - 1, 1), MOST_FREEDOM)) * within and excess > 0
    if first.name == "unknown":
        effect, borders = abs(float(first.shares[1] - second.shares[1])), RATES
        words = f"{first.shares[1]:.2%} and {second.shares[1]:.2%}"
    else:
        effect, borders = math.sqrt(excess), DISTANCES
        words = f"beyond chance by {effect:.3f}"
    grade = GRADES[sum(effect >= border for border in borders)] if sure else "none"
    why = words if sure else f"{words}, which chance explains" if first.name == "unknown" else "as chance gives"
    return FeatureDrift(first.name, first.title, grade, effect if sure else 0.0, between**0.5, within**0.5, why)


def _filled(table: np.ndarray) -> int:
    """Groups that hold something."""
    return int((table.sum(1) > 0).sum())


def _halves(table: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Counts of both halves of the groups, for evenly spaced ones of the 35 ways to halve them."""
    filled = table[table.sum(1) > 0]
    number = len(filled)
    ways = list(itertools.combinations(range(number), number // 2))
    for way in ways[:: max(1, len(ways) // _SPLITS)]:
        inside = np.isin(np.arange(number), way)
        yield filled[inside].sum(0), filled[~inside].sum(0)


def _within(table: np.ndarray) -> float:
    """Mean divergence between halves of one data set."""
    return float(np.mean([_divergence(half, rest) for half, rest in _halves(table)]))


def _between(one: np.ndarray, other: np.ndarray) -> float:
    """Mean divergence between a half of one data set and a half of the other."""
    return float(np.mean([_divergence(a, b) for (a, _), (b, _) in zip(_halves(one), _halves(other))]))


def _divergence(one: np.ndarray, other: np.ndarray) -> float:
    """Jensen-Shannon divergence in bits, 0 to 1; its square root is a distance (Endres and Schindelin 2003)."""
    p, q = one / one.sum(), other / other.sum()
    m = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log2(p / m), 0.0) + np.where(q > 0, q * np.log2(q / m), 0.0)
    return float(min(max(terms.sum() / 2, 0.0), 1.0))


def _ratio(freedom: int) -> float:
    """How many times its mean a chi-square exceeds once in 30,000 times (Wilson and Hilferty 1931)."""
    spread = 2 / (9 * freedom)
    return (1 - spread + _SURE * math.sqrt(spread)) ** 3


def drift_between(train: Samples, validation: Samples, tokenizer: PreTrainedTokenizerBase | None) -> DriftMetrics:
    """How far the validation part of a run's data lies from its training part."""
    profiles = (compute_dataset_profile(part, tokenizer) for part in (train, validation))
    first, second = profiles
    return compare_profiles(first, second, ("training", "validation"))
