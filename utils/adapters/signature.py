"""How a model wants to be called. Reads signatures and asks the model once; leaves completing sources to `graph_executor`.

`infer_contract` settles names, masks, extra arguments, output layout, vocabulary rows and the length limit with one tiny
probe that leaves the model as it was.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from utils.adapters.model_outputs import LogitsSelector, find_logits, tensors_in
from utils.errors import CallContractError
from utils.loading.model_config import ModelConfig

INPUT_NAMES = ("input_ids", "idx", "tokens", "token_ids", "input_tokens", "inputs", "ids", "src", "x", "input", "inp")
"""Names of the argument that takes token ids, the usual ones first."""

MASK_NAMES = ("attention_mask", "attn_mask", "mask", "padding_mask", "key_padding_mask", "src_key_padding_mask")
"""Names of arguments that take a mask."""

LABEL_NAMES = ("labels", "targets", "target", "y")
"""Names of arguments that take labels."""

_INTERMEDIATE = re.compile(
    r"^(?P<node>[A-Za-z][A-Za-z0-9_]*_\d+)_(output|out|x|logits|hidden|hidden_states|weights|attn|result|value|values|state|states|add|sum)$"
)
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
    limit = _stated_length_limit(model, config)
    ids = probe_ids(model, config)
    length = ids.shape[1]
    call = {**base.constants, **({label_name: ids} if label_name else {})}
    described = (
        f"forward({base.input_name or 'ids'}{', ' + label_name if label_name else ''}) with ids {tuple(ids.shape)}"
    )
    with left_as_it_was(model), embedding_calls(model) as calls:
        try:
            output = model(ids, **call) if base.input_name is None else model(**{base.input_name: ids}, **call)
        except Exception as error:  # noqa: BLE001 - whatever a foreign model raises is an answer of the probe, and is shown
            tried.append(f"{described}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            return None
    token_rows = _token_rows(calls, ids) or config.vocab_size
    found = find_logits(output, 2, length, config.vocab_size if config.vocab_size is not None else token_rows)
    if found is None or (found[0].layout == "BV" and _looks_cut(output, label_name)):
        shapes = [tuple(tensor.shape) for _, tensor in tensors_in(output)]
        tried.append(
            f"{described}: no tensor among {shapes or type(output).__name__} has axes batch, time and vocabulary"
        )
        return None
    selector, shape = found
    reasons = {
        "vocabulary rows": "rows of the embedding that the ids reach" if _token_rows(calls, ids) else "from the config",
        "longest sequence": "positions that the model holds"
        if limit is not None
        else "no position table, no config entry",
    }
    return CallContract(
        base.input_name,
        base.mask_name,
        label_name,
        base.constants,
        selector,
        token_rows,
        shape[selector.layout.index("V")],
        limit,
        "classification" if selector.layout == "BV" else "lm",
        reasons,
    )


def _looks_cut(output: Any, label_name: str | None) -> bool:
    """A model that gives one position only (nanoGPT without targets) gives (B, 1, V): not classification."""
    return label_name is None and any(tensor.dim() == 3 and tensor.shape[1] == 1 for _, tensor in tensors_in(output))


def probe_ids(model: nn.Module, config: ModelConfig) -> torch.Tensor:
    """Token ids (2, 5) that are legal for every embedding of the model, shorter where its length limit asks for it."""
    limit = _stated_length_limit(model, config)
    length = 5 if limit is None or limit >= 5 else max(1, limit)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return (torch.arange(2 * length, device=device).reshape(2, length) * 7 + 1) % max(1, _smallest_rows(model, config))


def _smallest_rows(model: nn.Module, config: ModelConfig) -> int:
    """A bound below which an id is legal in every embedding of the model."""
    rows = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    big = [count for count in rows if config.max_seq_len is None or count != config.max_seq_len] or rows
    return min(filter(None, [*big, config.vocab_size]), default=2)


def _stated_length_limit(model: nn.Module, config: ModelConfig) -> int | None:
    """The length limit by the rows of the position embeddings, else by the config."""
    rows = [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and re.search(r"(^|[._])(w?pos|wpe|position)", name.lower())
    ]
    return min(filter(None, [*rows, config.max_seq_len]), default=None)


def _token_rows(calls: list[tuple[nn.Embedding, torch.Tensor]], ids: torch.Tensor) -> int | None:
    rows = [
        module.num_embeddings
        for module, given in calls
        if given.numel() == ids.numel() and torch.equal(given.reshape(-1), ids.reshape(-1))
    ]
    return min(rows, default=None)


@contextlib.contextmanager
def embedding_calls(model: nn.Module) -> Iterator[list[tuple[nn.Embedding, torch.Tensor]]]:
    """Record what each `nn.Embedding` was asked for while the block runs."""
    calls: list[tuple[nn.Embedding, torch.Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda module, given: calls.append((module, given[0].detach().clone())))
        for module in model.modules()
        if isinstance(module, nn.Embedding)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Run the block in eval mode without gradients; afterwards modes, buffers and random states are as before."""
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers and buffer.shape == buffers[name].shape and not torch.equal(buffer, buffers[name]):
                    buffer.copy_(buffers[name])


def required_arguments(module: nn.Module) -> int:
    """How many arguments a module's `forward` cannot do without."""
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.default is p.empty and p.kind in kinds for p in parameters)
