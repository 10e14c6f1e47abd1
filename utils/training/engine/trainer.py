"""The engine under `train`: prepares model and blocks, builds one `pytorch_lightning.Trainer`, and collects the result.

Each step is a method that a subclass can override. Leaves texts to `dataset_utilities`, files of a run to `run_folder`,
and what happens inside a step to `UniversalModelAdapter`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from utils.adapters.model_adapter import AdaptedModel, UniversalModelAdapter, adapt
from utils.errors import DataError, TokenizerError, TrainingError
from utils.progress import ProgressCallback, ignore_progress
from utils.tokenization.batch_order import fit_window
from utils.tokenization.batches import PaddedDocuments
from utils.tokenization.bits import BitsPerByte
from utils.tokenization.bpe_trainer import save_tokenizer
from utils.tokenization.data_module import UniversalDataModule, check_fits
from utils.tokenization.documents import Documents
from utils.tokenization.loaders import DataLoaderFactory
from utils.tokenization.packing import PackedBlocks, pack_documents
from utils.tokenization.samples import Samples
from utils.training.engine.checkpoint import CheckpointMetadata, CheckpointStore, environment
from utils.training.engine.loop import (
    NEVER,
    LossesPerByte,
    MetricsFile,
    ProgressReporter,
    TrainingLoop,
    ValidationLoop,
)
from utils.training.engine.mirror import Mirror, mirroring
from utils.training.engine.plan import Callbacks, Loaders, Plan
from utils.training.engine.precision import check_precision, pick_precision
from utils.training.engine.resume import ResumableCheckpoint, VerifiedCheckpointIO
from utils.training.engine.surroundings import interruptible, quiet_lightning
from utils.training.fingerprint import model_identity, weights_hash
from utils.training.initialisation import Initialisation, initialise
from utils.training.objective import check_task, choose_objective
from utils.training.recovery import histories, places
from utils.training.result import TrainingResult
from utils.training.run_folder import RunFolder, open_run, run_fingerprint
from utils.training.seed_manager import set_random_seed
from utils.training.training_config import TrainingConfig

logger = logging.getLogger(__name__)

DEFAULT_BLOCK_LENGTH = 128
"""Tokens per block where neither the settings nor the model name a limit."""


class Trainer:
    """Trains one model on one corpus.

    Args:
        model: an `AdaptedModel`, or what `adapt` takes.
        config: what is known about the model, for `adapt`; an adapted model brings its own.
        training_config: settings, as `TrainingConfig` or mapping; None takes the defaults.
        task_spec: reserved for other tasks than next-token prediction; anything but None is refused.
        tokenizer: needed where texts are passed, and for bits per byte.
        workspace: folder of the runs; None takes `training_config.checkpoint_dir`.
        progress: called with (optimizer steps done, steps in total, note).
        resume: "auto" continues an interrupted run of the same model, "continue" also where the model comes with other
            weights (those of the run count), "never" begins anew.

    Example:
        >>> result = Trainer(adapted, None, TrainingConfig(max_steps=100), tokenizer=tokenizer).train(train_texts, val_texts)
    """

    def __init__(
        self,
        model: nn.Module,
        config: Any = None,
        training_config: TrainingConfig | Mapping[str, Any] | None = None,
        task_spec: None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        workspace: str | Path | None = None,
        progress: ProgressCallback = ignore_progress,
        resume: str = "auto",
    ) -> None:
        if task_spec is not None:
            raise TrainingError("task_spec is not read yet: next-token prediction is the only task. Leave it at None.")
        settings = training_config if training_config is not None else TrainingConfig()
        self.settings = settings if isinstance(settings, TrainingConfig) else TrainingConfig.from_dict(settings)
        self.settings.validate()
        self.adapted = adapt(model, config)
        self.tokenizer, self.progress, self.resume = tokenizer, progress, resume
        self.workspace = Path(workspace if workspace is not None else self.settings.checkpoint_dir).expanduser()
        self.mirror: Mirror | None = None  # of the run, while and after it trains; its `status` says what is safe
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        check_task(self.adapted)
        check_precision(self.settings.precision, self.device)

    # ---- the walk ---------------------------------------------------------------------------------------------------
    def train(self, train_data: Any, val_data: Any = None) -> TrainingResult:
        """Train, or continue an interrupted training, to its end.

        Args:
            train_data: texts (with a tokenizer), `PackedBlocks`, whole numbers of shape (N, T), or a `UniversalDataModule`
                of the task "lm", which brings both parts; batch size and order are those of the settings.
            val_data: the same, or None for a run without validation.

        Raises:
            DataError: too little text, or data of another kind. TokenIdError: ids that the model has no rows for.
            TrainingError: the model sees later tokens, losses are not finite, or a run of that name differs.
        """
        set_random_seed(self.settings.random_seed, self.settings.deterministic)
        plan = self._setup_data(train_data, val_data)
        self.adapted, objective = self._setup_objective(self.adapted)
        run = self._setup_run(plan)
        try:
            return self._run(plan, run, objective)
        finally:
            run.leave(self._weights_left())

    def _run(self, plan: Plan, run: RunFolder, objective: str) -> TrainingResult:
        """All that happens while this process holds the run's folder."""
        store = CheckpointStore(run.checkpoints, run.run_id, self.settings.keep_checkpoints)

        def report(done: int, total: int | None, note: str = "") -> None:  # progress counts steps, and a copy is none
            self.progress(plan.total_steps, plan.total_steps, note)

        with mirroring(store, run.path, self.settings.mirror_dir, report) as self.mirror:
            return self._run_here(plan, run, store, objective)

    def _run_here(self, plan: Plan, run: RunFolder, store: CheckpointStore, objective: str) -> TrainingResult:
        """The same, while the run's checkpoints are mirrored."""
        newest = store.newest()
        initialisation = self._setup_initialisation(plan, newest is not None)
        lit = self._setup_module(self.adapted, plan)
        loaders = self._setup_loaders(plan)
        callbacks = self._setup_callbacks(plan, loaders, run, store)
        precision, why = self._setup_precision()
        self._log_start(run, plan, newest, f"{precision} ({why})")
        with quiet_lightning():
            engine = self._setup_engine(plan, callbacks, store, precision)
            precision = str(engine.precision)  # what Lightning really uses
            facts = {
                "objective_reason": objective,
                "initialisation_reason": initialisation.reason,
                "tokenizer_reason": _tokenizer_reason(self.tokenizer),
                "precision": precision,
                "precision_reason": why,
                "resumed_from_step": newest.step if newest is not None else 0,
            }
            callbacks.checkpoint.facts = {**facts, **plan.facts}
            self._fit(engine, lit, loaders, callbacks, store, newest)
        self.adapted.eval()
        return self._collect(plan, run, store, callbacks, facts)

    # ---- steps, each of which a subclass can override ----------------------------------------------------------------
    def _setup_data(self, train_data: Any, val_data: Any) -> Plan:
        """Blocks of both parts, and how many steps they make."""
        if isinstance(train_data, UniversalDataModule):
            train_data, val_data = _parts_of(train_data)
        length = self._block_length()
        train = self._blocks(train_data, length, "training")
        validation = None if val_data is None else self._blocks(val_data, length, "validation")
        settings = self.settings
        window = fit_window(len(train), settings.batch_size, settings.gradient_accumulation_steps)
        if window.why:
            logger.warning("%s", window.why)
        per_epoch = window.steps(len(train))
        total = settings.max_steps if settings.max_steps is not None else settings.epochs * per_epoch
        bits = LossesPerByte(self._bits(train), self._bits(validation))
        scored = bits.validation.size if isinstance(bits.validation, BitsPerByte) else None
        return Plan(train, validation, window, total, per_epoch, bits, scored)

    def _bits(self, samples: Samples | None) -> BitsPerByte | None:
        known = isinstance(samples, (PackedBlocks, PaddedDocuments)) and self.tokenizer is not None
        return BitsPerByte.of(samples, self.tokenizer) if known else None  # type: ignore[arg-type]

    def _setup_objective(self, adapted: AdaptedModel) -> tuple[AdaptedModel, str]:
        """The model to train and why next-token prediction is honest for it."""
        chosen, reason = choose_objective(adapted, self.settings.objective)
        if chosen is not adapted:
            logger.warning("%s", reason)
        return chosen, reason

    def _setup_run(self, plan: Plan) -> RunFolder:
        """The run's folder, with settings and tokenizer in it."""
        fingerprint = run_fingerprint(model_identity(self.adapted), plan.fingerprint, self.settings, plan.total_steps)
        run = open_run(self.workspace, self.settings.run_name, fingerprint, self.resume, self.settings.mirror_dir)
        try:
            self.settings.save(run.path / "config.json")
            if self.tokenizer is not None:
                save_tokenizer(self.tokenizer, run.path / "tokenizer")
        except BaseException:
            run.leave()
            raise
        return run

    def _weights_left(self) -> str | None:
        """Hash of the weights in memory; None where the device no longer gives them."""
        try:
            return weights_hash(self.adapted)
        except RuntimeError as error:
            logger.warning("the weights in memory cannot be read (%s): the run continues from its checkpoint", error)
            return None

    def _setup_initialisation(self, plan: Plan, started: bool) -> Initialisation:
        """Mend embeddings of a fresh model; a run that continues has its weights in the checkpoint."""
        if started:
            return Initialisation((), "weights come from the run's checkpoint")
        self.adapted.to(self.device)
        sample = plan.train.__getitems__(range(min(len(plan.train), plan.window.batch_size)))["input_ids"]
        self.adapted.check_inputs(sample)
        return initialise(self.adapted, self.settings.initialisation, sample, self.settings.random_seed)

    def _setup_module(self, adapted: AdaptedModel, plan: Plan) -> pl.LightningModule:
        """The Lightning module, with optimizer and schedule of this trainer where a subclass brings them."""
        settings = self.settings
        lit = UniversalModelAdapter(
            adapted,
            tokenizer=self.tokenizer,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            warmup_ratio=settings.warmup_ratio,
            total_steps=plan.total_steps,
        )
        optimizer = self._setup_optimizer(adapted)
        if optimizer is not None:
            lit.configure_optimizers = lambda: self._optimizer_and_schedule(optimizer, plan)  # type: ignore[method-assign]
        return lit

    def _setup_optimizer(self, adapted: AdaptedModel) -> Optimizer | None:
        """Another optimizer than AdamW, or None."""
        return None

    def _setup_scheduler(self, optimizer: Optimizer, total_steps: int) -> Any:
        """A schedule, stepped once per optimizer step, for the optimizer of `_setup_optimizer`; None keeps the rate constant."""
        return None

    def _setup_loaders(self, plan: Plan) -> Loaders:
        """Loaders over both parts."""
        factory = DataLoaderFactory(
            self.settings.random_seed, pin_memory=self.device.type == "cuda", workers=self.settings.num_workers
        )
        validation = None if plan.validation is None else factory.validation(plan.validation, plan.window.batch_size)
        return Loaders(factory.train(plan.train, plan.window), validation)

    def _setup_callbacks(self, plan: Plan, loaders: Loaders, run: RunFolder, store: CheckpointStore) -> Callbacks:
        """The callbacks of the run; the one that saves comes last."""
        training, validation = TrainingLoop(plan.total_steps), ValidationLoop(self.settings.val_every_n_steps)
        return Callbacks(
            training,
            validation,
            ProgressReporter(self.progress, training, validation, plan.bits, plan.tokens_per_step),
            MetricsFile(run.path / "metrics.csv", training, validation, plan.bits),
            ResumableCheckpoint(
                store, self.settings, loaders.sampler, training, validation, plan.validation is not None
            ),
        )

    def _setup_precision(self) -> tuple[str, str]:
        """Precision and its reason."""
        if self.settings.precision != "auto":
            return self.settings.precision, "set by precision="
        return pick_precision(self.device)

    def _setup_engine(self, plan: Plan, callbacks: Callbacks, store: CheckpointStore, precision: str) -> pl.Trainer:
        """The one `pytorch_lightning.Trainer` of the run."""
        every, window = self.settings.val_every_n_steps, plan.window
        return pl.Trainer(
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            max_epochs=math.ceil(plan.total_steps / plan.steps_per_epoch),
            accumulate_grad_batches=window.accumulation,
            gradient_clip_val=self.settings.gradient_clip_norm or None,
            check_val_every_n_epoch=None if every else 1,
            val_check_interval=NEVER if every else 1.0,  # `ValidationLoop` says when
            callbacks=callbacks.in_order(),
            plugins=[VerifiedCheckpointIO(store)],
            logger=False,
            enable_checkpointing=False,  # Lightning's own; ours is among the callbacks
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # our sampler's order is what a resumed run relies on
            default_root_dir=str(store.folder.parent),
        )

    # ---- inside the walk --------------------------------------------------------------------------------------------
    def _fit(
        self,
        engine: pl.Trainer,
        lit: pl.LightningModule,
        loaders: Loaders,
        callbacks: Callbacks,
        store: CheckpointStore,
        newest: CheckpointMetadata | None,
    ) -> None:
        """Train from the beginning, from a checkpoint, or not at all where the last step has been done."""
        if newest is not None and newest.step >= callbacks.training.total_steps:
            finished = store.load(store.folder / newest.file)
            lit.load_state_dict(finished["state_dict"])
            callbacks.restore_finished(finished)
            return
        with interruptible():
            if newest is None and loaders.validation is not None:
                engine.validate(lit, loaders.validation, verbose=False)
            path = None if newest is None else str(store.folder / newest.file)
            engine.fit(lit, loaders.train, loaders.validation, ckpt_path=path, weights_only=True)

    def _optimizer_and_schedule(self, optimizer: Optimizer, plan: Plan) -> dict[str, Any]:
        schedule = self._setup_scheduler(optimizer, plan.total_steps)
        if schedule is None:
            return {"optimizer": optimizer}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _block_length(self) -> int:
        limit, asked = self.adapted.contract.max_length, self.settings.max_length
        if limit is None and asked is None:
            logger.info("neither max_length nor the model names a limit: blocks of %d tokens", DEFAULT_BLOCK_LENGTH)
            return DEFAULT_BLOCK_LENGTH
        return min(value for value in (limit, asked) if value is not None)

    def _blocks(self, data: Any, length: int, what: str) -> Samples:
        blocks = self._as_samples(data, length, what)
        check_fits(blocks, self.adapted.contract.vocab_size, self.adapted.contract.max_length, what)
        return blocks

    def _as_samples(self, data: Any, length: int, what: str) -> Samples:
        if isinstance(data, Samples):
            return data
        if isinstance(data, torch.Tensor):
            data = data.cpu().numpy()
        if isinstance(data, np.ndarray):
            return PackedBlocks(data)
        if not isinstance(data, (str, Documents)) or not len(data):
            raise DataError(
                f"The {what} data must be texts, PackedBlocks or whole numbers of shape (N, T); got "
                f"{'an empty ' if isinstance(data, Documents) else ''}{type(data).__name__}."
            )
        if self.tokenizer is None:
            raise TokenizerError(
                f"The {what} data is text, and there is no tokenizer to turn it into ids: pass tokenizer=."
            )
        return pack_documents(data, self.tokenizer, length, self.workspace / ".cache", what)

    def _log_start(self, run: RunFolder, plan: Plan, newest: CheckpointMetadata | None, precision: str) -> None:
        if newest is not None:
            logger.info("run %s continues after optimizer step %d of %d", run.name, newest.step, plan.total_steps)
        logger.info(
            "run %s: %d optimizer steps of %d tokens, %s, in %s",
            run.name,
            plan.total_steps,
            plan.tokens_per_step,
            precision,
            run.path,
        )

    def _collect(
        self, plan: Plan, run: RunFolder, store: CheckpointStore, callbacks: Callbacks, facts: dict[str, Any]
    ) -> TrainingResult:
        """Metrics file, manifest and result."""
        callbacks.metrics.write()
        values = {
            **histories(callbacks.training, callbacks.validation, plan.bits),
            **places(run.path, store),
            "scored_bytes": plan.scored_bytes,
            "block_length": plan.train.longest,
            **facts,
        }
        if not run.finished:
            run.write_manifest({"steps": plan.total_steps, "versions": environment(), **facts})
        return TrainingResult(self.adapted, self.tokenizer, self.settings, values)


def _parts_of(module: UniversalDataModule) -> tuple[Samples, Samples | None]:
    """Both parts of a data module, where they are for next-token training."""
    if module.task != "lm":
        raise TrainingError(
            f"The data module is for the task {module.task!r}, and this trainer trains next-token prediction. Give the module "
            "to a pytorch_lightning.Trainer: trainer.fit(UniversalModelAdapter(model), module)."
        )
    return module.train_samples, module.validation_samples


def _tokenizer_reason(tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    """Why this tokenizer was chosen, where `AdaptiveTokenizer` chose it."""
    choice = getattr(tokenizer, "choice", None)
    return None if choice is None else f"{choice.strategy}: {choice.reason}"
