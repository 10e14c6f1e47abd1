"""A folder that transformers loads by itself: weights, config, code, tokenizer. Nothing in it needs this package.

A model of transformers that is as it came is saved as such. Any other brings its source (completed where it was), a rendered
`modeling_….py` that builds and calls it, and copies of the files that hold the calling contract. What a folder cannot express
is refused with its name. How the model was built is found out in `recovery`, its source in `slices`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from utils._extras import require
from utils._files import list_files, write_json, write_text
from utils._pages import render
from utils.adapters.model_adapter import AdaptedModel
from utils.errors import ExportError
from utils.export.artifact import Artifact
from utils.export.exporter import Exporter, described
from utils.export.hf_runner import FACTS_FILE, FORMAT_VERSION
from utils.export.model_card import CARD_FILE, CARD_FILES, CardInputs, write_model_card
from utils.export.parity import Tolerance
from utils.export.purposes import HEADS, purpose_of
from utils.export.recovery import Blueprint, blueprint_of, constants_of, original_class
from utils.export.signature import Signature
from utils.export.slices import is_installed, slice_of
from utils.export.standalone import PREFIX, copies_of, file_name_of
from utils.export.subject import ExportSubject, undisturbed
from utils.export.weights import tied_names, weights_sha256
from utils.loading.config_namespace import ConfigNamespace
from utils.loading.sources import module_path, prepare_package

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE = Path(__file__).with_name("templates") / "hf" / "modeling.py.j2"
GENERATION_FILE = "generation_config.json"
SLICE_FILE = "model_source.py"
"""Holds the classes of a model that did not come as files."""

_COPIED = ("utils.adapters.contract", "utils.adapters.losses", "utils.export.recipes")
_COPIED_WHERE_CAUSAL = ("utils.adapters.attention", "utils.adapters.causal_mode")


def write_hf_folder(
    adapted: AdaptedModel,
    signature: Signature,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: str | Path,
    facts: Mapping[str, str] | None = None,
    labels: Sequence[str] | None = None,
) -> list[Path]:
    """Write a folder that `AutoModel….from_pretrained(folder, trust_remote_code=True)` loads.

    Args:
        adapted: the model, in float32 on the CPU.
        signature: what the folder takes and gives.
        tokenizer: its files go along; None for a model without text.
        folder: new or empty.
        facts: what is known about the model, for export.json.
        labels: names of the classes of a classifier.

    Returns:
        Paths of all files, the one to load (config.json) first.

    Raises:
        ExportError: the model cannot be built again from such a folder; the message names what keeps it from that.
        MissingPackageError: transformers is not installed.
    """
    require("transformers", extra="training", feature="A Hugging Face folder")
    _check_tokenizer(tokenizer)
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    _refuse_without_head(adapted)
    auto_class = _auto_class_of(adapted)
    if auto_class is not None:
        _save_as_it_is(adapted.model, root)
        if tokenizer is not None and (root / GENERATION_FILE).is_file():
            _write_generation(adapted, tokenizer, root)
        digest = weights_sha256(adapted.model)
    else:
        auto_class = f"AutoModelFor{HEADS[purpose_of(adapted.contract)]}"
        _CodeFolder(adapted, blueprint_of(adapted), tokenizer, labels).write(root)
        digest = weights_sha256(adapted)
    if tokenizer is not None:
        _write_tokenizer(tokenizer, root, pads_left=adapted.contract.task == "lm")
    write_json(
        root / FACTS_FILE,
        {
            "format_version": FORMAT_VERSION,
            "auto_class": auto_class,
            "signature": signature.to_dict(),
            "weights_sha256": digest,
            "facts": dict(facts or {}),
            "files": [entry for entry in list_files(root) if entry["name"] not in CARD_FILES],
        },
    )
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [root / "config.json", *(path for path in files if path != root / "config.json")]


def _check_tokenizer(tokenizer: object) -> None:
    from transformers import PreTrainedTokenizerBase

    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ExportError(
            f"A folder for transformers needs a tokenizer of transformers; got {type(tokenizer).__module__}."
            f"{type(tokenizer).__name__}, which it cannot save. Wrap one of the tokenizers library: tokenizer="
            "transformers.PreTrainedTokenizerFast(tokenizer_object=…)."
        )


def _special_ids(adapted: AdaptedModel, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, int]:
    """The ids that config and generation need to know, where there are such."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    ids = {name: getattr(tokenizer, name, None) for name in names}
    if adapted.contract.decoder_name is not None:
        ids["decoder_start_token_id"] = adapted.contract.start_id
    return {name: index for name, index in ids.items() if index is not None}


def _write_generation(
    adapted: AdaptedModel, tokenizer: PreTrainedTokenizerBase | None, root: Path, **settings: Any
) -> None:
    """Settings of `model.generate`: those that are there, the tokenizer's ids, and only ids that have a text are drawn."""
    from transformers import GenerationConfig

    path = root / GENERATION_FILE
    before = GenerationConfig.from_pretrained(root) if path.is_file() else GenerationConfig()
    ids = _special_ids(adapted, tokenizer)
    if "eos_token_id" in ids:
        ids.setdefault("pad_token_id", ids["eos_token_id"])
    before.update(**settings, **ids, suppress_tokens=_never_drawn(adapted, tokenizer) or None)
    before.save_pretrained(root)


def _never_drawn(adapted: AdaptedModel, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """Ids without text, and special ones but end-of-text, as in `utils.generate`."""
    if tokenizer is None:
        return []
    allowed = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids) | {tokenizer.eos_token_id}
    return [index for index in range(adapted.contract.output_size or 0) if index not in allowed]


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, root: Path, pads_left: bool) -> None:
    """The tokenizer's files; one that continues texts pads them at the front, where `generate` needs it."""
    tokenizer.save_pretrained(str(root))
    settings = root / "tokenizer_config.json"
    if pads_left and settings.is_file():
        write_json(settings, {**json.loads(settings.read_text(encoding="utf-8")), "padding_side": "left"})


class HFFolderExporter(Exporter):
    """Writes a folder of transformers."""

    format: ClassVar[str] = "hf"
    file_name: ClassVar[str] = "hf"
    tolerance: ClassVar[Tolerance] = Tolerance(
        max_abs_diff=1e-5,
        bits_per_byte=1e-5,
        reason="the same code and weights in the same runtime: only another order of sums in fused kernels may show",
    )

    def __init__(self) -> None:
        """Check that transformers and safetensors are installed.

        Raises:
            MissingPackageError: one is missing; the message holds the install command.
        """
        for package in ("transformers", "safetensors"):
            require(package, extra="training", feature="A Hugging Face folder")

    def write(self, subject: ExportSubject, path: Path) -> Artifact:
        """Write the folder with a card that knows the model alone. See `Exporter.write`."""
        facts = described(subject, None, "transformers", "safetensors")
        with undisturbed(subject.adapted):
            write_hf_folder(subject.adapted, subject.signature, subject.tokenizer, path, facts, subject.labels or None)
            write_model_card(
                CardInputs(subject.adapted, tokenizer=subject.tokenizer, files={"hf": "."}), path / CARD_FILE
            )
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return Artifact(self.format, path, tuple(files), facts=facts)


# ---- models of transformers -----------------------------------------------------------------------------------------
def _auto_class_of(adapted: AdaptedModel) -> str | None:
    """The auto class that loads the model without any code; None where code must go along."""
    import transformers

    model = adapted.model
    cls = type(model)
    as_it_came = cls.__module__.startswith("transformers.") and adapted.completion.status == "direct"
    if not as_it_came or not isinstance(model, transformers.PreTrainedModel) or "causality" in adapted.contract.reasons:
        return None
    for head in HEADS.values():
        auto = getattr(transformers, f"AutoModelFor{head}")
        known = auto._model_mapping.get(type(model.config), None)
        if cls is known or (isinstance(known, (tuple, list)) and cls in known):
            return str(auto.__name__)
    return None


def _save_as_it_is(model: Any, root: Path) -> None:
    """Save a model of transformers, which notes the type and the class in its config while it does so."""
    config = model.config
    model.config = copy.deepcopy(config)
    try:
        model.save_pretrained(root)
    except RuntimeError as error:  # e.g. weights that share memory in a way that safetensors cannot hold
        raise ExportError(
            f"transformers cannot save this {type(model).__name__} ({error}). Call model.save_pretrained yourself to see where, "
            "or choose another format."
        ) from error
    finally:
        model.config = config


def _refuse_without_head(adapted: AdaptedModel) -> None:
    if not adapted.contract.scores_tokens:
        raise ExportError(
            f"{adapted.name} gives hidden states and no scores for its tokens: there is no auto class that would load it with a "
            "loss. Add a head, or load it with one (AutoModelForCausalLM instead of AutoModel)."
        )


# ---- models with code of their own ----------------------------------------------------------------------------------
@dataclass
class _CodeFolder:
    """Writes weights, code and config of a model that transformers does not know."""

    adapted: AdaptedModel
    blueprint: Blueprint
    tokenizer: PreTrainedTokenizerBase | None
    labels: Sequence[str] | None
    sources: dict[str, str] = field(default_factory=dict)
    imports: list[str] = field(default_factory=list)

    @property
    def class_name(self) -> str:
        return original_class(self.adapted.model).__name__

    @property
    def prefix(self) -> str:
        """Of the rendered classes; the author's file may have a GPTConfig of its own."""
        return f"Adapted{self.class_name}"

    @property
    def slug(self) -> str:
        """The class's name as a file and model type may hold it."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", self.class_name).lower()

    @property
    def head(self) -> str:
        return HEADS[purpose_of(self.adapted.contract)]

    def write(self, root: Path) -> None:
        """Everything but the tokenizer."""
        config = self.config()  # with the contract's constants, whose classes go into the sources
        self._find_sources()
        for name, text in {**self.sources, **self._copies(), f"modeling_{self.slug}.py": self._modeling()}.items():
            write_text(root / name, text)
        self._write_weights(root / "model.safetensors")
        write_json(root / "config.json", config)
        if self.head in ("CausalLM", "Seq2SeqLM"):
            _write_generation(self.adapted, self.tokenizer, root, use_cache=False)

    # ---- code -------------------------------------------------------------------------------------------------------
    def _find_sources(self) -> None:
        """The files that define the classes, and the lines that import these."""
        own = {
            name: cls
            for name, cls in self.blueprint.classes.items()
            if not is_installed(cls) and cls is not ConfigNamespace
        }
        for name, cls in self.blueprint.classes.items():
            if cls is ConfigNamespace:
                self.imports.append(f"from .{file_name_of(cls.__module__).removesuffix('.py')} import {name}")
            elif name not in own:
                self.imports.append(f"from {cls.__module__} import {name}")
        files = self._files_as_they_came()
        if files is not None and own:
            self.sources = files
            self.imports += [f"from .{cls.__module__.rpartition('.')[2]} import {name}" for name, cls in own.items()]
            named = {cls.__module__.rpartition(".")[2] for cls in own.values()}
            others = sorted({file.removesuffix(".py") for file in files} - named)
            # transformers copies the files that it finds in lines of this form
            self.imports += [f"from .{file} import __name__ as _{file}" for file in others]
        elif own:
            self.sources = {SLICE_FILE: self._slice(own)}
            self.imports.append(f"from .{SLICE_FILE.removesuffix('.py')} import {', '.join(own)}")
        self._refuse_meeting_names()

    def _files_as_they_came(self) -> dict[str, str] | None:
        """The files that `load_model` read, completed and with relative imports; None where some lie in folders."""
        source, completion = self.adapted.source, self.adapted.completion
        if source is None or source.arguments is None:
            return None
        files = {name: text for name, text in source.files.items() if name.endswith(".py")}
        files[source.file_name] = completion.source_after or source.text
        if any("/" in name for name in files) or any(module_path(n) != n.removesuffix(".py") for n in files):
            return None
        return {name: raw.decode("utf-8") for name, raw in prepare_package(files).items() if name != "__init__.py"}

    def _slice(self, own: Mapping[str, type]) -> str:
        completion = self.adapted.completion
        root = original_class(self.adapted.model)
        texts = {root: completion.source_after} if completion.status == "completed" and completion.source_after else {}
        return slice_of(own.values(), texts)

    def _refuse_meeting_names(self) -> None:
        taken = {name for name in self.sources if name.startswith((PREFIX, "modeling_"))}
        if taken:
            raise ExportError(
                f"The model's own files {', '.join(sorted(taken))} bear names that the folder needs; rename them."
            )

    def _copies(self) -> dict[str, str]:
        wanted = [*_COPIED, *(_COPIED_WHERE_CAUSAL if self.blueprint.made_causal else ())]
        if ConfigNamespace in self.blueprint.classes.values():
            wanted.append(ConfigNamespace.__module__)
        return copies_of(wanted)

    def _modeling(self) -> str:
        return render(
            TEMPLATE,
            class_name=self.class_name,
            prefix=self.prefix,
            model_type=self.model_type,
            auto_class=f"AutoModelFor{self.head}",
            source_files=sorted(self.sources) or ["of an installed package"],
            made_causal=self.blueprint.made_causal,
            imports=self.imports,
            classes=sorted(self.blueprint.classes),
            main_input="input_ids" if self.adapted.contract.takes_tokens else "pixel_values",
        )

    # ---- config -----------------------------------------------------------------------------------------------------
    @property
    def model_type(self) -> str:
        return f"adapted_{self.slug}"

    def config(self) -> dict[str, Any]:
        """Content of config.json."""
        made, contract = self.blueprint, dataclasses.asdict(self.adapted.contract)
        contract["constants"] = constants_of(self.adapted, made.classes)
        del contract["reasons"]  # sentences for people; the card tells them
        tied = {f"model.{name}": f"model.{first}" for name, first in tied_names(self.adapted.model).items()}
        module = f"modeling_{self.slug}"
        return {
            "architectures": [f"{self.prefix}For{self.head}"],
            "auto_map": {
                "AutoConfig": f"{module}.{self.prefix}Config",
                f"AutoModelFor{self.head}": f"{module}.{self.prefix}For{self.head}",
            },
            "model_type": self.model_type,
            "dtype": "float32",
            "recipe": made.recipe,
            "changes": made.changes,
            "causal": {"twins": made.twins, "rules": made.rules},
            "contract": contract,
            "tied_weights": tied,
            "tie_word_embeddings": bool(tied),
            "is_encoder_decoder": self.adapted.contract.decoder_name is not None,
            **self._sizes(),
            **_special_ids(self.adapted, self.tokenizer),
            **self._classes(),
        }

    def _sizes(self) -> dict[str, Any]:
        """Sizes under the names that transformers gives them, where they are known."""
        config, contract = self.adapted.config, self.adapted.contract
        shape = contract.image_shape
        sizes = {
            "vocab_size": contract.vocab_size,
            "hidden_size": config.d_model,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "max_position_embeddings": contract.max_length,
            "num_channels": shape[0] if shape else None,
            "image_size": list(shape[1:]) if shape else None,
        }
        return {name: size for name, size in sizes.items() if size is not None}

    def _classes(self) -> dict[str, Any]:
        if purpose_of(self.adapted.contract) not in ("classification", "tokens", "vision"):
            return {}
        count = self.adapted.contract.output_size or 0
        names = list(self.labels) if self.labels is not None else [f"LABEL_{index}" for index in range(count)]
        if len(names) != count:
            raise ExportError(f"labels= names {len(names)} classes, the model scores {count}.")
        return {
            "id2label": {str(index): name for index, name in enumerate(names)},
            "label2id": {name: index for index, name in enumerate(names)},
        }

    # ---- weights ----------------------------------------------------------------------------------------------------
    def _write_weights(self, path: Path) -> None:
        require("safetensors", extra="training", feature="A Hugging Face folder")
        from safetensors.torch import save_file

        tied = tied_names(self.adapted.model)
        state = {}
        for name, tensor in self.adapted.model.state_dict().items():
            if not isinstance(tensor, torch.Tensor):
                raise ExportError(f"{name} of {self.adapted.name} is no tensor, which model.safetensors cannot hold.")
            if name not in tied:
                state[f"model.{name}"] = tensor.detach().cpu().contiguous().clone()
        save_file(state, path, metadata={"format": "pt"})
