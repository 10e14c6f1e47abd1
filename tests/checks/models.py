"""One healthy tiny model, and one subclass per planted fault."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

VOCABULARY, WIDTH, LIMIT = 61, 16, 32


class Block(nn.Module):
    """Pre-norm block with causal attention."""

    def __init__(self, width: int, batch_first: bool = True, causal: bool = True) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=batch_first, dropout=0.1)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.causal = causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[1] if self.attention.batch_first else x.shape[0]
        mask = torch.triu(torch.ones(size, size, dtype=torch.bool, device=x.device), 1) if self.causal else None
        h = self.norm_1(x)
        x = x + self.attention(h, h, h, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.norm_2(x))


class Healthy(nn.Module):
    """A small GPT with PyTorch's default initialisation."""

    def __init__(
        self, vocabulary: int = VOCABULARY, limit: int = LIMIT, layers: int = 2, tied: bool = False, **block: bool
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, WIDTH)
        self.position_embedding = nn.Embedding(limit, WIDTH)
        self.blocks = nn.ModuleList(Block(WIDTH, **block) for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)
        if tied:
            self.head.weight = self.token_embedding.weight

    def body(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.token_embedding(input_ids) + self.position_embedding(
            torch.arange(input_ids.shape[1], device=input_ids.device)
        )
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(input_ids))


class Pooled(Healthy):
    """Adds the mean over the sequence."""

    def body(self, input_ids):
        x = super().body(input_ids)
        return x + x.mean(1, keepdim=True)


class NormalisedOverTheBatch(Healthy):
    """Causal in eval mode; in training each channel is divided by what the whole batch holds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def body(self, input_ids):
        x = self.token_embedding(input_ids) + self.position_embedding(
            torch.arange(input_ids.shape[1], device=input_ids.device)
        )
        for block in self.blocks:
            x = block(x)
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class Constant(Healthy):
    def forward(self, input_ids):
        return self.head(self.body(torch.zeros_like(input_ids)))


class MultipliedByZero(Healthy):
    def forward(self, input_ids):
        return self.head(self.body(input_ids) * 0.0)


class ZeroHead(Healthy):
    """Healthy: an output projection that starts at zero is a known choice."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.head.weight)


class ZeroOverZero(nn.Module):
    def forward(self, x):
        return (x - x) / (x - x)


class NaNModule(Healthy):
    def __init__(self):
        super().__init__()
        self.blocks[1].mlp[1] = ZeroOverZero()


class NaNStatement(Healthy):
    def forward(self, input_ids):
        return torch.log(-super().forward(input_ids).abs() - 1)


class NaNWeight(Healthy):
    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.blocks[0].mlp[0].weight[0, 0] = float("nan")


class NaNGradient(Healthy):
    """Finite forward; the square root of exactly 0 has an infinite slope, and 0 · inf is NaN."""

    def forward(self, input_ids):
        x = self.body(input_ids)
        return self.head(x + torch.sqrt((x - x).abs()))


class Huge(Healthy):
    def forward(self, input_ids):
        return super().forward(input_ids) * 1e5


class RandomInEval(Healthy):
    def forward(self, input_ids):
        return self.head(F.dropout(self.body(input_ids), 0.1))


class HardType(Healthy):
    """Mixes a hard-coded float32 buffer with what autocast made."""

    def forward(self, input_ids):
        logits = super().forward(input_ids)
        return torch.zeros(logits.shape).index_copy_(0, torch.arange(len(logits)), logits)


class HiddenNaN(Healthy):
    def __init__(self):
        super().__init__()
        self.odd = ZeroOverZero()

    def forward(self, input_ids):
        x = self.body(input_ids)
        return self.head(x + torch.nan_to_num(self.odd(x)))


class Cancelling(Healthy):
    """Adds a large number and takes it off again: bfloat16 has no digits left for the rest."""

    def forward(self, input_ids):
        return self.head(self.body(input_ids) + 300.0) - 300.0 * self.head.weight.sum(dim=1)


class NaNInNarrowType(Healthy):
    def forward(self, input_ids):
        logits = super().forward(input_ids)
        return logits / (0.0 if logits.dtype == torch.bfloat16 else 1.0)


class FaintBranch(Healthy):
    def __init__(self):
        super().__init__()
        self.side = nn.Linear(WIDTH, WIDTH)

    def body(self, input_ids):
        x = super().body(input_ids)
        return x + 1e-10 * self.side(x)


class Detached(Healthy):
    def body(self, input_ids):
        return super().body(input_ids).detach()


class Unused(Healthy):
    def __init__(self):
        super().__init__()
        self.ffn_9 = nn.Linear(WIDTH, WIDTH)


class Frozen(Healthy):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class PartlyFrozen(Healthy):
    """Healthy: somebody froze the embedding on purpose."""

    def __init__(self):
        super().__init__()
        self.token_embedding.requires_grad_(False)


class Sigmoids(nn.Module):
    """A deep stack that saturates: the gradient shrinks by a factor per layer."""

    def __init__(self, layers: int = 8):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return self.head(x)


class Amplified(Sigmoids):
    """The other way round: each layer passes its value on as it is and its gradient ten times."""

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = x + torch.relu(layer(x))
            x = 10 * x - (9 * x).detach()
        return self.head(F.layer_norm(x, (WIDTH,)))


class EqualWeights(Healthy):
    def __init__(self):
        super().__init__()
        nn.init.constant_(self.blocks[0].mlp[0].weight, 0.02)


class WildLayer(Healthy):
    def __init__(self):
        super().__init__()
        nn.init.normal_(self.blocks[1].mlp[0].weight, std=50.0)


class WeakSibling(Healthy):
    """One layer starts a hundred times smaller than its siblings, within what other models use."""

    def __init__(self):
        super().__init__(layers=4)
        with torch.no_grad():
            self.blocks[2].mlp[0].weight.mul_(0.01)


class LoudBody(Healthy):
    """The head is fine; what reaches it is not."""

    def body(self, input_ids):
        return super().body(input_ids) * 1000.0


class Copying(Healthy):
    """Attention without mask, and weights that make each position predict the next token that it reads."""

    def forward(self, input_ids):
        return 20.0 * F.one_hot(input_ids.roll(-1, dims=1), VOCABULARY).float() + 0.0 * super().forward(input_ids)


class FixedBatch(Healthy):
    def forward(self, input_ids):
        return super().forward(input_ids).view(2, -1, VOCABULARY)


class BufferLimit(Healthy):
    """Holds a table of 12 positions where its config says more."""

    def __init__(self):
        super().__init__()
        del self.position_embedding
        self.register_buffer("table", torch.randn(12, WIDTH))

    def body(self, input_ids):
        x = self.token_embedding(input_ids) + self.table[torch.arange(input_ids.shape[1], device=input_ids.device)]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class HiddenLimit(Healthy):
    """Refuses more than 12 tokens, and holds nothing that would tell."""

    def __init__(self):
        super().__init__()
        del self.position_embedding

    def body(self, input_ids):
        if input_ids.shape[1] > 12:
            raise ValueError("too long")
        x = self.token_embedding(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class NarrowHead(Healthy):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(WIDTH, VOCABULARY - 10)


class RaisesInTraining(Healthy):
    def forward(self, input_ids):
        if self.training:
            raise ValueError("no training today")
        return super().forward(input_ids)


class Hangs(Healthy):
    """Never comes back from a batch of four in train mode."""

    def forward(self, input_ids):
        while self.training and input_ids.shape[0] == 4:
            pass
        return super().forward(input_ids)


class Untidy(Healthy):
    """Changes whatever a module can change while it runs."""

    def __init__(self):
        super().__init__()
        self.token_embedding.max_norm = 0.5
        self.register_buffer("calls", torch.zeros(()))
        self.cache: list[int] = [1]
        self.count = 0

    def forward(self, input_ids):
        self.calls += 1
        self.cache.append(self.count)
        self.count += 1
        self.last = input_ids
        return super().forward(input_ids)


def hugging_face() -> Iterator[tuple[str, object]]:
    """Name and constructor of tiny, randomly initialised models."""
    import transformers as hf

    sizes = {
        "vocab_size": 61,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
    }
    marks = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    gpt2 = hf.GPT2Config(vocab_size=61, n_layer=2, n_head=2, n_embd=16, n_positions=32, **marks)
    yield "GPT-2", lambda: hf.GPT2LMHeadModel(gpt2)
    llama = hf.LlamaConfig(**sizes, **marks, num_key_value_heads=1, max_position_embeddings=32)
    yield "Llama", lambda: hf.LlamaForCausalLM(llama)
    yield "BERT", lambda: hf.BertForMaskedLM(hf.BertConfig(**sizes, max_position_embeddings=32))
    yield "RoBERTa", lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**sizes, max_position_embeddings=34))
