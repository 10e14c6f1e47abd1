"""First on the kernel's PYTHONPATH: no socket leaves this machine, every started command is written down, and packages that
a runtime does not have are not found (`BLOCKED_PACKAGES`, with commas between).

A green run therefore proves that the notebook works offline, and the record shows whether it called pip.
"""

from __future__ import annotations

import os
import socket
import sys
from importlib.machinery import PathFinder
from typing import Any

RECORD = os.environ.get("RECORD_COMMANDS", "")


def is_local(host: Any) -> bool:
    """Whether `host` names this machine."""
    text = host.decode() if isinstance(host, bytes) else str(host or "")
    return text in ("", "localhost", "::1", "0.0.0.0", "::") or text.startswith("127.")


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: refuse outside addresses, note commands."""
    if event == "socket.getaddrinfo" and not is_local(arguments[0]):
        raise socket.gaierror(f"this test allows no network: {arguments[0]}")
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and not is_local(address[0]):
            raise OSError(f"this test allows no network: {address}")
    if RECORD and event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        with open(RECORD, "a", encoding="utf-8") as file:
            file.write(f"{event} {arguments[:2]!r}\n")


sys.addaudithook(watch)


BLOCKED = {name for name in os.environ.get("BLOCKED_PACKAGES", "").split(",") if name}
find_installed = PathFinder.find_spec


def find_allowed(name: str, path: Any = None, target: Any = None) -> Any:
    """What is installed, but for what this runtime is said to lack."""
    return None if name.split(".")[0] in BLOCKED else find_installed(name, path, target)


if BLOCKED:
    PathFinder.find_spec = staticmethod(find_allowed)  # type: ignore[method-assign]
