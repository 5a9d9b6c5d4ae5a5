"""How far back does the gradient reach?

    python ex11_shakespeare_ffn/memory.py

Predicted: in a new RNN a step back multiplies it by less than 1/√3, the radius of torch's first weights; in a new LSTM
by at least σ(b) with a forget gate of bias b, so that 3 lets it through 50 steps. And the LSTM learns to say the first
of 30 symbols, where the RNN does not. Measured: gradients of new networks, then that task. 45 CPU seconds.
"""

from dataclasses import dataclass
from pathlib import Path

from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import torch
import train as ex11
import tyro
from torch import nn

C, K, LENGTHS = 128, 8, (10, 20, 30)  # units; symbols to remember, and as many others; symbols of a sequence, T
KINDS = {"RNN": 0, "orthogonal RNN": 0, "LSTM": 0, "LSTM, forget bias 1": 1, "LSTM, forget bias 3": 3}


@dataclass
class Config:
    steps: int = 300  # training steps of each network
    learning_rate: float = 0.004  # peak learning rate of AdamW
    warmup_steps: int = 30  # steps of linear warm-up; then half a cosine down to 0
    seed: int = 0  # random seed of weights, sequences and batches
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few steps, to check that everything works

    def __post_init__(self):
        check_config(self)


def make_data(rng, n, length):
    """Return n sequences (n, T, 2K), one-hot, and the class (n,) of each: its first symbol, which comes but once."""
    symbols = rng.integers(K, 2 * K, (n, length))  # (n, T)
    symbols[:, 0] -= K
    return nn.functional.one_hot(torch.from_numpy(symbols), 2 * K).float(), torch.from_numpy(symbols[:, 0])


def new_network(kind):
    """Return a new recurrent network, one layer: torch's own weights, but for what the kind says."""
    net = (nn.LSTM if "LSTM" in kind else nn.RNN)(2 * K, C, batch_first=True)
    if kind == "orthogonal RNN":
        nn.init.orthogonal_(net.weight_hh_l0)
    for bias in (net.bias_ih_l0, net.bias_hh_l0) if KINDS[kind] else ():
        nn.init.constant_(bias[C : 2 * C], KINDS[kind] / 2)  # the forget gate's
    return net


def reach(net, x):
    """Return the norm (T,) of the gradient of the last state, in an LSTM the cell, by those 0, 1, … steps before it."""
    state, states = None, []
    for t in range(x.shape[1]):
        _, state = net(x[:, t : t + 1], state)  # of x (B, T, D)
        states.append(state[1] if isinstance(net, nn.LSTM) else state)  # (1, B, C)
    grads = torch.autograd.grad(states[-1], states, nn.functional.normalize(torch.randn_like(states[-1]), dim=-1))
    return torch.stack([grad.norm(dim=-1).mean() for grad in reversed(grads)]).numpy()


def recall(kind, length, config):
    """Return the share of new sequences of T symbols after which a network, once trained, says the first."""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    (x, y), (x_test, y_test) = (make_data(rng, n, length) for n in ((64, 10) if config.dry_run else (8_000, 1_000)))
    net, head = new_network(kind), nn.Linear(C, K)
    optimizer = torch.optim.AdamW(params := [*net.parameters(), *head.parameters()])
    for step, index in zip(range(2 if config.dry_run else config.steps), ex11.batches(rng, len(x), 64)):
        optimizer.param_groups[0]["lr"] = ex11.learning_rate(config, step)
        loss = ex11.loss_fn(head(net(x[index])[0][:, -1]), y[index])  # ()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return (head(net(x_test)[0][:, -1]).argmax(1) == y_test).double().mean().item()


def draw(norms, recalled):
    """Return the picture: the gradient over steps back, and the recall over the number of symbols, for each kind."""
    figure, (left, right) = panels("The gradient, in new networks", "First symbol said, after training")
    for color, (kind, norm) in zip(SAFE, norms.items()):
        left.semilogy(norm, color=color)
        label(left, len(norm) - 1, max(norm[-1], 3e-12), kind, color)
        right.plot(recalled[kind].keys(), [100 * share for share in recalled[kind].values()], "o-", color=color)
    left.set(ylim=(1e-12, 50), xlim=(0, 80), xticks=range(0, 51, 10), xlabel="steps back", ylabel="its norm")
    right.axhline(100 / K, color="0.5", linestyle="--")
    right.set(xlabel="symbols", xticks=LENGTHS, ylabel="sequences (%); dashed: by guessing", ylim=(0, 105))
    return figure


def main(config: Config) -> dict[str, float]:
    torch.manual_seed(config.seed)
    x, _ = make_data(np.random.default_rng(config.seed), 64, 51)
    norms = {kind: reach(new_network(kind), x) for kind in KINDS}
    step = {kind: (norm[40] / norm[10]) ** (1 / 30) for kind, norm in norms.items()}  # factor a step, away from the end
    recalled = {kind: {length: recall(kind, length, config) for length in LENGTHS} for kind in KINDS}
    return answer(
        config,
        draw(norms, recalled),
        factor_rnn=(step["RNN"], None, 0.577),
        factor_lstm=(step["LSTM"], 0.5, None),
        factor_lstm_bias_1=(step["LSTM, forget bias 1"], 0.731, None),
        factor_lstm_bias_3=(step["LSTM, forget bias 3"], 0.953, None),
        recall_rnn=(recalled["RNN"][30], None, 0.5),
        recall_lstm_bias_1=(recalled["LSTM, forget bias 1"][30], 0.95, None),
        recall_lstm_bias_3=(recalled["LSTM, forget bias 3"][30], 0.95, None),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
