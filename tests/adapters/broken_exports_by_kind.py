"""More broken exports: node kinds, positions that stand alone, additions with a norm, statements of unusual shape.

Each is drawn by `drawn` (comments and modules of a list of nodes) and carries a forward written by hand from the canvas.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tests.adapters.broken_exports import D, Export, T, V, attend, export, nodes

MODULES = {
    "embedding": f"nn.Embedding({V}, {D})",
    "position": f"nn.Embedding({T}, {D})",
    "mhsa": f"nn.MultiheadAttention({D}, 2, batch_first=True)",
    "cross_attention": f"nn.MultiheadAttention({D}, 2, batch_first=True)",
    "layernorm": f"nn.LayerNorm({D})",
    "add_norm": f"nn.LayerNorm({D})",
    "ffn": f"nn.Sequential(nn.Linear({D}, 16), nn.GELU(), nn.Linear(16, {D}))",
    "linear": f"nn.Linear({D}, {D})",
    "conv1d": f"nn.Conv1d({D}, {D}, 3, padding=1)",
    "groupnorm": f"nn.GroupNorm(2, {D})",
    "output": f"nn.Linear({D}, {V})",
}
"""What a node of each kind owns; other kinds own nothing unless a case says so."""


def drawn(*names: str, **modules: str) -> str:
    """Constructor lines of a canvas: above each node its comment, below it its module where it has one."""
    lines = []
    for name in names:
        kind = name.rsplit("_", 1)[0]
        constructor = modules.get(name, MODULES.get(kind))
        lines += [f"# {kind}: {name}", *([f"self.{name} = {constructor}"] if constructor else [])]
    return "\n".join(lines)


def forward(arguments: str, *body: str, result: str = "self.output_0(residual_0_output)", embed: bool = True) -> str:
    """A forward whose first statement embeds the tokens."""
    lines = ["embedding_0_output = self.embedding_0(input_0_tokens)"] * embed + [*body, f"return {result}"]
    head = f"def forward(self, input_0_tokens{', ' + arguments if arguments else ''}):"
    return "\n".join([head, *(f"    {line}" for line in lines)])


ATTEND = "mhsa_0_output, _ = self.mhsa_0({0}, {0}, {0})"
EMBEDDED = ATTEND.format("embedding_0_output")
BASIC = drawn("embedding_0", "mhsa_0", "residual_0", "output_0")
POSITIONED = drawn("embedding_0", "position_0", "mhsa_0", "residual_0", "output_0")
ROWS = "self.position_0(torch.arange(input_0_tokens.shape[1]))"


def e(m: Any, ids: torch.Tensor) -> torch.Tensor:
    """Rows of the token embedding."""
    return m.embedding_0.weight[ids]


def p(m: Any, ids: torch.Tensor) -> torch.Tensor:
    """Token and position rows."""
    return e(m, ids) + m.position_0.weight[: ids.shape[1]]


def basic(m: Any, ids: torch.Tensor) -> torch.Tensor:
    """output(x + attention(x))."""
    return m.output_0(e(m, ids) + attend(m.mhsa_0, e(m, ids)))


def positioned(m: Any, ids: torch.Tensor) -> torch.Tensor:
    """The same with positions in x."""
    return m.output_0(p(m, ids) + attend(m.mhsa_0, p(m, ids)))


def add_norms(m: Any, ids: torch.Tensor) -> torch.Tensor:
    """Two additions, each normalised: n = norm(x + attention(x)); norm(n + ffn(n))."""
    n = m.add_norm_0(e(m, ids) + attend(m.mhsa_0, e(m, ids)))
    return m.output_0(m.add_norm_1(n + m.ffn_0(n)))


def pre_norm(m: Any, ids: torch.Tensor) -> torch.Tensor:
    """r = x + attention(norm(x)); output(r + ffn(norm(r)))."""
    r = e(m, ids) + attend(m.mhsa_0, m.layernorm_0(e(m, ids)))
    return m.output_0(r + m.ffn_0(m.layernorm_1(r)))


def masked(m: Any, ids: torch.Tensor) -> torch.Tensor:
    """A causal first attention, and a second one that sees everything."""
    mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)
    r = e(m, ids) + m.mhsa_0(e(m, ids), e(m, ids), e(m, ids), attn_mask=mask)[0]
    return m.output_0(r + attend(m.mhsa_1, r))


ADD_NORMS = drawn("embedding_0", "mhsa_0", "add_norm_0", "ffn_0", "add_norm_1", "output_0")
PRE_NORM = drawn(
    *("embedding_0", "layernorm_0", "mhsa_0", "residual_0", "layernorm_1", "ffn_0", "residual_1", "output_0")
)
JOINED = ("input_0", "embedding_0", "position_0", "add_0", "mhsa_0", "residual_0", "output_0")
JOINED_EDGES = [
    *[("input_0", "embedding_0"), ("embedding_0", "add_0"), ("position_0", "add_0"), ("add_0", "mhsa_0")],
    *[("add_0", "residual_0"), ("mhsa_0", "residual_0"), ("residual_0", "output_0")],
]
GATE = f"""class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear({2 * D}, {D})

    def forward(self, a, b):
        share = torch.sigmoid(self.mix(torch.cat([a, b], dim=-1)))
        return share * a + (1 - share) * b


"""
EXPERTS = f"""class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.expert = nn.Linear({D}, {D})

    def forward(self, x):
        return {{"output": self.expert(x), "aux_loss": x.mean()}}


"""
LLAMA = f"""class RMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full(({D},), 1.5))

    def forward(self, x):
        return normed(x) * self.weight


class SwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear({D}, 16), nn.Linear({D}, 16), nn.Linear(16, {D})

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def normed(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


"""
SIDES = ("input_0", "embedding_0", "ffn_0", "concat_0", "linear_0", "output_0")
SIDE_EDGES = [
    *[("input_0", "embedding_0"), ("embedding_0", "ffn_0"), ("embedding_0", "concat_0"), ("ffn_0", "concat_0")],
    *[("concat_0", "linear_0"), ("linear_0", "output_0")],
]


STREAMS = ("embedding_0", "mhsa_0", "residual_0", "layernorm_0", "embedding_1", "mhsa_1", "residual_1", "layernorm_1")
ASKING = ("cross_attention_0", "residual_2", "output_0")
TWO_STREAMS = forward(
    "residual_0_output, residual_1_output, residual_2_output",
    EMBEDDED,
    "layernorm_0_output = self.layernorm_0(residual_0_output)",
    "embedding_1_output = self.embedding_1(input_0_tokens)",
    "mhsa_1_output, _ = self.mhsa_1(embedding_1_output, embedding_1_output, embedding_1_output)",
    "layernorm_1_output = self.layernorm_1(residual_1_output)",
    "cross_attention_0_output, _ = self.cross_attention_0(layernorm_1_output, layernorm_0_output, layernorm_0_output)",
    result="self.output_0(residual_2_output)",
)
CHAIN = ("embedding_0", "mhsa_0", "layernorm_0", "ffn_0", "residual_0", "output_0")
CHAINED = ("layernorm_0_output = self.layernorm_0(mhsa_0_output)", "ffn_0_output = self.ffn_0(layernorm_0_output)")


def two_streams(m: Any, ids: torch.Tensor) -> torch.Tensor:
    """Two embeddings with a stream each; the second attends to the first."""
    x, y = m.embedding_0.weight[ids], m.embedding_1.weight[ids]
    memory = m.layernorm_0(x + attend(m.mhsa_0, x))
    r1 = y + attend(m.mhsa_1, y)
    return m.output_0(r1 + attend(m.cross_attention_0, m.layernorm_1(r1), memory))


def skip_drawn(m: Any, ids: torch.Tensor) -> torch.Tensor:
    """n = norm(attn(x)); n + ffn(n)."""
    n = m.layernorm_0(attend(m.mhsa_0, e(m, ids)))
    return m.output_0(n + m.ffn_0(n))


def swapped(*pairs: tuple[str, str], source: str) -> str:
    """A source with some of its text replaced."""
    for old, new in pairs:
        assert old in source
        source = source.replace(old, new)
    return source


KINDS: dict[str, Export] = {
    # ---- positions that stand alone
    "position rows, read together with the embedding": Export(
        export(
            POSITIONED,
            forward(
                "residual_0_output",
                f"position_0_output = {ROWS}",
                "x = embedding_0_output + position_0_output",
                ATTEND.format("x"),
            ),
        ),
        positioned,
    ),
    "position rows, and what reads them missing": Export(
        export(POSITIONED, forward("residual_0_output, mhsa_0_output", f"position_0_output = {ROWS}.unsqueeze(0)")),
        positioned,
    ),
    "position rows read in place of the embedding": Export(
        export(
            POSITIONED,
            forward("residual_0_output", f"position_0_output = {ROWS}", ATTEND.format("position_0_output")),
        ),
        positioned,
    ),
    "positions and an addition by convention": Export(
        export(
            drawn("embedding_0", "position_0", "add_0", "mhsa_0", "add_1", "output_0"),
            forward("add_0_output, add_1_output", ATTEND.format("add_0_output"), result="self.output_0(add_1_output)"),
        ),
        positioned,
    ),
    "positions and an addition by edges, nothing written": Export(
        export(drawn(*JOINED[1:]), "def forward(self, input_0_tokens):\n    return output_0_logits"),
        positioned,
        nodes(*JOINED, edges=JOINED_EDGES),
    ),
    "positions drawn before the embedding": Export(
        export(
            drawn("position_0", "embedding_0", "mhsa_0", "residual_0", "output_0"),
            forward("residual_0_output, mhsa_0_output, position_0_output"),
        ),
        positioned,
    ),
    "positions as a parameter": Export(
        export(
            drawn(
                *("embedding_0", "position_0", "mhsa_0", "residual_0", "output_0"),
                position_0=f"nn.Parameter(torch.randn(1, {T}, {D}))",
            ),
            forward("residual_0_output, mhsa_0_output, position_0_output"),
        ),
        lambda m, ids: m.output_0((x := e(m, ids) + m.position_0[:, : ids.shape[1]]) + attend(m.mhsa_0, x)),
    ),
    "tables named as in GPT-2": Export(
        swapped(
            ("embedding_0", "wte"),
            ("position_0", "wpe"),
            source=export(
                POSITIONED,
                forward(
                    "residual_0_output",
                    f"x = self.embedding_0(input_0_tokens) + {ROWS}",
                    ATTEND.format("x"),
                    embed=False,
                ),
            ),
        ),
        lambda m, ids: m.output_0((x := m.wte.weight[ids] + m.wpe.weight[: ids.shape[1]]) + attend(m.mhsa_0, x)),
    ),
    # ---- additions with a norm
    "add_norm": Export(
        export(
            ADD_NORMS,
            forward(
                "add_norm_0_output, add_norm_1_output",
                EMBEDDED,
                "ffn_0_output = self.ffn_0(add_norm_0_output)",
                result="self.output_0(add_norm_1_output)",
            ),
        ),
        add_norms,
    ),
    "add_norm whose statements forget the addition": Export(
        export(
            ADD_NORMS,
            forward(
                "",
                EMBEDDED,
                "add_norm_0_output = self.add_norm_0(mhsa_0_output)",
                "ffn_0_output = self.ffn_0(add_norm_0_output)",
                "add_norm_1_output = self.add_norm_1(ffn_0_output)",
                result="self.output_0(add_norm_1_output)",
            ),
        ),
        add_norms,
    ),
    "the stream behind an add_norm": Export(
        export(
            ADD_NORMS.replace("add_norm_1", "residual_0")
            .replace("add_norm: residual_0", "residual: residual_0")
            .replace(f"self.residual_0 = nn.LayerNorm({D})\n", ""),
            forward(
                "residual_0_output",
                EMBEDDED,
                "add_norm_0_output = self.add_norm_0(embedding_0_output + mhsa_0_output)",
                "ffn_0_output = self.ffn_0(add_norm_0_output)",
            ),
        ),
        lambda m, ids: m.output_0((n := m.add_norm_0(e(m, ids) + attend(m.mhsa_0, e(m, ids)))) + m.ffn_0(n)),
    ),
    # ---- several inputs
    "a module of two inputs, by edges": Export(
        export(
            drawn("embedding_0", "ffn_0", "gate_0", "output_0", gate_0="Gate()"),
            forward("gate_0_output, ffn_0_output", result="self.output_0(gate_0_output)"),
            before=GATE,
        ),
        lambda m, ids: m.output_0(m.gate_0(e(m, ids), m.ffn_0(e(m, ids)))),
        nodes(
            *("embedding_0", "ffn_0", "gate_0", "output_0"),
            edges=[("embedding_0", "ffn_0"), ("embedding_0", "gate_0"), ("ffn_0", "gate_0"), ("gate_0", "output_0")],
        ),
    ),
    "a module of two inputs, by comment": Export(
        export(
            drawn("embedding_0", "ffn_0", "gate_0", "output_0", gate_0="Gate()").replace(
                "# gate: gate_0", "# gate: gate_0 <- ffn_0, embedding_0"
            ),
            forward("gate_0_output, ffn_0_output", result="self.output_0(gate_0_output)"),
            before=GATE,
        ),
        lambda m, ids: m.output_0(m.gate_0(m.ffn_0(e(m, ids)), e(m, ids))),
    ),
    "cross attention with key and value apart": Export(
        export(
            drawn("embedding_0", "ffn_0", "linear_0", "cross_attention_0", "output_0"),
            forward("cross_attention_0_output", result="self.output_0(cross_attention_0_output)"),
        ),
        lambda m, ids: m.output_0(m.cross_attention_0(e(m, ids), m.ffn_0(e(m, ids)), m.linear_0(e(m, ids)))[0]),
        nodes(
            *("embedding_0", "ffn_0", "linear_0", "cross_attention_0", "output_0"),
            edges=[
                *[("embedding_0", "ffn_0"), ("embedding_0", "linear_0"), ("embedding_0", "cross_attention_0")],
                *[("ffn_0", "cross_attention_0"), ("linear_0", "cross_attention_0"), ("cross_attention_0", "output_0")],
            ],
        ),
    ),
    "a product": Export(
        export(
            drawn("embedding_0", "ffn_0", "linear_0", "multiply_0", "output_0"),
            forward("multiply_0_output", result="self.output_0(multiply_0_output)"),
        ),
        lambda m, ids: m.output_0(m.ffn_0(e(m, ids)) * m.linear_0(e(m, ids))),
        nodes(
            *("embedding_0", "ffn_0", "linear_0", "multiply_0", "output_0"),
            edges=[
                ("embedding_0", "ffn_0"),
                ("embedding_0", "linear_0"),
                ("ffn_0", "multiply_0"),
                ("linear_0", "multiply_0"),
            ],
        ),
    ),
    "side by side in a file that does not import torch": Export(
        swapped(
            ("import torch\nimport torch.nn as nn", "from torch import nn"),
            source=export(
                drawn(*SIDES[1:], linear_0=f"nn.Linear({2 * D}, {D})"),
                forward("concat_0_output", result="self.output_0(linear_0_output)"),
            ),
        ),
        lambda m, ids: m.output_0(m.linear_0(torch.cat([e(m, ids), m.ffn_0(e(m, ids))], -1))),
        nodes(*SIDES, edges=SIDE_EDGES),
    ),
    "embeddings that one attention reads": Export(
        export(
            drawn("embedding_0", "embedding_1", "mhsa_0", "output_0", embedding_1=f"nn.Embedding({V}, {D})"),
            forward(
                "",
                "embedding_1_output = self.embedding_1(input_0_tokens)",
                "embedded = embedding_0_output + embedding_1_output",
                ATTEND.format("embedded"),
                result="output_0_logits",
            ),
        ),
        lambda m, ids: m.output_0(attend(m.mhsa_0, e(m, ids) + m.embedding_1.weight[ids])),
        nodes(
            *("embedding_0", "embedding_1", "mhsa_0", "output_0"),
            edges=[("embedding_0", "mhsa_0"), ("embedding_1", "mhsa_0"), ("mhsa_0", "output_0")],
        ),
    ),
    # ---- kinds and results
    "experts that answer with a dict": Export(
        export(
            drawn("embedding_0", "moe_0", "residual_0", "output_0", moe_0="Experts()"),
            forward("moe_0_output, residual_0_output"),
            before=EXPERTS,
        ),
        lambda m, ids: m.output_0(e(m, ids) + m.moe_0.expert(e(m, ids))),
    ),
    "convolution, activation and group norm": Export(
        export(
            drawn("embedding_0", "conv1d_0", "relu_0", "groupnorm_0", "residual_0", "output_0"),
            forward("conv1d_0_output, relu_0_output, groupnorm_0_output, residual_0_output"),
        ),
        lambda m, ids: m.output_0(
            e(m, ids) + m.groupnorm_0(F.relu(m.conv1d_0(e(m, ids).transpose(1, 2)))).transpose(1, 2)
        ),
    ),
    "root mean square norms, gated feed-forward, helpers in the file": Export(
        export(
            drawn(
                *(
                    "embedding_0",
                    "rmsnorm_0",
                    "mhsa_0",
                    "residual_0",
                    "rmsnorm_1",
                    "swiglu_0",
                    "residual_1",
                    "output_0",
                ),
                rmsnorm_0="RMSNorm()",
                rmsnorm_1="RMSNorm()",
                swiglu_0="SwiGLU()",
            ),
            forward(
                "residual_0_output, residual_1_output",
                "rmsnorm_0_output = self.rmsnorm_0(embedding_0_output)",
                ATTEND.format("rmsnorm_0_output"),
                "rmsnorm_1_output = self.rmsnorm_1(residual_0_output)",
                result="output_0_logits",
            ),
            before=LLAMA,
        ),
        lambda m, ids: m.output_0(
            (r := e(m, ids) + attend(m.mhsa_0, m.rmsnorm_0(e(m, ids)))) + m.swiglu_0(m.rmsnorm_1(r))
        ),
    ),
    "an activation that config.json names, between widths": Export(
        export(
            drawn(
                *("embedding_0", "linear_0", "activation_0", "linear_1", "residual_0", "output_0"),
                linear_0=f"nn.Linear({D}, 16)",
                linear_1=f"nn.Linear(16, {D})",
            ),
            forward("activation_0_output, residual_0_output", "linear_1_output = self.linear_1(activation_0_output)"),
        ),
        lambda m, ids: m.output_0(e(m, ids) + m.linear_1(F.silu(m.linear_0(e(m, ids))))),
        nodes(
            *("embedding_0", "linear_0", "activation_0", "linear_1", "residual_0", "output_0"),
            activation_0={"activation": "silu"},
        ),
    ),
    "a dropout that only config.json knows": Export(
        export(
            drawn("embedding_0", "mhsa_0", "dropout_0", "residual_0", "output_0"),
            forward("dropout_0_output, residual_0_output", EMBEDDED),
        ),
        basic,
        nodes("embedding_0", "mhsa_0", "dropout_0", "residual_0", "output_0", dropout_0={"p": 0.0}),
    ),
    "a head in two parts": Export(
        export(
            drawn("embedding_0", "ffn_0", "output_0").replace(
                f"self.output_0 = nn.Linear({D}, {V})",
                f"self.output_0_norm = nn.LayerNorm({D})\nself.output_0_proj = nn.Linear({D}, {V})",
            ),
            forward("ffn_0_output", result="output_0_logits"),
        ),
        lambda m, ids: m.output_0_proj(m.output_0_norm(m.ffn_0(e(m, ids)))),
    ),
    "a residual that owns an identity": Export(
        export(
            BASIC.replace("# residual: residual_0", "# residual: residual_0\nself.residual_0 = nn.Identity()"),
            forward("residual_0_output", EMBEDDED),
        ),
        basic,
    ),
    # ---- statements of unusual shape
    "attention's pair taken for a tensor": Export(
        export(
            drawn("embedding_0", "mhsa_0", "layernorm_0", "output_0"),
            forward(
                "layernorm_0_output",
                "mhsa_0_output = self.mhsa_0(embedding_0_output, embedding_0_output, embedding_0_output)",
                "layernorm_0_output = self.layernorm_0(mhsa_0_output)",
                result="self.output_0(layernorm_0_output)",
            ),
        ),
        lambda m, ids: m.output_0(m.layernorm_0(attend(m.mhsa_0, e(m, ids)))),
    ),
    "a module applied twice": Export(
        export(
            drawn("embedding_0", "mhsa_0", "residual_0", "residual_1", "output_0"),
            forward(
                "residual_0_output",
                EMBEDDED,
                "second, _ = self.mhsa_0(residual_0_output, residual_0_output, residual_0_output)",
                "residual_1_output = residual_0_output + second",
                result="self.output_0(residual_1_output)",
            ),
        ),
        lambda m, ids: m.output_0((r := e(m, ids) + attend(m.mhsa_0, e(m, ids))) + attend(m.mhsa_0, r)),
    ),
    "a module applied by a method": Export(
        export(
            BASIC,
            forward("residual_0_output", "mhsa_0_output = self._mixed(embedding_0_output)")
            + "\n\ndef _mixed(self, x):\n    return self.mhsa_0(x, x, x)[0]",
        ),
        basic,
    ),
    "a mask for one attention of two": Export(
        export(
            drawn("embedding_0", "mhsa_0", "residual_0", "mhsa_1", "residual_1", "output_0"),
            forward(
                "residual_0_output, mhsa_1_output, residual_1_output",
                "length = input_0_tokens.shape[1]",
                "mask = torch.full((length, length), float('-inf')).triu(1)",
                EMBEDDED.replace("output)", "output, attn_mask=mask)"),
                result="self.output_0(residual_1_output)",
            ),
        ),
        masked,
    ),
    "norms and additions read past": Export(
        export(
            PRE_NORM,
            forward("", EMBEDDED, "ffn_0_output = self.ffn_0(mhsa_0_output)", result="self.output_0(ffn_0_output)"),
        ),
        pre_norm,
    ),
    "the last addition read past by the head": Export(
        export(
            PRE_NORM,
            forward(
                "residual_0_output",
                "layernorm_0_output = self.layernorm_0(embedding_0_output)",
                ATTEND.format("layernorm_0_output"),
                "layernorm_1_output = self.layernorm_1(residual_0_output)",
                "ffn_0_output = self.ffn_0(layernorm_1_output)",
                "output_0_logits = self.output_0(ffn_0_output)",
                result="output_0_logits",
            ),
        ),
        pre_norm,
    ),
    "x = x + f(x) once, and once missing": Export(
        export(
            drawn("embedding_0", "mhsa_0", "residual_0", "ffn_0", "residual_1", "output_0"),
            forward(
                "residual_1_output",
                "x = self.embedding_0(input_0_tokens)",
                "x = x + self.mhsa_0(x, x, x)[0]",
                "ffn_0_output = self.ffn_0(x)",
                result="self.output_0(residual_1_output)",
                embed=False,
            ),
        ),
        lambda m, ids: m.output_0((r := e(m, ids) + attend(m.mhsa_0, e(m, ids))) + m.ffn_0(r)),
    ),
    "modules in a dict": Export(
        export(
            "# embedding: embedding_0\n# mhsa: mhsa_0\n# residual: residual_0\n# output: output_0\n"
            f"self.parts = nn.ModuleDict({{'embedding_0': {MODULES['embedding']}, 'mhsa_0': {MODULES['mhsa']}, "
            f"'output_0': {MODULES['output']}}})",
            "def forward(self, input_0_tokens, residual_0_output):\n"
            "    embedding_0_output = self.parts['embedding_0'](input_0_tokens)\n"
            "    mhsa_0_output, _ = self.parts['mhsa_0'](embedding_0_output, embedding_0_output, embedding_0_output)\n"
            "    return self.parts['output_0'](residual_0_output)",
        ),
        lambda m, ids: m.parts["output_0"]((x := m.parts["embedding_0"].weight[ids]) + attend(m.parts["mhsa_0"], x)),
    ),
    "no argument for the tokens": Export(
        export(BASIC, forward("residual_0_output", EMBEDDED).replace("input_0_tokens, ", "", 1)), basic
    ),
    "nothing but pass": Export(export(BASIC, "def forward(self, input_0_tokens):\n    pass"), basic),
    "config lists the nodes in another order": Export(
        export(BASIC, forward("residual_0_output", EMBEDDED)),
        basic,
        nodes("output_0", "mhsa_0", "residual_0", "embedding_0", "input_0"),
    ),
    "lines that end as on Windows": Export(
        export(BASIC, forward("residual_0_output", EMBEDDED)).replace("\n", "\r\n"), basic
    ),
    "indented with tabs": Export(export(BASIC, forward("residual_0_output", EMBEDDED)).replace("    ", "\t"), basic),
    "logits with a loss": Export(
        export(
            BASIC,
            forward(
                "residual_0_output, labels=None",
                EMBEDDED,
                "logits = self.output_0(residual_0_output)",
                "loss = None",
                "if labels is not None:",
                "    loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())",
                result="logits, loss",
            ),
        ),
        basic,
    ),
    "two streams, the second begins at its own embedding": Export(
        export(drawn(*STREAMS, *ASKING), TWO_STREAMS), two_streams
    ),
    "two streams, the one that asks drawn first": Export(
        export(drawn(*STREAMS[4:], *STREAMS[:4], *ASKING), TWO_STREAMS), two_streams
    ),
    "an edge for the skip alone": Export(
        export(drawn(*CHAIN), forward("residual_0_output", EMBEDDED, *CHAINED)), skip_drawn,
        nodes(*CHAIN, edges=[("layernorm_0", "residual_0")]),
    ),
    "an edge for the skip alone, nothing written": Export(
        export(drawn(*CHAIN), forward("mhsa_0_output, layernorm_0_output, ffn_0_output, residual_0_output")), skip_drawn,
        nodes(*CHAIN, edges=[("layernorm_0", "residual_0")]),
    ),
    "softmax behind the output": Export(
        export(
            drawn("embedding_0", "mhsa_0", "residual_0", "output_0", "softmax_0", softmax_0="nn.Softmax(-1)"),
            forward("residual_0_output, softmax_0_output", EMBEDDED, "output_0_logits = self.output_0(residual_0_output)",
                    result="softmax_0_output"),
        ),
        lambda m, ids: torch.softmax(basic(m, ids), -1),
    ),
    "an encoder layer that is time first": Export(
        export(
            drawn("embedding_0", "encoder_0", "output_0", encoder_0=f"nn.TransformerEncoderLayer({D}, 2, 16, 0.0)"),
            forward("encoder_0_output", result="self.output_0(encoder_0_output)"),
        ),
        lambda m, ids: m.output_0(m.encoder_0(e(m, ids).transpose(0, 1)).transpose(0, 1)),
    ),
    "pooled by a statement that nothing reads": Export(
        export(
            drawn("embedding_0", "mhsa_0", "residual_0", "output_0"),
            forward("residual_0_output", EMBEDDED, "pooled = residual_0_output.mean(dim=1)", result="output_0_logits"),
        ),
        lambda m, ids: m.output_0((e(m, ids) + attend(m.mhsa_0, e(m, ids))).mean(1)),
    ),
}  # fmt: skip

KINDS_REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    # name: source, config, node that the error names, words of the message
    "a module of two inputs that nothing names": (
        export(
            drawn("embedding_0", "ffn_0", "gate_0", "output_0", gate_0="Gate()"),
            forward("gate_0_output, ffn_0_output", result="self.output_0(gate_0_output)"),
            before=GATE,
        ),
        {},
        "gate_0",
        "needs 2 inputs, and 1 is known",
    ),
    "values side by side that nothing names": (
        export(drawn("embedding_0", "ffn_0", "concat_0", "output_0"),
               forward("concat_0_output", result="self.output_0(concat_0_output)")),
        {},
        "concat_0",
        "no edge or comment names them",
    ),
    "two additions in a row": (
        export(drawn("embedding_0", "mhsa_0", "residual_0", "residual_1", "output_0"),
               forward("residual_0_output, residual_1_output", EMBEDDED, result="self.output_0(residual_1_output)")),
        {},
        "residual_1",
        "only one of them precedes",
    ),
    "a table with fewer rows than the vocabulary": (
        export(drawn("embedding_0", "embedding_1", "mhsa_0", "output_0", embedding_1=f"nn.Embedding(2, {D})"),
               forward("embedding_1_output, mhsa_0_output", result="self.output_0(mhsa_0_output)")),
        {},
        "embedding_1",
        "2 rows while the vocabulary has 29",
    ),
    "a norm without a module": (
        export(drawn("embedding_0", "norm_0", "output_0"), forward("norm_0_output", result="self.output_0(norm_0_output)")),
        {},
        "norm_0",
        "no module self.norm_0 and no rule",
    ),
    "a dropout without a rate": (
        export(drawn("embedding_0", "dropout_0", "output_0"),
               forward("dropout_0_output", result="self.output_0(dropout_0_output)")),
        {},
        "dropout_0",
        "no rule",
    ),
    "attention of another width": (
        export(drawn("embedding_0", "mhsa_0", "output_0", mhsa_0="nn.MultiheadAttention(16, 2, batch_first=True)"),
               forward("mhsa_0_output", result="self.output_0(mhsa_0_output)")),
        {},
        "mhsa_0",
        "fails with",
    ),
    "a residual that owns a dropout": (
        export(BASIC.replace("# residual: residual_0", "# residual: residual_0\nself.residual_0_dropout = nn.Dropout(0.0)"),
               forward("residual_0_output", EMBEDDED)),
        {},
        "residual_0",
        "does not take 2 inputs",
    ),
    "a module that gives several values in a dict": (
        export(drawn("embedding_0", "moe_0", "output_0", moe_0="Experts()"),
               forward("moe_0_output", result="self.output_0(moe_0_output)"), before=EXPERTS.replace("x.mean()", "x * 2")),
        {},
        "moe_0",
        "nothing says which is meant",
    ),
    "two branches, of which a convention would lose one": (
        export(drawn("embedding_0", "mhsa_0", "ffn_0", "residual_0", "output_0"),
               forward("residual_0_output", EMBEDDED, "ffn_0_output = self.ffn_0(embedding_0_output)")),
        {},
        "residual_0",
        "mhsa_0_output is computed and nothing reads it",
    ),
    "a scale that nothing reads": (
        export(BASIC.replace("# residual: residual_0", "# residual: residual_0\nself.residual_0_scale = nn.Parameter(torch.ones(1))"),
               forward("residual_0_output", EMBEDDED)),
        {},
        "residual_0",
        "owns the parameter residual_0_scale",
    ),
    "a matrix that could be the head": (
        export(drawn("embedding_0", "mhsa_0") + f"\nself.unembed = nn.Parameter(torch.ones({D}, {V}))",
               forward("", EMBEDDED, result="output_0_logits")),
        {},
        "output_0",
        "the matrix unembed, which nothing reads",
    ),
    "a comment that names no node": (
        export(BASIC.replace("# residual: residual_0", "# residual: residual_0 <- embedding_0, mhsa_9"),
               forward("residual_0_output", EMBEDDED)),
        {},
        "residual_0",
        "its comment names mhsa_9",
    ),
    "a value that a loop reads and changes": (
        export(drawn("embedding_0", "layernorm_0", "ffn_0", "output_0"),
               forward("layernorm_0_output", "x = embedding_0_output", "for _ in range(2):",
                       "    x = x + self.ffn_0(layernorm_0_output)", result="self.output_0(x)").replace(
                   "embedding_0_output", "x").replace("    x = x\n", "")),
        {},
        "layernorm_0",
        "anew in every round",
    ),
    "a convolution that adds positions": (
        export(drawn("embedding_0", "conv1d_0", "output_0", conv1d_0=f"nn.Conv1d({D}, {D}, 3, padding=2)"),
               forward("conv1d_0_output", result="self.output_0(conv1d_0_output)")),
        {},
        "conv1d_0",
        "nothing says which of them are kept",
    ),
    "cross attention of which only one side is drawn": (
        export(drawn(*(crossed := ("embedding_0", "ffn_0", "embedding_1", "cross_attention_0", "output_0"))),
               forward("ffn_0_output, cross_attention_0_output", result="self.output_0(cross_attention_0_output)")),
        nodes(*crossed, edges=[("ffn_0", "cross_attention_0")]),
        "cross_attention_0",
        "only one of them is known",
    ),
}  # fmt: skip
