"""Folders as export leaves them, around ONNX files of a few nodes, with the same sums in numpy as the model behind them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.training.tiny import TEXT
from utils._files import sha256_of, write_json
from utils.export.runtime_files import write_runtime
from utils.export.signature import DECODER_IDS, IDS, MASK, PIXELS, Signature
from utils.tokenization.bpe_trainer import FastBPETrainer

V, LIMIT, CLASSES, IMAGE = 304, 24, 3, (1, 4, 4)
NAMES = ("praise", "blame", "report")


@dataclass(frozen=True)
class Small:
    """One kind of model.

    Attributes:
        signature: what its file takes.
        nodes: the file's graph: (operator, inputs, outputs, attributes).
        tables: name → weights.
        answer: the same in numpy.
        class_names: of its classes.
    """

    signature: Signature
    nodes: list[tuple[str, list[str], list[str], dict[str, Any]]]
    tables: dict[str, np.ndarray]
    answer: Callable[[dict[str, np.ndarray]], np.ndarray]
    class_names: tuple[str, ...] = ()


def _table(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


def lm() -> Small:
    """Every earlier token moves the scores."""
    now, past = _table(1, V, V), _table(2, V, V) / 4
    nodes = [
        ("Gather", ["now", IDS], ["a"], {}),
        ("Gather", ["past", IDS], ["b"], {}),
        ("CumSum", ["b", "axis"], ["c"], {}),
        ("Add", ["a", "c"], ["logits"], {}),
    ]
    return Small(
        Signature("lm", (IDS,), V, V, LIMIT),
        nodes,
        {"now": now, "past": past, "axis": np.array(1)},
        lambda feeds: now[feeds[IDS]] + past[feeds[IDS]].cumsum(1),
    )


def masked() -> Small:
    """Takes a mask: padding counts for nothing."""
    own, around = _table(3, V, V), _table(4, V, V)
    nodes = [
        ("Gather", ["own", IDS], ["a"], {}),
        ("Gather", ["around", IDS], ["b"], {}),
        ("Cast", [MASK], ["m"], {"to": TensorProto.FLOAT}),
        ("Unsqueeze", ["m", "last"], ["w"], {}),
        ("Mul", ["b", "w"], ["c"], {}),
        ("ReduceMean", ["c"], ["d"], {"axes": [1], "keepdims": 1}),
        ("Add", ["a", "d"], ["logits"], {}),
    ]

    def answer(feeds: dict[str, np.ndarray]) -> np.ndarray:
        seen = around[feeds[IDS]] * feeds[MASK][..., None].astype(np.float32)
        return own[feeds[IDS]] + seen.mean(1, keepdims=True)

    sides = ("left", "right")
    return Small(
        Signature("masked", (IDS, MASK), V, V, LIMIT, masked_sides=sides),
        nodes,
        {"own": own, "around": around, "last": np.array([2])},
        answer,
    )


def seq2seq() -> Small:
    """The answer's scores depend on its own last token and on the source."""
    own, source = _table(5, V, V), _table(6, V, V)
    nodes = [
        ("Gather", ["own", DECODER_IDS], ["a"], {}),
        ("Gather", ["source", IDS], ["b"], {}),
        ("ReduceMean", ["b"], ["c"], {"axes": [1], "keepdims": 1}),
        ("Add", ["a", "c"], ["logits"], {}),
    ]
    return Small(
        Signature("seq2seq", (IDS, DECODER_IDS), V, V, LIMIT, start_id=2),
        nodes,
        {"own": own, "source": source},
        lambda feeds: own[feeds[DECODER_IDS]] + source[feeds[IDS]].mean(1, keepdims=True),
    )


def classification() -> Small:
    table = _table(7, V, CLASSES)
    nodes = [
        ("Gather", ["table", IDS], ["a"], {}),
        ("ReduceMean", ["a"], ["logits"], {"axes": [1], "keepdims": 0}),
    ]
    return Small(
        Signature("classification", (IDS,), CLASSES, V, LIMIT),
        nodes,
        {"table": table},
        lambda feeds: table[feeds[IDS]].mean(1),
        NAMES,
    )


def vision() -> Small:
    weight = _table(8, int(np.prod(IMAGE)), CLASSES)
    nodes = [("Flatten", [PIXELS], ["a"], {}), ("MatMul", ["a", "weight"], ["logits"], {})]
    return Small(
        Signature("vision", (PIXELS,), CLASSES, image_shape=IMAGE),
        nodes,
        {"weight": weight},
        lambda feeds: feeds[PIXELS].reshape(len(feeds[PIXELS]), -1) @ weight,
    )


KINDS = {"lm": lm, "masked": masked, "seq2seq": seq2seq, "classification": classification, "vision": vision}


def tokenizer() -> Any:
    return FastBPETrainer.train_on_dataset([TEXT], 300, progress=False)


def write_model(small: Small, path: Path) -> None:
    """The ONNX file."""
    known = small.signature
    sizes: dict[str, list[Any]] = {PIXELS: ["batch", *IMAGE], DECODER_IDS: ["batch", "decoder_length"]}
    inputs = [
        helper.make_tensor_value_info(
            name, TensorProto.FLOAT if name == PIXELS else TensorProto.INT64, sizes.get(name, ["batch", "length"])
        )
        for name in known.inputs
    ]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    nodes = [helper.make_node(kind, given, made, **attributes) for kind, given, made, attributes in small.nodes]
    tables = [numpy_helper.from_array(value, name) for name, value in small.tables.items()]
    graph = helper.make_graph(nodes, "small", inputs, [logits], tables)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


def write_manifest(folder: Path) -> None:
    """List everything that lies there, as export does."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file() and file.name != "manifest.json")
    write_json(folder / "manifest.json", {"files": [{"name": n, "sha256": sha256_of(folder / n)} for n in names]})


def write_bundle(kind: str, folder: Path, **options: Any) -> list[Path]:
    """A whole folder of one kind; returns what `write_runtime` wrote."""
    small = KINDS[kind]()
    folder.mkdir(parents=True, exist_ok=True)
    write_model(small, folder / "model.onnx")
    words = tokenizer() if small.signature.takes_tokens else None
    facts, options = {"model_name": f"Small {kind}"}, {"prompts": ["The ", "green bottles"], **options}
    written = write_runtime(
        folder, small.signature, words, small.answer, facts, class_names=small.class_names, **options
    )
    write_manifest(folder)
    return written


def golden_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "golden.json").read_text("utf-8"))
