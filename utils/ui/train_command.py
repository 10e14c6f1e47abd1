"""`python -m utils train`: flags made from `TrainingConfig`, then load, adapt, train, and export where that was asked for.

Every flag's name, kind, default and help come from the dataclass. Parsing the rest of the command line is for `__main__`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError
from utils.training.config_versions import FORMAT_VERSION
from utils.training.presets import PRESETS
from utils.training.run_folder import RESUMES
from utils.training.setting_names import nearest
from utils.training.setting_text import read, written
from utils.training.training_config import GROUPS, TrainingConfig, setting_docs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from utils.adapters.model_adapter import AdaptedModel
    from utils.training.engine.processes import Processes
    from utils.training.result import TrainingResult

PREFIX = "setting_"
"""Of the names under which argparse keeps settings, so that they never meet another option's."""

USAGE = "python -m utils train SOURCE [--data DATA] [--config FILE | --preset NAME] [--SETTING VALUE …]"
_METAVARS = {int: "COUNT", float: "NUMBER", str: "TEXT"}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes: source, data, where settings come from, and one flag for each setting."""
    command.add_argument("source", nargs="?", help="gist id, gist URL, folder or model.py")
    command.add_argument(
        "--data", default="python-docs", help="text: a bundled name, a path or a Hub data set (default: %(default)s)"
    )
    base = command.add_mutually_exclusive_group()
    base.add_argument("--config", metavar="FILE", help="settings as JSON or YAML; flags override them")
    listed = ", ".join(PRESETS)
    base.add_argument("--preset", metavar="NAME", help=f"settings for a purpose, instead of a file: {listed}")
    command.add_argument("--print-config", action="store_true", help="print the settings as JSON and train nothing")
    command.add_argument("--tokenizer", metavar="DIR", help="a tokenizer of your own: folder, file or Hub name")
    command.add_argument("--workspace", metavar="DIR", help="folder of the runs (default: checkpoint_dir)")
    command.add_argument(
        "--resume",
        choices=RESUMES,
        default="auto",
        help="; ".join(f"{name}: {meaning}" for name, meaning in RESUMES.items()) + " (default: auto)",
    )
    command.add_argument("--trust", action="store_true", help="run code in spite of risky calls that the review found")
    command.add_argument("--strict", action="store_true", help="refuse completions that rest on conventions")
    _add_settings(command)


def flag(name: str) -> str:
    """The flag of a setting: learning_rate → --learning-rate."""
    return "--" + name.replace("_", "-")


def meant(words: str) -> str:
    """For a message of argparse about unknown flags: which ones were most likely meant; empty for none."""
    known = [field.name for field in dataclasses.fields(TrainingConfig)]
    given = [word.split("=")[0] for word in words.split() if word.startswith("--")]
    pairs = [(word, nearest(word.lstrip("-"), known)) for word in given]
    return "".join(f"\n  {word}: did you mean {flag(name)}?" for word, name in pairs if name is not None)


def settings_from(options: argparse.Namespace) -> TrainingConfig:
    """The settings of a command line: those of the file or preset, else the defaults, and over them those of the flags.

    Raises:
        ConfigError: everything that is wrong with them, together.
    """
    if options.config is not None:
        settings = TrainingConfig.load(options.config).to_dict()
    else:
        settings = (TrainingConfig() if options.preset is None else TrainingConfig.preset(options.preset)).to_dict()
    hints = typing.get_type_hints(TrainingConfig)
    given = {name.removeprefix(PREFIX): text for name, text in vars(options).items() if name.startswith(PREFIX)}
    return TrainingConfig.from_dict({**settings, **{name: read(text, hints[name]) for name, text in given.items()}})


def run_training(options: argparse.Namespace) -> int:
    """Train as the options say; returns the exit code.

    Raises:
        TransformerBuilderError: what cannot be done, in one sentence.
    """
    settings = settings_from(options)
    if options.print_config:
        print(json.dumps({"format_version": FORMAT_VERSION, **settings.to_dict()}, indent=2, ensure_ascii=False))
        return 0
    if options.source is None:
        raise ConfigError(
            "train needs a model: a gist id, gist URL, folder or model.py. (--print-config alone needs none.)"
        )
    processes = _processes()
    processes.together(lambda: _check_early(settings))
    result = _train(options, settings, processes)
    if not processes.leads:
        return 0
    print(result.summary())
    if settings.export_bundle:
        print(_export(result, settings))
    return 0


def _add_settings(command: argparse.ArgumentParser) -> None:
    docs, hints, defaults = setting_docs(), typing.get_type_hints(TrainingConfig), TrainingConfig().to_dict()
    for group, names in GROUPS.items():
        section = command.add_argument_group(f"settings: {group}")
        for name in names:
            text = f"{docs[name]} (default: {written(defaults[name])})".replace("%", "%%")
            options: dict[str, Any] = {"dest": PREFIX + name, "default": argparse.SUPPRESS, "help": text}
            if hints[name] is bool:
                section.add_argument(flag(name), action=argparse.BooleanOptionalAction, **options)
            else:
                section.add_argument(flag(name), metavar=_metavar(hints[name]), **options)


def _metavar(hint: Any) -> str:
    if typing.get_origin(hint) is list:
        return "NAME[,NAME…]"
    kinds = typing.get_args(hint) or (hint,)
    return next(word for kind, word in _METAVARS.items() if kind in kinds)


def _check_early(settings: TrainingConfig) -> None:
    """Refuse, before anything is fetched, what would fail after the training or at its start."""
    from utils.training.engine.strategy_guard import check_strategy

    check_strategy(settings)
    if settings.export_bundle:
        from utils.export.exporter import exporter_for

        for name in settings.export_formats:
            exporter_for(name)


def _processes() -> Processes:
    """Those that torchrun, or a cluster, started with this one."""
    from utils.training.engine.processes import Processes

    processes = Processes.here()
    if not processes.leads:
        logging.getLogger().setLevel(logging.ERROR)  # the leading process says what all of them would say
    return processes


def _train(options: argparse.Namespace, settings: TrainingConfig, processes: Processes) -> TrainingResult:
    import utils

    adapted = processes.in_turn(
        lambda: utils.adapt(utils.load_model(options.source, trust=options.trust), strict=options.strict)
    )
    completed = len(adapted.completion.completions)
    note = f", {completed} statements completed (python -m utils inspect shows them)" if completed else ""
    if processes.leads:
        print(f"{adapted.name}: {adapted.num_parameters():,} parameters{note}", file=sys.stderr)
    workspace = Path(options.workspace if options.workspace is not None else settings.checkpoint_dir).expanduser()
    try:
        return utils.train(
            adapted,
            options.data,
            settings,
            tokenizer=processes.in_turn(lambda: own_tokenizer(options.tokenizer, adapted, workspace)),
            workspace=workspace,
            resume=options.resume,
            progress=processes.leads,
        )
    except KeyboardInterrupt:
        if processes.leads:
            print("The same command goes on from the newest checkpoint.", file=sys.stderr)
        raise


def own_tokenizer(own: str | None, adapted: AdaptedModel, workspace: Path) -> PreTrainedTokenizerBase | None:
    """The person's own tokenizer, fitted to the model's rows; None leaves the choice to the training."""
    if own is None:
        return None
    from utils.tokenization.adaptive_tokenizer import AdaptiveTokenizer

    rows = adapted.contract.vocab_size
    if rows is None:
        raise ConfigError(
            f"--tokenizer: how many token ids {adapted.name} takes is unknown; name vocab_size in its config."
        )
    return AdaptiveTokenizer.load_or_create(rows, cache_dir=workspace / ".cache" / "tokenizers", own=own)


def _export(result: TrainingResult, settings: TrainingConfig) -> str:
    from utils.export.bundle import export
    from utils.progress import Progress

    with Progress("Export", unit="steps") as progress:
        bundle = export(result, settings.export_formats, result.run_folder / "export", progress=progress)
    return bundle.summary()
