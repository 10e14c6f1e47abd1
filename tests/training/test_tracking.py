"""W&B offline, online and absent, without a question and without a wait; TensorBoard; keys that stay secret."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tests.training.wandb_files import ended, history, offline_runs, run_of
from utils.errors import ConfigError, MissingPackageError
from utils.training import tracking
from utils.training.tracking import Destination, TensorBoardSink, WandbMode, WandbSink, choose_mode

FAKE_KEY = "0123456789abcdef" * 2 + "01234567"  # of the right form, and nobody's
OFFLINE = WandbMode("offline", "test")
LIMIT = 100
"""Seconds after which a process counts as hanging; on a busy machine importing the client alone takes several."""

ALONE = """
import sys
from utils.training.metrics_tracker import MetricsTracker
assert not sys.stdin or not sys.stdin.isatty()
tracker = MetricsTracker(use_wandb=True, folder=sys.argv[1])
for epoch in range(3):
    tracker.log_epoch(epoch=epoch, train_metrics={"loss": 2.0 - epoch}, val_metrics={"loss": 2.1 - epoch},
                      learning_rate=1e-4, gradient_norm=0.9, epoch_duration=12.0)
tracker.finish()
print("done")
"""


def run_alone(folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """A process without terminal, standard input, key or home."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB") and k != "NETRC"}
    return subprocess.run(
        [sys.executable, "-c", ALONE, str(folder / "run")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        start_new_session=True,  # no controlling terminal, so nothing can be asked for there
        env={**clean, "HOME": str(folder), "PYTHONPATH": str(Path(__file__).parents[2]), **environ},
        check=False,
    )


def test_no_key_and_no_terminal_neither_asks_nor_hangs_and_the_offline_run_is_readable(tmp_path):
    done = run_alone(tmp_path)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr
    assert "login" not in done.stderr.lower() and "api key" not in done.stderr.lower()
    [file] = offline_runs(tmp_path / "run")
    rows = history(file)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[1]["train/loss"] == 1.0 and rows[1]["val/loss"] == 1.1 and rows[1]["learning_rate"] == 1e-4
    assert ended(file) == 0


@pytest.mark.slow  # waits for a network that is not there
def test_a_key_without_a_network_is_given_up_after_seconds_and_is_written_nowhere(tmp_path):
    begun = time.monotonic()
    done = run_alone(tmp_path, WANDB_API_KEY=FAKE_KEY, WANDB_BASE_URL="http://127.0.0.1:9")  # nobody listens there
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr
    assert time.monotonic() - begun < LIMIT / 2
    [file] = offline_runs(tmp_path / "run")
    assert len(history(file)) == 3
    assert FAKE_KEY not in done.stderr
    leaked = [p for p in tmp_path.rglob("*") if p.is_file() and FAKE_KEY.encode() in p.read_bytes()]
    assert not leaked


@pytest.mark.parametrize(
    ("environ", "secret", "mode", "word"),
    [
        ({}, None, "offline", "no key"),
        ({"WANDB_API_KEY": FAKE_KEY}, None, "online", "environment"),
        ({"WANDB_API_KEY": "  "}, None, "offline", "no key"),
        ({}, FAKE_KEY, "online", "Colab secret"),
        ({"WANDB_API_KEY": FAKE_KEY, "WANDB_MODE": "offline"}, None, "offline", "WANDB_MODE"),
        ({"WANDB_API_KEY": FAKE_KEY, "WANDB_MODE": "dryrun"}, FAKE_KEY, "offline", "WANDB_MODE"),
        ({"WANDB_API_KEY": FAKE_KEY, "WANDB_DISABLED": "true"}, None, "disabled", "WANDB_DISABLED"),
        ({"WANDB_MODE": "online"}, None, "offline", "no key"),  # online without a key would ask for one
    ],
)
def test_the_mode_follows_key_and_environment(tmp_path, environ, secret, mode, word):
    found = choose_mode({"NETRC": str(tmp_path / "none"), **environ}, lambda name: secret)
    assert (found.mode, word in found.reason) == (mode, True)
    assert FAKE_KEY not in repr(found)


def test_an_earlier_login_counts_as_a_key(tmp_path):
    (tmp_path / "n").write_text(f"machine api.wandb.ai\n  login user\n  password {FAKE_KEY}\n", "utf-8")
    found = choose_mode({"NETRC": str(tmp_path / "n")}, lambda name: None)
    assert (found.mode, found.key) == ("online", FAKE_KEY)
    other = {"NETRC": str(tmp_path / "n"), "WANDB_BASE_URL": "https://wandb.example.org"}
    assert choose_mode(other, lambda name: None).mode == "offline"


class _Server(BaseHTTPRequestHandler):
    """Answers with the status and body that the test wants."""

    status, body = 200, b"{}"
    seen: ClassVar[list[str]] = []

    def do_POST(self):
        _Server.seen.append(self.headers.get("Authorization", ""))
        self.send_response(self.status)
        self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        (200, b'{"data": {"viewer": {"id": "x"}}}', None),
        (200, b'{"data": {"viewer": null}}', "does not know the key"),
        (200, b"[1]", "cannot be reached"),
        (401, b"", "does not know the key"),
        (500, b"", "answers 500"),
        (302, b"", "answers 302"),  # the key is not carried to another host
    ],
)
def test_the_server_is_asked_once_whether_it_takes_the_key(monkeypatch, status, body, word):
    monkeypatch.setattr(_Server, "status", status)
    monkeypatch.setattr(_Server, "body", body)
    monkeypatch.setattr(_Server, "seen", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        found = tracking.refusal_of(f"http://127.0.0.1:{server.server_port}", FAKE_KEY)
    finally:
        server.shutdown()
        server.server_close()
    assert (found is None) if word is None else (word in found and FAKE_KEY not in found)
    assert len(_Server.seen) == 1


def test_a_server_that_says_nothing_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        found = tracking.refusal_of(f"http://127.0.0.1:{silent.getsockname()[1]}", FAKE_KEY, seconds=0.3)
    assert found is not None and time.monotonic() - begun < 5


@pytest.mark.parametrize("error", [KeyError("x"), TimeoutError("front end"), RuntimeError("not granted")])
def test_a_secret_that_colab_does_not_give_is_none(monkeypatch, error):
    def get(name):
        raise error

    colab = types.ModuleType("google.colab")
    colab.userdata = types.SimpleNamespace(get=get)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    assert tracking.colab_secret("WANDB_API_KEY") is None
    colab.userdata = types.SimpleNamespace(get=lambda name: FAKE_KEY)  # type: ignore[attr-defined]
    assert tracking.colab_secret("WANDB_API_KEY") == FAKE_KEY


def test_two_runs_after_each_other_stay_apart_and_a_run_of_the_person_is_left_alone(tmp_path):
    import wandb

    own = wandb.init(mode="offline", dir=str(tmp_path / "own"), settings=wandb.Settings(silent=True, console="off"))
    try:
        for number in (1, 2):
            sink = WandbSink(tmp_path / f"{number}", "p", f"run{number}", f"name {number}", mode=OFFLINE)
            sink.log([{"step": number, "train/loss": float(number)}])
            sink.finish()
            sink.finish()
            sink.log([{"step": 9, "train/loss": 9.0}])  # after the end: nothing
        assert wandb.run is own
    finally:
        own.finish()
    for number in (1, 2):
        [file] = offline_runs(tmp_path / f"{number}")
        assert history(file) == [{"step": number, "train/loss": float(number)}]
        assert (run_of(file).run_id, run_of(file).display_name) == (f"run{number}", f"name {number}")


def test_a_run_that_ended_badly_says_so(tmp_path):
    sink = WandbSink(tmp_path, "p", "id", mode=OFFLINE)
    sink.log([{"step": 1, "train/loss": 1.0}])
    sink.finish(succeeded=False)
    assert ended(offline_runs(tmp_path)[0]) == 1


def test_disabled_writes_nothing(tmp_path):
    sink = WandbSink(tmp_path / "x", "p", "id", mode=WandbMode("disabled", "test"))
    sink.log([{"step": 1, "train/loss": 1.0}])
    sink.finish()
    assert not (tmp_path / "x").exists()


def test_a_client_that_fails_is_one_warning(tmp_path, caplog):
    sink = WandbSink(tmp_path, "p", "id", mode=OFFLINE)

    class Broken:
        dir = str(tmp_path)

        def log(self, row):
            raise ConnectionResetError("service is gone")

        def finish(self, exit_code):
            pass

    real, sink._run = sink._run, Broken()
    with caplog.at_level(logging.WARNING):
        for step in range(5):
            sink.log([{"step": step, "train/loss": 1.0}])
    real.finish()
    warnings = [record.getMessage() for record in caplog.records if record.name == tracking.__name__]
    assert len(warnings) == 1 and "takes no more (ConnectionResetError: service is gone)" in warnings[0]


def test_tensorboard_is_readable_and_a_resumed_run_writes_its_steps_anew(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoardSink(tmp_path)
    first.log([{"step": step, "train/loss": 10.0 + step} for step in range(1, 6)])  # killed after step 5, saved at 3
    second = TensorBoardSink(tmp_path, first_step=4)
    second.log([{"step": step, "train/loss": 20.0 + step} for step in range(4, 7)])
    second.finish()
    first.finish()
    events = EventAccumulator(str(tmp_path)).Reload()
    shown = {event.step: event.value for event in events.Scalars("train/loss")}
    assert shown == {1: 11, 2: 12, 3: 13, 4: 24, 5: 25, 6: 26}


@pytest.mark.parametrize("project", ["", "a/b", "x" * 129, "50%"])
def test_a_project_that_the_server_would_refuse_is_refused_at_the_start(tmp_path, project):
    with pytest.raises(ConfigError, match="wandb_project"):
        Destination(tmp_path, "id", project).check()


@pytest.mark.parametrize(("package", "settings"), [("wandb", {"project": "p"}), ("tensorboard", {"tensorboard": True})])
def test_a_missing_package_is_named_before_training(monkeypatch, tmp_path, package, settings):
    monkeypatch.setattr("utils._extras.is_installed", lambda name: name != package)
    with pytest.raises(MissingPackageError, match=package):
        Destination(tmp_path, "id", **settings).check()
