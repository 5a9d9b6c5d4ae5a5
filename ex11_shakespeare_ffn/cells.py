"""Two recurrent layers by hand, as plain functions, and a network of words around them."""

import torch
import torch.nn.functional as F
from torch import nn


def rnn(x, w_x, w_h, b):
    """Return the states (B, T, C) of a recurrent network that reads x (B, T, C) (Elman 1990)."""
    h, states = x.new_zeros(len(x), w_h.shape[1]), []
    for read in F.linear(x, w_x, b).unbind(1):  # (B, C), for each token
        h = torch.tanh(read + h @ w_h.T)  # (B, C)
        states.append(h)
    return torch.stack(states, 1)


def lstm(x, w_x, w_h, b, forget=None):
    """Return the states (B, T, C) of an LSTM that reads x (B, T, C), and add its forget gates to a list, if given.

    Hochreiter and Schmidhuber 1997; the forget gate is of Gers et al. 2000.
    """
    h = c = x.new_zeros(len(x), w_h.shape[1])  # what it shows, and the cell, which it keeps
    states = []
    for read in F.linear(x, w_x, b).unbind(1):  # (B, 4 C), for each token
        i, f, g, o = (read + h @ w_h.T).chunk(4, -1)  # each (B, C): the gates and what is new
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)  # (B, C)
        h = torch.sigmoid(o) * torch.tanh(c)  # (B, C)
        states.append(h)
        if forget is not None:
            forget.append(torch.sigmoid(f))
    return torch.stack(states, 1)


class Recurrent(nn.Module):
    """Embeddings, one recurrent layer, norm, logits by the table: tokens (B, T) to the last n places, (B · n, V)."""

    def __init__(self, layer, config, vocab_size):
        super().__init__()
        self.layer, gates = layer, 1 if layer is rnn else 4
        self.embedding = nn.Embedding(vocab_size, config.channels)
        self.w_x, self.w_h = (nn.Parameter(torch.empty(gates * config.channels, config.channels)) for _ in range(2))
        self.b = nn.Parameter(torch.zeros(gates * config.channels))
        self.norm, self.dropout = nn.LayerNorm(config.channels), nn.Dropout(config.dropout)
        self.head = nn.Linear(config.channels, vocab_size)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.head.weight = self.embedding.weight
        for part in (*self.w_x.split(config.channels), *self.w_h.split(config.channels)):
            nn.init.orthogonal_(part)  # rotations: memory.py shows why
        nn.init.ones_(self.b[config.channels : 2 * config.channels])  # opens the forget gate; an RNN has none

    def states(self, tokens, *forget):
        x = self.embedding(tokens) * self.w_h.shape[1] ** 0.5  # (B, T, C): else too small beside the state
        return self.layer(self.dropout(x), self.w_x, self.w_h, self.b, *forget)  # (B, T, C)

    def forward(self, tokens, n):
        return self.head(self.dropout(self.norm(self.states(tokens)[:, -n:]))).flatten(0, 1)  # (B · n, V)
