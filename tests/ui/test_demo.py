"""The walk, once, on a tiny export with a hostile name: what lies in the folder, what the report and the manifest say."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import utils.examples
from utils.errors import ConfigError
from utils.training.dataset_utilities import python_docs
from utils.ui import demo
from utils.ui.demo import PROMPTS, Walk, run_demo

HOSTILE = "<img src=x onerror=alert(1)>\"'{{ 7 * 7 }}"
SMALLER = {"1024": "300", "512": "32", "128": "16"}  # rows, inner width, width and longest sequence
ATTENTION = ["mhsa_0", "mhsa_1"]


def shrunk_export(folder: Path) -> Path:
    """The bundled export with a sixteenth of its width, and a name that means harm."""
    folder.mkdir()
    for name in ("model.py", "config.json"):
        text = (utils.examples.path() / name).read_text("utf-8")
        for number, smaller in SMALLER.items():
            text = text.replace(number, smaller)
        (folder / name).write_text(text, "utf-8")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "model_name": HOSTILE}), "utf-8")
    return folder


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, said: list[str]) -> Walk:
    root = tmp_path_factory.mktemp("demo")
    (root / "text.txt").write_text(python_docs()[:30_000], "utf-8")
    source = shrunk_export(root / "small_export")
    return run_demo(
        root / "runs", source=source, data=root / "text.txt", seconds=1, most_steps=4, seed=5, say=said.append
    )


def manifest_of(walk: Walk) -> dict:
    return json.loads((walk.folder / "manifest.json").read_text("utf-8"))


def test_the_folder_holds_every_stage(walk: Walk) -> None:
    names = {path.relative_to(walk.folder).as_posix() for path in walk.folder.rglob("*") if path.is_file()}
    expected = {"report.html", "tier1.html", "completion.diff", "model.py", "config.json", "rebuild.py"}
    expected |= {"export/model.onnx", "export/manifest.json", "training/metrics.csv", "training/manifest.json"}
    assert expected <= names
    assert walk.page == walk.folder / "report.html"
    assert (walk.folder / "completion.diff").read_text("utf-8").startswith("--- ")


def test_the_manifest_lists_each_file_with_its_hash(walk: Walk) -> None:
    manifest = manifest_of(walk)
    listed = {entry["name"]: entry for entry in manifest["files"]}
    there = {path.relative_to(walk.folder) for path in walk.folder.rglob("*") if path.is_file()}
    visible = {path.as_posix() for path in there if not any(part.startswith(".") for part in path.parts)}
    assert set(listed) == visible - {"manifest.json"}
    for name, entry in listed.items():
        content = (walk.folder / name).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest()), name
    assert manifest["seed"] == 5


def test_manifest_and_file_say_where_the_code_came_from_and_what_training_changed(walk: Walk) -> None:
    hashes = {f"source_sha256 {name}": digest for name, digest in walk.loaded.source.sha256.items()}
    assert set(hashes) == {"source_sha256 model.py", "source_sha256 config.json"}
    metadata = walk.bundle["onnx"].runner.facts
    for facts in (manifest_of(walk)["model"], metadata):
        assert facts["attention"].startswith("made causal")
        assert all(name in facts["attention"] for name in ATTENTION)
        assert facts["source_origin"] == "small_export"
        assert hashes.items() <= facts.items()
        completed = (walk.folder / "model.py").read_bytes()
        assert facts["completed_source_sha256"] == hashlib.sha256(completed).hexdigest()


def test_the_report_shows_all_stages_and_lets_nothing_through(walk: Walk) -> None:
    page = walk.page.read_text("utf-8")
    pictures = page.count('<img class="tb-picture" alt="')
    assert page.count("<img") == pictures == page.count('src="data:image/png;base64,') > 0, "our pictures only"
    assert "onerror=alert(1)&gt;" in page and "img-src data:" in page
    assert "{{ 7 * 7 }}" in page and "<script" not in page
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in page
    for part in ("residual_0_output", "gradient flow", "<svg", "byte trigram", "model.onnx", "causality"):
        assert part in page, part
    for outcome in walk.promises().values():
        assert outcome.split(",")[0] in page


def test_the_terminal_says_one_line_for_each_promise(walk: Walk, said: list[str]) -> None:
    text = "\n".join(said)
    closing = text[text.rindex("Completed:") :].splitlines()
    assert [line.split(":")[0] for line in closing] == ["Completed", "Checked", "Trained", "Exported", "Report"]
    assert closing[-1].endswith(str(walk.page.resolve()))
    assert f"Exported to {walk.folder / 'export'}\n" in text  # in one line of its own, to be copied
    assert "4 steps" in text


def test_each_prompt_has_a_seed_of_its_own(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(walk.samples) == list(PROMPTS)
    assert all(text.startswith(prompt) and len(text) > len(prompt) for prompt, text in walk.samples.items())
    again = [
        utils.generate(walk.result, prompt, max_new_tokens=60, temperature=0.7, top_k=40, seed=5 + number)
        for number, prompt in enumerate(PROMPTS)
    ]
    assert again == list(walk.samples.values())


def rebuild_script(walk: Walk) -> ModuleType:
    spec = importlib.util.spec_from_file_location("rebuild", walk.folder / "rebuild.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_rebuilt_gives_the_logits_of_the_exported_file(walk: Walk) -> None:
    script = rebuild_script(walk)
    assert all(name in script.MADE_CAUSAL for name in ATTENTION)
    rebuilt = script.rebuild()
    ids = np.random.default_rng(3).integers(0, 300, size=(3, 9))
    with torch.no_grad():
        logits = rebuilt(torch.from_numpy(ids)).logits.numpy()
    # float32 on both sides, summed in another order; without the causal attention the difference is above 1e-2
    np.testing.assert_allclose(logits, walk.bundle["onnx"].run(input_ids=ids), rtol=0, atol=1e-4)


def test_the_causal_attention_is_part_of_what_is_rebuilt(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    script = rebuild_script(walk)
    monkeypatch.setattr(script, "MADE_CAUSAL", "")
    ids = np.random.default_rng(3).integers(0, 300, size=(3, 9))
    with torch.no_grad():
        logits = script.rebuild()(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(logits - walk.bundle["onnx"].run(input_ids=ids)).max() > 1e-3


def test_the_rebuild_script_runs_by_itself_and_refuses_another_checkpoint(walk: Walk, tmp_path: Path) -> None:
    environ = {"PYTHONPATH": str(Path(utils.__file__).parents[1]), "OMP_NUM_THREADS": "1", "PATH": ""}
    command = [sys.executable, str(walk.folder / "rebuild.py")]
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout
    script = rebuild_script(walk)
    script.CHECKPOINT = tmp_path / "other.ckpt"
    script.CHECKPOINT.write_bytes(b"other weights")
    with pytest.raises(SystemExit, match="its SHA-256 differs"):
        script.rebuild()


def test_run_folders_never_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {demo._new_folder(tmp_path) for _ in range(3)}
    assert len(folders) == 3
    monkeypatch.setattr(Path, "exists", lambda self: True)
    with pytest.raises(ConfigError, match=r"holds a hundred runs.*--workspace"):
        demo._new_folder(tmp_path)
