"""One table of hostile gists through the door that people use: each is refused with its reason; nothing runs or is kept.

The parts are tested where they live: names in test_file_names, sizes and hosts in test_gist, JSON in test_model_config,
calls in test_code_review.
"""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest

from utils.errors import ConfigError, GistContentError, ModelLoadError, UntrustedCodeError
from utils.loading.cache import CACHE_VARIABLE
from utils.loading.model_loader import load_model
from utils.testing import GIST_ID, TINY_SOURCES, Behaviour, GistServer

CANARY = "HOSTILE_INTAKE_CANARY"
SINGS = f"import os\nos.environ['{CANARY}'] = 'sang'\nopen('{CANARY}', 'w').close()\n"
MODEL = SINGS + TINY_SOURCES["tensor"]["model.py"]
"""A model that would sing if anything ran it."""


class Payload:
    """Unpickling one writes the canary file."""

    def __reduce__(self):
        return os.mkdir, (CANARY,)


PICKLE = pickle.dumps(Payload())


def files(**more: str | bytes) -> dict[str, str | bytes]:
    return {"model.py": MODEL, **{name.replace("__", "."): text for name, text in more.items()}}


def unpickles(statement: str) -> dict[str, str | bytes]:
    return {"model.py": f"import pickle, torch\n{statement}\n" + TINY_SOURCES["tensor"]["model.py"], "w.pkl": PICKLE}


TABLE = {
    "leads up": ({**files(), "../../x.py": "x = 1"}, GistContentError, "'../../x.py' leads to another folder"),
    "absolute name": ({**files(), "/etc/cron.d/x": "x"}, GistContentError, "leads to another folder"),
    "backslashes": ({**files(), "..\\x.py": "x"}, GistContentError, "leads to another folder"),
    "drive": ({**files(), "C:\\x.py": "x"}, GistContentError, "leads to another folder"),
    "full-width dots": ({**files(), "\uff0e\uff0e\uff0fx.py": "x"}, GistContentError, "leads to another folder"),
    "start-up file": ({**files(), "x.pth": SINGS}, GistContentError, "every start"),
    "hides torch": ({**files(), "torch.py": SINGS}, GistContentError, "hide the module 'torch'"),
    "10 MB of code": (files(model__py=MODEL + "#" * 10_000_000), GistContentError, r"'model.py' holds 10,000,\d{3} bytes; at most"),
    "10 MB beside the code": (files(notes__txt="x" * 10_000_000), GistContentError, "'notes.txt' holds 10,000,000 bytes"),
    "10 MB of config": (files(config__json='{"a": "' + "x" * 9_999_991 + '"}'), GistContentError, "'config.json' holds 10,000,000"),
    "1,000 files": ({**files(), **{f"f{n}.py": SINGS for n in range(999)}}, GistContentError, "1,000 files; at most 100"),
    "brackets in code": (files(model__py=SINGS + "x = " + "(" * 5000 + ")" * 5000), ModelLoadError, "nested|too complex"),
    "signs in code": (files(model__py=SINGS + "x = " + "-" * 50_000 + "1"), ModelLoadError, "nested|too complex"),
    "dots in code": (files(model__py=SINGS + "x" + ".a" * 20_000), ModelLoadError, "nested too deeply"),
    "config: deep lists": (files(config__json='{"a": ' + "[" * 1000 + "]" * 1000 + "}"), ConfigError, "1001 levels deep; at most 64"),
    "config: never closed": (files(config__json="[" * 1_000_000), ConfigError, "levels deep"),
    "code in a comment": (files(model__py="# coding: utf-7\n# +AAo-" + SINGS.replace("\n", "+AAo-") + "\n" + TINY_SOURCES["tensor"]["model.py"]), ModelLoadError, "says something else"),
    "unknown encoding": (files(model__py="# coding: rot13\n" + MODEL), ModelLoadError, "declares an encoding"),
    "more than a model": (files(model__py=SINGS + "def f(): return 1\n" * 60_000), ModelLoadError, "at most 200,000 are reviewed"),
    "by way of a file beside": ({"model.py": "from helper import o\no.remove('x')\n" + TINY_SOURCES["tensor"]["model.py"], "helper.py": "import os as o\n"}, UntrustedCodeError, "os.remove "),
    "config: gigantic": (files(config__json='{"vocab_size": 1e300}'), ConfigError, "at most 1,000,000,000"),
    "config: NaN": (files(config__json='{"vocab_size": NaN}'), ConfigError, "NaN is no JSON number"),
    "config: twice": (files(config__json='{"vocab_size": 1, "vocab_size": 2}'), ConfigError, "'vocab_size' stands twice"),
    "config: long number": (files(config__json='{"vocab_size": ' + "9" * 5000 + "}"), ConfigError, "cannot be read"),
    "config: unknown node": (files(config__json=json.dumps({"nodes": [{"id": "a"}], "edges": [["a", "q"]]})), ConfigError, "nearest is 'a'"),
    "reads a payload": (unpickles("pickle.load(open('w.pkl', 'rb'))"), UntrustedCodeError, "pickle.load "),
    "reads it by another way": (unpickles("torch.serialization.pickle.loads(b'')"), UntrustedCodeError, "pickle.loads "),
    "reads it with torch": (unpickles("torch.load('w.pkl', weights_only=False)"), UntrustedCodeError, "torch.load "),
    "runs on import": (files(), UntrustedCodeError, "writes a file"),
    "payload as code": (files(model__py=PICKLE), GistContentError, "no UTF-8 text|NUL"),
}  # fmt: skip
REDIRECTS = {
    "redirects away": (Behaviour(redirect="https://evil.example/gists/x"), "evil.example.*nothing is fetched"),
    "redirects to a file": (Behaviour(redirect="file:///etc/passwd"), "unsafe address; nothing is fetched"),
    "redirects to this cloud": (Behaviour(redirect="http://169.254.169.254/latest"), "nothing is fetched"),
    "redirects to itself": (Behaviour(redirect=f"/gists/{GIST_ID}"), "in circles.*nothing is fetched"),
    "redirects to no address": (Behaviour(redirect="http://[bad/x"), "no address: Invalid IPv6"),
    "files at no address": (
        Behaviour(truncated=("model.py",), raw_url="https://gist.githubusercontent.com:99999/x"),
        "no address: Port",
    ),
    "redirects its files": (
        Behaviour(truncated=("model.py",), raw_redirect="https://evil.example/x"),
        "evil.example.*nothing is fetched",
    ),
}
ROWS = [(name, rows, None, error, words) for name, (rows, error, words) in TABLE.items()] + [
    (name, files(), behaviour, GistContentError, words) for name, (behaviour, words) in REDIRECTS.items()
]


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """An empty working directory that is the cache's parent as well."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(CANARY, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]


@pytest.mark.parametrize(
    ("hostile", "behaviour", "error", "words"), [row[1:] for row in ROWS], ids=[r[0] for r in ROWS]
)
def test_hostile_gists_are_refused_and_nothing_runs_or_is_written(bare, monkeypatch, hostile, behaviour, error, words):
    with GistServer({GIST_ID: hostile}) as server:
        if behaviour is not None:
            server.misbehave(GIST_ID, behaviour)
        monkeypatch.setenv("GITHUB_API_URL", server.url)
        with pytest.raises(error, match=words):
            load_model(GIST_ID)
    assert CANARY not in os.environ
    assert written(bare) == []
    assert not (bare / CANARY).exists()


def test_a_payload_beside_an_honest_model_is_never_fetched_or_unpickled(bare, monkeypatch):
    with GistServer(
        {GIST_ID: {**TINY_SOURCES["tensor"], "weights.pkl": PICKLE, "pytorch_model.bin": PICKLE}}
    ) as server:
        monkeypatch.setenv("GITHUB_API_URL", server.url)
        assert type(load_model(GIST_ID).model).__name__ == "TinyModel"
    assert not [path for path in server.requests if "weights" in path or ".bin" in path]
    assert not [name for name in written(bare) if name.endswith((".pkl", ".bin"))]
    assert not (bare / CANARY).exists()
    pickle.loads(PICKLE)
    assert (bare / CANARY).exists()  # the canary does sing when it is unpickled
