"""Folders of transformers, loaded in a process that has only torch and transformers: logits, loss, text, and once more saved."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import utils
import utils.examples
from tests.export import hf_trial
from tests.export.hf_trial import adapted_of, export, signature_of
from tests.zoo.table import ZOO
from utils.adapters.causality import make_causal
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.errors import ExportError
from utils.export.hf_folder import write_hf_folder
from utils.export.hf_runner import HFFolderRunner
from utils.export.hub import push_to_hub
from utils.loading.model_loader import load_model
from utils.testing import TINY_SOURCES
from utils.training.dataset_utilities import python_docs
from utils.training.generation import generate
from utils.training.training_core import train

SAMPLE = (
    "nanoGPT",
    "one-hot",
    "time first",
    "remembering",
    "balance loss in a tuple",
    "multiples of 8",
    "bag with offsets",
    "translator with all masks",
    "recurrent encoder-decoder",
    "tiny ViT",
    "export: every statement missing",
    "gpt2 (causal)",
)
"""Entries of the default run; the whole zoo is slow."""

UPSTREAM = {
    "rwkv (causal)": "transformers' own generation with a state gives other tokens than its forward",
    "bart (causal)": "the loss of BartForCausalLM is not shifted",
    "switch_transformers (seq2seq)": "transformers' own generation with a cache fails",
}
"""What unchanged classes of transformers do by themselves, from a folder or not."""


class ReadsSettings(nn.Module):
    """Takes its sizes from an object that nobody defines a class for."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config["d_model"])
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.linspace(1, 2, config.d_model), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.embedding(tokens)) * self.scale)


def loaded(folder: Path, files: dict[str, str]) -> AdaptedModel:
    """A model as `load_model` gives it."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    return adapt(load_model(folder)).eval()


def ids_for(adapted: AdaptedModel) -> dict[str, torch.Tensor]:
    rows = adapted.contract.vocab_size or 2
    ids = 1 + torch.arange(18).view(3, 6) * 7 % (rows - 1)  # 0 is padding to `generate`
    return {"input_ids": ids, "labels": ids.clone()}


SETTINGS_SOURCE = "import torch\nfrom torch import nn\n\n\n" + re.sub(
    r": Any|: torch.Tensor| -> None| -> torch.Tensor", "", __import__("inspect").getsource(ReadsSettings)
)
LOADED = {
    "sizes from config.json": TINY_SOURCES["tensor"],
    "config class": TINY_SOURCES["config_class"],
    "two files": TINY_SOURCES["two_files"],
    "namespace as config": {"model.py": SETTINGS_SOURCE, "config.json": '{"vocab_size": 40, "d_model": 8}'},
    "a folder in a folder": {
        "model.py": TINY_SOURCES["two_files"]["model.py"]
        .replace("import blocks\nfrom blocks", "from parts.blocks import Block\nfrom parts.blocks")
        .replace("blocks.Block", "Block"),
        "parts/__init__.py": "",
        "parts/blocks.py": TINY_SOURCES["two_files"]["blocks.py"],
    },
}
"""Models that came as files: the constructor's arguments are those of `load_model`."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The bundled broken export, completed, made causal and trained a little."""
    root = tmp_path_factory.mktemp("trained")
    (root / "text.txt").write_text(python_docs()[:10_000], "utf-8")
    for name in ("model.py", "config.json"):
        text = (utils.examples.path() / name).read_text("utf-8")
        for number, smaller in {"1024": "300", "512": "64", "128": "32"}.items():  # rows, inner width, width and limit
            text = text.replace(number, smaller)
        (root / name).write_text(text, "utf-8")
    adapted = adapt(load_model(root))
    settings = {"max_steps": 2, "batch_size": 4, "random_seed": 3}
    return train(adapted, root / "text.txt", settings, workspace=root / "runs", progress=False)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, trained: Any) -> dict[str, list[str]]:
    """What the child found, for all of the default run."""
    root = tmp_path_factory.mktemp("hf")
    jobs = []
    for number, name in enumerate(SAMPLE):
        entry = ZOO[name]
        jobs.append({**export(adapted_of(entry), entry.batch(), root, f"zoo{number}"), "name": name})
    for number, (name, files) in enumerate(LOADED.items()):
        adapted = loaded(root / f"source{number}", files)
        jobs.append({**export(adapted, ids_for(adapted), root, f"loaded{number}"), "name": name})
    bert = make_causal(adapted_of(ZOO["bert (masked)"]))
    jobs.append({**export(bert, ids_for(bert), root, "bert"), "name": "bert made causal"})
    jobs.append(
        {**export(trained.model, ids_for(trained.model), root, "trained", trained.tokenizer), "name": "trained"}
    )
    jobs[-1]["text"] = {"prompt": "The value of the ", "expected": text_of(trained), "new": 12}
    return hf_trial.examine(jobs, root)


def text_of(result: Any) -> str:
    return generate(result, "The value of the ", max_new_tokens=12, temperature=0)


@pytest.mark.parametrize("name", [*SAMPLE, *LOADED, "bert made causal", "trained"])
def test_a_folder_gives_what_the_model_gives(answers: dict[str, list[str]], name: str) -> None:
    assert answers[name] == []


@pytest.mark.slow  # every entry of the zoo is adapted, written and loaded: about four minutes
def test_the_whole_zoo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, refused = hf_trial.try_all(ZOO.values(), tmp_path)
    wrong = {name: words for name, words in found.items() if words and name not in UPSTREAM}
    with capsys.disabled():
        print(f"\n{len(found) - len(wrong)} of {len(ZOO)} load, answer and save as they must")  # noqa: T201
        for reason, count in Counter(refused.values()).most_common():
            print(f"{count} refused: {reason}")  # noqa: T201
    assert not wrong
    assert len(refused) <= 0.03 * len(ZOO)


def test_what_a_folder_holds(tmp_path: Path, trained: Any) -> None:
    files = write_hf_folder(trained.model, signature_of(trained.model), trained.tokenizer, tmp_path / "f", {"a": "b"})
    names = {path.name for path in files}
    assert files[0].name == "config.json"
    assert {"model.py", "model.safetensors", "generation_config.json", "tokenizer.json", "export.json"} <= names
    assert (tmp_path / "f" / "model.py").read_text("utf-8") == trained.model.completion.source_after
    config = json.loads((tmp_path / "f" / "config.json").read_text("utf-8"))
    assert config["causal"]["twins"] == ["mhsa_0", "mhsa_1"]
    assert config["auto_map"]["AutoModelForCausalLM"].startswith("modeling_")
    for path in files:
        if path.suffix == ".py":
            assert not re.search(r"^\s*(from|import) utils\b", path.read_text("utf-8"), re.MULTILINE), path.name


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[AdaptedModel, Path]:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    adapted = loaded(tmp_path / "source", TINY_SOURCES["config_class"])
    write_hf_folder(adapted, signature_of(adapted), None, tmp_path / "folder")
    return adapted, tmp_path / "folder"


def test_the_runner_gives_logits(written: tuple[AdaptedModel, Path]) -> None:
    adapted, folder = written
    ids = ids_for(adapted)["input_ids"]
    runner = HFFolderRunner(folder)
    assert runner.signature.inputs == ("input_ids",)
    given = runner.run({"input_ids": ids.numpy()})
    np.testing.assert_allclose(given, adapted(ids).logits.detach().numpy(), atol=1e-6)


def _without_a_key(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state.pop("model.lm_head.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _with_another_key(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    save_file({**state, "model.more": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})


def _with_another_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state["model.lm_head.weight"] = state["model.lm_head.weight"] + torch.nan
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _without_facts(folder: Path) -> None:
    (folder / "export.json").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_without_a_key, "missing_keys: model.lm_head.weight"),
        (_with_another_key, "unexpected_keys: model.more"),
        (_with_another_weight, "are not those that were written"),
        (_without_facts, "export.json cannot be read"),
    ],
)
def test_damaged_folders_are_errors(written: tuple[AdaptedModel, Path], damage: Any, words: str) -> None:
    damage(written[1])
    with pytest.raises(ExportError, match=re.escape(words)):
        HFFolderRunner(written[1])


class Forgetful(nn.Module):
    """Keeps no argument."""

    def __init__(self, rows: int, width: int = 8, noise: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)
        self.head = nn.Linear(width, rows)
        if noise:
            self.register_buffer("noise", torch.randn(width), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(ids) + getattr(self, "noise", 0))


class Noisy(Forgetful):
    def __init__(self) -> None:
        super().__init__(30, noise=True)


def _local() -> nn.Module:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(30, 30)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.table(ids)

    return Local()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Forgetful(30), "requires 'rows', and nothing tells"),
        (Noisy, "noise of Noisy is in no state_dict"),
        (_local, "defined inside a function"),
        (lambda: torch.jit.script(Forgetful(30)), "has no source"),
    ],
)
def test_what_cannot_be_built_again_is_refused(tmp_path: Path, build: Any, words: str) -> None:
    adapted = adapt(build())
    with pytest.raises(ExportError, match=re.escape(words)):
        write_hf_folder(adapted, signature_of(adapted), None, tmp_path)


def test_a_tokenizer_that_transformers_cannot_save_is_refused(tmp_path: Path, trained: Any) -> None:
    words = r"got tokenizers.Tokenizer.*PreTrainedTokenizerFast\(tokenizer_object="
    with pytest.raises(ExportError, match=words):
        write_hf_folder(
            trained.model, signature_of(trained.model), trained.tokenizer.backend_tokenizer, tmp_path / "folder"
        )
    assert not (tmp_path / "folder").exists()


def test_what_transformers_cannot_save_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def fails(*given: object, **named: object) -> None:
        raise RuntimeError("weights share memory")

    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2}
    adapted = adapt(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)))
    monkeypatch.setattr(transformers.GPT2LMHeadModel, "save_pretrained", fails)
    with pytest.raises(ExportError, match=r"cannot save this GPT2LMHeadModel \(weights share memory\)"):
        write_hf_folder(adapted, signature_of(adapted), None, tmp_path)


def test_a_model_of_transformers_stops_where_its_tokenizer_ends(tmp_path: Path, trained: Any) -> None:
    import transformers

    sizes = {"vocab_size": 310, "n_embd": 16, "n_layer": 1, "n_head": 2, "eos_token_id": 309, "bos_token_id": 309}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    before = model.config.to_dict()
    adapted = adapt(model)
    write_hf_folder(adapted, signature_of(adapted), trained.tokenizer, tmp_path)
    settings = json.loads((tmp_path / "generation_config.json").read_text("utf-8"))
    assert settings["eos_token_id"] == trained.tokenizer.eos_token_id != 309
    assert set(range(len(trained.tokenizer), 310)) <= set(settings["suppress_tokens"])
    assert model.config.to_dict() == before and not list(tmp_path.glob("*.py"))


def test_hidden_states_are_refused(tmp_path: Path) -> None:
    import transformers

    config = transformers.BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    adapted = adapt(transformers.BertModel(config))
    with pytest.raises(ExportError, match="no scores for its tokens"):
        write_hf_folder(adapted, signature_of(adapted), None, tmp_path)


@pytest.mark.slow  # a second child that imports transformers: ten seconds for one folder
def test_the_format_is_proven_and_shipped_with_others(tmp_path: Path, trained: Any) -> None:
    bundle = utils.export(trained, formats=("hf", "safetensors"), out=tmp_path / "out")
    assert bundle["hf"].parity is not None and bundle["hf"].parity.passed
    assert (tmp_path / "out" / "hf" / "README.md").read_text("utf-8").startswith("---\nlibrary_name: transformers")
    listed = {entry["name"] for entry in bundle.manifest["files"]}
    assert {"hf/config.json", "hf/README.md", "hf/architecture.svg", "hf/model.py"} <= listed
    planned = push_to_hub(bundle, "me/model", dry_run=True)
    assert {"config.json", "README.md", "bundle/manifest.json"} <= {upload.name for upload in planned.uploads}
