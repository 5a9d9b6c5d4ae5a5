"""What does a memory buy over five words?

    python ex11_shakespeare_ffn/recurrent.py

Predicted: at equal CPU time an LSTM beats exercise 11's feedforward network, which sees five words, and beats a plain
RNN by 0.02, since its gradient reaches further; it is 0.03 to 0.15 worse where it, too, may read but five words; and
its forget gates are more closed at the ends of lines. Measured: test loss after 25 CPU seconds of training for each, a
sixth of what exercise 11 takes. 120 CPU seconds.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from common.plotting import SAFE, panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import torch
import torch.nn.functional as F
import train as ex11
import tyro
from cells import Recurrent, lstm, rnn

T, HALF, B = 32, 16, 8  # tokens of a block for a recurrent network; those scored in the test; blocks per step
PASSAGE = slice(78, 106)  # of the test text: the end of a speech, a name, and a line


@dataclass
class Config:
    seconds: float = 25  # CPU seconds of training for each network
    learning_rate: float = 0.004  # peak learning rate of the recurrent networks; the feedforward one keeps its own
    seed: int = 0  # random seed of weights and batches
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # little text and little time, to check that everything works

    def __post_init__(self):
        check_config(self)
        if self.dry_run:
            self.seconds = 0.3


def predict(model, tokens, n):
    """Return the logits (B · n, V) of what follows each of the last n of the tokens (B, T)."""
    return model(tokens, n) if isinstance(model, Recurrent) else model(tokens)


def windows(train, test, size, n):
    """Return the test tokens as windows (N, size + 1) that end in n tokens to be scored, so that each is scored once.

    The others come before, the first ones from the training text; what fills up the last window is -1.
    """
    return torch.cat([train[n - size - 1 :], F.pad(test, (0, -len(test) % n), value=-1)]).unfold(0, size + 1, n)


@torch.no_grad()
def evaluate(model, blocks, n):
    """Return the loss of the last n tokens of blocks (N, 1 + T), in nats per token."""
    model.eval()  # without dropout
    loss = 0.0
    for part in blocks.split(1024 // n):
        logits = predict(model, part[:, :-1].clamp(min=0), n)  # (P · n, V)
        loss += F.cross_entropy(logits, part[:, -n:].flatten(), ignore_index=-1, reduction="sum").item()
    model.train()
    return loss / (blocks[:, -n:] >= 0).sum().item()


def train(model, blocks, n, batch_size, learning_rate, test, config):
    """Train a model to predict the last n tokens of blocks (N, 1 + T); return test losses by CPU seconds, and speed.

    What is given is the time: the learning rate rises over its first tenth, and has fallen to 0 at its end.
    """
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    schedule = ex11.Config(learning_rate=learning_rate, steps=1000, warmup_steps=100)  # thousandths of the time
    spent, losses, words = 0.0, {}, 0
    for index in ex11.batches(np.random.default_rng(config.seed), len(blocks), batch_size):
        if spent >= (len(losses) + 1) * config.seconds / 4:
            losses[spent] = evaluate(model, *test)
        if spent >= config.seconds:
            return losses, words / spent
        start = time.process_time()
        optimizer.param_groups[0]["lr"] = ex11.learning_rate(schedule, 1000 * spent / config.seconds)
        loss = ex11.loss_fn(predict(model, blocks[index, :-1], n), blocks[index, -n:].flatten())  # ()
        loss.backward()
        if isinstance(model, Recurrent):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        spent, words = spent + time.process_time() - start, words + index.size * n


def draw(curves, gates, words):
    """Return the picture: test loss over CPU seconds, and the forget gates (C, L) of the LSTM that reads some words."""
    figure, (left, right) = panels("Test loss", "The LSTM reads: its forget gates", widths=(4.6, 6.8))
    for color, (name, losses) in zip(SAFE, curves.items()):
        left.plot(losses.keys(), losses.values(), "o-", color=color, label=name)
    left.legend(frameon=False)
    left.set(xlabel="CPU seconds of training", ylabel="nats per word", xlim=(0, None))
    main = np.linalg.svd(gates - gates.mean(1, keepdims=True))[0][:, 0]  # (C,): units that go together come together
    shown = right.imshow(gates[main.argsort()], cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    right.set_xticks(range(len(words)), [repr(word)[1:-1] for word in words], rotation=90, fontsize=8)
    right.set(ylabel="256 units, alike beside alike", yticks=[])
    right.grid(visible=False)
    figure.colorbar(shown, ax=right, label="0: forgets all, 1: keeps all", fraction=0.05)
    return figure


def main(config: Config) -> dict[str, float]:
    ex = ex11.Config(dry_run=config.dry_run)
    training, test, vocab = ex11.read_tokens(ex)
    wide, five = windows(training, test, T, HALF), windows(training, test, ex.block_size, 1)
    curves, speed = {}, {}
    for name, layer in (("feedforward", None), ("RNN", rnn), ("LSTM", lstm)):
        torch.manual_seed(config.seed)
        if layer:
            model = Recurrent(layer, ex, len(vocab))
            job = training.unfold(0, T + 1, 1), T, B, config.learning_rate, (wide, HALF)
        else:
            model = ex11.MLP(ex, len(vocab))
            job = training.unfold(0, ex.block_size + 1, 1), 1, ex.batch_size, ex.learning_rate, (five, 1)
        curves[name], speed[name] = train(model, *job, config)
    ffn, simple, gated = (list(losses.values())[-1] for losses in curves.values())
    model.eval()
    everywhere, passage = [], []
    with torch.no_grad():
        model.states(wide[:, :-1].clamp(min=0), everywhere)
        model.states(test[None, : PASSAGE.stop], passage)
    gate, ends = torch.stack(everywhere, 1).mean(-1), wide[:, :-1] == vocab.index("\n")  # (N, T), (N, T)
    return answer(
        config,
        draw(curves, torch.cat(passage)[PASSAGE].T.numpy(), [vocab[token] for token in test[PASSAGE]]),
        test_loss_ffn=ffn,
        test_loss_rnn=simple,
        test_loss_lstm=gated,
        lstm_minus_ffn=(gated - ffn, None, 0),
        lstm_minus_rnn=(gated - simple, None, -0.02),
        memory_beyond_five_words=(evaluate(model, five, 1) - gated, 0.03, 0.15),
        forget_gate_at_line_ends=((gate[ends].mean() - gate[~ends].mean()).item(), None, -0.03),
        words_per_second_ffn=speed["feedforward"],
        words_per_second_rnn=speed["RNN"],
        words_per_second_lstm=speed["LSTM"],
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
