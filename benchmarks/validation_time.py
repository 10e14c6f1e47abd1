"""How long validation takes, check by check, and how much memory: `python benchmarks/validation_time.py`.

GPT-2 with 124 million parameters and a decoder with one million, both with fresh weights, each in a process of its own. Listed
are seconds of the clock, seconds of the processor (all threads together: other programs do not count there), and each check's
share. Memory is the highest resident memory of the process while the checks run (VmHWM) less what it had before the model was
made, beside 2.5 × (parameters + gradients + what autograd keeps for one step of 8 × 128 tokens). Linux only.

Colab ships no ONNX packages, and tier 1 there tries `torch.export` alone; so it is here, unless `--with-onnx` lets both be tried.

Exit code 1 where a limit is missed: 90 s and 5 s for tier 1, 240 s for tier 2 of the large model.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run from anywhere, as a file
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.memory import resident  # noqa: E402

if TYPE_CHECKING:
    from utils.checks.runner import Check
    from utils.checks.session import Session

SIZES = {"1M": (4, 4, 128, 1600, 256), "124M": (12, 12, 768, 50_257, 1024)}
"""Name → layers, heads, width, vocabulary rows, longest sequence."""
LIMITS = {("1M", 1): 5.0, ("124M", 1): 90.0, ("124M", 2): 240.0}
"""Size and tier → seconds (issue 7)."""
MEMORY_FACTOR = 2.5
BATCH, LENGTH = 8, 128
HIDDEN = ("onnx", "onnxscript", "onnx_ir", "onnxruntime")
"""Packages that Colab lacks; not asked of `export.dry_run`, whose import is a part of what is timed."""


def say(line: str) -> None:
    """A line on the terminal, at once."""
    print(line, flush=True)  # noqa: T201 - a command: it speaks


def measure(name: str, tier: int, only: list[str], with_onnx: bool) -> int:
    """Validate one model and print what it took; 1 where a limit is missed."""
    if not with_onnx:
        sys.modules.update(dict.fromkeys(HIDDEN))  # type: ignore[arg-type] # None hides a package
    import torch
    import transformers

    from utils.checks.session import Session
    from utils.progress import ignore_progress

    layers, heads, width, rows, longest = SIZES[name]
    config = transformers.GPT2Config(vocab_size=rows, n_positions=longest, n_embd=width, n_layer=layers, n_head=heads)
    config.bos_token_id = config.eos_token_id = rows - 1
    base, begun = resident("VmRSS"), time.perf_counter()
    torch.manual_seed(0)
    session = Session.of(f"Tier {tier}", transformers.GPT2LMHeadModel(config))
    size, made = session.model.num_parameters(), time.perf_counter() - begun
    say(f"{name}, tier {tier}: {size:,} parameters; made and adapted in {made:.1f} s")
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory counts from here
    total = 0.0
    for check in checks_of(tier):
        if only and check.name not in only:
            continue
        processor = time.process_time()
        result = session.run([check], ignore_progress).checks[0]
        processor, total = time.process_time() - processor, total + result.seconds
        say(f"  {result.name:<24} {result.seconds:7.2f} s {processor:7.2f} s of the processor  {result.status}")
    peak, allowed = resident() - base, allowed_bytes(session)
    limit = LIMITS.get((name, tier), float("inf"))
    say(f"  together {total:.1f} s (limit {limit:g}); peak {peak / 1e6:,.0f} MB (limit {allowed / 1e6:,.0f} MB)")
    return int(total > limit or (name == "124M" and peak > allowed))


def allowed_bytes(session: Session) -> float:
    """2.5 × (parameters + gradients + activations of one step), in bytes."""
    from utils.checks.memory import fixed_bytes, saved_by
    from utils.checks.preserved import preserved
    from utils.checks.sampling import loss_of

    with preserved(session.model):
        session.model.train()
        inputs = session.sampler.inputs(BATCH, session.sampler.length(LENGTH))
        kept = saved_by(session.model, lambda: loss_of(session.model, inputs))
    fixed = fixed_bytes(session.model.model)
    return MEMORY_FACTOR * (fixed["parameters"] + fixed["gradients"] + kept)


def checks_of(tier: int) -> tuple[Check, ...]:
    """The checks of a tier, in order."""
    if tier == 1:
        from utils.tier1_critical_validation import TIER1

        return TIER1
    from utils.tier2_advanced_analysis import TIER2

    return TIER2


def main(arguments: list[str] | None = None) -> int:
    """Measure each size in another process."""
    parser = argparse.ArgumentParser(description="Seconds and memory of validation, check by check.")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="models (default: both)")
    parser.add_argument("--tier", type=int, choices=(1, 2), default=1, help="which checks (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], help="names of checks: only these (default: all)")
    parser.add_argument("--with-onnx", action="store_true", help="try ONNX, too, where it is installed")
    parser.add_argument("--measure", choices=SIZES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure is not None:
        return measure(options.measure, options.tier, options.only, options.with_onnx)
    missed = 0
    for name in options.sizes:
        command = [sys.executable, __file__, "--measure", name, "--tier", str(options.tier)]
        command += ["--only", *options.only] if options.only else []
        command += ["--with-onnx"] if options.with_onnx else []
        missed += subprocess.run(command, check=False).returncode != 0
    say("within the limits" if not missed else "ABOVE a limit, or failed")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
