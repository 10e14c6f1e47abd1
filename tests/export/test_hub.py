"""Sending an export to the Hub: the real client against a server on a loopback port."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.export.hub_server import TOKEN, ModelHub
from tests.export.servers import served
from utils.__main__ import main
from utils._files import list_files, write_json
from utils.errors import ConfigError, HubError
from utils.export.hub import push_to_hub

FILES = {
    "README.md": "---\nlicense: mit\n---\n# A model\n",
    "architecture.svg": "<svg/>",
    "model.onnx": "graph",
    "model.safetensors": "weights of the bundle",
    "tokenizer_config.json": "{}",
    "hf/config.json": "{}",
    "hf/model.safetensors": "weights",
    "hf/tokenizer_config.json": '{"padding_side": "left"}',
    "hf/README.md": "---\nlicense: mit\n---\nOf the folder\n",
    ".cache/secret.txt": "hidden",
    "checkpoints/last.ckpt": "not of the export",
}
SENT = [
    "README.md",
    "bundle/README.md",
    "bundle/architecture.svg",
    "bundle/manifest.json",
    "bundle/model.onnx",
    "bundle/model.safetensors",
    "bundle/tokenizer_config.json",
    "config.json",
    "model.safetensors",
    "tokenizer_config.json",
]


LISTED = sorted(set(FILES) - {"README.md", "architecture.svg", "checkpoints/last.ckpt", ".cache/secret.txt"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export with files beside it that nobody listed."""
    root = tmp_path / "run"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    listed = [entry for entry in list_files(root) if entry["name"] in LISTED]
    formats = {"onnx": {"file": "model.onnx"}, "hf": {"file": "hf"}}
    write_json(root / "manifest.json", {"kind": "transformer-builder-export", "formats": formats, "files": listed})
    return root


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModelHub]:
    """A hub that knows one token; the client finds no other in this process."""
    import huggingface_hub

    made = ModelHub()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with served(made.handler()) as made.url:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.url)
        yield made
    huggingface_hub.close_session()


def test_an_export_arrives_whole_and_private(folder: Path, hub: ModelHub) -> None:
    seen: list[tuple[int, int | None, str]] = []
    push = push_to_hub(folder, "me/model", token=TOKEN, progress=lambda *step: seen.append(step))
    repository = hub.repositories["me/model"]
    assert repository["private"] is True
    arrived = repository["branches"]["main"]
    assert sorted(arrived) == SENT
    assert {name: arrived[name].decode() for name in ("config.json", "model.safetensors", "tokenizer_config.json")} == {
        name: FILES[f"hf/{name}"] for name in ("config.json", "model.safetensors", "tokenizer_config.json")
    }
    card = arrived["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n---\nOf the folder\n\n## The other files") and "`bundle/`" in card
    assert push.url == f"{hub.url}/me/model/commit/abc" and push.private and not push.dry_run
    assert seen[0][0] == 0 and seen[-1][0] == push.total_bytes == seen[-1][1]
    assert sum("commit/main" in request for request in hub.requests) == 1, "one commit"


def test_the_rest_of_a_bundle_arrives_as_a_bundle(folder: Path, hub: ModelHub, tmp_path: Path) -> None:
    """Under names that the folder for transformers has too, and with a manifest that holds where they arrive."""
    push_to_hub(folder, "me/model", token=TOKEN)
    arrived = hub.repositories["me/model"]["branches"]["main"]
    below = {name.removeprefix("bundle/"): raw for name, raw in arrived.items() if name.startswith("bundle/")}
    manifest = json.loads(below.pop("manifest.json"))
    assert [entry["name"] for entry in manifest["files"]] == [name for name in LISTED if not name.startswith("hf/")]
    assert list(manifest["formats"]) == ["onnx"]
    for entry in manifest["files"]:
        assert hashlib.sha256(below[entry["name"]]).hexdigest() == entry["sha256"]
    assert set(below) - {entry["name"] for entry in manifest["files"]} == {"README.md", "architecture.svg"}
    assert below["model.safetensors"] == b"weights of the bundle"


def test_a_bundle_without_a_folder_for_transformers_arrives_as_it_is(tmp_path: Path, hub: ModelHub) -> None:
    for name in ("model.onnx", "selftest.py"):
        (tmp_path / name).write_text(name)
    write_json(tmp_path / "manifest.json", {"files": list_files(tmp_path)})
    push_to_hub(tmp_path, "me/model", token=TOKEN)
    arrived = hub.repositories["me/model"]["branches"]["main"]
    assert arrived == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


def test_a_dry_run_asks_nobody(folder: Path, hub: ModelHub) -> None:
    push = push_to_hub(folder, "me/model", dry_run=True)
    assert hub.requests == [] and push.dry_run and push.url == ""
    assert [upload.name for upload in push.uploads] == SENT
    assert "Would send 10 files" in push.summary() and "private repository me/model, branch main" in push.title
    assert "<td>model.safetensors</td>" in push._repr_html_()


def test_a_folder_of_transformers_goes_alone(tmp_path: Path, hub: ModelHub) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    write_json(tmp_path / "hf" / "export.json", {"files": list_files(tmp_path / "hf")})
    push_to_hub(tmp_path / "hf", "org/model", private=False, token=TOKEN, revision="v2")
    assert hub.repositories["org/model"]["private"] is False
    assert sorted(hub.repositories["org/model"]["branches"]["v2"]) == ["config.json", "export.json"]


def test_a_public_repository_gets_nothing_private(folder: Path, hub: ModelHub) -> None:
    hub.add("me/model", private=False)
    with pytest.raises(HubError, match="is public, and private=True was asked for"):
        push_to_hub(folder, "me/model", token=TOKEN)
    assert hub.repositories["me/model"]["branches"]["main"] == {}


def _colab(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    userdata = types.ModuleType("google.colab.userdata")
    userdata.get = lambda name: value if name == "HF_TOKEN" else None  # type: ignore[attr-defined]
    colab = types.ModuleType("google.colab")
    colab.userdata = userdata  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setitem(sys.modules, "google.colab.userdata", userdata)


def _environment(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HF_TOKEN", value)


def _login(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    import huggingface_hub

    Path(huggingface_hub.constants.HF_TOKEN_PATH).write_text(value)


@pytest.mark.parametrize("places", [(_colab, _environment, _login), (_environment, _login), (_login,)])
def test_tokens_are_found_in_their_order(
    folder: Path, hub: ModelHub, monkeypatch: pytest.MonkeyPatch, places: Any
) -> None:
    places[0](monkeypatch, TOKEN)
    for place in places[1:]:
        place(monkeypatch, "hf_wrong")
    push_to_hub(folder, "me/model")
    assert "me/model" in hub.repositories


def test_without_a_token_nobody_is_asked(folder: Path, hub: ModelHub) -> None:
    with pytest.raises(HubError, match="There is no token for the Hugging Face Hub"):
        push_to_hub(folder, "me/model")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("where", "status", "headers", "words", "kind"),
    [
        ("repos/create", 401, {}, "does not accept the token", "refused"),
        ("repos/create", 403, {}, "may not write to me/model", "refused"),
        ("commit/main", 404, {"X-Error-Code": "RevisionNotFound"}, "no me/model that this token can see", "missing"),
        ("commit/main", 409, {}, "changed by somebody else", "refused"),
        ("commit/main", 429, {"Retry-After": "7"}, "asks to wait 7 s", "refused"),
        ("repos/create", 418, {}, "status 418: a teapot …", "refused"),
        ("blobs/", 403, {}, "may not write", "refused"),
    ],
)
def test_refusals_are_explained(
    folder: Path,
    hub: ModelHub,
    caplog: pytest.LogCaptureFixture,
    where: str,
    status: int,
    headers: dict[str, str],
    words: str,
    kind: str,
) -> None:
    hub.faults[where] = (status, headers, f"a teapot {TOKEN}")
    with caplog.at_level(logging.DEBUG), pytest.raises(HubError) as caught:
        push_to_hub(folder, "me/model", token=TOKEN)
    assert words in str(caught.value) and caught.value.kind == kind
    assert TOKEN not in str(caught.value)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("utils")]
    assert not any(TOKEN in message for message in ours)


def test_a_wrong_token_is_refused(folder: Path, hub: ModelHub) -> None:
    with pytest.raises(HubError, match="does not accept the token"):
        push_to_hub(folder, "me/model", token="hf_wrong")


def test_nobody_answers(folder: Path, hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="cannot be reached") as caught:
        push_to_hub(folder, "me/model", token=TOKEN)
    assert caught.value.kind == "unreachable"


def test_offline_is_said(folder: Path, hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    huggingface_hub.close_session()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set") as caught:
        push_to_hub(folder, "me/model", token=TOKEN)
    assert caught.value.kind == "offline"


def _changed(root: Path) -> None:
    (root / "model.onnx").write_text("another")


def _lost(root: Path) -> None:
    (root / "model.onnx").unlink()


def _outside(root: Path) -> None:
    _listing(root, "../elsewhere.txt")


def _hidden(root: Path) -> None:
    _listing(root, ".cache/secret.txt")


def _linked(root: Path) -> None:
    (root.parent / "private.txt").write_text("x")
    (root / "link.txt").symlink_to(root.parent / "private.txt")
    _listing(root, "link.txt")


def _listing(root: Path, name: str) -> None:
    content = json.loads((root / "manifest.json").read_text())
    content["files"].append({"name": name, "sha256": "0" * 64})
    write_json(root / "manifest.json", content)


def _no_manifest(root: Path) -> None:
    (root / "manifest.json").unlink()


def _torn(root: Path) -> None:
    (root / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_changed, "has been changed since it was exported"),
        (_lost, "is not there"),
        (_outside, "lies outside of the folder"),
        (_hidden, "which is hidden"),
        (_linked, "lies outside of the folder"),
        (_no_manifest, "is no exported folder"),
        (_torn, "is no manifest of an export"),
    ],
)
def test_what_is_no_proven_export_is_not_sent(folder: Path, damage: Any, words: str) -> None:
    damage(folder)
    with pytest.raises(ConfigError, match=words):
        push_to_hub(folder, "me/model", dry_run=True)


@pytest.mark.parametrize("secret", [TOKEN, "ghp_" + "a1" * 12])
def test_a_file_with_a_key_stays_here(folder: Path, hub: ModelHub, secret: str) -> None:
    (folder / "README.md").write_text(f"token: {secret}")
    with pytest.raises(ConfigError, match="seems to hold") as caught:
        push_to_hub(folder, "me/model", token=TOKEN)
    assert secret not in str(caught.value) and hub.requests == []
    with pytest.raises(ConfigError, match="seems to hold"):  # a dry run tells what would happen
        push_to_hub(folder, "me/model", token=TOKEN, dry_run=True)


@pytest.mark.parametrize("name", ["", "a b", "a/b/c", "../x"])
def test_names_of_repositories(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no name of a repository"):
        push_to_hub(folder, name, dry_run=True)


def test_the_command(
    folder: Path, hub: ModelHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", str(folder), "me/model", "--dry-run"]) == 0
    assert "Would send 10 files" in capsys.readouterr().out and hub.requests == []
    assert main(["push", str(folder), "me/model", "--public", "--message", "First"]) == 0
    printed = capsys.readouterr()
    assert "PUBLIC repository me/model" in printed.out and TOKEN not in printed.out + printed.err
    assert main(["push", str(folder / "nowhere"), "me/model"]) == 2
