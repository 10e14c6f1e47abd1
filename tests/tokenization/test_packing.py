"""Text → blocks: exact order, nothing lost, nothing twice."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.tiny import TEXT
from utils.adapters.model_outputs import next_token_loss
from utils.errors import DataError
from utils.tokenization import documents as documents_room
from utils.tokenization.batch_order import EpochBatchSampler, Window
from utils.tokenization.bpe_trainer import FastBPETrainer
from utils.tokenization.loaders import DataLoaderFactory
from utils.tokenization.packing import PackedBlocks, blocks_fingerprint, pack_documents, token_stream

TOKENIZER = FastBPETrainer.train_on_dataset([TEXT], 300)


@pytest.fixture(scope="module")
def tokenizer():
    return TOKENIZER


def expected_stream(documents, tokenizer=TOKENIZER):
    stream = []
    for text in documents:
        stream += tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        stream.append(tokenizer.eos_token_id)
    return stream


def test_documents_are_joined_by_end_of_text_and_cut_into_blocks_full_but_the_last(tokenizer):
    documents = ["one green bottle", "falls down\n", "and </s> is text here"]
    packed = pack_documents(documents, tokenizer, 4)
    stream = expected_stream(documents)
    assert packed.blocks.dtype == np.uint16 and packed.blocks.shape == (-(-len(stream) // 4), 4)
    assert packed.blocks.ravel()[: len(stream)].tolist() == stream and packed.tokens == len(stream)
    assert stream.count(tokenizer.eos_token_id) == len(documents)  # a written-out mark is text


RAGGED = st.lists(
    st.one_of(
        st.just(""),
        st.text(max_size=5),
        st.text(alphabet="ab \n<>/sé🙂", max_size=200),
        st.integers(1, 40).map(lambda n: "green bottles " * n),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(RAGGED, st.integers(2, 40), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(1, 400))
def test_no_token_is_lost_or_doubled_over_an_epoch(documents, length, batch, accumulation, epoch, characters):
    """The batches of a shuffled epoch, put back in order, are the documents and their end marks, token by token."""
    before = documents_room.SLICE_CHARACTERS
    documents_room.SLICE_CHARACTERS = characters  # slices end anywhere
    try:
        packed = pack_documents([*documents, "x"], TOKENIZER, length)
    finally:
        documents_room.SLICE_CHARACTERS = before
    loader = DataLoaderFactory(seed=1).train(packed, Window(batch, accumulation))
    loader.batch_sampler.set_epoch(epoch)
    rows = []
    for indices, shown in zip(loader.batch_sampler.batches(epoch), loader):
        mask = shown.get("attention_mask", torch.ones_like(shown["input_ids"]))
        labelled = shown["labels"] != -100
        assert labelled.equal(mask == 1) and shown["labels"][labelled].equal(shown["input_ids"][labelled])
        rows += zip(indices, (ids[keep == 1].tolist() for ids, keep in zip(shown["input_ids"], mask)))
    rows.sort()
    assert [index for index, _ in rows] == list(range(len(packed)))
    assert all(len(ids) == length for _, ids in rows[:-1])  # full but the last
    assert [token for _, ids in rows for token in ids] == expected_stream([*documents, "x"])


@pytest.mark.parametrize("rest", [0, 1, 5])
def test_the_incomplete_block_is_padded_beside_full_ones_only(rest):
    ids = np.arange(16 + rest, dtype=np.uint16)
    blocks = PackedBlocks(ids[:16].reshape(2, 8), tail=ids[16:], padding=17)  # 17 occurs in the tail as well
    assert len(blocks) == 2 + (rest > 0) and blocks.loss_tokens.sum() == 14 + max(rest - 1, 0)
    whole = blocks.__getitems__([0, 1])
    assert set(whole) == {"input_ids", "labels"}
    if rest:
        both = blocks.__getitems__([0, 2])
        assert both["input_ids"][1].tolist() == [*range(16, 16 + rest), *[17] * (8 - rest)]
        assert both["labels"][1].tolist() == [*range(16, 16 + rest), *[-100] * (8 - rest)]
        assert both["attention_mask"].sum(1).tolist() == [8, rest]
        alone = blocks[-1]
        assert set(alone) == {"input_ids", "labels"} and alone["input_ids"].tolist() == list(range(16, 16 + rest))
    assert len(np.concatenate([part.ravel() for part in blocks.parts()])) == 16 + rest


class Bigram(torch.nn.Module):
    """Scores the next token by this one alone: no attention, within a document or across."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.scores = torch.nn.Embedding(300, 300)

    def forward(self, ids):
        return self.scores(ids)


def test_the_loss_of_packed_batches_is_the_unpacked_loss_weighted_by_tokens(tokenizer):
    """Each document alone, begun by the end mark that stands before it in the stream; block edges predict no token."""
    documents = TEXT.splitlines()[:40]
    model = Bigram()
    packed = pack_documents(documents, tokenizer, 4096)
    assert len(packed) == 1
    batch = packed.__getitems__([0])
    losses, counts = [], []
    for place, text in enumerate(documents):
        ids = [tokenizer.eos_token_id] * (place > 0) + expected_stream([text])
        one = torch.tensor([ids])
        losses.append(next_token_loss(model(one), one).item())
        counts.append(len(ids) - 1)
    expected = np.average(losses, weights=counts)
    assert next_token_loss(model(batch["input_ids"]), batch["labels"]).item() == pytest.approx(expected, rel=1e-6)
    # in small blocks: the mean of the blocks, weighted by what each predicts, is that of all predicted tokens
    small = pack_documents(documents, tokenizer, 16)
    per_block = [
        next_token_loss(model(b["input_ids"]), b["labels"]).item()
        for b in map(small.__getitems__, [[i] for i in range(len(small))])
    ]
    whole = small.__getitems__(range(len(small)))
    together = next_token_loss(model(whole["input_ids"]), whole["labels"]).item()
    assert together == pytest.approx(np.average(per_block, weights=small.loss_tokens), rel=1e-5)


def test_the_cache_is_memory_mapped_and_one_file_serves_every_block_length(tokenizer, tmp_path):
    first = pack_documents([TEXT], tokenizer, 16, tmp_path)
    again = pack_documents([TEXT], tokenizer, 16, tmp_path)
    assert again._stream._map is not None and not again._stream.ids.flags.owndata
    assert np.array_equal(first.blocks, again.blocks) and first.fingerprint == again.fingerprint
    assert first.fingerprint == blocks_fingerprint((TEXT,), tokenizer, 16)
    other = pack_documents([TEXT], tokenizer, 8, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1 and other.fingerprint != first.fingerprint
    pack_documents([TEXT + "x"], tokenizer, 16, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert np.array_equal(pack_documents([TEXT], tokenizer, 16).blocks, first.blocks)  # as without a cache


def test_another_tokenizer_or_cut_of_the_text_is_another_fingerprint(tokenizer):
    other = FastBPETrainer.train_on_dataset([TEXT], 290)
    found = {
        pack_documents(["ab", "c"], tokenizer, 4).fingerprint,
        pack_documents(["a", "bc"], tokenizer, 4).fingerprint,
        pack_documents(["ab", "c"], other, 4).fingerprint,
        pack_documents(["ab", "c"], tokenizer, 5).fingerprint,
    }
    assert len(found) == 4


def test_blocks_travel_to_a_worker_without_their_bytes(tokenizer, tmp_path):
    packed = pack_documents([TEXT], tokenizer, 16, tmp_path)
    sent = pickle.dumps(packed)
    assert len(sent) < 4000 < packed.tokens * 2
    assert np.array_equal(pickle.loads(sent).blocks, packed.blocks)


def test_pages_are_let_go_while_blocks_are_read(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.tokenization.packing.RELEASE_BYTES", 64)
    monkeypatch.setattr("utils.tokenization.packing.FAULT_AROUND", 0)
    packed = pack_documents([TEXT], tokenizer, 16, tmp_path)
    released = []
    monkeypatch.setattr(packed._stream, "release", lambda: released.append(1))
    seen = [packed[i]["input_ids"] for i in range(6)]
    assert len(released) == 3 and torch.cat(seen).tolist() == packed.blocks[:6].ravel().tolist()


MEASURED = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, pathlib
from utils.tokenization.batch_order import Window
from utils.tokenization.block_cache import write_stream
from utils.tokenization.loaders import DataLoaderFactory
from utils.tokenization.packing import PackedBlocks
def mapped():
    return int(pathlib.Path("/proc/self/status").read_text().split("RssFile:")[1].split()[0]) >> 10
path = pathlib.Path(sys.argv[2]) / "tokens-k.bin"
chunks = ((np.full(1 << 20, number, np.uint16), [1 << 20]) for number in range(200))  # 400 MiB
blocks = PackedBlocks.of(write_stream(path, chunks, np.dtype(np.uint16), "k"), 512)
before = mapped()
print(max(mapped() - before for batch in DataLoaderFactory().train(blocks, Window(64, 1))))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.slow
def test_a_shuffled_epoch_does_not_fill_the_memory_with_the_file(tmp_path):
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", MEASURED, root, str(tmp_path)], capture_output=True, text=True)
    assert int(done.stdout) < 260, (
        done.stderr
    )  # MiB: what may be mapped, and one batch more; all of the file where its pages are not let go


def test_what_calls_leave_behind_in_a_tokenizer_has_no_effect(tokenizer):
    expected = pack_documents([TEXT], tokenizer, 16).blocks
    used = pickle.loads(pickle.dumps(tokenizer))
    used("some text", truncation=True, max_length=3, padding="max_length")
    assert np.array_equal(pack_documents([TEXT], used, 16).blocks, expected)
    assert used.backend_tokenizer.truncation is not None  # and it is left as it was


def test_a_short_text_is_one_short_block_and_said_so(tokenizer, caplog):
    packed = pack_documents(["short"], tokenizer, 64, what="validation")
    assert len(packed) == 1 and packed.longest == packed[0]["input_ids"].numel() == packed.tokens
    assert "the validation text gives" in caplog.text and "less than one block of 64" in caplog.text


@pytest.mark.parametrize(
    ("documents", "length", "message"),
    [
        ([""], 16, "training text gives 1 of the two"),
        ([], 16, "training text gives 0 of the two"),
        ([TEXT], 1, "needs 2 tokens or more"),
        (["ok", "bad \ud800 half"], 16, r"U\+D800 at character 4, half of a surrogate pair"),
        (iter(["a"]), 16, "only once"),
        ([1, 2], 16, "Item 0 of the documents is of type int"),
        (b"bytes", 16, "got bytes"),
    ],
)
def test_what_cannot_be_packed_is_refused(tokenizer, documents, length, message):
    with pytest.raises(DataError, match=message):
        pack_documents(documents, tokenizer, length)


def test_a_tokenizer_without_end_of_text_is_refused(tokenizer):
    bare = pickle.loads(pickle.dumps(tokenizer))
    bare.eos_token = None
    with pytest.raises(DataError, match="no end-of-text token"):
        pack_documents([TEXT], bare, 16)


@pytest.mark.parametrize("blocks", [np.zeros((0, 4), int), np.zeros((3, 1), int), np.zeros(4, int), np.zeros((3, 4))])
def test_what_is_no_block_is_refused(blocks):
    with pytest.raises(DataError, match=r"shape \(N, T\)"):
        PackedBlocks(blocks)


def test_progress_counts_documents(tokenizer, monkeypatch):
    monkeypatch.setattr(documents_room, "SLICE_CHARACTERS", 100)
    seen = []
    token_stream(("a" * 60,) * 5, tokenizer, None, lambda *report: seen.append(report[:2]))
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_validation_order_is_that_of_the_text(tokenizer):
    packed = pack_documents([TEXT], tokenizer, 16)
    loader = DataLoaderFactory().validation(packed, 4)
    shown = [b["input_ids"][b["labels"] != -100] for b in loader]
    assert torch.cat(shown).tolist() == expected_stream([TEXT]) and isinstance(loader.batch_sampler, EpochBatchSampler)
