from __future__ import annotations

import json
import os
import subprocess

import pytest

from utils.checks.patching import Patch
from utils.checks.report import STATUSES, CheckResult, Report
from utils.errors import CheckError, ConfigError

EVIL = "<script>alert(1)</script>"


def _report(*statuses, stopped=""):
    """One result per status; "error" stands for a check that could not finish."""
    results = [
        CheckResult(
            f"check {i}", "fail" if s == "error" else s, "seen", "why", "do this", unfinished="x" * (s == "error")
        )
        for i, s in enumerate(statuses)
    ]
    return Report("Tier 1: M", results, stopped)


@pytest.mark.parametrize(
    ("statuses", "passed", "verdict"),
    [
        ((), False, "No check ran"),
        (("skip", "skip"), False, "No check ran"),
        (("pass", "pass"), True, "All 2 checks passed."),
        (("pass", "skip"), True, "All 1 checks passed."),
        (("pass", "warn"), True, "All 2 checks passed, 1 with a warning: check 1."),
        (("pass", "fail", "warn"), False, "1 of 3 checks failed: check 1."),
        (("pass", "error"), False, "1 of 2 checks could not finish: check 1."),
        (
            ("fail", "fail", "error"),
            False,
            "2 of 3 checks failed: check 0, check 1; 1 of 3 checks could not finish",
        ),
    ],
)
def test_verdict(statuses, passed, verdict):
    report = _report(*statuses)
    assert report.passed is passed
    assert verdict in report.verdict
    assert report.verdict in report.summary()
    assert passed or "passed" not in report.verdict


def test_a_run_that_was_stopped_has_not_passed():
    report = _report("pass", "warn", stopped="Interrupted after 2 of 8 checks.")
    assert not report.passed
    assert report.verdict == "Interrupted after 2 of 8 checks. None of these 2 failed, 1 with a warning: check 1."
    assert "1 of 1 checks failed: check 0." in _report("fail", stopped="Interrupted after 1 of 8 checks.").verdict
    assert _report(stopped="Interrupted after 0 of 8 checks.").verdict == "Interrupted after 0 of 8 checks."


def test_an_unknown_status_is_refused():
    with pytest.raises(ConfigError, match=r"status='fine' is unknown.*pass, warn"):
        CheckResult("x", "fine", "")


def test_text_shows_finding_cause_and_fix():
    text = _report("pass", "fail").summary()
    for word in ("check 0", "PASS", "FAIL", "seen", "cause: why", "fix: do this"):
        assert word in text


def test_dataframe_has_one_row_per_check():
    frame = _report("pass", "fail").to_dataframe()
    assert list(frame.columns) == ["check", "status", "headline", "cause", "fix", "seconds"]
    assert list(frame["status"]) == ["pass", "fail"]
    assert list(Report("empty").to_dataframe().columns) == list(frame.columns)


def test_a_patch_is_a_diff_that_git_takes_and_is_seen_everywhere(tmp_path):
    patch = Patch("mask added", "a\nb\n</pre>", "a\nc\n</pre>", "causality: pass")
    (tmp_path / "model.py").write_text(patch.before)
    (tmp_path / "p.diff").write_text(patch.diff)
    subprocess.run(["git", "apply", "p.diff"], cwd=tmp_path, check=True)
    assert (tmp_path / "model.py").read_text() == patch.after
    report = Report("t", [CheckResult("causality", "fail", "seen", patch=patch)])
    assert "+c" in report.summary() and "mask added; re-tested: causality: pass" in report.summary()
    assert report.to_dict()["checks"][0]["patch"] == patch.diff
    assert "&lt;/pre&gt;" in report._repr_html_() and "mask added" in report._repr_html_()


def test_apply_says_which_checks_hold_a_patch():
    patched = CheckResult("causality", "fail", "seen", patch=Patch("c", "a", "b", "pass"))
    with pytest.raises(CheckError, match=r"'memory' holds no patch. Checks of this report that hold one: causality"):
        Report("t", [patched, CheckResult("memory", "pass", "")]).apply("memory")


def test_a_picture_is_part_of_the_page():
    rows = [{"parameter": f"layer.{i}", "gradient rms": 10.0**-i} for i in range(70)]
    result = CheckResult("gradient flow", "pass", "", measured={"table": rows})
    axes = result.figure().axes[0]
    assert len(axes.patches) == 60 and axes.get_xscale() == "log"
    assert 'src="data:image/png;base64,' in result._repr_html_()
    assert CheckResult("gradient flow", "pass", "").figure() is None
    assert list(Report("t", [result, CheckResult("other", "pass", "")]).figures()) == ["gradient flow"]


def test_rows_of_one_check_become_a_dataframe():
    result = CheckResult("x", "pass", "", measured={"table": [{"a": 1}, {"a": 2}]})
    assert list(result.to_dataframe()["a"]) == [1, 2]
    assert CheckResult("x", "pass", "").to_dataframe().empty


def test_dict_is_json_even_with_nan_and_foreign_types():
    result = CheckResult(
        "x", "fail", "", measured={"loss": float("nan"), "place": os.sep.__class__, 3: (1, float("inf"))}
    )
    plain = Report("t", [result]).to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["checks"][0]["measured"]["loss"] == "nan"


def test_html_escapes_everything_from_outside():
    check = CheckResult(EVIL, "fail", EVIL, EVIL, EVIL, {"table": [{EVIL: EVIL, "b": 0.123456}, {"c": None}]})
    for page in (Report(EVIL, [check])._repr_html_(), check._repr_html_()):
        assert "<script" not in page
        assert "&lt;script&gt;" in page
        assert "0.1235" in page


@pytest.mark.parametrize("status", STATUSES)
def test_html_opens_what_needs_a_look(status):
    page = _report(status)._repr_html_()
    assert ("<details open>" in page) is (status in ("warn", "fail"))
    assert f"tb-{status}" in page


def test_page_is_self_contained_and_follows_the_readers_theme(tmp_path):
    path = _report("pass", "fail").save_html(tmp_path / "new" / "report.html")
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "color-scheme: light dark" in page
    assert not [word for word in ("http:", "https:", "<script", "src=", "@import") if word in page]
    assert os.listdir(path.parent) == ["report.html"]


def test_a_failing_write_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        _report("pass").save_html(path)
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["report.html"])


def test_a_check_is_found_by_name():
    report = _report("pass")
    assert report["check 0"].status == "pass"
    with pytest.raises(KeyError, match=r"no check is called 'speed'.*check 0"):
        report["speed"]
