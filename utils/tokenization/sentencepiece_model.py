"""SentencePiece `.model` files as `tokenizers` objects: read here, without the sentencepiece package and without code in them.

The file is a protocol buffer; the few fields that matter are picked out of it. Unigram and BPE models are understood.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_BYTES = 64 * 2**20
"""Largest file that is read; the largest published model (256,000 pieces) has 4 MiB."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of pieces, as sentencepiece_model.proto numbers them."""
_UNIGRAM, _BPE = 1, 2
_SPACE = "\u2581"


@dataclass
class SentencePieceModel:
    """What a `.model` file says.

    Attributes:
        pieces: text, score and kind of each piece; the position is the id.
        kind: 1 unigram, 2 BPE, 3 words, 4 characters.
        byte_fallback: whether unknown characters are written as bytes.
        charsmap: compiled normalisation rules; empty for none.
        dummy_prefix: whether a blank is put before the text; strip: whether runs of blanks become one and edges none.
        escape: whether blanks are written as U+2581; suffix: whether they belong to the word before them.
        named: "bos", "eos", "pad" → id, where the model has them.
    """

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    kind: int = _UNIGRAM
    byte_fallback: bool = False
    charsmap: bytes = b""
    dummy_prefix: bool = True
    strip: bool = True
    escape: bool = True
    suffix: bool = False
    named: dict[str, int] = field(default_factory=lambda: {"bos": 1, "eos": 2, "pad": -1})

    def specials(self) -> dict[str, str]:
        """Special tokens in the words of a tokenizer_config.json."""
        found = {f"{name}_token": self.pieces[i][0] for name, i in self.named.items() if 0 <= i < len(self.pieces)}
        unknown = next((text for text, _, kind in self.pieces if kind == UNKNOWN), None)
        return found if unknown is None else {"unk_token": unknown, **found}


def read_model(path: str | Path) -> SentencePieceModel:
    """Read a `.model` file.

    Raises:
        TokenizerError: it is none, is cut short, or is of a kind that cannot be rebuilt.
    """
    file = Path(path)
    if file.stat().st_size > MAX_BYTES:
        raise TokenizerError(f"{file.name} has {file.stat().st_size:,} bytes; at most {MAX_BYTES:,} are read.")
    try:
        model = _parse(file.read_bytes())
    except (ValueError, struct.error, IndexError) as error:
        raise TokenizerError(
            f"{file.name} is no SentencePiece model ({error}). A tiktoken file of the same ending has to be given as its "
            "tokenizer.json."
        ) from error
    if model.kind not in (_UNIGRAM, _BPE) or model.suffix:
        what = "writes blanks behind words" if model.suffix else "is a model of words or characters"
        raise TokenizerError(f"{file.name} {what}; unigram and BPE models with blanks before words can be used.")
    if not any(kind == UNKNOWN for _, _, kind in model.pieces):
        raise TokenizerError(f"{file.name} has no unknown piece among its {len(model.pieces)} pieces: it is damaged.")
    return model


def build_backend(model: SentencePieceModel) -> Tokenizer:
    """The same tokenizer as a `tokenizers` object; control pieces become special tokens."""
    from tokenizers import AddedToken, Tokenizer

    backend = Tokenizer(_unigram(model) if model.kind == _UNIGRAM else _bpe(model))
    normaliser = _normaliser(model)
    if normaliser is not None:
        backend.normalizer = normaliser
    splitter = _splitter(model)
    if splitter is not None:
        backend.pre_tokenizer = splitter
    backend.decoder = _decoder(model)
    backend.add_tokens(
        [
            AddedToken(text, special=True, normalized=False)
            for text, _, kind in model.pieces
            if kind in (CONTROL, UNKNOWN)
        ]
    )
    return backend


def _unigram(model: SentencePieceModel) -> Any:
    from tokenizers import models

    unknown = next(i for i, (_, _, kind) in enumerate(model.pieces) if kind == UNKNOWN)
    return models.Unigram([piece[:2] for piece in model.pieces], unk_id=unknown, byte_fallback=model.byte_fallback)


def _bpe(model: SentencePieceModel) -> Any:
    from tokenizers import models

    vocabulary = {text: index for index, (text, _, _) in enumerate(model.pieces)}
    unknown = next(text for text, _, kind in model.pieces if kind == UNKNOWN)
    return models.BPE(
        vocab=vocabulary,
        merges=_merges(model),
        unk_token=unknown,
        fuse_unk=True,
        ignore_merges=any(kind == USER_DEFINED for _, _, kind in model.pieces),  # their words are entries as they are
        byte_fallback=model.byte_fallback,
    )


def _merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, best score first: what SentencePiece's BPE looks for."""
    usable = {text: score for text, score, kind in model.pieces if kind in (NORMAL, USER_DEFINED, UNUSED)}
    order = {text: index for index, text in enumerate(usable)}
    splits = [
        (-score, order[text[:at]], order[text[at:]], text[:at], text[at:])
        for text, score in usable.items()
        for at in range(1, len(text))
        if text[:at] in usable and text[at:] in usable
    ]
    return [(left, right) for _, _, _, left, right in sorted(splits)]


def _normaliser(model: SentencePieceModel) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.strip:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    if model.escape:
        steps.append(normalizers.Replace(" ", _SPACE))
    return normalizers.Sequence(steps) if steps else None


def _splitter(model: SentencePieceModel) -> Any:
    """Symbols that the model's owner defined stand alone; and, for unigram, a cut inside what text must not become.

    SentencePiece keeps control, unknown and byte pieces out of its search; the `tokenizers` model does not.
    """
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = []
    defined = sorted((text for text, _, kind in model.pieces if kind == USER_DEFINED), key=len, reverse=True)
    if defined:
        steps.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, defined))), "isolated"))
    guarded = [text for text, _, kind in model.pieces if kind in (CONTROL, UNKNOWN, BYTE) and len(text) > 1]
    if model.kind == _UNIGRAM and guarded:
        pattern = "|".join(f"{re.escape(text[0])}(?={re.escape(text[1:])})" for text in guarded)
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    return pre_tokenizers.Sequence(steps) if steps else None


def _decoder(model: SentencePieceModel) -> Any:
    from tokenizers import decoders

    steps: list[Any] = [decoders.Replace(_SPACE, " ")] if model.escape else []
    steps += [decoders.ByteFallback()] if model.byte_fallback else []
    steps.append(decoders.Fuse())
    steps += [decoders.Strip(" ", 1, 0)] if model.escape and model.dummy_prefix else []
    return decoders.Sequence(steps)


def _parse(data: bytes) -> SentencePieceModel:
    model = SentencePieceModel()
    for number, value in _fields(data):
        if number == 1:
            model.pieces.append(_piece(_sub(value)))
        elif number == 2:
            _read_trainer(model, _sub(value))
        elif number == 3:
            _read_normaliser(model, _sub(value))
    if not model.pieces:
        raise ValueError("it holds no pieces")
    return model


def _piece(data: bytes) -> tuple[str, float, int]:
    found: dict[int, Any] = {1: b"", 2: b"\0\0\0\0", 3: NORMAL, **dict(_fields(data))}
    return _sub(found[1]).decode("utf-8"), float(struct.unpack("<f", _sub(found[2]))[0]), int(found[3])


def _read_trainer(model: SentencePieceModel, data: bytes) -> None:
    names = {41: "bos", 42: "eos", 43: "pad"}
    for number, value in _fields(data):
        if number == 3:
            model.kind = int(value)
        elif number == 24:
            model.suffix = bool(value)
        elif number == 35:
            model.byte_fallback = bool(value)
        elif number in names:
            model.named[names[number]] = _signed(int(value))


def _read_normaliser(model: SentencePieceModel, data: bytes) -> None:
    for number, value in _fields(data):
        if number == 2:
            model.charsmap = _sub(value)
        elif number == 3:
            model.dummy_prefix = bool(value)
        elif number == 4:
            model.strip = bool(value)
        elif number == 5:
            model.escape = bool(value)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protocol buffer message: whole numbers, or raw bytes (4, 8 or as many as announced)."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"field {number} ends {at + size - len(data)} bytes after the file")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number at byte {at} is longer than ten bytes")


def _signed(value: int) -> int:
    """An int32 of a protocol buffer: negative numbers are written as 64 bits."""
    return value - 2**64 if value >= 2**63 else value


def _sub(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"the number {value} stands where bytes should be")
    return value
