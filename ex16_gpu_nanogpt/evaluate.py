"""Evaluate a model of exercise 16 or 17, or GPT-2 itself, on a whole validation set: each token is scored once.

    python ex16_gpu_nanogpt/evaluate.py --checkpoint ex16_gpu_nanogpt/out/best.pt
    python ex16_gpu_nanogpt/evaluate.py --checkpoint path/to/gpt2-xl --whole

A model of characters is scored on Tiny Shakespeare or --text. One of GPT-2's tokens (a checkpoint of exercise 17, or a
folder of Hugging Face's with config.json and model.safetensors) is scored on exercise 17's data: the first file of
OpenWebText, all of it with --whole, or --data.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import UserError, openwebtext, speed
from common.program import check_config, clean_exit, torch_device

import numpy as np
import pretrained
import torch
import train
import tyro
from tqdm import tqdm


@dataclass
class Config:
    checkpoint: Path = Path(__file__).parent / "out" / "best.pt"  # model: a checkpoint, or a folder from Hugging Face
    text: Path | None = None  # for characters: the text file that the model was trained on, if not Tiny Shakespeare
    data: Path | None = None  # for GPT-2's tokens: documents as of exercise 17, or a folder with train.bin and val.bin
    whole: bool = False  # for GPT-2's tokens: all of OpenWebText, not only its first file
    val_share: float | None = None  # share of documents for validation; default 0.0005, or 0.02 of fewer than 100,000
    batch_size: int = 8  # sequences to evaluate at a time
    precision: speed.Precision = "auto"  # number format of matrix products, as in train.py
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # device to compute on; auto is a GPU where there is one

    def __post_init__(self):
        check_config(self)


def read_tokens(config, model, vocab):
    """Return the tokens of training and validation text, each (L,), in a model's vocabulary, as train.py splits them.

    Of OpenWebText's training tokens these are the last T + 1 alone: the first validation token is predicted from them.
    """
    size = len(model.positions.weight)
    if vocab is not None:
        train_tokens, val_tokens, found = train.read_tokens(train.Config(text=config.text, block_size=size))
        if found != vocab:
            raise UserError(f"{config.checkpoint} is for another vocabulary: give the --text that it was trained on")
        return train_tokens, val_tokens
    train_tokens, val_tokens, _ = openwebtext.read(config.data, config.whole, config.val_share)
    return (torch.from_numpy(tokens.astype(np.int64)) for tokens in (train_tokens[-size - 1 :], val_tokens))


def main(config: Config) -> dict[str, float]:
    device = torch_device(config.device)
    model, vocab, _ = pretrained.load_model(config.checkpoint)
    model = model.to(device)
    model.precision = speed.precision(device, config.precision)
    train_tokens, val_tokens = read_tokens(config, model, vocab)
    sizes = train.Config(block_size=len(model.positions.weight))
    _, _, x_val, y_val = train.make_data(sizes, train_tokens, val_tokens, device)  # (N, T), (N, T)
    totals = {"loss": 0.0, "accuracy": 0.0}
    size = config.batch_size
    for x, y in zip(tqdm(x_val.split(size), unit=" batches", disable=None), y_val.split(size)):  # (B, T), (B, T)
        scored = (y >= 0).sum().item()
        for name, value in train.evaluate(model, x, y).items():
            totals[name] += value * scored
    result = {name: total / len(val_tokens) for name, total in totals.items()}
    unit = "token" if vocab is None else "character"
    count = sum(param.numel() for param in model.parameters())
    print(f"model: {count:,} parameters, context length {sizes.block_size}")
    print(f"validation: {len(val_tokens):,} {unit}s on {device}, {model.precision}")
    print(f"loss {result['loss']:.4f} nats per {unit} (perplexity {math.exp(result['loss']):.2f})")
    print(f"accuracy {100 * result['accuracy']:.2f} %")
    return result


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
