from __future__ import annotations

import random
import re

import pytest

from utils.errors import DataError
from utils.tokenization.character_tokenizer import CharacterLevelTokenizer
from utils.training.data_characters import count_characters, guess_language
from utils.training.data_quality import examine_data
from utils.training.dataset_utilities import DatasetLoader, resolve_data

WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
]


def prose(count: int, words: int = 60, seed: int = 0) -> list[str]:
    """Different documents of English words."""
    source = random.Random(seed)
    return [
        " ".join(source.choice(WORDS) + source.choice(["", "s", "ly"]) for _ in range(words)) + f" {i}."
        for i in range(count)
    ]


CASES = {  # documents → {line: status}
    "clean": (
        prose(200),
        {
            "short documents": "pass",
            "duplicates": "pass",
            "control characters": "pass",
            "boilerplate": "pass",
            "damaged text": "pass",
        },
    ),
    "some short": (prose(80) + [f"ok {i}" for i in range(20)], {"short documents": "pass"}),
    "half short": (prose(50) + [f"ok {i}" for i in range(50)], {"short documents": "warn"}),
    "all short": ([f"ok {i}" for i in range(50)], {"short documents": "warn"}),
    "duplicates": (prose(50) + prose(50), {"duplicates": "warn"}),
    "near duplicates": (prose(50) + [text + " (copied)" for text in prose(50)], {"duplicates": "warn"}),
    "control characters": ([text + "\x1b[0m" for text in prose(50)], {"control characters": "warn"}),
    "decoded twice": ([text + " caf\u00c3\u00a9" for text in prose(50)], {"damaged text": "warn"}),
    "lost characters": ([text + " caf\ufffd" for text in prose(50)], {"damaged text": "warn"}),
    "boilerplate": (
        [f"This page is protected by copyright, all rights reserved.\n{text[:80]}" for text in prose(50)],
        {"boilerplate": "warn"},
    ),
    "numbers": ([f"{i} {i * i} {i**3} 0.{i}" * 9 for i in range(100)], {"scripts and characters": "warn"}),
}


@pytest.mark.parametrize("case", CASES)
def test_each_fault_is_found_where_it_is(case):
    documents, expected = CASES[case]
    quality = examine_data(documents)
    found = {name: quality[name].status for name in expected}
    assert found == expected, quality.summary()
    assert quality.passed, "advice is no gate"


def test_shares_are_exact():
    quality = examine_data(prose(60) + prose(20) + ["ok"] * 20)
    assert quality["duplicates"].measured["exact"] == pytest.approx(39 / 100)
    assert quality["short documents"].measured["share"] == pytest.approx(0.2)
    assert sum(count for _, _, count in quality.histogram) == 100


@pytest.mark.parametrize(("shared", "status"), [(0, "pass"), (1, "warn"), (10, "fail")])
def test_an_overlap_of_training_and_validation_is_found(shared, status):
    training = prose(100)
    quality = examine_data(training, validation=training[:shared] + prose(40, seed=9))
    check = quality["train/validation overlap"]
    assert check.status == status and check.measured["documents"] == pytest.approx(shared / (40 + shared))


def test_tokens_are_counted_and_compared_with_model_and_speed():
    tokenizer = CharacterLevelTokenizer(64, texts=prose(50))
    documents = prose(300)
    quality = examine_data(documents, tokenizer=tokenizer, parameters=10**7, tokens_per_second=1000.0)
    assert quality.unit == "tokens" and quality.tokens == pytest.approx(sum(map(len, documents)), rel=0.02)
    assert quality["unknown tokens"].status == "pass"
    assert quality["tokens per parameter"].status == "warn" and "Hoffmann" in quality["tokens per parameter"].headline
    assert quality["time per epoch"].measured["seconds"] == pytest.approx(quality.tokens / 1000)
    foreign = examine_data([text + " мир мир мир мир" for text in documents], tokenizer=tokenizer)
    assert foreign["unknown tokens"].status in ("warn", "fail") and "м" in foreign["unknown tokens"].headline
    tiny = examine_data(["just a few words"], tokenizer=tokenizer)
    assert tiny["size"].status == "fail" and not tiny.passed


def test_what_was_not_given_is_skipped_with_its_reason():
    quality = examine_data(prose(50))
    skipped = [check.name for check in quality.report.checks if check.status == "skip"]
    assert skipped == ["train/validation overlap", "unknown tokens", "tokens per parameter", "time per epoch"]


def test_the_report_has_text_html_and_a_figure():
    quality = examine_data(["<script>alert(1)</script> " + text for text in prose(30)])
    assert "short documents" in quality.summary()
    page = quality._repr_html_()
    assert "<script>" not in page and "data:image/png;base64," in page
    assert quality.figure().startswith(b"\x89PNG")


def test_large_text_is_sampled_with_a_stated_rule(monkeypatch):
    monkeypatch.setattr("utils.training.data_quality.SAMPLE_BYTES", 20_000)
    monkeypatch.setattr("utils.training.data_quality.NEAR_DOCUMENTS", 10)
    quality = examine_data(prose(400))
    assert re.search(r"every 4th document, of these .*bytes", quality["scripts and characters"].headline)
    assert "every 40th document" in quality["duplicates"].headline


def test_the_bundled_example_and_loaded_data_are_examined():
    text = resolve_data("python-docs")
    quality = examine_data(text.train, validation=text.validation)
    assert quality.passed and quality["language"].measured["language"] == "English"
    loaded = DatasetLoader.from_anything(prose(50))
    assert examine_data(loaded).report.title == "Data: 50 texts"
    with pytest.raises(DataError, match="no text"):
        examine_data([""])


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat sat on the mat and it was the end of the day for the cat", "English"),
        ("Der Hund und die Katze sind nicht auf dem Sofa, das ist für den Gast", "German"),
        ("Le chat est sur la table et les enfants sont dans le jardin pour une fête", "French"),
        ("El perro y la gata están en la casa, pero los niños no se van con el tren", "Spanish"),
        ("xyzzy plugh foo bar baz", ""),
        ("Привет мир", ""),
    ],
)
def test_the_language_is_told_by_function_words(text, language):
    assert guess_language([text])[0] == language


def test_scripts_are_told_apart():
    found = count_characters(["abc абв 你好 😀 12 \ufeff"])
    assert list(found.scripts) == ["Latin", "Cyrillic", "Han"] and found.scripts["Han"] == pytest.approx(2 / 8)
    assert found.kinds["symbols"] == pytest.approx(1 / found.total)
