"""Makes every widget of the wizard. The only file that knows ipywidgets, and how 7.7.1 (Colab) and 8 differ.

Text from outside is escaped here: it reaches a page through `text_html`, `plain_html`, a Label or an option of a list, never
through a description (7.7.1 runs markup in those) and never as it came.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from utils._extras import require
from utils._pages import render

ASSETS = Path(__file__).with_name("assets")

MOST_LINKED_BYTES = 64 << 20
"""Largest file that a page is given as a link; it lies in the browser's memory."""

Widget = Any
"""A widget; ipywidgets has no types."""


@functools.cache
def toolkit() -> ModuleType:
    """The package ipywidgets.

    Raises:
        MissingPackageError: it is not installed.
    """
    return require("ipywidgets", extra="ui", feature="The wizard")


def is_old() -> bool:
    """Whether this is ipywidgets 7, as in Colab."""
    return int(toolkit().__version__.split(".")[0]) < 8


def text_html(template: str, **values: object) -> str:
    """Render a template of `assets`; every value is escaped."""
    return render(ASSETS / template, **values)


def plain_html(text: str) -> str:
    """Text as HTML that shows exactly this text, line breaks included."""
    return f'<span class="tb-plain">{html.escape(text)}</span>'


def style_sheet(name: str = "wizard.css") -> Widget:
    """An invisible widget that brings a style sheet of `assets` to the page."""
    css = (ASSETS / name).read_text(encoding="utf-8")
    return toolkit().HTML(f"<style>{css}</style>", layout=_layout(height="0px", margin="0px"))


def html_block(*classes: str, value: str = "") -> Widget:
    """A place for HTML that `text_html` or `plain_html` made."""
    return marked(toolkit().HTML(value), *classes)


def heading(text: str) -> Widget:
    """The title of a part of a page; text of our own."""
    return html_block(value=f'<h4 class="tb-heading">{html.escape(text)}</h4>')


def show_download(place: Widget, path: Path) -> None:
    """Show a link in an `html_block` that saves a file of this machine on the person's own.

    The link holds the file itself: where the server's files lie, seen from the page, the kernel does not know, and the
    Output widget, whose links JupyterLab would turn into such an address, fails in classic Notebook with ipywidgets 7.7.1.
    A file above `MOST_LINKED_BYTES` is named only.
    """
    size = path.stat().st_size
    content = base64.b64encode(path.read_bytes()).decode("ascii") if size <= MOST_LINKED_BYTES else ""
    place.value = text_html(
        "download.html", name=path.name, path=str(path), size=f"{size / 1e6:.1f} MB", content=content
    )


def intro(text: str) -> Widget:
    """The sentence at the top of a step that says what it is for."""
    return html_block(value=text_html("intro.html", text=text))


def hint(text: str) -> Widget:
    """A sentence of help below a field."""
    return html_block(value=text_html("hint.html", text=text))


def button(
    text: str, *classes: str, click: Callable[[], None], style: str = "", icon: str = "", tip: str = ""
) -> Widget:
    """A button.

    Args:
        text: of our own.
        *classes: CSS classes.
        click: called without arguments.
        style: "", "primary", "success", "info", "warning" or "danger".
        icon: name in Font Awesome 4, without "fa-".
        tip: shown while the pointer rests on it.
    """
    made = toolkit().Button(description=text, button_style=style, icon=icon, tooltip=tip or text)
    made.layout.width = "auto"
    made.on_click(lambda _: click())
    return marked(made, *classes)


def text_field(label: str, *classes: str, value: str = "", placeholder: str = "", tip: str = "") -> Widget:
    """A line to type into; its value arrives when the person leaves it or presses Enter."""
    made = toolkit().Text(value=value, placeholder=placeholder, continuous_update=False, **_labelled(label, tip))
    return marked(made, *classes)


def text_area(label: str, *classes: str, value: str = "", placeholder: str = "", rows: int = 3) -> Widget:
    """Several lines to type into; its value arrives with each key."""
    made = toolkit().Textarea(value=value, placeholder=placeholder, rows=rows, **_labelled(label))
    return marked(made, *classes)


def choice(label: str, *classes: str, options: Sequence[Any], value: Any = None, tip: str = "") -> Widget:
    """A list of which one is chosen.

    Args:
        label: of our own.
        *classes: CSS classes.
        options: values, or pairs (shown text, value).
        value: chosen at first; None takes the first one.
        tip: shown while the pointer rests on it.
    """
    made = toolkit().Dropdown(
        options=list(options), **({} if value is None else {"value": value}), **_labelled(label, tip)
    )
    return marked(made, *classes)


def checkbox(label: str, *classes: str, value: bool = False, tip: str = "") -> Widget:
    """A tick beside its text."""
    made = toolkit().Checkbox(value=value, indent=False, **_labelled(label, tip, wide=True))
    return marked(made, *classes)


def number(
    label: str, *classes: str, value: float, least: float, most: float, step: float | None = None, tip: str = ""
) -> Widget:
    """A bounded number to type; whole where `value` is."""
    kind = toolkit().BoundedIntText if isinstance(value, int) else toolkit().BoundedFloatText
    steps = {} if step is None else {"step": step}
    return marked(kind(value=value, min=least, max=most, **steps, **_labelled(label, tip)), *classes)


def slider(
    label: str, *classes: str, value: float, least: float, most: float, step: float, tip: str = "", live: bool = True
) -> Widget:
    """A bounded number to drag; whole where `value` is. `live` sends it while it is dragged."""
    kind = toolkit().IntSlider if isinstance(value, int) else toolkit().FloatSlider
    made = kind(value=value, min=least, max=most, step=step, continuous_update=live, **_labelled(label, tip))
    return marked(made, *classes)


def progress_bar(*classes: str) -> Widget:
    """A bar from 0 to 1."""
    made = toolkit().FloatProgress(value=0.0, min=0.0, max=1.0)
    made.layout.width = "100%"
    return marked(made, *classes)


def file_upload(text: str, *classes: str, accept: Sequence[str] = (), multiple: bool = False) -> Widget:
    """A button that asks for a file; read it with `uploaded`."""
    made = toolkit().FileUpload(accept=",".join(accept), multiple=multiple, description=text)
    made.layout.width = "auto"
    return marked(made, *classes)


def uploaded(widget: Widget) -> dict[str, bytes]:
    """Name → content of what a `file_upload` holds.

    Raises:
        DataError: it is more than a widget can carry, or two files have one name.
    """
    from utils.training.data_upload import check_size, uploads_in

    files = uploads_in(widget) or {}
    check_size(files)
    return files


def clear_upload(widget: Widget) -> None:
    """Forget what was uploaded, so that the same file can be chosen again."""
    if is_old():
        widget.value.clear()
        widget._counter = 0
    else:
        widget.value = ()


def column(*children: Widget, classes: Sequence[str] = ()) -> Widget:
    """Widgets below each other."""
    return marked(toolkit().VBox(list(children)), *classes)


def row(*children: Widget, classes: Sequence[str] = ()) -> Widget:
    """Widgets beside each other; what does not fit goes into the next line."""
    made = toolkit().HBox(list(children))
    made.layout.flex_flow = "row wrap"
    return marked(made, *classes)


def show(widget: Widget, visible: bool) -> None:
    """Show or hide a widget; a hidden one keeps its state."""
    widget.layout.display = "" if visible else "none"


def on_change(widget: Widget, call: Callable[[Any], None]) -> None:
    """Call with the new value whenever a person changes it; what `set_value` and `fill_options` write is no such change."""

    def changed(change: Mapping[str, Any]) -> None:
        if widget not in _WRITTEN:
            call(change["new"])

    widget.observe(changed, names="value")


_WRITTEN: weakref.WeakSet[Any] = weakref.WeakSet()
"""Widgets whose value is being written by the wizard itself."""


@contextlib.contextmanager
def _writing(widget: Widget) -> Iterator[None]:
    """Within the block the widget's changes are the wizard's own, and reach the page in one message."""
    _WRITTEN.add(widget)
    try:
        with widget.hold_sync():
            yield
    finally:
        _WRITTEN.discard(widget)


def set_value(widget: Widget, value: Any) -> None:
    """Write a value that no person chose."""
    with _writing(widget):
        widget.value = value


def fill_options(widget: Widget, options: Sequence[Any], value: Any) -> None:
    """Give a `choice` other options and choose one of them."""
    with _writing(widget):
        if tuple(widget.options) != tuple(options):
            widget.options = list(options)
        widget.value = value


def marked(widget: Widget, *classes: str) -> Widget:
    """The widget with CSS classes."""
    for name in classes:
        widget.add_class(name)
    return widget


def _labelled(label: str, tip: str = "", wide: bool = False) -> Mapping[str, Any]:
    """Label and tip; labels keep their full text."""
    told = {"description_tooltip" if is_old() else "tooltip": tip} if tip else {}
    layout = {} if wide else {"layout": _layout(width="100%", max_width="560px")}
    return {"description": label, "style": {"description_width": "150px" if not wide else "initial"}, **layout, **told}


def _layout(**values: str) -> Any:
    return toolkit().Layout(**values)
