"""Exercise 13's transformer in two halves, one that reads and one that writes: the model of translate.py."""

import math

import torch
from dates import LETTERS, S, T
from torch import nn

A, C = 4, 64  # heads, channels


class Attention(nn.Module):
    """Queries from x (B, T, C), keys and values from memory (B, S, C), where mask (B or 1, T or 1, S) is true."""

    def __init__(self):
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(C, C), nn.Linear(C, 2 * C), nn.Linear(C, C)

    def forward(self, x, memory, mask):
        q = self.q(x).unflatten(-1, (A, -1)).transpose(1, 2)  # (B, A, T, C / A)
        k, v = self.kv(memory).unflatten(-1, (2, A, -1)).permute(2, 0, 3, 1, 4)  # each (B, A, S, C / A)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, A, T, S)
        self.weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)  # (B, A, T, S)
        return self.out((self.weights @ v).transpose(1, 2).flatten(2))  # (B, T, C)


class Layer(nn.Module):
    """Exercise 13's block with a mask of its own, and in a decoder a second attention, to what the encoder has made."""

    def __init__(self, cross):
        super().__init__()
        self.attention, self.cross = Attention(), Attention() if cross else None
        self.norms = nn.ModuleList(nn.LayerNorm(C) for _ in range(3 if cross else 2))
        self.mlp = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))

    def forward(self, x, mask, memory=None, filled=None):
        h = self.norms[0](x)  # (B, T, C)
        x = x + self.attention(h, h, mask)  # (B, T, C)
        if self.cross is not None:
            x = x + self.cross(self.norms[2](x), memory, filled)  # (B, T, C)
        return x + self.mlp(self.norms[1](x))  # (B, T, C)


class EncoderDecoder(nn.Module):
    """Dates as written (B, S), "=" and the ISO date so far (B, T), to logits (B, T, V) of each next character.

    Without an encoder one stack of layers reads the written date and goes on with the ISO date behind it.
    """

    def __init__(self, encoder=2, decoder=2, cross=True):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(len(LETTERS), C), nn.Embedding(S + T, C)
        self.encoder = nn.ModuleList(Layer(False) for _ in range(encoder))
        self.decoder = nn.ModuleList(Layer(cross) for _ in range(decoder))
        self.head = nn.Sequential(nn.LayerNorm(C), nn.Linear(C, len(LETTERS)))

    def forward(self, source, target):
        x = self.embedding(torch.cat([source, target], 1)) + self.positions.weight  # (B, S + T, C)
        filled, earlier, both = masks(source)
        if not self.encoder:
            for layer in self.decoder:
                x = layer(x, both)  # (B, S + T, C)
            return self.head(x[:, S:])  # (B, T, V)
        memory, x = x[:, :S], x[:, S:]  # (B, S, C), (B, T, C)
        for layer in self.encoder:
            memory = layer(memory, filled)  # (B, S, C)
        for layer in self.decoder:
            x = layer(x, earlier, memory, filled)  # (B, T, C)
        return self.head(x)  # (B, T, V)


def masks(source):
    """Return what may be looked at: in the source (B, 1, S), in the target (1, T, T), in one behind the other (B, …).

    An encoder sees the whole source, but not what only fills it up; a decoder sees what it has written before.
    """
    filled, later = (source > 0)[:, None], torch.ones(1, S + T, S + T, dtype=torch.bool).tril()
    everywhere = torch.cat([filled, filled.new_ones(len(source), 1, T)], -1)  # (B, 1, S + T)
    return filled, later[:, S:, S:], later & everywhere
