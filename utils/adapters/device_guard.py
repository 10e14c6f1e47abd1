"""A fault of PyTorch before 2.12 that ends the process, and what keeps it from happening.

A build with CUDA on a machine without a GPU (Colab's CPU runtime) puts a stand-in for the CUDA device guard into a table of
the whole process when fake tensors are first used; `torch.export` uses them, and so does `torch.compile`. The stand-in
belongs to the thread that came first and goes away with it, the table keeps pointing at it, and the next export crashes
(mended upstream by pytorch/pytorch#178950).
"""

from __future__ import annotations

import torch


def keep_device_guard() -> None:
    """Let the calling thread own the stand-in. Call before a thread that is to end may use fake tensors.

    Nothing changes where a GPU is there or the build knows no CUDA; calling again changes nothing.
    """
    ensure = getattr(torch._C, "_ensureCUDADeviceGuardSet", None)  # older builds have neither it nor the fault
    if ensure is not None and torch.version.cuda is not None and not torch.cuda.is_available():
        ensure()
