"""What is exported: where the mask matters, and what padding looks like."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from export import zoo
from utils.adapters.causality import make_causal
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.export.subject import attention_made_causal, subject_of
from utils.loading.model_loader import ModelSource, load_model


@pytest.mark.parametrize(
    ("make", "sides"),
    [
        (zoo.PostNorm, ("left", "right")),
        (lambda: zoo.PostNorm(causal=True), ("left",)),
        (zoo.IgnoresMask, ()),
        (zoo.Nano, ()),
    ],
)
def test_the_mask_is_exported_only_where_it_matters(make: type[nn.Module], sides: tuple[str, ...]) -> None:
    subject = subject_of(make(), config=zoo.CONFIG)
    assert subject.signature.masked_sides == sides
    assert subject.signature.inputs == (("input_ids", "attention_mask") if sides else ("input_ids",))


class FailsWithMask(zoo.Bigram):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        if attention_mask is not None:
            raise TypeError("the mask is of no use")
        return self.table(input_ids)


def test_a_mask_that_makes_the_model_fail_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    asked = adapt(
        zoo.PostNorm(), zoo.CONFIG
    ).contract  # what somebody wrote by hand: asking would have left the mask out
    adapted = AdaptedModel(FailsWithMask(), zoo.CONFIG, contract=asked)
    with caplog.at_level(logging.WARNING, logger="utils.export"):
        subject = subject_of(adapted)
    assert not subject.signature.takes_mask
    assert "fails when given one (TypeError: the mask is of no use)" in subject.facts["mask"]
    assert "the mask is of no use" in caplog.text


def test_shared_weights_are_counted_once() -> None:
    model = zoo.Bigram()
    model.head = nn.Linear(zoo.V, zoo.V, bias=False)
    model.head.weight = model.table.weight
    assert subject_of(model, config=zoo.CONFIG).weight_bytes() == 4 * zoo.V * zoo.V


PINNED = ModelSource("", "model.py", f"gist {'a' * 32}@{'b' * 40}", None, "b" * 40, {"model.py": "c" * 64}, {})
LOCAL = ModelSource("", "model.py", "/home/somebody/my_export", None, None, {"model.py": "c" * 64}, {})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (PINNED, {"source_origin": PINNED.origin, "source_revision": "b" * 40, "source_sha256 model.py": "c" * 64}),
        (LOCAL, {"source_origin": "my_export", "source_sha256 model.py": "c" * 64}),
        (None, {}),
    ],
)
def test_where_the_code_came_from_is_kept_after_adapt(source: ModelSource | None, expected: dict[str, str]) -> None:
    adapted = adapt(zoo.Bigram(), zoo.CONFIG)
    adapted.source = source
    facts = subject_of(adapted).facts
    assert {name: value for name, value in facts.items() if name.startswith("source_")} == expected


def test_attention_that_was_made_causal_is_named() -> None:
    adapted = adapt(zoo.PostNorm(), zoo.CONFIG)
    assert attention_made_causal(adapted) == ""
    assert "attention" not in subject_of(adapted).facts
    causal = make_causal(adapted)
    changed = attention_made_causal(causal)
    assert changed.startswith("made causal by ") and changed.endswith(": causal")  # its own switch
    assert subject_of(causal).facts["attention"] == changed


def test_a_loaded_model_brings_its_origin(tmp_path: Path) -> None:
    text = "from torch import nn\n\n\nclass Tiny(nn.Sequential):\n    def __init__(self):\n"
    text += "        super().__init__(nn.Embedding(9, 4), nn.Linear(4, 9))\n"
    (tmp_path / "model.py").write_text(text, "utf-8")
    loaded = load_model(tmp_path / "model.py", config={"max_seq_len": 8, "vocab_size": 9})
    for given in (loaded, adapt(loaded), SimpleNamespace(model=adapt(loaded), tokenizer=None)):
        facts = subject_of(given).facts
        assert facts["source_origin"] == "model.py"
        assert facts["source_sha256 model.py"] == hashlib.sha256(text.encode()).hexdigest()
