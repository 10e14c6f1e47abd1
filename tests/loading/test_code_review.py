from __future__ import annotations

from pathlib import Path

import pytest
import torch

from utils.errors import ModelLoadError
from utils.loading.code_review import review_files, review_source
from utils.testing import TINY_SOURCES


def calls(source: str, severity: str) -> set[str]:
    return {finding.call for finding in review_source(source).findings if finding.severity == severity}


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("import os\nos.system('x')", "os.system"),
        ("import os as o\no.system('x')", "os.system"),
        ("from os import system as s\ns('x')", "os.system"),
        ("import os\nf = os.system\nf('x')", "os.system"),
        ("import os\na, b = 1, os.popen\nb('x')", "os.popen"),
        ("import os\ngetattr(os, 'system')('x')", "os.system"),
        ("import os\ngetattr(os, 'sys' + 'tem')('x')", "os.system"),
        ("import os\nos.__dict__['system']('x')", "os.system"),
        ("import os\nvars(os)['system']('x')", "os.system"),
        ("import sys\nsys.modules['os'].system('x')", "os.system"),
        ("__import__('os').system('x')", "os.system"),
        ("i = __import__\ni('subprocess').run('x')", "subprocess.run"),
        ("import importlib\nimportlib.import_module('os').system('x')", "os.system"),
        ("from importlib import import_module as im\nm = im('so'[::-1])\nm.system('x')", "os.system"),
        ("import builtins\nbuiltins.eval('1')", "eval"),
        ("__builtins__['exec']('1')", "exec"),
        ("__builtins__.__dict__['exec']('1')", "exec"),
        ("globals()['eval']('1')", "eval"),
        ("e = eval\ne('1')", "eval"),
        ("list(map(eval, ['1']))", "eval"),
        ("def f(run=eval):\n    run('1')", "eval"),
        ("class A:\n    go = exec\nA().go('1')", "exec"),
        ("eval = 1\ndef f():\n    return eval('1')", "eval"),
        ("(e := eval)('1')", "eval"),
        ("(eval if True else None)('1')", "eval"),
        ("import functools, os\nfunctools.partial(os.system, 'x')()", "os.system"),
        ("from os import *\nsystem('x')", "os.system"),
        ("import subprocess as sp\nsp.Popen(['x'])", "subprocess.Popen"),
        ("from subprocess import run as r\nr(['x'])", "subprocess.run"),
        ("import socket\nsocket.create_connection(('h', 1))", "socket.create_connection"),
        ("import urllib.request\nurllib.request.urlopen('http://x')", "urllib.request.urlopen"),
        ("from urllib import request\nrequest.urlopen('http://x')", "urllib.request.urlopen"),
        ("import requests\nrequests.post('http://x')", "requests.post"),
        ("import pickle\npickle.loads(b'')", "pickle.loads"),
        ("import torch\ntorch.load('x', weights_only=False)", "torch.load"),
        ("import torch\ntorch.hub.load('a', 'b')", "torch.hub.load"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "numpy.load"),
        ("import shutil\nshutil.rmtree('x')", "shutil.rmtree"),
        ("open('x', 'w')", "open"),
        ("open('x', mode='a')", "open"),
        ("m = 'w'\nopen('x', m)", "open"),
        ("import ctypes\nctypes.CDLL('x')", "ctypes.CDLL"),
        ("().__class__.__bases__[0].__subclasses__()", "….__subclasses__"),
        ("import sys\nsys.modules['torch'] = None", "sys.modules"),
        ("import builtins\nbuiltins.print = None", "builtins"),
        ("import os\ngetattr(os, input())", "os.<computed>"),
        ("__import__(name)", "import by computed name"),
        ("import os\n@os.system\ndef f(): pass", "os.system"),
        ("get_ipython().system('x')", "get_ipython"),
        ("import torch\ntorch.os.system('x')", "os.system"),
        ("from torch.serialization import os as o\no.system('x')", "os.system"),
        ("from torch.serialization import *\nos.system('x')", "os.system"),
        ("import torch.utils.collect_env as c\nc.subprocess.run(['x'])", "subprocess.run"),
        ("import torch.utils.collect_env\ntorch.utils.collect_env.subprocess.run(['x'])", "subprocess.run"),
        ("import torch.serialization as ts\nts.shutil.copy('a', 'b')", "shutil.copy"),
        ("import logging\nlogging.os.system('x')", "os.system"),
        ("import torch.storage, inspect\ninspect.os.system('x')", "os.system"),
        ("import inspect\ninspect.importlib.import_module('os').system('x')", "os.system"),
        ("import inspect\ninspect.importlib.util.spec_from_loader('x', None)", "importlib.util.spec_from_loader"),
        ("from inspect import importlib as i\ni.import_module('subprocess').run('x')", "subprocess.run"),
        ("import importlib\nimportlib.import_module(name='os').system('x')", "import by computed name"),
        ("import importlib\nimportlib.sys.modules['os'].system('x')", "os.system"),
        ("import dataclasses\ndataclasses.builtins.exec('x')", "exec"),
        ("import typing\ntyping.sys.modules['os'].system('x')", "os.system"),
        ("import typing\ntyping.sys.modules['os']", "sys.modules"),
        ("import sys\nsys.modules[name].system('x')", "sys.modules"),
        ("import sys\nsys.modules.get(name)", "sys.modules"),
        ("from sys import modules as m\nm[name].x()", "sys.modules"),
        ("import random\nrandom._os.system('x')", "os.system"),
        ("import torch\ngetattr(torch, 'o' + 's').system('x')", "os.system"),
        ("import torch\ngetattr(torch.os, name)('x')", "os.<computed>"),
        ("import os\n[os][0].system('x')", "os as a value"),
        ("import os\ndef f(m):\n    m.fork()\nf(os)", "os as a value"),
        ("class A:\n    import os as o\n    p = o\nA.p.abort()", "os as a value"),
        ("(lambda o: getattr(o, 'sys' + 'tem'))(__import__('o' + 's'))('x')", "os as a value"),
        ("import os\nvars(os)[name]('x')", "os as a value"),
        ("import blocks\nblocks.o.system('x')", "….system"),
        ("from .blocks import o\no.popen('x')", "….popen"),
        ("from .blocks import os\nos.system('x')", "os.system"),
        ("import _io\n_io.open('x', 'w')", "io.open"),
        ("import socket\nsocket.socket()", "socket.socket"),
        ("from pathlib import Path\nPath('x').write_text('y')", "….write_text"),
        ("from pathlib import Path\nPath('x').unlink()", "….unlink"),
        ("from pathlib import Path\nPath('x').open('w').write('y')", "….open"),
        ("from pathlib import Path\nPath('x').open(mode='a' + 'b')", "….open"),
        ("import tarfile\ntarfile.open('x').extractall()", "….extractall"),
        ("import zipfile\nzipfile.ZipFile('x').open('y', 'w')", "….open"),
        ("class A:\n    from os import remove as r\nA.r('x')", "os.remove"),
        ("class A:\n    import os as o\n    def f(self):\n        self.o.remove('x')", "os.remove"),
        ("import os\nos.__getattribute__('remove')('x')", "….__getattribute__"),
        ("getattr(object, '__subcl' + 'asses__')()", "….__subclasses__"),
        ("import sys\nsys.meta_path.insert(0, None)", "sys.meta_path.insert"),
        ("import sys\nsys.settrace(print)", "sys.settrace"),
        ("import logging.config\nlogging.config.dictConfig({})", "logging.config.dictConfig"),
        ("import doctest\ndoctest.run_docstring_examples('', {})", "doctest.run_docstring_examples"),
        ("import numpy.f2py as f\nf.compile('x')", "numpy.f2py.compile"),
        ("import torch\ntorch.serialization._legacy_load(f)", "torch.serialization._legacy_load"),
        ("import torch\ntorch.serialization.load(f, weights_only=False)", "torch.serialization.load"),
        (
            "import torch\ntorch.fx.graph_module._exec_with_source('x = 1', {})",
            "torch.fx.graph_module._exec_with_source",
        ),
        (
            "from transformers import AutoModel\nAutoModel.from_pretrained('x', trust_remote_code=True)",
            "trust_remote_code",
        ),
        ("from transformers import AutoModel as A\nA.from_config(c, trust_remote_code=t)", "trust_remote_code"),
    ],
)
def test_danger_is_seen_under_every_name(source, call):
    assert call in calls(source, "danger")


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("import os\nos.environ['A']", "os.environ"),
        ("from os import getenv\ngetenv('A')", "os.getenv"),
        ("open('x')", "open"),
        ("open('x', 'rb')", "open"),
        ("import torch\ntorch.load('x')", "torch.load"),
        ("from pathlib import Path\nPath('x').read_text()", "….read_text"),
        ("import torch.utils.model_zoo as z\nz.load_url('http://x')", "torch.utils.model_zoo.load_url"),
        ("import sys\nsys.path.append('x')", "sys.path.append"),
        ("def f(model_type):\n    from transformers import GPT2Model\n    GPT2Model.from_pretrained(model_type)", "….from_pretrained"),
        ("import subprocess", "subprocess"),
        ("from torch.serialization import os", "torch.serialization.os"),
        ("import torch\ntorch.os.path.join('a', 'b')", "torch.os"),
        ("import os\nos.environ.get('A')", "os.environ.get"),
        ("import sys\nif 'x' in sys.modules:\n    pass", "sys.modules"),
        ("import importlib.util\nimportlib.util.find_spec('x')", "importlib.util.find_spec"),
        ("import torch\ntorch.nn.Linear.forward = None", "torch.nn.Linear.forward"),
        ("class A:\n    def __reduce__(self):\n        return print, ()", "__reduce__"),
    ],
)  # fmt: skip
def test_what_honest_code_sometimes_does_is_a_caution(source, call):
    review = review_source(source)
    assert call in calls(source, "caution")
    assert review.max_severity == "caution"


@pytest.mark.parametrize(
    "source",
    [
        *[text for name, files in TINY_SOURCES.items() if name not in ("syntax_error", "dangerous")
          for file, text in files.items() if file.endswith(".py")],
        "import torch\nmodel = torch.compile(f)",
        "import re\nre.compile('x')",
        "model.eval()\nmodel.train()",
        "def f(compile=False):\n    if compile:\n        return 1",
        "compile = True\nif compile:\n    pass",
        "def f(x, input):\n    return input(x)",
        "import torch\ntorch.load('x', weights_only=True)" if False else "x = 1",
        "import torch\ntorch.backends.cuda.matmul.allow_tf32 = True",
        "import os\nos.path.join('a', 'b')",
        "import inspect, math, typing, dataclasses",
        "self.requests = []\nself.requests.append(1)",
        "import os as o, sys\np = o\nif sys is not None and o is not None:\n    o.path.join('a', sys.version)",
        "import platform\nplatform.system()",
        "from torch.nn import *\ndef f(nt, sys):\n    return nt.x + sys.y",
        "class A:\n    def f(self, x):\n        return self.system(x) + self.os.system + x.ctypes.data",
        "import torchvision.io, torch.types\ntorchvision.io.read_image(torch.types.Number)",
        "from typing import *\nfrom functools import *\nfrom .utils import logging, io\nlogging.get_logger(__name__)",
        "import hasattr_like\nhasattr(hasattr_like, 'os')",
    ],
)  # fmt: skip
def test_plain_model_code_gives_no_finding(source):
    assert review_source(source).findings == ()


@pytest.mark.parametrize(
    "files",
    [
        {"model.py": "from helper import o\no.remove('x')", "helper.py": "import os as o"},
        {"model.py": "from helper import r\nr('x')", "helper.py": "from os import remove as r"},
        {"model.py": "import helper as h\nh.o.remove('x')", "helper.py": "import os as o"},
        {"model.py": "from helper import *\no.remove('x')", "helper.py": "import os as o"},
        {"model.py": "from a import z\nz('x')", "a.py": "from b import y as z", "b.py": "from os import remove as y"},
        {"pkg/model.py": "from .helper import o\no.remove('x')", "pkg/helper.py": "import os as o"},
        {"pkg/model.py": "from . import helper\nhelper.o.remove('x')", "pkg/helper.py": "import os as o"},
        {"model.py": "from pkg import o\no.remove('x')", "pkg/__init__.py": "import os as o"},
        {"model.py": "import pkg.helper\npkg.helper.o.remove('x')", "pkg/helper.py": "import os as o"},
    ],
)
def test_danger_is_seen_through_the_files_beside(files):
    (found,) = review_files(files).at_least("danger")
    assert (found.file_name, found.line, found.call) == (next(iter(files)), 2, "os.remove")


def test_files_beside_that_hand_on_nothing_powerful_give_no_finding():
    files = {
        "model.py": "from layers import Block, nn, remove\nremove(Block(nn))",
        "layers.py": "import torch.nn as nn\nclass Block: pass\ndef remove(x): return x",
        "heads.py": "from layers import *\nimport layers\nlayers.nn.Linear(1, 1)",
    }
    assert review_files(files).findings == ()


ORDINARY = [
    "albert",
    "bart",
    "bert",
    "bloom",
    "codegen",
    "deberta_v2",
    "distilbert",
    "electra",
    "falcon",
    "fnet",
    "gemma",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "llama",
    "mamba",
    "mistral",
    "mixtral",
    "mpnet",
    "mpt",
    "opt",
    "phi",
    "qwen2",
    "roberta",
    "rwkv",
    "swin",
    "t5",
    "vit",
    "xlnet",
]
"""Thirty model files that people write like, as transformers carries them."""


@pytest.mark.parametrize("family", ORDINARY)
def test_an_ordinary_model_file_needs_no_trust(family):
    transformers = pytest.importorskip("transformers")
    file = Path(transformers.__file__).parent / "models" / family / f"modeling_{family}.py"
    if not file.is_file():
        pytest.skip(f"this transformers carries no {file.name}")
    assert review_source(file.read_text("utf-8"), file.name).at_least("danger") == ()


@pytest.mark.parametrize("name", ["transformer", "activation", "rnn", "conv", "normalization", "sparse", "adaptive"])
def test_an_ordinary_layer_file_needs_no_trust(name):
    file = Path(torch.nn.__file__).parent / "modules" / f"{name}.py"
    assert review_source(file.read_text("utf-8"), file.name).at_least("danger") == ()


def test_findings_carry_place_line_and_reason():
    (finding,) = [f for f in review_source("import os\n\n\nos.system('ls')  # hi\n", "m.py").findings if f.line == 4]
    assert (finding.file_name, finding.severity, finding.kind) == ("m.py", "danger", "process")
    assert finding.code == "os.system('ls')  # hi"
    assert "processes" in finding.why


@pytest.mark.parametrize(
    ("source", "status", "optional"),
    [
        ("import json", "standard library", False),
        ("import torch.nn as nn", "installed", False),
        ("import blocks", "local", False),
        ("import no_such_package_x.y", "missing", False),
        ("try:\n    import no_such_package_x\nexcept ImportError:\n    pass", "missing", True),
        ("try:\n    import no_such_package_x\nexcept ValueError:\n    pass", "missing", False),
        ("def f():\n    import no_such_package_x", "missing", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import no_such_package_x", "missing", True),
        ("def f():\n    import no_such_package_x\nimport no_such_package_x", "missing", False),
    ],
)
def test_imports_are_told_apart(source, status, optional):
    found = [m for m in review_source(source, siblings=["blocks"]).imports if m.name != "typing"]
    assert [(m.status, m.optional) for m in found] == [(status, optional)]


def test_relative_imports_are_siblings():
    assert review_source("from . import blocks\nfrom .x import y").imports == ()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("class A(nn.Module)\n    pass", r"m.py is no valid Python: expected ':' \(line 1\).\n    class A\(nn.Module\)\n {4} *\^"),
        ("x = (1,\n", r"never closed \(line 1\)"),
        ("def f():\nreturn 1", r"indented block.* \(line 2\)"),
        ("x = 1\0", "no valid Python|no Python source"),
        ("(" * 5000 + ")" * 5000, "nested too deeply|too many nested"),
        ("x = " + "-" * 50_000 + "1", "nested too deeply|too complex|no valid Python"),
        ("x" + ".a" * 20_000, "nested too deeply"),
        ("def f(): return 1\n" * 60_000, "elements; at most 200,000 are reviewed"),
        ("# coding: utf-7\nx = 1  # +AAo-import os", "declares the encoding 'utf-7', in which it says something else"),
        ("\n# vim: set fileencoding=utf-16 :\nx = 1", "declares an encoding that its text is not in"),
        ("# -*- coding: rot13 -*-\nx = 1", "declares an encoding that its text is not in"),
        ("# coding: latin-1\nx = 'é'", "declares the encoding 'iso-8859-1', in which it says something else"),
        ("# coding: nonsense\nx = 1", "declares an encoding that its text is not in"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_with_its_place(source, words):
    with pytest.raises(ModelLoadError, match=words):
        review_source(source, "m.py")


def test_views_are_escaped_and_ordered():
    files = {"a.py": "open('<script>')\n", "b.py": "import os\nos.system('<b>x</b>')\n"}
    review = review_files(files)
    text, page = review.summary(), review._repr_html_()
    assert text.index("os.system") < text.index("open")
    assert "1 × danger" in review.verdict
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert set(review.sha256) == {"a.py", "b.py"}
    assert review.sha256["a.py"] in text
    assert review_source("x = 1").max_severity is None
    assert "no risky calls" in review_source("x = 1").summary()
