"""The folder: what is in it, when it is finished, and what of others stays. Uses a format of its own, made of numpy."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

import utils
from export import zoo
from utils.adapters.model_adapter import adapt
from utils.errors import ConfigError, ExportError, ParityError, TokenizerError
from utils.export import exporter as face
from utils.export.artifact import Artifact
from utils.export.bundle import create_export_bundle
from utils.export.child import ChildRuntime
from utils.export.parity import WITHOUT_LIMIT, Tolerance
from utils.export.runner import OPENERS, Runner
from utils.export.signature import Signature
from utils.export.subject import ExportSubject, subject_of
from utils.training.task_spec import TaskSpec

CARD = ["README.md", "architecture.svg"]


class TableRunner(Runner):
    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.table, self.facts = np.load(path), {"kind": "table"}
        rows = len(self.table)
        self.signature = Signature("lm", ("input_ids",), rows, rows, zoo.LIMIT)

    def run(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.table[feeds["input_ids"]]


class TableExporter(face.Exporter):
    """A whole format in a few lines: a bigram model is a table. That this suffices is what the face is for.

    Its files are opened in this process: the child knows the formats of the package only.
    """

    format, file_name, tolerance = "table", "model.npy", Tolerance(0.0, 0.0, "the numbers themselves")
    wrong = 0.0

    def write(self, subject: ExportSubject, path: Path) -> Artifact:
        np.save(path, subject.adapted.model.table.weight.detach().numpy() + self.wrong)
        return Artifact(self.format, path, facts={"kind": "table"})

    def runner(self, artifact: Artifact, subject: ExportSubject, child: ChildRuntime) -> Runner:
        return TableRunner(artifact.path)


class WrongExporter(TableExporter):
    """Writes numbers that are not the model's."""

    format, file_name, wrong = "wrong", "wrong.npy", 0.01


class FolderExporter(TableExporter):
    """A folder of two files."""

    format, file_name = "folder", "folder"

    def write(self, subject: ExportSubject, path: Path) -> Artifact:
        path.mkdir()
        table = super().write(subject, path / "model.npy").path
        (path / "notes.txt").write_text("of the folder")
        return Artifact(self.format, path, (table, path / "notes.txt"))

    def runner(self, artifact: Artifact, subject: ExportSubject, child: ChildRuntime) -> Runner:
        return TableRunner(artifact.files[0])


@pytest.fixture(autouse=True)
def _own_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("own_formats")
    module.TableExporter = TableExporter  # type: ignore[attr-defined]
    module.WrongExporter = WrongExporter  # type: ignore[attr-defined]
    module.FolderExporter = FolderExporter  # type: ignore[attr-defined]
    module.TableRunner = TableRunner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_formats", module)
    monkeypatch.setitem(face.FORMATS, "table", ("own_formats", "TableExporter"))
    monkeypatch.setitem(face.FORMATS, "folder", ("own_formats", "FolderExporter"))
    monkeypatch.setitem(face.FORMATS, "wrong", ("own_formats", "WrongExporter"))
    for name in ("table", "wrong"):
        monkeypatch.setitem(OPENERS, name, ("own_formats", "TableRunner"))


def test_bundle_lists_proven_files(tmp_path: Path) -> None:
    model = zoo.Bigram()
    notes: list[str] = []
    bundle = utils.export(
        model, ("table",), tmp_path / "a" / "b", config=zoo.CONFIG, progress=lambda d, t, note: notes.append(note)
    )
    assert [file.name for file in bundle.files] == ["model.npy", *CARD, "manifest.json"]
    assert sorted(bundle.out.iterdir()) == sorted(bundle.files)
    np.testing.assert_array_equal(
        bundle["table"].run(input_ids=[[5, 6]]), model.table.weight.detach().numpy()[[[5, 6]]]
    )
    assert bundle.parity.passed
    assert notes[0] == "table: writing"
    manifest = json.loads((bundle.out / "manifest.json").read_text("utf-8"))
    assert manifest == bundle.manifest
    entry, *cards = manifest["files"]
    assert [card["name"] for card in cards] == CARD and {card["format"] for card in cards} == {"card"}
    content = (bundle.out / "model.npy").read_bytes()
    assert entry == {
        "name": "model.npy",
        "format": "table",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert len(manifest["parity"]["rows"]) == 8
    assert manifest["parity"]["passed"] is True
    assert manifest["model"]["model_class"] == "Bigram"


def test_views_and_lookup(tmp_path: Path) -> None:
    bundle = utils.export(zoo.Bigram(), "table", tmp_path / "<b>", config=zoo.CONFIG)
    assert "model.npy" in bundle.summary()
    assert "equal at all 8 shapes" in bundle.summary()
    assert repr(bundle) == bundle.summary()  # what print() and a plain console show
    assert "<b>" not in bundle._repr_html_()
    with pytest.raises(KeyError, match="'onnx' was not exported; there is table"):
        bundle["onnx"]


@pytest.mark.parametrize("wrap", ["module", "adapted", "result", "lightning"])
def test_takes_what_the_other_verbs_give(wrap: str, tmp_path: Path) -> None:
    adapted = adapt(zoo.Bigram(), zoo.CONFIG)
    given = {
        "module": adapted.model,
        "adapted": adapted,
        "result": SimpleNamespace(model=adapted, tokenizer=["<entry>"] * zoo.V),
        "lightning": SimpleNamespace(adapted=adapted, model=None),
    }[wrap]
    bundle = utils.export(given, ("table",), tmp_path, config=zoo.CONFIG if wrap == "module" else None)
    assert bundle.parity.passed
    assert ("tokenizer" in bundle.manifest["model"]) == (wrap == "result")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"formats": ("onx",)}, ConfigError, "'onx' is unknown; did you mean 'onnx'. Known: onnx"),
        ({"formats": ("table", "zzz")}, ConfigError, r"'zzz' is unknown\. Known"),
        ({"formats": ()}, ConfigError, "formats is empty"),
        ({"formats": None}, ConfigError, "'None' is unknown"),
        ({"formats": [["onnx"]]}, ConfigError, r"\[.+onnx.+\]. is unknown; did you mean 'onnx'"),
        ({"tokenizer": ["<entry>"] * 70}, TokenizerError, "70 entries, the model 61 embedding rows: ids 61 to 69"),
        ({"tokenizer": "gpt2"}, TokenizerError, "tokenizer='gpt2' is no tokenizer. Load it first"),
        ({"given": 3}, ExportError, "got int"),
        ({"validation_text": "some text"}, ConfigError, "needs a tokenizer"),
    ],
)
def test_bad_input_leaves_nothing(options: dict[str, object], error: type, words: str, tmp_path: Path) -> None:
    call = {"formats": ("table",), "config": zoo.CONFIG, **options}
    with pytest.raises(error, match=words):
        utils.export(call.pop("given", zoo.Bigram()), out=tmp_path / "new", **call)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("file", "is a file; name a folder"),
        ("file/below", "file is a file; name a folder"),
        ("nowhere", "is a file; name a folder"),
        ("a\0b", "can be no folder: .*null"),
        ("x" * 300, "can be no folder: .*too long"),
        ("listed", "was written by something else"),
    ],
)
def test_out_must_be_a_folder(out: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "listed" / "manifest.json").mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        utils.export(zoo.Bigram(), ("table",), tmp_path / out, config=zoo.CONFIG)


def test_out_must_be_a_path() -> None:
    with pytest.raises(ConfigError, match="out=None can be no folder"):
        utils.export(zoo.Bigram(), ("table",), None, config=zoo.CONFIG)


@pytest.mark.parametrize("files", [None, {"a": 1}, [1, None, {"name": 3}]])
def test_a_torn_list_of_an_earlier_export_keeps_nobody_from_exporting(files: object, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"kind": "transformer-builder-export", "files": files}))
    assert utils.export(zoo.Bigram(), ("table",), tmp_path, config=zoo.CONFIG).parity.passed


class CrashingExporter(TableExporter):
    """Meets what nobody foresaw."""

    format, file_name = "crashing", "crashing.npy"
    error: Exception = RuntimeError("the disk is on fire")

    def write(self, subject: ExportSubject, path: Path) -> Artifact:
        super().write(subject, path)
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("on fire"), OSError(28, "No space left"), ConfigError("no such thing")])
def test_an_unforeseen_error_costs_one_format_only(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(face.FORMATS, "crashing", ("own_formats", "CrashingExporter"))
    monkeypatch.setattr(sys.modules["own_formats"], "CrashingExporter", CrashingExporter, raising=False)
    monkeypatch.setattr(CrashingExporter, "error", error)
    bundle = utils.export(zoo.Bigram(), ("crashing", "table"), tmp_path, config=zoo.CONFIG)
    assert str(error) in bundle.refused["crashing"] and not (tmp_path / "crashing.npy").exists()
    with pytest.raises(ExportError, match="The crashing file of 'Bigram' cannot be made"):
        utils.export(zoo.Bigram(), ("crashing",), tmp_path, config=zoo.CONFIG)


def test_a_manifest_that_cannot_be_written_costs_the_earlier_export_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utils.export(zoo.Bigram(), ("table",), tmp_path, config=zoo.CONFIG)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(path: Path, content: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.export.bundle.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        utils.export(zoo.Bigram(), ("table",), tmp_path, config=zoo.CONFIG)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"other")])
def test_what_was_changed_since_is_not_packed(damage: Callable[[Path], object], tmp_path: Path) -> None:
    bundle = utils.export(zoo.Bigram(), ("table",), tmp_path / "run", config=zoo.CONFIG)
    damage(tmp_path / "run" / "model.npy")
    with pytest.raises(ConfigError, match=r"model\.npy was changed or lost since it was exported and proven"):
        bundle.zip()
    with pytest.raises(ConfigError, match="is a folder; name the file"):
        bundle.zip(tmp_path)
    assert not (tmp_path / "run.zip").exists()


def test_an_unequal_file_is_refused_and_the_earlier_export_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utils.export(zoo.Bigram(), ("table",), tmp_path, config=zoo.CONFIG)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(TableExporter, "wrong", 0.01)
    with pytest.raises(ParityError, match=r"(?s)was not kept.*max .Δ.*1\.00e-02") as caught:
        utils.export(zoo.Bigram(), ("table",), tmp_path, config=zoo.CONFIG)
    assert not caught.value.parity.passed
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("formats", [("table", "wrong"), ("wrong", "table")])
def test_a_refused_format_is_named_and_the_others_are_there(
    formats: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = utils.export(zoo.Bigram(), formats, tmp_path, config=zoo.CONFIG)
    assert [artifact.format for artifact in bundle.artifacts] == ["table"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [*CARD, "manifest.json", "model.npy"]
    assert bundle.parity.passed
    (why,) = bundle.refused.values()
    assert "not equal to the model" in why and "largest difference 1.00e-02" in why
    assert bundle.manifest["refused"] == {"wrong": why}
    assert list(bundle.manifest["formats"]) == ["table"]
    assert "wrong was refused: The wrong file" in bundle.summary()
    assert "wrong</b> was refused" in bundle._repr_html_()
    assert "wrong is not shipped" in caplog.text
    with pytest.raises(KeyError, match="'wrong' was refused: The wrong file of 'Bigram' is not equal"):
        bundle["wrong"]


def test_where_no_format_is_left_every_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TableExporter, "wrong", 0.5)
    with pytest.raises(ExportError, match=r"(?s)No format of 'Bigram'.*table: .*5.00e-01.*wrong: .*1.00e-02"):
        utils.export(zoo.Bigram(), ("table", "wrong"), tmp_path / "new", config=zoo.CONFIG)
    assert not (tmp_path / "new").exists()


def test_a_model_without_limit_is_proven_up_to_a_length_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "LIMIT", None)  # what the table's file says
    bundle = utils.export(zoo.Bigram(), ("table",), tmp_path)
    assert max(row.length for row in bundle.parity.rows) == WITHOUT_LIMIT
    assert json.loads(bundle.manifest["model"]["signature"])["max_length"] is None


def test_exporting_again_replaces_and_foreign_files_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model.npy").write_bytes(b"somebody else's")
    utils.export(zoo.Bigram(), ("table",), tmp_path, config=zoo.CONFIG)
    second = utils.export(zoo.Bigram(), ("table",), tmp_path, config=zoo.CONFIG)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *CARD,
        "manifest.json",
        "model.npy",
        "model.npy.previous",
        "notes.txt",
    ]
    assert (tmp_path / "model.npy.previous").read_bytes() == b"somebody else's"
    assert (tmp_path / "notes.txt").read_text() == "mine"
    content = (tmp_path / "model.npy").read_bytes()
    assert second.manifest["files"][0]["sha256"] == hashlib.sha256(content).hexdigest()


def test_fewer_formats_leave_nothing_of_the_others(tmp_path: Path) -> None:
    utils.export(zoo.Bigram(), ("table", "folder"), tmp_path, config=zoo.CONFIG)
    assert (tmp_path / "folder" / "notes.txt").is_file()
    bundle = utils.export(zoo.Bigram(), ("folder",), tmp_path, config=zoo.CONFIG)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(bundle.files)
    bundle = utils.export(zoo.Bigram(), ("table",), tmp_path, config=zoo.CONFIG)
    assert sorted(tmp_path.rglob("*")) == sorted(bundle.files)


def test_files_of_others_in_a_folder_of_ours_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    utils.export(zoo.Bigram(), ("folder",), tmp_path, config=zoo.CONFIG)
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    utils.export(zoo.Bigram(), ("folder",), tmp_path, config=zoo.CONFIG)
    assert (tmp_path / "folder.previous" / "mine.txt").read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["model.npy", "notes.txt"]
    assert "it is kept as folder.previous" in caplog.text


def test_a_single_format_keeps_a_folder_in_its_way(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    FolderExporter().deliver(subject_of(zoo.Bigram(), config=zoo.CONFIG), tmp_path / "folder")
    assert (tmp_path / "folder.previous" / "mine.txt").read_text() == "mine"


def test_the_manifest_lists_what_was_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changes on its way into place is found by whoever checks it."""
    publish = face.publish

    def spoiled(artifact: Artifact, folder: Path) -> Artifact:
        artifact.path.write_bytes(b"another")
        return publish(artifact, folder)

    monkeypatch.setattr("utils.export.bundle.publish", spoiled)
    bundle = utils.export(zoo.Bigram(), ("table",), tmp_path, config=zoo.CONFIG)
    assert bundle.manifest["files"][0]["sha256"] != hashlib.sha256(b"another").hexdigest()
    assert bundle.manifest["files"][0]["bytes"] > len(b"another")


@pytest.mark.parametrize(("out", "here"), [(".", "top/run"), ("..", "top/run/inner"), ("run", "top")])
def test_packing_knows_the_folder(out: str, here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "top" / "run" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / here)
    packed = utils.export(zoo.Bigram(), ("table",), out, config=zoo.CONFIG).zip()
    assert packed == tmp_path / "top" / "run.zip"
    assert sorted(zipfile.ZipFile(packed).namelist()) == [*CARD, "manifest.json", "model.npy"]


def test_a_refusal_names_no_path_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(self: WrongExporter, subject: ExportSubject, path: Path) -> Artifact:
        raise ExportError(f"{path} cannot be read.")

    monkeypatch.setattr(WrongExporter, "write", unreadable)
    bundle = utils.export(zoo.Bigram(), ("table", "wrong"), tmp_path, config=zoo.CONFIG)
    assert bundle.refused == bundle.manifest["refused"] == {"wrong": f"{Path('wrong', 'wrong.npy')} cannot be read."}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("run/model.npy", "would write over .*model.npy, which is one of the files to pack"),
        ("run/manifest.json", "would write over"),
        ("run/model.npy/x.zip", "is a file; name a file in a folder"),
        ("x" * 300, "can be no file: .*too long"),
    ],
)
def test_packing_destroys_nothing(path: str, words: str, tmp_path: Path) -> None:
    bundle = utils.export(zoo.Bigram(), ("table",), tmp_path / "run", config=zoo.CONFIG)
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        bundle.zip(tmp_path / path)
    assert bundle.zip(tmp_path / "run.zip").is_file()  # every file is still as it was


def test_a_bundle_lies_in_a_new_folder_named_by_its_run(tmp_path: Path) -> None:
    settings = {"run_name": "first", "export_formats": ["table"]}
    folders = [
        create_export_bundle(zoo.Bigram(), zoo.CONFIG, TaskSpec.named("lm"), settings, tmp_path / "exports")
        for _ in range(2)
    ]
    assert [folder.name for folder in folders] == ["first", "first-2"]
    assert all((folder / "model.npy").is_file() for folder in folders)
    with pytest.raises(ConfigError, match=r"task_spec is for 'masked', and Bigram is a 'lm' model"):
        create_export_bundle(zoo.Bigram(), zoo.CONFIG, TaskSpec.named("masked"), settings, tmp_path / "exports")


def test_a_run_is_not_exported_beside_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run_name='\.\.' names no folder inside"):
        create_export_bundle(
            zoo.Bigram(),
            zoo.CONFIG,
            training_config={"run_name": ".."},
            export_base_dir=tmp_path / "new",
            formats="table",
        )
    assert not list(tmp_path.iterdir())


def test_a_card_that_cannot_be_written_takes_no_format_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object, **named: object) -> None:
        raise ExportError("for a reason")

    monkeypatch.setattr("utils.export.bundle.write_model_card", refused)
    bundle = utils.export(zoo.Bigram(), ("table",), tmp_path, config=zoo.CONFIG)
    assert bundle.refused == {"card": "for a reason"} == bundle.manifest["refused"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "model.npy"]


@pytest.mark.parametrize("content", ['{"name": "my page"}', "no json"])
def test_a_foreign_manifest_is_not_overwritten(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ConfigError, match="written by something else"):
        utils.export(zoo.Bigram(), ("table",), tmp_path, config=zoo.CONFIG)
    assert (tmp_path / "manifest.json").read_text() == content


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ("_manifest", [*CARD, "manifest.json", "model.npy"]),  # nothing was touched yet
        ("publish", [*CARD, "model.npy"]),
        ("sync_folder", [*CARD, "model.npy"]),
    ],
)
def test_a_killed_export_is_never_listed_as_good(
    where: str, left: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utils.export(zoo.Bigram(), ("table",), tmp_path, config=zoo.CONFIG)

    def killed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"utils.export.bundle.{where}", killed)
        with pytest.raises(KeyboardInterrupt):
            utils.export(zoo.Bigram(), ("table",), tmp_path, config=zoo.CONFIG)
    assert sorted(file.name for file in tmp_path.iterdir()) == left
    assert utils.export(zoo.Bigram(), ("table",), tmp_path, config=zoo.CONFIG).parity.passed


def test_weights_hash_follows_the_weights(tmp_path: Path) -> None:
    model = zoo.Bigram()
    first = utils.export(model, ("table",), tmp_path / "1", config=zoo.CONFIG).manifest["model"]["weights_sha256"]
    again = utils.export(model, ("table",), tmp_path / "2", config=zoo.CONFIG).manifest["model"]["weights_sha256"]
    with torch.no_grad():
        model.table.weight[0, 0] += 1e-3
    other = utils.export(model, ("table",), tmp_path / "3", config=zoo.CONFIG).manifest["model"]["weights_sha256"]
    assert first == again != other
