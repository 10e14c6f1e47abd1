"""A small recurrent language model."""

from __future__ import annotations

from torch import nn


class Model(nn.Module):
    """Embedding, two layers of LSTM, norm, head."""

    def __init__(self, vocab_size, hidden_size):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.lstm = nn.LSTM(hidden_size, hidden_size, num_layers=2, batch_first=True, dropout=0.1)
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, vocab_size)

    def forward(self, input_ids):
        hidden, _ = self.lstm(self.embedding(input_ids))
        return self.head(self.norm(hidden))
