from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch

import utils
from utils.errors import (
    ConfigError,
    GistContentError,
    GistIdError,
    GistNotFoundError,
    GistRateLimitError,
    ModelLoadError,
    UntrustedCodeError,
)
from utils.loading.cache import CACHE_VARIABLE
from utils.loading.model_config import ModelConfig
from utils.loading.model_loader import load_model, read_source
from utils.testing import GIST_ID, TINY_SOURCES, Behaviour, GistServer, rate_limited

REPO = Path(utils.__file__).parents[1]
HEAD = "import torch\nfrom torch import nn\n"
INIT = "        super().__init__()\n        self.e = nn.Embedding(4, 4)\n"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    def write(files):
        root = tmp_path / "export"
        root.mkdir()
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return root

    return write


def nothing_kept(tmp_path: Path) -> bool:
    return not [
        path for path in (tmp_path / "cache").rglob("*") if path.is_file() or path.name.startswith((".tmp", "m_"))
    ]


@pytest.mark.parametrize(
    ("name", "rows", "width"), [("tensor", 50, 8), ("nodes", 30, 8), ("config_class", 70, 16), ("two_files", 40, 8), ("other_name", 50, 8)]
)  # fmt: skip
def test_a_folder_becomes_a_model(folder, name, rows, width):
    loaded = load_model(folder(TINY_SOURCES[name]))
    embedding = next(m for m in loaded.model.modules() if isinstance(m, torch.nn.Embedding))
    assert embedding.weight.shape == (rows, width)
    assert loaded.source.class_name == type(loaded.model).__name__
    assert loaded.source.text == loaded.source.files[loaded.source.file_name]
    assert set(loaded.source.sha256) == set(loaded.source.files)
    assert loaded.review.max_severity is None


def test_a_gist_becomes_a_model(monkeypatch):
    with GistServer({GIST_ID: TINY_SOURCES["tensor"]}) as server:
        monkeypatch.setenv("GITHUB_API_URL", server.url)
        loaded = load_model(f"https://gist.github.com/me/{GIST_ID}")
    revision = server.revision(GIST_ID)
    assert loaded.source.origin == f"gist {GIST_ID}@{revision}"
    assert loaded.source.revision == revision
    assert loaded.source.sha256["model.py"] in loaded.summary()
    assert load_model(GIST_ID, revision=revision).source == loaded.source  # the server is gone


def test_a_file_and_its_folder_are_the_same(folder):
    root = folder(TINY_SOURCES["two_files"])
    assert load_model(root / "model.py").source.sha256 == load_model(str(root)).source.sha256


def test_views(folder):
    loaded = load_model(folder(TINY_SOURCES["tensor"]))
    assert "TinyModel" in loaded.summary()
    assert "parameters" in loaded._repr_html_()


CONFIG = {"vocab_size": 11, "d_model": 6, "dropout": 0.25, "num_layers": 3, "use_bias": True}


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("self", {}),
        ("self, vocab_size, d_model", {"vocab_size": 11, "d_model": 6}),
        ("self, n_vocab, /, n_embd=1, *, dropout=0.0", {"n_vocab": 11, "n_embd": 6, "dropout": 0.25}),
        ("self, ntoken, d_hid=200, nlayers=1", {"ntoken": 11, "d_hid": 200, "nlayers": 3}),
        ("self, d_model, hidden_dim=99", {"d_model": 6, "hidden_dim": 99}),
        ("self, num_encoder_layers=1, num_decoder_layers=1", {"num_encoder_layers": 3, "num_decoder_layers": 3}),
        ("self, use_bias=False, other=5", {"use_bias": True, "other": 5}),
        ("self, *args, vocab_size=1, **kwargs", {"vocab_size": 11}),
    ],
)
def test_named_arguments_come_from_the_config(folder, signature, expected):
    code = (
        HEAD
        + f"class M(nn.Module):\n    def __init__({signature}):\n        seen = dict(locals())\n{INIT}        self.seen = seen\n"
    )
    seen = load_model(folder({"model.py": code}), config=CONFIG).model.seen
    assert {name: seen[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("head", "signature", "reads"),
    [
        ("", "self, config", "config.n_embd == 6 and config['d_model'] == 6 and config.get('x', 1) == 1 and 'n_vocab' in config"),
        ("", "self, cfg: dict", "cfg['vocab_size'] == 11 and cfg['n_layer'] == 3 and type(cfg) is dict"),
        ("", "self, **config", "config['hidden_size'] == 6"),
        ("@dataclass\nclass GPTConfig:\n    block_size: int = 77\n    n_embd: int = 1\n    dropout: float = 0.0\n",
         "self, config", "type(config).__name__ == 'GPTConfig' and (config.block_size, config.n_embd, config.dropout) == (77, 6, 0.25)"),
        ("@dataclass\nclass A:\n    n_embd: int\n@dataclass\nclass B:\n    n_embd: int\n", "self, x: 'B'", "type(x) is B and x.n_embd == 6"),
        ("@dataclass\nclass B:\n    dim: int = 1\n", "self, config: Optional[B] = None", "type(config) is B and config.dim == 6"),
        ("class ModelArgs:\n    dim = 1\n    n_layers = 1\n", "self, args: ModelArgs", "args.dim == 6 and args.n_layers == 3"),
        ("class Config:\n    def __init__(self, vocab_size=1, **kw):\n        self.vocab_size = vocab_size\n",
         "self, config=Config()", "config.vocab_size == 11"),
    ],
)  # fmt: skip
def test_config_arguments_are_given_what_they_expect(folder, head, signature, reads):
    code = (
        "from dataclasses import dataclass\nfrom typing import Optional\n" + HEAD + head
        + f"class M(nn.Module):\n    def __init__({signature}):\n        assert {reads}\n{INIT}"
    )  # fmt: skip
    load_model(folder({"model.py": code}), config=CONFIG)


def test_arguments_of_the_caller_win(folder):
    root = folder(TINY_SOURCES["tensor"])
    assert load_model(root, d_model=4).model.embedding.weight.shape == (50, 4)
    assert load_model(root, config={"n_embd": 12}).model.embedding.weight.shape == (50, 12)
    assert load_model(root, config=ModelConfig(vocab_size=7)).model.embedding.weight.shape == (7, 8)
    assert load_model(root, config=SimpleNamespace(vocab_size=6)).model.embedding.weight.shape == (6, 8)
    with pytest.raises(ModelLoadError, match=r"takes no argument 'd_modle'\. Did you mean 'd_model'"):
        load_model(root, d_modle=4)


def test_node_parameters_are_used_only_where_they_agree(folder):
    nodes = [{"id": "a", "params": {"rate": 1, "p": 3}}, {"id": "b", "params": {"rate": 2, "p": 3}}]
    code = HEAD + f"class M(nn.Module):\n    def __init__(self, rate=9, p=8):\n{INIT}        self.seen = rate, p\n"
    assert load_model(folder({"model.py": code}), config={"nodes": nodes}).model.seen == (9, 3)


def module(name, body="pass", bases="nn.Module"):
    return f"class {name}({bases}):\n    def __init__(self):\n        super().__init__()\n        {body}\n"


@pytest.mark.parametrize(
    ("code", "options", "chosen"),
    [
        (module("Block") + module("Net", "self.b = Block()"), {}, "Net"),
        (module("Net", "self.b = Block()") + module("Block"), {}, "Net"),
        (module("Block") + "def make():\n    return Block()\n" + module("Net", "self.b = make()"), {}, "Net"),
        (module("Block") + "KINDS = {'b': Block}\n" + module("Net", "self.b = KINDS['b']()"), {}, "Net"),
        (module("Base") + module("Net", bases="Base"), {}, "Net"),
        (module("A") + module("B"), {"class_name": "A"}, "A"),
        (module("A") + module("B"), {"config": {"class_name": "B"}}, "B"),
        (module("A") + module("MyModel"), {"config": {"model_name": "my model"}}, "MyModel"),
        (module("A") + module("B"), {"config": {"architectures": ["A"]}}, "A"),
        (module("A", "self.mhsa_0 = 1") + module("B", "self.z = 1"), {"config": {"nodes": [{"id": "mhsa_0"}]}}, "A"),
        (module("Block", "isinstance(self, Net)") + module("Net", "self.b = Block()"), {}, "Net"),
        ("import abc\n" + "class Z(nn.Module, abc.ABC):\n    @abc.abstractmethod\n    def f(self): ...\n" + module("Net"), {}, "Net"),
    ],
)  # fmt: skip
def test_the_class_is_found(folder, code, options, chosen):
    loaded = load_model(folder({"model.py": HEAD + code}), **options)
    assert type(loaded.model).__name__ == chosen


@pytest.mark.parametrize(
    ("code", "options", "words"),
    [
        (HEAD + module("A") + module("B"), {}, r"several classes that could be the model: A, B\. Say which"),
        (HEAD + module("Netz"), {"class_name": "Net"}, "no module class 'Net'. Did you mean 'Netz'"),
        ("x = 1\n", {}, "no class that derives from torch.nn.Module"),
        (TINY_SOURCES["syntax_error"]["model.py"], {}, r"no valid Python: expected ':' \(line 5\)"),
        (TINY_SOURCES["raises"]["model.py"], {}, r"Broken cannot be built: Broken\(\) raised ZeroDivisionError: division by zero \(model.py, line 8: `self.x = 1 / 0`\)"),
        (HEAD + module("A") + "raise ValueError('top')\n", {}, r"cannot be imported: it raised ValueError: top \(model.py, line 7: `raise ValueError"),
        (HEAD + "exit()\n", {"trust": True}, "cannot be imported: it raised SystemExit"),
        (HEAD + module("A", "import sys; sys.exit(3)"), {}, r"A\(\) raised SystemExit: 3"),
        (HEAD + "class Own(BaseException): pass\n" + module("A", "raise Own('x')"), {}, r"cannot be built: A\(\) raised Own: x \(model.py, line 7"),
        (HEAD + "class Own(BaseException): pass\nraise Own('x')", {}, r"cannot be imported: it raised Own: x \(model.py, line 4"),
        (HEAD + "class Own(Exception):\n    def __str__(self): return 5\nraise Own()", {}, r"raised Own: \(its message cannot be read"),
        (HEAD + "class A(nn.Module):\n    def __new__(cls): return 'x'\n", {}, r"A\(\) gave a value of type str, which is no torch.nn.Module"),
        (HEAD + "class A(nn.Module):\n    def __init__(self, gizmo): ...\n", {"config": {"vocab_size": 3}}, r"requires 'gizmo', and nothing supplies it. Known from the config: vocab_size"),
        (HEAD + "class A(nn.Module):\n    def __init__(self, config):\n        config.gizmo\n", {"config": {"a": 1}}, "raised AttributeError.*gizmo"),
        ("import no_such_pkg\nimport cv2_none.x\n" + HEAD + module("A"), {}, "'no_such_pkg' .line 1.*pip install cv2_none no_such_pkg"),
        ("import torch.no_such_part\n" + HEAD + module("A"), {}, "needs the module 'torch.no_such_part'"),
        (HEAD + module("A", "import no_such_pkg"), {}, "needs the module 'no_such_pkg'.*pip install no_such_pkg"),
        (b"x = '\xff'", {}, "no UTF-8 text: byte 5"),
    ],
)  # fmt: skip
def test_failures_are_said_once_with_their_place(folder, tmp_path, code, options, words):
    with pytest.raises(ModelLoadError, match=words):
        load_model(folder({"model.py": code}), **options)
    assert not list((tmp_path / "cache").rglob(".tmp*"))


def test_wrapping_happens_once(folder):
    with pytest.raises(ModelLoadError) as caught:
        load_model(folder(TINY_SOURCES["raises"]))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no model.py.*Python files: none"),
        ({"a.py": HEAD + module("A"), "b.py": HEAD + module("B")}, "not exactly one file.*a.py, b.py"),
        ({"notes.txt": "x"}, "no model.py"),
    ],
)
def test_folders_without_a_model(folder, files, words):
    with pytest.raises(ModelLoadError, match=words):
        load_model(folder(files))


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("no/such/model.py", ModelLoadError, "There is no file or folder"),
        (Path("zzz"), ModelLoadError, "There is no file or folder"),
        ("zzz", GistIdError, "neither a gist id"),
        ("https://example.com/x", GistIdError, "neither a gist id"),
        ("f" * 32, GistNotFoundError, "knows no gist"),
        ("a\0b", GistIdError, "neither a gist id"),
    ],
)
def test_sources_that_are_none(monkeypatch, source, error, words):
    with GistServer() as server:
        monkeypatch.setenv("GITHUB_API_URL", server.url)
        with pytest.raises(error, match=words):
            load_model(source)


@pytest.mark.parametrize("source", ["", " ", "\n\t"])
def test_an_empty_source_never_means_the_working_directory(tmp_path, monkeypatch, source):
    (tmp_path / "scratch.py").write_text(HEAD + module("Q"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GistIdError, match="neither a gist id"):
        load_model(source)
    assert type(load_model(".").model).__name__ == "Q"


@pytest.mark.parametrize("source", [None, 5, b"abc", ["a"]])
def test_a_source_of_another_type_is_refused(source):
    with pytest.raises(ModelLoadError, match=f"must be a text .*{type(source).__name__}"):
        load_model(source)


def test_a_real_interrupt_passes(folder):
    with pytest.raises(KeyboardInterrupt):
        load_model(folder({"model.py": "raise KeyboardInterrupt\n"}))


def test_a_revision_belongs_to_gists(folder):
    with pytest.raises(ModelLoadError, match="revision must be a text"):
        load_model(GIST_ID, revision=5)
    with pytest.raises(ModelLoadError, match="belongs to gists"):
        load_model(folder(TINY_SOURCES["tensor"]), revision="a" * 40)


CANARY = "CANARY"
EVIL = f"import os\nos.environ['{CANARY}'] = 'sang'\nos.system('true')\n" + HEAD + module("A")


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({"notes.md": "x", "x.py": "y = 1"}, GistContentError, "has no model.py.*It holds: x.py, notes.md"),
        ({"a.py": HEAD + module("A"), "b.py": HEAD + module("B")}, GistContentError, "not exactly one file"),
        (TINY_SOURCES["syntax_error"], ModelLoadError, "no valid Python"),
        ({**TINY_SOURCES["tensor"], "config.json": "{'a': 1}"}, ConfigError, "config.json is no JSON.*line 1, column 2"),
        ({"model.py": EVIL}, UntrustedCodeError, r"model.py:3  os.system .*trust=True"),
        ({"model.py": HEAD + "import blocks\n" + module("A"), "blocks.py": EVIL}, UntrustedCodeError, "blocks.py:3  os.system"),
        ({"model.py": "import no_such_pkg\n" + HEAD + module("A")}, ModelLoadError, "pip install no_such_pkg"),
    ],
)  # fmt: skip
def test_bad_gists_are_refused_before_anything_runs_or_is_kept(monkeypatch, tmp_path, files, error, words):
    with GistServer({GIST_ID: files}) as server:
        monkeypatch.setenv("GITHUB_API_URL", server.url)
        with pytest.raises(error, match=f"(?s){words}"):
            load_model(GIST_ID)
    assert CANARY not in os.environ
    assert nothing_kept(tmp_path)


@pytest.mark.parametrize(
    ("behaviour", "error"), [(rate_limited(2_000_000_000), GistRateLimitError), (Behaviour(truncated_list=True), GistContentError)]
)  # fmt: skip
def test_refusals_of_the_server_reach_the_caller(monkeypatch, tmp_path, behaviour, error):
    with GistServer({GIST_ID: TINY_SOURCES["tensor"]}) as server:
        server.misbehave(GIST_ID, behaviour)
        monkeypatch.setenv("GITHUB_API_URL", server.url)
        with pytest.raises(error):
            load_model(GIST_ID)
    assert nothing_kept(tmp_path)


def test_trust_runs_what_was_found_and_says_so(folder, caplog):
    assert type(load_model(folder({"model.py": EVIL}), trust=True).model).__name__ == "A"
    assert "os.system" in caplog.text


def test_unreached_files_of_a_gist_are_neither_read_nor_run(folder):
    files = {**TINY_SOURCES["tensor"], "other.py": "((( no python", "evil.py": EVIL}
    assert set(load_model(folder(files)).source.files) == {"model.py", "config.json"}


def test_a_link_may_name_the_class(monkeypatch):
    with GistServer({GIST_ID: {"model.py": HEAD + module("A") + module("B")}}) as server:
        monkeypatch.setenv("GITHUB_API_URL", server.url)
        link = f"https://colab.research.google.com/github/o/r/blob/main/template.ipynb#gist_id={GIST_ID}&name=B"
        assert type(load_model(link).model).__name__ == "B"


def test_the_entry_of_several_files_is_the_one_nobody_imports(folder):
    files = {"net.py": HEAD + "from parts import P\n" + module("Net", "self.p = P()"), "parts.py": HEAD + module("P")}
    assert type(load_model(folder(files)).model).__name__ == "Net"


def test_names_of_the_model_do_not_leak(folder):
    load_model(folder(TINY_SOURCES["two_files"]))
    assert not {"model", "blocks"} & set(sys.modules)


def test_reading_alone_runs_and_keeps_nothing(folder, tmp_path):
    source = read_source(folder({"model.py": EVIL, "config.json": "{}"}))
    assert set(source.files) == {"model.py", "config.json"}
    assert CANARY not in os.environ
    assert nothing_kept(tmp_path)


DRAWS = """
import random
import numpy
import torch
from torch import nn

TABLE = torch.randn(3)


class Drawn(nn.Module):
    def __init__(self, seed=5):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.more = nn.Parameter(torch.tensor([random.random(), numpy.random.random(), float(seed)]))
        self.register_buffer("table", TABLE.clone())

    def forward(self, input_ids):
        return self.weight
"""


def drawn(folder: Path, **settings: object) -> list[float]:
    return torch.cat([x.flatten() for x in load_model(folder, **settings).model.state_dict().values()]).tolist()


def test_fresh_weights_are_the_same_in_every_process_and_the_caller_draws_on(tmp_path):
    (tmp_path / "model.py").write_text(DRAWS)
    torch.manual_seed(3)
    legacy = numpy.random
    states = torch.get_rng_state(), random.getstate(), legacy.get_state()[1].tolist()
    here = drawn(tmp_path)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), legacy.get_state()[1].tolist()) == states[1:]
    assert drawn(tmp_path) == here  # though the module is not imported a second time
    code = (
        "import sys, torch\nfrom utils.loading.model_loader import load_model\nloaded = load_model(sys.argv[1])\n"
        "print(torch.cat([x.flatten() for x in loaded.model.state_dict().values()]).tolist(), loaded.seed)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPO, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == f"{here} 0", done.stderr


def test_the_seed_can_be_chosen_and_left_alone(tmp_path):
    (tmp_path / "model.py").write_text(DRAWS)
    assert drawn(tmp_path, seed=1) == drawn(tmp_path, seed=1) != drawn(tmp_path)
    assert drawn(tmp_path, seed=1)[6] == 5.0  # the constructor's own `seed` is another matter
    torch.manual_seed(0)
    first, second = drawn(tmp_path, seed=None), drawn(tmp_path, seed=None)
    assert first[:4] != second[:4]
    assert "fresh weights of seed 1" in load_model(tmp_path, seed=1).summary()
    assert "of seed" not in load_model(tmp_path, seed=None).summary()


def test_a_constructor_that_raises_leaves_the_random_states(tmp_path):
    (tmp_path / "model.py").write_text(DRAWS.replace("super().__init__()", "super().__init__(); torch.randn(1); 1 / 0"))
    state = torch.get_rng_state()
    with pytest.raises(ModelLoadError, match="ZeroDivisionError"):
        load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "0", True])
def test_a_seed_that_is_none_is_refused(tmp_path, seed):
    with pytest.raises(ModelLoadError, match="seed must be a whole number from 0 to 4294967295, or None"):
        load_model(tmp_path, seed=seed)
