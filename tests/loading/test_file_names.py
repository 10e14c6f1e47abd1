from __future__ import annotations

import pytest

from utils.errors import GistContentError
from utils.loading.file_names import check_names, problem_with_name


@pytest.mark.parametrize(
    "name", ["model.py", "config.json", "my model.py", "Größe.py", "a.b.py", "__init__.py", "torch.md", "model (1).py", ".env"]
)  # fmt: skip
def test_honest_names_pass(name):
    assert problem_with_name(name) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "empty"),
        ("..", "another folder"),
        (".", "another folder"),
        ("../model.py", "another folder"),
        ("..\\model.py", "another folder"),
        ("/etc/passwd", "another folder"),
        ("C:\\x.py", "another folder"),
        ("a/b.py", "another folder"),
        ("\uff0e\uff0e\uff0fx.py", "another folder"),  # full-width ../
        ("a\u2215b.py", "another folder"),
        ("c:x.py", "some systems"),
        ("model.py::$DATA", "some systems"),
        ("model.py.", "some systems"),
        ("model.py ", "some systems"),
        ("mo\0del.py", "control"),
        ("mo\ndel.py", "control"),
        ("mo\u202edel.py", "invisible"),  # right-to-left override
        ("mo\u200bdel.py", "invisible"),  # zero-width space
        ("mo\u2028del.py", "invisible"),
        ("\ud800.py", "Unicode"),
        ("con", "Windows"),
        ("NUL.py", "Windows"),
        ("com1.json", "Windows"),
        ("LPT¹.py", "Windows"),
        ("x" * 253 + ".py", "256 bytes"),
        ("é" * 127 + ".py", "257 bytes"),
        ("torch.py", "hide the module 'torch'"),
        ("Torch.PY", "hide the module"),
        ("\uff54orch.py", "hide the module"),  # full-width t
        ("numpy.pyc", "hide the module"),
        ("utils.py", "hide the module"),
        ("json.py", "hide the module"),
        ("sitecustomize.py", "hide the module"),
        ("torch.cpython-311-x86_64-linux-gnu.so", None),
        ("evil.pth", "every start"),
        ("evil.PTH", "every start"),
    ],
)
def test_hostile_names_are_refused_with_the_reason(name, words):
    problem = problem_with_name(name)
    assert (problem is None) if words is None else words in problem
    if words is not None:
        with pytest.raises(GistContentError, match="the gist is refused"):
            check_names(["model.py", name])


@pytest.mark.parametrize(
    ("first", "second"), [("model.py", "MODEL.py"), ("stra\u00dfe.py", "strasse.py"), ("\u00e9.py", "e\u0301.py"), ("\ufb01.py", "fi.py")]
)  # fmt: skip
def test_twins_are_refused(first, second):
    with pytest.raises(GistContentError, match="the same to some systems"):
        check_names([first, second])
