from __future__ import annotations

import itertools
import struct

import pytest

from utils.errors import TokenizerError
from utils.tokenization.sentencepiece_model import build_backend, read_model
from utils.tokenization.tokenizer_files import wrap
from utils.training.dataset_utilities import python_docs

LINES = [line for line in python_docs().split("\n") if line.strip()]
TRIED = [
    *LINES[::40],
    "  double   spaces  here ",
    "    indented\ttab",
    "hello<user>there <user>x",
    "<user>",
    "<s> hello </s> <unk> <0x41> <pad>",
    "Fran\u00e7ais \u65e5\u672c\u8a9e \U0001f600 \ufb01 e\u0301",
    " ",
    "",
]
SETTINGS = list(itertools.product(["unigram", "bpe"], [True, False], ["nmt_nfkc", "identity"], [True, False]))


def field(number: int, value: int | bytes) -> bytes:
    """One field of a protocol buffer message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    out = bytearray()
    value %= 2**64
    while True:
        value, low = value >> 7, value & 127
        out.append(low | (128 if value else 0))
        if not value:
            return bytes(out)


def model_bytes(pieces, kind=1, **further) -> bytes:
    body = b""
    for text, score, sort in pieces:
        piece = field(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + field(3, sort)
        body += field(1, piece)
    trainer = (
        field(3, kind) + field(42, 1) + field(41, -1) + b"".join(field(k, v) for k, v in further.get("trainer", []))
    )
    return body + field(2, trainer) + field(3, field(3, 0) + field(4, 0)) + field(9, b"from the future")


PIECES = [("<unk>", 0.0, 2), ("</s>", 0.0, 3), ("ab", -1.0, 1), ("a", -2.0, 1), ("b", -2.5, 1), ("\u2581", -3.0, 1)]


def read(tmp_path, data: bytes):
    (tmp_path / "x.model").write_bytes(data)
    return read_model(tmp_path / "x.model")


def test_a_model_is_read_field_by_field(tmp_path):
    model = read(tmp_path, model_bytes(PIECES, trainer=[(35, 1)]))
    assert model.pieces == PIECES
    assert (model.kind, model.byte_fallback, model.dummy_prefix, model.strip) == (1, True, False, False)
    assert model.specials() == {"unk_token": "<unk>", "eos_token": "</s>"}  # -1 means none


@pytest.mark.parametrize("kind", [1, 2])
def test_a_model_written_by_hand_encodes(tmp_path, kind):
    model = read(tmp_path, model_bytes(PIECES, kind))
    tokenizer = wrap(build_backend(model), model.specials())
    assert tokenizer("ab a", split_special_tokens=True)["input_ids"] == [2, 5, 3]
    assert tokenizer.decode([2, 5, 3]) == "ab a"
    assert tokenizer("ab</s>", split_special_tokens=False)["input_ids"] == [2, 1]
    assert 1 not in tokenizer("ab</s>", split_special_tokens=True)["input_ids"]


def test_the_best_score_merges_first_whatever_the_order_of_pieces(tmp_path):
    pieces = [("<unk>", 0.0, 2), ("ab", -2.0, 1), ("a", -9.0, 1), ("b", -9.0, 1), ("c", -9.0, 1), ("bc", -1.0, 1)]
    tokenizer = wrap(build_backend(read(tmp_path, model_bytes(pieces, 2))), {})
    assert tokenizer.tokenize("abc") == ["a", "bc"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no SentencePiece model.*holds no pieces"),
        (b"IQ== 0\nIg== 1\n", "no SentencePiece model.*tiktoken"),
        (model_bytes(PIECES)[:-3], "ends 3 bytes after the file"),
        (model_bytes(PIECES)[:11], "no SentencePiece model"),
        (b"\xff" * 30, "no SentencePiece model.*longer than ten bytes"),
        (b"\x0a\x02\x0a", "no SentencePiece model"),
        (model_bytes([("\u00e9", 0.0, 2)]).replace("\u00e9".encode(), b"\xff\xfe"), "no SentencePiece model"),
        (model_bytes(PIECES, 3), "words or characters"),
        (model_bytes(PIECES, 1, trainer=[(24, 1)]), "blanks behind words"),
        (model_bytes(PIECES[1:]), "no unknown piece"),
    ],
)
def test_what_is_no_usable_model_is_refused(tmp_path, data, message):
    with pytest.raises(TokenizerError, match=f"(?s)x.model.*{message}"):
        read(tmp_path, data)


def test_a_file_beyond_the_cap_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.tokenization.sentencepiece_model.MAX_BYTES", 10)
    with pytest.raises(TokenizerError, match="at most 10 are read"):
        read(tmp_path, model_bytes(PIECES))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("sentencepiece") / "text.txt"
    path.write_text("\n".join(LINES[:4000]), "utf-8")
    return path


def score(reference, ids) -> float:
    """What unigram models maximise, rounded, since the libraries add in single precision."""
    return round(sum(map(reference.get_score, ids)), 2)


@pytest.mark.parametrize(("kind", "as_bytes", "rule", "prefix"), SETTINGS)
def test_ids_and_text_are_those_of_the_sentencepiece_library(corpus, kind, as_bytes, rule, prefix):
    """Unigram models may cut otherwise where both cuts have the same score; their text must not differ."""
    library = pytest.importorskip("sentencepiece", reason="the reference")
    stem = corpus.parent / f"{kind}{as_bytes}{rule}{prefix}"
    library.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(stem), vocab_size=600, model_type=kind, byte_fallback=as_bytes,
        normalization_rule_name=rule, add_dummy_prefix=prefix, remove_extra_whitespaces=as_bytes, minloglevel=2,
        num_threads=1, pad_id=3 if as_bytes else -1, user_defined_symbols=["<user>"],
    )  # fmt: skip
    reference = library.SentencePieceProcessor(model_file=f"{stem}.model")
    model = read_model(f"{stem}.model")
    tokenizer = wrap(build_backend(model), model.specials())
    assert len(tokenizer) == reference.get_piece_size()
    assert (tokenizer.eos_token_id, tokenizer.unk_token_id) == (reference.eos_id(), reference.unk_id())
    wanted = {text: reference.encode(text) for text in TRIED}
    found = {text: tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in TRIED}
    for text in TRIED:
        assert found[text] == wanted[text] or (
            kind == "unigram" and score(reference, found[text]) == score(reference, wanted[text])
        )
    for text in TRIED:
        if reference.unk_id() not in wanted[text]:  # written as " ⁇ " there, as <unk> here
            assert tokenizer.decode(wanted[text]) == reference.decode(wanted[text])
            assert tokenizer.decode(found[text]) == reference.decode(wanted[text])
