"""Exports models to folders of transformers and has them examined in one fresh process without this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.zoo.entry import Batch, Entry
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.export.hf_folder import write_hf_folder
from utils.export.hf_runner import FACTS_FILE
from utils.export.signature import Signature

CHILD = Path(__file__).with_name("hf_child.py")
NEW_TOKENS = 5
"""Tokens that are generated; of models with a small limit as many as lead beyond it."""


def signature_of(adapted: AdaptedModel) -> Signature:
    """What the folder takes; limits do not matter here."""
    contract = adapted.contract
    names = ["input_ids"] if contract.takes_tokens else ["pixel_values"]
    names += ["attention_mask"] if contract.mask_name else []
    names += ["decoder_input_ids"] if contract.decoder_name else []
    return Signature(contract.task, tuple(names), contract.output_size, contract.vocab_size, contract.max_length)


def adapted_of(entry: Entry) -> AdaptedModel:
    """The entry's model, adapted, in float32 and eval mode."""
    return adapt(entry.build(), entry.config, entry.source, **entry.arguments).float().eval()


def export(adapted: AdaptedModel, batch: Batch, root: Path, name: str, tokenizer: Any = None) -> dict[str, Any]:
    """Write a folder and what the model gives for a batch; returns the job for the child."""
    folder = root / name / "model"
    write_hf_folder(adapted, signature_of(adapted), tokenizer, folder)
    np.savez(root / name / "arrays.npz", **_arrays(adapted, batch))
    auto_class = json.loads((folder / FACTS_FILE).read_text())["auto_class"]
    where = {"folder": str(folder), "arrays": str(root / name / "arrays.npz"), "copy": str(root / name / "copy")}
    return {"name": name, "auto_class": auto_class, **where}


def examine(jobs: list[dict[str, Any]], root: Path) -> dict[str, list[str]]:
    """Findings of the child, by name of the job."""
    (root / "jobs.json").write_text(json.dumps(jobs))
    environment = {**os.environ, "HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", str(CHILD), str(root / "jobs.json"), str(root / "answers.json")]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answers: dict[str, list[str]] = json.loads((root / "answers.json").read_text())
    return answers


def _arrays(adapted: AdaptedModel, batch: Batch) -> dict[str, np.ndarray]:
    given = {name: value for name, value in batch.items() if name != "labels"}
    if adapted.contract.mask_name is None:
        given.pop("attention_mask", None)
    arrays = {f"in_{name}": value.numpy() for name, value in given.items()}
    with torch.no_grad():
        arrays["logits"] = adapted(**given).logits.numpy()
        labels = batch.get("labels")
        if labels is not None and labels.shape == arrays["logits"].shape[:-1] and arrays["logits"].shape[-1] > 1:
            arrays["in_labels"], arrays["loss"] = labels.numpy(), adapted(**given, labels=labels).loss.numpy()
        if _continues(adapted):
            arrays.update(_greedy(adapted, batch["input_ids"][:2]))
    return arrays


def _continues(adapted: AdaptedModel) -> bool:
    contract = adapted.contract
    return (
        contract.task in ("lm", "seq2seq")
        and contract.scores_tokens
        and contract.multiple_of == 1
        and contract.min_length < 4
    )


def _greedy(adapted: AdaptedModel, prompt: torch.Tensor) -> dict[str, np.ndarray]:
    """The likeliest tokens, one at a time."""
    limit = adapted.contract.max_length
    ids = prompt[:, :4].contiguous()
    decoder = adapted.contract.decoder_name is not None
    if decoder:
        if adapted.contract.start_id is None:
            return {}
        ids = torch.full((len(prompt), 1), adapted.contract.start_id)
    new = NEW_TOKENS if limit is None or limit > 24 else limit
    for _ in range(new):
        view = ids if limit is None else ids[:, -limit:].contiguous()
        logits = adapted(prompt, decoder_input_ids=view).logits if decoder else adapted(view).logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    return {
        "prompt": (prompt if decoder else prompt[:, :4]).numpy(),
        "greedy": ids.numpy(),
        "new": np.array(new),
    }


def try_all(entries: Iterable[Entry], root: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """(name → findings, name → why it was refused) for entries of the zoo."""
    from utils.errors import TransformerBuilderError

    jobs, refused = [], {}
    for number, entry in enumerate(entries):
        try:
            job = export(adapted_of(entry), entry.batch(), root, f"{number:03d}")
        except TransformerBuilderError as error:
            refused[entry.name] = f"{type(error).__name__}: {error}"
            continue
        jobs.append({**job, "name": entry.name})
    return examine(jobs, root), refused
