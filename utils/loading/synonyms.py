"""One idea, many spellings: the names that configs and constructors use for the same quantity. Knows no values."""

from __future__ import annotations

SYNONYMS: dict[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size", "n_vocab", "vocabulary_size", "vocab_len", "ntoken", "ntokens", "num_tokens",
                   "n_tokens", "padded_vocab_size", "num_embeddings"),
    "max_seq_len": ("max_seq_len", "max_position_embeddings", "n_positions", "n_ctx", "block_size", "max_seq_length",
                    "context_length", "seq_len", "max_len", "context_size", "ctx_len", "seq_length", "sequence_length",
                    "max_sequence_length", "max_context_length", "max_positions", "max_target_positions",
                    "context_window", "max_length"),
    "d_model": ("d_model", "n_embd", "hidden_size", "embed_dim", "model_dim", "emb_dim", "embedding_dim", "n_embed",
                "dim", "dim_model", "embed_size", "emb_size", "embedding_size", "hidden_dim", "n_hidden"),
    "num_layers": ("num_layers", "n_layer", "n_layers", "num_hidden_layers", "nlayers", "depth", "num_blocks",
                   "n_blocks", "num_decoder_layers", "num_encoder_layers"),
    "num_heads": ("num_heads", "n_head", "n_heads", "nhead", "num_attention_heads", "nheads", "heads", "head_count"),
    "dropout": ("dropout", "dropout_rate", "dropout_prob", "dropout_p", "p_dropout", "hidden_dropout_prob",
                "resid_pdrop", "drop_rate"),
    "d_ff": ("d_ff", "dim_feedforward", "intermediate_size", "ffn_dim", "ff_dim", "n_inner", "d_hid", "mlp_dim",
             "ffn_hidden", "d_inner", "hidden_features", "ffn_hidden_size", "dim_ff"),
    "num_kv_heads": ("num_kv_heads", "n_kv_heads", "num_key_value_heads", "n_kv_head", "kv_heads"),
    "num_classes": ("num_classes", "num_labels", "n_classes", "n_labels"),
    "num_experts": ("num_experts", "n_experts", "num_local_experts", "n_routed_experts"),
    "pad_token_id": ("pad_token_id", "pad_id", "padding_idx", "pad_idx"),
}  # fmt: skip
"""Canonical name → its spellings, the canonical one first, then from the clearest to the vaguest."""

_CANONICAL = {spelling: name for name, spellings in SYNONYMS.items() for spelling in spellings}


def canonical_name(name: str) -> str:
    """The canonical name of a spelling; a name that has no synonyms is its own."""
    return _CANONICAL.get(name, _CANONICAL.get(name.lower(), name))


def spellings(name: str) -> tuple[str, ...]:
    """Every spelling of what `name` means, `name` itself first."""
    known = SYNONYMS.get(canonical_name(name), ())
    return (name, *(spelling for spelling in known if spelling != name))
