"""Finds out how a model is called by asking it: tiny calls, each a guess that the model's own answer confirms or refutes.

One visit leaves the model as it was. What was found is a `CallContract`; what the losses say is asked in `own_losses`,
which lengths it takes in `lengths`; completing sources is for `graph_executor`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from utils.adapters.builders import OF_DECODER
from utils.adapters.contract import CallContract
from utils.adapters.guesses import Guesses
from utils.adapters.lengths import measured_lengths, measured_limit, other_lengths
from utils.adapters.masks import SQUARE_NAMES, SQUARES, candidates
from utils.adapters.model_outputs import LogitsSelector, find_logits, tensors_in
from utils.adapters.own_losses import settle_losses
from utils.adapters.packed import keys_asked
from utils.adapters.probing import (
    PROBE_BATCH,
    PROBE_LENGTH,
    Seen,
    candidate_rows,
    device_of,
    dtype_of,
    left_as_it_was,
    position_limits,
    position_rows,
    probe_ids,
    tables_of,
    watched,
)
from utils.adapters.refusals import REFUSED, unless_refused
from utils.errors import CallContractError
from utils.loading.model_config import ModelConfig

DECODER_LENGTH = 4
"""Length of a probe's decoder ids: another than the encoder's, so that the axes can be told apart."""

HIDDEN = 1
"""Position that a probe of a mask hides: neither the first (a pooled row may be read there) nor the last."""

_LONGER = 64
"""Length of a second question where the usual probe shows no token that another one reads."""

_TOLERANCE = 2e-6

_ALMOST = 0.9
"""Share of the rows from which on a width counts as the vocabulary less some rows that are never said."""


def infer_contract(model: nn.Module, config: ModelConfig) -> CallContract:
    """Settle the calling contract of `model`.

    Raises:
        CallContractError: the call or the place of the logits cannot be settled; the message lists what was tried.
    """
    _refuse_unready(model)
    visit = _Visit(model, config)
    with left_as_it_was(model):
        found = visit.find()
        if found is not None:
            return visit.refine(found)
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
    seen: Seen


class _Visit(Guesses):
    """Asks one model. Everything runs inside `left_as_it_was`."""

    def __init__(self, model: nn.Module, config: ModelConfig) -> None:
        super().__init__(model, config)
        self.tried: list[str] = []
        self.length = PROBE_LENGTH

    def find(self) -> CallContract | None:
        """The first guess that the model confirms, masks well chosen.

        By the names of its arguments, else by the keys of the one mapping that it takes, else at other lengths.
        """
        found = self._best(self.guesses())
        if found is None and (keys := keys_asked(self.model, self.config, self.inspector.signature)):
            by_name = self.arguments, self.packed
            self.know(keys, packed=True)
            found = self._best(self.guesses())
            if found is None:
                self.know(list(by_name[0].values()), by_name[1])
        for length in () if found is not None else other_lengths(self.model, self.config):
            self.length = length
            found = self._best(self.text_guesses())
            if found is not None:
                return measured_lengths(found, length, self.runs_at)
        return found

    def _best(self, guesses: Iterator[CallContract]) -> CallContract | None:
        best: tuple[int, CallContract] | None = None
        for guess in guesses:
            contract = self.confirm(guess)
            if contract is None:
                continue
            stacked = "L" in contract.logits.layout or "N" in contract.logits.layout
            rank = self.rank_of_mask(contract) + 4 * stacked  # a mask of the wrong shape adds an axis too
            if best is None or rank < best[0]:
                best = rank, contract
            if rank == 0:
                break
        return best[1] if best is not None else None

    # ---- asking -----------------------------------------------------------------------------------------------------

    def ids(self, rows: int | None = None) -> torch.Tensor:
        """Ids (B, T) of a probe."""
        return probe_ids(self.model, self.config, rows, self.length)

    def ask(self, contract: CallContract, inputs: torch.Tensor, **more: Any) -> Any:
        """Call the model by a contract; what it is given is its own to change."""
        mask, decoder = more.pop("mask", None), more.pop("decoder", None)
        decoder = decoder.clone() if decoder is not None else None
        positional, keywords = contract.arguments(inputs.clone(), mask, decoder, self.model, dtype_of(self.model))
        if contract.packed:
            return self.model({**positional[0], **more})
        return self.model(*positional, **keywords, **more)

    def logits(self, contract: CallContract, inputs: torch.Tensor, **more: Any) -> torch.Tensor:
        """Logits of a call, as float32; an encoder-decoder gets decoder ids that do not depend on the inputs."""
        if contract.decoder_name is not None and more.get("decoder") is None:
            more["decoder"] = self.decoder_ids(contract, inputs)
        return contract.logits(self.ask(contract, inputs, **more), inputs.shape[0]).float()

    def decoder_ids(self, contract: CallContract, inputs: torch.Tensor) -> torch.Tensor | None:
        """Ids (B, T_dec) for the decoder of a probe; None for a model without one."""
        if contract.decoder_name is None:
            return None
        return self.ids(contract.vocab_size)[: inputs.shape[0], :DECODER_LENGTH]

    def confirm(self, guess: CallContract) -> CallContract | None:
        """The guess with what the answer told, or None where the model refuses it."""
        if guess.task == "vision":
            return self._confirm_image(guess)
        bounds = [guess.vocab_size] if guess.encoding == "one-hot" else candidate_rows(self.model, self.config)
        for rows in bounds:
            ids = self.ids(rows)
            decoder = ids[:, :DECODER_LENGTH] if guess.decoder_name is not None else None
            with watched() as seen:
                try:
                    output = self.ask(guess, ids, decoder=decoder)
                except Exception as error:  # noqa: BLE001 - whatever a foreign model raises is an answer, and is shown
                    self._note(guess, f"ids {tuple(ids.shape)} below {rows}", error)
                    if isinstance(error, IndexError) or "out of range" in str(error):
                        continue  # an id beyond the rows: try fewer
                    return None
            return self._read(_Answer(guess, ids, output, seen))
        return None

    def _confirm_image(self, guess: CallContract) -> CallContract | None:
        assert guess.image_shape is not None  # every image guess names one
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand((PROBE_BATCH, *guess.image_shape), generator=generator).to(
            device_of(self.model), dtype_of(self.model)
        )
        try:
            with watched() as seen:
                output = self.ask(guess, pixels)
        except Exception as error:  # noqa: BLE001 - as above
            self._note(guess, f"pixels {tuple(pixels.shape)}", error)
            return None
        found = find_logits(output, PROBE_BATCH, -1, None, seen.is_head)
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
        length = min(DECODER_LENGTH, ids.shape[1]) if guess.decoder_name is not None else ids.shape[1]
        tables = tables_of(ids, answer.seen.lookups)
        rows = min((table.shape[0] for table in tables), default=guess.vocab_size or self.config.vocab_size)
        found = find_logits(answer.output, PROBE_BATCH, length, self.config.vocab_size or rows, answer.seen.is_head)
        if found is None and guess.decoder_name is not None:  # the target's vocabulary may be another
            widths = {tensor.shape[-1] for _, tensor in tensors_in(answer.output) if tensor.dim() == 2}
            found = next(filter(None, (find_logits(answer.output, PROBE_BATCH, length, w) for w in widths)), None)
        per_sequence = found is not None and found[0].layout == "BV"
        if per_sequence and found is not None and found[1][-1] == ids.shape[1] and self._grows(answer, found[0]):
            found = None  # one number for each token: a loss, or a discriminator's score
        if found is None or (per_sequence and (guess.decoder_name is not None or _looks_cut(answer.output, guess))):
            self._note(
                guess,
                f"ids {tuple(ids.shape)}",
                f"no tensor among {_shapes(answer.output)} has axes batch, time and vocabulary",
            )
            return None
        selector, shape = found
        if guess.time_first and selector.layout == "(BT)V":
            selector = LogitsSelector(selector.path, "(TB)V")
        if guess.time_first and selector.layout not in ("TBV", "(TB)V", "BV"):
            self._note(guess, f"ids {tuple(ids.shape)} as (T, B)", f"the answer is {tuple(shape)}")
            return None
        width = selector.width(tuple(shape))
        if guess.encoding == "one-hot" and not per_sequence and width != guess.vocab_size:
            self._note(
                guess, f"one-hot ids of {guess.vocab_size}", f"the answer is {tuple(shape)}, which scores no token"
            )
            return None
        limit, why = self._length_limit(replace(answer, contract=replace(guess, logits=selector)))
        table_width = tables[0].shape[-1] if tables else 0
        labelled = not per_sequence and self._scores_labels(answer, selector, width, rows, table_width)
        return replace(
            guess,
            logits=selector,
            vocab_size=self._told_apart(rows, width, table_width, guess) if not labelled else rows,
            output_size=width,
            max_length=limit,
            task="classification" if per_sequence or labelled else guess.task,
            reasons={
                "vocabulary rows": self._rows_reason(tables, rows),
                "longest sequence": why,
                **({"task": "a head gives each token a row of scores that is no vocabulary"} if labelled else {}),
            },
        )

    def _grows(self, answer: _Answer, selector: LogitsSelector) -> bool:
        """Whether a row of numbers grows with the text, and so holds no classes."""
        shorter = answer.ids[:, :-1]
        asked = replace(answer.contract, logits=selector)
        return unless_refused(lambda: self.logits(asked, shorter).shape[-1] == shorter.shape[1], False)

    def _told_apart(self, rows: int | None, width: int, table_width: int, guess: CallContract) -> int | None:
        """Rows that count as vocabulary: fewer than the table's where the scores leave the last few out."""
        if rows is None or guess.decoder_name is not None or width >= rows:
            return rows
        almost = width >= _ALMOST * rows and width != table_width
        return width if width == self.config.vocab_size or almost else rows

    def _scores_labels(
        self, answer: _Answer, selector: LogitsSelector, width: int, rows: int | None, table_width: int
    ) -> bool:
        """Whether each token gets scores of labels that are no tokens: a head narrower than the vocabulary gave them."""
        if rows is None or selector.layout != "BTV" or width in (table_width, self.config.d_model):
            return False
        if 2 * width >= rows or answer.contract.decoder_name is not None:
            return False  # a head for tokens that was built too narrow is a fault for the checks to name
        return answer.seen.is_head(selector(answer.output))

    def runs_at(self, contract: CallContract, length: int) -> bool:
        """Whether the model takes texts of this length."""
        ids = torch.zeros((PROBE_BATCH, length), dtype=torch.long, device=device_of(self.model))
        logits = unless_refused(lambda: contract.logits(self.ask(contract, ids), PROBE_BATCH), None)
        if logits is None:
            return False
        return logits.dim() < 3 or contract.decoder_name is not None or length in logits.shape[:2]

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
        asked = [limit for length in lengths for limit in position_limits(length, answer.seen.lookups)]
        held = min(asked, default=None) or min(position_rows(self.model), default=None)
        stated = self.config.max_seq_len
        if held is None and stated is None:
            held = measured_limit(self.model, answer.contract, self.runs_at)
        if held is not None and (stated is None or held <= stated):
            return held, "positions that the model holds"
        return (stated, "from the config") if stated is not None else (None, "no position table, no config entry")

    # ---- refining ---------------------------------------------------------------------------------------------------

    def refine(self, contract: CallContract) -> CallContract:
        """Settle what needs further questions: order of the axes, mask, causality, training mode, losses of its own."""
        if contract.task == "vision":
            pixels = torch.rand((PROBE_BATCH, *(contract.image_shape or ()))).to(
                device_of(self.model), dtype_of(self.model)
            )
            return settle_losses(self, contract, pixels)
        if contract.vocab_size is None:
            contract = self._with_rows(contract)
        ids = self.ids(contract.vocab_size)
        if ids.shape[1] > 2 and contract.task in ("lm", "classification") and not contract.time_first:
            contract = self._settle_axes(contract, ids)
        if contract.decoder_name is not None:
            contract = self._settle_decoder(contract, ids)
        if not contract.mask_required:
            contract = self._settle_mask(contract, ids)
        if contract.task == "lm" and ids.shape[1] > 1:
            contract = replace(contract, causal=self._is_causal_at_any_length(contract, ids))
        return settle_losses(self, contract, ids)

    def _settle_decoder(self, contract: CallContract, ids: torch.Tensor) -> CallContract:
        """Give a decoder that would see the answer the causal mask that its call may leave out."""
        names = [n for n in self.named("decoder mask") if "pad" not in n and "len" not in n and n not in contract.built]
        if not names or self._decodes(contract, ids):
            return contract
        for name, way in itertools.product(names, SQUARES):
            masked = replace(contract, built={**contract.built, name: f"mask {way.words()}{OF_DECODER}"})
            if self._decodes(masked, ids):
                reason = f"without {name} the decoder sees the tokens that it should say"
                return replace(masked, reasons={**contract.reasons, "decoder mask": reason})
        return contract

    def _decodes(self, contract: CallContract, ids: torch.Tensor) -> bool:
        return unless_refused(lambda: self._decodes_causally(contract, ids), False)

    def _with_rows(self, contract: CallContract) -> CallContract:
        """Rows where no lookup was seen (a scripted model): a size of a matrix whose last id runs and the next one fails."""
        if contract.encoding != "ids" or device_of(self.model).type != "cpu":
            return contract
        sizes = sorted({p.shape[0] for p in self.model.parameters() if p.dim() == 2}, reverse=True)
        for rows in sizes:
            last = torch.full((PROBE_BATCH, self.length), rows - 1, dtype=torch.long)
            if self._runs_with(contract, last) and not self._runs_with(contract, last + 1):
                return replace(
                    contract, vocab_size=rows, reasons={**contract.reasons, "vocabulary rows": "the next id fails"}
                )
        return contract

    def _runs_with(self, contract: CallContract, ids: torch.Tensor) -> bool:
        return unless_refused(lambda: self.ask(contract, ids), REFUSED) is not REFUSED

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
        if contract.logits.layout not in ("BTV", "TBV", "(BT)V") or not time_first_modules:
            return contract
        moved = unless_refused(lambda: self._moved_by_one_token(contract, ids), None)
        if moved is None:  # a model that runs once and fails on other ids is judged by its first answer
            return contract
        mixes_rows = float(moved[1].max()) > _TOLERANCE
        keeps_positions = float(moved[:, [t for t in range(ids.shape[1]) if t != 3]].max()) <= _TOLERANCE
        if not (mixes_rows and keeps_positions):
            return contract
        layout = "(TB)V" if contract.logits.layout == "(BT)V" else "TBV"
        turned = replace(contract, time_first=True, logits=replace(contract.logits, layout=layout))
        shape = unless_refused(lambda: self.logits(turned, ids).shape, None)
        return turned if shape is not None and shape[:2] == ids.shape else contract

    def _moved_by_one_token(self, contract: CallContract, ids: torch.Tensor) -> torch.Tensor | None:
        """(B, T) movements of the scores by another token in the first row; None where positions count along the second axis."""
        with watched() as seen:
            plain = self.logits(contract, ids)
        held = min(position_rows(self.model), default=None)
        counts = held is not None and not self.runs_at(contract, held + 1)
        if counts or position_limits(ids.shape[1], seen.lookups):
            return None  # mixing rows is a fault then, not a layout
        return (self.logits(contract, self._changed(ids, 0, 3)) - plain).abs().amax(-1)

    def _is_causal_at_any_length(self, contract: CallContract, ids: torch.Tensor) -> bool | None:
        """As `_is_causal`; where no token moves any other, asked again of a longer text: attention by blocks may need one."""
        causal = self._is_causal(contract, ids)
        if not causal or ids.shape[1] <= HIDDEN + 1 or self._reads_earlier(contract, ids):
            return causal
        length = min(contract.max_length or _LONGER, _LONGER)
        longer = unless_refused(lambda: probe_ids(self.model, self.config, contract.vocab_size, length), None)
        return causal if longer is None else self._is_causal(contract, longer) is not False

    def _is_causal(self, contract: CallContract, ids: torch.Tensor) -> bool | None:
        last = ids.shape[1] - 1
        pair = unless_refused(
            lambda: [self.logits(contract, given)[:, :last] for given in (ids, self._changed(ids, None, last))], None
        )
        if pair is None:
            return None
        before, after = pair
        return bool((after - before).abs().max() <= 1e-6 * max(1.0, float(before.abs().max())))

    def _settle_mask(self, contract: CallContract, ids: torch.Tensor) -> CallContract:
        """Find the convention of an optional mask: hiding a token must hide it, and hiding nothing change nothing."""
        names = self._optional_masks(contract) if ids.shape[1] > 2 else []
        if not names:
            return contract
        plain = unless_refused(lambda: self.logits(replace(contract, mask_name=None, mask=None), ids), None)
        if plain is None:  # a model that runs once and fails on other ids is judged by its first answer
            return contract
        fallback: list[tuple[int, CallContract]] = []
        for name, convention in ((n, c) for n in names for c in candidates(n, contract.decoder_name is not None)):
            if not convention.carries_padding or (fallback and "TT" in convention.shape):
                continue  # who takes a row for each text is not asked for squares
            told = replace(contract, mask_name=name, mask=convention)
            verdict = self._tries_mask(told, ids, plain)
            if verdict == "hides":
                return _because(told, "hides the token that it should")
            if verdict == "ignored" and name == "attention_mask" and convention == next(candidates(name)):
                fallback.append((0, _because(told, "accepted; it hides nothing")))
            if verdict == "acts":
                reason = "hiding nothing changes nothing; a hidden token still leaks in part"
                fallback.append((0, _because(told, reason)))
            if verdict == "runs" and name in self.arguments and (name == "attention_mask" or "pad" in name):
                fallback.append((1, _because(told, "accepted; the probe saw no effect of it")))
        return min(fallback, key=lambda entry: entry[0])[1] if fallback else contract

    def _optional_masks(self, contract: CallContract) -> list[str]:
        """Masks over the input that a call may leave out; one that goes by keyword only through `**kwargs` is tried too."""
        used = {*contract.constants, *contract.built}
        named = [name for name in self.main_masks() if name not in used]
        through = self.takes_keywords and not named and contract.input_name is not None
        if through or (self.takes_keywords and self.takes_args and not named):
            return ["attention_mask"]
        return named

    def rank_of_mask(self, contract: CallContract) -> int:
        """How well required masks fit: 0 hide padding and the future, 1 padding, 2 the future, 3 neither. 0 without one."""
        convention = contract.mask
        squares = any(kind.startswith("mask ") for kind in contract.built.values())
        if not (contract.mask_required and convention is not None) and not squares:
            return 0
        ids = self.ids(contract.vocab_size)
        if ids.shape[1] < 3:
            return 3
        try:
            hides = convention is not None and convention.carries_padding and self._hides(contract, ids)
            if contract.decoder_name is not None:
                causal = not self.named("decoder mask", required=True) or self._decodes_causally(contract, ids)
            else:
                causal = bool(self._is_causal(contract, ids)) and self._reads_earlier(contract, ids)
        except Exception as error:  # noqa: BLE001 - a mask that fails on other ids is no good one, and is shown
            self._note(contract, f"ids {tuple(ids.shape)}", error)
            return 3
        rows_only = (
            convention is not None and "TT" not in convention.shape
        )  # who takes a row for each text means padding
        if hides and rows_only and contract.mask_name not in SQUARE_NAMES and not squares:
            return 0
        return {(True, True): 0, (True, False): 1, (False, True): 2}.get((hides, causal), 3)

    def _decodes_causally(self, contract: CallContract, ids: torch.Tensor) -> bool:
        """Whether the decoder's last id moves no earlier logit, and an earlier id moves a later one."""
        decoder = self.decoder_ids(contract, ids)
        assert decoder is not None  # asked of encoder-decoders only
        plain = self.logits(contract, ids, decoder=decoder)
        later, earlier = decoder.clone(), decoder.clone()
        later[:, -1], earlier[:, 0] = ids[:, 2], ids[:, 2]
        moved = (self.logits(contract, ids, decoder=later) - plain)[:, :-1].abs().max()
        reads = (self.logits(contract, ids, decoder=earlier) - plain)[:, 1:].abs().max()
        return bool(torch.isfinite(plain).all()) and float(moved) <= _TOLERANCE and float(reads) > _TOLERANCE

    def _hides(self, contract: CallContract, ids: torch.Tensor) -> bool:
        """Whether hiding a token makes other logits of its row independent of it, which they otherwise are not.

        Lengths can hide the end of a row only: there the logits before must not depend on it.
        """
        hidden, other = self._one_hidden(contract, ids)
        plain, told = (self.logits(contract, given, mask=hidden) for given in (ids, other))
        if plain.dim() == 3 and contract.decoder_name is None and plain.shape[1] < ids.shape[1]:
            return True  # packed: what no row has any more is cut off
        read = self._read_from(contract)
        moved = (told[read] - plain[read]).abs().flatten(1).amax(1)  # (B,)
        if not bool(torch.isfinite(moved).all()) or float(moved[0]) > _TOLERANCE:
            return False
        return self._counts(contract) or (float(moved[1]) > _TOLERANCE and self._reads_earlier(contract, ids))

    @staticmethod
    def _counts(contract: CallContract) -> bool:
        return contract.mask is not None and contract.mask.shape == "B"

    def _one_hidden(self, contract: CallContract, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A mask (B, T) that hides a token of the first row alone, and the ids with that token changed in every row.

        In one row alone, since a mask of the wrong shape may hide it in all or in one head each.
        """
        place = ids.shape[1] - 1 if self._counts(contract) else HIDDEN
        mask = torch.ones_like(ids)
        mask[0, place] = 0
        return mask, self._changed(ids, None, place)

    def _read_from(self, contract: CallContract) -> Any:
        """Which logits tell whether a token was hidden: later ones, all of a decoder or a class, earlier ones for lengths."""
        if contract.decoder_name is not None or contract.logits.layout == "BV":
            return (slice(None),)
        return (slice(None), slice(None, -1) if self._counts(contract) else slice(HIDDEN + 1, None))

    def _reads_earlier(self, contract: CallContract, ids: torch.Tensor) -> bool:
        """Whether the token moves a later logit while nothing is hidden."""
        read = self._read_from(contract)
        before, after = (self.logits(contract, given)[read] for given in (ids, self._changed(ids, None, HIDDEN)))
        return bool(torch.isfinite(before).all()) and float((after - before).abs().max()) > _TOLERANCE

    def _tries_mask(self, contract: CallContract, ids: torch.Tensor, plain: torch.Tensor) -> str:
        """Return how a convention fares.

        "hides"; "acts" (hides in part); "ignored" (hides nothing); "runs" (nothing to be hidden: no token moves another); or
        "fails".

        Args:
            contract: with the mask to try.
            ids: of the probe.
            plain: logits without a mask.
        """
        hidden, other = self._one_hidden(contract, ids)
        whole, read = torch.ones_like(ids), self._read_from(contract)
        scale = max(1.0, float(plain.abs().max()))

        def asked(given: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            logits = self.logits(contract, given, mask=mask)
            if logits.shape != plain.shape:
                raise ValueError(f"the answer is {tuple(logits.shape)}, without a mask {tuple(plain.shape)}")
            return logits

        def differ(a: torch.Tensor, b: torch.Tensor, row: int = 0) -> bool:
            a, b = a[read][row], b[read][row]
            return not bool(torch.isfinite(b).all()) or float((a - b).abs().max()) > _TOLERANCE * scale

        try:
            full = asked(ids, whole)
            if differ(plain, full) or differ(plain, full, 1):
                return "fails"
            masked = asked(ids, hidden)
            if not differ(full, masked):
                return "ignored" if differ(full, asked(other, whole)) else "runs"
            if differ(full, masked, 1):
                return "fails"
            return "acts" if differ(masked, asked(other, hidden)) else "hides"
        except Exception as error:  # noqa: BLE001 - a refusal rules the convention out, and is shown if nothing else fits
            self._note(contract, f"ids {tuple(ids.shape)}", error)
            return "fails"


def _because(contract: CallContract, reason: str) -> CallContract:
    return replace(contract, reasons={**contract.reasons, "mask": reason})


def _looks_cut(output: Any, guess: CallContract) -> bool:
    """A model that gives one position only (nanoGPT without targets) gives (B, 1, V): not classification."""
    return guess.label_name is None and any(t.dim() == 3 and t.shape[1] == 1 for _, t in tensors_in(output))


def _shapes(output: Any) -> object:
    return [tuple(tensor.shape) for _, tensor in tensors_in(output)] or type(output).__name__
