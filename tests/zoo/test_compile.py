"""An adapted model compiles as a whole: no graph break, and the same answer. Not timed; `benchmarks/` does that.

Models of every task and every way of calling stand here, as far as they compile without an adapter: recurrent layers and
`nn.TransformerEncoder` with an additive mask (torch looks into the mask) break the graph by themselves.
"""

from __future__ import annotations

import pytest
import torch

from tests.zoo.table import ZOO
from utils.adapters.model_adapter import adapt

NAMES = (
    "keyword only",
    "nanoGPT",
    "nested dict",
    "dataclass",
    "(B, V, T) out",
    "tied weights",
    "bool drop mask",
    "keep mask 4-D",
    "causal bool drop",
    "required position_ids",
    "required labels",
    "balance loss in a tuple",
    "own unshifted loss",
    "bart (seq2seq)",
    "mean classifier",
    "tiny ViT",
    "export: typical",
    "gpt2 (causal)",
)


@pytest.mark.parametrize("name", NAMES)
def test_no_graph_break(name: str) -> None:
    entry = ZOO[name]
    torch._dynamo.reset()
    adapted = adapt(entry.build(), entry.config, entry.source, **entry.arguments).eval()
    batch = entry.batch()
    compiled = torch.compile(adapted, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected, got = adapted(**batch), compiled(**batch)
    # the same kernels in the same order: the "eager" backend only replays the captured graph
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(got.loss, expected.loss, atol=1e-6, rtol=1e-6)
    torch._dynamo.reset()
