"""The room and its verb share one name, whichever was imported first."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import utils
from utils.errors import ConfigError

ORDERS = {
    "attribute": "import utils; verb = utils.export",
    "module": "import utils.export; verb = utils.export",
    "from": "from utils import export as verb",
    "file first": "from utils.export.onnx import ONNXExporter; import utils; verb = utils.export",
    "all": "from utils import export as verb; from utils.export import ONNXExporter, Bundle; import utils.export.onnx; verb = utils.export",
}


def python(code: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(utils.__file__).parents[1]
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("order", ORDERS)
def test_callable_whichever_import_came_first(order: str) -> None:
    python(
        f"{ORDERS[order]}\nimport utils\nassert callable(verb) and verb is utils.export and verb.__name__ == 'utils.export'"
    )


def test_calling_the_room_exports() -> None:
    with pytest.raises(ConfigError, match="did you mean 'onnx'"):
        utils.export(None, formats=("onx",))


def test_the_room_needs_no_torch() -> None:
    python(
        "import sys, utils.export; assert callable(utils.export); assert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules)"
    )


def test_room_and_verb_take_the_same_arguments() -> None:
    from utils.export import bundle

    assert list(inspect.signature(utils.export).parameters.values()) == list(
        inspect.signature(bundle.export).parameters.values()
    )


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="it offers Artifact, Bundle, ONNXExporter, ParityReport"):
        utils.export.nothing  # noqa: B018
