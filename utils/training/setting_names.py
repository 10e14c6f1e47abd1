"""The valid name that somebody most likely meant. Knows the habits of other libraries, and no values' meaning."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

ELSEWHERE = {
    "lr": "learning_rate", "peak_lr": "learning_rate", "max_lr": "learning_rate", "bs": "batch_size",
    "per_device_train_batch_size": "batch_size", "train_batch_size": "batch_size", "micro_batch_size": "batch_size",
    "num_epochs": "epochs", "n_epochs": "epochs", "max_epochs": "epochs", "num_train_epochs": "epochs",
    "steps": "max_steps", "num_steps": "max_steps", "max_iters": "max_steps", "iterations": "max_steps",
    "seq_len": "max_length", "max_seq_len": "max_length", "max_seq_length": "max_length", "block_size": "max_length",
    "lr_scheduler": "learning_rate_schedule", "lr_scheduler_type": "learning_rate_schedule",
    "scheduler": "learning_rate_schedule", "schedule": "learning_rate_schedule", "min_lr": "final_learning_rate_ratio",
    "warmup": "warmup_ratio", "warmup_steps": "warmup_ratio", "wd": "weight_decay",
    "max_grad_norm": "gradient_clip_norm", "gradient_clip_val": "gradient_clip_norm", "grad_clip": "gradient_clip_norm",
    "accumulate_grad_batches": "gradient_accumulation_steps", "grad_accum": "gradient_accumulation_steps",
    "accumulation_steps": "gradient_accumulation_steps", "label_smoothing_factor": "label_smoothing",
    "ema": "ema_decay", "patience": "early_stopping_patience", "early_stopping": "early_stopping_patience",
    "min_delta": "early_stopping_min_delta", "activation_checkpointing": "gradient_checkpointing",
    "compile": "compile_mode", "torch_compile": "compile_mode", "fp16": "precision", "bf16": "precision",
    "use_amp": "precision", "mixed_precision": "precision", "dtype": "precision", "amp": "precision",
    "seed": "random_seed", "val_split": "validation_fraction", "validation_split": "validation_fraction",
    "eval_steps": "val_every_n_steps", "val_check_interval": "val_every_n_steps", "eval_interval": "val_every_n_steps",
    "workers": "num_workers", "dataloader_num_workers": "num_workers", "gpus": "devices", "num_gpus": "devices",
    "save_steps": "save_every_n_steps", "save_interval": "save_every_n_steps", "save_total_limit": "keep_checkpoints",
    "save_top_k": "keep_checkpoints", "output_dir": "checkpoint_dir", "default_root_dir": "checkpoint_dir",
    "drive_path": "mirror_dir", "drive_dir": "mirror_dir", "project": "wandb_project", "project_name": "wandb_project",
    "name": "run_name", "experiment_name": "run_name", "init": "initialisation", "initialization": "initialisation",
    "hidden_size": "d_model", "n_embd": "d_model", "n_layer": "num_layers", "n_layers": "num_layers",
    "formats": "export_formats",
}  # fmt: skip
"""What settings are called in other libraries and in people's notebooks → what they are called here."""

VALUES_ELSEWHERE = {
    "fp16": "16-mixed", "float16": "16-mixed", "half": "16-mixed", "16": "16-mixed", "bf16": "bf16-mixed",
    "bfloat16": "bf16-mixed", "fp32": "32-true", "float32": "32-true", "32": "32-true", "full": "32-true",
    "none": "off", "false": "off", "true": "default", "cosine_with_warmup": "cosine", "constant_with_warmup": "constant",
    "causal": "next_token", "clm": "next_token", "mlm": "masked", "distributed": "ddp", "single": "auto", "dp": "ddp",
}  # fmt: skip
"""The same for values."""


def nearest(given: object, known: Iterable[str]) -> str | None:
    """The known name that was most likely meant; None where none is near.

    Example:
        >>> nearest("learning-rat", ["learning_rate", "batch_size"])
        'learning_rate'
    """
    text, names = str(given).strip().lower().replace("-", "_"), list(known)
    for habits in (ELSEWHERE, VALUES_ELSEWHERE):
        if habits.get(text) in names:
            return habits[text]
    spelled = {name.lower().replace("-", "_"): name for name in names}
    near = difflib.get_close_matches(text, spelled, n=1, cutoff=0.5)
    return spelled[near[0]] if near else None


def hint(given: object, known: Iterable[str]) -> str:
    """End of a sentence that says what was most likely meant: "; did you mean 'epochs'?" or "."."""
    near = nearest(given, known)
    return f"; did you mean {near!r}?" if near else "."
