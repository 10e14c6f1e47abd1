"""The fold with every further setting: one control for each field of `TrainingConfig`. Made when it is first opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError
from utils.ui import widgets
from utils.ui.decisions.setting_fields import SettingField, advanced_fields

if TYPE_CHECKING:
    from utils.ui.decisions.training import TrainingDecision


class AdvancedSettings:
    """A button that opens the settings that the sliders above do not show.

    Args:
        decision: takes the changes.
        changed: called after each.
    """

    def __init__(self, decision: TrainingDecision, changed: Callable[[], None]) -> None:
        self._decision, self._changed = decision, changed
        self._open = False
        self._button = widgets.button("More settings", "tb-advanced", click=self._toggle, icon="caret-right")
        self._complaint = widgets.html_block("tb-why")
        self._fields: dict[SettingField, Any] = {}
        self._body = widgets.column(classes=["tb-advanced-body"])
        widgets.show(self._body, False)
        self.view = widgets.column(widgets.row(self._button), self._body, self._complaint)

    def paint(self) -> None:
        """Show the settings as they are, where the fold is open."""
        if not self._open:
            return
        values = self._decision.config().to_dict()
        for field, control in self._fields.items():
            widgets.set_value(control, field.shown(values[field.name]))

    def _toggle(self) -> None:
        self._open = not self._open
        if self._open and not self._fields:
            self._make()
        self._button.icon = "caret-down" if self._open else "caret-right"
        widgets.show(self._body, self._open)
        if self._decision.ready:
            self.paint()

    def _make(self) -> None:
        parts: list[Any] = []
        group = ""
        for field in advanced_fields():
            if field.group != group:
                group = field.group
                parts.append(widgets.html_block("tb-group", value=widgets.plain_html(group)))
            self._fields[field] = self._control(field)
            parts += [
                self._fields[field],
                widgets.html_block("tb-why", value=widgets.text_html("why.html", text=field.help)),
            ]
        self._body.children = parts

    def _control(self, field: SettingField) -> Any:
        css = f"tb-set-{field.name.replace('_', '-')}"
        label = field.name.replace("_", " ")
        if field.kind == "tick":
            control = widgets.checkbox(label, css)
        elif field.kind == "choice":
            control = widgets.choice(label, css, options=list(field.choices))
        else:
            control = widgets.text_field(label, css)
        widgets.on_change(control, lambda shown: self._typed(field, shown))
        return control

    def _typed(self, field: SettingField, shown: Any) -> None:
        self._complaint.value = ""
        try:
            self._decision.change(field.name, field.meant(shown))
        except ConfigError as error:
            self._complaint.value = widgets.text_html("message.html", text=str(error), tone="bad")
        self._changed()
