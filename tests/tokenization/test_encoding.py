from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from tests.training.tiny import TEXT
from utils.errors import DataError
from utils.tokenization import encoding
from utils.tokenization.bpe_trainer import FastBPETrainer
from utils.tokenization.encoding import Encoder, tokenizer_fingerprint

BPE = FastBPETrainer.train_on_dataset([TEXT], 400)


def plain(text: str) -> list[int]:
    return BPE(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def test_ids_are_those_of_the_tokenizer_and_marks_stay_text():
    encoder = Encoder(BPE)
    assert [ids.tolist() for ids in encoder([TEXT, "", "</s><pad>"])] == [plain(TEXT), [], plain("</s><pad>")]
    assert BPE.eos_token_id not in encoder(["</s>"])[0] and encoder.dtype == np.uint16


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["green", " bottles", "\n", "\n\n", " ", "  ", "é", "42", ".", "\tx"]), max_size=400))
def test_long_documents_encode_as_the_whole_does(parts):
    """Pieces of 40 characters, so that a document is cut in many places."""
    text = "".join(parts)
    before = encoding.PIECE_CHARACTERS, encoding._WINDOW
    encoding.PIECE_CHARACTERS, encoding._WINDOW = 40, 30
    try:
        found = Encoder(BPE)([text])[0]
    finally:
        encoding.PIECE_CHARACTERS, encoding._WINDOW = before
    assert found.tolist() == plain(text)


def test_a_long_document_is_really_cut(monkeypatch):
    monkeypatch.setattr(encoding, "PIECE_CHARACTERS", 1000)
    monkeypatch.setattr(encoding, "_WINDOW", 500)
    pieces = Encoder(BPE)._pieces(TEXT)
    assert len(pieces) > 8 and max(map(len, pieces)) <= 1000 and "".join(pieces) == TEXT
    assert all(piece.endswith("\n") for piece in pieces)


def test_a_tokenizer_that_marks_the_beginning_is_not_fooled(monkeypatch):
    """Every text begins with "_": cut anywhere, a second mark would appear, so nothing is cut."""
    vocabulary = {character: index for index, character in enumerate("_abcdefghijklmnopqrstuvwxyz \n,0123456789")}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.normalizer, backend.decoder = normalizers.Prepend("_"), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    monkeypatch.setattr(encoding, "PIECE_CHARACTERS", 500)
    monkeypatch.setattr(encoding, "_WINDOW", 400)
    text = TEXT.lower().replace(".", "")
    assert Encoder(tokenizer)([text])[0].tolist() == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("text", ["a\ud800", "\udfff"])
def test_half_a_surrogate_pair_is_named(text):
    with pytest.raises(DataError, match=r"U\+D[0-9A-F]{3} at character \d, half of a surrogate pair.*Repair it"):
        Encoder(BPE)(["fine", text])


def test_large_vocabularies_take_more_room():
    backend = Tokenizer(models.WordLevel({f"w{n}": n for n in range(70_000)}, unk_token="w0"))
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert encoder(["w69999"])[0].tolist() == [69999] and encoder.dtype == np.int32


def test_a_tokenizer_written_in_python_is_asked_itself():
    class Slow:
        backend_tokenizer = None

        def get_vocab(self):
            return {f"w{number}": number for number in range(300)}

        def __call__(self, texts, **options):
            assert options["split_special_tokens"] and not options["add_special_tokens"]
            return {"input_ids": [list(text.encode()) for text in texts]}

    assert [ids.tolist() for ids in Encoder(Slow())(["ab", ""])] == [[97, 98], []]
    assert Encoder(Slow())([]) == []


def test_the_fingerprint_ignores_what_calls_leave_behind():
    before = tokenizer_fingerprint(BPE)
    BPE("some text", truncation=True, max_length=2)
    try:
        assert tokenizer_fingerprint(BPE) == before
    finally:
        BPE.backend_tokenizer.no_truncation()
    assert tokenizer_fingerprint(FastBPETrainer.train_on_dataset([TEXT], 280)) != before


def test_ids_that_leave_gaps_keep_their_values():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "far": 70_000}, unk_token="<unk>"))
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>"))
    assert encoder(["far"])[0].tolist() == [70_000]
