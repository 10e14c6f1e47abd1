"""Links that open a notebook in Colab, what of a gist such a link can carry, and copies of a notebook that carry it inside.

Knows addresses and texts. Fetches nothing; which gist is meant is read by `utils.loading.gist_reference`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from utils._files import write_text
from utils.errors import ConfigError

COLAB = "https://colab.research.google.com"
BADGE = f"{COLAB}/assets/colab-badge.svg"
REPOSITORY = re.compile(r"(?:https?://(?:www\.)?github\.com/)?([\w-]+/[\w.-]+?)(?:\.git)?/?", re.ASCII)
"""A repository on github.com; group 1 is its owner and name."""
FORM_FIELD = re.compile(r'(?m)^(GIST_ID\s*=\s*)""(\s*#\s*@param\b.*)$')
"""The empty form field of a notebook."""


def open_in_colab(repository: str, notebook: str, gist_id: str = "", revision: str | None = None) -> str:
    """The link that opens a repository's notebook in Colab.

    The gist stands in the link's fragment. Colab's own page sees it, the kernel behind the page does not
    (`utils.notebook.find_model` says where else it looks), so that `stamp` is the sure way to carry an id.

    Args:
        repository: address of the repository on github.com.
        notebook: its file name there, e.g. "template.ipynb".
        gist_id: carried in the fragment; empty for none.
        revision: 40 hex digits that pin the gist.

    Raises:
        ConfigError: `repository` is none on github.com.

    Example:
        >>> open_in_colab("https://github.com/me/mine", "template.ipynb", "0123456789abcdef0123")
        'https://colab.research.google.com/github/me/mine/blob/main/template.ipynb#gist_id=0123456789abcdef0123'
    """
    found = REPOSITORY.fullmatch(repository.strip())
    if found is None:
        raise ConfigError(
            f"{repository!r} is no repository on github.com, and Colab opens notebooks from there only. Expected "
            "https://github.com/<owner>/<name>, or <owner>/<name>."
        )
    return f"{COLAB}/github/{found[1]}/blob/main/{notebook}{fragment(gist_id, revision)}"


def fragment(gist_id: str, revision: str | None = None) -> str:
    """The end of a link that names a gist; empty without one."""
    if not gist_id:
        return ""
    return f"#gist_id={gist_id}&revision={revision}" if revision else f"#gist_id={gist_id}"


def pinned(gist_id: str, revision: str | None) -> str:
    """What to paste, or to hand to `load_model`, for exactly this revision of a gist; the id alone where it is unknown."""
    return f"https://gist.github.com/{gist_id}/{revision}" if gist_id and revision else gist_id


def badge(link: str) -> str:
    """The "Open in Colab" picture with a link behind it, as Markdown."""
    return f"[![Open in Colab]({BADGE})]({link})"


def stamp(notebook: str | Path, out: str | Path, gist_id: str, revision: str | None = None) -> Path:
    """Write a copy of a notebook whose form names a gist; the notebook itself stays as it is.

    Args:
        notebook: a notebook with the empty form field GIST_ID.
        out: file for the copy, or a folder that gets one of the same name.
        gist_id: the gist.
        revision: 40 hex digits that pin it; None takes the newest each time.

    Returns:
        The file that was written.

    Raises:
        ConfigError: `notebook` is no such notebook, or `out` is the notebook itself.

    Example:
        >>> stamp("template.ipynb", "stamped", "0123456789abcdef0123")
        PosixPath('stamped/template.ipynb')
    """
    source, target = Path(notebook), Path(out)
    target = target if target.suffix == ".ipynb" else target / source.name
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target} is the notebook itself. Name another file or folder for the stamped copy.")
    content = _read(source)
    hits = 0
    for cell in content["cells"]:
        text = "".join(cell["source"])
        filled, count = FORM_FIELD.subn(rf'\g<1>"{pinned(gist_id, revision)}"\g<2>', text)
        if count:
            cell["source"] = filled.splitlines(keepends=True)
            hits += count
    if hits != 1:
        raise ConfigError(
            f'{source} has {hits} empty form fields GIST_ID = ""  #@param, and one is needed. Give a notebook of this '
            "repository as it came."
        )
    return write_text(target, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content["cells"], list):
            for cell in content["cells"]:
                "".join(cell["source"])  # a text, or a list of lines
            return content
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no notebook {path}. Name one, or run this in a clone of the repository."
        ) from error
    except (ValueError, KeyError, TypeError) as error:  # no JSON, or JSON that is no notebook
        raise ConfigError(f"{path} is no notebook: {error}.") from error
    raise ConfigError(f"{path} is no notebook: its cells are no list.")
