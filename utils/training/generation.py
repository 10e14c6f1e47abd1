"""Text from a trained model or from its exported file: prompts in, text out. The verb `utils.generate` lives here.

Choosing tokens is for `utils.decoding`, which exported folders hold too; asking a module is for `generation_steps`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.preserved import preserved
from utils.decoding import NoChoiceError, Sampling, Step, TextStream, Writer, Written, decode
from utils.errors import ConfigError, GenerationError, TokenizerError
from utils.tokenization.encoding import Encoder, Recipe
from utils.training.generation_steps import CachedStep, ExportedFile, FileStep, ModelStep

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PromptT = TypeVar("PromptT", str, list[str])
"""A text, or texts: what goes in comes out."""


def generate(
    model: Any,
    prompt: PromptT,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_new_tokens: int = 50,
    temperature: float = 0.8,
    top_k: int | None = 50,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    use_cache: bool = True,
) -> PromptT:
    """Continue prompts, or answer them with an encoder-decoder.

    Ids that the tokenizer lacks (embedding rows beyond it) and special tokens other than end-of-text are never drawn. What
    exceeds the model's length limit is cut off at the front of its view, not of the text. The same seed gives the same text
    from the model, from its exported file, and from the exported folder's server. The model is left as it was.

    Args:
        model: what `train` gave; or, together with `tokenizer`, an `AdaptedModel` or an exported `Artifact`.
        prompt: text to continue, or texts, which run in batches. Empty begins after an end-of-text mark. An
            encoder-decoder takes it as the source.
        tokenizer: taken from the result where there is one.
        max_new_tokens: most tokens to add; fewer where the model ends the text.
        temperature: 0 always takes the likeliest token; 1 draws from the model's distribution; lower is safer.
        top_k: draw from the k likeliest tokens only; None draws from all.
        top_p: draw from the fewest likeliest tokens whose probabilities add up to p only; None draws from all.
        repetition_penalty: above 1, tokens that stand in the text already become less likely; 1 is off; 0.01 to 100.
        seed: of a private generator for each prompt; the global random state is neither used nor changed.
        use_cache: keep keys and values of earlier tokens where the model offers that; the text is the same.

    Returns:
        Prompt and continuation (an encoder-decoder's answer alone); a list of them for a list.

    Raises:
        ConfigError: an argument out of range, or a model that writes no text. TokenizerError: no tokenizer, or one that
            does not fit the model. DataError: a prompt is no text that can be encoded. GenerationError: the model's scores
            leave nothing to choose, as NaN does.

    Example:
        >>> utils.generate(result, "The ", max_new_tokens=50, temperature=0.8, top_k=50, seed=0)
        >>> utils.generate(bundle["onnx"], ["The ", "A "], tokenizer=result.tokenizer, temperature=0)
    """
    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed)
    prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
    source = _source_of(model, tokenizer)
    written = _written(source, _Writing(source, prompts, sampling, use_cache))
    texts = [(given if source.continues else "") + new.text for given, new in zip(prompts, written)]
    return texts[0] if isinstance(prompt, str) else texts


def generate_stream(
    model: Any,
    prompt: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_new_tokens: int = 50,
    temperature: float = 0.8,
    top_k: int | None = 50,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    use_cache: bool = True,
) -> Iterator[str]:
    """Give the continuation out piece by piece: joined they are what `generate` adds to the prompt.

    Arguments and errors are those of `generate`, for one prompt; they are checked at once. Until the iterator has ended or
    is closed the model is in eval mode; afterwards it is as it was.

    Example:
        >>> for piece in utils.generate_stream(result, "The "):
        ...     print(piece, end="", flush=True)
    """
    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed)
    source = _source_of(model, tokenizer)
    return _pieces(source, _Writing(source, [prompt], sampling, use_cache))


@dataclass(frozen=True)
class TokenChoice:
    """One token of a text that is being written.

    Attributes:
        text: what it adds to the text; empty while a character is incomplete.
        probability: that the model gave it, before temperature and the rest.
        likeliest: (text, probability) of the tokens that the model found likeliest, the first first.
    """

    text: str
    probability: float
    likeliest: tuple[tuple[str, float], ...]


def generate_tokens(
    model: Any,
    prompt: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_new_tokens: int = 50,
    temperature: float = 0.8,
    top_k: int | None = 50,
    seed: int = 0,
    likeliest: int = 5,
) -> Iterator[TokenChoice]:
    """As `generate_stream`, token by token, with the probabilities that the model gave.

    Errors are those of `generate`, and so is the text.

    Args:
        model: as for `generate`, like the others.
        prompt: text to continue.
        tokenizer: taken from the result where there is one.
        max_new_tokens: most tokens to add.
        temperature: 0 always takes the likeliest token.
        top_k: draw from the k likeliest tokens only; None draws from all.
        seed: the same one gives the same text.
        likeliest: how many of the likeliest tokens are told at each place.

    Example:
        >>> for choice in generate_tokens(result, "The "):
        ...     print(f"{choice.text!r} {choice.probability:.0%}")
    """
    sampling = Sampling(max_new_tokens, temperature, top_k, seed=seed)
    source = _source_of(model, tokenizer)
    return _choices(source, _Writing(source, [prompt], sampling, use_cache=True), likeliest)


def _choices(source: _Source, writing: _Writing, count: int) -> Iterator[TokenChoice]:
    text_of = _decoder(source.tokenizer)
    stream = TextStream(text_of, writing.encoded[0] if source.continues else ())
    shares = np.zeros(0)
    index: int | None = None
    with source.lent(random_states=False), _named_errors(source):
        watched = _Watched(writing.step())
        for (index,) in decode(watched, writing.begins(), writing.sampling, **writing.limits()):
            if index is not None:
                shares = watched.shares()
                best = np.argsort(-shares, kind="stable")[:count]
                told = tuple((text_of([int(other)]), float(shares[other])) for other in best)
                yield TokenChoice(stream.push(index), float(shares[index]), told)
        rest = stream.finish()
        if rest and index is not None:  # bytes that never became a character
            yield TokenChoice(rest, float(shares[index]), ())


class _Watched:
    """A step that remembers its newest logits, for one prompt."""

    def __init__(self, step: Step) -> None:
        self._step, self._logits = step, np.zeros((1, 0))

    def __call__(self, views: np.ndarray, rows: tuple[int, ...]) -> np.ndarray:
        """Logits (1, V)."""
        self._logits = self._step(views, rows)
        return self._logits

    def shares(self) -> np.ndarray:
        """Probabilities (V,) of the newest step, in float64."""
        scores = self._logits[0].astype(np.float64)
        shares = np.exp(scores - scores.max())
        return np.asarray(shares / shares.sum())


def write(
    model: Any, prompts: Sequence[str], sampling: Sampling, tokenizer: PreTrainedTokenizerBase | None = None
) -> list[Written]:
    """What `generate` adds to each prompt, with token ids and the reason for the end. Errors are those of `generate`."""
    source = _source_of(model, tokenizer)
    return _written(source, _Writing(source, list(prompts), sampling, use_cache=True))


def encoded_prompts(
    model: Any, prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase | None = None
) -> list[list[int]]:
    """The ids that `generate` begins with, or the source's ids for an encoder-decoder."""
    return _Writing(_source_of(model, tokenizer), list(prompts), Sampling(), use_cache=False).encoded


def allowed_ids(tokenizer: PreTrainedTokenizerBase, rows: int | None) -> np.ndarray:
    """Which ids may be drawn: those of the tokenizer, without special tokens other than end-of-text.

    Args:
        tokenizer: the model's tokenizer.
        rows: width of the model's logits, where it is known.

    Returns:
        (V,) bool over the model's rows or the tokenizer's ids, whichever reach further.
    """
    ids = np.array(sorted(tokenizer.get_vocab().values()), dtype=np.int64)
    allowed = np.zeros(max(rows or 0, int(ids.max()) + 1), dtype=bool)
    allowed[ids] = True
    allowed[np.array(tokenizer.all_special_ids, dtype=np.int64)] = False
    if tokenizer.eos_token_id is not None:
        allowed[tokenizer.eos_token_id] = True
    return allowed


def first_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """What stands before the first token of a text: end-of-text in packed training data. None where there is no mark."""
    marks = (tokenizer.eos_token_id, tokenizer.bos_token_id)
    return next((int(index) for index in marks if index is not None), None)


def source_recipe(max_length: int | None) -> Recipe:
    """How the source of an encoder-decoder is encoded: as in its training."""
    return Recipe(end=True, marks=True, limit=max_length)


@dataclass(frozen=True)
class _Source:
    """What writes: a module or a file, with what is known about it.

    Attributes:
        model: the one or the other.
        tokenizer: its tokenizer.
        name, task, vocab_size, max_length, min_length, multiple_of, start_id: as in `CallContract`.
    """

    model: AdaptedModel | ExportedFile
    tokenizer: PreTrainedTokenizerBase
    name: str
    task: str
    vocab_size: int | None
    max_length: int | None
    min_length: int
    multiple_of: int
    start_id: int | None

    @property
    def continues(self) -> bool:
        """Whether the prompt is the beginning of the text."""
        return self.task == "lm"

    def lent(self, random_states: bool = True) -> contextlib.AbstractContextManager[Any]:
        """Within the block the model may be run; afterwards it is as it was."""
        if not isinstance(self.model, AdaptedModel):
            return contextlib.nullcontext()
        return preserved(self.model, random_states)

    def step(self, sources: list[list[int]] | None, use_cache: bool) -> Step:
        """What `decode` asks for logits."""
        if not isinstance(self.model, AdaptedModel):
            return FileStep(self.model, sources)
        cached = use_cache and CachedStep.fits(self.model)
        return (CachedStep if cached else ModelStep)(self.model, sources)


class _Writing:
    """One call: everything is checked here; `writer` begins."""

    def __init__(self, source: _Source, prompts: list[Any], sampling: Sampling, use_cache: bool) -> None:
        problems = sampling.problems()
        problems += [f"prompt must be text; got {type(text).__name__}" for text in prompts if not isinstance(text, str)]
        if problems:
            raise ConfigError("generate(): " + "; ".join(problems) + ".")
        self.source = source
        self.encoded = self._encoded(prompts)
        end = source.tokenizer.eos_token_id
        self.sampling = sampling if end is None else _ending_with(sampling, int(end))
        self.use_cache = use_cache

    def writer(self) -> Writer:
        """The texts, yet to be written."""
        source = self.source
        return Writer(
            self.step(),
            self.begins(),
            self.sampling,
            _decoder(source.tokenizer),
            continues=source.continues,
            **self.limits(),
        )

    def step(self) -> Step:
        """What is asked for logits."""
        return self.source.step(None if self.source.continues else self.encoded, self.use_cache)

    def begins(self) -> list[list[int]]:
        """The ids with which each text begins: the prompt's, or an encoder-decoder's mark."""
        return self.encoded if self.source.continues else [[self._start(ids)] for ids in self.encoded]

    def limits(self) -> dict[str, Any]:
        """What else `decode` is told."""
        source = self.source
        return {
            "max_length": source.max_length,
            "allowed": allowed_ids(source.tokenizer, source.vocab_size),
            "together": None if source.continues else [len(ids) for ids in self.encoded],
        }

    def _encoded(self, prompts: list[str]) -> list[list[int]]:
        source, limit = self.source, self.source.max_length
        recipe = Recipe() if source.continues else source_recipe(limit)
        encoded = [ids.tolist() for ids in Encoder(source.tokenizer, recipe)(prompts)] if prompts else []
        encoded = [ids if ids else [self._first_id()] for ids in encoded]
        for ids in encoded:
            self._check(ids[-(limit or 0) :])
        return encoded

    def _first_id(self) -> int:
        found = first_id(self.source.tokenizer)
        if found is None:
            raise TokenizerError(
                "An empty prompt needs a tokenizer with an end-of-text or begin-of-text token. Pass a prompt."
            )
        return found

    def _start(self, ids: list[int]) -> int:
        return ids[-1] if self.source.start_id is None else self.source.start_id

    def _check(self, view: list[int]) -> None:
        source = self.source
        if isinstance(source.model, AdaptedModel):
            return source.model.check_inputs(torch.tensor([view]))
        if len(view) < source.min_length:
            raise ConfigError(
                f"{source.name} takes at least {source.min_length} tokens; the prompt has {len(view)}. Make it longer."
            )
        if source.vocab_size is not None and max(view) >= source.vocab_size:
            raise TokenizerError(
                f"The prompt holds token id {max(view)}, and the ids of {source.name} go from 0 to {source.vocab_size - 1}. "
                "Pass the tokenizer that the model was trained with."
            )
        return None


def _ending_with(sampling: Sampling, end: int) -> Sampling:
    return Sampling(**{**vars(sampling), "stop_ids": (end,)})


def _written(source: _Source, writing: _Writing) -> list[Written]:
    with source.lent(), _named_errors(source):
        return writing.writer().run()


def _pieces(source: _Source, writing: _Writing) -> Iterator[str]:
    # The reader's own code runs between two pieces: random states are kept for each step instead (see `ModelStep`).
    with source.lent(random_states=False), _named_errors(source):
        for _, piece in writing.writer():
            yield piece


@contextlib.contextmanager
def _named_errors(source: _Source) -> Iterator[None]:
    try:
        yield
    except NoChoiceError as error:
        raise GenerationError(f"{source.name}: {error}") from error


def _decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], str]:
    def text_of(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return text_of


def _source_of(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> _Source:
    """The module or file, its limits and its tokenizer.

    Raises:
        ConfigError: it is none of them, or writes no text. TokenizerError: there is no tokenizer.
    """
    found = model if isinstance(model, AdaptedModel) else getattr(model, "model", None)
    limits: Any
    if isinstance(found, AdaptedModel):
        limits, name = found.contract, found.name
    elif hasattr(model, "signature") and hasattr(model, "run"):
        found, limits, name = model, model.signature, str(getattr(model, "path", "the file"))
    else:
        raise ConfigError(
            "generate() takes the result of train(), an AdaptedModel or an exported artifact; got "
            f"{type(model).__name__}. Call adapt() first."
        )
    _check_writes(name, limits)
    chosen = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
    if chosen is None:
        raise TokenizerError("generate() needs the tokenizer that the model was trained with: pass tokenizer=.")
    facts = ("task", "vocab_size", "max_length", "min_length", "multiple_of", "start_id")
    return _Source(found, chosen, name, **{fact: getattr(limits, fact) for fact in facts})


def _check_writes(name: str, limits: Any) -> None:
    if limits.task not in ("lm", "seq2seq"):
        does = "names hidden tokens" if limits.task == "masked" else "chooses classes"
        raise ConfigError(
            f"{name} {does} and continues no text: generate() is for language models (task 'lm') and encoder-decoders "
            "('seq2seq')."
        )
    if limits.multiple_of > 1:
        raise ConfigError(
            f"{name} takes multiples of {limits.multiple_of} tokens only, and a text grows one token at a time."
        )
