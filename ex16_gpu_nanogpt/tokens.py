"""Which tokens are cheapest: characters, syllables or words?

    python ex16_gpu_nanogpt/tokens.py

Predicted: at equal compute byte-pair encoding is ahead of characters by more than 0.3 bits a character, since a token
stands for two or three of them; with four times the compute it is still ahead, by less; and it is ahead of words, whose
output layer is dear and whose rare ones are spelt. Measured: exercise 16's model of 2 layers and 64 channels, on
characters, on 250, 1,000 and 4,000 merges and on words, all scored on the same text. 100 CPU seconds.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from common.plotting import SAFE, panels
from common.program import check_config, clean_exit
from common.record import answer

import bpe
import numpy as np
import scaling
import torch
import train as ex16
import tyro

UNKNOWN, END = "<unk>", "<end>"  # a word that is not in the vocabulary, and the end of a spelt one


@dataclass
class Config:
    budget: float = 1e11  # multiplications and additions of the short training; the long one has four times as many
    batch_size: int = 4  # samples of 64 tokens per step, B
    learning_rate: float = 0.008  # peak learning rate of AdamW
    seed: int = 0  # random seed
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few steps, to check that everything works

    def __post_init__(self):
        check_config(self, batch_size=(1, 1_000))


def spell(words, rare, alphabet):
    """Return the nats of spelling words by how often each character, and the end of a word, occurs in the rare ones."""
    counts = Counter(chain(alphabet, [END], *([*word, END] for word in rare)))  # one more of each, so that none is 0
    total = sum(counts.values())
    return sum(math.log(total / counts[char]) for word in words for char in [*word, END])


def cut(training, new, merges=None):
    """Return two texts as tokens, the vocabulary, and the nats of what the new one's tokens leave open.

    `merges` is a vocabulary of bpe.py; without it a token is a word with the space before it, if it occurs twice.
    """
    if merges:
        return bpe.encode(training, merges), bpe.encode(new, merges), list(merges), 0.0
    counts, new = Counter(bpe.CHUNK.findall(training)), bpe.CHUNK.findall(new)
    vocab = [UNKNOWN] + [word for word in counts if counts[word] > 1]
    known = set(vocab)
    texts = [[word if word in known else UNKNOWN for word in text] for text in (bpe.CHUNK.findall(training), new)]
    nats = spell([word for word in new if word not in known], set(counts) - known, {*training, *"".join(new)})
    return *texts, vocab, nats


def draw(bits, sizes):
    """Return the picture: bits a character of each kind of token, after the short and the long training."""
    figure, (ax,) = panels("Bits a character, at equal compute", widths=(8,))
    for i, (name, color) in enumerate(zip(("short training", "four times as long"), SAFE)):
        bars = ax.bar(np.arange(len(bits)) + 0.4 * i - 0.2, [row[i] for row in bits.values()], 0.38, color=color)
        bars.set_label(name)
        ax.bar_label(bars, fmt="%.2f", fontsize=9)
    ax.set_xticks(range(len(bits)), [f"{kind}\n{sizes[kind]:,} tokens" for kind in bits])
    ax.set(ylabel="bits a character")
    ax.legend(frameon=False)
    return figure


def main(config: Config) -> dict[str, float]:
    ex = ex16.Config(layers=2, channels=64, learning_rate=config.learning_rate, decay_to=0.0)
    ex = replace(ex, batch_size=config.batch_size, seed=config.seed, dry_run=config.dry_run)
    *texts, characters = ex16.read_tokens(ex)
    training, new = ("".join(characters[i] for i in text) for text in texts)
    learnt = bpe.learn(training, 256 + 4_000)
    cuts = {"characters": (list(training), list(new), characters, 0.0)}
    for n in (250, 1_000, 4_000):
        cuts[f"{n:,} merges"] = cut(training, new, {token: i for token, i in learnt.items() if i < 256 + n})
    cuts["words"] = cut(training, new)
    bits = {}
    for kind, (*texts, vocab, nats) in cuts.items():
        ids = {token: i for i, token in enumerate(vocab)}
        x, y, x_val, y_val = ex16.make_data(ex, *(torch.tensor([ids[t] for t in text]) for text in texts), "cpu")
        for budget in (config.budget, 4 * config.budget):
            model = scaling.train(ex, x, y, len(vocab), 0 if config.dry_run else budget)
            loss = ex16.evaluate(model, x_val, y_val)["loss"] * len(texts[1]) + nats
            bits.setdefault(kind, []).append(loss / len(new) / math.log(2))
    short, long = (min(bits[kind][i] for kind in bits if "merges" in kind) for i in (0, 1))
    lead = [bits["characters"][0] - short, bits["characters"][1] - long]
    return answer(
        config,
        draw(bits, {kind: len(vocab) for kind, (*_, vocab, _) in cuts.items()}),
        bits_of_characters=bits["characters"][1],
        bits_of_1000_merges=bits["1,000 merges"][1],
        bits_of_words=bits["words"][1],
        bpe_before_characters=(lead[0], 0.3, None),
        lead_that_is_left=(lead[1] / lead[0], 0, 1),
        bpe_before_words=(bits["words"][1] - long, 0, None),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
