"""Model cards: valid for the Hub, complete, escaped, and silent about what is not known."""

from __future__ import annotations

import html.parser
import json
import re
import xml.etree.ElementTree as ElementTree
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import utils.examples
from tests.export.servers import served
from tests.zoo.table import ZOO
from utils._tables import markdown_code, markdown_text
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.export.architecture import parts_of
from utils.export.model_card import CardInputs, ModelCardGenerator, model_card, write_model_card
from utils.export.parity_report import GreedyResult, ParityReport, ParityRow
from utils.loading.model_loader import load_model
from utils.testing import TINY_SOURCES
from utils.training.dataset_utilities import python_docs
from utils.training.training_core import train

HOSTILE = "</text><script>alert(1)</script> | [x](http://evil.example) `code` *b* @user\n---\nlicense: mit"
PARITY = ParityReport(
    [ParityRow("onnx", 3, 7, "none", 1e-6, 1e-7, 1.0, 1.0, 2.0, 1e-4)], [GreedyResult("onnx", 20, 20)]
)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A short training of a small model that came as files."""
    root = tmp_path_factory.mktemp("card")
    for name, text in TINY_SOURCES["config_class"].items():
        (root / name).write_text(text.replace('"vocab_size": 70', '"vocab_size": 300'), "utf-8")
    (root / "text.txt").write_text(python_docs()[:30_000], "utf-8")
    settings = {"max_steps": 3, "batch_size": 4, "val_every_n_steps": 1, "notes": "secret place"}
    adapted = adapt(load_model(root))
    return train(adapted, root / "text.txt", settings, workspace=root / "runs", progress=False)


@pytest.fixture(scope="module")
def written(result: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    inputs = CardInputs(
        result.model,
        result=result,
        parity=PARITY,
        refused={"torchscript": "an operator"},
        files={"hf": "hf", "onnx": "model.onnx", "int8": "int8.onnx"},
        license="mit",
        language="en",
    )
    return write_model_card(inputs, tmp_path_factory.mktemp("bundle") / "README.md")


def parsed(text: str) -> Any:
    from huggingface_hub import ModelCard

    return ModelCard(text)


def test_the_metadata_is_what_is_known(written: Path) -> None:
    data = parsed(written.read_text("utf-8")).data.to_dict()
    assert data["license"] == "mit" and data["language"] == "en" and data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation" and data["tags"] == ["transformer-builder", "custom_code"]
    assert "datasets" not in data and "model-index" not in data, "the text is a file of the author"
    assert data["metrics"] == ["accuracy", "perplexity"] or data["metrics"] == ["perplexity"]


def test_the_card_says_what_a_run_knows(written: Path, result: Any) -> None:
    text = written.read_text("utf-8")
    for words in (
        "# TinyGPT",
        f"{result.model.num_parameters():,} parameters",
        "a file of the author: text.txt",
        "SHA-256",
        "AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)",
        "onnxruntime.InferenceSession('model.onnx')",
        "Format int8: int8.onnx",
        "| torchscript | an operator |",
        "onnx: 20 of 20 greedy tokens agree",
        "Nothing: the model runs as it came.",
        f'python -m utils rerun "{result.run_folder.name}"',
        "| torch | ",
        "| bias and safety | unknown |",
    ):
        assert words in text, words
    assert str(result.run_folder.parent) not in text, "paths of the author's machine stay there"
    assert (written.parent / "training_curve.png").read_bytes().startswith(b"\x89PNG")
    picture = ElementTree.fromstring((written.parent / "architecture.svg").read_text("utf-8"))
    shown = " ".join(entry.text or "" for entry in picture.iter() if entry.tag.endswith("text"))
    assert "lm_head" in shown and "h.0" in shown


def test_the_hub_itself_would_be_asked_for_its_verdict(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    with served(Handler) as url:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        parsed(written.read_text("utf-8")).validate()
    assert asked[0]["repoType"] == "model" and asked[0]["content"].startswith("---\nlanguage: en\n")


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.unused, self.head = nn.Embedding(30, 8), nn.Linear(8, 8), nn.Linear(8, 30)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(ids))


def test_what_is_not_known_is_said_to_be_unknown(tmp_path: Path) -> None:
    card = ModelCardGenerator.generate(Plain(), None, None, None, tmp_path)
    text = card.read_text("utf-8")
    assert card == tmp_path / "README.md" and not (tmp_path / "training_curve.png").exists()
    for words in (
        "| layers | unknown |",
        "| source | unknown |",
        "| tokenizer | unknown |",
        "| learning rate | unknown |",
        "Unknown: no training is known.",
        "Unknown: no file was compared with the model.",
        "Unknown: no folder of a run is known.",
    ):
        assert words in text, words
    data = parsed(text).data.to_dict()
    assert not {"license", "language", "datasets", "metrics", "library_name"} & set(data)


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.seen.append(tag)


def test_texts_from_outside_stay_texts(tmp_path: Path) -> None:
    adapted = adapt(Plain(), {"model_name": HOSTILE, "vocab_size": 30})
    card = write_model_card(
        CardInputs(adapted, data={HOSTILE: HOSTILE}, refused={"onnx": HOSTILE}), tmp_path / "README.md"
    )
    text = card.read_text("utf-8")
    tags = _Tags()
    tags.feed(re.sub(r"\\(.)", r"\1", text))
    assert not tags.seen and "http://" not in text.replace("http:&#47;&#47;", "")
    assert "license" not in parsed(text).data.to_dict()
    for row in (line for line in text.splitlines() if line.startswith("|")):
        assert len(re.findall(r"(?<!\\)\|", row)) in (3, 7), row
    picture = ElementTree.fromstring((tmp_path / "architecture.svg").read_text("utf-8"))
    assert not [entry for entry in picture.iter() if entry.tag.endswith("script")]


def test_tokens_in_texts_are_cut(tmp_path: Path) -> None:
    secret = "hf_" + "a" * 36
    assert secret not in model_card(CardInputs(adapt(Plain()), data={"note": f"with {secret}"}))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b\nc", r"a\|b c"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("[x](y) `z` *w*", r"\[x\](y) \`z\` \*w\*"),
        ("https://a.b", "https:&#47;&#47;a.b"),
    ],
)
def test_markdown_text(text: str, shown: str) -> None:
    assert markdown_text(text) == shown


def test_code_ends_where_it_should() -> None:
    assert markdown_code("a\n```\nb", "sh") == "````sh\na\n```\nb\n````"


def test_what_was_completed_stands_with_its_evidence() -> None:
    adapted = adapt(load_model(utils.examples.path()))
    text = model_card(CardInputs(adapted))
    completed = adapted.completion.completions[0]
    assert f"{len(adapted.completion.completions)} statements" in text
    assert markdown_text(completed.reason) in text


@pytest.mark.parametrize(
    "name", ["tiny ViT", "mean classifier", "recurrent encoder-decoder", "bert (masked)", "gpt2 (causal)"]
)
def test_cards_of_all_tasks(name: str) -> None:
    entry = ZOO[name]
    adapted: AdaptedModel = adapt(entry.build(), entry.config, entry.source, **entry.arguments)
    parsed(model_card(CardInputs(adapted, files={"hf": "hf"})))


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("gpt2 (causal)", True, "tokenizer = AutoTokenizer.from_pretrained(folder)"),
        ("gpt2 (causal)", False, "model(input_ids=ids).logits"),
        ("mean classifier", True, "tokenizer = AutoTokenizer.from_pretrained(folder)"),
        ("mean classifier", False, "model(input_ids=ids).logits"),
        ("tiny ViT", True, "model(pixel_values=images).logits"),
        ("tiny ViT", False, "model(pixel_values=images).logits"),
    ],
)
def test_only_a_tokenizer_that_is_there_is_loaded(name: str, given: bool, words: str) -> None:
    entry = ZOO[name]
    adapted: AdaptedModel = adapt(entry.build(), entry.config, entry.source, **entry.arguments)
    text = model_card(CardInputs(adapted, tokenizer=object() if given else None, files={"hf": "hf"}))
    assert words in text
    assert ("AutoTokenizer" in text) == (given and name != "tiny ViT")


def test_parts_stand_in_the_order_in_which_they_run() -> None:
    parts = parts_of(adapt(Plain()))
    assert [(part.name, part.runs) for part in parts] == [("table", True), ("head", True), ("unused", False)]
    assert parts[0].output == "2 × 8 × 8" and parts[0].parameters == 240


def test_equal_neighbours_are_one_part() -> None:
    adapted = adapt(ZOO["gpt2 (causal)"].build())
    blocks = [part for part in parts_of(adapted) if part.kind == "GPT2Block"]
    assert [(part.name, part.count) for part in blocks] == [("transformer.h.0 … transformer.h.1", 2)]
