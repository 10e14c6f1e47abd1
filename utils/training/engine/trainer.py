"""The engine under `train`: prepares model and blocks, builds one `pytorch_lightning.Trainer`, and collects the result.

Each step is a method that a subclass can override. Leaves texts to `dataset_utilities`, files of a run to `run_folder`,
and what happens inside a step to `engine.module`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from utils._files import write_json
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.errors import ConfigError, TrainingError
from utils.progress import ProgressCallback, ignore_progress
from utils.tokenization.batch_order import Window, fit_window
from utils.tokenization.batches import PaddedDocuments
from utils.tokenization.bits import BitsPerByte
from utils.tokenization.bpe_trainer import save_tokenizer
from utils.tokenization.loaders import DataLoaderFactory
from utils.tokenization.packing import PackedBlocks
from utils.tokenization.pieces import Hand, micro_batches
from utils.tokenization.samples import Samples
from utils.tokenization.streaming import StreamedBlocks
from utils.training.drift_metrics import DRIFT_FILE, drift_between
from utils.training.engine.checkpoint import CheckpointMetadata, CheckpointStore, changed_environment, environment
from utils.training.engine.compilation import Compilation, compiled
from utils.training.engine.deciding import deciders
from utils.training.engine.gradient_checkpointing import checkpointed
from utils.training.engine.hooks import DefaultHooks, TrainingHooks
from utils.training.engine.loop import (
    NEVER,
    LossesPerByte,
    TrainingLoop,
    ValidationLoop,
)
from utils.training.engine.loss import LossStrategy, LossStrategyRegistry
from utils.training.engine.memory import fit_to_memory, is_out_of_memory, largest_batches
from utils.training.engine.mirror import Mirror, mirroring
from utils.training.engine.module import TrainingModule
from utils.training.engine.plan import Callbacks, Loaders, Plan
from utils.training.engine.precision import check_precision, find_overflow, pick_precision
from utils.training.engine.processes import Processes
from utils.training.engine.resume import ResumableCheckpoint, VerifiedCheckpointIO
from utils.training.engine.samples import SampleMaker
from utils.training.engine.several import check_enough, opened_once, quiet_followers, spread
from utils.training.engine.strategy_guard import check_strategy
from utils.training.engine.stream_place import stream_places
from utils.training.engine.surroundings import end_where_asked, interruptible, quiet_lightning
from utils.training.engine.watching import destination_of, watchers
from utils.training.fingerprint import model_identity, weights_hash
from utils.training.forecast import Forecast, forecast
from utils.training.initialisation import Initialisation, initialise
from utils.training.live_plot import LivePlot
from utils.training.model_sizes import model_mismatches
from utils.training.objective import choose_objective
from utils.training.recovery import histories, places
from utils.training.result import TrainingResult
from utils.training.run_folder import RunFolder, open_run, run_fingerprint
from utils.training.run_index import RunIndex
from utils.training.run_index_mirror import send_snapshot
from utils.training.run_manifest import write_recipe
from utils.training.seed_manager import set_random_seed
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from utils.training.task_spec import TaskSpec

logger = logging.getLogger(__name__)

CHOICES_FILE = "choices.json"
"""Where a run keeps what was chosen for its device: precision and micro-batch, by which its batches are counted."""

SAMPLE_ROWS = 2
"""Rows of the batch on which weights and precision are tried: few, so that they fit wherever training does."""


class Trainer:
    """Trains one model on one corpus.

    Args:
        model: an `AdaptedModel`, or what `adapt` takes.
        config: what is known about the model, for `adapt`; an adapted model brings its own.
        training_config: settings, as `TrainingConfig` or mapping; None takes the defaults.
        task_spec: task, loss and columns; None takes those of the model's contract.
        tokenizer: needed where texts are passed, and for bits per byte.
        workspace: folder of the runs; None takes `training_config.checkpoint_dir`.
        progress: called with (optimizer steps done, steps in total, note).
        resume: "auto" continues an interrupted run of the same model, "continue" also where the model comes with other
            weights (those of the run count), "never" begins anew.
        hooks: called at the turns of the run.
        data_origin: where the data came from, as `describe_data` says it; None where nobody knows.
        stop: asked after each optimizer step; True saves that step and ends the training (`TrainingStopped`). It works in a
            thread, where no interrupt arrives.
        plot: draws the loss while it falls; None draws into the notebook's output where there is one.

    Where several processes train together, each makes a trainer with the same arguments. The first one alone writes, reports
    progress and calls the hooks (`on_model_ready` is called in all); each gets the result.

    Attributes:
        engine, module: Lightning's trainer and module, once `train` has begun.
        group: what W&B shows the run together with, such as the search that it belongs to; None for a run of its own.

    Example:
        >>> result = Trainer(adapted, None, TrainingConfig(max_steps=100), tokenizer=tokenizer).train(train_texts, val_texts)
    """

    def __init__(
        self,
        model: nn.Module,
        config: Any = None,
        training_config: TrainingConfig | Mapping[str, Any] | None = None,
        task_spec: TaskSpec | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        workspace: str | Path | None = None,
        progress: ProgressCallback = ignore_progress,
        resume: str = "auto",
        hooks: TrainingHooks | None = None,
        data_origin: Mapping[str, Any] | None = None,
        stop: Callable[[], bool] | None = None,
        plot: LivePlot | None = None,
    ) -> None:
        settings = training_config if training_config is not None else TrainingConfig()
        self.settings = settings if isinstance(settings, TrainingConfig) else TrainingConfig.from_dict(settings)
        self.processes = Processes.here()
        self.processes.together(self.settings.validate)
        self.adapted = adapt(model, config)
        self.tokenizer, self.progress, self.resume = tokenizer, progress, resume
        self.workspace = Path(workspace if workspace is not None else self.settings.checkpoint_dir).expanduser()
        self.mirror: Mirror | None = None  # of the run, while and after it trains; its `status` says what is safe
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.class_names: tuple[str, ...] = ()
        self.engine: pl.Trainer
        self.module: pl.LightningModule
        self.data_origin, self.stop, self.plot = data_origin, stop, plot
        self.group: str | None = None
        self.spec, self.hooks = task_spec, hooks if hooks is not None else DefaultHooks()
        self.processes.together(self._check)

    def _check(self) -> None:
        """Refuse what cannot be trained here."""
        check_precision(self.settings.precision, self.device)
        check_strategy(self.settings)
        destination_of(self.settings, self.workspace, "").check()
        mismatches = model_mismatches(self.settings, self.adapted)
        if mismatches:
            raise ConfigError("The settings and the model differ: " + " ".join(mismatches))

    # ---- the walk ---------------------------------------------------------------------------------------------------
    def train(self, train_data: Any, val_data: Any = None) -> TrainingResult:
        """Train, or continue an interrupted training, to its end.

        Args:
            train_data: a `UniversalDataModule` of the model's task, which brings both parts, or what one takes: texts, pairs
                (text, class), (source, target) or (image, class); for next-token prediction also `PackedBlocks` or whole
                numbers of shape (N, T). Batch size and order are those of the settings.
            val_data: the same, or None for a run without validation.

        Raises:
            DataError: too little text, or data of another kind. TokenIdError: ids that the model has no rows for.
            TrainingError: the model sees later tokens, losses are not finite, or a run of that name differs.
            TrainingStopped: `stop` said so.
        """
        if not any(parameter.requires_grad for parameter in self.adapted.parameters()):
            raise TrainingError(
                f"All {self.adapted.num_parameters():,} parameters of {self.adapted.name} are frozen: there is nothing to train. "
                "Call requires_grad_(True) on the modules that are to learn."
            )
        set_random_seed(self.settings.random_seed, self.settings.deterministic)
        with quiet_followers(self.processes):
            self.adapted, objective = self.processes.together(lambda: self._setup_objective(self.adapted))
            plan = self.processes.in_turn(lambda: self._setup_data(train_data, val_data))
            self.processes.together(lambda: self.hooks.on_model_ready(self.adapted, self.tokenizer))
            run = opened_once(self.processes, lambda: self._setup_run(plan))
            return self._indexed(run, lambda: self._run(plan, run, objective))

    def _indexed(self, run: RunFolder, training: Callable[[], TrainingResult]) -> TrainingResult:
        """Train, with the run in the index and left as another training can find it; the leading process sees to both."""
        if not self.processes.leads:
            return training()
        index = RunIndex(self.workspace)
        try:
            index.record(run.path)
            return training()
        finally:
            run.leave(self._weights_left())
            index.record(run.path)
            if self.settings.mirror_dir is not None:
                send_snapshot(index, self.settings.mirror_dir)

    def _run(self, plan: Plan, run: RunFolder, objective: str) -> TrainingResult:
        """All that happens while this process holds the run's folder."""
        leads = self.processes.leads
        store = CheckpointStore(run.checkpoints, run.run_id, self.settings.keep_checkpoints, tidy=leads)

        def report(done: int, total: int | None, note: str = "") -> None:  # progress counts steps, and a copy is none
            newest = store.generations()[:1]
            self.progress(newest[0].step if newest else 0, plan.total_steps, note)

        with mirroring(store, run.path, self.settings.mirror_dir if leads else None, report) as self.mirror:
            return self._run_here(plan, run, store, objective)

    def _run_here(self, plan: Plan, run: RunFolder, store: CheckpointStore, objective: str) -> TrainingResult:
        """The same, while the run's checkpoints are mirrored."""
        newest = self.processes.lead(store.newest)
        initialisation = self.processes.together(lambda: self._setup_initialisation(plan, newest is not None))
        with self._setup_memory() as memory:
            return self._run_chosen(
                plan,
                run,
                store,
                newest,
                {
                    "objective_reason": objective,
                    "initialisation_reason": initialisation.reason,
                    "gradient_checkpointing": memory,
                },
            )

    def _run_chosen(
        self,
        plan: Plan,
        run: RunFolder,
        store: CheckpointStore,
        newest: CheckpointMetadata | None,
        reasons: dict[str, Any],
    ) -> TrainingResult:
        """The same, with what is chosen for the device."""
        chosen = self.processes.lead(lambda: self._setup_choices(plan, run))
        plan.window = Window(chosen["batch_size"], chosen["accumulation"], plan.window.why)
        precision, why, micro_batch = chosen["precision"], chosen["precision_reason"], chosen["micro_batch_reason"]
        done = newest is not None and (newest.ends or newest.step >= plan.total_steps)
        forecast = None if done else self._setup_forecast(plan, precision)
        lit = self._setup_module(self.adapted, plan)
        loaders = self._setup_loaders(plan)
        callbacks = self._setup_callbacks(plan, loaders, run, store)
        if isinstance(lit, TrainingModule):
            lit.gradient_norm = lambda: callbacks.watchers.gradients.total
        self._log_start(run, plan, newest, f"{precision} ({why})")
        with (
            quiet_lightning(),
            self._setup_compilation(plan, precision, done) as compilation,
        ):
            engine = self._setup_engine(plan, callbacks, store, precision)
            precision = str(engine.precision)  # what Lightning really uses
            self.engine, self.module = engine, lit
            facts = {
                **reasons,
                "tokenizer_reason": _tokenizer_reason(self.tokenizer),
                "precision": precision,
                "precision_reason": why,
                "compile_mode": compilation.mode,
                "compile_reason": compilation.reason,
                "micro_batch_reason": micro_batch,
                "forecast": None if forecast is None else forecast.summary(),
                "task": self.adapted.contract.task,
                "class_names": list(self.class_names),
                "resumed_from_step": newest.step if newest is not None else 0,
            }
            callbacks.checkpoint.facts = {**facts, **plan.facts}
            self._fit(engine, lit, loaders, callbacks, store, newest)
            if isinstance(lit, TrainingModule):
                lit.put_together()
            self._hand_over_best(lit, store, callbacks)
        self.adapted.eval()
        return self._collect(plan, run, store, callbacks, facts)

    # ---- steps, each of which a subclass can override ----------------------------------------------------------------
    def _setup_data(self, train_data: Any, val_data: Any) -> Plan:
        """Blocks of both parts, and how many steps they make."""
        train, validation = self._setup_samples(train_data, val_data)
        settings = self.settings
        window = fit_window(len(train), settings.batch_size, settings.gradient_accumulation_steps)
        if window.why:
            logger.warning("%s", window.why)
        check_enough(window, self.processes)
        per_epoch = window.steps(len(train))
        total = settings.max_steps if settings.max_steps is not None else settings.epochs * per_epoch
        bits = LossesPerByte(self._bits(train), self._bits(validation))
        scored = bits.validation.size if isinstance(bits.validation, BitsPerByte) else None
        return Plan(train, validation, window, total, per_epoch, bits, scored)

    def _setup_samples(self, train_data: Any, val_data: Any) -> tuple[Samples, Samples | None]:
        """Samples of both parts, for the task of the model."""
        maker = SampleMaker(self.adapted, self.settings, self.tokenizer, self.workspace / ".cache", self.spec)
        found = maker.both(train_data, val_data)
        self.tokenizer, self.class_names = maker.tokenizer, maker.class_names
        return found

    def _bits(self, samples: Samples | None) -> BitsPerByte | None:
        known = (
            self.adapted.contract.task == "lm"
            and isinstance(samples, (PackedBlocks, PaddedDocuments, StreamedBlocks))
            and self.tokenizer is not None
        )
        return BitsPerByte.of(samples, self.tokenizer) if known else None  # type: ignore[arg-type]

    def _setup_objective(self, adapted: AdaptedModel) -> tuple[AdaptedModel, str]:
        """The model to train, on the task of its contract, and why that is honest for it."""
        mode = self.settings.objective
        if self.spec is not None and mode == "auto" and self.spec.task == "masked":
            mode = "masked"
        chosen, reason = choose_objective(adapted, mode)
        if self.spec is not None and self.spec.task != chosen.contract.task:
            raise TrainingError(
                f"The task is {self.spec.task!r}, and {adapted.name} is a {chosen.contract.task!r} model. Take a TaskSpec of its "
                "task, or say what the model is: AdaptedModel(model, config, contract=CallContract(task=..., ...))."
            )
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
            write_recipe(run.path, self.adapted, self.data_origin, self._not_written_down())
            if plan.validation is not None and not run.continues:
                drift_between(plan.train, plan.validation, self.tokenizer).save(run.path / DRIFT_FILE)
        except BaseException:
            run.leave()
            raise
        return run

    def _not_written_down(self) -> dict[str, str]:
        """What goes into the run and only a program can bring again."""
        found = {} if self.spec is None else {"task_spec": f"{self.spec.name} was passed by a program"}
        if type(self).__module__.split(".")[0] != "utils":
            found["trainer"] = f"the class {type(self).__qualname__} of a program"
        return found

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
        sample = self._sample(plan, SAMPLE_ROWS)
        self.adapted.check_inputs(sample["input_ids"] if "input_ids" in sample else sample["pixel_values"])
        return initialise(self.adapted, self.settings.initialisation, sample, self.settings.random_seed)

    def _sample(self, plan: Plan, rows: int) -> dict[str, torch.Tensor]:
        """A batch of training data."""
        return plan.train.__getitems__(range(min(len(plan.train), plan.window.batch_size, rows)))

    def _setup_module(self, adapted: AdaptedModel, plan: Plan) -> pl.LightningModule:
        """The Lightning module, with optimizer and schedule of this trainer where a subclass brings them."""
        loss = self._setup_loss(adapted)
        lit = TrainingModule(adapted, self.settings, plan.total_steps, loss, self.tokenizer, self.processes)
        optimizer = self._setup_optimizer(adapted)
        if optimizer is None and type(self)._setup_scheduler is not Trainer._setup_scheduler:
            optimizer = lit.usual_optimizer()  # a schedule of one's own for the usual optimizer
        if optimizer is not None and self.settings.strategy == "fsdp":
            raise ConfigError(
                "strategy='fsdp' trains shards of the weights, which an optimizer of one's own does not know: take strategy='ddp', "
                "or leave _setup_optimizer and _setup_scheduler as they are."
            )
        if optimizer is not None:
            lit.configure_optimizers = lambda: self._optimizer_and_schedule(optimizer, plan)  # type: ignore[method-assign]
        return lit

    def _setup_loss(self, adapted: AdaptedModel) -> LossStrategy:
        """What a batch costs."""
        task = adapted.contract.task
        if self.spec is None:
            return LossStrategyRegistry.for_task(task)
        strategy = LossStrategyRegistry.get(self.spec.loss)
        if strategy.task != task:
            raise TrainingError(
                f"The loss {strategy.name!r} is for the task {strategy.task!r}, and {adapted.name} is trained on {task!r}. Take "
                f"a TaskSpec with loss={LossStrategyRegistry.for_task(task).name!r}, or a strategy of that task."
            )
        return strategy

    def _setup_optimizer(self, adapted: AdaptedModel) -> Optimizer | None:
        """Another optimizer than AdamW, or None."""
        return None

    def _setup_scheduler(self, optimizer: Optimizer, total_steps: int) -> Any:
        """A schedule, stepped once per optimizer step, for the optimizer of `_setup_optimizer`; None keeps the rate constant."""
        return None

    def _setup_loaders(self, plan: Plan) -> Loaders:
        """Loaders over both parts."""
        settings = self.settings
        factory = DataLoaderFactory(
            settings.random_seed,
            pin_memory=self.device.type == "cuda",
            workers=settings.num_workers,
            hand=Hand(self.processes.rank, self.processes.world),
        )
        window = plan.window
        validation = (
            None
            if plan.validation is None
            else factory.validation(plan.validation, window.batch_size, window.accumulation)
        )
        return Loaders(factory.train(plan.train, window), validation)

    def _setup_callbacks(self, plan: Plan, loaders: Loaders, run: RunFolder, store: CheckpointStore) -> Callbacks:
        """The callbacks of the run; the one that saves comes last."""
        settings = self.settings
        training = TrainingLoop(plan.total_steps, processes=self.processes)
        validation = ValidationLoop(settings.val_every_n_steps)
        resumable = ResumableCheckpoint(
            store,
            settings,
            loaders.sampler,
            training,
            validation,
            plan.validation is not None,
            stop=self.stop,
            processes=self.processes,
        )
        return Callbacks(
            training,
            validation,
            deciders(settings, training, validation),
            watchers(
                run,
                settings,
                training,
                validation,
                plan.bits,
                plan.tokens_per_step,
                self.progress,
                self.hooks,
                self._mirrored,
                {"model": self.adapted.name, "parameters": self.adapted.num_parameters()},
                self.plot,
                self.processes,
                self.group,
            ),
            resumable,
            stream_places(plan.train),
        )

    def _mirrored(self) -> str:
        """How far the mirror is, for the progress display."""
        return "" if self.mirror is None else self.mirror.status.summary()

    def _setup_precision(self, plan: Plan) -> tuple[str, str]:
        """Precision and its reason."""
        if self.settings.precision != "auto":
            return self.settings.precision, "set by precision="
        return pick_precision(self.device, probe=lambda: find_overflow(self.adapted, self._sample(plan, SAMPLE_ROWS)))

    def _setup_choices(self, plan: Plan, run: RunFolder) -> dict[str, Any]:
        """Precision, and the micro-batch in `plan.window`; a run that continues keeps those that it began with."""
        kept = run.path / CHOICES_FILE
        if kept.is_file():
            found = dict(json.loads(kept.read_text(encoding="utf-8")))
            plan.window = Window(found["batch_size"], found["accumulation"], plan.window.why)
            if found["precision"] == "16-mixed" and self.device.type != "cuda":
                precision, why = self._setup_precision(plan)
                logger.warning(
                    "the run began in 16-mixed, which %s has not: it goes on in %s, with close losses instead of equal ones",
                    self.device.type.upper(),
                    precision,
                )
                found |= {"precision": precision, "precision_reason": why}
            return found
        precision, why = self._setup_precision(plan)
        plan.window, reason = self._setup_micro_batch(plan, precision)
        found = {
            "precision": precision,
            "precision_reason": why,
            "batch_size": plan.window.batch_size,
            "accumulation": plan.window.accumulation,
            "micro_batch_reason": reason,
        }
        write_json(kept, found)
        return found

    def _setup_micro_batch(self, plan: Plan, precision: str) -> tuple[Window, str]:
        """Micro-batches that fit into the GPU's memory, and why; the product of micro-batch and accumulation stays."""
        window = plan.window
        if not self.settings.fit_batch_to_memory or self.device.type != "cuda":
            return window, "that of the settings"
        fitted = fit_to_memory(
            self.adapted.to(self.device),
            largest_batches(plan.train),
            window.batch_size,
            window.accumulation,
            precision,
            self.settings.ema_decay is not None,
        )
        logger.info("micro-batch: %s", fitted.reason)
        return Window(fitted.batch_size, fitted.accumulation, window.why), fitted.reason

    def _setup_forecast(self, plan: Plan, precision: str) -> Forecast | None:
        """What the run will take, where somebody watches its progress and the measurement fits into memory.

        It is measured in one process, and several of them are not told by it.
        """
        if self.progress is ignore_progress or self.processes.several:
            return None
        return self._measured_forecast(plan, precision)

    def _measured_forecast(self, plan: Plan, precision: str) -> Forecast | None:
        """What the run will take; None where a copy of the model does not fit beside it."""
        settings = dataclasses.replace(self.settings, precision=precision)
        try:
            found = forecast(
                self.adapted.to(self.device),
                settings,
                plan.train,
                plan.validation,
                window=plan.window,
                workspace=self.workspace,
                device=self.device,
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("no forecast: a copy of the model, on which it is measured, does not fit beside the model")
            return None
        logger.log(logging.INFO if found.fits else logging.WARNING, "%s", found.summary())
        return found

    def _setup_memory(self) -> contextlib.AbstractContextManager[str]:
        """Gradient checkpointing, for the time of the training."""
        return checkpointed(self.adapted) if self.settings.gradient_checkpointing else contextlib.nullcontext("off")

    def _setup_compilation(
        self, plan: Plan, precision: str, done: bool
    ) -> contextlib.AbstractContextManager[Compilation]:
        """torch.compile, for the time of the training."""
        if done:
            return contextlib.nullcontext(Compilation("off", "nothing was left to train"))
        dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision, torch.float32)
        batch = self._sample(plan, plan.window.batch_size) if self.settings.compile_mode != "off" else {}
        return compiled(self.adapted, self.settings.compile_mode, batch, dtype)

    def _setup_engine(self, plan: Plan, callbacks: Callbacks, store: CheckpointStore, precision: str) -> pl.Trainer:
        """The one `pytorch_lightning.Trainer` of the run."""
        every, window = self.settings.val_every_n_steps, plan.window
        return pl.Trainer(
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            **spread(self.settings, self.processes, self.adapted, lambda: self._sample(plan, SAMPLE_ROWS)),
            precision=precision,  # type: ignore[arg-type]
            max_epochs=math.ceil(plan.total_steps / plan.steps_per_epoch),
            accumulate_grad_batches=micro_batches(window.accumulation, self.processes.world),
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
        if newest is not None and (newest.ends or newest.step >= callbacks.training.total_steps):
            finished = store.load(store.folder / newest.file)
            lit.load_state_dict(finished["state_dict"])
            callbacks.restore_finished(finished)
            return
        lit.train()  # Lightning keeps the mode in which a model comes, and one in eval mode would train without dropout
        with interruptible():
            if newest is None and loaders.validation is not None:
                engine.validate(lit, loaders.validation, verbose=False)
                end_where_asked(engine)
            path = None if newest is None else str(store.folder / newest.file)
            engine.fit(lit, loaders.train, loaders.validation, ckpt_path=path, weights_only=True)

    def _hand_over_best(self, lit: pl.LightningModule, store: CheckpointStore, callbacks: Callbacks) -> None:
        """Where validation ended the run, the weights of its best validation are what is handed over."""
        best = self.processes.lead(store.best) if callbacks.training.ended else None
        if best is not None:
            lit.load_state_dict(store.load(store.folder / best.file)["state_dict"])
            logger.info("the weights are those of step %d, the best validation (%.3f)", best.step, best.val_loss)

    def _optimizer_and_schedule(self, optimizer: Optimizer, plan: Plan) -> dict[str, Any]:
        schedule = self._setup_scheduler(optimizer, plan.total_steps)
        if schedule is None:
            return {"optimizer": optimizer}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _log_start(self, run: RunFolder, plan: Plan, newest: CheckpointMetadata | None, precision: str) -> None:
        changed = {} if newest is None else changed_environment(newest.versions)
        if changed:
            words = ", ".join(f"{name} {before} → {now}" for name, (before, now) in changed.items())
            logger.warning("the run goes on with %s: the same samples, with close losses instead of equal ones", words)
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
        if self.processes.leads:
            callbacks.watchers.metrics.write()
        values = {
            **histories(callbacks.training, callbacks.validation, plan.bits),
            **callbacks.watchers.histories(),
            **places(run.path, store),
            "scored_bytes": plan.scored_bytes,
            "block_length": plan.train.longest,
            **facts,
        }
        if not run.finished and self.processes.leads:
            run.write_manifest({"steps": callbacks.training.total_steps, "versions": environment(), **facts})
        result = TrainingResult(self.adapted, self.tokenizer, self.settings, values)
        if self.processes.leads:
            self.hooks.on_training_end(result)
        return result


def _tokenizer_reason(tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    """Why this tokenizer was chosen, where `AdaptiveTokenizer` chose it."""
    choice = getattr(tokenizer, "choice", None)
    return None if choice is None else f"{choice.strategy}: {choice.reason}"
