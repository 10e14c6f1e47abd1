from __future__ import annotations

import pytest

from utils.tokenization import batch_order, data_module, encoding, loaders, packing
from utils.training.engine import data, metrics


@pytest.mark.parametrize("name", data.__all__)
def test_names_are_handed_on_from_their_home(name):
    homes = [home for home in (batch_order, data_module, encoding, loaders, packing) if hasattr(home, name)]
    assert any(getattr(home, name) is getattr(data, name) for home in homes)


def test_measures_are_handed_on():
    from utils.tokenization import bits
    from utils.training import drift_metrics

    handed_on = set(metrics.__all__) - {"MetricsEngine", "perplexity"}
    assert len(handed_on) == 5
    for name in handed_on:
        assert getattr(metrics, name) is getattr(drift_metrics if name == "DriftMetrics" else bits, name)
