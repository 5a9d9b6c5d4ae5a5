"""What does twice the compute buy?

    python ex16_gpu_nanogpt/scaling.py

Predicted: the least validation loss that a budget buys, over all widths, falls as a power of the budget, within 2 %, as
Kaplan et al. found; but by a larger power than their 0.05, at least 0.06, since a small model of single letters is far
from the loss that no model can beat; and the width that is best grows with the budget. Measured: exercise 16's model of
2 layers, five widths, four budgets. 100 CPU seconds.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import torch
import train as ex16
import tyro
from torch import nn

WIDTHS, BUDGETS = (4, 8, 16, 32, 64), (2e9, 6e9, 1.8e10, 5.4e10)  # channels; multiplications and additions


@dataclass
class Config:
    batch_size: int = 8  # samples of 64 characters per step, B
    rate_times_width: float = 0.25  # learning rate times width: the wider, the smaller the steps
    seed: int = 0  # random seed
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few steps, to check that everything works

    def __post_init__(self):
        check_config(self, batch_size=(1, 1_000), rate_times_width=(0.001, 10))


def train(ex, x, y, vocab_size, budget):
    """Return a model after exercise 16's loop on tokens x (N, T) and next tokens y (N, T), for a budget of FLOPs."""
    torch.manual_seed(ex.seed)
    model = ex16.Transformer(ex, vocab_size)
    per_step = ex.batch_size * ex.block_size * ex16.flops_per_token(ex, model)
    steps = max(3, round(budget / per_step))
    ex = replace(ex, steps=steps, warmup_steps=max(1, steps // 10))
    (optimizer,) = ex16.make_optimizers(ex, model)
    for step, index in zip(range(steps), ex16.batches(ex, len(x), 0, "cpu")):  # (B,)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = ex16.learning_rate(ex, step)
        model(x[index], y[index]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), ex.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
    return model


def power_law(budgets, losses):
    """Return A and b of losses (N,) = A / budgets^b, a straight line on logarithmic axes, by least squares."""
    slope, start = np.polyfit(np.log(budgets), np.log(losses), 1)
    return np.exp(start), -slope


def draw(losses, factor, exponent):
    """Return the picture: the loss over the budget, a line for each width, and the power law of the least."""
    figure, (ax,) = panels("What a budget buys, by the width of the model", widths=(8,), height=5)
    for color, width, row in zip(SAFE, WIDTHS, losses):
        ax.loglog(BUDGETS, row, "o-", color=color, markersize=4, linewidth=1)
        label(ax, BUDGETS[-1], row[-1], f"{width} channels", color)
    line = factor / np.array(BUDGETS) ** exponent
    ax.plot(BUDGETS, line, "k--", linewidth=1, label=f"power law of the least, exponent {exponent:.3f}")
    ax.legend(frameon=False)
    ticks = [tick for tick in (1.8, 2, 2.2, 2.5, 2.8, 3.1, 3.5, 4) if losses.min() * 0.95 < tick < losses.max() * 1.05]
    ax.set(xlabel="multiplications and additions of the training", ylabel="validation loss (nats per character)")
    ax.set(xlim=(1.5e9, 1e11), yticks=ticks, yticklabels=ticks)
    ax.tick_params(axis="y", which="minor", left=False, labelleft=False)
    return figure


def main(config: Config) -> dict[str, float]:
    ex = ex16.Config(layers=2, heads=2, batch_size=config.batch_size, decay_to=0.0)
    ex = replace(ex, seed=config.seed, dry_run=config.dry_run)
    training, held_out, vocab = ex16.read_tokens(ex)
    x, y, x_val, y_val = ex16.make_data(ex, training, held_out, "cpu")
    losses = np.zeros((len(WIDTHS), len(BUDGETS)))
    for i, width in enumerate(WIDTHS):
        ex = replace(ex, channels=width, learning_rate=config.rate_times_width / width)
        for j, budget in enumerate(BUDGETS):
            model = train(ex, x, y, len(vocab), 0 if config.dry_run else budget)
            losses[i, j] = ex16.evaluate(model, x_val[::4], y_val[::4])["loss"]  # a quarter of it, in blocks
    least = losses.min(0)
    factor, exponent = power_law(BUDGETS, least)
    best = [WIDTHS[i] for i in losses.argmin(0)]
    return answer(
        config,
        draw(losses, factor, exponent),
        loss_of_least_budget=least[0],
        loss_of_largest_budget=least[-1],
        exponent=(exponent, 0.06, None),
        off_the_law=(np.abs(factor / np.array(BUDGETS) ** exponent / least - 1).max(), None, 0.02),
        doubling_lowers_loss_by_percent=100 * (1 - 2**-exponent),
        width_at_largest_over_least_budget=(best[-1] / best[0], 2, None),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
