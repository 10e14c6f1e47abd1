"""Whose files are whose in a folder that is exported into again, and that two exports do not mix there."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from utils._files import list_files, write_json
from utils.errors import ExportError
from utils.export import export_folder
from utils.export.export_folder import KIND, make_room, publishing

EARLIER = {"model.onnx": "graph", "README.md": "card", "hf/config.json": "{}", "hf/deep/code.py": "1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An earlier export."""
    root = tmp_path / "run"
    write(root, EARLIER)
    write_json(root / "manifest.json", {"kind": KIND, "files": list_files(root)})
    return root


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("changes", "coming", "left"),
    [
        ({}, [], []),
        ({}, ["model.onnx"], ["model.onnx"]),  # stays until its successor comes
        ({"notes.txt": "mine"}, ["hf"], ["notes.txt"]),
        ({"notes.txt": "mine"}, ["notes.txt"], ["notes.txt.previous"]),
        ({"README.md": "by hand"}, [], ["README.md.previous"]),
        ({"README.md": "by hand", "README.md.previous": "x"}, ["README.md"], ["README.md.previous", "README.md.previous-2"]),
        ({"hf/notes.txt": "mine"}, ["hf"], [f"hf.previous/{name}" for name in ("config.json", "deep/code.py", "notes.txt")]),
        ({"hf/deep/code.py": "2"}, [], ["hf.previous/config.json", "hf.previous/deep/code.py"]),
    ],
)  # fmt: skip
def test_only_what_an_export_wrote_is_removed(
    changes: dict[str, str], coming: list[str], left: list[str], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder, changes)
    make_room(folder, coming)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == left
    assert ("it is kept as" in caplog.text) == any(".previous" in name for name in set(left) - set(changes))


@pytest.mark.parametrize("name", ["../outside.txt", "../run/model.onnx", "/{root}/outside.txt", "", "link/outside.txt"])
def test_a_manifest_speaks_for_its_folder_only(name: str, folder: Path) -> None:
    outside = folder.parent / "outside.txt"
    outside.write_text("x")
    (folder / "link").symlink_to(folder.parent)
    (entry,) = [one for one in list_files(folder.parent) if one["name"] == "outside.txt"]
    entry["name"] = name.format(root=folder.parent)
    write_json(folder / "manifest.json", {"kind": KIND, "files": [entry]})
    make_room(folder, [])
    assert outside.read_text() == "x" and (folder / "model.onnx").read_text() == "graph"


def test_one_at_a_time(tmp_path: Path) -> None:
    with publishing(tmp_path):
        for _ in range(2):  # the first refusal lets nobody in either
            with pytest.raises(ExportError, match=r"Another export .* choose another out="), publishing(tmp_path):
                raise AssertionError("both may")
    assert not list(tmp_path.iterdir())
    with publishing(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".publishing.lock"]


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(file: object) -> None:
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr(export_folder, "lock_file", unknown)
    with publishing(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
