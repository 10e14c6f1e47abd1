"""utils.colab_links: what a link carries, and that a stamped copy differs in its form field only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from utils.colab_links import badge, fragment, open_in_colab, stamp
from utils.errors import ConfigError
from utils.loading.gist_reference import parse_gist_reference

ROOT = Path(__file__).resolve().parents[1]
GIST, REVISION = "0123456789abcdef0123456789abcdef", "a" * 40
FIELD = {"cell_type": "code", "source": ['GIST_ID = ""  #@param {type:"string"}\n', "choice = 1"]}


@pytest.mark.parametrize("address", ["https://github.com/me/mine", "https://github.com/me/mine.git", "me/mine/"])
def test_a_link_opens_the_notebook_of_the_repository(address: str) -> None:
    assert open_in_colab(address, "a.ipynb") == "https://colab.research.google.com/github/me/mine/blob/main/a.ipynb"


@pytest.mark.parametrize("revision", [None, REVISION])
def test_the_gist_in_a_link_is_read_back(revision: str | None) -> None:
    found = parse_gist_reference(open_in_colab("me/mine", "template.ipynb", GIST, revision))
    assert (found.gist_id, found.revision) == (GIST, revision)


def test_no_gist_no_fragment() -> None:
    assert fragment("", REVISION) == ""


def test_a_badge_is_a_picture_with_the_link_behind_it() -> None:
    assert (
        badge("https://x") == "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://x)"
    )


@pytest.mark.parametrize("name", ["template.ipynb", "training.ipynb"])
def test_a_stamped_copy_differs_in_its_form_field_only(name: str, tmp_path: Path) -> None:
    before = (ROOT / name).read_text(encoding="utf-8")
    copy = stamp(ROOT / name, tmp_path, GIST, REVISION)
    assert copy == tmp_path / name
    assert (ROOT / name).read_text(encoding="utf-8") == before
    old, new = before.splitlines(), copy.read_text(encoding="utf-8").splitlines()
    changed = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
    assert len(changed) == 1
    assert changed[0][1].strip().startswith(f'"GIST_ID = \\"https://gist.github.com/{GIST}/{REVISION}\\"  #@param')


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no notebook"),
        ("[]", "is no notebook"),
        ('{"cells": 1}', "its cells are no list"),
        (json.dumps({"cells": []}), "has 0 empty form fields"),
        (json.dumps({"cells": [FIELD, FIELD]}), "has 2 empty form fields"),
        (json.dumps({"cells": [{**FIELD, "source": ['GIST_ID = "abc"  #@param']}]}), "has 0 empty form fields"),
    ],
)
def test_what_cannot_be_stamped_is_said(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "n.ipynb").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        stamp(tmp_path / "n.ipynb", tmp_path / "out", GIST)
    assert not (tmp_path / "out").exists()


def test_a_notebook_is_never_its_own_copy(tmp_path: Path) -> None:
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": [FIELD]}), encoding="utf-8")
    with pytest.raises(ConfigError, match="is the notebook itself"):
        stamp(tmp_path / "n.ipynb", tmp_path, GIST)
    with pytest.raises(ConfigError, match=r"There is no notebook .*absent"):
        stamp(tmp_path / "absent.ipynb", tmp_path / "out", GIST)
