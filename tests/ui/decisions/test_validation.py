from __future__ import annotations

import pytest
import torch
from checks import models as m
from checks.test_mending import CONFIG, FAULTS, HEALTHY
from torch import nn

from utils import tier1_critical_validation as tier1
from utils.checks import determinism, gradients, shapes
from utils.errors import CheckError
from utils.ui.decisions.setup import Setup
from utils.ui.decisions.validation import MENDED_FILE, identity_of
from utils.ui.work import StopRequested, Ticket

CHECKS = (shapes.check, gradients.check, determinism.check)
SIZES = {"vocab_size": m.VOCABULARY, "max_seq_len": m.LIMIT}


@pytest.fixture(autouse=True)
def _few_checks(monkeypatch):
    monkeypatch.setattr(tier1, "TIER1", CHECKS)
    monkeypatch.setattr("utils.checks.session.PATCH_SECONDS", 600.0)


@pytest.fixture
def sound(tmp_path):
    return Setup(m.Healthy(layers=1), SIZES, folder=tmp_path / "wizard")


@pytest.fixture
def faulty(tmp_path):
    """A place of a model that forgets to leave out dropout while it is used."""
    old, new, _ = FAULTS["dropout"]
    place = tmp_path / "model"
    place.mkdir()
    (place / "model.py").write_text(HEALTHY.replace(old, new))
    (place / "config.json").write_text(CONFIG)
    return place


def test_nothing_is_known_before_the_checks(sound):
    decision = sound.validation
    assert (decision.rows, decision.checked, decision.adapted) == ([], False, None)
    assert "press Check" in decision.problem()


def test_rows_change_one_by_one(sound):
    seen = []
    sound.validation.check(Ticket(), lambda: seen.append([row.status for row in sound.validation.rows]))
    assert seen[0] == ["wait"] * 3
    assert seen[1] == ["run", "wait", "wait"]
    assert seen[2] == ["pass", "wait", "wait"]
    assert seen[3] == ["pass", "run", "wait"]
    assert seen[-1] == ["pass"] * 3
    assert all(row.headline and row.seconds > 0 for row in sound.validation.rows)
    assert sound.validation.problem() == ""


def test_a_stop_keeps_what_is_done(sound):
    ticket = Ticket()

    def changed():
        if sound.validation.rows[0].status == "pass":
            ticket.stop()

    sound.validation.check(ticket, changed)
    assert [row.status for row in sound.validation.rows] == ["pass", "wait", "wait"]
    assert not sound.validation.checked
    assert sound.validation.problem().startswith("Interrupted after 1 of 3 checks.")


def test_a_failed_check_brings_its_fix_and_the_fix_is_used(faulty, tmp_path):
    setup = Setup(faulty, folder=tmp_path / "wizard")
    decision = setup.validation
    decision.check(Ticket())
    assert [row.status for row in decision.rows] == ["pass", "pass", "fail"]
    assert decision.fixes == ["determinism"]
    assert "Apply the fixes" in decision.problem()
    assert "-" in decision.rows[2].diff
    before = decision.adapted
    mended = decision.mend(Ticket())
    assert [check for check, _ in mended.steps] == ["determinism"]
    assert [row.status for row in decision.rows] == ["pass"] * 3
    assert decision.problem() == ""
    assert decision.adapted is not before
    assert (tmp_path / "wizard" / MENDED_FILE).is_file()
    decision.use_original()
    assert "press Check" in decision.problem()
    assert decision.prepare() is before
    assert not Setup(faulty, folder=tmp_path / "wizard").validation.form.mended


def test_a_restart_finds_rows_and_the_mended_model(faulty, tmp_path):
    first = Setup(faulty, folder=tmp_path / "wizard").validation
    first.check(Ticket())
    first.mend(Ticket())
    again = Setup(faulty, folder=tmp_path / "wizard").validation
    assert [row.status for row in again.rows] == ["pass"] * 3
    assert (again.report, again.fixes, again.problem()) == (None, [], "")
    ids = torch.arange(8)[None]
    model, left = again.prepare().eval(), first.adapted.eval()
    assert torch.equal(model(ids).logits, left(ids).logits)
    assert torch.equal(model(ids).logits, model(ids).logits)  # no dropout any more
    (tmp_path / "wizard" / MENDED_FILE).unlink()
    with pytest.raises(CheckError, match=r"Press Check again in step 1"):
        Setup(faulty, folder=tmp_path / "wizard").validation.prepare()


def test_whoever_wants_goes_on_anyway(faulty, tmp_path):
    decision = Setup(faulty, folder=tmp_path / "wizard").validation
    with pytest.raises(CheckError, match=r"Training was not begun.*determinism"):
        decision.require(Ticket())
    decision.go_on_anyway(True)
    assert decision.problem() == ""
    assert decision.require(Ticket()) is decision.adapted
    assert Setup(faulty, folder=tmp_path / "wizard").validation.problem() == ""


def test_another_model_is_checked_anew(sound, tmp_path):
    sound.validation.check(Ticket())
    same = Setup(m.Healthy(layers=1), SIZES, folder=tmp_path / "wizard")
    other = Setup(m.Healthy(layers=2), SIZES, folder=tmp_path / "wizard")
    assert same.validation.problem() == ""
    assert "press Check" in other.validation.problem()


def test_an_identity_is_of_the_source_and_the_shapes_alone():
    model = m.Healthy(layers=1)
    before = identity_of(model)
    with torch.no_grad():
        model.head.weight.zero_()
    assert identity_of(model) == before
    assert (
        len(
            {
                before,
                identity_of(m.Healthy(layers=2)),
                identity_of(m.Healthy(limit=8)),
                identity_of("a"),
                identity_of(None),
            }
        )
        == 5
    )
    assert identity_of(nn.Linear(2, 2)) != identity_of(nn.Linear(2, 3))


def test_fixes_for_warnings_are_looked_for_when_somebody_asks(faulty, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "utils.checks.report.Report.find_patches", lambda self, names, progress=None: asked.append(set(names))
    )
    decision = Setup(faulty, folder=tmp_path / "wizard").validation
    decision.check(Ticket())
    assert decision.without_fix == ["determinism"]
    assert decision.look_for_fixes(Ticket()) == 0
    assert asked == [{"determinism"}, {"determinism"}]
    with pytest.raises(CheckError, match=r"No fix is known"):
        decision.mend(Ticket())


def test_a_model_that_is_nowhere_is_said(tmp_path):
    from utils.errors import ModelLoadError

    with pytest.raises(ModelLoadError, match=r"no file or folder"):
        Setup("nowhere/model.py", folder=tmp_path / "wizard").validation.check(Ticket())


def test_a_stop_before_the_first_check_ends_it(sound):
    ticket = Ticket()
    ticket.stop()
    report = sound.validation.check(ticket)
    assert report.stopped.startswith("Interrupted after 0 of 3 checks")
    assert issubclass(StopRequested, KeyboardInterrupt)
