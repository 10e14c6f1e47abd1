"""What is exported: one model on the CPU in float32, its limits, and the logits that every file is held against.

Turns whatever the verbs hand over into an `ExportSubject`. Knows no file format; leaves writing to the exporters and
judging to `parity`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import logging
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.adapters.probing import left_as_it_was
from utils.errors import ConfigError, ExportError, TokenizerError
from utils.export.signature import DECODER_IDS, IDS, MASK, PIXELS, Shape, Signature, padding_mask
from utils.export.weights import weights_sha256
from utils.loading.model_config import ModelConfig

if TYPE_CHECKING:
    from utils.export.samples import Samples
    from utils.loading.model_loader import ModelSource

logger = logging.getLogger(__name__)

_COPY_DIFFERENCE = 0.1
"""Share of the logits' size by which a model in half precision may differ from its copy in float32; bfloat16 has 3 digits."""


class LogitsOnly(nn.Module):
    """The module that exporters trace: tensors in, one tensor out, nothing else."""

    def __init__(self, adapted: AdaptedModel) -> None:
        super().__init__()
        self.adapted = adapted

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits, float32, of ids (B, T) or pixels (B, C, H, W); the mask (B, T) is 1 for a real token."""
        if pixel_values is not None:
            out = self.adapted(pixel_values)
        elif decoder_input_ids is not None:
            out = self.adapted(input_ids, attention_mask, decoder_input_ids=decoder_input_ids)
        else:
            out = self.adapted(input_ids, attention_mask)
        return out.logits.float()


@dataclass(frozen=True)
class ExportSubject:
    """A model that is ready to be exported.

    Attributes:
        adapted: the model in float32 on the CPU; the caller's own module where it is that already, else a copy.
        signature: what a file of it takes and gives.
        tokenizer: what turns text into ids, or None.
        facts: what is known about the model and its source, for the file's metadata and the manifest.
        samples: inputs as the model is used with, where its files are judged on some.
        labels: names of the classes, in order, where they are known.
    """

    adapted: AdaptedModel
    signature: Signature
    tokenizer: Any = None
    facts: dict[str, str] = field(default_factory=dict)
    samples: Samples | None = field(default=None, repr=False)
    labels: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The model's name, for messages."""
        return self.adapted.name

    def logits(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        """The model's own answer, float32. Call it inside `undisturbed(subject.adapted)`."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in feeds.items()}
        return LogitsOnly(self.adapted)(**tensors).detach().numpy()

    @property
    def marks(self) -> tuple[int, ...]:
        """Ids to which the model may do something of its own: the tokenizer's special ones, and rows that count as padding."""
        special = getattr(self.tokenizer, "all_special_ids", ())
        rows = [m.padding_idx for m in self.adapted.modules() if isinstance(m, nn.Embedding)]
        return tuple(dict.fromkeys(int(index) for index in (*rows, *special) if index is not None))

    def example(self, shape: Shape) -> dict[str, torch.Tensor]:
        """Inputs of one call for exporters to trace."""
        return {name: torch.from_numpy(array) for name, array in self.signature.feeds(shape).items()}

    def weight_bytes(self) -> int:
        """Bytes of all parameters and buffers, shared ones counted once."""
        tensors = [*self.adapted.parameters(), *self.adapted.buffers()]
        return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def subject_of(given: object, *, tokenizer: object = None, config: object = None) -> ExportSubject:
    """Make an `ExportSubject` of a training result, an adapted or loaded model, or any `nn.Module`.

    Args:
        given: what `train`, `adapt` or `load_model` gave, or a plain module (then with `config`).
        tokenizer: a training result brings its own; another one must give the same ids.
        config: for a plain module, and for limits that the model does not tell ({"max_seq_len": 512}).

    Raises:
        ConfigError: the vocabulary rows are known neither to the model nor to the config.
        TokenizerError: the tokenizer can give ids that the model has no row for, or gives others than in training.
        ExportError: `given` holds no model.
    """
    adapted = adapted_of(given, config)
    trained_with = getattr(given, "tokenizer", None)
    tokenizer = tokenizer if tokenizer is not None else trained_with
    plain, precision = _in_float32_on_cpu(adapted)
    signature, why = _signature(plain, ModelConfig.of(config))
    if plain is not adapted:
        _check_copy(adapted, plain, signature, precision)
    if signature.takes_tokens:
        _check_tokenizer(tokenizer, signature.vocab_size or 0)
        _check_same_ids(tokenizer, trained_with, adapted.name)
    facts = {**_facts(adapted), "task": signature.task, "precision": precision, "mask": why}
    facts |= {"signature": signature.to_json(), "weights_sha256": weights_sha256(plain)}
    if tokenizer is not None:
        facts["tokenizer"] = f"{type(tokenizer).__name__}, {_entries(tokenizer)} entries"
    return ExportSubject(plain, signature, tokenizer, facts, labels=_labels(given, signature))


def untrained_subject(adapted: AdaptedModel, config: object = None) -> ExportSubject:
    """A subject for trying exporters on a model that is not trained yet: no tokenizer, and no hash of its weights.

    Args:
        adapted: any adapted model.
        config: limits that the model does not tell itself.

    Raises:
        ConfigError: the vocabulary rows are unknown.
        ExportError: the model's copy in float32 on the CPU answers otherwise than the model.
    """
    plain, _ = _in_float32_on_cpu(adapted)
    return ExportSubject(plain, _signature(plain, ModelConfig.of(config))[0])


def _labels(given: object, signature: Signature) -> tuple[str, ...]:
    """Names of the classes that a training result brings."""
    known = given.get("class_names") if isinstance(given, Mapping) else None
    return tuple(map(str, known)) if known and len(known) == signature.output_size else ()


def _signature(adapted: AdaptedModel, known: ModelConfig) -> tuple[Signature, str]:
    """What a file of this model takes and gives, and in words what became of the mask."""
    contract = adapted.contract
    if not contract.takes_tokens:
        found = Signature("vision", (PIXELS,), contract.output_size, image_shape=contract.image_shape)
        return found, "images have none"
    rows = _first(contract.vocab_size, adapted.config.vocab_size, known.vocab_size)
    if rows is None:
        raise ConfigError(
            "The model's vocabulary rows are unknown: neither its modules nor its config tell, and every exported file is "
            'checked up to them. Say it: export(model, config={"vocab_size": 50257}), with the figure that holds for this '
            "model."
        )
    decoder = (DECODER_IDS,) if contract.decoder_name is not None else ()
    found = Signature(
        contract.task,
        (IDS, *decoder),
        contract.output_size,
        rows,
        _first(contract.max_length, adapted.config.max_seq_len, known.max_seq_len),
        contract.min_length,
        contract.multiple_of,
        start_id=contract.start_id if decoder else None,
    )
    sides, why = _masked_sides(adapted, found)
    if sides:
        found = dataclasses.replace(found, inputs=(IDS, MASK, *decoder), masked_sides=sides)
    return found, why


@contextlib.contextmanager
def undisturbed(adapted: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards modes, buffers and the random states of torch, numpy and Python are as before."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  the global state is what others use
    try:
        with left_as_it_was(adapted):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def adapted_of(given: object, config: object = None) -> AdaptedModel:
    """The adapted model in what a verb handed over; raises `ExportError` where there is no model."""
    for candidate in (given, getattr(given, "adapted", None), getattr(given, "model", None)):
        if isinstance(candidate, AdaptedModel):
            return candidate
    if isinstance(given, nn.Module) or isinstance(getattr(given, "model", None), nn.Module):
        return adapt(cast(Any, given), config)
    raise ExportError(
        f"export() takes what train(), adapt() or load_model() gave, or an nn.Module; got {type(given).__name__}."
    )


def _first(*answers: int | None) -> int | None:
    """The first answer that there is: the contract (asked of the model) comes before any config."""
    return next((answer for answer in answers if answer is not None), None)


def _entries(tokenizer: Any) -> int | None:
    """Number of entries of a tokenizer (added ones included), or None where it does not say."""
    if hasattr(tokenizer, "get_vocab_size"):
        return int(tokenizer.get_vocab_size())
    if hasattr(tokenizer, "__len__"):
        return len(tokenizer)
    return getattr(tokenizer, "vocab_size", None)


def _check_tokenizer(tokenizer: object, vocab_size: int) -> None:
    if isinstance(tokenizer, (str, PurePath, int)):  # a name has a length too, and would pass for its entries
        raise TokenizerError(
            f"tokenizer={tokenizer!r} is no tokenizer. Load it first, for example with "
            "transformers.AutoTokenizer.from_pretrained(…)."
        )
    entries = None if tokenizer is None else _entries(tokenizer)
    if entries is not None and entries > vocab_size:
        raise TokenizerError(
            f"The tokenizer has {entries} entries, the model {vocab_size} embedding rows: ids {vocab_size} to {entries - 1} "
            "would fail in the exported file. Export with the tokenizer that the model was trained with."
        )


def _check_same_ids(tokenizer: object, trained_with: object, name: str) -> None:
    """Refuse a stale tokenizer: ids of the right range that mean other tokens."""
    if tokenizer is trained_with or not (hasattr(tokenizer, "get_vocab") and hasattr(trained_with, "get_vocab")):
        return
    from utils.tokenization.encoding import tokenizer_fingerprint

    if tokenizer_fingerprint(cast(Any, tokenizer)) != tokenizer_fingerprint(cast(Any, trained_with)):
        raise TokenizerError(
            f"The tokenizer gives other ids than the one that {name!r} was trained with: the file would read and write "
            "nonsense. The training result holds the right one; leave tokenizer= out."
        )


def _in_float32_on_cpu(adapted: AdaptedModel) -> tuple[AdaptedModel, str]:
    """The model itself where it is in float32 on the CPU, else a copy that is; with the reason in words.

    Raises:
        ExportError: the model cannot be copied.
    """
    kinds = {(p.device.type, p.dtype) for p in adapted.parameters() if p.is_floating_point()}
    if kinds <= {("cpu", torch.float32)}:
        return adapted, "float32"
    told = ", ".join(sorted(f"{str(dtype).removeprefix('torch.')} on {device}" for device, dtype in kinds))
    return copied(adapted, _moved_tensors(adapted)), f"float32 (copied from {told})"


def copied(adapted: AdaptedModel, moved: dict[int, Any] | None = None) -> AdaptedModel:
    """A copy of a model.

    Args:
        adapted: the model.
        moved: what stands for tensors of it in the copy, by the tensors' ids.

    Raises:
        ExportError: something in the model cannot be copied.
    """
    try:
        return copy.deepcopy(adapted, {**_computed_tensors(adapted), **(moved or {})})
    except Exception as error:  # what deepcopy meets in a model's attributes: locks, open files, tensors with a history
        raise ExportError(
            f"{adapted.name!r} cannot be copied ({type(error).__name__}: {error}). Keep what cannot be copied out of the module's "
            "attributes, and the model itself in float32 on the CPU."
        ) from error


def _computed_tensors(adapted: AdaptedModel) -> dict[int, Any]:
    """Attributes that were computed from parameters, as `nn.utils.weight_norm` and pruning leave them → their numbers alone.

    `copy.deepcopy` takes no tensor with a history.
    """
    held = [tensor for module in adapted.modules() for tensor in vars(module).values()]
    return {id(t): t.detach().clone() for t in held if isinstance(t, torch.Tensor) and not t.is_leaf}


def _moved_tensors(adapted: AdaptedModel) -> dict[int, Any]:
    """Every tensor of the model, also those that are plain attributes → its copy, for `copy.deepcopy` to take.

    Real floating-point numbers become float32, everything else keeps its type: rotary tables may be complex.
    """
    moved: dict[int, Any] = {}
    for module in adapted.modules():
        held = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        for tensor in held:
            if not isinstance(tensor, torch.Tensor) or id(tensor) in moved:
                continue
            dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
            twin = tensor.detach().to("cpu", dtype, copy=True)
            is_parameter = isinstance(tensor, nn.Parameter)
            moved[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if is_parameter else twin
    return moved


def _check_copy(adapted: AdaptedModel, plain: AdaptedModel, signature: Signature, told: str) -> None:
    """Every file is held against the copy, so the copy is held against the model, once.

    Raises:
        ExportError: the copy answers otherwise, or the model itself does not run.
    """
    length = signature.allowed_length(8) if signature.takes_tokens else None
    feeds = signature.feeds(Shape(2, length, length if signature.has_decoder else None))
    given = {name: torch.from_numpy(array) for name, array in feeds.items()}
    kinds = [p.dtype for p in adapted.parameters() if p.is_floating_point()]
    there = {n: t.to(adapted.device, kinds[0] if t.is_floating_point() else t.dtype) for n, t in given.items()}
    with undisturbed(adapted), undisturbed(plain):
        try:
            expected, found = LogitsOnly(adapted)(**there).cpu(), LogitsOnly(plain)(**given)
        except Exception as error:  # whatever a foreign model raises
            raise ExportError(
                f"The model is {told}, and one of both cannot be run: {type(error).__name__}: {error}. Move it there yourself, with "
                "model.float().cpu(), and export that."
            ) from error
    known = expected.isfinite()
    difference = (found - expected)[known].norm() / expected[known].norm().clamp(min=1e-6)
    if not difference <= _COPY_DIFFERENCE:
        raise ExportError(
            f"The model is {told}; the copy gives other logits ({difference:.1%} apart). Move it there yourself, with "
            "model.float().cpu(), and export that."
        )


def _masked_sides(adapted: AdaptedModel, signature: Signature) -> tuple[tuple[str, ...], str]:
    """Ask the model whether masking padding moves the logits of real tokens, and from which side.

    A causal model never looks right, so a mask over right padding moves nothing; a mask over left padding does. A model
    that lists `attention_mask` and ignores it gets a file without that input: it would only promise what it does not do.
    """
    if adapted.contract.mask_name is None:
        return (), "the model takes none"
    length = signature.allowed_length(6)
    if length < 2:
        return (), "not exported: one token has no padding"
    feeds = signature.feeds(Shape(1, length, 3 if signature.has_decoder else None))
    try:
        with undisturbed(adapted):
            full = _answer(adapted, feeds, np.ones((1, length), np.int64))
            moved = {side: _moved(adapted, feeds, full, padding_mask((1, length), side)) for side in ("left", "right")}
    except Exception as error:  # noqa: BLE001  whatever a foreign model raises is the answer, logged and kept in the file
        why = f"not exported: the model fails when given one ({type(error).__name__}: {error})"
        logger.warning("%s: attention_mask is %s", adapted.name, why)
        return (), why
    sides = tuple(side for side, result in moved.items() if result)
    return sides, f"masked padding matters on the {' and '.join(sides)}" if sides else "the model ignores it"


def _answer(adapted: AdaptedModel, feeds: dict[str, np.ndarray], mask: np.ndarray) -> torch.Tensor:
    return LogitsOnly(adapted)(**{name: torch.from_numpy(array) for name, array in {**feeds, MASK: mask}.items()})


def _moved(adapted: AdaptedModel, feeds: dict[str, np.ndarray], full: torch.Tensor, mask: np.ndarray) -> bool:
    """Whether the mask moves finite logits of real tokens, or of the decoder or the example where those are scored."""
    masked = _answer(adapted, feeds, mask)
    if masked.shape[:2] == mask.shape and adapted.contract.task in ("lm", "masked"):
        kept = torch.from_numpy(mask).bool()
        full, masked = full[kept], masked[kept]
    return bool(masked.isfinite().all()) and not torch.allclose(masked, full, rtol=1e-5, atol=1e-6)


def attention_made_causal(adapted: AdaptedModel) -> str:
    """What `make_causal` changed, e.g. "made causal by …: mhsa_0, mhsa_1"; empty for a model as it came.

    The model's source does not show it.
    """
    reason = adapted.contract.reasons.get("causality", "")
    return reason if reason.startswith("made causal") else ""


def _facts(adapted: AdaptedModel) -> dict[str, str]:
    """Name, class, completion and origin of the model, where they are known."""
    facts = {
        "model_name": adapted.name,
        "model_class": type(adapted.model).__name__,
        "completion": adapted.completion.status,
    }
    text = adapted.completion.source_after or adapted.completion.source_before
    if text:
        facts["completed_source_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    changed = attention_made_causal(adapted)
    if changed:
        facts["attention"] = changed
    return facts if adapted.source is None else facts | _origin(adapted.source)


def _origin(source: ModelSource) -> dict[str, str]:
    """Where the code came from, and the SHA-256 of each file as it came. Of a local path only the name: files travel."""
    if source.revision is None:
        origin = {"source_origin": PurePath(source.origin).name}
    else:
        origin = {"source_origin": source.origin, "source_revision": source.revision}
    return origin | {f"source_sha256 {name}": digest for name, digest in source.sha256.items()}
