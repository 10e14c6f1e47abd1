"""Every exception that this package raises on purpose. Knows no torch and no files.

The tree is flat and each leaf also inherits what people already catch (`ValueError`, `ImportError`, …), so that code
written against the standard exceptions keeps working. A message says what was expected, what came, and what to do.
"""

from __future__ import annotations

RAISED_ELSEWHERE = "raised_elsewhere"
"""Attribute, true on an error that another process of the same training raised, and tells of."""


class TransformerBuilderError(Exception):
    """Root of the tree: `except TransformerBuilderError` catches everything that this package raises on purpose."""


class ConfigError(TransformerBuilderError, ValueError):
    """A configuration (config.json, TrainingConfig, an argument) does not say what it must."""


class UnknownSettingError(ConfigError, TypeError):
    """A setting of a `TrainingConfig` is misspelled; a `TypeError` too, as Python raises for unknown keywords."""


class MissingPackageError(TransformerBuilderError, ImportError):
    """A feature needs a package that is not installed; the message holds the install command."""


class GistError(TransformerBuilderError, ValueError):
    """A gist cannot be used. The leaves say why."""


class GistIdError(GistError):
    """The text is neither a gist id nor a gist URL."""


class GistNotFoundError(GistError, LookupError):
    """GitHub knows no such gist or revision, or it is private."""


class GistRateLimitError(GistError, ConnectionError):
    """GitHub refuses further requests for now.

    Attributes:
        reset_at: when requests are allowed again, as seconds since the epoch, or None where GitHub did not say.
    """

    def __init__(self, message: str, reset_at: float | None = None) -> None:
        super().__init__(message)
        self.reset_at = reset_at


class GistUnreachableError(GistError, ConnectionError):
    """GitHub did not answer, or answered with a server error, after all retries."""


class GistContentError(GistError):
    """The gist was fetched, but what it holds is refused (names, sizes, counts, encoding, missing model.py)."""


class ModelLoadError(TransformerBuilderError, ValueError):
    """A model's source cannot be turned into an `nn.Module` (syntax, no class, failing constructor, missing package)."""


class UntrustedCodeError(ModelLoadError):
    """The review found risky calls, and nobody said `trust=True`."""


class GraphCompletionError(TransformerBuilderError, ValueError):
    """A broken export leaves something open that its source, modules and config do not settle.

    Attributes:
        node: name of the canvas node (or value) that cannot be completed.
        candidates: readings that were considered, as source text; empty where there was none.
    """

    def __init__(self, message: str, node: str, candidates: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.node = node
        self.candidates = candidates


class CallContractError(TransformerBuilderError, TypeError):
    """How a model wants to be called, or where its logits are, cannot be settled; the message says what was tried."""


class TokenIdError(TransformerBuilderError, IndexError):
    """A token id lies outside the model's embedding rows, or a sequence outside its length limit."""


class TokenizerError(TransformerBuilderError, ValueError):
    """A tokenizer cannot be built, or does not fit the model's vocabulary rows."""


class HubError(TransformerBuilderError, ConnectionError):
    """A Hugging Face repository cannot be had; the message says why, in one sentence.

    Attributes:
        kind: "offline" (offline mode is set), "unreachable" (no answer, a torn one, or a server error), "gated" (access
            must be granted first), "missing" (no such repository or file) or "refused" (larger than the cap, or broken).
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class DataError(TransformerBuilderError, ValueError):
    """Data is empty, unreadable, too short, or of a kind that the task cannot use."""


class ColumnChoiceError(DataError):
    """Several columns could be the text, and nobody said which.

    Attributes:
        candidates: names of these columns.
        columns: names of all columns.
        rows: the first rows as they are shown, one text for each column.
    """

    def __init__(
        self,
        message: str,
        candidates: tuple[str, ...] = (),
        columns: tuple[str, ...] = (),
        rows: tuple[tuple[str, ...], ...] = (),
    ) -> None:
        super().__init__(message)
        self.candidates, self.columns, self.rows = candidates, columns, rows


class TrainingError(TransformerBuilderError, RuntimeError):
    """Training cannot start or cannot go on."""


class DivergenceError(TrainingError):
    """The losses of a training are not finite any more."""


class TrainingStopped(TransformerBuilderError):
    """A training ended because it was asked to (`stop=` of the trainer); what it did is saved, and the same call goes on from there."""


class CheckpointError(TransformerBuilderError, RuntimeError):
    """A checkpoint is missing, torn, foreign or does not fit the run."""


class GenerationError(TransformerBuilderError, ValueError):
    """A model's scores leave no token to choose: NaN, infinite, or nothing that may be said."""


class ExportError(TransformerBuilderError, RuntimeError):
    """A format cannot be written, or its file is not equal to the model."""


class ParityError(ExportError):
    """A file was written and does not give what the model gives; it was not kept.

    Attributes:
        parity: the `utils.export.parity.ParityReport` that shows where they differ.
    """

    def __init__(self, message: str, parity: object = None) -> None:
        super().__init__(message)
        self.parity = parity


class CheckError(TransformerBuilderError, RuntimeError):
    """A check cannot be carried out: the model raised on a legal input; the message holds its name and the shape."""
