"""Hugging Face architectures with tiny random weights, built offline through the auto classes from a config alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.zoo.entry import Batch, Entry, classed_text, images, masked_text, padded_text, pairs

ROWS, PLACES, LABELS = 99, 64, 4
"""Vocabulary rows, positions and classes of every config."""

AUTO = {
    "lm": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classification": "AutoModelForSequenceClassification",
    "vision": "AutoModelForImageClassification",
    "tags": "AutoModelForTokenClassification",
}

TEXT = {"vocab_size": ROWS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT = {**TEXT, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": PLACES}
BERT = {
    **TEXT,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": PLACES,
}
LLAMA = {**BERT, "num_key_value_heads": 2}
MOE = {**LLAMA, "num_experts_per_tok": 2}
DEEPSEEK = {
    **BERT,
    "num_key_value_heads": 4,
    "num_experts_per_tok": 2,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
T5 = {
    **TEXT,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 4,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
BART = {
    **TEXT,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": PLACES,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
VIT = {
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
}
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}

CAUSAL: dict[str, dict[str, Any]] = {
    "gpt2": GPT,
    "gpt_neo": {
        **TEXT,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
        "max_position_embeddings": PLACES,
    },
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_neox": BERT,
    "gpt_bigcode": GPT,
    "codegen": {**GPT, "rotary_dim": 4},
    "openai-gpt": GPT,
    "ctrl": {**GPT, "dff": 32},
    "opt": {**BERT, "ffn_dim": 32, "word_embed_proj_dim": 32},
    "bloom": {**TEXT, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {**TEXT, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "mpt": {**TEXT, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": PLACES},
    "xglm": {**TEXT, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 32},
    "biogpt": BERT,
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": {**MOE, "num_local_experts": 4},
    "qwen2": LLAMA,
    "qwen2_moe": {**MOE, "num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "qwen3": {**LLAMA, "head_dim": 8},
    "gemma": {**LLAMA, "head_dim": 8},
    "gemma2": {**LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8},
    "phi": LLAMA,
    "phi3": LLAMA,
    "stablelm": LLAMA,
    "starcoder2": LLAMA,
    "olmo": LLAMA,
    "olmo2": LLAMA,
    "olmoe": {**MOE, "num_experts": 4},
    "deepseek_v3": DEEPSEEK,
    "gpt_oss": {**MOE, "num_local_experts": 4, "head_dim": 8},
    "persimmon": BERT,
    "cohere": LLAMA,
    "granite": LLAMA,
    "nemotron": LLAMA,
    "helium": {**LLAMA, "head_dim": 8},
    "glm": {**LLAMA, "head_dim": 8},
    "smollm3": LLAMA,
    "olmo3": LLAMA,
    "nanochat": LLAMA,
    "seed_oss": {**LLAMA, "head_dim": 8},
    "exaone4": LLAMA,
    "mamba": {**TEXT, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "mamba2": {
        **TEXT,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 8,
        "state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "falcon_mamba": {**TEXT, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "jamba": {
        **MOE,
        "num_experts": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "rwkv": {**TEXT, "hidden_size": 32, "num_hidden_layers": 2, "context_length": PLACES},
    "recurrent_gemma": {**LLAMA, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 32},
    "bart": {**BART, "is_decoder": True, "is_encoder_decoder": False},
    "bert": {**BERT, "is_decoder": True},
}
"""Decoders: model type → settings."""

MASKED: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "roberta": BERT,
    "distilbert": {**TEXT, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 32, "max_position_embeddings": PLACES},
    "albert": {**BERT, "embedding_size": 16},
    "electra": {**BERT, "embedding_size": 16},
    "deberta": BERT,
    "deberta-v2": BERT,
    "mpnet": BERT,
    "convbert": {**BERT, "embedding_size": 32},
    "fnet": BERT,
    "modernbert": {**BERT, "global_attn_every_n_layers": 2, "local_attention": 8},
    "mobilebert": {**BERT, "embedding_size": 16, "intra_bottleneck_size": 16},
    "squeezebert": {
        **BERT,
        "embedding_size": 32,
        "q_groups": 2,
        "k_groups": 2,
        "v_groups": 2,
        "intermediate_groups": 2,
        "output_groups": 2,
    },
    "esm": {**BERT, "mask_token_id": 4},
    "roformer": BERT,
    "rembert": {**BERT, "input_embedding_size": 16, "output_embedding_size": 16},
    "longformer": {**BERT, "attention_window": 4},
    "xlm-roberta": BERT,
    "nystromformer": {**BERT, "num_landmarks": 4, "segment_means_seq_len": 4},
    "xlm": {**TEXT, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": PLACES},
}
"""Encoders with a head for hidden tokens."""

SEQ2SEQ: dict[str, dict[str, Any]] = {
    "t5": T5,
    "mt5": T5,
    "umt5": T5,
    "longt5": {**T5, "local_radius": 8},
    "switch_transformers": {
        **T5,
        "num_experts": 4,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
        "expert_capacity": 64,
    },
    "bart": BART,
    "mbart": BART,
    "plbart": BART,
    "pegasus": BART,
    "mvp": BART,
    "blenderbot": BART,
    "marian": {**BART, "decoder_vocab_size": ROWS},
    "m2m_100": BART,
    "led": {
        **BART,
        "attention_window": 4,
        "max_encoder_position_embeddings": PLACES,
        "max_decoder_position_embeddings": PLACES,
    },
}
"""Encoder-decoders."""

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "distilbert": MASKED["distilbert"],
    "roberta": BERT,
    "albert": MASKED["albert"],
    "gpt2": GPT,
    "llama": LLAMA,
    "electra": MASKED["electra"],
}
"""Text classifiers."""

TAGGERS: dict[str, dict[str, Any]] = {"bert": BERT, "distilbert": MASKED["distilbert"], "qwen2": LLAMA}
"""Classifiers of tokens."""

VISION: dict[str, tuple[dict[str, Any], int]] = {
    "vit": (VIT, 16),
    "deit": ({**VIT, "architectures": ["DeiTForImageClassification"]}, 16),
    "beit": (VIT, 16),
    "dinov2": (VIT, 16),
    "swin": (SWIN, 16),
    "swinv2": (SWIN, 16),
    "convnext": ({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32}, 32),
    "resnet": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}, 32),
    "regnet": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8}, 32),
    "poolformer": ({"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}, 64),
    "mobilevit": (
        {
            "image_size": 128,  # the strides leave 4 × 4 places, so 4 patches
            "patch_size": 2,
            "hidden_sizes": [16, 16, 16],
            "neck_hidden_sizes": [4, 4, 8, 8, 8, 8, 8],
            "num_attention_heads": 4,
            "initializer_range": 0.1,  # 0.02 is meant for wide layers
        },
        128,
    ),
}
"""Image classifiers: settings and side of the picture."""


def _builder(
    kind: str, task: str, settings: dict[str, Any], more: dict[str, Any] | None = None
) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        config = transformers.CONFIG_MAPPING[kind](**settings, **(more or {}))
        torch.manual_seed(0)
        return getattr(transformers, AUTO[task]).from_config(config)

    return build


def _text_logits(model: Any, batch: Batch) -> torch.Tensor:
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def _ids_logits(model: Any, batch: Batch) -> torch.Tensor:
    return model(input_ids=batch["input_ids"]).logits


def _pair_logits(model: Any, batch: Batch) -> torch.Tensor:
    return model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=batch["decoder_input_ids"],
    ).logits


def _pixel_logits(model: Any, batch: Batch) -> torch.Tensor:
    return model(pixel_values=batch["pixel_values"]).logits


def _router_loss(model: Any, batch: Batch) -> torch.Tensor:
    return model(**batch).loss


def _causal(kind: str, settings: dict[str, Any]) -> Entry:
    return Entry(
        f"{kind} (causal)", "lm", _builder(kind, "lm", settings), _text_logits, padded_text(ROWS), "Hugging Face"
    )


def _masked(kind: str, settings: dict[str, Any]) -> Entry:
    no_mask = kind == "fnet"  # its Fourier transform mixes padding too, and its forward takes no mask
    batch: Callable[[], Batch] = masked_text(ROWS)
    if no_mask:
        batch = lambda: {key: value for key, value in masked_text(ROWS)().items() if key != "attention_mask"}  # noqa: E731
    build = _builder(kind, "masked", settings)
    return Entry(f"{kind} (masked)", "masked", build, _ids_logits if no_mask else _text_logits, batch, "Hugging Face")


def _seq2seq(kind: str, settings: dict[str, Any]) -> Entry:
    build = _builder(kind, "seq2seq", settings)
    return Entry(f"{kind} (seq2seq)", "seq2seq", build, _pair_logits, pairs(ROWS), "Hugging Face")


def _classifier(kind: str, settings: dict[str, Any]) -> Entry:
    build = _builder(kind, "classification", settings, {"num_labels": LABELS})
    batch = classed_text(ROWS, LABELS)
    return Entry(f"{kind} (classes)", "classification", build, _text_logits, batch, "Hugging Face")


def _tagger(kind: str, settings: dict[str, Any]) -> Entry:
    def batch() -> Batch:
        made = padded_text(ROWS)()
        return {**made, "labels": torch.where(made["labels"] < 0, -100, made["labels"] % LABELS)}

    build = _builder(kind, "tags", settings, {"num_labels": LABELS})
    return Entry(f"{kind} (tags)", "classification", build, _text_logits, batch, "Hugging Face")


def _vision(kind: str, settings: dict[str, Any], size: int) -> Entry:
    build = _builder(kind, "vision", settings, {"num_labels": LABELS})
    batch = images(3, size, LABELS)
    return Entry(f"{kind} (vision)", "vision", build, _pixel_logits, batch, "Hugging Face")


ENTRIES = [
    *(_causal(kind, settings) for kind, settings in CAUSAL.items()),
    Entry(
        "mixtral with router loss (causal)",
        "lm",
        _builder("mixtral", "lm", CAUSAL["mixtral"], {"output_router_logits": True}),
        _text_logits,
        padded_text(ROWS),
        "the model's own loss holds the balance loss",
        loss=_router_loss,
    ),
    Entry(
        "xlnet (masked)",
        "masked",
        _builder("xlnet", "lm", {**TEXT, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 32}),
        _text_logits,
        padded_text(ROWS),
        "a causal class by name, whose own loss is unshifted",
    ),
    *(_masked(kind, settings) for kind, settings in MASKED.items()),
    *(_seq2seq(kind, settings) for kind, settings in SEQ2SEQ.items()),
    *(_classifier(kind, settings) for kind, settings in CLASSIFIERS.items()),
    *(_tagger(kind, settings) for kind, settings in TAGGERS.items()),
    *(_vision(kind, settings, size) for kind, (settings, size) in VISION.items()),
]
