"""A task that needs two layers of attention, and attention layers that learn it."""

import torch
import train as ex13
from order import T, new_network

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEF"  # V = 32


def repeats(n):
    """Return n sequences (n, T + 1) of random letters that begin again after 10 to 20, and what can be known of them.

    Known are the letters (n, T) that follow one which was there before. In one round no letter comes twice.
    """
    length, place = torch.randint(10, 21, (n, 1)), torch.arange(T + 1)  # (n, 1), (T + 1,)
    letters = torch.rand(n, len(LETTERS)).argsort(1)  # (n, V)
    return letters.gather(1, place % length), place[1:] > length


@torch.no_grad()
def copied(model):
    """Return the share, in per cent, of what can be known of 500 new sequences that is the likeliest to the model."""
    tokens, known = repeats(500)
    return 100 * (model(tokens[:, :-1]).argmax(-1) == tokens[:, 1:])[known].double().mean().item()


class Attend(torch.nn.Module):
    """What is left of a block without its MLP: (B, T, C) to same."""

    def __init__(self, block):
        super().__init__()
        self.norm, self.attention = block.norm1, block.attention

    def forward(self, x):
        return x + self.attention(self.norm(x))


def learn_to_copy(layers, config):
    """Return a network of so many attention layers, trained to copy, and over steps what it copies, in per cent."""
    torch.manual_seed(config.seed)
    model, right = new_network("rotary", len(LETTERS)), {}
    model.blocks = torch.nn.ModuleList(Attend(block) for block in model.blocks[:layers])
    for param in model.parameters():
        param.data *= 5 if param.ndim == 2 else 1  # with weights of 0.02 the heads take long to become different
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    for step in range(2 if config.dry_run else config.steps):
        optimizer.param_groups[0]["lr"] = ex13.learning_rate(config, step)
        tokens, known = repeats(config.batch_size)
        loss = ex13.loss_fn(model(tokens[:, :-1])[known], tokens[:, 1:][known])  # ()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 24:
            right[step + 1] = copied(model)
    return model, right | {step + 1: copied(model)}
