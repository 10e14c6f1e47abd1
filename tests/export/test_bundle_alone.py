"""An exported folder in an environment that holds its requirements and nothing else, and its server under many requests."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.export.served import Server, serving
from tests.export.small_bundles import golden_of, tokenizer, write_bundle, write_manifest
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.export.onnx import ONNXExporter
from utils.export.runtime_files import write_runtime
from utils.training.generation import generate

pytestmark = pytest.mark.slow  # installs packages, and asks thousands of times

GROWTH = 8_000_000
"""Bytes that the server may grow by between 200 and 2,000 requests: what allocators keep, far less than 1,800 answers."""


def gpt2(words: Any) -> AdaptedModel:
    """A real model with weights so large that its texts do not repeat one token."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    ids = {"bos_token_id": words.eos_token_id, "eos_token_id": words.eos_token_id}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_positions=32, n_embd=32, n_layer=2, n_head=4, **ids))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    return adapt(model.eval())


def exported(folder: Path) -> AdaptedModel:
    """A folder around a file of torch's exporter; returns the model."""
    words = tokenizer()
    adapted = gpt2(words)
    folder.mkdir()
    signature = ONNXExporter.export(adapted, words, folder / "model.onnx", validate=False).signature

    def run(feeds: dict[str, Any]) -> Any:
        with torch.no_grad():
            return adapted(**{name: torch.from_numpy(value) for name, value in feeds.items()}).logits.numpy()

    write_runtime(folder, signature, words, run, {"model_name": adapted.name})
    write_manifest(folder)
    return adapted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("alone") / "bundle"
    exported(made)
    return made


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Python of an environment with the folder's requirements only."""
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    python = str(home / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "-r", str(folder / "requirements.txt")]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode and re.search("Could not find a version|connection|resolve", done.stderr, re.IGNORECASE):
        pytest.skip(f"no package index can be reached: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    return python


def test_the_environment_holds_neither_torch_nor_this_package(alone):
    code = "import importlib.util as u; print([n for n in ('torch', 'transformers', 'utils') if u.find_spec(n)])"
    done = subprocess.run([alone, "-I", "-c", code], capture_output=True, text=True, cwd="/", check=True)
    assert done.stdout.strip() == "[]"


def test_the_folder_proves_itself_alone(alone, folder):
    done = subprocess.run([alone, "selftest.py"], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "server: streamed, sampled" in done.stdout


def test_alone_it_says_what_the_notebook_says(alone, folder, tmp_path):
    model, words = exported(tmp_path / "again"), tokenizer()
    code = "import inference; print(inference.Model().generate('green ', max_new_tokens=10, temperature=0), end='')"
    done = subprocess.run([alone, "-c", code], capture_output=True, text=True, cwd=folder, check=True)
    assert done.stdout == generate(model, "green ", tokenizer=words, max_new_tokens=10, temperature=0)


@pytest.mark.parametrize("fault", ["a flipped byte", "a stale tokenizer", "another golden answer"])
def test_alone_it_tells_its_faults(alone, folder, tmp_path, fault):
    damaged = shutil.copytree(folder, tmp_path / "bundle")
    if fault == "a flipped byte":
        data = bytearray((damaged / "model.onnx").read_bytes())
        data[len(data) // 2] ^= 1
        (damaged / "model.onnx").write_bytes(data)
        told = r"FAIL  file model\.onnx"
    elif fault == "a stale tokenizer":
        content = json.loads((damaged / "tokenizer.json").read_text("utf-8"))
        content["model"]["merges"] = content["model"]["merges"][:2]  # as if it had been trained on other text
        (damaged / "tokenizer.json").write_text(json.dumps(content), "utf-8")
        told = r"FAIL  file tokenizer\.json"
    else:
        golden = golden_of(damaged)
        golden["texts"][0]["ids"][-1] += 1
        (damaged / "golden.json").write_text(json.dumps(golden), "utf-8")
        write_manifest(damaged)
        told = r"FAIL  model\.onnx: greedy, 'The '"
    done = subprocess.run([alone, "selftest.py", "--no-server"], capture_output=True, text=True, cwd=damaged)
    assert done.returncode == 1 and re.search(told, done.stdout), done.stdout + done.stderr


# ---- many requests ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, list[dict[str, Any]]]]:
    made = tmp_path_factory.mktemp("served") / "lm"
    write_bundle("lm", made)
    with serving(made) as running:
        yield running, golden_of(made)["texts"]


def asked(server: Server, texts: list[dict[str, Any]], number: int) -> tuple[int, bool]:
    """Status of a golden request, and whether its answer is the golden one; every fourth is streamed."""
    entry = texts[number % len(texts)]
    body = {"prompt": entry["prompt"], **entry["sampling"]}
    if number % 4 == 3:
        return 200, "".join(event.get("text", "") for event in server.events("/generate", body)) == entry["text"]
    status, content, _ = server.ask("/generate", body)
    return status, status == 200 and content["text"] == entry["text"]


def test_500_requests_at_once_are_all_answered_and_right(server):
    running, texts = server
    with ThreadPoolExecutor(500) as pool:
        found = list(pool.map(lambda number: asked(running, texts, number), range(500)))
    assert found == [(200, True)] * 500


def test_memory_stays_flat_over_2000_requests(server):
    running, texts = server
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: asked(running, texts, number), range(200)))
        before = running.resident_bytes()
        found = list(pool.map(lambda number: asked(running, texts, number), range(200, 2000)))
    grown = running.resident_bytes() - before
    assert all(right for _, right in found)
    assert grown < GROWTH, f"{before / 1e6:.1f} MB after 200 requests, {grown / 1e6:+.2f} MB after 2,000"
    assert running.ask("/health")[1]["requests"] == 0
