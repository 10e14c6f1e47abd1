from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from checks import models as m

from utils import tier1_critical_validation as tier1
from utils.adapters.model_adapter import adapt
from utils.checks import shapes
from utils.checks.report import CheckResult
from utils.checks.runner import Check, model_check
from utils.checks.session import Session
from utils.errors import CheckError, ConfigError
from utils.progress import ignore_progress

pytestmark = pytest.mark.usefixtures("no_onnx_dry_run")
CONFIG = SimpleNamespace(vocab_size=m.VOCABULARY, max_seq_len=m.LIMIT)
NAMES = [
    "shape robustness",
    "gradient flow",
    "numerical stability",
    "initialisation",
    "causality",
    "row independence",
    "padding invariance",
    "determinism",
    "position sensitivity",
    "save and load",
    "learning",
    "gradient accumulation",
    "memory",
    "inference speed",
    "export dry run",
]


@pytest.mark.parametrize("config", [None, CONFIG, vars(CONFIG)])
@pytest.mark.parametrize("wrap", [adapt, lambda model: model])
def test_a_healthy_model_passes_every_check(wrap, config):
    report = tier1.validate(wrap(m.Healthy()), config)
    assert [check.name for check in report.checks] == NAMES
    assert report.verdict == f"All {len(NAMES)} checks passed."
    assert report.passed


def test_what_load_model_gives_is_adapted():
    loaded = SimpleNamespace(model=m.Healthy(), config=vars(CONFIG), source=SimpleNamespace(text=""))
    assert tier1.run_all_tier1_tests(loaded).passed


@pytest.mark.parametrize(
    ("build", "failing"),
    [
        (m.Constant, ["numerical stability"]),
        (m.NaNModule, ["gradient flow", "numerical stability", "initialisation"]),
        (m.FixedBatch, ["shape robustness"]),
    ],
)
def test_the_verdict_names_what_failed_and_never_says_passed(build, failing):
    torch.manual_seed(0)
    report = tier1.validate(build(), CONFIG, patches=False)
    assert not report.passed
    assert [name for name in failing if name not in report.named("fail")] == []
    assert all(name in report.verdict for name in failing)
    assert "passed" not in report.verdict


def test_a_model_that_sees_the_future_is_warned_about():
    report = tier1.validate(m.Healthy(causal=False), patches=False)
    assert report.passed
    assert report.named("warn") == ["causality"]


def test_a_check_that_cannot_finish_never_counts_as_passed():
    report = tier1.validate(m.RaisesInTraining(), patches=False)
    assert report["gradient flow"].status == "fail" and report["gradient flow"].unfinished
    assert report["inference speed"].status == "pass"
    assert not report.passed


def _passing(name):
    return Check(name, lambda adapted, sampler: CheckResult(name, "pass", ""))


@pytest.mark.parametrize("place", range(len(NAMES)))
def test_every_check_takes_part(place, monkeypatch):
    """The verdict hangs on each single check: whatever the others say, one that fails decides."""
    checks = list(tier1.TIER1)
    original = checks[place]

    def failing(adapted, sampler):
        result = original(adapted, sampler)
        assert (result.name, result.status) == (NAMES[place], "pass"), result.summary()
        result.status = "fail"
        return result

    beside = [_passing(check.name) for check in checks]
    beside[place] = Check(original.name, failing)
    monkeypatch.setattr(tier1, "TIER1", tuple(beside))
    report = tier1.validate(m.Healthy(layers=1), patches=False)
    assert report.verdict == f"1 of {len(NAMES)} checks failed: {NAMES[place]}."


def test_an_interrupt_keeps_what_is_done():
    @model_check("stopped")
    def interrupted(adapted, sampler):
        raise KeyboardInterrupt

    session = Session.of("Tier 1", m.Healthy(layers=1))
    report = session.run((*tier1.TIER1[:2], interrupted, tier1.TIER1[3]), ignore_progress)
    assert [check.name for check in report.checks] == NAMES[:2]
    assert report.verdict == "Interrupted after 2 of 4 checks. None of these 2 failed."
    assert not report.passed


def test_results_are_handed_out_as_they_come(monkeypatch):
    monkeypatch.setattr(tier1, "TIER1", tier1.TIER1[:2])
    order = []
    report = tier1.validate(
        m.Healthy(layers=1),
        patches=False,
        progress=lambda done, total, note: order.append(note),
        on_check=lambda result: order.append(result),
    )
    assert order == [NAMES[0], report.checks[0], NAMES[1], report.checks[1], report.verdict]


def test_a_model_that_hangs_is_ended_and_the_run_goes_on():
    report = tier1.validate(m.Hangs(), seconds_per_check=0.5, patches=False)
    hung = report["gradient flow"]
    assert hung.status == "fail" and "did not end within 0.5 s" in hung.unfinished
    assert report["inference speed"].status == "pass"


def test_a_model_that_hangs_while_it_is_adapted_is_ended_too():
    class HangsAtOnce(m.Healthy):
        def forward(self, input_ids):
            while True:
                pass

    with pytest.raises(CheckError, match=r"did not end within 0\.5 s"):
        tier1.validate(HangsAtOnce(), seconds_per_check=0.5)


@pytest.mark.parametrize(
    "settings",
    [
        {"seconds_per_check": 0},
        {"memory_limit_gb": -1},
        {"seconds_per_check": "1"},
        {"seconds_per_check": True},
        {"seconds_per_check": math.inf},
        {"memory_limit_gb": math.nan},
    ],
)
def test_a_bound_that_is_no_positive_number_is_refused(settings):
    with pytest.raises(ConfigError, match="must be a positive number"):
        tier1.validate(m.Healthy(), **settings)


@pytest.mark.parametrize("patches", [0, 1, None])
def test_what_is_no_true_or_false_serves_as_one(patches, monkeypatch):
    monkeypatch.setattr(tier1, "TIER1", (shapes.check,))
    assert tier1.validate(m.HiddenLimit(), {"vocab_size": m.VOCABULARY, "max_seq_len": 32}, patches=patches).checks


def test_progress_names_each_check():
    seen = []
    tier1.validate(m.Healthy(layers=1), progress=lambda *step: seen.append(step))
    assert [note for _, _, note in seen[:-1]] == NAMES
    assert seen[-1] == (len(NAMES), len(NAMES), f"All {len(NAMES)} checks passed.")


@pytest.mark.parametrize("tier", [0, 3, "1"])
def test_another_tier_is_refused(tier):
    with pytest.raises(ConfigError, match=r"tier=.* is unknown; there are tier=1.*tier=2"):
        tier1.validate(m.Healthy(), tier=tier)


@pytest.mark.slow
def test_600k_parameters_take_less_than_15_seconds():  # slow: a timing, which a busy machine spoils
    model = m.Healthy(vocabulary=18_000, limit=256)
    assert sum(p.numel() for p in model.parameters()) > 550_000
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert tier1.validate(model).seconds < 15
    finally:
        torch.set_num_threads(threads)
