from __future__ import annotations

import json
import os

import pytest

from utils.checks.report import STATUSES, CheckResult, Report
from utils.errors import ConfigError

EVIL = "<script>alert(1)</script>"


def _report(*statuses):
    return Report("Tier 1: M", [CheckResult(f"check {i}", s, "seen", "why", "do this") for i, s in enumerate(statuses)])


@pytest.mark.parametrize(
    ("statuses", "passed", "verdict"),
    [
        ((), False, "No check ran"),
        (("skipped", "skipped"), False, "No check ran"),
        (("passed", "passed"), True, "All 2 checks passed."),
        (("passed", "skipped"), True, "All 1 checks passed."),
        (("passed", "warning"), True, "All 2 checks passed, 1 with a warning: check 1."),
        (("passed", "failed", "warning"), False, "1 of 3 checks failed: check 1."),
        (("passed", "error"), False, "1 of 2 checks could not finish: check 1."),
        (
            ("failed", "failed", "error"),
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


def test_an_unknown_status_is_refused():
    with pytest.raises(ConfigError, match=r"status='fine' is unknown.*passed, warning"):
        CheckResult("x", "fine", "")


def test_text_shows_finding_cause_and_fix():
    text = _report("passed", "failed").summary()
    for word in ("check 0", "PASSED", "FAILED", "seen", "cause: why", "fix: do this"):
        assert word in text


def test_dataframe_has_one_row_per_check():
    frame = _report("passed", "error").to_dataframe()
    assert list(frame.columns) == ["check", "status", "finding", "cause", "fix", "seconds"]
    assert list(frame["status"]) == ["passed", "error"]
    assert list(Report("empty").to_dataframe().columns) == list(frame.columns)


def test_rows_of_one_check_become_a_dataframe():
    result = CheckResult("x", "passed", "", details={"table": [{"a": 1}, {"a": 2}]})
    assert list(result.to_dataframe()["a"]) == [1, 2]
    assert CheckResult("x", "passed", "").to_dataframe().empty


def test_dict_is_json_even_with_nan_and_foreign_types():
    result = CheckResult(
        "x", "failed", "", details={"loss": float("nan"), "place": os.sep.__class__, 3: (1, float("inf"))}
    )
    plain = Report("t", [result]).to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["checks"][0]["details"]["loss"] == "nan"


def test_html_escapes_everything_from_outside():
    check = CheckResult(EVIL, "failed", EVIL, EVIL, EVIL, {"table": [{EVIL: EVIL, "b": 0.123456}, {"c": None}]})
    for page in (Report(EVIL, [check])._repr_html_(), check._repr_html_()):
        assert "<script" not in page
        assert "&lt;script&gt;" in page
        assert "0.1235" in page


@pytest.mark.parametrize("status", STATUSES)
def test_html_opens_what_needs_a_look(status):
    page = _report(status)._repr_html_()
    assert ("<details open>" in page) is (status != "passed")
    assert f"tb-{status}" in page


def test_page_is_self_contained_and_follows_the_readers_theme(tmp_path):
    path = _report("passed", "failed").save_html(tmp_path / "new" / "report.html")
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
        _report("passed").save_html(path)
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["report.html"])


def test_a_check_is_found_by_name():
    report = _report("passed")
    assert report["check 0"].status == "passed"
    with pytest.raises(KeyError, match=r"no check is called 'speed'.*check 0"):
        report["speed"]
