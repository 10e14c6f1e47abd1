"""Faults of the signal's way through the layers: gradients, scales, norms, numbers that are not finite."""

from __future__ import annotations

from tests.checks.corpus.entry import Fault

CUT = "gradient cut off"
IN_PLACE = "in-place operation on a value that backward needs"
NORM = "normalisation in the wrong place or over the wrong axis"
UNUSED = "weights never used"
FROZEN = "frozen head"
GUARD = "division or root without epsilon"
LEARNED = "parameters not registered"

DEEP = {"n_layer": 12}

SIGNAL_FAULTS = (
    Fault(
        "in-place operation on the result of softmax",
        "gpt",
        "gradient flow",
        {
            "weights = self.dropout(F.softmax(scores, dim=-1))": "weights = F.softmax(scores, dim=-1)\n"
            "        weights *= 0.9\n        weights = self.dropout(weights)"
        },
        cure=IN_PLACE,
    ),
    Fault(
        "in-place operation on the result of sigmoid",
        "llama",
        "gradient flow",
        {
            "return x + self.down(F.silu(self.gate(hidden)) * self.up(hidden))": "gate = torch.sigmoid(self.gate(hidden))\n"
            "        gate += 1.0\n        return x + self.down(gate * self.up(hidden))"
        },
        cure=IN_PLACE,
    ),
    Fault(
        "stream detached between the blocks",
        "gpt",
        "gradient flow",
        {"x = block(x)": "x = block(x.detach())"},
        cure=CUT,
    ),
    Fault(
        "embedding under no_grad",
        "multihead",
        "gradient flow",
        {
            "        x = self.token_embedding(input_ids) + 0.1 * self.table[:length]": "        with torch.no_grad():\n"
            "            x = self.token_embedding(input_ids) + 0.1 * self.table[:length]"
        },
        cure=CUT,
    ),
    Fault(
        "hidden values read through .data",
        "llama",
        "gradient flow",
        {"hidden = self.feed_forward_norm(x)": "hidden = self.feed_forward_norm(x).data"},
        cure=CUT,
    ),
    Fault(
        "argmax in the path",
        "llama",
        "gradient flow",
        {
            "return x + self.down(F.silu(self.gate(hidden)) * self.up(hidden))": "chosen = self.gate(hidden).argmax(dim=-1)\n"
            "        gate = F.one_hot(chosen, self.gate.out_features).to(x.dtype)\n"
            "        return x + self.down(gate * self.up(hidden))"
        },
    ),
    Fault(
        "rounding in the path",
        "gpt",
        "gradient flow",
        {"hidden = F.gelu(self.up(self.norm_2(x)))": "hidden = torch.round(8 * F.gelu(self.up(self.norm_2(x)))) / 8"},
    ),
    Fault(
        "last block never called",
        "gpt",
        "gradient flow",
        {"for block in self.blocks:": "for block in self.blocks[:-1]:"},
        cure=UNUSED,
    ),
    Fault(
        "gate never called",
        "llama",
        "gradient flow",
        {"F.silu(self.gate(hidden)) * self.up(hidden)": "F.silu(self.up(hidden))"},
        cure=UNUSED,
    ),
    Fault(
        "final norm never called",
        "multihead",
        "gradient flow",
        {"self.head(self.norm(x))": "self.head(x)"},
        cure=UNUSED,
    ),
    Fault(
        "learned scale outside the parameters",
        "gpt",
        "gradient flow",
        {
            "self.dropout = nn.Dropout(dropout)\n        self.register": "self.dropout = nn.Dropout(dropout)\n"
            "        self.scale = torch.ones(width, requires_grad=True)\n        self.register",
            "return self.project(heads)": "return self.project(heads * self.scale)",
        },
        cure=LEARNED,
    ),
    Fault(
        "blocks in a plain list",
        "convolution",
        "gradient flow",
        {
            "nn.ModuleList([Block(hidden_size) for _ in range(num_layers)])": "[Block(hidden_size) for _ in range(num_layers)]"
        },
        cure=LEARNED,
    ),
    Fault(
        "frozen head",
        "llama",
        "gradient flow",
        {
            "                nn.init.normal_(parameter, std=0.02)": "                nn.init.normal_(parameter, std=0.02)\n"
            "        self.lm_head.weight.requires_grad_(False)"
        },
        cure=FROZEN,
    ),
    Fault(
        "frozen head (nn.Module.requires_grad_)",
        "multihead",
        "gradient flow",
        {"self.apply(self.start)": "self.apply(self.start)\n        self.head.requires_grad_(False)"},
        cure=FROZEN,
    ),
    Fault(
        "dead units",
        "gpt",
        "gradient flow",
        {
            "self.up = nn.Linear(width, 4 * width)": "self.up = nn.Linear(width, 4 * width)\n"
            "        nn.init.constant_(self.up.bias, -100.0)",
            "F.gelu(self.up(self.norm_2(x)))": "F.relu(self.up(self.norm_2(x)))",
        },
    ),
    Fault(
        "deep stack of sigmoids without residual connections",
        "convolution",
        "gradient flow",
        {
            "return x + self.output(F.gelu(hidden))": "return self.output(F.sigmoid(hidden))",
            "hidden = self.norm(x).transpose(1, 2)": "hidden = x.transpose(1, 2)",
            "        self.norm = nn.LayerNorm(width)\n": "",
        },
        config={"num_layers": 12},
    ),
    Fault(
        "stream grows fourfold per block",
        "gpt",
        "gradient flow",
        {"return x + self.dropout(self.down(hidden))": "return 4 * x + self.dropout(self.down(hidden))"},
        config=DEEP,
    ),
    Fault(
        "branch multiplied by zero",
        "gpt",
        "gradient flow",
        {"self.dropout(self.attention(self.norm_1(x)))": "0.0 * self.dropout(self.attention(self.norm_1(x)))"},
    ),
    Fault(
        "every matrix of the feed-forward starts at zero",
        "gpt",
        "gradient flow",
        {
            "self.down = nn.Linear(4 * width, width)": "self.down = nn.Linear(4 * width, width)\n"
            "        for layer in (self.up, self.down):\n            nn.init.zeros_(layer.weight)\n            nn.init.zeros_(layer.bias)"
        },
        cure="",
    ),
    Fault(
        "root of zero",
        "multihead",
        "gradient flow",
        {
            "logits = self.head(self.norm(x))": "x = self.norm(x)\n        logits = self.head(x + torch.sqrt((x - x.detach()).abs()))"
        },
    ),
    Fault(
        "RMSNorm over the tokens",
        "llama",
        "causality",
        {"x.pow(2).mean(dim=-1, keepdim=True)": "x.pow(2).mean(dim=1, keepdim=True)"},
        cure=NORM,
    ),
    Fault(
        "RMSNorm over the batch",
        "llama",
        "row independence",
        {"x.pow(2).mean(dim=-1, keepdim=True)": "x.pow(2).mean(dim=0, keepdim=True)"},
        cure=NORM,
    ),
    Fault(
        "layer norm over tokens and width together",
        "gpt",
        "causality",
        {"        x = self.norm(x)\n": "        x = F.layer_norm(x, x.shape[1:])\n"},
        cure=NORM,
    ),
    Fault(
        "layer norm over tokens and width together (encoder)",
        "bert",
        "padding invariance",
        {"        x = self.norm(x)\n": "        x = F.layer_norm(x, x.shape[1:])\n"},
        cure=NORM,
    ),
    Fault(
        "batch norm between the blocks",
        "convolution",
        "causality",
        {
            "self.norm = nn.LayerNorm(hidden_size)": "self.norm = nn.BatchNorm1d(hidden_size)",
            "return self.head(self.norm(x))": "return self.head(self.norm(x.transpose(1, 2)).transpose(1, 2))",
        },
        cure="batch norm in a language model",
    ),
    Fault(
        "RMSNorm without epsilon over a zero row",
        "llama",
        "numerical stability",
        {
            "epsilon=1e-6": "epsilon=0.0",
            "                nn.init.normal_(parameter, std=0.02)": "                nn.init.normal_(parameter, std=0.02)\n        nn.init.zeros_(self.embed_tokens.weight[:8])",
        },
        cure=GUARD,
    ),
    Fault(
        "logarithm of a negative number",
        "bert",
        "numerical stability",
        {"logits = self.head(x)": "logits = torch.log(self.head(x))"},
    ),
    Fault(
        "division by zero",
        "gpt",
        "numerical stability",
        {
            "hidden = F.gelu(self.up(self.norm_2(x)))": "hidden = F.gelu(self.up(self.norm_2(x)))\n        hidden = hidden / (hidden - hidden)"
        },
        cure=GUARD,
    ),
    Fault(
        "logits rounded to half precision",
        "gpt",
        "numerical stability",
        {"return self.head(x)": "return self.head(x).half()"},
        cure="hard-coded dtype",
    ),
    Fault(
        "stream leaves the range of float32",
        "gpt",
        "numerical stability",
        {"x = block(x)": "x = block(x) * 1e12", "        x = self.norm(x)\n": ""},
    ),
    Fault(
        "logits far too large",
        "llama",
        "numerical stability",
        {"return self.lm_head(self.norm(x))": "return self.lm_head(self.norm(x)) * 1e5"},
    ),
    Fault(
        "constant logits",
        "convolution",
        "numerical stability",
        {"x = self.embedding(input_ids)": "x = self.embedding(input_ids * 0)"},
    ),
    Fault(
        "head starts far too large",
        "multihead",
        "initialisation",
        {"self.apply(self.start)": "self.apply(self.start)\n        nn.init.normal_(self.head.weight, std=1.0)"},
        cure="initial scale too large",
    ),
    Fault(
        "tied embedding of standard deviation 1",
        "gpt",
        "initialisation",
        {"nn.init.normal_(self.token_embedding.weight, std=0.02)": "nn.init.normal_(self.token_embedding.weight)"},
        cure="initial scale too large",
    ),
    Fault(
        "matrix of equal entries",
        "llama",
        "initialisation",
        {"                nn.init.normal_(parameter, std=0.02)": "                nn.init.constant_(parameter, 0.02)"},
        cure="",
    ),
    Fault(
        "one layer starts far too large",
        "multihead",
        "initialisation",
        {
            "self.apply(self.start)": "self.apply(self.start)\n        nn.init.normal_(self.layers[1].feed_forward[0].weight, std=30.0)"
        },
        cure="initial scale too large",
    ),
    Fault(
        "no final norm before a loud stream",
        "gpt",
        "initialisation",
        {
            "        x = self.norm(x)\n": "",
            "std=0.02)\n        nn.init.normal_(self.position": "std=0.02)\n        nn.init.normal_(self.position",
            "x = block(x)": "x = 10 * block(x)",
        },
        cure="",
    ),
    Fault(
        "head not tied although the config says so",
        "gpt",
        "initialisation",
        {
            "        self.head.weight = self.token_embedding.weight\n": "        nn.init.normal_(self.head.weight, std=0.02)\n"
        },
        cure="head not tied",
        config={"tie_word_embeddings": True},
    ),
)
