from __future__ import annotations

import ast
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import utils
from utils.errors import ModelLoadError
from utils.loading import generated
from utils.loading.cache import CACHE_VARIABLE, private_folder, write_folder
from utils.loading.sources import import_source, local_files, parse_python, relative_imports
from utils.testing import TINY_SOURCES

REPO = Path(utils.__file__).parents[1]
MAIN = TINY_SOURCES["two_files"]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    yield
    for name in [name for name in sys.modules if name.startswith(f"{generated.__name__}.")]:
        del sys.modules[name]


def run_child(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def test_a_module_is_real_and_the_same_twice():
    module = import_source(MAIN, "model.py")
    assert import_source(MAIN, "model.py") is module
    assert inspect.getsource(module.Model).startswith("class Model(nn.Module):")
    folder = Path(module.__file__).parent
    assert folder.parent.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in folder.iterdir()) == ["__init__.py", "blocks.py", "model.py"]  # no __pycache__


@pytest.mark.parametrize("cookie", ["utf-8", "utf8", "ascii", "latin-1", "cp1252"])
def test_a_declared_encoding_that_says_the_same_is_no_hindrance(cookie):
    source = f"# -*- coding: {cookie} -*-\nx = 1\n"
    assert import_source({"model.py": source}, "model.py").x == 1


def test_what_is_run_is_what_was_reviewed_whatever_the_file_declares(monkeypatch):
    """In UTF-7 the comment would end and code would begin."""
    monkeypatch.setattr("utils.loading.sources._refuse_other_encoding", lambda text, name: None)
    module = import_source({"model.py": "# coding: utf-7\nx = 1  # +AAo-x = 2"}, "model.py")
    assert module.x == 1


def test_an_instance_is_unpickled_in_another_process(tmp_path):
    model = import_source(MAIN, "model.py").Model()
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps(model))
    code = "import pickle, sys, torch; m = pickle.load(open(sys.argv[1], 'rb')); print(m(torch.ones(1, 2, dtype=int)).sum().item())"
    expected = model(torch.ones(1, 2, dtype=torch.int64)).sum().item()
    assert float(run_child(code, str(path))) == pytest.approx(expected, rel=1e-5)


def test_torch_compile_and_export_see_it():
    model = import_source(MAIN, "model.py").Model()
    ids = torch.ones(2, 3, dtype=torch.int64)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(ids), model(ids))
    assert torch.equal(torch.export.export(model, (ids,)).module()(ids), model(ids))


def test_two_sources_with_one_file_name_do_not_see_each_other():
    first = import_source({"model.py": "from blocks import X\n", "blocks.py": "X = 1\n"}, "model.py")
    second = import_source({"model.py": "from blocks import X\n", "blocks.py": "X = 2\n"}, "model.py")
    assert (first.X, second.X) == (1, 2)
    assert not {"blocks", "model"} & set(sys.modules)
    with pytest.raises(ModuleNotFoundError, match="blocks"):
        import_source({"model.py": "import blocks\n"}, "model.py")


@pytest.mark.parametrize(
    "statement",
    [
        "import blocks; value = blocks.X",
        "import blocks as b; value = b.X",
        "import math, blocks, os as o; value = blocks.X if o and math else 0",
        "from blocks import X as value",
        "from blocks import *; value = X",
        "from blocks import (\n    X,  # why\n    Y,\n)\nvalue = X",
        "from \\\n    blocks import X as value",
        "from .blocks import X as value",
        "from . import blocks; value = blocks.X",
        "try:\n    import blocks\nexcept ImportError:\n    raise\nvalue = blocks.X",
        "def f():\n    import blocks\n    return blocks.X\nvalue = f()",
        "if True: import blocks\nvalue = blocks.X",
        "s = 'é'; import blocks; value = blocks.X",
        "import layers.inner; value = layers.inner.X",
        "import layers.inner as i; value = i.X",
        "from layers import inner; value = inner.X",
        "from layers.inner import X as value",
        "from layers.deep import X as value",
        "import my_blocks; value = my_blocks.X",
    ],
)
def test_every_way_to_import_a_sibling(statement):
    texts = {
        "model.py": statement + "\nline = __import__('sys')._getframe().f_lineno\n",
        "blocks.py": "X = 7\nY = 8\n",
        "layers/inner.py": "import blocks\nX = blocks.X\n",
        "layers/deep.py": "from .inner import X\nfrom ..blocks import Y\n",
        "my-blocks.py": "X = 7\n",
    }
    files = local_files("model.py", texts.get)
    if "my_blocks" in statement:
        files["my-blocks.py"] = texts["my-blocks.py"]
    module = import_source(files, "model.py")
    assert module.value == 7
    assert module.line == texts["model.py"].count("\n")  # no line has moved


def test_only_files_that_are_reached_take_part():
    texts = {"model.py": "import a\n", "a.py": "from . import b\n", "b.py": "x = 1\n", "c.py": "((("}
    asked = []

    def read(name):
        asked.append(name)
        return texts.get(name)

    assert list(local_files("model.py", read)) == ["model.py", "a.py", "b.py"]
    assert not any(".." in name or name.startswith("/") for name in asked)
    assert list(local_files("model.py", {"model.py": "from ...x import y\nfrom .. import z\n"}.get)) == ["model.py"]


def test_text_without_siblings_is_unchanged():
    text = "import torch\r\nfrom torch import nn\n# é\nx = 'import blocks'\n"
    assert relative_imports(text, parse_python(text, "m"), {"blocks"}, 0) == text
    assert ast.parse(relative_imports("import a.b\n", ast.parse("import a.b\n"), {"a.b"}, 0))


def test_changed_folders_are_noticed_here_and_in_a_child(caplog):
    module = import_source({"model.py": "x = 1\n"}, "model.py")
    Path(module.__file__).write_text("x = 'planted'\n")
    name = module.__name__
    code = (
        f"import importlib\ntry:\n    importlib.import_module({name!r})\nexcept ImportError as e:\n    print('refused')"
    )
    assert run_child(code) == "refused"
    assert import_source({"model.py": "x = 1\n"}, "model.py").x == 1
    assert "changed on disk" in caplog.text
    assert Path(module.__file__).read_text() == "x = 1\n"


def test_a_failing_module_leaves_nothing(tmp_path):
    files = {"model.py": "import blocks\nraise RuntimeError('no')\n", "blocks.py": "x = 1\n"}
    before = set(sys.modules)
    with pytest.raises(RuntimeError, match="no"):
        import_source(files, "model.py")
    assert set(sys.modules) == before
    assert not list((tmp_path / "cache" / "generated").iterdir())


def test_names_that_collide_are_refused():
    with pytest.raises(ModelLoadError, match="become the module 'a_b'"):
        import_source({"a-b.py": "", "a_b.py": ""}, "a_b.py")


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "base" / "target"
    assert write_folder(target, {"a": b"1", "b/c": b"2"})
    assert not write_folder(target, {"a": b"other"})
    assert (target / "a").read_bytes() == b"1"
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        write_folder(tmp_path / "base" / "other", {"a": b"1"})
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    assert private_folder(tmp_path / "p").stat().st_mode & 0o777 == 0o700
