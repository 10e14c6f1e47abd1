"""Patches end to end: found, re-tested, applied to a copy; and never offered untested."""

from __future__ import annotations

import hashlib
import linecache
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import utils
from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import causality, determinism, gradients, rows, shapes, stability
from utils.checks.limits import Limits
from utils.checks.mending import Mender, by_name
from utils.checks.rebuilding import UserSource, patched_model
from utils.checks.report import CheckResult
from utils.checks.runner import Check
from utils.checks.session import Session
from utils.errors import CheckError
from utils.progress import ignore_progress

pytestmark = pytest.mark.usefixtures("no_onnx_dry_run")
HEALTHY = '''"""A small causal model."""
import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)  # (B, T, C)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
        return F.softmax(scores, dim=-1) @ v


class Model(nn.Module):
    def __init__(self, vocab_size=37, width=16):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(32, width)
        self.attention = Attention(width)
        self.register_buffer("factor", torch.linspace(0.5, 1.5, width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, input_ids):
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.embedding(input_ids) + self.position(positions)
        x = x + self.attention(x) * self.factor
        return self.head(self.norm(x))
'''
CONFIG = '{"vocab_size": 37, "max_seq_len": 32}'
SOME = (shapes.check, gradients.check, stability.check, determinism.check)
ALL = by_name((*SOME, causality.check, rows.check))
FAULTS = {
    "softmax axis": ("dim=-1", "dim=1", "causality"),
    "no mask": ('        scores = scores.masked_fill(future, float("-inf"))\n', "", "causality"),
    "dropout": ("self.attention(x) *", "F.dropout(self.attention(x), 0.1) *", "determinism"),
    "detached": ("return self.head(self.norm(x))", "return self.head(self.norm(x).detach())", "gradient flow"),
    "frozen": (
        "        self.head = nn.Linear(width, vocab_size)\n",
        "        self.head = nn.Linear(width, vocab_size)\n        self.requires_grad_(False)\n",
        "gradient flow",
    ),
    "hard-coded batch": ("self.norm(x))", "self.norm(x)).view(2, -1, 37)", "shape robustness"),
}


@pytest.fixture(autouse=True)
def _time_enough(monkeypatch):
    """A busy machine must not decide which patch is found."""
    monkeypatch.setattr("utils.checks.session.PATCH_SECONDS", 600.0)


def _load(folder, source):
    (folder / "model.py").write_text(source, encoding="utf-8", newline="")
    (folder / "config.json").write_text(CONFIG, encoding="utf-8")
    return utils.load_model(folder)


def _report(model, config=None, checks=SOME):
    return Session.of("test", model, config).run(tuple(checks), ignore_progress)


def _hash(model):
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest(), [type(module) for module in model.modules()], model.training


@pytest.mark.parametrize("fault", FAULTS)
def test_a_loaded_model_is_mended_and_the_patch_applies(fault, tmp_path):
    old, new, check = FAULTS[fault]
    source = HEALTHY.replace(old, new)
    loaded = _load(tmp_path, source)
    before, modules = _hash(loaded.model), set(sys.modules)
    checks = (shapes.check, stability.check, ALL[check])
    report = _report(loaded, checks=dict.fromkeys(checks))
    patch = report[check].patch
    assert report[check].status in ("warn", "fail")
    assert patch is not None
    assert f"{check}: pass" in patch.retested
    applied = report.apply(check)
    assert applied[check].status == "pass"
    assert applied.subject.model is not report.subject.model
    assert _hash(loaded.model) == before
    assert not [name for name in set(sys.modules) - modules if name.startswith("utils.loading.generated")]
    assert (tmp_path / "model.py").read_text(encoding="utf-8") == source

    patch.save(tmp_path / "fault.diff")
    subprocess.run(["git", "apply", "fault.diff"], cwd=tmp_path, check=True)
    assert (tmp_path / "model.py").read_text(encoding="utf-8") == patch.after
    assert ALL[check](adapt(_load(tmp_path, patch.after))).status == "pass"


def test_line_ends_and_tabs_stay(tmp_path):
    source = HEALTHY.replace("dim=-1", "dim=1").replace("    ", "\t").replace("\n", "\r\n")
    patch = _report(_load(tmp_path, source), checks=(causality.check,))["causality"].patch
    assert patch.after == source.replace("dim=1)", "dim=-1)")
    patch.save(tmp_path / "fault.patch")
    subprocess.run(["git", "apply", "fault.patch"], cwd=tmp_path, check=True)
    assert (tmp_path / "model.py").read_bytes().decode() == patch.after


def test_patches_can_be_looked_for_later(tmp_path):
    old, new, check = FAULTS["dropout"]
    session = Session.of("test", _load(tmp_path, HEALTHY.replace(old, new)))
    report = session.run((gradients.check, determinism.check), ignore_progress, patches=False)
    report.find_patches(["gradient flow"])  # green: nothing to look for
    assert report[check].patch is None
    seen, results = [], []
    report.find_patches([check], lambda done, total, note: seen.append(note))
    assert report[check].patch is not None
    assert seen == [f"{check}: looking for a patch"]
    applied = report.apply(check, on_check=results.append)
    assert results == applied.checks
    assert applied[check].status == "pass"


def test_weights_of_the_patched_copy_are_those_of_the_model(tmp_path):
    source = HEALTHY.replace('self.register_buffer("factor", torch.linspace(0.5, 1.5, width))', "self.x = 1").replace(
        " * self.factor", ""
    )
    loaded = _load(tmp_path, source.replace("dim=-1", "dim=1"))
    with torch.no_grad():
        loaded.model.head.weight.fill_(0.25)
    for share in (True, False):
        adapted = adapt(loaded)
        user = UserSource.of(adapted)
        copy = patched_model(adapted, user, source.replace("self.x = 1", "self.x = 2"), fresh=False, share=share)
        assert copy.model.x == 2  # built again
        assert torch.equal(copy.model.head.weight, loaded.model.head.weight)
        assert copy.model.head.weight is not loaded.model.head.weight
        swapped = patched_model(adapted, user, source, fresh=False, share=share)
        assert (swapped.model.head.weight is loaded.model.head.weight) is share
        fresh = patched_model(adapted, user, source.replace("self.x = 1", "self.x = 2"), fresh=True, share=share)
        assert not torch.equal(fresh.model.head.weight, loaded.model.head.weight)


class InPlace(m.Healthy):
    """Its backward pass needs what was overwritten."""

    def forward(self, input_ids):
        x = torch.sigmoid(self.body(input_ids))
        x += 1.0
        return self.head(x)


@pytest.mark.parametrize(
    ("build", "check", "words"),
    [
        (InPlace, "gradient flow", "in place"),
        (m.RandomInEval, "determinism", "dropout"),
        (m.Detached, "gradient flow", "detach"),
    ],
)
def test_a_module_of_a_file_is_mended_without_building_it_again(build, check, words, monkeypatch):
    model = build()
    before = _hash(model)
    monkeypatch.setattr(build, "__init__", None)
    report = _report(model, {"vocab_size": m.VOCABULARY, "max_seq_len": m.LIMIT}, (ALL[check], shapes.check))
    assert words in report[check].patch.cure
    assert report.apply(check)[check].status == "pass"
    assert _hash(model) == before


CELL = """
class Cell(nn.Module):
    def __init__(self, width, rows):
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(rows, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, rows)
        self.requires_grad_(False)

    def forward(self, input_ids):
        return self.head(self.rnn(self.embedding(input_ids))[0])


ran.append(1)
"""


@pytest.mark.parametrize(("kept", "mended"), [("self.rows = rows", True), ("", False)])
def test_a_cell_of_a_notebook_is_mended_where_its_arguments_are_known(kept, mended):
    """A cell's other statements are not run again; a constructor whose arguments nobody knows is not called."""
    text = CELL.replace("self.width = width", f"self.width = width; {kept}")
    linecache.cache["<cell 7>"] = (len(text), None, text.splitlines(keepends=True), "<cell 7>")
    ran: list[int] = []
    scope = {"nn": nn, "__name__": "a_notebook", "ran": ran}
    exec(compile(text, "<cell 7>", "exec"), scope)
    config = {"max_seq_len": 16} if kept else {"max_seq_len": 16, "vocab_size": 19}
    report = _report(scope["Cell"](8, 21), config, (gradients.check, shapes.check))
    patch = report["gradient flow"].patch
    assert (patch is not None) is mended
    assert len(ran) == 1
    if mended:
        assert "-        self.requires_grad_(False)" in patch.diff
        assert report.apply("gradient flow").passed


def test_nothing_is_offered_without_source_or_for_what_is_green():
    report = _report(nn.Sequential(nn.Embedding(11, 8), nn.Dropout(0.1), nn.Linear(8, 11)))
    assert all(check.patch is None for check in report.checks)
    with pytest.raises(CheckError, match="holds no patch"):
        report.apply("determinism")


def _judge(name, verdict):
    return Check(name, lambda adapted, sampler: CheckResult(name, verdict(adapted), "seen"))


def _mender(checks, results, seconds=20.0):
    adapted = adapt(m.RandomInEval(), {"vocab_size": m.VOCABULARY, "max_seq_len": m.LIMIT})
    named = {name: CheckResult(name, status, "seen") for name, status in results.items()}
    return Mender(adapted, by_name(checks), named, Limits(), time.monotonic() + seconds)


def _is_patched(adapted):
    return "training=self.training" in adapted.completion.source_before


@pytest.mark.parametrize(
    ("other", "then", "offered"),
    [
        ("pass", "pass", True),
        ("pass", "warn", False),
        ("pass", "fail", False),
        ("pass", "skip", False),
        ("warn", "warn", True),
        ("warn", "fail", False),
        ("fail", "fail", True),
        ("skip", "fail", True),
    ],
)
def test_a_patch_makes_no_other_check_worse(other, then, offered):
    mends = _judge("determinism", lambda adapted: "pass" if _is_patched(adapted) else "fail")
    guard = _judge("other", lambda adapted: then)
    mender = _mender((mends, guard), {"determinism": "fail", "other": other}, 5.0)
    assert (mender.patch_for("determinism") is not None) is offered


def test_only_what_turns_a_check_green_is_offered():
    mender = _mender((_judge("determinism", lambda adapted: "warn"),), {"determinism": "fail"}, 5.0)
    assert mender.patch_for("determinism") is None


def test_one_patch_serves_every_check_that_it_mends(monkeypatch):
    checks = [
        _judge(name, lambda adapted: "pass" if _is_patched(adapted) else "fail")
        for name in ("determinism", "unheard of")
    ]
    mender = _mender(checks, {"determinism": "fail", "unheard of": "fail"})
    assert mender.patch_for("determinism").after == mender.patch_for("unheard of").after


def test_two_changes_are_combined_where_one_is_not_enough(tmp_path):
    two = HEALTHY.replace("dim=-1", "dim=1").replace("self.norm(x))", "self.norm(x) - x.mean(1, keepdim=True))")
    patch = _report(_load(tmp_path, two), checks=(causality.check,))["causality"].patch
    assert patch is not None
    assert len([line for line in patch.diff.splitlines() if line.startswith("+ ")]) == 2
    assert ";" in patch.cure


def test_time_is_bounded_and_an_interrupt_ends_the_search_alone():
    assert _mender((determinism.check,), {"determinism": "fail"}, seconds=0.0).patch_for("determinism") is None

    def interrupted(done, total, note):
        if "looking" in note:
            raise KeyboardInterrupt

    session = Session.of("test", m.RandomInEval(), {"vocab_size": m.VOCABULARY, "max_seq_len": m.LIMIT})
    report = session.run((determinism.check,), interrupted)
    assert not report.stopped
    assert report["determinism"].patch is None
    assert session.run((determinism.check,), ignore_progress, patches=False)["determinism"].patch is None
