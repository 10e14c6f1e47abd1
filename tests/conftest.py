"""What every test is kept from: the network, the user's cache, and traces of the test before it."""

from __future__ import annotations

import logging
import os
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one test per core: threads of several would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_DROPPED = ("GIST_ID", "GITHUB_TOKEN", "GITHUB_API_URL", "COLAB_NOTEBOOK_ID", "COLAB_RELEASE_TAG", "HF_TOKEN")
_LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0", "::")


@pytest.fixture(scope="session")
def _session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _guard(monkeypatch: pytest.MonkeyPatch, _session_cache: Path) -> Iterator[None]:
    """Environment, folder, seeds and replaced modules are as before after each test."""
    environment, folder, modules = dict(os.environ), Path.cwd(), dict(sys.modules)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRANSFORMER_BUILDER_CACHE", str(_session_cache))
    for name in _DROPPED:
        monkeypatch.delenv(name, raising=False)
    _seed()
    yield
    monkeypatch.undo()
    logging.disable(logging.NOTSET)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    _restore_modules(modules)


@pytest.fixture
def no_onnx_dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation tries `torch.export` only: ONNX takes ten times as long, and has tests of its own."""
    monkeypatch.setattr("utils.export.dry_run.LONGEST_CAPTURE", 0.0)


def _seed() -> None:
    """The same numbers for each test; libraries that nobody has imported stay out."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def _restore_modules(before: dict[str, object]) -> None:
    """Put back modules that a test replaced or removed, and drop stand-ins that have no spec."""
    for name, module in before.items():
        if sys.modules.get(name) is not module:
            sys.modules[name] = module  # type: ignore[assignment]
    for name in set(sys.modules) - set(before):
        if getattr(sys.modules[name], "__spec__", None) is None:
            del sys.modules[name]


class NetworkBlockedError(RuntimeError):
    """A test tried to leave this machine."""


def _refuse_outside(address: object) -> None:
    host = address[0] if isinstance(address, tuple) else None
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if isinstance(host, str) and host and not host.startswith(_LOOPBACK):
        raise NetworkBlockedError(f"tests do not talk to {host}; use the loopback GistServer of utils.testing")


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Only loopback and Unix sockets connect."""
    patch = pytest.MonkeyPatch()
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: object) -> None:
        _refuse_outside(address)
        connect(self, address)  # type: ignore[arg-type]

    def guarded_connect_ex(self: socket.socket, address: object) -> int:
        _refuse_outside(address)
        return connect_ex(self, address)  # type: ignore[arg-type]

    def guarded_getaddrinfo(host: object, *args: object, **kwargs: object) -> object:
        _refuse_outside((host,))
        return getaddrinfo(host, *args, **kwargs)  # type: ignore[arg-type]

    patch.setattr(socket.socket, "connect", guarded_connect)
    patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
    yield
    patch.undo()
