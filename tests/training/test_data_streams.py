"""Streams through the verbs: what can be opened, and that a training on one goes on exactly in its middle."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import datasets
import pytest

import utils
from tests.training.hub import COMMIT, DatasetHub
from tests.training.tiny import make_tiny
from utils.errors import ConfigError, DataError, TrainingStopped
from utils.tokenization import streaming
from utils.training.data_streams import is_stream, open_stream, validation_of
from utils.training.engine.hooks import TrainingHooks
from utils.training.training_core import TrainingCoordinator

DOCUMENTS = [f"{n} green bottles hang on wall number {n % 7}, and {n % 5} of them fall down." for n in range(2_000)]
SETTINGS = {
    "max_steps": 24,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_length": 16,
    "save_every_n_steps": 1,
    "val_every_n_steps": 9,
    "precision": "32-true",
}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "HELD_BACK_CHARACTERS", 2_000)
    monkeypatch.setattr(streaming, "GROUP_TOKENS", 16 * 24)  # a group is three optimizer steps


def write_lines(path: Path, documents: list[str] = DOCUMENTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


WRITERS = {
    "text.jsonl": lambda path: write_lines(path),
    "text.txt": lambda path: path.write_text("\n\n".join(DOCUMENTS)),
    "lines.txt": lambda path: path.write_text("\n".join(DOCUMENTS)),
    "text.csv": lambda path: datasets.Dataset.from_dict({"text": DOCUMENTS}).to_csv(path),
    "text.parquet": lambda path: datasets.Dataset.from_dict({"text": DOCUMENTS}).to_parquet(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_kind_of_file_is_read_forward(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    text = open_stream(tmp_path / name)
    assert [part.strip() for part in text.held_back + text.sample()] == DOCUMENTS


def test_the_shards_of_a_folder_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number in range(4):
        write_lines(tmp_path / f"part-{number}.jsonl", DOCUMENTS[number * 500 : (number + 1) * 500])
    text = open_stream(str(tmp_path))
    assert text.held_back + text.sample() == DOCUMENTS


def test_a_data_set_of_the_hub_is_read_at_its_commit_and_kept_nowhere(tmp_path: Path) -> None:
    """In a process of its own: the Hub's address is read when its library is imported."""
    shards = {f"data/train-{n}.jsonl": write_lines(tmp_path / f"{n}").read_bytes() for n in range(2)}
    code = (
        "from utils.training.data_streams import open_stream; text = open_stream('me/text'); "
        "found = text.held_back + text.sample(); print(len(found), found[0][:16])"
    )
    with DatasetHub({"me/text": shards}) as hub:
        home = tmp_path / "home"
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        environment["TRANSFORMER_BUILDER_CACHE"] = str(tmp_path / "cache")
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
        assert done.stdout == f"{2 * len(DOCUMENTS)} {DOCUMENTS[0][:16]}\n", done.stderr
        assert any(f"@{COMMIT}" in path or f"/resolve/{COMMIT}/" in path for path in hub.requests)
    assert sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) < 10_000


def _packed_shard(tmp_path: Path) -> Path:
    write_lines(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"")
    (tmp_path / "c.jsonl").write_bytes(gzip.compress(write_lines(tmp_path / "c.jsonl").read_bytes()))
    return tmp_path


def _shuffled(tmp_path: Path) -> datasets.IterableDataset:
    return datasets.Dataset.from_dict({"text": DOCUMENTS}).to_iterable_dataset().shuffle(buffer_size=10)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda tmp_path: DOCUMENTS, "lies in memory and is no stream: leave stream_data out"),
        (lambda tmp_path: "python-docs", "lies in memory and is no stream: leave stream_data out"),
        (lambda tmp_path: tmp_path / "absent.jsonl", "is neither a file or folder here nor the name"),
        (_packed_shard, r"c\.jsonl is compressed \(gzip\)"),
        (_shuffled, "has a shuffle buffer"),
        (lambda tmp_path: write_lines(tmp_path / "few.jsonl", DOCUMENTS[:3]), "would all be for validation"),
    ],
)
def test_what_is_no_stream_is_refused(tmp_path: Path, data, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=message):
        open_stream(data(tmp_path))


def test_streams_are_known_by_their_type() -> None:
    rows = datasets.Dataset.from_dict({"text": DOCUMENTS})
    assert is_stream(rows.to_iterable_dataset()) and not is_stream(rows) and not is_stream("text.jsonl")


def test_a_validation_part_of_its_own_is_taken() -> None:
    rows = datasets.Dataset.from_dict({"text": DOCUMENTS}).to_iterable_dataset()
    texts, other = ["so many bottles"] * 30, datasets.Dataset.from_dict({"text": DOCUMENTS[::-1]}).to_iterable_dataset()
    for given, expected in (
        ({"train": rows, "validation": texts}, texts),
        ({"train": rows, "validation": other}, None),
    ):
        coordinator = TrainingCoordinator(make_tiny(), given, training_config=SETTINGS, progress=False)
        train, validation = coordinator._parts(False)
        assert train.sample()[-1] == DOCUMENTS[-1]
        assert validation == (expected or DOCUMENTS[::-1][: len(validation)])


def test_a_validation_part_with_a_row_that_holds_no_text_is_refused() -> None:
    rows = datasets.Dataset.from_dict({"text": DOCUMENTS}).to_iterable_dataset()
    other = datasets.Dataset.from_dict({"text": ["so many bottles", None]}).to_iterable_dataset()
    with pytest.raises(DataError, match="A row of the validation data holds nothing in 'text'"):
        validation_of({"train": rows, "validation": other})


def test_a_file_that_has_changed_is_another_stream(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "text.jsonl")
    before = open_stream(path)
    write_lines(path, DOCUMENTS[:-1])
    after = open_stream(path)
    assert before.held_back == after.held_back and before.identity != after.identity


def test_a_stream_needs_a_number_of_steps(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": DOCUMENTS}).to_iterable_dataset()
    with pytest.raises(ConfigError, match="stream_data=True needs max_steps"):
        utils.train(make_tiny(), write_lines(tmp_path / "t.jsonl"), {"stream_data": True}, workspace=tmp_path)
    with pytest.raises(ConfigError, match="set max_steps="):
        utils.train(make_tiny(), rows, workspace=tmp_path, progress=False)


def test_a_model_of_another_task_is_refused(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": DOCUMENTS}).to_iterable_dataset()
    from transformers import BertConfig, BertForMaskedLM

    tiny = BertConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(DataError, match="a stream holds text for next-token training only"):
        utils.train(BertForMaskedLM(tiny), rows, SETTINGS, workspace=tmp_path, progress=False)


def _training(workspace: Path, path: Path, **more: object) -> TrainingCoordinator:
    settings = {**SETTINGS, "stream_data": True}
    return TrainingCoordinator(
        make_tiny(),
        str(path),
        training_config=settings,
        workspace=workspace,
        progress=False,
        **more,  # type: ignore[arg-type]
    )


class Asking(TrainingHooks):
    """Asks for a stop after a step."""

    def __init__(self, stop: threading.Event, step: int) -> None:
        self.stop, self.step = stop, step

    def on_step_end(self, step: int, loss: float) -> None:
        if step == self.step:
            self.stop.set()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "HELD_BACK_CHARACTERS", 2_000)
        patch.setattr(streaming, "GROUP_TOKENS", 16 * 24)
        folder = tmp_path_factory.mktemp("whole")
        path = write_lines(folder / "text.jsonl")
        return path, _training(folder, path).run()


@pytest.mark.parametrize("step", [4, 23, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 3, 11))])
def test_a_stopped_training_goes_on_with_the_same_losses_and_reads_nothing_before_its_place(
    tmp_path: Path,
    whole,
    step: int,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    path, undisturbed = whole
    stop = threading.Event()
    with pytest.raises(TrainingStopped):
        _training(tmp_path, path, stop=stop.is_set, hooks=Asking(stop, step)).run()
    begun: list[int] = []
    original = streaming.StreamedBlocks._seek

    def watched(self: streaming.StreamedBlocks, group: int) -> None:
        begun.append(group)
        original(self, group)

    monkeypatch.setattr(streaming.StreamedBlocks, "_seek", watched)
    result = _training(tmp_path, path).run()
    assert result["resumed_from_step"] == step
    assert len(result["loss_history"]) > 0
    assert result["loss_history"] == undisturbed["loss_history"]
    assert result["val_loss_history"] == undisturbed["val_loss_history"]
    assert begun[-1] >= step // 3 - 1  # where the training begins to read, whatever was measured before it
