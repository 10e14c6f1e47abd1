"""Data of the training engine. All of it has its home in `tokenization`, below the training; this file hands it on."""

from __future__ import annotations

from utils.tokenization.batch_order import EpochBatchSampler, Window, fit_window
from utils.tokenization.data_module import UniversalDataModule
from utils.tokenization.encoding import tokenizer_fingerprint
from utils.tokenization.loaders import DataLoaderFactory
from utils.tokenization.packing import PackedBlocks, blocks_fingerprint, pack_documents

__all__ = [
    "DataLoaderFactory",
    "EpochBatchSampler",
    "PackedBlocks",
    "UniversalDataModule",
    "Window",
    "blocks_fingerprint",
    "fit_window",
    "pack_documents",
    "tokenizer_fingerprint",
]
