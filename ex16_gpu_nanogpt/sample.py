"""Write with a model that exercise 16 has trained; what it writes appears as it is drawn.

    python ex16_gpu_nanogpt/sample.py --prompt "JULIET:\\n" --max-new-tokens 500 --number 3

train.py's `sample` passes all words through the model for every new one. Here the keys and values of those before are
kept (a key-value cache), and only the new word passes: the result is the same, and sooner there. A model has places for
T words. When they are full, the second half of the text in view is read again, and room for T / 2 more is there.
"""

import codecs
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import UserError, checkpoint, openwebtext
from common.program import check_config, clean_exit, torch_device

import torch
import torch.nn.functional as F
import tyro
from torch import nn
from train import Config as TrainConfig
from train import Transformer, draw, encode


@dataclass
class Config:
    checkpoint: Path = Path(__file__).parent / "out" / "best.pt"  # best.pt has the least validation loss of its run
    prompt: str = "\n"  # text to go on from; \n is the end of a line
    max_new_tokens: int = 500  # tokens of a sample: characters, or the tokens of GPT-2
    number: int = 1  # samples
    temperature: float = 0.8  # sampling temperature: the logits are divided by it; 0: always the likeliest token
    top_k: int = 0  # top-k sampling: draw from the k likeliest tokens only; 0: from all
    top_p: float = 0.95  # nucleus (top-p) sampling: draw from the fewest tokens whose probabilities reach this sum
    cache: bool = True  # keep keys and values; --no-cache passes all tokens through the model for every new one
    seed: int = 0  # of the first sample; the next ones have seed + 1, seed + 2, …
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # device to compute on; auto is a GPU where there is one

    def __post_init__(self):
        check_config(self, temperature=0, top_k=0, top_p=(0.01, 1))


def load_model(path, device):
    """Return the model of a checkpoint, in evaluation mode, and its vocabulary; None is that of GPT-2."""
    saved = checkpoint.read_torch(TrainConfig, path)
    model = Transformer(saved["config"], len(saved["model"]["embedding.weight"]))
    model.load_state_dict(saved["model"])
    if saved["vocab"] is None:  # exercise 17's table has more than GPT-2's tokens, to make a round number
        model.embedding.weight = model.head.weight = nn.Parameter(model.head.weight[:50_257])
    return model.to(device).eval(), saved["vocab"]


def first_in_view(n, size):
    """Return the place of the first of n tokens that a model of T = size sees; it moves on by T / 2 at a time."""
    half = (size + 1) // 2
    return max(0, -(-(n - size) // half)) * half


def next_logits(model, tokens, done, caches):
    """Return the logits (V,) after tokens (N,), of which the first is at place `done` and those before are cached.

    `caches` has keys and values (1, A, T, C / A) for every block; those of `tokens` are written there.
    """
    end = done + len(tokens)
    x = model.embedding(tokens[None]) + model.positions.weight[done:end]  # (1, N, C)
    for block, (keys, values) in zip(model.blocks, caches):
        attention = block.attention
        q, k, v = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
        keys[:, :, done:end], values[:, :, done:end] = k, v  # each (1, A, N, C / A)
        # Several tokens come at the start alone, and are masked; a single one may look at all.
        y = F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], is_causal=done == 0)
        x = x + attention.out(y.transpose(1, 2).flatten(2))  # (1, N, C)
        x = x + block.down(F.gelu(block.up(block.norm2(x)), approximate="tanh"))  # (1, N, C)
    return model.head(model.norm(x[0, -1]))  # (V,)


@torch.no_grad()
def generate(model, tokens, config, seed):
    """Yield the tokens () that the model draws after tokens (N,), without end, each given all in view before it."""
    size, channels = model.positions.weight.shape
    heads = model.blocks[0].attention.heads
    shape = (2, 1, heads, size, channels // heads)
    caches = [tokens.new_zeros(shape, dtype=torch.float32) for _ in model.blocks]  # each keys and values
    generator = torch.Generator(tokens.device).manual_seed(seed)
    start, done = 0, 0  # of the tokens in view, and how many of them are in the caches
    while True:
        first = first_in_view(len(tokens), size)
        if first > start or not config.cache:
            start, done = first, 0
        logits = next_logits(model, tokens[start + done :], done, caches) if config.cache else None
        done = len(tokens) - start
        if not config.cache:
            logits = model(tokens[None, start:])[0, -1]  # (V,)
        token = draw(logits, config, generator)  # (1,)
        tokens = torch.cat([tokens, token])
        yield token[0]


def codec(vocab):
    """Return two functions: of a text to numbers (N,), and of one number to bytes of UTF-8."""
    if vocab is not None:
        return lambda text: encode(text, vocab), lambda token: vocab[token].encode()
    gpt2 = openwebtext.encoding()
    return lambda text: torch.tensor(gpt2.encode_ordinary(text)), gpt2.decode_single_token_bytes


def main(config: Config) -> None:
    device = torch_device(config.device)
    model, vocab = load_model(config.checkpoint, device)
    to_numbers, to_bytes = codec(vocab)
    if not config.prompt:
        raise UserError("--prompt is empty: give it a character or more")
    tokens = to_numbers(config.prompt.replace("\\n", "\n")).to(device)  # (N,)
    if config.top_k > len(model.embedding.weight):
        raise UserError(f"--top-k {config.top_k} is larger than the vocabulary ({len(model.embedding.weight)} tokens)")
    start = time.perf_counter()
    for number in range(config.number):
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a token may end in the middle of a character
        print(f"--- sample {number + 1}")
        print(config.prompt.replace("\\n", "\n"), end="", flush=True)
        for _, token in zip(range(config.max_new_tokens), generate(model, tokens, config, config.seed + number)):
            print(decoder.decode(to_bytes(token.item())), end="", flush=True)
        print()
    rate = config.number * config.max_new_tokens / (time.perf_counter() - start)
    print(f"{rate:,.0f} tokens/s on {device}, {'with' if config.cache else 'without'} the cache", file=sys.stderr)


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
