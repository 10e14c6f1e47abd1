"""Finds out how a model is called by asking it: tiny calls, each a guess that the model's own answer confirms or refutes.

One visit leaves the model as it was. What was found is a `CallContract`; completing sources is for `graph_executor`.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from utils.adapters.contract import CallContract
from utils.adapters.guesses import LABEL_NAMES, Guesses
from utils.adapters.masks import MASK_NAMES, MaskConvention, candidates
from utils.adapters.model_outputs import cross_entropy, find_logits, follow, next_token_loss, scalars_in, tensors_in
from utils.adapters.probing import (
    PROBE_BATCH,
    PROBE_LENGTH,
    Lookup,
    candidate_rows,
    device_of,
    dtype_of,
    embedding_lookups,
    left_as_it_was,
    position_limits,
    position_rows,
    probe_ids,
    tables_of,
)
from utils.errors import CallContractError
from utils.loading.model_config import ModelConfig

DECODER_LENGTH = 4
"""Length of a probe's decoder ids: another than the encoder's, so that the axes can be told apart."""

HIDDEN = 1
"""Position that a probe of a mask hides: neither the first (a pooled row may be read there) nor the last."""

_TOLERANCE = 2e-6


def infer_contract(model: nn.Module, config: ModelConfig) -> CallContract:
    """Settle the calling contract of `model`.

    Raises:
        CallContractError: the call or the place of the logits cannot be settled; the message lists what was tried.
    """
    _refuse_unready(model)
    visit = _Visit(model, config)
    with left_as_it_was(model):
        best: tuple[int, CallContract] | None = None
        for guess in visit.guesses():
            contract = visit.confirm(guess)
            if contract is None:
                continue
            rank = visit.rank_of_mask(contract)
            if best is None or rank < best[0]:
                best = rank, contract
            if rank == 0:
                break
        if best is not None:
            return visit.refine(best[1])
    parameters = ", ".join(visit.inspector.get_parameters())
    tried = "; ".join(list(dict.fromkeys(visit.tried))[:12])
    raise CallContractError(
        f"How to call {type(model).__name__} could not be settled. Its forward takes ({parameters}). Tried: {tried}. Pass "
        "the missing values in config, or give the contract by hand: "
        "AdaptedModel(model, config, contract=CallContract(input_name=…, constants={…}))."
    )


def _refuse_unready(model: nn.Module) -> None:
    """A model without weights cannot be asked anything."""
    name = type(model).__name__
    if any(is_lazy(p) for p in [*model.parameters(), *model.buffers()]):
        raise CallContractError(f"{name} has lazy parameters: call it once with real data before adapting it.")
    if any(p.device.type == "meta" for p in [*model.parameters(), *model.buffers()]):
        raise CallContractError(
            f"{name} is on the meta device and has no weights: load them with to_empty() and a state dict."
        )


@dataclass
class _Answer:
    """One call of a probe and what came back."""

    contract: CallContract
    ids: torch.Tensor
    output: Any
    lookups: list[Lookup]


class _Visit(Guesses):
    """Asks one model. Everything runs inside `left_as_it_was`."""

    def __init__(self, model: nn.Module, config: ModelConfig) -> None:
        super().__init__(model, config)
        self.tried: list[str] = []

    # ---- asking -----------------------------------------------------------------------------------------------------

    def ask(self, contract: CallContract, inputs: torch.Tensor, **more: Any) -> Any:
        """Call the model by a contract."""
        mask, decoder = more.pop("mask", None), more.pop("decoder", None)
        positional, keywords = contract.arguments(inputs, mask, decoder, dtype_of(self.model))
        return self.model(*positional, **keywords, **more)

    def logits(self, contract: CallContract, inputs: torch.Tensor, **more: Any) -> torch.Tensor:
        """Logits of a call, as float32."""
        return contract.logits(self.ask(contract, inputs, **more)).float()

    def confirm(self, guess: CallContract) -> CallContract | None:
        """The guess with what the answer told, or None where the model refuses it."""
        if guess.task == "vision":
            return self._confirm_image(guess)
        decoder = None
        for rows in candidate_rows(self.model, self.config):
            ids = probe_ids(self.model, self.config, rows)
            if guess.decoder_name is not None:
                decoder = ids[:, :DECODER_LENGTH]
            with embedding_lookups() as lookups:
                try:
                    output = self.ask(guess, ids, decoder=decoder)
                except IndexError as error:  # an id beyond the rows: try fewer
                    self._note(guess, f"ids {tuple(ids.shape)} below {rows}", error)
                    continue
                except Exception as error:  # noqa: BLE001 - whatever a foreign model raises is an answer, and is shown
                    self._note(guess, f"ids {tuple(ids.shape)} below {rows}", error)
                    return None
            return self._read(_Answer(guess, ids, output, lookups))
        return None

    def _confirm_image(self, guess: CallContract) -> CallContract | None:
        assert guess.image_shape is not None  # every image guess names one
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand((PROBE_BATCH, *guess.image_shape), generator=generator).to(
            device_of(self.model), dtype_of(self.model)
        )
        try:
            output = self.ask(guess, pixels)
        except Exception as error:  # noqa: BLE001 - as above
            self._note(guess, f"pixels {tuple(pixels.shape)}", error)
            return None
        found = find_logits(output, PROBE_BATCH, -1, None)
        if found is None or found[0].layout != "BV":
            self._note(guess, f"pixels {tuple(pixels.shape)}", f"no row of scores among {_shapes(output)}")
            return None
        return replace(guess, logits=found[0], output_size=found[1][-1])

    def _note(self, guess: CallContract, given: str, what: Exception | str) -> None:
        names = [
            guess.input_name or "inputs",
            *(n for n in (guess.mask_name, guess.decoder_name, guess.label_name) if n),
            *guess.built,
        ]
        text = what if isinstance(what, str) else f"{type(what).__name__}: {(str(what).splitlines() or [''])[0]}"
        mask = f" (mask {guess.mask.words()})" if guess.mask is not None else ""
        self.tried.append(f"forward({', '.join(names)}) with {given}{mask}: {text}")

    def _read(self, answer: _Answer) -> CallContract | None:
        guess, ids = answer.contract, answer.ids
        length = DECODER_LENGTH if guess.decoder_name is not None else ids.shape[1]
        tables = tables_of(ids, answer.lookups)
        rows = min((table.shape[0] for table in tables), default=self.config.vocab_size)
        found = find_logits(answer.output, PROBE_BATCH, min(length, ids.shape[1]), self.config.vocab_size or rows)
        per_sequence = found is not None and found[0].layout == "BV"
        if found is None or (per_sequence and (guess.decoder_name is not None or _looks_cut(answer.output, guess))):
            self._note(
                guess,
                f"ids {tuple(ids.shape)}",
                f"no tensor among {_shapes(answer.output)} has axes batch, time and vocabulary",
            )
            return None
        selector, shape = found
        if guess.time_first and selector.layout != "TBV":
            self._note(guess, f"ids {tuple(ids.shape)} as (T, B)", f"the answer is {tuple(shape)}")
            return None
        limit, why = self._length_limit(answer)
        return replace(
            guess,
            logits=selector,
            vocab_size=rows,
            output_size=shape[selector.layout.index("V")],
            max_length=limit,
            task="classification" if per_sequence else guess.task,
            reasons={
                "vocabulary rows": self._rows_reason(tables, rows),
                "longest sequence": why,
            },
        )

    def _measured_limit(self, contract: CallContract) -> int | None:
        """A limit that lies in a sliced table or mask: a size that one token more breaks.

        Sizes are those of parameters and buffers that are named for positions or masks; only cheap ones are tried.
        """
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        named = re.compile(r"pos|^pe$|mask|bias|causal|tril|rope|rotary|cos|sin|freq")
        shapes = [tensor.shape for name, tensor in tensors if named.search(name.rsplit(".", 1)[-1].lower())]
        sizes = {size for shape in shapes for size in shape if len(shape) > 1}
        weight = sum(parameter.numel() for parameter in self.model.parameters())
        for size in sorted(size for size in sizes if size > PROBE_LENGTH and size * weight < 2e9):
            if self._runs_at(contract, size) and not self._runs_at(contract, size + 1):
                return size
        return None

    def _runs_at(self, contract: CallContract, length: int) -> bool:
        ids = torch.zeros((PROBE_BATCH, length), dtype=torch.long, device=device_of(self.model))
        try:
            self.ask(contract, ids)
        except Exception:  # noqa: BLE001 - a refusal is the answer that was asked for
            return False
        return True

    def _rows_reason(self, tables: list[torch.Tensor], rows: int | None) -> str:
        if not tables:
            return "from the config"
        stated = self.config.vocab_size
        against = (
            f"; the config says {stated:,}, which is not what the model holds" if stated not in (None, rows) else ""
        )
        return f"rows of the embedding that the ids reach{against}"

    def _length_limit(self, answer: _Answer) -> tuple[int | None, str]:
        """(limit, reason): positions that the probe looked up, else tables named for positions; less where the config says."""
        lengths = {answer.ids.shape[1], *([DECODER_LENGTH] if answer.contract.decoder_name else [])}
        asked = [limit for length in lengths for limit in position_limits(length, answer.lookups)]
        held = min(asked, default=None) or min(position_rows(self.model), default=None)
        stated = self.config.max_seq_len
        if held is None and stated is None:
            held = self._measured_limit(answer.contract)
        if held is not None and (stated is None or held <= stated):
            return held, "positions that the model holds"
        return (stated, "from the config") if stated is not None else (None, "no position table, no config entry")

    # ---- refining ---------------------------------------------------------------------------------------------------

    def refine(self, contract: CallContract) -> CallContract:
        """Settle what needs further questions: order of the axes, mask, causality, own loss, auxiliary losses."""
        if contract.task == "vision":
            return contract
        ids = probe_ids(self.model, self.config, self._legal_rows(contract))
        if ids.shape[1] > 2 and contract.task == "lm" and not contract.time_first:
            contract = self._settle_axes(contract, ids)
        if not contract.mask_required:
            contract = self._settle_mask(contract, ids)
        if contract.task == "lm" and ids.shape[1] > 1:
            contract = replace(contract, causal=self._is_causal(contract, ids))
        contract = self._settle_own_loss(contract, ids)
        return contract

    def _legal_rows(self, contract: CallContract) -> int | None:
        return contract.vocab_size if contract.vocab_size is not None else None

    def _changed(self, ids: torch.Tensor, row: int | None, position: int) -> torch.Tensor:
        """The ids with another token at one position of one row, or of every row; the token stands in the row elsewhere."""
        other = ids.clone()
        for index in range(ids.shape[0]) if row is None else (row,):
            different = [int(one) for one in ids[index, :-1] if one != ids[index, position]]
            if different:
                other[index, position] = different[0]
        return other

    def _settle_axes(self, contract: CallContract, ids: torch.Tensor) -> CallContract:
        """A model that takes (T, B) mixes rows and keeps positions apart when it is given (B, T).

        So does one whose rows wrongly depend on each other; only modules that are not batch-first speak for the former.
        """
        time_first_modules = any(getattr(module, "batch_first", True) is False for module in self.model.modules())
        if contract.logits.layout not in ("BTV", "TBV") or not time_first_modules:
            return contract
        try:
            with embedding_lookups() as lookups:
                plain = self.logits(contract, ids)
            held = min(position_rows(self.model), default=None)
            counts = held is not None and not self._runs_at(contract, held + 1)
            if counts or position_limits(ids.shape[1], lookups):
                return contract  # it counts positions along the second axis: mixing rows is a fault, not a layout
            moved = (self.logits(contract, self._changed(ids, 0, 3)) - plain).abs().amax(-1)  # (B, T)
        except Exception:  # noqa: BLE001 - a model that runs once and fails on other ids is judged by its first answer
            return contract
        mixes_rows = float(moved[1].max()) > _TOLERANCE
        keeps_positions = float(moved[:, [t for t in range(ids.shape[1]) if t != 3]].max()) <= _TOLERANCE
        if not (mixes_rows and keeps_positions):
            return contract
        turned = replace(contract, time_first=True, logits=replace(contract.logits, layout="TBV"))
        try:
            shape = self.logits(turned, ids).shape
        except Exception:  # noqa: BLE001 - as above
            return contract
        return turned if shape[:2] == ids.shape else contract

    def _is_causal(self, contract: CallContract, ids: torch.Tensor) -> bool | None:
        try:
            last = ids.shape[1] - 1
            before, after = (self.logits(contract, given)[:, :last] for given in (ids, self._changed(ids, None, last)))
        except Exception:  # noqa: BLE001 - the answer stays open
            return None
        return bool((after - before).abs().max() <= 1e-6 * max(1.0, float(before.abs().max())))

    def _settle_mask(self, contract: CallContract, ids: torch.Tensor) -> CallContract:
        """Find the convention of an optional mask: hiding the first token must hide it, and hiding nothing change nothing."""
        name = next((n for n in MASK_NAMES if n in self.parameters and n not in contract.constants), None)
        if name is None or ids.shape[1] < 3:
            return contract
        acts: MaskConvention | None = None
        runs: MaskConvention | None = None
        for convention in candidates(name):
            if not convention.carries_padding:
                continue
            verdict = self._tries_mask(replace(contract, mask_name=name, mask=convention), ids)
            if verdict == "hides":
                return replace(
                    contract,
                    mask_name=name,
                    mask=convention,
                    reasons={**contract.reasons, "mask": "hides the token that it should"},
                )
            if verdict == "acts" and acts is None:
                acts = convention
            if verdict == "runs" and runs is None:
                runs = convention
        if acts is not None:
            reason = "hiding nothing changes nothing; a hidden token still leaks in part"
            return replace(contract, mask_name=name, mask=acts, reasons={**contract.reasons, "mask": reason})
        if runs is None or (name != "attention_mask" and "pad" not in name):
            return contract
        return replace(
            contract,
            mask_name=name,
            mask=runs,
            reasons={**contract.reasons, "mask": "accepted; the probe saw no effect of it"},
        )

    def rank_of_mask(self, contract: CallContract) -> int:
        """How well a required mask fits: 0 hides padding and the future, 1 padding, 2 the future, 3 neither. 0 without one."""
        convention = contract.mask
        if not contract.mask_required or convention is None:
            return 0
        ids = probe_ids(self.model, self.config, contract.vocab_size)
        if ids.shape[1] < 3:
            return 3
        hides = convention.carries_padding and self._hides(contract, ids)
        causal = convention.causal and bool(self._is_causal(contract, ids)) and self._reads_earlier(contract, ids)
        return {(True, True): 0, (True, False): 1, (False, True): 2}.get((hides, causal), 3)

    def _hides(self, contract: CallContract, ids: torch.Tensor) -> bool:
        """Whether hiding a token makes later logits independent of it, which they otherwise are not."""
        other, one_hidden = self._changed(ids, None, HIDDEN), torch.ones_like(ids)
        one_hidden[:, HIDDEN] = 0
        hidden = [self.logits(contract, given, mask=one_hidden)[:, HIDDEN + 1 :] for given in (ids, other)]
        if not all(bool(torch.isfinite(one).all()) for one in hidden):
            return False
        return float((hidden[0] - hidden[1]).abs().max()) <= _TOLERANCE and self._reads_earlier(contract, ids)

    def _reads_earlier(self, contract: CallContract, ids: torch.Tensor) -> bool:
        """Whether the token moves a later logit while nothing is hidden."""
        before, after = (
            self.logits(contract, given)[:, HIDDEN + 1 :] for given in (ids, self._changed(ids, None, HIDDEN))
        )
        return bool(torch.isfinite(before).all()) and float((after - before).abs().max()) > _TOLERANCE

    def _tries_mask(self, contract: CallContract, ids: torch.Tensor) -> str:
        """Return "hides", "acts" (hides in part), "runs" (accepted without effect on the probe) or "fails"."""
        whole = torch.ones_like(ids)
        one_hidden = whole.clone()
        one_hidden[:, HIDDEN] = 0
        other = self._changed(ids, None, HIDDEN)
        decoder = ids[:, :DECODER_LENGTH] if contract.decoder_name else None
        try:
            plain = self.logits(replace(contract, mask_name=None, mask=None), ids, decoder=decoder)
            full = self.logits(contract, ids, mask=whole, decoder=decoder)
            hidden = [self.logits(contract, given, mask=one_hidden, decoder=decoder) for given in (ids, other)]
            moves = self.logits(contract, other, mask=whole, decoder=decoder)
        except Exception as error:  # noqa: BLE001 - a refusal rules the convention out, and is shown if nothing else fits
            self._note(contract, f"ids {tuple(ids.shape)}", error)
            return "fails"
        if any(given.shape != plain.shape for given in (full, moves, *hidden)):
            return "fails"
        scale = max(1.0, float(plain.abs().max()))
        later = (slice(None), slice(HIDDEN + 1, None)) if plain.dim() == 3 and decoder is None else (slice(None),)

        def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
            return not bool(torch.isfinite(b[later]).all()) or float((a - b)[later].abs().max()) > _TOLERANCE * scale

        causal_twin = contract.mask is not None and contract.mask.causal
        if differ(plain, full) and not causal_twin:
            return "fails"
        if not differ(full, moves) and not differ(full, hidden[0]):
            return "runs"
        if differ(plain, full) or not differ(full, hidden[0]):
            return "fails"
        return "acts" if differ(hidden[0], hidden[1]) else "hides"

    def _settle_own_loss(self, contract: CallContract, ids: torch.Tensor) -> CallContract:
        """Compare the model's own loss, where it has one, with the shifted and the plain cross-entropy of its logits."""
        silent = self._auxiliary_without_labels(contract, ids)
        contract = replace(contract, auxiliary=silent)
        name = next((n for n in LABEL_NAMES if n in self.parameters and n != contract.decoder_name), None)
        if (
            name is None
            or contract.task not in ("lm", "seq2seq")
            or self.parameters[name].default is inspect.Parameter.empty
        ):
            return contract
        labels = ids if contract.task == "lm" else ids[:, :DECODER_LENGTH]
        plain_call = replace(contract, label_name=None)
        try:
            if contract.task == "seq2seq":
                output = self.ask(plain_call, ids, decoder=labels, **{name: labels})
            else:
                output = self.ask(plain_call, ids, **{name: labels})
            logits = contract.logits(output).float()
        except Exception as error:  # noqa: BLE001 - labels in another form: the model's own loss stays unused
            self._note(replace(contract, label_name=name), f"ids {tuple(ids.shape)}", error)
            return contract
        own = [value for _, value in scalars_in(output)]
        if contract.task != "lm" or not own or logits.dim() != 3:
            return contract
        shifted, plain = float(next_token_loss(logits, labels)), float(cross_entropy(logits, labels))
        contract = self._weighed(contract, output, own, shifted if contract.causal else plain)
        is_plain = any(abs(v - plain) < min(1e-4 * max(1.0, plain), abs(v - shifted)) for v in own)
        if contract.causal or not is_plain:
            return contract
        reason = "its own loss scores each token at its own position, and it sees the whole text"
        return replace(contract, task="masked", reasons={**contract.reasons, "task": reason})

    @staticmethod
    def _weighed(contract: CallContract, output: Any, own: list[float], entropy: float) -> CallContract:
        """Where the model's own loss holds its one auxiliary loss, take the weight that it has there."""
        if len(contract.auxiliary) != 1:
            return contract
        path, _ = contract.auxiliary[0]
        losses = [v for at, v in scalars_in(output) if at and at[-1] == "loss"] or own[:1]
        try:
            value = float(follow(output, path))
        except (KeyError, IndexError, AttributeError, TypeError):
            return contract
        weight = (losses[0] - entropy) / value if value else 1.0
        if abs(weight) < 1e-5:
            return replace(contract, auxiliary=())
        return replace(contract, auxiliary=((path, round(weight, 6)),)) if 0 < weight < 100 else contract

    def _auxiliary_without_labels(
        self, contract: CallContract, ids: torch.Tensor
    ) -> tuple[tuple[tuple[str | int, ...], float], ...]:
        """Scalars that the model gives although nobody gave it labels can only be losses of its own making."""
        if contract.label_name is not None:
            return ()
        try:
            decoder = ids[:, :DECODER_LENGTH] if contract.decoder_name else None
            output = self.ask(contract, ids, decoder=decoder)
        except Exception:  # noqa: BLE001 - it ran before; without an answer there is nothing to add
            return ()
        return tuple((path, 1.0) for path, value in scalars_in(output) if value != 0.0)


def _looks_cut(output: Any, guess: CallContract) -> bool:
    """A model that gives one position only (nanoGPT without targets) gives (B, 1, V): not classification."""
    return guess.label_name is None and any(t.dim() == 3 and t.shape[1] == 1 for _, t in tensors_in(output))


def _shapes(output: Any) -> object:
    return [tuple(tensor.shape) for _, tensor in tensors_in(output)] or type(output).__name__
