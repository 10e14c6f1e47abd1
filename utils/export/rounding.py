"""Weights rounded to 256 steps, whatever the format: more of them stay in float until the file costs next to nothing.

Leaves the rounding itself to the exporters of a format and judging to `parity`.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from utils.errors import ExportError, ParityError
from utils.export.artifact import Artifact
from utils.export.child import ChildRuntime
from utils.export.exporter import Exporter, destination_of
from utils.export.parity import Tolerance, cost_of
from utils.export.samples import samples_of
from utils.export.subject import ExportSubject, subject_of
from utils.progress import ProgressCallback, ignore_progress

logger = logging.getLogger(__name__)

SHARE = 0.02
"""Part of the model's bits, or of one bit where it has fewer, that int8 may cost on top. Sound files were measured at 0.02% to
1%, collapsed ones far above."""


class RoundedExporter(Exporter):
    """A format whose weights are rounded."""

    tolerance: ClassVar[Tolerance] = Tolerance(
        max_abs_diff=float("inf"),
        bits_per_byte=float("inf"),
        reason="weights and activations are rounded to 256 steps, so the file is judged by the bits that this costs",
        cost=SHARE,
    )

    @classmethod
    def export(
        cls,
        model: object,
        tokenizer: object = None,
        output_path: str | Path | None = None,
        config: object = None,
        validation_text: str | None = None,
    ) -> Artifact:
        """Export one model to one file with rounded weights.

        Args:
            model: what `train`, `adapt` or `load_model` gave, or an `nn.Module`. It is left as it was.
            tokenizer: needed for `validation_text`.
            output_path: the file; None and an existing folder get the format's own name.
            config: limits that the model does not tell itself.
            validation_text: what the file is judged on, and what ranges of activations are measured on where they are fixed.

        Raises:
            MissingPackageError: what writes the format is not installed.
            ExportError: there is nothing to round. ParityError, a kind of it: int8 costs too much, whatever stays in float.
            ConfigError, TokenizerError: see `subject_of`.
        """
        destination = destination_of(cls.file_name if output_path is None else output_path, cls.file_name)
        subject = subject_of(model, tokenizer=tokenizer, config=config)
        return cls().deliver(replace(subject, samples=samples_of(subject, validation_text)), destination)

    @abstractmethod
    def _source(self, subject: ExportSubject, folder: Path, child: ChildRuntime, progress: ProgressCallback) -> Any:
        """What is rounded, made once for all attempts."""

    @abstractmethod
    def _noise(self, subject: ExportSubject, source: Any) -> Mapping[str, float]:
        """Layers that can be rounded → the noise that this brings into their output, as a share of its power."""

    @abstractmethod
    def _rounded(self, subject: ExportSubject, source: Any, path: Path, kept: Sequence[str]) -> Artifact:
        """Write the file with every layer rounded but those to keep.

        Raises:
            ExportError: there is nothing to round, or it cannot be rounded.
        """

    def stage(
        self,
        subject: ExportSubject,
        folder: Path,
        child: ChildRuntime,
        file_name: str | None = None,
        *,
        validate: bool = True,
        progress: ProgressCallback = ignore_progress,
    ) -> Artifact:
        """Round, weigh, and keep more in float until it costs little enough. See `Exporter.stage`."""
        if subject.signature.output_size == 1:
            raise ExportError(
                f"{subject.name!r} gives a single score, and int8 is judged by what it costs in probabilities, of which one "
                "score alone has none: every file would pass. Export it in float."
            )
        folder.mkdir(exist_ok=True)
        path = folder / (file_name or self.file_name)
        source = self._source(subject, folder, child, progress)
        failures: list[str] = []
        for kept in self._attempts(subject, source):
            progress(0, None, f"{self.format}: rounding, {len(kept)} layers in float")
            artifact = self._rounded(subject, source, path, kept)
            if not validate:
                return artifact
            cost = self._cost(artifact, subject, child)
            if cost.passed:
                artifact.parity = self.prove(artifact, subject, child, progress)
                if artifact.parity.passed:
                    return artifact
            why = artifact.parity.verdict if cost.passed and artifact.parity is not None else cost.line()
            failures.append(f"with {len(kept)} layers in float, {why}")
            logger.info("%s of %s: %s", self.format, subject.name, failures[-1])
        raise ParityError(
            f"{self.format} of {subject.name!r} was not kept, however much stays in float: "
            f"{'; '.join(failures)}. Export it in float.",
            artifact.parity or self.prove(artifact, subject, child, ignore_progress),
        )

    def _cost(self, artifact: Artifact, subject: ExportSubject, child: ChildRuntime) -> Any:
        artifact.open_with(self.runner(artifact, subject, child))
        try:
            return cost_of(artifact, subject, SHARE)
        finally:
            artifact.close()

    def _attempts(self, subject: ExportSubject, source: Any) -> Iterator[tuple[str, ...]]:
        """Names of the layers to keep in float, attempt by attempt: none, then the noisiest 1, 2, 4, … up to half."""
        yield ()
        noise = self._noise(subject, source)
        ranked = sorted(noise, key=lambda name: noise[name], reverse=True)
        count = 1
        while count <= max(1, len(ranked) // 2) and count < len(ranked):
            yield tuple(ranked[:count])
            count *= 2

    def _samples(self, subject: ExportSubject) -> list[dict[str, np.ndarray]]:
        samples = subject.samples if subject.samples is not None else samples_of(subject)
        return list(samples.batches)
