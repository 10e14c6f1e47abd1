"""A model against its baselines: the same data and budget, honest figures, and what happens without a Hub."""

from __future__ import annotations

import json
import math
from pathlib import Path

import datasets
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.training.tiny import TEXT, make_tiny
from utils.adapters.model_adapter import adapt
from utils.errors import ConfigError, DataError, HubError
from utils.tokenization.bits import BitsPerByte
from utils.tokenization.packing import pack_documents
from utils.training import benchmark as module
from utils.training.benchmark import Benchmark, BenchmarkRow, benchmark
from utils.training.dataset_utilities import DatasetLoader, resolve_data
from utils.training.example_models import TinyClassifier, TinyMaskedLM
from utils.training.fingerprint import weights_hash

TEXTS = [TEXT[i : i + 400] for i in range(0, len(TEXT), 400)]
PAIRS = [(f"the thing number {i} is {'good' if i % 3 else 'bad'}", "yes" if i % 3 else "no") for i in range(60)]
SETTINGS = {"max_steps": 3, "batch_size": 4}


def unreachable(repository: str, into: str) -> Path:
    raise HubError("huggingface.co cannot be reached", "unreachable")


def test_language_models_are_compared_on_the_same_bytes(
    tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fetch", unreachable)
    model = make_tiny()
    before = weights_hash(model)
    found = benchmark(
        model, None, TEXTS, SETTINGS, tokenizer=tokenizer, published=["distilgpt2"], workspace=tmp_path, progress=False
    )
    assert weights_hash(model) == before, "the model itself is left alone"
    rows = {row.name: row for row in found.rows}
    assert set(rows) == {"TinyTransformer", "LSTM baseline", "GPT baseline", "uniform", "byte trigram"}
    assert [row.value for row in found.rows] == sorted(row.value for row in found.rows)
    for name in ("LSTM baseline", "GPT baseline"):
        assert rows[name].parameters == pytest.approx(model.num_parameters(), rel=0.15)
    prints = {
        name: json.loads((Path(str(row.run)) / "run.json").read_text("utf-8"))["fingerprint"]
        for name, row in rows.items()
        if row.run
    }
    assert len(prints) == 3 and len({value["data"] for value in prints.values()}) == 1
    assert {value["total_steps"] for value in prints.values()} == {3}
    assert all(rows[name].memory_bytes > 4 * rows[name].parameters and rows[name].tokens_per_second for name in prints)
    text = resolve_data(TEXTS)
    blocks = pack_documents(text.validation, tokenizer, 16)
    assert rows["uniform"].value == pytest.approx(BitsPerByte.of(blocks, tokenizer)(math.log(len(tokenizer))))
    assert found.budget.startswith("192 tokens") and "distilgpt2 is not compared" in found.summary()
    assert found["better_than"] == [row.name for row in found.rows[found["rank"] :]]


def test_classifiers_are_compared_by_accuracy(tmp_path: Path, tokenizer) -> None:
    torch.manual_seed(0)
    model = adapt(TinyClassifier(300, 32, 2, 16, 1), {"vocab_size": 300, "max_seq_len": 32})
    found = benchmark(model, None, PAIRS, SETTINGS, tokenizer=tokenizer, workspace=tmp_path, progress=False)
    rows = {row.name: row for row in found.rows}
    assert set(rows) == {"TinyClassifier", "LSTM baseline", "GPT baseline", "always the largest class"}
    assert 0.4 < rows["always the largest class"].value < 1.0 and rows["TinyClassifier"].value <= 1
    assert found.higher_is_better and list(found["table"].columns)[:2] == ["name", "accuracy"]
    with pytest.raises(ConfigError, match="needs data="):
        benchmark(model, settings=SETTINGS, workspace=tmp_path, progress=False)


def test_other_tasks_are_refused_with_the_reason(tmp_path: Path) -> None:
    model = adapt(TinyMaskedLM(300, 16, 16, 1), {"vocab_size": 300, "max_seq_len": 16})
    settings = {**SETTINGS, "objective": "masked"}
    with pytest.raises(ConfigError, match=r"causal language models and classifiers of texts; TinyMaskedLM .*'masked'"):
        benchmark(model, None, TEXTS, settings, workspace=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        (datasets.Dataset.from_dict({"text": [TEXT]}).to_iterable_dataset(), {}),
        ({"train": datasets.Dataset.from_dict({"text": [TEXT]}).to_iterable_dataset()}, {}),
        ([TEXT], {"stream_data": True}),
    ],
)
def test_a_stream_is_refused_before_anything_is_trained(tmp_path: Path, data, changes) -> None:
    with pytest.raises(ConfigError, match=r"which a stream does not keep\. Pass a part of it"):
        benchmark(make_tiny(), None, data, {"max_steps": 2, **changes}, workspace=tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_published_checkpoint_is_scored_as_it_is(tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer.save_pretrained(tmp_path / "hub")
    published = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=32, n_embd=8, n_layer=1, n_head=1))
    for parameter in published.parameters():
        torch.nn.init.zeros_(parameter)  # every token is as likely as every other
    monkeypatch.setattr(module, "fetch", lambda repository, into: tmp_path / "hub")
    monkeypatch.setattr(module, "_published_model", lambda repository: published.eval())
    contest = module._LanguageModels(make_tiny(), TEXTS, None, tokenizer, tmp_path, False)  # type: ignore[arg-type]
    contest.text = resolve_data(TEXTS)
    row, note = contest._published("someone/model")
    blocks = pack_documents(contest.text.validation, tokenizer, 32)
    assert row is not None and row.value == pytest.approx(BitsPerByte.of(blocks, tokenizer)(math.log(300)), rel=1e-5)
    assert "other data" in note


def test_glue_is_read_with_both_texts_and_says_so_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def rows(name: str, task: str, *, progress: bool, split: str, **options: object):
        asked.append((name, task, split))
        made = [{"idx": i, "sentence1": f"first {i}", "sentence2": f"second {i}", "label": i % 2} for i in range(3)]
        return DatasetLoader.from_anything(made, progress=False, **options)

    monkeypatch.setattr(DatasetLoader, "from_huggingface", staticmethod(rows))
    found = module._glue("rte")
    assert found["train"][1] == ("first 1\nsecond 1", 1) and len(found["validation"]) == 3
    assert asked == [("nyu-mll/glue", "rte", "train"), ("nyu-mll/glue", "rte", "validation")]

    def refused(*args: object, **kwargs: object):
        raise DataError("the Hub cannot be reached.")

    monkeypatch.setattr(DatasetLoader, "from_huggingface", staticmethod(refused))
    with pytest.raises(DataError, match=r"sst2 needs the Hugging Face Hub, .* Pass data= with pairs"):
        module._glue("sst2")
    with pytest.raises(ConfigError, match="no classification task 'stsb'"):
        module._glue("stsb")


def test_the_table_is_escaped_and_ranked() -> None:
    rows = [BenchmarkRow("<b>", 1.5, 10, 20.0, 3000), BenchmarkRow("uniform", 2.0)]
    found = Benchmark("<b>", "bits_per_byte", rows, "5 tokens", ["a <note>"])
    assert (found["rank"], found["better_than"], len(found)) == (1, ["uniform"], 6)
    page = found._repr_html_()
    assert "&lt;b&gt;" in page and "&lt;note&gt;" in page and "3.0 kB" in page
