from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from utils.errors import TokenizerError
from utils.tokenization.bpe_trainer import FastBPETrainer
from utils.tokenization.tokenizer_files import (
    MANIFEST,
    is_complete,
    load_saved,
    read_backend,
    save_tokenizer,
    wrap,
    wrap_folder,
)
from utils.tokenization.validator import TORTURE_TEXT

TEXTS = ["the quick brown fox jumps over the lazy dog. " * 20]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tokenizer():
    return FastBPETrainer.train_on_dataset(TEXTS, 290, progress=False)


def test_what_is_saved_comes_back_equal(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "t")
    back = load_saved(tmp_path / "t")
    assert back.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert back("</s> text")["input_ids"] == tokenizer("</s> text")["input_ids"]
    assert back.special_tokens_map == tokenizer.special_tokens_map
    assert [path.name for path in tmp_path.iterdir()] == ["t"]  # and no temporary folder


def test_a_finished_folder_is_left_as_it_is(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "t")
    before = (tmp_path / "t" / MANIFEST).stat().st_mtime_ns
    save_tokenizer(tokenizer, tmp_path / "t")
    assert (tmp_path / "t" / MANIFEST).stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["no manifest", "flipped byte", "cut", "further file", "no tokenizer"])
def test_a_damaged_folder_is_not_read_but_replaced(tokenizer, tmp_path, damage):
    folder = save_tokenizer(tokenizer, tmp_path / "t")
    file = folder / "tokenizer.json"
    if damage == "no manifest":
        (folder / MANIFEST).unlink()
    elif damage == "flipped byte":
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage == "further file":
        (folder / "special_tokens_map.json").write_text('{"eos_token": "a"}')
    else:
        file.unlink()
    assert not is_complete(folder)
    assert load_saved(folder) is None
    save_tokenizer(tokenizer, folder)
    assert load_saved(folder)(TORTURE_TEXT)["input_ids"] == tokenizer(TORTURE_TEXT)["input_ids"]


def test_a_foreign_file_in_the_way_is_named(tokenizer, tmp_path):
    (tmp_path / "t").write_text("in the way")
    with pytest.raises((TokenizerError, OSError)):
        save_tokenizer(tokenizer, tmp_path / "t")
    assert (tmp_path / "t").read_text() == "in the way"


def test_truncation_and_padding_in_the_file_have_no_effect(tokenizer, tmp_path):
    backend = read_backend(save_tokenizer(tokenizer, tmp_path / "t") / "tokenizer.json")
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    again = wrap_folder(tmp_path)
    text = TEXTS[0]
    assert len(again.backend_tokenizer.encode(text).ids) > 50  # before any call, which would switch both off
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_wrapping_adds_no_ids(tokenizer):
    wrapped = wrap(
        tokenizer.backend_tokenizer,
        {"eos_token": {"content": "</s>"}, "pad_token": "[PAD]", "mask_token": 7, "additional_special_tokens": ["<x>"]},
    )
    assert len(wrapped) == len(tokenizer)
    assert (wrapped.eos_token, wrapped.pad_token, wrapped.mask_token) == ("</s>", None, None)


def test_a_folder_cannot_name_a_class_or_code(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "t")
    config = json.loads((tmp_path / "t" / "tokenizer_config.json").read_text())
    (tmp_path / "t" / "evil.py").write_text("raise SystemExit('ran')")
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps(config))
    assert type(wrap_folder(tmp_path / "t")) is type(tokenizer)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "tokenizer.json cannot be read as a tokenizer"),
        ("tokenizer.json", "[]", "cannot be read as a tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json cannot be read as JSON"),
        ("tokenizer_config.json", "[]", "holds a list; a JSON object is expected"),
        ("special_tokens_map.json", "[" * 100_000, "special_tokens_map.json cannot be read as JSON"),
    ],
)
def test_broken_files_are_named(tokenizer, tmp_path, name, content, message):
    folder = save_tokenizer(tokenizer, tmp_path / "t")
    (folder / name).write_text(content)
    with pytest.raises(TokenizerError, match=message):
        wrap_folder(folder)


SCRIPT = textwrap.dedent(
    """
    import sys
    from utils.tokenization.bpe_trainer import FastBPETrainer
    texts = ["the quick brown fox jumps over the lazy dog. " * 20]
    print("begun", flush=True)
    for _ in range(int(sys.argv[2])):
        tokenizer = FastBPETrainer.train_on_dataset(texts, 290, cache_dir=sys.argv[1], progress=False)
    print(tokenizer("quick lazy")["input_ids"])
    """
)


def start(folder, times=1):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(times)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_two_processes_share_a_cache(tmp_path):
    runs = [start(tmp_path) for _ in range(2)]
    said = [run.communicate(timeout=60)[0].splitlines()[-1] for run in runs]
    assert all(run.returncode == 0 for run in runs)
    assert said[0] == said[1]
    (only,) = tmp_path.iterdir()
    assert is_complete(only)


def test_a_process_killed_while_writing_leaves_nothing_that_is_read(tokenizer, tmp_path, monkeypatch):
    """The rename is the only moment that counts: whatever was written before it is invisible."""
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # a killed process cleans nothing up
    with pytest.raises(KeyboardInterrupt):
        save_tokenizer(tokenizer, tmp_path / "t")
    monkeypatch.undo()
    assert load_saved(tmp_path / "t") is None
    assert load_saved(save_tokenizer(tokenizer, tmp_path / "t")) is not None


@pytest.mark.slow  # each process imports the tokenizer libraries anew
def test_kill_9_at_any_moment_leaves_a_whole_tokenizer_or_none(tmp_path):
    for number in range(6):
        run = start(tmp_path / str(number), times=1)
        assert run.stdout is not None and run.stdout.readline()
        time.sleep(2 + number * 0.05)  # importing the libraries takes most of this
        run.kill()
        run.wait(timeout=60)
    for folder in tmp_path.glob("*/bpe-*"):
        assert is_complete(folder)
    again = start(tmp_path / "0")
    assert again.communicate(timeout=60)[0].splitlines()[-1].startswith("[")
