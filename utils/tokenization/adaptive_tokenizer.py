"""Which tokenizer a model with so many embedding rows gets, and making it. Always one whose ids the model has rows for.

Four tiers: a known pretrained tokenizer, byte-level BPE trained on the text, the most frequent characters, or the person's
own. A tier that is not to be had is passed over at once, and the choice says why. Each tier's work is done elsewhere.
"""

from __future__ import annotations

import difflib
import logging
import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from utils.errors import ConfigError, HubError, TokenizerError
from utils.progress import ProgressCallback, showing
from utils.tokenization import hub_access
from utils.tokenization.bpe_trainer import BYTE_SYMBOLS, checked_specials, train_on_sample
from utils.tokenization.character_tokenizer import build, by_frequency, count_characters, cover
from utils.tokenization.choice import Choice, Strategy
from utils.tokenization.hub_access import HUB_LIMITS, HubLimits
from utils.tokenization.known_tokenizers import KnownTokenizer, tokenizers_for
from utils.tokenization.own_tokenizer import complete_specials, load_own
from utils.tokenization.text_sample import TextSample, take_sample
from utils.tokenization.tokenizer_files import load_saved, save_tokenizer
from utils.tokenization.validator import TokenizerValidator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

DOCUMENT_BYTES = 1_000
"""What a document is taken to hold where only their number is known."""

ENTRIES_PER_ROOT_BYTE = 10.0
"""Byte-level BPE finds about 10·√n entries in n bytes of text: 900 in 10 kB, 2,081 in 50 kB, 4,333 in 200 kB and 6,705 in
465 kB of Python's documentation."""


class AdaptiveTokenizer:
    """Finds or makes a tokenizer for any vocabulary size and any text."""

    @classmethod
    def detect_strategy(cls, vocab_size: int, dataset_size: int) -> Strategy:
        """Which kind of tokenizer suits.

        - "character" below 260 rows: the 256 bytes and four special tokens do not fit;
        - "pretrained" where the rows are those of a known tokenizer that keeps every text, and the text is too small to
          fill them: n documents of `DOCUMENT_BYTES` give about 10·√bytes entries;
        - "train_bpe" otherwise;
        - "custom" where there is neither text nor a known tokenizer, or no row for a character: bring your own.

        Args:
            vocab_size: embedding rows of the model.
            dataset_size: number of documents, e.g. `len(dataset)`.

        Example:
            >>> AdaptiveTokenizer.detect_strategy(50257, 1_000), AdaptiveTokenizer.detect_strategy(5000, 1_000)
            ('pretrained', 'train_bpe')
        """
        if isinstance(dataset_size, bool) or not isinstance(dataset_size, int) or dataset_size < 0:
            raise TokenizerError(f"dataset_size is a number of documents, 0 or more; got {dataset_size!r}.")
        return _choose(vocab_size, dataset_size * DOCUMENT_BYTES, f"about {dataset_size:,} kB of text").strategy

    @classmethod
    def advise(cls, vocab_size: int, dataset: Any = None) -> Choice:
        """The choice for a text, with its reason and what else would work. Builds nothing and asks no network.

        Args:
            vocab_size: embedding rows of the model.
            dataset: as in `load_or_create`; it is read once, so not a generator that is still needed.
        """
        if dataset is None:
            return _choose(vocab_size, 0, "no text")
        return _choose_for(vocab_size, take_sample(dataset))

    @classmethod
    def possible_strategies(cls, vocab_size: int) -> tuple[Strategy, ...]:
        """The kinds that can be asked for with so many rows; "custom" always can.

        Args:
            vocab_size: embedding rows of the model.

        Example:
            >>> AdaptiveTokenizer.possible_strategies(100)
            ('character', 'custom')
        """
        known = any(tokenizer.is_lossless for tokenizer in tokenizers_for(vocab_size))
        possible = {
            "pretrained": known,
            "train_bpe": _bytes_fit(vocab_size),
            "character": vocab_size > len(checked_specials(None)),
            "custom": True,
        }
        return tuple(strategy for strategy in get_args(Strategy) if possible[strategy])

    @classmethod
    def load_or_create(
        cls,
        vocab_size: int,
        dataset: Any = None,
        cache_dir: str | Path = "./tokenizer_cache",
        *,
        own: Any = None,
        strategy: Strategy | None = None,
        special_tokens: Sequence[str] | None = None,
        progress: bool | ProgressCallback = True,
        hub_limits: HubLimits = HUB_LIMITS,
    ) -> PreTrainedTokenizerBase:
        """Give a tokenizer that fits the model's rows; its `.choice` says which kind, why, and what happened on the way.

        Args:
            vocab_size: embedding rows of the model; every id is smaller.
            dataset: training text (never validation text): one text, any iterable of texts, a `datasets.Dataset` with a
                text column, or a loaded dataset. None works only with a known pretrained or an own tokenizer.
            cache_dir: folder in which tokenizers are kept, under a hash of what they were made from.
            own: the person's own tokenizer: a folder, a tokenizer.json, a SentencePiece .model, vocab.json beside
                merges.txt, a tokenizer object, or the name of a Hub repository ("owner/name"). It comes before all else.
            strategy: one of the tiers, to have exactly that one; where it is not to be had, the reason is raised.
            special_tokens: for trained tokenizers; None means `<pad> <unk> <s> </s>`.
            progress: True shows a display, False none; or a callable (texts done, in total, note).
            hub_limits: how long the Hub may take.

        Raises:
            TokenizerError: nothing works; the message says what was tried and what to do.
            ConfigError: an unknown strategy.

        Example:
            >>> tokenizer = AdaptiveTokenizer.load_or_create(5000, ["some text", "more text"])
            >>> print(tokenizer.choice)
        """
        if strategy is not None and strategy not in get_args(Strategy):
            near = difflib.get_close_matches(str(strategy), get_args(Strategy), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigError(f"strategy={strategy!r} is unknown{hint} Known: {', '.join(get_args(Strategy))}.")
        if own is not None or strategy == "custom":
            return _from_own(own, vocab_size, Path(cache_dir), hub_limits)
        specials = checked_specials(special_tokens)
        with showing(progress, "Preparing a tokenizer", "texts") as report:
            sample = None if dataset is None else take_sample(dataset, progress=report)
            choice = _choose(vocab_size, 0, "no text") if sample is None else _choose_for(vocab_size, sample)
            choice = choice if strategy is None else _instead(choice, strategy, "it was asked for")
            return _Maker(vocab_size, sample, Path(cache_dir), specials, report, hub_limits).make(choice, strategy)


class _Maker:
    """Makes the tokenizer of a choice, or of the next tier where that is not to be had."""

    def __init__(
        self,
        rows: int,
        sample: TextSample | None,
        cache_dir: Path,
        specials: list[str],
        progress: ProgressCallback,
        limits: HubLimits,
    ) -> None:
        self.rows, self.sample, self.cache_dir = rows, sample, cache_dir
        self.specials, self.progress, self.limits = specials, progress, limits

    def make(self, choice: Choice, asked: Strategy | None) -> PreTrainedTokenizerBase:
        """Make it; `asked` is the tier that alone will do."""
        if choice.strategy == "pretrained":
            tokenizer, choice = self._pretrained(choice, only=asked is not None)
            if tokenizer is not None:
                return _finished(tokenizer, choice)
        if self.sample is None:
            raise TokenizerError(_nothing_works(self.rows, choice))
        if choice.strategy == "character":
            return self._characters(choice, self.sample)
        if choice.strategy == "custom":
            raise TokenizerError(_nothing_works(self.rows, choice))
        return self._trained(choice, self.sample)

    def _pretrained(self, choice: Choice, only: bool) -> tuple[PreTrainedTokenizerBase | None, Choice]:
        """The first known tokenizer that can be had and fits, else None and the choice of the next tier."""
        refusals: list[str] = []
        for known, repository in _sources(self.rows):
            self.progress(0, None, f"asking the Hub for {repository}")
            try:
                tokenizer, notes = _from_hub(repository, self.rows, self.cache_dir, self.limits)
                TokenizerValidator.validate(tokenizer, self.rows).raise_for_problems()
                _keep_marks_text(tokenizer)
            except (HubError, TokenizerError) as error:
                refusals.append(str(error))
                if isinstance(error, HubError) and error.kind in ("offline", "unreachable"):
                    break  # another repository lies behind the same door
                continue
            return tokenizer, replace(choice, source=f"{known.name}: {repository}", notes=(*choice.notes, *notes))
        reason = " ".join(refusals) or f"no known tokenizer belongs to {self.rows:,} rows and keeps every text"
        if only:
            raise TokenizerError(f"A pretrained tokenizer for {self.rows:,} rows is not to be had: {reason}")
        logger.info("no pretrained tokenizer: %s", reason)
        note = f"A pretrained tokenizer was wanted first ({choice.reason}) and is not to be had: {reason}"
        choice = _instead(choice, "train_bpe", "byte-level BPE keeps every text")
        return None, replace(choice, notes=(*choice.notes, note))

    def _trained(self, choice: Choice, sample: TextSample) -> PreTrainedTokenizerBase:
        tokenizer = train_on_sample(sample, self.rows, self.specials, self.cache_dir, self.progress)
        return _finished(tokenizer, replace(choice, source=f"trained on {sample.rule}"))

    def _characters(self, choice: Choice, sample: TextSample) -> PreTrainedTokenizerBase:
        counts = count_characters(sample.texts)
        tokenizer = build(by_frequency(counts), self.rows, self.specials)
        coverage = cover(counts, tokenizer)
        logger.info("character tokenizer: %s", coverage)
        note = f"Of the text it was made from, {coverage}."
        return _finished(tokenizer, replace(choice, source=f"made from {sample.rule}", notes=(*choice.notes, note)))


def _choose_for(rows: int, sample: TextSample) -> Choice:
    return _choose(rows, sample.read_bytes, f"{sample.read_bytes:,} bytes of text")


def _choose(rows: int, text_bytes: int, text: str) -> Choice:
    """The one rule that `detect_strategy`, `advise` and `load_or_create` share."""
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise TokenizerError(f"vocab_size is the number of the model's embedding rows, 1 or more; got {rows!r}.")
    bytes_fit = _bytes_fit(rows)
    entries = int(ENTRIES_PER_ROOT_BYTE * math.sqrt(text_bytes))
    known = [tokenizer for tokenizer in tokenizers_for(rows) if tokenizer.is_lossless]
    strategy: Strategy
    if not bytes_fit and rows > len(checked_specials(None)):
        strategy, reason = "character", f"{rows} rows do not hold the 256 bytes beside the special tokens"
    elif not bytes_fit:
        strategy, reason = "custom", f"{rows} rows hold no character beside the special tokens"
    elif known and entries < rows:
        strategy = "pretrained"
        reason = (
            f"{rows:,} rows are those of {known[0].name}, and {text} would fill about {entries:,} of them by training"
        )
    elif text_bytes:
        strategy, reason = (
            "train_bpe",
            f"{rows:,} rows hold all bytes, so that every text survives, and {text} is there",
        )
    else:
        strategy, reason = "custom", f"there is {text} to train on, and no known tokenizer belongs to {rows:,} rows"
    return Choice(strategy, reason, rows, alternatives=tuple(_alternatives(rows, strategy)))


def _instead(choice: Choice, strategy: Strategy, reason: str) -> Choice:
    """The same rows with another kind."""
    others = tuple(_alternatives(choice.rows, strategy))
    return replace(choice, strategy=strategy, reason=reason, alternatives=others)


def _bytes_fit(rows: int) -> bool:
    return rows >= BYTE_SYMBOLS + len(checked_specials(None))


def _alternatives(rows: int, chosen: Strategy) -> Iterable[str]:
    for known in tokenizers_for(rows):
        if known.is_lossless and chosen != "pretrained":
            yield f"{known.name} has these rows: strategy='pretrained'"
        elif not known.is_lossless:
            yield f"{known.name} has these rows, but {known.changes}: own={known.repositories[0]!r}"
    if _bytes_fit(rows) and chosen != "train_bpe":
        yield "byte-level BPE from the text: strategy='train_bpe'"
    if chosen != "character" and rows > len(checked_specials(None)):
        yield "one entry per character: strategy='character'"
    yield "your own tokenizer: own='folder, tokenizer.json, .model or owner/name'"


def _sources(rows: int) -> list[tuple[KnownTokenizer, str]]:
    return [(known, name) for known in tokenizers_for(rows) if known.is_lossless for name in known.repositories]


def _from_hub(
    repository: str, rows: int, cache_dir: Path, limits: HubLimits
) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    """A repository's tokenizer, from the cache or the Hub, with the special tokens that training needs."""
    folder = cache_dir / f"hub-{repository.replace('/', '--')}"
    tokenizer: PreTrainedTokenizerBase | None = load_saved(folder)
    if tokenizer is None:
        with tempfile.TemporaryDirectory(prefix="tokenizer-", ignore_cleanup_errors=True) as temporary:
            tokenizer = load_own(hub_access.fetch(repository, temporary, limits))
        save_tokenizer(tokenizer, folder)
    return complete_specials(tokenizer, rows)


def _keep_marks_text(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let text that spells out a special token stay text by default, as in the tokenizers that are trained here."""
    tokenizer.split_special_tokens = True
    tokenizer.init_kwargs["split_special_tokens"] = True  # what is saved


def _from_own(own: Any, rows: int, cache_dir: Path, limits: HubLimits) -> PreTrainedTokenizerBase:
    if own is None:
        raise TokenizerError(
            "strategy='custom' needs the tokenizer: own='folder, tokenizer.json, .model or owner/name'."
        )
    if isinstance(own, str) and not Path(own).expanduser().exists() and hub_access.is_repository(own):
        source = f"Hub repository {own}"
        try:
            tokenizer, notes = _from_hub(own, rows, cache_dir, limits)
        except HubError as error:
            raise TokenizerError(
                f"{own!r} is neither a file or folder here nor to be had from the Hub: {error}"
            ) from error
    else:
        source = str(own) if isinstance(own, (str, Path)) else f"the {type(own).__name__} that was passed"
        tokenizer, notes = complete_specials(load_own(own), rows)
    report = TokenizerValidator.validate(tokenizer, rows, lossless=False)
    report.raise_for_problems()
    notes = (*notes, *(note for note in report.notes if "stay unused" not in note))  # `_finished` says that one
    return _finished(tokenizer, Choice("custom", "you brought your own", rows, source, notes=notes))


def _finished(tokenizer: PreTrainedTokenizerBase, choice: Choice) -> PreTrainedTokenizerBase:
    """Fasten the choice to its tokenizer and log it."""
    size = len(tokenizer)
    unused = (
        (
            f"{choice.rows - size:,} of the model's {choice.rows:,} rows stay unused"
            + (
                "."
                if choice.strategy in ("custom", "pretrained")
                else ": the text holds no more. More text fills more."
            ),
        )
        if size < choice.rows
        else ()
    )
    full = replace(choice, size=size, notes=(*choice.notes, *unused))
    logger.info("tokenizer: %s, %d of %d rows (%s)", full.strategy, size, full.rows, full.reason)
    tokenizer.choice = full  # travels with it in memory; files hold the tokenizer alone
    return tokenizer


def choice_of(tokenizer: PreTrainedTokenizerBase) -> Choice | None:
    """The choice that `AdaptiveTokenizer` fastened to a tokenizer; None for one that came another way."""
    found = getattr(tokenizer, "choice", None)
    return found if isinstance(found, Choice) else None


def _nothing_works(rows: int, choice: Choice) -> str:
    said = " ".join(choice.notes) or choice.reason[:1].upper() + choice.reason[1:] + "."
    return (
        f"There is no tokenizer for {rows:,} rows. {said} Pass text to train on (dataset=), or your own tokenizer "
        "(own= a folder, a tokenizer.json, a SentencePiece .model or 'owner/name')."
    )
