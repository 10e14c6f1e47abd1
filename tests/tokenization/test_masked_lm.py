from __future__ import annotations

import pickle

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.training.tiny import TEXT
from utils.errors import DataError
from utils.tokenization.batch_order import BatchIndices, Window
from utils.tokenization.bpe_trainer import SPECIAL_TOKENS, FastBPETrainer
from utils.tokenization.loaders import DataLoaderFactory
from utils.tokenization.masked_lm import MaskedBlocks, mask_id
from utils.tokenization.packing import PackedBlocks, pack_documents

TOKENIZER = FastBPETrainer.train_on_dataset([TEXT], 300, special_tokens=[*SPECIAL_TOKENS, "<mask>"])
MASK = TOKENIZER.get_vocab()["<mask>"]
BLOCKS = pack_documents(TEXT.splitlines(), TOKENIZER, 64)


@pytest.fixture
def masked():
    return MaskedBlocks(BLOCKS, TOKENIZER, seed=3)


def test_what_is_hidden_is_labelled_and_nothing_else(masked):
    plain, batch = BLOCKS.__getitems__(range(len(BLOCKS))), masked.__getitems__(range(len(BLOCKS)))
    hidden = batch["labels"] != -100
    assert batch["labels"][hidden].equal(plain["input_ids"][hidden])
    assert batch["input_ids"][~hidden].equal(plain["input_ids"][~hidden])
    assert not hidden[plain["labels"] == -100].any()  # padding of the incomplete block
    assert not hidden[np.isin(plain["input_ids"], TOKENIZER.all_special_ids)].any()
    assert hidden.sum(1).tolist() == masked.loss_tokens.tolist()


def test_shares_are_those_of_the_paper():
    ids = np.random.default_rng(0).integers(5, 300, (400, 128))
    batch = MaskedBlocks(PackedBlocks(ids), TOKENIZER).__getitems__(range(400))
    shown, true = batch["input_ids"].numpy(), ids
    hidden = batch["labels"].numpy() != -100
    assert hidden.mean() == pytest.approx(0.15, abs=0.003)  # 19 of 128
    count = hidden.sum()  # 7,600: three standard deviations are about 0.014 and 0.010
    assert (shown[hidden] == MASK).sum() / count == pytest.approx(0.8, abs=0.014)
    other = (shown[hidden] != MASK) & (shown[hidden] != true[hidden])
    assert other.sum() / count == pytest.approx(0.1, abs=0.011)
    assert not np.isin(shown[hidden][other], [*TOKENIZER.all_special_ids, MASK]).any()


def test_hiding_depends_on_seed_epoch_and_block_alone(masked):
    def hidden(samples, indices, epoch=0):
        return samples.__getitems__(BatchIndices(indices, epoch))["input_ids"].tolist()

    alone, beside = hidden(masked, [4]), hidden(masked, [7, 4, 1])
    assert alone[0] == beside[1] == hidden(pickle.loads(pickle.dumps(masked)), [4])[0]
    assert alone != hidden(masked, [4], epoch=1) and alone != hidden(MaskedBlocks(BLOCKS, TOKENIZER, seed=4), [4])
    fixed = MaskedBlocks(BLOCKS, TOKENIZER, seed=3, fixed=True)
    assert hidden(fixed, [4], 0) == hidden(fixed, [4], 5)


def test_workers_and_a_resume_change_nothing(masked):
    def epoch(workers, start=0):
        loader = DataLoaderFactory(1, workers=workers).train(masked, Window(3, 2))
        loader.batch_sampler.resume_at(2, start)
        return [{name: value.tolist() for name, value in batch.items()} for batch in loader]

    whole = epoch(0)
    assert epoch(2) == whole and epoch(2, start=4) == whole[4:] and "loss_share" in whole[0]


def test_a_block_of_few_tokens_hides_one():
    blocks = PackedBlocks(np.full((2, 2), 9), tail=np.array([TOKENIZER.eos_token_id]))
    assert MaskedBlocks(blocks, TOKENIZER).loss_tokens.tolist() == [1, 1, 0]


def test_the_mask_is_found():
    assert mask_id(TOKENIZER) == MASK
    named = pickle.loads(pickle.dumps(TOKENIZER))
    named.mask_token = "<s>"
    assert mask_id(named) == named.bos_token_id
    plain = FastBPETrainer.train_on_dataset([TEXT], 300)
    assert mask_id(plain) == plain.unk_token_id  # no text of a byte-level tokenizer reads as unknown


def test_a_tokenizer_that_reads_text_as_unknown_has_no_spare_mask():
    backend = Tokenizer(models.BPE({"<unk>": 0, "</s>": 1, "a": 2}, [], unk_token="<unk>"))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    with pytest.raises(DataError, match=r"no mask token.*'<mask>'"):
        mask_id(tokenizer)


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_a_share_beyond_its_range_is_refused(share):
    with pytest.raises(DataError, match="between 0 and 1"):
        MaskedBlocks(BLOCKS, TOKENIZER, share=share)
