"""The one home of jinja2: files rendered from templates. HTML is escaped; other templates say how their values are written."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2


def render(template: str | Path, **values: object) -> str:
    """Fill in a template file.

    In HTML every value is escaped. Elsewhere (`rebuild.py.j2`) nothing is: such a template writes its values with the
    filter `literal`, which gives a Python literal.

    Args:
        template: path of the template; it may include others of its folder.
        values: what it names; a name without value raises `jinja2.UndefinedError`.

    Example:
        >>> render(Path(__file__).with_name("templates") / "onward.html", onward=onward)
    """
    path = Path(template)
    return _environment(path.parent).get_template(path.name).render(**values)


@functools.cache
def _environment(folder: Path) -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder, encoding="utf-8"),
        autoescape=lambda name: name is None or not name.endswith(".j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["literal"] = repr
    return environment
