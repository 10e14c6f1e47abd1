from __future__ import annotations

from utils.tokenization.choice import Choice

CHOICE = Choice(
    "train_bpe", "because <b>", 300, source="trained", size=280, alternatives=("another",), notes=("first", "second")
)


def test_a_choice_tells_everything_in_both_views():
    for told in (CHOICE.summary(), str(CHOICE), CHOICE._repr_html_()):
        for words in ("train_bpe", "trained", "280 of 300 rows", "another", "first", "second"):
            assert words in told


def test_outside_text_is_escaped():
    assert "because &lt;b&gt;" in CHOICE._repr_html_() and "<b>" not in CHOICE._repr_html_()


def test_what_is_not_known_yet_is_left_out():
    told = str(Choice("character", "few rows", 100))
    assert "entries" not in told and "source" not in told
