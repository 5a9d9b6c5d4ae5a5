"""Generate text with a model of exercise 16 or 17, or with GPT-2; each token appears as soon as it is drawn.

    python ex16_gpu_nanogpt/sample.py --prompt "JULIET:\\n" --max-new-tokens 500 --number 3
    python ex16_gpu_nanogpt/sample.py --checkpoint path/to/gpt2 --prompt "The meaning of life is" --stop

train.py's `sample` passes all tokens through the model for every new one. Here the keys and values of the earlier ones
are kept (a key-value cache), and only the new token passes through: the result is the same, and comes sooner. A model
has T positions. When they are used up, the second half of the context is read again, which frees T / 2 positions.
"""

import codecs
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import UserError, openwebtext, text
from common.program import check_config, clean_exit, torch_device

import pretrained
import torch
import torch.nn.functional as F
import tyro
from torch import nn
from train import draw, encode


@dataclass
class Config:
    checkpoint: Path = Path(__file__).parent / "out" / "best.pt"  # model: a checkpoint, or a folder from Hugging Face
    prompt: str | None = None  # text that the samples continue; None: <|endoftext|>, or for characters a line break, \n
    prompt_file: Path | None = None  # file with that text, instead
    max_new_tokens: int = 500  # tokens per generated sample: characters, or GPT-2's tokens
    stop: bool = False  # end a sample at <|endoftext|>
    number: int = 1  # number of samples to generate
    temperature: float = 0.8  # sampling temperature: the logits are divided by it; 0: always the likeliest token
    top_k: int = 0  # top-k sampling: draw from the k likeliest tokens only; 0: from all
    top_p: float = 0.95  # nucleus (top-p) sampling: draw from the fewest tokens whose probabilities reach this sum
    cache: bool = True  # key-value cache; --no-cache passes all tokens through the model for every new one
    seed: int = 0  # random seed of the first sample; the next ones have seed + 1, seed + 2, …
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # device to compute on; auto is a GPU where there is one

    def __post_init__(self):
        check_config(self, temperature=0, top_k=0, top_p=(0.01, 1))
        if self.prompt is not None and self.prompt_file:
            raise ValueError("--prompt and --prompt-file both give the text to continue: leave one of them out")


def load_model(path, device):
    """Return the model of a checkpoint or of Hugging Face, for evaluation, and its vocabulary; None is GPT-2's."""
    model, vocab, _ = pretrained.load_model(path)
    if vocab is None:  # exercise 17's table is padded beyond GPT-2's tokens
        model.embedding.weight = model.head.weight = nn.Parameter(model.head.weight[: openwebtext.END_OF_TEXT + 1])
    return model.to(device).eval(), vocab


def first_in_view(n, size):
    """Return which of n tokens is the first in the context of a model with T = size; it moves by T / 2 at a time."""
    half = (size + 1) // 2
    return max(0, -(-(n - size) // half)) * half


def next_logits(model, tokens, done, caches):
    """Return the logits (V,) after tokens (L,), of which the first has position `done`; those before it are cached.

    `caches` has keys and values (1, A, T, C / A) for every block; those of `tokens` are written there.
    """
    end = done + len(tokens)
    x = model.embedding(tokens[None]) + model.positions.weight[done:end]  # (1, L, C)
    for block, (keys, values) in zip(model.blocks, caches):
        attention = block.attention
        q, k, v = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
        keys[:, :, done:end], values[:, :, done:end] = k, v  # each (1, A, L, C / A)
        # Several tokens come only at the start, with a causal mask; a single one attends to all before it.
        y = F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], is_causal=done == 0)
        x = x + attention.out(y.transpose(1, 2).flatten(2))  # (1, L, C)
        x = x + block.down(F.gelu(block.up(block.norm2(x)), approximate="tanh"))  # (1, L, C)
    return model.head(model.norm(x[0, -1]))  # (V,)


@torch.no_grad()
def generate(model, tokens, config, seed):
    """Yield the tokens () that the model draws after tokens (L,), without end, each from the context before it."""
    size, channels = model.positions.weight.shape
    heads = model.blocks[0].attention.heads
    shape = (2, 1, heads, size, channels // heads)
    caches = [tokens.new_zeros(shape, dtype=torch.float32) for _ in model.blocks]  # each keys and values
    generator = torch.Generator(tokens.device).manual_seed(seed)
    start, done = 0, 0  # of the context, and how many of its tokens are in the caches
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
    """Return two functions: from a text to token ids (L,), and from one token id to bytes of UTF-8."""
    if vocab is not None:
        return lambda text: encode(text, vocab), lambda token: vocab[token].encode()
    gpt2 = openwebtext.encoding()

    def to_tokens(text):  # an empty one is the start of a document
        return torch.tensor(gpt2.encode(text, allowed_special="all") or [gpt2.eot_token])

    return to_tokens, gpt2.decode_single_token_bytes


def main(config: Config) -> None:
    device = torch_device(config.device)
    model, vocab = load_model(config.checkpoint, device)
    to_tokens, to_bytes = codec(vocab)
    prompt = "" if vocab is None else "\n"
    if config.prompt is not None:
        prompt = config.prompt.replace("\\n", "\n")
    if config.prompt_file:
        prompt = text.read(config.prompt_file)
    if vocab is not None and (not prompt or config.stop):
        flag = "--stop" if prompt else "an empty --prompt"
        raise UserError(f"a model of characters has no <|endoftext|>, so it cannot take {flag}: leave it out")
    tokens = to_tokens(prompt).to(device)  # (L,)
    if config.top_k > len(model.embedding.weight):
        raise UserError(f"--top-k {config.top_k} is larger than the vocabulary ({len(model.embedding.weight)} tokens)")
    drawn, start = 0, time.perf_counter()
    for number in range(config.number):
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a token may end in the middle of a character
        print(f"--- sample {number + 1}")
        print(prompt, end="", flush=True)
        for _, token in zip(range(config.max_new_tokens), generate(model, tokens, config, config.seed + number)):
            drawn += 1
            if config.stop and token == openwebtext.END_OF_TEXT:
                break
            print(decoder.decode(to_bytes(token.item())), end="", flush=True)
        print()
    rate = drawn / (time.perf_counter() - start)
    print(f"{rate:,.0f} tokens/s on {device}, {'with' if config.cache else 'without'} the cache", file=sys.stderr)


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
