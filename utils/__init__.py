"""From a drawn transformer to a model that is trained, proven and runs elsewhere.

The six verbs are `load_model`, `adapt`, `validate`, `train`, `generate` and `export`. Each takes what the one before it
gave; `search` finds settings for `train`. Names are loaded on first use: `import utils` alone imports neither torch nor pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    # verbs
    "load_model": "utils.loading.model_loader",
    "adapt": "utils.adapters.model_adapter",
    "validate": "utils.tier1_critical_validation",
    "train": "utils.training.training_core",
    "search": "utils.training.hyperparameter_search",
    "recover": "utils.training.recovery",
    "load_run": "utils.training.runs",
    "generate": "utils.training.generation",
    "generate_stream": "utils.training.generation",
    "push_to_hub": "utils.export.hub",
    # classes
    "AdaptiveTokenizer": "utils.tokenization.adaptive_tokenizer",
    "AdaptiveTokenizerDataModule": "utils.tokenization.data_module",
    "CharacterLevelTokenizer": "utils.tokenization.character_tokenizer",
    "ComputationalGraphExecutor": "utils.adapters.model_adapter",
    "CheckpointManager": "utils.training.checkpoint_manager",
    "DatasetLoader": "utils.training.dataset_utilities",
    "DatasetUploader": "utils.training.dataset_utilities",
    "ModelSignatureInspector": "utils.adapters.model_adapter",
    "FastBPETrainer": "utils.tokenization.bpe_trainer",
    "ModelCardGenerator": "utils.export.model_card",
    "ONNXExporter": "utils.export.onnx",
    "SetupWizard": "utils.ui.setup_wizard",
    "TokenizerValidator": "utils.tokenization.validator",
    "TorchScriptExporter": "utils.export.torchscript",
    "TrainingConfig": "utils.training.training_config",
    "TrainingCoordinator": "utils.training.training_core",
    "UniversalModelAdapter": "utils.adapters.model_adapter",
}

if TYPE_CHECKING:
    from utils.adapters.model_adapter import (
        ComputationalGraphExecutor,
        ModelSignatureInspector,
        UniversalModelAdapter,
        adapt,
    )
    from utils.export.bundle import export
    from utils.export.hub import push_to_hub
    from utils.export.model_card import ModelCardGenerator
    from utils.export.onnx import ONNXExporter
    from utils.export.torchscript import TorchScriptExporter
    from utils.loading.model_loader import load_model
    from utils.tier1_critical_validation import validate
    from utils.tokenization.adaptive_tokenizer import AdaptiveTokenizer
    from utils.tokenization.bpe_trainer import FastBPETrainer
    from utils.tokenization.character_tokenizer import CharacterLevelTokenizer
    from utils.tokenization.data_module import AdaptiveTokenizerDataModule
    from utils.tokenization.validator import TokenizerValidator
    from utils.training.checkpoint_manager import CheckpointManager
    from utils.training.dataset_utilities import DatasetLoader, DatasetUploader
    from utils.training.generation import generate, generate_stream
    from utils.training.hyperparameter_search import search
    from utils.training.recovery import recover
    from utils.training.runs import load_run
    from utils.training.training_config import TrainingConfig
    from utils.training.training_core import TrainingCoordinator, train
    from utils.ui.setup_wizard import SetupWizard

__all__ = [
    "AdaptiveTokenizer",
    "AdaptiveTokenizerDataModule",
    "CharacterLevelTokenizer",
    "CheckpointManager",
    "ComputationalGraphExecutor",
    "DatasetLoader",
    "DatasetUploader",
    "FastBPETrainer",
    "ModelCardGenerator",
    "ModelSignatureInspector",
    "ONNXExporter",
    "SetupWizard",
    "TokenizerValidator",
    "TorchScriptExporter",
    "TrainingConfig",
    "TrainingCoordinator",
    "UniversalModelAdapter",
    "adapt",
    "export",
    "generate",
    "generate_stream",
    "load_model",
    "load_run",
    "push_to_hub",
    "recover",
    "search",
    "train",
    "validate",
]


def __getattr__(name: str) -> object:
    if name == "export":  # the room itself is callable: see utils/export/__init__.py
        return importlib.import_module("utils.export")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'utils' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
