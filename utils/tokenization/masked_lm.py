"""Blocks with some tokens hidden, for models that see both sides (Devlin et al. 2019). Leaves blocks to `packing`.

Which tokens of a block are hidden is a function of (seed, epoch, number of the block) alone: the same with any number of
worker processes, and after an interruption.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from utils.adapters.model_outputs import IGNORED_LABEL
from utils.errors import DataError
from utils.tokenization.batch_order import BatchIndices, mixed_seed
from utils.tokenization.bits import token_byte_lengths
from utils.tokenization.packing import PackedBlocks
from utils.tokenization.samples import Batch, Samples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

HIDDEN_SHARE = 0.15
"""Share of a block's ordinary tokens that the model must name."""

MASKED, REPLACED = 0.8, 0.1
"""Of these, the share that becomes the mask token, and the share that becomes another token; the rest stays visible."""

MASK_NAMES = ("<mask>", "[MASK]")
"""Entries that are taken for the mask token where the tokenizer names none."""


class MaskedBlocks(Samples):
    """Packed blocks with `HIDDEN_SHARE` of their ordinary tokens hidden; special tokens and padding never are.

    The number of hidden tokens of a block is fixed (its share, rounded, at least one), which tokens they are is not.

    Args:
        blocks: the text.
        tokenizer: names the special tokens, and the mask token (see `mask_id`).
        seed: of the hiding.
        fixed: hide the same tokens in every epoch, as a validation that is to be compared needs it.
        share: of the ordinary tokens.
    """

    task = "masked"

    def __init__(
        self,
        blocks: PackedBlocks,
        tokenizer: PreTrainedTokenizerBase,
        seed: int = 0,
        fixed: bool = False,
        share: float = HIDDEN_SHARE,
    ) -> None:
        if not 0 < share < 1:
            raise DataError(f"The share of hidden tokens must lie between 0 and 1; got {share!r}.")
        self.blocks, self.seed, self.fixed, self.share = blocks, seed, fixed, share
        self.mask = mask_id(tokenizer)
        special = {*tokenizer.all_special_ids, self.mask}
        self._ordinary = np.array(sorted(set(tokenizer.get_vocab().values()) - special), dtype=np.int64)
        self._special = np.array(sorted(special), dtype=np.int64)
        if not len(self._ordinary):
            raise DataError("The tokenizer has special tokens only: there is nothing to hide.")
        settings = f"{blocks.fingerprint}:masked:{seed}:{fixed}:{share}:{self.mask}"
        self.fingerprint = hashlib.sha256(settings.encode()).hexdigest()
        self._counts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def tokens(self) -> int:
        """Tokens of all blocks."""
        return self.blocks.tokens

    @property
    def longest(self) -> int:
        """Tokens of the longest block."""
        return self.blocks.longest

    @property
    def largest_id(self) -> int:
        """Largest id that can reach the model."""
        return max(self.blocks.largest_id, int(self._ordinary[-1]), self.mask)

    @property
    def loss_tokens(self) -> np.ndarray:
        """Hidden tokens of each block, (N,)."""
        if self._counts is None:
            ordinary = [(~np.isin(part, self._special)).sum(axis=1) for part in self.blocks.parts()]
            self._counts = np.array([self._hidden(int(count)) for count in np.concatenate(ordinary)], dtype=np.int64)
        return self._counts

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """`input_ids` with hidden tokens, `labels` with the true ids there and -100 elsewhere, both (B, T) int64."""
        batch = self.blocks.__getitems__(indices)
        epoch = indices.epoch if isinstance(indices, BatchIndices) and not self.fixed else 0
        ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
        for place, index in enumerate(indices):
            self._hide(ids[place], labels[place], epoch, index % len(self))
        return batch

    def _hide(self, ids: np.ndarray, labels: np.ndarray, epoch: int, index: int) -> None:
        """Hide tokens of one block in place."""
        candidates = np.flatnonzero((labels != IGNORED_LABEL) & ~np.isin(ids, self._special))
        random = np.random.Generator(np.random.PCG64(mixed_seed(self.seed, epoch, index)))
        chosen = random.permutation(candidates)[: self._hidden(len(candidates))]
        kept = labels[chosen]
        labels[:] = IGNORED_LABEL
        labels[chosen] = kept
        kind = random.random(len(chosen))
        others = random.choice(self._ordinary, len(chosen))
        ids[chosen] = np.where(kind < MASKED, self.mask, np.where(kind < MASKED + REPLACED, others, ids[chosen]))

    def _hidden(self, candidates: int) -> int:
        return min(max(round(self.share * candidates), 1), candidates)


def mask_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that stands for a hidden token: the tokenizer's mask token, an entry named like one, or `<unk>` where no text
    ever reads as unknown (byte-level tokenizers).

    Raises:
        DataError: there is none.
    """
    if tokenizer.mask_token_id is not None:
        return int(tokenizer.mask_token_id)
    vocabulary = tokenizer.get_vocab()
    named = next((name for name in MASK_NAMES if name in vocabulary), None)
    if named is not None:
        return int(vocabulary[named])
    if tokenizer.unk_token_id is not None and _writes_everything(tokenizer):
        logger.info("the tokenizer has no mask token: %s, which no text reads as, hides tokens", tokenizer.unk_token)
        return int(tokenizer.unk_token_id)
    raise DataError(
        f"The tokenizer has no mask token, which hides tokens. Train one with special_tokens=[…, {MASK_NAMES[0]!r}], or set "
        "tokenizer.mask_token to an entry that the text does not use."
    )


def _writes_everything(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether no text can hold an unknown token: all 256 bytes have entries."""
    lengths = token_byte_lengths(tokenizer)
    strange = tokenizer("\U0010fffd\x00\u0378", add_special_tokens=False, verbose=False)["input_ids"]
    return lengths is not None and tokenizer.unk_token_id not in strange
