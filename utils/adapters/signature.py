"""How a model wants to be called. Reads signatures and asks the model once; leaves completing sources to `graph_executor`.

`infer_contract` settles names, masks, extra arguments, output layout, vocabulary rows and the length limit with one tiny
probe that leaves the model as it was.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from utils.adapters.model_outputs import LogitsSelector, find_logits, tensors_in
from utils.adapters.probing import (
    PROBE_LENGTH,
    Lookup,
    embedding_lookups,
    ids_below,
    left_as_it_was,
    position_limits,
    tables_of,
)
from utils.errors import CallContractError
from utils.loading.model_config import ModelConfig

INPUT_NAMES = ("input_ids", "idx", "tokens", "token_ids", "input_tokens", "inputs", "ids", "src", "x", "input", "inp")
"""Names of the argument that takes token ids, the usual ones first."""

MASK_NAMES = ("attention_mask", "attn_mask", "mask", "padding_mask", "key_padding_mask", "src_key_padding_mask")
"""Names of arguments that take a mask."""

LABEL_NAMES = ("labels", "targets", "target", "y")
"""Names of arguments that take labels."""

_RESULTS = "output|out|x|logits|hidden|hidden_states|weights|attn|result|value|values|state|states|add|sum"
_INTERMEDIATE = re.compile(rf"^(?P<node>[A-Za-z][A-Za-z0-9_]*_\d+)_({_RESULTS})$")
_INPUT_NODE = re.compile(r"^(input|tokens?|input_ids|src|source|tgt|target|pixel_values|image)(_\d+)?(_|$)")


class ModelSignatureInspector:
    """Reads the signature of a model's `forward`.

    Example:
        >>> inspector = ModelSignatureInspector(model)
        >>> inspector.get_required_params()
        ['input_ids']
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.signature = inspect.signature(model.forward)

    def get_parameters(self) -> list[str]:
        """Names of all parameters of `forward`, without `self`."""
        return list(self.signature.parameters)

    def get_required_params(self) -> list[str]:
        """Names of the parameters that have no default; `*args` and `**kwargs` are never required."""
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return [p.name for p in self.signature.parameters.values() if p.default is p.empty and p.kind not in variadic]

    def get_intermediate_params(self) -> list[str]:
        """Parameters that name the output of a canvas node (`mhsa_0_output`), which no caller can supply."""
        return [name for name in self.signature.parameters if is_intermediate_name(name)]

    def requires_intermediate_outputs(self) -> bool:
        """Whether `forward` lists values as arguments that it must compute itself.

        The whole name counts, `<kind>_<index>_output`: an `attention_mask` or `layer_idx` is no intermediate.
        """
        return bool(self.get_intermediate_params())


def is_intermediate_name(name: str) -> bool:
    """Whether a name is that of a canvas node's result, such as `mhsa_0_output`, and not of an input node."""
    return bool(_INTERMEDIATE.match(name)) and not _INPUT_NODE.match(name)


def is_output_of(name: str, node: str) -> bool:
    """Whether a name is that of a node's result: the node itself, or `<node>_output` and the like.

    The end counts too: `attention_bias` and `layer_idx` belong to no result of nodes `attention` and `layer`.
    """
    return name == node or bool(re.fullmatch(rf"{re.escape(node)}_({_RESULTS})", name))


@dataclass(frozen=True)
class CallContract:
    """How a model is called and what its answer means.

    Attributes:
        input_name: keyword of the token ids; None where they go by position.
        mask_name: keyword of the mask; None where the model takes none.
        label_name: keyword that must be fed so that the model gives logits for every position; None for most.
        constants: further arguments that every call passes, with their values.
        logits: where the output keeps the logits.
        vocab_size: rows of the token embedding; every id must be below it. None where the model has no embedding.
        output_size: width of the logits (V).
        max_length: longest sequence that the model accepts, in tokens; None where nothing limits it.
        task: "lm" (scores for every position) or "classification" (one row of scores per sequence).
        reasons: for each settled point, how it was found.
    """

    input_name: str | None = "input_ids"
    mask_name: str | None = None
    label_name: str | None = None
    constants: dict[str, Any] = field(default_factory=dict)
    logits: LogitsSelector = field(default_factory=LogitsSelector)
    vocab_size: int | None = None
    output_size: int | None = None
    max_length: int | None = None
    task: str = "lm"
    reasons: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """One line per point, with its reason."""
        call = ", ".join(filter(None, [self.input_name or "<first argument>", self.mask_name, *self.constants]))
        points = {
            "call": f"forward({call})",
            "task": self.task,
            "vocabulary rows": self.vocab_size,
            "longest sequence": self.max_length if self.max_length is not None else "no limit found",
            "logits": f"{'.'.join(map(str, self.logits.path)) or 'the output itself'}, axes {self.logits.layout}",
        }
        return "\n".join(
            f"{name}: {value}" + (f"  ({self.reasons[name]})" if name in self.reasons else "")
            for name, value in points.items()
        )

    def to_json(self) -> str:
        """The contract as JSON; `CallContract.from_json` reads it back."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> CallContract:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        selector = values.pop("logits")
        return cls(logits=LogitsSelector(tuple(selector["path"]), selector["layout"]), **values)


def infer_contract(model: nn.Module, config: ModelConfig) -> CallContract:
    """Find out how `model` is called by reading its signature and probing it with a batch of 2 × 5 tokens (or 2 × 3).

    The model is left as it was: modes, buffers, gradients and random states.

    Raises:
        CallContractError: the call or the place of the logits cannot be settled; the message lists what was tried.
    """
    inspector = ModelSignatureInspector(model)
    input_name = _input_name(inspector)
    base = CallContract(input_name=input_name, mask_name=_mask_name(inspector), constants=_constants(inspector, config))
    tried: list[str] = []
    for label_name in (None, *(name for name in LABEL_NAMES if name in inspector.signature.parameters)):
        contract = _probe(model, config, base, label_name, tried)
        if contract is not None:
            return contract
    raise CallContractError(
        f"How to call {type(model).__name__} could not be settled. Its forward takes ({', '.join(inspector.get_parameters())}). "
        "Tried: " + "; ".join(tried) + ". Pass the missing values in config, or give the contract by hand: "
        "AdaptedModel(model, config, contract=CallContract(input_name=…, constants={…}))."
    )


def _input_name(inspector: ModelSignatureInspector) -> str | None:
    names = {
        name: parameter
        for name, parameter in inspector.signature.parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    for name in INPUT_NAMES:
        if name in names and names[name].kind is not inspect.Parameter.POSITIONAL_ONLY:
            return name
    for name, parameter in names.items():
        if parameter.kind is not inspect.Parameter.POSITIONAL_ONLY and _INPUT_NODE.match(name):
            return name
    first = next(iter(names.values()), None)
    return first.name if first is not None and first.kind is inspect.Parameter.KEYWORD_ONLY else None


def _mask_name(inspector: ModelSignatureInspector) -> str | None:
    """Only `attention_mask` has one meaning everywhere: (B, T), 1 = real token. Other masks are left to their defaults."""
    return "attention_mask" if "attention_mask" in inspector.signature.parameters else None


def _constants(inspector: ModelSignatureInspector, config: ModelConfig) -> dict[str, Any]:
    """Arguments that every call passes: required ones that the config knows, and a cache that nobody reads switched off."""
    constants = {name: config.raw[name] for name in inspector.get_required_params()[1:] if name in config.raw}
    if "use_cache" in inspector.signature.parameters:
        constants["use_cache"] = False
    return constants


def _probe(
    model: nn.Module, config: ModelConfig, base: CallContract, label_name: str | None, tried: list[str]
) -> CallContract | None:
    """Call the model once, with ids below ever smaller bounds until one is legal, and read its answer."""
    for rows in candidate_rows(model, config):
        ids = probe_ids(model, config, rows)
        call = {**base.constants, **({label_name: ids} if label_name else {})}
        shown = ", ".join([base.input_name or "ids", *([label_name] if label_name else [])])
        described = f"forward({shown}) with ids {tuple(ids.shape)} below {rows}"
        with left_as_it_was(model), embedding_lookups() as lookups:
            try:
                output = model(ids, **call) if base.input_name is None else model(**{base.input_name: ids}, **call)
            except IndexError as error:  # an id beyond the rows: try fewer
                tried.append(f"{described}: IndexError: {error}")
                continue
            except Exception as error:  # noqa: BLE001 - whatever a foreign model raises is an answer of the probe, and is shown
                tried.append(f"{described}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
                return None
        return _read_answer(model, config, base, label_name, ids, output, lookups, tried, described)
    return None


def _read_answer(
    model: nn.Module,
    config: ModelConfig,
    base: CallContract,
    label_name: str | None,
    ids: torch.Tensor,
    output: Any,
    lookups: list[Lookup],
    tried: list[str],
    described: str,
) -> CallContract | None:
    tables = tables_of(ids, lookups)
    rows = min((table.shape[0] for table in tables), default=config.vocab_size)
    found = find_logits(output, ids.shape[0], ids.shape[1], config.vocab_size or rows)
    if found is None or (found[0].layout == "BV" and _looks_cut(output, label_name)):
        shapes = [tuple(tensor.shape) for _, tensor in tensors_in(output)] or type(output).__name__
        tried.append(f"{described}: no tensor among {shapes} has axes batch, time and vocabulary")
        return None
    selector, shape = found
    limit, why = _length_limit(model, config, ids.shape[1], lookups)
    return CallContract(
        input_name=base.input_name,
        mask_name=base.mask_name,
        label_name=label_name,
        constants=base.constants,
        logits=selector,
        vocab_size=rows,
        output_size=shape[selector.layout.index("V")],
        max_length=limit,
        task="classification" if selector.layout == "BV" else "lm",
        reasons={
            "vocabulary rows": "rows of the embedding that the ids reach" if tables else "from the config",
            "longest sequence": why,
        },
    )


def _looks_cut(output: Any, label_name: str | None) -> bool:
    """A model that gives one position only (nanoGPT without targets) gives (B, 1, V): not classification."""
    return label_name is None and any(tensor.dim() == 3 and tensor.shape[1] == 1 for _, tensor in tensors_in(output))


def probe_ids(model: nn.Module, config: ModelConfig, rows: int | None = None) -> torch.Tensor:
    """Token ids (2, 5) for a probe, shorter where the length limit asks for it.

    Args:
        model: gives the device and, where it has a position table, a limit.
        config: gives a limit too.
        rows: bound of the ids; None takes one that is legal for every embedding of the model.
    """
    limit = min(filter(None, [*_position_rows(model), config.max_seq_len]), default=PROBE_LENGTH)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return ids_below(rows or candidate_rows(model, config)[-1], max(1, min(limit, PROBE_LENGTH)), device)


def candidate_rows(model: nn.Module, config: ModelConfig) -> list[int]:
    """Bounds for ids, the likeliest first: the config's vocabulary, then the sizes of the embeddings, falling.

    On a GPU only the bound that is legal everywhere: an id beyond the rows there ends the process's use of the device.
    """
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    known = [config.vocab_size] if config.vocab_size is not None else []
    bounds = list(dict.fromkeys([*known, *sorted(tables, reverse=True)])) or [2]
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    return bounds if on_cpu else [min(bounds)]


def _position_rows(model: nn.Module) -> list[int]:
    """Rows of the tables whose name says that they hold positions."""
    return [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and re.search(r"(^|[._])(w?pos|wpe|position)", name.lower())
    ]


def _length_limit(model: nn.Module, config: ModelConfig, length: int, lookups: list[Lookup]) -> tuple[int | None, str]:
    """(limit, reason): positions that the probe looked up, else tables named for positions; the config where it is less."""
    asked = position_limits(length, lookups)
    held = min(asked, default=None) or min(_position_rows(model), default=None)
    if held is not None and (config.max_seq_len is None or held <= config.max_seq_len):
        return held, "positions that the model holds"
    if config.max_seq_len is not None:
        return config.max_seq_len, "from the config"
    return None, "no position table, no config entry"


def required_arguments(module: nn.Module) -> int:
    """How many arguments a module's `forward` cannot do without."""
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.default is p.empty and p.kind in kinds for p in parameters)
