"""Drift between data sets: equal sources are never called different, other languages, domains and exposures always are."""

from __future__ import annotations

import ast
import inspect
import json
import random
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch

from utils.errors import ConfigError, DataError
from utils.tokenization.packing import PackedBlocks
from utils.tokenization.vision import Images, VisionDataCollator
from utils.training import drift_metrics
from utils.training.drift_metrics import DatasetProfile, DriftMetrics, compare_profiles, compute_dataset_profile

ENGLISH = [part for name in sorted(topics) for part in topics[name].split("\n\n") if len(part) > 200]
CODE = [
    text[begin : begin + 800]
    for text in map(inspect.getsource, (ast, inspect, random, json))
    for begin in range(0, len(text), 800)
]


def foreign(documents: int, seed: int = 0) -> list[str]:
    """Text of a made-up language: its own words of frequent vowels, used as often as words are (Zipf)."""
    draw = random.Random(seed)
    words = [
        "".join(draw.choice("kptsmnlrvj") + draw.choice("aeiouäöy") for _ in range(draw.randint(1, 5)))
        for _ in range(800)
    ]
    weights = [1 / rank for rank in range(1, 801)]
    return [" ".join(draw.choices(words, weights, k=draw.randint(40, 160))) + "." for _ in range(documents)]


def parts(documents: list[str], first: int, second: int, seed: int) -> tuple[list[str], list[str]]:
    mixed = documents[:]
    random.Random(seed).shuffle(mixed)
    return mixed[:first], mixed[first : first + second]


@pytest.fixture(scope="module")
def bpe():
    from utils.tokenization.bpe_trainer import FastBPETrainer

    return FastBPETrainer.train_on_dataset(ENGLISH[::4], 1000)


@pytest.mark.parametrize("with_tokens", [False, True])
@pytest.mark.parametrize(
    ("first", "second"), [(20, 20), (40, 40), (100, 100), (390, 390), (20, 600), (600, 40), (3, 5)]
)
def test_samples_of_one_source_show_no_drift_at_any_size(bpe, first, second, with_tokens):
    tokenizer = bpe if with_tokens else None
    for seed in range(2):
        one, other = parts(ENGLISH, first, second, seed)
        found = compare_profiles(compute_dataset_profile(one, tokenizer), compute_dataset_profile(other, tokenizer))
        assert found.grade in ("none", "not judged"), f"{first} + {second} documents, seed {seed}:\n{found.summary()}"
        assert found["symbols"].grade == "none"


@pytest.mark.slow
@pytest.mark.parametrize("with_tokens", [False, True])
def test_false_alarms_are_rarer_than_one_in_a_hundred(bpe, with_tokens):
    tokenizer, alarms, tries = (bpe if with_tokens else None), 0, 0
    for size in (20, 50, 100, 390):
        for seed in range(50):
            pair = [compute_dataset_profile(part, tokenizer) for part in parts(ENGLISH, size, size, 100 + seed)]
            alarms += compare_profiles(*pair).grade not in ("none", "not judged")
            tries += 1
    assert alarms <= tries / 100, f"{alarms} of {tries}"


@pytest.mark.parametrize("with_tokens", [False, True])
@pytest.mark.parametrize(
    "other", [foreign(200), CODE, [text.upper() for text in ENGLISH]], ids=["language", "code", "capitals"]
)
def test_another_language_or_domain_is_high(bpe, other, with_tokens):
    tokenizer = bpe if with_tokens else None
    found = compare_profiles(compute_dataset_profile(ENGLISH, tokenizer), compute_dataset_profile(other, tokenizer))
    assert found.grade == found["symbols"].grade == "high", found.summary()
    assert "High drift" in found.verdict and found["symbols"].title in found.verdict


def test_a_mixture_is_graded_between():
    mixed = ENGLISH[::2] + foreign(len(ENGLISH) // 30)
    found = compare_profiles(compute_dataset_profile(ENGLISH[1::2]), compute_dataset_profile(mixed))["symbols"]
    assert found.grade in ("low", "moderate") and 0 < found.effect < drift_metrics.DISTANCES[2]


def test_the_same_data_is_the_same_profile_without_drift():
    one, other = compute_dataset_profile(ENGLISH), compute_dataset_profile(tuple(ENGLISH))
    assert one.to_dict() == other.to_dict()
    found = compare_profiles(one, other)
    assert found.grade == "none" and all(item.effect == 0 for item in found.features)


def test_other_lengths_alone_are_found():
    long = ["\n".join(ENGLISH[place : place + 8]) for place in range(0, len(ENGLISH), 8)]
    found = compare_profiles(compute_dataset_profile(ENGLISH), compute_dataset_profile(long))
    assert found["lengths"].grade == "high" and found["symbols"].grade == "none"


@pytest.mark.parametrize(("share", "grade"), [(0.0, "none"), (0.01, "low"), (0.05, "moderate"), (0.3, "high")])
def test_unknown_tokens_are_graded_by_their_share(share, grade):
    class Tokenizer:
        unk_token_id = 7

        def get_vocab(self):
            return {str(number): number for number in range(100)}

    draw = np.random.default_rng(0)
    rows = draw.integers(8, 100, (400, 64))
    changed = np.where(draw.random(rows.shape) < share, 7, rows)
    patched = pytest.MonkeyPatch()
    patched.setattr(drift_metrics, "tokenizer_fingerprint", lambda tokenizer: "x")
    try:
        found = compare_profiles(*(compute_dataset_profile(ids, Tokenizer()) for ids in (rows, changed)))["unknown"]
    finally:
        patched.undo()
    assert found.grade == grade and found.effect == pytest.approx(share, abs=0.02)


def test_ids_and_blocks_are_profiled_as_they_are():
    ids = np.random.default_rng(0).integers(0, 3000, (50, 32))
    by_array, by_blocks, by_tensor = map(compute_dataset_profile, (ids, PackedBlocks(ids), torch.tensor(ids)))
    assert by_array.to_dict() == by_blocks.to_dict() == by_tensor.to_dict()
    assert by_array.unit == "tokens" and by_array.figures["tokens"] == ids.size
    short = compute_dataset_profile(ids[:, :16])
    assert compare_profiles(by_array, short)["lengths"].grade == "high"


def images(number: int, seed: int, low: int = 0, high: int = 256, shape=(8, 8, 3)) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (draw.integers(low, high, (number, *shape)) * draw.uniform(0.6, 1.0, (number, 1, 1, 1))).astype(np.uint8)


@pytest.mark.parametrize("number", [16, 60, 300])
def test_images_of_one_source_show_no_drift(number):
    for seed in range(3):
        pair = [compute_dataset_profile(images(number, 10 * seed + side)) for side in (1, 2)]
        assert compare_profiles(*pair).grade == "none", compare_profiles(*pair).summary()


def test_darker_other_and_coloured_images_are_high():
    base = compute_dataset_profile(images(200, 0))
    assert compare_profiles(base, compute_dataset_profile(images(200, 1, 0, 90)))["brightness"].grade == "high"
    wide = compare_profiles(base, compute_dataset_profile(images(200, 1, shape=(8, 16, 3))))
    assert wide["sizes"].grade == wide["shapes"].grade == "high" and wide["brightness"].grade == "none"
    red = images(200, 1)
    red[..., 0] = red[..., 0] // 3
    assert compare_profiles(base, compute_dataset_profile(red))["channel 0 mean"].grade == "high"
    grey = compare_profiles(base, compute_dataset_profile(images(200, 1, shape=(8, 8, 1))))
    assert grey["channel 2 mean"].grade == "high" and grey["channel 2 mean"].why == "only one of the two has it"


def test_images_of_a_data_module_are_measured_before_normalisation():
    raw = images(40, 0)
    wrapped = Images(list(raw), [0] * 40, VisionDataCollator(size=None))
    assert compute_dataset_profile(wrapped).to_dict() == compute_dataset_profile(raw).to_dict()
    pairs = [(image, 1) for image in raw]
    assert compute_dataset_profile(pairs, task="vision").figures == compute_dataset_profile(raw).figures


def test_profiles_and_verdicts_survive_json(tmp_path):
    profile = compute_dataset_profile(ENGLISH[:50])
    again = DatasetProfile.load(profile.save(tmp_path / "p.json"))
    assert again == profile and (tmp_path / "p.json").stat().st_size < 150_000
    found = compare_profiles(profile, compute_dataset_profile(foreign(60)), names=("train", "validation"))
    read = DriftMetrics.from_dict(json.loads(found.save(tmp_path / "d.json").read_text("utf-8")))
    assert read == found and read.verdict == found.verdict


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (["text " * 50], np.ones((20, 4), dtype=int), "unit 'pairs of bytes' and 'tokens'"),
        (["text " * 50], images(20, 0), "task 'text' and 'images'"),
    ],
)
def test_what_cannot_be_compared_is_refused(one, other, words):
    with pytest.raises(ConfigError, match=words):
        compare_profiles(compute_dataset_profile(one), compute_dataset_profile(other))


@pytest.mark.parametrize("data", [[], [""], np.zeros((0, 4, 4)), "no/such/file.txt"])
def test_nothing_is_no_profile(data):
    with pytest.raises(DataError):
        compute_dataset_profile(data)


def test_an_unknown_task_and_a_foreign_file_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="task='words' is unknown"):
        compute_dataset_profile(ENGLISH, task="words")
    (tmp_path / "x.json").write_text("[1]", "utf-8")
    with pytest.raises(ConfigError, match="no profile"):
        DatasetProfile.load(tmp_path / "x.json")


def test_the_views_hold_the_verdict_and_escape_what_comes_from_outside():
    found = compare_profiles(
        compute_dataset_profile(ENGLISH[:40]), compute_dataset_profile(foreign(40)), ("<b>a</b>", "b $x$ & c")
    )
    assert "<b>" not in found._repr_html_() and "&lt;b&gt;" in found._repr_html_()
    assert found.verdict in found.summary()
    assert len(found.panels()) == 4
    assert found.figure().startswith(b"\x89PNG")
    assert compare_profiles(*(compute_dataset_profile(images(20, s)) for s in (0, 1))).figure().startswith(b"\x89PNG")
