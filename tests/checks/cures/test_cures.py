"""What each cure proposes for several spellings of its fault. Whether a proposal helps is for `test_mending` to ask."""

from __future__ import annotations

import ast

import pytest

from utils.checks.cures import attention, axes, gradients, numbers, registration, sizes, states, targets
from utils.checks.cures.catalogue import CURES
from utils.checks.cures.code import Code

FORWARD = """class Model(nn.Module):
    def __init__(self, width, limit):
        super().__init__()
        self.embedding = nn.Embedding(limit, width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])

    def forward(self, x, attention_mask=None):
{body}
"""

CONSTRUCTOR = """class Model(nn.Module):
    def __init__(self, width, limit):
        super().__init__()
        self.embedding = nn.Embedding(limit, width)
{body}

    def forward(self, x):
        return self.head(self.embedding(x))
"""


def _source(template, body):
    return template.format(body="\n".join(f"        {line}" for line in body.split("\n")))


def _proposals(cure, source):
    return [change.applied(source) for change in cure.propose(Code(source))]


IN_FORWARD = [
    (targets.scores, "return self.up(x).softmax(dim=-1)", "return self.up(x)"),
    (targets.scores, "return F.softmax(self.up(x), -1)", "return self.up(x)"),
    (targets.scores, "return F.cross_entropy(x.softmax(-1), y)", "return F.cross_entropy(x, y)"),
    (targets.direction, "loss = -F.cross_entropy(x, y)", "loss = F.cross_entropy(x, y)"),
    (targets.direction, "return x, -loss", "return x, loss"),
    (targets.direction, "return x, loss.detach()", "return x, loss"),
    (targets.direction, "loss = F.cross_entropy(x, y).item()", "loss = F.cross_entropy(x, y)"),
    (axes.softmax_axis, "return F.softmax(x, dim=1)", "return F.softmax(x, dim=-1)"),
    (axes.softmax_axis, "return x.softmax(2)", "return x.softmax(-1)"),
    (axes.softmax_axis, "return torch.softmax(x, -2)", "return torch.softmax(x, -1)"),
    (axes.softmax_axis, "return F.softmax(x)", "return F.softmax(x, dim=-1)"),
    (axes.statistics_axis, "return x / x.std(dim=1, keepdim=True)", "return x / x.std(dim=-1, keepdim=True)"),
    (axes.statistics_axis, "return x - torch.mean(x, 0, keepdim=True)", "return x - torch.mean(x, -1, keepdim=True)"),
    (axes.statistics_axis, "return F.layer_norm(x, x.shape[1:])", "return F.layer_norm(x, x.shape[-1:])"),
    (axes.untransposed, "return self.norm(x.transpose(1, 2)).transpose(1, 2)", "return self.norm(x)"),
    (axes.untransposed, "return self.norm(x.permute(0, 2, 1)).permute(0, 2, 1)", "return self.norm(x)"),
    (axes.heads, "q = x.view(b, self.heads, t, -1)", "q = x.view(b, t, self.heads, -1).transpose(1, 2)"),
    (axes.heads, "q = x.reshape(b, h, t, d)", "q = x.reshape(b, t, h, d).transpose(1, 2)"),
    (axes.heads, "q = x.view(b, t, h, d)", "q = x.view(b, t, h, d).transpose(1, 2)"),
    (axes.heads, "return (w @ v).reshape(b, t, c)", "return (w @ v).transpose(1, 2).reshape(b, t, c)"),
    (axes.heads, "return y.reshape(b, t, -1)", "return y.transpose(1, 2).reshape(b, t, -1)"),
    (axes.heads, "return y.permute(2, 0, 1, 3).flatten(2)", "return y.permute(0, 2, 1, 3).flatten(2)"),
    (axes.heads, "return y.transpose(0, 2)", "return y.transpose(1, 2)"),
    (axes.batch_and_time, "return x - x.mean(0)", "return x - x.mean(-1)"),
    (axes.batch_and_time, "return x.cumsum(dim=0)", "return x.cumsum(dim=1)"),
    (axes.batch_and_time, "return x.view(t, b, c)", "return x.transpose(0, 1)"),
    (attention.scale, "s = q @ k.transpose(-2, -1)", "s = (q @ k.transpose(-2, -1)) / q.shape[-1] ** 0.5"),
    (attention.scale, "s = torch.matmul(q, k.mT)", "s = (torch.matmul(q, k.mT)) / q.shape[-1] ** 0.5"),
    (
        attention.scale,
        'return torch.einsum("bhqd,bhkd->bhqk", q, k)',
        'return (torch.einsum("bhqd,bhkd->bhqk", q, k)) / q.shape[-1] ** 0.5',
    ),
    (attention.scale, "k = k.permute(0, 1, 3, 2)\ns = q @ k", "s = (q @ k) / q.shape[-1] ** 0.5"),
    (attention.scale, "s = s * math.sqrt(d)", "s = s / math.sqrt(d)"),
    (attention.scale, "s = s * d ** 0.5", "s = s / d ** 0.5"),
    (attention.scale, "F.scaled_dot_product_attention(q, k, v, scale=1.0)", "F.scaled_dot_product_attention(q, k, v)"),
    (
        attention.causal_mask,
        "w = scores.softmax(-1)",
        'scores = scores.masked_fill(scores.new_ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))\n'
        "        w = scores.softmax(-1)",
    ),
    (
        attention.causal_mask,
        "w = F.softmax(q @ k, dim=-1)",
        "scores = q @ k\n"
        '        scores = scores.masked_fill(scores.new_ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))\n'
        "        w = F.softmax(scores, dim=-1)",
    ),
    (
        attention.causal_mask,
        "return F.scaled_dot_product_attention(q, k, v)",
        "return F.scaled_dot_product_attention(q, k, v, is_causal=True)",
    ),
    (
        attention.causal_mask,
        "return F.scaled_dot_product_attention(q, k, v, is_causal=False)",
        "return F.scaled_dot_product_attention(q, k, v, is_causal=True)",
    ),
    (
        attention.causal_mask,
        "return self.attention(x, x, x)",
        "return self.attention(x, x, x, attn_mask=x.new_ones(x.shape[1], x.shape[1]).triu(1).bool())",
    ),
    (
        attention.causal_mask,
        "return self.attention(x, x, x, attn_mask=None)",
        "return self.attention(x, x, x, attn_mask=x.new_ones(x.shape[1], x.shape[1]).triu(1).bool())",
    ),
    (attention.diagonal, "m = torch.triu(torch.ones(t, t))", "m = torch.triu(torch.ones(t, t), diagonal=1)"),
    (attention.diagonal, "m = torch.ones(t, t).tril(diagonal=-1)", "m = torch.ones(t, t).tril(diagonal=0)"),
    (attention.diagonal, "m = i[None, :] < i[:, None]", "m = i[None, :] <= i[:, None]"),
    (attention.inversion, "s = s.masked_fill(m == 0, -1e9)", "s = s.masked_fill(m != 0, -1e9)"),
    (attention.inversion, "s = s.masked_fill(~m, -1e9)", "s = s.masked_fill(m, -1e9)"),
    (attention.inversion, "s = torch.where(m, s, -1e9)", "s = torch.where(m, -1e9, s)"),
    (attention.inversion, "m = torch.triu(torch.ones(t, t), 1)", "m = torch.tril(torch.ones(t, t), 0)"),
    (attention.inversion, "s = s + m * 1e9", "s = s + (1.0 - m) * -1000000000.0"),
    (
        attention.inversion,
        "return self.attention(x, x, x, key_padding_mask=m.bool())",
        "return self.attention(x, x, x, key_padding_mask=(m.bool()) == 0)",
    ),
    (attention.fill_value, "s = s.masked_fill(m, 0.0)", 's = s.masked_fill(m, float("-inf"))'),
    (attention.fill_value, "s = s.masked_fill(m, -torch.inf)", "s = s.masked_fill(m, -1e4)"),
    (
        attention.padding_mask,
        "w = s.softmax(-1)",
        "if attention_mask is not None:\n"
        '            s = s.masked_fill(attention_mask[:, None, None, :] == 0, float("-inf"))\n'
        "        w = s.softmax(-1)",
    ),
    (
        attention.padding_mask,
        "return self.attention(x, x, x)",
        "return self.attention(x, x, x, key_padding_mask=None if attention_mask is None else attention_mask == 0)",
    ),
    (gradients.cut, "x = self.up(x).detach()", "x = self.up(x)"),
    (gradients.cut, "x = self.up(x.data)", "x = self.up(x)"),
    (gradients.cut, "with torch.no_grad():\n    x = self.up(x)  # why\n    y = x", "x = self.up(x)  # why\n        y = x"),
    (gradients.cut, "s = x.mean().item()", "s = x.mean()"),
    (gradients.cut, "x = torch.round(x)", "x = (x + (torch.round(x) - x).detach())"),
    (gradients.in_place, "x += self.up(x)", "x = x + self.up(x)"),
    (gradients.in_place, "x *= a - b", "x = x * (a - b)"),
    (gradients.in_place, "x = self.up(x).relu_()", "x = self.up(x).relu()"),
    (gradients.in_place, "x.add_(y)", "x = x.add(y)"),
    (gradients.in_place, "x = F.relu(x, inplace=True)", "x = F.relu(x)"),
    (gradients.in_place, "x[:, 0] = 0.0", "x = x.clone()\n        x[:, 0] = 0.0"),
    (gradients.residual, "x = self.up(self.norm(x))", "x = x + self.up(self.norm(x))"),
    (gradients.residual, "return self.up(self.norm(x))", "return x + self.up(self.norm(x))"),
    (gradients.activation, "x = torch.sigmoid(self.up(x))", "x = torch.nn.functional.gelu(self.up(x))"),
    (gradients.activation, "x = self.up(x).tanh()", "x = torch.nn.functional.gelu(self.up(x))"),
    (sizes.sizes, "x = x.view(2, -1, 8)", "x = x.view(x.shape[0], -1, 8)"),
    (sizes.sizes, "p = torch.arange(128)", "p = torch.arange(x.shape[1])"),
    (sizes.sizes, "p = torch.arange(self.max_len)", "p = torch.arange(x.shape[1])"),
    (sizes.sizes, "x = x + self.table", "x = x + self.table[:, : x.shape[1]]"),
    (sizes.sizes, "s = s.masked_fill(self.m == 0, -1e9)", "self.m[..., : s.shape[-2], : s.shape[-1]] == 0"),
    (sizes.sizes, "m = self.m[:8, :8]", "m = self.m[:x.shape[1], :x.shape[1]]"),
    (sizes.devices, 'm = torch.zeros(3, device="cuda")', "m = torch.zeros(3, device=x.device)"),
    (sizes.devices, "m = torch.arange(t)", "m = torch.arange(t, device=x.device)"),
    (sizes.devices, "x = self.up(x).cuda()", "x = self.up(x).to(x.device)"),
    (sizes.types, "return self.up(x).half()", "return self.up(x)"),
    (sizes.types, "return self.up(x).to(torch.float16)", "return self.up(x)"),
    (sizes.types, "m = torch.zeros(3, dtype=torch.float64)", "m = torch.zeros(3)"),
    (sizes.types, "m = torch.zeros(x.shape)", "m = torch.zeros(x.shape, dtype=x.dtype, device=x.device)"),
    (sizes.positions, "p = torch.arange(1, t + 1)", "p = torch.arange(0, t)"),
    (sizes.positions, "p = torch.arange(t) + 1", "p = torch.arange(t)"),
    (sizes.positions, "p = torch.arange(x.shape[0])", "p = torch.arange(x.shape[1])"),
    (sizes.positions, "b, t = x.shape\np = torch.arange(b)", "p = torch.arange(t)"),
    (sizes.positions, "p = torch.zeros_like(x)", "p = torch.arange(x.shape[1], device=x.device)"),
    (sizes.positions, "p = self.table[1 : t + 1]", "p = self.table[0 : t]"),
    (states.dropout, "x = F.dropout(x, 0.1)", "x = F.dropout(x, 0.1, training=self.training)"),
    (states.dropout, "x = F.dropout(x, p=0.1, training=True)", "x = F.dropout(x, p=0.1, training=self.training)"),
    (states.dropout, "x = F.dropout(x, 0.1, True)", "x = F.dropout(x, 0.1, self.training)"),
    (states.noise, "x = x + 0.1 * torch.randn_like(x)", "x = (x + 0.1 * torch.randn_like(x) if self.training else x)"),
    (states.noise, "n = torch.rand(3)\nx = x * n", "x = (x * n if self.training else x)"),
    (states.noise, "x = x[torch.randperm(len(x))]", "x = x\n"),
    (targets.shift, "return self.up(x)[:, :-1]", "return self.up(x)\n"),
    (targets.shift, "return self.up(x).roll(1, 1)", "return self.up(x)\n"),
    (targets.loss_shift, "loss = F.cross_entropy(x[:, :-2].flatten(0, 1), y[:, 2:].flatten())", "(x[:, :-1].flatten(0, 1), y[:, 1:]"),
    (
        targets.loss_shift,
        "loss = F.cross_entropy(x.view(-1, 9), y.view(-1))",
        "F.cross_entropy(x[:, :-1].reshape(-1, x.shape[-1]), y[:, 1:].reshape(-1))",
    ),
    (numbers.guards, "x = x / x.norm()", "x = x / (x.norm() + 1e-6)"),
    (numbers.guards, "x = torch.sqrt(v)", "x = torch.sqrt(v + 1e-6)"),
    (numbers.guards, "x = v.rsqrt()", "x = (v + 1e-6).rsqrt()"),
    (numbers.guards, "x = torch.log(p)", "x = torch.log(p.clamp(min=1e-6))"),
    (numbers.factors, "return self.up(x) * 1000.0", "return self.up(x)\n"),
    (numbers.factors, "return 0.0 * self.up(x)", "return self.up(x)\n"),
    (numbers.norm_place, "return self.norm(self.up(x))", "return self.up(self.norm(x))"),
    (registration.unused, "return self.up(x)", "return self.up(self.norm(x))"),
    (registration.unused, "for layer in self.layers[:-1]:\n    x = layer(x)", "for layer in self.layers:"),
    (registration.made_in_forward, "return nn.LayerNorm(8)(x)", "return self.layernorm(x)"),
]  # fmt: skip

IN_CONSTRUCTOR = [
    (registration.buffers, "self.table = torch.arange(limit)", 'self.register_buffer("table", torch.arange(limit))'),
    (registration.buffers, "m = torch.ones(4)\nself.m = m", 'self.register_buffer("m", m)'),
    (registration.buffers, "self.m = torch.tril(torch.ones(4, 4)).bool()", 'self.register_buffer("m", torch.tril(torch.ones(4, 4)).bool())'),
    (registration.buffers, "self.g = torch.ones(4, requires_grad=True)", "self.g = nn.Parameter(torch.ones(4, requires_grad=True))"),
    (registration.containers, "self.a = [nn.Linear(3, 3), nn.Linear(3, 3)]", "self.a = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])"),
    (registration.containers, "self.a = tuple(nn.Linear(3, 3) for _ in range(3))", "self.a = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))"),
    (registration.containers, "self.a = []\nfor _ in range(3):\n    self.a.append(nn.Linear(3, 3))", "self.a = nn.ModuleList([])"),
    (registration.containers, 'self.a = {"b": nn.Linear(3, 3)}', 'self.a = nn.ModuleDict({"b": nn.Linear(3, 3)})'),
    (registration.containers, "self.a = [nn.Parameter(torch.ones(1))]", "self.a = nn.ParameterList([nn.Parameter(torch.ones(1))])"),
    (registration.tied_head, "self.head = nn.Linear(width, limit)", "self.head.weight = self.embedding.weight"),
    (gradients.frozen, "self.head = nn.Linear(3, 3)\nself.head.requires_grad_(False)", "self.head = nn.Linear(3, 3)\n\n"),
    (gradients.frozen, "for p in self.parameters():\n    p.requires_grad = False\nself.x = 1", "\n        self.x = 1"),
    (gradients.frozen, "self.w = nn.Parameter(torch.ones(3), requires_grad=False)", "self.w = nn.Parameter(torch.ones(3))"),
    (axes.batch_and_time, "self.a = nn.MultiheadAttention(width, 2)", "nn.MultiheadAttention(width, 2, batch_first=True)"),
    (axes.batch_and_time, "self.a = nn.LSTM(width, width, batch_first=False)", "nn.LSTM(width, width, batch_first=True)"),
    (axes.softmax_axis, "self.soft = nn.Softmax(dim=1)", "self.soft = nn.Softmax(dim=-1)"),
    (numbers.initial_weights, "nn.init.normal_(self.embedding.weight)", "nn.init.normal_(self.embedding.weight, std=0.02)"),
    (numbers.initial_weights, "nn.init.normal_(self.embedding.weight, 0.0, 3.0)", "nn.init.normal_(self.embedding.weight, 0.0, 0.02)"),
    (numbers.initial_weights, "nn.init.constant_(self.embedding.weight, 1.0)", "nn.init.normal_(self.embedding.weight, std=0.02)"),
    (numbers.initial_weights, "self.e = nn.Embedding(3, 3, max_norm=1.0)", "self.e = nn.Embedding(3, 3)"),
    (numbers.guards, "self.norm = nn.LayerNorm(width, eps=0.0)", "self.norm = nn.LayerNorm(width)"),
    (numbers.batch_norm, "self.norm = nn.BatchNorm1d(width)", "self.norm = nn.LayerNorm(width)"),
    (sizes.positions, "self.p = nn.Embedding(limit - 1, width)", "self.p = nn.Embedding(limit, width)"),
    (sizes.positions, "self.h = nn.Linear(width, limit - 10)", "self.h = nn.Linear(width, limit)"),
    (gradients.activation, "self.a = nn.Sigmoid()", "self.a = nn.GELU()"),
    (gradients.in_place, "self.a = nn.ReLU(inplace=True)", "self.a = nn.ReLU()"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "cure", "before", "after"),
    [(FORWARD, *row) for row in IN_FORWARD] + [(CONSTRUCTOR, *row) for row in IN_CONSTRUCTOR],
)
def test_a_spelling_is_mended(template, cure, before, after):
    source = _source(template, before)
    proposals = _proposals(cure, source)
    assert any(after in proposal for proposal in proposals), "\n".join(proposals)


@pytest.mark.parametrize("end", ["\r\n", "\n"])
@pytest.mark.parametrize("indent", ["\t", "  "])
def test_every_proposal_is_python_and_keeps_line_ends_and_tabs(end, indent):
    for template, rows in ((FORWARD, IN_FORWARD), (CONSTRUCTOR, IN_CONSTRUCTOR)):
        for cure, before, _ in rows:
            source = _source(template, before).replace("    ", indent).replace("\n", end)
            for proposal in _proposals(cure, source):
                ast.parse(proposal)
                assert end == "\n" or "\n" not in proposal.replace("\r\n", "")
                assert indent == "  " or "\n    " not in proposal.replace("\r\n", "\n")


def test_state_begins_anew():
    source = (
        "class Model(nn.Module):\n    def __init__(self):\n        self.seen = []\n\n"
        "    def forward(self, x):\n        self.seen.append(x)\n        return sum(self.seen)\n"
    )
    first = _proposals(states.state, source)[0]
    assert "def forward(self, x):\n        self.seen = []\n" in first


def test_mask_is_handed_on_to_the_modules_that_take_one():
    source = (
        "class Block(nn.Module):\n    def forward(self, x, mask=None):\n        return x\n\n"
        "class Model(nn.Module):\n    def __init__(self):\n        self.blocks = nn.ModuleList(Block() for _ in range(2))\n"
        "    def forward(self, x, attention_mask=None):\n        for block in self.blocks:\n            x = block(x)\n"
        "        return x\n"
    )
    assert any("x = block(x, mask=attention_mask)" in text for text in _proposals(attention.padding_mask, source))


def test_batch_norm_takes_its_transposes_along():
    source = _source(FORWARD, "return self.norm(x.transpose(1, 2)).transpose(1, 2)").replace("LayerNorm", "BatchNorm1d")
    (proposal,) = _proposals(numbers.batch_norm, source)
    assert "self.norm = nn.LayerNorm(width)" in proposal
    assert "return self.norm(x)\n" in proposal


def test_unused_positions_are_added():
    source = _source(CONSTRUCTOR, "self.position = nn.Embedding(limit, width)\nself.head = nn.Linear(width, limit)")
    added = "(self.embedding(x) + self.position(torch.arange(x.shape[1], device=x.device)))"
    assert any(added in text for text in _proposals(registration.unused, source))


def test_a_width_that_is_a_multiple_is_no_table_cut_short():
    """`4 * width` of a feed-forward layer stays: making it narrower builds another model."""
    source = _source(CONSTRUCTOR, "self.up, self.down = nn.Linear(width, width * 4), nn.Linear(width * 4, width)")
    assert _proposals(sizes.positions, source) == []


def test_cures_have_names_of_their_own_and_only_wanted_classes_are_touched():
    assert len({cure.name for cure in CURES}) == len(CURES)
    source = "class A(nn.Module):\n    def forward(self, x):\n        return x.softmax(1)\n\n" * 2
    source = source.replace("class A", "class B", 1)
    code = Code(source, ["A"])
    assert [cls.name for cls in code.classes] == ["A"]
    assert len(list(axes.softmax_axis.propose(code))) == 1
