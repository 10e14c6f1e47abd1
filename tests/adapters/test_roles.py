from __future__ import annotations

import inspect

import pytest

from utils.adapters.roles import Argument


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("attention_mask", "mask"),
        ("key_padding_mask", "mask"),
        ("keep", "mask"),
        ("head_mask", "ignored"),
        ("mask_token_id", "ignored"),
        ("pad_idx", "ignored"),
        ("tgt_mask", "decoder mask"),
        ("tgt_key_padding_mask", "decoder mask"),
        ("memory_key_padding_mask", "memory mask"),
        ("src_len", "lengths"),
        ("tgt_lengths", "decoder mask"),
        ("seq_len", "length"),
        ("batch_size", "batch"),
        ("decoder_input_ids", "decoder"),
        ("dec_inputs", "decoder"),
        ("trg_seq", "decoder"),
        ("target_ids", "decoder"),
        ("enc_inputs", "encoder"),
        ("source_ids", "encoder"),
        ("targets", "labels"),
        ("position_ids", "positions"),
        ("segment_info", "segments"),
        ("init_hidden", "state"),
        ("past_key_values", "state"),
        ("start_pos", "start"),
        ("offsets", "bag offsets"),
        ("need_weights", "flag"),
        ("is_training", "training"),
        ("teacher_forcing_ratio", "teacher forcing"),
        ("temperature", "temperature"),
        ("global_step", "step"),
        ("inputs_embeds", "embeddings"),
        ("secret", ""),
        ("alpha", ""),
        ("t", ""),
    ],
)
def test_names_say_what_an_argument_is_for(name: str, part: str) -> None:
    assert Argument(name).part == part


def test_annotations_count() -> None:
    def forward(pos: int, mask: bool, past: int, exit: int | None, plain, /, late=3) -> None: ...

    pos, mask, past, exit_, plain, late = map(Argument.of, inspect.signature(forward).parameters.values())
    assert (pos.part, mask.part, past.part) == ("start", "flag", "")
    assert exit_.may_be_none and not pos.may_be_none and plain.positional and plain.required
    assert (late.required, late.default) == (False, 3)
