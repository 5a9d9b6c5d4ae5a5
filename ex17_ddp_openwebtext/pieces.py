"""Is a batch in pieces still the same batch?

    python ex17_ddp_openwebtext/pieces.py

Predicted: yes, to the rounding of float32, if every piece has the same number of scored tokens; if not, the mean of the
pieces' means is another gradient, off by a tenth or more in 16 pieces; and weighting each piece by its tokens mends it.
Measured: gradients of exercise 17's model, 64 sequences at once and in 2 to 64 pieces. 6 CPU seconds.
"""

from dataclasses import dataclass
from pathlib import Path

from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import torch
import torch.nn.functional as F
import train as ex17
import tyro

PIECES, WAYS = (2, 4, 8, 16, 32, 64), ("equal lengths", "unequal, mean of means", "unequal, weighted by tokens")


@dataclass
class Config:
    batch_size: int = 64  # sequences of the batch, B
    seed: int = 0  # random seed of weights, tokens, and lengths
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # short sequences, to check that everything works

    def __post_init__(self):
        check_config(self, batch_size=(64, 10_000))


def gradient(model, x, y, pieces, weighted):
    """Return the gradient (P,) of the loss on tokens x (B, T) and next tokens y (B, T), -1 where they are not scored.

    Each piece of the batch gives the mean over its own tokens. The pieces' gradients add up, each with the same share,
    as in exercise 17 and between the processes of DDP, or, if weighted, with its share of the scored tokens.
    """
    model.zero_grad()
    for x_piece, y_piece in zip(x.tensor_split(pieces), y.tensor_split(pieces)):  # (M, T), (M, T)
        logits = model(x_piece)  # (M, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1), y_piece.flatten(), ignore_index=-1)  # ()
        share = (y_piece >= 0).sum() / (y >= 0).sum() if weighted else 1 / pieces
        (loss * share).backward()  # adds to the grad of every param
    return torch.cat([param.grad.flatten() for param in model.parameters()])  # (P,)


def make_data(config, ex):
    """Return random tokens (B, T), the next of each (B, T), and the same with -1 behind the end of each sequence.

    A sequence's length is T times a random number, squared: many are short, as answers in a chat are.
    """
    tokens = torch.randint(ex.vocab_size, (config.batch_size, ex.block_size + 1))
    x, y = tokens[:, :-1], tokens[:, 1:]
    lengths = (ex.block_size * torch.rand(config.batch_size, 1) ** 2).ceil()  # (B, 1)
    return x, y, y.masked_fill(torch.arange(ex.block_size) >= lengths, -1)


def draw(off):
    """Return the picture: how far off the gradient is, over the number of pieces."""
    figure, (ax,) = panels("How far the sum of the pieces is from the gradient of the batch", widths=(8,))
    for color, way in zip(SAFE, WAYS):
        values = [off[way, pieces] for pieces in PIECES]
        ax.loglog(PIECES, values, "o-", color=color)
        label(ax, PIECES[-1], values[-1], way, color, (8, -9 if way == WAYS[2] else 6))
    ax.set(xlabel="pieces", ylabel="norm of the difference, as a share", xticks=PIECES, xticklabels=PIECES)
    ax.set(xlim=(1.8, 300), ylim=(1e-8, 10))
    ax.minorticks_off()
    return figure


def main(config: Config) -> dict[str, float]:
    torch.manual_seed(config.seed)
    ex = ex17.Config(vocab_size=512, layers=2, block_size=8 if config.dry_run else 64)
    model = ex17.Transformer(ex, ex.vocab_size)
    x, full, cut = make_data(config, ex)
    off = {}
    for way, y in zip(WAYS, (full, cut, cut)):
        whole = gradient(model, x, y, 1, weighted=True)
        for pieces in PIECES:
            parts = gradient(model, x, y, pieces, weighted=way == WAYS[2])
            off[way, pieces] = ((parts - whole).norm() / whole.norm()).item()
    return answer(
        config,
        draw(off),
        off_equal=(max(off[WAYS[0], pieces] for pieces in PIECES), None, 1e-5),
        off_mean_of_means=(off[WAYS[1], 16], 0.1, None),
        off_weighted=(max(off[WAYS[2], pieces] for pieces in PIECES), None, 1e-5),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
