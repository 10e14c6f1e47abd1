"""Broken exports in the generator's manner, each with a forward that a person wrote by hand from the canvas.

A case is (source, config, reference). The reference takes the instance and token ids (B, T) and computes the logits from
the modules alone, without reading the export's `forward`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

V, D, T = 29, 8, 12
"""Vocabulary rows, width and length limit of every case."""

HEADER = "import torch\nimport torch.nn as nn\n\n\n"


@dataclass
class Export:
    """One broken export and what it must compute."""

    source: str
    reference: Callable[[Any, torch.Tensor], torch.Tensor]
    config: dict[str, Any] = field(default_factory=lambda: {"vocab_size": V, "max_seq_len": T})
    arguments: dict[str, Any] = field(default_factory=dict)
    assumptions: int | None = None


def export(init: str, forward: str, name: str = "Net", before: str = "") -> str:
    """Source of a class from the lines of its constructor and its forward."""
    body = "\n".join(f"        {line}" if line else "" for line in init.strip("\n").splitlines())
    lines = forward.strip("\n").splitlines()
    text = "\n".join([f"    {lines[0]}", *(f"    {line}" if line else "" for line in lines[1:])])
    return f"{HEADER}{before}class {name}(nn.Module):\n    def __init__(self):\n        super().__init__()\n{body}\n\n{text}\n"


EMBEDDING = f"""
# input: input_0
# embedding: embedding_0
self.embedding_0_token = nn.Embedding({V}, {D})
self.embedding_0_pos = nn.Embedding({T}, {D})
self.embedding_0_dropout = nn.Dropout(0.0)
"""
MHSA = f"self.mhsa_0 = nn.MultiheadAttention({D}, 2, batch_first=True)"
NORM = f"self.layernorm_{{}} = nn.LayerNorm({D})"
FFN = f"self.ffn_0 = nn.Sequential(nn.Linear({D}, 16), nn.GELU(), nn.Linear(16, {D}))"
EMBED = """    # Embedding: embedding_0
    B, T = input_0_tokens.shape
    positions = torch.arange(0, T, device=input_0_tokens.device)
    tok = self.embedding_0_token(input_0_tokens)
    pos = self.embedding_0_pos(positions)
    embedding_0_x = self.embedding_0_dropout(tok + pos)
"""
POST_NORM = f"""{EMBEDDING}# mhsa: mhsa_0
{MHSA}
# residual: residual_0
# layernorm: layernorm_0
{NORM.format(0)}
# ffn: ffn_0
{FFN}
# residual: residual_1
# layernorm: layernorm_1
{NORM.format(1)}
# output: output_0
"""
PRE_NORM = f"""{EMBEDDING}# layernorm: layernorm_0
{NORM.format(0)}
# mhsa: mhsa_0
{MHSA}
# residual: residual_0
# layernorm: layernorm_1
{NORM.format(1)}
# ffn: ffn_0
{FFN}
# residual: residual_1
# output: output_0
"""
BLOCK = """    mhsa_0_output, _ = self.mhsa_0(embedding_0_x, embedding_0_x, embedding_0_x)
    layernorm_0_output = self.layernorm_0(residual_0_output)
    ffn_0_output = self.ffn_0(layernorm_0_output)
    layernorm_1_output = self.layernorm_1(residual_1_output)
"""


def embed(m: Any, ids: torch.Tensor) -> torch.Tensor:
    """Token plus position rows."""
    return m.embedding_0_token.weight[ids] + m.embedding_0_pos.weight[: ids.shape[1]]


def attend(attention: nn.MultiheadAttention, x: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
    """Multi-head attention from its parameters, written out."""
    memory = x if memory is None else memory
    heads, size = attention.num_heads, x.shape[-1] // attention.num_heads
    w_q, w_k, w_v = attention.in_proj_weight.chunk(3)
    b_q, b_k, b_v = attention.in_proj_bias.chunk(3)

    def split(y: torch.Tensor) -> torch.Tensor:
        return y.unflatten(-1, (heads, size)).transpose(1, 2)

    q, k, v = split(x @ w_q.T + b_q), split(memory @ w_k.T + b_k), split(memory @ w_v.T + b_v)
    weights = torch.softmax(q @ k.transpose(-1, -2) / size**0.5, dim=-1)
    return (weights @ v).transpose(1, 2).flatten(-2) @ attention.out_proj.weight.T + attention.out_proj.bias


def tied(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Logits from the token embedding's rows."""
    return x @ m.embedding_0_token.weight.T


def post_norm(m: Any, ids: torch.Tensor) -> torch.Tensor:
    """r0 = x + attn(x); r1 = r0 + ffn(norm(r0)); norm(r1)."""
    x = embed(m, ids)
    r0 = x + attend(m.mhsa_0, x)
    r1 = r0 + m.ffn_0(m.layernorm_0(r0))
    return m.layernorm_1(r1)


def classic_post_norm(m: Any, ids: torch.Tensor) -> torch.Tensor:
    """n0 = norm(x + attn(x)); norm(n0 + ffn(n0))."""
    x = embed(m, ids)
    n0 = m.layernorm_0(x + attend(m.mhsa_0, x))
    return m.layernorm_1(n0 + m.ffn_0(n0))


def pre_norm(m: Any, ids: torch.Tensor) -> torch.Tensor:
    """r0 = x + attn(norm(x)); r0 + ffn(norm(r0))."""
    x = embed(m, ids)
    r0 = x + attend(m.mhsa_0, m.layernorm_0(x))
    return r0 + m.ffn_0(m.layernorm_1(r0))


ARGUMENTS = "input_0_tokens: torch.Tensor, mhsa_0_output: torch.Tensor, residual_0_output: torch.Tensor, residual_1_output: torch.Tensor"
PRE_BLOCK = """    layernorm_0_output = self.layernorm_0(embedding_0_x)
    mhsa_0_output, _ = self.mhsa_0(layernorm_0_output, layernorm_0_output, layernorm_0_output)
    layernorm_1_output = self.layernorm_1(residual_0_output)
    ffn_0_output = self.ffn_0(layernorm_1_output)
"""


def nodes(
    *names: str, edges: list[tuple[str, str]] | None = None, style: str = "edges", **params: dict[str, Any]
) -> dict[str, Any]:
    """A config.json with a node list, and its edges in one of the three styles."""
    listed: list[dict[str, Any]] = [{"id": n, "type": n.rsplit("_", 1)[0], "params": params.get(n, {})} for n in names]
    config: dict[str, Any] = {"version": "1.0", "model_name": "Net", "nodes": listed}
    for entry in listed:
        if entry["type"] == "embedding":
            entry["params"] = {"vocab_size": V, "max_seq_len": T, "d_model": D, **entry["params"]}
    if edges is not None and style == "edges":
        config["edges"] = [{"source": a, "target": b} for a, b in edges]
    elif edges is not None and style == "connections":
        config["connections"] = [{"from": a, "to": b} for a, b in edges]
    elif edges is not None:
        for entry in listed:
            entry["inputs"] = [a for a, b in edges if b == entry["id"]]
    return config


PARALLEL_NODES = ("input_0", "embedding_0", "layernorm_0", "mhsa_0", "ffn_0", "residual_0", "layernorm_1", "output_0")
PARALLEL_EDGES = [
    ("input_0", "embedding_0"),
    ("embedding_0", "layernorm_0"),
    ("layernorm_0", "mhsa_0"),
    ("layernorm_0", "ffn_0"),
    ("embedding_0", "residual_0"),
    ("mhsa_0", "residual_0"),
    ("ffn_0", "residual_0"),
    ("residual_0", "layernorm_1"),
    ("layernorm_1", "output_0"),
]
PARALLEL = export(
    f"{EMBEDDING}{NORM.format(0)}\n{MHSA}\n{FFN}\n{NORM.format(1)}",
    f"def forward(self, input_0_tokens, residual_0_output):\n{EMBED}"
    "    layernorm_0_output = self.layernorm_0(embedding_0_x)\n"
    "    mhsa_0_output, _ = self.mhsa_0(layernorm_0_output, layernorm_0_output, layernorm_0_output)\n"
    "    ffn_0_output = self.ffn_0(layernorm_0_output)\n"
    "    layernorm_1_output = self.layernorm_1(residual_0_output)\n"
    "    return output_0_logits",
)


def parallel(m: Any, ids: torch.Tensor) -> torch.Tensor:
    """Attention and feed-forward side by side on one norm (as in GPT-J)."""
    x = embed(m, ids)
    n = m.layernorm_0(x)
    return tied(m, m.layernorm_1(x + attend(m.mhsa_0, n) + m.ffn_0(n)))


def _lstm(m: Any, ids: torch.Tensor) -> torch.Tensor:
    return m.output_0(m.lstm_0(m.embedding_0.weight[ids])[0])


def _conv(m: Any, ids: torch.Tensor) -> torch.Tensor:
    x = m.embedding_0.weight[ids]
    return (x + m.conv1d_0(x.transpose(1, 2)).transpose(1, 2)) @ m.embedding_0.weight.T


MOE = f'''class MoE(nn.Module):
    """Two experts behind a soft gate; gives (output, auxiliary loss)."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear({D}, 2)
        self.experts = nn.ModuleList([nn.Linear({D}, {D}) for _ in range(2)])

    def forward(self, x):
        weights = torch.softmax(self.gate(x), dim=-1)
        mixed = sum(weights[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))
        return mixed, weights.mean()


'''

CASES: dict[str, Export] = {
    "typical": Export(
        export(
            POST_NORM, f"def forward(self, {ARGUMENTS}) -> torch.Tensor:\n{EMBED}{BLOCK}\n    return output_0_logits"
        ),
        lambda m, ids: tied(m, post_norm(m, ids)),
        assumptions=2,
    ),
    "arguments default to None": Export(
        export(
            POST_NORM,
            "def forward(self, input_0_tokens, mhsa_0_output=None, residual_0_output=None, residual_1_output=None):\n"
            f"{EMBED}{BLOCK}    return output_0_logits",
        ),
        lambda m, ids: tied(m, post_norm(m, ids)),
    ),
    "classic post-norm on request": Export(
        export(POST_NORM, f"def forward(self, {ARGUMENTS}):\n{EMBED}{BLOCK}    return output_0_logits"),
        lambda m, ids: tied(m, classic_post_norm(m, ids)),
        arguments={"residual": "sublayer_input"},
    ),
    "head defined and never called": Export(
        export(
            f"{POST_NORM}self.output_projection = nn.Linear({D}, {V})",
            f"def forward(self, {ARGUMENTS}):\n{EMBED}{BLOCK}    return output_0_logits",
        ),
        lambda m, ids: m.output_projection(post_norm(m, ids)),
        assumptions=1,
    ),
    "head of the output node": Export(
        export(
            f"{POST_NORM}self.output_0 = nn.Linear({D}, {V})",
            f"def forward(self, {ARGUMENTS}):\n{EMBED}{BLOCK}    return output_0_logits",
        ),
        lambda m, ids: m.output_0(post_norm(m, ids)),
    ),
    "lm_head behind hidden states": Export(
        export(
            f"{POST_NORM}self.lm_head = nn.Linear({D}, {V}, bias=False)",
            f"def forward(self, {ARGUMENTS}):\n{EMBED}{BLOCK}    return layernorm_1_output",
        ),
        lambda m, ids: m.lm_head(post_norm(m, ids)),
    ),
    "hidden states returned, no head": Export(
        export(POST_NORM, f"def forward(self, {ARGUMENTS}):\n{EMBED}{BLOCK}    return layernorm_1_output"),
        lambda m, ids: tied(m, post_norm(m, ids)),
    ),
    "nothing returned": Export(
        export(POST_NORM, f"def forward(self, {ARGUMENTS}):\n{EMBED}{BLOCK}"),
        lambda m, ids: tied(m, post_norm(m, ids)),
    ),
    "pre-norm": Export(
        export(
            PRE_NORM,
            f"def forward(self, input_0_tokens, residual_0_output):\n{EMBED}{PRE_BLOCK}    return output_0_logits",
        ),
        lambda m, ids: tied(m, pre_norm(m, ids)),
    ),
    "statements out of order": Export(
        export(
            POST_NORM,
            "def forward(self, input_0_tokens, residual_0_output, residual_1_output):\n"
            "    layernorm_1_output = self.layernorm_1(residual_1_output)\n"
            "    ffn_0_output = self.ffn_0(layernorm_0_output)\n"
            "    layernorm_0_output = self.layernorm_0(residual_0_output)\n"
            f"{EMBED}"
            "    mhsa_0_output, _ = self.mhsa_0(embedding_0_x, embedding_0_x, embedding_0_x)\n"
            "    return output_0_logits",
        ),
        lambda m, ids: tied(m, post_norm(m, ids)),
    ),
    "additions missing altogether": Export(
        export(
            POST_NORM,
            f"def forward(self, input_0_tokens):\n{EMBED}"
            "    mhsa_0_output, _ = self.mhsa_0(embedding_0_x, embedding_0_x, embedding_0_x)\n"
            "    layernorm_0_output = self.layernorm_0(mhsa_0_output)\n"
            "    ffn_0_output = self.ffn_0(layernorm_0_output)\n"
            "    layernorm_1_output = self.layernorm_1(ffn_0_output)\n"
            "    return output_0_logits",
        ),
        lambda m, ids: tied(m, post_norm(m, ids)),
    ),
    "module never called": Export(
        export(
            POST_NORM,
            f"def forward(self, {ARGUMENTS}):\n{EMBED}"
            "    mhsa_0_output, _ = self.mhsa_0(embedding_0_x, embedding_0_x, embedding_0_x)\n"
            "    ffn_0_output = self.ffn_0(residual_0_output)\n"
            "    layernorm_1_output = self.layernorm_1(residual_1_output)\n"
            "    return output_0_logits",
        ),
        lambda m, ids: tied(m, post_norm(m, ids)),
    ),
    "last norm never called": Export(
        export(
            POST_NORM,
            f"def forward(self, {ARGUMENTS}):\n{EMBED}"
            "    mhsa_0_output, _ = self.mhsa_0(embedding_0_x, embedding_0_x, embedding_0_x)\n"
            "    layernorm_0_output = self.layernorm_0(residual_0_output)\n"
            "    ffn_0_output = self.ffn_0(layernorm_0_output)\n"
            "    return output_0_logits",
        ),
        lambda m, ids: tied(m, post_norm(m, ids)),
    ),
    "every statement missing": Export(
        export(POST_NORM, "def forward(self, input_0_tokens):\n    return output_0_logits"),
        lambda m, ids: tied(m, post_norm(m, ids)),
    ),
    "edges of three terms": Export(PARALLEL, parallel, nodes(*PARALLEL_NODES, edges=PARALLEL_EDGES)),
    "connections of three terms": Export(
        PARALLEL, parallel, nodes(*PARALLEL_NODES, edges=PARALLEL_EDGES, style="connections")
    ),
    "inputs of three terms": Export(PARALLEL, parallel, nodes(*PARALLEL_NODES, edges=PARALLEL_EDGES, style="inputs")),
    "edges in the class": Export(
        PARALLEL.replace(
            "    def __init__",
            f"    __metadata__ = {nodes(*PARALLEL_NODES, edges=PARALLEL_EDGES)!r}\n\n    def __init__",
            1,
        ),
        parallel,
    ),
    "edges against a statement": Export(
        export(
            POST_NORM,
            f"def forward(self, {ARGUMENTS}):\n{EMBED}"
            "    mhsa_0_output, _ = self.mhsa_0(embedding_0_x, embedding_0_x, embedding_0_x)\n"
            "    layernorm_0_output = self.layernorm_0(residual_0_output)\n"
            "    ffn_0_output = self.ffn_0(embedding_0_x)\n"
            "    layernorm_1_output = self.layernorm_1(residual_1_output)\n"
            "    return output_0_logits",
        ),
        lambda m, ids: tied(m, classic_post_norm(m, ids)),
        nodes(
            *(
                "input_0",
                "embedding_0",
                "mhsa_0",
                "residual_0",
                "layernorm_0",
                "ffn_0",
                "residual_1",
                "layernorm_1",
                "output_0",
            ),
            edges=[
                ("embedding_0", "mhsa_0"),
                ("embedding_0", "residual_0"),
                ("mhsa_0", "residual_0"),
                ("residual_0", "layernorm_0"),
                ("layernorm_0", "ffn_0"),
                ("layernorm_0", "residual_1"),
                ("ffn_0", "residual_1"),
                ("residual_1", "layernorm_1"),
            ],
        ),
    ),
    "comment names the inputs": Export(
        export(
            POST_NORM.replace("# residual: residual_1", "# residual: residual_1 <- layernorm_0, ffn_0"),
            f"def forward(self, {ARGUMENTS}):\n{EMBED}{BLOCK}    return output_0_logits",
        ),
        lambda m, ids: tied(m, classic_post_norm(m, ids)),
        assumptions=1,
    ),
    "projected embedding": Export(
        export(
            f"# embedding: embedding_0\nself.embedding_0 = nn.Embedding({V}, 4)\n# linear: linear_0\nself.linear_0 = nn.Linear(4, {D})\n"
            f"# mhsa: mhsa_0\n{MHSA}\n# residual: residual_0\n# output: output_0\nself.output_0 = nn.Linear({D}, {V})",
            "def forward(self, input_0_tokens, residual_0_output):\n"
            "    embedding_0_output = self.embedding_0(input_0_tokens)\n"
            "    linear_0_output = self.linear_0(embedding_0_output)\n"
            "    mhsa_0_output, _ = self.mhsa_0(linear_0_output, linear_0_output, linear_0_output)\n"
            "    return self.output_0(residual_0_output)",
        ),
        lambda m, ids: m.output_0((h := m.linear_0(m.embedding_0.weight[ids])) + attend(m.mhsa_0, h)),
    ),
    "several embeddings": Export(
        export(
            f"# embedding: embedding_0\nself.embedding_0 = nn.Embedding({V}, {D})\n# embedding: embedding_1\n"
            f"self.embedding_1 = nn.Embedding({V}, {D})\n# ffn: ffn_0\n{FFN}\n# output: output_0\nself.output_0 = nn.Linear({D}, {V})",
            "def forward(self, input_0_tokens, ffn_0_output):\n    return self.output_0(ffn_0_output)",
        ),
        lambda m, ids: m.output_0(m.ffn_0(m.embedding_0.weight[ids] + m.embedding_1.weight[ids])),
    ),
    "positions apart": Export(
        export(
            f"# embedding: embedding_0\nself.embedding_0 = nn.Embedding({V}, {D})\n# position: position_0\n"
            f"self.position_0 = nn.Embedding({T}, {D})\n# mhsa: mhsa_0\n{MHSA}\n# residual: residual_0\n# output: output_0",
            "def forward(self, input_0_tokens, position_0_output, residual_0_output):\n"
            "    embedding_0_output = self.embedding_0(input_0_tokens)\n"
            "    mhsa_0_output, _ = self.mhsa_0(position_0_output, position_0_output, position_0_output)\n"
            "    return output_0_logits",
        ),
        lambda m, ids: (
            ((x := m.embedding_0.weight[ids] + m.position_0.weight[: ids.shape[1]]) + attend(m.mhsa_0, x))
            @ m.embedding_0.weight.T
        ),
    ),
    "intermediates only consumed": Export(
        export(
            f"self.embedding_0 = nn.Embedding({V}, {D})\n{MHSA}\nself.head = nn.Linear({D}, {V})",
            "def forward(self, input_0_tokens, mhsa_0_output, residual_0_output):\n"
            "    x = mhsa_0_output + residual_0_output\n    return self.head(x)",
        ),
        lambda m, ids: m.head((e := m.embedding_0.weight[ids]) + 2 * attend(m.mhsa_0, e)),
    ),
    "recurrent node": Export(
        export(
            f"# embedding: embedding_0\nself.embedding_0 = nn.Embedding({V}, {D})\n# lstm: lstm_0\n"
            f"self.lstm_0 = nn.LSTM({D}, {D}, batch_first=True)\n# output: output_0\nself.output_0 = nn.Linear({D}, {V})",
            "def forward(self, input_0_tokens, lstm_0_output):\n"
            "    embedding_0_output = self.embedding_0(input_0_tokens)\n    return self.output_0(lstm_0_output)",
        ),
        _lstm,
    ),
    "recurrent node, time first": Export(
        export(
            f"# embedding: embedding_0\nself.embedding_0 = nn.Embedding({V}, {D})\n# lstm: lstm_0\n"
            f"self.lstm_0 = nn.LSTM({D}, {D})\n# output: output_0\nself.output_0 = nn.Linear({D}, {V})",
            "def forward(self, input_0_tokens, lstm_0_output):\n"
            "    embedding_0_output = self.embedding_0(input_0_tokens)\n    return self.output_0(lstm_0_output)",
        ),
        lambda m, ids: m.output_0(m.lstm_0(m.embedding_0.weight[ids].transpose(0, 1))[0].transpose(0, 1)),
    ),
    "convolution node": Export(
        export(
            f"# embedding: embedding_0\nself.embedding_0 = nn.Embedding({V}, {D})\n# conv1d: conv1d_0\n"
            f"self.conv1d_0 = nn.Conv1d({D}, {D}, 3, padding=1)\n# residual: residual_0\n# output: output_0",
            "def forward(self, input_0_tokens, conv1d_0_output, residual_0_output):\n"
            "    embedding_0_output = self.embedding_0(input_0_tokens)\n    return output_0_logits",
        ),
        _conv,
    ),
    "mixture of experts": Export(
        export(
            f"# embedding: embedding_0\nself.embedding_0 = nn.Embedding({V}, {D})\n# moe: moe_0\nself.moe_0 = MoE()\n# residual: residual_0\n# output: output_0",
            "def forward(self, input_0_tokens, moe_0_output, residual_0_output):\n"
            "    embedding_0_output = self.embedding_0(input_0_tokens)\n    return output_0_logits",
            before=MOE,
        ),
        lambda m, ids: (m.embedding_0.weight[ids] + m.moe_0(m.embedding_0.weight[ids])[0]) @ m.embedding_0.weight.T,
    ),
    "activation and dropout nodes": Export(
        export(
            f"# embedding: embedding_0\nself.embedding_0 = nn.Embedding({V}, {D})\n# linear: linear_0\nself.linear_0 = nn.Linear({D}, {D})\n"
            f"# gelu: gelu_0\n# dropout: dropout_0\nself.dropout_0 = nn.Dropout(0.0)\n# output: output_0\nself.output_0 = nn.Linear({D}, {V})",
            "def forward(self, input_0_tokens, gelu_0_output, dropout_0_output):\n"
            "    embedding_0_output = self.embedding_0(input_0_tokens)\n"
            "    linear_0_output = self.linear_0(embedding_0_output)\n    return self.output_0(dropout_0_output)",
        ),
        lambda m, ids: m.output_0(F.gelu(m.linear_0(m.embedding_0.weight[ids]))),
    ),
    "feed-forward in parts": Export(
        export(
            f"# embedding: embedding_0\nself.embedding_0 = nn.Embedding({V}, {D})\n# ffn: ffn_0\nself.ffn_0_linear1 = nn.Linear({D}, 16)\n"
            f"self.ffn_0_activation = nn.ReLU()\nself.ffn_0_linear2 = nn.Linear(16, {D})\n# residual: residual_0\n# output: output_0",
            "def forward(self, input_0_tokens, ffn_0_output, residual_0_output):\n"
            "    embedding_0_output = self.embedding_0(input_0_tokens)\n    return output_0_logits",
        ),
        lambda m, ids: (
            ((x := m.embedding_0.weight[ids]) + m.ffn_0_linear2(F.relu(m.ffn_0_linear1(x)))) @ m.embedding_0.weight.T
        ),
    ),
    "one variable for everything": Export(
        export(
            POST_NORM,
            "def forward(self, input_0_tokens, residual_0_output):\n"
            "    B, T = input_0_tokens.shape\n"
            "    x = self.embedding_0_token(input_0_tokens) + self.embedding_0_pos(torch.arange(T))\n"
            "    x = self.embedding_0_dropout(x)\n"
            "    x, _ = self.mhsa_0(x, x, x)\n"
            "    x = self.layernorm_0(residual_0_output)\n"
            "    x = self.ffn_0(x)\n"
            "    x = self.layernorm_1(residual_1_output)\n"
            "    return x",
        ),
        lambda m, ids: tied(m, post_norm(m, ids)),
    ),
    "embedding never joined": Export(
        export(
            POST_NORM,
            f"def forward(self, {ARGUMENTS}):\n{EMBED.rsplit(chr(10), 2)[0]}\n{BLOCK}    return output_0_logits",
        ),
        lambda m, ids: tied(m, post_norm(m, ids)),
    ),
    "attention that is time first": Export(
        export(
            f"# embedding: embedding_0\nself.embedding_0 = nn.Embedding({V}, {D})\n# mhsa: mhsa_0\nself.mhsa_0 = nn.MultiheadAttention({D}, 2)\n"
            "# residual: residual_0\n# output: output_0",
            "def forward(self, input_0_tokens, mhsa_0_output, residual_0_output):\n"
            "    embedding_0_output = self.embedding_0(input_0_tokens)\n    return output_0_logits",
        ),
        lambda m, ids: ((e := m.embedding_0.weight[ids]) + attend(m.mhsa_0, e)) @ m.embedding_0.weight.T,
    ),
    "cross attention by edges": Export(
        export(
            f"self.embedding_0 = nn.Embedding({V}, {D})\nself.ffn_0 = nn.Linear({D}, {D})\n"
            f"self.cross_attention_0 = nn.MultiheadAttention({D}, 2, batch_first=True)",
            "def forward(self, input_0_tokens, cross_attention_0_output):\n"
            "    embedding_0_output = self.embedding_0(input_0_tokens)\n    ffn_0_output = self.ffn_0(embedding_0_output)\n"
            "    return output_0_logits",
        ),
        lambda m, ids: (
            attend(m.cross_attention_0, (e := m.embedding_0.weight[ids]), m.ffn_0(e)) @ m.embedding_0.weight.T
        ),
        nodes(
            *("embedding_0", "ffn_0", "cross_attention_0", "output_0"),
            edges=[
                ("embedding_0", "ffn_0"),
                ("embedding_0", "cross_attention_0"),
                ("ffn_0", "cross_attention_0"),
                ("cross_attention_0", "output_0"),
            ],
        ),
    ),
    "side by side": Export(
        export(
            f"self.embedding_0 = nn.Embedding({V}, {D})\nself.linear_0 = nn.Linear({D}, 3)\nself.linear_1 = nn.Linear({D + 3}, {D})",
            "def forward(self, input_0_tokens, concat_0_output):\n"
            "    embedding_0_output = self.embedding_0(input_0_tokens)\n    linear_0_output = self.linear_0(embedding_0_output)\n"
            "    linear_1_output = self.linear_1(concat_0_output)\n    return output_0_logits",
        ),
        lambda m, ids: (
            m.linear_1(torch.cat([e := m.embedding_0.weight[ids], m.linear_0(e)], -1)) @ m.embedding_0.weight.T
        ),
        nodes(
            *("embedding_0", "linear_0", "concat_0", "linear_1", "output_0"),
            edges=[
                ("embedding_0", "linear_0"),
                ("embedding_0", "concat_0"),
                ("linear_0", "concat_0"),
                ("concat_0", "linear_1"),
            ],
        ),
    ),
    "logits in a dict": Export(
        export(
            POST_NORM,
            f"def forward(self, {ARGUMENTS}):\n{EMBED}{BLOCK}    return {{'logits': output_0_logits, 'hidden': layernorm_1_output}}",
        ),
        lambda m, ids: tied(m, post_norm(m, ids)),
    ),
}

REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    # name: source, config, node that the error names, words of the message
    "two layers without an activation": (
        export(
            f"# embedding: embedding_0\nself.embedding_0 = nn.Embedding({V}, {D})\n# ffn: ffn_0\nself.ffn_0_linear1 = nn.Linear({D}, 16)\n"
            f"self.ffn_0_linear2 = nn.Linear(16, {D})\n# output: output_0",
            "def forward(self, input_0_tokens, ffn_0_output):\n    embedding_0_output = self.embedding_0(input_0_tokens)\n    return output_0_logits",
        ),
        {},
        "ffn_0",
        "activation",
    ),
    "a merge that could be meant in two ways": (
        export(
            f"self.embedding_0 = nn.Embedding({V}, {D})\nself.linear_0 = nn.Linear({D}, {D})\nself.linear_1 = nn.Linear({D}, {D})",
            "def forward(self, input_0_tokens, linear_1_output):\n    embedding_0_output = self.embedding_0(input_0_tokens)\n"
            "    linear_0_output = self.linear_0(embedding_0_output)\n    return output_0_logits",
        ),
        nodes(
            "embedding_0",
            "linear_0",
            "linear_1",
            "output_0",
            edges=[("embedding_0", "linear_1"), ("linear_0", "linear_1")],
        ),
        "linear_1",
        "nothing says how",
    ),
    "widths that disagree": (
        export(
            f"# embedding: embedding_0\nself.embedding_0 = nn.Embedding({V}, {D})\n# ffn: ffn_0\nself.ffn_0 = nn.Sequential(nn.Linear({D}, 6), nn.GELU())\n"
            "# residual: residual_0\n# output: output_0",
            "def forward(self, input_0_tokens, residual_0_output):\n    embedding_0_output = self.embedding_0(input_0_tokens)\n"
            "    ffn_0_output = self.ffn_0(embedding_0_output)\n    return output_0_logits",
        ),
        {},
        "residual_0",
        "8 wide and the branch ffn_0_output is 6 wide",
    ),
    "a value that nothing explains": (
        export(
            f"self.embedding_0 = nn.Embedding({V}, {D})\nself.head = nn.Linear({D}, {V})",
            "def forward(self, input_0_tokens):\n    x = self.embedding_0(input_0_tokens) + mystery\n    return self.head(x)",
        ),
        {},
        "mystery",
        "never computed",
    ),
    "a node without module or rule": (
        export(
            f"# embedding: embedding_0\nself.embedding_0 = nn.Embedding({V}, {D})\n# wavelet: wavelet_0\n# output: output_0\nself.output_0 = nn.Linear({D}, {V})",
            "def forward(self, input_0_tokens, wavelet_0_output):\n    embedding_0_output = self.embedding_0(input_0_tokens)\n"
            "    return self.output_0(wavelet_0_output)",
        ),
        {},
        "wavelet_0",
        "no module self.wavelet_0 and no rule",
    ),
    "an activation that is not named": (
        export(
            f"# embedding: embedding_0\nself.embedding_0 = nn.Embedding({V}, {D})\n# activation: activation_0\n# output: output_0\nself.output_0 = nn.Linear({D}, {V})",
            "def forward(self, input_0_tokens, activation_0_output):\n    embedding_0_output = self.embedding_0(input_0_tokens)\n"
            "    return self.output_0(activation_0_output)",
        ),
        {},
        "activation_0",
        "no rule",
    ),
    "two heads that nobody calls": (
        export(
            f"# embedding: embedding_0\nself.embedding_0 = nn.Embedding({V}, {D})\n# ffn: ffn_0\n{FFN}\n# output: output_0\n"
            f"self.lm_head = nn.Linear({D}, {V})\nself.aux_head = nn.Linear({D}, {V})",
            "def forward(self, input_0_tokens):\n    embedding_0_output = self.embedding_0(input_0_tokens)\n"
            "    ffn_0_output = self.ffn_0(embedding_0_output)\n    return output_0_logits",
        ),
        {},
        "output_0",
        "several vocabulary-wide modules",
    ),
    "a residual without a branch": (
        export(
            f"# embedding: embedding_0\nself.embedding_0 = nn.Embedding({V}, {D})\n# residual: residual_0\n# output: output_0\nself.output_0 = nn.Linear({D}, {V})",
            "def forward(self, input_0_tokens, residual_0_output):\n    embedding_0_output = self.embedding_0(input_0_tokens)\n"
            "    return self.output_0(residual_0_output)",
        ),
        {},
        "residual_0",
        "only one of them precedes",
    ),
    "nodes that need each other": (
        export(
            f"self.embedding_0 = nn.Embedding({V}, {D})\nself.linear_0 = nn.Linear({D}, {D})\nself.linear_1 = nn.Linear({D}, {D})",
            "def forward(self, input_0_tokens):\n    embedding_0_output = self.embedding_0(input_0_tokens)\n"
            "    linear_0_output = self.linear_0(linear_1_output)\n"
            "    linear_1_output = self.linear_1(linear_0_output)\n    return output_0_logits",
        ),
        nodes(
            "embedding_0",
            "linear_0",
            "linear_1",
            "output_0",
            edges=[("linear_1", "linear_0"), ("linear_0", "linear_1")],
        ),
        "linear_0",
        "needs itself",
    ),
    "no head and no embedding of its width": (
        export(
            f"# embedding: embedding_0\nself.embedding_0 = nn.Embedding({V}, {D})\n# linear: linear_0\nself.linear_0 = nn.Linear({D}, 5)\n# output: output_0",
            "def forward(self, input_0_tokens):\n    embedding_0_output = self.embedding_0(input_0_tokens)\n"
            "    linear_0_output = self.linear_0(embedding_0_output)\n    return output_0_logits",
        ),
        {},
        "output_0",
        "no token embedding has its width",
    ),
    "names of another project": (
        export(
            f"self.embedding = nn.Embedding({V}, {D})\nself.attention = nn.MultiheadAttention({D}, 2, batch_first=True)\nself.output = nn.Linear({D}, {V})",
            "def forward(self, input_0_tokens, mhsa_0_output, residual_0_output):\n    x = mhsa_0_output + residual_0_output\n    return self.output(x)",
        ),
        {},
        "mhsa_0",
        "self.attention",
    ),
}
