from __future__ import annotations

import os
import re
import signal
import threading
import time

import pytest
import torch

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import isolated, rows, shapes
from utils.checks.isolated import IsolatedChecks
from utils.checks.limits import Limits
from utils.checks.sampling import Sampler
from utils.errors import CheckError
from utils.tier1_critical_validation import validate

pytestmark = pytest.mark.usefixtures("no_onnx_dry_run")


class Crashes(m.Healthy):
    def forward(self, input_ids):
        if input_ids.shape == (4, 7):  # one of the shapes of shape robustness
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().forward(input_ids)


class Sleeps(m.Healthy):
    """Blocks within one call of the system, where no module is called and every exception is swallowed."""

    def forward(self, input_ids):
        while input_ids.shape == (4, 7):
            try:
                time.sleep(60)
            except BaseException:  # noqa: BLE001, S112 -- what is planted here is just this fault
                continue
        return super().forward(input_ids)


class Hoards(m.Healthy):
    def forward(self, input_ids):
        if input_ids.shape == (4, 7):
            held = torch.ones(150_000_000)  # 600 MB
            time.sleep(1 + float(held[0]))
        return super().forward(input_ids)


def _checks(model):
    adapted = adapt(model)
    return IsolatedChecks(adapted, Sampler.of(adapted))


def test_results_are_those_of_the_same_process_and_the_model_stays():
    torch.manual_seed(0)
    model = adapt(m.Healthy())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with IsolatedChecks(model, Sampler.of(model)) as checks:
        for check in (shapes.check, rows.check):
            there, here = checks.run(check, Limits(60)), check(model)
            assert (there.name, there.status, there.headline) == (here.name, here.status, here.headline)
            assert there.measured == here.measured
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("build", "limits", "words"),
    [
        pytest.param(Crashes, Limits(60), "its process ended with signal SIGSEGV", id="crashes"),
        pytest.param(
            Sleeps, Limits(1), "did not end within 1 s, and its process was ended", id="sleeps", marks=pytest.mark.slow
        ),
        pytest.param(Hoards, Limits(60, 3e8), r"took [3-9]\d\d MB of memory and may take 300 MB", id="hoards"),
    ],
)
def test_a_model_that_ends_its_process_fails_one_check_and_the_next_one_runs(build, limits, words, monkeypatch):
    monkeypatch.setattr(isolated, "GRACE", 0.5)
    with _checks(build()) as checks:
        assert checks.run(rows.check, Limits(60)).status == "pass"
        ended = checks.run(shapes.check, limits)
        assert (ended.name, ended.status) == ("shape robustness", "fail")
        assert re.search(words, ended.unfinished), ended.unfinished
        assert checks.run(rows.check, Limits(60)).status == "pass"


@pytest.mark.slow
def test_a_model_of_a_notebook_cell_goes_along_and_prints_do_no_harm():
    class Local(m.Healthy):
        def forward(self, input_ids):
            print("hello from the model")  # noqa: T201 -- a stranger's model prints
            return super().forward(input_ids)

    report = validate(Local(layers=1), isolated=True)
    assert report.passed, report.summary()


def test_a_model_that_cannot_be_sent_is_refused_with_the_way_out():
    model = m.Healthy()
    model.lock = threading.Lock()
    with pytest.raises(CheckError, match=r"Healthy cannot be sent to another process.*isolated=False"):
        _checks(model)


def test_nothing_is_left_behind():
    with _checks(m.Healthy()) as checks:
        checks.run(rows.check, Limits(60))
        home, process = checks._home, checks._process
    assert not home.exists() and process.poll() is not None


class EndsItsProcess(m.Healthy):
    def __init__(self):
        super().__init__()
        self.home = os.getpid()

    def forward(self, input_ids):
        if os.getpid() != self.home:
            os._exit(7)
        raise AssertionError("ran in the process of the caller")


def test_a_model_that_ends_its_process_at_its_first_call_leaves_this_one():
    with pytest.raises(CheckError, match=r"how the model is called .* status 7.* Run the model on a few token ids"):
        validate(EndsItsProcess(), isolated=True)
