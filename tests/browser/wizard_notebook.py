"""The notebook in which the browser tests meet the wizard."""

from __future__ import annotations

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

TORCH = "import torch, utils  # what the notebook before the wizard has loaded"
WIZARD = """
import time
started = time.perf_counter()
from utils.ui.setup_wizard import SetupWizard
wizard = SetupWizard({arguments})
wizard.run()
print(f"shown after {{time.perf_counter() - started:.2f}} s")
"""
TRAIN = "result = wizard.train(); print(f'final loss {result[\"final_loss\"]:.4f}')"


def wizard_notebook(arguments: str = "", *more: str, before: str = TORCH) -> NotebookNode:
    """Cells: torch, the wizard, and `more`."""
    cells = [before, WIZARD.format(arguments=arguments), *more]
    return new_notebook(cells=[new_code_cell(cell) for cell in cells])
