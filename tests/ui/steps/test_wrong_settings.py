"""A setting that is none, typed into whichever field: steps 4 and 5 say so, and nothing breaks."""

from __future__ import annotations

import pytest

from tests.training.tiny import TinyTransformer
from tests.ui.small_setup import small_setup
from utils.ui.decisions.setting_fields import advanced_fields
from utils.ui.decisions.training import TrainingForm
from utils.ui.setup_wizard import SetupWizard
from utils.ui.state import WizardState

TYPED = [field for field in advanced_fields() if field.kind == "text" and field.name != "notes"]


@pytest.fixture
def wizard(tmp_path, tokenizer, monkeypatch):
    """Shown at step 4, with a machine that nobody measures."""
    monkeypatch.setattr("utils.ui.steps.training.TrainingStep.measure", lambda self: None)
    made = SetupWizard(TinyTransformer(), folder=tmp_path / "wizard", in_thread=True)
    made.setup = small_setup(tmp_path, tokenizer)
    made.setup.state.go(3)
    made._place = 3
    assert made.view.children
    return made


def shown(widget) -> str:
    """All HTML of a widget and those in it."""
    parts = [str(getattr(widget, "value", ""))] if type(widget).__name__ == "HTML" else []
    return "\n".join(parts + [shown(child) for child in getattr(widget, "children", ())])


@pytest.mark.parametrize("field", TYPED, ids=lambda field: field.name)
def test_a_wrong_value_is_said_in_both_steps(field, wizard) -> None:
    training = wizard._page(3)
    training._advanced._toggle()
    training._advanced._fields[field].value = "many"
    assert f"{field.name}=&#39;many&#39;" in shown(training.view)
    assert f"{field.name}='many'" in training.leave()
    wizard.go(4)
    review = wizard._page(4)
    assert f"{field.name}=&#39;many&#39;" in shown(review.view) and review._start.disabled
    wizard.go(3)
    training._advanced._fields[field].value = field.shown(getattr(type(training.decision.config())(), field.name))
    assert training.leave() == "" and "many" not in shown(training.view)


@pytest.mark.parametrize("typed", ["nan", "inf", "1e999"])
def test_a_number_that_is_none_is_said_and_kept_as_it_was_typed(typed, wizard) -> None:
    training = wizard._page(3)
    training._advanced._toggle()
    field = next(field for field in TYPED if field.name == "weight_decay")
    training._advanced._fields[field].value = typed
    assert f"weight_decay=&#39;{typed}&#39;" in shown(training.view)
    assert WizardState(wizard.setup.folder).form("training", TrainingForm).changes == {"weight_decay": typed}
