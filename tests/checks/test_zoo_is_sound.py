"""No check of tier 1 finds a published architecture faulty: the Hugging Face models of the zoo, fresh and tiny."""

from __future__ import annotations

import pytest

from tests.checks.corpus.__main__ import SLOW
from tests.checks.corpus.table import CHECKS, examine
from tests.zoo.hugging_face import ENTRIES
from utils.adapters.model_adapter import adapt

CHUNKS = 16
"""Tests that share the models out; neighbours in the table cost alike, so a chunk takes every sixteenth."""

TABLE_KEEPS_ROWS = "the position table keeps rows for padding, so fewer tokens run than the config states"
TRUE_WARNINGS = {
    ("longformer (masked)", "shape robustness"): TABLE_KEEPS_ROWS,
    ("roberta (masked)", "shape robustness"): TABLE_KEEPS_ROWS,
    ("mpnet (masked)", "shape robustness"): TABLE_KEEPS_ROWS,
    ("esm (masked)", "shape robustness"): TABLE_KEEPS_ROWS,
    ("xlm-roberta (masked)", "shape robustness"): TABLE_KEEPS_ROWS,
    ("roberta (classes)", "shape robustness"): TABLE_KEEPS_ROWS,
    (
        "deberta (masked)",
        "numerical stability",
    ): "its forward raises under autocast: finfo of another type is filled in",
    ("mt5 (seq2seq)", "initialisation"): "the tied embedding starts with std 1, so the first loss is far above ln V",
}
"""What tier 1 warns of, and why a user wants to know it."""


@pytest.mark.slow  # fifteen checks on a hundred models
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_check_complains_about_a_published_architecture(chunk):
    checks = [check for name, check in CHECKS.items() if name != SLOW]
    complaints = []
    for entry in ENTRIES[chunk::CHUNKS]:
        row = examine(entry.name, adapt(entry.build(), entry.config, **entry.arguments), checks)
        complaints += [
            f"{entry.name}: {result.summary()}"
            for result in row.results
            if result.status == "fail" or (result.status == "warn" and (entry.name, result.name) not in TRUE_WARNINGS)
        ]
    assert not complaints, "\n".join(complaints)
