"""Run as `python -I hf_child.py jobs.json answers.json`: loads exported folders as a stranger would, without this package.

A job names a folder, the auto class, a file of arrays (inputs, and what the model gave for them) and a folder for a copy. The
answer is a list of findings for each, empty where all holds.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

sys.modules["utils"] = None  # whatever the folder imports must be in it

import numpy as np  # noqa: E402 - nothing may be imported before the line above
import torch  # noqa: E402
import transformers  # noqa: E402

TOLERANCE = 1e-5
"""Of logits: the same kernels in float32, so this leaves room for another order of sums."""


def findings(job: dict[str, Any]) -> list[str]:
    """What does not hold for one folder."""
    arrays = np.load(job["arrays"])
    inputs = {name[3:]: torch.from_numpy(arrays[name]) for name in arrays if name.startswith("in_")}
    labels = inputs.pop("labels", None)
    auto = getattr(transformers, job["auto_class"])
    found = []
    model = loaded(auto, job["folder"], found)
    with torch.no_grad():
        torch.manual_seed(1)  # fresh weights would differ
        model.save_pretrained(job["copy"])  # before any call: some models keep what they see in their buffers
        again = loaded(auto, job["copy"], found)
        found += differs("logits", model(**inputs).logits, arrays["logits"])
        if "loss" in arrays:
            found += differs("loss", model(**inputs, labels=labels).loss, arrays["loss"])
        if "greedy" in arrays:
            found += generates(model, arrays)
        if "text" in job:
            found += says(model, job["folder"], job["text"])
        found += differs("logits after save_pretrained", again(**inputs).logits, arrays["logits"])
    ours = {name: tensor.data_ptr() for name, tensor in model.named_parameters(remove_duplicate=False)}
    theirs = {name: tensor.data_ptr() for name, tensor in again.named_parameters(remove_duplicate=False)}
    if groups(ours) != groups(theirs):
        found.append("shared weights are shared no more after save_pretrained")
    return found


def loaded(auto: Any, folder: str, found: list[str]) -> Any:
    """The model, with what was wrong with its keys."""
    model, info = auto.from_pretrained(folder, trust_remote_code=True, local_files_only=True, output_loading_info=True)
    found += [f"{what}: {sorted(map(str, keys))}" for what, keys in info.items() if keys]
    return model.eval()


def generates(model: Any, arrays: Any) -> list[str]:
    """Greedy generation against that of the model that was exported."""
    expected = arrays["greedy"]
    prompt = torch.from_numpy(arrays["prompt"])
    made = model.generate(
        prompt,
        max_new_tokens=int(arrays["new"]),
        do_sample=False,
        eos_token_id=None,
        forced_eos_token_id=None,
        pad_token_id=0,
    )
    return (
        [] if made.tolist() == expected.tolist() else [f"generate gives {made.tolist()}, expected {expected.tolist()}"]
    )


def says(model: Any, folder: str, asked: dict[str, Any]) -> list[str]:
    """Text from the folder's own tokenizer and settings."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(asked["prompt"], return_tensors="pt", add_special_tokens=False)  # as the card says
    length = inputs["input_ids"].shape[1]
    made = model.generate(**inputs, max_new_tokens=asked["new"], do_sample=False)[0, length:]
    text = asked["prompt"] + tokenizer.decode(made, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    batch = tokenizer([asked["prompt"], "A"], return_tensors="pt", add_special_tokens=False, padding=True)
    padded = model.generate(**batch, max_new_tokens=2, do_sample=False)
    if tokenizer.padding_side != "left" or padded.shape[0] != 2:
        return ["the tokenizer does not pad at the front"]
    return [] if text == asked["expected"] else [f"generate says {text!r}, expected {asked['expected']!r}"]


def differs(what: str, one: torch.Tensor, other: np.ndarray) -> list[str]:
    """Where two arrays are not equal."""
    if tuple(one.shape) != other.shape:
        return [f"{what} have the shape {tuple(one.shape)}, expected {other.shape}"]
    most = float(np.abs(one.numpy() - other).max(initial=0.0))
    return (
        [] if most <= TOLERANCE * max(1.0, float(np.abs(other).max(initial=0.0))) else [f"{what} differ by {most:.2g}"]
    )


def groups(pointers: dict[str, int]) -> list[list[str]]:
    """Names that stand for one tensor."""
    by_place: dict[int, list[str]] = {}
    for name, pointer in pointers.items():
        by_place.setdefault(pointer, []).append(name)
    return sorted(sorted(names) for names in by_place.values() if len(names) > 1)


def main(jobs: str, answers: str) -> None:
    """Do every job and write the answers."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    done = {}
    for job in json.loads(Path(jobs).read_text()):
        try:
            done[job["name"]] = findings(job)
        except Exception as error:  # noqa: BLE001 - whatever is raised is the finding
            done[job["name"]] = [f"{type(error).__name__}: {error}", traceback.format_exc()[-1500:]]
    Path(answers).write_text(json.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
