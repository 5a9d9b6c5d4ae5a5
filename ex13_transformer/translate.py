"""How does one sequence read another?

    python ex13_transformer/translate.py

Predicted: encoder and decoder with cross-attention write 99.5 % of unseen dates right, and without it they can only
guess; a decoder alone, with the date in front of what it writes, is as good within half a point; and where a digit is
written, one head looks at the place it comes from. Measured: dates as people write them, to ISO 8601. 60 CPU seconds.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from common.plotting import panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import torch
import train as ex13
import tyro
from dates import decode, make_data
from encoder_decoder import EncoderDecoder, S, T, masks


@dataclass
class Config:
    steps: int = 450  # training steps of each model
    batch_size: int = 32  # batch size: dates per step, B
    learning_rate: float = 0.005  # peak learning rate of AdamW
    warmup_steps: int = 60  # steps of linear warm-up; then half a cosine down to 0
    seed: int = 0  # random seed of weights, batches, and how each date is written
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few steps, to check that everything works

    def __post_init__(self):
        check_config(self)
        if self.dry_run:
            self.steps = 3


def train(model, source, target, config):
    """Train a model on written dates (N, S) and "=" with their ISO dates (N, 1 + T)."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    rng = np.random.default_rng(config.seed)
    for step, index in zip(range(config.steps), ex13.batches(rng, len(source), config.batch_size)):
        optimizer.param_groups[0]["lr"] = ex13.learning_rate(config, step)
        loss = ex13.loss_fn(model(source[index], target[index, :-1]), target[index, 1:])  # ()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def exact(model, source, target):
    """Return the share of the dates that the model writes without a mistake, its likeliest character each time.

    One pass is enough: as long as all it wrote is right, what it has before it is the right date.
    """
    return (model(source, target[:, :-1]).argmax(-1) == target[:, 1:]).all(1).double().mean().item()


@torch.no_grad()
def aligned(model, source, target, places):
    """Return, for each layer and head, how often the last digits of year and day look most at where they come from."""
    model(source, target[:, :-1])  # which leaves its attention weights behind
    found = torch.stack([layer.cross.weights for layer in model.decoder], 1)[..., [3, 9], :].argmax(-1)  # (B, L, A, 2)
    first, last = places[:, None, None].unbind(-1)  # each (B, 1, 1, 2)
    return ((first <= found) & (found <= last)).double().mean(0)  # (L, A, 2)


def draw(model, source, target):
    """Return the picture: what may be looked at, and where the last layer's heads do look, for one date."""
    titles = "An encoder\nsees all of the date", "A decoder\nwhat it wrote", "A decoder alone\nsees what is before"
    cross = "Cross-attention of the last layer, four heads:\nwhere each looks to write the character at the left"
    figure, axes = panels(*titles, cross, widths=(2.6, 2, 3.4, 5), height=6)
    written, iso = decode(source[0].tolist()).ljust(S, "·"), decode(target[0].tolist())
    filled, earlier, both = (mask[0].numpy() for mask in masks(source))
    looked = (filled.repeat(S, 0), written), (earlier, iso[:T]), (both, written + iso[:T])
    for ax, (mask, text) in zip(axes, looked):
        ax.imshow(mask, cmap="Blues", vmin=0, vmax=2)
        ax.set_xticks(range(len(text)), text, fontsize=7)
        ax.set_yticks(range(len(text)), text, fontsize=7)
    model(source, target[:, :-1])  # which leaves its attention weights behind
    weights = model.decoder[-1].cross.weights[0].detach()  # (A, T, S)
    axes[3].imshow(weights.flatten(0, 1).numpy(), cmap="Blues", aspect="auto")
    axes[3].set_xticks(range(S), written)
    axes[3].set_yticks(range(len(weights) * T), iso[1:] * len(weights), fontsize=7)
    axes[3].hlines(np.arange(1, len(weights)) * T - 0.5, -0.5, S - 0.5, color="black", linewidth=0.8)
    for ax in axes:
        ax.grid(visible=False)
    return figure


def main(config: Config) -> dict[str, float]:
    source, target, places = make_data(config.seed)
    new, old = slice(100 if config.dry_run else 2_000), slice(2_000, None)  # no new day is trained on in any form
    models = {}
    for name, part, layers in (("both", 1, (2, 2, True)), ("alone", 1, (0, 5, False)), ("blind", 3, (2, 2, False))):
        torch.manual_seed(config.seed)
        models[name] = EncoderDecoder(*layers)
        train(models[name], source[old], target[old], replace(config, steps=config.steps // part))
    right = {name: 100 * exact(model, source[new], target[new]) for name, model in models.items()}
    seen = aligned(models["both"], source[old][:500], target[old][:500], places[old][:500])
    heads = seen.flatten(0, 1).argmax(0)  # (2,): the best head for the year, and for the day, on dates of the training
    looks = aligned(models["both"], source[new], target[new], places[new]).flatten(0, 1)[heads, [0, 1]]
    return answer(
        config,
        draw(models["both"], source[:1], target[:1]),
        right_encoder_decoder=(right["both"], 99.5, None),
        right_without_cross_attention=(right["blind"], None, 1),
        decoder_alone_minus_both=(right["alone"] - right["both"], -0.5, 0.5),
        year_looks_at_year=(100 * looks[0].item(), 90, None),
        day_looks_at_day=(100 * looks[1].item(), 90, None),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
