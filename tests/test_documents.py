"""What the documents show, works: every Python block runs, file by file, from top to bottom."""

from __future__ import annotations

import builtins
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import utils.errors
from utils.checks.runner import Check
from utils.tier1_critical_validation import TIER1
from utils.tier2_advanced_analysis import TIER2

ROOT = Path(__file__).resolve().parents[1]


def run_blocks(file: str, folder: Path) -> str:
    """Run a document's Python blocks as one program in `folder`; returns what it printed."""
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```", (ROOT / file).read_text(encoding="utf-8"))
    assert blocks, f"{file} shows no Python"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = folder / "shown.py"
    program.write_text("\n".join(blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, program], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_api_examples_run(tmp_path: Path) -> None:
    printed = run_blocks("docs/API.md", tmp_path)
    assert "torch.Size([2, 8, 100])" in printed
    assert "neither a gist id nor a gist URL" in printed
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_training_guide_examples_run(tmp_path: Path) -> None:
    printed = run_blocks("docs/TRAINING_GUIDE.md", tmp_path)
    shown = (ROOT / "docs/TRAINING_GUIDE.md").read_text(encoding="utf-8")
    promised = re.findall(r"(?m)^# (.+)$", "\n".join(re.findall(r"(?ms)^```python\n(.*?)^```", shown)))
    assert len(promised) == 4, "the error that the guide shows"
    assert [line for line in promised if line not in printed] == []
    assert "learning_rate: 0.0005 → 0.0001" in printed and "must beat always the largest class" in printed


@pytest.mark.slow  # runs the checks of tier 1
def test_recommendations_to_the_platform_hold(tmp_path: Path) -> None:
    printed = run_blocks("docs/PLATFORM_RECOMMENDATIONS.md", tmp_path)
    assert "completed 10 statements inferred\ndirect 0 statements inferred" in printed
    assert "strict=True: residual_0_output could only be completed by convention" in printed
    assert "assumptions: 4 without the drawing, 1 with it" in printed
    assert "limit: 64 stated" in printed and "written for torch 2.11.0" in printed
    assert f"#gist_id=0123456789abcdef0123&revision={'a' * 40}" in printed
    assert "All 15 checks passed" in printed
    assert (tmp_path / "stamped" / "template.ipynb").is_file()


@pytest.mark.slow  # trains, exports and proves in two formats: most of a minute beside other work
def test_deployment_guide_examples_run(tmp_path: Path) -> None:
    printed = run_blocks("docs/DEPLOYMENT_GUIDE.md", tmp_path)
    assert "model_int8.onnx" in printed
    assert "(1, 3, 1024)" in printed
    assert "you/your-model" in printed and "private" in printed
    assert (tmp_path / "exports" / "run" / "selftest.py").exists()


@pytest.mark.slow  # the whole walk: checks, patches, training and export; most of a minute
def test_readme_example_runs(tmp_path: Path) -> None:
    printed = run_blocks("README.md", tmp_path)
    assert "residual_0_output" in printed
    assert "checks" in printed
    assert list((tmp_path / "exports" / "run").glob("**/*.onnx"))


def test_readme_names_the_commands_that_exist() -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
    for file in ("README.md", "CONTRIBUTING.md", "docs/TROUBLESHOOTING.md"):
        text = (ROOT / file).read_text(encoding="utf-8")
        named = set(re.findall(r"(?m)(?:`|^)make (?:[A-Z_]+=[^`\n]* )?([a-z-]+)", text))
        assert named <= targets, f"{file} names {named - targets}"


@pytest.mark.parametrize(("tier", "checks"), [(1, TIER1), (2, TIER2)])
def test_the_documents_list_the_checks_of_each_tier(tier: int, checks: tuple[Check, ...]) -> None:
    text = (ROOT / "docs/API.md").read_text(encoding="utf-8")
    table = text.split(f"| Tier {tier} |")[1].split("\n\n")[0]
    listed = re.findall(r"(?m)^\| ([a-z][a-z ]+) \|", table)
    assert listed == [check.name for check in checks]


def test_the_readme_counts_the_checks() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    counted = {6: "six analyses", 15: "fifteen checks"}
    assert counted[len(TIER1)] in text and counted[len(TIER2)] in text


@pytest.mark.parametrize("file", ["docs/TROUBLESHOOTING.md", "docs/API.md"])
def test_documents_name_errors_that_exist(file: str) -> None:
    named = set(re.findall(r"`(\w+Error)\b", (ROOT / file).read_text(encoding="utf-8")))
    ours = named - set(dir(builtins))
    assert not {name for name in ours if not hasattr(utils.errors, name)}
