"""Inputs for checks: seeded token ids within the model's rows and length limit, or pixels. Judges nothing."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from utils.adapters.model_adapter import AdaptedModel
from utils.adapters.model_outputs import ModelOutputs
from utils.checks.preserved import preserved
from utils.errors import CheckError, ConfigError
from utils.loading.model_config import ModelConfig

logger = logging.getLogger(__name__)

ASSUMED_LIMIT = 128
"""Longest length tried, in tokens, where neither the model nor its config states a limit."""
LONGEST = 1024
"""No length beyond this is run, in tokens: the memory of attention grows with its square."""
LARGEST_SIDE = 256
"""No larger picture is tried, in pixels: eight places are left of it after the usual strides (2**5)."""


@dataclass(frozen=True)
class Sampler:
    """Draws inputs that the model can take.

    Attributes:
        vocabulary: ids lie in 0 … vocabulary - 1; 0 for a model of images.
        limit: longest sequence that runs, in tokens.
        limit_source: where the limit comes from, in words.
        stated: the limit that the model or its config states, None where neither does. More than `limit` where sequences
            of the stated length do not run.
        device: device of the model.
        seed: the same seed gives the same ids.
        shortest: length of the shortest sequence, in tokens.
        step: every length is a multiple of this.
        image_shape: (C, H, W) of one image; None for text.
    """

    vocabulary: int
    limit: int
    limit_source: str = "given"
    stated: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    shortest: int = 1
    step: int = 1
    image_shape: tuple[int, int, int] | None = None

    @classmethod
    def of(cls, adapted: AdaptedModel, config: object = None) -> Sampler:
        """The sampler for a model. The limit that its contract or config states is tried once; without one it is searched.

        Raises:
            ConfigError: nothing tells how many token ids the model knows.
        """
        known = adapted.config if config is None else ModelConfig.of(config)
        contract = adapted.contract
        if not contract.takes_tokens:
            return cls(0, 1, "images have no length", None, adapted.device, image_shape=contract.image_shape)
        vocabulary = contract.vocab_size or known.vocab_size or adapted.config.vocab_size or contract.output_size
        if vocabulary is None:
            raise ConfigError(
                f"How many token ids {adapted.name} knows cannot be found out: it has no token embedding and its config names no "
                "vocab_size. Pass it: validate(model, config={'vocab_size': …})."
            )
        stated = known.max_seq_len or contract.max_length or adapted.config.max_seq_len
        limit, source = _working_limit(adapted, vocabulary, stated)
        least, step = contract.min_length, contract.multiple_of
        return cls(vocabulary, limit, source, stated, adapted.device, shortest=least, step=step)

    def ids(self, batch: int, length: int, *, seed: int = 0) -> torch.Tensor:
        """(batch, length) int64 ids, uniform over the vocabulary; equal for equal arguments."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + seed)
        return torch.randint(self.vocabulary, (batch, length), generator=generator).to(self.device)

    def inputs(self, batch: int, length: int, *, seed: int = 0) -> torch.Tensor:
        """What the model reads: `ids`, or (batch, C, H, W) pixels uniform in 0 … 1; equal for equal arguments."""
        if self.image_shape is None:
            return self.ids(batch, length, seed=seed)
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + seed)
        return torch.rand(batch, *self.image_shape, generator=generator).to(self.device)

    def length(self, wanted: int) -> int:
        """`wanted` tokens, or the nearest length that the model takes."""
        longest = self.limit // self.step * self.step
        least = -(-self.shortest // self.step) * self.step
        return min(max(wanted // self.step * self.step, least), max(longest, least))


def larger_pictures(sampler: Sampler) -> Iterator[Sampler]:
    """The same sampler with pictures of two, four … times the side, up to `LARGEST_SIDE` pixels; nothing for text."""
    shape = sampler.image_shape
    while shape is not None and 2 * max(shape[1:]) <= LARGEST_SIDE:
        shape = (shape[0], 2 * shape[1], 2 * shape[2])
        yield dataclasses.replace(sampler, image_shape=shape)


def _working_limit(adapted: AdaptedModel, vocabulary: int, stated: int | None) -> tuple[int, str]:
    """The longest length that runs, at most the stated one, and in words how it was found.

    Tried on the CPU: an index beyond a position table would take a GPU down with it.
    """
    wanted, source = (
        (ASSUMED_LIMIT, f"assumed: none is stated, and {ASSUMED_LIMIT} tokens run")
        if stated is None
        else (stated, "stated")
    )
    longest = adapted.contract.max_length
    if longest is not None and longest < wanted:  # a config may state more than the model's table of positions holds
        wanted, source = longest, "the model takes no more"
    if wanted > LONGEST:
        return wanted, f"{source}; lengths up to {LONGEST} are run"
    device = torch.device("cpu")
    tried = adapted if adapted.device == device else copy.deepcopy(adapted).to(device)
    with preserved(tried):
        tried.eval()
        longest = _search(tried, Sampler(vocabulary, wanted), wanted)
    if longest is None or longest == wanted:
        return wanted, source
    return (
        longest,
        f"found by trying: {longest} tokens run, {longest + 1} do not; state it as max_seq_len in the config",
    )


def _search(adapted: AdaptedModel, sampler: Sampler, wanted: int) -> int | None:
    """`wanted` where that many tokens run, else the longest length that does (bisection); None where even 1 and 2 fail."""
    if _runs(adapted, sampler, wanted):
        return wanted
    low, high = next((length for length in (2, 1) if _runs(adapted, sampler, length)), None), wanted
    if low is None:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _runs(adapted, sampler, middle) else (low, middle)
    return low


def _runs(adapted: AdaptedModel, sampler: Sampler, length: int) -> bool:
    """Two rows of one id each: models that number positions by padding reach their last position without padding only."""
    try:
        with torch.no_grad():
            run_model(adapted, torch.tensor([[0], [sampler.vocabulary - 1]]).expand(2, length).contiguous())
    except CheckError as error:
        logger.debug("length %d: %s", length, error)
        return False
    return True


def run_model(
    adapted: AdaptedModel, ids: torch.Tensor, labels: torch.Tensor | None = None, **more: torch.Tensor
) -> ModelOutputs:
    """Call the model; what it raises is wrapped once, with its name and the shape.

    Args:
        adapted: the model.
        ids: (B, T) ids or (B, C, H, W) pixels.
        labels: as `AdaptedModel` takes them.
        more: further arguments of the call: `attention_mask` (B, T), `decoder_input_ids` (B, T_dec).

    Raises:
        CheckError: the model raised on this input.
    """
    try:
        return adapted(ids, labels=labels, **more)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckError(
            f"{adapted.name} raised {type(error).__name__} on input_ids of shape {tuple(ids.shape)} "
            f"({'train' if adapted.training else 'eval'} mode): {reason}"
        ) from error


def labels_of(adapted: AdaptedModel, inputs: torch.Tensor) -> torch.Tensor:
    """Labels for inputs as `Sampler.inputs` draws them: the ids themselves where tokens are scored, else random classes.

    Args:
        adapted: the model, whose task decides.
        inputs: (B, T) ids or (B, C, H, W) pixels.
    """
    contract = adapted.contract
    if contract.task in ("lm", "masked", "seq2seq"):
        return inputs
    each_token = contract.takes_tokens and "T" in contract.logits.layout  # a class for every token
    shape = inputs.shape if each_token else inputs.shape[:1]
    generator = torch.Generator().manual_seed(7)
    return torch.randint(contract.output_size or 2, tuple(shape), generator=generator).to(inputs.device)


def loss_of(adapted: AdaptedModel, inputs: torch.Tensor) -> torch.Tensor:
    """The training loss on random inputs, a scalar in nats; labels as in `labels_of`.

    Where the task's loss does not fit (hidden states without a head, one number, a single token), a loss over the last
    axis stands in: a gradient needs some loss.

    Raises:
        CheckError: the model raised, or gave no loss.
    """
    contract = adapted.contract
    fits = contract.scores_tokens and contract.output_size != 1
    if fits and not (contract.task == "lm" and inputs.shape[1] < 2):
        labels = labels_of(adapted, inputs)
        loss = run_model(adapted, inputs, labels=labels).loss
        if loss is None:
            raise CheckError(f"{adapted.name} gave no loss although labels of shape {tuple(labels.shape)} were passed.")
        return loss
    logits = run_model(adapted, inputs).logits
    rows = logits.reshape(-1, logits.shape[-1]).float()  # (B * T, V) or (B, classes)
    if rows.shape[-1] == 1:
        return rows.square().mean()  # a softmax over one number would be constant
    return F.cross_entropy(rows, inputs.reshape(-1)[: rows.shape[0]].long() % rows.shape[-1])
