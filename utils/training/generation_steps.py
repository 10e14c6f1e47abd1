"""Logits of the next token from a module, with or without a key/value cache, or from an exported file.

Each class is a `Step` of `utils.decoding`. Leaves choosing tokens to it.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.preserved import random_states_kept

logger = logging.getLogger(__name__)

_CACHE, _SWITCH = "past_key_values", "use_cache"
"""Names by which Hugging Face models take and switch their cache."""

_NEAR = 1e-3
"""Logits of a cached step may differ by this share of their size: sums run in another order, in half precision too."""


class ExportedFile(Protocol):
    """A file that can be run, such as `utils.export.artifact.Artifact`.

    Attributes:
        signature: task, vocab_size, max_length, … as `utils.export.signature.Signature` has them.
    """

    signature: Any

    def run(self, **inputs: Any) -> np.ndarray:
        """Logits of the named inputs."""
        ...


class FileStep:
    """Runs an exported file over the whole view.

    Args:
        file: the file.
        sources: ids of each prompt's source, for an encoder-decoder.
    """

    def __init__(self, file: ExportedFile, sources: list[list[int]] | None = None) -> None:
        self.file, self.sources = file, sources

    def __call__(self, views: np.ndarray, rows: tuple[int, ...]) -> np.ndarray:
        """Logits (N, V) after the ids (N, T)."""
        if self.sources is None:
            return self.file.run(input_ids=views)[:, -1]
        source = np.array([self.sources[row] for row in rows], dtype=np.int64)
        return self.file.run(input_ids=source, decoder_input_ids=views)[:, -1]


class ModelStep:
    """Runs a module over the whole view.

    Args:
        adapted: the model; whoever makes the step lends it (`preserved`).
        sources: ids of each prompt's source, for an encoder-decoder.
    """

    def __init__(self, adapted: AdaptedModel, sources: list[list[int]] | None = None) -> None:
        self.adapted, self.sources = adapted, sources

    def __call__(self, views: np.ndarray, rows: tuple[int, ...]) -> np.ndarray:
        """Logits (N, V) after the ids (N, T)."""
        with (
            random_states_kept(),
            torch.no_grad(),
        ):  # inference tensors that a model keeps would break its next training
            self.adapted.eval()
            return self._last(views, rows).float().cpu().numpy()

    def _last(self, views: np.ndarray, rows: tuple[int, ...]) -> torch.Tensor:
        ids = torch.from_numpy(views).to(self.adapted.device)
        if self.sources is None:
            return self.adapted(ids).logits[:, -1]
        return self.adapted(self._source(rows), decoder_input_ids=ids).logits[:, -1]

    def _source(self, rows: tuple[int, ...]) -> torch.Tensor:
        assert self.sources is not None
        return torch.tensor([self.sources[row] for row in rows], device=self.adapted.device)


@dataclass
class _Kept:
    """The cache of one batch: which ids it holds, the model's own object, and what its encoder said."""

    ids: np.ndarray
    past: Any
    encoded: Any = None


class CachedStep(ModelStep):
    """Runs only the newest token where the model keeps keys and values of the earlier ones.

    The first cached step is computed both ways; where they differ, the cache is not used. A view that lost its front (the
    length limit) or one of its rows is computed anew.
    """

    def __init__(self, adapted: AdaptedModel, sources: list[list[int]] | None = None) -> None:
        super().__init__(adapted, sources)
        self._kept: dict[tuple[int, ...], _Kept] = {}
        self._trusted: bool | None = None

    @staticmethod
    def fits(adapted: AdaptedModel) -> bool:
        """Whether the model offers a cache in Hugging Face's manner, and is called in a way that one can be used with."""
        contract = adapted.contract
        try:
            parameters = inspect.signature(adapted.model.forward).parameters
        except (TypeError, ValueError):  # a scripted or native forward tells nothing
            return False
        plain = contract.encoding == "ids" and not (contract.built or contract.packed or contract.time_first)
        plain = plain and contract.input_name is not None and contract.label_name is None and not contract.mask_required
        return plain and {_CACHE, _SWITCH} <= set(parameters)

    def _last(self, views: np.ndarray, rows: tuple[int, ...]) -> torch.Tensor:
        if self._trusted is False:
            return super()._last(views, rows)
        kept = self._kept.pop(rows, None)
        if kept is None or not np.array_equal(kept.ids, views[:, :-1]):
            self._kept = {key: value for key, value in self._kept.items() if not set(key) & set(rows)}
            return self._called(views, rows, None)
        logits = self._called(views, rows, kept)
        return logits if self._trusted else self._tried(logits, views, rows)

    def _called(self, views: np.ndarray, rows: tuple[int, ...], kept: _Kept | None) -> torch.Tensor:
        """Call the module with its cache switched on, and keep what it gives back."""
        contract, model = self.adapted.contract, self.adapted.model
        new = torch.from_numpy(views if kept is None else views[:, -1:]).to(self.adapted.device)
        if self.sources is None:
            positional, named = contract.arguments(new, model=model)
        else:
            positional, named = contract.arguments(self._source(rows), decoder_ids=new, model=model)
        if kept is not None and kept.encoded is not None:
            named.pop(contract.input_name or "")
            named["encoder_outputs"] = (kept.encoded,)
        if kept is not None:
            named[_CACHE] = kept.past
        output = model(*positional, **{**named, _SWITCH: True})
        past = getattr(output, _CACHE, None)
        if past is None:
            self._distrust("it gives none back")
        else:
            encoded = kept.encoded if kept is not None else getattr(output, "encoder_last_hidden_state", None)
            self._kept[rows] = _Kept(views, past, encoded)
        return contract.selector(False)(output, len(views))[:, -1]

    def _tried(self, cached: torch.Tensor, views: np.ndarray, rows: tuple[int, ...]) -> torch.Tensor:
        """The recomputed logits of the first cached step, after comparing."""
        whole = super()._last(views, rows)
        apart = float((cached.float() - whole.float()).abs().max())
        if apart <= _NEAR * max(1.0, float(whole.float().abs().max())):
            self._trusted = True
        else:
            self._distrust(f"logits differ by {apart:.3g} with it")
        return whole

    def _distrust(self, why: str) -> None:
        logger.warning("%s is run without its key/value cache: %s", self.adapted.name, why)
        self._trusted, self._kept = False, {}
