"""The Hugging Face folder as a format beside the others. What is in the folder is `hf_folder`'s."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from utils.export.artifact import Artifact
from utils.export.exporter import Exporter, described
from utils.export.hf_folder import write_hf_folder
from utils.export.parity import Tolerance
from utils.export.subject import ExportSubject


class HFFolderExporter(Exporter):
    """Writes a folder that `AutoModel….from_pretrained(folder, trust_remote_code=True)` loads."""

    format: ClassVar[str] = "hf"
    file_name: ClassVar[str] = "hf"
    tolerance: ClassVar[Tolerance] = Tolerance(
        max_abs_diff=1e-5,
        bits_per_byte=1e-4,
        reason="the same code and weights in float32: transformers may choose another attention kernel",
    )

    def write(self, subject: ExportSubject, path: Path) -> Artifact:
        """Write the folder. See `Exporter.write`."""
        facts = described(subject, None, "transformers", "safetensors")
        files = write_hf_folder(
            subject.adapted, subject.signature, subject.tokenizer, path, facts, subject.labels or None
        )
        return Artifact(self.format, path, tuple(files), facts=facts)
