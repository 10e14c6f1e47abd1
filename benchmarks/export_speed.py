"""What exported files cost to run: `python benchmarks/export_speed.py`.

Decoders of 10 and 124 million parameters run on two threads as eager PyTorch, as ONNX Runtime in float32, and as int8, at
lengths 1, 128 and 512: in turns, in rotating order, each in one process that holds all three. A ratio is that of one round;
figures are medians over all rounds with their 95% intervals. Sizes are those of the files.

Then text: 64 tokens by a GPT-2 of 10 million parameters with its key/value cache against computing everything again for
each token, the same way.

Exit code 1 where a file's logits are not the model's within its tolerance: what is fast must be right.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from anywhere, as a file
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers

from benchmarks.adapter_overhead import median_interval
from utils.adapters.model_adapter import adapt
from utils.export.artifact import Artifact
from utils.export.child import ChildRuntime
from utils.export.onnx import ONNXExporter
from utils.export.quantization import Int8Exporter
from utils.export.runner import open_file
from utils.export.samples import samples_of
from utils.export.signature import Shape
from utils.export.subject import ExportSubject, subject_of, undisturbed

SIZES = {"10M": (6, 6, 384, 0), "124M": (12, 12, 768, 50_257)}
"""Name → layers, heads, width, vocabulary rows; 0 rows: a few, so that the rest is what counts."""
LENGTHS = (1, 128, 512)
FEW_ROWS = 256


def gpt2(layers: int, heads: int, width: int, rows: int) -> transformers.GPT2LMHeadModel:
    """A GPT-2 of this size with fresh weights and no dropout."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=rows or FEW_ROWS, n_positions=1024, n_embd=width, n_layer=layers, n_head=heads
    )
    return transformers.GPT2LMHeadModel(config).eval()


def files_of(subject: ExportSubject, folder: Path) -> dict[str, Artifact]:
    """The float and the int8 file, each proven to cost what it may."""
    with ChildRuntime() as child:
        artifact = ONNXExporter().stage(subject, folder / "onnx", child, validate=False)
        small = Int8Exporter().stage(subject, folder / "int8", child)
    return {"onnx": artifact, "int8": small}


def in_turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, one per round, in rotating order; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begun = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - begun)
    return {name: values[1:] for name, values in seconds.items()}


def told(values: list[float], against: list[float]) -> str:
    """Median ratio of the others' time to these, with its interval."""
    ratios = [theirs / mine for mine, theirs in zip(values, against)]
    low, high = median_interval(ratios)
    return f"{statistics.median(ratios):.2f} × (95% {low:.2f} to {high:.2f})"


def compare(name: str, rounds: int, say: Callable[[str], None]) -> bool:
    """One size: files, their sizes, and their speed at every length; False where the float file is not the model."""
    model = adapt(gpt2(*SIZES[name]))
    subject = subject_of(model)
    subject = ExportSubject(subject.adapted, subject.signature, None, subject.facts, samples_of(subject))
    equal = True
    with tempfile.TemporaryDirectory() as folder:
        files = files_of(subject, Path(folder))
        weights = subject.weight_bytes()
        say(f"{name}: weights {weights / 1e6:.1f} MB in float32")
        for kind, artifact in files.items():
            say(f"  {kind}: {artifact.size_bytes / 1e6:.1f} MB, {artifact.size_bytes / weights:.2f} of the weights")
        runners = {kind: open_file(kind, artifact.path, torch.get_num_threads()) for kind, artifact in files.items()}
        for length in LENGTHS:
            feeds = subject.signature.feeds(Shape(1, length))
            with undisturbed(subject.adapted):
                expected = subject.logits(feeds)
                equal = equal and bool(np.abs(runners["onnx"].run(feeds) - expected).max() < 1e-3)
                ways: dict[str, Callable[[], object]] = {"eager": lambda given=feeds: subject.logits(given)}
                ways |= {kind: lambda given=feeds, r=runner: r.run(given) for kind, runner in runners.items()}
                seconds = in_turns(ways, rounds)
            eager = statistics.median(seconds["eager"])
            say(f"  length {length}: eager PyTorch {1000 * eager:.1f} ms")
            for kind in runners:
                say(f"    speed of {kind} over eager: {told(seconds[kind], seconds['eager'])}")
    return equal


def cached_generation(rounds: int, say: Callable[[str], None]) -> None:
    """64 tokens with the key/value cache against computing everything again."""
    from utils.decoding import Sampling, decode
    from utils.training.generation_steps import CachedStep, ModelStep

    adapted = adapt(gpt2(*SIZES["10M"]))
    settings = Sampling(max_new_tokens=64, temperature=0)
    prompt = [list(range(1, 33))]

    def text(step: type[ModelStep]) -> Callable[[], object]:
        return lambda: list(decode(step(adapted), prompt, settings))

    with undisturbed(adapted):
        seconds = in_turns({"cached": text(CachedStep), "computed again": text(ModelStep)}, rounds)
    say(f"64 tokens after 32, 10M: speed with the cache {told(seconds['cached'], seconds['computed again'])}")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and judge."""
    parser = argparse.ArgumentParser(description="Speed and size of exported files beside eager PyTorch.")
    parser.add_argument("--rounds", type=int, default=9, help="runs of each (default: %(default)s)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="models (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each runtime (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()

    def say(line: str) -> None:
        print(line, flush=True)  # noqa: T201 - a command: it speaks

    equal = [compare(name, options.rounds, say) for name in options.sizes]
    cached_generation(options.rounds, say)
    return 0 if all(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
