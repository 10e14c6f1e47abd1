"""Faults of attention: masks, softmax, heads, scale, padding."""

from __future__ import annotations

from tests.checks.corpus.entry import Fault

WRONG_AXIS = "softmax over the wrong axis"
NO_MASK = "missing causal mask"
MASK_DIAGONAL = "causal mask off by one"
MASK_INVERTED = "causal mask inverted"
HEADS = "wrong reshape of heads"
PADDING = "padding mask ignored or inverted"

ATTENTION_FAULTS = (
    Fault(
        "softmax over the queries (causal)",
        "gpt",
        "causality",
        {"F.softmax(scores, dim=-1)": "F.softmax(scores, dim=-2)"},
        cure=WRONG_AXIS,
    ),
    Fault(
        "softmax over the heads",
        "gpt",
        "numerical stability",
        {"F.softmax(scores, dim=-1)": "F.softmax(scores, dim=1)"},
        cure=WRONG_AXIS,
    ),
    Fault(
        "softmax over the queries (encoder)",
        "bert",
        "padding invariance",
        {"scores.softmax(dim=-1)": "scores.softmax(dim=2)"},
        cure=WRONG_AXIS,
    ),
    Fault(
        "softmax over the batch",
        "bert",
        "row independence",
        {"scores.softmax(dim=-1)": "torch.softmax(scores, 0)"},
        cure=WRONG_AXIS,
    ),
    Fault(
        "scores not divided by the root of the head's width",
        "gpt",
        "initialisation",
        {" / math.sqrt(query.shape[-1])": ""},
        cure="missing 1/sqrt(d)",
        config={"n_embd": 64, "n_head": 1},
    ),
    Fault(
        "scores multiplied by the root of the head's width",
        "bert",
        "initialisation",
        {"/ math.sqrt(query.shape[-1])": "* math.sqrt(query.shape[-1])"},
        config={"hidden_size": 128, "num_attention_heads": 1},
    ),
    Fault(
        "no causal mask (by hand)",
        "gpt",
        "causality",
        {'        scores = scores.masked_fill(~self.mask[:length, :length], float("-inf"))\n': ""},
        cure=NO_MASK,
    ),
    Fault(
        "no causal mask (nn.MultiheadAttention)",
        "multihead",
        "causality",
        {"hidden, hidden, hidden, attn_mask=mask, need_weights=False": "hidden, hidden, hidden, need_weights=False"},
        cure=NO_MASK,
    ),
    Fault("no causal mask (fused attention)", "llama", "causality", {"value, is_causal=True)": "value)"}, cure=NO_MASK),
    Fault(
        "causal mask lets one future token through",
        "gpt",
        "causality",
        {
            "torch.tril(torch.ones(limit, limit, dtype=torch.bool))": "torch.tril(torch.ones(limit, limit, dtype=torch.bool), diagonal=1)"
        },
        cure=MASK_DIAGONAL,
    ),
    Fault(
        "causal mask lets one future token through (nn.MultiheadAttention)",
        "multihead",
        "causality",
        {"device=input_ids.device), diagonal=1)": "device=input_ids.device), diagonal=2)"},
        cure=MASK_DIAGONAL,
    ),
    Fault(
        "causal mask hides the token itself",
        "multihead",
        "numerical stability",
        {"device=input_ids.device), diagonal=1)": "device=input_ids.device))"},
        cure=MASK_DIAGONAL,
    ),
    Fault(
        "causal mask inverted",
        "gpt",
        "causality",
        {'~self.mask[:length, :length], float("-inf")': "self.mask[:length, :length], -1e9"},
        cure=MASK_INVERTED,
    ),
    Fault(
        "causal mask inverted, last row empty",
        "multihead",
        "numerical stability",
        {
            "torch.triu(torch.ones(length": "torch.tril(torch.ones(length",
            "device=input_ids.device), diagonal=1)": "device=input_ids.device))",
        },
        cure=MASK_INVERTED,
    ),
    Fault(
        "heads joined without transposing back",
        "gpt",
        "causality",
        {"(weights @ value).transpose(1, 2).reshape": "(weights @ value).reshape"},
        cure=HEADS,
    ),
    Fault(
        "heads split by view alone (encoder)",
        "bert",
        "padding invariance",
        {
            "x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)": "x.view(x.shape[0], self.heads, x.shape[1], -1)"
        },
        cure=HEADS,
    ),
    Fault(
        "heads split by view alone (causal)",
        "gpt",
        "causality",
        {
            "query.view(batch, length, self.heads, -1).transpose(1, 2)": "query.reshape(batch, self.heads, length, -1)",
            "key.view(batch, length, self.heads, -1).transpose(1, 2)": "key.reshape(batch, self.heads, length, -1)",
            "value.view(batch, length, self.heads, -1).transpose(1, 2)": "value.reshape(batch, self.heads, length, -1)",
        },
        cure=HEADS,
    ),
    Fault(
        "heads joined across rows of the batch",
        "gpt",
        "row independence",
        {"(weights @ value).transpose(1, 2).reshape": "(weights @ value).permute(2, 0, 1, 3).reshape"},
        cure=HEADS,
    ),
    Fault("padding mask of the wrong sign", "bert", "padding invariance", {"* -1e4": "* 1e4"}, cure=PADDING),
    Fault(
        "padding mask not used in attention",
        "bert",
        "padding invariance",
        {"math.sqrt(query.shape[-1]) + bias": "math.sqrt(query.shape[-1])"},
        cure=PADDING,
    ),
    Fault(
        "padding mask inverted",
        "bert",
        "padding invariance",
        {"(1.0 - attention_mask[:, None, None, :].float())": "attention_mask[:, None, None, :].float()"},
        cure=PADDING,
    ),
    Fault(
        "padding mask inverted, rows empty",
        "classifier",
        "numerical stability",
        {"src_key_padding_mask=~keep": "src_key_padding_mask=keep"},
        cure=PADDING,
    ),
    Fault(
        "padding counted in the mean",
        "classifier",
        "padding invariance",
        {
            "pooled = (x * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1.0)": "pooled = x.mean(dim=1)",
            "        counted = keep.unsqueeze(-1).to(x.dtype)\n": "",
        },
        cure="",
    ),
    Fault(
        "class read from the last position, padding or not",
        "classifier",
        "padding invariance",
        {
            "pooled = (x * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1.0)": "pooled = x[:, -1]",
            "        counted = keep.unsqueeze(-1).to(x.dtype)\n": "",
        },
        cure="",
    ),
    Fault(
        "batch taken for time",
        "vision",
        "row independence",
        {"dropout=0.1, batch_first=True, norm_first": "dropout=0.1, norm_first"},
        cure="batch_first missing",
    ),
    Fault(
        "padding mask not used in cross-attention",
        "seq2seq",
        "padding invariance",
        {"tgt_mask=mask, memory_key_padding_mask=hidden": "tgt_mask=mask"},
        cure=PADDING,
    ),
    Fault(
        "decoder without causal mask",
        "seq2seq",
        "causality",
        {"memory, tgt_mask=mask, memory": "memory, memory"},
        cure=NO_MASK,
    ),
)
