"""Folders that run without this package: their files, their own proof, and what the server answers to good and bad requests."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import utils
from tests.export.served import Server, loaded, python, serving, waited
from tests.export.small_bundles import (
    CLASSES,
    IMAGE,
    KINDS,
    LIMIT,
    V,
    golden_of,
    tokenizer,
    write_bundle,
    write_manifest,
)
from utils.errors import ConfigError, MissingPackageError, TokenizerError
from utils.export import golden, runtime_files
from utils.export.runtime_files import write_runtime
from utils.training.generation import generate


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind; nobody changes them."""
    root = tmp_path_factory.mktemp("bundles")
    for kind in KINDS:
        write_bundle(kind, root / kind)
    return {kind: root / kind for kind in KINDS}


# ---- files -----------------------------------------------------------------------------------------------------------------
def test_the_files_are_those_that_are_listed(tmp_path):
    written = write_bundle("lm", tmp_path / "lm")
    there = {path.name for path in (tmp_path / "lm").iterdir()}
    assert {path.name for path in written} == there - {"model.onnx", "manifest.json"}
    assert {"inference.py", "server.py", "selftest.py", "Dockerfile", "golden.json", "tokenizer.json"} <= there


def test_no_file_names_this_package_and_shared_modules_are_as_they_are_here(bundles):
    for file in bundles["lm"].glob("*.py"):
        assert not re.search(r"(from|import) utils", file.read_text("utf-8")), file.name
    for module in runtime_files.SHARED:
        own = (Path(utils.__file__).parent / module).read_text("utf-8").splitlines()
        there = (bundles["lm"] / Path(module).name).read_text("utf-8").splitlines()
        changed = [(a, b) for a, b in zip(own, there, strict=True) if a != b]
        assert all(a.startswith("from utils.") for a, _ in changed)


def test_the_scripts_pass_lint_and_formatting(bundles):
    """They lie as templates, where the repository's own check does not look."""
    config = str(Path(utils.__file__).parents[1] / "pyproject.toml")
    scripts = sorted(str(file) for file in bundles["lm"].glob("*.py"))
    for command in (["check", "--ignore", "T20,I001"], ["format", "--check"]):
        done = python(bundles["lm"], "-m", "ruff", *command, "--no-cache", "--config", config, *scripts)
        assert done.returncode == 0, done.stdout + done.stderr


def test_requirements_pin_what_is_installed(bundles):
    lines = (bundles["lm"] / "requirements.txt").read_text("utf-8").splitlines()
    assert [line.split("==")[0] for line in lines] == list(runtime_files.PACKAGES)
    assert f"numpy=={np.__version__}" in lines


def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime_files, "PACKAGES", ("numpy", "no-such-package"))
    with pytest.raises(MissingPackageError, match=r"no-such-package is not\. .*export,training"):
        write_bundle("lm", tmp_path / "lm")


@pytest.mark.parametrize(
    "there", [{}, {"fastapi": "0.1", "uvicorn": "0.2", "pydantic": "1.0"}], ids=["nothing", "all but one"]
)
def test_a_server_that_is_not_installed_as_a_whole_is_pinned_as_it_was_tried(tmp_path, monkeypatch, there):
    version = importlib.metadata.version

    def without_server(name: str) -> str:
        if name not in runtime_files.SERVER_VERSIONS:
            return version(name)
        if name not in there:
            raise importlib.metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(importlib.metadata, "version", without_server)
    write_bundle("lm", tmp_path / "lm")
    lines = (tmp_path / "lm" / "requirements.txt").read_text("utf-8").splitlines()
    assert {f"{name}=={pinned}" for name, pinned in runtime_files.SERVER_VERSIONS.items()} <= set(lines)
    assert f"numpy=={np.__version__}" in lines


@pytest.mark.parametrize(
    ("kind", "changes", "error", "message"),
    [
        ("lm", {"tokenizer": None}, TokenizerError, "no tokenizer was given"),
        ("lm", {"tokenizer": SimpleNamespace()}, TokenizerError, "SimpleNamespace is none of transformers"),
        ("lm", {"tolerances": {"model_int8.onnx": 1.0}}, ConfigError, r"must name model\.onnx; got model_int8"),
        ("classification", {"class_names": ("a", "b")}, ConfigError, "2 class names, and the model has 3 classes"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, kind, changes, error, message):
    small = KINDS[kind]()
    words = changes.pop("tokenizer", tokenizer())
    with pytest.raises(error, match=message):
        write_runtime(tmp_path, small.signature, words, small.answer, {}, **changes)
    assert not list(tmp_path.iterdir()), "nothing is written before everything is known to fit"


@pytest.mark.parametrize(
    ("flags", "ranges"),
    [([], []), ([1, 1, 0, 1], [[0, 2], [3, 4]]), ([0, 0], []), ([1], [[0, 1]]), ([0, 1, 1, 0], [[1, 3]])],
)
def test_ids_are_kept_as_ranges(flags, ranges):
    assert runtime_files._ranges([bool(flag) for flag in flags]) == ranges


def test_facts_with_quotes_break_no_file(tmp_path):
    small, name = KINDS["lm"](), 'it\'s "mine" {{ x }} <b>'
    write_runtime(tmp_path, small.signature, tokenizer(), small.answer, {"model_name": name}, prompts=["It's ", "b"])
    assert json.loads((tmp_path / "generation.json").read_text("utf-8"))["name"] == name
    usage = (tmp_path / "USAGE.md").read_text("utf-8")
    (body,) = re.findall(r"/generate -H .*?\n +-d ('.*')\n", usage)
    asked = subprocess.run(["sh", "-c", f"printf %s {body}"], capture_output=True, text=True, check=True).stdout
    assert json.loads(asked)["prompt"] == "It's "


# ---- golden requests -------------------------------------------------------------------------------------------------------
def test_golden_answers_are_those_of_the_notebook(bundles):
    small, words = KINDS["lm"](), tokenizer()

    class Model:
        signature = small.signature

        def run(self, **inputs: Any) -> np.ndarray:
            return small.answer(self.signature.checked(inputs, "model"))

    for entry in golden_of(bundles["lm"])["texts"]:
        text = generate(Model(), entry["prompt"], tokenizer=words, **entry["sampling"])
        assert text == entry["prompt"] + entry["text"]
        assert len(entry["ids"]) >= 4


def test_golden_texts_end_before_a_choice_that_rounding_turns():
    small, words = KINDS["lm"](), tokenizer()

    def close(feeds: dict[str, np.ndarray]) -> np.ndarray:
        """After three new tokens the two likeliest ids are as good as equal."""
        logits = small.answer(feeds).copy()
        begun = len(words("The ", add_special_tokens=False)["input_ids"])
        if logits.shape[1] == begun + 3:
            logits[:, -1, [50, 60]] = [100.0, 100.00001]
        return logits

    found = golden.golden_requests(small.signature, close, words, {"model.onnx": 1e-3}, ["The "])
    greedy, sampled = found["texts"]
    assert len(greedy["ids"]) == greedy["sampling"]["max_new_tokens"] == 3
    assert len(sampled["ids"]) == 12, "a draw that is not at the border between the two stays"


@pytest.mark.parametrize(("least", "step", "kept"), [(1, 1, 2), (5, 1, 1), (1, 40, 0)])
def test_golden_classes_leave_out_texts_that_the_model_refuses(least, step, kept):
    small, prompts = KINDS["classification"](), ["The ", "on the wall, green bottles and no other"]
    known = dataclasses.replace(small.signature, min_length=least, multiple_of=step, max_length=80)
    found = golden.golden_requests(known, small.answer, tokenizer(), {"model.onnx": 1e-3}, prompts)["classes"]
    assert [entry["text"] for entry in found] == prompts[2 - kept :]


def test_golden_logits_leave_out_padding(bundles):
    found = golden_of(bundles["masked"])["logits"]
    assert {entry["padding"] for entry in found} == {"none", "left", "right"}
    padded = next(entry for entry in found if entry["padding"] == "left")
    _, length, width = padded["shape"]
    assert min(padded["places"]) >= length // 3 * width, "the first row is padded on the left"


# ---- selftest --------------------------------------------------------------------------------------------------------------
@pytest.fixture
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names a proxy that answers nobody."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_folder_proves_itself(bundles, kind, dead_proxy):
    done = python(bundles[kind], "selftest.py", *([] if kind in ("seq2seq", "vision") else ["--no-server"]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout and "checks hold." in done.stdout


@pytest.mark.parametrize(
    ("found", "holds", "said"),
    [
        ([1.0, 2.0, 3.0], True, "differ by 0.0e+00, 0.001 allowed"),
        ([1.0, 2.0005, 3.0], True, "differ by 5.0e-04"),
        ([1.0, 2.5, 3.0], False, "differ by 5.0e-01"),
        ([float("nan"), 2.0, 3.0], False, "differ by nan"),
        ([1.0, float("nan"), 3.0], False, "differ by nan"),
        ([1.0, 2.0, float("inf")], False, "differ by inf"),
        ([1.0, 2.0], False, "2 numbers, expected 3"),
        ([1.0, 2.0, 3.0, 4.0], False, "4 numbers, expected 3"),
    ],
)
def test_numbers_are_compared_one_by_one(bundles, found, holds, said):
    line = loaded(bundles["lm"], "selftest")._close("logits", found, [1.0, 2.0, 3.0], 1e-3)
    assert line.holds == holds and said in line.found


def test_nothing_compared_is_nothing_proven(bundles):
    assert not loaded(bundles["lm"], "selftest")._close("logits", [], [], 1e-3).holds


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def stale_tokenizer(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text("utf-8")
    content = json.loads(text)
    merges = content["model"]["merges"]
    assert len(merges) > 3
    content["model"]["merges"] = merges[:2]
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")


def edit(name: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    def edited(folder: Path) -> None:
        content = json.loads((folder / name).read_text("utf-8"))
        change(content)
        (folder / name).write_text(json.dumps(content), "utf-8")

    return edited


def package(folder: Path) -> None:
    """What Python takes for the installed package of that name, where it lies beside a script."""
    folder.mkdir()
    (folder / "__init__.py").write_text("")


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def pin_another(folder: Path) -> None:
    text = (folder / "requirements.txt").read_text("utf-8")
    (folder / "requirements.txt").write_text(re.sub(r"numpy==.*", "numpy==1.0.0", text), "utf-8")


FAULTS = {
    "a flipped byte": (False, lambda f: flip_a_byte(f / "model.onnx"), r"FAIL  file model\.onnx .*expected"),
    "a missing file": (False, lambda f: (f / "USAGE.md").unlink(), r"FAIL  file USAGE\.md +is missing"),
    "a stale tokenizer": (False, stale_tokenizer, r"FAIL  file tokenizer\.json"),
    "a stranger's script": (False, lambda f: (f / "numpy.py").write_text("x"), r"FAIL  file numpy\.py .*not listed"),
    "a stranger's package": (False, lambda f: package(f / "tokenizers"), r"FAIL  file tokenizers .*not listed"),
    "a stranger's library": (False, lambda f: (f / "numpy.so").write_text("x"), r"FAIL  file numpy\.so .*not listed"),
    "two files in each other's place": (
        False,
        lambda f: swap(f / "tokenizer.json", f / "signature.json"),
        r"FAIL  file tokenizer\.json",
    ),
    "no manifest": (False, lambda f: (f / "manifest.json").unlink(), r"FAIL  manifest\.json"),
    "a list without hashes": (
        False,
        edit("manifest.json", lambda m: m["files"][0].pop("sha256")),
        r"FAIL  manifest\.json +cannot be read: KeyError",
    ),
    "a stranger's script that ends this one": (
        False,
        lambda f: (f / "numpy.py").write_text("raise SystemExit(0)"),
        r"FAIL  answers +cannot be asked: SystemExit",
    ),
    "another version": (True, pin_another, r"FAIL  package numpy .*expected 1\.0\.0"),
    # hashed again, so that the answers alone must tell:
    "other merges": (True, stale_tokenizer, r"FAIL  model\.onnx: ids of 'green bottles'"),
    "another text": (
        True,
        edit("golden.json", lambda g: g["texts"][1].update(text="no")),
        r"FAIL  model\.onnx: sampled, 'The ' .*expected .*'no'",
    ),
    "other logits": (
        True,
        edit("golden.json", lambda g: g["logits"][2]["values"].__setitem__(0, 1e3)),
        r"FAIL  model\.onnx: logits, batch 1 × length 7 .*0\.001 allowed",
    ),
    "logits that are no numbers": (
        True,
        edit("golden.json", lambda g: g["logits"][2]["values"].__setitem__(5, float("nan"))),
        r"FAIL  model\.onnx: logits, batch 1 × length 7 .*nan",
    ),
    "no logits": (
        True,
        edit("golden.json", lambda g: g.update(logits=[])),
        r"FAIL  model\.onnx: logits .*nothing is compared",
    ),
    "no tolerances": (
        True,
        edit("golden.json", lambda g: g.update(tolerances={})),
        r"FAIL  model\.onnx: logits .*no tolerance",
    ),
    "a boundless tolerance": (
        True,
        edit("golden.json", lambda g: g["tolerances"].update({"model.onnx": float("inf")})),
        r"FAIL  model\.onnx: logits .*no tolerance",
    ),
    "another shape": (
        True,
        edit("golden.json", lambda g: g["logits"][0]["shape"].append(1)),
        r"FAIL  model\.onnx: logits, batch 1 × length 1 .*expected \[1, 1, 304, 1\]",
    ),
    "no model any more": (True, lambda f: (f / "model.onnx").write_bytes(b"no"), r"FAIL  answers +cannot be asked"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_damaged_folder_is_told(bundles, tmp_path, name):
    hashed_again, damage, told = FAULTS[name]
    folder = shutil.copytree(bundles["lm"], tmp_path / "lm")
    damage(folder)
    if hashed_again:
        write_manifest(folder)
    done = python(folder, "selftest.py", "--no-server")
    assert done.returncode == 1
    assert re.search(told, done.stdout), done.stdout + done.stderr


def test_the_self_test_asks_for_more_than_the_server_gives_by_default(bundles, tmp_path):
    """As with a vocabulary of half a million: one answer to /logits holds more numbers than the limit."""
    folder = shutil.copytree(bundles["lm"], tmp_path / "lm")
    limits = (folder / "limits.py").read_text("utf-8")
    (folder / "limits.py").write_text(
        limits.replace(
            "numbers: int = dataclasses.field(default=1_000_000", "numbers: int = dataclasses.field(default=100"
        ),
        "utf-8",
    )
    assert limits != (folder / "limits.py").read_text("utf-8")
    write_manifest(folder)
    done = python(folder, "selftest.py")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--port", "99999"), "expected a number from 0 .* to 65535; got '99999'"),
        (("--port", "-1"), "got '-1'"),
        (("--file", "golden.json"), "error: ONNX Runtime cannot open .*golden.json"),
    ],
)
def test_what_cannot_be_served_is_one_line(bundles, arguments, said):
    done = python(bundles["lm"], "server.py", *arguments)
    assert done.returncode == 2 and re.search(said, done.stderr) and "Traceback" not in done.stderr, done.stderr


def test_a_less_exact_file_is_held_to_its_own_tolerance(bundles, tmp_path):
    """Stands for int8: logits are compared, texts are not."""
    folder = tmp_path / "lm"
    write_bundle("lm", folder, tolerances={"model.onnx": 1e-3, "model_int8.onnx": 0.5})
    done = python(folder, "selftest.py", "--no-server")
    assert done.returncode == 0 and "model_int8" not in done.stdout, "a file that is not there is not asked for"
    shutil.copy(folder / "model.onnx", folder / "model_int8.onnx")
    write_manifest(folder)
    done = python(folder, "selftest.py", "--no-server")
    assert done.returncode == 0 and "model_int8.onnx: logits" in done.stdout
    assert "model_int8.onnx: greedy" not in done.stdout


# ---- inference.py ----------------------------------------------------------------------------------------------------------
def test_inference_runs_without_this_package_and_without_torch(bundles):
    code = (
        "import sys, inference\n"
        "m = inference.Model(threads=1)\n"
        "one = m.generate('The ', max_new_tokens=8, seed=3)\n"
        "assert one == 'The ' + ''.join(m.stream('The ', max_new_tokens=8, seed=3))\n"
        "assert m.generate(['The ', 'on'], max_new_tokens=8, seed=3)[0] == one\n"
        "assert not {'utils', 'torch', 'transformers'} & set(sys.modules)\n"
        "print(repr(one))"
    )
    done = python(bundles["lm"], "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("'The ")


def test_special_tokens_in_a_prompt_are_text_as_in_the_notebook(bundles):
    words, prompt = tokenizer(), "</s>on <s>"
    ids = words(prompt, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert words.eos_token_id not in ids
    done = python(bundles["lm"], "-c", f"import inference; print(inference.Model().encode({prompt!r}))")
    assert done.stdout.strip() == str(ids), done.stderr


@pytest.mark.parametrize(
    ("kind", "arguments", "code", "said"),
    [
        ("lm", ["The ", "--temperature", "0", "--max-new-tokens", "4"], 0, r"The \S"),
        ("lm", ["The ", "--top-p", "7"], 2, "error: top_p must be above 0 and at most 1"),
        (
            "lm",
            ["The ", "--file", "model_int8.onnx"],
            2,
            r"error: There is no model_int8\.onnx .*run here: model\.onnx",
        ),
        ("classification", ["a film"], 0, r"0\.\d{4}  (praise|blame|report)"),
        ("masked", ["a film"], 2, "error: Small masked names hidden tokens"),
        ("vision", ["absent.npy"], 2, "error: .*absent"),
    ],
)
def test_inference_answers_on_the_command_line(bundles, kind, arguments, code, said):
    done = python(bundles[kind], "inference.py", *arguments)
    assert done.returncode == code, done.stderr
    assert re.search(said, done.stdout + done.stderr)


# ---- server.py -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def lm(bundles) -> Iterator[Server]:
    with serving(bundles["lm"], "--body-bytes", "20000", "--prompt-tokens", "500", "--batch", "4") as server:
        yield server


def test_health_says_what_is_served(lm):
    status, content, _ = lm.ask("/health")
    assert status == 200
    assert content == {"status": "ok", "model": "Small lm", "file": "model.onnx", "task": "lm", "requests": 0}


def test_golden_requests_get_the_golden_answers(lm, bundles):
    for entry in golden_of(bundles["lm"])["texts"]:
        asked = {"prompt": entry["prompt"], **entry["sampling"]}
        _, content, _ = lm.ask("/generate", asked)
        assert (content["text"], content["ids"]) == (entry["text"], entry["ids"])
        whole = len(entry["ids"]) == entry["sampling"]["max_new_tokens"]
        assert content["finish_reason"] == ("length" if whole else "stop")
        assert content["prompt_tokens"] == len(entry["prompt_ids"])
        by_ids = lm.ask("/generate", {**asked, "prompt": entry["prompt_ids"]})[1]
        assert by_ids["text"] == entry["text"]
        events = lm.events("/generate", asked)
        assert "".join(event.get("text", "") for event in events) == entry["text"]
        assert events[-1]["ids"] == entry["ids"]


def test_lists_of_prompts_are_answered_in_order(lm):
    asked = {"temperature": 0, "max_new_tokens": 5}
    alone = [lm.ask("/generate", {"prompt": prompt, **asked})[1]["text"] for prompt in ("The ", "on wall", "")]
    together = lm.ask("/generate", {"prompt": ["The ", "on wall", ""], **asked})[1]["results"]
    assert [result["text"] for result in together] == alone


def test_logits_are_the_files(lm):
    ids = [[5, 6, 7], [7, 6, V - 1]]
    expected = KINDS["lm"]().answer({"input_ids": np.array(ids)})
    _, content, _ = lm.ask("/logits", {"input_ids": ids})
    assert content["shape"] == list(expected.shape)
    np.testing.assert_allclose(content["logits"], expected, atol=1e-4)
    _, last, _ = lm.ask("/logits", {"input_ids": ids, "last_only": True})
    np.testing.assert_allclose(last["logits"], expected[:, -1:], atol=1e-4)


def test_completions_have_openais_form(lm):
    asked = {"model": "Small lm", "prompt": "The ", "max_tokens": 6, "temperature": 0, "seed": 1}
    status, content, _ = lm.ask("/v1/completions", asked)
    text = lm.ask("/generate", {"prompt": "The ", "max_new_tokens": 6, "temperature": 0})[1]["text"]
    assert status == 200 and content["object"] == "text_completion" and content["id"].startswith("cmpl-")
    assert content["choices"] == [{"index": 0, "text": text, "logprobs": None, "finish_reason": "length"}]
    usage = content["usage"]
    assert usage["completion_tokens"] == 6 and usage["total_tokens"] == usage["prompt_tokens"] + 6
    assert lm.ask("/v1/models")[1]["data"][0]["id"] == "Small lm"


def test_completions_stream_stop_and_count(lm):
    asked = {"prompt": ["The ", "on"], "max_tokens": 12, "temperature": 0, "stream_options": {"include_usage": True}}
    *pieces, counted = lm.events("/v1/completions", asked)
    whole = lm.ask("/v1/completions", {key: value for key, value in asked.items() if key != "stream_options"})[1]
    for choice in whole["choices"]:
        mine = [piece["choices"][0] for piece in pieces if piece["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in mine) == choice["text"]
        assert [piece["finish_reason"] for piece in mine[-2:]] == [None, "length"]
    assert counted["choices"] == [] and counted["usage"] == whole["usage"]
    stop = whole["choices"][0]["text"][4:6]
    ended = lm.ask("/v1/completions", {"prompt": "The ", "max_tokens": 12, "temperature": 0, "stop": stop})[1][
        "choices"
    ][0]
    assert ended["text"] == whole["choices"][0]["text"].split(stop)[0] and ended["finish_reason"] == "stop"


def test_seeds_decide_completions(lm):
    asked = {"prompt": "The ", "max_tokens": 20}
    texts = [lm.ask("/v1/completions", {**asked, "seed": seed})[1]["choices"][0]["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    free = {lm.ask("/v1/completions", asked)[1]["choices"][0]["text"] for _ in range(3)}
    assert len(free) > 1


DEEP = '{"prompt": ' + "[" * 9000 + "]" * 9000 + "}"
HOSTILE: list[tuple[str, Any, int, str]] = [
    # (route, body, status, words of the message)
    ("/generate", {"prompt": 3}, 422, "prompt"),
    ("/generate", {"prompt": None}, 422, "prompt"),
    ("/generate", {"prompt": []}, 422, "0 sequences in one request"),
    ("/generate", {"prompt": [[]]}, 422, "at least one"),
    ("/generate", {"prompt": [True]}, 422, "prompt"),
    ("/generate", {"prompt": [V]}, 422, f"ids go from 0 to {V - 1}"),
    ("/generate", {"prompt": [-1]}, 422, "Token id -1"),
    ("/generate", {"prompt": [2**70]}, 422, ""),
    ("/generate", {"prompt": ["a"] * 5}, 422, "takes 1 to 4"),
    ("/generate", {"prompt": "ab " * 2000}, 422, "the limit is 500"),
    ("/generate", {"prompt": "x" * 30_000}, 413, "larger than 20000 bytes"),
    ("/generate", {"prompt": "a", "max_new_tokens": "4"}, 422, "max_new_tokens"),
    ("/generate", {"prompt": "a", "max_new_tokens": 10**9}, 422, "more than the limit of 1024"),
    ("/generate", {"prompt": "a", "max_new_tokens": -1}, 422, "max_new_tokens must be"),
    ("/generate", {"prompt": "a", "temperature": -1, "top_k": 0}, 422, "temperature must be.*top_k must be"),
    ("/generate", '{"prompt": "a", "temperature": NaN}', 422, "temperature"),
    ("/generate", '{"prompt": "a", "temperature": 1e999}', 422, "temperature"),
    ("/generate", '{"prompt": "\\ud800"}', 422, ""),
    ("/generate", '{"prompt": "a", "repetition_penalty": 1e-310}', 422, "from 0.01 to 100"),
    ("/generate", {"prompt": "a", "repetition_penalty": 1e308}, 422, "from 0.01 to 100"),
    ("/generate", {"prompt": "a", "tempratur": 1}, 422, "tempratur: Extra inputs"),
    ("/generate", {"prompt": "a", "stop": ["x"] * 5}, 422, "up to 4 texts"),
    ("/generate", {"prompt": "a", "stop": ""}, 422, "1 to 256 characters"),
    ("/generate", '{"prompt": "a", "seed": 1' + "0" * 5000 + "}", 400, ""),
    ("/generate", {"prompt": "a", "seed": True}, 422, "seed"),
    ("/generate", "{not json", 422, "JSON"),
    ("/generate", b"\xff\xfe", 422, ""),
    ("/generate", "", 422, ""),
    ("/generate", "[]", 422, "body: "),
    ("/generate", DEEP, 400, ""),
    ("/logits", {"input_ids": [[1, 2], [3]]}, 422, "equally long"),
    ("/logits", {"input_ids": [[]]}, 422, "at least 1 × 1"),
    ("/logits", {"input_ids": [[1.5]]}, 422, "input_ids"),
    ("/logits", {"input_ids": [[1, V]]}, 422, f"Token id {V}"),
    ("/logits", {"input_ids": [[1] * (LIMIT + 1)]}, 422, f"at most {LIMIT}"),
    ("/logits", {"input_ids": [[1]], "attention_mask": [[0]]}, 422, "no attention_mask"),
    ("/logits", {"input_ids": [[1]], "pixel_values": [[[[0.0]]]]}, 422, "no input pixel_values"),
    ("/logits", {}, 422, "needs input_ids"),
    ("/logits", {"input_ids": [[1]] * 5}, 422, "takes 1 to 4"),
    ("/v1/completions", {"prompt": "a", "model": "other"}, 404, "no model 'other'"),
    ("/v1/completions", {"prompt": "a", "n": 2}, 422, "n=2"),
    ("/v1/completions", {"prompt": "a", "logprobs": 3, "echo": True}, 422, "echo=True, logprobs=3"),
    ("/v1/completions", {"prompt": "a", "logprobs": 0}, 422, "logprobs=0"),
    ("/v1/completions", {"prompt": "a", "temperature": "hot"}, 422, "temperature"),
    ("/v1/completions", {"prompt": "a", "top_p": 0}, 422, "top_p"),
    ("/classify", {"text": "a"}, 404, "chooses no classes"),
    ("/nothing", {"prompt": "a"}, 404, "Not Found"),
    ("/generate", None, 405, "Method Not Allowed"),
    ("/../etc/passwd", None, 404, ""),
]


@pytest.mark.parametrize(("path", "body", "status", "words"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_requests_get_their_status_and_a_clear_error(lm, path, body, status, words):
    found, content, _ = lm.ask(path, body)
    assert found == status, content
    assert set(content["error"]) == {"message", "type", "param", "code"}
    assert re.search(words, content["error"]["message"]), content
    assert lm.ask("/health")[0] == 200


def test_the_containers_health_check_asks_this_machine_itself(lm, bundles, dead_proxy):
    (command,) = re.findall(r"HEALTHCHECK .*\\\n +CMD (\[.*\])\n", (bundles["lm"] / "Dockerfile").read_text("utf-8"))
    _, *arguments = json.loads(command.replace(":8000/", f":{lm.port}/"))
    assert python(bundles["lm"], *arguments).returncode == 0
    assert python(bundles["lm"], *[one.replace("/health", "/nothing") for one in arguments]).returncode != 0


def test_a_body_without_its_type_is_told_so(lm):
    status, content, _ = lm.ask("/generate", {"prompt": "a"}, headers={"Content-Type": "text/plain"})
    assert status == 422 and content["error"]["message"].startswith("Send Content-Type: application/json")


def test_a_body_that_never_ends_is_refused(bundles):
    with (
        serving(bundles["lm"], "--body-seconds", "1") as server,
        socket.create_connection(("127.0.0.1", server.port)) as slow,
    ):
        slow.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        slow.settimeout(20)
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_generation(bundles, stream):
    """Greedily this model never says end-of-text: were the work to go on, it would take an hour."""
    with serving(bundles["lm"], "--new-tokens", "10000000", "--workers", "1") as server:
        body = json.dumps({"prompt": "The ", "max_new_tokens": 10_000_000, "temperature": 0, "stream": stream}).encode()
        head = posted(body)
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(head + body)
            if stream:
                assert client.recv(50).startswith(b"HTTP/1.1 200")
            waited(lambda: server.ask("/health")[1]["requests"] == 1)
            time.sleep(1)
            assert server.ask("/health")[1]["requests"] == 1, "it goes on while the client stays"
        waited(lambda: server.ask("/health")[1]["requests"] == 0)
        assert server.ask("/generate", {"prompt": "a", "max_new_tokens": 1})[0] == 200


def posted(body: bytes) -> bytes:
    """The head of a request to /generate."""
    lines = ["POST /generate HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_server_that_is_told_to_end_does_so_while_it_writes(bundles):
    with serving(bundles["lm"], "--new-tokens", "10000000") as server:
        body = json.dumps({"prompt": "a", "max_new_tokens": 10_000_000, "temperature": 0}).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(posted(body) + body)
            waited(lambda: server.ask("/health")[1]["requests"] == 1)
            server.process.terminate()
            server.process.wait(15)


def test_the_event_loop_answers_while_the_model_works_and_too_many_are_sent_away(bundles):
    options = ("--new-tokens", "10000000", "--workers", "1", "--waiting", "1")
    with serving(bundles["lm"], *options) as server, contextlib.ExitStack() as held:
        body = json.dumps({"prompt": "a", "max_new_tokens": 10_000_000, "temperature": 0}).encode()
        head = posted(body)
        for _ in range(2):
            client = held.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            client.sendall(head + body)
        waited(lambda: server.ask("/health")[1]["requests"] == 2)
        status, content, headers = server.ask("/generate", {"prompt": "a"})
        assert status == 503 and headers["Retry-After"] == "1"
        assert content["error"]["type"] == "server_error" and content["error"]["code"] == "overloaded"


@pytest.mark.parametrize(
    ("kind", "path", "body", "status", "expected"),
    [
        ("classification", "/classify", {"text": ["a film", "on"]}, 200, 2),
        ("classification", "/classify", {"input_ids": [[1, 2, 3]]}, 200, 1),
        ("classification", "/classify", {"text": "a", "input_ids": [[1]]}, 422, "Pass one of"),
        ("classification", "/classify", {}, 422, "Pass one of"),
        ("classification", "/classify", {"text": []}, 422, "0 sequences"),
        ("classification", "/generate", {"prompt": "a"}, 404, "writes no text: ask /classify"),
        ("classification", "/logits", {"input_ids": [[1, 2, 3]]}, 200, None),
        ("vision", "/classify", {"pixel_values": np.zeros((2, *IMAGE)).tolist()}, 200, 2),
        ("vision", "/classify", {"pixel_values": [[[[1.0]]]]}, 422, "pixel_values must be numbers of shape"),
        (
            "vision",
            "/classify",
            {"pixel_values": np.full((1, *IMAGE), 1e39).tolist()},
            422,
            "must be finite as float32",
        ),
        ("vision", "/logits", {"pixel_values": np.full((1, *IMAGE), 1e39).tolist()}, 422, "must be finite as float32"),
        ("vision", "/classify", {"pixel_values": np.full((1, *IMAGE), 3e38).tolist()}, 422, "NaN or infinite"),
        ("vision", "/logits", {"pixel_values": np.full((1, *IMAGE), 3e38).tolist()}, 200, None),
        ("vision", "/classify", {"text": "a"}, 422, "takes images and no text"),
        ("vision", "/v1/completions", {"prompt": "a"}, 404, "writes no text: ask /classify"),
        ("masked", "/generate", {"prompt": "a"}, 404, "writes no text: ask /logits"),
        ("masked", "/logits", {"input_ids": [[1, 2]], "attention_mask": [[0, 1]]}, 200, None),
        ("masked", "/logits", {"input_ids": [[1, 2]], "attention_mask": [[1]]}, 422, "they must agree"),
        ("seq2seq", "/logits", {"input_ids": [[1, 2]], "decoder_input_ids": [[2, 5, 6]]}, 200, None),
        ("seq2seq", "/generate", {"prompt": "a", "temperature": 0, "max_new_tokens": 3}, 200, None),
    ],
)
def test_other_kinds_answer_what_has_a_meaning(others, kind, path, body, status, expected):
    found, content, _ = others[kind].ask(path, body)
    assert found == status, content
    if path == "/classify" and status == 200:
        assert len(content["scores"]) == len(content["best"]) == expected
        assert len(content["labels"]) == CLASSES and sum(content["scores"][0]) == pytest.approx(1)
    elif isinstance(expected, str):
        assert expected in content["error"]["message"]


@pytest.fixture(scope="module")
def others(bundles) -> Iterator[dict[str, Server]]:
    with contextlib.ExitStack() as stack:
        yield {kind: stack.enter_context(serving(bundles[kind])) for kind in KINDS if kind != "lm"}
