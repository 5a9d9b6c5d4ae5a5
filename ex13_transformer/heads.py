"""What do heads do?

    python ex13_transformer/heads.py

Predicted: trained on Shakespeare's characters, one head gives half of its weight to the character before, and one 30 %
to the last space. Two layers learn to copy random letters that come again (90 % right): a head in the first looks one
back, so that one in the second finds what came after the same letter. Without the former at most half is right; one
layer only guesses (15 %). Measured: exercise 13's blocks at half their size; without MLP for copying. 30 CPU seconds.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from common import data
from common.plotting import SAFE, panels
from common.program import check_config, clean_exit
from common.record import answer

import torch
import train as ex13
import tyro
from copying import LETTERS, copied, learn_to_copy, repeats
from order import T, train

NAMES = ("the one before", "two before", "the first", "the same", "after the same", "last space")


@dataclass
class Config:
    steps: int = 800  # training steps on Shakespeare
    batch_size: int = 16  # batch size: blocks per step, B
    learning_rate: float = 0.003  # peak learning rate of AdamW on Shakespeare
    copy_steps: int = 500  # training steps of the networks that copy, with twice as large batches
    copy_learning_rate: float = 0.01  # and their peak learning rate
    warmup_steps: int = 50  # steps of linear warm-up; then half a cosine down to 0
    seed: int = 0  # random seed of weights, batches and sequences
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # little text and few steps, to check that everything works

    def __post_init__(self):
        check_config(self)


def patterns(tokens, spaces):
    """Return where each of the tokens (B, T) would look: a mask (B, T, T) for each of NAMES, (6, B, T, T)."""
    here, there = torch.arange(T)[:, None], torch.arange(T)  # (T, 1), (T,)
    earlier = there < here  # (T, T)
    same = (tokens[:, :, None] == tokens[:, None]) & earlier  # (B, T, T)
    after = torch.nn.functional.pad(same, (1, -1)) & earlier  # (B, T, T)
    space = torch.isin(tokens, spaces)[:, None] & earlier  # (B, T, T)
    last = space & (space.flip(-1).cumsum(-1).flip(-1) == 1)  # (B, T, T): no other space comes after it
    masks = there == here - 1, there == here - 2, (there == 0) & earlier, same, after, last
    return torch.stack([mask.expand(len(tokens), T, T) for mask in masks])


@torch.no_grad()
def looks(model, tokens, spaces):
    """Return the weight (L, A, 6), in per cent, that each head gives to each of NAMES, where there is such a token."""
    model(tokens)  # which leaves its attention weights behind
    weights = torch.stack([block.attention.weights for block in model.blocks])  # (L, B, A, T, T)
    masks = patterns(tokens, spaces)  # (6, B, T, T)
    weight = torch.einsum("lbatu,pbtu->lap", weights, masks.float())  # (L, A, 6)
    return 100 * weight / masks.any(-1).sum((1, 2)).clamp(min=1)


def draw(table, curves, weights, letters):
    """Return the picture: what each head looks at, copying over steps, and where the head that copies looks."""
    titles = "Shakespeare: weight (%) given to", "Random letters that come again", "The head that copies"
    figure, (left, middle, right) = panels(*titles, widths=(5, 4, 5), height=4.8)
    rows = table.flatten(0, 1).numpy()  # (L · A, 6)
    left.imshow(rows, cmap="Blues", vmin=0, vmax=80, aspect="auto")
    for n, row in enumerate(rows.tolist()):
        for m, weight in enumerate(row):  # what a head looks at most is bold
            style = "bold" if weight == max(row) else "normal"
            left.text(m, n, f"{weight:.0f}", ha="center", va="center", fontsize=9, weight=style)
    left.set_xticks(range(len(NAMES)), NAMES, rotation=40, ha="right")
    left.set_yticks(range(len(rows)), [f"{1 + n // table.shape[1]}.{1 + n % table.shape[1]}" for n in range(len(rows))])
    left.set_ylabel("layer and head")
    for color, (name, curve) in zip(SAFE, curves.items()):
        middle.plot(curve.keys(), curve.values(), color=color, label=name)
    middle.set(xlabel="steps", ylabel="right (%)", ylim=(0, 103))
    middle.legend(frameon=False, loc="center right")
    right.imshow(weights, cmap="Blues", vmin=0, vmax=1)
    for ticks in (right.set_xticks, right.set_yticks):
        ticks(range(T), letters, fontsize=7)
    right.set(xlabel="where it looks", ylabel="letter that looks")
    for ax in (left, right):
        ax.grid(visible=False)
    return figure


def main(config: Config) -> dict[str, float]:
    text = data.shakespeare(config.dry_run)
    tokens, cut = ex13.encode(text, vocab := sorted(set(text))), len(text) * 9 // 10  # (L,)
    reader = train("rotary", tokens[:cut], len(vocab), config).eval()
    table = looks(reader, tokens[cut:].unfold(0, T, T)[:500], ex13.encode(" \n", vocab))  # (L, A, 6)
    copies = replace(
        config, steps=config.copy_steps, learning_rate=config.copy_learning_rate, batch_size=2 * config.batch_size
    )
    (two, curve), (_, curve_of_one) = (learn_to_copy(layers, copies) for layers in (2, 1))
    letters = repeats(500)[0][:, :-1]  # (500, T)
    first, second = looks(two, letters, torch.tensor([-1]))  # each (A, 6)
    before, after = first[:, 0].argmax(), second[:, 4].argmax()  # the heads that do it most
    weights = two.blocks[1].attention.weights[0, after].detach().numpy()  # (T, T): of the first sequence
    width = len(two.norm.weight) // len(first)
    two.blocks[0].attention.out.weight.data[:, before * width : (before + 1) * width] = 0  # that head says no more
    return answer(
        config,
        draw(table, {"two layers": curve, "one layer": curve_of_one}, weights, [LETTERS[n] for n in letters[0]]),
        character_before=(table[..., 0].max().item(), 50, None),
        last_space=(table[..., 5].max().item(), 30, None),
        copied_by_two_layers=(list(curve.values())[-1], 90, None),
        copied_by_one_layer=(list(curve_of_one.values())[-1], None, 15),
        one_before_in_first_layer=(first[before, 0].item(), 50, None),
        after_the_same_in_second_layer=(second[after, 4].item(), 75, None),
        copied_without_the_former=(copied(two), None, 50),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
