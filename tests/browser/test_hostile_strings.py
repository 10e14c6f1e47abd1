"""A hundred texts that try to be more than text, through the wizard's own views in a real browser: all of them stay text."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from tests.browser.front_ends import FrontEnd
from tests.browser.test_wizard import open_wizard
from tests.ui.hostile_strings import HOSTILE, OWNED

pytestmark = pytest.mark.browser  # needs Chromium, and installs two front ends the first time

VIEWS = """
# every template of the wizard, filled with a text from outside wherever it takes one
from types import SimpleNamespace as O
from utils.ui import widgets
from utils.ui.steps.validation import STATUS_WORDS

def views(text):
    row = O(name=text, status="fail", headline=text, cause=text, fix=text, cure=text, diff=text, seconds=1.0)
    piece = O(text=text, token=text, number=1, is_unknown=True)
    token = O(text=text, probability=.5, likeliest=[(text, .5)])
    line = O(label=text, last=text, points="0,0 1,1", colour="red", dots=[])
    yield "message.html", dict(text=text, tone="bad")
    yield "hint.html", dict(text=text)
    yield "why.html", dict(text=text)
    yield "live_line.html", dict(line=text)
    yield "model_facts.html", dict(name=text, facts=[text], diff=text, fixed=[text], fixes_diff=text)
    yield "check_rows.html", dict(rows=[row], words=STATUS_WORDS)
    yield "verdict.html", dict(form=O(verdict=text, passed=False))
    yield "data_preview.html", dict(data=None, plain=text, columns=[text], rows=[[text]])
    yield "data_quality.html", dict(verdict=text, passed=False, rows=[row], words=STATUS_WORDS)
    yield "tokens.html", dict(pieces=[piece], characters=1, unknown=1)
    yield "tokenizer_reason.html", dict(not_needed=text, choice=None, kind=text, notes=[text])
    yield "forecast.html", dict(rows=[(text, text)], fits=False, problems=[text], waiting=False)
    yield "review.html", dict(sections=[O(title=text, rows=[(text, text)])], plan=[text], warnings=[text], problems=[text])
    yield "samples.html", dict(samples=[O(step=1, problem="", prompt=text, text=text), O(step=2, problem=text)])
    yield "written.html", dict(title=text, prompt=text, tokens=[token], going_on=False)
    yield "curve.html", dict(curve=O(width=9, height=9, left=0, right=9, bottom=9, lines=[line], across=[(1, text)],
                                     along=[(1, text)], unit=text, axis=text))
    yield "download.html", dict(name=text, path=text, size=text, content="AAAA")

shown = widgets.column(*(widgets.html_block("tb-hostile", value="".join(widgets.text_html(*view[:1], **view[1]) for view in views(text)))
                         for text in HOSTILE), classes=["tb-views"])
fields = widgets.column(
    widgets.choice("one of", "tb-choice", options=[*dict.fromkeys(HOSTILE)]),
    *(widgets.text_field("a field", value=text, placeholder=text, tip=text) for text in HOSTILE[::5]),
    *(widgets.text_area("an area", value=text, placeholder=text) for text in HOSTILE[::5]),
)
widgets.column(shown, fields)
"""
FLOW = """
# what people give: a model's name, files, columns, cells, paths, prompts; each goes the way of a real one
import csv
from pathlib import Path
from utils.ui.work import Ticket

step = wizard._pages[1] if 1 in wizard._pages else wizard._page(1)
wizard.worker.join(120)
for start in range(0, len(HOSTILE), 4):
    some = [text.replace("\\0", "") for text in HOSTILE[start:start + 4]]
    with open("hostile.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([[*some], *([text for text in some] for _ in range(5))])
    step.decision.choose(kind="path", path="hostile.csv", column="")
    for text in some:
        wizard.say(text, "bad")
        for values in (dict(hub=text), dict(path=text)):
            step.decision.choose(**values)
            step._paint()
    step.decision.choose(path="hostile.csv")
    try: step.decision.load(Ticket(lambda *_: None))
    except Exception as error: wizard.say(str(error), "bad")
    step._paint()
print("all given")
"""
FOREIGN = """() => [...document.querySelectorAll(
  '.tb-wizard script, .tb-wizard iframe, .tb-wizard object, .tb-wizard embed, .tb-wizard img, .tb-wizard form, .tb-wizard base,'
  + '.tb-wizard meta, .tb-wizard link, .tb-wizard video, .tb-wizard audio, .tb-wizard [onload], .tb-wizard [onerror],'
  + '.tb-views script, .tb-views iframe, .tb-views object, .tb-views embed, .tb-views img, .tb-views form, .tb-views base,'
  + '.tb-views meta, .tb-views link, .tb-views video, .tb-views audio, .tb-views [onload], .tb-views [onerror]'
)].map(element => element.outerHTML.slice(0, 200))"""


def test_texts_from_outside_stay_text(front_end: FrontEnd) -> None:
    page = open_wizard(front_end, "hostile", '"tiny"', f"HOSTILE = {HOSTILE!r}\n{VIEWS}", FLOW)
    asked: list[str] = []
    page.page.on("request", lambda request: asked.append(request.url))
    page.page.wait_for_function("document.querySelectorAll('.tb-hostile').length >= 100", timeout=120_000)
    page.page.wait_for_function("document.body.innerText.includes('all given')", timeout=240_000)
    page.page.wait_for_timeout(2000)  # what would run late has run by then
    assert page.page.evaluate(f"window.{OWNED}") is None and not page.dialogs
    assert page.page.evaluate(FOREIGN) == []
    outside = [url for url in asked if urlsplit(url).hostname not in (None, "127.0.0.1", "")]
    assert not outside, f"the page asked for {outside}"
    body = page.page.inner_text("body")
    assert "root:x:0:0" not in body, "a file was read"
    shown = page.page.locator(".tb-hostile .tb-say").all_text_contents()
    assert [words(text) for text in shown] == [words(text) for text in HOSTILE], "each is shown as it is"
    page.close()


def words(text: str) -> list[str]:
    """A text without what HTML cannot hold or does not tell apart: NUL, other control characters, kinds of blanks."""
    return "".join(letter if letter.isprintable() else " " for letter in text.replace("\0", "")).split()
