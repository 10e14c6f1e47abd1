"""What is wrong with a text before a GPU is touched. Measures and advises; changes nothing and stops nobody.

Lengths and exact duplicates are taken from every document. Characters, repeated lines and tokens come from a sample (its rule
stands in the report), near duplicates from evenly spaced documents. Each line says passed, warning or failed as the checks of
a model do; only what training cannot use at all fails.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from utils._extras import require
from utils.checks.report import TABLE, CheckResult, Report, Status
from utils.errors import DataError
from utils.progress import ProgressCallback, ignore_progress
from utils.tokenization.documents import Documents, as_documents
from utils.tokenization.text_sample import TextSample, take_sample
from utils.training.data_characters import Characters, count_characters, guess_language

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE_BYTES = 16 << 20
TOKENISED_BYTES = 1 << 20
"""Bytes of the sample, and of the part of it that is tokenised; a share of a percent is then known to a tenth of it."""
SHORT_TOKENS, SHORT_CHARACTERS = 16, 64
"""A shorter document gives next-token prediction hardly any context; characters count where there is no tokenizer."""
SHORT_FEW, SHORT_MANY, SHORT_MOST = 0.05, 0.3, 0.6
"""Shares of short documents at which the advice changes. None of them stops training."""
DUPLICATES = 0.05
"""Share of repeated documents from which on they are worth a warning (Lee et al. 2022, arXiv:2107.06499)."""
NEAR_DOCUMENTS, NEAR_CHARACTERS, NEAR_WORDS, NEAR_SKETCH, NEAR_SHARED = 5000, 1000, 5, 8, 5
"""Near duplicates: so many documents, of each so many characters, in runs of five words; two documents are near duplicates
where five of their eight smallest hashes agree."""
LONG_LINE = 40
"""Characters from which on the same line in two places is no accident."""
REPEATED, BOILERPLATE = 5, 0.1
"""A long line that occurs five times is boilerplate; a tenth of the text is worth a warning."""
CONTROLS, DAMAGE = 1e-4, 1e-5
"""Shares of control characters, and of lost or wrongly decoded ones, from which on they are worth a warning."""
UNKNOWN, UNKNOWN_MANY = 0.001, 0.05
"""Shares of unknown tokens: a warning, and where a model would learn gaps instead of text."""
OVERLAP_LINES, OVERLAP_DOCUMENTS = 0.05, 0.1
"""Shares of validation lines, and of whole validation documents, that training text holds too."""
OPTIMAL_TOKENS = 20
"""Tokens per parameter that make the best use of compute (Hoffmann et al. 2022, arXiv:2203.15556); context, not a threshold."""
SESSION_HOURS = 12
"""Longest session of Colab's free tier."""


@dataclass(frozen=True)
class DataQuality:
    """What was found out about a text.

    Attributes:
        report: one `CheckResult` for each question.
        unit: of the lengths, "tokens" (estimated from bytes) or "characters".
        histogram: (low, high, number of documents) for doubling lengths.
        characters: scripts and kinds of characters of the sample.
        tokens: estimated number of tokens; None without a tokenizer.
    """

    report: Report
    unit: str
    histogram: tuple[tuple[int, int, int], ...]
    characters: Characters
    tokens: int | None = None

    @property
    def passed(self) -> bool:
        """Whether training can use the text."""
        return self.report.passed

    @property
    def verdict(self) -> str:
        """One sentence that names what to look at."""
        return self.report.verdict

    def __getitem__(self, name: str) -> CheckResult:
        """The finding called `name`."""
        return self.report[name]

    def summary(self) -> str:
        """The report as text."""
        return self.report.summary()

    __repr__ = summary

    def figure(self) -> bytes:
        """Histogram of lengths and shares of scripts, as PNG.

        Raises:
            MissingPackageError: matplotlib is not installed.
        """
        require("matplotlib", extra="training", feature="The figure of the data")
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 2.8), layout="constrained")
        lengths, scripts = figure.subplots(1, 2)
        places = range(len(self.histogram))
        lengths.bar(places, [count for _, _, count in self.histogram], color="#1f6feb")
        lengths.set_xticks(list(places), [f"{low:,}" for low, _, _ in self.histogram], rotation=45, fontsize=7)
        lengths.set(xlabel=f"{self.unit} (from)", ylabel="documents", title="Length of documents")
        shares = list(self.characters.scripts.items())[:8][::-1]
        scripts.barh([name for name, _ in shares], [100 * share for _, share in shares], color="#1a7f37")
        scripts.set(xlabel="% of letters", title="Scripts")
        image = io.BytesIO()
        FigureCanvasAgg(figure).print_png(image)
        return image.getvalue()

    def _repr_html_(self) -> str:
        image = base64.b64encode(self.figure()).decode()
        return (
            f'{self.report._repr_html_()}<img alt="Length of documents, scripts" src="data:image/png;base64,{image}">'
        )


def examine_data(
    documents: Any,
    *,
    validation: Any = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    parameters: int | None = None,
    tokens_per_second: float | None = None,
    max_length: int = 512,
    progress: ProgressCallback = ignore_progress,
) -> DataQuality:
    """Measure a text and say what to look at.

    Args:
        documents: texts, or a `LoadedDataset` (its own validation part is taken where there is one).
        validation: texts that are kept for validation; None leaves the overlap out.
        tokenizer: counts tokens and unknown ones; None leaves these lines out.
        parameters: of the model, for tokens per parameter.
        tokens_per_second: measured speed of training, for the time of an epoch.
        max_length: tokens per block.
        progress: told the number of documents that were read.

    Raises:
        DataError: there is no text.

    Example:
        >>> quality = examine_data(data, tokenizer=tokenizer, parameters=124_000_000)
        >>> print(quality.summary())
    """
    texts = as_documents(documents)
    aside = validation if validation is not None else getattr(documents, "validation", None)
    held_out = None if aside is None else as_documents(aside)
    seen = _read(texts, progress)
    if seen.characters == 0:
        raise DataError(f"There is no text in the {len(texts):,} documents: all of them are empty.")
    stride = max(1, seen.bytes // (2 * SAMPLE_BYTES))
    sample = take_sample(islice(texts, 0, None, stride), SAMPLE_BYTES)
    characters = count_characters(sample.texts)
    rate = None if tokenizer is None else _token_rate(tokenizer, sample)
    tokens = None if rate is None else round(seen.bytes * rate.tokens_per_byte)
    lengths = np.asarray(seen.sizes, dtype=np.float64) * rate.tokens_per_byte if rate else np.asarray(seen.lengths)
    unit = "tokens" if rate else "characters"
    histogram = _histogram(lengths)
    checks = [
        _size(seen, tokens, max_length),
        _lengths(lengths, unit, histogram),
        _short(lengths, unit),
        _duplicates(seen),
        _overlap(seen, sample, held_out),
        _scripts(characters, sample, stride),
        _language(sample),
        _damage(characters),
        _controls(characters),
        _boilerplate(sample),
        _unknown(rate),
        _per_parameter(tokens, parameters),
        _epoch(tokens, tokens_per_second),
    ]
    title = f"Data: {getattr(documents, 'name', f'{len(texts):,} documents')}"
    return DataQuality(Report(title, checks), unit, histogram, characters, tokens)


@dataclass
class _Seen:
    """What one walk over all documents told."""

    lengths: array[int] = field(default_factory=lambda: array("Q"))
    sizes: array[int] = field(default_factory=lambda: array("Q"))
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    spaced: list[str] = field(default_factory=list)
    characters: int = 0
    bytes: int = 0
    stride: int = 1


def _read(documents: Documents, progress: ProgressCallback) -> _Seen:
    seen = _Seen(stride=max(1, -(-len(documents) // NEAR_DOCUMENTS)))
    for place, text in enumerate(documents):
        raw = text.encode("utf-8", "surrogatepass")
        seen.lengths.append(len(text))
        seen.sizes.append(len(raw))
        seen.hashes.append(_hash(raw))
        if place % seen.stride == 0:
            seen.spaced.append(text[:NEAR_CHARACTERS])
        if place % 1000 == 0:
            progress(place, len(documents), "examining")
    seen.characters, seen.bytes = sum(seen.lengths), sum(seen.sizes)
    return seen


@dataclass(frozen=True)
class _TokenRate:
    tokens_per_byte: float
    unknown: float
    examples: str


def _token_rate(tokenizer: PreTrainedTokenizerBase, sample: TextSample) -> _TokenRate:
    """Tokens per byte and the share of unknown ones, on evenly spaced pieces of the sample."""
    stride = max(1, -(-sample.kept_bytes // TOKENISED_BYTES))
    texts = sample.texts[::stride]
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    count = sum(map(len, encoded))
    size = sum(len(text.encode()) for text in texts)
    unk = tokenizer.unk_token_id
    lost = 0 if unk is None else sum(ids.count(unk) for ids in encoded)
    return _TokenRate(count / max(size, 1), lost / max(count, 1), _unknown_characters(tokenizer, texts) if lost else "")


def _unknown_characters(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> str:
    """The most frequent characters that have no token of their own."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    common = [character for character, _ in counts.most_common(2000) if not character.isspace()]
    found = [c for c in common if tokenizer.unk_token_id in tokenizer(c, add_special_tokens=False)["input_ids"]]
    return " ".join(found[:20])


def _histogram(lengths: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    """Number of documents for lengths from a power of two to the next."""
    steps = np.floor(np.log2(np.maximum(lengths, 1))).astype(int)
    counts = Counter(steps.tolist())
    return tuple((2**step, 2 ** (step + 1), counts[step]) for step in range(min(counts), max(counts) + 1))


def _size(seen: _Seen, tokens: int | None, max_length: int) -> CheckResult:
    size = f"{len(seen.lengths):,} documents, {seen.bytes:,} bytes"
    if tokens is None:
        return CheckResult("size", "pass", size)
    finding = f"{size}, about {tokens:,} tokens ({tokens / max_length:,.0f} blocks of {max_length})"
    if tokens < max_length:
        return CheckResult(
            "size",
            "fail",
            finding,
            "the text does not fill one block",
            f"add text, or lower max_length to {max(tokens, 2):,}",
        )
    if tokens < 100 * max_length:
        return CheckResult(
            "size",
            "warn",
            finding,
            "so few blocks are learned by heart within minutes",
            "add text, or lower max_length",
        )
    return CheckResult("size", "pass", finding)


def _lengths(lengths: np.ndarray, unit: str, histogram: Sequence[tuple[int, int, int]]) -> CheckResult:
    middle, high = np.percentile(lengths, [50, 95])
    rows = [{"from": low, "to": high_, "documents": count} for low, high_, count in histogram]
    finding = f"median {middle:,.0f} {unit}, 95% have at most {high:,.0f}, the longest {lengths.max():,.0f}"
    return CheckResult(
        "length", "pass", finding, measured={TABLE: rows, "median": float(middle), "longest": float(lengths.max())}
    )


def _short(lengths: np.ndarray, unit: str) -> CheckResult:
    limit = SHORT_TOKENS if unit == "tokens" else SHORT_CHARACTERS
    share = float((lengths < limit).mean())
    finding = f"{share:.1%} of the documents have fewer than {limit} {unit}"
    details = {"share": share}
    if share < SHORT_FEW:
        return CheckResult("short documents", "pass", finding, measured=details)
    if share < SHORT_MANY:
        return CheckResult(
            "short documents", "pass", f"{finding}; packed blocks join them, so nothing is lost", measured=details
        )
    cause = "rows of a chat, headings or single lines, taken for documents of their own"
    fix = "keep packing on; where rows belong together, join them before training"
    if share >= SHORT_MOST:
        fix = "most of the text has hardly any context: join rows that belong together, or read the file as one text; training goes on as it is"
    return CheckResult("short documents", "warn", finding, cause, fix, details)


def _duplicates(seen: _Seen) -> CheckResult:
    hashes = np.asarray(seen.hashes, dtype=np.uint64)
    exact = 1 - len(np.unique(hashes)) / len(hashes)
    near, compared = _near_duplicates(seen.spaced)
    rule = f"all {compared:,} documents" if seen.stride == 1 else f"every {seen.stride}th document"
    finding = f"{exact:.1%} of the documents occur before; near duplicates among {rule}: {near:.1%}"
    details = {"exact": exact, "near": near}
    if exact < DUPLICATES and near < DUPLICATES:
        return CheckResult("duplicates", "pass", finding, measured=details)
    return CheckResult(
        "duplicates",
        "warn",
        finding,
        "the same text again and again weighs more than other text, and is learned by heart",
        "keep each text once; the split never puts equal documents on both sides",
        details,
    )


def _near_duplicates(texts: Sequence[str]) -> tuple[float, int]:
    """Share of documents that are nearly, and not exactly, one before them; by the smallest hashes of their word runs."""
    first: dict[int, int] = {}
    sketches: list[frozenset[int]] = []
    near = 0
    known: set[str] = set()
    for text in texts:
        sketch = _sketch(text)
        others = {first[value] for value in sketch if value in first}
        if text not in known and any(_alike(sketch, sketches[other]) for other in others):
            near += 1
        for value in sketch:
            first.setdefault(value, len(sketches))
        sketches.append(sketch)
        known.add(text)
    return near / max(len(texts), 1), len(texts)


def _sketch(text: str) -> frozenset[int]:
    words = re.findall(r"\w+", text.casefold())
    runs = {
        zlib.crc32(" ".join(words[i : i + NEAR_WORDS]).encode("utf-8", "surrogatepass"))
        for i in range(max(len(words) - NEAR_WORDS + 1, 1))
    }
    return frozenset(sorted(runs)[:NEAR_SKETCH])


def _alike(one: frozenset[int], other: frozenset[int]) -> bool:
    """Whether enough of the smallest hashes agree; short texts with few hashes must agree in the same share."""
    return len(one & other) * NEAR_SKETCH >= NEAR_SHARED * max(len(one), len(other))


def _overlap(seen: _Seen, sample: TextSample, validation: Documents | None) -> CheckResult:
    name = "train/validation overlap"
    if validation is None:
        return CheckResult(
            name,
            "skip",
            "no validation text was given; the split that training makes keeps equal documents together",
        )
    hashes = np.asarray([_hash(text.encode("utf-8", "surrogatepass")) for text in validation], dtype=np.uint64)
    if not len(hashes):
        return CheckResult(name, "fail", "there is no validation document", "the part is empty", "choose another split")
    whole = float(np.isin(hashes, np.asarray(seen.hashes, dtype=np.uint64)).mean())
    held_out = take_sample(validation, SAMPLE_BYTES // 4)
    training = {_hash(line.encode()) for line in _long_lines(sample.texts)}
    lines = [_hash(line.encode()) in training for line in _long_lines(held_out.texts)]
    share = sum(lines) / max(len(lines), 1)
    finding = (
        f"{whole:.1%} of the validation documents, and {share:.1%} of its long lines, are in the training text too"
    )
    details = {"documents": whole, "lines": share}
    status: Status = "fail" if whole >= OVERLAP_DOCUMENTS else "warn" if whole or share >= OVERLAP_LINES else "pass"
    if status == "pass":
        return CheckResult(name, status, finding, measured=details)
    return CheckResult(
        name, status, finding, "the validation loss then measures memory", "remove them from one of the parts", details
    )


def _scripts(characters: Characters, sample: TextSample, stride: int) -> CheckResult:
    rule = sample.rule if stride == 1 else f"every {stride}th document, of these {sample.rule}"
    shown = [f"{name} {share:.1%}" for name, share in list(characters.scripts.items())[:5]]
    kinds = ", ".join(f"{name} {share:.0%}" for name, share in characters.kinds.items() if share >= 0.005)
    finding = (
        f"letters: {', '.join(shown) or 'none'}; {kinds}; {characters.distinct:,} different characters. Sample: {rule}"
    )
    rows = [{"script": name, "share of letters": share} for name, share in characters.scripts.items()]
    if characters.kinds.get("letters", 0) >= 0.3:
        return CheckResult("scripts and characters", "pass", finding, measured={TABLE: rows})
    cause = "less than a third of the characters are letters: tables, numbers, code or binary data"
    return CheckResult("scripts and characters", "warn", finding, cause, "look at a few documents", {TABLE: rows})


def _language(sample: TextSample) -> CheckResult:
    language, finding = guess_language(_up_to(sample.texts, TOKENISED_BYTES))
    return CheckResult("language", "pass", finding, measured={"language": language})


def _damage(characters: Characters) -> CheckResult:
    share = (characters.replaced + characters.mojibake) / max(characters.total, 1)
    finding = f"{characters.replaced:,} lost characters (U+FFFD), {characters.mojibake:,} places like 'Ã©' for 'é'"
    if share < DAMAGE or characters.replaced + characters.mojibake < 2:
        return CheckResult("damaged text", "pass", finding)
    fix = "read the original file with its true encoding: encoding='...'"
    return CheckResult("damaged text", "warn", finding, "the text was decoded with a wrong encoding before", fix)


def _controls(characters: Characters) -> CheckResult:
    share = characters.controls / max(characters.total, 1)
    finding = f"{characters.controls:,} control characters ({share:.3%})"
    if share < CONTROLS:
        return CheckResult("control characters", "pass", finding)
    fix = "remove them unless the model is to write them"
    return CheckResult("control characters", "warn", finding, "terminal logs, or a format that is no plain text", fix)


def _boilerplate(sample: TextSample) -> CheckResult:
    counts = Counter(_long_lines(sample.texts))
    repeated = {line: count for line, count in counts.items() if count >= REPEATED}
    share = sum(len(line) * (count - 1) for line, count in repeated.items()) / max(sum(map(len, sample.texts)), 1)
    finding = f"{len(repeated):,} long lines occur {REPEATED} times or more: {share:.1%} of the text"
    rows = [{"times": n, "line": line[:100]} for line, n in Counter(repeated).most_common(10)]
    details = {TABLE: rows, "share": share}
    if share < BOILERPLATE:
        return CheckResult("boilerplate", "pass", finding, measured=details)
    cause = "headers, licences or navigation in every document"
    return CheckResult(
        "boilerplate", "warn", finding, cause, "remove these lines; the table shows the most frequent", details
    )


def _unknown(rate: _TokenRate | None) -> CheckResult:
    if rate is None:
        return CheckResult("unknown tokens", "skip", "no tokenizer was given")
    finding = f"{rate.unknown:.2%} of the tokens are unknown" + (
        f", among them: {rate.examples}" if rate.examples else ""
    )
    details = {"share": rate.unknown}
    if rate.unknown < UNKNOWN:
        return CheckResult("unknown tokens", "pass", finding, measured=details)
    status: Status = "warn" if rate.unknown < UNKNOWN_MANY else "fail"
    fix = "use a tokenizer with bytes (300 vocabulary rows or more), or one that was trained on this text"
    return CheckResult(
        "unknown tokens", status, finding, "the tokenizer has no token for these characters", fix, details
    )


def _per_parameter(tokens: int | None, parameters: int | None) -> CheckResult:
    name = "tokens per parameter"
    if tokens is None or not parameters:
        return CheckResult(name, "skip", f"needs {'a tokenizer' if tokens is None else 'the number of parameters'}")
    ratio = tokens / parameters
    finding = f"{ratio:.2g} tokens per parameter in one epoch; {OPTIMAL_TOKENS} make the best use of compute (Hoffmann et al. 2022)"
    if ratio >= 1:
        return CheckResult(name, "pass", finding, measured={"ratio": ratio})
    fix = "more text or a smaller model; about four epochs are nearly as good as new text (Muennighoff et al. 2023), then watch the validation loss"
    return CheckResult(name, "warn", finding, "the model can learn this text by heart", fix, {"ratio": ratio})


def _epoch(tokens: int | None, tokens_per_second: float | None) -> CheckResult:
    name = "time per epoch"
    if tokens is None or not tokens_per_second:
        return CheckResult(name, "skip", f"needs {'a tokenizer' if tokens is None else 'a measured speed'}")
    seconds = tokens / tokens_per_second
    shown = (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} minutes"
        if seconds < 7200
        else f"{seconds / 3600:.1f} hours"
    )
    finding = f"about {shown} at {tokens_per_second:,.0f} tokens per second"
    if seconds <= SESSION_HOURS * 3600:
        return CheckResult(name, "pass", finding, measured={"seconds": seconds})
    fix = "train on a part (max_documents=), or on several days: training goes on from its last checkpoint"
    return CheckResult(
        name, "warn", finding, f"longer than a session of {SESSION_HOURS} hours", fix, {"seconds": seconds}
    )


def _long_lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from (line for line in map(str.strip, text.split("\n")) if len(line) >= LONG_LINE)


def _up_to(texts: Sequence[str], size: int) -> list[str]:
    """Evenly spaced texts of about `size` characters together."""
    stride = max(1, -(-sum(map(len, texts)) // size))
    return list(texts[::stride])


def _hash(raw: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")
