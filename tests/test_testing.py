from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

import utils
from utils.testing import FakeClock


def test_the_fakes_need_no_torch():
    code = "import sys, utils.testing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(utils.__file__).parents[1], timeout=60).returncode == 0


def test_the_clock_moves_by_hand():
    clock = FakeClock(5.0)
    clock.sleep(2.5)
    assert (clock(), clock.sleeps) == (7.5, [2.5])


def test_the_guard_blocks_the_network():
    with pytest.raises(RuntimeError, match="use the loopback GistServer"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(RuntimeError, match=r"example\.com"):
        socket.getaddrinfo("example.com", 80)


@pytest.mark.parametrize("turn", [1, 2])
def test_the_guard_puts_modules_and_environment_back(turn, tmp_path):
    import json
    import os

    assert json.dumps({}) == "{}"
    assert "LEFT_BEHIND" not in os.environ
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    os.environ["LEFT_BEHIND"] = "1"
    os.chdir(tmp_path)
    sys.modules["json"] = type(sys)("json")
