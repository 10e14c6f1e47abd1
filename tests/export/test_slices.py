"""One file out of many: what a class needs comes along, what is installed stays an import, what cannot be had is named."""

from __future__ import annotations

import importlib
import linecache
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from utils.errors import ExportError
from utils.export.slices import is_installed, slice_of

FILES = {
    "walk_parts.py": (
        "import math\nimport torch.nn.functional as F\nfrom torch import nn\n\nSCALE = math.sqrt(4)\nUNUSED = print\n\n\n"
        "def widened(width):\n    return int(width * SCALE)\n\n\n"
        "class Base(nn.Module):\n    def act(self, x):\n        return F.gelu(x)\n\n\n"
        "class Forgotten(Base):\n    pass\n"
    ),
    "walk_model.py": (
        "import json\nfrom functools import partial as bound\n\nimport torch\nfrom torch import nn\n\n"
        "from walk_parts import Base as Root, widened, SCALE\nimport walk_parts\n\n"
        "if True:\n    SIZES = {'width': widened(4)}\n\n\n"
        "def marked(cls):\n    return cls\n\n\n"
        "@marked\nclass Model(Root):\n"
        '    """What is exported."""\n\n'
        "    def __init__(self, width: 'json.JSONEncoder' = SIZES['width']):\n"
        "        super().__init__()\n        self.linear = nn.Linear(width, width)\n        self.f = bound(torch.mul, other=SCALE)\n\n"
        "    def forward(self, x):\n        return self.act(self.f(self.linear(x)))\n\n\n"
        "class Whole(Root):\n    def forward(self, x):\n        return walk_parts.widened(x)\n"
    ),
}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("walk_model")
    for name in ("walk_model", "walk_parts"):
        sys.modules.pop(name, None)


def run(text: str) -> dict[str, Any]:
    """The names that a text defines when it runs alone."""
    names: dict[str, Any] = {"__name__": "alone"}
    exec(compile(text, "<slice>", "exec"), names)
    return names


def test_what_a_class_needs_comes_along(modules: Any) -> None:
    text = slice_of([modules.Model])
    made = run(text)["Model"]()
    given = modules.Model()
    given.load_state_dict(made.state_dict())
    x = torch.randn(2, 8)
    assert torch.equal(made(x), given(x))
    assert "import torch.nn.functional as F" in text and "from functools import partial as bound" in text
    assert '"""What is exported."""' in text and "@marked\nclass Model(Root):" in text and "Root = Base" in text
    for left in ("Forgotten", "UNUSED", "walk_parts", "import json"):
        assert left not in text, left


def test_a_module_as_a_whole_is_refused(modules: Any) -> None:
    with pytest.raises(ExportError, match="uses its own module walk_parts as a whole"):
        slice_of([modules.Whole])


def cell(text: str, number: int) -> dict[str, Any]:
    """Run a text as a notebook runs a cell: in `__main__`, with its lines in linecache."""
    name = f"<ipython-input-{number}>"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    main = sys.modules["__main__"].__dict__
    exec(compile(text, name, "exec"), main)
    return main


def test_classes_of_notebook_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    cell("import torch\nfrom torch import nn\nWIDTH = 3\n", 1)
    cell("class Block(nn.Linear):\n    def forward(self, x):\n        return super().forward(x) + WIDTH\n", 2)
    main = cell(
        "class Model(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.block = Block(WIDTH, WIDTH)\n\n"
        "    def forward(self, x):\n        return torch.relu(self.block(x))\n",
        3,
    )
    text = slice_of([main["Model"]])
    assert "WIDTH = 3" in text and "class Block(nn.Linear)" in text
    assert run(text)["Model"]()(torch.zeros(1, 3)).shape == (1, 3)


def test_a_completed_text_stands_for_the_file(modules: Any) -> None:
    changed = FILES["walk_model.py"].replace("self.f(self.linear(x))", "self.linear(x)")
    assert "return self.act(self.linear(x))" in slice_of([modules.Model], {modules.Model: changed})


def test_a_constant_without_definition_is_named(modules: Any) -> None:
    modules.marked.__globals__["SIZES"] = object()
    text = FILES["walk_model.py"].replace("if True:\n    SIZES = {'width': widened(4)}\n", "")
    with pytest.raises(ExportError, match="reads SIZES \\(object\\), whose definition cannot be found"):
        slice_of([modules.Model], {modules.Model: text})


def test_two_things_of_one_name(modules: Any) -> None:
    other = type("Model", (nn.Module,), {"__module__": "walk_parts"})
    with pytest.raises(ExportError, match="Two different things are called Model"):
        slice_of([modules.Model, other])


def test_a_class_typed_nowhere() -> None:
    made = type("Made", (nn.Module,), {})
    with pytest.raises(ExportError, match="The source of Made cannot be had"):
        slice_of([made])


@pytest.mark.parametrize(("thing", "installed"), [(nn.Linear, True), (math, True), (Path, True), (slice_of, False)])
def test_installed(thing: Any, installed: bool) -> None:
    assert is_installed(thing) is installed
