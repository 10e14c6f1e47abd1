"""Faults of shapes, positions, randomness, state, saving, learning and export."""

from __future__ import annotations

from tests.checks.corpus.entry import Fault

DROPOUT = "dropout left on"
HARD_DEVICE = "hard-coded device"
HARD_SHAPE = "hard-coded length or batch"
SHIFT = "labels shifted wrongly"

OTHER_FAULTS = (
    Fault(
        "hard-coded batch",
        "gpt",
        "shape robustness",
        {"reshape(batch, length, width)\n": "reshape(2, length, width)\n"},
        cure=HARD_SHAPE,
    ),
    Fault(
        "hard-coded length",
        "gpt",
        "shape robustness",
        {"~self.mask[:length, :length]": "~self.mask[:8, :8]"},
        cure=HARD_SHAPE,
    ),
    Fault(
        "positions off by one",
        "gpt",
        "shape robustness",
        {"torch.arange(length, device=input_ids.device)": "torch.arange(1, length + 1, device=input_ids.device)"},
        cure="positions off by one",
    ),
    Fault(
        "position table shorter than the config says",
        "multihead",
        "shape robustness",
        {
            "torch.arange(max_seq_len)": "torch.arange(max_seq_len // 2)",
            "torch.zeros(max_seq_len, d_model)": "torch.zeros(max_seq_len // 2, d_model)",
        },
    ),
    Fault(
        "head narrower than the vocabulary",
        "llama",
        "shape robustness",
        {"nn.Linear(hidden_size, vocab_size, bias=False)": "nn.Linear(hidden_size, vocab_size - 5, bias=False)"},
    ),
    Fault(
        "a single row loses its axis",
        "convolution",
        "shape robustness",
        {"return self.head(self.norm(x))": "return self.head(self.norm(x)).squeeze(0)"},
    ),
    Fault(
        "hard-coded number type",
        "gpt",
        "numerical stability",
        {
            "return x + self.dropout(self.down(hidden))": "gathered = torch.zeros(x.shape[0] * x.shape[1], x.shape[2], dtype=torch.float32)\n"
            "        places = torch.arange(len(gathered), device=x.device)\n"
            "        gathered = gathered.to(x.device).index_add(0, places, self.down(hidden).flatten(0, 1))\n"
            "        return x + self.dropout(gathered.view_as(x))"
        },
        cure="hard-coded dtype",
    ),
    Fault(
        "positions never added (encoder)",
        "bert",
        "position sensitivity",
        {
            "x = self.word_embeddings(input_ids) + self.position_embeddings(positions)": "x = self.word_embeddings(input_ids)"
        },
        cure="weights never used",
    ),
    Fault(
        "every token at the first position",
        "bert",
        "position sensitivity",
        {
            "positions = attention_mask.long().cumsum(dim=1).sub(1).clamp(min=0)": "positions = torch.zeros_like(input_ids)"
        },
    ),
    Fault(
        "positions counted over the batch",
        "gpt",
        "row independence",
        {
            "torch.arange(length, device=input_ids.device)": "torch.arange(input_ids.shape[0], device=input_ids.device)[:, None]",
            "        length = input_ids.shape[1]\n": "",
        },
        cure="positions over the wrong axis",
    ),
    Fault(
        "positions never added (vision)",
        "vision",
        "gradient flow",
        {"x], dim=1) + self.positions": "x], dim=1)"},
        cure="weights never used",
    ),
    Fault(
        "functional dropout left on in evaluation",
        "gpt",
        "determinism",
        {"return x + self.dropout(self.down(hidden))": "return x + F.dropout(self.down(hidden), 0.1)"},
        cure=DROPOUT,
    ),
    Fault(
        "dropout with training=True",
        "gpt",
        "determinism",
        {
            "weights = self.dropout(F.softmax(scores, dim=-1))": "weights = F.dropout(F.softmax(scores, dim=-1), p=0.1, training=True)"
        },
        cure=DROPOUT,
    ),
    Fault(
        "dropout never on",
        "multihead",
        "determinism",
        {
            "x = x + self.dropout(hidden)": "x = x + hidden",
            "return x + self.dropout(self.feed_forward(self.norm_2(x)))": "return x + self.feed_forward(self.norm_2(x))",
            "nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)": "nn.MultiheadAttention(width, heads, batch_first=True)",
        },
        cure="dropout never on",
    ),
    Fault(
        "noise added in evaluation",
        "llama",
        "determinism",
        {
            "x = self.embed_tokens(input_ids)": "x = self.embed_tokens(input_ids)\n        x = x + 0.01 * torch.randn_like(x)"
        },
        cure="random numbers in forward",
    ),
    Fault(
        "layer made anew in every call",
        "gpt",
        "determinism",
        {"return self.project(heads)": "return nn.Linear(width, width)(heads)"},
        cure="module created in forward",
    ),
    Fault(
        "hidden state kept between calls",
        "lstm",
        "determinism",
        {
            "self.head = nn.Linear(hidden_size, vocab_size)": "self.head = nn.Linear(hidden_size, vocab_size)\n        self.state = None",
            "hidden, _ = self.lstm(self.embedding(input_ids))": "if self.state is not None and self.state[0].shape[1] != input_ids.shape[0]:\n"
            "            self.state = None\n"
            "        hidden, state = self.lstm(self.embedding(input_ids), self.state)\n"
            "        self.state = tuple(part.detach() for part in state)",
        },
        cure="state kept between calls",
    ),
    Fault(
        "list that grows with every call",
        "convolution",
        "determinism",
        {
            "self.head = nn.Linear(hidden_size, vocab_size)": "self.head = nn.Linear(hidden_size, vocab_size)\n        self.seen = []",
            "x = self.embedding(input_ids)": "x = self.embedding(input_ids)\n        self.seen.append(x.detach().mean(dim=(0, 1)))\n"
            "        x = x + sum(self.seen)",
        },
        cure="state kept between calls",
    ),
    Fault(
        "positions made on the CPU",
        "gpt",
        "save and load",
        {"torch.arange(length, device=input_ids.device)": 'torch.arange(length, device="cpu")'},
        cure=HARD_DEVICE,
    ),
    Fault(
        "mask made without a device",
        "multihead",
        "save and load",
        {"dtype=torch.bool, device=input_ids.device": "dtype=torch.bool"},
        cure=HARD_DEVICE,
    ),
    Fault(
        "constant table not registered as buffer",
        "multihead",
        "save and load",
        {'self.register_buffer("table", table)': "self.table = table"},
        cure="constant not registered as buffer",
    ),
    Fault(
        "rotary rates not registered as buffer",
        "llama",
        "save and load",
        {'self.register_buffer("rates", rates)': "self.rates = rates"},
        cure="constant not registered as buffer",
    ),
    Fault(
        "random projection outside the state",
        "gpt",
        "save and load",
        {
            "self.norm = nn.LayerNorm(n_embd)": "self.norm = nn.LayerNorm(n_embd)\n        self.mixing = torch.randn(n_embd, n_embd) * 0.02",
            "return self.head(x)": "return self.head(x + x @ self.mixing)",
        },
        cure="constant not registered as buffer",
    ),
    Fault(
        "labels shifted twice",
        "multihead",
        "learning",
        {
            "logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()": "logits[:, :-2].flatten(0, 1), labels[:, 2:].flatten()"
        },
        cure=SHIFT,
    ),
    Fault(
        "labels not shifted",
        "multihead",
        "learning",
        {"logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()": "logits.flatten(0, 1), labels.flatten()"},
        cure=SHIFT,
    ),
    Fault(
        "logits shifted inside forward",
        "llama",
        "learning",
        {"return self.lm_head(self.norm(x))": "return self.lm_head(self.norm(x)).roll(1, dims=1)"},
        cure=SHIFT,
    ),
    Fault(
        "output clamped to a tiny range",
        "gpt",
        "learning",
        {"return self.head(x)": "return 1e-3 * torch.tanh(self.head(x))"},
    ),
    Fault(
        "batch norm in an encoder of text",
        "bert",
        "gradient accumulation",
        {
            "self.norm = nn.LayerNorm(hidden_size)": "self.norm = nn.BatchNorm1d(hidden_size)",
            "        x = self.norm(x)\n": "        x = self.norm(x.transpose(1, 2)).transpose(1, 2)\n",
        },
        cure="batch norm in a language model",
    ),
    Fault(
        "stream centred over the rows of the batch",
        "convolution",
        "gradient accumulation",
        {"x = self.embedding(input_ids)": "x = self.embedding(input_ids)\n        x = x - x.mean(dim=0, keepdim=True)"},
    ),
    Fault(
        "branch on a value of the data",
        "gpt",
        "export dry run",
        {
            "        x = self.norm(x)\n": "        if x.mean() > 0:\n            x = x + 0.001\n        x = self.norm(x)\n"
        },
    ),
    Fault(
        "loop over values of the data",
        "convolution",
        "export dry run",
        {
            "return self.head(self.norm(x))": "for token in input_ids[0].tolist():\n            x = x + 1e-6 * token\n        return self.head(self.norm(x))"
        },
    ),
)
